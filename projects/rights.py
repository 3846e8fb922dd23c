"""Who may do what: one table of acts and of the roles that may do them. An act open to everyone is not in it."""

from collections.abc import Mapping
from enum import StrEnum

from sqlalchemy.orm import Session

from projects import people
from projects.errors import ForbiddenError
from projects.people import Actor, LabRole, Person
from projects.projects import Membership, Project, ProjectRole

Role = ProjectRole | LabRole


class Act(StrEnum):
    """An act that takes a role. The value names the act in a refusal."""

    SCOPE = "scope"
    PAUSE = "pause"
    RESUME = "resume"
    COMPLETE = "complete"
    STOP = "stop"
    CHANGE_NEEDS = "change needs"
    POST_UPDATE = "post update"
    PUT_ON_RECORD = "put on record"
    HAND_OVER = "hand over"
    CONFIRM = "confirm newcomers"
    REMOVE = "remove people"
    APPOINT_LEAD = "appoint a lead"
    USE_COMPUTE = "use compute"
    ASK_FOR_COMPUTE = "ask for compute"
    RELEASE = "release"
    OPEN_CHANNEL = "open channel"
    HIDE = "hide"
    UNHIDE = "unhide"
    REVIEW = "review"
    DECIDE_CATALOGUE = "decide on the catalogue"
    MANAGE_COMPUTE = "manage pools and grants"
    SET_SHARES = "set shares"
    CHANGE_POLICIES = "change policies"
    BAN = "ban"
    REDACT = "redact"
    SET_UP = "set up"


LEAD: frozenset[Role] = frozenset({ProjectRole.LEAD})
WORKING: frozenset[Role] = frozenset({ProjectRole.LEAD, ProjectRole.CONTRIBUTOR})
MODERATOR: frozenset[Role] = frozenset({LabRole.MODERATOR})
REVIEWER: frozenset[Role] = frozenset({LabRole.REVIEWER})
ADMIN: frozenset[Role] = frozenset({LabRole.ADMIN})

MAY: Mapping[Act, frozenset[Role]] = {
    Act.SCOPE: LEAD,
    Act.PAUSE: LEAD,
    Act.RESUME: LEAD,
    Act.COMPLETE: LEAD,
    Act.STOP: LEAD | MODERATOR,
    Act.CHANGE_NEEDS: LEAD,
    Act.POST_UPDATE: WORKING,
    Act.PUT_ON_RECORD: WORKING,
    Act.HAND_OVER: LEAD,
    Act.CONFIRM: LEAD,
    Act.REMOVE: LEAD,
    Act.APPOINT_LEAD: ADMIN,
    Act.USE_COMPUTE: WORKING,
    Act.ASK_FOR_COMPUTE: LEAD,
    Act.RELEASE: REVIEWER,
    Act.OPEN_CHANNEL: MODERATOR,
    Act.HIDE: MODERATOR,
    Act.UNHIDE: MODERATOR,
    Act.REVIEW: REVIEWER,
    Act.DECIDE_CATALOGUE: ADMIN,
    Act.MANAGE_COMPUTE: ADMIN,
    Act.SET_SHARES: ADMIN,
    Act.CHANGE_POLICIES: ADMIN,
    Act.BAN: ADMIN,
    Act.REDACT: ADMIN,
    Act.SET_UP: ADMIN,
}


def require_admin(actor: Actor | None, act: Act) -> None:
    """Raise ForbiddenError unless the actor's lab roles allow the act.

    An `actor` of None is the operator at the command line, who may do everything.
    """
    if actor is not None and actor.roles.isdisjoint(MAY[act]):
        raise ForbiddenError(f"Only the admins can {act}; who manages the server gives their role.")


def require_outsider(session: Session, actor: Actor | None, project: Project, does: str) -> None:
    """Raise ForbiddenError where an admin acts for a project that they are in; an `actor` of None is the operator."""
    person = None if actor is None else people.find(session, actor)
    membership = None if person is None else session.get(Membership, (project.id, person.id))
    if membership is not None and membership.role != ProjectRole.FOLLOWER:
        raise ForbiddenError(f"Nobody {does} their own project; another admin can.")


def refusal(act: Act, *, project: str, lead: Person, newcomer: bool = False) -> str:
    """The sentence that refuses an act in a project to somebody without a role for it."""
    match MAY[act]:
        case roles if roles == WORKING and newcomer:
            what = f"{lead.name}, the lead of “{project}”, has yet to confirm you"
            if lead.banned is not None:
                return f"{what}, and is banned: an admin appoints another lead, who can."
            return f"{what}: until then you can follow what happens, and no more."
        case roles if roles == LEAD:
            return f"Only the lead of “{project}”, {lead.name}, can do this."
        case roles if roles == WORKING:
            return f"Only members of “{project}” can do this: join it, and its lead, {lead.name}, confirms you."
        case roles if roles == LEAD | MODERATOR:
            return f"Only the lead of “{project}”, {lead.name}, or a moderator can do this."
        case roles if roles == MODERATOR:
            return "Only moderators can do this; the admins assign their role."
        case _:
            return f"Only a reviewer who is not of “{project}” can do this; the admins assign the reviewers' role."


def check(session: Session, actor: Actor, project: Project, act: Act) -> None:
    """Raise ForbiddenError unless the table allows the actor the act in this project. Only reads."""
    roles = roles_in(session, actor, project)
    if roles.isdisjoint(MAY[act]):
        lead, newcomer = session.get_one(Person, project.lead_id), ProjectRole.NEWCOMER in roles
        raise ForbiddenError(refusal(act, project=project.title, lead=lead, newcomer=newcomer))


def roles_in(session: Session, actor: Actor, project: Project) -> frozenset[Role]:
    """The actor's role in the project with their lab roles; raises ForbiddenError where they are banned.

    A reviewer who is in the project is no reviewer of it: nobody decides on their own work.
    """
    person = people.find(session, actor)
    membership = None if person is None else session.get(Membership, (project.id, person.id))
    if person is None or membership is None:
        return actor.roles
    role = ProjectRole.LEAD if person.id == project.lead_id else ProjectRole(membership.role)
    held = actor.roles if role is ProjectRole.FOLLOWER else actor.roles - {LabRole.REVIEWER}
    return held | {role}


def require(session: Session, actor: Actor, project: Project, act: Act) -> Person:
    """The person who acts, where the table allows them the act in this project; raises ForbiddenError."""
    check(session, actor, project, act)
    return people.ensure(session, actor)


def require_lead(session: Session, actor: Actor, project: Project) -> Person:
    """The project's lead, where the actor is the lead; raises ForbiddenError for all others. Only reads."""
    check(session, actor, project, Act.ASK_FOR_COMPUTE)
    return session.get_one(Person, project.lead_id)


def require_member(session: Session, actor: Actor, project: Project) -> Person:
    """The person who acts, where they may use the project's compute; raises ForbiddenError."""
    return require(session, actor, project, Act.USE_COMPUTE)


def hold_member(session: Session, actor: Actor, project: Project) -> Person:
    """As `require_member`; nobody can end the membership before the transaction ends."""
    person = people.find(session, actor)
    if person is not None:
        session.get(Membership, (project.id, person.id), with_for_update={"read": True, "key_share": True})
    return require_member(session, actor, project)
