"""The catalogue: what members may propose, who decides, and what runs can then be launched from."""

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from broker import catalogue, publications
from broker.publications import Repository
from broker.publishing import model_card
from broker.runs import comparison, runs
from projects.errors import ConflictError, DomainError, ForbiddenError, InvalidError, NotFoundError
from projects.people import Actor, LabRole
from projects.record import record
from tests import forked
from tests.broker.lab import ADA, GRACE, Lab, request_id
from trainer.config import RECIPES

ALAN = Actor(70, "Alan", frozenset({LabRole.ADMIN}))
KURT = Actor(71, "Kurt", frozenset({LabRole.ADMIN}))
COMMIT = "0123456789abcdef0123456789abcdef01234567"
DEMO = (RECIPES / "demo.yml").read_text()


def recipe(lab: Lab, body: str = DEMO, name: str = "ours", actor: Actor | None = ADA) -> int:
    with lab.db.write() as session:
        return catalogue.propose_recipe(session, actor, request_id(), name=name, body=body)


def dataset(lab: Lab, name: str = "books", actor: Actor | None = ADA, **changes: str) -> int:
    asked = {"dataset": "common/books", "revision": COMMIT, "licence": "cc-by-4.0"} | changes
    with lab.db.write() as session:
        return catalogue.propose_dataset(session, actor, request_id(), name=name, **asked)


def accept(lab: Lab, name: str, actor: Actor | None = ALAN, reason: str = "Well made.") -> None:
    with lab.db.write() as session:
        catalogue.accept(session, actor, name, reason=reason)


def retire(lab: Lab, name: str, actor: Actor | None = ALAN) -> None:
    with lab.db.write() as session:
        catalogue.retire(session, actor, name, reason="It leaks.")


def decline(lab: Lab, name: str, actor: Actor | None = ALAN, reason: str = "Too large.") -> None:
    with lab.db.write() as session:
        catalogue.decline(session, actor, name, reason=reason)


def listed(lab: Lab) -> list[str]:
    with lab.db.read() as session:
        return catalogue.recipes(session)


def told(lab: Lab) -> list[tuple[str, str, str]]:
    """Kind, name and reason of what the lab's chain tells of the catalogue."""
    with lab.db.read() as session:
        entries = record.since(session, record.LAB, 0)
    payloads = [(entry.kind, entry.payload or {}) for entry in entries if entry.kind.startswith("catalogue")]
    return [(kind, payload["name"], payload["why"]) for kind, payload in payloads]


def with_sources(*sources: dict[str, object]) -> str:
    values = yaml.safe_load(DEMO)
    values["data"]["sources"] = list(sources)
    return yaml.safe_dump(values)


BOOKS: dict[str, object] = {"name": "books", "dataset": "books", "weight": 1.0}


def test_only_builtin_recipes_whose_data_are_here_are_listed(lab: Lab) -> None:
    assert listed(lab) == ["demo"]


def test_a_recipe_is_proposed_accepted_and_launched(lab: Lab) -> None:
    project = lab.project()
    lab.allocation(project)
    recipe(lab)
    assert listed(lab) == ["demo"]
    with pytest.raises(NotFoundError, match="no recipe “ours”; the recipes are: demo"):
        lab.launch(project, recipe="ours")
    accept(lab, "ours")
    assert listed(lab) == ["demo", "ours"]
    run = lab.launch(project, recipe="ours", overrides="steps=7")
    assert (lab.run(run).recipe, lab.run(run).total_steps) == ("ours", 7)
    with pytest.raises(InvalidError, match="steps must be"):
        lab.launch(project, recipe="ours", overrides="steps=0")
    retire(lab, "ours")
    assert listed(lab) == ["demo"]
    assert lab.run(run).recipe == "ours"
    assert told(lab) == [
        ("catalogue.proposed", "ours", ""),
        ("catalogue.accepted", "ours", "Well made."),
        ("catalogue.retired", "ours", "It leaks."),
    ]


def test_a_recipe_of_stages_is_proposed_and_launched(lab: Lab) -> None:
    """Its stages share the steps that a member asks for; views of the run and its model card tell of them."""
    project = lab.project()
    lab.allocation(project)
    stages = [{"steps": 150}, {"steps": 50, "weights": {"python-docs": 1}, "decay": "linear"}]
    with pytest.raises(InvalidError, match=r"which is no source of data\.sources"):
        recipe(lab, yaml.safe_dump({"like": "demo", "stages": [stages[0], {"steps": 1, "weights": {"docs": 1}}]}))
    recipe(lab, yaml.safe_dump({"like": "demo", "stages": stages}))
    accept(lab, "ours")
    run, plain = lab.launch(project, recipe="ours", overrides="steps=8"), lab.launch(project)
    assert (lab.run(run).stages, lab.run(plain).stages) == ((6, 8), ())
    assert [stage["steps"] for stage in yaml.safe_load(lab.row(run).config)["stages"]] == [6, 2]
    assert "stages" not in lab.row(plain).config
    with lab.db.read() as session:
        said = "---\n# x\n\nStep 8 of 8. Each checkpoint is a branch\n## Loading\n"
        cards = [model_card.renewed(session, of, "lab/run", said) for of in (run, plain)]
        changed = {
            difference.field for difference in comparison.differences(session, runs.views(session, [run, plain]))
        }
    assert "- Stages: 2, which end at the steps 6, 8\n" in cards[0]
    assert "Stages" not in cards[1]
    assert {"stages[0].steps", "stages[1].weights.python-docs", "stages[1].decay"} <= changed


def test_a_recipe_names_a_dataset_and_takes_its_commit_and_licence(lab: Lab) -> None:
    with pytest.raises(NotFoundError, match="no dataset “books”; it has: none yet"):
        recipe(lab, with_sources(BOOKS))
    dataset(lab)
    recipe(lab, with_sources(BOOKS))
    with pytest.raises(ConflictError, match="common/books is proposed; it must be accepted"):
        accept(lab, "ours")
    accept(lab, "books")
    accept(lab, "ours")
    with lab.db.read() as session:
        source = catalogue.load(session, "ours").data.sources[0]
    assert (source.dataset, source.revision, source.licence) == ("common/books", COMMIT, "CC-BY-4.0")
    retire(lab, "books")
    with lab.db.read() as session, pytest.raises(ConflictError, match="common/books is retired"):
        catalogue.load(session, "ours")


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (DEMO.replace("layers: 4", "layers: 4\n  latyers: 4"), "model.latyers is not a key of the configuration"),
        (DEMO.replace("steps: 200", "steps: many"), "training.steps must be"),
        (DEMO.replace("sequence_length: 128", "sequence_length: 128\n  root: /etc"), "data.root names a place"),
        (DEMO.replace("sequence_length: 128", "sequence_length: 128\n  prepared: /x"), "data.prepared names a place"),
        (DEMO.replace("train_bytes: 2000000", "file: /etc/passwd"), "data.tokenizer.file names a place"),
        (with_sources({"name": "a", "path": "/etc/*", "weight": 1, "licence": "MIT"}), "sources.0.path names a place"),
        (with_sources({"name": "a", "tokens": "/x", "weight": 1, "licence": "MIT"}), "is missing; give"),
        (with_sources({"name": "a", "dataset": "../x", "weight": 1, "licence": "MIT"}), "no dataset “../x”"),
        (with_sources(BOOKS | {"revision": "main"}), "brings its own revision"),
        ("a: &a [1]\nb: *a\n", "aliases"),
        ("[1, 2]", "holds sections"),
        ("a: [", "not valid YAML at line 1"),
        ("a: 2026-13-45", "not valid YAML"),
        ("", "holds sections"),
        ("a: !!bool x", "not valid YAML at line 1"),
        ("a: 1\nb: !!timestamp x", "not valid YAML at line 2"),
        ("a: !!int x", "not valid YAML at line 1"),
        ("a: !!set x", "not valid YAML"),
        ("a: !!omap x", "not valid YAML"),
        ("a: 0x_", "not valid YAML at line 1"),
        ("a: " + "9" * 4000, "a number has 4,000 characters at line 1"),
        ("a: 1" + "9" * 4400, "a number has 4,401 characters"),
        ("a: 1\na: 2", "the key 'a' is given twice at line 2"),
        (DEMO.replace("layers: 4", "layers: 4\n  layers: 8"), "the key 'layers' is given twice"),
        ("yes: 1", "is no word at line 1; put it in quotes"),
        ("? [a]\n: 1", "not valid YAML"),
        ("a: " + "[" * 3000, "nested more than 30 deep"),
        ("a: &a [1,1,1,1,1,1,1,1,1,1]\nb: &b [*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b]\n", "aliases"),
        ("a: &a [*a]", "holds itself"),
        ('a: "x\\0y"', "a control character at line 1"),
        ("a\x00: 1", "not valid YAML"),
        ("a: \ud800", "not valid YAML"),
        ("training: 3", "model is missing"),
        ("x" * 9000, "at most 8,000 fit"),
    ],
)
def test_recipes_that_are_refused_change_nothing(lab: Lab, body: str, sentence: str) -> None:
    dataset(lab)
    before = lab.everything()
    with pytest.raises(DomainError, match=sentence):
        recipe(lab, body)
    assert lab.everything() == before


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"dataset": "books"}, "owner/name"),
        ({"dataset": "../books"}, "owner/name"),
        ({"dataset": "a/b/c"}, "owner/name"),
        ({"revision": "main"}, "40 hexadecimal digits"),
        ({"revision": COMMIT.upper()}, "40 hexadecimal digits"),
        ({"licence": "free for all"}, "SPDX"),
        ({"name": "Books"}, "lower-case"),
        ({"name": "../books"}, "lower-case"),
        ({"name": "pythia-14m"}, "built in"),
    ],
)
def test_datasets_that_are_refused_change_nothing(lab: Lab, changes: dict[str, Any], sentence: str) -> None:
    before = lab.everything()
    with pytest.raises(DomainError, match=sentence):
        dataset(lab, **changes)
    assert lab.everything() == before


def test_who_decides_and_how_often(lab: Lab) -> None:
    recipe(lab, actor=KURT)
    for actor, sentence in ((GRACE, "Only the admins"), (KURT, "entry of their own")):
        for decide in (accept, decline):
            with pytest.raises(ForbiddenError, match=sentence):
                decide(lab, "ours", actor)
    with lab.db.write() as session, pytest.raises(ForbiddenError, match="Only the admins"):
        catalogue.accept(session, Actor(9, "No"), "ours", reason="x")
    with pytest.raises(InvalidError, match="The reason is empty"):
        accept(lab, "ours", reason=" ")
    with pytest.raises(ConflictError, match="is proposed and cannot become retired"):
        retire(lab, "ours")
    accept(lab, "ours")
    for again in (accept, decline):
        with pytest.raises(ConflictError, match="is accepted and cannot become"):
            again(lab, "ours")
    with pytest.raises(NotFoundError, match="no entry “nothing”"):
        accept(lab, "nothing")


def test_a_declined_name_is_free_again_and_a_taken_one_is_not(lab: Lab) -> None:
    recipe(lab)
    with pytest.raises(ConflictError, match="already has “ours”"):
        dataset(lab, name="ours")
    decline(lab, "ours", None)
    recipe(lab)
    accept(lab, "ours", None)
    retire(lab, "ours", None)
    with pytest.raises(ConflictError, match="already has “ours”"):
        recipe(lab)
    assert [kind for kind, *_ in told(lab)] == [
        f"catalogue.{done}" for done in ("proposed", "declined", "proposed", "accepted", "retired")
    ]


def test_a_repeated_proposal_is_one_entry(lab: Lab) -> None:
    request = request_id()
    with lab.db.write() as session:
        first = catalogue.propose_recipe(session, ADA, request, name="ours", body=DEMO)
    with lab.db.write() as session:
        assert catalogue.propose_recipe(session, ADA, request, name="ours", body=DEMO) == first
    assert len(told(lab)) == 1


def test_operators_decide_from_the_command_line(tmp_path: Path) -> None:
    file = tmp_path / "small.yml"
    file.write_text(DEMO)

    def stoa(*said: str) -> subprocess.CompletedProcess[str]:
        environment = {"STOA_ENV_FILE": "", "STOA_HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
        return forked.run_module("cli.main", environment, *said)

    assert stoa("migrate").returncode == 0
    assert stoa("catalogue", "propose", str(file)).returncode == 0
    refused = stoa("catalogue", "propose", str(file))
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert stoa("catalogue", "propose-dataset", "books", "common/books", COMMIT, "MIT").returncode == 0
    assert stoa("catalogue", "accept", "small", "--why", "For all.").returncode == 0
    assert stoa("catalogue", "decline", "books", "--why", "Not yet.").returncode == 0
    assert stoa("catalogue", "list").stdout.splitlines() == [
        f"books: dataset, declined, by an operator common/books at {COMMIT}, MIT",
        "small: recipe, accepted, by an operator",
        "recipes to launch: demo, small",
    ]


def test_the_tables_go_and_come_back_with_data_in_them(lab: Lab) -> None:
    project = lab.project()
    lab.allocation(project)
    run = lab.launch(project)
    with lab.db.write() as session:
        publications.add(session, run, 0, "there")
        session.add(Repository(run_id=run, name="a/b", private=True))
    dataset(lab)
    for revision in ("0006", "head"):
        lab.db.migrate(revision)
    with lab.db.read() as session:
        assert publications.kept(session, run) == [0]
        assert session.get(Repository, run) is None
        assert catalogue.entries(session) == []


def test_a_recipe_may_be_like_a_built_in_one(lab: Lab) -> None:
    with pytest.raises(InvalidError, match=r"like is 'nothing'; the recipes are comma-7b, demo, "):
        recipe(lab, "like: nothing\n")
    recipe(lab, "like: demo\ntraining: {steps: 7}\n", name="short")
    accept(lab, "short")
    with lab.db.read() as session:
        ours, demo = catalogue.load(session, "short"), catalogue.load(session, "demo")
        assert "like" not in yaml.safe_load(catalogue.recipe_text(session, "short"))
    assert ours.training == demo.training.model_copy(update={"steps": 7})
    assert ours.data == demo.data
