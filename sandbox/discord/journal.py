"""What passed over the wire, a JSON line each: `exchanges.jsonl` for REST, `dispatches.jsonl` for the gateway.

Neither holds a secret: authorization headers are not written, interaction tokens are struck out.
"""

import json
from pathlib import Path
from typing import Any, TextIO

from sandbox.discord.errors import Json

STRUCK = "-"


class Journal:
    def __init__(self, root: Path) -> None:
        self._exchanges = self._open(root / "exchanges.jsonl")
        self._dispatches = self._open(root / "dispatches.jsonl")

    @staticmethod
    def _open(path: Path) -> TextIO:
        return path.open("a", encoding="utf-8", buffering=1)

    def exchange(self, entry: Json) -> None:
        self._exchanges.write(json.dumps(entry) + "\n")

    def dispatch(self, name: str, data: Json) -> None:
        secret: dict[str, Any] = {key: STRUCK for key in ("token", "session_id") if key in data}
        self._dispatches.write(json.dumps({"op": 0, "t": name, "d": data | secret}) + "\n")

    def close(self) -> None:
        self._exchanges.close()
        self._dispatches.close()
