"""Stands before the real trainer on a chaos story's path: some runs only sleep, all others are the real trainer's."""

from pathlib import Path

REAL = Path(__file__).parents[4] / "trainer"
__path__.append(str(REAL))
