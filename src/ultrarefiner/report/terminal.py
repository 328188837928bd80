"""The results of a run as tables for a terminal: the report's numbers, from the same files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from rich.table import Table
from rich.text import Text

from ultrarefiner.evaluation.summary import MACRO, POOLED
from ultrarefiner.report.results import (
    NONE,
    Cell,
    Numbers,
    count_cell,
    difference_cells,
    mean_cell,
    method_row,
)
from ultrarefiner.report.tables import (
    COMPARISON_COLUMNS,
    EVALUATIONS,
    FOOTNOTES,
    SUMMARY_COLUMNS,
    Method,
    explain_names,
    list_methods,
    read_table,
    with_kinds,
)


def summary_tables(summary: str | Path, comparisons: str | Path) -> list[Table]:
    """Return a table for each evaluation of a run: folds, hold-out, trained elsewhere.

    A row is a method on a dataset, by all folds together, by the ensemble ``mean``, or by the
    model of the first fold where there is no ensemble.

    Args:
        summary: ``summary.csv``.
        comparisons: ``comparisons.csv``.

    Raises:
        UltraRefinerError: A file is absent or wrong.
    """
    means = read_table(summary, (*SUMMARY_COLUMNS, "prompt_source"), "summarise_scores")
    compared = read_table(comparisons, COMPARISON_COLUMNS, "compare_methods")
    names = [*compared["reference"], *means["method"]]
    reference = names[0].partition("@")[0] if names else ""
    means = with_kinds(means, reference)
    there = set(means["evaluation"])
    return [
        _table(means, compared, evaluation, reference)
        for evaluation in EVALUATIONS
        if evaluation in there
    ]


def _table(means: pd.DataFrame, compared: pd.DataFrame, evaluation: str, reference: str) -> Table:
    table = Table(title=f"{EVALUATIONS[evaluation]}: mean [95 % interval over groups]")
    for column in ("dataset", "method", "predicted by"):
        table.add_column(column)
    for column in ("n", "Dice", "Δ Dice", "IoU", "HD95 px", "missed"):
        table.add_column(column, justify="right")
    rows = means[means["evaluation"].eq(evaluation) & means["dataset"].ne(MACRO)]
    marks, shown = set(), []
    for dataset in sorted(set(rows["dataset"]), key=lambda name: (name == POOLED, name)):
        numbers = Numbers(means, compared, dataset, evaluation)
        for method in list_methods(rows[rows["dataset"].eq(dataset)], reference):
            row = method_row(method, _cells(numbers, method, reference), reference)
            marks |= set(method.mark)
            shown.append(method)
            table.add_row(dataset, Text(row.label), _who(numbers), *map(_line, row.cells))
        table.add_section()
    notes = [text for mark, text in FOOTNOTES.items() if mark in marks]
    note = (
        f"Δ Dice: paired difference to {reference} of the same training set; that of a second "
        "training set is compared with the first one's."
    )
    names = explain_names(shown)
    table.caption = Text("\n".join([note, *([names] if names else []), *notes]))
    table.caption_justify = "left"
    return table


def _cells(numbers: Numbers, method: Method, reference: str) -> list[Cell]:
    dice, iou, distance = (numbers.get(method.name, name) for name in ("dice", "iou", "hd95_px"))
    reached = difference_cells(
        numbers.difference(method.name), numbers.reach(), method.base == reference
    )
    return [
        _count(dice, "n"),
        mean_cell(dice),
        reached[0],
        mean_cell(iou, interval=False),
        mean_cell(distance, digits=1),
        _count(dice, "misses"),
    ]


def _count(row: Mapping[str, Any] | None, name: str) -> Cell:
    return NONE if row is None else count_cell(row[name])


def _line(cell: Cell) -> str:
    spread = [f"± {cell.spread}"] if cell.spread else []
    return " ".join([cell.text, *spread, *cell.lines])


def _who(numbers: Numbers) -> str:
    member, fold = numbers.main
    if numbers.evaluation == "folds":
        return "each its own fold"
    return f"ensemble: {member}" if fold == "all" else f"model of fold {fold}"
