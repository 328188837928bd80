"""The report's tables as files: CSV for programs, LaTeX for papers, the page's own numbers."""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Sequence
from pathlib import Path

from ultrarefiner.io import atomic_directory, write_text
from ultrarefiner.report.book import make_book, read_data
from ultrarefiner.report.results import ORACLE_NOTE, Cell, Row, Table

log = logging.getLogger(__name__)

# What a cell may hold beside its number, each a column of its own where any cell has it.
_PARTS = {
    "": "text",
    " mark": "mark",
    " SD": "spread",
    " CI low": "low",
    " CI high": "high",
    " n": "count",
    " note": "note",
}
_SPECIAL = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": "$<$",
    ">": "$>$",
    "−": "$-$",
    "–": "--",
    "±": r"$\pm$",
    "Δ": r"$\Delta$",
    "→": r"$\to$",
    "×": r"$\times$",
    "²": r"$^2$",
    "†": r"$\dagger$",
    "‡": r"$\ddagger$",
    "§": r"\S{}",
    "≥": r"$\ge$",
    "…": r"\dots{}",
}


def write_tables(
    scores: str | Path,
    summary: str | Path,
    comparisons: str | Path,
    oracle_gap: str | Path,
    reference: str,
    output: str | Path,
    calibration: str | Path | None = None,
    overlaps: str | Path | None = None,
    points: Sequence[str | Path] | str | Path | None = None,
    zero_shot: Sequence[str | Path] | str | Path | None = None,
    volumes: Sequence[str | Path] | None = None,
) -> None:
    """Write every table of the report as ``{name}.csv`` and ``{name}.tex``.

    Numbers are rounded as on the page. In the CSV files each number has a column of its own, with
    a plain minus sign; a dash is an empty cell. The LaTeX files are complete `table` environments
    that need no package.

    Args:
        scores: ``scores.csv``.
        summary: ``summary.csv``.
        comparisons: ``comparisons.csv``.
        oracle_gap: ``oracle_gap.csv``.
        reference: The coarse method that others are compared with.
        output: The folder; what it held before goes away.
        calibration: ``calibration.csv``, if there is one.
        overlaps: ``overlaps.csv``, if there is one.
        points: ``points.csv``, if points were analysed.
        zero_shot: ``zero_shot.csv``, if models were tested on datasets of others.
        volumes: ``volumes.csv`` and ``volume_comparisons.csv``, if a dataset holds volumes.

    Raises:
        UltraRefinerError: A table is absent or damaged; the message names it.
    """
    data = read_data(
        scores,
        summary,
        comparisons,
        oracle_gap,
        reference,
        calibration,
        overlaps,
        points,
        zero_shot,
        volumes,
    )
    tables = make_book(data).tables
    with atomic_directory(output) as folder:
        for table in tables:
            write_text(folder / f"{table.name}.csv", to_csv(table))
            write_text(folder / f"{table.name}.tex", to_latex(table))
    log.info("wrote %d tables to %s", len(tables), output)


def to_csv(table: Table) -> str:
    """Return a table as CSV, the footnoted marks in words."""
    marked = any(row.seen for row in table.rows)
    parts = [
        [(suffix, part) for suffix, part in _PARTS.items() if not suffix or _has(table, i, part)]
        for i in range(len(table.columns))
    ]
    header = [table.head, *(["Oracle"] if table.oracles else [])]
    header += ["Weights saw the dataset"] if marked else []
    for title, mine in zip(table.columns, parts, strict=True):
        header += [f"{title}{suffix}" for suffix, _ in mine]
    handle = io.StringIO()
    writer = csv.writer(handle, lineterminator="\n")
    writer.writerow(header)
    for row in [*table.plain, *table.oracles]:
        line = [f"{row.head} {row.mark}".strip()]
        line += [("yes" if row.oracle else "no")] if table.oracles else []
        line += [row.seen] if marked else []
        for cell, mine in zip(row.cells, parts, strict=True):
            line += [_plain(getattr(cell, part)) for _, part in mine]
        writer.writerow(line)
    return handle.getvalue()


def _has(table: Table, column: int, part: str) -> bool:
    return any(getattr(row.cells[column], part) for row in table.rows)


def _plain(text: str) -> str:
    return "" if text == "–" else text.replace("−", "-")


def to_latex(table: Table) -> str:
    """Return a table as a LaTeX `table` environment of standard commands."""
    sides = "l" + "".join("l" if title in table.words else "r" for title in table.columns)
    caption = " ".join([f"{table.title}.", table.caption, *table.footnotes])
    lines = [
        "% Made by UltraRefiner; needs no package. Wide ones fit with \\small or in a landscape page.",
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{escape_latex(caption)}}}",
        rf"\label{{tab:{table.name.replace('_', '-')}}}",
        rf"\begin{{tabular}}{{{sides}}}",
        r"\hline",
        _line([escape_latex(title) for title in (table.head, *table.columns)]),
        r"\hline",
        *(_latex_row(row) for row in table.plain),
    ]
    if table.oracles:
        note = rf"\multicolumn{{{len(sides)}}}{{l}}{{\emph{{{escape_latex(ORACLE_NOTE)}}}}}"
        lines += [r"\hline", rf"{note} \\", *(_latex_row(row) for row in table.oracles)]
    lines += [r"\hline", r"\end{tabular}", r"\end{table}", ""]
    return "\n".join(lines)


def _latex_row(row: Row) -> str:
    head = escape_latex(row.label)
    return _line([rf"\emph{{{head}}}" if row.oracle else head, *map(_latex_cell, row.cells)])


def _latex_cell(cell: Cell) -> str:
    spread = f" ± {cell.spread}" if cell.spread else ""
    shown = escape_latex(f"{cell.text}{cell.mark}")
    shown = rf"\textbf{{{shown}}}" if cell.best else shown
    return shown + escape_latex(" ".join([spread, *cell.lines]).rstrip())


def _line(cells: list[str]) -> str:
    return " & ".join(cells) + r" \\"


def escape_latex(text: str) -> str:
    """Return text whose special characters LaTeX prints as they are."""
    return "".join(_SPECIAL.get(character, character) for character in text)
