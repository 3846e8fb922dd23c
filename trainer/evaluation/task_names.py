"""The names of the tasks, groups and tags of lm-evaluation-harness: it takes 15 seconds to read its files itself.

`python -m trainer.evaluation.task_names` rewrites the list after an upgrade of the harness. Imports nothing of it.
"""

import difflib
import re
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

LIST = Path(__file__).with_suffix(".txt")
HELDOUT = "heldout"
"""Our own group: bits per byte on the held-out documents of each source, which are tasks named `heldout_SOURCE`."""

OFTEN = (HELDOUT, "lambada_openai", "piqa", "winogrande", "arc_easy", "arc_challenge", "sciq", "logiqa", "wsc")
"""What is suggested first: ours, and the tasks that Pythia's models were evaluated on (Biderman et al. 2023)."""


@cache
def of_harness() -> frozenset[str]:
    """All names that the harness knows."""
    return frozenset(LIST.read_text().splitlines())


def is_known(name: str) -> bool:
    """Whether there is a task of this name, of the harness or, as far as one can tell without the data, of ours."""
    return name in of_harness() or re.fullmatch(rf"{HELDOUT}(_[\w.+-]{{1,80}})?", name, re.ASCII) is not None


def nearest(name: str, known: Iterable[str] = ()) -> Sequence[str]:
    """Up to three names that are like this one, of the harness, of ours, and of others that are `known`."""
    return difflib.get_close_matches(name, {HELDOUT, *known, *of_harness()}, n=3, cutoff=0.6)


def containing(part: str, most: int) -> Sequence[str]:
    """Up to `most` names that contain some letters: those of `OFTEN`, what begins with the letters, others."""
    part = part.lower()
    others = [name for name in of_harness().difference(OFTEN) if part in name.lower()]
    others.sort(key=lambda name: (not name.lower().startswith(part), len(name), name))
    return [*(name for name in OFTEN if part in name), *others][:most]


def read_from_harness() -> Sequence[str]:
    """The names as the harness finds them, in alphabetical order; takes 15 seconds."""
    from lm_eval.tasks import TaskManager

    return sorted(TaskManager().all_tasks)


if __name__ == "__main__":
    LIST.write_text("\n".join(read_from_harness()) + "\n")
