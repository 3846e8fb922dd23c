"""Corpora, prepared data and tokenizers on pools, by name: recipes name them, and each pool says where they lie.

Operators register them, so that nothing a member types becomes a path. The record tells what lies on a pool, and not
where.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import yaml
from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression
from sqlalchemy import Index
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session
from sqlmodel import col, select

from broker import configs
from broker.allocations import pools
from broker.allocations.pools import Pool
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
}
"""The key of a source that takes the place of a corpus, by the kind of the corpus."""


class Corpus(Base, table=True):
    """A corpus, prepared data or a tokenizer on a pool, as `trainer.contract.Measured` describes it.

    `path` is absolute on the pool's hosts. A retired one has `retired_at`; runs that were launched with it still read
    it.
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
    added_at: datetime = timestamp(default=utcnow)
    retired_at: datetime | None = timestamp(default=None)


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
            f"The pool “{pool}” has “{name}” already, with other contents: retire that first, or choose another name."
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
    place = pools.named(session, name=pool)
    session.refresh(place, with_for_update=True)
    corpus = on_pool(session, place.id).get(name)
    if corpus is None:
        raise NotFoundError(f"The pool “{pool}” has no “{name[:64]}”; `stoa corpus list` shows what it has.")
    corpus.retired_at = utcnow()
    record.append(session, record.LAB, "corpus.retired", by=None, why=because, pool=pool, **_about(corpus))


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


def check_known(session: Session, config: TrainConfig) -> None:
    """Raise NotFoundError where the configuration names a corpus or a tokenizer that no pool has."""
    wants = needed(config)
    known = {corpus.name: corpus for _, corpus in every(session)}
    if lacks := wants.missing(known):
        raise NotFoundError(
            f"No pool has {_some(lacks)}; what there is: {_some(sorted(known)) or 'nothing yet'}. An operator "
            "registers corpora and tokenizers with `stoa corpus add`."
        )


def check_on_pool(session: Session, recipe: str, config: TrainConfig, pool: Pool) -> None:
    """Raise ConflictError unless all that the configuration names lies on the pool, under the licences it names."""
    wants = needed(config)
    there = on_pool(session, pool.id)
    if lacks := wants.missing(there):
        others = [name for name, has in by_pool(session).items() if not wants.missing(has)]
        hint = f"the pool “{others[0]}” has all" if others else "an operator registers them with `stoa corpus add`"
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


def placed(session: Session, pool_id: int, config: str) -> str:
    """A run's configuration as YAML, with the places that the pool has for what the configuration names.

    What was retired since the run was launched still serves. Raises NotFoundError where something is not there.
    """
    wants = needed(configs.read(config))
    if not (wants.licences or wants.tokenizer or wants.prepared):
        return config
    rows = session.scalars(select(Corpus).where(Corpus.pool_id == pool_id).order_by(col(Corpus.id)))
    there = {corpus.name: corpus for corpus in rows}  # of each name the newest, which is the live one if any is
    if lacks := wants.missing(there):
        raise NotFoundError(f"The pool has no {_some(lacks)} any more.")
    values = yaml.safe_load(config)
    data = values["data"]
    prepared = wants.prepared_in(there)
    if prepared is not None:
        data["prepared"] = prepared.path
        return yaml.safe_dump(values, sort_keys=False)
    for source in data["sources"]:
        if source["corpus"] is not None:
            corpus = there[source["corpus"]]
            source |= dict.fromkeys(("builtin", "path", "dataset", "tokens", "revision", "subset", "split"))
            source |= {PLACES[corpus.kind]: corpus.path, "text_key": corpus.text_key}
    if wants.tokenizer is not None:
        data["tokenizer"]["file"] = there[wants.tokenizer].path
    return yaml.safe_dump(values, sort_keys=False)


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
    told = {"what": corpus.kind, "name": corpus.name, "licence": corpus.licence}
    return told | {key: size for key in sizes if (size := getattr(corpus, key)) is not None}
