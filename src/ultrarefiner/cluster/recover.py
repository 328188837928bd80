"""Go on after Snakemake itself was killed: stop what outlived it, unlock, run again."""

from __future__ import annotations

import argparse
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from ultrarefiner.cluster.processes import find_processes, stop_processes, with_children
from ultrarefiner.cluster.slurm import cancel_jobs, find_jobs, slurm_is_here
from ultrarefiner.cluster.state import (
    Run,
    lock_owner,
    read_runs,
    running_trainings,
    snakemake_locks,
)
from ultrarefiner.errors import UltraRefinerError, first_names

Tell = Callable[[str], None]
WAIT_S = 120
_RELEASE_S = 10.0
_PAUSE_S = 0.5


def snakemake_command(*arguments: str) -> list[str]:
    """Return the command that starts the Snakemake of this Python."""
    return [sys.executable, "-m", "snakemake", *arguments]


def run_folder(arguments: Sequence[str]) -> Path:
    """Return the folder in which Snakemake works when it gets these arguments."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--directory", "-d", default=".")
    return Path(parser.parse_known_args(list(arguments))[0].directory).resolve()


def clear_leftovers(
    arguments: Sequence[str],
    tell: Tell,
    dry_run: bool = False,
    dead: str | None = None,
    wait_s: float = WAIT_S,
) -> None:
    """Stop what a killed Snakemake left running, and take its lock away.

    Nothing is stopped or unlocked while a Snakemake is alive.

    Args:
        arguments: What Snakemake is going to be given.
        tell: Takes a line for the user.
        dry_run: Only tell what would be done.
        dead: Machine that is known to run no Snakemake in this folder any more.
        wait_s: Seconds that Slurm, and then the processes here, have to end what is stopped.

    Raises:
        UltraRefinerError: A Snakemake is alive or may be; something cannot be stopped; Slurm or
            Snakemake fails.
    """
    folder = run_folder(arguments)
    if not (folder / ".snakemake").is_dir():
        raise UltraRefinerError(
            f"Snakemake has never run in {folder}: there is nothing to recover. Go to the folder "
            "where it ran."
        )
    runs = read_runs(folder)
    locks = snakemake_locks(folder)
    _refuse_if_alive(folder, locks, runs, dead)
    _stop_slurm_jobs(folder, runs, tell, dry_run, wait_s)
    _stop_processes(folder, tell, dry_run, wait_s)
    if not locks:
        tell("lock: none")
    elif dry_run:
        tell("lock: would be taken away")
    else:
        _unlock(folder, arguments)
        tell("lock: taken away")


def last_command(folder: Path) -> str:
    """Return how Snakemake was last started in a folder, as far as its log says."""
    commands = [run.command for run in read_runs(folder) if run.worked]
    return f"snakemake {commands[-1]}" if commands and commands[-1] else "snakemake ..."


def _refuse_if_alive(folder: Path, locks: list[Path], runs: list[Run], dead: str | None) -> None:
    for process in find_processes(folder):
        if process.here and process.is_snakemake:
            raise UltraRefinerError(
                f"Snakemake is alive in {folder}: {process}. Nothing was changed. Wait for it, or "
                f"end it (Ctrl-C where it runs, or kill {process.number}: it then waits for its "
                "jobs)."
            )
    if not locks:
        return
    owner = lock_owner(locks)
    if owner is not None:
        raise UltraRefinerError(
            f"the lock in {folder} was made by another user (id {owner}), whose Snakemake cannot be "
            "seen from here. Nothing was changed. Ask them to run recover."
        )
    hosts = [run.host for run in runs if run.worked and run.host]
    here = platform.node()
    if hosts and hosts[-1] not in (here, dead):
        raise UltraRefinerError(
            f"Snakemake was last started in {folder} on {hosts[-1]}, and this is {here}: whether it "
            f"still runs cannot be seen from here. Nothing was changed. Run recover on {hosts[-1]}; "
            f"or, if you know that it is dead there: ultrarefiner recover --dead {hosts[-1]}"
        )


def _stop_slurm_jobs(
    folder: Path, runs: list[Run], tell: Tell, dry_run: bool, wait_s: float
) -> None:
    sent = {run.slurm for run in runs if run.slurm}
    if not slurm_is_here():
        if sent:
            raise UltraRefinerError(
                f"a run in {folder} has sent jobs to Slurm, and this machine has no squeue. Nothing "
                "was changed. Run recover where you submit jobs."
            )
        return
    try:
        jobs = find_jobs(folder, sent)
    except UltraRefinerError as error:
        if sent:
            raise UltraRefinerError(
                f"{error}. Jobs of this folder may still run, so nothing was changed. Run recover "
                "again when Slurm answers."
            ) from None
        tell(f"Slurm jobs: none was ever sent from here ({error})")
        return
    if not jobs:
        tell("Slurm jobs: none left")
        return
    tell(f"Slurm jobs: {len(jobs)} left, {'would be' if dry_run else 'being'} cancelled")
    for job in jobs:
        tell(f"  {job}")
    if not dry_run:
        cancel_jobs(jobs, folder, sent, wait_s)


def _stop_processes(folder: Path, tell: Tell, dry_run: bool, wait_s: float) -> None:
    here = platform.node()
    holders = {one.number: one.folder for one in running_trainings(folder) if one.host == here}
    everyone = find_processes(folder)
    left = [process for process in everyone if process.here and process.is_job]
    # A job stops its own children; only a training that has lost its job is asked itself.
    family = with_children(left, everyone)
    left += [one for one in everyone if one.number in holders and one not in family]
    tell(
        f"processes on {here}: {len(left)} left, {'would be' if dry_run else 'being'} stopped"
        if left
        else f"processes on {here}: none left"
    )
    for process in left:
        numbers = [one.number for one in with_children([process], everyone)]
        places = sorted(str(holders[number]) for number in numbers if number in holders)
        tell(f"  {process}{f', training in {places[0]}' if places else ''}")
    if dry_run:
        return
    stop_processes(left, folder, wait_s)
    _wait_for_trainings(folder, min(wait_s, _RELEASE_S))


def _wait_for_trainings(folder: Path, wait_s: float) -> None:
    """Wait until no training's lock is held: that of a process that has ended may take a moment."""
    deadline = time.monotonic() + wait_s
    while trainings := running_trainings(folder):
        if time.monotonic() > deadline:
            named = first_names(f"{one.holder} is training in {one.folder}" for one in trainings)
            raise UltraRefinerError(
                f"{named}. Nothing was unlocked. Stop it there, then run recover again."
            )
        time.sleep(_PAUSE_S)


def _unlock(folder: Path, arguments: Sequence[str]) -> None:
    result = subprocess.run(
        snakemake_command("--unlock", *arguments),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if result.returncode != 0:
        raise UltraRefinerError(
            f"{shlex.join(['snakemake', '--unlock', *arguments])} failed:\n{result.stdout.strip()}\n"
            "Give recover what you gave Snakemake: ultrarefiner recover -- "
            + last_command(folder).removeprefix("snakemake ")
        )
