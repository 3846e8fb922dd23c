"""A study's loop: each checkpoint is opened once, all analyses measure it, and each result is written as it comes."""

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from trainer.contract import METRICS_FILE, RESULTS_FILE
from trainer.evaluation.open_checkpoint import OpenCheckpoint, data_of, open_checkpoint
from trainer.files import write_atomically
from trainer.metrics import append_metrics
from trainer.schema import ConfigError
from trainer.study import results
from trainer.study.analysis import Analysis, Study
from trainer.study.results import Result
from trainer.study.selection import Chosen, Selection
from trainer.study.shelf import Shelf

Advance = Callable[[str, float], None]


def run(
    selected: Selection,
    analyses: Mapping[str, Analysis],
    data: Path | None,
    out: Path,
    say: Callable[[str], None] = lambda message: None,
    advance: Advance = lambda name, share: None,
) -> dict[str, Any]:
    """Run the analyses on the selected checkpoints and return what `results.json` then holds; see `summary`.

    What `results.jsonl` in the folder `out` has is not computed again. `data` is the folder of prepared data that
    analyses read, None for the run's own; `say` is told of each checkpoint, `advance` an analysis and the share of its
    work on all checkpoints that was just done. Raises ConfigError, also where the folder holds results of other
    checkpoints, settings or versions.
    """
    chosen, first = selected
    data = data or data_of(first)
    settings = {name: analysis.model_dump(mode="json") | analysis.reads(data) for name, analysis in analyses.items()}
    studies = {
        name: Study(
            first, data, Shelf(out / results.KEPT_FOLDER / f"{name}-{_digest(analysis.version, settings[name])}")
        )
        for name, analysis in analyses.items()
    }
    found = {(result.step, result.analysis): result for result in results.read(out)}
    by_step = {one.step: one for one in chosen}
    for result in found.values():
        if result.analysis in analyses:
            _check(result, by_step.get(result.step), analyses[result.analysis], settings[result.analysis], out)
    opened: OpenCheckpoint | None = None
    for number, one in enumerate(chosen, 1):
        left = [name for name in analyses if (one.step, name) not in found]
        if left:
            say(f"step {one.step}: {', '.join(left)} (checkpoint {number} of {len(chosen)})")
            opened = open_checkpoint(one.folder, opened)
            for name in left:
                study = replace(studies[name], advance=partial(_advance, advance, name, len(chosen)))
                found[one.step, name] = _measure(one, opened, name, analyses[name], study, settings[name])
                results.append(out, found[one.step, name])
        _log(out, [found[one.step, name] for name in analyses])
        for name in analyses.keys() - left:
            advance(name, 1 / len(chosen))
    content = summary(analyses, list(found.values()))
    write_atomically(out / RESULTS_FILE, json.dumps(content, indent=2) + "\n")
    return content


def summary(analyses: Mapping[str, Analysis], found: Sequence[Result]) -> dict[str, Any]:
    """By analysis the `steps`, its single numbers at each of them as `values`, and what all steps say together as
    `summary`."""
    content: dict[str, Any] = {}
    for name, analysis in analyses.items():
        own = sorted((result for result in found if result.analysis == name), key=lambda result: result.step)
        numbers = [key for key, value in own[0].values.items() if not isinstance(value, Sequence | Mapping)]
        steps = [result.step for result in own]
        content[name] = {
            "version": analysis.version,
            "steps": steps,
            "values": {key: [result.values.get(key) for result in own] for key in numbers},
            "summary": analysis.summary(steps, [result.values for result in own]),
        }
    return content


def _advance(advance: Advance, name: str, checkpoints: int, share: float) -> None:
    """Tell of a share of an analysis's work on one of so many checkpoints."""
    advance(name, share / checkpoints)


def _digest(version: int, settings: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps([version, settings], sort_keys=True).encode()).hexdigest()[:12]


def _measure(
    one: Chosen, opened: OpenCheckpoint, name: str, analysis: Analysis, study: Study, settings: dict[str, Any]
) -> Result:
    began = time.monotonic()
    values = analysis.measure(opened, study)
    return Result(
        step=one.step,
        tokens=one.tokens,
        analysis=name,
        version=analysis.version,
        settings=settings,
        weights=one.weights,
        seconds=time.monotonic() - began,
        values=values,
    )


def _check(result: Result, one: Chosen | None, analysis: Analysis, settings: Mapping[str, Any], out: Path) -> None:
    """Raise ConfigError unless a result that is there is what the analysis would measure now, of the chosen checkpoint
    where it is `one`."""
    what = f"{out} holds {result.analysis} of step {result.step}"
    if one is not None and result.weights != one.weights:
        raise ConfigError(f"{what} with other weights than {one.folder}; give --out another folder.")
    if result.version != analysis.version:
        raise ConfigError(
            f"{what} by version {result.version} of the analysis, which is at {analysis.version}; give --out another "
            "folder."
        )
    if result.settings != settings:
        keys = [key for key in {**result.settings, **settings} if result.settings.get(key) != settings.get(key)]
        raise ConfigError(f"{what} with another {' and '.join(keys)}; give --out another folder.")


def _log(out: Path, of_step: Sequence[Result]) -> None:
    """Append the step's line to the metrics, unless it is there: its single numbers as `ANALYSIS.NAME`."""
    step, tokens = of_step[0].step, of_step[0].tokens or 0
    path = out / METRICS_FILE
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    if any(json.loads(line)["step"] == step for line in lines):
        return
    numbers = {
        f"{result.analysis}.{key}": value
        for result in of_step
        for key, value in result.values.items()
        if not isinstance(value, Sequence | Mapping)
    }
    append_metrics(out, step=step, tokens=tokens, **numbers)
