"""Who may do what in a project: one table of acts and the roles that may do them. What anyone may do is not in it."""

from collections.abc import Mapping
from enum import StrEnum


class Role(StrEnum):
    """What a person is to a project. A reviewer is only who is not of it, since nobody decides on their own work."""

    LEAD = "lead"
    CONTRIBUTOR = "contributor"
    FOLLOWER = "follower"
    REVIEWER = "reviewer"
    MODERATOR = "moderator"


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


LEAD = frozenset({Role.LEAD})
WORKING = frozenset({Role.LEAD, Role.CONTRIBUTOR})
MODERATOR = frozenset({Role.MODERATOR})

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
    Act.RELEASE: frozenset({Role.REVIEWER}),
    Act.OPEN_CHANNEL: MODERATOR,
    Act.HIDE: MODERATOR,
    Act.UNHIDE: MODERATOR,
}


def refusal(act: Act, *, project: str, lead: str) -> str:
    """The sentence for who may not."""
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
