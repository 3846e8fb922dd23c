"""Runs with models made by hand: 26 words, a tokenizer and data of these, and checkpoints with given weights."""

import json
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from torch import Tensor

from trainer.checkpoint import save_load
from trainer.config import TrainConfig
from trainer.contract import checkpoint_folder
from trainer.data.prepare import prepare
from trainer.evaluation.open_checkpoint import OpenCheckpoint, open_checkpoint
from trainer.model.transformer import shapes
from trainer.study import results, run, selection
from trainer.study.analysis import Analysis, Study
from trainer.study.shelf import Shelf

WORDS = [chr(ord("a") + number) for number in range(26)]
ROWS = 320
"""Of the embedding; the tokenizer has 27 tokens."""

Weights = Mapping[str, Tensor]


def tokenizer(words: list[str] = WORDS) -> Tokenizer:
    """A token for each word, after that for the end of a document."""
    made = Tokenizer(models.WordLevel({"<|endoftext|>": 0} | {word: 1 + at for at, word in enumerate(words)}))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.add_special_tokens([AddedToken("<|endoftext|>", special=True)])
    return made


def config(folder: Path, **model: Any) -> TrainConfig:
    """A configuration whose data lie in `folder`, of two sources with weights 1 and 3."""
    settings: dict[str, Any] = {
        "model": {"layers": 2, "hidden_size": 32, "heads": 2, "vocabulary": ROWS, **model},
        "data": {
            "sequence_length": 16,
            "held_out": 0.2,
            "root": str(folder),
            "tokenizer": {"vocabulary": ROWS, "file": "words/tokenizer.json"},
            "sources": [
                {"name": name, "path": f"{name}.jsonl", "weight": weight, "licence": "CC0-1.0"}
                for name, weight in (("one", 1), ("two", 3))
            ],
        },
        "optimizer": {"learning_rate": 0.01},
        "training": {"steps": 8, "batch": 4, "micro_batch": 4, "evaluation_tokens": 256, "evaluate_every": 8},
    }
    return TrainConfig.model_validate(settings)


def write_data(folder: Path, words: list[str] = WORDS) -> None:
    """The texts of both sources, random words by a chain that prefers some pairs, and the data of a run, prepared with
    a tokenizer of `words`."""
    draw = random.Random(0)
    for name in ("one", "two"):
        documents = []
        for _ in range(60):
            said = [draw.choice(WORDS)]
            for _ in range(30):
                near = (WORDS.index(said[-1]) * 7 + 3) % 26
                said.append(WORDS[near] if draw.random() < 0.6 else draw.choice(WORDS[:13]))
            documents.append({"text": " ".join(said)})
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(document) + "\n" for document in documents))
    (folder / "words").mkdir()
    (folder / "words" / "tokenizer.json").write_text(tokenizer(words).to_str())
    prepare(config(folder).data, folder / "data", None, lambda message: None)


def zeros(config: TrainConfig) -> dict[str, Tensor]:
    """Weights of a model whose blocks add nothing: all 0, but those of norms 1."""
    whole = shapes(config.model, config.vocabulary, config.context)
    return {name: torch.full(shape, float("norm." in name and "weight" in name)) for name, shape in whole.items()}


def drawn(config: TrainConfig, seed: int = 0) -> dict[str, Tensor]:
    """Random weights, large enough that each shows."""
    generator = torch.Generator().manual_seed(seed)
    whole = shapes(config.model, config.vocabulary, config.context)
    return {
        name: (1.0 if "norm." in name else 0.0) + 0.3 * torch.randn(shape, generator=generator)
        for name, shape in whole.items()
    }


def bigram(config: TrainConfig, after: Callable[[int], Mapping[int, float]]) -> dict[str, Tensor]:
    """Weights of a model whose next token is drawn by `after(token)`, the probabilities of the tokens that may follow;
    it has RMSNorm."""
    assert config.model.norm == "rmsnorm"
    size = config.model.hidden_size
    weights = zeros(config)
    # A token is a direction of its own, which the norm makes as long as the root of the size.
    weights["embed.tokens.weight"][:size] = 1e4 * torch.eye(size)
    weights["head.weight"].fill_(-1e4)
    for token in range(27):
        for following, share in after(token).items():
            weights["head.weight"][following, token] = torch.tensor(share).log() / size**0.5
    return weights


def write_checkpoint(out: Path, config: TrainConfig, step: int, weights: Weights, words: Path | None = None) -> Path:
    """The checkpoint of a step in the folder of a run."""
    folder = checkpoint_folder(out, step)
    folder.mkdir(parents=True)
    family = save_load.family(config)
    exported = (pair for name, weight in weights.items() for pair in family.export(name, weight).items())
    save_load.write_tensors(folder, save_load.WEIGHTS, exported)
    tokens = {"tokens": step * config.tokens_per_step}
    save_load.write_description(config, folder, step, tokens, words or Path(config.data.root or "") / "words")
    return folder


def opened(folder: Path, config: TrainConfig, weights: Weights) -> OpenCheckpoint:
    """A checkpoint of these weights, written into `folder` and opened."""
    return open_checkpoint(write_checkpoint(folder, config, 1, weights))


def study_of(folder: Path, out: Path) -> Study:
    """What an analysis may use of a run whose data are in its folder, with a shelf in `out`."""
    return Study(checkpoint_folder(folder, 0), folder / "data", Shelf(out / "kept"))


def measured(analysis: Analysis, checkpoint: OpenCheckpoint, study: Study) -> dict[str, Any]:
    """The values of a checkpoint."""
    return dict(analysis.measure(checkpoint, study))


def run_of(place: Path, analyses: Mapping[str, Analysis], data: Path) -> list[dict[str, Any]]:
    """The values of an analysis for each checkpoint of a run, as its study writes them."""
    run.run(selection.choose([place], None), analyses, data, place)
    return [dict(result.values) for result in results.read(place)]
