"""What would end with a run, a sweep, an allocation or a project, in the words of the question before it."""

from collections.abc import Sequence

from bot import text
from broker.allocations import units
from broker.allocations.units import Amounts
from broker.reports.endings import Ending
from projects.db.columns import utcnow

MOST_NAMED = 6
"""So many runs are named; more are counted."""


def of_runs(ending: Ending) -> str:
    """What happens to runs that are cancelled, and to the hours reserved for them."""
    return _sentences([*_runs(ending, "stop", "end"), _unused(ending, "allocation")])


def of_allocation(allocation_id: int, ending: Ending) -> str:
    """What happens when an allocation is revoked."""
    back = f"Allocation {allocation_id} ends: {_return(ending.returned)} to its sponsor's grant."
    return _sentences([back, *_runs(ending, "pause", "pause"), _unused(ending, "grant")])


def of_project(title: str, ending: Ending) -> str:
    """What happens when a project is completed or stopped."""
    said = [f"**{text.line(title, 160)}** ends: nobody can join it, ask for compute or launch a run in it any more."]
    if ending.requests:
        said.append(f"Its open requests for compute are withdrawn ({_named(ending.requests, 'allocation')}).")
    if ending.allocations:
        ends = "ends" if len(ending.allocations) == 1 else "end"
        said.append(
            f"{_named(ending.allocations, 'allocation').capitalize()} {ends}: {_return(ending.returned)} "
            f"to where the hours were granted from."
        )
    return _sentences([*said, *_runs(ending, "stop", "end"), _unused(ending, "grant")])


def about(ending: Ending) -> str:
    """What of an ending people are to know before they agree to it: what ends, and whether checkpoints are written.

    Of more runs than are named, it is whether there are any, and the day: where runs last seconds, their number never
    stands still, but by the next day they may all be others.
    """
    many = f"many on {utcnow():%F}"
    runs = [ids if len(ids) <= MOST_NAMED else many for ids in map(list, (ending.stopping, ending.waiting))]
    return repr((list(ending.allocations), list(ending.requests), *runs, ending.checkpoint))


def _runs(ending: Ending, stop: str, at_once: str) -> Sequence[str]:
    said = []
    for runs, verb, checkpoint in ((ending.stopping, stop, ending.checkpoint), (ending.waiting, at_once, False)):
        if not runs:
            continue
        s = "s" if len(runs) == 1 else ""
        how = f"write{s} a checkpoint and {verb}{s}" if checkpoint else f"{verb}{s}"
        when = " at once" if runs is ending.waiting else ""
        said.append(f"{_named(runs, 'run').capitalize()} {how}{when}.")
    return said


def _unused(ending: Ending, to: str) -> str:
    if not any(ending.reserved.values()):
        return ""
    hours = units.hours(ending.reserved)
    return f"What is not used of the {hours} reserved for {_named(ending.stopping, 'run')} returns to the {to}."


def _return(amounts: Amounts) -> str:
    """Such as “1 GPU-hour returns”."""
    hours = units.hours(amounts)
    return f"{hours} return{'' if hours.endswith('s') else 's'}"


def _named(ids: Sequence[int], noun: str) -> str:
    """Such as “run 3”, “runs 3, 4 and 5”, “23 runs”."""
    if len(ids) > MOST_NAMED:
        return text.count(len(ids), noun)
    first = ", ".join(map(str, ids[:-1]))
    return f"{noun}s {first} and {ids[-1]}" if first else f"{noun} {ids[-1]}"


def _sentences(said: Sequence[str]) -> str:
    return " ".join(filter(None, said))
