"""The memory that a rank and its host need, in bytes, predicted from the configuration alone. Imports no torch.

The prediction counts the tensors that are alive at the peak of a step, and what libraries and the allocator hold
besides. On a GPU it is what PyTorch allocates; CUDA's own context takes about half a GiB more.
"""

import os
from functools import lru_cache
from pathlib import Path
from typing import Literal, NamedTuple

import psutil

from trainer.config import TrainConfig
from trainer.model import count

Device = Literal["cuda", "cpu"]

DRIVERS = (Path("/dev/nvidiactl"), Path("/dev/kfd"))
"""What the drivers of NVIDIA's and AMD's GPUs open."""
VISIBLE_DEVICES = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")
"""Variables with the numbers of the GPUs that a process sees; ROCm reads all three."""
CHUNK = 512
"""Tokens whose logits exist at the same time, as in trainer.model.loss."""
BLOCK = 128
"""Queries in a block of the attention that trainer.model.attention uses in 16 bits on a CPU."""
BUCKET = 50_000_000
"""Elements in a bucket that DeepSpeed reduces or gathers, as in trainer.engine.deepspeed_setup."""
LIVE = 1_000_000_000
"""Gathered weights that DeepSpeed keeps at ZeRO-3 for their next use (`stage3_max_live_parameters`, the default)."""
LIBRARIES: dict[Device, int] = {"cuda": 64 << 20, "cpu": 48 << 20}
"""Bytes that libraries take with any model. On a GPU, cuBLAS's workspace; on a CPU, threads, oneDNN's kernels and the
modules imported at the first step."""
HOST_LIBRARIES = 2 << 30
"""Bytes of a host's memory that a process on a GPU takes with any model: PyTorch, CUDA's context, NCCL and DeepSpeed.
An estimate."""
FILE_BYTES = 5 * 10**9
"""Bytes of tensors in one file of a checkpoint, unless one tensor is larger; the main rank gathers them first."""
AVX512 = frozenset({"avx512bw", "avx512dq", "avx512vl"})
BF16 = frozenset({"avx512_bf16", "amx_bf16"})
"""CPU features, by the names of `/proc/cpuinfo`."""
WITHOUT_BF16 = ("AVX512_CORE", "AVX512_CORE_VNNI")
"""Values of ONEDNN_MAX_CPU_ISA that leave AVX-512 to oneDNN and hide the instructions for bf16."""
HOLES: dict[Device, float] = {"cuda": 0.05, "cpu": 0.2}
"""Memory that the allocator holds but no tensor uses, as a share of the activations. Measured on the CPU."""
COPIES = (0, 2, 2, 3)
"""Copies in fp32 of a rank's parameters that DeepSpeed makes to flatten, gather and reduce them, by ZeRO stage.
Measured on the CPU, where the process keeps freed memory."""


class Memory(NamedTuple):
    """Bytes on one rank.

    weights: what the model computes with, including the weights gathered at ZeRO-3.
    gradients: the gradients and the bucket that reduces them.
    optimizer: Adam's moments, and the fp32 master weights where they are not the weights themselves.
    activations: the activations and the logits.
    other: libraries and the allocator.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    other: int


def memory_per_gpu(
    config: TrainConfig, data_ranks: int, device: Device | None = None, emulates_bf16: bool | None = None
) -> Memory:
    """The memory of the rank that needs most, which is at one end of the pipeline.

    `device` and `emulates_bf16` (see `emulates_bf16_here`) default to what this machine has.
    """
    device = device or device_here()
    emulated = device == "cpu" and (emulates_bf16_here() if emulates_bf16 is None else emulates_bf16)
    ends = {0, config.parallel.pipeline - 1}
    return max((_of_rank(config, data_ranks, stage, device, emulated) for stage in ends), key=sum)


def host_memory(config: TrainConfig, processes: int) -> int:
    """The bytes of a host's memory that all processes of a run on its GPUs take.

    Each process has its libraries, and reads or draws a tensor at a time in fp32 through a copy. The main rank gathers
    a checkpoint's tensors on the CPU, a file of them at a time. Token files are mapped; no other process loads data.
    """
    rows = max(config.vocabulary, config.model.inner_size, config.context)
    tensor = 2 * 4 * rows * config.model.hidden_size
    gathered = min(4 * count.parameters(config.model, config.vocabulary, config.context), FILE_BYTES)
    return processes * (HOST_LIBRARIES + tensor) + gathered


def host_bytes_here() -> int:
    """The bytes of memory of this host, or of its container's limit where that is less."""
    limits, group = [psutil.virtual_memory().total], Path("/sys/fs/cgroup/memory.max")
    if group.exists() and (text := group.read_text().strip()).isdecimal():
        limits.append(int(text))
    return min(limits)


def device_here() -> Device:
    """The device that ranks would compute on, on this machine."""
    hidden = any(os.environ.get(name) == "" for name in VISIBLE_DEVICES)
    return "cuda" if any(map(Path.exists, DRIVERS)) and not hidden else "cpu"


def emulates_bf16_here() -> bool:
    """Whether oneDNN emulates bf16 products by AVX-512 on this machine.

    It does where the CPU has no instructions for bf16, or ONEDNN_MAX_CPU_ISA hides them. PyTorch calls oneDNN for bf16
    only where there is AVX-512.
    """
    flags = cpu_flags()
    hidden = os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper() in WITHOUT_BF16
    return flags >= AVX512 and (hidden or not flags & BF16)


@lru_cache(maxsize=1)
def cpu_flags() -> frozenset[str]:
    """The features of the first CPU in `/proc/cpuinfo`; empty where that file is missing or lists none."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return frozenset()
    return next((frozenset(line.split(":")[1].split()) for line in lines if line.startswith("flags")), frozenset())


def _of_rank(config: TrainConfig, data_ranks: int, stage: int, device: Device, emulated: bool) -> Memory:
    alone = config.parallel.pipeline * config.parallel.tensor * data_ranks == 1
    if config.tunes:
        return _tuning(config, device, emulated)
    weights, gradients, optimizer = _alone(config) if alone else _partitioned(config, data_ranks, stage, device)
    activations = _activations(config, stage, device) + _head(config, stage, device, alone, emulated)
    if device == "cpu":
        # Initialisation draws the embedding table in fp32 with a copy, before there are activations.
        activations = max(activations, 8 * config.vocabulary * config.model.hidden_size)
    other = LIBRARIES[device] + int(HOLES[device] * activations)
    if device == "cpu" and not alone:
        other += COPIES[_zero_stage(config)] * 4 * _held(config, stage)
    return Memory(weights, gradients, optimizer, activations, other)


def _tuning(config: TrainConfig, device: Device, emulated: bool) -> Memory:
    """A rank of trainer.engine.tuning, which holds the whole model. Frozen weights are kept in fp32, and in bf16 too
    where the model computes in it; only what is trained has gradients and moments."""
    held, size = count.parameters(config.model, config.vocabulary, config.context), _bytes(config)
    trained, frozen = held, 0
    if config.lora is not None:
        trained, frozen = count.adapters(config.model, config.lora.rank, config.lora.targets), held
    weights = size * trained + (4 if size == 4 else 6) * frozen
    activations = _activations(config, 0, device)
    head = _head(config, 0, device, False, emulated)
    if config.data.kind == "preferences":
        # Each pair is two rows, whose logits are kept, with their softmax and its gradient.
        weights += 0 if config.lora else size * held
        activations *= 2
        tokens = 2 * config.training.micro_batch * config.data.sequence_length
        head = tokens * (3 * size * config.model.hidden_size + (size + 8) * config.vocabulary)
    activations += head
    optimizer = (8 if size == 4 else 12) * trained
    return Memory(weights, 4 * trained, optimizer, activations, LIBRARIES[device] + int(HOLES[device] * activations))


def _alone(config: TrainConfig) -> tuple[int, int, int]:
    """Bytes of weights, gradients and optimizer of a single rank, as trainer.engine.flat_adamw keeps them."""
    held = count.parameters(config.model, config.vocabulary, config.context)
    if _bytes(config) == 4:
        return 4 * held, 4 * held, 8 * held
    if config.training.batch > config.training.micro_batch:
        return 2 * held, 4 * held, 12 * held
    # The embedding's gradient is fp32 although the weights are bf16.
    return 2 * held, 2 * held + 2 * config.vocabulary * config.model.hidden_size, 12 * held


def _partitioned(config: TrainConfig, data_ranks: int, stage: int, device: Device) -> tuple[int, int, int]:
    """Bytes of weights, gradients and optimizer of a rank, as DeepSpeed partitions them over the data-parallel ranks.

    Source: Rajbhandari et al. 2020, “ZeRO”, figure 1.
    """
    held, size, zero = _held(config, stage), _bytes(config), _zero_stage(config)
    part = -(-held // data_ranks)
    if zero == 0:
        return 4 * held, 4 * held, 8 * held
    # On a CPU, the part of the bucket that nothing is written to is not resident.
    bucket = 4 * (min(held, BUCKET) if device == "cpu" else BUCKET)
    if zero == 1:
        # DeepSpeed reduces bf16 gradients in place, and fp32 gradients through the bucket to this rank's part.
        return size * held, 4 * held + (bucket + 4 * part if size == 4 else 0), 12 * part
    gathered = size * min(held, LIVE) if zero == 3 else 0
    return gathered + size * (part if zero == 3 else held), 4 * part + bucket, 12 * part


def _zero_stage(config: TrainConfig) -> int:
    """The ZeRO stage in use; the rule is that of trainer.engine.deepspeed_setup.safe_zero_stage."""
    parallel = config.parallel
    return parallel.zero_stage or int(parallel.pipeline > 1 or config.training.precision != "fp32")


def _bytes(config: TrainConfig) -> int:
    """Bytes of an element that the model computes with."""
    return 4 if config.training.precision == "fp32" else 2


def _held(config: TrainConfig, stage: int) -> int:
    """Parameters of a rank: those of its pipeline stage, divided by the tensor-parallel ranks.

    Every tensor-parallel rank has norms and some biases whole; they are so few that they are counted as divided.
    """
    model, last = config.model, config.parallel.pipeline - 1
    block, shared = count.block(model), count.relative_bias(model)
    table = config.vocabulary * model.hidden_size
    first = table + (config.context * model.hidden_size if model.positions == "learned" else 0)
    held = _layers(config, stage) * block + shared
    if stage == 0:
        held += first
    if stage == last:
        held += count.parameters(model, config.vocabulary, config.context) - model.layers * block - first - shared
        # The last stage has a copy of the embedding for a tied head.
        held += table if model.tied_head and stage > 0 else 0
    return -(-held // config.parallel.tensor)


def _layers(config: TrainConfig, stage: int) -> int:
    """Blocks of a stage; where the layers do not divide evenly, the first stages have one more."""
    each, more = divmod(config.model.layers, config.parallel.pipeline)
    return each + (stage < more)


def _activations(config: TrainConfig, stage: int, device: Device) -> int:
    """Bytes that the blocks keep for the backward pass, and what the backward pass of one block needs besides."""
    model, parallel, training = config.model, config.parallel, config.training
    tokens = training.micro_batch * config.data.sequence_length
    pattern = len(model.attention)
    block = sum(_block(config, layer, device) for layer in range(pattern)) // pattern
    kept = model.hidden_size if training.recompute else block
    # 1F1B: stage s of p holds the activations of p - s micro-batches (Narayanan et al. 2019, “PipeDream”).
    under_way = min(parallel.pipeline - stage, training.batch // training.micro_batch)
    back = model.hidden_size + 2 * model.inner_size // parallel.tensor
    if device == "cuda" and model.positions == "t5":
        # The gradient of what is added to the logits, before it is summed over the rows of the micro-batch.
        back += model.heads * config.data.sequence_length // parallel.tensor
    if training.recompute:
        back += block
        # On a CPU, a recomputed block does not reuse the memory that the block before it freed.
        back *= 2 if device == "cpu" else 1
    return tokens * _bytes(config) * (under_way * _layers(config, stage) * kept + back)


def _block(config: TrainConfig, layer: int, device: Device) -> int:
    """Elements a token that a block keeps for the backward pass, including its input.

    Source: Korthikanti et al. 2022, “Reducing Activation Recomputation”, section 4.1, for attention that keeps no
    scores.
    """
    model, wide = config.model, _bytes(config) == 4
    length, hidden = config.data.sequence_length, model.hidden_size
    keys = model.groups * model.head_size
    norms = 1 if model.parallel_residual and model.norms != "two" else 2
    whole = hidden * (1 + norms + (not model.parallel_residual))
    # Queries, keys and values, the rotated queries and keys, and the output of attention.
    split = 2 * hidden + 2 * keys + (hidden + keys if model.positions == "rotary" else 0)
    split += model.inner_size * (4 if model.activation == "swiglu" else 2)
    biased = model.positions in ("alibi", "t5")
    # Examples that share a row do not see one another, and each row has a mask of its own.
    packed = config.data.kind != "text"
    masked = biased or packed or (model.is_local(layer) and model.window < length)
    if device == "cuda" and packed:
        split += (model.heads if biased else 1) * length
    elif device == "cuda" and masked:
        # PyTorch's attention keeps the mask, which the rows of the micro-batch share.
        split += (model.heads if biased else 1) * length // config.training.micro_batch
    if device == "cpu":
        if model.norm == "rmsnorm":
            # PyTorch has no RMSNorm kernel for CPUs: the composed one keeps its input and its output in fp32.
            whole += hidden * norms * (1 if wide else 4)
        if masked:
            # With a mask, PyTorch's attention keeps the scores in fp32, and in bf16 the softmax of the scores too.
            scores = model.heads * length
            split += 2 * hidden + scores if wide else 4 * (hidden + scores)
        elif wide or model.groups < model.heads:
            split += hidden
        else:
            # trainer.model.attention copies the values, and keeps for each block its scores with the keys before it.
            split += model.heads * (length + BLOCK) // 2 - (2 * keys if model.positions == "rotary" else 0)
    return whole + split // config.parallel.tensor


def _head(config: TrainConfig, stage: int, device: Device, alone: bool, emulated: bool) -> int:
    """Bytes of the head: its norm, the logits of a chunk, and its gradients until the parameters' include them."""
    if stage < config.parallel.pipeline - 1:
        return 0
    training, size = config.training, _bytes(config)
    tokens = training.micro_batch * config.data.sequence_length
    rows = config.vocabulary // config.parallel.tensor
    chunk, table = min(CHUNK, tokens) * rows, rows * config.model.hidden_size
    # The head's input, the normalised input, and the gradient of the normalised input.
    around = 3 * tokens * size * config.model.hidden_size
    if size == 4:
        return around + (4 * chunk if alone else 4 * (max(chunk, table) + table))
    # Products in bf16 are accumulated in fp32; on a CPU through a copy.
    added = (2 if device == "cuda" else 6) * table
    if alone:
        copied = added if training.batch > training.micro_batch else 0
        # Emulation sums a product in fp32 before rounding to bf16; the copy reuses that memory later.
        return around + 2 * chunk + max(copied, 4 * max(chunk, table) if emulated else 0)
    exact = 4 * chunk if config.parallel.tensor > 1 else 0
    return around + 2 * chunk + 4 * table + max(exact + added, 4 * chunk if emulated else 0)
