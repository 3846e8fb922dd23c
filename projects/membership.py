"""Membership of a project: following it, leaving it, and handing its lead over.

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
from projects.projects import Membership, Project, ProjectRole
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
        how = "follow" if membership.role == ProjectRole.FOLLOWER else "are in"
        raise ConflictError(f"You {how} “{project.title}” already.")
    session.add(Membership(project_id=project_id, person_id=person.id, role=ProjectRole.FOLLOWER))
    session.flush()
    quotas.check(session, actor, QuotaKind.MEMBERSHIP, project_id)
    record.append(session, record.project_stream(project_id), "project.followed", by=person)


def leave(session: Session, actor: Actor, project_id: int) -> None:
    """End the actor's membership. Contributors of a project that has ended stay named in it.

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
    if project.stage in projects.ENDED and membership.role != ProjectRole.FOLLOWER:
        raise ConflictError(f"“{project.title}” is {project.stage}; who worked on it stays named in it.")
    role = membership.role
    session.delete(membership)
    session.execute(
        delete(LeadOffer).where(col(LeadOffer.project_id) == project_id, col(LeadOffer.person_id) == person.id)
    )
    record.append(session, record.project_stream(project_id), "project.left", by=person, role=role)


def offer_lead(session: Session, actor: Actor, project_id: int, *, to: str, reason: str) -> None:
    """Offer the lead to the contributor with the Discord id `to`; the offer replaces an earlier one."""
    project = _open(session, project_id)
    lead = rights.require(session, actor, project, Act.HAND_OVER)
    successor = _successor(session, project, to)
    because = text.prose("The reason", reason, most=text.USUAL)
    session.merge(LeadOffer(project_id=project_id, person_id=successor.id, offered_at=utcnow()))
    session.flush()
    quotas.check(session, actor, QuotaKind.PROJECT_CHANGE, project_id)
    stream, named = record.project_stream(project_id), {"id": successor.discord_id, "name": successor.name}
    record.append(session, stream, "project.lead_offered", by=lead, why=because, to=named)


def check_may_offer(session: Session, actor: Actor, project_id: int, *, to: str) -> None:
    """Raise unless the actor may offer the lead to the person with the Discord id `to`. Only reads."""
    lifecycle.check_may(session, actor, project_id, Act.HAND_OVER)
    _successor(session, projects.load(session, project_id), to)


def accept_lead(session: Session, actor: Actor, project_id: int) -> None:
    """Make the actor, whom the lead was offered to, the lead; the former lead stays a contributor."""
    project = _open(session, project_id)
    offer, successor = _offer(session, actor, project)
    before = session.get_one(Person, project.lead_id)
    project.lead_id = successor.id
    session.delete(offer)
    session.flush()
    stream, named = record.project_stream(project_id), {"id": before.discord_id, "name": before.name}
    record.append(session, stream, "project.lead_accepted", by=successor, before=named)


def decline_lead(session: Session, actor: Actor, project_id: int) -> None:
    """End the open offer of the lead: the person to whom it was made declines it, or the lead takes it back."""
    project = _open(session, project_id)
    offer, person = _offer(session, actor, project, or_lead=True)
    session.delete(offer)
    record.append(session, record.project_stream(project_id), "project.lead_declined", by=person)


def _open(session: Session, project_id: int) -> Project:
    """The project's row, locked; raises ConflictError where the project has ended."""
    project = projects.lock(session, project_id)
    if project.stage in projects.ENDED:
        raise ConflictError(f"“{project.title}” is {project.stage}; its lead stays as it is.")
    return project


def _successor(session: Session, project: Project, to: str) -> Person:
    """The contributor with the Discord id `to`; raises NotFoundError, and ConflictError for the lead."""
    successor = session.scalars(select(Person).where(Person.discord_id == to)).one_or_none()
    if successor is None or not projects.works_on(session, successor, project):
        raise NotFoundError(f"The lead can only be offered to a contributor of “{project.title}”.")
    if successor.id == project.lead_id:
        raise ConflictError(f"{successor.name} leads “{project.title}” already.")
    return successor


def _offer(session: Session, actor: Actor, project: Project, *, or_lead: bool = False) -> tuple[LeadOffer, Person]:
    """The open offer and the person who acts: the one to whom it was made or, with `or_lead`, the lead.

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
