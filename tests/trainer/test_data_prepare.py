"""The prepared folder: the same bytes for any number of workers, no near-duplicates, refusals that say what to do."""

import json
import random
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models, normalizers, trainers

from tests.trainer.test_data_indexed import foreign_write
from tests.trainer.test_data_sources import data_config, write_jsonl
from trainer.data import encode, tokenizer
from trainer.data import workers as worker_pool
from trainer.data.config import DataConfig, DedupeConfig
from trainer.data.dedupe import bands, ngrams
from trainer.data.encode import is_held_out
from trainer.data.indexed import Indexed
from trainer.data.prepare import fingerprint, is_prepared, manifest_of, prepare
from trainer.data.readers import Document
from trainer.schema import ConfigError

WORDS = [f"w{number}" for number in range(2_000)]


def essay(seed: int, words: int = 400) -> list[str]:
    return random.Random(seed).choices(WORDS, k=words)


def build(data: DataConfig, folder: Path, **options: Any) -> dict[str, Any]:
    prepare(data, folder, None, lambda message: None, **options)
    return manifest_of(folder)


def names_of(folder: Path, split: str, source: str = "s0") -> list[str]:
    return [name.tobytes().decode() for name in Indexed(folder / f"{source}.{split}.names").documents()]


def texts_of(folder: Path, split: str, source: str = "s0") -> list[str]:
    bpe = tokenizer.load(folder)
    documents = Indexed(folder / f"{source}.{split}").documents()
    return [bpe.decode(document.tolist(), skip_special_tokens=False) for document in documents]


def test_documents_come_out_whole_with_names_and_counts(tmp_path: Path) -> None:
    texts = [f"Document {n}: <|endoftext|> quoted, Ünïcode 🏛.\n    indented" for n in range(60)]
    write_jsonl(tmp_path / "a.jsonl", texts)
    manifest = build(data_config(tmp_path, {"path": "a.jsonl"}), tmp_path / "data")
    found: dict[str, str] = {}
    for split in ("train", "held_out"):
        described = manifest["sources"][0][split]
        names = names_of(tmp_path / "data", split)
        read = texts_of(tmp_path / "data", split)
        assert all(text.endswith("<|endoftext|>") for text in read)
        # What a document quotes does not end it.
        end = tokenizer.end_of_document(tokenizer.load(tmp_path / "data"))
        assert all(
            int((document == end).sum()) == 1 for document in Indexed(tmp_path / "data" / f"s0.{split}").documents()
        )
        found |= dict(zip(names, [text.removesuffix("<|endoftext|>") for text in read], strict=True))
        assert all(is_held_out(name, 0.2) == (split == "held_out") for name in names)
        assert described["documents"] == len(names) > 0
        assert described["bytes"] == sum(len(found[name].encode()) for name in names)
        assert described["tokens"] == len(Indexed(tmp_path / "data" / f"s0.{split}").tokens)
    assert found == {f"s0/a.jsonl:{n + 1}": text for n, text in enumerate(texts)}
    counts = np.load(tmp_path / "data" / "s0.train.counts.npy")
    assert np.array_equal(counts, np.bincount(Indexed(tmp_path / "data" / "s0.train").tokens, minlength=400))


def test_any_number_of_workers_writes_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b"):
        write_jsonl(tmp_path / f"{name}.jsonl.zst", [" ".join(essay(seed)) for seed in range(100)])
    data = data_config(tmp_path, {"path": "a.jsonl.zst"}, {"path": "b.jsonl.zst"}, dedupe={"permutations": 32})
    # Batches of a megabyte would take tens of megabytes of text to be many.
    monkeypatch.setattr(worker_pool, "BATCH_BYTES", 10_000)
    folders = [tmp_path / "one", tmp_path / "two"]
    seen: list[int] = []
    for folder, workers in zip(folders, (1, 2), strict=True):
        build(data, folder, workers=workers, advance=seen.append)
    assert len(seen) > 30
    one, two = ({path.name: path.read_bytes() for path in folder.iterdir()} for folder in folders)
    assert one == two
    assert {path.name for path in tmp_path.iterdir()} == {"a.jsonl.zst", "b.jsonl.zst", "one", "two"}


def test_near_duplicates_are_removed_over_all_sources(tmp_path: Path) -> None:
    """One word in 400 changed leaves 0.975 of the 5-grams alike; one in 20 leaves 0.6."""
    originals = [essay(seed) for seed in range(40)]
    near, far = [list(words) for words in originals], [list(words) for words in originals]
    for words in near:
        words[60] = "changed"
    for words in far:
        words[::20] = ["changed"] * 20
    write_jsonl(tmp_path / "a.jsonl", [" ".join(words) for words in originals])
    write_jsonl(tmp_path / "b.jsonl", [" ".join(words) for words in (*near, *far)])
    sources = ({"path": "a.jsonl"}, {"path": "b.jsonl"})
    plain = build(data_config(tmp_path, *sources), tmp_path / "plain")
    assert [source["near_duplicates_removed"] for source in plain["sources"]] == [None, None]
    manifest = build(data_config(tmp_path, *sources, dedupe={}), tmp_path / "data")
    assert manifest["dedupe"] == {"threshold": 0.87, "ngram": 5, "permutations": 128}
    assert sum(source["near_duplicates_removed"] for source in manifest["sources"]) == 40
    kept = {
        split: [name for source in ("s0", "s1") for name in names_of(tmp_path / "data", split, source)]
        for split in ("train", "held_out")
    }
    for number in range(1, 41):
        pair = {f"s0/a.jsonl:{number}", f"s1/b.jsonl:{number}"}
        assert len(pair & {*kept["train"], *kept["held_out"]}) == 1
        # Where one of the two is held out, it is the one that stays.
        if any(is_held_out(name, 0.2) for name in pair):
            assert not pair & {*kept["train"]}
        assert f"s1/b.jsonl:{40 + number}" in {*kept["train"], *kept["held_out"]}
    lower = build(data_config(tmp_path, *sources, dedupe={"threshold": 0.4}), tmp_path / "lower")
    assert sum(source["near_duplicates_removed"] for source in lower["sources"]) == 80


def test_what_near_duplicates_are_measured_by() -> None:
    assert ngrams("A, b: c!", 2) == {"a b", "b c"}
    assert ngrams("only", 5) == {"only"}
    assert ngrams("?!", 5) == {"?!"}
    assert bands(0.87, 128) == (12, 10)
    assert bands(1.0, 128) == (2, 64)
    with pytest.raises(ValueError, match="threshold"):
        DedupeConfig(threshold=0)


def test_tokenizer_learns_nothing_from_held_out_documents(tmp_path: Path) -> None:
    texts = ["zebra " * 40 if is_held_out(f"s0/a.jsonl:{n + 1}", 0.2) else "horse " * 40 for n in range(60)]
    write_jsonl(tmp_path / "a.jsonl", texts)
    build(data_config(tmp_path, {"path": "a.jsonl"}), tmp_path / "data")
    vocabulary = tokenizer.load(tmp_path / "data").get_vocab()
    assert "Ġhorse" in vocabulary
    assert not any("zeb" in token for token in vocabulary)


@pytest.fixture
def given(tmp_path: Path) -> Path:
    """A tokenizer.json of others, with an end of its own."""
    bpe = tokenizer.train([" ".join(essay(1))] * 2, 330)
    content = json.loads(bpe.to_str())
    text = json.dumps(content).replace("<|endoftext|>", "</s>")
    (tmp_path / "given.json").write_text(text)
    return tmp_path / "given.json"


def test_tokenizer_file_and_tokens_of_others(tmp_path: Path, given: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", ["words of text"] * 30)
    settings = {"vocabulary": 400, "file": "given.json", "end_of_document": "</s>"}
    data = data_config(tmp_path, {"path": "a.jsonl"}, tokenizer=settings)
    manifest = build(data, tmp_path / "data")
    bpe = tokenizer.load_checked(given, data.tokenizer)
    assert manifest["tokenizer"]["sha256"] == tokenizer.digest(bpe)
    end = tokenizer.end_of_document(bpe, "</s>")
    ids = bpe.encode("words of text").ids
    assert Indexed(tmp_path / "data" / "s0.train").document(0).tolist() == [*ids, end]
    assert json.loads((tmp_path / "data" / "tokenizer_config.json").read_text())["eos_token"] == "</s>"

    # With and without its end, and of two sequences.
    foreign_write(tmp_path / "theirs", [[[*ids, end]], [ids], [ids[:1], ids[1:]]] * 10, 4, "i")
    data = data_config(tmp_path, {"tokens": "theirs"}, tokenizer=settings, dedupe=None)
    manifest = build(data, tmp_path / "again")
    documents = [*Indexed(tmp_path / "again" / "s0.train").documents()]
    assert {tuple(document) for document in documents} == {(*ids, end)}
    assert manifest["sources"][0]["train"]["bytes"] == len(documents) * len("words of text")
    assert manifest["sources"][0]["place"] == {"tokens": "theirs"}

    foreign_write(tmp_path / "theirs", [[[1, 399]]] * 5, 4, "i")
    with pytest.raises(ConfigError, match="holds the token 399 and the tokenizer has 330"):
        build(data, tmp_path / "other")
    (tmp_path / "theirs.bin").unlink()
    with pytest.raises(ConfigError, match=r"theirs\.bin is missing"):
        build(data, tmp_path / "other")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"vocabulary": 320}, "data.tokenizer.vocabulary (320) must be at least the 330"),
        ({"end_of_document": "<eos>"}, "has no <eos>; set data.tokenizer.end_of_document"),
        ({"file": "nowhere.json"}, "There is no tokenizer at"),
        ({"file": "a.jsonl"}, "is no tokenizer.json of the tokenizers library"),
    ],
)
def test_tokenizer_file_that_does_not_fit(tmp_path: Path, given: Path, settings: dict[str, Any], said: str) -> None:
    write_jsonl(tmp_path / "a.jsonl", ["text"] * 5)
    asked = {"vocabulary": 400, "file": given.name, "end_of_document": "</s>"} | settings
    with pytest.raises(ConfigError, match=re.escape(said)):
        build(data_config(tmp_path, {"path": "a.jsonl"}, tokenizer=asked), tmp_path / "data")


def test_a_folder_is_built_anew_when_what_it_depends_on_changed(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", ["some text"] * 20)
    data = data_config(tmp_path, {"path": "a.jsonl"})
    before = build(data, tmp_path / "data")
    marker = tmp_path / "data" / "marker"
    marker.touch()
    assert is_prepared(tmp_path / "data", fingerprint(data))
    build(data.model_copy(update={"sequence_length": 8}), tmp_path / "data")
    assert marker.exists()
    write_jsonl(tmp_path / "a.jsonl", ["other text"] * 20)
    assert not is_prepared(tmp_path / "data", fingerprint(data))
    assert build(data, tmp_path / "data")["sources"] != before["sources"]
    assert not marker.exists()


def test_a_failure_leaves_the_folder_as_it_was(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", ["some text"] * 20)
    data = data_config(tmp_path, {"path": "a.jsonl"})
    build(data, tmp_path / "data")
    held = {path.name: path.read_bytes() for path in (tmp_path / "data").iterdir()}
    with (tmp_path / "a.jsonl").open("a") as file:
        file.write("{")
    with pytest.raises(ConfigError, match="line 21 is not valid JSON"):
        build(data, tmp_path / "data")
    assert {path.name: path.read_bytes() for path in (tmp_path / "data").iterdir()} == held
    assert {path.name for path in tmp_path.iterdir()} == {"a.jsonl", "data"}


def test_shares_by_epochs_are_measured_in_the_manifest(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", ["text " * 20] * 40)
    shutil.copy(tmp_path / "a.jsonl", tmp_path / "b.jsonl")
    sources = ({"path": "a.jsonl", "epochs": 3}, {"path": "b.jsonl", "epochs": 1})
    first, second = build(data_config(tmp_path, *sources), tmp_path / "data")["sources"]
    assert (first["epochs"], second["epochs"]) == (3, 1)
    assert first["weight"] + second["weight"] == pytest.approx(1)
    ratio = 3 * first["train"]["tokens"] / second["train"]["tokens"]
    assert first["weight"] / second["weight"] == pytest.approx(ratio, rel=1e-4)


def test_what_a_tokenizer_file_carries_beside_its_vocabulary_changes_nothing(tmp_path: Path, given: Path) -> None:
    """transformers saves truncation and padding as they were last used; BPE dropout draws other tokens each time."""
    write_jsonl(tmp_path / "a.jsonl", [" ".join(essay(n)) for n in range(20)])
    settings = {"vocabulary": 400, "end_of_document": "</s>"}
    content = json.loads(given.read_text())
    content["model"]["dropout"] = 0.5
    content["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    content["padding"] = {"strategy": "BatchLongest", "direction": "Right", "pad_to_multiple_of": None}
    content["padding"] |= {"pad_id": 0, "pad_type_id": 0, "pad_token": "</s>"}
    (tmp_path / "other.json").write_text(json.dumps(content))
    made = [
        build(data_config(tmp_path, {"path": "a.jsonl"}, tokenizer=settings | {"file": file}), tmp_path / file[:5])
        for file in ("given.json", "other.json")
    ]
    assert made[0]["sources"] == made[1]["sources"]
    assert made[0]["tokenizer"] == made[1]["tokenizer"]


def test_an_end_that_is_not_special_is_plain_text_within_a_document(tmp_path: Path, given: Path) -> None:
    content = json.loads(given.read_text())
    content["added_tokens"][0]["special"] = False
    given.write_text(json.dumps(content))
    write_jsonl(tmp_path / "a.jsonl", ["one </s> two"] * 30)
    settings = {"vocabulary": 400, "file": "given.json", "end_of_document": "</s>"}
    build(data_config(tmp_path, {"path": "a.jsonl"}, tokenizer=settings), tmp_path / "data")
    end = tokenizer.load(given.parent / "data").token_to_id("</s>")
    assert {int((document == end).sum()) for document in Indexed(tmp_path / "data" / "s0.train").documents()} == {1}


def test_a_tokenizer_that_cannot_encode_is_named(tmp_path: Path) -> None:
    model = models.WordLevel({"</s>": 0, "known": 1})
    (tmp_path / "given.json").write_text(Tokenizer(model).to_str())
    write_jsonl(tmp_path / "a.jsonl", ["unknown"] * 30)
    settings = {"vocabulary": 400, "file": "given.json", "end_of_document": "</s>"}
    with pytest.raises(ConfigError, match=r"The tokenizer cannot encode the text of .* give it an unknown token"):
        build(data_config(tmp_path, {"path": "a.jsonl"}, tokenizer=settings), tmp_path / "data")


def test_of_a_single_document_the_end_is_held_out(tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    lines = [" ".join(essay(n, 8)) for n in range(200)]
    (tmp_path / "texts" / "input.txt").write_text("\n".join(lines))
    said: list[str] = []
    data = data_config(tmp_path, {"path": "texts"})
    prepare(data, tmp_path / "data", None, said.append)
    assert "s0 has too few documents to hold some out: the end of each is held out" in said
    [train], [held_out] = (texts_of(tmp_path / "data", split) for split in ("train", "held_out"))
    end = "<|endoftext|>"
    assert train.removesuffix(end) + held_out.removesuffix(end) == "\n".join(lines)
    assert train.removesuffix(end).endswith("\n"), "cut at the end of a line"
    assert 0.15 < len(held_out) / len(train + held_out) < 0.25
    assert names_of(tmp_path / "data", "held_out") == ["s0/input.txt:end"]


def test_a_word_of_80_000_letters_is_words_of_a_thousand_in_training() -> None:
    learned = tokenizer.train(["a" * 80_000], 300).get_vocab()
    assert 256 < max(map(len, learned)) <= 1_000, "merges double the longest token up to the bound"


@pytest.mark.parametrize("text", ["word and\nother words " * 800, "日本語 日本\t" * 2000, "a, 1 b c\n\n b" * 900])
def test_a_long_document_has_the_tokens_it_has_as_a_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    """The size of a piece is another than usual, so that the test takes no minutes."""
    monkeypatch.setattr(encode, "PIECE", 500)
    data = data_config(tmp_path, {"path": "a"})
    byte_level = tokenizer.train([text, " ".join(essay(3))], 400)
    spaced = Tokenizer(models.BPE())
    spaced.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["<|endoftext|>"], show_progress=False)
    spaced.train_from_iterator([*text.split()[:50], "\n"], trainer)
    for bpe in (byte_level, spaced):
        encoder = encode.Encoder(bpe.to_str(), data)
        whole = bpe.encode(text, add_special_tokens=False).ids
        [found] = encoder._tokens([Document("s0/a", text)])
        assert found.tolist() == whole
