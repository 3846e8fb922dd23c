"""What projects tell on their way, what they hold back, what moderators do; and migrations with all of it."""

import pytest
from sqlalchemy import text

from projects import membership, policies, projects, updates
from projects.errors import ConflictError, ForbiddenError, InvalidError
from projects.people import Actor, LabRole
from projects.projects import ReleasePolicy, Stage
from tests.projects.school import ADA, EMMY, GRACE, MARIE, ROSA, STRANGER, School


def held(school: School, project: int) -> bool:
    with school.db.read() as session:
        return projects.is_held(projects.load(session, project))


def by_moderators(school: School) -> None:
    with school.db.write() as session:
        policies.change(session, None, "channel_policy", "moderator", "Too many channels.")


def test_a_project_is_open_under_apache_unless_its_scope_says_otherwise(school: School) -> None:
    one, two = school.propose(), school.propose()
    school.scope(one)
    school.scope(two, release_policy="held", licence="MIT")
    assert [held(school, one), held(school, two)] == [False, True]
    assert [school.view(project).licence for project in (one, two)] == ["Apache-2.0", "MIT"]
    last = school.told(two)[-1].payload
    assert last is not None
    assert (last["release_policy"], last["licence"]) == ("held", "MIT")


@pytest.mark.parametrize("how", [{"release_policy": "secret"}, {"licence": "mine"}])
def test_a_release_that_is_not_offered_is_refused(school: School, how: dict[str, str]) -> None:
    project = school.propose()
    before = school.everything()
    with pytest.raises(InvalidError, match="one of"):
        school.scope(project, ADA, **how)
    assert school.everything() == before


def test_a_reviewer_who_is_not_of_the_project_releases_what_is_held(school: School) -> None:
    project = school.propose()
    insider = Actor(GRACE.discord_id, "Grace", frozenset({LabRole.REVIEWER}))
    school.join(GRACE, project)
    school.call(membership.follow, ROSA, project)  # reading along makes nobody a judge of their own work
    school.scope(project, release_policy="held")
    for actor in (insider, ADA, STRANGER):
        with pytest.raises(ForbiddenError, match="Only a reviewer who is not of"):
            school.release(project, actor)
    with pytest.raises(InvalidError, match="The reason is empty"):
        school.release(project, reason=" ")
    assert held(school, project)
    school.release(project, reason="It writes no recipes.")
    assert school.view(project).release_policy == ReleasePolicy.OPEN
    last = school.told(project)[-1]
    assert last.payload is not None
    assert (last.kind, last.payload["why"]) == ("project.released", "It writes no recipes.")
    with pytest.raises(ConflictError, match="holds nothing back"):
        school.release(project)


def test_updates_are_entries_of_who_works_on_the_project(school: School) -> None:
    project = school.at(Stage.RECRUITING)
    told = school.call(updates.post_update, GRACE, project, " Half of it is read. ")
    assert (told.kind, told.payload["text"]) == ("project.update", "Half of it is read.")
    assert school.told(project)[-1] == told
    with pytest.raises(InvalidError, match="The update is empty"):
        school.call(updates.post_update, GRACE, project, "")


def test_needs_are_edited_by_the_lead_and_may_be_none(school: School) -> None:
    project = school.at(Stage.ACTIVE)
    for needs in ("A writer.", ""):
        school.call(updates.change_needs, ADA, project, needs)
        assert school.view(project).needs == needs
    with pytest.raises(ConflictError, match="already says"):
        school.call(updates.change_needs, ADA, project, "")
    assert school.kinds(project)[-2:] == ["project.needs_changed"] * 2


@pytest.mark.parametrize("stage", [Stage.COMPLETED, Stage.STOPPED])
def test_what_has_ended_says_no_more(school: School, stage: Stage) -> None:
    project = school.at(stage)
    for act in (updates.post_update, updates.change_needs):
        with pytest.raises(ConflictError, match=f"is {stage}"):
            school.call(act, ADA, project, "More.")


def test_by_default_the_channel_comes_with_activity(school: School) -> None:
    project = school.at(Stage.SCOPED)
    assert not school.view(project).has_channel
    school.join(EMMY, project, confirmed=False)
    assert school.view(project).has_channel
    last = school.told(project)[-1].payload
    assert last is not None
    assert last["channel"] is True


def test_by_policy_the_channel_waits_for_a_moderator(school: School) -> None:
    by_moderators(school)
    project = school.at(Stage.ACTIVE)
    assert not school.view(project).has_channel
    school.open_channel(project)
    assert school.view(project).has_channel
    assert school.kinds(project)[-1] == "project.channel_opened"
    with pytest.raises(ConflictError, match="already has its channel"):
        school.open_channel(project)


def test_a_moderator_opens_the_channel_of_a_scope_before_its_people_are_there(school: School) -> None:
    project = school.at(Stage.SCOPED)
    school.open_channel(project)
    school.join(EMMY, project, confirmed=False)
    last = school.told(project)[-1].payload
    assert last is not None
    assert (last["people"], last["channel"]) == (3, False)


@pytest.mark.parametrize("stage", [Stage.PROPOSED, Stage.RECRUITING, Stage.COMPLETED, Stage.STOPPED])
def test_no_channel_is_opened_before_a_scope_or_after_the_end(school: School, stage: Stage) -> None:
    by_moderators(school)
    project = school.at(stage)
    with pytest.raises(ConflictError, match=f"is {stage}"):
        school.open_channel(project)


def test_a_hidden_project_is_in_no_list_and_goes_on(school: School) -> None:
    one, two = school.at(Stage.ACTIVE), school.propose()

    def listed() -> list[int]:
        with school.db.read() as session:
            return [view.id for view in projects.views(session)]

    assert listed() == [two, one]
    school.hide(one)
    assert listed() == [two]
    with pytest.raises(ConflictError, match="already hidden"):
        school.hide(one)
    school.call(updates.post_update, ADA, one, "Still here.")
    assert school.view(one).hidden
    school.unhide(one)
    assert listed() == [two, one]
    with pytest.raises(ConflictError, match="already shown"):
        school.unhide(one)
    told = [(entry.kind, (entry.payload or {})["why"]) for entry in school.told(one)]
    assert told[-3:] == [("project.hidden", "Spam."), ("project.update", ""), ("project.unhidden", "Not spam.")]


def test_migrations_go_down_and_up_with_projects_of_every_stage(school: School) -> None:
    projects = {stage: school.at(stage) for stage in Stage}
    active = projects[Stage.ACTIVE]
    school.call(membership.follow, STRANGER, active)
    school.offer(active, GRACE)
    school.hide(projects[Stage.PAUSED], MARIE)
    by_moderators(school)
    school.db.migrate("0002")
    with school.db.read() as session:
        rows = session.execute(text("SELECT id, stage, outcome FROM projects ORDER BY id")).all()
        people = session.scalar(text(f"SELECT count(*) FROM memberships WHERE project_id = {active}"))
    left = {stage: next(tuple(row[1:]) for row in rows if row[0] == project) for stage, project in projects.items()}
    assert left[Stage.PAUSED] == ("active", None)
    assert left[Stage.STOPPED] == ("completed", "abandoned")
    assert people == 3
    school.db.migrate()
    for stage, project in projects.items():
        view = school.view(project)
        assert view.has_channel == (stage not in {Stage.PROPOSED, Stage.RECRUITING, Stage.SCOPED})
        assert (view.release_policy, view.licence, view.hidden) == (ReleasePolicy.OPEN, "Apache-2.0", False)
        assert [member.name for member in view.members][:1] == ["Ada"]
    school.join(STRANGER, active)
    assert len(school.view(active).members) == 4
