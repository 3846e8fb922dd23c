"""Small corpora under the names of those that the built-in recipes train on, and the GPUs that each recipe needs."""

import json
from pathlib import Path

from trainer.config import load_recipe, recipe_names

TEXT = "The frog sat on the log and thought about the fog.\n" * 40
GPUS = {"comma-7b": 2, "gpt-j-6b": 2, "pythia-6.9b": 2, "pythia-12b": 4, "gpt-neox-20b": 8}


def stand_ins(folder: Path) -> dict[str, Path]:
    """A small JSONL file for each corpus that the built-in recipes name."""
    sources = [source for name in recipe_names() for source in load_recipe(name).data.sources]
    found = {}
    for name in sorted({source.corpus for source in sources if source.corpus}):
        found[name] = folder / f"{name}.jsonl"
        found[name].write_text("".join(json.dumps({"text": f"{name} {n}: {TEXT}"}) + "\n" for n in range(12)))
    return found


def gpus_for(recipe: str) -> int:
    """How many H100s hold a run of the recipe."""
    return GPUS.get(recipe.removesuffix("-deduped"), 1)
