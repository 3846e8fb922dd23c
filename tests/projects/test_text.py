"""Texts are cleaned, then checked: what cannot be seen is gone, and what a script or an emoji needs stays."""

import sys
import unicodedata

import pytest

from broker.allocations import pools
from projects import cleaning, lifecycle, people, text
from projects.db.database import Database
from projects.errors import InvalidError
from projects.people import Actor
from projects.record import record
from tests.broker.lab import Lab


@pytest.mark.parametrize(
    ("typed", "shown"),
    [
        ("\x1b[31mERROR\x1b[0m", "ERROR"),
        ("\x1b[38;2;1;2;3mX\x1b[mY", "XY"),
        ("\x1b[2K\x1b[1A\x1b[10;20Hup", "up"),
        ("\x1b]8;;https://a.org/\x1b\\a link\x1b]8;;\x1b\\ here", "a link here"),
        ("\x1b]0;a title\x07after", "after"),
        ("\x1bP1$r0m\x1b\\after", "after"),
        ("\x1b(B\x1b)0one\x1b#8\x1b%G", "one"),
        ("\x1b7\x1b8\x1b=\x1b>\x1bM\x1bcone", "one"),
        ("\x9b31mred\x9b0m \x9d0;title\x9cafter", "red after"),
        ("\x1b\x00[31mred", "red"),
        ("the end\x1b[31", "the end"),
        ("the end\x1b", "the end"),
        ("a\u200bb\u2060c\ufeffd\u00ade\u061cf", "abcdef"),
        ("\u202eevil\u202c \u2066in\u2069", "evil in"),
        ("\ue000a\U000e0041b\ud800c\U000e01efd\u0378e", "abcde"),
        ("a\u3164b\u115fc\u1160d\uffa0e\u034ff\u17b4g\u180eh", "abcdefgh"),
        ("\u2800a\u2800b", "a b"),
        ("nul\x00 bell\x07 delete\x7f", "nul bell delete"),
        ("one\r\ntwo\rthree\u2028four\x0bfive", "one\ntwo\nthree\nfour\nfive"),
        ("a\u200db\u200cc@\ufe0fd", "abc@d"),
        ("😀\u200d\u200d\u200cx", "😀x"),
    ],
)
def test_what_cannot_be_seen_is_left_out(typed: str, shown: str) -> None:
    assert text.cleaned(typed) == shown
    assert text.cleaned(shown) == shown


@pytest.mark.parametrize(
    "written",
    [
        "می\u200cخواهم بنویسم",  # Persian
        "क्\u200dष क्\u200cष ශ්\u200dරී",  # Devanagari, Sinhala
        "👩\u200d💻 👨🏽\u200d🚀 ❤️\u200d🔥 🏳️\u200d🌈 1\ufe0f\u20e3 ‼\ufe0f ▶\ufe0e",
        "\U0001f3f4\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",  # the flag of England
        "葛\U000e0100城",
        "Ünïcode, עברית, 한국어, ไทย, e\u0301",
    ],
)
def test_what_scripts_and_emoji_are_written_with_stays(written: str) -> None:
    assert text.cleaned(written) == written


def test_of_all_characters_none_is_kept_alone_that_is_not_seen() -> None:
    kept = [char for char in map(chr, range(sys.maxunicode + 1)) if text.cleaned(char)]
    assert {unicodedata.category(char) for char in kept}.isdisjoint({"Cc", "Cf", "Cn", "Co", "Cs", "Zs", "Zl", "Zp"})
    assert not {"\ufe0f", "\u200d", "\u3164", "\u2800"} & set(kept)


@pytest.mark.parametrize(
    "title",
    ["Hello @every\u200bone", "Hello @\u2066everyone", "Hi <@\u20601234>", "@every\x1b[1mone x", "@here\ufe0f us"],
)
def test_a_title_is_checked_as_it_will_be_shown(title: str) -> None:
    with pytest.raises(InvalidError, match="cannot mention people"):
        text.title(title)


def test_what_only_looks_written_is_empty() -> None:
    for nothing in ("\u3164\u3164", "\u2800", "\u200b", "\x00", "\u0301", "\u00a0\u2003"):
        with pytest.raises(InvalidError, match="The reason is empty"):
            text.prose("The reason", nothing, most=10)
        with pytest.raises(InvalidError, match="needs a title"):
            text.title(nothing)


def test_names_of_people_are_cleaned(db: Database) -> None:
    names = {"\u202eevil\u202c": "evil", "Ada\u200b  \nL": "Ada L", "\u3164": "member 7", "\u0301": "member 7"}
    for chosen, shown in names.items():
        assert Actor(7, chosen).name == shown
    project = Lab(db).proposal(Actor(7, "\u202eevil"))
    with db.read() as session:
        told = record.since(session, record.project_stream(project), 0)[0].payload or {}
        known = people.known(session, 7)
    assert known is not None
    assert (told["by"]["name"], known.name) == ("evil", "evil")


def test_what_no_database_holds_is_one_sentence(db: Database) -> None:
    """A member's text is cleaned before it comes so far; this is for what is typed elsewhere."""
    with pytest.raises(InvalidError, match="A number is too large"), db.write() as session:
        lifecycle.join(session, Actor(1, "Ada"), 2**70, min_people=2)
    for value in ("\ud800", *(["\0"] if db.url.get_backend_name() == "postgresql" else [])):
        with pytest.raises(InvalidError, match=r"^A value cannot be stored: .*\.$"), db.read() as session:
            pools.named(session, value)


def test_a_text_takes_linear_time() -> None:
    for hard in ("\x1b[", "\x1b]", "\x1b]a", "\x1b ", "\U0001f3f4", "\u200d", "\U0001f3f4\U000e0067"):
        assert len(cleaning.cleaned(hard * 50_000)) <= 2 * 50_000
