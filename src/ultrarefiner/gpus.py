"""Which GPUs of a workstation a job takes: one job each, by locks that end with the process.

On a cluster the scheduler says so through ``CUDA_VISIBLE_DEVICES``; on one machine Snakemake counts how
many GPUs are in use but not which, so that two jobs would meet on the first one.
"""

from __future__ import annotations

import logging
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

log = logging.getLogger(__name__)

VISIBLE = "CUDA_VISIBLE_DEVICES"
_SCHEDULERS = ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", "JOB_ID")
_LISTED = Path("/proc/driver/nvidia/gpus")
_PAUSE = 1.0


def installed_gpus(environment: Mapping[str, str]) -> list[str]:
    """Return the GPUs that a job may use: those of ``CUDA_VISIBLE_DEVICES``, else all NVIDIA ones.

    Args:
        environment: The variables of the process.
    """
    if VISIBLE in environment:
        return [name.strip() for name in environment[VISIBLE].split(",") if name.strip()]
    return [str(index) for index, _ in enumerate(_LISTED.iterdir())] if _LISTED.is_dir() else []


def _lock(path: Path) -> Any | None:
    """Return an open file that holds a lock; None when another process holds it."""
    handle = open(path, "a")  # noqa: SIM115 - held as long as the job runs
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        handle.close()
        return None
    return handle


@contextmanager
def take_gpus(
    count: int, gpus: Sequence[str] | None = None, folder: Path | None = None
) -> Iterator[list[str]]:
    """Let the body use so many GPUs that no other job of this user has taken.

    Sets ``CUDA_VISIBLE_DEVICES``, which counts if CUDA has not been used yet. Where a scheduler
    has chosen, on a machine with no more GPUs than are asked for, and for a count of 0, nothing is
    done. While too few are free it waits.

    Args:
        count: GPUs that the job asked Snakemake for.
        gpus: Those to choose from; default: ``installed_gpus``.
        folder: Where the locks lie; default: one of this user's in the folder for temporary files.

    Yields:
        The GPUs taken; empty when nothing was done.
    """
    found = installed_gpus(os.environ) if gpus is None else list(gpus)
    scheduled = any(name in os.environ for name in _SCHEDULERS)
    if count < 1 or scheduled or len(found) <= count or fcntl is None:
        yield []
        return
    folder = folder or Path(tempfile.gettempdir()) / f"ultrarefiner-gpus-{os.getuid()}"
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        taken = _wait_for(count, found, folder, stack)
        before = os.environ.get(VISIBLE)
        os.environ[VISIBLE] = ",".join(taken)
        log.info("uses GPU %s", ", ".join(taken))
        try:
            yield taken
        finally:
            if before is None:
                del os.environ[VISIBLE]
            else:
                os.environ[VISIBLE] = before


def _wait_for(count: int, gpus: Sequence[str], folder: Path, stack: ExitStack) -> list[str]:
    told = False
    while True:
        with ExitStack() as attempt:
            taken = []
            for gpu in gpus:
                if len(taken) < count and (handle := _lock(folder / gpu)) is not None:
                    attempt.callback(handle.close)
                    taken.append(gpu)
            if len(taken) == count:
                stack.push(attempt.pop_all())
                return taken
        # Those that were free are let go, so that two jobs cannot wait for each other.
        if not told:
            log.info("waits for %d of the GPUs %s; other jobs use them", count, ", ".join(gpus))
            told = True
        time.sleep(_PAUSE)
