"""How much memory a rank needs, from the configuration alone: what each part of training holds. Imports no torch.

It is the tensors at the peak of a step, and what libraries and the allocator hold besides. On a GPU that is what
PyTorch allocates there; CUDA's own context, about half a GiB, comes on top.
"""

import os
from functools import lru_cache
from pathlib import Path
from typing import Literal, NamedTuple

from trainer.config import TrainConfig
from trainer.model import count

Device = Literal["cuda", "cpu"]

CHUNK = 512
"""Tokens whose logits are held at once, as in trainer.model.loss."""
BLOCK = 128
"""Queries that attention in bf16 on a CPU takes at once, as in trainer.model.attention."""
BUCKET = 50_000_000
"""Numbers that DeepSpeed reduces or gathers at once, as in trainer.engine.deepspeed_setup."""
LIVE = 1_000_000_000
"""Gathered weights that DeepSpeed keeps for their next use at ZeRO-3: its default."""
LIBRARIES: dict[Device, int] = {"cuda": 64 << 20, "cpu": 48 << 20}
"""Whatever the model: cuBLAS's workspace; threads, oneDNN's kernels and what is imported at the first step."""
AVX512 = frozenset({"avx512bw", "avx512dq", "avx512vl"})
BF16 = frozenset({"avx512_bf16", "amx_bf16"})
"""Features of a CPU, as the kernel names them."""
WITHOUT_BF16 = ("AVX512_CORE", "AVX512_CORE_VNNI")
"""What ONEDNN_MAX_CPU_ISA may say that leaves oneDNN AVX-512 and hides the instructions for bf16."""
HOLES: dict[Device, float] = {"cuda": 0.05, "cpu": 0.2}
"""Of the activations, what the allocator holds free between those that come and go. Measured on the CPU."""
COPIES = (0, 2, 2, 3)
"""By ZeRO stage, how many times over DeepSpeed has a rank's parameters in fp32 while it flattens, gathers and reduces
them. Measured on the CPU, where freed memory stays with the process."""


class Memory(NamedTuple):
    """Bytes on the rank that needs most: `weights` that the model computes with, with those gathered at ZeRO-3;
    `gradients` with the bucket they are reduced in; `optimizer`, Adam's moments and the fp32 masters that are not the
    weights; `activations` with the logits; `other`, libraries and allocator."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    other: int


def memory_per_gpu(
    config: TrainConfig, data_ranks: int, device: Device | None = None, emulates_bf16: bool | None = None
) -> Memory:
    """Of the rank that needs most, at either end of a pipeline; `device`, and whether its bf16 is emulated, are this
    machine's unless given."""
    device = device or device_here()
    emulated = device == "cpu" and (emulates_bf16_here() if emulates_bf16 is None else emulates_bf16)
    ends = {0, config.parallel.pipeline - 1}
    return max((_of_rank(config, data_ranks, stage, device, emulated) for stage in ends), key=sum)


def device_here() -> Device:
    """What ranks would compute on here."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") == ""
    return "cuda" if Path("/dev/nvidiactl").exists() and not hidden else "cpu"


def emulates_bf16_here() -> bool:
    """Whether oneDNN multiplies bf16 here by AVX-512 alone, because the CPU has no instruction for it, or because
    ONEDNN_MAX_CPU_ISA hides it. PyTorch calls oneDNN for bf16 only where there is AVX-512."""
    flags = cpu_flags()
    hidden = os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper() in WITHOUT_BF16
    return flags >= AVX512 and (hidden or not flags & BF16)


@lru_cache(maxsize=1)
def cpu_flags() -> frozenset[str]:
    """The features of the first CPU that the kernel names; none where it names them otherwise."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return frozenset()
    return next((frozenset(line.split(":")[1].split()) for line in lines if line.startswith("flags")), frozenset())


def _of_rank(config: TrainConfig, data_ranks: int, stage: int, device: Device, emulated: bool) -> Memory:
    alone = config.parallel.pipeline * config.parallel.tensor * data_ranks == 1
    weights, gradients, optimizer = _alone(config) if alone else _partitioned(config, data_ranks, stage, device)
    activations = _activations(config, stage, device) + _head(config, stage, device, alone, emulated)
    if device == "cpu":
        # Where a table of the first weights was drawn, while nothing was computed yet.
        activations = max(activations, 8 * config.vocabulary * config.model.hidden_size)
    other = LIBRARIES[device] + int(HOLES[device] * activations)
    if device == "cpu" and not alone:
        other += COPIES[_zero_stage(config)] * 4 * _held(config, stage)
    return Memory(weights, gradients, optimizer, activations, other)


def _alone(config: TrainConfig) -> tuple[int, int, int]:
    """Weights, gradients and optimizer of one process, as trainer.engine.flat_adamw keeps them."""
    held = count.parameters(config.model, config.vocabulary, config.context)
    if _bytes(config) == 4:
        return 4 * held, 4 * held, 8 * held
    if config.training.batch > config.training.micro_batch:
        return 2 * held, 4 * held, 12 * held
    # The embedding's gradient is fp32 even here.
    return 2 * held, 2 * held + 2 * config.vocabulary * config.model.hidden_size, 12 * held


def _partitioned(config: TrainConfig, data_ranks: int, stage: int, device: Device) -> tuple[int, int, int]:
    """The same as DeepSpeed splits them over data-parallel ranks (Rajbhandari et al. 2020, ZeRO, figure 1)."""
    held, size, zero = _held(config, stage), _bytes(config), _zero_stage(config)
    part = -(-held // data_ranks)
    if zero == 0:
        return 4 * held, 4 * held, 8 * held
    # On a CPU what nobody writes to is not resident.
    bucket = 4 * (min(held, BUCKET) if device == "cpu" else BUCKET)
    if zero == 1:
        # In bf16 they are reduced in place; in fp32 through the bucket to this rank's part.
        return size * held, 4 * held + (bucket + 4 * part if size == 4 else 0), 12 * part
    gathered = size * min(held, LIVE) if zero == 3 else 0
    return gathered + size * (part if zero == 3 else held), 4 * part + bucket, 12 * part


def _zero_stage(config: TrainConfig) -> int:
    """As trainer.engine.deepspeed_setup.safe_zero_stage has it."""
    parallel = config.parallel
    return parallel.zero_stage or int(parallel.pipeline > 1 or config.training.precision == "bf16")


def _bytes(config: TrainConfig) -> int:
    """Of a number that the model computes with."""
    return 2 if config.training.precision == "bf16" else 4


def _held(config: TrainConfig, stage: int) -> int:
    """Parameters of a rank: its stage's, split over tensor-parallel ranks, among whom the few that each has whole
    (norms and some biases) are counted once."""
    model, last = config.model, config.parallel.pipeline - 1
    block = count.block(model)
    table = config.vocabulary * model.hidden_size
    first = table + (config.context * model.hidden_size if model.positions == "learned" else 0)
    held = _layers(config, stage) * block
    if stage == 0:
        held += first
    if stage == last:
        held += count.parameters(model, config.vocabulary, config.context) - model.layers * block - first
        # A tied head has a copy of the embedding.
        held += table if model.tied_head and stage > 0 else 0
    return -(-held // config.parallel.tensor)


def _layers(config: TrainConfig, stage: int) -> int:
    """Blocks of a stage; where they do not divide, the first stages have one more."""
    each, more = divmod(config.model.layers, config.parallel.pipeline)
    return each + (stage < more)


def _activations(config: TrainConfig, stage: int, device: Device) -> int:
    """Bytes that the blocks keep for the way back and what the first of them needs there."""
    model, parallel, training = config.model, config.parallel, config.training
    tokens = training.micro_batch * config.data.sequence_length
    pattern = len(model.attention)
    block = sum(_block(config, layer, device) for layer in range(pattern)) // pattern
    kept = model.hidden_size if training.recompute else block
    # At the front of a pipeline as many micro-batches are under way as it has stages (Narayanan et al. 2019, 1F1B).
    under_way = min(parallel.pipeline - stage, training.batch // training.micro_batch)
    back = model.hidden_size + 2 * model.inner_size // parallel.tensor
    if training.recompute:
        back += block
        # A block made anew fills no holes that the one before it left.
        back *= 2 if device == "cpu" else 1
    return tokens * _bytes(config) * (under_way * _layers(config, stage) * kept + back)


def _block(config: TrainConfig, layer: int, device: Device) -> int:
    """Numbers a token that a block keeps, its input among them (after Korthikanti et al. 2022, section 4.1, for
    attention that keeps no scores)."""
    model, wide = config.model, _bytes(config) == 4
    length, hidden = config.data.sequence_length, model.hidden_size
    keys = model.groups * model.head_size
    norms = 1 if model.parallel_residual and model.norms != "two" else 2
    whole = hidden * (1 + norms + (not model.parallel_residual))
    # Queries, keys and values, those that are rotated, and what attention gives.
    split = 2 * hidden + 2 * keys + (hidden + keys if model.positions == "rotary" else 0)
    split += model.inner_size * (4 if model.activation == "swiglu" else 2)
    if device == "cpu":
        masked = model.positions == "alibi" or (model.is_local(layer) and model.window < length)
        if model.norm == "rmsnorm":
            # PyTorch's has no kernel of its own there: input and normalised are kept in fp32.
            whole += hidden * norms * (1 if wide else 4)
        if masked:
            # With a mask PyTorch's attention keeps the scores, in fp32; in bf16 what the softmax makes of them too.
            scores = model.heads * length
            split += 2 * hidden + scores if wide else 4 * (hidden + scores)
        elif wide or model.groups < model.heads:
            split += hidden
        else:
            # Ours, which copies the values, and keeps each block's scores with the keys up to it.
            split += model.heads * (length + BLOCK) // 2 - (2 * keys if model.positions == "rotary" else 0)
    return whole + split // config.parallel.tensor


def _head(config: TrainConfig, stage: int, device: Device, alone: bool, emulated: bool) -> int:
    """Bytes around the head: its norm, a chunk's logits, and its gradients until they are the parameters'."""
    if stage < config.parallel.pipeline - 1:
        return 0
    training, size = config.training, _bytes(config)
    tokens = training.micro_batch * config.data.sequence_length
    rows = config.vocabulary // config.parallel.tensor
    chunk, table = min(CHUNK, tokens) * rows, rows * config.model.hidden_size
    # Its input, that normalised, and the gradient of that.
    around = 3 * tokens * size * config.model.hidden_size
    if size == 4:
        return around + (4 * chunk if alone else 4 * (max(chunk, table) + table))
    # Products in bf16 are added in fp32; on a CPU through a copy.
    added = (2 if device == "cuda" else 6) * table
    if alone:
        copied = added if training.batch > training.micro_batch else 0
        # Emulated, a product is summed in fp32 before it is bf16; the copy comes later, and in its place.
        return around + 2 * chunk + max(copied, 4 * max(chunk, table) if emulated else 0)
    exact = 4 * chunk if config.parallel.tensor > 1 else 0
    return around + 2 * chunk + 4 * table + max(exact + added, 4 * chunk if emulated else 0)
