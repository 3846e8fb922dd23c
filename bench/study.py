"""What it takes to evaluate and analyse many checkpoints: `make bench-study`.

Two tasks and two analyses on checkpoints of a model of Pythia-14m's shape: by `python -m trainer eval` and `study`, one
process each for all checkpoints, and in the plain way, a fresh process a checkpoint with transformers and
lm-evaluation-harness's own model (`bench.plain_study`). Both must find the same. The last line is one JSON object of
values and goals; the status is 1 where a goal is missed.
"""

import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from bench.goals import Goal, as_json

NAMES = ("local_choice", "local_text")
ROWS = 8
"""The batch size of the plain way."""
QUESTIONS, TEXTS, LONGEST = 64, 16, 1_500
LEAST_RATIO = 2.0
ROOT = Path(__file__).parents[1]


def main(
    checkpoints: Annotated[int, typer.Option(min=2, help="Checkpoints of the run.")] = 20,
    small: Annotated[bool, typer.Option(help="A model of a few thousand parameters, as the tests have.")] = False,
) -> None:
    """Time both sides in one run, and hold their ratio against the goal."""
    console = Console(stderr=True)
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        folders = write_run(home / "run", checkpoints, small=small)
        write_tasks(home / "tasks", home / "run")
        began = time.monotonic()
        ours = by_trainer(home, folders)
        trainer_seconds = time.monotonic() - began
        began = time.monotonic()
        plain = [
            json.loads(run("bench.plain_study", folder, folders[0], home / "tasks").splitlines()[-1])
            for folder in track(folders, "the plain way", console=console)
        ]
        plain_seconds = time.monotonic() - began
    apart = max(
        abs(one[key] - other[key]) / max(1.0, abs(other[key]))
        for one, other in zip(ours, plain, strict=True)
        for key in one
    )
    ratio = plain_seconds / trainer_seconds
    table = Table("", "seconds", "a checkpoint", title=f"{checkpoints} checkpoints")
    for side, seconds in (("the trainer", trainer_seconds), ("the plain way", plain_seconds)):
        table.add_row(side, f"{seconds:.1f}", f"{seconds / checkpoints:.2f}")
    console.print(table)
    goals = [
        Goal(f"{checkpoints} checkpoints, the plain way by the trainer", round(ratio, 2), least=LEAST_RATIO),
        Goal("results apart", apart, most=1e-3),
    ]
    print(as_json(goals))
    raise SystemExit(any(goal.missed for goal in goals))


def by_trainer(home: Path, folders: Sequence[Path]) -> list[dict[str, float]]:
    """What the trainer's two commands measure of each checkpoint."""
    options = ("--tasks", ",".join(NAMES), "--include-path", home / "tasks", "--out", home / "evaluated")
    (home / "evaluated").mkdir()
    run("trainer", "eval", *folders, *options)
    run("trainer", "study", *folders, "--analyses", "weights,paired_prompts", "--out", home / "studied")
    studied = [json.loads(line) for line in (home / "studied" / "results.jsonl").read_text().splitlines()]
    found = []
    for folder in folders:
        said = json.loads((home / "evaluated" / "results" / f"{folder.name}.json").read_text())["results"]
        numbers = {f"{task} {key}": value for task, each in said.items() for key, value in each.items()}
        known = {key: value for key, value in numbers.items() if isinstance(value, float) and math.isfinite(value)}
        step = int(folder.name.removeprefix("step"))
        for line in studied:
            if line["step"] == step:
                wanted = ("norm", "distance") if line["analysis"] == "weights" else ("preferred",)
                known |= {key: line["values"][key] for key in wanted}
        found.append(known)
    return found


def run(module: str, *arguments: object) -> str:
    """What a module of this repository prints; raises CalledProcessError, with its errors shown, where it fails."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, check=False)
    if done.returncode:
        sys.stderr.write(done.stderr)
    done.check_returncode()
    return done.stdout


def write_run(folder: Path, checkpoints: int, *, small: bool) -> list[Path]:
    """Checkpoints of random weights, each with others, and the run's prepared data. Nothing is trained."""
    from trainer.checkpoint import save_load
    from trainer.config import RECIPES, load
    from trainer.data.prepare import prepare
    from trainer.model.transformer import shapes

    config = load(RECIPES / "demo.yml")
    shape = config if small else load(RECIPES / "pythia-14m.yml")
    narrow = {"layers": 1, "hidden_size": 32, "heads": 2} if small else {}
    config = config.model_copy(update={"model": shape.model.model_copy(update=narrow | {"context": 512})})
    prepare(config.data, folder / "data", None, lambda message: None)
    made = []
    for number in range(checkpoints):
        seeded = config.model_copy(update={"training": config.training.model_copy(update={"seed": number})})
        read, family = save_load.fresh(seeded), save_load.family(seeded)
        names = shapes(config.model, config.vocabulary, config.context)
        exported = (pair for name in names for pair in family.export(name, read("weight", name)).items())
        target = folder / "checkpoints" / f"step{number}"
        target.mkdir(parents=True)
        save_load.write_tensors(target, save_load.WEIGHTS, exported)
        save_load.write_description(seeded, target, number, {}, folder / "data")
        made.append(target)
    return made


def write_tasks(folder: Path, run_folder: Path) -> None:
    """Two tasks on texts that the run has kept out of its training: questions with choices, and whole texts."""
    from trainer.data.held_out_texts import documents
    from trainer.data.prepare import manifest_of

    sources = manifest_of(run_folder / "data")["sources"]
    texts = [text for source in sources for text in documents(run_folder / "data", source["name"])]
    cut = [(text * 2)[:LONGEST] for text in texts if len(text) > 100]
    folder.mkdir()
    lines = [{"text": text, "question": text[:200], "choices": [text[200:230], text[300:330]]} for text in cut]
    for name, count, kind in (
        (
            "local_choice",
            QUESTIONS,
            {
                "output_type": "multiple_choice",
                "doc_to_text": "{{question}}",
                "doc_to_choice": "{{choices}}",
                "doc_to_target": 0,
            },
        ),
        ("local_text", TEXTS, {"output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{text}}"}),
    ):
        data = folder / f"{name}.jsonl"
        chosen = [lines[number % len(lines)] for number in range(count)]
        data.write_text("".join(json.dumps(line) + "\n" for line in chosen))
        source = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(data)}}, "test_split": "test"}
        (folder / f"{name}.yaml").write_text(json.dumps({"task": name, **source, **kind}))


if __name__ == "__main__":
    typer.run(main)
