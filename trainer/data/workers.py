"""Worker processes that turn batches of documents into results, in the order of the batches."""

import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Generic, Self, TypeVar

from trainer.data.readers import Document

BATCH_BYTES = 1 << 20
BATCH_DOCUMENTS = 1 << 12

Result = TypeVar("Result")

_work: Callable[[Any], Any] | None = None


def batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """Batches of about BATCH_BYTES bytes or BATCH_DOCUMENTS documents, the same for any number of processes."""
    batch: list[Document] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += document.size
        if size >= BATCH_BYTES or len(batch) >= BATCH_DOCUMENTS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


class Workers(Generic[Result]):
    """A pool of `count` processes. Each creates a worker by `make(*arguments)`, and calls it with batches. It is a
    context manager.

    With a count of 1 the work is done in this process, and the tokenizers library spreads it over the cores.
    """

    def __init__(self, count: int, make: Callable[..., Callable[[list[Document]], Result]], *arguments: Any) -> None:
        self._count = count
        self._worker = make(*arguments) if count == 1 else None
        # Spawned, not forked: a rank has threads, which a fork does not survive.
        self._pool = (
            None
            if count == 1
            else ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), _start, (make, arguments))
        )

    def map(self, items: Iterable[list[Document]]) -> Iterator[Result]:
        """The results in the order of the batches. At most a few batches are read ahead of the results. Raises
        RuntimeError if a process was killed."""
        if self._pool is None:
            assert self._worker is not None
            yield from map(self._worker, items)
            return
        waiting: deque[Future[Any]] = deque()
        try:
            for item in items:
                waiting.append(self._pool.submit(_run, item))
                if len(waiting) > 2 * self._count:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool as error:
            raise RuntimeError("A process that prepared the data was killed; give it fewer --workers.") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)


def _start(make: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    global _work
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _work = make(*arguments)


def _run(batch: list[Document]) -> Any:
    assert _work is not None
    return _work(batch)
