"""Projects and their members: the tables, and how they are listed, found and shown.

What moves a project from one stage to the next is in `projects.lifecycle`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from sqlalchemy import Select, String, cast, func
from sqlalchemy.orm import Session
from sqlmodel import Field, col, select
from sqlmodel.sql.expression import SelectOfScalar

from projects import text
from projects.db.columns import Base, foreign_key, row_id, timestamp, utcnow, words
from projects.errors import NotFoundError
from projects.people import Person

SUGGESTED = 25
"""The most suggestions that Discord shows for an option."""


class Stage(StrEnum):
    """A stage of a project's lifecycle."""

    PROPOSED = "proposed"
    RECRUITING = "recruiting"
    SCOPED = "scoped"
    ACTIVE = "active"
    PAUSED = "paused"
    COMPLETED = "completed"
    STOPPED = "stopped"


class Outcome(StrEnum):
    """How a completed project ended. A negative result is worth publishing too."""

    RESULT = "result"
    NEGATIVE = "negative result"
    ABANDONED = "abandoned"


class ReleasePolicy(StrEnum):
    """Whether a project's checkpoints are public at once, or private until a reviewer releases them."""

    OPEN = "open"
    HELD = "held"


class ProjectRole(StrEnum):
    """A person's role in one project. A newcomer has joined, and waits for the lead to confirm them."""

    LEAD = "lead"
    CONTRIBUTOR = "contributor"
    NEWCOMER = "newcomer"
    FOLLOWER = "follower"


ENDED = frozenset({Stage.COMPLETED, Stage.STOPPED})
LICENCES = ("Apache-2.0", "MIT", "BSD-3-Clause", "CC0-1.0", "CC-BY-4.0", "CC-BY-SA-4.0", "CC-BY-NC-4.0")


class Project(Base, table=True):
    """A research question that people work on together.

    `stage_reason` says why the project was paused or stopped. A hidden project is left out of lists and suggestions.
    """

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
    channel_url: str = ""
    hidden: bool = False
    outcome: str | None = None
    learnt: str = words(default="")
    created_at: datetime = timestamp(default=utcnow)


class Membership(Base, table=True):
    """One person's part in one project. The lead's role here is contributor; `Project.lead_id` says who leads."""

    __tablename__ = "memberships"

    project_id: int = foreign_key("projects.id", primary_key=True)
    person_id: int = foreign_key("people.id", primary_key=True)
    role: str = ProjectRole.CONTRIBUTOR
    joined_at: datetime = timestamp(default=utcnow)


class PastMembership(Base, table=True):
    """A newcomer's or contributor's membership that has ended; `removed` says that the lead ended it."""

    __tablename__ = "past_memberships"

    id: int = row_id()
    project_id: int = foreign_key("projects.id", index=True)
    person_id: int = foreign_key("people.id")
    joined_at: datetime = timestamp()
    left_at: datetime = timestamp(default=utcnow)
    removed: bool = False


@dataclass(frozen=True)
class Member:
    """A lead, contributor or newcomer of a project, as cards show them."""

    discord_id: str
    name: str
    lead: bool
    newcomer: bool = False


@dataclass(frozen=True)
class ProjectView:
    """A project as cards show it. `followers` is a count.

    `members` holds the lead first, then the contributors and newcomers in the order of joining.
    """

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
    channel_url: str = ""
    hidden: bool = False

    @property
    def lead(self) -> Member:
        """Who leads the project."""
        return self.members[0]

    @property
    def slug(self) -> str:
        """The project's name for its channel and its repositories: unique, lower case, ASCII."""
        return f"p{self.id}-{text.slug(self.title, most=50)}".rstrip("-")


def load(session: Session, project_id: int) -> Project:
    """The project's row; raises NotFoundError."""
    return _there(session.get(Project, project_id), project_id)


def _there(project: Project | None, project_id: int) -> Project:
    """The project; raises NotFoundError where there is none."""
    if project is None:
        raise NotFoundError(f"There is no project {project_id}; /project list shows those there are.")
    return project


def lock(session: Session, project_id: int) -> Project:
    """The project's row, locked to the end of the transaction; raises NotFoundError.

    A transaction locks its project before any other row, so that two changes of a project take turns and cannot
    deadlock.
    """
    key_share = {"key_share": True}
    return _there(session.get(Project, project_id, with_for_update=key_share, populate_existing=True), project_id)


def works_on(session: Session, person: Person, project: Project) -> bool:
    """Whether the person is the project's lead or a contributor; newcomers and followers only read."""
    membership = session.get(Membership, (project.id, person.id))
    return membership is not None and membership.role == ProjectRole.CONTRIBUTOR


def is_in(session: Session, person: Person, project_id: int) -> bool:
    """Whether the person is the project's lead, a contributor or a newcomer."""
    membership = session.get(Membership, (project_id, person.id))
    return membership is not None and membership.role != ProjectRole.FOLLOWER


def was_in(session: Session, person: Person, project_id: int, since: datetime) -> bool:
    """Whether the person is in the project, or has been in it at some moment since `since`."""
    if is_in(session, person, project_id):
        return True
    return (
        session.scalars(_past(person, project_id).where(PastMembership.left_at >= since).limit(1)).first() is not None
    )


def was_removed(session: Session, person: Person, project_id: int) -> bool:
    """Whether the project's lead has removed the person before."""
    removed = _past(person, project_id).where(col(PastMembership.removed)).limit(1)
    return session.scalars(removed).first() is not None


def members(session: Session, project_ids: Sequence[int]) -> Mapping[int, tuple[Member, ...]]:
    """The people of each project but its followers: the lead first, then the others in the order of joining."""
    leads = col(Person.id) == Project.lead_id
    rows = session.execute(
        select(Project.id, Person.discord_id, Person.name, leads)
        .add_columns(col(Membership.role))
        .join(Membership, col(Membership.project_id) == Project.id)
        .join(Person, col(Membership.person_id) == Person.id)
        .where(col(Project.id).in_(project_ids), col(Membership.role) != ProjectRole.FOLLOWER)
        .order_by(~leads, col(Membership.joined_at))
    )
    found: dict[int, tuple[Member, ...]] = dict.fromkeys(project_ids, ())
    for project_id, discord_id, name, lead, role in rows:
        found[project_id] += (Member(discord_id, name, bool(lead), newcomer=role == ProjectRole.NEWCOMER),)
    return found


def head_counts(session: Session, project_ids: Sequence[int], *roles: ProjectRole) -> Mapping[int, int]:
    """How many people hold one of the roles in each project; the lead counts as a contributor."""
    rows = session.execute(
        select(Membership.project_id, func.count())
        .where(col(Membership.project_id).in_(project_ids), col(Membership.role).in_(roles))
        .group_by(col(Membership.project_id))
    )
    return dict.fromkeys(project_ids, 0) | dict(rows.all())


def may_compute(project: Project) -> bool:
    """Whether the project may ask for GPU time and launch runs: at every stage but paused, completed and stopped."""
    return project.stage not in {Stage.PAUSED, *ENDED}


def is_held(project: Project) -> bool:
    """Whether the project's checkpoints are private until a reviewer releases them."""
    return project.release_policy == ReleasePolicy.HELD


def view(session: Session, project_id: int) -> ProjectView:
    """The project as cards show it; raises NotFoundError."""
    load(session, project_id)
    return _views(session, [project_id])[0]


def views(session: Session, *, limit: int = 25, stage: str | None = None) -> Sequence[ProjectView]:
    """The newest projects that are not hidden, of one stage or of all, the newest first."""
    newest = _shown(stage).order_by(col(Project.id).desc()).limit(limit)
    return _views(session, session.scalars(newest).all())


def _views(session: Session, project_ids: Sequence[int]) -> Sequence[ProjectView]:
    """The projects with these ids as cards show them, the newest first, read in three queries."""
    listed = select(Project).where(col(Project.id).in_(project_ids)).order_by(col(Project.id).desc())
    working = members(session, project_ids)
    followers = head_counts(session, project_ids, ProjectRole.FOLLOWER)
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
            members=working[project.id],
            followers=followers[project.id],
            stage_reason=project.stage_reason,
            release_policy=ReleasePolicy(project.release_policy),
            licence=project.licence,
            has_channel=project.has_channel,
            channel_url=project.channel_url,
            hidden=project.hidden,
        )
        for project in session.scalars(listed)
    ]


def count(session: Session, *, stage: str | None = None) -> int:
    """How many projects `views` would list without a limit."""
    return session.scalar(select(func.count()).select_from(_shown(stage).subquery())) or 0


def search(session: Session, typed: str, *, open_only: bool = False, hidden: bool = False) -> Sequence[tuple[str, int]]:
    """Suggestions for an option that names a project: the newest whose “3 · title” contains what was typed.

    Each is the text to show and the project's id. `hidden` searches the hidden projects, and no others; `open_only`
    leaves out those that have ended.
    """
    name = cast(col(Project.id), String) + " · " + Project.title
    # SQLite folds the case of ASCII letters only; `contains` finds other letters typed in the title's own case.
    fits = name.icontains(typed, autoescape=True) | name.contains(typed, autoescape=True)
    query = select(name, Project.id).where(col(Project.hidden).is_(hidden), fits)
    if open_only:
        query = query.where(col(Project.stage).not_in(ENDED))
    rows = session.execute(query.order_by(col(Project.id).desc()).limit(SUGGESTED))
    return [(shown, number) for shown, number in rows]


def _past(person: Person, project_id: int) -> SelectOfScalar[int]:
    """The query for the ids of the person's memberships in the project that have ended."""
    return select(PastMembership.id).where(
        PastMembership.project_id == project_id, PastMembership.person_id == person.id
    )


def _shown(stage: str | None) -> Select[int]:
    shown = select(Project.id).where(col(Project.hidden).is_(False))
    return shown if stage is None else shown.where(Project.stage == stage)
