"""The chaos story: five projects launch small runs while one fault after another befalls every part of Stoa.

`python -m tests.system.chaos` plays it and prints how it came out; `STOA_CHAOS_RUNS`, `STOA_CHAOS_FAULTS` and
`STOA_CHAOS_SEED` make it smaller, or the same again; `STOA_CHAOS_DATABASE=postgresql` plays it on a PostgreSQL server
of its own.
"""

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from sqlalchemy import func
from sqlmodel import col, select

from bot.delivery.checkpoint_indexes import UNSHOWN
from bot.tables import DiscordCursor, DiscordMessage
from broker.publications import Publication
from broker.runs.runs import ENDED, Run
from cli.services import Services, environment, last_line
from demo.play import settings_for
from projects.db.database import Database
from projects.errors import ConflictError
from projects.people import Actor
from projects.record import record
from tests import databases
from tests.broker.lab import EMMY, ROSA, Lab
from tests.standin import python_with
from tests.system import chaos_report, processes
from tests.system.census import Census

LEASE = 6.0
GRACE = 6.0
HOURS = "1.5"
MOST_ATTEMPTS = 8
DEVICES = 4
PROJECTS = 5
REAL_EVERY = 5
"""Every so manieth run is the real trainer's; the others only sleep."""

HEAL_SECONDS = 900.0
QUICKEST, SLOWEST = 0.4, 2.6
DISK = "2g"
ROOT = Path(__file__).parents[2]
STANDIN = Path(__file__).parent / "standin"
STANDIN_SEED = 424242
LEADS = [Actor(100 + number, name) for number, name in enumerate(("Ada", "Hedy", "Mary", "Joan", "Lise"))]

# Every part that is killed, by what `stoa` calls it; of the scheduler there are two.
PARTS = {
    "scheduler": "scheduler",
    "second scheduler": "scheduler",
    "worker": "worker",
    "publisher": "publisher",
    "bot": "bot",
}


@dataclass(frozen=True)
class Size:
    """How much happens, and the seed that says when."""

    runs: int = 20
    faults: int = 110
    seed: int = 0
    database: str = "sqlite"

    @classmethod
    def given(cls) -> "Size":
        """The size that the environment asks for."""
        seed = os.environ.get("STOA_CHAOS_SEED") or int.from_bytes(os.urandom(4))
        asked = (os.environ.get(f"STOA_CHAOS_{name}") or default for name, default in (("RUNS", 20), ("FAULTS", 110)))
        runs, faults = map(int, asked)
        return cls(runs, faults, int(seed), os.environ.get("STOA_CHAOS_DATABASE") or "sqlite")


@dataclass
class Story:
    """One installation with its parts up, and what has befallen it so far."""

    size: Size
    home: Path
    python: Path
    parts: Services
    database_url: str
    down: dict[str, float] = field(default_factory=dict)
    done: Counter[str] = field(default_factory=Counter)
    ended_alone: list[str] = field(default_factory=list)
    launched: list[int] = field(default_factory=list)
    full_until: float = 0.0

    def __post_init__(self) -> None:
        self.chance = random.Random(self.size.seed)
        self.small_disk = mount_small(self.home / "runs")
        described = self.home / "sandbox" / "sandbox.json"
        command = [sys.executable, "-m", "sandbox", "--dir", str(described.parent)]
        self.parts.start("sandbox", command, dict(os.environ), described.exists)
        self.world: dict[str, Any] = json.loads(described.read_text())
        changes = {
            "database_url": self.database_url,
            "lease_seconds": LEASE,
            "stop_grace_seconds": GRACE,
            "max_attempts": MOST_ATTEMPTS,
            "tick_seconds": 0.5,
            "picture_seconds": 60.0,
        }
        self.settings = settings_for(self.home, self.world).model_copy(update=changes)
        self.db = Database(self.settings.database)
        self.db.migrate()
        self.lab = Lab(self.db)
        self.lab.pool(gpus=DEVICES)
        self.projects = [
            self.lab.project(lead, f"A question of {lead.name}") for lead in LEADS[: min(PROJECTS, self.size.runs)]
        ]
        self.parts.start_valkey(self.settings)
        for name in PARTS:
            self.start(name)
        self.deck: list[Callable[[], str | None]] = []

    def start(self, name: str) -> None:
        """Start a part, and do not wait for it."""
        if name == "valkey":
            self.parts.start_valkey(self.settings)
            return
        part = PARTS[name]
        command = [str(self.python), "-m", "cli.main", part]
        self.parts.start(name, command, environment(self.settings, part), lambda: True)

    # What befalls it. Each returns what was done, or None where there was nothing to do it to.

    def kill_part(self, *names: str) -> str | None:
        """End a part at once; some moments later it is started again."""
        up = [name for name in names if name in self.parts.running]
        if not up:
            return None
        name = self.chance.choice(up)
        part = self.parts.running.pop(name)
        if name != "valkey" and self.chance.random() < 0.5:
            os.kill(part.popen.pid, signal.SIGKILL)  # it alone: its children must notice by themselves
        else:
            os.killpg(part.popen.pid, signal.SIGKILL)
        part.popen.wait()
        self.down[name] = time.monotonic() + self.chance.uniform(0.1, 2.0)
        return f"kill -9 {PARTS.get(name, name)}"

    def kill_trainer(self, census: Census) -> str | None:
        """End a trainer, or one of its ranks."""
        return self._kill(census.trainers(), "kill -9 trainer")

    def kill_supervisor(self, census: Census) -> str | None:
        """End a supervisor."""
        return self._kill(census.living_supervisors(), "kill -9 supervisor")

    def _kill(self, pids: list[int], what: str) -> str | None:
        if not pids:
            return None
        try:
            os.kill(self.chance.choice(sorted(pids)), signal.SIGKILL)
        except ProcessLookupError:
            return None
        return what

    def wipe(self) -> str | None:
        """Lose all that the queue holds, with the server or under it."""
        if "valkey" not in self.parts.running:
            return None
        if self.chance.random() < 0.5:
            self.kill_part("valkey")
            shutil.rmtree(self.home / "valkey")
            return "Valkey killed and its data wiped"
        with suppress(OSError), socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(5)
            connection.connect(str(self.settings.valkey_socket))
            connection.sendall(b"FLUSHALL\r\n")
            return "Valkey's data wiped" if connection.recv(16) == b"+OK\r\n" else None
        return None

    def discord(self, **fault: object) -> str | None:
        """Let the next requests of the bot fail."""
        told = {"pattern": "^(POST|PATCH|PUT) /(channels|guilds)", "count": self.chance.randint(1, 3)} | fault
        call("POST", f"{self.world['discord']}/sandbox/faults", told)
        return f"Discord answers {fault['status']}" if "status" in fault else "Discord cuts its answer"

    def gateway(self) -> str:
        """Cut the bot's gateway."""
        forget = self.chance.random() < 0.5
        call("POST", f"{self.world['discord']}/sandbox/gateway/drop", {"forget": forget})
        return "Discord's gateway cut"

    def hub(self, **fault: object) -> str:
        """Let the next upload to the Hub fail, in its middle."""
        told = {"method": self.chance.choice(["POST", "PUT"]), "times": self.chance.randint(1, 2)} | fault
        call("POST", f"{self.world['hub']}/sandbox/faults", told)
        return f"Hub answers {fault['status']}" if "status" in fault else "upload cut"

    def fill_disk(self) -> str | None:
        """Leave a few bytes on the disk of the runs, for some seconds."""
        if not self.small_disk or self.full_until:
            return None
        used = shutil.disk_usage(self.home / "runs").used
        if not remount(self.home / "runs", f"{(used + 65_536) // 1024}k"):
            return None
        self.full_until = time.monotonic() + self.chance.uniform(1, 4)
        return "disk full"

    def deal(self, census: Census) -> str:
        """The next fault of a shuffled deck that can be done now."""
        while True:
            if not self.deck:
                self.deck = [
                    *[lambda: self.kill_part("worker")] * 2,
                    lambda: self.kill_part("scheduler", "second scheduler"),
                    lambda: self.kill_part("bot"),
                    lambda: self.kill_part("publisher"),
                    lambda: self.kill_part("valkey"),
                    *[lambda: self.kill_trainer(census)] * 3,
                    lambda: self.kill_supervisor(census),
                    self.wipe,
                    lambda: self.discord(status=500),
                    lambda: self.discord(status=429, retry_after=0.5),
                    lambda: self.discord(cut=True, pattern="^POST /channels/[0-9]+/messages"),
                    self.gateway,
                    lambda: self.hub(status=500),
                    lambda: self.hub(status=429, retry_after=1),
                    lambda: self.hub(cut=True),
                    self.fill_disk,
                ]
                self.chance.shuffle(self.deck)
            done = self.deck.pop()()
            if done:
                return done

    # What goes on meanwhile.

    def tend(self) -> None:
        """Start again what is down long enough, and give the disk its room back."""
        for name, part in list(self.parts.running.items()):
            if part.popen.poll() is not None:
                self.ended_alone.append(f"{name}: {last_line(part.log)}")
                del self.parts.running[name]
                self.down[name] = time.monotonic()
        for name, again in list(self.down.items()):
            if time.monotonic() >= again:
                del self.down[name]
                self.start(name)
        if self.full_until and time.monotonic() >= self.full_until:
            remount(self.home / "runs", DISK)
            self.full_until = 0.0

    def launch(self) -> None:
        """Queue one run: its lead asks for hours, two reviewers decide at once, and it is launched."""
        number = len(self.launched)
        lead, project = LEADS[number % len(self.projects)], self.projects[number % len(self.projects)]
        real = number % REAL_EVERY == 2
        allocation = self.lab.request(project, lead, hours=HOURS)
        with ThreadPoolExecutor(2) as reviewers:
            decided = list(reviewers.map(lambda reviewer: self._decide(allocation, reviewer), (ROSA, EMMY)))
        assert sorted(decided) == [False, True], "one decision, and one only"
        small = "batch=2, micro_batch=1, sequence_length=32"
        overrides = f"steps=12, {small}" if real else f"steps=60, seed={STANDIN_SEED}, {small}"
        gpus = 2 if number % 7 == 3 and not real else 1
        run = self.lab.launch(project, lead, allocation_id=allocation, overrides=overrides, gpus=gpus, time_limit="10m")
        self.launched.append(run)

    def _decide(self, allocation: int, reviewer: Actor) -> bool:
        try:
            self.lab.approve(allocation, HOURS, reviewer)
        except ConflictError:
            return False
        return True

    def waits_for(self) -> str:
        """What is not at its end yet; empty where all is."""
        with self.db.read() as session:
            moving = session.scalar(select(func.count()).where(col(Run.state).not_in(ENDED))) or 0
            unpublished = session.scalar(select(func.count()).where(col(Publication.url).is_(None))) or 0
            told = {row.stream: row.number for row in session.scalars(select(DiscordCursor))}
            untold = sum(head - told.get(stream, 0) for stream, head in record.streams(session).items())
            indexes = session.scalars(select(DiscordMessage).where(col(DiscordMessage.key).startswith("checkpoints:")))
            untold += sum(row.digest.count(UNSHOWN) for row in indexes)
        counts = {"runs": moving, "checkpoints to publish": unpublished, "entries to post": untold}
        return ", ".join(f"{count} {what}" for what, count in counts.items() if count)

    def play(self, census: Census, console: Console) -> None:
        """Let the faults come while runs are launched one by one; then let everything heal."""
        total, due = 0, 0.0
        while total < self.size.faults:
            self.tend()
            if len(self.launched) < self.size.runs and len(self.launched) * self.size.faults <= total * self.size.runs:
                self.launch()
            if time.monotonic() >= due:
                done = self.deal(census)
                self.done[done] += 1
                total += 1
                due = time.monotonic() + self.chance.uniform(QUICKEST, SLOWEST)
                console.print(f"[dim]{total:>4} {done}[/]", highlight=False)
            time.sleep(0.05)
        self.full_until = min(self.full_until, time.monotonic())
        until, said = time.monotonic() + HEAL_SECONDS, time.monotonic()
        while (left := self.waits_for()) and time.monotonic() < until:
            self.tend()
            if time.monotonic() - said > 15:
                said = time.monotonic()
                console.print(f"[dim]     waiting for {left}[/]", highlight=False)
            time.sleep(0.3)

    def close(self) -> None:
        """Stop all parts."""
        if self.full_until:
            remount(self.home / "runs", DISK)
        self.parts.stop()


def play(size: Size, console: Console) -> bool:
    """Play the story and print its table; whether every line of it holds."""
    home = Path(tempfile.mkdtemp(prefix="stoa-chaos-"))
    console.print(
        f"chaos: {size.runs} runs, {size.faults} faults, STOA_CHAOS_SEED={size.seed}, on {size.database}, in {home}"
    )
    started = time.monotonic()
    story: Story | None = None
    parts = Services(home / "logs")
    database = ExitStack()
    try:
        url = database.enter_context(database_of(size.database))
        story = Story(size, home, python_with(home / "python", STANDIN), parts, url)
        with Census(home, home / "runs") as census:
            story.play(census, console)
            messages = posted(story.world["discord"])
            unmet = call("GET", f"{story.world['hub']}/sandbox/faults")
            story.close()
            settle(home)
        lines = chaos_report.lines(story, census, messages, left_over(home), unmet)
        notes = [] if story.small_disk else ["LEFT OUT: the full disk, since this user may not mount a small one."]
        notes += [f"A part ended by itself and was started again: {said}" for said in story.ended_alone]
        befell = f"What befell it in {time.monotonic() - started:.0f} s, seed {size.seed}"
        chaos_report.show(console, befell, story.done, notes, lines)
        good = all(line.ok for line in lines)
    finally:
        parts.stop()
        for pid in left_over(home):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if story is not None:
            story.db.close()
            if story.small_disk:
                subprocess.run(["umount", "-l", str(home / "runs")], check=False)
        database.close()
    if good:
        shutil.rmtree(home, ignore_errors=True)
    else:
        console.print(f"The logs are kept in {home / 'logs'}.")
    return good


def database_of(kind: str) -> AbstractContextManager[str]:
    """The URL of the story's database while it plays; empty for SQLite in its home."""
    if kind == "sqlite":
        return nullcontext("")
    if kind != "postgresql":
        sys.exit(f"STOA_CHAOS_DATABASE is sqlite or postgresql; {kind!r} is neither.")
    programs = databases.binaries()
    if programs is None:
        sys.exit("PostgreSQL's server is not installed (Debian: apt-get install postgresql).")
    return databases.server(programs)


def mount_small(folder: Path) -> bool:
    """Make `folder` a small disk of its own; False where this user may not."""
    folder.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(folder)]
    return (
        shutil.which("mount") is not None and subprocess.run(command, capture_output=True, check=False).returncode == 0
    )


def remount(folder: Path, size: str) -> bool:
    """Change the size of the small disk."""
    command = ["mount", "-o", f"remount,size={size}", str(folder)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def posted(discord: str) -> dict[str, list[str]]:
    """What stands in each channel and thread, oldest first."""
    channels = call("GET", f"{discord}/sandbox/guild")["channels"]
    return {
        channel["id"]: [m["text"] for m in call("GET", f"{discord}/sandbox/channels/{channel['id']}/messages")]
        for channel in channels
        if channel["type"] != 4
    }


def settle(home: Path) -> None:
    """Give what ends by itself the time to."""
    until = time.monotonic() + GRACE + 10
    while left_over(home) and time.monotonic() < until:
        time.sleep(0.3)


def left_over(home: Path) -> list[int]:
    """The processes of this installation that still live."""
    found = []
    for pid in processes.of_home(home):
        with suppress(psutil.Error):
            if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                found.append(pid)
    return found


def call(method: str, url: str, body: object = None) -> Any:
    """A request to the sandbox's people's side."""
    data = None if body is None else json.dumps(body).encode()
    asked = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method=method)
    with urllib.request.urlopen(asked, timeout=30) as answer:
        return json.load(answer)


if __name__ == "__main__":
    sys.exit(0 if play(Size.given(), Console()) else 1)
