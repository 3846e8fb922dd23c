"""What goes to the Hub beside each checkpoint: model card, loss curve, the measures up to its step, data manifest."""

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, StrictUndefined
from sqlalchemy.orm import Session

from broker.runs import runs
from projects import lifecycle
from projects.text import cleaned

CARD = "README.md"
METRICS = "metrics.jsonl"
PICTURE = "loss.png"
MANIFEST = "data_manifest.json"
HUB_LICENCES = ("apache-2.0", "mit", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "cc0-1.0", "bsd-3-clause")
"""SPDX identifiers in lower case that the Hub knows as such; for any other it wants a name."""
ROWS = 12

TEMPLATE = """\
---
{{ metadata }}---
# {{ project.title | plain }}: run {{ run.id }}

{{ project.question | plain }}

Step {{ step }} of {{ run.total_steps }}{% if tokens %}, after {{ "{:,}".format(tokens) }} tokens{% endif %}. Each \
checkpoint is a branch `step{N}` of this repository; `main` is the newest one.

- Recipe: {{ run.recipe | plain }}
{% for name, value in run.overrides.items() %}
- Changed in it: {{ name | plain }} = {{ value | plain }}
{% endfor %}
- Compute: {{ run.gpus }} × {{ run.pool | plain }}{% if run.sponsor %}, given by {{ run.sponsor | plain }}{% endif %}

- People: {{ people | join(", ") }}
- Licence of the weights: {{ licence | plain }}
{% if sources %}

## Data

| Source | Licence | From | Training tokens |
|---|---|---|---|
{% for source in sources %}
| {{ source.name | plain }} | {{ source.licence | plain }} | {{ source.place | plain }} | {{ source.tokens }} |
{% endfor %}

`data_manifest.json` holds their hashes.
{% endif %}
{% if curve %}

## Loss

{% if picture %}
![The loss, in nats per token, over the tokens seen]({{ picture }})

{% endif %}
| Step | Tokens | Loss (nats per token) |
|---|---|---|
{% for line in curve %}
| {{ line.step }} | {{ "{:,}".format(line.tokens) }} | {{ "%.4f" % line.loss }} |
{% endfor %}

`metrics.jsonl` holds every measured step.
{% endif %}

## Loading

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{{ repo }}", revision="step{{ step }}")
tokenizer = AutoTokenizer.from_pretrained("{{ repo }}", revision="step{{ step }}")
```

`how.json` holds the whole configuration, and `probe.safetensors` the trainer's own logits for a few held-out tokens.
"""


def write_card(session: Session, run_id: int, repo: str, folder: Path) -> None:
    """Write the card, its picture, `metrics.jsonl` and `data_manifest.json` into a checkpoint's folder, once.

    A second try sends the same bytes, so that an answer lost on the way makes no second commit. Raises OSError and
    ValueError where the folder is not as the trainer leaves it.
    """
    how = json.loads((folder / "how.json").read_text())
    if (folder / CARD).exists():
        return
    step = int(folder.name.removeprefix("step"))
    lines = measured(folder.parent.parent, step)
    losses = [line for line in lines if isinstance(line.get("loss"), float) and math.isfinite(line["loss"])]
    _write(folder / METRICS, "".join(f"{json.dumps(line)}\n" for line in lines))
    _write(folder / MANIFEST, json.dumps(how.get("data", {}), indent=2) + "\n")
    if len(losses) > 1:
        _write(folder / PICTURE, _picture(losses))
    try:
        said = _card(session, run_id, repo, step, how, losses)
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"how.json of step {step} lacks something: {error!r}") from error
    _write(folder / CARD, said)


def measured(attempt: Path, step: int) -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl` up to `step`, of this attempt and those before it; a later one's measure stands."""
    token = attempt.name.removeprefix("attempt-")
    numbers = range(1, int(token) + 1) if token.isdecimal() else ()
    found: dict[int, dict[str, Any]] = {}
    for folder in [attempt.with_name(f"attempt-{number}") for number in numbers] or [attempt]:
        path = folder / METRICS
        for text in path.read_bytes().splitlines() if path.exists() else ():
            try:
                line = json.loads(text)
                found[int(line["step"])] = line
            except (ValueError, KeyError, TypeError):
                continue  # the last line of a trainer that was killed
    return [found[each] for each in sorted(found) if each <= step]


def _card(
    session: Session, run_id: int, repo: str, step: int, how: Mapping[str, Any], losses: Sequence[Mapping[str, Any]]
) -> str:
    run = runs.view(session, run_id)
    project = lifecycle.view(session, run.project_id)
    sources = [_source(source) for source in how.get("data", {}).get("sources", [])]
    licence = project.licence
    known = licence.lower() in HUB_LICENCES
    metadata = {
        **({"license": licence.lower()} if known else {"license": "other", "license_name": licence.lower()}),
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["stoa", run.recipe],
    }
    hub_ids = [source["dataset"] for source in sources if source["dataset"]]
    environment = Environment(  # Markdown, not HTML: `plain` escapes what was typed
        autoescape=False, trim_blocks=True, keep_trailing_newline=True, undefined=StrictUndefined
    )
    environment.filters["plain"] = _plain
    return environment.from_string(TEMPLATE).render(
        metadata=yaml.safe_dump(metadata | ({"datasets": hub_ids} if hub_ids else {}), sort_keys=False),
        run=run,
        project=project,
        licence=licence,
        people=[_plain(member.name) + (" (lead)" if member.lead else "") for member in project.members],
        repo=repo,
        step=step,
        tokens=how.get("tokens", 0),
        sources=sources,
        curve=_thinned(losses),
        picture=PICTURE if len(losses) > 1 else "",
    )


def _picture(losses: Sequence[Mapping[str, Any]]) -> bytes:
    from broker.publishing import loss_plot  # matplotlib takes its time to load, and only a publisher draws

    return loss_plot.draw([line.get("tokens", line["step"]) for line in losses], [line["loss"] for line in losses])


def _source(source: Mapping[str, Any]) -> dict[str, str]:
    """A source of the manifest as the card's table shows it; a Hub dataset's id and commit where it is one."""
    place = source.get("place", {})
    dataset = str(place.get("dataset", ""))
    commit = str(place.get("revision", ""))
    where = f"{dataset} at {commit[:12]}" if dataset and commit else dataset or str(place.get("builtin", "files"))
    tokens = source.get("train", {}).get("tokens")
    return {
        "name": source["name"],
        "licence": source["licence"],
        "place": where,
        "dataset": dataset if re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", dataset) else "",
        "tokens": "" if tokens is None else f"{int(tokens):,}",
    }


def _thinned(lines: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """At most ROWS of the lines, evenly spread, both ends among them."""
    if len(lines) <= ROWS:
        return lines
    return [lines[place * (len(lines) - 1) // (ROWS - 1)] for place in range(ROWS)]


def _plain(value: str) -> str:
    """What somebody typed, as one line without markup."""
    return re.sub(r"([\\`*_{}\[\]<>()#+!|~&:@$.-])", r"\\\1", " ".join(cleaned(str(value)).split()))


def _write(path: Path, content: str | bytes) -> None:
    """Write the whole file or none of it."""
    partial = path.with_name(f".{path.name}.writing")
    partial.write_bytes(content if isinstance(content, bytes) else content.encode())
    os.replace(partial, path)
