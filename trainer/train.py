"""The training loop, as each rank runs it."""

import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from trainer import hardware
from trainer.check import flops_per_token
from trainer.checkpoint import folders, state
from trainer.checkpoint.folders import Start
from trainer.config import OptimizerConfig, TrainConfig, dump
from trainer.data.corpus import Corpus
from trainer.data.prepare import ensure, folder_of
from trainer.distributed.parallel_dims import Place
from trainer.engine import open_engine
from trainer.engine.base import NonFiniteError
from trainer.engine.base import Step as Stepped
from trainer.outcome import Status, add_event, add_metrics, cut_metrics, last_metrics, write_atomically
from trainer.progress import Progress
from trainer.spikes import SPAN, Spikes

PROBE_ROWS, PROBE_LENGTH = 2, 16


class TrainingError(RuntimeError):
    """Training cannot go on; the text is one sentence that names the step."""


def train(
    config: TrainConfig, out: Path, start: Start, place: Place, stopping: Callable[[], bool]
) -> tuple[Status, int]:
    """Train in `out` from where `start` says; the status and the step it ended at.

    Raises ConfigError if the data do not fit the configuration or the checkpoint, TrainingError at a loss or a
    gradient that is not finite and where a checkpoint cannot be written.
    """
    run = Run(config, out, start, place)
    if place.sum(stopping())[0]:
        return Status.STOPPED, run.step
    try:
        run.build()
        return run.loop(stopping)
    finally:
        run.close()


def learning_rate(step: int, steps: int, optimizer: OptimizerConfig) -> float:
    """Of the step after `step`: linear warm-up, then a cosine towards `min_ratio` of the peak."""
    warmup = round(optimizer.warmup_ratio * steps)
    if step < warmup:
        return optimizer.learning_rate * (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    low = optimizer.min_ratio
    return optimizer.learning_rate * (low + (1 - low) * (1 + math.cos(math.pi * done)) / 2)


class Pace(NamedTuple):
    """What went by since the last line of the metrics: tokens, seconds, and of these those that data were awaited."""

    tokens: int = 0
    seconds: float = 0.0
    waited: float = 0.0


class Run:
    """One rank's run; all of its methods are called on all ranks together."""

    def __init__(self, config: TrainConfig, out: Path, start: Start, place: Place) -> None:
        self.config, self.out, self.start, self.place = config, out, start, place
        self.step = start.step
        self.made = folders.how(start.folder) if start.folder else None
        self.progress = Progress(out, config.training.steps, shown=place.leads)
        if place.leads:
            ensure(config, out, start.folder, self.progress.stage, start.forks)
        place.wait()
        self.data = folder_of(config, out)
        self.corpus = Corpus(config, self.data, None if start.forks else start.folder)
        if place.leads:
            # Not before the data are known to be the run's: a start that is refused changes nothing.
            write_atomically(out / "config.yml", dump(config))
            cut_metrics(out, start.step)
            folders.sweep(out)
        self.spikes = Spikes(config.training.spike)
        for line in last_metrics(out, SPAN):
            self.spikes.above(line["loss"])
        self.reading = ThreadPoolExecutor(1)

    def build(self) -> None:
        """Make the model and its engine, from the checkpoint or from the seed."""
        if self.place.leads and self.made and self.made["code_version"] != folders.code_version():
            add_event(self.out, "warning", message="the checkpoint was written by another version of the trainer")
        self.progress.stage("building the model")
        self.engine = open_engine(self.config, self.place)
        folder = self.start.folder
        read = state.reader(folder, self.config) if folder else state.fresh(self.config)
        self.engine.load(read, self.step)
        self.peak_flops = hardware.peak_flops(self.config.training, self.place.device) * self.place.ranks

    def close(self) -> None:
        self.reading.shutdown(wait=False, cancel_futures=True)
        self.progress.close()

    def loop(self, stopping: Callable[[], bool]) -> tuple[Status, int]:
        settings = self.config.training
        pace = Pace()
        rows = self._read(self.step)
        while True:
            if self._fresh(self.step % settings.evaluate_every == 0 or self.step == settings.steps):
                self._evaluate()
            if self._fresh(self.config.checkpoints.is_due(self.step, settings.steps)):
                self._save()
            if self.step == settings.steps:
                return Status.DONE, self.step
            if self.step == self.start.step and self.place.sum(stopping())[0]:
                return Status.STOPPED, self.step
            began = time.perf_counter()
            micro_batches = [rows_BL.to(self.place.device, non_blocking=True) for rows_BL in rows.result()]
            waited = time.perf_counter() - began
            rows = self._read(self.step + 1)
            rate = learning_rate(self.step, settings.steps, self.config.optimizer)
            done = self._advance(micro_batches, rate)
            stop = self.place.sum(stopping())[0] > 0
            pace = Pace(
                pace.tokens + self.config.tokens_per_step,
                pace.seconds + time.perf_counter() - began,
                pace.waited + waited,
            )
            if self.step % settings.log_every == 0 or self.step == settings.steps or stop:
                self._log(done, rate, pace)
                pace = Pace()
            if stop and self.step < settings.steps:
                self._save()
                return Status.STOPPED, self.step

    def _fresh(self, due: bool) -> bool:
        """Whether what is due at this step was not done already by the run that is resumed."""
        return due and (self.step > self.start.step or self.start.folder is None or self.start.forks)

    def _read(self, step: int) -> Future[list[Tensor]]:
        """This data-parallel rank's micro-batches for the step after `step`, read while the one before is computed."""
        if step == self.config.training.steps:
            return Future()
        place, accumulation = self.place, self.config.accumulation(self.place.data)

        def read() -> list[Tensor]:
            return [
                torch.from_numpy(self.corpus.batch(step, place.data_rank, place.data, micro))
                for micro in range(accumulation)
            ]

        return self.reading.submit(read)

    def _advance(self, micro_batches: list[Tensor], rate: float) -> Stepped:
        try:
            done = self.engine.step(micro_batches, rate)
        except NonFiniteError as error:
            raise TrainingError(
                f"The {error.what} of step {self.step + 1} is {error.value}; the weights were not touched. "
                f"{self._culprits(micro_batches)}"
            ) from None
        self.step += 1
        return done

    @torch.no_grad()
    def _culprits(self, micro_batches: list[Tensor]) -> str:
        """Which rows of the step have a loss that is not finite, as a sentence."""
        size, place = self.config.training.micro_batch, self.place
        found = []
        for micro, rows in enumerate(micro_batches):
            bad = ~self.engine.nll(rows).isfinite().all(-1)
            found += [(micro * place.data + place.data_rank) * size + int(row) for row in bad.nonzero()]
        gathered: list[list[int]] = [found]
        if place.ranks > 1:
            gathered = [[] for _ in range(place.ranks)]
            dist.all_gather_object(gathered, found)
        bad_rows = sorted({row for part in gathered for row in part})
        batch = self.config.training.batch
        named = f"row {', '.join(map(str, bad_rows))}" if 0 < len(bad_rows) < batch else f"rows 0 to {batch - 1}"
        return f"It read {named} of the batch: data show --step {self.step + 1} prints them."

    def _log(self, done: Stepped, rate: float, pace: Pace) -> None:
        tokens_per_second = pace.tokens / pace.seconds
        if self.place.leads:
            add_metrics(
                self.out,
                step=self.step,
                tokens=self._tokens,
                loss=done.loss,
                lr=rate,
                grad_norm=done.gradient_norm,
                tokens_per_second=tokens_per_second,
                mfu=flops_per_token(self.config) * tokens_per_second / self.peak_flops,
                data_wait=pace.waited,
                memory=hardware.peak_memory(self.place.device),
            )
            usual = self.spikes.above(done.loss)
            if usual is not None:
                add_event(self.out, "spike", step=self.step, loss=done.loss, usual=usual)
                self.progress.say(f"step {self.step}: the loss jumped to {done.loss:.3f} from about {usual:.3f}")
        self.progress.step(self.step, done.loss, tokens_per_second)

    @property
    def _tokens(self) -> int:
        """Tokens that the weights have seen; a fork's own batches may be of another size than its parent's."""
        before = self.made["tokens"] if self.made else 0
        return int(before + (self.step - self.start.step) * self.config.tokens_per_step)

    def _evaluate(self) -> None:
        """Log the loss on the held-out rows, each data-parallel rank computing its share of them."""
        rows = torch.from_numpy(self.corpus.evaluation)
        total = 0.0
        for part, real in self._share(rows):
            total += (self.engine.nll(part.to(self.place.device)) * real).sum(dtype=torch.float64).item()
        # Every data-parallel rank's part was computed on all of its pipeline and tensor ranks.
        loss = self.place.sum(total)[0] * self.place.data / self.place.ranks / rows[:, 1:].numel()
        if not math.isfinite(loss):
            raise TrainingError(f"The held-out loss at step {self.step} is {loss}.")
        if self.place.leads:
            entropy = self.corpus.unigram_entropy
            add_event(self.out, "evaluation", step=self.step, tokens=self._tokens, loss=loss, unigram_entropy=entropy)
            self.progress.say(
                f"step {self.step}: held-out loss {loss:.3f} nats a token (unigram entropy {entropy:.3f})"
            )

    def _share(self, rows: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """This data-parallel rank's rows in parts of one shape on all ranks, and which of a part are real [b, 1]."""
        size, place = self.config.training.micro_batch, self.place
        together = size * place.data
        for first in range(0, len(rows), together):
            places = torch.arange(size) + first + place.data_rank * size
            yield rows[places.clamp(max=len(rows) - 1)], (places < len(rows))[:, None].to(place.device)

    def _save(self) -> None:
        folder = folders.folder_of(self.out, self.step)
        if not folder.exists():
            probe = torch.from_numpy(self.corpus.evaluation[:PROBE_ROWS, :PROBE_LENGTH].copy()).to(self.place.device)
            try:
                state.save(
                    self.config, self.out, self.step, self.engine, probe, self.place.leads, self._how(), self.data
                )
            except OSError as error:
                newest = folders.newest(self.out)
                raise TrainingError(
                    f"The checkpoint of step {self.step} could not be written ({error.strerror or error}); "
                    f"{f'{newest.name} is whole' if newest else 'there is none before it'}. Make room on the disk and "
                    "start again with the same --out."
                ) from error
            if self.place.leads:
                add_event(self.out, "checkpoint", step=self.step, path=str(folder.relative_to(self.out)))
                self.progress.say(f"step {self.step}: checkpoint {folder.relative_to(self.out)}")
        self.place.wait()

    def _how(self) -> dict[str, Any]:
        """What a checkpoint says of its making beyond the configuration."""
        layout = {name: getattr(self.place, name) for name in ("data", "pipeline", "tensor")}
        return {
            "tokens": self._tokens,
            "parent": self.start.parent,
            "data": self.corpus.manifest,
            "layout": layout | {"zero_stage": self.config.parallel.zero_stage},
        }
