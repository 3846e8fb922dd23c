"""Staging: bringing to hand what a trainer reads before it starts, while the claim on its attempt is kept."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from pathlib import Path
from typing import NamedTuple

from broker.end_reasons import EndReason
from broker.runners import causes, elsewhere
from broker.runners.elsewhere import NoCheckpointError
from broker.runners.trainer_command import trainer_command
from broker.runs.kinds.kind import Start
from broker.runs.progress import Checkpoint, Ending
from broker.runs.runs import Run
from projects.db.database import Database
from projects.errors import DomainError
from projects.settings import Settings
from trainer.contract import Status

POLL_SECONDS = 0.2


class AskedToStop(Exception):  # noqa: N818
    """The run or the host was asked to stop before the trainer was started."""


class UnstartedError(Exception):
    """No trainer was started, and the attempt ends as `ending` says."""

    def __init__(self, ending: Ending) -> None:
        super().__init__(ending.reason)
        self.ending = ending


class Staged(NamedTuple):
    """The checkpoints of earlier attempts, the last one at hand, and the trainer's command line."""

    before: Sequence[Checkpoint]
    command: Sequence[str]


class Staging:
    """Brings what the trainer of one attempt reads to its host, which may take as long as a large checkpoint.

    `keep` keeps the claim, shows why the attempt waits, and says whether it is still to start. `retrying` does work on
    the database again while that is away.
    """

    def __init__(
        self,
        settings: Settings,
        db: Database,
        keep: Callable[[str], bool],
        retrying: Callable[[Callable[[], Staged]], Staged],
    ) -> None:
        self.settings = settings
        self.db = db
        self.keep = keep
        self.retrying = retrying
        self.waits_for = ""
        self.over = threading.Event()

    def stage(self, run: Run, token: int, folder: Path, nodes: int, *, in_store: bool) -> Staged:
        """See that all is at hand that the trainer reads, or that it is in the store where the trainer reads it there.

        Raises UnstartedError, and AskedToStop where the run or the host is to stop meanwhile.
        """

        def work() -> Staged:
            before = elsewhere.earlier(self.settings, self.db, run, token, self._hold, fetch=not in_store)
            elsewhere.bring(self.settings, self.db, run, self._hold, begins=not before, fetch=not in_store)
            elsewhere.bring_models(self.settings, run)
            elsewhere.bring_corpora(self.settings, self.db, run, self._hold, self._tell, fetch=not in_store)
            start = Start(self.settings, self.db, run, folder, before, nodes, in_store)
            command = trainer_command(start)
            return Staged(before, command)

        try:
            return self._beside(lambda: self.retrying(work))
        except NoCheckpointError as error:
            ending = Ending(Status.FAILED, str(error), known=EndReason.CHECKPOINT_MISSING)
            raise UnstartedError(ending) from error
        except (OSError, DomainError) as error:
            raise not_started(error) from error

    def _beside(self, work: Callable[[], Staged]) -> Staged:
        """The result of work, while the claim is kept; raises AskedToStop where the attempt is to start no more."""
        future: Future[Staged] = Future()

        def do() -> None:
            try:
                future.set_result(work())
            except BaseException as error:
                future.set_exception(error)

        threading.Thread(target=do, daemon=True).start()
        try:
            while not wait([future], timeout=POLL_SECONDS).done:
                if not self.keep(self.waits_for):
                    raise AskedToStop
        finally:
            self.over.set()
        return future.result()

    def _tell(self, why: str) -> None:
        """Show why the attempt waits, unless it is to start no more."""
        self.waits_for = why
        if self.over.is_set():
            raise AskedToStop

    def _hold(self, why: str) -> None:
        """Wait a moment for what lies elsewhere; `why` is shown with the run."""
        self.waits_for = why
        if self.over.wait(elsewhere.POLL_SECONDS):
            raise AskedToStop


def not_started(error: OSError | DomainError) -> UnstartedError:
    """What is raised for a trainer that could not be started; after an error of the machine it may be tried again."""
    why, transient = f"it could not be started: {causes.of_error(error)}", isinstance(error, OSError)
    return UnstartedError(Ending(Status.FAILED, why, transient=transient, known=EndReason.NOT_STARTED))
