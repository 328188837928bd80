"""What a result table is, and the look-up of the numbers that stand in it.

The page, the CSV files and the LaTeX files are made from the same `Table`, so they agree.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from ultrarefiner.report.tables import FOOTNOTES, Method, fixed, p_value, signed

ORACLE_NOTE = "Oracle – upper bound: prompted from the truth. Not a result."
_TAGS = {"oracle": "oracle", "end_to_end": "end to end", "inner": "coarse model inside"}


@dataclass(frozen=True)
class Cell:
    """A table cell.

    Attributes:
        text: What is shown.
        value: The unrounded number, for sorting; NaN for none.
        spread: Standard deviation, as text.
        low: Lower end of the interval, as text.
        high: Upper end, as text.
        count: Number of cases, as text, where it is not that of the row.
        note: Words below the number.
        mark: Sign that a footnote explains.
        best: Whether it is the best of its column, oracles apart.
        bar: (zero, low, middle, high) in percent of the bar's width, for an interval.
    """

    text: str
    value: float = math.nan
    spread: str = ""
    low: str = ""
    high: str = ""
    count: str = ""
    note: str = ""
    mark: str = ""
    best: bool = False
    bar: tuple[float, ...] | None = None

    @property
    def sort(self) -> str:
        """The value as an attribute; empty for none."""
        return repr(float(self.value)) if math.isfinite(self.value) else ""

    @property
    def lines(self) -> list[str]:
        """The quieter lines below the number: interval, number of cases, words."""
        interval = f"[{self.low}, {self.high}]" if self.low else ""
        count = f"n = {self.count}" if self.count else ""
        return [part for part in (interval, count, self.note) if part]


NONE = Cell("–")


@dataclass(frozen=True)
class Row:
    """A table row.

    Attributes:
        head: What the row is of: a method, a training set.
        cells: One for each column.
        kind: That of the method, such as ``coarse``; empty where the row is none.
        mark: Sign of weights that saw the dataset.
        seen: ``yes``, ``no``, ``unknown``; empty where the row is no method on one dataset.
        reference: Whether others are compared with it.
    """

    head: str
    cells: list[Cell]
    kind: str = ""
    mark: str = ""
    seen: str = ""
    reference: bool = False

    @property
    def oracle(self) -> bool:
        """Whether the truth was used."""
        return self.kind == "oracle"

    @property
    def tag(self) -> str:
        """What the page says beside the head, if anything."""
        return _TAGS.get(self.kind, "reference" if self.reference else "")

    @property
    def label(self) -> str:
        """The head with its marks, for files."""
        name = f"{self.head} {self.mark}".strip()
        return f"{name} (oracle)" if self.oracle else name


@dataclass
class Table:
    """A table.

    Attributes:
        name: Name of its files, and its own on the page.
        title: What it is of.
        head: Title of the first column.
        columns: Titles of the others.
        rows: Its rows; oracles come last.
        caption: What it shows and how to read it.
        on_page: What of that holds for the page alone, not for the files.
        words: Columns that hold words, not numbers.
    """

    name: str
    title: str
    head: str
    columns: list[str]
    rows: list[Row] = field(default_factory=list)
    caption: str = ""
    on_page: str = ""
    words: frozenset[str] = frozenset()

    @property
    def plain(self) -> list[Row]:
        """Rows that make do without the truth."""
        return [row for row in self.rows if not row.oracle]

    @property
    def oracles(self) -> list[Row]:
        """Rows of oracles."""
        return [row for row in self.rows if row.oracle]

    @property
    def footnotes(self) -> list[str]:
        """What the marks in the table mean."""
        marks = "".join(row.mark + "".join(cell.mark for cell in row.cells) for row in self.rows)
        return [text for mark, text in FOOTNOTES.items() if mark in marks]


class Numbers:
    """Look-up of the summary and the comparisons of one dataset in one evaluation.

    Args:
        summary: All of ``summary.csv``.
        comparisons: All of ``comparisons.csv``.
        dataset: The dataset, or ``pooled`` or ``macro``.
        evaluation: ``folds``, ``holdout`` or ``unseen``.
    """

    def __init__(
        self,
        summary: pd.DataFrame,
        comparisons: pd.DataFrame,
        dataset: str,
        evaluation: str = "folds",
    ) -> None:
        rows = summary[summary["dataset"].eq(dataset) & summary["evaluation"].eq(evaluation)]
        keys = ("method", "member", "subgroup", "fold", "metric")
        names = zip(*(rows[key].astype(str) for key in keys), strict=True)
        self._summary = dict(zip(names, rows.to_dict("records"), strict=True))
        rows = comparisons[
            comparisons["dataset"].eq(dataset) & comparisons["evaluation"].eq(evaluation)
        ]
        self._comparisons = {
            row["method"]: row for row in rows[rows["metric"].eq("dice")].to_dict("records")
        }
        self.evaluation = evaluation
        self.folds = sorted({int(key[3]) for key in self._summary if key[3] != "all"})
        members = {key[1] for key in self._summary}
        self.ensembles = [name for name in ("mean", "vote") if name in members]
        # Who stands for a method, as in main_rows: all folds together, the ensemble, or one model.
        if evaluation == "folds":
            self.main = ("single", "all")
        elif "mean" in members:
            self.main = ("mean", "all")
        else:
            self.main = ("single", str(self.folds[0]) if self.folds else "all")

    def get(
        self,
        method: str,
        metric: str,
        subgroup: str = "all",
        who: tuple[str, str] | None = None,
    ) -> dict[str, Any] | None:
        """Return the summary's row, or None where it has none.

        Args:
            method: Name of the method.
            metric: Name of the metric.
            subgroup: Which cases.
            who: Member and fold; those that stand for the method when None.
        """
        member, fold = who or self.main
        return self._summary.get((method, member, subgroup, fold, metric))

    def singles(self, method: str, metric: str = "dice") -> list[dict[str, Any]]:
        """Return the rows of each fold's model alone, where these predict the same cases."""
        if self.evaluation == "folds":
            return []
        rows = [self.get(method, metric, who=("single", str(fold))) for fold in self.folds]
        return [row for row in rows if row is not None]

    def subgroups(self, dimension: str) -> list[str]:
        """Return the subgroups of a dimension (``label``, ``size``, ...) in the summary's order."""
        found = dict.fromkeys(key[2] for key in self._summary)
        return [name for name in found if name.partition("=")[0] == dimension and name != "all"]

    @property
    def dimensions(self) -> list[str]:
        """What the cases are divided by, in the summary's order."""
        names = dict.fromkeys(key[2].partition("=")[0] for key in self._summary)
        return [name for name in names if name != "all"]

    def difference(self, method: str) -> dict[str, Any] | None:
        """Return the comparison of Dice with the reference, or None."""
        return self._comparisons.get(method)

    def reach(self) -> tuple[float, float]:
        """Return the least and the largest end of the intervals of all differences, and zero."""
        ends = [row[key] for row in self._comparisons.values() for key in ("ci_low", "ci_high")]
        known = [0.0, *(float(end) for end in ends if math.isfinite(end))]
        return min(known), max(known)


def mean_of(row: Mapping[str, Any] | None) -> float:
    """Return the mean of a row of the summary; NaN for none."""
    return math.nan if row is None else float(row["mean"])


def mean_cell(
    row: Mapping[str, Any] | None,
    digits: int = 3,
    best: bool = False,
    spread: bool = False,
    count: bool = False,
    interval: bool = True,
    mark: str = "",
    note: str = "",
) -> Cell:
    """Return the cell of a mean: with its interval, and on demand its spread and its cases."""
    if row is None or not math.isfinite(mean_of(row)):
        return NONE
    low, high = ends(row, "ci_low", "ci_high", digits) if interval else ("", "")
    return Cell(
        fixed(row["mean"], digits),
        mean_of(row),
        spread=fixed(row["std"], digits) if spread and math.isfinite(row["std"]) else "",
        low=low,
        high=high,
        count=f"{row['n']:g}" if count else "",
        note=note,
        mark=mark,
        best=best,
    )


def single_cell(rows: Sequence[Mapping[str, Any]], digits: int = 3, mark: str = "") -> Cell:
    """Return the cell of the mean over single models, ± their standard deviation."""
    means = [mean_of(row) for row in rows]
    if not means:
        return NONE
    mean = sum(means) / len(means)
    spread = fixed(statistics.stdev(means), digits) if len(means) > 1 else ""
    return Cell(fixed(mean, digits), mean, spread=spread, mark=mark)


def ends(row: Mapping[str, Any], low: str, high: str, digits: int = 3) -> tuple[str, str]:
    """Return an interval's ends as text; empty where groups were too few to have one."""
    if not (math.isfinite(row[low]) and math.isfinite(row[high])):
        return "", ""
    return fixed(row[low], digits), fixed(row[high], digits)


def number_cell(value: float, digits: int = 3, **others: Any) -> Cell:
    """Return the cell of a plain number; a dash for none."""
    return Cell(fixed(value, digits), float(value), **others)


def count_cell(value: float) -> Cell:
    """Return the cell of a whole number."""
    return number_cell(value, 0)


def difference_cells(
    row: Mapping[str, Any] | None, reach: tuple[float, float], reference: bool
) -> list[Cell]:
    """Return difference of Dice, corrected p and effect size of a comparison."""
    if row is None:
        return [Cell("reference") if reference else NONE, NONE, NONE]
    low, middle, high = (float(row[key]) for key in ("ci_low", "mean_difference", "ci_high"))
    bar = None
    width = reach[1] - reach[0]
    if width > 0.0 and all(map(math.isfinite, (low, middle, high))):
        values = (0.0, low, middle, high)
        bar = tuple(round(3.0 + 94.0 * (value - reach[0]) / width, 2) for value in values)
    p, tested = quoted_p(row)
    note = "over groups" if "groups" in tested else ""
    below, above = ends(row, "ci_low", "ci_high")
    return [
        Cell(signed(middle), middle, low=below, high=above, bar=bar),
        Cell(p_value(p), p, note=note),
        Cell(signed(row["cohens_dz"], 2), float(row["cohens_dz"])),
    ]


def quoted_p(row: Mapping[str, Any]) -> tuple[float, str]:
    """Return the corrected p to quote for a comparison, and what it was tested over.

    Where groups hold several images these are not independent, and the test over groups counts.
    """
    groups, cases = float(row.get("groups", math.inf)), float(row["n"])
    if groups < cases:
        return float(row["group_holm_p"]), f"{groups:g} groups of {cases:g} cases"
    return float(row["holm_p"]), f"{cases:g} cases"


def method_row(method: Method, cells: list[Cell], reference: str) -> Row:
    """Return the row of a method on one dataset."""
    compared = method.base == reference
    return Row(method.name, cells, method.kind, method.mark, method.seen, compared)
