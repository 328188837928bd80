"""The tables that look beyond one evaluation: all datasets, every comparison, the oracle gap."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

from ultrarefiner.report.result_tables import label_of
from ultrarefiner.report.results import (
    NONE,
    Cell,
    Numbers,
    Row,
    Table,
    count_cell,
    ends,
    mean_cell,
    method_row,
    number_cell,
)
from ultrarefiner.report.tables import (
    EVALUATIONS,
    MARKS,
    Method,
    explain_names,
    in_order,
    p_value,
    signed,
)

_COMPARED_DIGITS = {"hd95_px": 1}


def overview_table(
    numbers: Mapping[str, Numbers],
    methods: Mapping[str, list[Method]],
    joint: Mapping[str, Numbers],
    everywhere: list[Method],
    reference: str,
) -> Table:
    """Return mean Dice of every method on every dataset.

    Args:
        numbers: The main evaluation of each dataset.
        methods: The methods of it.
        joint: ``pooled`` and ``macro``, where there are several datasets.
        everywhere: The methods of these.
        reference: The coarse method that others are compared with.
    """
    table = Table("overview", "Mean Dice on every dataset", "Method", [*numbers, *joint])
    order = list(
        {m.name: Method(m.name, m.kind) for mine in methods.values() for m in mine}.values()
    )
    marks = {method.name: method.mark for method in everywhere}
    best = {}
    for name, mine in methods.items():
        best[name] = _best_dice(numbers[name], mine)
    leading = {name: _best_dice(found, everywhere) for name, found in joint.items()}
    eligible = {method.name for method in everywhere if method.may_lead}
    for method in in_order(order, reference):
        cells = []
        for name, found in numbers.items():
            seen = next((m for m in methods[name] if m.name == method.name), None)
            row = found.get(method.name, "dice")
            leads = bool(row and seen and seen.may_lead and row["mean"] == best[name])
            note = "" if found.evaluation == "folds" else EVALUATIONS[found.evaluation]
            mark = "" if seen is None else seen.mark
            cells.append(mean_cell(row, best=leads, mark=mark, note=note))
        for name, found in joint.items():
            row = found.get(method.name, "dice")
            leads = bool(row and method.name in eligible and row["mean"] == leading[name])
            cells.append(mean_cell(row, best=leads, mark=marks.get(method.name, "")))
        compared = method.base == reference
        table.rows.append(Row(method.name, cells, method.kind, reference=compared))
    table.caption = (
        "Mean Dice over images with a lesion, 95 % confidence interval in brackets: of the folds' "
        "test cases, or, where no model was trained on the dataset, of all its cases as the models "
        "of all folds together see them. What follows @ is the training set; without it a model "
        "is trained on the dataset itself. Bold: best of its column, oracles and † apart. "
        + explain_names(order)
    ).rstrip()
    return table


def _best_dice(numbers: Numbers, methods: list[Method]) -> float:
    rows = [numbers.get(method.name, "dice") for method in methods if method.may_lead]
    return max((row["mean"] for row in rows if row), default=math.nan)


def comparison_table(
    comparisons: pd.DataFrame, dataset: str, methods: list[Method], reference: str
) -> Table | None:
    """Return every comparison of a dataset: all metrics and evaluations; None without any."""
    rows = comparisons[comparisons["dataset"].eq(dataset)]
    words = ["Against", "Evaluation", "Metric"]
    table = Table(f"comparisons_{dataset}", "Every comparison", "Method", words)
    table.words = frozenset(words)
    table.columns = [
        *words,
        *("n", "Groups", "Method's mean", "Its reference", "Difference"),
        *("p", "Holm p", "p over groups", "Holm p over groups"),
        *("Better", "Worse", "Equal", "Rank-biserial", "dz"),
    ]
    known = {method.name: method for method in methods}
    order = {name: place for place, name in enumerate(known)}
    for row in sorted(rows.to_dict("records"), key=lambda row: order.get(row["method"], 0)):
        digits = _COMPARED_DIGITS.get(row["metric"], 3)
        low, high = ends(row, "ci_low", "ci_high", digits)
        middle = float(row["mean_difference"])
        cells = [
            Cell(row["reference"]),
            Cell(EVALUATIONS.get(row["evaluation"], row["evaluation"])),
            Cell(label_of(row["metric"])),
            count_cell(row["n"]),
            count_cell(row["groups"]),
            number_cell(row["mean_method"], digits),
            number_cell(row["mean_reference"], digits),
            Cell(signed(middle, digits), middle, low=low, high=high),
            *(
                Cell(p_value(float(row[key])), float(row[key]))
                for key in ("wilcoxon_p", "holm_p", "group_wilcoxon_p", "group_holm_p")
            ),
            *(count_cell(row[key]) for key in ("better", "worse", "equal")),
            Cell(signed(row["rank_biserial"], 2), float(row["rank_biserial"])),
            Cell(signed(row["cohens_dz"], 2), float(row["cohens_dz"])),
        ]
        method = known.get(row["method"], _method_of(row))
        table.rows.append(method_row(method, cells, reference))
    table.rows.sort(key=lambda row: row.oracle)
    table.caption = (
        "Paired differences, method minus its reference, on the same cases. p: two-sided Wilcoxon "
        "signed-rank test over cases, and over the mean difference of each group; Holm: corrected "
        "for all comparisons of that metric in the study, oracles a family of their own. Better "
        "and worse count cases. Rank-biserial (over cases) and dz (over groups) are effect sizes."
    )
    return table if table.rows else None


def _method_of(row: Mapping[str, Any]) -> Method:
    kind = "oracle" if row["oracle"] else "refined"
    return Method(row["method"], kind, row["seen"])


def gap_table(gap: pd.DataFrame, dataset: str) -> Table | None:
    """Return how much of the way to a perfect prompt each refiner has gone; None without any."""
    rows = gap[gap["dataset"].eq(dataset)]
    columns = [
        "Evaluation",
        "Oracle",
        "n",
        "Coarse",
        "Refined",
        "Oracle's Dice",
        "Left",
        "Closed (%)",
    ]
    table = Table(f"gap_{dataset}", "Gap to the oracle", "Method", columns)
    table.words = frozenset(columns[:2])
    for row in rows.to_dict("records"):
        shown = {key: 100.0 * row[key] for key in ("closed", "closed_low", "closed_high")}
        low, high = ends(shown, "closed_low", "closed_high", 0)
        cells = [
            Cell(EVALUATIONS.get(row["evaluation"], row["evaluation"])),
            Cell(row["oracle_method"]),
            count_cell(row["n"]),
            *(number_cell(row[key]) for key in ("dice_coarse", "dice_method", "dice_oracle")),
            Cell(signed(row["gap"]), float(row["gap"])),
            number_cell(shown["closed"], 0, low=low, high=high),
        ]
        head = Row(row["method"], cells, "refined", MARKS.get(row["seen"], ""), row["seen"])
        table.rows.append(head)
    table.caption = (
        "Mean Dice of the coarse masks, of the refiner prompted with them, and of the same refiner "
        "prompted from the truth (oracle: an upper bound, not a result). Left: oracle minus "
        "refined. Closed: the share of the way from coarse to oracle, with 95 % "
        "confidence interval; a dash where the oracle is no better than the coarse mask; below "
        "zero where refining harmed."
    )
    return table if table.rows else None


def calibration_table(
    calibration: pd.DataFrame, dataset: str, methods: list[Method]
) -> Table | None:
    """Return how well the probabilities of models can be taken at their word; None without any."""
    known = {method.name: method for method in methods}
    order = list(known)
    rows = calibration[calibration["dataset"].eq(dataset)]
    columns = ["Evaluation", "Models", "ECE near lesions", "ECE", "Brier", "Million pixels"]
    table = Table(f"calibration_{dataset}", "Calibration", "Method", columns)
    table.words = frozenset(columns[:2])
    for (method, evaluation, member), bins in rows.groupby(["method", "evaluation", "member"]):
        cells = [
            Cell(EVALUATIONS.get(evaluation, evaluation)),
            Cell("each its own fold" if evaluation == "folds" else member),
            number_cell(float(bins["ece_near"].iloc[0]), 4),
            number_cell(float(bins["ece"].iloc[0]), 4),
            number_cell(float(bins["brier"].iloc[0]), 4),
            number_cell(float(bins["pixels"].sum()) / 1e6, 2),
        ]
        kind = known[method].kind if method in known else "coarse"
        table.rows.append(Row(str(method), cells, kind))
    table.rows.sort(key=lambda row: order.index(row.head) if row.head in known else -1)
    table.caption = (
        "Over all pixels of the test cases. ECE: expected calibration error, the mean distance "
        "between the probability and the share of lesion in a bin, weighted by its pixels; most "
        "pixels are background that is easily told, so it is small even for poor models. Near "
        "lesions: within the lesion's box, grown to twice its sides. Brier: mean squared error of "
        "the probability. Less is better."
    )
    return table if table.rows else None


def point_table(points: list[dict[str, Any]], dataset: str) -> Table | None:
    """Return where point prompts fell, and what it costs when they are off; None without any."""
    columns = ["Point", "Points", "Inside (%)", "Distance (px)", "Dice", "Change"]
    table = Table(f"points_{dataset}", "Point prompts", "Refiner", columns)
    table.words = frozenset(columns[:1])
    words = {"coarse": "of the coarse mask", "oracle": "of the truth (oracle)"}
    for line in points:
        if line["dataset"] != dataset:
            continue
        what = words.get(line["source"], f"truth's, error of {line['sigma'] or 0:g} px (oracle)")
        inside = {key: _percent(line[f"inside_{key}"]) for key in ("rate", "low", "high")}
        low, high = ends(inside, "low", "high", 1)
        cells = [
            Cell(what),
            count_cell(line["n"]),
            number_cell(inside["rate"], 1, low=low, high=high),
            number_cell(_known(line["distance_median"]), 1),
            _interval_cell(line, "dice", signs=False),
            _interval_cell(line, "change", signs=True),
        ]
        kind = "refined" if line["source"] == "coarse" else "oracle"
        mark = MARKS.get(line["seen"], "")
        table.rows.append(Row(line["refiner"], cells, kind, mark, line["seen"]))
    table.caption = (
        "Inside: share of the points that lie on the lesion. Distance: median, from the truth's "
        "own point. Change: mean difference of Dice from the truth's own point. 95 % confidence "
        "intervals in brackets, over groups."
    )
    return table if table.rows else None


def _known(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _percent(value: float | None) -> float:
    return 100.0 * _known(value)


def _interval_cell(line: Mapping[str, Any], name: str, signs: bool) -> Cell:
    values = {end: _known(line[f"{name}_{end}"]) for end in ("mean", "low", "high")}
    if not math.isfinite(values["mean"]):
        return NONE
    low, high = ends(values, "low", "high")
    text = signed(values["mean"]) if signs else number_cell(values["mean"]).text
    return Cell(text, values["mean"], low=low, high=high)
