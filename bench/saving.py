"""How long a checkpoint of Pythia-70m takes, in seconds: the median of three, each into a fresh folder."""

import statistics
import tempfile
import time
from pathlib import Path

import torch

from bench.shapes import CPU
from bench.side import RATE, tokens
from trainer.checkpoint import save_load
from trainer.config import load_recipe
from trainer.data import tokenizer
from trainer.distributed.parallel_dims import ParallelDims
from trainer.engine.local import LocalEngine


def main() -> None:
    shape = CPU["70m"]
    sizes = {"batch": str(shape.batch), "micro_batch": str(shape.batch), "sequence_length": str(shape.length)}
    config = load_recipe(shape.recipe, sizes)
    config = config.model_copy(update={"training": config.training.model_copy(update={"compile": False})})
    engine = LocalEngine(config, ParallelDims(0, 1, torch.device("cpu")))
    engine.load(save_load.fresh(config), 0)
    rows = tokens(config, shape, torch.device("cpu"), steps=1)[0]
    engine.step([rows], RATE)
    seconds = []
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save(tokenizer.train(["a text of no weight"], 320), Path(folder), config.context)
        for step in (1, 2, 3):
            began = time.perf_counter()
            out, probe = Path(folder) / "run", rows[:, :16].contiguous()
            save_load.save(config, out, step, engine, probe, True, {"tokens": 0}, Path(folder), lambda folder: None)
            seconds.append(time.perf_counter() - began)
    print(statistics.median(seconds))


if __name__ == "__main__":
    main()
