"""The order of the data is a pure function of seed and step; held-out documents stay out."""

import json
from pathlib import Path

import numpy as np
import pytest

from trainer import sources, tokenizer
from trainer.config import TrainConfig
from trainer.data import Corpus, prepare
from trainer.order import Order

WEIGHTS = np.array([0.25, 0.75])


@pytest.fixture(scope="module")
def corpus(config: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    folder = tmp_path_factory.mktemp("data") / "data"
    prepare(config, folder, None, lambda message: None)
    return Corpus(config, folder)


def test_order_is_a_pure_function_of_the_seed() -> None:
    long, short, other = (Order(WEIGHTS, [7, 50], seed, places) for seed, places in ((1, 400), (1, 100), (2, 100)))
    first = [long[place] for place in range(100)]
    assert first == [short[place] for place in range(100)]
    assert first != [other[place] for place in range(100)]


def test_order_mixes_by_weight_and_reads_each_row_once_an_epoch() -> None:
    order = Order(WEIGHTS, [7, 50], 1, 4000)
    rows = [order[place] for place in range(len(order))]
    assert sum(row.source == 1 for row in rows) / len(rows) == pytest.approx(0.75, abs=0.03)
    small = [row.number for row in rows if row.source == 0]
    epochs = [small[i : i + 7] for i in range(0, 70, 7)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert epochs[0] != epochs[1]


def test_batches_are_the_same_on_any_number_of_ranks(corpus: Corpus) -> None:
    one = np.concatenate([corpus.batch(3, 0, 1, micro) for micro in (0, 1)])
    two = np.concatenate([corpus.batch(3, rank, 2, 0) for rank in (0, 1)])
    assert one.shape == (8, 33)
    assert np.array_equal(one, two)
    assert not np.array_equal(one, np.concatenate([corpus.batch(4, 0, 1, micro) for micro in (0, 1)]))


def test_held_out_documents_are_not_trained_on(corpus: Corpus, config: TrainConfig) -> None:
    counts = {source["name"]: source for source in corpus.manifest["sources"]}
    for source in config.data.sources:
        described = counts[source.name]
        documents = len(sources.read(source))
        assert described["train"]["documents"] + described["held_out"]["documents"] == documents
        assert 0 < described["held_out"]["documents"] < documents / 2
        assert described["licence"] == "PSF-2.0"


def test_unigram_entropy_is_that_of_the_counts(corpus: Corpus, config: TrainConfig) -> None:
    """Against a plain sum over the files."""
    folder = Path(corpus._train[0].filename).parent  # type: ignore[attr-defined]
    probability = np.zeros(config.vocabulary)
    for weight, source in zip(WEIGHTS, config.data.sources, strict=True):
        counts = np.ones(config.vocabulary)
        for token in np.fromfile(folder / f"{source.name}.train.bin", dtype="<u2"):
            counts[token] += 1
        probability += weight * counts / counts.sum()
    expected = np.mean([-np.log(probability[token]) for token in corpus.evaluation[:, 1:].ravel()])
    assert corpus.evaluation[:, 1:].size == 512
    assert corpus.unigram_entropy == pytest.approx(expected)


def test_tokenizer_round_trips_and_joins_spaces(tmp_path: Path) -> None:
    bpe = tokenizer.train(["def f(x):\n        return x\n"] * 50, 400)
    for text in ("def f(x):\n        return 'é🏛'\r\n\t", f"quotes {tokenizer.END_OF_DOCUMENT} itself"):
        bpe.encode_special_tokens = True
        ids = bpe.encode(text).ids
        assert bpe.decode(ids, skip_special_tokens=False) == text
        assert tokenizer.end_of_document(bpe) not in ids
    assert len(bpe.encode("\n        ").ids) == 1


def test_preparing_again_changes_nothing(config: TrainConfig, tmp_path: Path) -> None:
    stages: list[str] = []
    for _ in range(2):
        prepare(config, tmp_path / "data", None, stages.append)
    assert stages.count("reading the sources") == 1
    assert json.loads((tmp_path / "data" / "manifest.json").read_text())["sources"]
