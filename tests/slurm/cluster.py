"""A real Slurm of two nodes on this machine."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).parent


class Cluster:
    """The local Slurm."""

    def __init__(self, state: Path) -> None:
        self.state = state

    def start(self) -> str:
        """Start it; return why it cannot be had, or nothing."""
        done = subprocess.run(
            [HERE / "start_local_slurm.sh", self.state], capture_output=True, text=True, timeout=300
        )
        if done.returncode:
            return done.stderr.strip().splitlines()[-1]
        os.environ["SLURM_CONF"] = str(self.state / "etc" / "slurm.conf")
        return ""

    def stop(self) -> None:
        """End its jobs and daemons."""
        subprocess.run([HERE / "stop_local_slurm.sh", self.state], check=True, timeout=120)
        os.environ.pop("SLURM_CONF", None)

    def ask(self, *words: str) -> str:
        """Return the answer of one of Slurm's commands."""
        return subprocess.run(words, capture_output=True, text=True, check=True, timeout=60).stdout

    def jobs(self) -> list[str]:
        """Return the identifiers of the jobs that wait or run."""
        return self.ask("squeue", "-h", "-t", "PENDING,RUNNING,COMPLETING", "-o", "%i").split()

    def detail(self, job: str, key: str) -> str:
        """Return what `scontrol show job` says of a job."""
        words = self.ask("scontrol", "show", "job", job).split()
        return next(word.partition("=")[2] for word in words if word.startswith(f"{key}="))

    def resume_nodes(self) -> None:
        """Take back nodes that a test set down."""
        down = self.ask("sinfo", "-h", "-N", "-p", "cpu", "-t", "down,drain", "-o", "%n").split()
        for node in down:
            self.ask("scontrol", "update", f"nodename={node}", "state=resume")


def wait_until(what: str, true: Callable[[], object], seconds: float = 120) -> object:
    """Wait for something and return it.

    Raises:
        AssertionError: It did not come in time.
    """
    deadline = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < deadline, f"{what} did not come in {seconds:.0f} s"
        time.sleep(0.2)
    return found


def end(process: subprocess.Popen[str], seconds: float = 400) -> int:
    """Wait for the end of a Snakemake; kill it when it takes too long."""
    try:
        return process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        raise
