"""`data seen`: at which steps a run read a text, or else the passages that are nearest to it.

The prepared tokens are searched, in one pass: each run of GRAM tokens has a hash, and the text's own are looked for.
The tokens at the text's two ends are left out of that, as a tokenizer cuts them by what stands beside them.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.markup import escape
from rich.table import Table
from tokenizers import Tokenizer

from trainer.contract import Passage, SeenText
from trainer.data import tokenizer
from trainer.data.corpus import Corpus
from trainer.data.indexed import Indexed
from trainer.data.order import Row
from trainer.data.prepare import verify
from trainer.data.show import ReadData, open_data
from trainer.schema import ConfigError

GRAM = 5
"""Tokens whose hash is compared at once."""
FEWEST = 4
"""Tokens that a text has at least, and those in common that make a passage near."""
MOST_TOKENS = 2 << 30
"""Tokens of the data that are searched, so that an answer takes a minute or two."""
PASSAGES = 10
NEAR = 3
AT_ONCE = 1 << 21
BESIDE = 3
"""Tokens beside the text that are decoded with it."""
_FACTOR = np.uint64(0x9E3779B97F4A7C15)

Hashes = NDArray[np.uint64]


class Wanted(NamedTuple):
    """A text to search for: what it is once decoded, and its tokens, the usual ones first, then those after a space."""

    text: str
    ids: Sequence[Sequence[int]]

    @property
    def gram(self) -> int:
        """Tokens whose hash is compared at once; fewer than GRAM in a short text."""
        return min(GRAM, *(len(ids) - 2 for ids in self.ids))

    @property
    def hashes(self) -> Hashes:
        """Of all runs of tokens inside the text, sorted."""
        inside = [np.array(ids[1:-1], dtype=np.uint64) for ids in self.ids]
        return np.unique(np.concatenate([_hashes(each, self.gram) for each in inside]))

    @property
    def first_hashes(self) -> Hashes:
        """Of the first run of tokens inside the text, for each way of writing it."""
        return np.concatenate([_hashes(np.array(ids[1 : self.gram + 1]), self.gram) for ids in self.ids])


class Near(NamedTuple):
    """A row that has `common` hashes of the text, the first of them at token `at` of its source."""

    common: int
    source: int
    at: int


def search(
    run: Path, text: str, since: int | None = None, until: int | None = None, most_tokens: int = MOST_TOKENS
) -> SeenText:
    """Search for a text in what a run has read, see `open_data`. Raises ConfigError for a text that is too short, or
    data that are gone."""
    read = open_data(run, since, until)
    corpus = read.corpus
    verify(corpus.folder)
    bpe = tokenizer.load(corpus.folder)
    wanted = _wanted(bpe, text)
    exact: list[tuple[int, int]] = []
    near: list[Near] = []
    searched, held = 0, 0
    for source in range(len(corpus.sources)):
        tokens = _read_tokens(corpus, source)
        held += len(tokens)
        part = tokens[: max(0, most_tokens - searched)]
        searched += len(part)
        for at, hashes in _hits(part, wanted, corpus.row_size):
            starts = at[np.isin(hashes, wanted.first_hashes)]
            exact += [(source, start) for start in starts.tolist() if _is_at(tokens, start, wanted, bpe)]
            near = sorted([*near, *_near(source, at, hashes, corpus.row_size)], reverse=True)[:NEAR]
    exact = _apart(exact)
    passages = [_passage(read, source, at, at + len(wanted.ids[0]) - 2, 1.0) for source, at in exact[:PASSAGES]]
    if not exact:
        most = max(len(ids) - 1 - wanted.gram for ids in wanted.ids)
        alike = [each for each in near if each.common + wanted.gram - 1 >= FEWEST]
        passages = [_passage(read, each.source, each.at, each.at + 1, min(1.0, each.common / most)) for each in alike]
    return SeenText(
        tokens=len(wanted.ids[0]),
        found=len(exact),
        passages=passages,
        searched=searched,
        held=held,
        begun=read.begun,
        done=read.done,
    )


def _wanted(bpe: Tokenizer, text: str) -> Wanted:
    written = [bpe.encode(start + text.strip(), add_special_tokens=False).ids for start in ("", " ")]
    if min(map(len, written)) < FEWEST:
        raise ConfigError(
            f"The text has {len(written[0])} tokens, and {FEWEST} are the fewest to search for; give more of it."
        )
    return Wanted(bpe.decode(written[0], skip_special_tokens=False).strip(), written)


def _read_tokens(corpus: Corpus, source: int) -> NDArray[Any]:
    """The training tokens of a source that its whole rows have."""
    tokens = Indexed(corpus.folder / f"{corpus.sources[source].name}.train").tokens
    return tokens[: len(tokens) // corpus.row_size * corpus.row_size]


def _hits(tokens: NDArray[Any], wanted: Wanted, row_size: int) -> Iterator[tuple[NDArray[np.int64], Hashes]]:
    """The places of hashes that the text has, and those hashes; no row's are in two parts."""
    sought, gram = wanted.hashes, wanted.gram
    # Most hashes are told apart by a few of their bits, which is quicker than to search for them.
    likely = np.zeros(1 << 20, dtype=bool)
    likely[sought >> np.uint64(44)] = True
    at_once = max(1, AT_ONCE // row_size) * row_size
    for start in range(0, len(tokens), at_once):
        hashes = _hashes(tokens[start : start + at_once + gram - 1], gram)
        maybe = np.flatnonzero(likely[hashes >> np.uint64(44)])
        right = maybe[np.isin(hashes[maybe], sought)]
        yield right + start, hashes[right]


def _hashes(tokens: NDArray[Any], gram: int) -> Hashes:
    """The hash of each run of `gram` tokens, [tokens - gram + 1]."""
    count = max(0, len(tokens) - gram + 1)
    result = np.zeros(count, dtype=np.uint64)
    for offset in range(gram):
        result = (result ^ (result >> np.uint64(29))) * _FACTOR + tokens[offset : offset + count].astype(np.uint64)
    return (result ^ (result >> np.uint64(32))) * _FACTOR


def _is_at(tokens: NDArray[Any], inside: int, wanted: Wanted, bpe: Tokenizer) -> bool:
    """Whether the text is where the tokens inside it would begin at `inside`."""
    longest = max(map(len, wanted.ids))
    around = tokens[max(0, inside - 1 - BESIDE) : inside + longest + BESIDE]
    return wanted.text in bpe.decode(around.tolist(), skip_special_tokens=False)


def _apart(found: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The places without those that are another's: both ways of writing a text may be found at one place of it, where a
    space is a token of its own."""
    places = set(found)
    return [(source, start) for source, start in found if (source, start - 1) not in places]


def _near(source: int, at: NDArray[np.int64], hashes: Hashes, row_size: int) -> list[Near]:
    """The rows of a part that have most hashes in common with the text."""
    pairs = set(zip((at // row_size).tolist(), hashes.tolist(), strict=True))
    best = Counter(row for row, _ in pairs).most_common(NEAR)
    return [Near(common, source, int(at[np.searchsorted(at, row * row_size)])) for row, common in best]


def _passage(read: ReadData, source: int, first: int, end: int, share: float) -> Passage:
    """The passage of a source's tokens [first, end), and the steps that read a row with a part of it."""
    corpus, batch = read.corpus, read.corpus.config.training.batch
    described = corpus.sources[source]
    indexed, names = (Indexed(corpus.folder / f"{described.name}.train{suffix}") for suffix in ("", ".names"))
    number, _ = indexed.sequence_at(first)
    steps = {
        position // batch + 1
        for row in range(first // corpus.row_size, (end - 1) // corpus.row_size + 1)
        for position in corpus.order.positions(Row(source, row), read.begun * batch, read.done * batch)
    }
    return Passage(
        source=described.name,
        licence=described.licence,
        document=names.document(number).tobytes().decode(),
        share=share,
        steps=sorted(steps),
    )


def table(seen: SeenText) -> Table:
    """The passages as a table."""
    title = f"{seen.found} passages have the text" if seen.found else "No passage has the text; the nearest ones"
    shown = Table(title=title, show_lines=True)
    for name in ("source", "licence", "document", "of the text", "steps that read it"):
        shown.add_column(name, overflow="fold")
    for passage in seen.passages:
        steps = ", ".join(map(str, passage.steps)) or "none"
        shown.add_row(*map(escape, (passage.source, passage.licence, passage.document, f"{passage.share:.0%}", steps)))
    return shown
