"""The name and the tags of a run: given at launch, and changed by who launched it and by the lead."""

from functools import partial

import pytest

from broker.reports import run_plan
from broker.runs import comparison, naming, runs
from projects import membership
from projects.errors import ConflictError, DomainError, ForbiddenError
from projects.people import Actor
from projects.record import redaction
from tests.at_once import at_once
from tests.broker.lab import ADA, GRACE, Lab, request_id

KATE = Actor(77, "Kate")


def rename(lab: Lab, run: int, name: str | None = None, tags: str | None = None, by: Actor = ADA) -> None:
    with lab.db.write() as session:
        naming.rename(session, by, run, name=name, tags=tags)


def called(lab: Lab, run: int) -> tuple[str, tuple[str, ...]]:
    view = lab.run(run)
    return view.name, view.tags


def test_a_run_is_launched_with_a_name_and_tags_and_found_by_them(lab: Lab, project: int, allocation: int) -> None:
    named = lab.launch(project, GRACE, name="  Wide,\n no warm-up 🧪 ", tags="#Rope, tiny rope;v1.2")
    plain = lab.launch(project)
    assert called(lab, named) == ("Wide, no warm-up 🧪", ("rope", "tiny", "v1.2"))
    first, second = lab.payloads(project, "run.queued")
    assert (first["name"], first["tags"]) == ("Wide, no warm-up 🧪", "rope tiny v1.2")
    assert second.keys().isdisjoint({"name", "tags"})
    with lab.db.read() as session:
        assert [run.id for run in runs.of_project(session, project, tag="tiny")] == [named]
        assert runs.of_project(session, project, tag="tin") == []
        assert runs.tags_of(session, project) == ["rope", "tiny", "v1.2"]
        assert [(number, name) for number, name, _, _ in runs.newest(session, project)] == [
            (plain, ""),
            (named, "Wide, no warm-up 🧪"),
        ]
        assert comparison.names(runs.views(session, [named, plain])) == ["Wide, no warm-up 🧪", "demo"]


def test_a_name_is_changed_by_who_launched_the_run_and_by_the_lead_alone(
    lab: Lab, project: int, allocation: int
) -> None:
    run, other = lab.launch(project, GRACE, name="Wide", tags="a b"), lab.launch(project, GRACE)
    rename(lab, run, "Wider", by=GRACE)
    assert called(lab, run) == ("Wider", ("a", "b")), "what is left out stays"
    rename(lab, run, tags="-")
    assert called(lab, run) == ("Wider", ())
    rename(lab, other, "Wider", "c")
    assert called(lab, other) == ("Wider", ("c",)), "the number tells two of one name apart"
    told = lab.payloads(project, "run.named")
    assert [(one["by"]["name"], one["run"]) for one in told] == [("Grace", run), ("Ada", run), ("Ada", other)]
    lab.join(project, KATE)
    with lab.db.write() as session:
        membership.confirm(session, ADA, project, who=str(KATE.discord_id))
    of_lead = lab.launch(project)
    before = lab.everything()
    refused = f"Only Grace, who launched run {run}, and Ada, the lead of “.*”, can name it"
    with pytest.raises(ForbiddenError, match=refused):
        rename(lab, run, "Hers", by=KATE)
    with pytest.raises(ForbiddenError, match=f"Only Ada, who launched run {of_lead} and leads “.*”, can name it"):
        rename(lab, of_lead, "Hers", by=KATE)
    with pytest.raises(ConflictError, match=f"Run {run} already has this name and these tags"):
        rename(lab, run, "Wider", "-")
    assert lab.everything() == before


@pytest.mark.parametrize(
    ("name", "tags", "sentence"),
    [
        pytest.param(None, None, "Say the new name, the new tags, or both; - takes them away", id="nothing"),
        pytest.param("x" * 4000, None, "The name has 4,000 characters; at most 60 fit", id="long name"),
        pytest.param(None, "a b c d e f", "A run has at most 5 tags; 6 were typed", id="many tags"),
        pytest.param(None, "x" * 4000, "is not a tag: a tag is a word of at most 20 letters", id="long tag"),
        pytest.param(None, "@everyone", "“@everyone” is not a tag", id="mention"),
    ],
)
def test_what_is_no_name_or_tag_is_refused_with_a_sentence_and_changes_nothing(
    lab: Lab, project: int, allocation: int, name: str | None, tags: str | None, sentence: str
) -> None:
    run = lab.launch(project)
    before = lab.everything()
    with pytest.raises(DomainError, match=sentence):
        rename(lab, run, name, tags)
    if (name, tags) != (None, None):
        with pytest.raises(DomainError, match=sentence):
            lab.launch(project, name=name or "", tags=tags or "")
    assert lab.everything() == before


def test_of_two_who_rename_at_once_the_last_one_counts_and_both_are_told(
    lab: Lab, project: int, allocation: int
) -> None:
    run = lab.launch(project, GRACE)
    at_once([partial(rename, lab, run, "Hers", by=GRACE), partial(rename, lab, run, "Mine")])
    names = [told["name"] for told in lab.payloads(project, "run.named")]
    assert sorted(names) == ["Hers", "Mine"]
    assert called(lab, run) == (names[-1], ())


def test_a_rerun_has_a_name_of_its_own_and_a_blanked_name_is_gone(lab: Lab, project: int, allocation: int) -> None:
    run = lab.launch(project, name="Wide", tags="a")
    with lab.db.write() as session:
        plan = run_plan.plan_rerun(session, ADA, request_id(), run, tags="b")
    with lab.db.write() as session:
        again = run_plan.confirm(session, ADA, plan.plan_id).run_id
    assert called(lab, again) == ("", ("b",))
    number = len(lab.kinds(project)) - 1
    with lab.db.write() as session:
        redaction.redact(session, None, f"project:{project}", number, "A slip.")
    assert called(lab, run) == (redaction.REMOVED, ())
