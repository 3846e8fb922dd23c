"""The tables of stages and of rights hold: no act of anybody takes a project where they do not lead."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from projects import lifecycle, membership, policies, projects, rights
from projects.errors import ConflictError, DomainError, ForbiddenError
from projects.lifecycle import TRANSITIONS
from projects.people import Actor, LabRole
from projects.policies import Policies
from projects.projects import ENDED, Outcome, ProjectRole, Stage
from projects.rights import MAY, Act
from tests.projects.school import ACTS, ADA, GRACE, MARIE, ROSA, STRANGER, School

S = Stage
LEADS_TO = {
    Act.SCOPE: {S.PROPOSED: S.SCOPED, S.RECRUITING: S.SCOPED},
    Act.PAUSE: {S.ACTIVE: S.PAUSED},
    Act.RESUME: {S.PAUSED: S.ACTIVE},
    Act.COMPLETE: dict.fromkeys(set(S) - ENDED, S.COMPLETED),
    Act.STOP: dict.fromkeys(set(S) - ENDED, S.STOPPED),
}
CAST = {
    ProjectRole.LEAD: ADA,
    ProjectRole.CONTRIBUTOR: GRACE,
    ProjectRole.FOLLOWER: STRANGER,
    LabRole.REVIEWER: ROSA,
    LabRole.MODERATOR: MARIE,
}

L, C = ProjectRole.LEAD, ProjectRole.CONTRIBUTOR
R, M, A = LabRole.REVIEWER, LabRole.MODERATOR, LabRole.ADMIN
AGREED = {
    Act.SCOPE: {L},
    Act.PAUSE: {L},
    Act.RESUME: {L},
    Act.COMPLETE: {L},
    Act.STOP: {L, M},
    Act.CHANGE_NEEDS: {L},
    Act.POST_UPDATE: {L, C},
    Act.PUT_ON_RECORD: {L, C},
    Act.HAND_OVER: {L},
    Act.CONFIRM: {L},
    Act.REMOVE: {L},
    Act.APPOINT_LEAD: {A},
    Act.USE_COMPUTE: {L, C},
    Act.ASK_FOR_COMPUTE: {L},
    Act.RELEASE: {R},
    Act.OPEN_CHANNEL: {M},
    Act.HIDE: {M},
    Act.UNHIDE: {M},
    Act.REVIEW: {R},
    Act.DECIDE_CATALOGUE: {A},
    Act.MANAGE_COMPUTE: {A},
    Act.SET_SHARES: {A},
    Act.CHANGE_POLICIES: {A},
    Act.BAN: {A},
    Act.REDACT: {A},
    Act.SET_UP: {A},
}


def test_the_table_of_stages_is_the_one_that_was_agreed() -> None:
    shown = {f"{one} → {', '.join(sorted(others))}" for one, others in TRANSITIONS.items()}
    assert shown == {
        "proposed → completed, recruiting, scoped, stopped",
        "recruiting → completed, scoped, stopped",
        "scoped → active, completed, stopped",
        "active → completed, paused, stopped",
        "paused → active, completed, stopped",
        "completed → ",
        "stopped → ",
    }


def test_the_table_of_rights_is_the_one_that_was_agreed() -> None:
    assert MAY == AGREED


@pytest.mark.parametrize("stage", list(Stage))
def test_at_each_stage_each_act_goes_where_the_table_leads_or_changes_nothing(school: School, stage: Stage) -> None:
    for act in (Act.SCOPE, Act.PAUSE, Act.RESUME, Act.COMPLETE, Act.STOP):
        project, to = school.at(stage), LEADS_TO[act].get(stage)
        before = school.everything()
        if to is None:
            with pytest.raises(ConflictError, match=f"“Sinks of attention” is (already )?{stage}"):
                ACTS[act](school, ADA, project)
            assert school.everything() == before, act
        else:
            told = len(school.kinds(project))
            ACTS[act](school, ADA, project)
            assert school.view(project).stage == to
            assert len(school.kinds(project)) == told + 1


@pytest.mark.parametrize("act", list(ACTS))
def test_who_has_no_right_to_an_act_changes_nothing(school: School, act: Act) -> None:
    project = school.at(Stage.ACTIVE)
    school.call(membership.follow, STRANGER, project)
    for actor in (ROSA, MARIE):  # the act of a person who is known cannot hide behind a first meeting
        school.propose(actor)
    before = school.everything()
    for role, actor in CAST.items():
        if role not in MAY[act]:
            with pytest.raises(ForbiddenError, match=r"^(Only|Nobody)"):
                ACTS[act](school, actor, project)
            assert school.everything() == before, role


def test_a_reviewer_or_moderator_is_one_by_the_role_alone(school: School) -> None:
    project = school.propose()
    pretender = Actor(ADA.discord_id, "Ada")
    with pytest.raises(ForbiddenError, match="Only moderators"):
        ACTS[Act.HIDE](school, pretender, project)
    with pytest.raises(ForbiddenError, match="Only moderators"), school.db.write() as session:
        rights.check(session, STRANGER, projects.load(session, project), Act.HIDE)


@given(
    stage=st.sampled_from(Stage),
    story=st.lists(st.tuples(st.sampled_from(list(ACTS)), st.sampled_from(list(CAST.values()))), max_size=15),
)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_story_leaves_the_tables(school: School, stage: Stage, story: list[tuple[Act, Actor]]) -> None:
    with school.db.write() as session:  # every story leaves its project behind
        for name in Policies.model_fields:
            if name.startswith("most_"):
                session.merge(policies.Policy(name=name, value="100000"))
    project = school.at(stage)
    if stage not in ENDED:
        school.call(membership.follow, STRANGER, project)
    for act, actor in story:
        before = school.view(project)
        told = school.kinds(project)
        try:
            ACTS[act](school, actor, project)
        except DomainError:
            assert school.view(project) == before
            assert school.kinds(project) == told
        else:
            after = school.view(project)
            assert after.stage == LEADS_TO.get(act, {}).get(before.stage, before.stage)
            assert after.stage == before.stage or after.stage in TRANSITIONS[before.stage]
            assert len(school.kinds(project)) == len(told) + 1
            assert after.lead.lead
    school.told(project)


@pytest.mark.parametrize(
    ("stage", "acts"),
    [
        (Stage.ACTIVE, (Act.PAUSE, Act.PAUSE)),
        (Stage.ACTIVE, (Act.COMPLETE, Act.STOP)),
        (Stage.PAUSED, (Act.RESUME, Act.RESUME)),
        (Stage.RECRUITING, (Act.SCOPE, Act.SCOPE)),
        (Stage.SCOPED, (Act.OPEN_CHANNEL, Act.OPEN_CHANNEL)),
        (Stage.ACTIVE, (Act.HIDE, Act.HIDE)),
    ],
)
def test_of_two_at_the_same_moment_one_is_told_that_it_is_late(
    school: School, stage: Stage, acts: tuple[Act, Act]
) -> None:
    for _ in range(3):
        project = school.at(stage)
        told = len(school.kinds(project))

        def do(act: Act, project: int = project) -> bool:
            try:
                ACTS[act](school, MARIE if act in {Act.OPEN_CHANNEL, Act.HIDE} else ADA, project)
            except ConflictError:
                return False
            return True

        with ThreadPoolExecutor(2) as pool:
            assert sorted(pool.map(do, acts)) == [False, True]
        assert len(school.kinds(project)) == told + 1


def test_what_was_paused_can_have_a_result_and_says_why_it_rested(school: School) -> None:
    project = school.at(Stage.PAUSED)
    assert school.view(project).stage_reason == "Exams."
    school.call(lifecycle.complete, ADA, project, outcome=Outcome.RESULT, learnt="They do.")
    view = school.view(project)
    assert (view.outcome, view.learnt, view.stage_reason) == (Outcome.RESULT, "They do.", "")


def test_a_moderator_stops_a_project_with_a_reason_that_is_public(school: School) -> None:
    project = school.at(Stage.ACTIVE)
    with pytest.raises(DomainError, match="The reason is empty"):
        school.stop(project, MARIE, " ")
    school.stop(project, MARIE, "Against the rules.")
    view, last = school.view(project), school.told(project)[-1]
    assert (view.stage, view.stage_reason, view.outcome) == (Stage.STOPPED, "Against the rules.", None)
    assert last.kind == "project.stopped"
    assert last.payload is not None
    assert (last.payload["by"]["name"], last.payload["why"]) == ("Marie", "Against the rules.")


@pytest.mark.parametrize("stage", list(Stage))
def test_a_project_may_compute_from_its_proposal_on_unless_it_rests_or_has_ended(school: School, stage: Stage) -> None:
    project = school.at(stage)
    with school.db.read() as session:
        may = projects.may_compute(projects.load(session, project))
    assert may == (stage in {Stage.PROPOSED, Stage.RECRUITING, Stage.SCOPED, Stage.ACTIVE})
