"""Who may do what: one table of acts and the roles that may do them. What anyone may do is not in it."""

from collections.abc import Mapping
from enum import StrEnum

from projects.errors import ForbiddenError
from projects.people import Actor


class Role(StrEnum):
    """What a person is to a project, or to the lab (admin).

    A reviewer is only who is not of the project, since nobody decides on their own work.
    """

    LEAD = "lead"
    CONTRIBUTOR = "contributor"
    FOLLOWER = "follower"
    REVIEWER = "reviewer"
    MODERATOR = "moderator"
    ADMIN = "admin"


class Act(StrEnum):
    """What is not for everyone."""

    SCOPE = "scope"
    PAUSE = "pause"
    RESUME = "resume"
    COMPLETE = "complete"
    STOP = "stop"
    CHANGE_NEEDS = "change needs"
    POST_UPDATE = "post update"
    PUT_ON_RECORD = "put on record"
    HAND_OVER = "hand over"
    USE_COMPUTE = "use compute"
    ASK_FOR_COMPUTE = "ask for compute"
    RELEASE = "release"
    OPEN_CHANNEL = "open channel"
    HIDE = "hide"
    UNHIDE = "unhide"
    REVIEW = "review"
    DECIDE_CATALOGUE = "decide on the catalogue"
    MANAGE_COMPUTE = "manage pools and grants"
    CHANGE_POLICIES = "change policies"
    BAN = "ban"
    REDACT = "redact"
    SET_UP = "set up"


LEAD = frozenset({Role.LEAD})
WORKING = frozenset({Role.LEAD, Role.CONTRIBUTOR})
MODERATOR = frozenset({Role.MODERATOR})
REVIEWER = frozenset({Role.REVIEWER})
ADMIN = frozenset({Role.ADMIN})

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
    Act.USE_COMPUTE: WORKING,
    Act.ASK_FOR_COMPUTE: LEAD,
    Act.RELEASE: REVIEWER,
    Act.OPEN_CHANNEL: MODERATOR,
    Act.HIDE: MODERATOR,
    Act.UNHIDE: MODERATOR,
    Act.REVIEW: REVIEWER,
    Act.DECIDE_CATALOGUE: ADMIN,
    Act.MANAGE_COMPUTE: ADMIN,
    Act.CHANGE_POLICIES: ADMIN,
    Act.BAN: ADMIN,
    Act.REDACT: ADMIN,
    Act.SET_UP: ADMIN,
}


def held(actor: Actor, *, moderator_role_id: int = 0, reviewer_role_id: int = 0, admin_role_id: int = 0) -> set[Role]:
    """What the actor is to the lab by the roles that they hold; 0 stands for a role that nobody holds."""
    ids = {Role.MODERATOR: moderator_role_id, Role.REVIEWER: reviewer_role_id, Role.ADMIN: admin_role_id}
    return {role for role, role_id in ids.items() if role_id and role_id in actor.role_ids}


def require_admin(actor: Actor | None, act: Act, admin_role_id: int) -> None:
    """Raise ForbiddenError unless the actor may do this in the lab, or is the operator at the command line (`None`)."""
    if actor is not None and held(actor, admin_role_id=admin_role_id).isdisjoint(MAY[act]):
        raise ForbiddenError(f"Only the admins can {act}; who manages the server gives their role.")


def refusal(act: Act, *, project: str, lead: str) -> str:
    """The sentence for who may not do this in a project."""
    match MAY[act]:
        case roles if roles == LEAD:
            return f"Only the lead of “{project}”, {lead}, can do this."
        case roles if roles == WORKING:
            return f"Only members of “{project}” can do this; its Join button makes you one."
        case roles if roles == LEAD | MODERATOR:
            return f"Only the lead of “{project}”, {lead}, or a moderator can do this."
        case roles if roles == MODERATOR:
            return "Only moderators can do this; their role is given by the admins."
        case _:
            return f"Only a reviewer who is not of “{project}” can do this; the reviewers' role is given by the admins."
