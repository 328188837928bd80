"""A copy of the checkout in which a test runs Snakemake as a user would."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.workflow.study import ROOT

DEMO = ("all", "--configfile", "config/demo.yaml")
"""Arguments of Snakemake."""


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

    def run(self, *arguments: str, ok: bool = True, timeout: int = 900) -> str:
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
