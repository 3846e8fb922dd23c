"""Packed rows, as Pythia's own files have them: read as they are stored, and in that order where it is wished."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from tests.trainer.test_data import changed
from tests.trainer.test_data_indexed import write
from trainer.config import TrainConfig, load, recipe_names
from trainer.data import tokenizer
from trainer.data.corpus import Corpus
from trainer.data.held_out_texts import documents
from trainer.data.indexed import Indexed
from trainer.data.prepare import ensure
from trainer.schema import ConfigError

LENGTH = 17


@pytest.fixture
def rows(tmp_path: Path) -> list[list[int]]:
    """A pair of 500 rows of 17 tokens, some of which end a document, and its tokenizer."""
    bpe = tokenizer.train(["words of some text " * 20], 330)
    tokenizer.save(bpe, tmp_path, 64)
    rows: list[list[int]] = np.random.default_rng(0).integers(0, 250, (500, LENGTH)).tolist()
    for row in range(0, 500, 7):
        rows[row][row % LENGTH] = tokenizer.end_of_document(bpe)
    write(tmp_path / "theirs", rows)
    return rows


def packed(config: TrainConfig, root: Path, **data: Any) -> TrainConfig:
    source = {"name": "pile", "tokens": "theirs", "weight": 1, "licence": "MIT"}
    settings: dict[str, Any] = {"root": str(root), "sources": [source], "sequence_length": LENGTH - 1}
    settings["tokenizer"] = {"vocabulary": 330, "file": "tokenizer.json"}
    return changed(config, **settings | data)


@pytest.mark.parametrize("said", [{}, {"packed": True}])
def test_rows_are_read_as_rows_and_replayed_in_their_order(
    config: TrainConfig, tmp_path: Path, rows: list[list[int]], said: dict[str, Any]
) -> None:
    settings, told = packed(config, tmp_path, order="stored", held_out=0.1, **said), list[str]()
    corpus = Corpus(settings, ensure(settings, tmp_path / "run", None, told.append))
    assert "pile holds packed rows of 17 tokens, which are read as rows" in told
    batch = settings.training.batch
    for step in range(500 // batch):
        assert [corpus.tokens(row).tolist() for row in corpus.rows(step)] == rows[step * batch : (step + 1) * batch]
    for row in corpus.rows(450 // batch):
        (span,) = corpus.documents(row)
        assert span.document == f"pile/{row.number}", "the order goes on with the rows that are held out"
    again = [corpus.tokens(row).tolist() for row in corpus.order.rows(498, 4)]
    assert again == [*rows[498:], *rows[:2]]
    assert corpus.held_out_from is None
    assert corpus.evaluation[0].tolist() == rows[450], "the last rows are held out"
    assert corpus.documents(corpus.rows(0)[3])[0].document == "pile/3"
    assert corpus.readings() == pytest.approx([settings.training.steps * batch / 450])
    bpe = tokenizer.load(tmp_path)
    assert documents(corpus.folder, "pile", are_rows=True) == [
        bpe.decode(row, skip_special_tokens=False) for row in rows[450:]
    ], "a row has no end-of-document token of its own"


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tokenizer and a pair like the published ones, but short; its rows in `rows.npy` too."""
    folder = tmp_path_factory.mktemp("published")
    tokenizer.save(tokenizer.train(["words of some text " * 20], 330), folder, 64)
    rows = (np.arange(2 * 1024 + 100)[:, None] + np.arange(2049)) % 250
    rows[:, 0] = np.arange(len(rows)) % 251
    write(folder / "document", rows.tolist())
    np.save(folder / "rows.npy", rows)
    return folder


@pytest.mark.parametrize("name", [name for name in recipe_names() if name.startswith("pythia-")])
def test_a_pythia_reads_the_rows_that_the_published_one_read(name: str, published: Path, tmp_path: Path) -> None:
    """At the published batch and length, on a pair that is short: 1,024 rows of 2,049 tokens a step."""
    rows = np.load(published / "rows.npy")
    corpus_of = "deduped" if "deduped" in name else "standard"
    corpus_name = f"pile-{corpus_of}-pythia-preshuffled"
    source = {"name": "pile", "corpus": corpus_name, "licence": "LicenseRef-Pile-Mixed", "weight": 1}
    data: dict[str, Any] = {"mixture": None, "sources": [source], "order": "stored", "packed": True}
    data["tokenizer"] = {"name": "gpt-neox-20b", "vocabulary": 50277}
    (tmp_path / "recipe.yml").write_text(yaml.safe_dump({"like": name, "data": data}))
    settings = load(tmp_path / "recipe.yml")
    # As a lab fills in what its pool has.
    lies = settings.data.sources[0].model_copy(update={"tokens": "document"})
    bpe_file = settings.data.tokenizer.model_copy(update={"file": "tokenizer.json"})
    settings = changed(settings, root=str(published), sources=[lies], tokenizer=bpe_file, held_out=0.01)
    settings = settings.model_copy(
        update={"training": settings.training.model_copy(update={"steps": 2, "evaluation_tokens": 8192})}
    )
    corpus = Corpus(settings, ensure(settings, tmp_path / "run", None, lambda message: None))
    for step in range(2):
        read = np.stack([corpus.tokens(row) for row in corpus.rows(step)])
        assert (read == rows[1024 * step : 1024 * (step + 1)]).all()
    assert corpus.held_out_from is None
    longer = settings.model_copy(update={"training": settings.training.model_copy(update={"steps": 3})})
    assert Corpus(longer, tmp_path / "run" / "data").held_out_from == 3


def test_rows_may_be_shuffled_like_any_other(config: TrainConfig, tmp_path: Path, rows: list[list[int]]) -> None:
    settings = packed(config, tmp_path)
    corpus = Corpus(settings, ensure(settings, tmp_path / "run", None, lambda message: None))
    drawn = [tuple(corpus.tokens(row)) for row in corpus.order.rows(0, 400)]
    assert sorted(drawn) == sorted(map(tuple, rows[:400]))
    assert drawn != [tuple(row) for row in rows[:400]]


def test_packed_false_reads_them_as_documents(config: TrainConfig, tmp_path: Path, rows: list[list[int]]) -> None:
    settings = packed(config, tmp_path, packed=False)
    folder = ensure(settings, tmp_path / "run", None, lambda message: None)
    assert int(Indexed(folder / "pile.train").sizes.max()) == LENGTH + 1


def test_documents_of_one_length_are_no_rows(config: TrainConfig, tmp_path: Path, rows: list[list[int]]) -> None:
    end = tokenizer.end_of_document(tokenizer.load(tmp_path))
    write(tmp_path / "theirs", [[*row[:-1], end] for row in rows])
    settings = packed(config, tmp_path)
    folder = ensure(settings, tmp_path / "run", None, lambda message: None)
    assert "row" not in Corpus(settings, folder).manifest["sources"][0]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"sequence_length": 32}, r"pile holds rows of 17 tokens, .* = 33; set data.sequence_length to 16, or set"),
        ({"dedupe": {}}, r"pile holds packed rows, which data.dedupe would take out"),
    ],
)
def test_what_would_not_read_them_as_stored_is_refused(
    config: TrainConfig, tmp_path: Path, rows: list[list[int]], data: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        ensure(packed(config, tmp_path, **data), tmp_path / "run", None, lambda message: None)
    write(tmp_path / "theirs", [*rows, [1, 2]])
    with pytest.raises(ConfigError, match="holds sequences of 2 to 17 tokens, and packed data are rows"):
        ensure(packed(config, tmp_path, packed=True), tmp_path / "run", None, lambda message: None)
    write(tmp_path / "theirs", [])
    with pytest.raises(ConfigError, match="The source pile is empty"):
        ensure(packed(config, tmp_path, packed=True), tmp_path / "run", None, lambda message: None)


def test_prepared_rows_are_not_cut_to_another_length(
    config: TrainConfig, tmp_path: Path, rows: list[list[int]]
) -> None:
    settings = packed(config, tmp_path)
    folder = ensure(settings, tmp_path / "run", None, lambda message: None)
    other = changed(settings, prepared=str(folder), sequence_length=20)
    with pytest.raises(ConfigError, match=r"holds packed rows of 17 tokens; set data.sequence_length to 16"):
        Corpus(other, folder)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (
            {"packed": True, "sources": [{"name": "a", "path": "a", "weight": 1, "licence": "MIT"}]},
            "the source a is text",
        ),
        ({"packed": True, "dedupe": {}}, "data.dedupe would take rows out of packed data"),
        (
            {
                "order": "stored",
                "sources": [{"name": n, "path": n, "weight": 1, "licence": "MIT"} for n in ("a", "b")],
            },
            "give a epochs 1",
        ),
    ],
)
def test_settings_that_contradict_each_other(
    config: TrainConfig, tmp_path: Path, data: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        packed(config, tmp_path, **data)
