"""The ban list: a banned person may read, and do nothing else."""

from sqlalchemy.orm import Session
from sqlmodel import col, select

from projects import people, quotas, rights, text
from projects.errors import ConflictError, NotFoundError
from projects.people import Actor, Person
from projects.projects import ENDED, Project
from projects.record import record
from projects.rights import Act


def ban(session: Session, actor: Actor | None, who: Actor, reason: str) -> None:
    """Ban a person, in public and for a reason; an `actor` of None is the operator.

    The entry names the open projects that the person leads, so that an admin appoints another lead. Raises
    ForbiddenError unless the actor is an admin, and ConflictError where the person is banned already or is the actor.
    """
    rights.require_admin(actor, Act.BAN)
    because = text.prose("The reason", reason, most=text.USUAL)
    if actor is not None and actor.discord_id == who.discord_id:
        raise ConflictError("Nobody can ban themselves.")
    by = people.author(session, actor)
    person = people.known(session, who.discord_id) or people.ensure(session, who)
    if person.banned is not None:
        raise ConflictError(f"{person.name} is already banned.")
    person.banned = because
    session.flush()
    leads = select(Project.id).where(Project.lead_id == person.id, col(Project.stage).not_in(ENDED))
    told = {"person": _named(person), "leads": list(session.scalars(leads.order_by(col(Project.id))))}
    record.append(session, record.LAB, "person.banned", by=by, why=because, **told)


def unban(session: Session, actor: Actor | None, discord_id: int, reason: str) -> None:
    """Lift a person's ban, in public and for a reason; an `actor` of None is the operator.

    Raises ForbiddenError unless the actor is an admin, NotFoundError for an unknown Discord id, and ConflictError where
    the person is not banned, or the admin's budget is used up.
    """
    rights.require_admin(actor, Act.BAN)
    because = text.prose("The reason", reason, most=text.USUAL)
    person = people.known(session, discord_id)
    if person is None:
        raise NotFoundError(f"Nobody with the Discord id {discord_id} has done anything here.")
    if person.banned is None:
        raise ConflictError(f"{person.name} is not banned.")
    # A ban has no budget of its own: each takes another person, or one whose ban was lifted.
    quotas.check_admin(session, actor)
    by = people.author(session, actor)
    person.banned = None
    session.flush()
    record.append(session, record.LAB, "person.unbanned", by=by, why=because, person=_named(person))


def _named(person: Person) -> dict[str, str]:
    return {"id": person.discord_id, "name": person.name}
