"""The command line: what is done by hand around the workflow."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from ultrarefiner import __version__
from ultrarefiner.errors import UltraRefinerError

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False)
console = Console(soft_wrap=True)


def _stop(error: UltraRefinerError) -> typer.Exit:
    Console(stderr=True, soft_wrap=True).print(f"[red]error:[/red] {error}", highlight=False)
    return typer.Exit(1)


@app.callback()
def _start(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log what is done.")] = False,
) -> None:
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, format="%(message)s")


@app.command()
def doctor(
    name: Annotated[str, typer.Argument(help="Dataset layout: busi, busbra, stu.")],
    root: Annotated[Path, typer.Argument(help="Folder of the dataset as downloaded.")],
    include_empty: Annotated[bool, typer.Option(help="Images without a lesion count too.")] = False,
) -> None:
    """Find what is wrong with a dataset folder, and say what to do. Changes nothing."""
    from ultrarefiner.datasets.doctor import examine_dataset

    try:
        found = examine_dataset(name, root, include_empty=include_empty)
    except UltraRefinerError as error:
        raise _stop(error) from None
    for key, value in found.facts.items():
        console.print(f"{key}: {value}", highlight=False)
    for line in found.warnings:
        console.print(f"[yellow]warning:[/yellow] {line}", highlight=False)
    for line in found.errors:
        console.print(f"[red]error:[/red] {line}", highlight=False)
    console.print(f"{len(found.errors)} errors, {len(found.warnings)} warnings", highlight=False)
    if found.errors:
        raise typer.Exit(1)


@app.command()
def phantom(
    output: Annotated[Path, typer.Argument(help="Folder to make; must not exist.")],
    layout: Annotated[str, typer.Option(help="Layout to imitate: busi, busbra, stu.")] = "busi",
    count: Annotated[int, typer.Option("-n", help="Images with a lesion.")] = 48,
    size: Annotated[int, typer.Option(help="Typical image height in pixels.")] = 256,
    seed: Annotated[int, typer.Option(help="Seed.")] = 0,
    odd_cases: Annotated[bool, typer.Option(help="Include the odd files of real datasets.")] = True,
) -> None:
    """Draw synthetic ultrasound in the exact layout of a public dataset."""
    from ultrarefiner.datasets.phantom import write_phantom

    if output.exists():
        raise _stop(UltraRefinerError(f"{output} exists; name a folder that does not"))
    try:
        write_phantom(layout, output, cases=count, size=size, seed=seed, odd_cases=odd_cases)
    except UltraRefinerError as error:
        raise _stop(error) from None
    console.print(f"{count} phantoms in the layout of {layout}: {output}", highlight=False)


@app.command()
def summary(
    run: Annotated[str, typer.Option(help="Name of the run.")] = "main",
    results: Annotated[Path, typer.Option(help="Results folder.")] = Path("results"),
) -> None:
    """Print the summary table of a run and where its report lies."""
    import pandas as pd

    folder = results / run / "report"
    if not (folder / "summary.csv").is_file():
        raise _stop(UltraRefinerError(f"{folder}/summary.csv is not there; run `snakemake` first"))
    table = pd.read_csv(folder / "summary.csv", dtype={"fold": str})
    table = table[(table["fold"] == "all") & (table["subgroup"] == "all")]
    rows = table.pivot_table(
        index=["dataset", "method"],
        columns="metric",
        values=["n", "mean", "std", "ci_low", "ci_high", "misses"],
        sort=False,
    )
    shown = Table(title=f"run {run}: mean [95 % interval over groups]")
    for column in ("dataset", "method", "n", "Dice", "IoU", "HD95 px", "misses"):
        shown.add_column(column, justify="left" if column in ("dataset", "method") else "right")
    oracles = set(table.loc[table["oracle"].astype(str).str.lower() == "true", "method"])
    for (dataset, method), row in rows.iterrows():
        cells = [
            f"{row['mean', m]:.{d}f} [{row['ci_low', m]:.{d}f}, {row['ci_high', m]:.{d}f}]"
            for m, d in (("dice", 3), ("iou", 3), ("hd95_px", 1))
        ]
        label = f"{method} (oracle)" if method in oracles else method
        counts = f"{row['n', 'dice']:.0f}", f"{row['misses', 'dice']:.0f}"
        shown.add_row(dataset, label, counts[0], *cells, counts[1])
    console.print(shown)
    console.print(f"report: {(folder / 'report.html').resolve()}", highlight=False)


@app.command()
def info() -> None:
    """Print versions, devices and what the registries hold."""
    from ultrarefiner.datasets import DATASETS
    from ultrarefiner.models import MODELS
    from ultrarefiner.models.weights import WEIGHTS
    from ultrarefiner.prompts import PROMPTS
    from ultrarefiner.provenance import package_versions
    from ultrarefiner.refine import REFINERS
    from ultrarefiner.runtime import choose_device

    console.print(f"ultrarefiner {__version__}", highlight=False)
    for package, version in package_versions().items():
        console.print(f"  {package} {version}", highlight=False)
    console.print(f"device: {choose_device()}", highlight=False)
    for what, rows in (
        ("dataset layouts", DATASETS),
        ("coarse models", MODELS),
        ("prompt kinds", PROMPTS),
        ("refiner families", REFINERS),
        ("weights", WEIGHTS),
    ):
        console.print(f"{what}: {', '.join(rows)}", highlight=False)


@app.command()
def generate(
    check: Annotated[bool, typer.Option(help="Only say whether the files are current.")] = False,
) -> None:
    """Write the config schema and the table in config/README.md from the config models."""
    from ultrarefiner.schema import stale_files, write_files

    stale = stale_files(Path())
    if check:
        for path in stale:
            console.print(f"{path} is not current; run `make generate`", highlight=False)
        raise typer.Exit(1 if stale else 0)
    write_files(Path())
    console.print(f"written: {', '.join(map(str, stale)) or 'nothing, all current'}")
