"""Entries of the record as posts: where each one goes, and what it says there."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import structlog

from bot import text
from bot.delivery.entry_text import RENDERINGS, Payload, generic, line, quoted
from broker.runs.runs import RunKind, RunView
from projects.projects import ProjectView
from projects.record.record import LAB, Told

OPENINGS = frozenset({"project.activated", "project.channel_opened"})
ENDINGS = frozenset({"run.finished", "run.failed", "run.timed_out", "run.cancelled"})
FOR_ADMINS = frozenset({"channel.deleted"})
BLANKED = "🪦 This entry was blanked on request; the chain still vouches for its place."

log = structlog.get_logger()


class Place(StrEnum):
    """Where a post can go."""

    PROPOSAL = "proposal"
    CHANNEL = "channel"
    RUN = "run"
    ANNOUNCEMENTS = "announcements"
    RECORD = "record"
    REVIEW = "review"


@dataclass(frozen=True)
class Scene:
    """What a post may speak of beside its entry. `channel_id` is the project's own channel, once it has one."""

    project: ProjectView
    channel_id: str | None = None
    runs: Sequence[RunView] = ()
    sponsors: Sequence[str] = ()


def places(entry: Told, *, has_channel: bool) -> Sequence[Place]:
    """Where an entry is posted."""
    payload = entry.payload or {}
    if entry.stream == LAB:
        return [Place.RECORD, Place.REVIEW] if entry.kind in FOR_ADMINS else [Place.RECORD]
    if _opens(entry):
        return [Place.PROPOSAL, Place.CHANNEL]
    if entry.kind == "project.completed":
        return [Place.CHANNEL if has_channel else Place.PROPOSAL, Place.ANNOUNCEMENTS]
    if "run" in payload and has_channel:
        return [Place.RUN, Place.CHANNEL] if _milestone(entry.kind, payload) else [Place.RUN]
    return [Place.CHANNEL if has_channel else Place.PROPOSAL]


def marker(entry: Told) -> str:
    """The last line of an entry's post: found again and cited by it; the hash shows that nothing before was altered."""
    owner = "Lab" if entry.project_id is None else f"P{entry.project_id}"
    return f"-# {owner} · record {entry.number} · {entry.hash[:8]}"


def render(entry: Told, place: Place, scene: Scene | None = None) -> str:
    """The post of an entry, its marker included; it fits a Components V2 message whatever members typed."""
    if entry.payload is None:
        said = BLANKED
    elif place is Place.ANNOUNCEMENTS and scene is not None:
        said = _announcement(entry.payload, scene, text.CARD - text.length(marker(entry)) - 1)
    elif _opens(entry) and place is Place.PROPOSAL and scene is not None and scene.channel_id:
        said = f"🏛️ The project is on its way: from now on it lives in <#{scene.channel_id}>."
    else:
        said = _sentence(entry.kind, entry.payload)
    end = marker(entry)
    return f"{text.bounded(said, text.CARD - text.length(end) - 1)}\n{end}"


def _sentence(kind: str, payload: Payload) -> str:
    """How the entry reads; one that another version of the lab wrote may lack what its sentence tells."""
    try:
        return RENDERINGS.get(kind, generic(kind))(payload)
    except (KeyError, TypeError, ValueError) as error:
        log.error("an entry does not fit its sentence; it is told in general terms", kind=kind, exc_info=error)
        return generic(kind)(payload)


def _opens(entry: Told) -> bool:
    """Whether the project gets its channel by this entry."""
    return entry.kind in OPENINGS and bool((entry.payload or {}).get("channel", True))


def _milestone(kind: str, payload: Payload) -> bool:
    if kind == "checkpoint.published":
        return bool(payload.get("first") or payload.get("final"))
    if "sample" in payload:
        return kind == "run.finished" and bool(payload.get("text"))
    return kind in ENDINGS


def _announcement(p: Payload, scene: Scene, most: int) -> str:
    everyone = ", ".join(f"{text.line(m['name'], 60)}{' (lead)' if m['lead'] else ''}" for m in p["people"])
    lines = [
        f"## {text.line(scene.project.title, 200)}",
        f"This project is completed: **{line(p['outcome'])}**.{quoted(scene.project.question, 'It asked:')}",
        f"**What was learnt**\n{text.quote(p['learnt'], 1600)}",
        f"**People** {text.bounded(everyone, 400)}",
    ]
    if scene.sponsors:
        given = ", ".join(text.line(sponsor, 80) for sponsor in scene.sponsors)
        lines.append(f"**Compute** given by {text.bounded(given, 600)}")
    if scene.channel_id:
        lines.insert(2, f"All of it is told in <#{scene.channel_id}>.")
    head = "\n".join(lines)
    published = [_published(run) for run in scene.runs if run.kind == RunKind.TRAIN and run.checkpoints]
    return "\n".join(filter(None, [head, text.listed(published, most=most - text.length(head) - 1)]))


def _published(run: RunView) -> str:
    last = run.checkpoints[-1]
    return (
        f"**Run {run.id}** ({text.code(run.recipe, 60)}): {text.count(len(run.checkpoints), 'checkpoint')}, "
        f"the last one is [step {last.step}]({last.url})"
    )
