"""A busy lab for the bot's benchmark: its people, projects and runs, how the runs go on, and what members ask."""

import random
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from typing import Any

from sqlalchemy import insert, text
from sqlalchemy.orm import Session
from sqlmodel import col, select

from bot.tables import DiscordMessage
from broker.allocations import pools
from broker.allocations.allocations import Allocation, AllocationState
from broker.allocations.ledger import Balance
from broker.allocations.pools import Pool
from broker.runs import entries, runs, series
from broker.runs.runs import Run, RunState
from broker.runs.series import Measured, Point
from projects import lifecycle, membership
from projects.db.columns import utcnow
from projects.people import Actor, Person
from projects.policies import Policy
from projects.projects import Membership, Project, Stage
from projects.record import record
from projects.record.record import Stream
from sandbox.people import Answer, Channel, Guild, Message
from trainer import config as trainer_config

PEOPLE = 30_000
OLD_PROJECTS = 2_000
RUNS_OF_OLD = 3
OLD_POINTS = 500
ENDED_POINTS = 50
STEPS_A_BATCH = 10
TOKENS_A_STEP = 32_768
TOTAL_STEPS = 1_000_000
RATE = 90_000.0
SECONDS = 10**9
GPUS = 256
RECIPE = "demo"

Row = dict[str, Any]


def furnish(session: Session, members: Sequence[int], *, projects: int, each: int) -> list[int]:
    """Fill an empty database; the ids of the runs in motion. `members` are ids on Discord of some of the people."""
    now = utcnow()
    known = [*members, *range(1, PEOPLE - len(members) + 1)]
    session.execute(insert(Person), [{"discord_id": str(one), "name": f"Person {one % 10**6}"} for one in known])
    people = session.scalars(select(Person.id).order_by(col(Person.id))).all()
    pools.add_pool(session, name="cluster", gpu_type="A100", gpus=GPUS)
    pool_id = session.scalars(select(Pool.id)).one()
    lead, other = Actor(members[0], "Ada", frozenset()), Actor(members[1], "Grace", frozenset())
    for policy in ("most_proposals_a_day", "most_memberships_a_day"):
        session.add(Policy(name=policy, value="100000"))  # two people do it all
    about = {"question": "How does the loss fall?", "why": "To know.", "needs": "People who plot."}
    for number in range(projects):
        project_id = lifecycle.propose(session, lead, f"bench-{number}", title=f"Scaling law {number + 1}", **about)
        lifecycle.join(session, other, project_id, min_people=2)
        said = {"goal": "An exponent.", "plan": "Five runs.", "compute": "Some.", "release": "All."}
        lifecycle.scope(session, lead, project_id, **said, min_people=2)
        membership.confirm(session, lead, project_id, who=str(other.discord_id))
    session.flush()
    active = session.scalars(select(Project.id).order_by(col(Project.id))).all()
    texts = dict.fromkeys(("goal", "plan", "compute", "release", "learnt"), "")
    old = [
        {"request_id": f"old-{n}", "title": f"Old question {n}", "stage": Stage.STOPPED, "lead_id": people[n]}
        | about
        | texts
        for n in range(OLD_PROJECTS)
    ]
    session.execute(insert(Project), old)
    ended = session.scalars(select(Project.id).where(Project.stage == Stage.STOPPED)).all()
    session.execute(insert(Membership), [{"project_id": one, "person_id": people[n]} for n, one in enumerate(ended)])
    session.execute(insert(Stream), [{"key": record.project_stream(one), "head": 0, "head_hash": ""} for one in ended])
    granted = [
        {
            "request_id": f"bench-{one}",
            "project_id": one,
            "pool_id": pool_id,
            "requested_by": people[0],
            "seconds": SECONDS,
            "until": now + timedelta(days=30),
            "justification": "Five runs.",
            "state": AllocationState.APPROVED,
        }
        for one in [*active, *ended]
    ]
    session.execute(insert(Allocation), granted)
    allocations = {row.project_id: row.id for row in session.execute(select(Allocation.id, Allocation.project_id))}
    balances = [{"allocation_id": one, "granted": SECONDS, "reserved": 0, "spent": 0} for one in allocations.values()]
    session.execute(insert(Balance), balances)
    # Their cards were deleted: with the bot's start they are looked at, and left alone.
    gone = {"channel_id": "", "nonce": "", "message_id": "", "gone": True}
    keys = [key for one in ended for key in (f"project:{one}", f"allocation:{allocations[one]}")]
    session.execute(insert(DiscordMessage), [gone | {"key": key} for key in keys])

    config = trainer_config.dump(trainer_config.load_recipe(RECIPE))

    def rows(project_ids: Sequence[int], count: int, state: RunState) -> list[Row]:
        return [
            {
                "request_id": f"bench-{project_id}-{n}",
                "project_id": project_id,
                "allocation_id": allocations[project_id],
                "pool_id": pool_id,
                "requested_by": people[0],
                "recipe": RECIPE,
                "overrides": {},
                "config": config,
                "total_steps": TOTAL_STEPS,
                "gpus": 1,
                "time_limit": 86_400,
                "state": state,
                "started_at": now,
            }
            for project_id in project_ids
            for n in range(count)
        ]

    session.execute(insert(Run), rows(ended, RUNS_OF_OLD, RunState.FINISHED))
    session.execute(insert(Run), rows(active, each, RunState.RUNNING))
    moving = session.scalars(select(Run.id).where(Run.state == RunState.RUNNING).order_by(col(Run.id))).all()
    over = session.scalars(select(Run.id).where(Run.state == RunState.FINISHED)).all()
    measured = [
        {"run_id": run_id, "series": name, "step": step, "tokens": step * TOKENS_A_STEP, "value": value(run_id, step)}
        for run_ids, steps in ((over, ENDED_POINTS), (moving, OLD_POINTS))
        for run_id in run_ids
        for name, value in (("loss", loss), ("tokens_per_second", lambda *_: RATE))
        for step in range(1, steps + 1)
    ]
    session.execute(insert(Point), measured)
    for run_id in moving:
        run = runs.load(session, run_id)
        run.step, run.tokens = OLD_POINTS, OLD_POINTS * TOKENS_A_STEP
        entries.tell(session, run, "run.queued", recipe=run.recipe, overrides={}, gpus=1, time_limit=run.time_limit)
    if session.get_bind().dialect.name == "postgresql":
        session.execute(text("ANALYZE"))  # as it does by itself within minutes
    return list(moving)


def loss(run_id: int, step: int) -> float:
    """A loss that falls as one expects, with a little noise."""
    return float(2.5 + 6 / (1 + 0.02 * step) + random.Random(run_id * 7919 + step).gauss(0, 0.05))


def go_on(session: Session, run_id: int) -> int:
    """Take a run ten steps further, as its supervisor does with what the trainer wrote; the newest step."""
    run = runs.load(session, run_id)
    last = run.step + STEPS_A_BATCH
    points = [
        Measured("loss", step, step * TOKENS_A_STEP, loss(run_id, step)) for step in range(run.step + 1, last + 1)
    ]
    points.append(Measured("tokens_per_second", last, last * TOKENS_A_STEP, RATE))
    series.add(session, run_id, points)
    run.step, run.tokens = last, last * TOKENS_A_STEP
    return last


class Crowd:
    """Members who complete commands, look at cards, open forms and press buttons, each act at random."""

    def __init__(
        self, guild: Guild, names: Sequence[str], channels: Sequence[Channel], cards: Sequence[Message]
    ) -> None:
        self.guild = guild
        self.names, self.channels, self.cards = names, channels, cards
        self._chance = random.Random(5)

    async def act(self, run_id: int) -> Answer | list[tuple[str, Any]]:
        """What one of them does next; some of it is about a run."""
        one, lead = self.guild.person(self._chance.choice(self.names)), self.guild.person(self.names[0])
        where, card = self._chance.choice(self.channels).id, self._chance.choice(self.cards)
        typed = self._chance.choice(["", "law", "old", "7"])
        launch: dict[str, Any] = {"channel": where, "recipe": RECIPE, "time_limit": "1h"}
        acts: list[tuple[int, Callable[[], Awaitable[Answer | list[tuple[str, Any]]]]]] = [
            (18, lambda: one.complete("run show", "run", str(run_id)[:1], channel=where)),
            (20, lambda: one.complete("project show", "project", typed)),
            (8, lambda: one.complete("run launch", "gpus", "", **launch)),
            (4, lambda: one.complete("run launch", "time_limit", "", channel=where, recipe=RECIPE)),
            (10, lambda: one.command("run show", channel=where, run=run_id)),
            (8, lambda: one.command("run list", channel=where)),
            (2, lambda: one.command("run compare", channel=where, runs=f"{run_id} {max(1, run_id - 1)}")),
            (2, lambda: lead.command("run launch", **launch)),
            (8, lambda: one.command("project show", channel=where)),
            (4, lambda: one.command("project list", channel=where)),
            (2, lambda: one.command("project propose", channel=where)),
            (4, lambda: one.command("allocation list", channel=where)),
            (2, lambda: one.command("stoa help", channel=where)),
            (8, lambda: one.press(card, "Join")),
        ]
        ((_, act),) = self._chance.choices(acts, [weight for weight, _ in acts])
        return await act()
