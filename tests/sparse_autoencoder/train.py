"""Trains a sparse autoencoder on the last layer of a checkpoint, with EleutherAI's `sparsify`."""

import argparse
import json
import os
from pathlib import Path

import torch
from datasets import Dataset
from sparsify import SaeConfig, SaeTrainer, TrainConfig  # type: ignore[import-not-found]
from sparsify.data import chunk_and_tokenize  # type: ignore[import-not-found]
from transformers import AutoModel, AutoTokenizer

parser = argparse.ArgumentParser()
parser.add_argument("checkpoint")
for name in ("latents", "k", "batch", "context"):
    parser.add_argument(f"--{name}", type=int)
asked = parser.parse_args()
out = Path(os.environ["OUT"])

model = AutoModel.from_pretrained(asked.checkpoint, dtype=torch.float32)
tokenizer = AutoTokenizer.from_pretrained(asked.checkpoint)
text = (Path(__file__).parent / "text.txt").read_text()
parts = [text[start : start + 2000] for start in range(0, len(text), 2000)]
data = chunk_and_tokenize(Dataset.from_dict({"text": parts}), tokenizer, max_seq_len=asked.context, num_proc=1)
trainer = SaeTrainer(
    TrainConfig(
        SaeConfig(num_latents=asked.latents, k=asked.k),
        batch_size=asked.batch,
        layers=[model.config.num_hidden_layers - 1],
        log_to_wandb=False,
        save_dir=str(out),
        run_name="sae",
    ),
    data,
    model,
)
[(layer, sae)] = trainer.saes.items()
unexplained: list[float] = []
with (out / "metrics.jsonl").open("w", buffering=1) as metrics:

    def tell(module: torch.nn.Module, inputs: object, output: object) -> None:
        unexplained.append(output.fvu.item())  # type: ignore[attr-defined]
        metrics.write(json.dumps({"step": len(unexplained), "unexplained": unexplained[-1]}) + "\n")

    sae.register_forward_hook(tell)
    trainer.fit()
first, last = unexplained[0], unexplained[-1]
(out / "results.json").write_text(json.dumps({"layer": layer, "unexplained": last, "at first": first}))
