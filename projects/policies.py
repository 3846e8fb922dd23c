"""Policies: the numbers and choices by which the lab is run. Each change is public."""

import math
from collections.abc import Callable
from functools import cache
from typing import Literal

import sqlmodel
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from sqlalchemy import Executable
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session
from sqlmodel import select

from projects import people, rights, text
from projects.db import rows
from projects.db.columns import Base
from projects.errors import ConflictError, InvalidError, NotFoundError
from projects.people import Actor
from projects.record import record
from projects.rights import Act

MOST_HOURS = 1_000_000
"""The most GPU-hours that anybody may write anywhere."""
MOST = 1_000_000
"""The highest count that a policy may have."""


class Policies(BaseModel):
    """The policies in force. Each number has a bound up to which the broker can compute with it."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    starter_hours: float = Field(
        1, ge=0, le=MOST_HOURS, description="Hours of GPUs or cores a proposal gets at once; 0 for none."
    )
    one_reviewer_hours: float = Field(
        100, ge=0, le=MOST_HOURS, description="Hours of GPUs or cores that one reviewer may grant; above, two decide."
    )
    halves_hours: float = Field(
        1000, gt=0, le=MOST_HOURS, description="Hours of GPUs or cores above which a grant comes in two halves."
    )
    tier_days: int = Field(30, ge=1, le=366, description="Days within which grants add up for both.")
    starter_period_days: int = Field(
        30, ge=1, le=366, description="Days after which a person may have another starter grant."
    )
    most_open_proposals: int = Field(5, ge=1, le=MOST, description="Proposals a person may have open.")
    most_proposals_a_day: int = Field(10, ge=1, le=MOST, description="Projects a person may propose a day.")
    most_memberships_a_day: int = Field(20, ge=1, le=MOST, description="Projects a person may join or follow a day.")
    most_updates_a_day: int = Field(
        30, ge=1, le=MOST, description="Updates, reports, findings and calls for people a person may post a day."
    )
    most_project_changes_a_day: int = Field(
        10, ge=1, le=MOST, description="Pauses of projects and offers of their lead a person may make a day."
    )
    most_questions_a_day: int = Field(
        50, ge=1, le=MOST, description="Questions and answers on requests a person may post a day."
    )
    most_run_changes_a_day: int = Field(
        100, ge=1, le=MOST, description="Pauses, extensions and names of runs a person may make a day."
    )
    most_catalogue_proposals_a_day: int = Field(
        20, ge=1, le=MOST, description="Recipes and datasets a person may propose a day."
    )
    most_requests_a_day: int = Field(20, ge=1, le=MOST, description="Requests for compute a person may make a day.")
    most_launches_a_day: int = Field(50, ge=1, le=MOST, description="Runs a person may launch a day.")
    most_runs_a_sweep: int = Field(24, ge=2, le=64, description="Runs that one sweep may have.")
    most_admin_acts_a_day: int = Field(
        200,
        ge=1,
        le=MOST,
        description="Changes of pools, grants, shares, policies, catalogue and setup an admin makes a day.",
    )
    most_running_a_project: int = Field(100, ge=1, le=MOST, description="Runs a project may have at work at once.")
    most_running_a_person: int = Field(100, ge=1, le=MOST, description="Runs a person may have at work at once.")
    decision_days: int = Field(
        30, ge=1, le=366, description="Days for which a decision of the scheduler can be replayed."
    )
    project_factor: int = Field(
        5, ge=1, le=1_000, description="A project's daily quotas, of all its people together, in those of one person."
    )
    join_policy: Literal["confirm", "open"] = Field(
        "confirm", description="Whether who joins a project is a contributor once its lead confirms them, or at once."
    )
    channel_policy: Literal["automatic", "moderator"] = Field(
        "automatic", description="Whether a project's channel comes once it is active, or when a moderator opens it."
    )


class Policy(Base, table=True):
    """A policy that was changed from its default, with its value as text."""

    __tablename__ = "policies"

    name: str = sqlmodel.Field(primary_key=True)
    value: str


def current(session: Session) -> Policies:
    """The policies in force: each as it was last changed, or else its default."""
    stored = dict(rows.plain(session, _changed()))
    try:
        return Policies.model_validate(stored)
    except ValidationError as error:  # an earlier version had no such bound: the bound is in force
        bounds = {str(wrong["loc"][0]): wrong.get("ctx", {}).get("le") for wrong in error.errors()}
        kept = {name: value for name, value in stored.items() if name not in bounds}
        return Policies.model_validate(kept | {name: most for name, most in bounds.items() if most is not None})


@cache
def _changed() -> Executable:
    """Made once, since each round of the scheduler asks."""
    return select(Policy.name, Policy.value)


def named(name: str) -> str:
    """The name, if it is a policy's; raises NotFoundError."""
    if name not in Policies.model_fields:
        hint = text.meant(name[:60], list(Policies.model_fields), "the policies are")
        raise NotFoundError(f"There is no policy “{name[:60]}”; {hint}")
    return name


def label(name: str) -> str:
    """The name of a policy in words."""
    return name.replace("_", " ").capitalize()


def change(
    session: Session,
    actor: Actor | None,
    name: str,
    value: str,
    reason: str,
    *,
    budget: Callable[[], None] = lambda: None,
) -> Policies:
    """Change one policy and return all; an `actor` of None is the operator.

    `budget` raises where the actor may change no more today; it is called once the policy's row is locked.

    Raises ForbiddenError for all but admins, NotFoundError for a name that is no policy, InvalidError for a value that
    the policy cannot have, and ConflictError where it has that value already.
    """
    rights.require_admin(actor, Act.CHANGE_POLICIES)
    named(name)
    because = text.prose("The reason", reason, most=text.USUAL)
    row = _locked(session, name)
    before = current(session)
    try:
        after = Policies.model_validate(before.model_dump() | {name: value.strip()})
    except ValidationError as error:
        said = error.errors()[0]["msg"]
        raise InvalidError(f"“{value[:60]}” cannot be {name}: {said[:1].lower()}{said[1:]}.") from error
    was, now = getattr(before, name), getattr(after, name)
    if was == now:
        raise ConflictError(f"{name} is already {said_as(now)}.")
    budget()
    row.value = said_as(now)
    by = people.author(session, actor)
    record.append(session, record.LAB, "policy.changed", by=by, why=because, policy=name, was=was, now=now)
    return after


def said_as(value: float | str) -> str:
    """A policy's value as it is stored and shown: a whole number has no decimal point."""
    return f"{value:.0f}" if isinstance(value, float) and math.floor(value) == value else str(value)


def _locked(session: Session, name: str) -> Policy:
    """The policy's row, made with what is in force where there is none, locked until the change is committed."""
    if session.get(Policy, name) is None:
        try:
            with session.begin_nested():
                session.add(Policy(name=name, value=said_as(getattr(current(session), name))))
        except IntegrityError:  # another transaction changes it for the first time too
            pass
    return session.get_one(Policy, name, with_for_update=True, populate_existing=True)
