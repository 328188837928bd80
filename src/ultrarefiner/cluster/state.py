"""What a run left in its folder: Snakemake's logs and locks, and the locks of trainings."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

TRAINING_LOCKS = (
    "results/*/*/models/*/*/resume/lock",
    "results/*/*/inner/*/*/*/resume/lock",
)
"""Where trainings keep other processes out, below the folder of a run."""
_HEAD_BYTES = 100_000


@dataclass(frozen=True)
class Run:
    """How a run began, from the head of its log.

    Attributes:
        host: Machine on which Snakemake ran.
        command: Its arguments.
        slurm: Name of its Slurm jobs; None when it sent none.
        worked: Whether it came so far as to start jobs.
    """

    host: str | None
    command: str | None
    slurm: str | None
    worked: bool


@dataclass(frozen=True)
class Training:
    """A training whose lock a living process holds.

    Attributes:
        folder: Folder of its model.
        holder: Who says to hold it: "process 17 on node3".
        host: That machine.
        number: That process.
    """

    folder: Path
    holder: str
    host: str
    number: int | None


def read_runs(folder: Path) -> list[Run]:
    """Return what the logs of the runs in a folder say, the latest run last."""
    return [_read_run(path) for path in sorted((folder / ".snakemake" / "log").glob("*.log"))]


def _read_run(path: Path) -> Run:
    with open(path, "rb") as handle:
        head = handle.read(_HEAD_BYTES).decode(errors="replace")
    host, command, slurm = (
        match[1].strip() if (match := re.search(pattern, head, re.M)) else None
        for pattern in (r"^  Host: (.+)$", r"^  Command: \S+ (.*)$", r"^SLURM run ID: (\S+)$")
    )
    return Run(host, command, slurm, worked="\nJob stats:\n" in head)


def snakemake_locks(folder: Path) -> list[Path]:
    """Return the locks that Snakemake holds, or held when it was killed, in a folder."""
    return sorted((folder / ".snakemake" / "locks").glob("*.lock"))


def running_trainings(folder: Path) -> list[Training]:
    """Return the trainings below a folder whose lock a living process holds, here or elsewhere."""
    return [
        _training(path, folder)
        for pattern in TRAINING_LOCKS
        for path in sorted(folder.glob(pattern))
        if _is_held(path)
    ]


def _training(path: Path, folder: Path) -> Training:
    holder = path.read_text(errors="replace").strip() or "another process"
    match = re.fullmatch(r"process (\d+) on (.+)", holder)
    number, host = (int(match[1]), match[2]) if match else (None, "")
    return Training(path.parent.parent.relative_to(folder), holder, host, number)


def _is_held(path: Path) -> bool:
    if fcntl is None:
        return False
    with open(path, "r+") as handle:
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            return True
        except OSError:
            # A file system without locks: trainings say so, and hold none.
            return False
    return False


def lock_owner(locks: list[Path]) -> int | None:
    """Return the id of the user who made locks, if that is another one than asks.

    The administrator sees the processes of all users, so that nobody's are foreign.
    """
    if not hasattr(os, "geteuid") or os.geteuid() == 0:
        return None
    owners = {path.stat().st_uid for path in locks} - {os.geteuid()}
    return min(owners, default=None)
