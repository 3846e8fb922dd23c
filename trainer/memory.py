"""How much memory a rank needs, from the configuration alone: what each part of training holds. Imports no torch.

Bytes are those of the tensors at the peak of a step, and what libraries and allocator take besides. On a GPU that is
what PyTorch allocates there: CUDA's own context, about half a GiB, comes on top.
"""

import os
from pathlib import Path
from typing import Literal, NamedTuple

from trainer.config import TrainConfig
from trainer.model import count

Device = Literal["cuda", "cpu"]

MIB = 2**20
CHUNK = 512
"""Tokens whose logits are held at once, as in trainer.model.loss."""
BUCKET = 50_000_000
"""Numbers that DeepSpeed reduces or gathers at once, as in trainer.engine.library."""
BLOCK = 128
"""Queries that attention on a CPU computes at once in bf16, as in trainer.model.attention."""
LIVE = 1_000_000_000
"""Gathered weights that DeepSpeed keeps at ZeRO-3 for their next use, at most: its default."""
LIBRARIES: dict[Device, int] = {"cuda": 64 * MIB, "cpu": 56 * MIB}
"""Held whatever the model: cuBLAS's workspace; threads, oneDNN's kernels and what is imported at the first step."""
HOLES: dict[Device, float] = {"cuda": 0.0, "cpu": 0.15}
"""Of the rest, what glibc's allocator holds free between tensors, for it never moves one. Measured."""


class Memory(NamedTuple):
    """Bytes on the rank that needs most. `weights` are those that the model computes with, `optimizer` Adam's moments
    and, where they are not the weights, fp32 masters; `gradients` has the buckets that ranks exchange them through,
    `activations` the head's logits, `other` libraries and allocator."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    other: int


def memory_per_gpu(config: TrainConfig, data_ranks: int, device: Device | None = None) -> Memory:
    """Of one of the ranks with the most; `device` is this machine's unless given."""
    device = device or device_here()
    last = config.parallel.pipeline - 1
    return max((_rank(config, data_ranks, stage, device) for stage in {0, last}), key=sum)


def device_here() -> Device:
    """Whether ranks would compute on a GPU here."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") == ""
    return "cuda" if Path("/dev/nvidiactl").exists() and not hidden else "cpu"


def _rank(config: TrainConfig, data_ranks: int, stage: int, device: Device) -> Memory:
    """The states as ZeRO splits them (Rajbhandari et al. 2020, figure 1), for what a pipeline's stage holds."""
    held, size = _parameters(config, stage), _bytes(config)
    alone = config.parallel.pipeline * config.parallel.tensor * data_ranks == 1
    accumulates = config.training.batch > config.training.micro_batch * data_ranks
    zero = _zero_stage(config)
    part = -(-held // data_ranks) if zero else held
    weights, gradients, optimizer = size * held, 4 * held, 8 * part
    if alone:
        optimizer += 4 * held if size == 2 else 0
        if size == 2 and not accumulates:
            # The embedding's are fp32 even here.
            gradients = 2 * held + 2 * config.vocabulary * config.model.hidden_size
    elif zero:
        optimizer += 4 * part
        gradients = 4 * (part if zero > 1 else held)
        # In bf16, DeepSpeed's ZeRO-1 reduces its fp32 sums where they are.
        gradients += 4 * BUCKET if zero > 1 or size == 4 else 0
        weights = size * (part + min(held, LIVE)) if zero == 3 else weights
    activations = _activations(config, stage, device, alone)
    if device == "cpu":
        # Weights are drawn one parameter at a time, when nothing is computed yet: the room is used again.
        activations = max(activations, 8 * config.vocabulary * config.model.hidden_size)
    other = LIBRARIES[device] + HOLES[device] * (weights + gradients + optimizer + activations)
    return Memory(weights, gradients, optimizer, activations, int(other))


def _zero_stage(config: TrainConfig) -> int:
    """As trainer.engine.library.usable_stage has it."""
    parallel = config.parallel
    return parallel.zero_stage or int(parallel.pipeline > 1 or config.training.precision == "bf16")


def _bytes(config: TrainConfig) -> int:
    """Of a number that the model computes with."""
    return 2 if config.training.precision == "bf16" else 4


def _parameters(config: TrainConfig, stage: int) -> int:
    """Those that a rank of the stage holds: its blocks and its end of the model, split over tensor-parallel ranks.

    The few that are not split, norms and some biases, are counted as if they were.
    """
    model, parallel = config.model, config.parallel
    table = config.vocabulary * model.hidden_size
    total = count.parameters(model, config.vocabulary, config.context)
    blocks = model.layers * count.block(model)
    held = blocks * _layers(config, stage) // model.layers
    first = table + (config.context * model.hidden_size if model.positions == "learned" else 0)
    if stage == 0:
        held += first
    if stage == parallel.pipeline - 1:
        held += total - blocks - first
        # A tied head has a copy of the embedding.
        held += table if model.tied_head and stage else 0
    return -(-held // parallel.tensor)


def _layers(config: TrainConfig, stage: int) -> int:
    """Blocks of a stage; where they do not divide, the first stages have one more."""
    each, more = divmod(config.model.layers, config.parallel.pipeline)
    return each + (stage < more)


def _activations(config: TrainConfig, stage: int, device: Device, alone: bool) -> int:
    """What is held when the way back begins: all that blocks keep for it, and what the first of them needs at once."""
    model, parallel, size = config.model, config.parallel, _bytes(config)
    tokens = config.training.micro_batch * config.data.sequence_length
    hidden, inner = model.hidden_size, model.inner_size // parallel.tensor
    block = sum(_block(config, layer, device) for layer in range(len(model.attention))) // len(model.attention)
    kept = hidden if config.training.recompute else block
    # One at the front of a pipeline has as many micro-batches under way as there are stages (Narayanan et al. 2021).
    flights = min(parallel.pipeline - stage, config.training.batch // config.training.micro_batch)
    numbers = flights * _layers(config, stage) * kept
    numbers += hidden + 2 * inner + (block if config.training.recompute else 0)
    if stage < parallel.pipeline - 1:
        return tokens * size * numbers
    numbers += 3 * hidden
    return tokens * size * numbers + _head(config, alone)


def _block(config: TrainConfig, layer: int, device: Device) -> int:
    """Numbers a token that a block keeps for the way back, its input among them (Korthikanti et al. 2022, section 4,
    for attention that keeps no scores)."""
    model, size, tensor = config.model, _bytes(config), config.parallel.tensor
    length, hidden = config.data.sequence_length, model.hidden_size
    keys = model.groups * model.head_size
    norms = 1 if model.parallel_residual and model.norms != "two" else 2
    whole = 1 + norms + (not model.parallel_residual)
    if device == "cpu" and model.norm == "rmsnorm":
        # In steps of its own, which keep the input and the normalised in fp32.
        whole += norms * (4 if size == 2 else 1)
    rotated = hidden + keys if model.positions == "rotary" else 0
    split = 2 * hidden + 2 * keys + rotated
    masked = model.positions == "alibi" or (model.is_local(layer) and model.window < length)
    if device == "cpu":
        if masked:
            # PyTorch's own attention with a mask keeps the scores there.
            split += 2 * hidden + model.heads * length
        elif size == 2 and model.groups == model.heads:
            # Ours in bf16 keeps queries, keys, values and the scores of each block of queries with the keys before it.
            split = 4 * hidden + model.heads * (length + BLOCK) // 2
        else:
            split += hidden
    split += model.inner_size * (4 if model.activation == "swiglu" else 2)
    return whole * hidden + split // tensor


def _head(config: TrainConfig, alone: bool) -> int:
    """Bytes of a chunk's logits and of what the head's gradients pass through."""
    size, tensor = _bytes(config), config.parallel.tensor
    rows = config.vocabulary // tensor
    chunk = min(CHUNK, config.training.micro_batch * config.data.sequence_length) * rows
    table = rows * config.model.hidden_size
    if alone:
        accumulates = config.training.batch > config.training.micro_batch
        return size * chunk + (2 * table if size == 2 and accumulates else 0)
    if size == 4:
        return 4 * (max(chunk, table) + table)
    # Summed in fp32 from products in bf16; tensor-parallel ranks have the logits in fp32 too.
    return 2 * chunk + 6 * table + (4 * chunk if tensor > 1 else 0)
