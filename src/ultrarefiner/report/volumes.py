"""The tables of volumes: prompt strategies beside modes, and modes compared with each other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from ultrarefiner.evaluation.volumes import MEASURES
from ultrarefiner.report.results import (
    NONE,
    Cell,
    Row,
    Table,
    count_cell,
    difference_cells,
    ends,
    mean_cell,
    number_cell,
    quoted_p,
)
from ultrarefiner.report.tables import EVALUATIONS, MARKS, p_value, signed, with_kinds

MODE_WORDS = {
    "slices": "slice by slice",
    "memory": "propagated by memory",
    "masks": "propagated by masks",
}
_SOURCES = {"none": "–", "coarse": "coarse mask", "ground_truth": "truth"}
_ORDER = list(MODE_WORDS)
# Of a dataset whose spacing is not known; the others have mm.
_VOXELS = ("hd95_voxels", "assd_voxels")
_SPEED = (
    "Slices/s: all slices over the seconds of the jobs that segmented them and encoded their "
    "images, the start of the jobs and the loading of weights included, the coarse model that "
    "prompts not; embeddings that were on the shelf already cost nothing."
)


@dataclass(frozen=True)
class VolumeResults:
    """The results of one evaluation of a dataset that holds volumes.

    Attributes:
        dataset: Its name.
        title: The dataset, and how it was evaluated.
        tables: Methods that make do without the truth, oracles, modes compared; what there is.
    """

    dataset: str
    title: str
    tables: list[Table]


@dataclass(frozen=True)
class VolumePage:
    """The page of volumes."""

    parts: list[VolumeResults]

    @property
    def tables(self) -> list[Table]:
        """All tables."""
        return [table for part in self.parts for table in part.tables]


def volume_page(lines: pd.DataFrame, comparisons: pd.DataFrame, reference: str) -> VolumePage:
    """Return the results of a study on volumes.

    Args:
        lines: ``volumes.csv``.
        comparisons: ``volume_comparisons.csv``.
        reference: The coarse method that gives the prompts.
    """
    lines = with_kinds(lines, reference)
    parts = []
    for (dataset, evaluation), mine in lines.groupby(["dataset", "evaluation"], sort=False):
        # The folds have the plain names: no dataset can be called as another one's hold-out.
        before = "" if evaluation == "folds" else f"{evaluation}_"
        title = f"{dataset}, {EVALUATIONS[evaluation]}"
        oracle = mine["oracle"]
        tables = []
        if not oracle.all():
            name = f"{before}volume_scores_{dataset}"
            tables.append(_scores(name, f"Volumes of {title}", mine[~oracle], reference))
        if oracle.any():
            name = f"{before}volume_oracles_{dataset}"
            heading = f"Oracles on volumes of {title}"
            tables.append(_scores(name, heading, mine[oracle], reference))
        found = comparisons[
            comparisons["dataset"].eq(dataset) & comparisons["evaluation"].eq(evaluation)
        ]
        if len(found):
            name = f"{before}volume_modes_{dataset}"
            tables.append(_modes(name, f"Propagated and slice by slice: {title}", found, mine))
        parts.append(VolumeResults(str(dataset), title, tables))
    return VolumePage(parts)


def _scores(name: str, title: str, rows: pd.DataFrame, reference: str) -> Table:
    """Return the table of prompt strategies and modes."""
    known = rows["hd95_mm_mean"].notna().any()
    shown = [
        key
        for key in MEASURES
        if rows[f"{key}_mean"].notna().any() and not (known and key in _VOXELS)
    ]
    alone = rows["fold"].ne("all") | rows["member"].eq("vote")
    alarms = rows["false_positives"].gt(0).any()
    table = Table(name, title, "Method", [])
    words = ["Prompt", "From", "Mode", *(["Predicted by"] if alone.any() else [])]
    table.columns = [*words, "n", *(MEASURES[key].label for key in shown), "Missed"]
    table.columns += [*(["False alarms"] if alarms else []), "Slices/s"]
    table.words = frozenset(words)
    best = rows.loc[~rows["oracle"] & rows["seen"].ne("yes"), "dice_mean"].max()
    for row in sorted(rows.to_dict("records"), key=lambda row: _place(row, reference)):
        cells = [Cell(row["prompt_kind"] or "–"), Cell(_SOURCES[row["prompt_source"]])]
        cells.append(Cell(MODE_WORDS[row["mode"]]))
        cells += [Cell(_predictor(row))] if alone.any() else []
        cells.append(count_cell(row["n"]))
        may_lead = not row["oracle"] and row["seen"] != "yes"
        for key in shown:
            lead = may_lead and key == "dice" and row["dice_mean"] == best
            cells.append(mean_cell(_mean(row, key), MEASURES[key].digits, best=lead))
        cells.append(count_cell(row["misses"]))
        cells += [count_cell(row["false_positives"])] if alarms else []
        cells.append(number_cell(row["slices_per_second"], 2))
        mark, compared = MARKS.get(row["seen"], ""), row["method"].partition("@")[0] == reference
        table.rows.append(Row(row["method"], cells, row["kind"], mark, row["seen"], compared))
    table.caption = _caption(known, bool(rows["oracle"].any()))
    return table


def _place(row: dict[str, Any], reference: str) -> tuple[Any, ...]:
    """Return the sorting key of a line: the modes of one prompt stand together."""
    base, _, at = row["method"].partition("@")
    mode = _ORDER.index(row["mode"])
    return row["prompt"] != "", base != reference, at, row["prompt"], mode, base, row["fold"]


def _predictor(row: dict[str, Any]) -> str:
    if row["fold"] != "all":
        return f"model of fold {row['fold']}"
    return "vote of all folds' models" if row["member"] == "vote" else "all folds' models"


def _mean(row: dict[str, Any], key: str) -> dict[str, float]:
    names = {"mean": "mean", "low": "ci_low", "high": "ci_high"}
    return {name: float(row[f"{key}_{end}"]) for end, name in names.items()}


def _caption(known: bool, oracle: bool) -> str:
    words = [
        "Means over volumes with a lesion, with 95 % confidence interval over groups; a lesion that "
        "is missed in all slices counts with Dice 0 and the volume's diagonal.",
        "Distances are in mm, along rows, columns and slices as far apart as they are."
        if known
        else "The spacing is not known, so distances are in voxels, whatever their shape.",
        "Dice of slices: the mean over a volume's slices with a lesion.",
        _SPEED,
    ]
    words += (
        ["Every row was prompted from the truth: an upper bound, no result, and never ranked."]
        if oracle
        else ["Bold: best Dice."]
    )
    return " ".join(words)


def _modes(name: str, title: str, found: pd.DataFrame, rows: pd.DataFrame) -> Table:
    """Return the table of propagated methods beside those that take each slice by itself."""
    dice = found[found["metric"].eq("dice")].to_dict("records")
    distance = found[found["metric"].ne("dice")]
    unit = MEASURES[str(distance["metric"].iloc[0])]
    others = {(row["method"], row["reference"]): row for row in distance.to_dict("records")}
    table = Table(name, title, "Method", ["Mode", "Against", "n", "Δ Dice", "Holm p"])
    table.columns += ["Effect (dz)", f"Δ {unit.label}", "Holm p of it", "Better", "Worse"]
    table.words = frozenset({"Mode", "Against"})
    kinds = dict(zip(rows["method"], rows["kind"], strict=True))
    reach = _reach(dice)
    for row in dice:
        other = others[row["method"], row["reference"]]
        cells = [Cell(MODE_WORDS[row["mode"]]), Cell(row["reference"]), count_cell(row["n"])]
        cells += [*difference_cells(row, reach, False), *_distance_cells(other, unit.digits)]
        cells += [count_cell(row["better"]), count_cell(row["worse"])]
        table.rows.append(Row(row["method"], cells, kinds[row["method"]]))
    table.rows.sort(key=lambda row: row.oracle)
    table.caption = (
        "Paired differences over the same volumes: propagated minus slice by slice, by the same "
        "model with the same prompts, with 95 % confidence interval over groups. A positive Δ Dice "
        f"and a negative Δ {unit.label} mean that propagation is better. Holm p: Wilcoxon's test, "
        "corrected for all of these comparisons in the study, oracles a family of their own. "
        "Better, Worse: volumes, by Dice."
    )
    return table


def _distance_cells(row: dict[str, Any], digits: int) -> list[Cell]:
    middle = float(row["mean_difference"])
    if not math.isfinite(middle):
        return [NONE, NONE]
    low, high = ends(row, "ci_low", "ci_high", digits)
    p, tested = quoted_p(row)
    note = "over groups" if "groups" in tested else ""
    return [
        Cell(signed(middle, digits), middle, low=low, high=high),
        Cell(p_value(p), p, note=note),
    ]


def _reach(rows: Sequence[dict[str, Any]]) -> tuple[float, float]:
    """Return the least and the largest end of the intervals of all differences, and zero."""
    found = [0.0, *(float(row[key]) for row in rows for key in ("ci_low", "ci_high"))]
    known = [value for value in found if math.isfinite(value)]
    return min(known), max(known)
