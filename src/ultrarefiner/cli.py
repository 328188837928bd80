"""The command line: what is done by hand around the workflow."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ultrarefiner import __version__
from ultrarefiner.cluster.commands import recover
from ultrarefiner.deploy import commands
from ultrarefiner.errors import OutputError, UltraRefinerError
from ultrarefiner.viewer.commands import viewer

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False)


def _console(**options: Any) -> Console:
    """Return a console that prints text as it is: a path may hold what Rich reads as markup."""
    return Console(markup=False, emoji=False, highlight=False, **options)


console = _console(soft_wrap=True)
_UNCUT = 1000  # columns: a tree is cut at the width of its console, and a path must not be


def _marked(word: str, colour: str, text: str) -> Text:
    return Text.assemble((f"{word}:", colour), f" {text}")


@contextmanager
def _stopping() -> Iterator[None]:
    """End the program with the message of an error that the user can do something about."""
    try:
        yield
    except (UltraRefinerError, OSError) as error:
        _console(stderr=True, soft_wrap=True).print(_marked("error", "red", _reason(error)))
        raise typer.Exit(1) from None


def _reason(error: UltraRefinerError | OSError) -> str:
    if not isinstance(error, OSError) or error.filename is None:
        return str(error)
    return (
        f"{error.filename}: {error.strerror}. Name a file or folder that is there and that you may "
        "read."
    )


def _print_version(wanted: bool) -> None:
    if wanted:
        console.print(f"ultrarefiner {__version__}")
        raise typer.Exit


def _register(command: Callable[..., None]) -> None:
    """Add a command of another room, whose errors end the program as those of this one do."""

    @wraps(command)
    def run(**arguments: Any) -> None:
        with _stopping():
            command(**arguments)

    app.command()(run)


@app.callback()
def _start(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log what is done.")] = False,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, format="%(message)s")


@app.command()
def doctor(
    name: Annotated[str, typer.Argument(help="Dataset layout; `ultrarefiner info` lists them.")],
    root: Annotated[Path, typer.Argument(help="Folder of the dataset as downloaded.")],
    include_empty: Annotated[bool, typer.Option(help="Images without a lesion count too.")] = False,
    option: Annotated[
        list[str] | None,
        typer.Option(help="A key of the layout's own, `images=scans`; may be repeated."),
    ] = None,
    curation: Annotated[
        Path | None, typer.Option(help="File that leaves cases out or corrects their class.")
    ] = None,
) -> None:
    """Find what is wrong with a dataset folder, and say what to do. Changes nothing."""
    from ultrarefiner.datasets.doctor import examine_dataset

    with _stopping():
        found = examine_dataset(
            name, root, include_empty, options=_options(option or []), curation=curation
        )
    for key, value in found.facts.items():
        console.print(f"{key.replace('_', ' ')}: {_plain(value)}")
    for line in found.warnings:
        console.print(_marked("warning", "yellow", line))
    for line in found.errors:
        console.print(_marked("error", "red", line))
    console.print(f"{len(found.errors)} errors, {len(found.warnings)} warnings")
    if found.errors:
        raise typer.Exit(1)


def _options(given: list[str]) -> dict[str, Any]:
    """Return `key=value` pairs with their values read as in a YAML file."""
    import yaml

    options = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not key or not equals:
            raise UltraRefinerError(f"--option {text}: write it as key=value")
        try:
            options[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise UltraRefinerError(f"--option {text}: the value is no YAML ({error})") from None
    return options


def _plain(value: Any) -> str:
    """Return a fact in words: "benign 33, malignant 16"."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(item)}" for key, item in value.items()) or "none"
    if value is None:
        return "unknown"
    if isinstance(value, list) and [type(item) for item in value] in ([int] * 2, [float] * 2):
        return f"{value[0]} to {value[1]}"
    if isinstance(value, list):
        return "; ".join(" = ".join(x) if isinstance(x, list) else str(x) for x in value) or "none"
    return str(value)


@app.command()
def phantom(
    output: Annotated[Path, typer.Argument(help="Folder to make; must not exist.")],
    layout: Annotated[
        str, typer.Option(help="Layout to imitate: busi, busbra, bus_uclm, ...")
    ] = "busi",
    count: Annotated[int, typer.Option("-n", help="Images with a lesion.")] = 48,
    size: Annotated[int, typer.Option(help="Typical image height in pixels.")] = 256,
    seed: Annotated[int, typer.Option(help="Seed.")] = 0,
    odd_cases: Annotated[bool, typer.Option(help="Include the odd files of real datasets.")] = True,
) -> None:
    """Draw synthetic ultrasound in the exact layout of a public dataset."""
    from ultrarefiner.datasets.phantom import write_phantom

    with _stopping():
        if output.exists():
            raise UltraRefinerError(f"{output} exists; name a folder that does not")
        try:
            write_phantom(layout, output, cases=count, size=size, seed=seed, odd_cases=odd_cases)
        except OSError as error:
            raise OutputError(
                f"cannot make {output}: {error.strerror or error}. Name a folder where you may "
                "write."
            ) from None
    console.print(f"{count} phantoms in the layout of {layout}: {output}")


@app.command()
def fetch(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="WEIGHTS", help="Names; none: a table of all."),
    ] = None,
    accept: Annotated[
        list[str] | None, typer.Option(help="Weights whose terms you accept; may be repeated.")
    ] = None,
    mirror: Annotated[
        list[str] | None,
        typer.Option(help="Address of a folder with copies, tried first; may be repeated."),
    ] = None,
    folder: Annotated[Path | None, typer.Option(help="Weights folder.")] = None,
) -> None:
    """Fetch published weights, or say which there are and under which terms."""
    from ultrarefiner.models.weights import FOLDER, WEIGHTS, unaccepted_terms

    folder = folder or Path(FOLDER)
    if not names:
        _print_weights(folder)
        return
    from ultrarefiner.models.fetch import fetch_weights

    with _stopping():
        # All names and terms are known before the first file is fetched.
        rows = {name: WEIGHTS[name] for name in [*names, *(accept or [])]}
        terms = [text for name in names if (text := unaccepted_terms(name, accept or ()))]
        if terms:
            raise UltraRefinerError("\n".join(terms))
        for name in dict.fromkeys(names):
            path = folder / rows[name].file
            there = path.is_file()
            fetch_weights(name, path, mirror or (), accept or ())
            console.print(f"{name}: {path} {'was there already' if there else 'fetched'}")


def _print_weights(folder: Path) -> None:
    from ultrarefiner.models.weights import WEIGHTS

    table = Table(title="published weights")
    for column, side in (
        ("name", "left"),
        ("size", "right"),
        ("licence", "left"),
        ("there", "left"),
        ("path", "left"),
    ):
        table.add_column(column, justify=side)
    for name, row in WEIGHTS.items():
        path = folder / row.file
        found = path.stat().st_size if path.is_file() else None
        there = {None: "no", row.bytes: "yes"}.get(found, "another size")
        licence = f"{row.licence} (to be accepted)" if row.accept else row.licence
        table.add_row(name, row.size, licence, there, str(path))
    _console(width=max(console.width, 140)).print(table)
    for name, row in WEIGHTS.items():
        if row.accept:
            console.print(f"{name}: {row.terms}")


@app.command()
def summary(
    run: Annotated[str, typer.Option(help="Name of the run.")] = "main",
    results: Annotated[Path, typer.Option(help="Results folder.")] = Path("results"),
) -> None:
    """Print the summary tables of a run and where its report lies."""
    from ultrarefiner.report.terminal import summary_tables

    folder = results / run / "report"
    with _stopping():
        if not (folder / "summary.csv").is_file():
            raise UltraRefinerError(f"{folder}/summary.csv is not there; run `snakemake` first")
        tables = summary_tables(folder / "summary.csv", folder / "comparisons.csv")
    wide = _console(width=max(console.width, 160))
    for table in tables:
        wide.print(table)
    console.print(f"report: {(folder / 'report.html').resolve()}")


@app.command()
def explain(
    path: Annotated[Path, typer.Argument(help="A file or folder of a run, or a weights file.")],
    everything: Annotated[
        bool, typer.Option("--all", help="Every job, not one for all that are alike.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="As data.")] = False,
) -> None:
    """Print what made a file, from the raw images on, and whether all of it still is as it was."""
    from ultrarefiner.study.explain import explain as chain_of
    from ultrarefiner.study.explain_tree import explain_tree

    with _stopping():
        chain = chain_of(path)
    if as_json:
        typer.echo(json.dumps(chain.as_data(), indent=2))
    else:
        _console(width=_UNCUT).print(explain_tree(chain, everything))
        for link in chain.changes:
            detail = f": {link.detail}" if link.detail else ""
            console.print(_marked(link.state, "red", f"{link.path}{detail}"))
        jobs = f"{len(chain.steps)} job{'' if len(chain.steps) == 1 else 's'}"
        console.print(f"{jobs}, {len(chain.links)} files and folders; {_verdict(chain.changes)}")
    if chain.changes:
        raise typer.Exit(1)


def _verdict(changes: list[Any]) -> str:
    return f"{len(changes)} changed" if changes else "all are as they were"


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

    console.print(f"ultrarefiner {__version__}")
    for package, version in package_versions().items():
        console.print(f"  {package} {version}")
    console.print(f"device: {choose_device()}")
    for what, rows in (
        ("dataset layouts", DATASETS),
        ("coarse models", MODELS),
        ("prompt kinds", PROMPTS),
        ("refiner families", REFINERS),
        ("weights", WEIGHTS),
    ):
        console.print(f"{what}: {', '.join(rows)}")


@app.command()
def generate(
    check: Annotated[bool, typer.Option(help="Only say whether the files are current.")] = False,
) -> None:
    """Write the config schema and the table in config/README.md from the config models."""
    from ultrarefiner.schema import stale_files, write_files

    with _stopping():
        stale = stale_files(Path())
    if check:
        for path in stale:
            console.print(f"{path} is not current; run `make generate`")
        raise typer.Exit(1 if stale else 0)
    with _stopping():
        write_files(Path())
    console.print(f"written: {', '.join(map(str, stale)) or 'nothing, all current'}")


for _command in (commands.predict, commands.export, viewer, recover):
    _register(_command)
