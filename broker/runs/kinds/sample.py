"""Sampling: a run's last checkpoint writes a text, as a short run that is charged like any other."""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy.orm import Session

from broker import publications
from broker.allocations import allocations, ledger, payers
from broker.allocations.allocations import Allocation
from broker.publications import Publication
from broker.runs import entries, folders, runs
from broker.runs.kinds.kind import Kind, Start
from broker.runs.progress import Ending
from broker.runs.runs import SAMPLE_TIME_LIMIT, Run, RunKind
from projects.people import Person

TEMPERATURE, SEED = 0.8, 0
"""How the tokens of every sample are drawn."""
PROMPT = "The "
"""What a sample continues that nobody gave a prompt."""


class Sample(Kind):
    """Continues a prompt from the newest checkpoint of its parent."""

    has_card = reads_corpora = can_be_extended = False
    may_overlap = True
    takes = "a sample takes as long as its text"
    of_parent = "a sample of"
    again = "/run sample asks for another"
    not_paused = "over in moments; let it end"

    def command(self, start: Start) -> list[str]:
        run = start.run
        with start.db.read() as session:
            checkpoint = publications.newest(session, run.parent_id or 0)
        if checkpoint is None:
            raise FileNotFoundError(f"run {run.parent_id} has left no checkpoint to sample from")
        kept = folders.on_disk(start.settings, checkpoint.run_id, checkpoint.folder)
        drawn = [f"--temperature={TEMPERATURE}", f"--seed={SEED}"]
        return ["generate", str(kept), f"--prompt={run.prompt or PROMPT}", *drawn, "--out", str(start.folder)]

    def reads(self, session: Session, run: Run, *, begins: bool) -> Sequence[Publication]:
        newest = publications.newest(session, run.parent_id or 0)
        return [] if newest is None else [newest]

    def about(self, session: Session, run: Run) -> Mapping[str, Any]:
        """A sample is told as the `nth` of its parent."""
        told: dict[str, Any] = {"run": run.parent_id, "sample": run.id, "nth": runs.nth(session, run)}
        prompt = {"prompt": run.prompt} if run.prompt else {}
        return told | prompt | {**runs.sweep_of_parent(session, run)}

    def told_at_end(self, session: Session, run: Run, ending: Ending) -> Mapping[str, Any]:
        how: dict[str, Any] = {"temperature": TEMPERATURE, "seed": SEED}
        return how if ending.sample_step is None else how | {"from_step": ending.sample_step}

    def not_retried(self, run: Run, host: str) -> str:
        return f"its host “{host}” was lost; ask for another sample" if host else ""


KIND = Sample()


def of(parent: Run, request_id: str, allocation: Allocation, requested_by: int) -> Run:
    """A sample of a run, on one GPU of the pool of the allocation that pays, in no session yet."""
    return Run(
        request_id=request_id,
        kind=RunKind.SAMPLE,
        project_id=parent.project_id,
        allocation_id=allocation.id,
        pool_id=allocation.pool_id,
        requested_by=requested_by,
        parent_id=parent.id,
        recipe=parent.recipe,
        overrides={},
        config="",
        total_steps=0,
        gpus=1,
        time_limit=SAMPLE_TIME_LIMIT,
    )


def queue(session: Session, sample: Run, *, by: Person | None = None) -> None:
    """Queue a sample, with an entry."""
    session.add(sample)
    session.flush()
    entries.tell(session, sample, "run.queued", by=by, recipe=sample.recipe, gpus=1, time_limit=SAMPLE_TIME_LIMIT)


def queue_at_end(session: Session, parent: Run) -> None:
    """Queue a sample without a prompt from a run that has just finished, where its allocation can pay for one."""
    allocation = allocations.load(session, payers.successor(session, parent.allocation_id))
    if payers.is_spendable(allocation) and ledger.account(session, allocation.id).left >= SAMPLE_TIME_LIMIT:
        queue(session, of(parent, f"sample-{parent.id}", allocation, parent.requested_by))
