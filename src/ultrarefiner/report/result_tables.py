"""The tables of one evaluation of a dataset: means, folds, ensembles, subgroups, thresholds."""

from __future__ import annotations

import math

from ultrarefiner.evaluation.metrics import METRICS
from ultrarefiner.evaluation.subgroups import SIZES
from ultrarefiner.report.results import (
    NONE,
    Cell,
    Numbers,
    Table,
    count_cell,
    difference_cells,
    mean_cell,
    mean_of,
    method_row,
)
from ultrarefiner.report.tables import JOINT, Method, explain_names

_DIGITS = {"hd95_px": 1, "hd95_mm": 2, "assd_px": 1}
# The metrics of the leading table, and of the one that looks closer.
_LEADING = ("dice", "iou", "hd95_px", "hd95_mm")
_DETAILED = ("hd95_px", "hd95_mm", "hd95_share", "assd_px", "nsd", "precision", "recall")
_SPECIFICITY = "specificity"
DIMENSIONS = {
    "label": "By class",
    "size": "By size of the lesion",
    "tertile": "By size of the lesion within this dataset",
    "overlay": "By marks burned into the image",
    "border": "By black borders",
    "look_alike": "By whether the dataset has a look-alike of the image",
    "spacing": "By whether the pixel spacing is known",
    "elsewhere": "By whether another dataset of the study has the image too",
}
_VALUES = {
    "tertile": {"1": "smallest third", "2": "middle third", "3": "largest third"},
    "size": {name: f"{name} lesions" for name in SIZES},
    "overlay": {"yes": "calipers or text", "no": "no marks"},
    "border": {"yes": "black border", "no": "no border"},
    "look_alike": {"yes": "has look-alikes", "no": "has none"},
    "spacing": {"known": "spacing known", "unknown": "spacing unknown"},
    "elsewhere": {"yes": "also in another dataset", "no": "in this one only"},
}


def label_of(metric: str) -> str:
    """Return a metric's name in the report."""
    return METRICS[metric].label if metric in METRICS else metric.capitalize()


def leading_table(
    numbers: Numbers, methods: list[Method], reference: str, name: str, title: str
) -> Table:
    """Return the table a reader looks at first: a row for each method, all cases."""
    shown = [m for m in _LEADING if any(numbers.get(method.name, m) for method in methods)]
    best = {metric: _best(numbers, methods, metric) for metric in shown}
    compared = any(numbers.difference(method.name) for method in methods)
    counted = any(numbers.get(method.name, _SPECIFICITY) for method in methods)
    table = Table(name, title, "Method", ["n", *map(label_of, shown), "Missed"])
    table.columns += ["False alarms", "Specificity"] if counted else []
    table.columns += ["Δ Dice", "Holm p", "Effect (dz)"] if compared else []
    reach = numbers.reach()
    for method in methods:
        dice = numbers.get(method.name, "dice")
        # Where no image has a lesion there is the specificity alone.
        counts = dice or numbers.get(method.name, _SPECIFICITY)
        if counts is None:
            continue
        cells = [count_cell(dice["n"] if dice else 0)]
        for metric in shown:
            row = numbers.get(method.name, metric)
            leads = method.may_lead and mean_of(row) == best[metric]
            cells.append(mean_cell(row, _DIGITS.get(metric, 3), leads, spread=metric == "dice"))
        cells.append(count_cell(counts["misses"]))
        if counted:
            row = numbers.get(method.name, _SPECIFICITY)
            cells += [count_cell(counts["false_positives"]), mean_cell(row, count=True)]
        if compared:
            row = numbers.difference(method.name)
            cells += difference_cells(row, reach, method.base == reference)
        table.rows.append(method_row(method, cells, reference))
    table.caption = " ".join(
        filter(
            None,
            [
                _explain(numbers, reference, name.removeprefix("leading_"), compared, counted),
                explain_names(methods),
            ],
        )
    )
    bars = "Δ Dice is drawn as a bar with its interval; the dashed line is zero. "
    table.on_page = f"{bars if compared else ''}Click a heading to sort."
    return table


def _best(numbers: Numbers, methods: list[Method], metric: str) -> float:
    means = [mean_of(numbers.get(m.name, metric)) for m in methods if m.may_lead]
    known = [mean for mean in means if math.isfinite(mean)]
    choose = max if METRICS[metric].better == "higher" else min
    return choose(known, default=math.nan)


def _explain(numbers: Numbers, reference: str, key: str, compared: bool, counted: bool) -> str:
    if key == "macro":
        return "n counts datasets, and ± is the standard deviation of their means."
    if key in JOINT:
        return "All cases of the datasets together; columns as in the tables of the datasets."
    member, fold = numbers.main
    who = {
        "folds": "each test case predicted by the model of its fold, which never saw it",
        "holdout": "held-out cases, in no fold",
        "unseen": "no model was trained on this dataset; what follows @ is what it was trained on",
    }[numbers.evaluation]
    if numbers.evaluation != "folds":
        who += (
            f"; predicted by the models of all folds together ({member})"
            if fold == "all"
            else f"; predicted by the model of fold {fold}"
        )
    against = f"{reference} of the same training set"
    return " ".join(
        [
            f"Means over images with a lesion ({who}), 95 % confidence intervals in brackets; "
            "± is the standard deviation over cases. Missed: lesions for which the mask is empty.",
            *(
                ["Specificity: share of the images without a lesion that were left without one."]
                if counted
                else []
            ),
            *(
                [
                    f"Δ Dice: mean paired difference to {against}. A second training set's is "
                    "compared with the first one's. dz: effect size over groups, mean difference "
                    "in standard deviations."
                ]
                if compared
                else []
            ),
            "Bold: best of its column, oracles and † apart.",
        ]
    )


def detail_table(numbers: Numbers, methods: list[Method], reference: str, name: str) -> Table:
    """Return distances in pixels, millimetres and shares of the diagonal, and what else there is."""
    shown = [m for m in _DETAILED if any(numbers.get(method.name, m) for method in methods)]
    table = Table(name, "Distances, precision and recall", "Method", list(map(label_of, shown)))
    for method in methods:
        cells = [
            mean_cell(numbers.get(method.name, metric), _DIGITS.get(metric, 3), spread=True)
            for metric in shown
        ]
        table.rows.append(method_row(method, cells, reference))
    table.caption = (
        "Means ± standard deviation over cases, 95 % confidence interval in brackets. HD95 in "
        "pixels of the original image, in millimetres over the cases whose spacing is known, and "
        "as a share of the image diagonal; a missed lesion counts with the whole diagonal."
    )
    return table


def fold_table(numbers: Numbers, methods: list[Method], reference: str, name: str) -> Table:
    """Return mean Dice by fold."""
    table = Table(name, "By fold", "Method", [f"Fold {fold}" for fold in numbers.folds])
    for method in methods:
        rows = [
            numbers.get(method.name, "dice", who=("single", str(fold))) for fold in numbers.folds
        ]
        cells = [mean_cell(row, interval=False, count=True) for row in rows]
        table.rows.append(method_row(method, cells, reference))
    table.caption = "Mean Dice of each outer fold, on the fold's own test cases."
    return table


def holdout_table(
    held: Numbers, folds: Numbers, methods: list[Method], reference: str, name: str
) -> Table:
    """Return the hold-out beside the folds: mean Dice by each fold's model and by the ensembles."""
    table = Table(name, "Hold-out beside the folds", "Method", ["Folds"])
    table.columns += [f"Model of fold {fold}" for fold in held.folds]
    table.columns += [f"Ensemble: {member}" for member in held.ensembles]
    table.columns += ["Δ Dice", "Holm p", "Effect (dz)"]
    for method in methods:
        cells = [mean_cell(folds.get(method.name, "dice"), count=True)]
        members = [("single", str(fold)) for fold in held.folds]
        members += [(member, "all") for member in held.ensembles]
        for who in members:
            cells.append(mean_cell(held.get(method.name, "dice", who=who), count=True))
        row = held.difference(method.name)
        cells += difference_cells(row, held.reach(), method.base == reference)
        table.rows.append(method_row(method, cells, reference))
    table.caption = (
        "Mean Dice with 95 % confidence interval. Folds: cross-validation, from the table above. "
        "The other columns: cases that were kept out of every fold, predicted by the model of each "
        "fold and by all together (mean: mean probability; vote: strict majority of the masks). "
        "Refined methods start from the mean; of a refiner with a model for each fold it is what "
        "at least half of the models' masks say. The differences are those of the ensemble mean."
    )
    return table


def subgroup_table(
    numbers: Numbers, methods: list[Method], reference: str, name: str, dimension: str
) -> Table:
    """Return mean Dice by subgroup of one dimension: class, size, quality of the image."""
    groups = numbers.subgroups(dimension)
    titles = [_value_title(dimension, group.partition("=")[2]) for group in groups]
    title = DIMENSIONS.get(dimension, f"By {dimension}")
    table = Table(f"{name}_{dimension}", title, "Method", titles)
    for method in methods:
        rows = [numbers.get(method.name, "dice", group) for group in groups]
        cells = [mean_cell(row, count=True) for row in rows]
        table.rows.append(method_row(method, cells, reference))
    limits = f"{100 * SIZES['medium']:g} % of the image, large ones {100 * SIZES['large']:g} %"
    table.caption = "Mean Dice with 95 % confidence interval. " + {
        "size": f"Small lesions cover less than {limits} or more. ",
        "tertile": "Thirds of the lesions of this dataset, by the share of the image. ",
        "overlay": "Calipers and text can tell a network where the lesion is. ",
    }.get(dimension, "")
    table.caption += "Subgroups were not tested; read them as description."
    return table


def _value_title(dimension: str, value: str) -> str:
    return _VALUES.get(dimension, {}).get(value, value)


def threshold_table(
    numbers: Numbers, methods: list[Method], reference: str, name: str
) -> Table | None:
    """Return each model that needs no prompts at 0.5 and at its own threshold; None without any."""
    metrics = ("dice", "hd95_px", "precision", "recall")
    names = {method.name for method in methods}
    table = Table(name, "Threshold: 0.5 and tuned", "Method", [])
    for metric in metrics:
        table.columns += [f"{label_of(metric)} at 0.5", f"{label_of(metric)} tuned"]
    table.columns += ["Missed at 0.5", "Missed tuned"]
    for method in methods:
        tuned = f"{method.base}-tuned{method.at}"
        if tuned not in names or numbers.get(tuned, "dice") is None:
            continue
        cells: list[Cell] = []
        for metric in metrics:
            for which in (method.name, tuned):
                row = numbers.get(which, metric)
                leading = metric == "dice"
                cells.append(mean_cell(row, _DIGITS.get(metric, 3), interval=leading))
        for which in (method.name, tuned):
            row = numbers.get(which, "dice")
            cells.append(NONE if row is None else count_cell(row["misses"]))
        table.rows.append(method_row(method, cells, reference))
    joint = any(row.kind == "end_to_end" for row in table.rows)
    table.caption = (
        f"Coarse models{' and those trained end to end' if joint else ''} cut at a probability of "
        "0.5, and at the threshold with the highest mean Dice on the validation cases of each "
        "fold; the test cases had no part in choosing it."
    )
    return table if table.rows else None
