"""A lab for the tests of the bot: a real sandbox, a real database, and the real bot as a process of its own."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from bot.delivery import outbox
from broker.allocations import allocations, ledger, pools, requests
from broker.allocations.allocations import Allocation, AllocationState, AllocationView
from projects import membership
from projects.db.columns import utcnow
from projects.db.database import Database
from projects.people import Actor, LabRole
from projects.projects import Project
from projects.record import record
from sandbox.people import Answer, Channel, Guild, Message, Person
from tests.databases import sqlite_tables
from tests.discord_openapi import DiscordJudge, find_description, loose_mentions, malformed, recorded
from tests.forked import Forked
from tests.patience import PATIENCE

ROOT = Path(__file__).parents[2]
BOT = "from bot.client import run; from projects.settings import get_settings; run(get_settings())"
SANDBOX = "from sandbox.__main__ import main; main()"
# An hour cannot be waited for: this bot takes every message for an old one.
AGED = f"from bot.delivery import edit_budget; edit_budget.OLD_AGE = 0.0; {BOT}"
PROPOSAL = {
    "Title": "Do small models dream?",
    "Research question": "Does the loss of a small model follow the power law of larger ones?",
    "Why it matters": "Small models are all that most of us can train.",
    "Who is needed": "Somebody who can plot.",
}
SCOPE = {
    "Goal": "Measure the exponent.",
    "Plan": "Train five sizes and fit a line.",
    "Estimate of compute": "Two core-hours.",
    "What will be released": "All checkpoints.",
}


def has(*words: str, message_id: str | None = None) -> Callable[[Message], bool]:
    """Whether a message (the one of this id, if given) has all these words."""
    return lambda message: message_id in (None, message.id) and all(word in message.text for word in words)


class Lab:
    """One sandbox, one database, and a bot that can be started, killed and started again."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "stoa.db").write_bytes(sqlite_tables())
        self.db = Database(f"sqlite:///{root / 'stoa.db'}")
        # Whether somebody sends what Discord refuses, to see it refused.
        self.malformed_on_purpose = False
        self.bot: Forked | None = None
        self._started: list[Forked] = []
        self.guild: Guild

    async def open(self) -> None:
        """Start the sandbox, and fill the database with a pool and a grant."""
        self.add_pool()
        self.sandbox = self._spawn("sandbox.log", SANDBOX, "--dir", str(self.root / "sandbox"))
        self.guild = await Guild.open(self.root / "sandbox")

    def add_pool(self, name: str = "local") -> None:
        """A pool of two CPUs, and a grant of it."""
        with self.db.write() as session:
            pools.add_pool(session, name=name, gpu_type="CPU", gpus=2)
            given, until = requests.parse_hours("100"), datetime.now(UTC) + timedelta(days=90)
            pools.add_grant(session, pool=name, sponsor="The Library", seconds=given, until=until)

    async def close(self) -> None:
        """End everything that was started."""
        await self.guild.close()
        for process in reversed(self._started):
            if process.poll() is None:
                process.kill()
                process.wait()
        self.db.close()

    @property
    def environment(self) -> dict[str, str]:
        """What the bot is told."""
        info = self.guild.info
        channels, roles = info["channels"], info["roles"]
        told = {
            "HOME": str(self.root),
            "DATABASE_URL": f"sqlite:///{self.root / 'stoa.db'}",
            "DISCORD_TOKEN": info["bot_token"],
            "DISCORD_API": info["discord"],
            "DISCORD_GATEWAY": info["gateway"],
            "GUILD_ID": info["guild_id"],
            "PROPOSALS_CHANNEL_ID": channels["proposals"],
            "REVIEW_CHANNEL_ID": channels["compute-review"],
            "ANNOUNCEMENTS_CHANNEL_ID": channels["announcements"],
            "RECORD_CHANNEL_ID": channels["public-record"],
            "REVIEWER_ROLE_ID": roles["reviewer"],
            "MODERATOR_ROLE_ID": roles["admin"],
            "TICK_SECONDS": "0.25",
            "PICTURE_SECONDS": "1",
            "LEASE_SECONDS": "1.5",
            "ENV_FILE": "",
        }
        return os.environ | {f"STOA_{name}": str(value) for name, value in told.items()}

    async def start_bot(self, code: str = BOT, **changes: str) -> None:
        """Start the bot and wait until it is there."""
        while all(process is self.sandbox or process.poll() is not None for process in self._started):
            if not await self.guild.bot_connected():  # or the one before would be taken for this one
                break
            await asyncio.sleep(0.05)
        bot = self.spawn_bot(code=code, **changes)
        ready = asyncio.ensure_future(self.guild.wait_for_bot("run"))
        while not ready.done():
            await asyncio.wait([ready], timeout=0.1)
            assert bot.poll() is None, f"The bot has ended:\n{self.log[-2000:]}"
        await ready

    def spawn_bot(self, log: str = "bot.log", code: str = BOT, **changes: str) -> Forked:
        """Start the bot's process; `changes` are settings by their names without the prefix."""
        environment = self.environment | {f"STOA_{name}": value for name, value in changes.items()}
        self.bot = self._spawn(log, code, environment=environment)
        return self.bot

    def _spawn(self, log: str, code: str, *arguments: str, environment: dict[str, str] | None = None) -> Forked:
        process = Forked(code, self.root / log, environment or os.environ, *arguments)
        self._started.append(process)
        return process

    def kill_bot(self) -> None:
        """Kill -9."""
        assert self.bot is not None
        self.bot.kill()
        self.bot.wait()

    async def stop_bot(self) -> int:
        """SIGTERM; the exit status."""
        assert self.bot is not None
        self.bot.send_signal(signal.SIGTERM)
        return await asyncio.to_thread(self.bot.wait, PATIENCE)

    @property
    def log(self) -> str:
        """What the bot has logged."""
        return (self.root / "bot.log").read_text()

    def logged(self, words: str) -> Callable[[], bool]:
        """Whether the bot has logged these words."""
        return lambda: words in self.log

    def refused(self) -> int:
        """How many of the bot's requests were answered with a 403."""
        return sum(exchange["status"] == 403 for exchange in recorded(self.root / "sandbox", "exchanges.jsonl"))

    def person(self, name: str) -> Person:
        """A member of the sandbox's guild: Ada, Grace, Rosa (a reviewer) or Omar (an admin)."""
        return self.guild.person(name)

    def actor(self, name: str) -> Actor:
        """The same member, for calling the domain beside the bot."""
        info = self.guild.info
        roles = {LabRole.REVIEWER} if name == "Rosa" else set()
        return Actor(int(info["users"][name]), name, frozenset(roles))

    def sent(self) -> dict[str, int]:
        """How many entries of each stream are known to have been posted."""
        with self.db.read() as session:
            return dict(outbox.cursors(session))

    def heads(self) -> dict[str, int]:
        """How many entries each stream has."""
        with self.db.read() as session:
            return dict(record.streams(session))

    def allocation(self, number: int) -> AllocationView:
        """How an allocation stands."""
        with self.db.read() as session:
            return allocations.view(session, number)

    def give(self, project_id: int) -> None:
        """An hour of the lab's grant for a project, beside the bot and without a request in the record."""
        with self.db.write() as session:
            project = session.get_one(Project, project_id)
            hour: dict[str, Any] = {"pool_id": 1, "seconds": 3600, "until": utcnow() + timedelta(days=9)}
            row = Allocation(
                request_id=f"given-{project_id}",
                project_id=project_id,
                requested_by=project.lead_id,
                justification="To see.",
                **hour,
            )
            session.add(row)
            session.flush()
            ledger.grant(session, row.id, 1, 3600)
            row.state, row.grant_id = AllocationState.APPROVED, 1

    def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call a function of the domain in a transaction."""
        with self.db.write() as session:
            return function(session, *args, **kwargs)

    async def propose(self, **changes: str) -> Answer:
        """Ada proposes a project."""
        form = await self.person("Ada").command("project propose")
        return await self.person("Ada").submit(form, PROPOSAL | changes, force=True)

    def confirm(self, project: int, name: str) -> None:
        """Ada confirms a newcomer, beside the bot."""
        self.call(membership.confirm, self.actor("Ada"), project, who=str(self.actor(name).discord_id))

    async def activate(self) -> Channel:
        """Ada proposes, Grace joins, Ada writes the scope and confirms Grace; the project's channel."""
        before = {channel.id for channel in await self.guild.channels()}
        answer = await self.propose()
        number = answer.text.split()[1]
        card = await self.guild.wait_for("proposals", lambda m: f"P{number} · project" in m.text)
        await self.person("Grace").press(card, "Join")
        form = await self.person("Ada").command("project scope", channel="general", project=int(number))
        await self.person("Ada").submit(form, SCOPE)
        self.confirm(int(number), "Grace")
        channel = await self.guild.wait_for_channel(lambda c: c.name.startswith(f"p{number}-") and c.id not in before)
        # The bot knows it as the project's a moment after everybody sees it.
        await self.guild.wait_for(channel.id, lambda m: True)
        return channel

    async def request(self, channel: Channel, hours: str = "2", **changes: str) -> Answer:
        """Ada asks for compute."""
        day = (datetime.now(UTC) + timedelta(days=30)).date().isoformat()
        form = await self.person("Ada").command("allocation request", channel=channel.id, pool="local")
        fields = {"Core-hours": hours, "Until": day, "Justification": "Five sizes, one seed each."}
        return await self.person("Ada").submit(form, fields | changes, force=True)

    async def launch(self, channel: Channel, **options: Any) -> Answer:
        """Ada launches a run and confirms what she is offered; a refusal is the answer as it is."""
        given = {"recipe": "demo", "time_limit": "10m"} | options
        offer = await self.person("Ada").command("run launch", channel=channel.id, **given)
        if offer.message is None or "Launch" not in offer.message.button_labels:
            return offer
        return await self.person("Ada").press(offer.message, "Launch")

    async def review_card(self, allocation: int) -> Message:
        """The card of a request."""
        return await self.guild.wait_for("compute-review", lambda m: m.text.endswith(f"allocation {allocation}"))

    async def approved(self, channel: Channel) -> int:
        """An allocation of one core-hour that Rosa has approved."""
        number = int((await self.request(channel)).text.split()[1])
        card = await self.review_card(number)
        form = await self.person("Rosa").press(card, "Approve")
        await self.person("Rosa").submit(form, {"Core-hours": "1", "Reason": "A good start."})
        return number


@pytest.fixture(scope="session")
def judge() -> DiscordJudge | None:
    """Discord's own API description; without it the wire is not judged, which `test_wire.py` says."""
    return None if find_description() is None else DiscordJudge()


@pytest_asyncio.fixture
async def lab(tmp_path: Path, judge: DiscordJudge | None) -> AsyncIterator[Lab]:
    """A lab whose bot is not started yet; all that went over the wire is judged when the test ends."""
    made = Lab(tmp_path)
    await made.open()
    try:
        yield made
    finally:
        await made.close()
    assert wire_problems(made, judge) == []


@pytest.fixture(scope="module")
def bot_code() -> str:
    """What the bot of `shared_lab` runs."""
    return BOT


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_lab(
    tmp_path_factory: pytest.TempPathFactory, judge: DiscordJudge | None, bot_code: str
) -> AsyncIterator[tuple[Lab, Channel]]:
    """A lab with a running bot and an active project: its allocation 1 is approved, allocation 2 is asked for."""
    made = Lab(tmp_path_factory.mktemp("lab"))
    await made.open()
    try:
        await made.start_bot(bot_code)
        channel = await made.activate()
        await made.approved(channel)
        await made.request(channel)
        await made.review_card(2)
        yield made, channel
    finally:
        await made.close()
    assert wire_problems(made, judge) == []


def wire_problems(lab: Lab, judge: DiscordJudge | None) -> list[str]:
    """What does not fit Discord's description, malformed requests, and messages by which typed text could ping."""
    folder = lab.root / "sandbox"
    loose = loose_mentions(folder)
    if judge is None:
        return loose
    return loose + judge.judge_recorded(folder) + ([] if lab.malformed_on_purpose else malformed(folder))
