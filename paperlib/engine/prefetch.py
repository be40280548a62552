"""Work done ahead by threads, its results in the order of the work.

Threads, not processes: decoding, resizing and gathering of images happen in libraries that let other threads run, and
threads need no start-up, no copies between processes and no guard around the caller's main module.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def ordered(
    function: Callable[[Item], Result], items: Iterable[Item], workers: int, ahead: int | None = None
) -> Iterator[Result]:
    """``map(function, items)``, done by ``workers`` threads.

    Args:
        function: safe to run in several threads.
        items: taken one by one, no sooner than needed; may never end.
        workers: threads; 0 does everything in the caller's.
        ahead: results that may lie finished or in work, which bounds the memory; twice the workers when None.

    Raises:
        ValueError: for a negative number of workers.
    """
    if workers < 0:
        raise ValueError(f"workers must be 0 or more, got {workers}.")
    if workers == 0:
        return map(function, items)
    return _threaded(function, items, workers, max(1, 2 * workers if ahead is None else ahead))


def _threaded(function: Callable[[Item], Result], items: Iterable[Item], workers: int, ahead: int) -> Iterator[Result]:
    pending: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="paperlib") as pool:
        try:
            for item in items:
                pending.append(pool.submit(function, item))
                if len(pending) >= ahead:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
