"""The report's result tables: which numbers stand in which cell, ready for the template."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from ultrarefiner.evaluation.metrics import METRICS
from ultrarefiner.evaluation.summary import SIZES
from ultrarefiner.report.tables import Method, fixed, p_value, signed
from ultrarefiner.report.words import quoted_p

# The metrics of the leading table and their decimals.
_SHOWN = {"dice": 3, "iou": 3, "hd95_px": 1, "hd95_mm": 2, "nsd": 3}
_SIZES = tuple(SIZES)


@dataclass(frozen=True)
class Cell:
    """A table cell.

    Attributes:
        text: What is shown.
        value: The unrounded number, for sorting; NaN for none.
        note: A second, quieter line.
        spread: What stands quietly beside the text.
        best: Whether it is the best of its column, oracles apart.
        bar: (zero, low, middle, high) in percent of the bar's width, for an interval.
    """

    text: str
    value: float = math.nan
    note: str = ""
    spread: str = ""
    best: bool = False
    bar: tuple[float, ...] | None = None

    @property
    def sort(self) -> str:
        """The value as an attribute; empty for none."""
        return repr(self.value) if math.isfinite(self.value) else ""


@dataclass
class Row:
    """A table row: the method and its cells."""

    method: Method
    cells: list[Cell]
    reference: bool = False


@dataclass
class Table:
    """A table: titles of the columns after the method's, and rows with the oracles apart."""

    columns: list[str]
    rows: list[Row] = field(default_factory=list)

    @property
    def plain(self) -> list[Row]:
        """Rows of methods that make do without the truth."""
        return [row for row in self.rows if not row.method.oracle]

    @property
    def oracles(self) -> list[Row]:
        """Rows of oracles."""
        return [row for row in self.rows if row.method.oracle]


class Numbers:
    """Look-up of the summary and the comparisons of one dataset.

    Args:
        summary: All of ``summary.csv``.
        comparisons: All of ``comparisons.csv``.
        dataset: The dataset, or ``pooled`` or ``macro``.
        reference: The method that differences are against.
    """

    def __init__(
        self, summary: pd.DataFrame, comparisons: pd.DataFrame, dataset: str, reference: str
    ) -> None:
        rows = summary[summary["dataset"].eq(dataset)]
        keys = zip(
            rows["method"], rows["subgroup"], rows["fold"].astype(str), rows["metric"], strict=True
        )
        self._summary = dict(zip(keys, rows.to_dict("records"), strict=True))
        rows = comparisons[
            comparisons["dataset"].eq(dataset)
            & comparisons["reference"].eq(reference)
            & comparisons["metric"].eq("dice")
        ]
        self._comparisons = {row["method"]: row for row in rows.to_dict("records")}
        self.folds = sorted({int(key[2]) for key in self._summary if key[2] != "all"})
        self.subgroups = sorted({key[1] for key in self._summary if key[1] != "all"}, key=_order)

    def get(
        self, method: str, metric: str, subgroup: str = "all", fold: str = "all"
    ) -> dict[str, Any] | None:
        """Return the summary's row, or None where it has none."""
        return self._summary.get((method, subgroup, fold, metric))

    def difference(self, method: str) -> dict[str, Any] | None:
        """Return the comparison of Dice with the reference, or None."""
        return self._comparisons.get(method)

    def reach(self) -> tuple[float, float]:
        """Return the least and the largest end of the intervals of all differences, and zero."""
        ends = [row[key] for row in self._comparisons.values() for key in ("ci_low", "ci_high")]
        known = [0.0, *(float(end) for end in ends if math.isfinite(end))]
        return min(known), max(known)


def _order(subgroup: str) -> tuple[str, int, str]:
    kind, _, value = subgroup.partition("=")
    return kind, _SIZES.index(value) if value in _SIZES else len(_SIZES), value


def leading_table(numbers: Numbers, methods: list[Method], reference: str) -> Table:
    """Return the table a reader looks at first: a row for each method, all cases."""
    # Without pixel spacing there are no millimetres.
    shown = [name for name in _SHOWN if any(numbers.get(m.name, name) for m in methods)]
    best = {}
    for metric in shown:
        means = [_mean(numbers.get(m.name, metric)) for m in methods if not m.oracle]
        known = [mean for mean in means if math.isfinite(mean)]
        choose = max if METRICS[metric].better == "higher" else min
        best[metric] = choose(known, default=math.nan)
    titles = [METRICS[metric].label for metric in shown]
    compared = any(numbers.difference(method.name) for method in methods)
    table = Table(["n", *titles, "Missed", *(["Δ Dice", "Holm p"] if compared else [])])
    reach = numbers.reach()
    for method in methods:
        dice = numbers.get(method.name, "dice")
        if dice is None:
            continue
        cells = [Cell(f"{dice['n']:g}", float(dice["n"]))]
        for metric in shown:
            row = numbers.get(method.name, metric)
            leads = not method.oracle and _mean(row) == best[metric]
            cells.append(_mean_cell(row, _SHOWN[metric], leads, detailed=metric == "dice"))
        misses = float(dice["misses"])
        cells.append(Cell(fixed(misses, 0), misses))
        if compared:
            row = numbers.difference(method.name)
            cells += _difference_cells(row, reach, method.name == reference)
        table.rows.append(Row(method, cells, method.name == reference))
    return table


def _mean(row: dict[str, Any] | None) -> float:
    return math.nan if row is None else float(row["mean"])


def _mean_cell(row: dict[str, Any] | None, digits: int, best: bool, detailed: bool) -> Cell:
    if row is None or not math.isfinite(_mean(row)):
        return Cell("–")
    known = detailed and math.isfinite(row["std"])
    spread = f"± {fixed(row['std'], digits)}" if known else ""
    return Cell(fixed(row["mean"], digits), _mean(row), _interval(row, digits), spread, best)


def _interval(row: dict[str, Any], digits: int = 3) -> str:
    """Return the row's interval in brackets; nothing where groups were too few to have one."""
    if not (math.isfinite(row["ci_low"]) and math.isfinite(row["ci_high"])):
        return ""
    return f"[{fixed(row['ci_low'], digits)}, {fixed(row['ci_high'], digits)}]"


def _difference_cells(
    row: dict[str, Any] | None, reach: tuple[float, float], reference: bool
) -> list[Cell]:
    if row is None:
        return [Cell("reference" if reference else "–"), Cell("–")]
    low, middle, high = (float(row[key]) for key in ("ci_low", "mean_difference", "ci_high"))
    bar = None
    width = reach[1] - reach[0]
    if width > 0.0 and all(map(math.isfinite, (low, middle, high))):
        values = (0.0, low, middle, high)
        bar = tuple(round(3.0 + 94.0 * (value - reach[0]) / width, 2) for value in values)
    p, tested = quoted_p(row)
    note = "over groups" if "groups" in tested else ""
    return [Cell(signed(middle), middle, _interval(row), bar=bar), Cell(p_value(p), p, note)]


def fold_table(numbers: Numbers, methods: list[Method]) -> Table:
    """Return mean Dice by fold."""
    table = Table([f"Fold {fold}" for fold in numbers.folds])
    for method in methods:
        rows = [numbers.get(method.name, "dice", fold=str(fold)) for fold in numbers.folds]
        table.rows.append(Row(method, [_counted_cell(row) for row in rows]))
    return table


def subgroup_table(numbers: Numbers, methods: list[Method]) -> Table:
    """Return mean Dice by subgroup (class of the lesion, its size)."""
    table = Table([_subgroup_title(subgroup) for subgroup in numbers.subgroups])
    for method in methods:
        rows = [numbers.get(method.name, "dice", subgroup) for subgroup in numbers.subgroups]
        table.rows.append(Row(method, [_counted_cell(row, interval=True) for row in rows]))
    return table


def _subgroup_title(subgroup: str) -> str:
    kind, _, value = subgroup.partition("=")
    if kind == "truth":
        return "with a lesion" if value == "lesion" else "without a lesion"
    return f"{value} lesions" if kind == "size" else value or kind


def _counted_cell(row: dict[str, Any] | None, interval: bool = False) -> Cell:
    if row is None or not math.isfinite(_mean(row)):
        return Cell("–")
    note = f"n = {row['n']:g}"
    if interval:
        note = f"{_interval(row)} {note}".strip()
    return Cell(fixed(row["mean"]), _mean(row), note)
