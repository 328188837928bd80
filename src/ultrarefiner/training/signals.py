"""Signals that ask a training to stop: it stops between batches, with its last epoch on the disk."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

log = logging.getLogger(__name__)

Check = Callable[[], None]


@contextmanager
def stop_on_signal() -> Iterator[Check]:
    """Turn SIGTERM and Ctrl-C into a clean stop: the check raises once the signal has come.

    Outside the main thread, where Python takes no signals, the check does nothing.

    Raises:
        SystemExit: Status 143 (SIGTERM) or 130 (Ctrl-C), from the check.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    asked: list[int] = []
    taken = (signal.SIGTERM, signal.SIGINT)
    previous = {number: signal.signal(number, lambda got, _: asked.append(got)) for number in taken}

    def check() -> None:
        if asked:
            log.warning(
                "stopped by %s; the last finished epoch is saved, run again to go on from it",
                signal.Signals(asked[0]).name,
            )
            raise SystemExit(128 + asked[0])

    try:
        yield check
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler or signal.SIG_DFL)
