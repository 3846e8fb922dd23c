"""What a run reads of its data: rows, held-out rows, and the refusal of data that are not the run's."""

import json
import resource
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.trainer.conftest import write_config
from tests.trainer.test_data_indexed import write
from tests.trainer.test_data_sources import data_config, write_jsonl
from trainer.config import TrainConfig, load
from trainer.data import readers, tokenizer
from trainer.data.config import END_OF_DOCUMENT
from trainer.data.corpus import Corpus
from trainer.data.indexed import Indexed
from trainer.data.order import Row
from trainer.data.prepare import ensure, prepare
from trainer.schema import ConfigError

WEIGHTS = (0.25, 0.75)


@pytest.fixture(scope="module")
def folder(config: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ensure(config, tmp_path_factory.mktemp("data"), None, lambda message: None)


@pytest.fixture(scope="module")
def corpus(config: TrainConfig, folder: Path) -> Corpus:
    return Corpus(config, folder)


def changed(config: TrainConfig, **data: Any) -> TrainConfig:
    """The configuration with keys of its data section set, checked anew."""
    values = config.model_dump(mode="json")
    values["data"] |= data
    return TrainConfig.model_validate(values)


def test_batches_are_the_same_on_any_number_of_ranks(corpus: Corpus) -> None:
    one = np.concatenate([corpus.batch(3, 0, 1, micro) for micro in (0, 1)])
    two = np.concatenate([corpus.batch(3, rank, 2, 0) for rank in (0, 1)])
    assert one.shape == (8, 33)
    assert np.array_equal(one, two)
    assert np.array_equal(one, np.stack([corpus.tokens(row) for row in corpus.rows(3)]))
    assert not np.array_equal(one, np.concatenate([corpus.batch(4, 0, 1, micro) for micro in (0, 1)]))


def test_a_longer_run_begins_with_the_shorter_ones_rows(config: TrainConfig, folder: Path, corpus: Corpus) -> None:
    longer = config.model_copy(update={"training": config.training.model_copy(update={"steps": 100_000})})
    other = Corpus(longer, folder)
    assert all(np.array_equal(other.batch(step, 0, 1, 0), corpus.batch(step, 0, 1, 0)) for step in range(12))


def test_a_row_names_the_documents_its_tokens_are_from(corpus: Corpus, folder: Path) -> None:
    bpe = tokenizer.load(folder)
    bpe.encode_special_tokens = True
    texts: dict[str, str] = {}
    for source in corpus.sources:
        texts |= {document.name: document.text for document in readers.read(source, corpus.config.data)}
    packed = 0
    for row in [*corpus.rows(0), *corpus.rows(1), *(Row(0, number) for number in range(200))]:
        spans = corpus.documents(row)
        assert [span.start for span in spans] == [0, *(span.end for span in spans[:-1])]
        assert spans[-1].end == 33
        packed += len(spans) > 1
        for span in spans:
            tokens = corpus.tokens(row)[span.start : span.end].tolist()
            whole = [*bpe.encode(texts[span.document]).ids, tokenizer.end_of_document(bpe)]
            assert any(whole[at : at + len(tokens)] == tokens for at in range(len(whole)))
    assert packed


def test_held_out_documents_are_not_trained_on(corpus: Corpus, config: TrainConfig) -> None:
    counts = {source["name"]: source for source in corpus.manifest["sources"]}
    for source in config.data.sources:
        described = counts[source.name]
        documents = len(list(readers.read(source, config.data)))
        assert described["train"]["documents"] + described["held_out"]["documents"] == documents
        assert 0 < described["held_out"]["documents"] < documents / 2
        assert described["licence"] == "PSF-2.0"


def test_unigram_entropy_is_that_of_the_counts(corpus: Corpus, config: TrainConfig, folder: Path) -> None:
    """Against a plain sum over the files."""
    probability = np.zeros(config.vocabulary)
    for weight, source in zip(WEIGHTS, config.data.sources, strict=True):
        counts = np.ones(config.vocabulary)
        for token in np.fromfile(folder / f"{source.name}.train.bin", dtype="<u2"):
            counts[token] += 1
        probability += weight * counts / counts.sum()
    expected = np.mean([-np.log(probability[token]) for token in corpus.evaluation[:, 1:].ravel()])
    assert corpus.evaluation[:, 1:].size == 512
    assert corpus.unigram_entropy == pytest.approx(expected)


def test_tokenizer_round_trips_and_joins_spaces() -> None:
    bpe = tokenizer.train(["def f(x):\n        return x\n"] * 50, 400)
    for text in ("def f(x):\n        return 'é🏛'\r\n\t", f"quotes {END_OF_DOCUMENT} itself"):
        bpe.encode_special_tokens = True
        ids = bpe.encode(text).ids
        assert bpe.decode(ids, skip_special_tokens=False) == text
        assert tokenizer.end_of_document(bpe) not in ids
    assert len(bpe.encode("\n        ").ids) == 1


def test_preparing_again_changes_nothing(config: TrainConfig, tmp_path: Path) -> None:
    stages: list[str] = []
    for _ in range(2):
        ensure(config, tmp_path, None, stages.append)
    assert sum(stage.startswith("encoding python-docs") for stage in stages) == 1


def test_a_source_by_epochs_takes_part_by_its_rows(config: TrainConfig, tmp_path: Path) -> None:
    for name, documents in (("a", 400), ("b", 100)):
        write_jsonl(tmp_path / f"{name}.jsonl", [f"{name} text number {number}, " * 5 for number in range(documents)])
    sources = ({"path": "a.jsonl", "epochs": 1}, {"path": "b.jsonl", "epochs": 2})
    mixed = changed(config, **data_config(tmp_path, *sources).model_dump(mode="json"))
    said: list[str] = []
    corpus = Corpus(mixed, ensure(mixed, tmp_path, None, said.append))
    assert [one for one in said if one.startswith("encoding")] == [
        "encoding s0, source 1 of 2",
        "encoding s1, source 2 of 2, 81% done",
    ]
    rows = [len(Indexed(tmp_path / "data" / f"s{number}.train").tokens) // 17 for number in (0, 1)]
    read = corpus.order.rows(0, rows[0] + 2 * rows[1])
    assert abs(sum(row.source == 0 for row in read) - rows[0]) <= 2
    assert [row.number for row in read].count(3) == 3


def test_prepared_folder_serves_runs_with_other_weights(config: TrainConfig, folder: Path, tmp_path: Path) -> None:
    sources = [source.model_dump() | {"weight": 1} for source in config.data.sources]
    other = changed(config, prepared=str(folder), sources=sources[:1])
    assert ensure(other, tmp_path, None, lambda message: None) == folder
    assert not list(tmp_path.iterdir())
    assert {row.source for row in Corpus(other, folder).rows(0)} == {0}


def refusal(config: TrainConfig, out: Path, checkpoint: Path | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        Corpus(config, ensure(config, out, checkpoint, lambda message: None), checkpoint)
    said = str(caught.value)
    assert "\n" not in said
    assert said.endswith(".")
    return said


def test_prepared_folder_that_does_not_fit(config: TrainConfig, folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    prepared = changed(config, prepared=str(copy))

    def source(**values: Any) -> list[dict[str, Any]]:
        return [config.data.sources[0].model_dump() | values]

    assert "nowhere holds no prepared data; prepare it with" in refusal(
        changed(config, prepared=str(tmp_path / "nowhere")), tmp_path
    )
    assert "hold no source other, they hold python-docs, python-stdlib" in refusal(
        changed(prepared, sources=source(name="other")), tmp_path
    )
    assert "The licence of python-docs is MIT and the data in" in refusal(
        changed(prepared, sources=source(licence="MIT")), tmp_path
    )
    assert "data.tokenizer.vocabulary (400) must be at least the 500 tokens" in refusal(
        changed(prepared, tokenizer={"vocabulary": 400}), tmp_path
    )
    assert "end their documents with '<|endoftext|>'" in refusal(
        changed(prepared, tokenizer={"vocabulary": 500, "end_of_document": "a"}), tmp_path
    )
    other = tokenizer.train(["other text of another tokenizer"] * 9, 500)
    other.save(str(tmp_path / "other.json"))
    assert "other.json) is not the tokenizer that made the data in" in refusal(
        changed(prepared, tokenizer={"vocabulary": 500, "file": str(tmp_path / "other.json")}), tmp_path
    )
    shutil.copy(tmp_path / "other.json", copy / "tokenizer.json")
    assert "tokenizer.json is not the tokenizer that made the data; prepare them again" in refusal(prepared, tmp_path)
    shutil.copy(folder / "tokenizer.json", copy)
    write(copy / "python-docs.train", [[1, 2, 3]])
    assert "python-docs.train.bin is not what was written; fetch that file again, or prepare them" in refusal(
        prepared, tmp_path
    )


@pytest.mark.parametrize(
    "name", ["train.bin", "train.idx", "train.names.bin", "train.counts.npy", "held_out.bin", "held_out.names.idx"]
)
@pytest.mark.parametrize("befalls", ["lost", "cut", "flipped"])
def test_a_damaged_file_of_the_prepared_data_is_named(
    config: TrainConfig, folder: Path, tmp_path: Path, name: str, befalls: str
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    path = copy / f"python-docs.{name}"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.unlink()
    if befalls != "lost":
        path.write_bytes(content[: len(content) // 2 if befalls == "cut" else None])
    said = refusal(changed(config, prepared=str(copy)), tmp_path)
    assert f"The data in {copy} are damaged: {path.name} " in said


def test_a_token_beyond_the_vocabulary_is_refused(config: TrainConfig, folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    for source in config.data.sources:
        tokens = len(Indexed(folder / f"{source.name}.train").tokens)
        write(copy / f"{source.name}.train", [[config.vocabulary] * tokens])
    with pytest.raises(ConfigError, match=r"train\.bin holds the token 512 and the vocabulary has 512; prepare"):
        Corpus(config, copy).batch(0, 0, 1, 0)


def test_a_run_goes_on_with_the_data_it_began_with(config: TrainConfig, folder: Path, tmp_path: Path) -> None:
    checkpoint = tmp_path / "step3"
    checkpoint.mkdir()
    shutil.copy(folder / "tokenizer.json", checkpoint)
    manifest = json.loads((folder / "manifest.json").read_text())

    def made(**source: Any) -> None:
        sources = [manifest["sources"][0] | source, *manifest["sources"][1:]]
        (checkpoint / "how.json").write_text(json.dumps({"step": 3, "data": manifest | {"sources": sources}}))

    made(weight=3)
    Corpus(config, ensure(config, tmp_path, checkpoint, lambda message: None), checkpoint)
    made(train=manifest["sources"][0]["train"] | {"sha256": "0"})
    assert refusal(config, tmp_path, checkpoint) == (
        "The text of the source python-docs is not the checkpoint's; resume on the Python that the checkpoint was made "
        f"with, {manifest['python']}."
    )
    # Its tokenizer is taken when data are prepared anew, and demanded of data that are there.
    made()
    (checkpoint / "tokenizer.json").write_text(tokenizer.train(["other text"] * 9, 400).to_str())
    again = ensure(config, tmp_path / "again", checkpoint, lambda message: None, is_fork=True)
    assert tokenizer.digest(tokenizer.load(again)) == tokenizer.digest(tokenizer.load(checkpoint))
    assert "The tokenizer of the data in" in refusal(config, tmp_path / "again", checkpoint)
    assert "The checkpoint's tokenizer is not the one that made the data in" in refusal(
        changed(config, prepared=str(folder)), tmp_path, checkpoint
    )


def test_too_little_text(config: TrainConfig, folder: Path, tmp_path: Path) -> None:
    path = write_config(tmp_path / "much.yml", evaluation_tokens=10_000_000)
    with pytest.raises(ConfigError, match=r"training\.evaluation_tokens asks for .* held-out tokens of python-docs"):
        Corpus(load(path), folder)
    write_jsonl(tmp_path / "a.jsonl", ["a few words of text"] * 3)
    little = changed(config, **data_config(tmp_path, {"path": "a.jsonl"}, sequence_length=500).model_dump(mode="json"))
    prepare(little.data, tmp_path / "data", None, lambda message: None)
    with pytest.raises(ConfigError, match="The source s0 has less than one row of 501 training tokens; give it more"):
        Corpus(little, tmp_path / "data")


def test_thousands_of_sources_take_few_file_descriptors(config: TrainConfig, folder: Path, tmp_path: Path) -> None:
    """Two thousand sources, which are links to one, under a limit of 400 open files; documents of rows too."""
    manifest = json.loads((folder / "manifest.json").read_text())
    names = [f"source-{number}" for number in range(2000)]
    for name in names:
        for path in folder.glob("python-docs.*"):
            (tmp_path / path.name.replace("python-docs", name)).hardlink_to(path)
    shutil.copy(folder / "tokenizer.json", tmp_path)
    described = [manifest["sources"][0] | {"name": name} for name in names]
    (tmp_path / "manifest.json").write_text(json.dumps(manifest | {"sources": described}))
    sources = [config.data.sources[0].model_dump() | {"name": name} for name in names]
    values = changed(config, sources=sources[:1]).model_dump(mode="json")
    values["data"]["sources"] = sources
    values["training"] |= {"evaluation_tokens": 2000 * 32, "batch": 512, "micro_batch": 256}
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (400, hard))
    try:
        corpus = Corpus(TrainConfig.model_validate(values), tmp_path)
        assert corpus.evaluation.shape == (2000, 33)
        assert corpus.batch(0, 0, 1, 1).shape == (256, 33)
        rows = corpus.rows(1)
        assert len({row.source for row in rows}) > 200
        assert all(corpus.documents(row)[0].start == 0 for row in rows)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
