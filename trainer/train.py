"""The training loop, as each rank runs it."""

import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from trainer import hardware
from trainer.checkpoint import folders, metadata, save_load
from trainer.checkpoint.resume import StartingPoint, weights_of
from trainer.code_version import code_version
from trainer.config import TrainConfig, dump
from trainer.contract import CONFIG_FILE, Event, Status, checkpoint_folder
from trainer.data import order_file
from trainer.data.examples import open_corpus
from trainer.data.prepare import ensure, folder_of
from trainer.distributed.parallel_dims import ParallelDims
from trainer.engine import open_engine
from trainer.engine.base import NonFiniteError, StepResult
from trainer.engine.loss_scale import FLOOR, MOST_AT_FLOOR, LossScale
from trainer.engine.tuning import TuningEngine
from trainer.events import append_event
from trainer.files import write_atomically
from trainer.loss_spikes import SPAN, LossSpikes
from trainer.lr_schedule import learning_rate
from trainer.metrics import Interval, append_metrics, drop_metrics_after, last_metrics, model_flops_utilization
from trainer.progress import Progress

PROBE_ROWS, PROBE_LENGTH = 2, 16
"""Held-out rows, and tokens of each, whose logits go into every checkpoint."""
OFTEN = 16
"""Readings of a source beyond which a run warns; repeated data lose their value by then (Muennighoff et al. 2023)."""
DIVERGED = "A fork from an earlier checkpoint with a lower learning rate, or with another seed, may get past it."


class TrainingError(RuntimeError):
    """Training cannot go on; the text is one sentence that names the step."""


def train(
    config: TrainConfig, out: Path, start: StartingPoint, dims: ParallelDims, stop_requested: Callable[[], bool]
) -> tuple[Status, int]:
    """Train in the run folder `out` from `start` to the last step, or to the end of the step in which any rank's
    `stop_requested` becomes true. Returns the status, DONE or STOPPED, and the step reached.

    Raises ConfigError if the data do not fit the configuration or the checkpoint, TrainingError if the loss or the
    gradient is not finite or a checkpoint cannot be written.
    """
    run = Run(config, out, start, dims)
    if dims.all_reduce_sum(stop_requested())[0]:
        return Status.STOPPED, run.step
    try:
        run.build()
        return run.loop(stop_requested)
    finally:
        run.close()


class Run:
    """One rank's part of a run. Every method is called on all ranks together; the main rank alone writes files."""

    def __init__(self, config: TrainConfig, out: Path, start: StartingPoint, dims: ParallelDims) -> None:
        self.config, self.out, self.start, self.dims = config, out, start, dims
        self.step = self.saved = start.step
        self.resumed = metadata.read(start.checkpoint) if start.checkpoint else None
        kept = None if start.is_afresh else (self.resumed or {}).get("loss_scale")
        self.loss_scale = LossScale(**kept) if kept else LossScale(config.training.loss_scale.initial)
        # Adam counts its steps from here on.
        self.state_since = start.step if start.is_afresh else (self.resumed or {}).get("state_since", 0)
        self.progress = Progress(out, config.training.steps, shown=dims.is_main)
        if dims.is_main:
            ensure(
                config, out, start.checkpoint or start.base, self.progress.stage, start.is_fork or not start.checkpoint
            )
        dims.barrier()
        self.data = folder_of(config, out)
        self.corpus = open_corpus(config, self.data, None if start.is_fork else start.checkpoint)
        if dims.is_main:
            # Only once the data have proved to be the run's own: a start that is refused changes nothing.
            write_atomically(out / CONFIG_FILE, dump(config))
            drop_metrics_after(out, start.step)
            folders.remove_partial(out)
            self._tell_of_repetition()
            self._tell_of_held_out()
        self.spikes = LossSpikes(config.training.spike)
        for line in last_metrics(out, SPAN):
            self.spikes.above(line["loss"])
        self.reader = ThreadPoolExecutor(1)

    def _tell_of_repetition(self) -> None:
        """Warn of sources that the run reads oftener than OFTEN, or not for the epochs that they are given."""
        for source, times in zip(self.corpus.sources, self.corpus.readings(), strict=True):
            other_epochs = source.epochs is not None and not 0.9 < times / source.epochs < 1.1
            if times > OFTEN or other_epochs:
                asked = f", and its epochs are {source.epochs:g}" if source.epochs is not None else ""
                message = f"the run reads each row of {source.name} {times:.2f} times on average{asked}"
                append_event(self.out, Event.WARNING, message=message)
                self.progress.say(message)

    def _tell_of_held_out(self) -> None:
        """Warn of steps that train on the rows which evaluation holds out."""
        first = self.corpus.held_out_from
        if first is not None:
            message = (
                f"steps from {first} on train on the rows that are held out, as the order of the files has them; the "
                "held-out loss tells nothing from there on"
            )
            append_event(self.out, Event.WARNING, message=message)
            self.progress.say(message)

    def _tell_of_stage(self) -> None:
        """Say that a stage of the run begins with the step after `step`, if one does."""
        starts = [0, *self.config.stage_ends[:-1]]
        if self.config.stages and self.step in starts:
            number = starts.index(self.step)
            stage = self.config.stages[number]
            sources = "" if stage.weights is None else f", on {', '.join(stage.weights)}"
            self.progress.stage(f"stage {number + 1} of {len(starts)} begins: {stage.steps:,} steps{sources}")

    def build(self) -> None:
        """Build the model with its optimizer, and load the checkpoint or draw the weights from the seed."""
        if self.dims.is_main and self.resumed and self.resumed["code_version"] != code_version():
            message = "the checkpoint was written by another version of the trainer"
            append_event(self.out, Event.WARNING, message=message)
        if self.dims.is_main and self.start.is_afresh and self.step:
            message = f"the checkpoint of step {self.step} has no optimizer state, which begins afresh"
            append_event(self.out, Event.WARNING, message=message)
            self.progress.say(message)
        hardware.check_precision(self.config.training, self.dims.device)
        self.progress.stage("building the model")
        self.engine = open_engine(self.config, self.dims)
        checkpoint = self.start.checkpoint
        base = save_load.reader(self.start.base, self.config) if self.start.base else None
        if base is not None and isinstance(self.engine, TuningEngine) and self.config.keeps_base:
            self.engine.keep(base)
        read = save_load.reader(checkpoint, self.config) if checkpoint else base or save_load.fresh(self.config)
        self.engine.load(read, self.step - self.state_since, self.loss_scale.skipped)
        self.peak_flops = hardware.peak_flops(self.config.training, self.dims.device) * self.dims.world_size

    def close(self) -> None:
        """Stop reading ahead and clear the terminal's bar."""
        self.reader.shutdown(wait=False, cancel_futures=True)
        self.progress.close()

    def loop(self, stop_requested: Callable[[], bool]) -> tuple[Status, int]:
        """Evaluate, save and step until the last step or a stop; see `train`."""
        settings, saves = self.config.training, self.config.saves
        interval = Interval()
        batch = self._read_ahead(self.step)
        while True:
            if self._not_yet_done(self.step % settings.evaluate_every == 0 or self.step == settings.steps):
                self._evaluate()
            if self._not_yet_done(saves.is_due(self.step, settings.steps)):
                self._save()
            if self.step == settings.steps:
                return Status.DONE, self.step
            if self.step == self.start.step and self.dims.all_reduce_sum(stop_requested())[0]:
                return Status.STOPPED, self.step
            self._tell_of_stage()
            began = time.perf_counter()
            micro_batches = [rows_BL.to(self.dims.device, non_blocking=True) for rows_BL in batch.result()]
            waited = time.perf_counter() - began
            batch = self._read_ahead(self.step + 1)
            rate = learning_rate(self.step, settings.steps, self.config.optimizer, self.config.stages)
            result = self._step(micro_batches, rate)
            stop = self.dims.all_reduce_sum(stop_requested())[0] > 0
            interval = interval.extended(self.config.tokens_per_step, time.perf_counter() - began, waited)
            if self.step % settings.log_every == 0 or self.step == settings.steps or stop:
                self._log(result, rate, interval)
                interval = Interval()
            if stop and self.step < settings.steps:
                self._save()
                return Status.STOPPED, self.step

    def _not_yet_done(self, due: bool) -> bool:
        """Whether something that is due at this step is still to do: at its first step, a resumed run has done it."""
        return due and (self.step > self.start.step or self.start.checkpoint is None or self.start.is_fork)

    def _read_ahead(self, step: int) -> Future[list[Tensor]]:
        """Read the micro-batches [b, L + 1] of the step after `step` for this rank, in a thread, while the step before
        it is computed."""
        if step == self.config.training.steps:
            return Future()
        dims, accumulation = self.dims, self.config.accumulation(self.dims.data)

        def read() -> list[Tensor]:
            return [
                torch.from_numpy(self.corpus.batch(step, dims.data_rank, dims.data, micro))
                for micro in range(accumulation)
            ]

        return self.reader.submit(read)

    def _step(self, micro_batches: list[Tensor], rate: float) -> StepResult:
        scales, settings = self.config.training.precision == "fp16", self.config.training.loss_scale
        try:
            result = self.engine.step(micro_batches, rate, self.loss_scale.scale if scales else 1.0)
        except NonFiniteError as error:
            if not scales or error.what == "loss":
                raise TrainingError(
                    f"The {error.what} of step {self.step + 1} is {error.value}; the weights were not touched. "
                    f"{self._name_culprits(micro_batches)} {DIVERGED}"
                ) from None
            self._skip()
            result = StepResult(error.loss, error.value)
        else:
            if scales:
                self.loss_scale = self.loss_scale.after(False, settings)
        self.step += 1
        return result

    def _skip(self) -> None:
        """Lower the loss scale and tell of it: the gradients of the step after `step` overflowed. Raises TrainingError
        where they do at any scale."""
        before, step = self.loss_scale.scale, self.step + 1
        self.loss_scale = self.loss_scale.after(True, self.config.training.loss_scale)
        after = self.loss_scale.scale
        if self.loss_scale.is_exhausted:
            raise TrainingError(
                f"The gradients of {MOST_AT_FLOOR} steps overflowed in a row up to step {step}, with the loss scale at "
                f"its floor of {FLOOR:g}; the weights were not touched. fp16 has not the range: go on from the last "
                "checkpoint with training.precision bf16 or fp32, by --change training.precision."
            )
        message = (
            f"loss scale {before:g} → {after:g} at step {step}: the gradients overflowed, and the step was skipped"
        )
        if self.dims.is_main:
            append_event(self.out, Event.OVERFLOW, step=step, before=before, after=after, message=message)
            self.progress.say(message)

    @torch.no_grad()
    def _name_culprits(self, micro_batches: list[Tensor]) -> str:
        """A sentence that names the rows of the batch whose loss is not finite."""
        size, dims = self.config.training.micro_batch, self.dims
        found = []
        for micro, rows in enumerate(micro_batches):
            bad = ~self.engine.nll(rows).isfinite().all(-1)
            found += [(micro * dims.data + dims.data_rank) * size + int(row) for row in bad.nonzero()]
        gathered: list[list[int]] = [found]
        if dims.world_size > 1:
            gathered = [[] for _ in range(dims.world_size)]
            dist.all_gather_object(gathered, found)
        bad_rows = sorted({row for part in gathered for row in part})
        batch = self.config.training.batch
        named = f"row {', '.join(map(str, bad_rows))}" if 0 < len(bad_rows) < batch else f"rows 0 to {batch - 1}"
        return f"It read {named} of the batch: data show --step {self.step + 1} prints them."

    def _log(self, result: StepResult, rate: float, interval: Interval) -> None:
        """Write a line of the metrics and show it; a spike of the loss becomes an event."""
        tokens_per_second = interval.tokens_per_second
        if self.dims.is_main:
            append_metrics(
                self.out,
                step=self.step,
                tokens=self._tokens,
                loss=result.loss,
                lr=rate,
                grad_norm=result.gradient_norm if math.isfinite(result.gradient_norm) else None,
                tokens_per_second=tokens_per_second,
                mfu=model_flops_utilization(self.config, tokens_per_second, self.peak_flops),
                data_wait=interval.data_wait,
                memory=hardware.peak_memory(self.dims.device),
                **self._scaling(),
            )
            usual = self.spikes.above(result.loss)
            if usual is not None:
                append_event(self.out, Event.SPIKE, step=self.step, loss=result.loss, usual=usual)
                self.progress.say(f"step {self.step}: the loss jumped to {result.loss:.3f} from about {usual:.3f}")
        self.progress.step(self.step, result.loss, tokens_per_second)

    def _scaling(self) -> dict[str, float]:
        """The loss scale of the next step and the steps skipped so far, in fp16; nothing in other precisions."""
        if self.config.training.precision != "fp16":
            return {}
        return {"loss_scale": self.loss_scale.scale, "skipped": self.loss_scale.skipped}

    @property
    def _tokens(self) -> int:
        """Tokens that the weights have seen, those of the checkpoint included: the batches of a fork may be of another
        size than its parent's."""
        before = self.resumed["tokens"] if self.resumed else 0
        return int(before + (self.step - self.start.step) * self.config.tokens_per_step)

    def _evaluate(self) -> None:
        """Log the mean loss over the held-out rows; each data-parallel rank computes its share of them."""
        rows = torch.from_numpy(self.corpus.evaluation)
        total = 0.0
        for part, real in self._split_evaluation(rows):
            total += (self.engine.nll(part.to(self.dims.device)) * real).sum(dtype=torch.float64).item()
        # Pipeline and tensor ranks of one data-parallel rank each count the same rows.
        loss = self.dims.all_reduce_sum(total)[0] * self.dims.data / self.dims.world_size / self.corpus.evaluated
        if not math.isfinite(loss):
            raise TrainingError(f"The held-out loss at step {self.step} is {loss}. {DIVERGED}")
        if self.dims.is_main:
            entropy = self.corpus.unigram_entropy
            append_event(
                self.out, Event.EVALUATION, step=self.step, tokens=self._tokens, loss=loss, unigram_entropy=entropy
            )
            beside = "" if entropy is None else f" nats a token (unigram entropy {entropy:.3f})"
            self.progress.say(f"step {self.step}: held-out loss {loss:.3f}{beside}")

    def _split_evaluation(self, rows: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """This rank's part of the rows [E, L + 1] as micro-batches [b, L + 1], one shape on all ranks. Rows repeat to
        fill the last ones; beside each micro-batch comes which of its rows count, [b, 1]."""
        size, dims = self.config.training.micro_batch, self.dims
        for first in range(0, len(rows), size * dims.data):
            numbers = torch.arange(size) + first + dims.data_rank * size
            yield rows[numbers.clamp(max=len(rows) - 1)], (numbers < len(rows))[:, None].to(dims.device)

    def _save(self) -> None:
        folder = checkpoint_folder(self.out, self.step)
        if not folder.exists():
            length = min(PROBE_LENGTH, self.config.data.sequence_length)
            probe = torch.from_numpy(self.corpus.probe(PROBE_ROWS, length)).to(self.dims.device)
            try:
                save_load.save(
                    self.config,
                    self.out,
                    self.step,
                    self.engine,
                    probe,
                    self.dims.is_main,
                    self._checkpoint_metadata(),
                    self.data,
                    partial(order_file.write, corpus=self.corpus, since=self.saved, step=self.step),
                )
            except OSError as error:
                newest = folders.newest(self.out)
                raise TrainingError(
                    f"The checkpoint of step {self.step} could not be written ({error.strerror or error}); "
                    f"{f'{newest.name} is whole' if newest else 'there is none before it'}. Make room on the disk and "
                    "start again with the same --out."
                ) from error
            if self.dims.is_main:
                append_event(self.out, Event.CHECKPOINT, step=self.step, path=str(folder.relative_to(self.out)))
                self.progress.say(f"step {self.step}: checkpoint {folder.relative_to(self.out)}")
        self.saved = self.step
        self.dims.barrier()

    def _checkpoint_metadata(self) -> dict[str, Any]:
        """What only the run knows of a checkpoint: tokens seen, parent, data and layout of the ranks."""
        layout = {name: getattr(self.dims, name) for name in ("data", "pipeline", "tensor")}
        return {
            "tokens": self._tokens,
            "parent": self.start.parent,
            "data": self.corpus.manifest,
            "layout": layout | {"zero_stage": self.config.parallel.zero_stage},
            # After fp16, a run in another precision needs the count of skipped steps: they were no updates of Adam's.
            **({"state_since": self.state_since} if self.state_since else {}),
            **({"base": base} if (base := self._base()) else {}),
            **({"loss_scale": self.loss_scale._asdict()} if self._scaling() or self.loss_scale.skipped else {}),
        }

    def _base(self) -> dict[str, Any] | None:
        """The base that the run began with: its name, its licence where that is known, and the checksums of its
        weights; None where it began with none."""
        if self.resumed or self.start.base is None:
            base: dict[str, Any] | None = (self.resumed or {}).get("base")
            return base
        made = metadata.read(self.start.base)
        licence = made.get("licence") or (made.get("base") or {}).get("licence")
        return {"name": self.config.base, "licence": licence, "weights": weights_of(made)}
