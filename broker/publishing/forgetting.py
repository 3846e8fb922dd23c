"""Forgetting a person, and blanking what people wrote, as far as model cards on the Hub show it: the publisher rewrites
these cards.

A card is a new commit of each branch that has one. Earlier commits stay on the Hub, where only its owner removes them.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import structlog
from sqlalchemy import ColumnElement, update
from sqlalchemy.orm import Session
from sqlmodel import col, select

from broker import publications
from broker.publications import Publication, Repository
from broker.publishing import model_card, result_lines, results_file
from broker.publishing.hub import Hub
from broker.runs.runs import Run
from projects import moderation, projects
from projects.db.columns import utcnow
from projects.db.database import Database
from projects.people import Actor
from projects.projects import Membership, PastMembership
from projects.record import mentions, redaction
from projects.record.mentions import Mentions
from trainer.contract import METRICS_FILE

Files = dict[str, str | bytes]
"""Files of a branch, by name."""

MOST_LISTED = 10

log = structlog.get_logger()


@dataclass(frozen=True)
class Found:
    """What forgetting a person would do, and the addresses of the repositories whose cards may name them."""

    mentions: Mentions
    repositories: Sequence[str]


@dataclass(frozen=True)
class Forgotten:
    """How many entries were blanked, and the addresses of the repositories whose cards are rewritten."""

    entries: int
    repositories: Sequence[str]


def find(session: Session, actor: Actor | None, discord_id: str) -> Found:
    """Everything that refers to a person, or may; changes nothing. Raises as `mentions.find` does."""
    found = mentions.find(session, actor, discord_id)
    return Found(found, list(_naming(session, discord_id).values()))


def forget(
    session: Session, actor: Actor | None, discord_id: str, reason: str, texts: Collection[str] = ()
) -> Forgotten:
    """Forget a person as `redaction.forget` does, and have the cards that may name them rewritten."""
    repositories = _naming(session, discord_id)

    def renew() -> None:
        publications.renew_cards(session, repositories, at_once=True)

    entries = redaction.forget(session, actor, discord_id, reason, texts, follow=renew)
    return Forgotten(entries, list(repositories.values()))


def redact(session: Session, actor: Actor | None, stream: str, number: int, reason: str) -> Sequence[str]:
    """Blank an entry as `redaction.redact` does, and have the cards that showed its texts rewritten; returns the
    addresses of their repositories."""
    repositories: list[str] = []

    def renew(changed: redaction.Changed) -> None:
        runs, of_projects = changed.get("runs", ()), changed.get("projects", ())
        repositories.extend(_renew(session, col(Run.id).in_(runs) | col(Run.project_id).in_(of_projects)))

    redaction.redact(session, actor, stream, number, reason, follow=renew)
    return repositories


def remove_text(session: Session, actor: Actor | None, project_id: int, name: str, reason: str) -> Forgotten:
    """Remove one text of a project as `moderation.remove_text` does, and have the cards of its runs rewritten."""
    projects.lock(session, project_id)  # before the repositories, which come before the project's chain
    repositories = _renew(session, col(Run.project_id) == project_id)
    return Forgotten(moderation.remove_text(session, actor, project_id, name, reason), repositories)


def told(repositories: Sequence[str]) -> str:
    """A sentence on the repositories whose cards are rewritten; empty without one."""
    if not repositories:
        return ""
    return (
        "On the Hub, the model cards of these repositories are rewritten, and what they said stays in the history "
        f"there until somebody deletes it: {listed(repositories)}."
    )


def listed(repositories: Sequence[str]) -> str:
    """The first of the addresses, and how many more there are."""
    more = len(repositories) - MOST_LISTED
    return f"{', '.join(repositories[:MOST_LISTED])}{f' and {more:,} more' if more > 0 else ''}"


def due(session: Session) -> Sequence[int]:
    """The runs whose cards are to be rewritten now: none that has an upload under way, which would undo it."""
    uploading = select(Publication.run_id).where(
        Publication.run_id == Repository.run_id, col(Publication.url).is_(None), col(Publication.lease_until) > utcnow()
    )
    waiting = (Repository.cards_due > 0, col(Repository.not_before) <= utcnow(), ~uploading.exists())
    return session.scalars(select(Repository.run_id).where(*waiting)).all()


def renew_cards(db: Database, hub: Hub, run_id: int) -> None:
    """Rewrite the cards of a run on all branches of its repository. Raises HubError and OSError."""
    with db.read() as session:
        repository = session.get_one(Repository, run_id)
        steps = [step for step, _ in publications.links(session, run_id)]
        waiting = select(Publication.folder).where(Publication.run_id == run_id, publications.unpublished())
        for folder in session.scalars(waiting):
            model_card.discard(folder)
    branches = [*(f"step{step}" for step in steps), *(["main"] if steps else [])]
    for branch in branches:
        found = hub.read(repository.name, branch, model_card.CARD_FILE)
        if found is None:
            continue
        said, commit = found
        step = model_card.step_of(said)
        with db.read() as session:
            now: Files = {model_card.CARD_FILE: model_card.renewed(session, run_id, repository.name, said)}
        there: Files = {model_card.CARD_FILE: said}
        if step is not None:
            _renew_results(db, hub, repository.name, run_id, branch, step, model_card.tokens_of(said), now, there)
        if changed := {name: text for name, text in now.items() if text != there[name]}:
            # Refused where another publisher has uploaded a later step to `main` since.
            hub.write(repository.name, branch, changed, "model card updated", parent=commit)
    with db.write() as session:
        seen = (col(Repository.run_id) == run_id, col(Repository.cards_due) == repository.cards_due)
        session.execute(update(Repository).where(*seen).values(cards_due=0, tries=0))
    log.info("cards rewritten", run=run_id, branches=len(branches))


def _renew_results(
    db: Database,
    hub: Hub,
    repo: str,
    run_id: int,
    branch: str,
    step: int,
    tokens: int | None,
    now: Files,
    there: Files,
) -> None:
    """Add to `now` the files of results that the branch of a step is to have, and to `there` what it has of them. Only
    `main` has what was measured on earlier steps since."""
    with db.read() as session:
        measured = results_file.content(session, run_id, step)
        lines = result_lines.of_step(session, run_id, step, tokens)
        events = result_lines.events(session, run_id, step) if measured or branch == "main" else b""
    is_new = False
    if measured:
        name = results_file.name(step)
        now[name], there[name] = measured, (hub.read(repo, branch, name) or ("", ""))[0]
        is_new = now[name] != there[name]
    if is_new:
        metrics = (hub.read(repo, branch, METRICS_FILE) or ("", ""))[0]
        now[METRICS_FILE], there[METRICS_FILE] = result_lines.added(metrics, lines), metrics
    if events and (is_new or branch == "main"):
        name = result_lines.RESULTS_TENSORBOARD_FILE
        now[name], there[name] = events, (hub.read_bytes(repo, branch, name) or (b"", ""))[0]


def _naming(session: Session, discord_id: str) -> dict[int, str]:
    """The runs with a repository whose cards may name the person, each with its address: those whose own texts hold one
    of their names, and those of projects that the person is or was in, or whose texts hold one."""
    whose = mentions.person(session, discord_id)
    names = mentions.pattern(session, discord_id, whose)
    found = list(mentions.in_tables(session, names))
    own, of_projects = ({words.row for words in found if words.table.name == table} for table in ("runs", "projects"))
    if whose is not None:
        for table in (Membership, PastMembership):
            of_projects.update(session.scalars(select(table.project_id).where(table.person_id == whose.id)))
    return _published(session, col(Run.project_id).in_(of_projects) | col(Run.id).in_(own))


def _renew(session: Session, of_runs: ColumnElement[bool]) -> Sequence[str]:
    """Have the cards of the runs that meet the condition rewritten; returns the addresses of their repositories."""
    publications.renew_cards(session, select(Run.id).where(of_runs), at_once=True)
    return list(_published(session, of_runs).values())


def _published(session: Session, of_runs: ColumnElement[bool]) -> dict[int, str]:
    """The runs that have a published checkpoint, each with the address of its repository."""
    rows = session.execute(
        select(Repository.run_id, col(Publication.url))
        .join(Run, col(Run.id) == Repository.run_id)
        .join(Publication, col(Publication.run_id) == Repository.run_id)
        .where(of_runs, col(Publication.url).is_not(None))
        .order_by(col(Repository.run_id))
    )
    return {run_id: url.partition("/tree/")[0] for run_id, url in rows if url is not None}
