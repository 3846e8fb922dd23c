"""The pipeline of a project: proposed, joined, scoped, active, and completed with an outcome told to everyone."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from sqlalchemy import ForeignKey, func, select, update
from sqlalchemy.orm import Mapped, Session, mapped_column

from projects import limits, people, record, text
from projects.db import Base, utcnow
from projects.errors import ConflictError, ForbiddenError, InvalidError, NotFoundError
from projects.limits import Kind
from projects.people import Actor, Person


class Stage(StrEnum):
    """Where a project stands."""

    PROPOSED = "proposed"
    RECRUITING = "recruiting"
    SCOPED = "scoped"
    ACTIVE = "active"
    COMPLETED = "completed"


class Outcome(StrEnum):
    """How a project ended. A negative result is a result worth telling."""

    RESULT = "result"
    NEGATIVE = "negative result"
    ABANDONED = "abandoned"


TRANSITIONS: dict[Stage, frozenset[Stage]] = {
    Stage.PROPOSED: frozenset({Stage.RECRUITING, Stage.SCOPED, Stage.COMPLETED}),
    Stage.RECRUITING: frozenset({Stage.SCOPED, Stage.COMPLETED}),
    Stage.SCOPED: frozenset({Stage.ACTIVE, Stage.COMPLETED}),
    Stage.ACTIVE: frozenset({Stage.COMPLETED}),
    Stage.COMPLETED: frozenset(),
}


class Project(Base):
    """A question that people work on together."""

    __tablename__ = "projects"

    id: Mapped[int] = mapped_column(primary_key=True)
    request_id: Mapped[str] = mapped_column(unique=True)
    title: Mapped[str]
    question: Mapped[str]
    why: Mapped[str]
    needs: Mapped[str]
    stage: Mapped[str] = mapped_column(default=Stage.PROPOSED)
    lead_id: Mapped[int] = mapped_column(ForeignKey("people.id"))
    goal: Mapped[str] = mapped_column(default="")
    plan: Mapped[str] = mapped_column(default="")
    compute: Mapped[str] = mapped_column(default="")
    release: Mapped[str] = mapped_column(default="")
    outcome: Mapped[str | None]
    learnt: Mapped[str] = mapped_column(default="")
    created_at: Mapped[datetime] = mapped_column(default=utcnow)


class Membership(Base):
    """That a person works on a project."""

    __tablename__ = "memberships"

    project_id: Mapped[int] = mapped_column(ForeignKey("projects.id"), primary_key=True)
    person_id: Mapped[int] = mapped_column(ForeignKey("people.id"), primary_key=True)
    joined_at: Mapped[datetime] = mapped_column(default=utcnow)


@dataclass(frozen=True)
class Member:
    """A person of a project, as cards show them."""

    discord_id: str
    name: str
    lead: bool


@dataclass(frozen=True)
class ProjectView:
    """A project as cards show it; `members` begin with the lead."""

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
    limits.check(session, actor, Kind.PROPOSAL)
    said = {
        "title": text.title(title),
        "question": text.prose("The research question", question, most=1000),
        "needs": text.prose("Who is needed", needs, most=500),
    }
    reason = text.prose("Why it matters", why, most=1000)
    lead = people.ensure(session, actor)
    project = Project(request_id=request_id, lead_id=lead.id, why=reason, **said)
    session.add(project)
    session.flush()
    session.add(Membership(project_id=project.id, person_id=lead.id))
    stream = record.project_stream(project.id)
    record.open_stream(session, stream)
    record.append(session, stream, "project.proposed", by=lead, why=reason, **said)
    return project.id


def join(session: Session, actor: Actor, project_id: int, *, min_people: int) -> None:
    """Add the actor to the project; a scoped project that has now enough people becomes active."""
    project = _locked(session, project_id)
    if project.stage == Stage.COMPLETED:
        raise ConflictError(f"“{project.title}” is completed; nobody can join it any more.")
    person = people.ensure(session, actor)
    if session.get(Membership, (project_id, person.id)) is not None:
        raise ConflictError(f"You are already in “{project.title}”.")
    session.add(Membership(project_id=project_id, person_id=person.id))
    session.flush()
    record.append(session, record.project_stream(project_id), "project.joined", by=person)
    if project.stage == Stage.PROPOSED:
        _move(session, project, Stage.RECRUITING)
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
    min_people: int,
) -> None:
    """Say what the project will do; with enough people it becomes active and gets its channel."""
    project = _locked(session, project_id)
    lead = require_lead(session, actor, project)
    if Stage.SCOPED not in TRANSITIONS[Stage(project.stage)]:
        raise ConflictError(f"“{project.title}” is {project.stage}: its scope has been written already.")
    said = {
        "goal": text.prose("The goal", goal, most=1000),
        "plan": text.prose("The plan", plan, most=1500),
        "compute": text.prose("The estimate of compute", compute, most=500),
        "release": text.prose("What will be released", release, most=500),
    }
    for field, value in said.items():
        setattr(project, field, value)
    _move(session, project, Stage.SCOPED)
    record.append(session, record.project_stream(project_id), "project.scoped", by=lead, **said)
    _activate(session, project, min_people)


def complete(session: Session, actor: Actor, project_id: int, *, outcome: str, learnt: str) -> None:
    """End the project with an outcome and what was learnt; the record announces it to the whole server.

    What has not become active can only be abandoned.
    """
    project = _locked(session, project_id)
    lead = require_lead(session, actor, project)
    if project.stage == Stage.COMPLETED:
        raise ConflictError(f"“{project.title}” is completed already.")
    if outcome not in set(Outcome):
        raise InvalidError(f"The outcome is one of: {', '.join(Outcome)}.")
    if project.stage != Stage.ACTIVE and outcome != Outcome.ABANDONED:
        raise ConflictError(f"“{project.title}” is {project.stage}; only an active project can have a result.")
    project.outcome = outcome
    project.learnt = text.prose("What was learnt", learnt, most=1500)
    _move(session, project, Stage.COMPLETED)
    record.append(
        session,
        record.project_stream(project_id),
        "project.completed",
        by=lead,
        outcome=outcome,
        learnt=project.learnt,
        people=[
            {"id": member.discord_id, "name": member.name, "lead": member.lead} for member in _members(session, project)
        ],
    )


def load(session: Session, project_id: int) -> Project:
    """The project's row; raises NotFoundError."""
    project = session.get(Project, project_id)
    if project is None:
        raise NotFoundError(f"There is no project {project_id}; /project list shows those there are.")
    return project


def _locked(session: Session, project_id: int) -> Project:
    """The project's row, locked first of all, so that two changes of a project take turns and cannot deadlock."""
    load(session, project_id)
    return session.get_one(Project, project_id, with_for_update={"key_share": True}, populate_existing=True)


def view(session: Session, project_id: int) -> ProjectView:
    """The project as cards show it; raises NotFoundError."""
    project = load(session, project_id)
    return ProjectView(
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
        members=_members(session, project),
    )


def views(session: Session, *, limit: int = 25) -> Sequence[ProjectView]:
    """The newest projects first."""
    ids = session.scalars(select(Project.id).order_by(Project.id.desc()).limit(limit)).all()
    return [view(session, project_id) for project_id in ids]


def check_lead(session: Session, actor: Actor, project_id: int) -> None:
    """Raise ForbiddenError unless the actor leads the project. Only reads: a form may be opened on it."""
    project = load(session, project_id)
    require_lead(session, actor, project)


def require_lead(session: Session, actor: Actor, project: Project) -> Person:
    """The actor's person where they lead the project; raises ForbiddenError."""
    person = people.find(session, actor)
    if person is None or person.id != project.lead_id:
        lead = session.get_one(Person, project.lead_id)
        raise ForbiddenError(f"Only the lead of “{project.title}”, {lead.name}, can do this.")
    people.require_welcome(person)
    return person


def require_member(session: Session, actor: Actor, project: Project) -> Person:
    """The actor's person where they are in the project; raises ForbiddenError."""
    person = people.find(session, actor)
    if person is None or session.get(Membership, (project.id, person.id)) is None:
        raise ForbiddenError(f"Only members of “{project.title}” can do this; its Join button makes you one.")
    people.require_welcome(person)
    return person


def _members(session: Session, project: Project) -> tuple[Member, ...]:
    rows = session.scalars(
        select(Person)
        .join(Membership, Membership.person_id == Person.id)
        .where(Membership.project_id == project.id)
        .order_by(Person.id != project.lead_id, Membership.joined_at)
    )
    return tuple(Member(row.discord_id, row.name, row.id == project.lead_id) for row in rows)


def _activate(session: Session, project: Project, min_people: int) -> None:
    """Make a scoped project with enough people active."""
    if project.stage != Stage.SCOPED:
        return
    count = session.scalar(select(func.count()).where(Membership.project_id == project.id)) or 0
    if count < min_people:
        return
    _move(session, project, Stage.ACTIVE)
    record.append(session, record.project_stream(project.id), "project.activated", by=None, people=count)


def _move(session: Session, project: Project, to: Stage) -> None:
    """Take one of the table's transitions, guarded against another taken at the same moment."""
    if to not in TRANSITIONS[Stage(project.stage)]:
        raise ConflictError(f"“{project.title}” is {project.stage} and cannot become {to}.")
    session.flush()
    moved = session.execute(
        update(Project)
        .where(Project.id == project.id, Project.stage == project.stage)
        .values(stage=to)
        .returning(Project.id)
    ).one_or_none()
    if moved is None:
        raise ConflictError(f"“{project.title}” has just changed; look again.")
