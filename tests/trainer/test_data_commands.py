"""`python -m trainer data`, as a person at a terminal uses it."""

import hashlib
import json
from pathlib import Path

import pytest
import yaml
from tokenizers import Tokenizer
from typer.testing import CliRunner, Result

from tests.trainer.conftest import TINY, write_config
from tests.trainer.test_data_indexed import DOCUMENTS, write
from tests.trainer.test_data_sources import write_jsonl
from trainer.config import dump, load
from trainer.data import readers, tokenizer
from trainer.data.commands import app
from trainer.data.corpus import Corpus
from trainer.data.indexed import Indexed

run = CliRunner()
SOURCES = ("python-docs", "python-stdlib")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run: its configuration and its data, prepared on the command line."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "config.yml").write_text(dump(load(write_config(folder / "tiny.yml"))))
    result = run.invoke(app, ["prepare", str(folder / "config.yml"), "--out", str(folder / "data"), "--workers", "1"])
    assert result.exit_code == 0, result.output
    assert "python-stdlib" in result.stdout
    assert "PSF-2.0" in result.stdout
    return folder


def test_show_says_what_a_step_saw(folder: Path) -> None:
    result = run.invoke(app, ["show", str(folder), "--step", "3", "--json"])
    assert result.exit_code == 0, result.output
    seen = json.loads(result.stdout)
    assert (seen["step"], seen["sequence_length"], len(seen["rows"])) == (3, 32, 8)
    config = load(folder / "config.yml")
    # Step 3 is the third: the one after step 2.
    rows = Corpus(config, folder / "data").batch(2, 0, 2, 0).tolist()
    assert [row["tokens"] for row in seen["rows"][:4]] == rows
    texts: dict[str, str] = {}
    for source in config.data.sources:
        texts |= {document.name: document.text for document in readers.read(source, config.data)}
    for row in seen["rows"]:
        assert row["licence"] == "PSF-2.0"
        assert all(part["document"].startswith(f"{row['source']}/") for part in row["documents"])
        if len(row["documents"]) == 1:
            assert row["text"] in texts[row["documents"][0]["document"]]
    alone = json.loads(run.invoke(app, ["show", str(folder), "--step", "3", "--row", "5", "--json"]).stdout)
    assert alone["rows"] == seen["rows"][5:6]


def test_show_prints_a_table(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    seen = json.loads(run.invoke(app, ["show", str(folder), "--step", "1", "--json"]).stdout)["rows"]
    plain = run.invoke(app, ["show", str(folder), "--step", "1"]).stdout
    assert "Step 1: 8 rows of 32 tokens" in plain
    assert all(row["documents"][0]["document"][:30] in plain for row in seen)
    tokens = run.invoke(app, ["show", str(folder), "--step", "1", "--row", "0", "--tokens"]).stdout
    assert " ".join(map(str, seen[0]["tokens"][:5])) in tokens


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--step", "0"], "--step must be between 1 and 12, the steps of"),
        (["--step", "13"], "--step must be between 1 and 12"),
        (["--step", "1", "--row", "8"], "--row must be between 0 and 7"),
    ],
)
def test_show_refuses_what_there_was_not(folder: Path, arguments: list[str], said: str) -> None:
    result = run.invoke(app, ["show", str(folder), *arguments])
    assert result.exit_code == 78
    assert said in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_show_of_a_run_on_prepared_data(folder: Path, tmp_path: Path) -> None:
    values = yaml.safe_load((folder / "config.yml").read_text())
    values["data"]["prepared"] = str(folder / "data")
    (tmp_path / "config.yml").write_text(yaml.safe_dump(values))
    ours, theirs = (run.invoke(app, ["show", str(path), "--step", "2", "--json"]).stdout for path in (tmp_path, folder))
    assert ours == theirs


def test_prepare_again_does_nothing_and_never_writes_over_other_things(folder: Path, tmp_path: Path) -> None:
    before = (folder / "data" / "manifest.json").stat().st_mtime_ns
    command = ["prepare", str(folder / "config.yml"), "--workers", "1", "--out"]
    assert run.invoke(app, [*command, str(folder / "data")]).exit_code == 0
    assert (folder / "data" / "manifest.json").stat().st_mtime_ns == before
    (tmp_path / "thesis.tex").write_text("precious")
    result = run.invoke(app, [*command, str(tmp_path)])
    assert result.exit_code == 78
    assert "holds something else than these data; give --out another." in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_prepare_takes_a_root_and_names_what_is_wrong(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "there" / "a.jsonl.gz", ["some text of a document"] * 30)
    source = {"name": "a", "weight": 1, "licence": "CC0-1.0", "path": "a.jsonl.gz"}
    config = write_config(tmp_path / "tiny.yml", {"data": {"sources": [source], "tokenizer": {"vocabulary": 320}}})
    command = ["prepare", str(config), "--out", str(tmp_path / "out"), "--workers", "2"]
    result = run.invoke(app, command)
    assert result.exit_code == 78
    assert "There is no file at a.jsonl.gz, the path of the source a; correct it or data.root." in result.stderr
    (tmp_path / "there" / "a.jsonl.gz").write_bytes((tmp_path / "there" / "a.jsonl.gz").read_bytes()[:-9])
    result = run.invoke(app, [*command, "--root", str(tmp_path / "there")])
    assert result.exit_code == 78
    assert "a.jsonl.gz is truncated or damaged; fetch it again." in result.stderr
    assert not (tmp_path / "out").exists()
    write_jsonl(tmp_path / "there" / "a.jsonl.gz", ["some text of a document"] * 30)
    assert run.invoke(app, [*command, "--root", str(tmp_path / "there")]).exit_code == 0
    assert (tmp_path / "out" / "a.train.idx").exists()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (
            {"mixture": "heap", "sources": None},
            "There is no mixture 'heap'; the mixtures are common-pile, pile, pile-deduplicated.",
        ),
        ({"sources": [{"name": "a", "weight": 1, "path": "a"}]}, "licence is missing; a source is used only with its"),
        ({"sources": [{"name": "a", "weight": 1, "licence": "MIT", "paht": "a"}]}, "data.sources.0.paht is not a key"),
        ({"dedupe": {"treshold": 0.8}}, "data.dedupe.treshold is not a key"),
    ],
)
def test_wrong_configuration(tmp_path: Path, data: dict[str, object], said: str) -> None:
    path = tmp_path / "tiny.yml"
    path.write_text(yaml.safe_dump(TINY | {"data": TINY["data"] | data}))
    result = run.invoke(app, ["prepare", str(path), "--out", str(tmp_path / "out")])
    assert result.exit_code == 78
    assert said in result.stderr


def test_inspect(tmp_path: Path) -> None:
    write(tmp_path / "a", DOCUMENTS)
    described = json.loads(run.invoke(app, ["inspect", str(tmp_path / "a"), "--json"]).stdout)
    assert described | {"sha256": None} == {
        "type": "uint16",
        "documents": 3,
        "sequences": 3,
        "tokens": 15,
        "highest token": 8,
        "sha256": None,
    }
    assert "uint16" in run.invoke(app, ["inspect", str(tmp_path / "a")]).stdout
    (tmp_path / "a.bin").unlink()
    result = run.invoke(app, ["inspect", str(tmp_path / "a")])
    assert result.exit_code == 78
    assert "a.bin is missing; put it beside" in result.stderr


def test_inspect_holds_prepared_files_against_their_manifest(tmp_path: Path) -> None:
    path, out = tmp_path / "tiny.yml", tmp_path / "out"
    path.write_text(yaml.safe_dump(TINY))
    assert run.invoke(app, ["prepare", str(path), "--out", str(out)]).exit_code == 0
    prefix = next(out.glob("*.train.bin")).with_suffix("")
    assert run.invoke(app, ["inspect", str(prefix)]).exit_code == 0
    content = bytearray(prefix.with_name(f"{prefix.name}.bin").read_bytes())
    content[0] ^= 1
    prefix.with_name(f"{prefix.name}.bin").write_bytes(content)
    result = run.invoke(app, ["inspect", str(prefix)])
    assert result.exit_code == 78
    assert f"damaged: {prefix.name}.bin is not what was written" in result.stderr


def test_mixtures() -> None:
    assert run.invoke(app, ["mixtures"]).stdout.splitlines() == [
        "common-pile: 31 sources by weight, and weights by name: cooldown",
        "pile: 22 sources by epochs",
        "pile-deduplicated: 1 source by weight",
    ]
    assert "LicenseRef-Public" in run.invoke(app, ["mixtures", "pile"]).stdout
    [doab] = [line for line in run.invoke(app, ["mixtures", "common-pile"]).stdout.splitlines() if "doab " in line]
    assert [cell.strip() for cell in doab.split("│")[3:5]] == ["18", "6"]
    assert run.invoke(app, ["mixtures", "heap"]).exit_code == 78


def test_a_corpus_is_measured_where_it_lies(folder: Path, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "songs" / "a.jsonl.gz", ["la la", "lá"], key="song")

    def measure(kind: str, place: Path, *options: str) -> dict[str, object]:
        result = run.invoke(app, ["measure", kind, str(place), *options])
        assert result.exit_code == 0, result.output
        measured: dict[str, object] = json.loads(result.stdout)
        return {key: value for key, value in measured.items() if value}

    size = path.stat().st_size
    assert measure("text", path, "--text-key", "song") == {"files": 1, "bytes": size, "documents": 2, "text_bytes": 8}
    tokenizer = folder / "data" / "tokenizer.json"
    counted = measure("text", path, "--text-key", "song", "--tokenizer", str(tokenizer))
    bpe = Tokenizer.from_file(str(tokenizer))
    assert counted["tokens"] == sum(len(bpe.encode(text)) + 1 for text in ("la la", "lá"))
    assert measure("tokenizer", tokenizer)["vocabulary"] == bpe.get_vocab_size()
    chats = tmp_path / "chats.jsonl"
    chats.write_text('{"prompt": "la", "completion": " l\u00e1"}\n')
    measured = measure("instructions", chats)
    assert (measured["documents"], measured["text_bytes"]) == (1, 6)

    manifest = json.loads((folder / "data" / "manifest.json").read_text())
    prepared = measure("prepared", folder / "data")
    assert prepared["sources"] == {"python-docs": "PSF-2.0", "python-stdlib": "PSF-2.0"}
    tokens = [source[split]["tokens"] for source in manifest["sources"] for split in ("train", "held_out")]
    assert prepared["tokens"] == sum(tokens)
    pair = measure("tokens", folder / "data" / "python-docs.train")
    assert pair["tokens"] == manifest["sources"][0]["train"]["tokens"]


def test_a_corpus_is_checked_by_a_list_of_hashes(tmp_path: Path) -> None:
    paths = [write_jsonl(tmp_path / "songs" / name, ["la"]) for name in ("a.jsonl", "b.jsonl")]
    listed = tmp_path / "SHA256SUMS"
    lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()} *./{path.name}\n" for path in paths]

    def measure(text: str) -> Result:
        listed.write_text(text)
        return run.invoke(app, ["measure", "text", str(tmp_path / "songs" / "*.jsonl"), "--manifest", str(listed)])

    done = measure("".join(lines))
    assert json.loads(done.stdout)["manifest"] == hashlib.sha256(listed.read_bytes()).hexdigest()
    for text, sentence in (
        (lines[0], "does not list b.jsonl; write the manifest again."),
        ("".join(lines) + lines[0].replace("a.jsonl", "c.jsonl"), "lists c.jsonl, which is not among the files"),
        (lines[0] + "0" + lines[1][1:], "its SHA-256 differs; fetch it again."),
        ("".join(lines) + "nonsense", "line 3 is not “SHA256  FILE”"),
    ):
        refused = measure(text)
        assert (refused.exit_code, sentence in refused.stderr) == (78, True), refused.stderr


@pytest.mark.parametrize(
    ("kind", "place", "sentence"),
    [
        ("text", "nothing", "There is no file at"),
        ("tokens", "nothing", "nothing.idx is missing"),
        ("dataset", "nothing", "There is no folder at"),
        ("prepared", "nothing", "holds no prepared data"),
        ("tokenizer", "nothing", "There is no tokenizer at"),
        ("tokenizer", "a.txt", "is no tokenizer.json"),
        ("text", "a.txt", "is not valid JSON"),
    ],
)
def test_what_is_not_there_cannot_be_measured(tmp_path: Path, kind: str, place: str, sentence: str) -> None:
    (tmp_path / "a.txt").write_text("la")
    result = run.invoke(app, ["measure", kind, str(tmp_path / place)])
    assert (result.exit_code, sentence in result.stderr) == (78, True), result.stderr


@pytest.mark.parametrize(
    ("kind", "place", "files"),
    [
        ("text", "*.jsonl", ["a.jsonl", "b.jsonl"]),
        ("text", "texts", ["texts/a.txt"]),
        ("tokens", "pair", ["pair.bin", "pair.idx"]),
        ("tokenizer", "tokenizer.json", ["tokenizer.json"]),
        ("prepared", "texts", ["texts/.hidden", "texts/a.txt"]),
        ("tokens", "nothing", None),
        ("prepared", "nothing", None),
        ("tokenizer", "nothing", None),
    ],
)
def test_the_files_of_a_corpus_are_told(tmp_path: Path, kind: str, place: str, files: list[str] | None) -> None:
    (tmp_path / "texts").mkdir()
    for name in ("a.jsonl", "b.jsonl", "texts/a.txt", "texts/.hidden", "pair.bin", "pair.idx", "tokenizer.json"):
        (tmp_path / name).write_text("la")
    result = run.invoke(app, ["files", kind, str(tmp_path / place)])
    if files is None:
        assert (result.exit_code, "There is no file at" in result.stderr) == (78, True), result.stderr
    else:
        assert json.loads(result.stdout) == [str(tmp_path / name) for name in files]


def test_a_corpus_that_is_known_by_its_name_alone_lies_nowhere(tmp_path: Path) -> None:
    source = {"name": "songs", "corpus": "songs", "weight": 1, "licence": "MIT"}
    data = TINY["data"] | {"sources": [source]}
    config = write_config(tmp_path / "config.yml", {"data": data})
    result = run.invoke(app, ["prepare", str(config), "--out", str(tmp_path / "data")])
    assert (result.exit_code, "is the corpus songs, and where it lies is not said" in result.stderr) == (78, True)
    source["path"] = str(write_jsonl(tmp_path / "a.jsonl", ["la"] * 10))
    data["tokenizer"] = {"vocabulary": 500, "name": "neox"}
    config = write_config(tmp_path / "config.yml", {"data": data})
    result = run.invoke(app, ["prepare", str(config), "--out", str(tmp_path / "data")])
    assert (result.exit_code, "Where the tokenizer neox lies is not said" in result.stderr) == (78, True)


def test_seen_says_which_steps_read_a_text(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    every = {
        step: json.loads(run.invoke(app, ["show", str(folder), "--step", str(step), "--json"]).stdout)["rows"]
        for step in range(1, 13)
    }
    whole = next(row for row in every[7] if len(row["documents"]) == 1 and len(row["text"].split()) > 8)
    text = " ".join(whole["text"].split(" ")[1:-1]).strip()
    found = json.loads(run.invoke(app, ["seen", str(folder), "--text", text, "--json"]).stdout)
    read = {step for step, rows in every.items() if any(text in row["text"] for row in rows)}
    bpe, held = tokenizer.load(folder / "data"), [Indexed(folder / "data" / f"{name}.train").tokens for name in SOURCES]
    texts = [bpe.decode(each[: len(each) // 33 * 33].tolist(), skip_special_tokens=False) for each in held]
    assert found["found"] == sum(each.count(text) for each in texts) >= 1, "each passage counts once"
    assert {step for passage in found["passages"] for step in passage["steps"]} >= read > set()
    passage = found["passages"][0]
    assert passage["licence"] == "PSF-2.0"
    assert passage["share"] == 1
    # A text over the border of two rows was read by the steps of both.
    for passage in found["passages"]:
        assert all(
            any(passage["document"] in {part["document"] for part in row["documents"]} for row in every[step])
            for step in passage["steps"]
        )
    # Another end makes it a text that nobody has read, and the same place the nearest.
    other = json.loads(run.invoke(app, ["seen", str(folder), "--text", f"{text} zebra quagga", "--json"]).stdout)
    assert other["found"] == 0
    near = other["passages"][0]
    assert near["document"] in {passage["document"] for passage in found["passages"]}
    assert 0.5 < near["share"] < 1
    assert other["searched"] == other["held"] > 0
    monkeypatch.setenv("COLUMNS", "200")
    assert "PSF-2.0" in run.invoke(app, ["seen", str(folder), "--text", text]).stdout
    early = json.loads(
        run.invoke(app, ["seen", str(folder), "--text", text, "--until", str(min(read) - 1), "--json"]).stdout
    )
    assert early["done"] == min(read) - 1
    assert all(step < min(read) for passage in early["passages"] for step in passage["steps"])
    nonsense = json.loads(run.invoke(app, ["seen", str(folder), "--text", "🦓" * 40, "--json"]).stdout)
    assert (nonsense["found"], nonsense["passages"]) == (0, [])


def test_seen_refuses_a_text_of_a_word(folder: Path) -> None:
    result = run.invoke(app, ["seen", str(folder), "--text", "a"])
    assert result.exit_code == 78
    assert "4 are the fewest to search for" in result.stderr
