"""Corpora, prepared data and tokenizers on pools, by name: recipes name them, and each pool says where they lie.

Operators register them, so that nothing a member types becomes a path. The record tells what lies on a pool, and not
where.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml
from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression
from sqlalchemy import Index
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session
from sqlmodel import col, select

from broker import configs, corpus_copies
from broker.allocations import pools
from broker.allocations.pools import Pool
from broker.store import LONGEST_NAME, Manifest, is_plain
from projects import text
from projects.db.columns import Base, foreign_key, integer, json_object, row_id, timestamp, utcnow
from projects.errors import ConflictError, InvalidError, NotFoundError
from projects.record import record
from trainer.config import TrainConfig
from trainer.contract import CorpusKind, Measured

PLACES: Mapping[str, str] = {
    CorpusKind.TEXT: "path",
    CorpusKind.TOKENS: "tokens",
    CorpusKind.DATASET: "dataset",
    CorpusKind.INSTRUCTIONS: "path",
    CorpusKind.PREFERENCES: "path",
}
"""The key of a source that takes the place of a corpus, by the kind of the corpus."""


class Corpus(Base, table=True):
    """A corpus, prepared data or a tokenizer on a pool, as `trainer.contract.Measured` describes it.

    `path` is absolute on the pool's hosts. A retired one has `retired_at`; runs that were launched with it still read
    it. `stored` is the SHA-256 by which its copy in the store is called; empty where the store has none.
    """

    __tablename__ = "corpora"

    id: int = row_id()
    pool_id: int = foreign_key("pools.id", index=True)
    name: str
    kind: str
    path: str
    text_key: str = "text"
    licence: str
    files: int = integer()
    bytes: int = integer()
    documents: int | None = integer(default=None)
    text_bytes: int | None = integer(default=None)
    tokens: int | None = integer(default=None)
    vocabulary: int | None = integer(default=None)
    sources: dict[str, str] = json_object(default=dict)
    manifest: str | None = None
    stored: str = ""
    added_at: datetime = timestamp(default=utcnow)
    retired_at: datetime | None = timestamp(default=None)

    @property
    def copy_name(self) -> str:
        """What its copy in the store is called."""
        return corpus_copies.copy_name(self.name, self.stored)

    @property
    def licences(self) -> str:
        """Its licence; of prepared data the first few of the licences of their sources, and how many more there are."""
        return self.licence or _some(sorted({licence for licence in self.sources.values() if licence})) or "not known"

    def place_for(self, pool_id: int, copies: Path) -> str:
        """Where a pool's hosts have it: in its own place, or among their `copies`."""
        if self.pool_id == pool_id:
            return self.path
        return str(copies / self.copy_name / corpus_copies.place(self.path)[1])


MOST_OF_A_NAME = LONGEST_NAME - 224
"""Bytes of the name of an object of a copy, which leaves some to the store's own address and to the lab's API."""
_LIVE = col(Corpus.retired_at).is_(None)
Index("ix_corpora_name", col(Corpus.pool_id), col(Corpus.name), unique=True, sqlite_where=_LIVE, postgresql_where=_LIVE)


@dataclass(frozen=True)
class Needed:
    """What a configuration needs of a pool: the `licences` of its corpora by name, those of its sources by their names
    where `prepared` data would serve instead, and the name of its `tokenizer`; `vocabulary` is how many tokens that
    has, at most."""

    licences: Mapping[str, str]
    sources: Mapping[str, str]
    prepared: str | None
    tokenizer: str | None
    vocabulary: int = 0

    def missing(self, there: Mapping[str, Corpus]) -> list[str]:
        """The names that a pool lacks, by what lies `there`."""
        if self.prepared_in(there) is not None:
            return []
        lacks = [name for name in self.licences if name not in there or there[name].kind not in PLACES]
        if self.tokenizer and (self.tokenizer not in there or there[self.tokenizer].kind != CorpusKind.TOKENIZER):
            lacks.append(self.tokenizer)
        return lacks

    def prepared_in(self, there: Mapping[str, Corpus]) -> Corpus | None:
        """The prepared data that serve the configuration, if they lie `there`: those that a run has made with its
        tokenizer, or those of its corpus."""
        found = (there.get(name or "") for name in (self.prepared_by_run, self.prepared))
        return next((corpus for corpus in found if corpus is not None and corpus.kind == CorpusKind.PREPARED), None)

    @property
    def prepared_by_run(self) -> str | None:
        """The name of the prepared data that a run makes for the configuration: another tokenizer makes others."""
        return f"{self.prepared}-{self.tokenizer or self.vocabulary}"[:64] if self.prepared else None

    def read_of(self, there: Mapping[str, Corpus]) -> list[Corpus]:
        """What the trainer reads of what lies `there`, which lacks nothing."""
        prepared = self.prepared_in(there)
        if prepared is not None:
            return [prepared]
        return [there[name] for name in (*self.licences, *([self.tokenizer] if self.tokenizer else []))]


def needed(config: TrainConfig) -> Needed:
    """What a configuration needs of the pool that it runs on."""
    data = config.data
    return Needed(
        licences={source.corpus: source.licence for source in data.sources if source.corpus is not None},
        sources={source.name: source.licence for source in data.sources},
        prepared=data.corpus,
        tokenizer=data.tokenizer.name,
        vocabulary=data.tokenizer.vocabulary,
    )


def check_new(session: Session, *, pool: str, name: str, kind: CorpusKind, licence: str) -> None:
    """Raise InvalidError or NotFoundError unless something of that name can be registered: before it is measured,
    which may take hours. Only reads."""
    pools.named(session, pool)
    _checked_licence(name, kind, licence)


def add(
    session: Session,
    *,
    pool: str,
    name: str,
    kind: CorpusKind,
    path: str,
    licence: str,
    measured: Measured,
    text_key: str = "text",
) -> int:
    """Register what lies at an absolute `path` of the pool's hosts; returns its id. A repeat changes nothing.

    `licence` may be empty for prepared data, whose sources have licences of their own, and for a corpus of the built-in
    recipes. Raises InvalidError, NotFoundError and ConflictError.
    """
    spdx = _checked_licence(name, kind, licence)
    if len(path) > 1000 or not path.startswith("/"):
        raise InvalidError("The path of a corpus is absolute and has at most 1,000 characters.")
    place = pools.named(session, name=pool)
    session.refresh(place, with_for_update=True)
    asked = {"kind": kind.value, "path": path, "text_key": text_key, "licence": spdx} | measured.model_dump()
    earlier = on_pool(session, place.id).get(name)
    if earlier is not None:
        if all(getattr(earlier, key) == value for key, value in asked.items()):
            return earlier.id
        raise ConflictError(
            f"The pool “{pool}” already has “{name}”, with other contents: retire that first, or choose another name."
        )
    corpus = Corpus(pool_id=place.id, name=name, **asked)
    session.add(corpus)
    session.flush()
    record.append(session, record.LAB, "corpus.added", by=None, pool=pool, **_about(corpus))
    return corpus.id


def add_prepared(session: Session, pool: Pool, name: str, path: str, measured: Measured) -> None:
    """Register what a run has prepared, unless the pool has data of that name meanwhile. It locks no row of the
    pool."""
    corpus = Corpus(
        pool_id=pool.id, name=name, kind=CorpusKind.PREPARED.value, path=path, licence="", **measured.model_dump()
    )
    try:
        with session.begin_nested():
            session.add(corpus)
            session.flush()
    except IntegrityError:
        return
    record.append(session, record.LAB, "corpus.added", by=None, pool=pool.name, **_about(corpus))


def retire(session: Session, *, pool: str, name: str, reason: str) -> None:
    """Take a corpus out, with a reason: no run can be launched with it any more; runs under way go on."""
    because = text.prose("The reason", reason, most=text.USUAL)
    session.refresh(pools.named(session, name=pool), with_for_update=True)
    corpus = named(session, pool=pool, name=name)
    corpus.retired_at = utcnow()
    record.append(session, record.LAB, "corpus.retired", by=None, why=because, pool=pool, **_about(corpus))


def named(session: Session, *, pool: str, name: str) -> Corpus:
    """What is registered on a pool under a name; raises NotFoundError."""
    corpus = on_pool(session, pools.named(session, name=pool).id).get(name)
    if corpus is None:
        raise NotFoundError(f"The pool “{pool}” has no “{name[:64]}”; `stoa corpus list` shows what it has.")
    return corpus


def check_names(corpus: Corpus, files: Iterable[str]) -> None:
    """Raise InvalidError for a file whose name in the corpus other hosts could not have."""
    folder = corpus_copies.folder(corpus_copies.copy_name(corpus.name, "0" * corpus_copies.HASH_DIGITS))
    most = MOST_OF_A_NAME - len(folder)
    for name in files:
        if not is_plain(name) or len(name.encode()) > most:
            shown = name if len(name) <= 60 else f"{name[:60]}…"
            raise InvalidError(
                f"Other hosts could not be given the file {shown!a} of “{corpus.name}”: with the folders that the "
                f"corpus has it in, a name has at most {most} bytes, no backslash, and no character that cannot be "
                "shown. Rename it, retire the corpus and add it again."
            )


def check_unchanged(session: Session, corpus: Corpus, files: Manifest) -> None:
    """Raise ConflictError where the files are not those that were registered, or that are in the store already."""
    sha256 = corpus_copies.digest(files)
    size = sum(each["size"] for each in files.values())
    if (len(files), size) != (corpus.files, corpus.bytes):
        raise ConflictError(
            f"“{corpus.name}” has changed since it was registered: {corpus.files:,} files of {corpus.bytes:,} bytes "
            f"then, {len(files):,} of {size:,} now. Retire it and add it again."
        )
    if corpus.stored and corpus.stored != sha256:
        raise ConflictError(f"“{corpus.name}” has changed since it was sent to the store. Retire it and add it again.")
    _check_same(session, corpus, sha256)


def is_stored(session: Session, corpus: Corpus, *, pool: str, sha256: str) -> None:
    """Note that the store has a whole copy of a corpus, whose files have a hash. Raises ConflictError where the corpus
    was retired meanwhile."""
    session.refresh(pools.named(session, name=pool), with_for_update=True)
    row = session.get_one(Corpus, corpus.id)
    if row.retired_at is not None:
        raise ConflictError(f"“{row.name}” on “{pool}” was retired meanwhile; its copy in the store serves no run.")
    _check_same(session, row, sha256)
    if row.stored != sha256:
        row.stored = sha256
        record.append(session, record.LAB, "corpus.stored", by=None, pool=pool, **_about(row))


def _check_same(session: Session, corpus: Corpus, sha256: str) -> None:
    """Raise ConflictError where the store has something else under the name: its runs would read other data then."""
    other = in_store(session).get(corpus.name)
    if other is not None and other.stored != sha256:
        pool = session.get_one(Pool, other.pool_id).name
        raise ConflictError(
            f"The store has another “{corpus.name}”, that of the pool “{pool}”: retire one of them, and add it again "
            "under a name of its own."
        )


def every(session: Session) -> Sequence[tuple[str, Corpus]]:
    """All that is registered now, each with the name of its pool, by pool and name."""
    rows = session.execute(
        select(Pool.name, Corpus)
        .join(Corpus, col(Corpus.pool_id) == col(Pool.id))
        .where(_LIVE)
        .order_by(col(Pool.name), col(Corpus.name))
    )
    return [(pool, corpus) for pool, corpus in rows]


def on_pool(session: Session, pool_id: int) -> dict[str, Corpus]:
    """What is registered on a pool now, by name."""
    found = session.scalars(select(Corpus).where(Corpus.pool_id == pool_id, _LIVE))
    return {corpus.name: corpus for corpus in found}


def by_pool(session: Session) -> dict[str, dict[str, Corpus]]:
    """What is registered now, by the name of its pool and by its own."""
    found: dict[str, dict[str, Corpus]] = {}
    for pool, corpus in every(session):
        found.setdefault(pool, {})[corpus.name] = corpus
    return found


def in_store(session: Session) -> dict[str, Corpus]:
    """What can be copied from the store to a pool, by name."""
    found = session.scalars(select(Corpus).where(_LIVE, Corpus.stored != "").order_by(col(Corpus.id)))
    return {corpus.name: corpus for corpus in found}


def at_hand(session: Session, pool_id: int, wants: Needed) -> dict[str, Corpus]:
    """What serves a configuration on a pool, by name: what lies there, and what can be copied to it where that lacks
    something."""
    there = on_pool(session, pool_id)
    return in_store(session) | there if wants.missing(there) else there


def reachable(session: Session) -> list[dict[str, Corpus]]:
    """For each pool that has something, what lies there or can be copied to it, by name."""
    stored = in_store(session)
    return [stored | there for there in by_pool(session).values()]


def check_known(session: Session, config: TrainConfig) -> None:
    """Raise NotFoundError where the configuration names a corpus or a tokenizer that no pool has."""
    wants = needed(config)
    known = {corpus.name: corpus for _, corpus in every(session)}
    if lacks := wants.missing(known):
        raise NotFoundError(
            f"No pool has {_some(lacks)}; available: {_some(sorted(known)) or 'nothing yet'}. An operator "
            "registers corpora and tokenizers with `stoa corpus add`."
        )


def check_on_pool(session: Session, recipe: str, config: TrainConfig, pool: Pool) -> None:
    """Raise ConflictError unless all that the configuration names lies on the pool or in the store, under the licences
    it names."""
    wants = needed(config)
    there = at_hand(session, pool.id, wants)
    if lacks := wants.missing(there):
        hint = _where(wants, lacks, by_pool(session))
        raise ConflictError(f"“{recipe}” needs {_some(lacks)}, which the pool “{pool.name}” lacks; {hint}.")
    prepared = wants.prepared_in(there)
    has = prepared.sources if prepared is not None else {name: there[name].licence for name in wants.licences}
    wanted = wants.sources if prepared is not None else wants.licences
    if prepared is not None and has.keys() != wanted.keys():
        raise ConflictError(
            f"The prepared data “{prepared.name}” of the pool “{pool.name}” are of {_some(sorted(has))}, and "
            f"“{recipe}” trains on {_some(sorted(wanted))}: an operator registers other data by that name."
        )
    for name, licence in wanted.items():
        if has[name] != licence:
            raise ConflictError(
                f"“{name}” is under {has[name]} on the pool “{pool.name}”, and “{recipe}” says {licence}; correct the "
                "one that is wrong."
            )


def copied(session: Session, pool_id: int, config: TrainConfig) -> list[Corpus]:
    """What a run of a configuration has to copy to its pool; raises NotFoundError where something is not there."""
    wants = needed(config)
    return [corpus for corpus in wants.read_of(_serving(session, pool_id, wants)) if corpus.pool_id != pool_id]


def placed(session: Session, pool_id: int, config: str, copies: Path) -> str:
    """A run's configuration as YAML, with the places that the pool has for what the configuration names; what is
    copied from the store lies in the folder `copies`.

    What was retired since the run was launched still serves. Raises NotFoundError where something is not there.
    """
    wants = needed(configs.read(config))
    if not (wants.licences or wants.tokenizer or wants.prepared):
        return config
    there = _serving(session, pool_id, wants)
    values = yaml.safe_load(config)
    data = values["data"]
    prepared = wants.prepared_in(there)
    if prepared is not None:
        data["prepared"] = prepared.place_for(pool_id, copies)
        return yaml.safe_dump(values, sort_keys=False)
    for source in data["sources"]:
        if source["corpus"] is not None:
            corpus = there[source["corpus"]]
            source |= dict.fromkeys(("builtin", "path", "dataset", "tokens", "revision", "subset", "split"))
            source |= {PLACES[corpus.kind]: corpus.place_for(pool_id, copies), "text_key": corpus.text_key}
    if wants.tokenizer is not None:
        data["tokenizer"]["file"] = there[wants.tokenizer].place_for(pool_id, copies)
    return yaml.safe_dump(values, sort_keys=False)


def _serving(session: Session, pool_id: int, wants: Needed) -> dict[str, Corpus]:
    """What serves a run that was launched, by name: what is retired does, where nothing else is there any more.

    Raises NotFoundError.
    """
    there = at_hand(session, pool_id, wants)
    if wants.missing(there):
        every_row = session.scalars(select(Corpus).order_by(col(Corpus.id))).all()  # of each name the newest serves
        own = {corpus.name: corpus for corpus in every_row if corpus.pool_id == pool_id}
        there = {corpus.name: corpus for corpus in every_row if corpus.stored} | own
    if lacks := wants.missing(there):
        raise NotFoundError(f"The pool has no {_some(lacks)} any more.")
    return there


def _where(wants: Needed, lacks: Sequence[str], known: Mapping[str, Mapping[str, Corpus]]) -> str:
    """Where what a pool lacks may be had, and what an operator does for it."""
    for pool, has in known.items():
        if not wants.missing(has):
            unshared = [corpus.name for corpus in wants.read_of(has) if not corpus.stored]
            each = f" (and {len(unshared) - 1} more)" if len(unshared) > 1 else ""
            return (
                f"the pool “{pool}” has all, and an operator shares it with `stoa corpus push {unshared[0]} --pool "
                f"{pool}`{each}"
            )
    for pool, has in known.items():
        if lacks[0] in has:
            return f"an operator shares {lacks[0]} with `stoa corpus push {lacks[0]} --pool {pool}`"
    return "an operator registers them with `stoa corpus add`"


def _checked_licence(name: str, kind: CorpusKind, licence: str) -> str:
    """The licence in its normal form; that of a corpus of the built-in recipes where none is given. Raises
    InvalidError, for a name that none can have too."""
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,63}", name):
        raise InvalidError(
            "The name of a corpus has up to 64 lower-case letters, digits, dots, dashes and underscores, a letter or a "
            "digit first."
        )
    known = {
        source.corpus: source.licence
        for body in configs.built_in().values()
        for source in configs.read(body).data.sources
        if source.corpus is not None
    }
    if kind == CorpusKind.PREPARED and not licence:
        return ""
    if not licence and name not in known:
        raise InvalidError("Say under which licence it is, by an SPDX identifier such as CC-BY-4.0 or Apache-2.0.")
    try:
        spdx = canonicalize_license_expression(licence.strip() or known[name])
    except InvalidLicenseExpression as error:
        raise InvalidError("The licence must be an SPDX identifier such as CC-BY-4.0 or Apache-2.0.") from error
    if spdx != known.get(name, spdx):
        raise InvalidError(f"“{name}” is a corpus of the built-in recipes, under {known[name]}; leave the licence out.")
    return spdx


def _some(names: Sequence[str]) -> str:
    """The first few of some names, and the number of the others."""
    shown = ", ".join(names[:4])
    return shown if len(names) <= 4 else f"{shown} and {len(names) - 4} more"


def _about(corpus: Corpus) -> dict[str, Any]:
    """The payload about a corpus for the record; where it lies is the operator's to know."""
    sizes = ("files", "bytes", "documents", "tokens", "manifest")
    told = {"what": corpus.kind, "name": corpus.name, "licence": corpus.licences}
    return told | {key: size for key in sizes if (size := getattr(corpus, key)) is not None}
