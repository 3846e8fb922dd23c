"""What the demo shows while it plays, and the report that it leaves."""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from typing import Any

import aiohttp
from rich.console import Console
from rich.markup import escape

from broker.allocations import allocations
from broker.runs import series
from demo.stage import Stage
from projects.record import record, verification
from sandbox.people import Message


@dataclass
class Step:
    """One step of the story, as it came out."""

    name: str
    ok: bool = False
    seconds: float = 0.0
    detail: str = ""


@contextmanager
def step(console: Console, steps: list[Step], name: str) -> Iterator[Callable[[str], None]]:
    """Time a step, and print how it came out; what it yields takes the step's detail."""
    current = Step(name)
    steps.append(current)
    started = time.monotonic()
    console.print(f"[dim]…[/] {name}", end="\r" if console.is_terminal else "\n")

    def note(detail: str) -> None:
        current.detail = detail

    try:
        yield note
        current.ok = True
    except Exception as error:
        current.detail = str(error)
        raise
    finally:
        current.seconds = round(time.monotonic() - started, 2)
        mark = "[green]✔[/]" if current.ok else "[red]✘[/]"
        console.print(f"{mark} {name} [dim]({current.seconds:.1f} s)[/]")
        if current.ok and current.detail:
            console.print(f"  [dim]{escape(current.detail)}[/]", soft_wrap=True)


async def write(stage: Stage, steps: Sequence[Step], *, seconds: float) -> None:
    """Write `report.json` of what there is, also where the story broke off."""
    channels: dict[str, list[dict[str, Any]]] = {}
    with suppress(aiohttp.ClientError):  # the sandbox may be what has failed
        for channel in await stage.guild.channels():
            channels[channel.name] = [_told(message) for message in await stage.guild.messages(channel.id)]
    pictures = [path for messages in channels.values() for message in messages for path in message["attachments"]]
    with stage.database.read() as session:
        verdicts = [verification.verify(session, stream) for stream in record.streams(session)]
        held_out = series.read(session, stage.run_id, "held_out")
        account = allocations.view(session, stage.allocation_id).account if stage.allocation_id else None
    content = {
        "ok": all(step.ok for step in steps),
        "seconds": round(seconds, 1),
        "steps": [asdict(step) for step in steps],
        "channels": channels,
        "curve": next((path for path in reversed(pictures) if path.endswith(".png")), None),
        "hub": {
            "repo": stage.repo,
            "branches": stage.branches,
            "folder": str(stage.home / "sandbox" / "hub" / "repos" / stage.repo),
        },
        "loss": {
            "first": held_out[0].value if held_out else None,
            "last": held_out[-1].value if held_out else None,
            "unigram_entropy": stage.run().unigram_entropy if stage.run_id else None,
        },
        "evaluation": {
            scored.task: {step: value for step, (value, _) in scored.values.items()}
            for scored in (stage.run().evaluations if stage.run_id else ())
            if scored.metric == "bits_per_byte"
        },
        "study": {
            "steps": list(stage.study),
            "accuracy": [share for share, _ in stage.study.values()],
            "figure": stage.figure or None,
        },
        "ledger": None
        if account is None
        else {"granted": account.granted, "reserved": account.reserved, "spent": account.spent, "left": account.left},
        "record": {
            "entries": sum(verdict.entries for verdict in verdicts),
            "chain_ok": all(verdict.ok for verdict in verdicts),
        },
    }
    (stage.home / "report.json").write_text(json.dumps(content, indent=2, ensure_ascii=False))


def _told(message: Message) -> dict[str, Any]:
    return {
        "id": message.id,
        "author": message.author,
        "content": message.text,
        "edits": message.edits,
        "attachments": [str(attachment.path) for attachment in message.attachments],
    }
