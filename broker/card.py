"""The model card beside each published checkpoint: how it was made, from what, by whom, and how to load it."""

import json
import re
from pathlib import Path

from jinja2 import Environment
from sqlalchemy.orm import Session

from broker import runs
from projects import pipeline

TEMPLATE = """\
---
license: apache-2.0
library_name: transformers
pipeline_tag: text-generation
tags: [stoa, {{ run.recipe }}]
---
# {{ project.title | plain }}: run {{ run.id }}

{{ project.question | plain }}

- Recipe: `{{ run.recipe }}`{% if run.overrides %} with {{ run.overrides | tojson }}{% endif %}
- Compute: {{ run.gpus }} × {{ run.pool | plain }}{% if run.sponsor %}, given by {{ run.sponsor | plain }}{% endif %}
- People: {{ people | join(", ") }}
- Checkpoints: one branch `step{N}` each; `main` is the last one
{% if sources %}
## Data
{% for source in sources %}- {{ source.name }}: {{ source.licence }}
{% endfor %}{% endif %}
## Loading
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{{ repo }}", revision="step{{ step }}")
tokenizer = AutoTokenizer.from_pretrained("{{ repo }}", revision="step{{ step }}")
```
`how.json` holds the whole configuration, and `probe.safetensors` the trainer's own logits for a few held-out tokens.
"""


def write_card(session: Session, run_id: int, repo: str, folder: Path) -> None:
    """Write `README.md` into a checkpoint's folder."""
    run = runs.view(session, run_id)
    how = json.loads((folder / "how.json").read_text())
    sources = how.get("data", {}).get("sources", [])
    environment = Environment(autoescape=False, trim_blocks=True)  # Markdown, not HTML: `plain` escapes what was typed
    environment.filters["plain"] = _plain
    project = pipeline.view(session, run.project_id)
    people = [_plain(member.name) + (" (lead)" if member.lead else "") for member in project.members]
    step = int(folder.name.removeprefix("step"))
    text = environment.from_string(TEMPLATE).render(
        run=run, project=project, people=people, repo=repo, step=step, sources=sources
    )
    (folder / "README.md").write_text(text)


def _plain(value: str) -> str:
    """What somebody typed, as one line without markup."""
    return re.sub(r"([\\`*_{}\[\]<>()#+!|~-])", r"\\\1", " ".join(value.split()))
