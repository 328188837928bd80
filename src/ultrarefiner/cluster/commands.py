"""The command that goes on after Snakemake itself was killed."""

from __future__ import annotations

import os
import shlex
import sys
from typing import Annotated

import typer

from ultrarefiner.cluster.recover import (
    WAIT_S,
    clear_leftovers,
    last_command,
    run_folder,
    snakemake_command,
)


def recover(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="-- SNAKEMAKE ARGUMENTS",
            show_default=False,
            help="Run Snakemake with these afterwards.",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", "-n", help="Only say what would be done.")
    ] = False,
    dead: Annotated[
        str | None,
        typer.Option(metavar="HOST", help="Machine that runs no Snakemake here any more."),
    ] = None,
    wait: Annotated[
        int, typer.Option(min=1, help="Seconds to wait until what is stopped has ended.")
    ] = WAIT_S,
) -> None:
    """After Snakemake itself was killed: stop its leftover jobs, unlock, run again."""
    given = arguments or []
    clear_leftovers(given, typer.echo, dry_run, dead, wait)
    if not given:
        typer.echo(
            f"next: give your command again; the last one was: {last_command(run_folder(given))}"
        )
        return
    # What was half made is made again; the profile says so too, but it is not read everywhere.
    command = snakemake_command("--rerun-incomplete", *given)
    typer.echo(f"next: {shlex.join(['snakemake', *command[3:]])}")
    if not dry_run:
        sys.stdout.flush()
        os.execv(command[0], command)
