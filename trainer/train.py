"""The training loop, as each rank runs it."""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional

from trainer import checkpoint, state
from trainer.config import ConfigError, OptimizerConfig, TrainConfig
from trainer.data import Corpus, prepare
from trainer.engine import Engine
from trainer.model import initialise
from trainer.outcome import Status, add_event, add_metrics
from trainer.progress import Progress
from trainer.world import Place

PROBE_ROWS, PROBE_LENGTH = 2, 16


class TrainingError(RuntimeError):
    """Training cannot go on; the text is one sentence that names the step."""


def train(
    config: TrainConfig, out: Path, resume: Path | None, place: Place, stopping: Callable[[], bool]
) -> tuple[Status, int]:
    """Train in `out` from the checkpoint `resume`, if any; the status and the step it ended at.

    Raises ConfigError if the data do not fit the configuration or the checkpoint, TrainingError at a loss or a
    gradient that is not finite.
    """
    run = Run(config, out, resume, place)
    if place.sum(stopping())[0]:
        return Status.STOPPED, run.step
    try:
        run.build()
        return run.loop(stopping)
    finally:
        run.progress.close()


def learning_rate(step: int, steps: int, optimizer: OptimizerConfig) -> float:
    """Of the step after `step`: linear warm-up, then a cosine towards `min_ratio` of the peak."""
    warmup = round(optimizer.warmup_ratio * steps)
    if step < warmup:
        return optimizer.learning_rate * (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    low = optimizer.min_ratio
    return optimizer.learning_rate * (low + (1 - low) * (1 + math.cos(math.pi * done)) / 2)


def cross_entropy(logits_BLV: Tensor, targets_BL: Tensor, reduction: str = "mean") -> Tensor:
    """In nats a token, or summed over the tokens."""
    return functional.cross_entropy(logits_BLV.flatten(0, 1).float(), targets_BL.flatten(), reduction=reduction)


class Step(NamedTuple):
    """A step that was done: `waited` seconds for data, `stop` if any rank was asked to stop."""

    loss: float
    rate: float
    waited: float
    stop: bool


class Run:
    """One rank's run; all of its methods are called on all ranks together."""

    def __init__(self, config: TrainConfig, out: Path, resume: Path | None, place: Place) -> None:
        self.config, self.out, self.resume, self.place = config, out, resume, place
        self.progress = Progress(out, config.training.steps, shown=place.leads)
        self.data = out / "data"
        made = checkpoint.how(resume) if resume else None
        self.step = self.resumed_at = made["step"] if made else 0
        if place.leads:
            prepare(config, self.data, resume, self.progress.stage)
        dist.barrier()
        self.corpus = Corpus(config, self.data)
        if made and made["data"]["sources"] != self.corpus.manifest["sources"]:
            raise ConfigError(
                f"The text of the sources is not the checkpoint's, which was read by Python {made['data']['python']}; "
                "resume on the same Python."
            )

    def build(self) -> None:
        """Make the model and its engine, from the checkpoint or from the seed."""
        self.progress.stage("building the model")
        self.model = state.build(self.config)
        if self.resume:
            state.load_weights(self.model, self.resume)
        else:
            initialise(self.model, self.config.training.seed)
        self.model.to(self.place.device)
        self.engine = Engine(self.config, self.model, self.place.ranks)
        if self.resume and self.step:
            self.engine.load_moments(state.load_moments(self.resume), self.step)

    def loop(self, stopping: Callable[[], bool]) -> tuple[Status, int]:
        settings = self.config.training
        tokens, seconds, waited = 0, 0.0, 0.0
        while True:
            if self._fresh(self.step % settings.evaluate_every == 0 or self.step == settings.steps):
                self._evaluate()
            if self._fresh(checkpoint.is_due(self.step, settings.steps, self.config.checkpoints)):
                self._save()
            if self.step == settings.steps:
                return Status.DONE, self.step
            began = time.perf_counter()
            done = self._advance(stopping)
            seconds += time.perf_counter() - began
            waited += done.waited
            tokens += self.config.tokens_per_step
            if self.step % settings.log_every == 0 or self.step == settings.steps or done.stop:
                self._log(done, tokens / seconds, waited)
                tokens, seconds, waited = 0, 0.0, 0.0
            if done.stop and self.step < settings.steps:
                self._save()
                return Status.STOPPED, self.step

    def _fresh(self, due: bool) -> bool:
        """Whether what is due at this step was not done already by the run that is resumed."""
        return due and (self.step > self.resumed_at or self.resume is None)

    def _advance(self, stopping: Callable[[], bool]) -> Step:
        accumulation = self.config.accumulation(self.place.ranks)
        rate = learning_rate(self.step, self.config.training.steps, self.config.optimizer)
        self.engine.set_learning_rate(rate)
        loss, wait, stop = 0.0, 0.0, False
        for micro in range(accumulation):
            began = time.perf_counter()
            rows = torch.from_numpy(self.corpus.batch(self.step, self.place.rank, self.place.ranks, micro))
            rows = rows.to(self.place.device)
            wait += time.perf_counter() - began
            micro_loss = cross_entropy(self.engine.forward(rows[:, :-1]), rows[:, 1:])
            self.engine.backward(micro_loss)
            loss += micro_loss.item() / accumulation
            if micro == accumulation - 1:
                summed, asked = self.place.sum(loss, stopping())
                loss, stop = summed / self.place.ranks, asked > 0
                if not math.isfinite(loss):
                    raise TrainingError(f"The loss of step {self.step + 1} is {loss}; the weights were not touched.")
            self.engine.advance()
        self.step += 1
        if not math.isfinite(self.engine.gradient_norm):
            raise TrainingError(f"The gradient norm of step {self.step} is {self.engine.gradient_norm}.")
        return Step(loss, rate, wait, stop)

    def _log(self, done: Step, tokens_per_second: float, waited: float) -> None:
        if self.place.leads:
            add_metrics(
                self.out,
                step=self.step,
                tokens=self.step * self.config.tokens_per_step,
                loss=done.loss,
                lr=done.rate,
                grad_norm=self.engine.gradient_norm,
                tokens_per_second=tokens_per_second,
                data_wait=waited,
            )
        self.progress.step(self.step, done.loss, tokens_per_second)

    @torch.no_grad()
    def _evaluate(self) -> None:
        """Log the loss on the held-out rows, each rank computing its share of them."""
        rows = torch.from_numpy(self.corpus.evaluation)
        total = 0.0
        for part in torch.split(rows[self.place.rank :: self.place.ranks], self.config.training.micro_batch):
            part = part.to(self.place.device)
            total += cross_entropy(self.model(part[:, :-1]), part[:, 1:], reduction="sum").item()
        loss = self.place.sum(total)[0] / rows[:, 1:].numel()
        if not math.isfinite(loss):
            raise TrainingError(f"The held-out loss at step {self.step} is {loss}.")
        if self.place.leads:
            entropy = self.corpus.unigram_entropy
            tokens = self.step * self.config.tokens_per_step
            add_event(self.out, "evaluation", step=self.step, tokens=tokens, loss=loss, unigram_entropy=entropy)
            self.progress.say(
                f"step {self.step}: held-out loss {loss:.3f} nats a token (unigram entropy {entropy:.3f})"
            )

    def _save(self) -> None:
        moments = self.engine.moments()
        folder = checkpoint.folder_of(self.out, self.step)
        if self.place.leads and not folder.exists():
            probe = torch.from_numpy(self.corpus.evaluation[:PROBE_ROWS, :PROBE_LENGTH].copy()).to(self.place.device)
            state.save(self.config, self.out, self.step, self.model, moments, probe, self.corpus.manifest, self.data)
            add_event(self.out, "checkpoint", step=self.step, path=str(folder.relative_to(self.out)))
            self.progress.say(f"step {self.step}: checkpoint {folder.relative_to(self.out)}")
        dist.barrier()
