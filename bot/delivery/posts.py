"""Entries of the record as posts: the channels and threads that each is posted in, and what the post says there."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import structlog

from bot import text
from bot.delivery.entry_text import TEXTS, Payload, general
from bot.delivery.entry_text.phrases import line, quoted
from bot.mention import Mention, ended
from broker.runs.entries import MEASURES
from broker.runs.runs import RunKind, RunView
from projects.projects import ProjectView
from projects.record.record import LAB, EntryView

OPENS_CHANNEL = frozenset({"project.activated", "project.channel_opened"})
ENDS_RUN = frozenset({"run.finished", "run.failed", "run.timed_out", "run.cancelled"})
ENDS_SWEEP = frozenset({"run.failed", "run.timed_out", "sweep.ended"})
FOR_ADMINS = frozenset({"channel.deleted", "part.failed"})
BLANKED = "🪦 This entry was blanked on request; the hash chain still proves its place in the record."

log = structlog.get_logger()


class Destination(StrEnum):
    """The channels and threads that an entry can be posted in."""

    PROPOSAL = "proposal"
    CHANNEL = "channel"
    RUN = "run"
    ANNOUNCEMENTS = "announcements"
    RECORD = "record"
    REVIEW = "review"


@dataclass(frozen=True)
class PostContext:
    """What a post may mention beside its entry. `channel_id` is the project's own channel, once it has one."""

    project: ProjectView
    channel_id: str | None = None
    runs: Sequence[RunView] = ()
    sponsors: Sequence[str] = ()


def destinations(entry: EntryView, *, has_channel: bool, announces: bool = True) -> Sequence[Destination]:
    """Where an entry is posted; `has_channel` says whether its project has had a channel of its own.

    `announces` says whether the project's end is announced to the whole server.
    """
    payload = entry.payload or {}
    if entry.stream == LAB:
        return [Destination.RECORD, Destination.REVIEW] if entry.kind in FOR_ADMINS else [Destination.RECORD]
    if _opens(entry):
        return [Destination.PROPOSAL, Destination.CHANNEL]
    if entry.kind == "project.completed":
        everyone = [Destination.ANNOUNCEMENTS] if announces else []
        return [Destination.CHANNEL if has_channel else Destination.PROPOSAL, *everyone]
    if payload.keys() & {"run", "sweep"} and has_channel:
        return [Destination.RUN, Destination.CHANNEL] if _milestone(entry.kind, payload) else [Destination.RUN]
    return [Destination.CHANNEL if has_channel else Destination.PROPOSAL]


def marker(entry: EntryView, *, since: int | None = None) -> str:
    """The last line of an entry's post, by which the post is found and cited.

    It begins the entry's hash, which shows that no earlier entry was altered. `since` is the number of the first entry
    of a post that several share.
    """
    numbers = entry.number if since is None else f"{since}–{entry.number}"
    owner = "Lab" if entry.project_id is None else f"P{entry.project_id}"
    return f"-# {owner} · record {numbers} · {entry.hash[:8]}"


def render(
    entry: EntryView,
    destination: Destination,
    context: PostContext | None = None,
    mention: Mention | None = None,
) -> str:
    """The post of an entry with its mention and its marker. It fits a Components V2 message, whatever members typed."""
    end = ended(marker(entry), mention)
    if entry.payload is None:
        said = BLANKED
    elif destination is Destination.ANNOUNCEMENTS and context is not None:
        said = _announcement(entry.payload, context, text.CARD - text.length(end) - 1)
    elif _opens(entry) and destination is Destination.PROPOSAL and context is not None and context.channel_id:
        said = f"🏛️ The project is under way and now has its own channel, <#{context.channel_id}>."
    else:
        said = worded(entry.kind, entry.payload)
    return f"{text.bounded(said, text.CARD - text.length(end) - 1)}\n{end}"


def worded(kind: str, payload: Payload) -> str:
    """The text of an entry; in general terms where another version of Stoa wrote it without what its text needs."""
    try:
        return TEXTS.get(kind, general(kind))(payload)
    except (KeyError, TypeError, ValueError) as error:
        log.error("an entry lacks what its text needs; it is posted in general terms", kind=kind, exc_info=error)
        return general(kind)(payload)


def _opens(entry: EntryView) -> bool:
    """Whether this entry gives the project its channel."""
    return entry.kind in OPENS_CHANNEL and bool((entry.payload or {}).get("channel", True))


def _milestone(kind: str, payload: Payload) -> bool:
    """Whether an entry about a run or sweep is posted in the project's channel too, and not only in its thread.

    Of the runs of a sweep, the channel hears only what goes wrong; the end of the sweep tells of the others.
    """
    if "sweep" in payload:
        return kind in ENDS_SWEEP and not payload.keys() & {"sample", *MEASURES}
    if "sample" in payload:
        return kind == "run.finished" and bool(payload.get("text"))
    if payload.keys() & MEASURES:
        return kind == "run.finished"
    return kind in ENDS_RUN


def _announcement(p: Payload, context: PostContext, most: int) -> str:
    everyone = ", ".join(f"{text.line(m['name'], 60)}{' (lead)' if m['lead'] else ''}" for m in p["people"])
    lines = [
        f"## {text.line(context.project.title, 200)}",
        f"This project is completed: **{line(p['outcome'])}**.{quoted(context.project.question, 'It asked:')}",
        f"**What was learnt**\n{text.quote(p['learnt'], 1600)}",
        f"**People** {text.bounded(everyone, 400)}",
    ]
    if context.sponsors:
        sponsors = ", ".join(text.line(sponsor, 80) for sponsor in context.sponsors)
        lines.append(f"**Compute** sponsored by {text.bounded(sponsors, 600)}")
    if context.channel_id:
        lines.insert(2, f"The whole story is in <#{context.channel_id}>.")
    head = "\n".join(lines)
    published = [_published(run) for run in context.runs if run.kind == RunKind.TRAIN and run.checkpoints]
    return "\n".join(filter(None, [head, text.listed(published, most=most - text.length(head) - 1)]))


def _published(run: RunView) -> str:
    last = run.checkpoints[-1]
    return (
        f"**Run {run.id}** ({text.code(run.recipe, 60)}): {text.count(len(run.checkpoints), 'checkpoint')}, "
        f"the last one is [step {last.step}]({last.url})"
    )
