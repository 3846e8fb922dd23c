"""`events.jsonl`: what happens to a run beside its metrics, one JSON object an event. Imports no torch."""

import time
from pathlib import Path
from typing import Any

from trainer.contract import EVENTS_FILE, Event
from trainer.files import append_json_line


def append_event(out: Path, event: Event, **fields: Any) -> None:
    """Append an event with the present time (seconds since 1970) to the run folder `out`. Raises OSError."""
    append_json_line(out / EVENTS_FILE, {"time": time.time(), "event": event, **fields})
