"""The lifecycle of a project: proposed, recruiting, scoped, active or paused, and completed or stopped, in public."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from sqlalchemy import Select, func
from sqlalchemy.orm import Session
from sqlmodel import Field, col, select

from projects import people, policies, quotas, rights, text
from projects.db import transition
from projects.db.columns import Base, foreign_key, row_id, timestamp, utcnow, words
from projects.errors import ConflictError, ForbiddenError, InvalidError, NotFoundError
from projects.people import Actor, LabRole, Person
from projects.quotas import QuotaKind
from projects.record import record
from projects.rights import Act, ProjectRole, Role


class Stage(StrEnum):
    """Where a project stands."""

    PROPOSED = "proposed"
    RECRUITING = "recruiting"
    SCOPED = "scoped"
    ACTIVE = "active"
    PAUSED = "paused"
    COMPLETED = "completed"
    STOPPED = "stopped"


class Outcome(StrEnum):
    """How a project ended. A negative result is a result worth telling."""

    RESULT = "result"
    NEGATIVE = "negative result"
    ABANDONED = "abandoned"


class ReleasePolicy(StrEnum):
    """Whether checkpoints are public as they come, or stay private until a reviewer's decision."""

    OPEN = "open"
    HELD = "held"


ENDED = frozenset({Stage.COMPLETED, Stage.STOPPED})
AFTER_THE_END = frozenset({Act.RELEASE, Act.HIDE, Act.UNHIDE})
TRANSITIONS: dict[Stage, frozenset[Stage]] = {
    Stage.PROPOSED: frozenset({Stage.RECRUITING, Stage.SCOPED, *ENDED}),
    Stage.RECRUITING: frozenset({Stage.SCOPED, *ENDED}),
    Stage.SCOPED: frozenset({Stage.ACTIVE, *ENDED}),
    Stage.ACTIVE: frozenset({Stage.PAUSED, *ENDED}),
    Stage.PAUSED: frozenset({Stage.ACTIVE, *ENDED}),
    **dict.fromkeys(ENDED, frozenset()),
}
LICENCES = ("Apache-2.0", "MIT", "BSD-3-Clause", "CC0-1.0", "CC-BY-4.0", "CC-BY-SA-4.0", "CC-BY-NC-4.0")


class Project(Base, table=True):
    """A question that people work on together. `stage_reason` is why it was paused or stopped."""

    __tablename__ = "projects"

    id: int = row_id()
    request_id: str = Field(unique=True)
    title: str = words()
    question: str = words()
    why: str = words()
    needs: str = words()
    stage: str = Stage.PROPOSED
    stage_reason: str = words(default="")
    lead_id: int = foreign_key("people.id")
    goal: str = words(default="")
    plan: str = words(default="")
    compute: str = words(default="")
    release: str = words(default="")
    release_policy: str = ReleasePolicy.OPEN
    licence: str = LICENCES[0]
    has_channel: bool = False
    hidden: bool = False
    outcome: str | None = None
    learnt: str = words(default="")
    created_at: datetime = timestamp(default=utcnow)


class Membership(Base, table=True):
    """That a person works on a project, or follows it. Its lead is a contributor whom the project names."""

    __tablename__ = "memberships"

    project_id: int = foreign_key("projects.id", primary_key=True)
    person_id: int = foreign_key("people.id", primary_key=True)
    role: str = ProjectRole.CONTRIBUTOR
    joined_at: datetime = timestamp(default=utcnow)


@dataclass(frozen=True)
class Member:
    """A person of a project, as cards show them."""

    discord_id: str
    name: str
    lead: bool


@dataclass(frozen=True)
class ProjectView:
    """A project as cards show it; `members` are who works on it, the lead first, and followers are counted apart."""

    id: int
    title: str
    stage: Stage
    question: str
    why: str
    needs: str
    goal: str
    plan: str
    compute: str
    release: str
    outcome: Outcome | None
    learnt: str
    members: tuple[Member, ...]
    followers: int = 0
    stage_reason: str = ""
    release_policy: ReleasePolicy = ReleasePolicy.OPEN
    licence: str = LICENCES[0]
    has_channel: bool = False
    hidden: bool = False

    @property
    def lead(self) -> Member:
        """Who leads the project."""
        return self.members[0]

    @property
    def slug(self) -> str:
        """A short name fit for a channel or a repository: unique, lower case, ASCII."""
        return f"p{self.id}-{text.slug(self.title, most=50)}".rstrip("-")


def propose(session: Session, actor: Actor, request_id: str, *, title: str, question: str, why: str, needs: str) -> int:
    """Write a proposal down and return the project's id; a repeat of the same request returns the same project."""
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
    """Make the actor a contributor; a scoped project that has now enough people becomes active."""
    project = locked(session, project_id)
    if project.stage in ENDED:
        raise ConflictError(f"“{project.title}” is {project.stage}; nobody can join it any more.")
    person = people.ensure(session, actor)
    membership = session.get(Membership, (project_id, person.id))
    if membership is None:
        session.add(Membership(project_id=project_id, person_id=person.id))
    elif membership.role == ProjectRole.FOLLOWER:
        membership.role = ProjectRole.CONTRIBUTOR
    else:
        raise ConflictError(f"You are already in “{project.title}”.")
    session.flush()
    record.append(session, record.project_stream(project_id), "project.joined", by=person)
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
    """Say what the project will do and how it releases; with enough people it becomes active."""
    project = locked(session, project_id)
    lead = require(session, actor, project, Act.SCOPE)
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
    """Rest an active project: nothing more is launched in it until it is resumed."""
    project = locked(session, project_id)
    lead = require(session, actor, project, Act.PAUSE)
    project.stage_reason = text.prose("The reason", reason, most=text.USUAL)
    move(session, project, Stage.PAUSED)
    record.append(session, record.project_stream(project_id), "project.paused", by=lead, why=project.stage_reason)


def resume(session: Session, actor: Actor, project_id: int) -> None:
    """Let a paused project go on."""
    project = locked(session, project_id)
    lead = require(session, actor, project, Act.RESUME)
    if project.stage != Stage.PAUSED:
        raise ConflictError(f"“{project.title}” is {project.stage}; only a paused project can be resumed.")
    project.stage_reason = ""
    move(session, project, Stage.ACTIVE)
    record.append(session, record.project_stream(project_id), "project.resumed", by=lead)


def stop(session: Session, actor: Actor, project_id: int, *, reason: str) -> None:
    """End the project without an outcome, for a reason that its lead or a moderator gives."""
    project = locked(session, project_id)
    by = require(session, actor, project, Act.STOP)
    project.stage_reason = text.prose("The reason", reason, most=text.USUAL)
    move(session, project, Stage.STOPPED)
    record.append(session, record.project_stream(project_id), "project.stopped", by=by, why=project.stage_reason)


def complete(session: Session, actor: Actor, project_id: int, *, outcome: str, learnt: str) -> None:
    """End the project with an outcome and what was learnt; the record announces it to the whole server.

    What has not become active can only be abandoned.
    """
    project = locked(session, project_id)
    lead = require(session, actor, project, Act.COMPLETE)
    if project.stage in ENDED:
        raise ConflictError(f"“{project.title}” is {project.stage} already.")
    if outcome not in set(Outcome):
        raise InvalidError(f"The outcome is one of: {', '.join(Outcome)}.")
    if project.stage not in {Stage.ACTIVE, Stage.PAUSED} and outcome != Outcome.ABANDONED:
        raise ConflictError(f"“{project.title}” is {project.stage}; only an active project can have a result.")
    project.stage_reason = ""
    project.outcome = outcome
    project.learnt = text.prose("What was learnt", learnt, most=text.LONG)
    move(session, project, Stage.COMPLETED)
    members = _members(session, [project_id])[project_id]
    record.append(
        session,
        record.project_stream(project_id),
        "project.completed",
        by=lead,
        outcome=outcome,
        learnt=project.learnt,
        people=[{"id": member.discord_id, "name": member.name, "lead": member.lead} for member in members],
    )


def load(session: Session, project_id: int) -> Project:
    """The project's row; raises NotFoundError."""
    project = session.get(Project, project_id)
    if project is None:
        raise NotFoundError(f"There is no project {project_id}; /project list shows those there are.")
    return project


def locked(session: Session, project_id: int) -> Project:
    """The project's row, locked first of all, so that two changes of a project take turns and cannot deadlock."""
    load(session, project_id)
    return session.get_one(Project, project_id, with_for_update={"key_share": True}, populate_existing=True)


def view(session: Session, project_id: int) -> ProjectView:
    """The project as cards show it; raises NotFoundError."""
    load(session, project_id)
    return _views(session, [project_id])[0]


def views(session: Session, *, limit: int = 25, stage: str | None = None) -> Sequence[ProjectView]:
    """The newest projects first, of one stage or of all, without those that a moderator has hidden."""
    newest = _shown(stage).order_by(col(Project.id).desc()).limit(limit)
    return _views(session, session.scalars(newest).all())


def _views(session: Session, project_ids: Sequence[int]) -> Sequence[ProjectView]:
    """The projects of these numbers as cards show them, the newest first, read by three queries."""
    listed = select(Project).where(col(Project.id).in_(project_ids)).order_by(col(Project.id).desc())
    members = _members(session, project_ids)
    followers = _count(session, project_ids, ProjectRole.FOLLOWER)
    return [
        ProjectView(
            id=project.id,
            title=project.title,
            stage=Stage(project.stage),
            question=project.question,
            why=project.why,
            needs=project.needs,
            goal=project.goal,
            plan=project.plan,
            compute=project.compute,
            release=project.release,
            outcome=None if project.outcome is None else Outcome(project.outcome),
            learnt=project.learnt,
            members=members[project.id],
            followers=followers[project.id],
            stage_reason=project.stage_reason,
            release_policy=ReleasePolicy(project.release_policy),
            licence=project.licence,
            has_channel=project.has_channel,
            hidden=project.hidden,
        )
        for project in session.scalars(listed)
    ]


def count(session: Session, *, stage: str | None = None) -> int:
    """How many projects `views` chooses from."""
    return session.scalar(select(func.count()).select_from(_shown(stage).subquery())) or 0


def _shown(stage: str | None) -> Select[int]:
    shown = select(Project.id).where(col(Project.hidden).is_(False))
    return shown if stage is None else shown.where(Project.stage == stage)


def may_compute(project: Project) -> bool:
    """Whether the project may ask for GPU time and launch runs: from its proposal on, unless it is paused or ended."""
    return project.stage not in {Stage.PAUSED, *ENDED}


def is_held(project: Project) -> bool:
    """Whether the project's checkpoints stay private for now."""
    return project.release_policy == ReleasePolicy.HELD


def works_on(session: Session, person: Person, project: Project) -> bool:
    """Whether the person is the project's lead or a contributor; followers only read along."""
    membership = session.get(Membership, (project.id, person.id))
    return membership is not None and membership.role != ProjectRole.FOLLOWER


def check(
    session: Session,
    actor: Actor,
    project: Project,
    act: Act,
) -> None:
    """Raise ForbiddenError unless the table of rights lets the actor do this. Only reads."""
    roles = roles_in(session, actor, project)
    if roles.isdisjoint(rights.MAY[act]):
        lead = session.get_one(Person, project.lead_id).name
        raise ForbiddenError(rights.refusal(act, project=project.title, lead=lead))


def roles_in(session: Session, actor: Actor, project: Project) -> frozenset[Role]:
    """The actor's role in the project with their lab roles; raises ForbiddenError where they are banned.

    Who works on a project is no reviewer of it: nobody decides on their own work.
    """
    person = people.find(session, actor)
    membership = None if person is None else session.get(Membership, (project.id, person.id))
    if person is None or membership is None:
        return actor.roles
    role = ProjectRole.LEAD if person.id == project.lead_id else ProjectRole(membership.role)
    held = actor.roles - {LabRole.REVIEWER} if role in rights.WORKING else actor.roles
    return held | {role}


def require(session: Session, actor: Actor, project: Project, act: Act) -> Person:
    """The actor's person where the table of rights lets them do this; raises ForbiddenError."""
    check(session, actor, project, act)
    return people.ensure(session, actor)


def check_may(
    session: Session,
    actor: Actor,
    project_id: int,
    act: Act,
    *,
    to: Stage | None = None,
) -> ProjectView:
    """The project where the actor may do this now, and where it can become `to`. Only reads: a form may be opened."""
    project = load(session, project_id)
    check(session, actor, project, act)
    if project.stage in ENDED and act not in AFTER_THE_END:
        raise ConflictError(f"“{project.title}” is {project.stage}; this can no longer be done.")
    if to is not None:
        _check_move(project, to)
    return view(session, project_id)


def check_may_scope(session: Session, actor: Actor, project_id: int) -> None:
    """Raise unless the actor may write the project's scope now. Only reads: a form may be opened on it."""
    project = load(session, project_id)
    check(session, actor, project, Act.SCOPE)
    _check_unscoped(project)


def require_lead(session: Session, actor: Actor, project: Project) -> Person:
    """The actor's person where they may ask for compute for the project; raises ForbiddenError. Only reads."""
    check(session, actor, project, Act.ASK_FOR_COMPUTE)
    return session.get_one(Person, project.lead_id)


def require_member(session: Session, actor: Actor, project: Project) -> Person:
    """The actor's person where they may launch runs of the project; raises ForbiddenError."""
    return require(session, actor, project, Act.USE_COMPUTE)


def _members(session: Session, project_ids: Sequence[int]) -> Mapping[int, tuple[Member, ...]]:
    """The members of each project, without its followers: the lead first, then who joined first."""
    leads = col(Person.id) == Project.lead_id
    rows = session.execute(
        select(Project.id, Person.discord_id, Person.name, leads)
        .join(Membership, col(Membership.project_id) == Project.id)
        .join(Person, col(Membership.person_id) == Person.id)
        .where(col(Project.id).in_(project_ids), Membership.role != ProjectRole.FOLLOWER)
        .order_by(~leads, col(Membership.joined_at))
    )
    found: dict[int, tuple[Member, ...]] = dict.fromkeys(project_ids, ())
    for project_id, discord_id, name, lead in rows:
        found[project_id] += (Member(discord_id, name, bool(lead)),)
    return found


def _count(session: Session, project_ids: Sequence[int], role: ProjectRole) -> Mapping[int, int]:
    """How many people have a role in each project."""
    rows = session.execute(
        select(Membership.project_id, func.count())
        .where(col(Membership.project_id).in_(project_ids), Membership.role == role)
        .group_by(col(Membership.project_id))
    )
    return dict.fromkeys(project_ids, 0) | dict(rows.all())


def _activate(session: Session, project: Project, min_people: int) -> None:
    """Make a scoped project with enough people active; by policy it has its channel from now on."""
    if project.stage != Stage.SCOPED:
        return
    count = _count(session, [project.id], ProjectRole.CONTRIBUTOR)[project.id]
    if count < min_people:
        return
    opens = not project.has_channel and policies.current(session).channel_policy == "automatic"
    project.has_channel |= opens
    move(session, project, Stage.ACTIVE)
    stream = record.project_stream(project.id)
    record.append(session, stream, "project.activated", by=None, people=count, channel=opens)


def move(session: Session, project: Project, to: Stage) -> None:
    """Take one of the table's transitions, guarded against another taken at the same moment."""
    transition.move(session, project, to, TRANSITIONS, name=f"“{project.title}”", state="stage")


def _check_unscoped(project: Project) -> None:
    if project.stage in ENDED:
        raise ConflictError(f"“{project.title}” is {project.stage}; its scope stays as it is.")
    if Stage.SCOPED not in TRANSITIONS[Stage(project.stage)]:
        raise ConflictError(f"“{project.title}” is {project.stage}: its scope has been written already.")


def _check_move(project: Project, to: Stage) -> None:
    transition.check(project, to, TRANSITIONS, name=f"“{project.title}”", state="stage")
