"""The lifecycle of a project: proposed, recruiting, scoped, active or paused, and in the end completed or stopped.

Each step is an entry of the project's public record.
"""

from sqlalchemy.orm import Session
from sqlmodel import select

from projects import people, policies, projects, quotas, rights, text
from projects.db import transition
from projects.db.columns import utcnow
from projects.errors import ConflictError, InvalidError, OverError
from projects.people import Actor
from projects.projects import (
    ENDED,
    LICENCES,
    Membership,
    Outcome,
    Project,
    ProjectRole,
    ProjectView,
    ReleasePolicy,
    Stage,
)
from projects.quotas import QuotaKind
from projects.record import record
from projects.rights import Act

AFTER_THE_END = frozenset({Act.RELEASE, Act.HIDE, Act.UNHIDE})
"""The acts that a project which has ended still allows."""

TRANSITIONS: dict[Stage, frozenset[Stage]] = {
    Stage.PROPOSED: frozenset({Stage.RECRUITING, Stage.SCOPED, *ENDED}),
    Stage.RECRUITING: frozenset({Stage.SCOPED, *ENDED}),
    Stage.SCOPED: frozenset({Stage.ACTIVE, *ENDED}),
    Stage.ACTIVE: frozenset({Stage.PAUSED, *ENDED}),
    Stage.PAUSED: frozenset({Stage.ACTIVE, *ENDED}),
    **dict.fromkeys(ENDED, frozenset()),
}


def propose(session: Session, actor: Actor, request_id: str, *, title: str, question: str, why: str, needs: str) -> int:
    """Propose a project and return its id; a repeat of the same request returns the same project.

    Raises ForbiddenError where the actor is banned, ConflictError where their quota of proposals is used up, and
    InvalidError for a text that is empty or too long.
    """
    earlier = session.scalars(select(Project.id).where(Project.request_id == request_id)).one_or_none()
    if earlier is not None:
        return earlier
    quotas.check(session, actor, QuotaKind.PROPOSAL)
    said = {
        "title": text.title(title),
        "question": text.prose("The research question", question, most=text.USUAL),
        "needs": text.prose("Who is needed", needs, most=text.BRIEF),
    }
    reason = text.prose("Why it matters", why, most=text.USUAL)
    lead = people.ensure(session, actor)
    project = Project(
        request_id=request_id,
        lead_id=lead.id,
        why=reason,
        title=said["title"],
        question=said["question"],
        needs=said["needs"],
    )
    session.add(project)
    session.flush()
    session.add(Membership(project_id=project.id, person_id=lead.id))
    stream = record.project_stream(project.id)
    record.open_stream(session, stream)
    record.append(session, stream, "project.proposed", by=lead, why=reason, **said)
    return project.id


def join(session: Session, actor: Actor, project_id: int, *, min_people: int) -> None:
    """Make the actor a newcomer, to be confirmed by the lead; by the join policy “open”, a contributor at once.

    Somebody that the lead has removed before is a newcomer under either policy. A newcomer counts at once: a scoped
    project of at least `min_people` becomes active.

    Raises NotFoundError, ForbiddenError where the actor is banned, and ConflictError where the project has ended or the
    actor is in it already.
    """
    project = projects.lock(session, project_id)
    if project.stage in ENDED:
        raise ConflictError(f"“{project.title}” is {project.stage}; nobody can join it now.")
    person = people.ensure(session, actor)
    at_once = policies.current(session).join_policy == "open" and not projects.was_removed(session, person, project_id)
    role = ProjectRole.CONTRIBUTOR if at_once else ProjectRole.NEWCOMER
    membership = session.get(Membership, (project_id, person.id))
    if membership is None:
        session.add(Membership(project_id=project_id, person_id=person.id, role=role))
    elif membership.role == ProjectRole.FOLLOWER:
        membership.role, membership.joined_at = role, utcnow()
    else:
        raise ConflictError(f"You are already in “{project.title}”.")
    session.flush()
    quotas.check(session, actor, QuotaKind.MEMBERSHIP, project_id)
    record.append(session, record.project_stream(project_id), "project.joined", by=person, role=role)
    if project.stage == Stage.PROPOSED:
        move(session, project, Stage.RECRUITING)
    _activate(session, project, min_people)


def scope(
    session: Session,
    actor: Actor,
    project_id: int,
    *,
    goal: str,
    plan: str,
    compute: str,
    release: str,
    release_policy: str = ReleasePolicy.OPEN,
    licence: str = LICENCES[0],
    min_people: int,
) -> None:
    """Write the project's scope: its goal, plan, compute and release. With `min_people` contributors it becomes active.

    Raises NotFoundError, ForbiddenError for all but the lead, InvalidError, and ConflictError where the project has a
    scope or has ended.
    """
    project = projects.lock(session, project_id)
    lead = rights.require(session, actor, project, Act.SCOPE)
    _check_unscoped(project)
    if release_policy not in set(ReleasePolicy):
        raise InvalidError(f"A project releases in one of these ways: {', '.join(ReleasePolicy)}.")
    if licence not in LICENCES:
        raise InvalidError(f"The licence of the models is one of: {', '.join(LICENCES)}.")
    said = {
        "goal": text.prose("The goal", goal, most=text.USUAL),
        "plan": text.prose("The plan", plan, most=text.LONG),
        "compute": text.prose("The estimate of compute", compute, most=text.BRIEF),
        "release": text.prose("What will be released", release, most=text.BRIEF),
        "release_policy": release_policy,
        "licence": licence,
    }
    for field, value in said.items():
        setattr(project, field, value)
    move(session, project, Stage.SCOPED)
    record.append(session, record.project_stream(project_id), "project.scoped", by=lead, **said)
    _activate(session, project, min_people)


def pause(session: Session, actor: Actor, project_id: int, *, reason: str) -> None:
    """Pause an active project: no run of it is launched until it is resumed.

    Raises as every act of the lead: NotFoundError, ForbiddenError, InvalidError and ConflictError.
    """
    project = projects.lock(session, project_id)
    lead = rights.require(session, actor, project, Act.PAUSE)
    project.stage_reason = text.prose("The reason", reason, most=text.USUAL)
    move(session, project, Stage.PAUSED)
    quotas.check(session, actor, QuotaKind.PROJECT_CHANGE, project_id)
    record.append(session, record.project_stream(project_id), "project.paused", by=lead, why=project.stage_reason)


def resume(session: Session, actor: Actor, project_id: int) -> None:
    """Make a paused project active again; raises NotFoundError, ForbiddenError and ConflictError."""
    project = projects.lock(session, project_id)
    lead = rights.require(session, actor, project, Act.RESUME)
    if project.stage != Stage.PAUSED:
        raise ConflictError(f"“{project.title}” is {project.stage}; only a paused project can be resumed.")
    project.stage_reason = ""
    move(session, project, Stage.ACTIVE)
    record.append(session, record.project_stream(project_id), "project.resumed", by=lead)


def stop(session: Session, actor: Actor, project_id: int, *, reason: str) -> None:
    """End the project without an outcome, for a reason from its lead or a moderator."""
    project = projects.lock(session, project_id)
    by = rights.require(session, actor, project, Act.STOP)
    project.stage_reason = text.prose("The reason", reason, most=text.USUAL)
    move(session, project, Stage.STOPPED)
    record.append(session, record.project_stream(project_id), "project.stopped", by=by, why=project.stage_reason)


def complete(session: Session, actor: Actor, project_id: int, *, outcome: str, learnt: str) -> None:
    """End the project with an outcome and what was learnt; the server hears of it where GPU time had been granted.

    A project that was never active can only be abandoned.
    """
    project = projects.lock(session, project_id)
    lead = rights.require(session, actor, project, Act.COMPLETE)
    if project.stage in ENDED:
        raise OverError(f"“{project.title}” is already {project.stage}.")
    if outcome not in set(Outcome):
        raise InvalidError(f"The outcome is one of: {', '.join(Outcome)}.")
    if project.stage not in {Stage.ACTIVE, Stage.PAUSED} and outcome != Outcome.ABANDONED:
        raise ConflictError(f"“{project.title}” is {project.stage}; only an active project can have a result.")
    project.stage_reason = ""
    project.outcome = outcome
    project.learnt = text.prose("What was learnt", learnt, most=text.LONG)
    move(session, project, Stage.COMPLETED)
    members = [member for member in projects.members(session, [project_id])[project_id] if not member.newcomer]
    record.append(
        session,
        record.project_stream(project_id),
        "project.completed",
        by=lead,
        outcome=outcome,
        learnt=project.learnt,
        people=[{"id": member.discord_id, "name": member.name, "lead": member.lead} for member in members],
    )


def check_may(
    session: Session,
    actor: Actor,
    project_id: int,
    act: Act,
    *,
    to: Stage | None = None,
) -> ProjectView:
    """The project, where the actor may do the act now and, with `to`, where the project can move to that stage.

    Raises NotFoundError, ForbiddenError and ConflictError. Only reads, so that a form can be opened after it.
    """
    project = projects.load(session, project_id)
    rights.check(session, actor, project, act)
    if project.stage in ENDED and act not in AFTER_THE_END:
        raise OverError(f"“{project.title}” is {project.stage}; this can no longer be done.")
    if to is not None:
        _check_move(project, to)
    return projects.view(session, project_id)


def check_may_scope(session: Session, actor: Actor, project_id: int) -> None:
    """Raise NotFoundError, ForbiddenError or ConflictError unless the actor may write the scope now. Only reads."""
    project = projects.load(session, project_id)
    rights.check(session, actor, project, Act.SCOPE)
    _check_unscoped(project)


def _activate(session: Session, project: Project, min_people: int) -> None:
    """Make a scoped project with enough people active; where the policy says “automatic”, its channel opens now."""
    if project.stage != Stage.SCOPED:
        return
    people_of = (ProjectRole.CONTRIBUTOR, ProjectRole.NEWCOMER)
    count = projects.head_counts(session, [project.id], *people_of)[project.id]
    if count < min_people:
        return
    opens = not project.has_channel and policies.current(session).channel_policy == "automatic"
    project.has_channel |= opens
    move(session, project, Stage.ACTIVE)
    stream = record.project_stream(project.id)
    record.append(session, stream, "project.activated", by=None, people=count, channel=opens)


def move(session: Session, project: Project, to: Stage) -> None:
    """Move the project to a stage that the table of transitions allows.

    Raises ConflictError for any other stage, and where another transaction has just moved the project.
    """
    transition.move(session, project, to, TRANSITIONS, name=f"“{project.title}”", state="stage")


def _check_unscoped(project: Project) -> None:
    if project.stage in ENDED:
        raise OverError(f"“{project.title}” is {project.stage}; its scope stays as it is.")
    if Stage.SCOPED not in TRANSITIONS[Stage(project.stage)]:
        raise OverError(f"“{project.title}” is {project.stage}: its scope is already written.")


def _check_move(project: Project, to: Stage) -> None:
    transition.check(project, to, TRANSITIONS, name=f"“{project.title}”", state="stage")
