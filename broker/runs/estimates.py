"""Estimates of what a run will cost, scaled from the nearest measured run on its pool."""

import math
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from statistics import median

from sqlalchemy import Executable, bindparam, exists
from sqlalchemy.orm import Session
from sqlmodel import col, select

from broker import configs
from broker.allocations.pools import Pool
from broker.allocations.units import Unit
from broker.runs import series
from broker.runs.kinds.kind import kind_of
from broker.runs.runs import Run, RunKind
from broker.runs.series import Point
from projects.errors import InvalidError
from trainer import check as dry_run
from trainer.config import TrainConfig

NEWEST_POINTS = 50
FARTHEST = 10.0


@dataclass(frozen=True)
class Estimate:
    """GPU-seconds that the rest of a run will take, None where nothing like it was measured, and the basis in words.

    `saves_at` is the first step after those done at which the run writes a checkpoint. `saves_after` is the seconds
    until then, including the longest start of the run that the estimate rests on.
    """

    cost: int | None
    basis: str
    saves_at: int = 0
    saves_after: float | None = None


@dataclass(frozen=True)
class Measurement:
    """A run whose rate was measured; `flops` are the FLOPs of one token."""

    run_id: int
    recipe: str
    gpus: int
    flops: float


def estimate(session: Session, run: Run) -> Estimate:
    """The cost of the steps that the run still has to do.

    The rate is that of the newest measured run with the same recipe and number of GPUs; failing that, of the nearest
    one on the pool, assuming the same FLOPs per second on each GPU.
    """
    if not kind_of(run).trains:
        return Estimate(None, kind_of(run).takes)
    config = config_of(run)
    flops = float(dry_run.flops_per_token(config))
    nearest = _nearest(_measured(session, run.pool_id), run.recipe, run.gpus, flops)
    if nearest is None:
        return Estimate(None, "nothing similar has been measured on this pool yet")
    measured = _rate(session, nearest.run_id)
    rate = measured * nearest.flops / flops * run.gpus / nearest.gpus
    done, a_step = max(run.step, run.fork_step or 0), config.tokens_per_step / rate
    cost = round(run.gpus * (run.total_steps - done) * a_step)
    saves_at = config.saves.first_after(done, run.total_steps)
    started = max((point.value for point in series.read(session, nearest.run_id, series.START)), default=0.0)
    return Estimate(
        cost, _basis(session, nearest, measured, run, flops), saves_at, started + (saves_at - done) * a_step
    )


def of_recipes(session: Session, recipes: Sequence[tuple[str, TrainConfig]]) -> list[tuple[int, str, Unit] | None]:
    """The seconds that each recipe, given with its name, takes for all its steps, with the name and unit of the pool
    that has measured the run most like it. None where no pool has measured anything like it."""
    pools = {pool.id: pool for pool in session.scalars(select(Pool).order_by(col(Pool.id)))}
    measured = {m: pool for pool_id, pool in pools.items() for m in _measured(session, pool_id)}
    rates: dict[int, float] = {}
    found: list[tuple[int, str, Unit] | None] = []
    for name, config in recipes:
        flops = float(dry_run.flops_per_token(config))
        nearest = _nearest(measured, name, 1, flops)
        if nearest is None:
            found.append(None)
            continue
        if nearest.run_id not in rates:
            rates[nearest.run_id] = _rate(session, nearest.run_id)
        tokens = config.tokens_per_step * config.training.steps
        seconds = tokens * nearest.gpus * flops / (rates[nearest.run_id] * nearest.flops)
        found.append((round(seconds), measured[nearest].name, measured[nearest].unit))
    return found


def _measured(session: Session, pool_id: int) -> list[Measurement]:
    """The newest measured run of each recipe and number of GPUs on a pool."""
    found = []
    for other in session.scalars(_newest_measured(), {"pool": pool_id}):
        with suppress(InvalidError):  # an earlier version may have written a configuration that is refused today
            flops = float(dry_run.flops_per_token(config_of(other)))
            found.append(Measurement(other.id, other.recipe, other.gpus, flops))
    return found


@cache
def _newest_measured() -> Executable:
    """The query of `_measured`; made once, as that takes longer than an answer."""
    of_pool = col(Run.pool_id) == bindparam("pool"), col(Run.kind) == RunKind.TRAIN
    kind = select(Run.recipe, Run.gpus).where(*of_pool).distinct().subquery()
    # One look into the index for each run, from the newest back: a lab comes to have tens of millions of points.
    measured = exists().where(
        col(Point.run_id) == Run.id, col(Point.series) == "tokens_per_second", col(Point.value) > 0
    )
    newest = (
        select(Run.id)
        .where(*of_pool, Run.recipe == kind.c.recipe, Run.gpus == kind.c.gpus, measured)
        .order_by(col(Run.id).desc())
        .limit(1)
        .scalar_subquery()
    )
    return select(Run).where(col(Run.id).in_(select(newest).select_from(kind)))


def _rate(session: Session, run_id: int) -> float:
    """Tokens per second over all of a run's GPUs.

    The median of the newest points, since a checkpoint or an evaluation may have slowed a single one down.
    """
    values = session.scalars(
        select(Point.value)
        .where(Point.run_id == run_id, Point.series == "tokens_per_second", Point.value > 0)
        .order_by(col(Point.step).desc())
        .limit(NEWEST_POINTS)
    ).all()
    return median(values)


def _nearest(measured: Iterable[Measurement], recipe: str, gpus: int, flops: float) -> Measurement | None:
    """The measured run most like one of `flops` a token: same recipe first, then like FLOPs per token, then like GPUs.
    None where all are too far from it."""

    def distance(other: Measurement) -> tuple[bool, float, float, int]:
        size, count = abs(math.log(flops / other.flops)), abs(math.log(gpus / other.gpus))
        return other.recipe != recipe, size, count, -other.run_id

    nearest = min(measured, key=distance, default=None)
    return nearest if nearest is not None and 1 / FARTHEST <= flops / nearest.flops <= FARTHEST else None


def _basis(session: Session, measured: Measurement, rate: float, run: Run, flops: float) -> str:
    """A sentence on the measurement that an estimate rests on, and how it was scaled."""
    said = f"run {measured.run_id} measured {rate:,.0f} tokens per second"
    scaled = []
    if measured.gpus != run.gpus:
        unit = session.get_one(Pool, run.pool_id).unit
        scaled.append(f"from {measured.gpus} to {unit.count(run.gpus)}")
    if measured.recipe != run.recipe:
        scaled.append(f"from the recipe {measured.recipe} by FLOPs per token")
    elif not math.isclose(measured.flops, flops):
        scaled.append("by FLOPs per token")
    return f"{said}, scaled {' and '.join(scaled)}" if scaled else f"{said} of this recipe on this pool"


def config_of(run: Run) -> TrainConfig:
    """The configuration of a training run; raises InvalidError if the present schema refuses it."""
    return configs.read(run.config)
