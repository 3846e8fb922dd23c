"""The commands that use a checkpoint: eval, score, generate. They import torch and the harness when they are run."""

import contextlib
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from trainer.contract import CONFIG_FILE, Outcome, Status
from trainer.exits import finish, interruptible, one_sentence, outcome_of
from trainer.folder_lock import locked
from trainer.progress import bars
from trainer.schema import ConfigError

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

Checkpoint = Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="A step folder.")]


@app.command("eval")
def evaluate(
    folders: Annotated[
        list[Path],
        typer.Argument(metavar="CHECKPOINT…", help="Step folders or models of transformers, each by itself."),
    ],
    tasks: Annotated[
        str,
        typer.Option(help="Names of lm-evaluation-harness, with commas; heldout: bits per byte of each source."),
    ],
    data: Annotated[Path | None, typer.Option(help="The prepared data for heldout; without it, the run's.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, max=10**9, help="Documents of each task, for a trial.")] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, max=65_536, help="Sequences at once; without it, by length.")
    ] = None,
    include_path: Annotated[Path | None, typer.Option(help="A folder with task files of your own.")] = None,
    num_fewshot: Annotated[int | None, typer.Option(min=0, max=1_000, help="Examples before each question.")] = None,
    out: Annotated[Path | None, typer.Option(help="A folder for results/step{N}.json.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON, not tables.")] = False,
) -> None:
    """Evaluate checkpoints with lm-evaluation-harness, one after the other."""
    names = [name.strip() for name in tasks.split(",") if name.strip()]

    def work() -> int:
        """Evaluate all checkpoints; the step of the last one."""
        if not names:
            raise ConfigError("--tasks names no task; give names with commas between, such as heldout.")
        from trainer.evaluation import evaluate as lm_eval

        settings = lm_eval.Settings(limit=limit, shots=num_fewshot, rows=batch_size, include=include_path)
        step = 0
        with bars() as advance:
            for results in lm_eval.evaluate_each(folders, names, data, settings, advance):
                step = results["checkpoint"]["step"]
                if out is not None:
                    lm_eval.save(results, out)
                if json:
                    print(lm_eval.as_json(results), end="", flush=True)
                else:
                    Console().print(lm_eval.as_table(results))
        return step

    with one_sentence(), contextlib.ExitStack() as stack:
        if out is None:
            work()
            return
        of_training = (out / CONFIG_FILE).exists()  # the outcome of a training run stays
        stack.enter_context(locked(out, removes_outcome=not of_training))
        try:
            with interruptible():
                outcome = Outcome(status=Status.DONE, step=work())
        except (Exception, KeyboardInterrupt) as error:
            outcome = outcome_of(error)
        finish(out, outcome, writes=not of_training)


@app.command()
def score(
    folder: Checkpoint,
    text: Annotated[Path, typer.Option(help="The text, UTF-8; - reads the standard input.")],
    stride: Annotated[
        int | None,
        typer.Option(min=1, max=1_048_576, help="Tokens that each later window scores; without it, half of a window."),
    ] = None,
) -> None:
    """Print how likely a text is: {"tokens", "bytes", "nll" in nats, "bits_per_byte"}.

    The first token follows the end of a document. A text longer than the model's window is read in windows that
    overlap: each token is scored once, after as many tokens as fit.
    """
    with one_sentence():
        from trainer.evaluation.open_checkpoint import open_checkpoint
        from trainer.evaluation.score import read_text
        from trainer.evaluation.score import score as score_text

        content = read_text(text)
        opened = open_checkpoint(folder)
        with bars() as advance:
            result = score_text(opened, content, stride, lambda share: advance("windows", share))
        print(result.model_dump_json())


@app.command()
def generate(
    folder: Checkpoint,
    prompt: Annotated[str, typer.Option(help="The text to continue.")],
    out: Annotated[Path, typer.Option(help="The folder to write.")],
    max_tokens: Annotated[int, typer.Option(min=1, max=100_000)] = 100,
    temperature: Annotated[float, typer.Option(min=0.0, max=100.0, help="0 takes the likeliest token.")] = 0.8,
    top_k: Annotated[int | None, typer.Option(min=1, max=1_048_576, help="Draw from the K likeliest tokens.")] = None,
    top_p: Annotated[float, typer.Option(min=1e-6, max=1.0, help="Draw from the likeliest that hold P.")] = 1.0,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1)] = 0,
) -> None:
    """Sample a text from a checkpoint."""
    with one_sentence(), locked(out):
        try:
            with interruptible(), bars() as advance:
                from trainer.evaluation.generate import Sampling
                from trainer.evaluation.generate import generate as sample
                from trainer.evaluation.open_checkpoint import open_checkpoint

                opened = open_checkpoint(folder)
                drawn = Sampling(temperature, top_k, top_p)
                written = sample(
                    opened, prompt, out, max_tokens, drawn, seed, lambda n: advance("tokens", n / max_tokens)
                )
            print(written)
            outcome = Outcome(status=Status.DONE, step=opened.step)
        except (Exception, KeyboardInterrupt) as error:
            outcome = outcome_of(error)
        finish(out, outcome)
