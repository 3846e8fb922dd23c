"""What members type: cleaned, bounded, and refused with a sentence where it cannot stand."""

import re
import unicodedata
from datetime import UTC, datetime, timedelta

from projects.errors import InvalidError

# Characters that fit, at most: a title, and what is written in a few sentences, in a page, and between the two.
TITLE, BRIEF, USUAL, LONG, LONGEST = 80, 500, 1000, 1500, 2000

_KEPT = frozenset("\n\u200c\u200d")
_SPACES = str.maketrans({"\t": " ", "\u2028": "\n", "\u2029": "\n"})
_DROPPED = frozenset({"Cc", "Cf", "Cs", "Co"})
_MENTION = re.compile(r"@(?:everyone|here)\b|<(?:@[!&]?|#|/|a?:\w+:|id:|t:)[^>]*>", re.IGNORECASE)


def prose(field: str, value: str, *, most: int, required: bool = True) -> str:
    """A text of at most `most` characters with control characters removed.

    Raises InvalidError where it is empty though required, or too long.
    """
    kept = cleaned(value)
    if required and not kept:
        raise InvalidError(f"{field} is empty: please write a sentence or two.")
    if len(kept) > most:
        raise InvalidError(f"{field} has {len(kept):,} characters; at most {most:,} fit.")
    return kept


def cleaned(value: str) -> str:
    """`value` without control and other invisible characters, but for line ends and what joins letters and emoji."""
    spaced = value.translate(_SPACES)
    return "".join(char for char in spaced if char in _KEPT or unicodedata.category(char) not in _DROPPED).strip()


def title(value: str) -> str:
    """One line of 3 to 80 characters with words in it, and no mention: it names a channel and heads every card."""
    if not value.strip():
        raise InvalidError("A project needs a title: a few words that say what it is about.")
    if _MENTION.search(value):
        raise InvalidError("A title cannot mention people, roles or channels, such as @everyone: use plain words.")
    line = " ".join(prose("The title", value, most=TITLE).split())
    if sum(char.isalnum() for char in line) < 3:
        raise InvalidError("A title needs at least three letters or digits, so that people can say and find it.")
    return line


def day_end(value: str) -> datetime:
    """A day as typed, such as “2030-12-31”: its last second, UTC; raises InvalidError."""
    try:
        day = datetime.strptime(value.strip(), "%Y-%m-%d").replace(tzinfo=UTC)
    except ValueError as error:
        example = (datetime.now(UTC) + timedelta(days=30)).date()
        raise InvalidError(f"The day must be written like {example}: year, month, day.") from error
    if day.year > 9000:
        raise InvalidError("The day must lie nearer than the year 9001.")
    return day + timedelta(days=1, seconds=-1)


def slug(value: str, *, most: int = 60) -> str:
    """`value` as lower-case ASCII words joined by hyphens; empty where nothing of it can be said so."""
    ascii_only = unicodedata.normalize("NFKD", value).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]+", "-", ascii_only.lower()).strip("-")[:most].strip("-")
