"""The analyses by their names. Imports no torch: an analysis is imported when it is asked for."""

import difflib
from collections.abc import Iterable, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from trainer.schema import ConfigError
from trainer.yaml_text import read_yaml

if TYPE_CHECKING:
    from trainer.study.analysis import Analysis

ANALYSES = {
    "paired_prompts": "trainer.study.paired_prompts.PairedPrompts",
    "weights": "trainer.study.weights.Weights",
    "similarity": "trainer.study.similarity.Similarity",
    "induction": "trainer.study.induction.Induction",
    "ngrams": "trainer.study.ngrams.NGrams",
    "logit_lens": "trainer.study.logit_lens.LogitLens",
    "tuned_lens": "trainer.study.tuned_lens.TunedLens",
    "sources": "trainer.study.sources.Sources",
    "memorisation": "trainer.study.memorisation.Memorisation",
}
"""The class of each analysis. Results are in this order."""
WITHOUT_DATA = frozenset({"paired_prompts", "weights"})
"""The analyses that read checkpoints alone; the others also read the data that the checkpoints were trained on."""


def named(names: str) -> list[str]:
    """The analyses in a text with commas between, in the order of ANALYSES. Raises ConfigError."""
    chosen = [name.strip() for name in names.split(",") if name.strip()]
    if not chosen:
        raise ConfigError(f"--analyses names none; the analyses are {', '.join(ANALYSES)}.")
    for name in chosen:
        if name not in ANALYSES:
            raise ConfigError(f"There is no analysis {name[:60]!r}; {_meant(name, ANALYSES, 'the analyses are')}")
    return [name for name in ANALYSES if name in chosen]


def choose(names: str, settings: Iterable[str]) -> dict[str, "Analysis"]:
    """The analyses that `names` are, see `named`, each with its settings, of which one is `ANALYSIS.KEY=VALUE`. Raises
    ConfigError."""
    values: dict[str, dict[str, Any]] = {name: {} for name in named(names)}
    for setting in settings:
        key, equals, value = setting.partition("=")
        name, dot, field = key.partition(".")
        if not (equals and dot and field):
            raise ConfigError(f"--set {setting[:60]!r} must be ANALYSIS.KEY=VALUE, such as paired_prompts.file=my.yml.")
        if name not in values:
            raise ConfigError(f"--set {key[:60]!r} is of an analysis that --analyses does not name; add it there.")
        values[name][field] = read_yaml(value, f"--set {key}")
    return {name: _made(name, given) for name, given in values.items()}


def _made(name: str, values: Mapping[str, Any]) -> "Analysis":
    module, _, kind = ANALYSES[name].rpartition(".")
    analysis: type[Analysis] = getattr(import_module(module), kind)
    for field in values:
        if field not in analysis.model_fields:
            raise ConfigError(
                f"{name} has no setting {field[:60]!r}; {_meant(field, analysis.model_fields, 'its settings are')}"
            )
    try:
        return analysis.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        must = first["msg"].replace("Input should", "must", 1)
        raise ConfigError(f"{name}.{first['loc'][0]} {must}, not {str(first['input'])[:60]!r}.") from None


def _meant(name: str, known: Iterable[str], all_of_them: str) -> str:
    near = difflib.get_close_matches(name.lower().replace("-", "_"), list(known), n=3, cutoff=0.5)
    return f"do you mean {' or '.join(near)}?" if near else f"{all_of_them} {', '.join(known) or 'none'}."
