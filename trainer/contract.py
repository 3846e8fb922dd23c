"""The contract between the trainer and whoever starts it: exit statuses, the names of the files that a run leaves in
its folder, and the names of its events. Imports no torch.

Everything that the trainer writes and another program reads is named here once, and both sides import it.
"""

import json
import re
from enum import IntEnum, StrEnum
from pathlib import Path

from pydantic import BaseModel


class Status(IntEnum):
    """Exit statuses, with the numbers of BSD's sysexits.h where it has one for the case.

    DONE: the last step is done. FAILED: the reason is in `outcome.json` and in the last event. STOPPED: the run was
    stopped by a signal and can be resumed from its last checkpoint. CONFIG: the configuration or the command line is
    wrong. REFUSED is no status of the trainer: a runner reports it where the trainer could not be started at all.
    """

    DONE = 0
    REFUSED = 69
    FAILED = 70
    STOPPED = 75
    CONFIG = 78


class Outcome(BaseModel):
    """The content of `outcome.json`. `transient` means that another attempt from the last checkpoint may succeed."""

    status: Status
    reason: str | None = None
    step: int | None = None
    transient: bool = False


ARCHITECTURES = ("GPTNeoXForCausalLM", "GPTJForCausalLM", "GPTNeoForCausalLM", "LlamaForCausalLM")
"""The classes of transformers whose models the trainer reads, as a `config.json` names them in `architectures`."""


class CorpusKind(StrEnum):
    """What a lab can register: a corpus by the key of its place in a source (`path` for text, instructions and
    preferences), prepared data, or a tokenizer."""

    TEXT = "text"
    TOKENS = "tokens"
    DATASET = "dataset"
    INSTRUCTIONS = "instructions"
    PREFERENCES = "preferences"
    PREPARED = "prepared"
    TOKENIZER = "tokenizer"


class Measured(BaseModel):
    """What `data measure` prints: the `files` of a corpus and their `bytes`; of a corpus its `documents`, the
    `text_bytes` of these in UTF-8, and its `tokens`; of prepared data and a tokenizer the `vocabulary`; of prepared
    data the `sources`, with the licence of each; and the SHA-256 of the `manifest` that it was checked against.

    A corpus of tokens has no `text_bytes`, and text has `tokens` only if they were counted with a tokenizer: the
    end-of-document tokens are among them.
    """

    files: int
    bytes: int
    documents: int | None = None
    text_bytes: int | None = None
    tokens: int | None = None
    vocabulary: int | None = None
    sources: dict[str, str] = {}
    manifest: str | None = None


def measured_data(folder: Path) -> Measured:
    """What a folder of prepared data holds, by its manifest. Raises OSError, ValueError, KeyError or TypeError where it
    has none."""
    manifest = json.loads((folder / DATA_MANIFEST_FILE).read_text(encoding="utf-8"))
    parts = [source[split] for source in manifest["sources"] for split in ("train", "held_out")]
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return Measured(
        files=len(paths),
        bytes=sum(path.stat().st_size for path in paths),
        documents=sum(part["documents"] for part in parts),
        text_bytes=sum(part["bytes"] for part in parts),
        tokens=sum(part["tokens"] for part in parts),
        vocabulary=manifest["tokenizer"]["vocabulary"],
        sources={source["name"]: source["licence"] for source in manifest["sources"]},
    )


class Part(BaseModel):
    """The tokens [start, end) of a row, which are of this document."""

    document: str
    start: int
    end: int


class SeenRow(BaseModel):
    """Row `row` of a step's batch, which is row `number` of its source's training tokens; both count from 0."""

    row: int
    source: str
    licence: str
    number: int
    documents: list[Part]
    text: str
    tokens: list[int]


class SeenStep(BaseModel):
    """The rows that a step read, some or all of the `batch`."""

    step: int
    batch: int
    sequence_length: int
    rows: list[SeenRow]


class Passage(BaseModel):
    """A place in a document that has the text, or `share` of it. `steps` are those that read it, counted from 1."""

    source: str
    licence: str
    document: str
    share: float
    steps: list[int]


class SeenText(BaseModel):
    """Where a text of `tokens` was found: the first passages and the number of all; or else those nearest to it.

    `searched` tokens of the `held` ones were looked at, and the steps are those after `begun` up to `done`.
    """

    tokens: int
    found: int
    passages: list[Passage]
    searched: int
    held: int
    begun: int
    done: int


class Event(StrEnum):
    """The values of `event` in the lines of `events.jsonl`.

    STARTED, then any of PROGRESS (a stage of the set-up or of the run begins), WARNING, SPIKE, OVERFLOW (a step in fp16
    was skipped), EVALUATION, CHECKPOINT and RESULT (all `results` of a checkpoint that `eval` has evaluated), then one
    of FINISHED, STOPPED and FAILED.
    """

    STARTED = "started"
    PROGRESS = "progress"
    WARNING = "warning"
    SPIKE = "spike"
    OVERFLOW = "overflow"
    EVALUATION = "evaluation"
    CHECKPOINT = "checkpoint"
    RESULT = "result"
    FINISHED = "finished"
    STOPPED = "stopped"
    FAILED = "failed"


COMMIT_VARIABLE = "STOA_COMMIT"
"""The environment variable that says which git commit the code is of, where it runs in no checkout."""

# In the folder of a run.
CONFIG_FILE = "config.yml"
"""The configuration with every default spelt out."""
METRICS_FILE = "metrics.jsonl"
"""One JSON object a logged step."""
EVENTS_FILE = "events.jsonl"
"""One JSON object an event."""
OUTCOME_FILE = "outcome.json"
"""How the run ended, an `Outcome`; written last."""
LOG_FILE = "trainer.log"
"""Standard output and standard error. Whoever starts the trainer writes it; the trainer does not."""
SAMPLE_FILE = "sample.json"
"""The text that `generate` wrote, or the results of a program in words."""
PICTURES_FOLDER = "pictures"
"""The pictures of a program that are small enough to be shown, `1.png` and so on."""
WORK_FOLDER = "work"
"""What a program writes."""
RESULTS_FOLDER = "results"
EVALUATION_SEEDS = {"random": 0, "numpy": 1234, "torch": 1234, "fewshot": 1234}
"""What lm-evaluation-harness is seeded with, by what it seeds."""
"""The results of `eval`, one file `step{N}.json` a checkpoint."""
RESULTS_FILE = "results.json"
"""The results of `study`: the series of each analysis over the steps."""
RESULT_LINES_FILE = "results.jsonl"
"""One JSON object a checkpoint and analysis of `study`."""
DATA_MANIFEST_FILE = "manifest.json"
"""In a folder of prepared data: what it holds."""
DATA_FOLDER = "data"
"""The prepared data, unless the configuration names others."""
CHECKPOINTS_FOLDER = "checkpoints"
"""One folder `step{N}` a checkpoint. A folder with that name is whole."""

STEP_REVISION = re.compile(r"step([0-9]{1,12})", re.ASCII)
"""All of a revision of a model that names a step."""
BASE_PREFIX = "base-"
"""The folder of a model that was fetched from the Hub is this and the revision."""

# In the folder of a checkpoint.
CHECKPOINT_METADATA_FILE = "how.json"
"""How the checkpoint was made: step, configuration, data, versions, and the hashes of its other files."""
PROBE_FILE = "probe.safetensors"
"""A few held-out tokens with the logits that the trainer computed for them."""
ORDER_FILE = "order.safetensors"
"""The rows that each step since the checkpoint before read."""
TRAINER_FOLDER = "trainer"
"""What only the trainer needs: Adam's moments."""


def checkpoint_folder(out: Path, step: int) -> Path:
    """The folder of the checkpoint of `step` in the run folder `out`."""
    return out / CHECKPOINTS_FOLDER / f"step{step}"


def checkpoint_step(folder: Path) -> int | None:
    """The step of a checkpoint's folder by its name; None where the name is not that of a whole checkpoint."""
    digits = folder.name.removeprefix("step")
    return int(digits) if folder.name.startswith("step") and digits.isascii() and digits.isdecimal() else None


def revision_step(revision: str) -> int:
    """The step that a revision of a model names, such as 1000 of `step1000`; 0 where it is not exactly such a name."""
    found = STEP_REVISION.fullmatch(revision)
    return int(found[1]) if found else 0


def checkpoints(out: Path) -> list[Path]:
    """The folders of the whole checkpoints in the run folder `out`, in the order of steps."""
    found = {checkpoint_step(path): path for path in (out / CHECKPOINTS_FOLDER).glob("step*")}
    return [path for step, path in sorted((step, path) for step, path in found.items() if step is not None)]
