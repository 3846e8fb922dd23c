"""The dry run: what a configuration would cost, computed without building the model. Imports no torch."""

import math
from collections.abc import Iterator, Mapping

from pydantic import BaseModel

from trainer import gpus as gpus_by_name
from trainer import layouts
from trainer import stages as stages_of
from trainer.config import ConfigError, TrainConfig
from trainer.layouts import Layout
from trainer.lr_schedule import learning_rate
from trainer.memory import Device, host_memory, memory_per_gpu
from trainer.metrics import flops_per_token as flops_per_token
from trainer.metrics import parameters as parameters

MOST_LAYOUTS = 8
MUCH_LESS = 0.8
"""The share of the memory that was expected, below which what ran out of memory is expected to fit."""
MOST_SOURCES = 5
"""Sources that the text about a stage names."""
OFTEN = 4.0
"""Epochs beyond which repeated data are worth less than new ones (Muennighoff et al. 2023)."""


class Reading(BaseModel):
    """How often a run reads each token of a corpus on average, and the tokens that the corpus has."""

    corpus: str
    tokens: int
    epochs: float

    @property
    def is_often(self) -> bool:
        """Whether the corpus is read so often that its data lose their value."""
        return self.epochs > OFTEN

    def __str__(self) -> str:
        return f"{_three_figures(self.epochs)} epochs of {self.corpus} ({readable_count(self.tokens)} tokens)"


class Stage(BaseModel):
    """A stage of a run, by its number from 1: the steps that a run or a fork does of it, the highest learning rate and
    that of the last step, and the tokens that they read of each source, by the sources' names; none where the sources
    are by epochs of data that are not prepared."""

    number: int
    steps: int
    highest_rate: float
    last_rate: float
    tokens: dict[str, int]

    def __str__(self) -> str:
        most = sorted(self.tokens.items(), key=lambda item: -item[1])
        listed = [f"{readable_count(count)} of {name}" for name, count in most[:MOST_SOURCES]]
        more = [f"{len(most) - MOST_SOURCES} more"] if len(most) > MOST_SOURCES else []
        said = f"{self.steps:,} steps, learning rate {self.highest_rate:.3g} → {self.last_rate:.3g}"
        return f"{said}: {', '.join([*listed, *more])}" if most else said


class CheckReport(BaseModel):
    """What a run costs: trained `parameters`, `tokens`, `steps` with the run's `stages`, `flops` in all,
    `memory_per_gpu` in bytes (an estimate) with its parts in `memory`, `host_memory` the bytes that all its processes
    on a host take of the host's memory, `reads` what it reads of data that are prepared, and `seconds` if a rate is
    known. `layouts` are those that fit, if they were asked for. `note` is a sentence on what this machine lacks,
    `refusal` one on why it would not run, or None."""

    parameters: int
    tokens: int
    steps: int
    stages: list[Stage] = []
    flops: float
    memory_per_gpu: int
    memory: dict[str, int]
    host_memory: int
    reads: list[Reading] = []
    seconds: float | None = None
    layouts: list[Layout] | None = None
    note: str | None = None
    refusal: str | None = None


def check(
    config: TrainConfig,
    gpus: int = 1,
    gpu_memory: int | None = None,
    tokens_per_second: float | None = None,
    device: Device | None = None,
    host_bytes: int | None = None,
    nodes: int = 1,
    gpu_type: str | None = None,
    corpus_tokens: Mapping[str, int] | None = None,
) -> CheckReport:
    """The dry run on `gpus` GPUs with `gpu_memory` bytes each, or on as many processes where `device` is cpu; without a
    `device`, on what this machine has. `tokens_per_second` is a measured rate over all GPUs,
    `host_bytes` the memory of each of the `nodes`, which have the same number of GPUs each, `gpu_type` what they are
    called, where that is known, and `corpus_tokens` the tokens of the sources by their names."""
    tokens = config.tokens_per_step * config.training.steps
    refusal = gpus_by_name.why_not(config.training.precision, gpu_type) if gpu_type else None
    try:
        data_ranks = config.data_ranks(gpus, nodes)
    except ConfigError as error:
        data_ranks = max(1, gpus // (config.parallel.pipeline * config.parallel.tensor))
        unfit = str(error)
        if nodes > 1 and gpus % nodes == 0:
            unfit = f"{unfit} {what_layouts(config, gpus, nodes, gpu_memory, device)}"
        refusal = refusal or unfit
    parts = memory_per_gpu(config, data_ranks, device)
    memory = sum(parts)
    if refusal is None and gpu_memory is not None and memory > gpu_memory:
        refusal = what_fits(config, gpus, gpu_memory, device)
    of_host = memory * (gpus // nodes) if device == "cpu" else host_memory(config, gpus // nodes)
    if refusal is None and host_bytes is not None and of_host > host_bytes:
        refusal = what_fits_host(config, gpus // nodes, gpu_memory, host_bytes)
    return CheckReport(
        parameters=parameters(config),
        tokens=tokens,
        steps=config.training.steps,
        stages=what_stages(config, corpus_tokens or {}),
        flops=float(flops_per_token(config)) * tokens,
        memory_per_gpu=memory,
        memory=parts._asdict(),
        host_memory=of_host,
        reads=readings(config, corpus_tokens or {}, tokens),
        seconds=tokens / tokens_per_second if tokens_per_second else None,
        note=_note(config, data_ranks),
        refusal=refusal,
    )


def readings(config: TrainConfig, tokens: Mapping[str, int], trained: int, first: int = 0) -> list[Reading]:
    """What a run that trains on `trained` tokens after step `first` reads of the sources whose `tokens` are known, by
    their names; the one that it reads most often comes first. Nothing is known of sources by epochs before the tokens
    of all are."""
    sources, shares = config.data.sources, _shares(config, tokens)
    if shares and config.stages:
        names = list(shares)
        of_all = stages_of.shares(stages_of.left(config.stages, first), names, list(shares.values()))
        shares = dict(zip(names, of_all, strict=True))
    if not shares:
        return []
    part = trained / sum(shares.values())
    found = [
        Reading(
            corpus=source.corpus or source.name,
            tokens=tokens[source.name],
            epochs=part * shares[source.name] / tokens[source.name],
        )
        for source in sources
        if tokens.get(source.name) and shares[source.name]
    ]
    return sorted(found, key=lambda reading: -reading.epochs)


def _shares(config: TrainConfig, tokens: Mapping[str, int]) -> dict[str, float]:
    """The share of each source, by its name; none where the sources are by epochs and the `tokens` of one are not
    known."""
    sources = config.data.sources
    by_epochs = sources[0].epochs is not None
    if by_epochs and any(source.name not in tokens for source in sources):
        return {}
    return {source.name: source.share * (tokens[source.name] if by_epochs else 1) for source in sources}


def what_stages(config: TrainConfig, tokens: Mapping[str, int], first: int = 0) -> list[Stage]:
    """The stages of a run from step `first` on, whose sources have `tokens`, as far as they are known."""
    found = []
    steps, optimizer, shares = config.training.steps, config.optimizer, _shares(config, tokens)
    for number, (stage, end) in enumerate(zip(config.stages, stages_of.ends(config.stages), strict=True), 1):
        begin = max(first, end - stage.steps)
        if begin >= end:
            continue
        weights = stages_of.weights_in(stage, list(shares), list(shares.values()))
        part = (end - begin) * config.tokens_per_step / math.fsum(weights) if weights else 0
        peak = end - stage.steps + stages_of.warmup(stage, optimizer.warmup_ratio) - 1
        moments = (min(max(peak, begin), end - 1), end - 1)
        rate = [learning_rate(step, steps, optimizer, config.stages) for step in moments]
        read = {name: round(part * weight) for name, weight in zip(shares, weights, strict=True) if weight}
        found.append(Stage(number=number, steps=end - begin, highest_rate=rate[0], last_rate=rate[1], tokens=read))
    return found


def _note(config: TrainConfig, data_ranks: int) -> str | None:
    """A sentence where this machine's CPU lacks instructions for bf16 and that takes memory."""
    native, here = (sum(memory_per_gpu(config, data_ranks, emulates_bf16=emulated)) for emulated in (False, None))
    if here == native:
        return None
    return (
        "This CPU has no instructions for bf16: its products are summed in fp32 first, which takes about "
        f"{readable(here - native)} more on each rank."
    )


def what_layouts(
    config: TrainConfig, gpus: int, nodes: int, gpu_memory: int | None = None, device: Device | None = None
) -> str:
    """A sentence that names the first layouts that would fit the nodes, and a GPU's memory where it is known."""
    found = layouts.fitting(config, gpus, nodes, gpu_memory, device)
    on = f"{nodes} nodes of {gpus // nodes} ranks"
    if not found:
        return f"No layout fits {on} with this batch and memory."
    listed = ", ".join(f"{layout.pipeline} × {layout.tensor}" for layout in found[:MOST_LAYOUTS])
    more = f" and {len(found) - MOST_LAYOUTS} more" if len(found) > MOST_LAYOUTS else ""
    return f"On {on} fit, as parallel.pipeline × parallel.tensor: {listed}{more}."


def what_fits(
    config: TrainConfig, gpus: int, gpu_memory: int, device: Device | None = None, *, others_known: bool = False
) -> str:
    """A sentence that says what memory the run needs, and the first change that would make it fit in `gpu_memory`
    bytes; of a run that should have fitted, the first change that needs a good deal less. Where it
    is `others_known` what other programs hold, the sentence leaves them out."""
    each, several = ("for each process", "processes") if device == "cpu" else ("on each GPU", "GPUs")
    needed = sum(memory_per_gpu(config, config.data_ranks(gpus), device))
    need = f"It needs about {readable(needed)} {each} and there are {readable(gpu_memory)}"
    most = gpu_memory
    if needed <= gpu_memory:
        need = f"It was expected to need {readable(needed)} of the {readable(gpu_memory)} {each}"
        most = int(needed * MUCH_LESS)
    for words, changed in _smaller(config, gpus):
        wanted = sum(memory_per_gpu(changed, changed.data_ranks(gpus), device))
        if wanted <= most:
            return f"{need}; with {words} it would need about {readable(wanted)}."
    if needed <= gpu_memory and not others_known:
        return f"{need}; other programs may hold the rest."
    return f"{need}; use more {several}, or split the model further with parallel.tensor and parallel.pipeline."


def what_fits_host(config: TrainConfig, gpus: int, gpu_memory: int | None, host_bytes: int) -> str:
    """A sentence that says what memory the run needs of its GPUs' host, and on how many GPUs it would fit."""
    need = (
        f"It needs about {readable(host_memory(config, gpus))} of the host's memory, for one process a GPU and the "
        f"gathering of a checkpoint, and the host has {readable(host_bytes)}"
    )
    if host_memory(config, gpus) <= host_bytes:
        need += ", which other programs use too"
    for fewer in range(gpus - 1, 0, -1):
        wanted = host_memory(config, fewer)
        if wanted <= host_bytes and check(config, fewer, gpu_memory, device="cuda").refusal is None:
            return f"{need}; on {fewer} GPU{'s' if fewer > 1 else ''} it would need about {readable(wanted)}."
    return f"{need}; use a pool whose hosts have more."


def _smaller(config: TrainConfig, gpus: int) -> Iterator[tuple[str, TrainConfig]]:
    """Changes that need less and less memory and train the same weights: each in words, and the configuration."""
    micro_batch = config.training.micro_batch
    micro_batches = [size for size in range(micro_batch, 0, -1) if micro_batch % size == 0]
    stages = [config.parallel.zero_stage]
    if config.parallel.pipeline == 1 and config.data_ranks(gpus) > 1 and not config.tunes:
        stages += [stage for stage in (1, 2, 3) if stage > config.parallel.zero_stage]
    for stage in stages:
        for recompute in sorted({config.training.recompute, True}):
            for size in micro_batches:
                changes = {
                    f"training.micro_batch {size}": size != micro_batch,
                    "training.recompute true": recompute != config.training.recompute,
                    f"parallel.zero_stage {stage}": stage != config.parallel.zero_stage,
                }
                words = " and ".join(change for change, made in changes.items() if made)
                if words:
                    training = config.training.model_copy(update={"micro_batch": size, "recompute": recompute})
                    parallel = config.parallel.model_copy(update={"zero_stage": stage})
                    yield words, config.model_copy(update={"training": training, "parallel": parallel})


def readable_count(number: int) -> str:
    """A large number as text: “300.1 B”, “2.5 M”, “950”."""
    for size, unit in ((10**12, "T"), (10**9, "B"), (10**6, "M"), (10**3, "k")):
        if number >= size:
            return f"{number / size:.1f} {unit}"
    return str(number)


def _three_figures(number: float) -> str:
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def readable(size: int) -> str:
    """A size in bytes as text, in MiB or GiB."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"
