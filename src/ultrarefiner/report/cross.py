"""The cross-dataset matrix: trained on one dataset or union, tested on another."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from ultrarefiner.report.results import NONE, Cell, Numbers, Row, Table, mean_cell, single_cell
from ultrarefiner.report.tables import MARKS, Method, list_methods

_OVERLAP = "§"
_OWN, _ALL = "own folds", "all folds' models"


@dataclass(frozen=True)
class Pair:
    """A cell of the matrix: a method trained on one set and tested on a dataset.

    Attributes:
        trained_on: The training set.
        dataset: The dataset it is tested on.
        own: Whether the training set has the dataset: then it is tested by the folds.
        marks: Signs of weights that saw the dataset, and of shared images.
        cell: Mean Dice of what stands for the method (folds or ensemble), with its interval.
        single: Mean Dice over the single models, ± their standard deviation, where they differ.
        vote: Mean Dice of the majority vote.
        seen: Whether the weights saw the dataset.
        by: Who predicted, in words.
    """

    trained_on: str
    dataset: str
    own: bool
    marks: str
    cell: Cell
    single: Cell
    vote: Cell
    seen: str
    by: str = ""

    @property
    def words(self) -> str:
        """What the single models reach, where that is more than the cell itself says."""
        if not math.isfinite(self.single.value):
            return ""
        return f"single {self.single.text} ± {self.single.spread}"


@dataclass(frozen=True)
class Matrix:
    """All pairs of one method.

    Attributes:
        method: The method, without a training set.
        kind: ``coarse``, ``refined`` or ``end_to_end``.
        trainsets: The rows.
        datasets: The columns.
        pairs: By (training set, dataset).
    """

    method: str
    kind: str
    trainsets: list[str]
    datasets: list[str]
    pairs: dict[tuple[str, str], Pair]


def cross_matrices(
    scores: pd.DataFrame,
    summary: pd.DataFrame,
    overlaps: pd.DataFrame,
    reference: str,
    leading: Sequence[str],
) -> list[Matrix]:
    """Return the matrix of each coarse model, of each end-to-end one and of what leads.

    Args:
        scores: As `ultrarefiner.report.tables.read_scores` gives them.
        summary: All of ``summary.csv``.
        overlaps: All of ``overlaps.csv``.
        reference: The coarse method that others are compared with.
        leading: Methods that refine, without training sets, that get a matrix too.

    Returns:
        None where no method was tested on a dataset that it was not trained on.
    """
    tested = scores[scores["evaluation"].isin(["folds", "unseen"])]
    if not tested["evaluation"].eq("unseen").any():
        return []
    bases = tested.assign(base=tested["method"].str.partition("@")[0])
    sets = _members(tested)
    # A matrix compares nothing, so it looks at no comparison.
    numbers = {
        (dataset, evaluation): Numbers(summary, summary.iloc[:0], dataset, evaluation)
        for dataset, evaluation in set(zip(tested["dataset"], tested["evaluation"], strict=True))
    }
    shared = _shared(overlaps)
    matrices = []
    for method in _shown(list_methods(tested, reference), leading):
        rows = bases[bases["base"].eq(method.base)]
        facts = rows.drop_duplicates(["trained_on", "dataset", "evaluation", "method"])
        pairs = {}
        for row in facts.itertuples():
            found = numbers[row.dataset, row.evaluation]
            overlap = any((member, row.dataset) in shared for member in sets[row.trained_on])
            marks = MARKS.get(row.seen, "")
            if row.evaluation == "unseen" and overlap:
                marks += _OVERLAP
            pairs[row.trained_on, row.dataset] = _pair(row, found, marks)
        names = sorted({pair[0] for pair in pairs}, key=lambda name: (len(sets[name]) > 1, name))
        datasets = sorted({pair[1] for pair in pairs}, key=lambda name: (name not in names, name))
        matrices.append(Matrix(method.base, method.kind, names, datasets, pairs))
    return matrices


def _shown(methods: list[Method], leading: Sequence[str]) -> list[Method]:
    shown = {}
    for method in methods:
        # A tuned threshold is no model of its own; it has its table on the datasets' pages.
        model = method.kind in ("coarse", "end_to_end") and "-" not in method.base
        if model or method.base in leading:
            shown.setdefault(method.base, method)
    return list(shown.values())


def _members(tested: pd.DataFrame) -> dict[str, set[str]]:
    """Return the datasets of each training set: those on which it is tested by folds."""
    folds = tested[tested["evaluation"].eq("folds")]
    members = {name: {str(name)} for name in set(tested["trained_on"])}
    for name, mine in folds.groupby("trained_on"):
        members[name] = set(mine["dataset"])
    return members


def _shared(overlaps: pd.DataFrame) -> set[tuple[str, str]]:
    pairs = set(zip(overlaps["dataset"], overlaps["other_dataset"], strict=True))
    return {pair for one, other in pairs if one != other for pair in ((one, other), (other, one))}


def _pair(row: object, found: Numbers, marks: str) -> Pair:
    own = row.evaluation == "folds"
    cell = mean_cell(found.get(row.method, "dice"), mark=marks, count=True)
    single = vote = NONE
    by = _OWN if own else _ALL if found.main[1] == "all" else f"model of fold {found.main[1]}"
    if not own:
        each = found.singles(row.method)
        single = single_cell(each) if len(each) > 1 else NONE
        vote = mean_cell(found.get(row.method, "dice", who=("vote", "all")))
    return Pair(row.trained_on, row.dataset, own, marks, cell, single, vote, row.seen, by)


def explain(matrix: Matrix) -> str:
    """Return who predicted the cells that are not of the training set's own folds."""
    tested = [pair for pair in matrix.pairs.values() if not pair.own]
    where = "on a dataset that none of them was trained on"
    several = any(math.isfinite(pair.single.value) for pair in tested)
    if any(pair.by != _ALL for pair in tested):
        text = "a single model, on a dataset that it was not trained on"
    elif matrix.kind != "refined":
        text = f"the mean probability of all folds' models, {where}"
    elif several:
        text = (
            "what at least half of the folds' models say, each refining the masks of its fold's "
            f"coarse model, {where}"
        )
    else:
        text = f"refined from the mean probability of all folds' coarse models, {where}"
    if several:
        text += "; single: the mean ± standard deviation over these models, each alone"
    return text


def matrix_table(matrix: Matrix) -> Table:
    """Return the matrix as a table: what the figure shows."""
    title = f"{matrix.method}: trained on the row, tested on the column"
    table = Table(f"cross_{matrix.method}", title, "Trained on", list(matrix.datasets))
    for name in matrix.trainsets:
        cells = []
        for dataset in matrix.datasets:
            pair = matrix.pairs.get((name, dataset))
            if pair is None:
                cells.append(NONE)
                continue
            note = _OWN if pair.own else pair.words
            cells.append(
                Cell(
                    pair.cell.text,
                    pair.cell.value,
                    low=pair.cell.low,
                    high=pair.cell.high,
                    note=note,
                    mark=pair.marks,
                )
            )
        table.rows.append(Row(name, cells))
    table.caption = (
        "Mean Dice with 95 % confidence interval. Own folds: cross-validation within the training "
        f"set. The others: {explain(matrix)}."
    )
    return table


def member_table(matrix: Matrix) -> Table:
    """Return a row for each pair: ensemble mean, majority vote and single models apart."""
    columns = ["Tested on", "By", "n", "Folds or mean", "Vote", "Single models"]
    table = Table(
        f"members_{matrix.method}",
        f"{matrix.method}: ensembles and single models",
        "Trained on",
        columns,
    )
    table.words = frozenset(columns[:2])
    for name in matrix.trainsets:
        for dataset in matrix.datasets:
            pair = matrix.pairs.get((name, dataset))
            if pair is None:
                continue
            count = float(pair.cell.count) if pair.cell.count else math.nan
            shown = Cell(pair.cell.text, pair.cell.value, low=pair.cell.low, high=pair.cell.high)
            cells = [
                Cell(dataset),
                Cell(pair.by),
                Cell(pair.cell.count or "–", count),
                shown,
                pair.vote,
                pair.single,
            ]
            table.rows.append(Row(name, cells, mark=pair.marks, seen=pair.seen))
    table.caption = (
        "Mean Dice, 95 % confidence interval in brackets. Vote: strict majority of the masks. "
        "Single models: mean over the folds' models, each alone, ± standard deviation over them."
    )
    return table
