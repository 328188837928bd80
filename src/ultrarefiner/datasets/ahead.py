"""Files read ahead of their use by threads, so that a model need not wait for the disk."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

_READERS = 4


def read_ahead(
    read: Callable[[Item], Result], items: Iterable[Item], ahead: int = 8, readers: int = _READERS
) -> Iterator[Result]:
    """Yield ``read(item)`` for each item, in order, while threads read the next ones.

    Args:
        read: Reads one item; called from several threads at once.
        items: What to read.
        ahead: Most results that wait in memory.
        readers: Threads.

    Raises:
        Exception: Whatever ``read`` raises, when its item's turn comes.
    """
    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(min(readers, ahead), "read") as pool:
        try:
            for item in items:
                waiting.append(pool.submit(read, item))
                if len(waiting) >= ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
