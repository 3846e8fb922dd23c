"""Corpora on pools: what an operator registers, what recipes need of a pool, and what the trainer is given."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from broker import catalogue, configs
from broker.allocations import corpora, pools
from broker.reports import run_plan
from broker.runs import launching, preparing, series
from broker.runs.launching import Order, Origin
from broker.runs.runs import Run, RunState
from projects.errors import ConflictError, DomainError, InvalidError, NotFoundError
from projects.record import record
from tests import forked
from tests.broker.lab import ADA, Lab, request_id, settings
from tests.corpora import gpus_for, stand_ins
from tests.databases import ONCE
from tests.environment import bare
from tests.patience import PATIENCE
from trainer.config import load, load_recipe, recipe_names
from trainer.contract import CorpusKind, Measured

BIG = "big"
"""A pool that every recipe fits on."""
MEASURED = Measured(files=1, bytes=1000, documents=10, text_bytes=900)


def add(lab: Lab, name: str, path: Path | str = "/data/x.jsonl", pool: str = BIG, **changes: object) -> int:
    asked = {"kind": CorpusKind.TEXT, "licence": "MIT", "measured": MEASURED} | changes
    with lab.db.write() as session:
        return corpora.add(session, pool=pool, name=name, path=str(path), **asked)  # type: ignore[arg-type]


def big_pool(lab: Lab) -> int:
    """A project with hours of many large GPUs."""
    lab.pool(BIG)
    with lab.db.write() as session:
        pool = pools.named(session, BIG)
        pool.gpu_type, pool.gpus, pool.memory_gib = "H100", 64, 80
    project = lab.project()
    lab.approve(lab.request(project, pool=BIG, hours="50"), hours="50")
    return project


def told(lab: Lab, kind: str) -> list[Mapping[str, object]]:
    with lab.db.read() as session:
        return [e.payload or {} for e in record.since(session, record.LAB, 0) if e.kind == kind]


@ONCE
def test_every_recipe_can_be_launched_where_its_corpora_lie(lab: Lab, tmp_path: Path) -> None:
    project = big_pool(lab)
    found = stand_ins(tmp_path)
    with pytest.raises(NotFoundError, match=r"No pool has the data of “pythia-70m”.*to launch now are: demo\."):
        lab.launch(project, recipe="pythia-70m")
    for name, path in found.items():
        add(lab, name, path, licence="")
    with lab.db.read() as session:
        assert catalogue.recipes(session) == recipe_names()
    for name in recipe_names():
        run = lab.launch(project, recipe=name, gpus=gpus_for(name))
        assert lab.run(run).state == RunState.QUEUED
        with lab.db.read() as session:
            place = tmp_path / f"{name}.yml"
            place.write_text(preparing.using(settings(tmp_path), session, session.get_one(Run, run)))
            assert str(tmp_path) not in session.get_one(Run, run).config, "the record shows no place"
        given = load(place)
        for source in given.data.sources:
            assert source.builtin or source.path == str(found[source.corpus or ""])
        stated = load_recipe(name)
        assert (given.model, given.training, given.optimizer) == (stated.model, stated.training, stated.optimizer)
        assert [(s.name, s.licence, s.share) for s in given.data.sources] == [
            (s.name, s.licence, s.share) for s in stated.data.sources
        ]


@ONCE
def test_the_trainer_prepares_a_recipe_of_the_pile_from_what_lies_on_the_pool(lab: Lab, tmp_path: Path) -> None:
    project = big_pool(lab)
    for name, path in stand_ins(tmp_path).items():
        add(lab, name, path, licence="")
    run = lab.launch(project, recipe="pythia-14m", overrides="sequence_length=16")
    with lab.db.read() as session:
        config = preparing.using(settings(tmp_path), session, session.get_one(Run, run))
    (tmp_path / "config.yml").write_text(config)
    command = [sys.executable, "-m", "trainer", "data", "prepare", str(tmp_path / "config.yml"), "--workers", "1"]
    subprocess.run([*command, "--out", str(tmp_path / "data")], check=True, timeout=PATIENCE, env=bare())
    manifest = json.loads((tmp_path / "data" / "manifest.json").read_text())
    assert len(manifest["sources"]) == 22
    assert manifest["sources"][0]["place"] == {"corpus": "pile-pile-cc"}
    assert all(source["train"]["tokens"] for source in manifest["sources"])
    assert str(tmp_path) not in json.dumps(manifest["sources"])

    sources = {source["name"]: source["licence"] for source in manifest["sources"]}
    prepared = MEASURED.model_copy(update={"sources": sources})
    add(lab, "pile", tmp_path / "data", kind=CorpusKind.PREPARED, licence="", measured=prepared)
    with lab.db.read() as session:
        config = preparing.using(settings(tmp_path), session, session.get_one(Run, run))
    assert yaml.safe_load(config)["data"]["prepared"] == str(tmp_path / "data")


def test_a_pool_that_lacks_a_corpus_says_so_and_names_one_that_has_it(lab: Lab) -> None:
    project = big_pool(lab)
    lab.pool("other")
    add(lab, "pile-deduplicated", licence="", pool="other")
    with pytest.raises(
        ConflictError,
        match="“pythia-14m-deduped” needs pile-deduplicated, which the pool “big” lacks; the pool “other”",
    ):
        lab.launch(project, recipe="pythia-14m-deduped")
    add(lab, "pile-deduplicated", licence="")
    run = lab.launch(project, recipe="pythia-14m-deduped")
    with lab.db.write() as session:
        corpora.retire(session, pool=BIG, name="pile-deduplicated", reason="It is damaged.")
    with pytest.raises(ConflictError, match="lacks"):
        lab.launch(project, recipe="pythia-14m-deduped")
    with lab.db.read() as session:
        config = preparing.using(settings(Path("/home")), session, session.get_one(Run, run))
    assert "/data/x.jsonl" in config, "a run that was launched before goes on"
    assert [entry["name"] for entry in told(lab, "corpus.retired")] == ["pile-deduplicated"]


def test_members_name_corpora_and_tokenizers_and_never_places(lab: Lab) -> None:
    project = big_pool(lab)
    values = yaml.safe_load(configs.built_in()["demo"])
    values["data"]["tokenizer"] = {"vocabulary": 2048, "name": "neox"}
    values["data"]["sources"] = [{"name": "songs", "corpus": "songs", "weight": 1, "licence": "MIT"}]
    body = yaml.safe_dump(values)

    def propose(body: str) -> None:
        with lab.db.write() as session:
            catalogue.propose_recipe(session, ADA, request_id(), name="ours", body=body)

    with pytest.raises(NotFoundError, match="No pool has songs, neox; available: nothing yet"):
        propose(body)
    add(lab, "songs")
    add(lab, "neox", "/data/tokenizer.json", kind=CorpusKind.TOKENIZER)
    values["data"]["sources"][0]["path"] = "/etc/passwd"
    propose(yaml.safe_dump(values))
    with lab.db.write() as session:
        catalogue.accept(session, None, "ours", reason="Fine.")
    run = lab.launch(project, recipe="ours")
    with lab.db.read() as session:
        data = yaml.safe_load(preparing.using(settings(Path("/home")), session, session.get_one(Run, run)))["data"]
    assert data["tokenizer"]["file"] == "/data/tokenizer.json"
    assert [(source["path"], source["corpus"]) for source in data["sources"]] == [("/data/x.jsonl", "songs")]


def test_a_licence_is_the_same_on_both_sides(lab: Lab) -> None:
    project = big_pool(lab)
    with pytest.raises(InvalidError, match="“pile-arxiv” is a corpus of the built-in recipes, under LicenseRef-arXiv"):
        add(lab, "pile-arxiv", licence="MIT")
    values = yaml.safe_load(configs.built_in()["demo"])
    values["data"]["sources"] = [{"name": "songs", "corpus": "songs", "weight": 1, "licence": "CC0-1.0"}]
    add(lab, "songs")
    with lab.db.write() as session:
        catalogue.propose_recipe(session, ADA, request_id(), name="ours", body=yaml.safe_dump(values))
        catalogue.accept(session, None, "ours", reason="Fine.")
    with pytest.raises(ConflictError, match=r"“songs” is under MIT on the pool “big”, and “ours” says CC0-1\.0"):
        lab.launch(project, recipe="ours")


def test_prepared_data_are_those_of_the_recipe(lab: Lab) -> None:
    project = big_pool(lab)
    other = MEASURED.model_copy(update={"sources": {"songs": "MIT"}})
    add(lab, "pile", "/data/songs", kind=CorpusKind.PREPARED, licence="", measured=other)
    with pytest.raises(ConflictError, match="are of songs, and “pythia-14m” trains on arxiv, bookcorpus2"):
        lab.launch(project, recipe="pythia-14m")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"name": "../x"}, "The name of a corpus has up to 64"),
        ({"name": "Ä"}, "The name of a corpus has up to 64"),
        ({"path": "x"}, "The path of a corpus is absolute"),
        ({"path": "/" + "x" * 1000}, "The path of a corpus is absolute"),
        ({"licence": ""}, "Say under which licence"),
        ({"licence": "whatever"}, "must be an SPDX identifier"),
        ({"pool": "none"}, "There is no pool “none”"),
    ],
)
def test_nonsense_is_refused(lab: Lab, changes: dict[str, str], sentence: str) -> None:
    lab.pool(BIG)
    with pytest.raises(DomainError, match=sentence):
        add(lab, **({"name": "songs"} | changes))
    assert told(lab, "corpus.added") == []


def test_a_repeat_changes_nothing_and_other_contents_need_another_name(lab: Lab) -> None:
    lab.pool(BIG)
    assert add(lab, "songs") == add(lab, "songs")
    with pytest.raises(ConflictError, match="already has “songs”, with other contents"):
        add(lab, "songs", measured=MEASURED.model_copy(update={"bytes": 1}))
    assert len(told(lab, "corpus.added")) == 1
    assert "/data" not in json.dumps(told(lab, "corpus.added")), "where it lies is not for the record"


@ONCE
def test_an_operator_registers_what_lies_on_a_host(lab: Lab, tmp_path: Path) -> None:
    lab.pool(BIG)
    (tmp_path / "songs").mkdir()
    file = tmp_path / "songs" / "a.jsonl"
    file.write_text('{"song": "la"}\n{"song": "la la"}\n')
    listed = tmp_path / "SHA256SUMS"
    listed.write_text(f"{hashlib.sha256(file.read_bytes()).hexdigest()}  a.jsonl\n")

    def stoa(*arguments: str) -> subprocess.CompletedProcess[str]:
        environment = bare() | {
            "STOA_ENV_FILE": "",
            "STOA_HOME": str(tmp_path),
            "COLUMNS": "300",
            "STOA_DATABASE_URL": lab.db.url.render_as_string(hide_password=False),
        }
        return forked.run_module("cli.main", environment, "corpus", *arguments)

    asked = ["songs", "--pool", BIG, "--path", str(tmp_path / "songs" / "*.jsonl"), "--licence", "mit"]
    asked += ["--text-key", "song", "--sha256-manifest", str(listed)]
    done = stoa("add", *asked)
    assert (done.returncode, done.stdout) == (0, "songs on big: 2 documents, 33 bytes\n"), done.stderr
    with lab.db.read() as session:
        [(pool, corpus)] = corpora.every(session)
    assert (pool, corpus.licence, corpus.text_key, corpus.text_bytes) == (BIG, "MIT", "song", 7)
    assert corpus.manifest == hashlib.sha256(listed.read_bytes()).hexdigest()
    prepared = MEASURED.model_copy(update={"sources": {"songs": "CC0-1.0"}})
    add(lab, "verse", "/data/verse", kind=CorpusKind.PREPARED, licence="", measured=prepared)
    shown = stoa("list").stdout
    assert "2 documents" in shown
    assert "CC0-1.0" in shown
    with lab.db.write() as session:
        corpora.retire(session, pool=BIG, name="verse", reason="It was shown.")

    done = stoa("add", "songs", "--pool", BIG, "--path", str(tmp_path / "nothing"), "--licence", "whatever")
    assert (done.returncode, done.stderr.startswith("The licence must be")) == (2, True), "said before all is read"

    file.write_text('{"song": "lo"}\n{"song": "la la"}\n')
    done = stoa("add", *asked)
    assert done.returncode == 2
    assert "is not the file that" in done.stderr
    assert stoa("retire", "songs", "--pool", BIG, "--why", "It is damaged.").returncode == 0
    with lab.db.read() as session:
        assert corpora.every(session) == []


def offered(lab: Lab, project: int, recipe: str, overrides: str = "") -> list[str]:
    with lab.db.write() as session:
        order = Order(project, recipe, "1h", overrides=overrides)
        return [str(reading) for reading in run_plan.plan_run(session, ADA, request_id(), order).quote.reads]


def test_the_offer_says_how_many_epochs_a_run_reads(lab: Lab) -> None:
    project = big_pool(lab)
    add(lab, "pile-deduplicated", licence="")
    assert offered(lab, project, "pythia-14m-deduped") == [], "its tokens were not counted"
    with lab.db.write() as session:
        corpora.retire(session, pool=BIG, name="pile-deduplicated", reason="It is counted anew.")
    add(lab, "pile-deduplicated", licence="", measured=MEASURED.model_copy(update={"tokens": 207_000_000_000}))
    assert offered(lab, project, "pythia-14m-deduped") == ["1.45 epochs of pile-deduplicated (207.0 B tokens)"]
    assert offered(lab, project, "pythia-14m-deduped", "steps=1000") == [
        "0.0101 epochs of pile-deduplicated (207.0 B tokens)"
    ]


def test_a_fork_is_offered_with_the_stages_that_are_left(lab: Lab) -> None:
    project = big_pool(lab)
    for name in ("songs", "tales"):
        add(lab, name, measured=MEASURED.model_copy(update={"tokens": 1000}))
    values = yaml.safe_load(configs.built_in()["demo"])
    values["training"] |= {"steps": 12}
    values["data"]["sources"] = [
        {"name": name, "corpus": name, "weight": 1, "licence": "MIT"} for name in ("songs", "tales")
    ]
    values["stages"] = [{"steps": 8}, {"steps": 4, "weights": {"songs": 1}}]
    with lab.db.write() as session:
        catalogue.propose_recipe(session, ADA, request_id(), name="ours", body=yaml.safe_dump(values))
        catalogue.accept(session, None, "ours", reason="Fine.")
    origin = Origin(lab.launch(project, recipe="ours"), 10)
    with lab.db.read() as session:
        whole, fork = (launching.quote(session, Order(project, "ours", "1h", origin=each)) for each in (None, origin))
    trained = whole.tokens // 12
    assert [(stage.number, stage.steps) for stage in whole.stages] == [(1, 8), (2, 4)]
    assert {read.corpus: read.epochs * 1000 for read in whole.reads} == pytest.approx(
        {"songs": 8 * trained, "tales": 4 * trained}
    )
    assert [(stage.number, stage.steps, stage.tokens) for stage in fork.stages] == [(2, 2, {"songs": 2 * trained})]
    assert {read.corpus: read.epochs * 1000 for read in fork.reads} == pytest.approx({"songs": 2 * trained})


def test_of_many_corpora_the_one_read_most_often_comes_first(lab: Lab) -> None:
    project = big_pool(lab)
    sources = load_recipe("pythia-70m").data.sources
    for source in sources[1:]:
        add(lab, source.corpus or "", licence="", measured=MEASURED.model_copy(update={"tokens": 10**9}))
    add(lab, sources[0].corpus or "", licence="")
    assert offered(lab, project, "pythia-70m") == [], "one of them was not counted, and the mixture is by epochs"
    with lab.db.write() as session:
        corpora.retire(session, pool=BIG, name=sources[0].corpus or "", reason="It is counted anew.")
    add(lab, sources[0].corpus or "", licence="", measured=MEASURED.model_copy(update={"tokens": 10**9}))
    said = offered(lab, project, "pythia-70m")
    epochs = {source.corpus: source.share for source in sources}
    trained = 143_000 * 1024 * 2048
    assert said[0] == f"{3 * trained / sum(epochs.values()) / 1e9:.3g} epochs of pile-wikipedia (1.0 B tokens)"
    assert len(said) == 22

    prepared = MEASURED.model_copy(update={"tokens": 300_100_000_000, "sources": {s.name: s.licence for s in sources}})
    add(lab, "pile", "/data/pile", kind=CorpusKind.PREPARED, licence="", measured=prepared)
    assert offered(lab, project, "pythia-70m") == ["0.999 epochs of pile (300.1 B tokens)"]


def test_a_large_recipe_on_small_stand_in_data_is_refused_by_the_memory_of_its_real_size(
    lab: Lab, tmp_path: Path
) -> None:
    project = big_pool(lab)
    for name, path in stand_ins(tmp_path).items():
        add(lab, name, path, licence="")
    with pytest.raises(InvalidError, match=r"\(4 × 2\) must divide the number of ranks \(1\)"):
        lab.launch(project, recipe="gpt-neox-20b")
    values = yaml.safe_load(configs.built_in()["gpt-neox-20b"])
    values["parallel"] |= {"pipeline": 1, "tensor": 1}
    with lab.db.write() as session:
        catalogue.propose_recipe(session, ADA, request_id(), name="unsplit", body=yaml.safe_dump(values))
        catalogue.accept(session, None, "unsplit", reason="Fine.")
    with pytest.raises(InvalidError, match=r"on each GPU and there are 80\.0 GiB") as refused:
        lab.launch(project, recipe="unsplit")
    needed = float(str(refused.value).removeprefix("It needs about ").partition(" GiB")[0])
    state = 18 * 20_554_567_680 / 2**30  # weights in bf16, gradients and Adam's state in fp32, of Black et al. 2022
    assert state < needed < 1.1 * state

    with lab.db.write() as session:
        pools.named(session, BIG).memory_gib = 40
    with pytest.raises(InvalidError, match=r"about 50\.2 GiB on each GPU and there are 40\.0 GiB"):
        lab.launch(project, recipe="gpt-neox-20b", gpus=8)
    with lab.db.write() as session:
        pools.named(session, BIG).memory_gib = 80
    assert lab.run(lab.launch(project, recipe="gpt-neox-20b", gpus=8)).state == RunState.QUEUED


def test_the_cost_of_a_recipe_on_small_stand_in_data_follows_its_real_parameters_and_tokens(lab: Lab) -> None:
    project = big_pool(lab)
    add(lab, "pile-deduplicated", licence="")
    small = lab.launch(project, recipe="pythia-14m-deduped")
    with lab.db.write() as session:
        series.add(session, small, [series.Measured("tokens_per_second", 2, 4096, 1e6)])

    def flops(non_embedding: int, layers: int, hidden: int) -> int:
        """FLOPs of a token: six for each parameter of the layers and of the head, and those of attention."""
        return 6 * (non_embedding + 50_304 * hidden) + 12 * layers * hidden * 2048

    # Without embeddings: Pythia-70M as in Biderman et al. 2023, table 1; Pythia-14M by its six layers of width 128.
    ratio = flops(18_915_328, 6, 512) / flops(1_189_888, 6, 128)
    tokens = 143_000 * 1024 * 2048
    receipt = lab.receipt(project, recipe="pythia-70m-deduped")
    assert receipt.expected == round(tokens / 1e6 * ratio)
    with lab.db.read() as session:
        quote = launching.quote(session, Order(project, "pythia-70m-deduped", "1h"))
    assert (quote.parameters, quote.tokens, quote.expected) == (70_426_624, tokens, receipt.expected)


def stored(lab: Lab, name: str, pool: str) -> None:
    """An operator has sent it to the store."""
    with lab.db.write() as session:
        corpora.is_stored(session, corpora.named(session, pool=pool, name=name), pool=pool, sha256=f"{pool:0<64}")


def given(lab: Lab, run: int, home: Path) -> tuple[dict[str, Any], list[str]]:
    """The data of a run's configuration as the trainer is given it on a host, and what is copied first."""
    with lab.db.read() as session:
        row = session.get_one(Run, run)
        copied = [corpus.name for corpus in preparing.copied(session, row)]
        return yaml.safe_load(preparing.using(settings(home), session, row))["data"], copied


def test_what_a_pool_lacks_is_copied_and_what_it_has_is_read_there(lab: Lab, tmp_path: Path) -> None:
    project = big_pool(lab)
    lab.pool("other")
    values = yaml.safe_load(configs.built_in()["demo"])
    values["data"]["tokenizer"] = {"vocabulary": 2048, "name": "neox"}
    values["data"]["sources"] = [
        {"name": name, "corpus": name, "weight": 1, "licence": "MIT"} for name in ("songs", "poems")
    ]
    add(lab, "songs", "/data/songs/*.jsonl")
    add(lab, "poems", "/far/poems/*/part-?.jsonl", pool="other")
    add(lab, "neox", "/far/neox/tokenizer.json", pool="other", kind=CorpusKind.TOKENIZER)
    with lab.db.write() as session:
        catalogue.propose_recipe(session, ADA, request_id(), name="ours", body=yaml.safe_dump(values))
        catalogue.accept(session, None, "ours", reason="Fine.")
    stored(lab, "poems", "other")
    with pytest.raises(
        ConflictError,
        match="needs neox, which the pool “big” lacks; an operator shares neox with `stoa corpus push neox",
    ):
        lab.launch(project, recipe="ours")
    stored(lab, "neox", "other")
    run = lab.launch(project, recipe="ours")
    data, copied = given(lab, run, tmp_path)
    assert copied == ["poems", "neox"]
    assert [source["path"] for source in data["sources"]] == [
        "/data/songs/*.jsonl",
        f"{tmp_path}/corpora/poems-other0000000/*/part-?.jsonl",
    ]
    assert data["tokenizer"]["file"] == f"{tmp_path}/corpora/neox-other0000000/tokenizer.json"

    with lab.db.write() as session:
        corpora.retire(session, pool="other", name="poems", reason="It is damaged.")
    assert given(lab, run, tmp_path) == (data, copied), "a run that was launched before goes on"
    with pytest.raises(ConflictError, match="needs poems, which the pool “big” lacks; an operator registers them"):
        lab.launch(project, recipe="ours")
    add(lab, "poems", "/data/poems.jsonl")
    assert given(lab, lab.launch(project, recipe="ours"), tmp_path)[1] == ["neox"], "what lies there is read there"


def test_a_built_in_recipe_is_offered_where_the_store_has_its_corpora(lab: Lab, tmp_path: Path) -> None:
    project = big_pool(lab)
    for pool in ("one", "two"):
        lab.pool(pool)
    names = sorted({source.corpus or "" for source in load_recipe("pythia-14m").data.sources})
    for number, name in enumerate(names):
        pool = "one" if number % 2 else "two"
        add(lab, name, licence="", pool=pool)
    with lab.db.read() as session:
        assert catalogue.recipes(session) == ["demo"], "no pool has all"
    for number, name in enumerate(names):
        stored(lab, name, "one" if number % 2 else "two")
    with lab.db.read() as session:
        assert "pythia-14m" in catalogue.recipes(session)
        assert "pythia-14m" in preparing.preparable(session)
    with lab.db.write() as session:
        run = launching.prepare(session, ADA, request_id(), project_id=project, recipe="pythia-14m", time_limit="1h")
    data, copied = given(lab, run.run_id, tmp_path)
    assert sorted(copied) == names
    assert all(source["path"].startswith(f"{tmp_path}/corpora/") for source in data["sources"])

    sources = {source.name: source.licence for source in load_recipe("pythia-14m").data.sources}
    prepared = MEASURED.model_copy(update={"sources": sources})
    add(lab, "pile", "/far/pile", kind=CorpusKind.PREPARED, licence="", measured=prepared, pool="one")
    stored(lab, "pile", "one")
    data, copied = given(lab, lab.launch(project, recipe="pythia-14m"), tmp_path)
    assert (copied, data["prepared"]) == (["pile"], f"{tmp_path}/corpora/pile-one000000000/pile")
    before = lab.everything()
    with (
        pytest.raises(ConflictError, match="are already in the store, as “pile”; its runs on “big” copy them"),
        lab.db.write() as session,
    ):
        launching.prepare(session, ADA, request_id(), project_id=project, recipe="pythia-14m", time_limit="1h")
    assert lab.everything() == before


def test_a_corpus_that_was_retired_meanwhile_is_not_noted_as_stored(lab: Lab) -> None:
    lab.pool(BIG)
    add(lab, "songs")
    with lab.db.read() as session:
        corpus = corpora.named(session, pool=BIG, name="songs")
    with lab.db.write() as session:
        corpora.retire(session, pool=BIG, name="songs", reason="It is damaged.")
    with pytest.raises(ConflictError, match="was retired meanwhile"), lab.db.write() as session:
        corpora.is_stored(session, corpus, pool=BIG, sha256="0" * 64)
    assert told(lab, "corpus.stored") == []
