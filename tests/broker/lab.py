"""A small lab for the tests: people, an active project, a pool with a grant, and what they do with it."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from itertools import count
from pathlib import Path
from typing import Any

from broker import catalogue
from broker.allocations import allocations, ledger, pools, requests
from broker.allocations.allocations import AllocationState
from broker.allocations.ledger import Account, Movement
from broker.reviews import reviews
from broker.runners.processes import Process
from broker.runs import attempts, control, launching, leases, runs, settlement
from broker.runs.attempts import Attempt
from broker.runs.launching import Order
from broker.runs.progress import Ending, Progress
from broker.runs.runs import Run, RunView
from projects import lifecycle, membership, policies
from projects.db.columns import utcnow
from projects.db.database import Database
from projects.people import Actor, LabRole
from projects.record import record
from projects.settings import Settings

ADA = Actor(1, "Ada")
GRACE = Actor(2, "Grace")
ROSA = Actor(3, "Rosa", frozenset({LabRole.REVIEWER}))
EMMY = Actor(4, "Emmy", frozenset({LabRole.REVIEWER}))
STRANGER = Actor(5, "Stranger")
POOL = "laptop"
HOUR = 3600
PROCESS = Process("host", "boot", 4242, 1000)
NOTHING = Progress(0, 0)

_requests = count()


def request_id() -> str:
    """A request id that nobody has used."""
    return f"request-{next(_requests)}"


def in_days(days: int) -> str:
    """A day from today on, as typed."""
    return (utcnow() + timedelta(days=days)).date().isoformat()


def settings(home: Path, **values: Any) -> Settings:
    """Settings that no environment has a say in."""
    given: dict[str, Any] = {"home": home, "disk_floor_gib": 0} | values
    return Settings(_env_file=None, **given)


@dataclass
class Lab:
    """What a test asks of a database in one call each; every act is a transaction of its own."""

    db: Database

    def pool(
        self,
        name: str = POOL,
        *,
        gpu_type: str = "cpu",
        gpus: int = 2,
        gpus_a_node: int | None = None,
        granted: int = 1000 * HOUR,
        runner: str = "local",
        options: Mapping[str, str] | None = None,
    ) -> None:
        """A pool, and a grant of so many GPU-seconds of it."""
        with self.db.write() as session:
            pools.add_pool(
                session,
                name=name,
                gpu_type=gpu_type,
                gpus=gpus,
                gpus_a_node=gpus_a_node,
                runner=runner,
                runner_options=options,
            )
            until = utcnow() + timedelta(days=60)
            pools.add_grant(session, pool=name, sponsor="The house", seconds=granted, until=until)

    def let(self, policy: str, value: float) -> None:
        """The operator sets a policy."""
        with self.db.write() as session:
            policies.change(session, None, policy, str(value), "To see.")

    def proposal(self, lead: Actor = ADA, title: str = "Sinks of attention") -> int:
        """A project of its lead alone."""
        with self.db.write() as session:
            return lifecycle.propose(session, lead, request_id(), title=title, question="q", why="w", needs="n")

    def join(self, project: int, actor: Actor) -> None:
        """A newcomer."""
        with self.db.write() as session:
            lifecycle.join(session, actor, project, min_people=2)

    def project(self, lead: Actor = ADA, title: str = "Sinks of attention") -> int:
        """An active project of its lead and Grace."""
        project = self.proposal(lead, title)
        with self.db.write() as session:
            lifecycle.join(session, GRACE, project, min_people=2)
            lifecycle.scope(session, lead, project, goal="g", plan="p", compute="c", release="r", min_people=2)
            membership.confirm(session, lead, project, who=str(GRACE.discord_id))
        return project

    def leave(self, project: int, actor: Actor) -> None:
        """A person goes by themselves."""
        with self.db.write() as session:
            membership.leave(session, actor, project)

    def remove(self, project: int, who: Actor, lead: Actor = ADA) -> None:
        """The lead sends a person away."""
        with self.db.write() as session:
            membership.remove(session, lead, project, who=str(who.discord_id), reason="Spam.")

    def request(self, project: int, actor: Actor = ADA, **changes: Any) -> int:
        """A request for an allocation of two hours."""
        asked: dict[str, Any] = {"pool": POOL, "hours": "2", "until": in_days(30), "justification": "To see."} | changes
        with self.db.write() as session:
            return requests.request(session, actor, request_id(), project_id=project, **asked)

    def approve(self, allocation: int, hours: str = "1", reviewer: Actor = ROSA, reason: str = "Fine.") -> None:
        """A reviewer's consent."""
        with self.db.write() as session:
            reviews.approve(session, reviewer, allocation, hours=hours, reason=reason)

    def decline(self, allocation: int, reviewer: Actor = ROSA, reason: str = "Not yet.") -> None:
        """A reviewer's refusal."""
        with self.db.write() as session:
            reviews.decline(session, reviewer, allocation, reason=reason)

    def allocation(self, project: int, hours: str = "1", lead: Actor = ADA) -> int:
        """An approved allocation, by policy or by as many reviewers as it takes."""
        allocation = self.request(project, lead, hours=hours)
        self.consent(allocation, hours)
        return allocation

    def consent(self, allocation: int, hours: str) -> None:
        """The approvals that a request still needs."""
        for reviewer in (ROSA, EMMY):
            with self.db.read() as session:
                state = allocations.load(session, allocation).state
            if state == AllocationState.REQUESTED:
                self.approve(allocation, hours, reviewer)

    def launch(self, project: int, actor: Actor = ADA, **changes: Any) -> int:
        """A queued run of ten minutes on one GPU."""
        return self.receipt(project, actor, **changes).run_id

    def recipe(self, name: str, body: str) -> str:
        """The name of an accepted recipe of this text."""
        with self.db.write() as session:
            catalogue.propose_recipe(session, None, request_id(), name=name, body=body)
            catalogue.accept(session, None, name, reason="Fine.")
        return name

    def receipt(
        self, project: int, actor: Actor = ADA, request: str | None = None, **changes: Any
    ) -> launching.Receipt:
        """What a launch answers."""
        asked: dict[str, Any] = {"recipe": "demo", "time_limit": "10m", "gpus": 1} | changes
        with self.db.write() as session:
            return launching.launch(session, actor, request or request_id(), Order(project, **asked))

    def admit(self, run: int, *devices: int) -> int:
        """Its token, from a scheduler."""
        with self.db.write() as session:
            return attempts.admit(session, run, devices or (0,))

    def start(self, run: int, *devices: int, lease: float = 60) -> int:
        """The token of an attempt that runs."""
        token = self.admit(run, *devices)
        assert self.claim(run, token, lease=lease)
        with self.db.write() as session:
            leases.started(session, run, token, PROCESS, (), lease_seconds=lease)
        return token

    def claim(self, run: int, token: int, *, lease: float = 60, host: str = "host") -> bool:
        """Whether a worker gets the attempt."""
        with self.db.write() as session:
            return leases.claim(session, run, token, host=host, lease_seconds=lease)

    def renew(self, run: int, token: int, elapsed: float, progress: Progress = NOTHING, *, lease: float = 60) -> bool:
        """Whether the run has been asked to stop."""
        with self.db.write() as session:
            return leases.renew(session, run, token, elapsed, progress, lease_seconds=lease).stop

    def settle(self, run: int, token: int, elapsed: float, ending: Ending, *, most: int = 3) -> None:
        """The trainer has ended."""
        with self.db.write() as session:
            settlement.settle(session, run, token, elapsed, NOTHING, ending, most)

    def expire(self, run: int, token: int, *, grace: float = 0, most: int = 3) -> None:
        """The scheduler gives an attempt up, should its lease have run out."""
        with self.db.read() as session:
            attempt = session.get_one(Attempt, (run, token))
        with self.db.write() as session:
            settlement.expire(session, attempt, lease_seconds=60, grace_seconds=grace, most=most)

    def cancel(self, run: int, actor: Actor = ADA) -> None:
        """A member asks for the end of a run."""
        with self.db.write() as session:
            control.cancel(session, actor, run)

    def pause(self, run: int, actor: Actor = ADA) -> None:
        """A member takes a run from its GPUs for a while."""
        with self.db.write() as session:
            control.pause(session, actor, run)

    def resume(self, run: int, **changes: Any) -> launching.Receipt:
        """A member lets it go on."""
        with self.db.write() as session:
            return control.resume(session, ADA, run, **changes)

    def extend(self, run: int, time: str) -> launching.Receipt:
        """A member gives it more time."""
        with self.db.write() as session:
            return control.extend(session, ADA, run, time)

    def top_up(self, allocation: int, seconds: int) -> None:
        """More GPU-seconds for an allocation."""
        with self.db.write() as session:
            ledger.top_up(session, allocation, seconds)

    def run(self, run: int) -> RunView:
        """The run as cards show it."""
        with self.db.read() as session:
            return runs.view(session, run)

    def row(self, run: int) -> Run:
        """The run's row."""
        with self.db.read() as session:
            return runs.load(session, run)

    def account(self, allocation: int) -> Account:
        """The balance, after it has been held against the sums of the ledger's rows."""
        with self.db.read() as session:
            account = ledger.account(session, allocation)
            sums = ledger.totals(session, allocation_id=allocation)
        assert account.granted == sums[Movement.GRANT] + sums[Movement.ADJUST]
        assert account.spent == sums[Movement.CHARGE] - sums[Movement.REFUND]
        assert account.reserved == sums[Movement.RESERVE] - sums[Movement.CHARGE] - sums[Movement.RELEASE]
        assert min(account.granted, account.reserved, account.spent, account.left) >= 0
        return account

    def kinds(self, project: int) -> list[str]:
        """What the project's record tells, in order."""
        with self.db.read() as session:
            return [entry.kind for entry in record.since(session, record.project_stream(project), 0)]

    def payloads(self, project: int, kind: str) -> list[dict[str, Any]]:
        """What the project's record says of one kind, in order."""
        with self.db.read() as session:
            entries = record.since(session, record.project_stream(project), 0)
        return [entry.payload or {} for entry in entries if entry.kind == kind]

    def everything(self) -> list[Any]:
        """What must be the same after a refusal: the record's heads, all balances, runs, attempts and allocations."""
        tables = (
            *("streams", "balances", "ledger", "runs", "attempts", "allocations", "grants", "people", "points"),
            *("grant_ledger", "allocation_changes", "allocation_warnings"),
        )
        with self.db.read() as session:
            connection = session.connection()
            return [connection.exec_driver_sql(f"SELECT * FROM {table} ORDER BY 1, 2").fetchall() for table in tables]
