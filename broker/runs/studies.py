"""Studies: members have analyses run over checkpoints of a run, one after the other."""

import yaml
from sqlalchemy.orm import Session

from broker import catalogue
from broker.runs import on_checkpoints
from broker.runs.launching import Receipt
from broker.runs.on_checkpoints import ALL, Reading
from broker.runs.runs import Run, RunKind
from projects import text
from projects.errors import InvalidError
from projects.people import Actor
from trainer.schema import ConfigError
from trainer.study import registry

ANALYSES = tuple(registry.ANALYSES)
"""The names of the analyses."""
PAIRED = "paired_prompts"
"""The analysis that asks pairs of the catalogue."""


class Study(Reading):
    """What a study runs, as its configuration says it. `pairs` is the name of what `paired_prompts` asks, where that is
    of the catalogue, and `pairs_text` their YAML as it was then."""

    analyses: list[str]
    pairs: str = ""
    pairs_text: str = ""

    @property
    def needs_data(self) -> str:
        return next((name for name in self.analyses if name not in registry.WITHOUT_DATA), "")


def launch(
    session: Session,
    actor: Actor,
    request_id: str,
    run_id: int,
    *,
    analyses: str,
    steps: str = ALL,
    time_limit: str = "30m",
    pairs: str = "",
) -> Receipt:
    """Queue a study; `pairs` of the catalogue are what `paired_prompts` asks in place of its own.
    `on_checkpoints.launch` says the rest. Raises also InvalidError and NotFoundError for the pairs."""

    def ask(chosen: list[int]) -> Study:
        names, of_pairs = parse_analyses(analyses), {}
        if pairs and PAIRED not in names:
            raise InvalidError(f"Pairs are what {PAIRED} asks a model; add it to the analyses.")
        if pairs:
            of_pairs = {"pairs": pairs, "pairs_text": catalogue.pairs_text(session, pairs)}
        return Study(analyses=names, steps=chosen, **of_pairs)

    return on_checkpoints.launch(
        session, actor, request_id, run_id, RunKind.STUDY, ask, steps=steps, time_limit=time_limit
    )


def what(run: Run) -> Study:
    """What a study runs."""
    return Study.model_validate(yaml.safe_load(run.config))


def parse_analyses(typed: str) -> list[str]:
    """Names of analyses as typed, such as “induction, weights”; raises InvalidError."""
    names = ",".join(text.cleaned(typed).replace(",", " ").split())
    if not names:
        raise InvalidError(f"Name an analysis; there are {', '.join(ANALYSES)}.")
    try:
        return registry.named(names)
    except ConfigError as error:
        raise InvalidError(str(error)) from error
