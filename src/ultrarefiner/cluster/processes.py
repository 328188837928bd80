"""Processes of this machine that work in one folder: a live Snakemake, or jobs that outlived one.

Read from `/proc`, the kernel's own list.
"""

from __future__ import annotations

import os
import re
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from ultrarefiner.errors import UltraRefinerError

PROC = Path("/proc")
_WITH_VALUE = {"-W", "-X"}
_SCRIPT = re.compile(r"/\.snakemake/scripts/[^/]*?\.(\w+)\.py$")
_PAUSE_S = 0.2


@dataclass(frozen=True)
class Process:
    """A process.

    Attributes:
        number: Its id.
        parent: Its parent's id.
        started: When it started, in the kernel's ticks: an id may be given away again.
        words: Its command line.
        here: Whether it works in the folder.
    """

    number: int
    parent: int
    started: str
    words: tuple[str, ...]
    here: bool

    @property
    def rule(self) -> str | None:
        """The rule whose script it runs, if it runs one."""
        found = [match[1] for word in self.words[1:3] if (match := _SCRIPT.search(word))]
        return found[0] if found else None

    @property
    def is_snakemake(self) -> bool:
        """Whether it is a Snakemake that commands others, not one that Snakemake started."""
        return _program(self.words) == "snakemake" and not self._of_a_job

    @property
    def is_job(self) -> bool:
        """Whether a Snakemake started it for a job."""
        return self.rule is not None or (_program(self.words) == "snakemake" and self._of_a_job)

    @property
    def _of_a_job(self) -> bool:
        return "--mode" in self.words and bool({"remote", "subprocess"} & set(self.words))

    def __str__(self) -> str:
        return f"process {self.number} ({self.rule or ' '.join(self.words)[:100]})"


def _program(words: tuple[str, ...]) -> str:
    """Return the name of the module or program that a Python process runs."""
    if not words or "python" not in Path(words[0]).name:
        return ""
    rest = iter(words[1:])
    for word in rest:
        if word == "-m":
            return next(rest, "")
        if word in _WITH_VALUE:
            next(rest, None)
        elif not word.startswith("-"):
            return Path(word).name
    return ""


def find_processes(folder: Path) -> list[Process]:
    """Return all processes that may be read; each knows whether it works in ``folder``.

    Raises:
        UltraRefinerError: This system does not tell.
    """
    if not (PROC / "self" / "cwd").exists():
        raise UltraRefinerError(
            f"recover cannot see processes here: this system has no {PROC}. Make sure that no "
            "Snakemake and no job of it runs in this folder, then say snakemake --unlock"
        )
    place = folder.stat()
    found = (_read(int(path.name), place) for path in PROC.iterdir() if path.name.isdigit())
    return [process for process in found if process is not None]


def _read(number: int, place: os.stat_result) -> Process | None:
    entry = PROC / str(number)
    try:
        state, parent, *rest = (entry / "stat").read_text().rpartition(")")[2].split()
        words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None  # it has ended, or is another user's
    if state in "ZX":
        return None
    try:
        here = os.path.samestat((entry / "cwd").stat(), place)
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        here = False
    return Process(number, int(parent), rest[17], tuple(words), here)


def with_children(processes: list[Process], among: list[Process]) -> list[Process]:
    """Return processes and all that descend from them."""
    family = {process.number for process in processes}
    grown = True
    while grown:
        children = {process.number for process in among if process.parent in family}
        grown = not children <= family
        family |= children
    return [process for process in among if process.number in family]


def stop_processes(processes: list[Process], folder: Path, wait_s: float) -> None:
    """Ask processes to stop (SIGTERM: a training saves first) and wait for them and their children.

    Raises:
        UltraRefinerError: One may not be stopped, or has not stopped after ``wait_s`` seconds.
    """
    family = with_children(processes, find_processes(folder))
    for process in processes:
        try:
            os.kill(process.number, signal.SIGTERM)
            # One that Ctrl-Z has put to sleep does not hear the first signal before this one.
            os.kill(process.number, signal.SIGCONT)
        except ProcessLookupError:
            continue
        except PermissionError:
            raise UltraRefinerError(
                f"{process} is another user's and may not be stopped from here. Nothing was "
                "unlocked. Ask its owner to stop it, then run recover again."
            ) from None
    deadline = time.monotonic() + wait_s
    while left := [process for process in find_processes(folder) if _is_among(process, family)]:
        if time.monotonic() > deadline:
            numbers = " ".join(str(process.number) for process in left)
            raise UltraRefinerError(
                f"not stopped after {wait_s:g} s: {', '.join(map(str, left))}. Nothing was "
                f"unlocked. Stop it by force (kill -9 {numbers}), then run recover again."
            )
        time.sleep(_PAUSE_S)


def _is_among(process: Process, family: list[Process]) -> bool:
    return any((process.number, process.started) == (one.number, one.started) for one in family)
