"""Shares: how much of the GPU time each project should have beside the others in fair-share, as admins set it."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from sqlalchemy import Executable
from sqlalchemy.orm import Session
from sqlmodel import col, select

from projects import people, projects, quotas, rights, text
from projects.db import rows
from projects.db.columns import Base, foreign_key, number
from projects.errors import ConflictError, InvalidError
from projects.people import Actor
from projects.projects import Project
from projects.record import record
from projects.rights import Act

USUAL = 1.0
"""The share of a project that nobody has set."""
LEAST, MOST = 0.01, 1000


class ProjectShare(Base, table=True):
    """A project's share, where an admin has set it."""

    __tablename__ = "project_shares"

    project_id: int = foreign_key("projects.id", primary_key=True)
    share: float = number()


@dataclass(frozen=True)
class ShareView:
    """A share that was set; `project` is the title, and only the number where a moderator has hidden the project."""

    project_id: int
    project: str
    share: float


def set_share(session: Session, actor: Actor | None, project_id: int, value: str, reason: str) -> float:
    """Set a project's share to what was typed, in public, and return it. `actor` None is the operator.

    Raises ForbiddenError for all but admins who are not in the project, NotFoundError for an unknown project,
    InvalidError for what is no share, and ConflictError where the project has that share already.
    """
    rights.require_admin(actor, Act.SET_SHARES)
    because = text.prose("The reason", reason, most=text.USUAL)
    share = _parsed(value)
    project = projects.lock(session, project_id)
    rights.require_outsider(session, actor, project, "sets the share of")
    row = session.get(ProjectShare, project.id, populate_existing=True)
    was = USUAL if row is None else row.share
    if share == was:
        raise ConflictError(f"The share of P{project.id} is already {share:g}.")
    quotas.check_admin(session, actor)
    if row is None:
        session.add(ProjectShare(project_id=project.id, share=share))
    else:
        row.share = share
    session.flush()
    by, stream = people.author(session, actor), record.project_stream(project.id)
    record.append(session, stream, "share.set", by=by, why=because, was=was, share=share)
    return share


def of_projects(session: Session) -> Mapping[int, float]:
    """The shares of the projects whose share was set; every other project has the usual one."""
    return dict(rows.plain(session, _every()))


@cache
def _every() -> Executable:
    """Made once, since each round of the scheduler asks."""
    return select(ProjectShare.project_id, ProjectShare.share)


def listed(session: Session) -> Sequence[ShareView]:
    """The shares that differ from the usual one, the largest first."""
    found = session.execute(
        select(Project.id, Project.title, Project.hidden, ProjectShare.share)
        .join(ProjectShare, col(ProjectShare.project_id) == Project.id)
        .where(col(ProjectShare.share) != USUAL)
        .order_by(col(ProjectShare.share).desc(), col(Project.id))
    )
    return [ShareView(number, f"P{number}" if hidden else title, share) for number, title, hidden, share in found]


def _parsed(value: str) -> float:
    typed = value.strip()
    if not re.fullmatch(r"\d{1,4}(\.\d{1,4})?", typed, re.ASCII) or not LEAST <= float(typed) <= MOST:
        raise InvalidError(
            f"A share is a number from {LEAST:g} to {MOST:,}, such as 0.5, 1 or 2; “{typed[:20]}” is not."
        )
    return float(typed)
