"""The worst old phrases stand nowhere that people read: strings and docstrings of our packages, templates, docs."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("bot", "broker", "cli", "demo", "projects", "trainer", "web")
FORBIDDEN = re.compile(
    r"\b(given by|of late|whom|told in|has got|anew|where not given|when not given|parted by|so much of how many"
    r"|asked for already|heard of)\b",
    re.IGNORECASE,
)
RIDDLE = re.compile(r"\s*(Those|That|The same|Likewise)\b")
"""A docstring that begins so names no subject."""


def read_by_people() -> Iterator[tuple[str, str]]:
    """Each text with its place: every string literal of the packages, each template, each page of the docs."""
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            # Applied migrations stay as they were.
            if "migrations" not in path.parts:
                for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                    if isinstance(node, ast.Constant) and isinstance(node.value, str):
                        yield f"{path.relative_to(ROOT)}:{node.lineno}", node.value
        for path in sorted((ROOT / package).rglob("*.j2")):
            yield str(path.relative_to(ROOT)), path.read_text(encoding="utf-8")
    for path in [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]:
        # The page on voice names what it forbids; the change log says what was said then.
        if path.name not in ("voice.md", "CHANGELOG.md"):
            yield str(path.relative_to(ROOT)), path.read_text(encoding="utf-8")


def test_no_text_has_a_phrase_that_the_page_on_voice_forbids() -> None:
    texts = list(read_by_people())
    assert len(texts) > 5000
    found = [(place, phrase[0]) for place, text in texts for phrase in FORBIDDEN.finditer(re.sub(r"\s+", " ", text))]
    assert found == []


def docstrings() -> Iterator[tuple[str, str]]:
    """Each docstring of our packages, those of attributes included, with its place."""
    for package in (*PACKAGES, "sandbox"):
        for path in sorted((ROOT / package).rglob("*.py")):
            if "migrations" not in path.parts:
                for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
                        yield f"{path.relative_to(ROOT)}:{node.lineno}", str(node.value.value)


def test_no_docstring_leaves_its_subject_to_the_line_before() -> None:
    texts = list(docstrings())
    assert len(texts) > 3000
    assert [(place, text) for place, text in texts if RIDDLE.match(text)] == []


def test_the_page_on_voice_has_a_better_word_for_each_phrase() -> None:
    table = re.findall(r"^\| ([^|]+) \| [^|]+ \|$", (ROOT / "docs" / "voice.md").read_text(encoding="utf-8"), re.M)
    assert [phrase for phrase in table[1:] if not FORBIDDEN.search(phrase)] == []
