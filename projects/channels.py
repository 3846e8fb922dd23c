"""What the record tells of a project's channel that somebody has deleted."""

from sqlalchemy.orm import Session

from projects import lifecycle
from projects.record import record


def deleted(session: Session, project_id: int) -> None:
    """Tell the lab that the project's channel is gone: what happens goes on being recorded, and is posted no more."""
    project = lifecycle.load(session, project_id)
    record.append(session, record.LAB, "channel.deleted", by=None, project=project_id, title=project.title)
