"""How the bot bears a busy lab: 200 runs in motion over 40 channels and 1,000 interactions a minute: `make bench-bot`.

The real bot on the loopback Discord, which keeps Discord's limits, each a process of its own. All times are read off
what went over the wire: from the commit of a metric to the edit of its card, and from an interaction to its first
answer. The last line is one JSON object of values and goals; the status is 1 where a goal is missed.
"""

import asyncio
import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import psutil
import typer
from rich.console import Console
from rich.table import Table
from sqlmodel import col, select

from bench.crowd import Crowd, furnish, go_on
from bench.goals import Goal, as_json
from bot.delivery import outbox
from bot.tables import DiscordMessage
from projects.db.database import Database
from projects.record import record
from sandbox.discord.state import DISCORD_EPOCH_MS
from sandbox.people import ActionError, Guild

EACH = 5
MEMBERS = 60
RENEWAL_SECONDS = 10.0
SETTLE_SECONDS = 300.0
# A first answer that never came is taken for one after this time.
UNANSWERED_SECONDS = 10.0
TEXT_SECONDS, PICTURE_SECONDS, ANSWER_SECONDS = 20.0, 120.0, 1.0
STEP = re.compile(r"step\W{0,4}([\d,]+)")
EDIT = re.compile(r"/channels/\d+/messages/(\d+)$")
CALLBACK = re.compile(r"/interactions/(\d+)/")

out = Console(stderr=True)


@dataclass
class Seen:
    """What went on while it was measured; times in seconds since the epoch."""

    began: float = 0.0
    ended: float = 0.0
    # By run: when a step was committed.
    written: dict[int, list[tuple[float, int]]] = field(default_factory=lambda: defaultdict(list))
    acts: int = 0
    failed: list[str] = field(default_factory=list)
    memory: list[tuple[int, int]] = field(default_factory=list)
    processor: dict[str, float] = field(default_factory=dict)


def main(
    seconds: Annotated[int, typer.Option(min=20, help="How long it is measured; over 120 for the pictures.")] = 240,
    projects: Annotated[int, typer.Option(min=1, help="Projects, each with a channel and five runs in motion.")] = 40,
    a_minute: Annotated[int, typer.Option(min=1, help="Interactions a minute.")] = 1000,
    database: Annotated[str, typer.Option(help="URL of an empty database; SQLite in a file without it.")] = "",
    profile: Annotated[Path | None, typer.Option(help="Write the bot's profile, for pstats, to this file.")] = None,
) -> None:
    """Let a lab be busy for a while, and hold the bot against its goals."""
    with tempfile.TemporaryDirectory() as folder:
        url = database or f"sqlite:///{Path(folder) / 'stoa.db'}"
        goals = asyncio.run(story(Path(folder), Database(url), seconds, projects, a_minute, profile))
    table = Table("", "measured", "goal")
    for goal in goals:
        bound = f"≤ {goal.most:g}" if goal.most is not None else f"≥ {goal.least:g}" if goal.least is not None else ""
        table.add_row(goal.name, "-" if goal.value is None else f"{goal.value:,.2f}", bound)
    Console().print(table)
    print(as_json(goals))
    raise typer.Exit(any(goal.missed for goal in goals))


async def story(
    root: Path, db: Database, seconds: int, projects: int, a_minute: int, profile: Path | None
) -> list[Goal]:
    """Set the lab up, let the bot catch up with it, then measure."""
    db.migrate()
    async with sandbox(root) as guild:
        names = [f"Member {number}" for number in range(MEMBERS)]
        for name in names:
            await guild.join(name)
        users = (await guild.call("GET", "/guild"))["users"]
        with db.write() as session:
            moving = furnish(session, [int(one) for one in users.values()], projects=projects, each=EACH)
        # A lab of this size does not come about in a minute: the limits are kept from when it stands.
        await guild.enforce_limits(False)
        async with bot(root, db, guild, profile) as process:
            out.print(f"{projects} projects and {len(moving)} runs are told of for the first time…")
            began = time.monotonic()
            await settle(db, len(moving))
            out.print(f"…in {time.monotonic() - began:.0f} s; now {a_minute} interactions a minute for {seconds} s.")
            channels = [c for c in await guild.channels() if not c.is_thread and c.name.startswith("p")]
            channels = [c for c in channels if c.name != "proposals" and c.name != "public-record"]
            cards = [m for m in await guild.messages("proposals") if "Join" in m.button_labels]
            await asyncio.sleep(6)
            await guild.enforce_limits(True)
            crowd = Crowd(guild, names, channels, cards)
            seen = Seen(began=time.time())
            used = processor(process, guild)
            watching = asyncio.create_task(watch(process, seen))
            await asyncio.gather(
                keep_going(db, moving, seconds, seen), crowd_in(crowd, moving, seconds, a_minute, seen)
            )
            watching.cancel()
            seen.ended = time.time()
            seen.processor = {name: now - used[name] for name, now in processor(process, guild).items()}
    with db.read() as session:
        sent = session.scalars(select(DiscordMessage).where(col(DiscordMessage.key).startswith("run:")))
        cards_of = {row.message_id or "": int(row.key.split(":")[1]) for row in sent}
    db.close()
    return judge(root / "sandbox" / "exchanges.jsonl", cards_of, seen)


async def settle(db: Database, count: int) -> None:
    """Wait until every entry is told and every run has a card with a picture."""

    def behind() -> int:
        with db.read() as session:
            told = outbox.cursors(session)
            entries = sum(head - told.get(key, 0) for key, head in record.streams(session).items())
            drawn = select(DiscordMessage.key).where(
                col(DiscordMessage.key).startswith("run:"), DiscordMessage.picture != ""
            )
            return entries + count - len(session.scalars(drawn).all())

    async with asyncio.timeout(SETTLE_SECONDS):
        while await asyncio.to_thread(behind):  # noqa: ASYNC110 - another process is at work
            await asyncio.sleep(1)


async def keep_going(db: Database, moving: Sequence[int], seconds: int, seen: Seen) -> None:
    """Each run reports every ten seconds, all of them spread evenly over these."""
    order = list(moving)
    random.Random(3).shuffle(order)
    began, ticks = time.monotonic(), round(RENEWAL_SECONDS)
    for tick in range(seconds):
        await asyncio.sleep(max(0.0, began + tick - time.monotonic()))
        steps = await asyncio.to_thread(advance, db, order[tick % ticks :: ticks])
        at = time.time()
        for run_id, step in steps.items():
            seen.written[run_id].append((at, step))


def advance(db: Database, run_ids: Sequence[int]) -> dict[int, int]:
    """A commit a run, as each has a supervisor of its own; the newest steps."""
    steps = {}
    for run_id in run_ids:
        with db.write() as session:
            steps[run_id] = go_on(session, run_id)
    return steps


async def crowd_in(crowd: Crowd, moving: Sequence[int], seconds: int, a_minute: int, seen: Seen) -> None:
    """Members act at an even rate, whether or not those before them have been answered."""
    chance, began, acting = random.Random(4), time.monotonic(), set[asyncio.Task[None]]()

    async def act() -> None:
        try:
            await crowd.act(chance.choice(moving))
        except ActionError as error:
            seen.failed.append(str(error))

    for number in range(seconds * a_minute // 60):
        await asyncio.sleep(max(0.0, began + number * 60 / a_minute - time.monotonic()))
        task = asyncio.create_task(act())
        acting.add(task)
        task.add_done_callback(acting.discard)
        seen.acts += 1
    await asyncio.gather(*acting)


async def watch(process: psutil.Process, seen: Seen) -> None:
    """Note the memory of the bot, and of the process that draws for it, once a second."""
    while True:
        drawing = sum(child.memory_info().rss for child in process.children(recursive=True))
        seen.memory.append((process.memory_info().rss, drawing))
        await asyncio.sleep(1)


def processor(process: psutil.Process, guild: Guild) -> dict[str, float]:
    """Seconds of the processor that each part has used."""

    def used(one: psutil.Process) -> float:
        times = one.cpu_times()
        return float(times.user + times.system)

    children = process.children(recursive=True)
    return {
        "bot": used(process),
        "drawing": sum(map(used, children)),
        "sandbox": used(psutil.Process(guild.info["pid"])),
        "benchmark": used(psutil.Process()),
    }


def judge(journal: Path, cards_of: dict[str, int], seen: Seen) -> list[Goal]:
    """The measured values and their goals."""
    refused = 0
    answered: dict[str, float] = {}
    texts: dict[int, list[tuple[float, int]]] = defaultdict(list)
    pictures: dict[int, list[tuple[float, int]]] = defaultdict(list)
    for exchange in measured(journal, seen):
        if exchange["status"] == 429:
            refused += 1
            out.print(f"429: {exchange['method']} {exchange['path']}")
        if (callback := CALLBACK.search(exchange["path"])) is not None:
            asked = ((int(callback[1]) >> 22) + DISCORD_EPOCH_MS) / 1000
            answered.setdefault(callback[1], exchange["at"] - asked)
        edit = EDIT.search(exchange["path"])
        if exchange["method"] != "PATCH" or edit is None or exchange["status"] != 200:
            continue
        step = newest_step(exchange["request"])
        if step is not None and (run_id := cards_of.get(edit[1])) is not None:
            texts[run_id].append((exchange["at"], step))
            if exchange["files"]:
                pictures[run_id].append((exchange["at"], step))
    answers = sorted([*answered.values(), *[UNANSWERED_SECONDS] * max(0, seen.acts - len(answered))])
    text = delays(seen, texts, TEXT_SECONDS)
    picture = delays(seen, pictures, PICTURE_SECONDS)
    lasted = seen.ended - seen.began
    mib = 2**20
    return [
        Goal("answers of 429", refused, most=0),
        Goal("acts that a member could not do", len(seen.failed), most=0),
        Goal("interactions a minute", 60 * len(answers) / lasted),
        Goal("first answer: seconds, median", quantile(answers, 0.5)),
        Goal("first answer: seconds, p99", quantile(answers, 0.99), most=ANSWER_SECONDS),
        Goal("metric to card's text: seconds, median", quantile(text, 0.5)),
        Goal("metric to card's text: seconds, p95", quantile(text, 0.95), most=TEXT_SECONDS),
        Goal("metric to card's picture: seconds, median", quantile(picture, 0.5)),
        Goal("metric to card's picture: seconds, p95", quantile(picture, 0.95), most=PICTURE_SECONDS),
        Goal("edits of run cards a second", sum(map(len, texts.values())) / lasted),
        Goal("pictures a second", sum(map(len, pictures.values())) / lasted),
        Goal("bot's memory: MiB", max((bot for bot, _ in seen.memory), default=0) / mib),
        Goal("drawing's memory: MiB", max((drawing for _, drawing in seen.memory), default=0) / mib),
        *[Goal(f"processor of the {name}: share", used / lasted) for name, used in seen.processor.items()],
    ]


def measured(journal: Path, seen: Seen) -> Iterator[dict[str, Any]]:
    """The exchanges between bot and sandbox in the time that counts."""
    with journal.open(encoding="utf-8") as lines:
        for line in lines:
            exchange = json.loads(line)
            if seen.began <= exchange["at"] <= seen.ended:
                yield exchange


def newest_step(request: Any) -> int | None:
    """The step that an edit of a run's card tells of."""
    found = STEP.findall(json.dumps(request, ensure_ascii=False))
    return max((int(step.replace(",", "")) for step in found if step.strip(",")), default=None)


def delays(seen: Seen, shown: dict[int, list[tuple[float, int]]], bound: float) -> list[float]:
    """How long each committed step took to be shown, by it or a later one.

    Only steps that had more time than the bound before the measuring ended count, whether or not they were shown: of
    later ones the slow are not known, and the quick alone would look too well. One that was never shown counts with the
    time it had waited.
    """
    found = []
    for run_id, written in seen.written.items():
        for at, step in written:
            if seen.ended - at > bound:
                times = (when for when, there in shown[run_id] if there >= step and when >= at - 1)
                found.append(max(0.0, next(times, seen.ended) - at))
    return sorted(found)


def quantile(values: Sequence[float], share: float) -> float | None:
    """A quantile of sorted values; None where there are too few to have one."""
    if len(values) < 2:
        return None
    return statistics.quantiles(values, n=100, method="inclusive")[round(share * 100) - 1]


@asynccontextmanager
async def sandbox(root: Path) -> AsyncIterator[Guild]:
    """A loopback Discord in a process of its own."""
    process = subprocess.Popen(  # noqa: ASYNC220 - started in a moment
        [sys.executable, "-m", "sandbox", "--dir", str(root / "sandbox")], stdout=subprocess.DEVNULL
    )
    try:
        async with await Guild.open(root / "sandbox") as guild:
            yield guild
    finally:
        end(process)


@asynccontextmanager
async def bot(root: Path, db: Database, guild: Guild, profile: Path | None) -> AsyncIterator[psutil.Process]:
    """The bot in a process of its own."""
    info = guild.info
    channels, roles = info["channels"], info["roles"]
    told = {
        "HOME": str(root),
        "DATABASE_URL": db.url.render_as_string(hide_password=False),
        "DISCORD_TOKEN": info["bot_token"],
        "DISCORD_API": info["discord"],
        "DISCORD_GATEWAY": info["gateway"],
        "GUILD_ID": info["guild_id"],
        "PROPOSALS_CHANNEL_ID": channels["proposals"],
        "REVIEW_CHANNEL_ID": channels["compute-review"],
        "ANNOUNCEMENTS_CHANNEL_ID": channels["announcements"],
        "RECORD_CHANNEL_ID": channels["public-record"],
        "REVIEWER_ROLE_ID": roles["reviewer"],
        "ENV_FILE": "",
    }
    environment = os.environ | {f"STOA_{name}": str(value) for name, value in told.items()}
    profiled = ["-m", "cProfile", "-o", str(profile)] if profile else []
    log = root / "bot.log"
    with log.open("wb") as written:
        command = [sys.executable, *profiled, "-m", "cli.main", "bot"]
        process = subprocess.Popen(  # noqa: ASYNC220
            command, env=environment, stdout=written, stderr=subprocess.STDOUT
        )
    try:
        await guild.wait_for_bot("run", timeout=60)
        yield psutil.Process(process.pid)
    except BaseException:
        out.print(log.read_text()[-4000:], markup=False)
        raise
    finally:
        end(process)


def end(process: "subprocess.Popen[bytes]") -> None:
    """SIGTERM, and SIGKILL where that is not heard."""
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


if __name__ == "__main__":
    typer.run(main)
