"""A trainer that keeps the contract but sleeps, for runs with one seed; any other run is the real trainer's."""

import json
import os
import runpy
import signal
import struct
import sys
import time
from contextlib import suppress
from pathlib import Path

import yaml

from trainer import REAL  # type: ignore[attr-defined]  # here `trainer` is this folder's package
from trainer.contract import (
    CHECKPOINT_METADATA_FILE,
    OUTCOME_FILE,
    SAMPLE_FILE,
    Event,
    Outcome,
    Status,
    checkpoint_folder,
)
from trainer.events import append_event
from trainer.files import write_atomically
from trainer.metrics import append_metrics

SEED = 424242
STEP_SECONDS = 0.2
KEPT_EVERY = 12
TOKENS_PER_STEP = 64

stopped = False


def stop(*_: object) -> None:
    """Note the wish for a checkpoint and an end."""
    global stopped
    stopped = True


def checkpoint(out: Path, step: int) -> None:
    """Write a whole checkpoint, which has its name only when it is whole, and tell of it."""
    final = checkpoint_folder(out, step)
    if final.exists():
        return
    draft = final.with_name(f".step{step}.{os.getpid()}")
    draft.mkdir(parents=True)
    header = json.dumps({"step": {"dtype": "U8", "shape": [8], "data_offsets": [0, 8]}}).encode()
    (draft / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + struct.pack("<Q", step))
    (draft / CHECKPOINT_METADATA_FILE).write_text(json.dumps({"standin": True, "data": {"sources": []}}))
    (draft / "config.json").write_text(json.dumps({"padding": "." * 20_000}))
    draft.rename(final)
    append_event(out, Event.CHECKPOINT, step=step, path=f"checkpoints/step{step}")


def train(config: dict[str, dict[str, int]], out: Path, resume: str | None) -> Outcome:
    """Sleep through the steps."""
    steps = config["training"]["steps"]
    step = int(Path(resume).name.removeprefix("step")) if resume else 0
    append_event(out, Event.STARTED, step=step, steps=steps, ranks=1)
    if not resume:
        checkpoint(out, 0)
    while step < steps and not stopped:
        time.sleep(STEP_SECONDS)
        step += 1
        tokens = step * TOKENS_PER_STEP
        rate = TOKENS_PER_STEP / STEP_SECONDS
        append_metrics(
            out, step=step, tokens=tokens, loss=8 / (1 + step), lr=0.1, grad_norm=1.0, tokens_per_second=rate
        )
        if step % KEPT_EVERY == 0:
            checkpoint(out, step)
    checkpoint(out, step)
    if step < steps:
        return Outcome(status=Status.STOPPED, reason="it was asked to stop", step=step)
    return Outcome(status=Status.DONE, step=step)


def main() -> None:
    """Train or sample as the contract has it."""
    command, subject = sys.argv[1], Path(sys.argv[2])
    given = dict(zip(sys.argv[3::2], sys.argv[4::2], strict=False))
    out = Path(sys.argv[sys.argv.index("--out") + 1])
    signal.signal(signal.SIGTERM, stop)
    try:
        if command == "train":
            outcome = train(yaml.safe_load(subject.read_text()), out, given.get("--resume"))
        else:
            time.sleep(1)
            (out / SAMPLE_FILE).write_text(json.dumps({"text": "The end."}))
            outcome = Outcome(status=Status.DONE)
    except OSError as error:
        outcome = Outcome(status=Status.FAILED, reason=f"It could not write: {error.strerror}.", transient=True)
    with suppress(OSError):
        write_atomically(out / OUTCOME_FILE, outcome.model_dump_json() + "\n")
    sys.exit(outcome.status)


def is_ours() -> bool:
    """Whether the run is one of those that only sleep."""
    if sys.argv[1:2] == ["train"]:
        config = yaml.safe_load(Path(sys.argv[2]).read_text())
        return bool(config["training"]["seed"] == SEED)
    if sys.argv[1:2] == ["generate"]:
        return "standin" in json.loads((Path(sys.argv[2]) / CHECKPOINT_METADATA_FILE).read_text())
    return False


if is_ours():
    main()
else:
    runpy.run_path(str(REAL / "__main__.py"), run_name="__main__")
