"""Membership of a project: following and leaving it, confirming and removing its people, and changing its lead.

Joining is in `projects.lifecycle`, since it can move the project to its next stage.
"""

from datetime import datetime

from sqlalchemy import delete
from sqlalchemy.orm import Session
from sqlmodel import col, select

from projects import lifecycle, people, projects, quotas, rights, text
from projects.db.columns import Base, foreign_key, timestamp, utcnow
from projects.errors import ConflictError, ForbiddenError, NotFoundError
from projects.people import Actor, Person
from projects.projects import Membership, PastMembership, Project, ProjectRole
from projects.quotas import QuotaKind
from projects.record import record
from projects.rights import Act


class LeadOffer(Base, table=True):
    """The open offer of a project's lead to one of its contributors; a project has at most one."""

    __tablename__ = "lead_offers"

    project_id: int = foreign_key("projects.id", primary_key=True)
    person_id: int = foreign_key("people.id")
    offered_at: datetime = timestamp(default=utcnow)


def follow(session: Session, actor: Actor, project_id: int) -> None:
    """Make the actor a follower, who has no say in the project and does not count as one of its people.

    Raises NotFoundError, ForbiddenError for a banned person, and ConflictError for a member or an ended project.
    """
    project = projects.lock(session, project_id)
    if project.stage in projects.ENDED:
        raise ConflictError(f"“{project.title}” is {project.stage}; there is nothing more to follow.")
    person = people.ensure(session, actor)
    membership = session.get(Membership, (project_id, person.id))
    if membership is not None:
        how = "already follow" if membership.role == ProjectRole.FOLLOWER else "are already in"
        raise ConflictError(f"You {how} “{project.title}”.")
    session.add(Membership(project_id=project_id, person_id=person.id, role=ProjectRole.FOLLOWER))
    session.flush()
    quotas.check(session, actor, QuotaKind.MEMBERSHIP, project_id)
    record.append(session, record.project_stream(project_id), "project.followed", by=person)


def leave(session: Session, actor: Actor, project_id: int) -> None:
    """End the actor's own membership. Contributors of a project that has ended stay named in it.

    Raises NotFoundError, ForbiddenError for a banned person, and ConflictError for the lead, for somebody who is not in
    the project, and for a contributor once it has ended.
    """
    project = projects.lock(session, project_id)
    person = people.find(session, actor)
    membership = None if person is None else session.get(Membership, (project_id, person.id))
    if person is None or membership is None:
        raise ConflictError(f"You are not in “{project.title}”.")
    if person.id == project.lead_id:
        raise ConflictError(f"You lead “{project.title}”: hand the lead over before you leave.")
    if project.stage in projects.ENDED and membership.role == ProjectRole.CONTRIBUTOR:
        raise ConflictError(f"“{project.title}” is {project.stage}; who worked on it stays named in it.")
    role = membership.role
    _end(session, membership)
    record.append(session, record.project_stream(project_id), "project.left", by=person, role=role)


def confirm(session: Session, actor: Actor, project_id: int, *, who: str) -> str:
    """Make the newcomer with the Discord id `who` a contributor; returns their name.

    Raises NotFoundError, ForbiddenError for all but the lead, and ConflictError where the person is no newcomer of the
    project, is banned, or the project has ended.
    """
    project = _open(session, project_id, "nobody is confirmed any more")
    lead = rights.require(session, actor, project, Act.CONFIRM)
    person, membership = _in_project(session, project, who)
    if membership.role != ProjectRole.NEWCOMER:
        raise ConflictError(f"{person.name} already works on “{project.title}”.")
    _check_not_banned(person)
    membership.role = ProjectRole.CONTRIBUTOR
    session.flush()
    record.append(session, record.project_stream(project_id), "project.confirmed", by=lead, person=_named(person))
    return person.name


def confirm_joining(session: Session, actor: Actor, entry_id: int) -> tuple[int, str]:
    """Confirm the newcomer who joined by an entry of the record; returns the project and their name.

    Raises what `confirm` raises.
    """
    joining = record.load(session, entry_id)
    if joining is None or joining.kind != "project.joined" or joining.project_id is None or joining.payload is None:
        raise NotFoundError("The record no longer says who joined; /project confirm names the person.")
    return joining.project_id, confirm(session, actor, joining.project_id, who=joining.payload["by"]["id"])


def remove(session: Session, actor: Actor, project_id: int, *, who: str, reason: str) -> None:
    """Remove the newcomer or contributor with the Discord id `who`, in public; their runs stay the project's.

    They may join again, as a newcomer, to be confirmed by the lead. Raises NotFoundError, ForbiddenError for all
    but the lead, InvalidError without a reason, and ConflictError for the lead, for somebody who is not in the project,
    and for a project that has ended.
    """
    project = _open(session, project_id, "who worked on it stays named in it")
    lead = rights.require(session, actor, project, Act.REMOVE)
    because = text.prose("The reason", reason, most=text.USUAL)
    person, membership = _removable(session, project, who)
    role = membership.role
    _end(session, membership, removed=True)
    stream, named = record.project_stream(project_id), _named(person)
    record.append(session, stream, "project.removed", by=lead, why=because, person=named, role=role)


def check_may_remove(session: Session, actor: Actor, project_id: int, *, who: str) -> None:
    """Raise unless the actor may remove the person with the Discord id `who` from the project. Only reads."""
    lifecycle.check_may(session, actor, project_id, Act.REMOVE)
    _removable(session, projects.load(session, project_id), who)


def appoint_lead(session: Session, actor: Actor | None, project_id: int, *, to: str, reason: str) -> None:
    """Make a contributor or newcomer the lead in place of a lead who is banned or gone; an admin decides, in public.

    `to` is a Discord id; an `actor` of None is the operator. The former lead stays a contributor, and an open offer of
    the lead ends. Raises ForbiddenError for all but admins, and for an admin who appoints themselves; NotFoundError,
    InvalidError without a reason, and ConflictError for somebody who is not in the project, leads it already or is
    banned, and for a project that has ended.
    """
    rights.require_admin(actor, Act.APPOINT_LEAD)
    project = _open(session, project_id)
    because = text.prose("The reason", reason, most=text.USUAL)
    person, membership = _appointable(session, actor, project, to)
    quotas.check_admin(session, actor)
    by, before = people.author(session, actor), session.get_one(Person, project.lead_id)
    project.lead_id, membership.role = person.id, ProjectRole.CONTRIBUTOR
    session.execute(delete(LeadOffer).where(col(LeadOffer.project_id) == project_id))
    session.flush()
    stream, named = record.project_stream(project_id), _named(person)
    record.append(session, stream, "project.lead_appointed", by=by, why=because, person=named, before=_named(before))


def check_may_appoint(session: Session, actor: Actor | None, project_id: int, *, to: str) -> None:
    """Raise unless the actor may make the person with the Discord id `to` the project's lead. Only reads."""
    rights.require_admin(actor, Act.APPOINT_LEAD)
    project = projects.load(session, project_id)
    _check_open(project)
    _appointable(session, actor, project, to)


def offer_lead(session: Session, actor: Actor, project_id: int, *, to: str, reason: str) -> None:
    """Offer the lead to the contributor with the Discord id `to`; the offer replaces an earlier one."""
    project = _open(session, project_id)
    lead = rights.require(session, actor, project, Act.HAND_OVER)
    successor = _successor(session, project, to)
    because = text.prose("The reason", reason, most=text.USUAL)
    session.merge(LeadOffer(project_id=project_id, person_id=successor.id, offered_at=utcnow()))
    session.flush()
    quotas.check(session, actor, QuotaKind.PROJECT_CHANGE, project_id)
    stream = record.project_stream(project_id)
    record.append(session, stream, "project.lead_offered", by=lead, why=because, to=_named(successor))


def check_may_offer(session: Session, actor: Actor, project_id: int, *, to: str) -> None:
    """Raise unless the actor may offer the lead to the person with the Discord id `to`. Only reads."""
    lifecycle.check_may(session, actor, project_id, Act.HAND_OVER)
    _successor(session, projects.load(session, project_id), to)


def accept_lead(session: Session, actor: Actor, project_id: int) -> None:
    """Make the actor, who was offered the lead, the lead; the former lead stays a contributor."""
    project = _open(session, project_id)
    offer, successor = _offer(session, actor, project)
    before = session.get_one(Person, project.lead_id)
    project.lead_id = successor.id
    session.delete(offer)
    session.flush()
    stream = record.project_stream(project_id)
    record.append(session, stream, "project.lead_accepted", by=successor, before=_named(before))


def decline_lead(session: Session, actor: Actor, project_id: int) -> None:
    """End the open offer of the lead: the person who received it declines it, or the lead takes it back."""
    project = _open(session, project_id)
    offer, person = _offer(session, actor, project, or_lead=True)
    session.delete(offer)
    record.append(session, record.project_stream(project_id), "project.lead_declined", by=person)


LEAD_STAYS = "its lead stays as it is"


def _open(session: Session, project_id: int, otherwise: str = LEAD_STAYS) -> Project:
    """The project's row, locked; raises ConflictError, which ends with `otherwise`, where the project has ended."""
    project = projects.lock(session, project_id)
    _check_open(project, otherwise)
    return project


def _check_open(project: Project, otherwise: str = LEAD_STAYS) -> None:
    if project.stage in projects.ENDED:
        raise ConflictError(f"“{project.title}” is {project.stage}; {otherwise}.")


def _end(session: Session, membership: Membership, *, removed: bool = False) -> None:
    """Delete a membership with its offer of the lead; that of a newcomer or contributor is remembered as a past one."""
    project_id, person_id = membership.project_id, membership.person_id
    if membership.role != ProjectRole.FOLLOWER:
        joined = membership.joined_at
        session.add(
            PastMembership(
                project_id=project_id, person_id=person_id, joined_at=joined, left_at=utcnow(), removed=removed
            )
        )
    session.delete(membership)
    session.execute(
        delete(LeadOffer).where(col(LeadOffer.project_id) == project_id, col(LeadOffer.person_id) == person_id)
    )


def _named(person: Person) -> dict[str, str]:
    return {"id": person.discord_id, "name": person.name}


def _in_project(session: Session, project: Project, who: str) -> tuple[Person, Membership]:
    """The newcomer, contributor or lead with the Discord id `who`; raises ConflictError for everyone else."""
    person = people.known(session, int(who)) if who.isdecimal() else None
    membership = None if person is None else session.get(Membership, (project.id, person.id))
    if person is None or membership is None or membership.role == ProjectRole.FOLLOWER:
        name = "This person" if person is None else person.name
        raise ConflictError(f"{name} is not in “{project.title}”; they would join it first.")
    return person, membership


def _removable(session: Session, project: Project, who: str) -> tuple[Person, Membership]:
    person, membership = _in_project(session, project, who)
    if person.id == project.lead_id:
        raise ConflictError(f"{person.name} leads “{project.title}”; the lead is handed over, not removed.")
    return person, membership


def _appointable(session: Session, actor: Actor | None, project: Project, to: str) -> tuple[Person, Membership]:
    person, membership = _in_project(session, project, to)
    if actor is not None and str(actor.discord_id) == person.discord_id:
        raise ForbiddenError("Nobody appoints themselves; another admin can.")
    if person.id == project.lead_id:
        raise ConflictError(f"{person.name} already leads “{project.title}”.")
    _check_not_banned(person)
    return person, membership


def _check_not_banned(person: Person) -> None:
    if person.banned is not None:
        raise ConflictError(f"{person.name} is banned, and can do nothing but read.")


def _successor(session: Session, project: Project, to: str) -> Person:
    """The contributor with the Discord id `to`; raises NotFoundError, and ConflictError for the lead."""
    successor = session.scalars(select(Person).where(Person.discord_id == to)).one_or_none()
    if successor is None or not projects.works_on(session, successor, project):
        raise NotFoundError(f"The lead can only be offered to a contributor of “{project.title}”.")
    if successor.id == project.lead_id:
        raise ConflictError(f"{successor.name} already leads “{project.title}”.")
    _check_not_banned(successor)
    return successor


def _offer(session: Session, actor: Actor, project: Project, *, or_lead: bool = False) -> tuple[LeadOffer, Person]:
    """The open offer and the person who acts: the one who received it or, with `or_lead`, the lead.

    Raises ConflictError where no offer is open, and ForbiddenError for everyone else.
    """
    offer = session.get(LeadOffer, project.id, populate_existing=True)
    if offer is None:
        raise ConflictError(f"Nobody is offered the lead of “{project.title}” now.")
    person = people.find(session, actor)
    if person is None or not (person.id == offer.person_id or (or_lead and person.id == project.lead_id)):
        successor = session.get_one(Person, offer.person_id).name
        raise ForbiddenError(f"The lead of “{project.title}” is offered to {successor}, who alone can answer.")
    return offer, person
