"""What comes next for a project, in one line that ends its card and the answers about it."""

from collections.abc import Sequence

from bot import text
from broker.allocations.allocations import AllocationState, AllocationView
from broker.runs.runs import RunView
from projects.projects import ENDED, ProjectView, Stage


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
