"""A real Slurm of two nodes on this machine, and studies that run on it from a copy of the checkout."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.workflow.study import ROOT

HERE = Path(__file__).parent


def copy_checkout(folder: Path) -> Path:
    """Return a copy of the checkout as a clone would have it, with what is not committed yet."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    for name in listed:
        source, target = ROOT / name, folder / name
        if source.is_symlink() or source.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target, follow_symlinks=False)
    return folder


@dataclass(frozen=True)
class Checkout:
    """A copy of the checkout in which a test runs Snakemake as a user would."""

    root: Path

    def environment(self) -> dict[str, str]:
        """Return the environment of its user: the copy's package, one thread a process."""
        return {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(self.root / "src"),
            "OMP_NUM_THREADS": "1",
        }

    def start(self, *arguments: str, log: Path | None = None) -> subprocess.Popen[str]:
        """Start `snakemake ARGUMENTS` there; its words go to a file."""
        with open(log or self.root / "snakemake.out", "a") as words:
            return subprocess.Popen(
                ["snakemake", *arguments],
                cwd=self.root,
                env=self.environment(),
                stdout=words,
                stderr=subprocess.STDOUT,
                text=True,
            )

    def said(self, log: Path | None = None) -> str:
        """Return all that the started Snakemakes have said."""
        return (log or self.root / "snakemake.out").read_text()

    def run(self, *arguments: str, ok: bool = True, timeout: int = 500) -> str:
        """Run `snakemake ARGUMENTS` there to its end and return what it said.

        Raises:
            AssertionError: It did not end as `ok` says.
        """
        done = subprocess.run(
            ["snakemake", *arguments],
            cwd=self.root,
            env=self.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
        )
        assert (done.returncode == 0) == ok, done.stdout[-6000:]
        return done.stdout

    def command(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run another program of the environment there."""
        return subprocess.run(
            words,
            cwd=self.root,
            env=self.environment(),
            capture_output=True,
            text=True,
            timeout=300,
        )


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
