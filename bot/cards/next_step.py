"""What comes next for a project, a run or a sweep, in one line that ends its card and the answers about it."""

from collections.abc import Sequence

from bot import text
from broker.allocations.allocations import AllocationState, AllocationView
from broker.runs.runs import ENDED as ENDED_RUN
from broker.runs.runs import RunKind, RunState, RunView
from broker.runs.sweeps import SweepView
from projects.projects import ENDED, ProjectView, Stage

COMES = {
    RunState.QUEUED: "It starts by itself; its losses and checkpoints follow here.",
    RunState.STARTING: "Its losses and checkpoints follow here.",
    RunState.RUNNING: "Its losses and checkpoints follow here.",
    RunState.STOPPING: "It writes a checkpoint and stops.",
    RunState.PAUSED: "The button below resumes it.",
    RunState.FINISHED: "`/run compare` shows it beside other runs, and `/run fork` trains on from its last checkpoint.",
    RunState.FAILED: "Read its log, or launch it again as it was, with the buttons below.",
    RunState.CANCELLED: "`/run rerun` launches it again as it was.",
    RunState.TIMED_OUT: "`/run fork` goes on from its last checkpoint, with another time limit.",
}
"""What comes after each state of a run that trains."""


def of_project(
    project: ProjectView, requests: Sequence[AllocationView], runs: Sequence[RunView], *, min_people: int
) -> str:
    """What has to be done next, and who does it; empty for a project that has ended."""
    if project.stage in ENDED:
        return ""
    if project.stage == Stage.PAUSED:
        return "**Next** The lead goes on with `/project resume`."
    if project.stage != Stage.ACTIVE:
        return f"**Next** {begins(project, min_people=min_people)}"
    if not project.has_channel:
        return "**Next** A moderator opens the project's channel with `/project open`."
    if any(request.state == AllocationState.APPROVED and request.account.left > 0 for request in requests):
        which = "the next run" if runs else "the first run"
        return f"**Next** A contributor launches {which} with `/run launch`."
    waiting = [request.id for request in requests if request.state == AllocationState.REQUESTED]
    if waiting:
        return f"**Next** The reviewers decide on allocation {waiting[0]}."
    return "**Next** The lead asks for compute with `/allocation request`."


def begins(project: ProjectView, *, min_people: int) -> str:
    """A sentence that says what a project which is not active yet still lacks."""
    lacks = [] if project.goal else [f"its lead, {text.line(project.lead.name, 60)}, writes the scope"]
    missing = min_people - len(project.members)
    if missing > 0:
        lacks.append(f"{text.count(missing, 'more person joins', 'more people join')}")
    return f"The project gets its own channel once {' and '.join(lacks)}."


def of_run(run: RunView) -> str:
    """What follows for a run, or what people may do about it; empty where nothing does."""
    if run.kind == RunKind.TRAIN:
        return f"**Next** {COMES[run.state]}"
    if run.kind == RunKind.PREPARE and run.state == RunState.FINISHED:
        return "**Next** `/run launch` trains on the prepared data."
    if run.kind == RunKind.BASELINE and run.state == RunState.FINISHED:
        return f"**Next** `/run compare` draws it beside runs: name run {run.id} among them."
    return ""


def of_sweep(sweep: SweepView) -> str:
    """What follows for a sweep, or what people may do about it."""
    if sweep.state in ENDED_RUN:
        return "**Next** `/run compare` overlays its runs, and `/run fork` trains on from the best."
    if sweep.state == RunState.PAUSED:
        return "**Next** The button below resumes its paused runs."
    return "**Next** Its runs start by themselves; their losses follow here."
