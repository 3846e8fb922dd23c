"""Where the checkpoints lie that a run reads of other runs."""

from sqlalchemy.orm import Session

from broker.publications import Publication
from broker.runs import folders
from broker.runs.attempts import Attempt
from broker.runs.kinds.kind import kind_of
from broker.runs.runs import Run


def host(session: Session, run: Run) -> str:
    """The host that has written all checkpoints of others which the run reads as it begins; empty where none has, or
    where it is not known."""
    hosts = {writer(session, checkpoint) for checkpoint in kind_of(run).reads(session, run, begins=True)}
    return hosts.pop() if len(hosts) == 1 else ""


def writer(session: Session, checkpoint: Publication) -> str:
    """The host that has written a checkpoint to its own disk; empty where it is not known."""
    token = folders.token_of(checkpoint.folder)
    attempt = None if token is None else session.get(Attempt, (checkpoint.run_id, token))
    return attempt.host if attempt else ""
