"""What a project publishes along its way: updates, who it is looking for, and checkpoints that were held back."""

from sqlalchemy.orm import Session

from projects import lifecycle, people, projects, quotas, rights, text
from projects.errors import ConflictError, ForbiddenError, OverError
from projects.people import Actor
from projects.projects import Project, ReleasePolicy
from projects.quotas import QuotaKind
from projects.record import record
from projects.record.record import EntryView
from projects.rights import Act


def post_update(session: Session, actor: Actor, project_id: int, said: str) -> EntryView:
    """Post an update as an entry that can be cited; only the record holds its text."""
    project = projects.lock(session, project_id)
    person = rights.require(session, actor, project, Act.POST_UPDATE)
    if project.stage in projects.ENDED:
        raise OverError(f"“{project.title}” is {project.stage}; it takes no more updates.")
    update = text.prose("The update", said, most=text.LONGEST)
    quotas.check(session, actor, QuotaKind.UPDATE, project_id)
    return record.append(session, record.project_stream(project_id), "project.update", by=person, text=update)


def change_needs(session: Session, actor: Actor, project_id: int, needs: str) -> None:
    """Change who the project is looking for; an empty text means nobody."""
    project = projects.lock(session, project_id)
    lead = rights.require(session, actor, project, Act.CHANGE_NEEDS)
    if project.stage in projects.ENDED:
        raise OverError(f"“{project.title}” is {project.stage}; it no longer needs anybody.")
    said = text.prose("Who is needed", needs, most=text.BRIEF, required=False)
    if said == project.needs:
        raise ConflictError("The project already says exactly this.")
    project.needs = said
    session.flush()
    quotas.check(session, actor, QuotaKind.UPDATE, project_id)
    record.append(session, record.project_stream(project_id), "project.needs_changed", by=lead, needs=said)


def check_may_release(session: Session, actor: Actor, project_id: int) -> None:
    """Raise unless the actor may release the checkpoints that the project holds back. Only reads."""
    lifecycle.check_may(session, actor, project_id, Act.RELEASE)
    project = projects.load(session, project_id)
    _check_outside(session, actor, project)
    _check_held(project)


def release(session: Session, actor: Actor, project_id: int, reason: str) -> None:
    """Make the checkpoints of a project that holds them back public; a reviewer who was never in it decides."""
    project = projects.lock(session, project_id)
    reviewer = rights.require(session, actor, project, Act.RELEASE)
    _check_outside(session, actor, project)
    because = text.prose("The reason", reason, most=text.USUAL)
    _check_held(project)
    project.release_policy = ReleasePolicy.OPEN
    session.flush()
    stream, licence = record.project_stream(project_id), project.licence
    record.append(session, stream, "project.released", by=reviewer, why=because, licence=licence)


def _check_outside(session: Session, actor: Actor, project: Project) -> None:
    person = people.find(session, actor)
    if person is not None and projects.was_in(session, person, project.id, since=project.created_at):
        raise ForbiddenError(
            f"Nobody who has been in “{project.title}” releases its checkpoints; another reviewer can."
        )


def _check_held(project: Project) -> None:
    if not projects.is_held(project):
        raise ConflictError(f"“{project.title}” holds nothing back.")
