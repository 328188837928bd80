"""Signals that ask a training to stop: it stops between steps, with all that it did on the disk."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ultrarefiner.training.team import ALONE, Team

log = logging.getLogger(__name__)

Check = Callable[[], None]

# Schedulers send SIGTERM at the end of a job's time, and SIGUSR1 some time before if they are asked.
STOPPING = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, name)
)


def stop_status(number: int) -> int:
    """Return the exit status of a training that a signal stopped: 130 for Ctrl-C, else 143."""
    return 128 + (signal.SIGINT if number == signal.SIGINT else signal.SIGTERM)


@contextmanager
def stop_on_signal(team: Team = ALONE) -> Iterator[Check]:
    """Turn SIGTERM, SIGUSR1 and Ctrl-C into a clean stop: the check raises once one has come.

    All members of a team have to call the check equally often: it raises in all of them as soon as
    the signal has come to one. Outside the main thread, where Python takes no signals, the check
    does nothing.

    Args:
        team: Who trains.

    Raises:
        SystemExit: Status 143 (SIGTERM, SIGUSR1) or 130 (Ctrl-C), from the check.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    asked: list[int] = []
    previous = {
        number: signal.signal(number, lambda got, _: asked.append(got)) for number in STOPPING
    }

    def check() -> None:
        number = team.largest(max(asked, default=0))
        if number:
            log.warning(
                "stopped by %s; what is done is saved, run again to go on from it",
                signal.Signals(number).name,
            )
            raise SystemExit(stop_status(number))

    try:
        yield check
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler or signal.SIG_DFL)
