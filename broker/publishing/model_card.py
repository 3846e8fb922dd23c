"""The files that a checkpoint is published with: model card, plot of the loss, metrics up to its step, TensorBoard's
event file, data manifest."""

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from sqlalchemy.orm import Session

from broker import configs, publications
from broker.allocations.pools import Pool
from broker.allocations.units import Unit, heading, in_hours
from broker.plots.curve import Curve
from broker.publishing import metrics, result_lines, results_file, tensorboard
from broker.runs import naming, results, runs, series
from broker.runs.runs import Run
from broker.runs.series import Measured
from projects import projects
from projects.errors import InvalidError
from projects.text import cleaned
from trainer import check, contract

CARD_FILE = "README.md"
LOSS_PLOT_FILE = "loss.png"
CARD_DATA_FILE = "data_manifest.json"
TENSORBOARD_FILE = "events.out.tfevents.0.stoa"
"""TensorBoard and the Hub know such a file by `tfevents` in its name."""
TEMPLATE = Path(__file__).with_name("model_card.md.j2")
HUB_LICENCES = ("apache-2.0", "mit", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "cc0-1.0", "bsd-3-clause")
"""SPDX identifiers in lower case that the Hub knows as licences; for any other it wants `other` and a name."""
MOST_RESULTS = 40
"""Results of evaluations and studies that a card has, at most."""
LOSS_ROWS = 12
"""Rows of the card's table of losses, at most."""
_STEP = re.compile(r"^Step ([0-9]+) of [0-9]+(?:, after ([0-9,]+) tokens)?\. Each checkpoint is a branch", re.MULTILINE)
_RESULTS = re.compile(r"^model-index:\n(?:(?:- |  ).*\n)+", re.MULTILINE)
_RUN_TAGS = re.compile(r"^- Tags: (.*)$", re.MULTILINE)
_TAGS = re.compile(r"^tags:\n(?:- .*\n)+", re.MULTILINE)


def write_card(session: Session, run_id: int, repo: str, folder: Path) -> None:
    """Write the files into a checkpoint's folder, unless its card is there already.

    Publishing the folder again then sends the same bytes, so that an answer lost on the way makes no second commit.
    Raises OSError if a file cannot be read or written, ValueError if the folder is not as the trainer leaves it.
    """
    metadata = json.loads((folder / contract.CHECKPOINT_METADATA_FILE).read_text())
    if (folder / CARD_FILE).exists():
        return
    step = int(folder.name.removeprefix("step"))
    since = publications.newest_published_before(session, run_id, step)
    losses = metrics.write(step, folder.parent.parent, since, folder / contract.METRICS_FILE)
    _write(folder / CARD_DATA_FILE, json.dumps(metadata.get("data", {}), indent=2) + "\n")
    if curves := {name: points for name, points in _curves(session, run_id, step, losses).items() if points}:
        _write(folder / TENSORBOARD_FILE, tensorboard.encode(curves))
    tokens = metadata.get("tokens") if isinstance(metadata, dict) else None
    if lines := result_lines.of_step(session, run_id, step, tokens if isinstance(tokens, int) else None):
        told = (folder / contract.METRICS_FILE).read_text(encoding="utf-8")
        _write(folder / contract.METRICS_FILE, result_lines.added(told, lines))
    if events := result_lines.events(session, run_id, step):
        _write(folder / result_lines.RESULTS_TENSORBOARD_FILE, events)
    if measured := results_file.content(session, run_id, step):
        (folder / contract.RESULTS_FOLDER).mkdir(exist_ok=True)
        _write(folder / results_file.name(step), measured)
    if len(losses) > 1:
        from broker.plots import canvas, loss_curve  # imports matplotlib, which takes a second

        _write(folder / LOSS_PLOT_FILE, loss_curve.draw(_curve(session, run_id, step, losses), canvas.LIGHT))
    try:
        card = _card(session, run_id, repo, step, since, metadata, losses)
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{contract.CHECKPOINT_METADATA_FILE} of step {step} lacks something: {error!r}") from error
    _write(folder / CARD_FILE, card)


def discard(folder: str) -> None:
    """Remove the card of a checkpoint that is not published yet, so that it is rewritten; raises OSError."""
    (Path(folder) / CARD_FILE).unlink(missing_ok=True)


def step_of(said: str) -> int | None:
    """The step of the checkpoint that a card tells of; None for a card of another form."""
    about = _STEP.search(said)
    return None if about is None else int(about[1])


def tokens_of(said: str) -> int | None:
    """The tokens after which the checkpoint was written that a card tells of; None where it does not say so."""
    about = _STEP.search(said)
    return None if about is None or not about[2] else int(about[2].replace(",", ""))


def renewed(session: Session, run_id: int, repo: str, said: str) -> str:
    """The card that `said` something about a checkpoint, with its title, question, people, run and tags as they are
    called now. The step, the data, the losses and what somebody has added below or as a tag stay; so does a card of
    another form."""
    front, title, rest = said.partition("\n# ")
    head, section, below = rest.partition("\n## ")
    about = _STEP.search(head)
    if not (title and section and about):
        return said
    metadata = {"tokens": int(about[2].replace(",", ""))} if about[2] else {}
    now = _card(session, run_id, repo, int(about[1]), -1, metadata, ())
    before, tags = _TAGS.search(front), _TAGS.search(now)
    if before and tags:
        front = front.replace(before[0], tags[0] + _added(before[0], tags[0], head), 1)
    told, known = _RESULTS.search(front), _RESULTS.search(now)
    if told and known:
        front = front.replace(told[0], known[0], 1)
    return f"{front}{title}{now.partition(title)[2].partition(section)[0]}{section}{below}"


def _added(before: str, now: str, head: str) -> str:
    """The lines of the tags that somebody has added to a card: those that were not the run's, and are not on it now.

    A card that does not say the run's tags may have any word of their form from the run.
    """
    known = _RUN_TAGS.search(head)
    ours = set(re.findall(r"`([^`]+)`", known[1])) if known else set()
    lines = [(line, line.removeprefix("- ").strip().strip("'\"")) for line in before.splitlines(keepends=True)[1:]]
    were_not_ours = [line for line, tag in lines if (tag not in ours if known else not naming.TAG.fullmatch(tag))]
    return "".join(line for line in were_not_ours if line not in now.splitlines(keepends=True))


def loading(repo: str, step: int) -> str:
    """The Python code that loads a published checkpoint."""
    return "\n".join(
        [
            "from transformers import AutoModelForCausalLM, AutoTokenizer",
            "",
            f'model = AutoModelForCausalLM.from_pretrained("{repo}", revision="step{step}")',
            f'tokenizer = AutoTokenizer.from_pretrained("{repo}", revision="step{step}")',
        ]
    )


def bits_per_byte(loss: float, metadata: Mapping[str, Any]) -> float | None:
    """A held-out loss, in nats per token, by the bytes of text that a token stands for, the sources mixed by weight;
    None where the checkpoint's metadata lack these."""
    parts = [
        (source.get("weight") or 0, source.get("held_out", {}))
        for source in metadata.get("data", {}).get("sources", [])
    ]
    known = [
        (weight, part["bytes"] / part["tokens"]) for weight, part in parts if part.get("tokens") and "bytes" in part
    ]
    whole = sum(weight for weight, _ in known)
    size = sum(weight * size for weight, size in known)
    return loss / math.log(2) / (size / whole) if size and len(known) == len(parts) else None


def _card(
    session: Session,
    run_id: int,
    repo: str,
    step: int,
    since: int,
    metadata: Mapping[str, Any],
    losses: Sequence[Measured],
) -> str:
    """The model card of the checkpoint of `step`, from its metadata and the losses up to it.

    `since` is the step of the published checkpoint before it, -1 without one.
    """
    run = runs.view(session, run_id)
    row = runs.load(session, run_id)
    project = projects.view(session, run.project_id)
    parent = session.get(publications.Repository, row.parent_id) if row.parent_id else None
    measured = _held_out(session, run_id, step)
    held_out = measured[-1] if measured else None
    evaluated = [
        (scored.task, scored.metric, *scored.values[step]) for scored in results.of_step(session, run_id, step)
    ][:MOST_RESULTS]
    sources = [_source(source) for source in metadata.get("data", {}).get("sources", [])]
    base = metadata.get("base") or {}
    # What is made of a model is under that model's licence, where the base says which.
    licence = str(base.get("licence") or project.licence).lower()
    card = ModelCard.from_template(
        ModelCardData(
            license=licence if licence in HUB_LICENCES else "other",
            license_name=None if licence in HUB_LICENCES else licence,
            # `language` is left out: neither recipes nor corpora say in which their text is.
            library_name="transformers",
            pipeline_tag="text-generation",
            tags=list(dict.fromkeys(("stoa", run.recipe, *run.tags))),
            datasets=[source["dataset"] for source in sources if source["dataset"]] or None,
            base_model=parent.name if parent else str(base["name"]).rpartition("@")[0] if base else None,
            model_name=repo if held_out or evaluated else None,
            eval_results=[*([_result(held_out)] if held_out else []), *map(_evaluated, evaluated)] or None,
        ),
        template_path=str(TEMPLATE),
        base=base,
        contract=contract,
        evaluated=evaluated,
        data_manifest=CARD_DATA_FILE,
        facts=_facts(session, row, metadata, held_out),
        files=metadata.get("files", {}),
        fork_step=row.fork_step,
        loading=loading(repo, step),
        loss_plot=LOSS_PLOT_FILE if len(losses) > 1 else "",
        losses=_evenly_spread(losses),
        parent=parent,
        people=[_plain(m.name) + (" (lead)" if m.lead else "") for m in project.members if not m.newcomer],
        plain=_plain,
        project=project,
        repo=repo,
        results_file=results_file.name(step),
        run=run,
        since=since,
        sources=sources,
        step=step,
        thread_url=row.thread_url,
        tokens=metadata.get("tokens", 0),
    )
    return f"{card}\n"


def _facts(session: Session, run: Run, metadata: Mapping[str, Any], held_out: Measured | None) -> list[tuple[str, str]]:
    """What the card's table of the training says, by name. The hours are those up to now."""
    pool = session.get_one(Pool, run.pool_id)
    facts = [
        ("Hardware", _plain(Unit.of_type(pool.gpu_type, run.gpus))),
        (f"{heading([pool.unit])} so far", f"{in_hours(runs.view(session, run.id).spent)}"),
        *_configured(run.config),
    ]
    if held_out is not None:
        in_bits = bits_per_byte(held_out.value, metadata)
        bits = "" if in_bits is None else f", {in_bits:.4f} bits per byte"
        facts.append(
            ("Held-out loss", f"{held_out.value:.4f} nats per token{bits}, at step {held_out.step:,}"),
        )
    if version := str(metadata.get("code_version", "")):
        facts.append(("Version of the trainer", _plain(version[:80])))
    if commit := str(metadata.get("code_commit", "")):
        facts.append(("Git commit of the trainer", _plain(commit[:64])))
    return facts


def _configured(text: str) -> list[tuple[str, str]]:
    """The facts that the run's configuration says; none where an earlier version wrote one that is refused today."""
    try:
        config = configs.read(text)
    except InvalidError:
        return []
    return [
        ("Parameters", f"{check.parameters(config):,}"),
        ("Batch", f"{config.training.batch:,} sequences of {config.data.sequence_length:,} tokens"),
        ("Peak learning rate", f"{config.optimizer.learning_rate:g}"),
        ("Precision", config.training.precision),
        ("Seed", str(config.training.seed)),
    ]


def _result(held_out: Measured) -> EvalResult:
    """The held-out loss as the Hub's metadata has results."""
    return EvalResult(
        task_type="text-generation",
        dataset_type="held-out",
        dataset_name="held-out documents of the training data",
        metric_type="loss",
        metric_name="held-out loss (nats per token)",
        metric_value=round(held_out.value, 4),
    )


def _evaluated(row: tuple[str, str, float, float | None]) -> EvalResult:
    """A result of an evaluation or a study as the Hub's metadata has results."""
    task, metric, value, _ = row
    return EvalResult(
        task_type="text-generation",
        dataset_type=task,
        dataset_name=task,
        metric_type=metric,
        metric_name=metric,
        metric_value=float(f"{value:.6g}"),
    )


def _curves(session: Session, run_id: int, step: int, losses: Sequence[Measured]) -> Mapping[str, Sequence[Measured]]:
    """The losses of a run up to a step, as TensorBoard names them."""
    return {"loss/train": losses, "loss/held_out": _held_out(session, run_id, step)}


def _held_out(session: Session, run_id: int, step: int) -> Sequence[Measured]:
    """The held-out losses of a run up to a step."""
    return [point for point in series.read(session, run_id, "held_out") if point.step <= step]


def _curve(session: Session, run_id: int, step: int, losses: Sequence[Measured]) -> Curve:
    """The curve of a run up to a step."""
    held_out = _held_out(session, run_id, step)
    return Curve(
        title=f"Run {run_id}, step {step:,}",
        loss=[(point.tokens, point.value) for point in losses],
        held_out=[(point.tokens, point.value) for point in held_out],
        checkpoints=(),
        unigram_entropy=runs.load(session, run_id).unigram_entropy,
    )


def _source(source: Mapping[str, Any]) -> dict[str, str]:
    """A source of the data manifest as the card shows it. `dataset` is the id of a dataset on the Hub, or empty."""
    place = source.get("place", {})
    dataset = str(place.get("dataset", ""))
    commit = str(place.get("revision", ""))
    origin = f"{dataset} at {commit[:12]}" if dataset and commit else dataset or str(place.get("builtin", "files"))
    tokens = source.get("train", {}).get("tokens")
    return {
        "name": source["name"],
        "licence": source["licence"],
        "origin": origin,
        "dataset": dataset if re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", dataset) else "",
        "tokens": "" if tokens is None else f"{int(tokens):,}",
    }


def _evenly_spread(losses: Sequence[Measured]) -> Sequence[Measured]:
    """At most LOSS_ROWS of the losses, evenly spread, the first and the last included."""
    if len(losses) <= LOSS_ROWS:
        return losses
    return [losses[row * (len(losses) - 1) // (LOSS_ROWS - 1)] for row in range(LOSS_ROWS)]


def _plain(value: str) -> str:
    """A member's text as one line of Markdown in which nothing is markup."""
    return re.sub(r"([\\`*_{}\[\]<>()#+!|~&:@$.-])", r"\\\1", " ".join(cleaned(str(value)).split()))


def _write(path: Path, content: str | bytes) -> None:
    """Write the whole file or none of it."""
    partial = path.with_name(f".{path.name}.writing")
    partial.write_bytes(content if isinstance(content, bytes) else content.encode())
    os.replace(partial, path)
