"""What other hosts have left in the store: the checkpoint that a run goes on from, and what else an attempt reads."""

import json
import math
import shutil
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

import structlog
from rich import filesize
from sqlalchemy.orm import Session
from sqlmodel import select

from broker import configs, corpus_copies, publications
from broker import store as stores
from broker.allocations.corpora import Corpus
from broker.allocations.pools import Pool
from broker.corpus_copies import NoRoomError
from broker.pieces import CARRIER
from broker.publications import Disk, Publication, Repository
from broker.publishing import copies, disk
from broker.publishing.hub import Hub, HubError, Model, NotOpenError
from broker.runners import output, processes
from broker.runs import folders, inputs, preparing, runs
from broker.runs.kinds.kind import kind_of
from broker.runs.progress import Checkpoint
from broker.runs.runs import Run
from broker.store import WHOLE, DamagedError, Store, StoreError
from projects.db.database import Database
from projects.errors import InvalidError, NotFoundError
from projects.settings import Settings
from trainer import contract

POLL_SECONDS = 2.0
SILENT_POLLS = 15
"""A carrier that has said nothing while it was asked so many times is at work no more."""
CLOSED = "closed"
"""The object with the steps of the checkpoints of an earlier attempt that later attempts may read."""

log = structlog.get_logger()
T = TypeVar("T")
Hold = Callable[[str], None]
"""Is told why an attempt waits, and returns when it is time to look again; raises where it shall wait no longer."""


class NoCheckpointError(Exception):
    """A run has done steps, and none of its checkpoints can be had on this host; the text is one sentence."""


def earlier(
    settings: Settings, db: Database, run: Run, token: int, hold: Hold, *, fetch: bool = True
) -> Sequence[Checkpoint]:
    """The checkpoints of the attempts before `token` in the order of steps; the run goes on from the last one, which is
    on this disk, or, without `fetch`, whole in the store.

    One that is only in the store is fetched, and one on its way there is waited for. Raises NoCheckpointError where
    there is none though the run has told of one, and OSError where one cannot be written here.
    """
    folder = folders.of_run(settings, run.id)
    earlier_folders = [folder / f"attempt-{number}" for number in range(1, token)] if fetch else []
    here: Sequence[Checkpoint] = output.checkpoints(earlier_folders)
    if token == 1:
        return here
    with db.read() as session:
        rows = session.scalars(select(Publication).where(Publication.run_id == run.id)).all()
    told = {row.step: folders.token_of(row.folder) for row in rows}
    cleared = {row.step for row in rows if row.disk == Disk.CLEARED}
    if settings.store:
        known = {step: number for step, number in told.items() if number is not None and number < token}
        here = _patiently(
            settings, hold, lambda store: _newest(store, settings, run, token, here, known, cleared, hold, fetch)
        )
    newest = max(told, default=0)
    if not here and newest > (run.fork_step or 0):
        where = "neither on this host nor in the store" if settings.store else "not on this host, and there is no store"
        raise NoCheckpointError(
            f"the checkpoints of its {newest:,} steps are {where}; it does not start over by itself"
        )
    return here


def bring(settings: Settings, db: Database, run: Run, hold: Hold, *, begins: bool, fetch: bool = True) -> None:
    """Fetch what an attempt reads of other runs, where it is not on this disk: the checkpoints that it is about, or
    that a run goes on from which `begins` now, from the store or the Hub; and the data that a run prepared, which it
    trains on or cannot be evaluated without, from the store.

    Without `fetch`, wait until it is whole in the store. Raises OSError where the store has lost or damaged it, or the
    Hub does not give it, and NoCheckpointError where a checkpoint is on another host's disk alone.
    """
    with db.read() as session:
        kept = kind_of(run).reads(session, run, begins=begins)
        mark = _data_of(session, run, fetch=fetch)
        maker, token = preparing.attempt_of(mark) if mark else (0, 0)
        makers = {*(checkpoint.run_id for checkpoint in kept), *([maker] if mark else [])}
        owners = {each: runs.load(session, each).request_id for each in makers}
    for checkpoint in kept:
        _bring_checkpoint(settings, db, run, checkpoint, owners[checkpoint.run_id], hold, fetch=fetch)
    if mark and settings.store:
        folders.own(settings, maker, owners[maker])
        attempt = stores.attempt_folder(maker, owners[maker], token)
        _bring(settings, f"{attempt}/{contract.DATA_FOLDER}", settings.data_dir / mark, hold, fetch=fetch)


def _data_of(session: Session, run: Run, *, fetch: bool) -> str:
    """The prepared data of the catalogue that an attempt reads; empty where it reads none. A trainer that reads the
    store alone evaluates without."""
    if kind_of(run).trains:
        return preparing.used(session, run)
    if fetch and run.parent_id is not None and kind_of(run).needs_data(run):
        return preparing.used(session, runs.load(session, run.parent_id))
    return ""


def _bring_checkpoint(
    settings: Settings, db: Database, run: Run, checkpoint: Publication, owner: str, hold: Hold, *, fetch: bool
) -> None:
    """Fetch a checkpoint of another run, where it is not on this disk. Who trains on goes on with the optimizer's state
    too, where the Hub has it, and else begins it afresh."""
    target = folders.on_disk(settings, checkpoint.run_id, checkpoint.folder)
    place = folders.in_store(checkpoint.run_id, owner, checkpoint.folder)
    with db.read() as session:
        repository, host = session.get(Repository, checkpoint.run_id), inputs.writer(session, checkpoint)
        config = runs.load(session, checkpoint.run_id).config
    with_state = kind_of(run).trains and configs.keeps_state(config, checkpoint.step)
    # Where a host still has all of a checkpoint, a run that trains goes on with all of it.
    reads = fetch and (with_state or not kind_of(run).trains or checkpoint.disk != Disk.KEPT)
    on_hub = reads and checkpoint.url is not None and repository is not None and not repository.private
    if settings.store and place is not None:
        folders.own(settings, checkpoint.run_id, owner)
        try:
            _bring(settings, place, target, hold, fetch=fetch)
        except FileNotFoundError:
            if not on_hub:
                raise
    if target.is_dir() or not fetch:
        return
    if on_hub and repository is not None:
        _from_hub(settings, checkpoint, repository.name, with_state=with_state)
    elif host not in ("", processes.host()):
        raise NoCheckpointError(
            f"the checkpoint of step {checkpoint.step:,} of run {checkpoint.run_id} lies on the disk of “{host}” "
            f"alone, and run {run.id} was started on “{processes.host()}”"
        )


def bring_models(settings: Settings, run: Run) -> None:
    """Fetch the models of the Hub that a run reads, as anybody may, where they are not on this disk.

    Raises OSError where the Hub does not give one now, or the disk has no room, and DomainError where another try is of
    no use: there is no such model or revision, it is not open to everyone, or it is none that the trainer reads.
    """
    for base in kind_of(run).from_hub(run):
        target = folders.hub_base(settings, *base)
        if target.is_dir():
            continue
        try:
            hub = Hub(settings)
            found = hub.look_at_model(*base)
            _check_readable(base.repo, found)
            # The trainer imports it beside the download, in fp32, which takes twice the bytes of weights in bf16.
            takes = sum((3 if name.endswith(".safetensors") else 1) * size for name, size in found.files.items())
            if disk.free_gib(settings) - takes / 2**30 < settings.disk_floor_gib:
                raise OSError(f"the disk has no room for {base.repo}, which takes {filesize.decimal(takes)}")
            hub.fetch_model(*base, target)
        except NotOpenError as error:
            raise NotFoundError(str(error)) from error
        except HubError as error:
            raise OSError(f"{base.repo} at {base.revision} cannot be fetched from the Hub: {error}") from error


def _check_readable(repo: str, found: Model) -> None:
    """Raise InvalidError where a model is no checkpoint of ours, and its `config.json` names no architecture that the
    trainer reads. What else is wrong with it the trainer says."""
    if contract.CHECKPOINT_METADATA_FILE in found.files:
        return
    try:
        told = json.loads(found.config)
    except (ValueError, RecursionError):
        told = None
    if not isinstance(told, dict):
        raise InvalidError(f"{repo} has no config.json of a model of transformers")
    named = told.get("architectures")
    if isinstance(named, list) and named and named[0] not in contract.ARCHITECTURES:
        ours = ", ".join(contract.ARCHITECTURES)
        raise InvalidError(f"{repo} is a {str(named[0])[:60]}, which the trainer cannot read; it reads {ours}")


def _from_hub(settings: Settings, checkpoint: Publication, repo: str, *, with_state: bool) -> None:
    """Fetch what of a checkpoint is published; raises OSError where the Hub does not give it, or the
    disk has no room."""
    target = folders.hub_copy(settings, repo, checkpoint.step)
    branch = publications.state_branch(checkpoint.step)
    state, lacks_state = target.with_name(branch), with_state and not (target / contract.TRAINER_FOLDER).is_dir()
    if target.is_dir() and not lacks_state:
        return
    if disk.is_low(settings):
        raise OSError(f"the disk has no room for step {checkpoint.step:,} of {repo}, which is on the Hub alone")
    try:
        if lacks_state and not state.is_dir():
            Hub(settings).fetch(repo, branch, state)
        if not target.is_dir():
            Hub(settings).fetch(repo, checkpoint.hub_commit or f"step{checkpoint.step}", target)
    except HubError as error:
        raise OSError(f"step {checkpoint.step:,} of {repo} cannot be fetched from the Hub: {error}") from error
    if lacks_state:
        try:
            (state / contract.TRAINER_FOLDER).rename(target / contract.TRAINER_FOLDER)
        except OSError:
            if not (target / contract.TRAINER_FOLDER).is_dir():  # another attempt has put it there meanwhile
                raise
        shutil.rmtree(state, ignore_errors=True)


def bring_corpora(settings: Settings, db: Database, run: Run, hold: Hold, tell: Hold, *, fetch: bool = True) -> None:
    """Copy from the store the corpora and tokenizers that an attempt reads and its pool lacks; `tell` is told how far.

    Without `fetch`, see that they are whole there. Raises OSError where the store has lost or damaged one, or the disk
    has no room for it.
    """
    with db.read() as session:
        found = [(each, session.get_one(Pool, each.pool_id).name) for each in preparing.copied(session, run)]
    for corpus, pool in found:
        wait = partial(_wait_for_other, hold, corpus)
        if fetch and corpus_copies.use(settings.corpora_dir, corpus.copy_name, wait, owner=f"Run {run.id}"):
            continue
        if not settings.store:
            raise FileNotFoundError(f"{corpus.name} is in the store alone, and STOA_STORE is not set")
        fetching = partial(_fetch_copy, settings, db, run, corpus, wait, tell) if fetch else partial(_look_at, corpus)
        mended = f"an operator sends it again with `stoa corpus push {corpus.name} --pool {pool} --again`"
        _patiently(settings, hold, partial(_undamaged, mended, fetching))


def _undamaged(mended: str, work: Callable[[Store], None], store: Store) -> None:
    """Work with the store; raises OSError, which says how it is `mended`, for what the store has lost or damaged."""
    try:
        work(store)
    except DamagedError as error:
        raise OSError(f"{str(error).rstrip('.')}; {mended}") from error


def _look_at(corpus: Corpus, store: Store) -> None:
    corpus_copies.look(store, corpus.copy_name)


def _wait_for_other(hold: Hold, corpus: Corpus, owner: str) -> None:
    if owner == corpus_copies.REMOVER:
        hold(f"The worker looks whether the copy of {corpus.name} on this host is still needed")
    else:
        hold(f"{owner or 'Another run'} copies {corpus.name} from the store to this host")


def _fetch_copy(
    settings: Settings, db: Database, run: Run, corpus: Corpus, wait: Hold, tell: Hold, store: Store
) -> None:
    """Copy one corpus to this host, in the place of others that no run needs where there is no room beside them."""
    done, lock = 0, threading.Lock()

    def advance(size: int) -> None:
        nonlocal done
        with lock:
            done += size
        here, of = filesize.decimal(done), filesize.decimal(corpus.bytes)
        tell(f"Copying {corpus.name} from the store: {here} of {of} are here")

    floor = math.ceil(settings.disk_floor_gib * 2**30)
    fetch = partial(
        corpus_copies.fetch,
        *(store, corpus.copy_name, settings.corpora_dir, wait),
        owner=f"Run {run.id}",
        floor=floor,
        advance=advance,
    )
    try:
        fetch()
    except NoRoomError:
        if not copies.remove_unneeded(settings, db, at_once=True):
            raise
        fetch()


def _bring(settings: Settings, place: str, target: Path, hold: Hold, *, fetch: bool) -> None:
    if not fetch or not target.is_dir():
        target.parent.mkdir(parents=True, exist_ok=True)
        if not _patiently(settings, hold, lambda store: obtained(store, place, target, hold, fetch=fetch)):
            raise FileNotFoundError(f"the store has lost {place}")


def _newest(
    store: Store,
    settings: Settings,
    run: Run,
    token: int,
    here: Sequence[Checkpoint],
    told: Mapping[int, int],
    cleared: Collection[int],
    hold: Hold,
    fetch: bool,
) -> Sequence[Checkpoint]:
    """The checkpoints `here`, and after them the newest one in the store, where that is of a later step.

    Those that were `cleared` are not there any more.
    """
    found: dict[int, int] = {}
    for number in range(1, token):
        attempt = stores.attempt_folder(run.id, run.request_id, number)
        found |= {step: number for step in _closed(store, attempt) if step not in found}
    found |= told
    newest_here = here[-1].step if here else -1
    for step in sorted(found.keys() - set(cleared), reverse=True):
        if step <= newest_here:
            break
        attempt = stores.attempt_folder(run.id, run.request_id, found[step])
        target = contract.checkpoint_folder(folders.of_run(settings, run.id) / f"attempt-{found[step]}", step)
        if fetch:
            target.parent.mkdir(parents=True, exist_ok=True)
        if obtained(store, stores.checkpoint_folder(attempt, step), target, hold, fetch=fetch):
            log.info("goes on from a checkpoint of the store", run=run.id, step=step)
            return [*here, Checkpoint(step, str(target))]
        log.warning("a checkpoint is not whole in the store; going back to an earlier one", run=run.id, step=step)
    return here


def _closed(store: Store, attempt: str) -> Sequence[int]:
    """The steps of an attempt's whole checkpoints in the store, as they stood when this was first asked.

    What a stale trainer adds later, on a host that was given up but lives on, is not read by any later attempt.
    """
    said = store.read(f"{attempt}/{CLOSED}")
    if said is not None:
        return [int(step) for step in json.loads(said)]
    folder = f"{attempt}/{contract.CHECKPOINTS_FOLDER}"
    steps = [contract.checkpoint_step(Path(name)) for name in store.names(folder)]
    whole = [
        step
        for step in steps
        if step is not None and store.size(f"{stores.checkpoint_folder(attempt, step)}/{WHOLE}") is not None
    ]
    store.write(f"{attempt}/{CLOSED}", json.dumps(whole).encode())
    return whole


def obtained(store: Store, place: str, target: Path, hold: Hold, *, fetch: bool = True) -> bool:
    """Fetch a folder, or see that it is whole in the store without `fetch`; wait for it while the carrier of its
    attempt is at work. False where it is not to be had."""
    attempt = "/".join(place.split("/")[:3])
    beat: bytes | None = None
    silent = 0
    while True:
        try:
            if store.pull(place, target) if fetch else store.is_whole(place):
                return True
        except DamagedError as error:
            log.error("what the store has is damaged", why=str(error))
            return False
        said = store.read(f"{attempt}/{CARRIER}")
        silent = silent + 1 if said == beat else 0
        beat = said
        if said is None or json.loads(said).get("done") or silent > SILENT_POLLS:
            # The carrier may have ended after the look before.
            return store.pull(place, target) if fetch else store.is_whole(place)
        hold(f"Another host still puts {target.name} into the store")


def _patiently(settings: Settings, hold: Hold, work: Callable[[Store], T]) -> T:
    """The result of work with the store, which is tried again for as long as the store does not do its part."""
    while True:
        try:
            return work(Store(settings))
        except StoreError as error:
            log.warning("waiting for the store", why=str(error))
            hold(f"{str(error).partition(':')[0]}; it is tried again")
