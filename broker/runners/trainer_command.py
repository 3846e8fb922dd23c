"""The command line of the trainer of an attempt."""

import sys

from broker.runs.kinds.kind import Start, kind_of


def trainer_command(start: Start) -> list[str]:
    """The command line on each node of an attempt, by the kind of its run.

    Writes the configuration that it names. Raises OSError where a file that it needs is missing or cannot be written.
    """
    return [sys.executable, "-m", "trainer", *kind_of(start.run).command(start)]
