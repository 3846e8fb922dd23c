"""What moderators and admins do with projects, in public.

Moderators open a project's channel and hide a project from lists; admins remove a text of a project.
"""

from sqlalchemy import inspect
from sqlalchemy.orm import Session

from projects import people, projects, quotas, rights, text
from projects.db.columns import WORDS
from projects.errors import ConflictError, NotFoundError
from projects.people import Actor
from projects.projects import Project, Stage
from projects.quotas import QuotaKind
from projects.record import record, redaction
from projects.rights import Act

WITH_SCOPE = frozenset({Stage.SCOPED, Stage.ACTIVE, Stage.PAUSED})
TEXTS = tuple(column.name for column in inspect(Project).columns if column.info == WORDS)
"""The texts of a project that can be removed."""


def open_channel(session: Session, actor: Actor, project_id: int) -> None:
    """Open the channel of a project that has a scope, whatever the channel policy says and however few its people are.

    Raises NotFoundError, ForbiddenError for all but moderators, and ConflictError.
    """
    project = projects.lock(session, project_id)
    by = rights.require(session, actor, project, Act.OPEN_CHANNEL)
    if project.has_channel:
        raise ConflictError(f"“{project.title}” already has its channel.")
    if project.stage not in WITH_SCOPE:
        raise ConflictError(f"“{project.title}” is {project.stage}; a channel comes with a project's scope.")
    project.has_channel = True
    session.flush()
    record.append(session, record.project_stream(project_id), "project.channel_opened", by=by)


def channel_deleted(session: Session, project_id: int) -> None:
    """Record that the project's channel was deleted on Discord; its entries are still recorded, and posted no more."""
    project = projects.lock(session, project_id)
    record.append(session, record.LAB, "channel.deleted", by=None, project=project_id, title=project.title)


def hide(session: Session, actor: Actor, project_id: int, *, reason: str) -> None:
    """Hide a project from lists and suggestions. Its record goes on, and its number still finds it."""
    _set_hidden(session, actor, project_id, hidden=True, reason=reason)


def unhide(session: Session, actor: Actor, project_id: int, *, reason: str) -> None:
    """Show a hidden project again."""
    _set_hidden(session, actor, project_id, hidden=False, reason=reason)


def remove_text(session: Session, actor: Actor | None, project_id: int, name: str, reason: str) -> int:
    """Remove one text of a project, such as its title, from its card, and blank every entry of its chain that holds it.

    Returns the number of entries blanked. An `actor` of None is the operator. Raises ForbiddenError for all but admins,
    NotFoundError for an unknown project or text, and ConflictError where the text is empty.
    """
    rights.require_admin(actor, Act.REDACT)
    because = text.prose("The reason", reason, most=text.USUAL)
    if name not in TEXTS:
        raise NotFoundError(f"A project has no text “{name[:30]}”; it has: {', '.join(TEXTS)}.")
    project = projects.lock(session, project_id)
    said, spoken = getattr(project, name), name.replace("_", " ")
    if said in ("", redaction.REMOVED):
        raise ConflictError(f"The {spoken} of project {project_id} is already empty.")
    setattr(project, name, redaction.REMOVED)
    by = people.author(session, actor)
    session.flush()
    stream = record.project_stream(project_id)
    numbers = redaction.blank_saying(session, stream, said)
    record.append(session, stream, "record.redacted", by=by, why=because, numbers=numbers, field=spoken)
    return len(numbers)


def _set_hidden(session: Session, actor: Actor, project_id: int, *, hidden: bool, reason: str) -> None:
    project = projects.lock(session, project_id)
    act = Act.HIDE if hidden else Act.UNHIDE
    by = rights.require(session, actor, project, act)
    because = text.prose("The reason", reason, most=text.USUAL)
    if project.hidden == hidden:
        raise ConflictError(f"“{project.title}” is already {'hidden' if hidden else 'shown'}.")
    project.hidden = hidden
    session.flush()
    if hidden:
        quotas.check(session, actor, QuotaKind.PROJECT_CHANGE, project_id)
    kind = "project.hidden" if hidden else "project.unhidden"
    record.append(session, record.project_stream(project_id), kind, by=by, why=because)
