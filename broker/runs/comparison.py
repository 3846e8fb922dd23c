"""What is compared: two to six runs that train, or evaluate a model of the Hub, named by their numbers or chosen as the
nearest ones."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml
from sqlalchemy.orm import Session
from sqlmodel import col, select

from broker.runs import runs
from broker.runs.kinds import kind
from broker.runs.runs import Run, RunKind, RunView
from broker.runs.series import Point
from projects.errors import ConflictError, InvalidError, NotFoundError

MOST = 6
"""The most curves that a reader, colour-blind or not, tells apart in one picture."""


def named(session: Session, numbers: str) -> Sequence[RunView]:
    """The runs that a line such as “3 5 8” or “3, 5” names, each once, in order; raises DomainError."""
    words = [word.removeprefix("#") for word in re.split(r"[\s,;+]+", numbers) if word]
    if not words or not all(re.fullmatch(r"[0-9]{1,9}", word) for word in words):
        raise InvalidError("Name the runs by their numbers, such as 3 5 8.")
    ids = list(dict.fromkeys(map(int, words)))
    if len(ids) < 2:
        raise InvalidError("A comparison needs at least two runs, such as 3 5.")
    if len(ids) > MOST:
        raise InvalidError(f"At most {MOST} runs fit one picture; {len(ids)} are named.")
    views = [runs.view(session, run_id) for run_id in ids]
    for view in views:
        if not kind.named(view.kind).trains and view.kind != RunKind.BASELINE:
            raise ConflictError(
                f"Run {view.id} does not train; only runs that do can be compared, and those that evaluate a model of "
                "the Hub beside them."
            )
    if not trained(views):
        raise InvalidError("Models of the Hub are drawn beside runs that train: name one of those too.")
    return views


def trained(views: Sequence[RunView]) -> list[RunView]:
    """The runs of the comparison that train; the others evaluate a model of the Hub."""
    return [view for view in views if kind.named(view.kind).trains]


def tokens_a_step(views: Sequence[RunView]) -> int | None:
    """The tokens of a step where all runs that train have the same; None where they differ, or none has begun."""
    found = {view.tokens // view.step for view in trained(views) if view.step}
    return found.pop() if len(found) == 1 else None


@dataclass(frozen=True)
class Difference:
    """A field of the configurations that is not the same in all runs; `values` are in the order of the runs."""

    field: str
    values: Sequence[str]


def differences(session: Session, views: Sequence[RunView]) -> Sequence[Difference]:
    """What differs in the configurations of the runs that train, by field; “–” stands for a field that a run does not
    have."""
    views = trained(views)
    rows = session.execute(select(Run.id, Run.config).where(col(Run.id).in_([view.id for view in views]))).all()
    configs = {run_id: _flat(yaml.safe_load(config) or {}) for run_id, config in rows}
    found = []
    for field in sorted({field for config in configs.values() for field in config}):
        values = [configs[view.id].get(field, "–") for view in views]
        if len(set(values)) > 1:
            found.append(Difference(field, values))
    return found


def _flat(value: Any, field: str = "") -> Mapping[str, str]:
    """The leaves of a configuration by their path, such as `optimizer.learning_rate`."""
    if isinstance(value, Mapping):
        return {
            path: leaf
            for key, each in value.items()
            for path, leaf in _flat(each, f"{field}.{key}" if field else str(key)).items()
        }
    if isinstance(value, list):
        return {
            path: leaf for number, each in enumerate(value) for path, leaf in _flat(each, f"{field}[{number}]").items()
        }
    return {field: str(value)}


def shared_tasks(views: Sequence[RunView]) -> Sequence[tuple[str, str]]:
    """The tasks, each with its metric, that several of the runs were evaluated on, in the order of the first run."""
    counted = Counter((scored.task, scored.metric) for view in views for scored in view.evaluations)
    return [which for which, runs_with_it in counted.items() if runs_with_it > 1]


def names(views: Sequence[RunView]) -> list[str]:
    """A name for each of the runs: its own, or its recipe, or what sets it apart from the other runs of that recipe.

    That is its overrides, and the run that it was forked from.
    """
    return [_name(view, [other for other in views if other.recipe == view.recipe]) for view in views]


def _name(view: RunView, alike: Sequence[RunView]) -> str:
    differing = {
        name
        for other in alike
        for name in other.overrides.keys() | view.overrides.keys()
        if other.overrides.get(name) != view.overrides.get(name)
    }
    said = [f"{name} {value}" for name, value in view.overrides.items() if name in differing]
    if len(alike) > 1 and view.parent_id is not None:
        said.append(f"fork of {view.parent_id}")
    return view.name or ", ".join(said) or view.recipe


def nearest(session: Session, run_id: int) -> Sequence[RunView]:
    """The run and the newest other runs of its project with a curve; raises ConflictError and NotFoundError."""
    run = runs.load(session, run_id)
    if not kind.kind_of(run).trains:
        raise ConflictError(f"Run {run_id} does not train; only runs that do can be compared.")
    measured = select(Point.run_id).where(Point.series == "loss")
    others = session.scalars(
        select(Run.id)
        .where(Run.project_id == run.project_id, Run.id != run.id, Run.kind == RunKind.TRAIN, col(Run.id).in_(measured))
        .order_by(col(Run.recipe) != run.recipe, col(Run.id).desc())
        .limit(MOST - 1)
    ).all()
    if not others:
        raise NotFoundError(f"The project has no other run with a curve to compare run {run_id} with yet.")
    return [runs.view(session, run_id) for run_id in (run.id, *sorted(others))]
