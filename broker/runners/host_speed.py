"""The speed of this host's GPUs, measured once for each of their names and version of torch, and kept in its home."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import structlog

from broker.runners.base import PASSED_ON

SPEEDS_FILE = "gpu-speeds.json"
LONGEST_SECONDS = 600.0

log = structlog.get_logger()


def kept(home: Path, gpus: Sequence[Mapping[str, Any]], torch: str) -> Mapping[str, Any] | None:
    """The speeds by name that were measured on these GPUs with this version of torch; None where they were not."""
    try:
        known = json.loads((home / SPEEDS_FILE).read_bytes())
        return dict(known["speeds"]) if known["measured_on"] == _measured_on(gpus, torch) else None
    except (OSError, ValueError, LookupError, TypeError):
        return None


def measure(home: Path, gpus: Sequence[Mapping[str, Any]], torch: str) -> Mapping[str, Any]:
    """Measure the speeds in a process of their own and keep them; empty where that fails, which is logged."""
    environment = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    command = [sys.executable, "-m", "trainer.speed"]
    try:
        done = subprocess.run(
            command, env=environment, cwd=home, capture_output=True, timeout=LONGEST_SECONDS, check=True
        )
        speeds = dict(json.loads(done.stdout))
        (home / SPEEDS_FILE).write_text(json.dumps({"measured_on": _measured_on(gpus, torch), "speeds": speeds}))
    except (OSError, ValueError, TypeError, subprocess.SubprocessError) as error:
        said = (getattr(error, "stderr", None) or b"").decode(errors="replace").strip().splitlines()
        log.warning("the speed of the GPUs could not be measured", error=str(error), said=said[-1:])
        return {}
    return speeds


def told(gpus: Sequence[Mapping[str, Any]], speeds: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The GPUs, each with the `precision` and `tflops` that were measured for its name.

    A driver may call a GPU by another name than torch does: where all are of one kind, it is the same one.
    """
    alike = next(iter(speeds.values())) if len(speeds) == 1 and len({gpu["name"] for gpu in gpus}) == 1 else {}
    return [dict(gpu) | speeds.get(gpu["name"], alike) for gpu in gpus]


def _measured_on(gpus: Sequence[Mapping[str, Any]], torch: str) -> list[str]:
    return [torch, *sorted({str(gpu["name"]) for gpu in gpus})]
