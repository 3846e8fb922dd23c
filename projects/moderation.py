"""What moderators and admins do with projects, in public and with a reason.

Moderators open their channels and hide them from lists; admins take a text of theirs away.
"""

from sqlalchemy import inspect
from sqlalchemy.orm import Session

from projects import people, projects, rights, text
from projects.db.columns import WORDS
from projects.errors import ConflictError, NotFoundError
from projects.people import Actor
from projects.projects import Project, Stage
from projects.record import record, redaction
from projects.rights import Act

WITH_SCOPE = frozenset({Stage.SCOPED, Stage.ACTIVE, Stage.PAUSED})
TEXTS = tuple(column.name for column in inspect(Project).columns if column.info == WORDS)
"""What of a project can be taken away."""


def open_channel(session: Session, actor: Actor, project_id: int) -> None:
    """Give a project that has a scope its channel, whatever the policy and however few its people."""
    project = projects.lock(session, project_id)
    by = rights.require(session, actor, project, Act.OPEN_CHANNEL)
    if project.has_channel:
        raise ConflictError(f"“{project.title}” has its channel already.")
    if project.stage not in WITH_SCOPE:
        raise ConflictError(f"“{project.title}” is {project.stage}; a channel comes with a project's scope.")
    project.has_channel = True
    session.flush()
    record.append(session, record.project_stream(project_id), "project.channel_opened", by=by)


def channel_deleted(session: Session, project_id: int) -> None:
    """Record that the project's channel was deleted on Discord; its entries are still recorded, and posted no more."""
    project = projects.load(session, project_id)
    record.append(session, record.LAB, "channel.deleted", by=None, project=project_id, title=project.title)


def hide(session: Session, actor: Actor, project_id: int, *, reason: str) -> None:
    """Take a project out of lists and suggestions; its record goes on, and who knows its number still finds it."""
    _set_hidden(session, actor, project_id, hidden=True, reason=reason)


def unhide(session: Session, actor: Actor, project_id: int, *, reason: str) -> None:
    """Show a hidden project again."""
    _set_hidden(session, actor, project_id, hidden=False, reason=reason)


def remove_text(session: Session, actor: Actor | None, project_id: int, name: str, reason: str) -> int:
    """Take one text of a project, such as its title, from its card and blank every entry of its chain that tells it.

    Returns how many those are. Raises ForbiddenError for all but admins and the operator, NotFoundError, ConflictError.
    """
    rights.require_admin(actor, Act.REDACT)
    because = text.prose("The reason", reason, most=text.USUAL)
    if name not in TEXTS:
        raise NotFoundError(f"A project has no text “{name[:30]}”; it has: {', '.join(TEXTS)}.")
    project = projects.lock(session, project_id)
    said, spoken = getattr(project, name), name.replace("_", " ")
    if said in ("", redaction.REMOVED):
        raise ConflictError(f"The {spoken} of project {project_id} is empty already.")
    setattr(project, name, redaction.REMOVED)
    by = None if actor is None else people.ensure(session, actor)
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
        raise ConflictError(f"“{project.title}” is {'hidden' if hidden else 'shown'} already.")
    project.hidden = hidden
    session.flush()
    kind = "project.hidden" if hidden else "project.unhidden"
    record.append(session, record.project_stream(project_id), kind, by=by, why=because)
