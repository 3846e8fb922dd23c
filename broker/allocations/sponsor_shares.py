"""What sponsors set aside: a part of the GPU time that a sponsor gives is first for the sponsor's own projects."""

import re
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache

from sqlalchemy import Executable, delete, func
from sqlalchemy.orm import Session
from sqlmodel import col, select

from broker.allocations.pools import Grant, Pool
from projects import people, projects, quotas, rights, text
from projects.db import rows
from projects.db.columns import Base, foreign_key, number
from projects.errors import ConflictError, InvalidError, NotFoundError
from projects.people import Actor
from projects.record import record
from projects.rights import Act

MOST = 0.99
"""The largest part that a sponsor can set aside; the rest is everyone's."""
MOST_PROJECTS = 100


class SponsorShare(Base, table=True):
    """The part of a sponsor's grants that is first for its own projects. The sponsor is who gave the grant named."""

    __tablename__ = "sponsor_shares"

    grant_id: int = foreign_key("grants.id", primary_key=True)
    share: float = number()


class SponsorProject(Base, table=True):
    """A sponsor's own project."""

    __tablename__ = "sponsor_projects"

    project_id: int = foreign_key("projects.id", primary_key=True)
    grant_id: int = foreign_key("sponsor_shares.grant_id")


@dataclass(frozen=True)
class SponsorView:
    """What a sponsor has set aside: a `share` of its grants, from 0 to 1, for its own projects."""

    grant_id: int
    sponsor: str
    share: float
    projects: Sequence[int]


@dataclass(frozen=True)
class Division:
    """How a pool's GPU time is divided: the share of each sponsor with own projects, by the sponsor's grant.

    `of` has the grant of the sponsor whose own a project is; the shares of all sponsors add up to `MOST` at most.
    """

    shares: Mapping[int, float]
    of: Mapping[int, int]


def set_aside(
    session: Session, actor: Actor | None, sponsor: str, value: str, own: Collection[int], reason: str
) -> float:
    """Set which part of a sponsor's grants is first for its own projects, and which these are; 0 ends it.

    `actor` None is the operator. Raises ForbiddenError for all but admins, NotFoundError for an unknown sponsor or
    project, InvalidError for what is no such part, and ConflictError where nothing would change, or a project is
    another sponsor's own.
    """
    rights.require_admin(actor, Act.SET_SHARES)
    because = text.prose("The reason", reason, most=text.USUAL)
    share = _parsed(value)
    wanted = sorted(set(own)) if share else []
    if share and not wanted:
        raise InvalidError("Name the sponsor's own projects: they are who the part is set aside for.")
    if len(wanted) > MOST_PROJECTS:
        raise InvalidError(f"A sponsor has at most {MOST_PROJECTS} projects of its own; {len(wanted)} are too many.")
    for project_id in wanted:
        rights.require_outsider(session, actor, projects.lock(session, project_id), "sets anything aside for")
    # Two who set shares at once take turns, as those who admit runs do.
    session.execute(select(Pool.id).order_by(col(Pool.id)).with_for_update(key_share=True)).all()
    before = {one.sponsor: one for one in listed(session)}
    grants = session.scalars(select(Grant.id).where(Grant.sponsor == sponsor.strip()).order_by(col(Grant.id))).all()
    if not grants:
        known = ", ".join(sponsors(session)) or "none yet"
        raise NotFoundError(f"No grant is of a sponsor “{sponsor.strip()[:80]}”; the sponsors are: {known}.")
    was = before.get(sponsor.strip(), SponsorView(grants[0], sponsor.strip(), 0.0, []))
    if (share, wanted) == (was.share, list(was.projects)):
        raise ConflictError(f"{was.sponsor} already sets {was.share:.4g} aside for the same projects.")
    for other in before.values():
        if other.grant_id != was.grant_id and (both := sorted(set(other.projects) & set(wanted))):
            raise ConflictError(f"P{both[0]} is already a project of {other.sponsor}.")
    quotas.check_admin(session, actor)
    session.execute(delete(SponsorProject).where(col(SponsorProject.grant_id) == was.grant_id))
    session.execute(delete(SponsorShare).where(col(SponsorShare.grant_id) == was.grant_id))
    if share:
        session.add(SponsorShare(grant_id=was.grant_id, share=share))
        session.flush()
        session.add_all(SponsorProject(project_id=project_id, grant_id=was.grant_id) for project_id in wanted)
    session.flush()
    told = {"sponsor": was.sponsor, "was": was.share, "share": share, "projects": wanted}
    record.append(session, record.LAB, "share.set_aside", by=people.author(session, actor), why=because, **told)
    return share


def listed(session: Session) -> Sequence[SponsorView]:
    """What sponsors have set aside, in the order of their grants."""
    aside = rows.plain(session, _set_aside())
    if not aside:
        return []
    own = defaultdict(list)
    for row in session.scalars(select(SponsorProject).order_by(col(SponsorProject.project_id))):
        own[row.grant_id].append(row.project_id)
    return [SponsorView(grant_id, sponsor, share, own[grant_id]) for grant_id, sponsor, share in aside]


@cache
def _set_aside() -> Executable:
    """Made once, since each round of the scheduler asks."""
    return (
        select(SponsorShare.grant_id, Grant.sponsor, SponsorShare.share)
        .join(Grant, col(Grant.id) == SponsorShare.grant_id)
        .order_by(col(SponsorShare.grant_id))
    )


def sponsors(session: Session) -> Sequence[str]:
    """The names of all sponsors."""
    return session.scalars(select(Grant.sponsor).distinct().order_by(col(Grant.sponsor))).all()


def divisions(session: Session, now: datetime) -> Mapping[int, Division]:
    """The pools of which a sponsor has set a part aside, by what the running grants of each sponsor come to there."""
    aside = {one.sponsor: one for one in listed(session)}
    if not aside:
        return {}
    given: defaultdict[int, dict[str, int]] = defaultdict(dict)
    sums = session.execute(
        select(Grant.pool_id, Grant.sponsor, func.sum(col(Grant.seconds)))
        .where(col(Grant.until) > now)
        .group_by(col(Grant.pool_id), col(Grant.sponsor))
    )
    for pool_id, sponsor, seconds in sums:
        given[pool_id][sponsor] = int(seconds)
    found = {}
    for pool_id, by_sponsor in given.items():
        here = [aside[sponsor] for sponsor in by_sponsor if sponsor in aside]
        shares = {one.grant_id: one.share * by_sponsor[one.sponsor] / sum(by_sponsor.values()) for one in here}
        if shares:
            found[pool_id] = Division(shares, {project: one.grant_id for one in here for project in one.projects})
    return found


def _parsed(value: str) -> float:
    typed = value.strip()
    if not re.fullmatch(r"0(\.\d{1,4})?", typed, re.ASCII) or float(typed) > MOST:
        raise InvalidError(
            f"A sponsor's own share is a fraction of what it gives, from 0 to {MOST}, such as 0.25; “{typed[:20]}” is "
            "not."
        )
    return float(typed)
