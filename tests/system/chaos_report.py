"""How a chaos story came out: a table of what must hold, each line with what was found."""

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from sqlalchemy import func
from sqlalchemy.orm import Session
from sqlmodel import col, select

from bot.tables import DiscordLease
from broker.allocations import ledger
from broker.allocations.allocations import Allocation
from broker.allocations.ledger import Balance, LedgerRow, Movement
from broker.allocations.pools import Grant
from broker.publications import Publication
from broker.runs.attempts import OPEN, Attempt
from broker.runs.runs import ENDED, Run, RunKind, RunState
from projects.record import record, verification
from tests.absent import REQUIRE_ALL
from tests.system import posts
from tests.system.census import Census

if TYPE_CHECKING:
    from tests.system.chaos import Story

POLL_SECONDS = 0.2
HUBS_FAULTS = ("Hub answers 500", "Hub answers 429", "upload cut")


@dataclass(frozen=True)
class Line:
    """One thing that must hold, and what was found."""

    what: str
    found: str
    problems: Sequence[str] = ()

    @property
    def ok(self) -> bool:
        """Whether it holds."""
        return not self.problems


def lines(
    story: "Story",
    census: Census,
    messages: Mapping[str, Sequence[str]],
    left: Sequence[int],
    unmet: Sequence[Mapping[str, Any]],
) -> list[Line]:
    """Every line of the table; all parts have been stopped, and `unmet` are the Hub's faults that none has met."""
    renewal = story.settings.lease_seconds / 6
    with story.db.read() as session:
        return [
            _faults(story, unmet),
            _posted(session, messages),
            *of_runs(session, census, len(story.launched), renewal, left),
            _published(session),
        ]


def of_runs(
    session: Session, census: Census, launched: int, renewal: float, left: Sequence[int | str]
) -> Sequence[Line]:
    """The lines about so many launched runs, whose leases are renewed every `renewal` seconds.

    `left` are the processes that live on.
    """
    return [
        _ended(session, launched),
        _record(session),
        _sums(session),
        _process_time(session, census, renewal + POLL_SECONDS),
        _one_at_a_time(session, census),
        _leases(session),
        Line("no process is left over", f"{len(left)} left", [f"process {pid}" for pid in left]),
    ]


def show(console: Console, befell: str, done: Counter[str], notes: Sequence[str], found: Sequence[Line]) -> None:
    """Print the faults that were `done` by their kind under the title `befell`, the notes, and the table."""
    faults = Table("fault", "times", title=befell)
    for kind, count in sorted(done.items()):
        faults.add_row(kind, str(count))
    console.print(faults)
    for note in notes:
        console.print(note, style="yellow", markup=False)
    table = Table("", "what must hold", "found", title="How it came out")
    for line in found:
        table.add_row("[green]✔[/]" if line.ok else "[red]✘[/]", line.what, line.found)
    console.print(table)
    for line in found:
        for problem in line.problems[:20]:
            console.print(f"{line.what}: {problem}", style="red", markup=False, highlight=False)


def _faults(story: "Story", unmet: Sequence[Mapping[str, Any]]) -> Line:
    met = Counter[str]()
    for entry in (story.home / "sandbox" / "exchanges.jsonl").read_text().splitlines():
        fault = json.loads(entry)["fault"]
        if fault is not None:
            met["cut" if fault["cut"] else str(fault["status"])] += 1
    total = story.done.total()
    problems = [] if total >= story.size.faults else [f"only {total} faults"]
    if total >= 50:
        problems += [f"Discord never answered {kind}" for kind in ("500", "429", "cut") if not met[kind]]
        waits = Counter("upload cut" if fault["cut"] else f"Hub answers {fault['status']}" for fault in unmet)
        problems += [f"no upload ever met “{kind}”" for kind in HUBS_FAULTS if story.done[kind] <= waits[kind]]
        if story.small_disk and not story.done["disk full"]:
            problems.append("the disk was never full")
    if not story.small_disk and os.environ.get(REQUIRE_ALL) == "1":
        problems.append(f"no small disk could be mounted and filled, and {REQUIRE_ALL}=1 allows nothing to be left out")
    return Line(
        "the faults were done, and Discord's and the Hub's met",
        f"{total} faults; Discord's met {met.total()} requests; {len(unmet)} of the Hub's waited in vain",
        problems,
    )


def _ended(session: Session, launched: int) -> Line:
    runs = session.scalars(select(Run).order_by(col(Run.id))).all()
    states = Counter(run.state for run in runs)
    problems = [f"run {run.id} is {run.state}" for run in runs if run.state not in ENDED]
    problems += [
        f"run {run.id} is {run.state} and says not why"
        for run in runs
        if run.state in ENDED - {RunState.FINISHED} and not run.reason
    ]
    problems += [f"run {run.id} has no end" for run in runs if run.ended_at is None]
    trained = sum(run.kind == RunKind.TRAIN for run in runs)
    if trained != launched:
        problems.append(f"{launched} runs were launched, {trained} are there")
    said = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
    attempts = session.scalar(select(func.count()).select_from(Attempt))
    return Line("every run is in a final state, with its reason", f"{said}; {attempts} attempts", problems)


def _record(session: Session) -> Line:
    verdicts = [verification.verify(session, stream) for stream in record.streams(session)]
    entries = sum(verdict.entries for verdict in verdicts)
    problems = [f"{verdict.stream}: {verdict.problem}" for verdict in verdicts if not verdict.ok]
    return Line("the record's chains are whole", f"{entries} entries in {len(verdicts)} chains", problems)


def _posted(session: Session, messages: Mapping[str, Sequence[str]]) -> Line:
    found = posts.counted(messages)
    heads = record.streams(session)
    entries = {(stream, number) for stream, head in heads.items() for number in range(1, head + 1)}
    problems = [f"entry {number} of {stream} is not posted" for stream, number in sorted(entries - set(found))]
    problems += [f"a post tells of {entry}, which is not in the record" for entry in sorted(set(found) - entries)]
    problems += [
        f"entry {number} of {stream} stands {count} times in {channel}"
        for (stream, number), channels in found.items()
        for channel, count in channels.items()
        if count > 1
    ]
    count = sum(channels.total() for channels in found.values())
    return Line("each entry is posted, and nowhere twice", f"{count} posts of {len(found)} entries", problems)


def _sums(session: Session) -> Line:
    problems = []
    spent = 0
    for balance in session.scalars(select(Balance)):
        sums = ledger.totals(session, allocation_id=balance.allocation_id)
        granted, charged = sums[Movement.GRANT] + sums[Movement.ADJUST], sums[Movement.CHARGE] - sums[Movement.REFUND]
        left = granted - sums[Movement.RESERVE] + sums[Movement.RELEASE] + sums[Movement.REFUND]
        if (balance.granted, balance.spent) != (granted, charged):
            problems.append(f"allocation {balance.allocation_id}: the balance is not the sum of its movements")
        if balance.reserved != sums[Movement.RESERVE] - sums[Movement.CHARGE] - sums[Movement.RELEASE]:
            problems.append(f"allocation {balance.allocation_id}: what is reserved does not add up")
        if ledger.account(session, balance.allocation_id).left != left:
            problems.append(f"allocation {balance.allocation_id}: what is left does not add up")
        if balance.reserved:
            problems.append(f"allocation {balance.allocation_id}: {balance.reserved} GPU-seconds are still reserved")
        spent += balance.spent
    charges = session.scalar(select(func.sum(col(LedgerRow.seconds))).where(LedgerRow.movement == Movement.CHARGE)) or 0
    refunds = session.scalar(select(func.sum(col(LedgerRow.seconds))).where(LedgerRow.movement == Movement.REFUND)) or 0
    attempts = session.scalar(select(func.sum(col(Attempt.charged)))) or 0
    if spent != charges - refunds or charges != attempts:
        problems.append(f"accounts say {spent}, the ledger {charges} less {refunds}, the attempts {attempts}")
    drawn = session.scalar(select(func.sum(col(Grant.drawn)))) or 0
    granted = session.scalar(select(func.sum(col(Balance.granted)))) or 0
    if drawn != granted:
        problems.append(f"the grants gave {drawn}, the allocations got {granted}")
    count = session.scalar(select(func.count()).select_from(Allocation))
    return Line(
        "the charges sum exactly", f"{spent:,} GPU-seconds spent on {count} allocations, {refunds:,} refunded", problems
    )


def _process_time(session: Session, census: Census, renewal: float) -> Line:
    """An attempt is charged its trainer's life, and never more than it has reserved.

    Where its supervisor died first, it may be charged less.
    Beside the renewal: charges are whole seconds, the census sees no better than its own longest gap, and on a busy
    machine a renewal is late by as much.
    """
    slack = 1 + 2 * census.longest_gap
    problems = []
    charged = lived = 0.0
    for attempt in session.scalars(select(Attempt)):
        gpus = session.get_one(Run, attempt.run_id).gpus
        lives = census.attempts.get((attempt.run_id, attempt.token))
        seen = 0.0 if lives is None else lives.trainer_seen - lives.born
        least = seen
        if lives is not None:
            supervised = census.supervisor_seen.get((attempt.run_id, attempt.token), lives.trainer_seen)
            least = min(seen, supervised - lives.born)
        least = min(least, attempt.reserved / gpus)
        seconds = attempt.charged / gpus
        charged, lived = charged + attempt.charged, lived + seen * gpus
        if not least - renewal - slack <= seconds <= seen + slack:
            problems.append(
                f"attempt {attempt.token} of run {attempt.run_id} ({attempt.state}: {attempt.reason}) was charged "
                f"{seconds:.0f} s a GPU; its trainer lived {seen:.1f} s, {least:.1f} s of them under its supervisor"
            )
    return Line(
        f"charges lie within one renewal ({renewal:.1f} s) an attempt of the process time",
        f"charged {charged:,.0f}, lived {lived:,.0f} GPU-seconds; the census looked every {census.longest_gap:.1f} s",
        problems,
    )


def _one_at_a_time(session: Session, census: Census) -> Line:
    by_run: dict[int, list[tuple[float, float, int]]] = {}
    for (run, token), lives in census.attempts.items():
        by_run.setdefault(run, []).append((lives.born, lives.trainer_seen, token))
    problems = [
        f"attempts {before[2]} and {after[2]} of run {run} trained at once for {before[1] - after[0]:.1f} s"
        for run, spans in by_run.items()
        for before, after in pairwise(sorted(spans))
        if before[1] > after[0]
    ]
    known = {(run_id, token) for run_id, token in session.execute(select(Attempt.run_id, Attempt.token))}
    problems += [f"a trainer ran for {attempt}, which is not recorded" for attempt in set(census.attempts) - known]
    return Line("no two attempts of a run trained at once", f"{len(census.attempts)} attempts were seen", problems)


def _published(session: Session) -> Line:
    waiting = session.scalars(select(Publication).where(col(Publication.url).is_(None))).all()
    count = session.scalar(select(func.count()).select_from(Publication))
    problems = [f"step {row.step} of run {row.run_id}: {row.error or 'not tried'}" for row in waiting]
    return Line("every checkpoint is published", f"{count} checkpoints", problems)


def _leases(session: Session) -> Line:
    attempts = session.scalars(select(Attempt).where(col(Attempt.state).in_(OPEN))).all()
    problems = [f"attempt {row.token} of run {row.run_id} is {row.state}" for row in attempts]
    uploads = session.scalars(select(Publication).where(col(Publication.lease_until).is_not(None))).all()
    problems += [f"the upload of step {row.step} of run {row.run_id} is leased" for row in uploads]
    senders = session.scalars(select(DiscordLease)).all()
    problems += [f"{row.holder} holds the lease of the sender until {row.until}" for row in senders]
    return Line("no lease is left over", f"{len(problems)} left", problems)
