"""The Slurm jobs that runs of one folder have sent."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from ultrarefiner.errors import UltraRefinerError

JOB_PREFIX = "ultrarefiner"
"""How the names of jobs begin: `slurm-jobname-prefix` of the Slurm profile."""
_FORMAT = "%i|%T|%j|%Z|%k"
_PATIENCE_S = 90
_PAUSE_S = 2.0


@dataclass(frozen=True)
class SlurmJob:
    """A job that is waiting, running or ending.

    Attributes:
        number: What `scancel` takes.
        state: Slurm's word for it, such as RUNNING.
        name: The prefix and the run's own number.
        folder: Where it works.
        comment: Rule and wildcards.
    """

    number: str
    state: str
    name: str
    folder: Path
    comment: str

    def __str__(self) -> str:
        return f"{self.number} {self.state} {self.comment or self.name}"


def slurm_is_here() -> bool:
    """Return whether this machine has Slurm's commands."""
    return shutil.which("squeue") is not None


def find_jobs(folder: Path, runs: Collection[str]) -> list[SlurmJob]:
    """Return this user's jobs that a run of the workflow in one folder has sent.

    Jobs of a study in another folder are not among them: theirs is another working directory.

    Args:
        folder: Where Snakemake ran.
        runs: Names of runs that are known to be of this folder, whatever path their jobs see.

    Raises:
        UltraRefinerError: Slurm does not answer.
    """
    jobs = []
    for line in _ask("squeue", "--me", "--noheader", f"--format={_FORMAT}").splitlines():
        number, state, name, place, comment = line.split("|", 4)
        job = SlurmJob(number, state, name, Path(place), comment.removeprefix("rule_"))
        if name.startswith(JOB_PREFIX) and (name in runs or _is_same(job.folder, folder)):
            jobs.append(job)
    return jobs


def cancel_jobs(jobs: list[SlurmJob], folder: Path, runs: Collection[str], wait_s: float) -> None:
    """Cancel jobs and wait until none of the folder is left.

    Raises:
        UltraRefinerError: Slurm does not answer, or some are still there after ``wait_s`` seconds.
    """
    # Its status says nothing: a job may end by itself a moment before it is cancelled.
    said = _run("scancel", *(job.number for job in jobs)).stderr.strip()
    deadline = time.monotonic() + wait_s
    while left := find_jobs(folder, runs):
        if time.monotonic() > deadline:
            raise UltraRefinerError(
                f"{len(left)} Slurm jobs are still there {wait_s:g} s after scancel: "
                + "; ".join(map(str, left))
                + (f". scancel said: {said}" if said else "")
                + ". Nothing was unlocked. Wait until squeue does not list them, then run recover "
                "again."
            )
        time.sleep(min(_PAUSE_S, wait_s))


def _is_same(one: Path, other: Path) -> bool:
    return os.path.realpath(one) == os.path.realpath(other)


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command, capture_output=True, text=True, timeout=_PATIENCE_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise UltraRefinerError(f"{command[0]} has not answered within {_PATIENCE_S} s") from None
    except OSError as error:
        raise UltraRefinerError(f"{command[0]} cannot be run: {error.strerror}") from None


def _ask(*command: str) -> str:
    result = _run(*command)
    if result.returncode != 0:
        raise UltraRefinerError(f"{command[0]} does not answer: {result.stderr.strip()}")
    return result.stdout
