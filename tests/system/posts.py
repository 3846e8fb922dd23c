"""Which entries of the record a message on Discord tells of."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence

from projects.record import record

MARKER = re.compile(r"-# (?:P(\d+)|Lab) · record (\d+) · [0-9a-f]{8}\s*$")
LINE = re.compile(r" · record (\d+)$", re.MULTILINE)


def told(text: str) -> Sequence[tuple[str, int]]:
    """The stream and the number of each: of those that the lines of an index name, else of the one in the marker."""
    marker = MARKER.search(text)
    if marker is None:
        return []
    stream = record.LAB if marker[1] is None else record.project_stream(int(marker[1]))
    return [(stream, int(number)) for number in LINE.findall(text) or [marker[2]]]


def counted(channels: Mapping[str, Sequence[str]]) -> Mapping[tuple[str, int], Counter[str]]:
    """For each entry of the record, how often it stands in each channel."""
    found: dict[tuple[str, int], Counter[str]] = {}
    for channel, texts in channels.items():
        for text in texts:
            for entry in told(text):
                found.setdefault(entry, Counter())[channel] += 1
    return found
