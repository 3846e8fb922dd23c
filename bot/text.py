"""Text for Discord: escapes and bounds what members typed, and writes numbers for people."""

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Literal

from rich import filesize

from broker.allocations.units import Unit
from projects.cleaning import visible

MESSAGE = 2000
CARD = 4000
ZERO_WIDTH = "\u200b"

# A web address is left as it is; a list, heading or quote is marked at the start of a line, all else anywhere.
_MARKUP = re.compile(r"(https?://[^\s<>\\]+)|(^[ \t]*)([-+#>])|([\\*_~`|<\[\]])|@", re.MULTILINE)

_MOMENT = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d) UTC")


def length(value: str) -> int:
    """The length of `value` in UTF-16 code units, as Discord's clients count; its servers never count more."""
    return len(value.encode("utf-16-le", "surrogatepass")) // 2


def bounded(value: str, most: int) -> str:
    """`value` cut to `most` UTF-16 units, with “…” where something is missing; an escape is never cut in half."""
    if length(value) <= most:
        return value
    kept = value.encode("utf-16-le", "surrogatepass")[: 2 * (most - 1)].decode("utf-16-le", "ignore")
    half_escaped = (len(kept) - len(kept.rstrip("\\"))) % 2
    return kept[: len(kept) - half_escaped].rstrip() + "…"


def escape(value: str) -> str:
    """What can be seen of `value`, shown by Discord without markdown, mention, custom emoji, timestamp or masked link.

    discord.py's own function takes seconds for some texts of 4,000 characters; this one takes linear time.
    """

    def replacement(found: re.Match[str]) -> str:
        address, indent, first, mark = found.groups()
        if address:
            return address.replace("@", "%40")
        return f"@{ZERO_WIDTH}" if found[0] == "@" else f"{indent or ''}\\{first or mark}"

    return _MARKUP.sub(replacement, visible(value))


def line(value: str, most: int) -> str:
    """`value` as one escaped line."""
    return bounded(escape(" ".join(visible(value).split())), most)


def code(value: str, most: int) -> str:
    """`value` as one line of code. Backticks are replaced, as they cannot be escaped there."""
    return f"`{bounded(' '.join(visible(value).split()).replace('`', 'ˋ').replace('@', '@' + ZERO_WIDTH), most)}`"


def block(value: str, most: int) -> str:
    """`value` as a block of code of several lines. Backticks are replaced, as they cannot be escaped there."""
    said = visible(value).strip("\n").replace("`", "ˋ").replace("@", f"@{ZERO_WIDTH}")
    return f"```\n{bounded(said, most)}\n```"


def quote(value: str, most: int) -> str:
    """`value` as an escaped block quote."""
    lines = [escape(part.strip()) for part in visible(value).splitlines() if part.strip()]
    return bounded("\n".join(f"> {part}" for part in lines), most)


def listed(entries: Sequence[str], *, end: str = "", of: int = 0, most: int = MESSAGE) -> str:
    """As many whole entries as fit in `most` units, then “and N more”, then the line `end`.

    `of` is the number of all entries, where `entries` has only the first of them.
    """
    room = most - length(end) - len("\n\n-# and 1,000,000 more")
    kept: list[str] = []
    for entry in entries:
        room -= length(entry) + 1
        if room < 0:
            break
        kept.append(entry)
    more = max(len(entries), of) - len(kept)
    return "\n".join(filter(None, [*kept, f"-# and {more:,} more" if more else "", end]))


def pages(entries: Sequence[str], most: int) -> list[list[str]]:
    """The entries in pages of at most `most` units each, at least one page and one entry a page."""
    found: list[list[str]] = [[]]
    room = most
    for entry in entries:
        size = length(entry) + 1
        if size > room and found[-1]:
            found.append([])
            room = most
        found[-1].append(entry)
        room -= size
    return found


def when(moment: datetime, style: Literal["D", "R", "f"] = "f") -> str:
    """A moment as Discord shows it to each reader in their own zone: the day (D), the day and time (f), how far (R)."""
    return f"<t:{int(moment.timestamp())}:{style}>"


def day(said: str) -> str:
    """The day of an entry, written as in ISO 8601, as Discord shows it; a day without a time is its noon in UTC."""
    try:
        moment = datetime.fromisoformat(said)
    except ValueError:
        return line(said, 120)
    return when(moment if moment.tzinfo else moment.replace(hour=12, tzinfo=UTC), "D")


def local_times(said: str) -> str:
    """A sentence of Stoa's own in which each time of the form “2030-01-31 12:00:00 UTC” is as each reader's zone has
    it."""

    def shown(found: re.Match[str]) -> str:
        try:
            return when(datetime.fromisoformat(f"{found[1]}+00:00"))
        except ValueError:
            return found[0]

    return _MOMENT.sub(shown, said)


def period(begins: datetime, ends: datetime) -> str:
    """A period as Discord shows it."""
    return f"from {when(begins)} until {when(ends)}"


def duration(seconds: float) -> str:
    """Seconds written for people: “45 s”, “12 min”, “3 h 20 min”, “2 days 4 h”."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    minutes = round(whole / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, rest = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {rest} min" if rest else f"{hours} h"
    days, rest = divmod(hours, 24)
    return f"{days} days {rest} h" if rest else f"{days} days"


def preemption(after: int) -> str:
    """Whether a pool's runs can be preempted, after they have run for `after` seconds; 0 for never."""
    return f"runs can be preempted after {duration(after)}" if after else "runs are never preempted"


def bar(done: int, total: int, width: int = 16) -> str:
    """A progress bar of `width` characters."""
    full = 0 if total < 1 else min(width, done * width // total)
    return "█" * full + "░" * (width - full)


def nodes(number: int, gpus: int) -> str:
    """How the GPUs of a pool or a run lie on its nodes, such as “ on 8 nodes of 8”; empty where there is one node."""
    return f" on {number:,} nodes of {gpus // number:,}" if number > 1 else ""


def run_name(name: str) -> str:
    """The name of a run as people write it; empty where it has none."""
    return f"“{line(name, 120)}”" if name else ""


def tags(of_run: Sequence[str]) -> str:
    """The tags of a run."""
    return " ".join(code(tag, 20) for tag in of_run)


def named_now(name: str, of_run: Sequence[str]) -> str:
    """What a run is called now and its tags, such as “is now called “Wide” and tagged `rope`”."""
    if name:
        return f"is now called {run_name(name)} and {f'tagged {tags(of_run)}' if of_run else 'has no tags'}"
    return f"now has no name and {f'is tagged {tags(of_run)}' if of_run else 'no tags'}"


def memory(unit_gib: float | None, host_gib: float | None, unit: Unit) -> str:
    """What is known of a pool's memory, such as “, 141 GiB a GPU, 2,048 GiB a host”; empty where nothing is."""
    sizes = ((unit_gib, unit.value), (host_gib, "host"))
    return "".join(f", {gib:,g} GiB a {whose}" for gib, whose in sizes if gib is not None)


def exact_hours(seconds: int) -> str:
    """GPU-seconds as the GPU-hours that `allocations.parse_hours` reads back to the same number."""
    micro = -(-seconds * 1_000_000 // 3600)
    return f"{micro // 1_000_000}.{micro % 1_000_000:06d}".rstrip("0").rstrip(".")


def contents(documents: int | None, tokens: int | None, size: int) -> str:
    """What a corpus holds, as far as it was counted: “2 documents, 40 tokens, 1.3 kB”."""
    counts = [count(number, noun) for number, noun in ((documents, "document"), (tokens, "token")) if number]
    return ", ".join([*counts, filesize.decimal(size)])


def gpus(number: int, nodes: int, unit: Unit) -> str:
    """“16 GPUs on 2 nodes”, “2 cores”."""
    return unit.count(number) + (f" on {nodes:,} nodes" if nodes > 1 else "")


def begun(said: str) -> str:
    """`said` with a capital letter at its beginning."""
    return said[:1].upper() + said[1:]


def each_checkpoint(every: int) -> str:
    """Which checkpoints of a run are meant by every `every`-th."""
    return "Each checkpoint" if every == 1 else f"One in {every:,} checkpoints"


def count(number: int, noun: str, plural: str = "") -> str:
    """“1 run”, “2 runs”."""
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"
