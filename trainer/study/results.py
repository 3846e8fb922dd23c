"""`results.jsonl`, the numbers of a study: one line for each checkpoint and analysis, written whole. Imports no
torch."""

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from trainer.contract import RESULT_LINES_FILE
from trainer.files import append_json_line, write_atomically
from trainer.schema import ConfigError

KEPT_FOLDER = "kept"
"""What analyses keep in the folder of a study, a folder each."""


def _short(value: Any) -> Any:
    """A number with seven digits, which is what fp32 holds, or None where it is not finite; lists and dictionaries with
    such numbers."""
    match value:
        case float():
            return float(f"{value:.7g}") if math.isfinite(value) else None
        case list() | tuple():
            return [_short(part) for part in value]
        case dict():
            return {key: _short(part) for key, part in value.items()}
    return value


Number = int | float | None
Value = Number | Sequence[Number] | Sequence[Sequence[Number]] | Mapping[str, Number] | Mapping[str, Sequence[Number]]
Values = Mapping[str, Value]
"""Numbers by their names; lists are by layer, or by layer and head, and dictionaries by source, matrix or group. What
is not known or not finite is None."""


class Result(BaseModel):
    """A line: the values of an analysis for the checkpoint of `step`, which had seen `tokens`.

    `version` and `settings` are the analysis's; the settings hold the digests of what it reads beside the checkpoint.
    `weights` is the digest of the checkpoint's weights, `seconds` what the analysis took.
    """

    model_config = ConfigDict(allow_inf_nan=False)

    step: int
    tokens: int | None
    analysis: str
    version: int
    settings: dict[str, Any]
    weights: str
    seconds: float
    values: Annotated[Values, BeforeValidator(_short)]


def read(out: Path) -> list[Result]:
    """The lines in the folder `out`, none where it has none. A last line that a kill cut short is removed. Raises
    ConfigError for a file that holds something else."""
    path = out / RESULT_LINES_FILE
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):
        write_atomically(path, "".join(lines[:-1]))
        lines.pop()
    found = []
    for number, line in enumerate(lines, 1):
        try:
            found.append(Result.model_validate_json(line))
        except ValidationError:
            raise ConfigError(
                f"{path} holds no result in line {number}; give --out another folder, or remove that line."
            ) from None
    return found


def take_over(out: Path, earlier: Path) -> None:
    """Begin the folder `out` with the results and what the analyses kept of the folder of an earlier study, which is
    only read; nothing is done where `out` has results already. Raises ConfigError if there is no such folder."""
    if not earlier.is_dir():
        raise ConfigError(f"--resume {earlier} is no folder; give that of an earlier attempt at this study.")
    if (out / RESULT_LINES_FILE).exists():
        return
    for path in (earlier / KEPT_FOLDER).glob("*/[!.]*"):
        copy = out / path.relative_to(earlier)
        copy.parent.mkdir(parents=True, exist_ok=True)
        temporary = copy.with_name(f".{copy.name}.writing")
        shutil.copyfile(path, temporary)
        temporary.replace(copy)
    if (earlier / RESULT_LINES_FILE).exists():
        written = (earlier / RESULT_LINES_FILE).read_text(encoding="utf-8", errors="replace")
        write_atomically(out / RESULT_LINES_FILE, written)


def append(out: Path, result: Result) -> None:
    """Append a line in the folder `out`. Raises OSError."""
    append_json_line(out / RESULT_LINES_FILE, json.loads(result.model_dump_json()))
