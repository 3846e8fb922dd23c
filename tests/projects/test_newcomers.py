"""Who has joined is a newcomer until the lead confirms them; the lead removes people, and an admin appoints a lead."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from projects import bans, findings, lifecycle, membership, policies, projects, rights, updates
from projects.errors import ConflictError, DomainError, ForbiddenError, InvalidError
from projects.people import Actor, LabRole
from projects.projects import Outcome, ProjectRole, Stage
from projects.record import record
from projects.rights import MAY, WORKING
from tests.projects.school import ACTS, ADA, EMMY, GRACE, ROSA, STRANGER, School

OMAR = Actor(20, "Omar", frozenset({LabRole.ADMIN}))
YET = "^Ada, the lead of “Sinks of attention”, has yet to confirm you: until then you can follow what happens"


def people(school: School, project: int) -> list[str]:
    """Their names, a newcomer's in brackets."""
    return [f"({member.name})" if member.newcomer else member.name for member in school.view(project).members]


def ban(school: School, who: Actor) -> None:
    with school.db.write() as session:
        bans.ban(session, None, who, "Spam.")


def open_joining(school: School) -> None:
    with school.db.write() as session:
        policies.change(session, None, "join_policy", "open", "We know each other.")


def test_a_newcomer_counts_at_once_and_does_what_a_follower_may(school: School) -> None:
    project = school.at(Stage.SCOPED)
    school.join(EMMY, project, confirmed=False)
    view = school.view(project)
    assert (view.stage, view.has_channel, people(school, project)) == (Stage.ACTIVE, True, ["Ada", "Grace", "(Emmy)"])
    assert (school.told(project)[-2].payload or {})["role"] == "newcomer"
    before = school.everything()
    for act, roles in MAY.items():
        if roles == WORKING:
            with school.db.read() as session, pytest.raises(ForbiddenError, match=YET):
                rights.check(session, EMMY, projects.load(session, project), act)
    with pytest.raises(ForbiddenError, match=YET):
        school.call(updates.post_update, EMMY, project, "Hear me.")
    with school.db.read() as session, pytest.raises(ConflictError, match="You work on no project"):
        findings.projects_of(session, EMMY)
    for act in ACTS:
        with pytest.raises(ForbiddenError, match=r"^(Only|Ada)"):
            ACTS[act](school, EMMY, project)
    with pytest.raises(ConflictError, match="are already in"):
        school.call(membership.follow, EMMY, project)
    assert school.everything() == before
    school.call(membership.leave, EMMY, project)
    assert people(school, project) == ["Ada", "Grace"]


def test_the_lead_confirms_a_newcomer_in_public(school: School) -> None:
    project = school.at(Stage.RECRUITING)
    school.join(EMMY, project, confirmed=False)
    for other in (EMMY, GRACE, STRANGER, ROSA):
        with pytest.raises(ForbiddenError, match="Only the lead of “Sinks of attention”, Ada, can do this"):
            school.confirm(project, EMMY, other)
    school.confirm(project, EMMY)
    assert people(school, project) == ["Ada", "Grace", "Emmy"]
    last = school.told(project)[-1]
    assert last.kind == "project.confirmed"
    assert last.payload is not None
    assert (last.payload["by"]["name"], last.payload["person"]) == ("Ada", {"id": "3", "name": "Emmy"})
    school.call(updates.post_update, EMMY, project, "Hear me.")


def test_only_a_newcomer_is_confirmed(school: School) -> None:
    project = school.at(Stage.RECRUITING)
    school.call(membership.follow, STRANGER, project)
    school.join(EMMY, project, confirmed=False)
    school.join(ROSA, project, confirmed=False)
    school.call(membership.leave, EMMY, project)
    ban(school, ROSA)
    before = school.everything()
    nobody = Actor(777, "Nobody")
    for who, sentence in (
        (GRACE, "Grace already works on “Sinks of attention”"),
        (ADA, "Ada already works on “Sinks of attention”"),
        (STRANGER, "Stranger is not in “Sinks of attention”"),
        (EMMY, "Emmy is not in “Sinks of attention”"),
        (ROSA, "Rosa is banned"),
        (nobody, "This person is not in “Sinks of attention”"),
    ):
        with pytest.raises(ConflictError, match=sentence):
            school.confirm(project, who)
    assert school.everything() == before


def test_of_two_confirmations_at_once_one_is_late_and_one_who_leaves_meanwhile_is_gone(school: School) -> None:
    def done(act: Callable[[], object]) -> bool:
        try:
            act()
        except ConflictError:
            return False
        return True

    for _ in range(2):
        project = school.at(Stage.RECRUITING)
        school.join(EMMY, project, confirmed=False)
        with ThreadPoolExecutor(2) as pool:
            assert sorted(pool.map(done, [lambda p=project: school.confirm(p, EMMY)] * 2)) == [False, True]
        assert school.kinds(project).count("project.confirmed") == 2  # Grace's, and Emmy's once
        other = school.at(Stage.RECRUITING)
        school.join(EMMY, other, confirmed=False)
        leave: list[Callable[[], object]] = [
            lambda p=other: school.confirm(p, EMMY),  # type: ignore[misc]
            lambda p=other: school.call(membership.leave, EMMY, p),  # type: ignore[misc]
        ]
        with ThreadPoolExecutor(2) as pool:
            confirmed, left = pool.map(done, leave)
        assert left
        assert people(school, other) == ["Ada", "Grace"]
        assert confirmed == (school.kinds(other)[-2] == "project.confirmed")


def test_the_lead_removes_a_person_with_a_reason_in_public(school: School) -> None:
    project = school.at(Stage.ACTIVE)
    school.join(STRANGER, project, confirmed=False)
    school.offer(project, GRACE)
    before = school.everything()
    for other in (GRACE, EMMY, STRANGER, ROSA):
        with pytest.raises(ForbiddenError, match="Only the lead"):
            school.remove(project, EMMY, other)
    with pytest.raises(InvalidError, match="The reason is empty"):
        school.remove(project, EMMY, reason=" ")
    with pytest.raises(ConflictError, match="Ada leads “Sinks of attention”"):
        school.remove(project, ADA)
    with pytest.raises(ConflictError, match=r"Rosa is not in|This person is not in"):
        school.remove(project, ROSA)
    assert school.everything() == before
    for who, role in ((GRACE, "contributor"), (STRANGER, "newcomer")):
        school.remove(project, who)
        last = school.told(project)[-1]
        assert last.payload is not None
        assert (last.kind, last.payload["role"], last.payload["why"]) == ("project.removed", role, "Spam.")
        assert last.payload["person"]["name"] == who.name
    assert people(school, project) == ["Ada", "Emmy"]
    with pytest.raises(ForbiddenError, match="Only members of “Sinks of attention” can do this: join it, and its lead"):
        school.call(updates.post_update, GRACE, project, "Hear me.")
    with pytest.raises(ConflictError, match="Nobody is offered"):
        school.call(membership.accept_lead, GRACE, project)


@pytest.mark.parametrize("policy", ["confirm", "open"])
def test_who_was_removed_comes_back_as_a_newcomer_under_any_policy(school: School, policy: str) -> None:
    project = school.at(Stage.ACTIVE)
    if policy == "open":
        open_joining(school)
    school.remove(project, GRACE)
    school.join(GRACE, project, confirmed=False)
    assert people(school, project) == ["Ada", "Emmy", "(Grace)"]
    with pytest.raises(ForbiddenError, match=YET):
        school.call(updates.post_update, GRACE, project, "Hear me.")
    with pytest.raises(ConflictError, match="already in"):
        school.join(GRACE, project, confirmed=False)


def test_by_the_open_policy_who_joins_is_a_contributor_at_once(school: School) -> None:
    project = school.at(Stage.RECRUITING)
    open_joining(school)
    school.call(membership.follow, EMMY, project)
    school.join(EMMY, project, confirmed=False)
    school.call(updates.post_update, EMMY, project, "Hear me.")
    assert people(school, project) == ["Ada", "Grace", "Emmy"]
    school.call(membership.leave, EMMY, project)
    school.join(EMMY, project, confirmed=False)  # nobody has removed her
    assert people(school, project) == ["Ada", "Grace", "Emmy"]


def test_a_newcomer_is_offered_no_lead_and_takes_no_credit(school: School) -> None:
    project = school.at(Stage.ACTIVE)
    school.join(STRANGER, project, confirmed=False)
    with pytest.raises(DomainError, match="only be offered to a contributor"):
        school.offer(project, STRANGER)
    school.call(lifecycle.complete, ADA, project, outcome=Outcome.RESULT, learnt="They do.")
    told = school.told(project)[-1].payload
    assert told is not None
    assert [person["name"] for person in told["people"]] == ["Ada", "Grace", "Emmy"]
    for act in (school.confirm, school.remove):
        with pytest.raises(ConflictError, match="is completed"):
            act(project, STRANGER)
    school.call(membership.leave, STRANGER, project)
    with pytest.raises(ConflictError, match="stays named"):
        school.call(membership.leave, GRACE, project)


def test_memberships_from_before_newcomers_stay_contributors(school: School) -> None:
    project = school.at(Stage.ACTIVE)
    with school.db.read() as session:
        roles = {row.role for row in session.query(projects.Membership).filter_by(project_id=project)}
    assert roles == {ProjectRole.CONTRIBUTOR}
    assert projects.Membership(project_id=1, person_id=1).role == ProjectRole.CONTRIBUTOR


def test_an_admin_appoints_a_lead_in_place_of_one_who_is_gone(school: School) -> None:
    project, other = school.at(Stage.ACTIVE), school.propose()
    school.join(STRANGER, project, confirmed=False)
    school.offer(project, GRACE)
    ban(school, ADA)
    with school.db.read() as session:
        lab = [entry.payload for entry in record.since(session, record.LAB, 0)]
    assert lab[-1] is not None
    assert lab[-1]["leads"] == [project, other]
    with pytest.raises(ForbiddenError, match="has yet to confirm you, and is banned: an admin appoints another lead"):
        school.call(updates.post_update, STRANGER, project, "Hear me.")
    before = school.everything()
    for actor in (GRACE, ROSA, STRANGER):
        with pytest.raises(ForbiddenError, match="Only the admins can appoint a lead"):
            school.appoint(project, GRACE, actor)
    for to, sentence in ((ADA, "Ada already leads"), (ROSA, "not in “Sinks of attention”")):
        with pytest.raises(ConflictError, match=sentence):
            school.appoint(project, to, OMAR)
    with pytest.raises(InvalidError, match="The reason is empty"):
        school.appoint(project, STRANGER, OMAR, " ")
    assert school.everything() == before
    school.appoint(project, STRANGER, OMAR)
    view, last = school.view(project), school.told(project)[-1]
    assert view.lead.name == "Stranger"
    assert people(school, project) == ["Stranger", "Ada", "Grace", "Emmy"]
    assert last.payload is not None
    assert (last.kind, last.payload["by"]["name"], last.payload["why"]) == (
        "project.lead_appointed",
        "Omar",
        "Ada is gone.",
    )
    assert (last.payload["person"]["name"], last.payload["before"]["name"]) == ("Stranger", "Ada")
    with pytest.raises(ConflictError, match="Nobody is offered"):
        school.call(membership.accept_lead, GRACE, project)
    school.call(lifecycle.pause, STRANGER, project, reason="To look around.")


def test_nobody_appoints_themselves_or_a_banned_person_and_the_operator_appoints_too(school: School) -> None:
    project = school.at(Stage.ACTIVE)
    admin = Actor(GRACE.discord_id, "Grace", frozenset({LabRole.ADMIN}))
    ban(school, EMMY)
    before = school.everything()
    with pytest.raises(ForbiddenError, match="Nobody appoints themselves"):
        school.appoint(project, GRACE, admin)
    with pytest.raises(ConflictError, match="Emmy is banned"):
        school.appoint(project, EMMY, OMAR)
    with pytest.raises(ConflictError, match="Emmy is banned"):
        school.offer(project, EMMY)
    assert school.everything() == before
    school.appoint(project, GRACE, None)
    assert school.view(project).lead.name == "Grace"
    school.stop(project, GRACE)
    with pytest.raises(ConflictError, match="is stopped; its lead stays as it is"):
        school.appoint(project, ADA, OMAR)


def test_who_was_ever_in_a_project_releases_nothing_it_holds_back(school: School) -> None:
    project = school.propose()
    school.scope(project, release_policy="held")
    school.join(ROSA, project, confirmed=False)
    with pytest.raises(ForbiddenError, match="Only a reviewer who is not of"):
        school.release(project)
    school.call(membership.leave, ROSA, project)
    with pytest.raises(ForbiddenError, match="Nobody who has been in “Sinks of attention” releases its checkpoints"):
        school.release(project)
    with school.db.read() as session, pytest.raises(ForbiddenError, match="Nobody who has been in"):
        updates.check_may_release(session, ROSA, project)
    school.release(project, Actor(9, "Kurt", frozenset({LabRole.REVIEWER})))
