"""The people of a project: who counts, who reads along, and how the lead changes hands."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from projects import membership, projects, rights
from projects.errors import ConflictError, DomainError, ForbiddenError, NotFoundError
from projects.people import Actor
from projects.projects import Stage
from tests.projects.school import ADA, EMMY, GRACE, ROSA, STRANGER, School


def names(school: School, project: int) -> list[str]:
    return [member.name for member in school.view(project).members]


def test_followers_read_along_and_count_for_nothing(school: School) -> None:
    project = school.at(Stage.SCOPED)
    school.call(membership.follow, EMMY, project)
    view = school.view(project)
    assert (view.stage, view.followers, len(view.members)) == (Stage.SCOPED, 1, 2)
    with school.db.read() as session:
        row = projects.load(session, project)
        for act in (rights.require_member, rights.require_lead):
            with pytest.raises(ForbiddenError):
                act(session, EMMY, row)
    school.join(EMMY, project)
    view = school.view(project)
    assert (view.stage, view.followers, names(school, project)) == (Stage.ACTIVE, 0, ["Ada", "Grace", "Emmy"])
    with school.db.read() as session:
        assert rights.require_member(session, EMMY, projects.load(session, project)).name == "Emmy"


def test_who_leaves_is_gone_and_may_come_back(school: School) -> None:
    project = school.at(Stage.RECRUITING)
    school.call(membership.follow, STRANGER, project)
    for actor in (GRACE, STRANGER):
        school.call(membership.leave, actor, project)
        with pytest.raises(ConflictError, match="You are not in"):
            school.call(membership.leave, actor, project)
    view = school.view(project)
    assert (names(school, project), view.followers, view.stage) == (["Ada"], 0, Stage.RECRUITING)
    school.join(GRACE, project)
    assert names(school, project) == ["Ada", "Grace"]
    told = [(entry.kind, (entry.payload or {}).get("role")) for entry in school.told(project)[3:]]
    assert told == [
        ("project.followed", None),
        ("project.left", "contributor"),
        ("project.left", "follower"),
        ("project.joined", "newcomer"),
        ("project.confirmed", None),
    ]


def test_who_is_in_a_project_cannot_be_in_it_twice(school: School) -> None:
    project = school.at(Stage.RECRUITING)
    school.call(membership.follow, STRANGER, project)
    before = school.everything()
    for act, actor, sentence in (
        (membership.follow, STRANGER, "You already follow “Sinks of attention”"),
        (membership.follow, GRACE, "You are already in “Sinks of attention”"),
        (membership.follow, ADA, "You are already in “Sinks of attention”"),
    ):
        with pytest.raises(ConflictError, match=sentence):
            school.call(act, actor, project)
    with pytest.raises(ConflictError, match="You are already in"):
        school.join(GRACE, project)
    assert school.everything() == before


@pytest.mark.parametrize("stage", [Stage.COMPLETED, Stage.STOPPED])
def test_the_people_of_a_project_that_has_ended_stay_named(school: School, stage: Stage) -> None:
    project = school.at(stage)
    for act, actor in ((membership.leave, GRACE), (membership.follow, STRANGER), (membership.accept_lead, GRACE)):
        with pytest.raises(ConflictError, match=f"is {stage}"):
            school.call(act, actor, project)
    with pytest.raises(ConflictError, match=f"is {stage}"):
        school.join(STRANGER, project)
    with pytest.raises(ConflictError, match=f"is {stage}"):
        school.offer(project, GRACE)
    assert names(school, project) == ["Ada", "Grace", "Emmy"]


def test_the_lead_is_offered_accepted_and_only_then_left(school: School) -> None:
    project = school.at(Stage.ACTIVE)
    with pytest.raises(ConflictError, match="hand the lead over before you leave"):
        school.call(membership.leave, ADA, project)
    school.offer(project, EMMY)
    school.offer(project, GRACE)  # in the place of the first
    for actor in (EMMY, ADA, STRANGER):
        with pytest.raises(ForbiddenError, match="is offered to Grace, who alone can answer"):
            school.call(membership.accept_lead, actor, project)
    assert school.view(project).lead.name == "Ada"
    school.call(membership.accept_lead, GRACE, project)
    assert names(school, project) == ["Grace", "Ada", "Emmy"]
    with pytest.raises(ConflictError, match="Nobody is offered"):
        school.call(membership.accept_lead, GRACE, project)
    school.call(membership.leave, ADA, project)
    assert names(school, project) == ["Grace", "Emmy"]
    kinds = school.kinds(project)
    assert kinds[-4:] == ["project.lead_offered", "project.lead_offered", "project.lead_accepted", "project.left"]
    accepted = school.told(project)[-2].payload
    assert accepted is not None
    assert (accepted["by"]["name"], accepted["before"]["name"]) == ("Grace", "Ada")


def test_the_lead_is_offered_by_the_lead_to_who_works_on_the_project(school: School) -> None:
    project = school.at(Stage.ACTIVE)
    school.call(membership.follow, STRANGER, project)
    before = school.everything()
    refused: list[tuple[type[DomainError], Actor, Actor]] = [
        (NotFoundError, ADA, STRANGER),
        (NotFoundError, ADA, ROSA),
        (ConflictError, ADA, ADA),
        (ForbiddenError, GRACE, EMMY),
    ]
    for error, actor, successor in refused:
        with pytest.raises(error):
            school.offer(project, successor, actor)
    assert school.everything() == before


@pytest.mark.parametrize("who", [ADA, GRACE], ids=["taken back", "declined"])
def test_an_offer_can_be_ended_by_both_sides(school: School, who: Actor) -> None:
    project = school.at(Stage.ACTIVE)
    school.offer(project, GRACE)
    with pytest.raises(ForbiddenError, match="offered to Grace"):
        school.call(membership.decline_lead, EMMY, project)
    school.call(membership.decline_lead, who, project)
    with pytest.raises(ConflictError, match="Nobody is offered"):
        school.call(membership.accept_lead, GRACE, project)
    assert school.view(project).lead.name == "Ada"


def test_an_offer_goes_with_whom_it_was_made_to(school: School) -> None:
    project = school.at(Stage.ACTIVE)
    school.offer(project, GRACE)
    school.call(membership.leave, GRACE, project)
    school.join(GRACE, project)
    with pytest.raises(ConflictError, match="Nobody is offered"):
        school.call(membership.accept_lead, GRACE, project)


def test_who_accepts_the_lead_while_leaving_does_one_of_both(school: School) -> None:
    for _ in range(5):
        project = school.at(Stage.ACTIVE)
        school.offer(project, GRACE)

        def do(act: str, project: int = project) -> bool:
            try:
                school.call(getattr(membership, act), GRACE, project)
            except ConflictError:
                return False
            return True

        with ThreadPoolExecutor(2) as pool:
            accepted, left = pool.map(do, ("accept_lead", "leave"))
        assert accepted != left
        view = school.view(project)
        assert view.lead.lead
        assert view.lead.name == ("Grace" if accepted else "Ada")


def test_two_first_steps_of_one_person_make_one_membership(school: School) -> None:
    project = school.at(Stage.PROPOSED)

    def do(act: str) -> bool:
        try:
            school.join(GRACE, project) if act == "join" else school.call(membership.follow, GRACE, project)
        except ConflictError:
            return False
        return True

    with ThreadPoolExecutor(2) as pool:
        done = list(pool.map(do, ("join", "join")))
    assert sorted(done) == [False, True]
    assert names(school, project) == ["Ada", "Grace"]
