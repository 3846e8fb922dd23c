"""Texts that members type: cleaned, bounded in length, and refused with a sentence where they cannot be used."""

import difflib
import re
import unicodedata
from collections.abc import Collection

from projects.cleaning import cleaned as cleaned
from projects.cleaning import has_ink
from projects.errors import InvalidError

# The most characters of a title, and of texts from a few sentences to a page.
TITLE, BRIEF, USUAL, LONG, LONGEST = 80, 500, 1000, 1500, 2000

_MENTION = re.compile(r"@(?:everyone|here)\b|<(?:@[!&]?|#|/|a?:\w+:|id:|t:)[^>]*>", re.IGNORECASE)


def meant(name: str, known: Collection[str], otherwise: str) -> str:
    """The end of a refusal of an unknown name: up to three known ones that are like it, or `otherwise` and all."""
    near = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.6)
    return f"do you mean {' or '.join(near)}?" if near else f"{otherwise}: {', '.join(known)}."


def prose(field: str, value: str, *, most: int, required: bool = True) -> str:
    """The text, cleaned; `field` names it in a refusal.

    Raises InvalidError for a text of more than `most` characters, and for an empty one that is `required`.
    """
    kept = cleaned(value)
    if not has_ink(kept):
        kept = ""
    if required and not kept:
        raise InvalidError(f"{field} is empty: please write a sentence or two.")
    if len(kept) > most:
        raise InvalidError(f"{field} has {len(kept):,} characters; at most {most:,} fit.")
    return kept


def title(value: str) -> str:
    """A title, which names a channel and heads every card: one line of at most 80 characters.

    Raises InvalidError for a title that is empty or too long, that mentions somebody, or that has fewer than three
    letters and digits.
    """
    line = " ".join(cleaned(value).split())
    if not has_ink(line):
        raise InvalidError("A project needs a title: a few words that say what it is about.")
    if _MENTION.search(line):
        raise InvalidError("A title cannot mention people, roles or channels, such as @everyone: use plain words.")
    line = prose("The title", line, most=TITLE)
    if sum(char.isalnum() for char in line) < 3:
        raise InvalidError("A title needs at least three letters or digits, so that people can say and find it.")
    return line


def slug(value: str, *, most: int = 60) -> str:
    """`value` as lower-case ASCII words joined by hyphens; empty where it has no ASCII letter or digit."""
    ascii_only = unicodedata.normalize("NFKD", value).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]+", "-", ascii_only.lower()).strip("-")[:most].strip("-")
