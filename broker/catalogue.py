"""The catalogue: recipes, datasets, programs and pairs of prompts by name. Members propose entries; an admin accepts
or declines them in public.

A dataset entry is a Hub dataset at a commit, with its licence. A recipe is a configuration of the trainer whose sources
are text that comes with Python, datasets of the catalogue by name, or corpora that lie on pools by name: nothing that a
member types becomes a path. A program is somebody's code at a commit; it is accepted once an operator has tried it.
Pairs are what the analysis `paired_prompts` asks a model.
"""

import contextlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from functools import lru_cache
from typing import Any

import yaml
from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression
from sqlalchemy import Index
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session
from sqlmodel import Field, col, select

from broker import configs
from broker.allocations import corpora
from projects import people, quotas, rights, text
from projects.db import transition
from projects.db.columns import Base, foreign_key, row_id, timestamp, utcnow, words
from projects.errors import ConflictError, DomainError, ForbiddenError, InvalidError, NotFoundError
from projects.people import Actor, Person
from projects.quotas import QuotaKind
from projects.record import record
from projects.rights import Act
from trainer.config import ConfigError, TrainConfig
from trainer.programs.entry import Program
from trainer.programs.entry import dump as spelt_out
from trainer.programs.entry import read as described
from trainer.study import pairs

PLACES = ("path", "tokens")
TRIED = "tried"


class CatalogueKind(StrEnum):
    """The kinds of catalogue entries."""

    RECIPE = "recipe"
    DATASET = "dataset"
    PROGRAM = "program"
    PAIRS = "pairs"


class CatalogueState(StrEnum):
    """The states of a catalogue entry."""

    PROPOSED = "proposed"
    ACCEPTED = "accepted"
    DECLINED = "declined"
    RETIRED = "retired"


TRANSITIONS: Mapping[CatalogueState, frozenset[CatalogueState]] = {
    CatalogueState.PROPOSED: frozenset({CatalogueState.ACCEPTED, CatalogueState.DECLINED}),
    CatalogueState.ACCEPTED: frozenset({CatalogueState.RETIRED}),
    CatalogueState.DECLINED: frozenset(),
    CatalogueState.RETIRED: frozenset(),
}


class CatalogueEntry(Base, table=True):
    """A recipe, a program or pairs, whose YAML is `body`, or a Hub `dataset` at a `revision`. Declining an entry frees
    its name.

    `prepared` is the folder of a recipe's prepared data, below `data/` in the home folder; empty before a run has made
    it. Of a program it says that it was tried.
    """

    __tablename__ = "catalogue_entries"

    id: int = row_id()
    request_id: str = Field(unique=True)
    kind: str
    name: str
    body: str = ""
    dataset: str = ""
    revision: str = ""
    licence: str = ""
    state: str = CatalogueState.PROPOSED
    proposed_by: int | None = foreign_key("people.id", default=None)
    decided_by: int | None = foreign_key("people.id", default=None)
    decided_at: datetime | None = timestamp(default=None)
    reason: str = words(default="")
    prepared: str = ""
    created_at: datetime = timestamp(default=utcnow)


_TAKEN = col(CatalogueEntry.state) != CatalogueState.DECLINED
_ACCEPTED_RECIPES = (
    col(CatalogueEntry.kind) == CatalogueKind.RECIPE,
    col(CatalogueEntry.state) == CatalogueState.ACCEPTED,
)
Index("ix_catalogue_entries_name", col(CatalogueEntry.name), unique=True, sqlite_where=_TAKEN, postgresql_where=_TAKEN)


@dataclass(frozen=True)
class CatalogueEntryView:
    """An entry as lists show it; `proposed_by` is None for an operator."""

    id: int
    kind: CatalogueKind
    name: str
    state: CatalogueState
    body: str
    dataset: str
    revision: str
    licence: str
    proposed_by: str | None
    reason: str


def propose_recipe(session: Session, actor: Actor | None, request_id: str, *, name: str, body: str) -> int:
    """Propose a configuration of the trainer as YAML; returns the entry's id. `actor` None is the operator.

    A source names a dataset of the catalogue as its `dataset`, and takes commit and licence from the entry. A repeated
    request returns the same id. Raises InvalidError, NotFoundError and ConflictError.
    """
    earlier = _earlier(session, request_id)
    if earlier is not None:
        return earlier
    _free_name(session, name)
    values = configs.sections(body)
    _named_datasets(session, values, {CatalogueState.PROPOSED, CatalogueState.ACCEPTED})
    expanded = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    config = configs.read(expanded)
    _check(config)
    corpora.check_known(session, config)
    return _propose(
        session, actor, CatalogueEntry(request_id=request_id, kind=CatalogueKind.RECIPE, name=name, body=expanded)
    )


def propose_dataset(
    session: Session, actor: Actor | None, request_id: str, *, name: str, dataset: str, revision: str, licence: str
) -> int:
    """Propose a Hub dataset at a commit, with its licence; returns the entry's id. `actor` None is the operator.

    A repeated request returns the same id. Raises InvalidError and ConflictError.
    """
    earlier = _earlier(session, request_id)
    if earlier is not None:
        return earlier
    _free_name(session, name)
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", dataset, re.ASCII):
        raise InvalidError("A dataset is named as on the Hub: owner/name.")
    if not re.fullmatch(r"[0-9a-f]{40}", revision):
        raise InvalidError("A dataset is taken at a commit: give its 40 hexadecimal digits, not a branch or a tag.")
    try:
        spdx = canonicalize_license_expression(licence.strip())
    except InvalidLicenseExpression as error:
        raise InvalidError("The licence must be an SPDX identifier such as CC-BY-4.0 or Apache-2.0.") from error
    entry = CatalogueEntry(
        request_id=request_id, kind=CatalogueKind.DATASET, name=name, dataset=dataset, revision=revision, licence=spdx
    )
    return _propose(session, actor, entry)


def propose_program(session: Session, actor: Actor | None, request_id: str, *, name: str, body: str) -> int:
    """Propose a program, described in YAML; returns the entry's id. `actor` None is the operator, who alone may name a
    repository on the host's disk.

    A repeated request returns the same id. Raises InvalidError and ConflictError.
    """
    earlier = _begun(session, request_id, name, body, "The program has")
    if earlier is not None:
        return earlier
    proposed = _described(body)
    if actor is not None and not proposed.repository.startswith("https://"):
        raise InvalidError("The repository of a program that a member proposes is an https:// address.")
    return _propose(
        session,
        actor,
        CatalogueEntry(request_id=request_id, kind=CatalogueKind.PROGRAM, name=name, body=spelt_out(proposed)),
    )


def propose_pairs(session: Session, actor: Actor | None, request_id: str, *, name: str, body: str) -> int:
    """Propose pairs of continuations, in YAML, for studies; returns the entry's id. `actor` None is the operator.

    A repeated request returns the same id. Raises InvalidError and ConflictError.
    """
    earlier = _begun(session, request_id, name, body, "The pairs have")
    if earlier is not None:
        return earlier
    try:
        pairs.read(body, "The text")
    except ConfigError as error:
        raise InvalidError(str(error)) from error
    return _propose(
        session, actor, CatalogueEntry(request_id=request_id, kind=CatalogueKind.PAIRS, name=name, body=body)
    )


def accepted_pairs(session: Session) -> list[str]:
    """The names of the pairs that studies can ask a model."""
    return _accepted(session, CatalogueKind.PAIRS)


def pairs_text(session: Session, name: str) -> str:
    """The YAML of accepted pairs; raises NotFoundError."""
    return _usable(session, CatalogueKind.PAIRS, name, "The catalogue has no pairs", "/catalogue proposes them").body


def proposed_program(session: Session, name: str) -> Program:
    """The description of a program that is proposed or accepted; raises NotFoundError and ConflictError."""
    found = _named(session, name)
    if found.kind != CatalogueKind.PROGRAM:
        raise ConflictError(f"“{name}” is a {found.kind}, not a program.")
    return _described(found.body)


def tried(session: Session, name: str, program: Program, seconds: int) -> None:
    """Note that an operator has tried a program, which ended well; raises NotFoundError and ConflictError."""
    if proposed_program(session, name) != program:
        raise ConflictError(f"“{name}” is another program by now; try that one.")
    found = _named(session, name)
    session.refresh(found, with_for_update=True)
    found.prepared = TRIED
    record.append(session, record.LAB, "catalogue.tried", by=None, seconds=seconds, **_about(found))


def programs(session: Session) -> list[str]:
    """The names of the programs that can be run."""
    return _accepted(session, CatalogueKind.PROGRAM)


def program(session: Session, name: str) -> Program:
    """The description of a program that can be run; raises NotFoundError."""
    ways = "`stoa program add` and /catalogue propose them"
    return _described(_usable(session, CatalogueKind.PROGRAM, name, "There is no program", ways).body)


def check_may_decide(session: Session, actor: Actor | None, name: str, to: CatalogueState) -> None:
    """Raise unless the actor may bring the entry to the state `to` now. Only reads."""
    _decidable(session, actor, name, to, lock=False)


def accept(session: Session, actor: Actor | None, name: str, *, reason: str) -> None:
    """Accept a proposed entry, with a reason; a recipe's datasets must be accepted first."""
    entry = _decidable(session, actor, name, CatalogueState.ACCEPTED)
    if entry.kind == CatalogueKind.RECIPE:
        _check_accepted(configs.read(entry.body), _every_dataset(session))
    if entry.kind == CatalogueKind.PROGRAM and not entry.prepared:
        raise ConflictError(f"“{name}” was not tried yet; an operator tries it with `stoa program try {name}`.")
    _decide(session, actor, entry, CatalogueState.ACCEPTED, reason)


def decline(session: Session, actor: Actor | None, name: str, *, reason: str) -> None:
    """Decline a proposed entry, with a reason; its name is free again."""
    entry = _decidable(session, actor, name, CatalogueState.DECLINED)
    _decide(session, actor, entry, CatalogueState.DECLINED, reason)


def retire(session: Session, actor: Actor | None, name: str, *, reason: str) -> None:
    """Retire an accepted entry, with a reason: no run can be launched from it any more; runs under way go on."""
    entry = _decidable(session, actor, name, CatalogueState.RETIRED)
    _decide(session, actor, entry, CatalogueState.RETIRED, reason)


def recipes(session: Session) -> list[str]:
    """The names of the recipes that runs can be launched from: accepted ones, and built-in ones whose data every host
    has, or some pool has or can copy."""
    accepted = session.scalars(select(CatalogueEntry.name).where(*_ACCEPTED_RECIPES))
    pools = corpora.reachable(session)
    placed = (name for name, wants in built_in_needs().items() if any(not wants.missing(there) for there in pools))
    return sorted({*_ready(), *accepted, *placed})


def datasets(session: Session) -> list[str]:
    """The names of the datasets that recipes can use."""
    return _accepted(session, CatalogueKind.DATASET)


def is_ready(name: str) -> bool:
    """Whether `name` is a built-in recipe, whose data every host has."""
    return name in _ready()


def load(session: Session, name: str, overrides: Mapping[str, str] | None = None) -> TrainConfig:
    """The recipe's configuration with some fields overridden; raises NotFoundError, ConflictError and InvalidError."""
    return configs.read(recipe_text(session, name), overrides)


def overridable(session: Session, name: str) -> dict[str, str]:
    """What a member may override in the recipe, each field with its value there; raises the same as `load`."""
    return configs.overridable(load(session, name))


def recipe_text(session: Session, name: str) -> str:
    """The YAML text of a recipe that runs can be launched from.

    Raises NotFoundError, and ConflictError if one of its datasets is no longer accepted.
    """
    listed = recipes(session)
    if name not in listed:
        if name in configs.built_in():
            raise NotFoundError(
                f"No pool has the data of “{name}”: an operator registers its corpora with `stoa corpus add`. The "
                f"recipes to launch now are: {', '.join(listed)}."
            )
        raise NotFoundError(f"There is no recipe “{name[:60]}”; {text.meant(name[:60], listed, 'the recipes are')}")
    if name in configs.built_in():
        return configs.built_in()[name]
    found = _named(session, name).body
    _check_accepted(configs.read(found), _every_dataset(session))
    return found


def trains_on(session: Session, config: TrainConfig) -> list[str]:
    """The names of the data that a configuration trains on: corpora, datasets of the catalogue, and built-in text."""
    return _trains_on(config, _every_dataset(session))


def data_names(session: Session, recipes: Sequence[TrainConfig]) -> list[list[str]]:
    """What each recipe trains on: the name of its mixture, or its data as `trains_on` has them."""
    known = _every_dataset(session)
    return [[config.data.corpus] if config.data.corpus else _trains_on(config, known) for config in recipes]


def by_dataset(session: Session) -> dict[str, list[str]]:
    """The names of recipes by the dataset that they train on; an accepted dataset without a recipe is included."""
    known = _every_dataset(session)
    found: dict[str, list[str]] = {
        name: [] for name in sorted(e.name for e in known if e.state == CatalogueState.ACCEPTED)
    }
    bodies = session.execute(select(CatalogueEntry.name, CatalogueEntry.body).where(*_ACCEPTED_RECIPES))
    built_in = configs.built_in()
    texts = {name: built_in[name] for name in recipes(session) if name in built_in} | dict(bodies.all())
    for recipe, body in sorted(texts.items()):
        with contextlib.suppress(DomainError):  # one of its datasets may have been retired
            config = configs.read(body)
            _check_accepted(config, known)
            for name in _trains_on(config, known):
                found.setdefault(name, []).append(recipe)
    return found


def _every_dataset(session: Session) -> Sequence[CatalogueEntry]:
    """The dataset entries of all states."""
    return session.scalars(select(CatalogueEntry).where(CatalogueEntry.kind == CatalogueKind.DATASET)).all()


def _trains_on(config: TrainConfig, known: Sequence[CatalogueEntry]) -> list[str]:
    """What `trains_on` returns, by dataset entries that were read before."""
    names = {(entry.dataset, entry.revision): entry.name for entry in known if entry.state != CatalogueState.DECLINED}
    return [
        source.corpus or source.builtin or names.get((source.dataset or "", source.revision or ""), source.name)
        for source in config.data.sources
    ]


def check_trains_on(session: Session, recipe: str, config: TrainConfig, dataset: str) -> None:
    """Raise NotFoundError or InvalidError unless the configuration of the recipe trains on the dataset."""
    own = trains_on(session, config)
    if dataset in own:
        return
    known = by_dataset(session)
    if dataset not in known:
        raise NotFoundError(f"There is no dataset “{dataset[:60]}”; there are: {', '.join(sorted(known))[:400]}.")
    others = ", ".join(known[dataset])[:200] or "none yet: /catalogue proposes one"
    raise InvalidError(f"“{recipe}” trains on {', '.join(own)[:200]}; recipes on “{dataset}” are: {others}.")


def entries(session: Session) -> Sequence[CatalogueEntryView]:
    """All entries, the newest first."""
    rows = session.execute(
        select(CatalogueEntry, Person.name)
        .outerjoin(Person, col(Person.id) == CatalogueEntry.proposed_by)
        .order_by(col(CatalogueEntry.id).desc())
    )
    return [
        CatalogueEntryView(
            id=entry.id,
            kind=CatalogueKind(entry.kind),
            name=entry.name,
            state=CatalogueState(entry.state),
            body=entry.body,
            dataset=entry.dataset,
            revision=entry.revision,
            licence=entry.licence,
            proposed_by=by,
            reason=entry.reason,
        )
        for entry, by in rows
    ]


@lru_cache(maxsize=1)
def _ready() -> frozenset[str]:
    """The built-in recipes whose data every host has."""
    sources = {name: configs.read(body).data.sources for name, body in configs.built_in().items()}
    return frozenset(name for name, listed in sources.items() if all(source.builtin for source in listed))


def read_built_in() -> None:
    """Read and check the built-in recipes, once in the life of a process: a quarter of a second on a quiet machine."""
    built_in_needs()


@lru_cache(maxsize=1)
def built_in_needs() -> dict[str, corpora.Needed]:
    """What the other built-in recipes need of a pool."""
    texts = {name: body for name, body in configs.built_in().items() if name not in _ready()}
    return {name: corpora.needed(configs.read(body)) for name, body in texts.items()}


def _described(body: str) -> Program:
    """A program by its YAML; raises InvalidError."""
    try:
        return described(body)
    except ConfigError as error:
        raise InvalidError(str(error)) from error


def _accepted(session: Session, kind: CatalogueKind) -> list[str]:
    """The names of the accepted entries of a kind."""
    wanted = (CatalogueEntry.kind == kind, CatalogueEntry.state == CatalogueState.ACCEPTED)
    return sorted(session.scalars(select(CatalogueEntry.name).where(*wanted)))


def _usable(session: Session, kind: CatalogueKind, name: str, missing: str, ways: str) -> CatalogueEntry:
    """The accepted entry of a kind; raises NotFoundError, which begins with `missing` and says what there is, or by
    which `ways` one comes about."""
    listed = _accepted(session, kind)
    if name not in listed:
        plural = f"{kind.removesuffix('s')}s"
        hint = text.meant(name[:60], listed, f"the {plural} are") if listed else f"there are none yet: {ways}."
        raise NotFoundError(f"{missing} “{name[:60]}”; {hint}")
    return _named(session, name)


def _begun(session: Session, request_id: str, name: str, body: str, has: str) -> int | None:
    """The entry that the request has proposed before; None where a text may be proposed under the name now. Raises
    InvalidError and ConflictError."""
    earlier = _earlier(session, request_id)
    if earlier is None:
        _free_name(session, name)
        if len(body) > configs.LONGEST_RECIPE:
            raise InvalidError(f"{has} {len(body):,} characters; at most {configs.LONGEST_RECIPE:,} fit.")
    return earlier


def _earlier(session: Session, request_id: str) -> int | None:
    return session.scalars(select(CatalogueEntry.id).where(CatalogueEntry.request_id == request_id)).one_or_none()


def _named(session: Session, name: str) -> CatalogueEntry:
    """The entry of that name that is not declined; raises NotFoundError."""
    entry = session.scalars(select(CatalogueEntry).where(CatalogueEntry.name == name, _TAKEN)).one_or_none()
    if entry is None:
        raise NotFoundError(f"The catalogue has no entry “{name[:60]}”.")
    return entry


def _free_name(session: Session, name: str) -> None:
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]{1,39}", name):
        raise InvalidError(
            "A name in the catalogue has 2 to 40 lower-case letters, digits, dots, dashes and underscores, a letter or "
            "a digit first."
        )
    taken = session.scalars(select(CatalogueEntry.state).where(CatalogueEntry.name == name, _TAKEN)).one_or_none()
    if taken is not None or name in configs.built_in():
        raise ConflictError(f"The catalogue already has “{name}” ({taken or 'built in'}); give it another name.")


def _named_datasets(session: Session, values: dict[str, Any], states: set[CatalogueState]) -> None:
    """Write commit and licence of the catalogue's datasets into the sources that name these datasets."""
    data = values.get("data")
    sources = data.get("sources") if isinstance(data, dict) else None
    for source in sources if isinstance(sources, list) else []:
        if not isinstance(source, dict) or "dataset" not in source:
            continue
        name = str(source["dataset"])[:60]
        entry = session.scalars(
            select(CatalogueEntry).where(
                CatalogueEntry.name == name,
                CatalogueEntry.kind == CatalogueKind.DATASET,
                col(CatalogueEntry.state).in_(states),
            )
        ).one_or_none()
        if entry is None:
            known = ", ".join(datasets(session)) or "none yet"
            raise NotFoundError(f"The catalogue has no dataset “{name}”; it has: {known}. Propose it first.")
        for key in ("revision", "licence"):
            if key in source and source[key] != getattr(entry, key):
                raise InvalidError(f"The dataset “{name}” brings its own {key}, {getattr(entry, key)}; leave it out.")
        source |= {"dataset": entry.dataset, "revision": entry.revision, "licence": entry.licence}


def _check(config: TrainConfig) -> None:
    """Raise InvalidError if the recipe would read files of the host that it runs on, or its base is none of the Hub."""
    places = {
        "data.prepared": config.data.prepared,
        "data.root": config.data.root,
        "data.tokenizer.file": config.data.tokenizer.file,
    }
    if config.base is not None:
        configs.parse_base(config.base)
    for number, source in enumerate(config.data.sources):
        if source.corpus is not None:  # lies where its pool says, whatever stands beside its name
            continue
        places |= {f"data.sources.{number}.{key}": getattr(source, key) for key in PLACES}
        if source.dataset and not (source.revision and re.fullmatch(r"[0-9a-f]{40}", source.revision)):
            raise InvalidError(f"data.sources.{number} takes a dataset of the catalogue, by its name.")
    for key, value in places.items():
        if value is not None:
            raise InvalidError(f"{key} names a place on a host; a recipe of the catalogue uses its datasets by name.")


def _check_accepted(config: TrainConfig, known: Sequence[CatalogueEntry]) -> None:
    """Raise ConflictError unless every dataset of the recipe is accepted, by dataset entries read before."""
    for source in config.data.sources:
        if source.dataset is None or source.corpus is not None:
            continue
        same = (source.dataset, source.revision, source.licence)
        states = [entry.state for entry in known if (entry.dataset, entry.revision, entry.licence) == same]
        if CatalogueState.ACCEPTED not in states:
            state = states[0] if states else "not in the catalogue"
            raise ConflictError(f"The recipe's dataset {source.dataset} is {state}; it must be accepted.")


def _propose(session: Session, actor: Actor | None, entry: CatalogueEntry) -> int:
    person = people.author(session, actor)
    if actor is not None:
        quotas.check(session, actor, QuotaKind.CATALOGUE)
    entry.proposed_by = None if person is None else person.id
    try:
        with session.begin_nested():
            session.add(entry)
    except IntegrityError as error:  # another transaction has taken the name first
        raise ConflictError(f"The catalogue already has “{entry.name}”; give it another name.") from error
    record.append(session, record.LAB, "catalogue.proposed", by=person, **_about(entry))
    return entry.id


def _decidable(
    session: Session, actor: Actor | None, name: str, to: CatalogueState, *, lock: bool = True
) -> CatalogueEntry:
    """The entry, if the actor may bring it to `to`; raises ForbiddenError, NotFoundError and ConflictError."""
    rights.require_admin(actor, Act.DECIDE_CATALOGUE)
    entry = _named(session, name)
    if lock:
        session.refresh(entry, with_for_update=True)
    transition.check(entry, to, TRANSITIONS, name=f"“{entry.name}”")
    proposer = None if entry.proposed_by is None else session.get_one(Person, entry.proposed_by)
    if actor is not None and proposer is not None and proposer.discord_id == str(actor.discord_id):
        raise ForbiddenError("Nobody decides on an entry of their own; another admin can.")
    return entry


def _decide(session: Session, actor: Actor | None, entry: CatalogueEntry, to: CatalogueState, reason: str) -> None:
    because = text.prose("The reason", reason, most=text.USUAL)
    quotas.check_admin(session, actor)
    person = people.author(session, actor)
    decided = {"decided_by": None if person is None else person.id, "decided_at": utcnow(), "reason": because}
    transition.move(session, entry, to, TRANSITIONS, decided, name=f"“{entry.name}”")
    record.append(session, record.LAB, f"catalogue.{to}", by=person, why=because, **_about(entry))


def _about(entry: CatalogueEntry) -> dict[str, Any]:
    """The payload about an entry for the record: all that one needs to judge the entry."""
    if entry.kind != CatalogueKind.DATASET:
        return {"entry": entry.id, "what": entry.kind, "name": entry.name, "body": entry.body}
    place = {"dataset": entry.dataset, "revision": entry.revision, "licence": entry.licence}
    return {"entry": entry.id, "what": entry.kind, "name": entry.name, **place}
