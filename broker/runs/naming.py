"""The name and the tags of a run, which people give it and change later. Runs may share a name: the number tells them
apart."""

import re

from sqlalchemy.orm import Session

from broker import publications
from broker.runs import attempts, entries, runs
from broker.runs.kinds.kind import kind_of
from broker.runs.runs import Run
from projects import quotas, rights, text
from projects.errors import ConflictError, ForbiddenError, InvalidError
from projects.people import Actor, Person
from projects.projects import Project
from projects.quotas import QuotaKind

LONGEST_NAME = 60
MOST_TAGS = 5
NOTHING = "-"
"""What is typed in the place of a name or of tags to take them away."""

TAG = re.compile(r"[a-z0-9][a-z0-9.-]{0,19}")


def parse_name(value: str) -> str:
    """A name as typed, as one line; empty for none. Raises InvalidError for more than 60 characters."""
    line = " ".join(text.cleaned(value).split())
    return "" if line == NOTHING else text.prose("The name", line, most=LONGEST_NAME, required=False)


def parse_tags(value: str) -> str:
    """Tags as typed, such as “rope, tiny”, in lower case with spaces between, each once; empty for none.

    Raises InvalidError for more than five, and for what is not a tag.
    """
    typed = text.cleaned(value).strip()
    words = [] if typed == NOTHING else re.split(r"[\s,;]+", typed.lower())
    tags = list(dict.fromkeys(word.removeprefix("#") for word in words if word))
    for tag in tags:
        if not TAG.fullmatch(tag):
            raise InvalidError(
                f"“{tag[:40]}” is not a tag: a tag is a word of at most 20 letters a–z, digits, dots and hyphens."
            )
    if len(tags) > MOST_TAGS:
        raise InvalidError(f"A run has at most {MOST_TAGS} tags; {len(tags)} were typed.")
    return " ".join(tags)


def rename(session: Session, actor: Actor, run_id: int, *, name: str | None, tags: str | None) -> Run:
    """Change the name or the tags of a run, or both; None leaves them as they are, and “-” takes them away.

    Who launched the run may, and the project's lead. The publisher rewrites its model cards. Raises DomainError.
    """
    if name is None and tags is None:
        raise InvalidError(f"Say the new name, the new tags, or both; {NOTHING} takes them away.")
    run = runs.load(session, run_id)
    if not kind_of(run).trains:
        raise ConflictError(f"{kind_of(run).what_it_is(run)}; only a run that trains has a name.")
    attempts.lock(session, run_id)
    session.refresh(run)
    project = session.get_one(Project, run.project_id)
    person = rights.hold_member(session, actor, project)
    if person.id not in (run.requested_by, project.lead_id):
        launcher, lead = (session.get_one(Person, one).name for one in (run.requested_by, project.lead_id))
        both = f", and {lead}, the lead of" if run.requested_by != project.lead_id else " and leads"
        raise ForbiddenError(f"Only {launcher}, who launched run {run.id}{both} “{project.title}”, can name it.")
    now = (run.name if name is None else parse_name(name), run.tags if tags is None else parse_tags(tags))
    if now == (run.name, run.tags):
        raise ConflictError(f"Run {run.id} already has this name and these tags.")
    # Locks the repository, so it comes before the quota's lock of the stream.
    publications.renew_cards(session, [run_id], at_once=False)
    quotas.check(session, actor, QuotaKind.RUN_CHANGE, run.project_id)
    run.name, run.tags = now
    session.flush()
    entries.tell(session, run, "run.named", by=person, name=run.name, tags=run.tags)
    return run
