"""The score table: a row for each method and test case, none left out."""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from ultrarefiner.datasets.loader import CaseRow, read_cases
from ultrarefiner.datasets.splits import read_split
from ultrarefiner.errors import UltraRefinerError
from ultrarefiner.evaluation.metrics import METRICS, score_case
from ultrarefiner.images import read_mask
from ultrarefiner.io import read_rows, write_rows

SCORE_COLUMNS = [
    *("dataset", "fold", "case", "group", "label", "method", "prompt_source"),
    *METRICS,
    *("empty_prediction", "empty_truth", "oracle", "selection", "area_share"),
]

_log = logging.getLogger(__name__)


def plain(value: Any) -> Any:
    """Return a value as a CSV cell: true/false, full-precision floats, empty for None and NaN."""
    if value is None:
        return ""
    if isinstance(value, bool | np.bool_):
        return "true" if value else "false"
    if isinstance(value, float):
        return "" if np.isnan(value) else repr(float(value))
    return value


def score_masks(
    method: str,
    dataset: str,
    fold: int,
    masks: str | Path,
    truth: str | Path,
    cases: str | Path,
    splits: str | Path,
    prompt_source: str,
    oracle: bool,
    selection: str,
    output: str | Path,
) -> None:
    """Score the masks of a method on the test cases of a fold, at the original size.

    The cases come from ``splits``, never from the files found: a case without a mask is an error,
    and a file that is no test case is ignored.

    Args:
        method: Name of the method.
        dataset: Name of the dataset.
        fold: Outer fold, from 0.
        masks: Folder of predicted masks ``{case}.png``.
        truth: Folder of true masks ``{case}.png``.
        cases: Table of the prepared cases: group, label and spacing.
        splits: Table of the folds.
        prompt_source: What the prompts were made from, as the table shall say.
        oracle: Whether the truth was used to predict.
        selection: What the models were selected on, as the table shall say.
        output: Table to write: `SCORE_COLUMNS`, sorted by case. ``area_share`` is the share of
            the image that the true lesion covers.

    Raises:
        UltraRefinerError: Masks are missing or have another size than the truth, or a case of the
            fold is not in ``cases``; all such cases are named.
    """
    masks, truth = Path(masks), Path(truth)
    test = read_split(splits, fold)["test"]
    known = {row.case: row for row in read_cases(cases)}
    _refuse(
        [case for case in test if case not in known],
        f"test cases of fold {fold} in {splits} are not in {cases}",
        "make the folds again from this table",
    )
    _refuse(
        [case for case in test if not (masks / f"{case}.png").is_file()],
        f"{method} has no mask in {masks} for test cases of fold {fold}",
        "run the job that predicts them again; every method is scored on every test case",
    )
    rows, wrong_size = [], []
    for case in test:
        predicted = read_mask(masks / f"{case}.png")
        true = read_mask(truth / f"{case}.png")
        if predicted.shape != true.shape:
            wrong_size.append(f"{case} (mask {predicted.shape}, truth {true.shape})")
            continue
        scores = score_case(predicted, true, _spacing(known[case], cases))
        row = {
            "dataset": dataset,
            "fold": fold,
            "case": case,
            "group": known[case].group or case,
            "label": known[case].label,
            "method": method,
            "prompt_source": prompt_source,
            **scores,
            "oracle": oracle,
            "selection": selection,
            "area_share": float(true.mean()),
        }
        rows.append({name: plain(row[name]) for name in SCORE_COLUMNS})
    _refuse(
        wrong_size,
        f"masks of {method} in {masks} do not have the size of the truth",
        "masks are scored at the original size only; run the job that predicts them again",
    )
    write_rows(output, SCORE_COLUMNS, rows)
    missed = sum(row["empty_prediction"] == "true" != row["empty_truth"] for row in rows)
    _log.info("%s, %s, fold %d: %d cases, %d missed", dataset, method, fold, len(rows), missed)


def _refuse(cases: list[str], what: str, cure: str) -> None:
    if cases:
        raise UltraRefinerError(f"{len(cases)} {what}: {', '.join(cases)}. Cure: {cure}.")


def _spacing(row: CaseRow, cases: str | Path) -> tuple[float, float] | None:
    """Return the (row, column) spacing in mm, or None where it is not known."""
    spacing = row.spacing_y_mm, row.spacing_x_mm
    if spacing == (None, None):
        return None
    if not all(step is not None and 0 < step < math.inf for step in spacing):
        raise UltraRefinerError(
            f"{cases}: {row.case} has spacing_y_mm {spacing[0]} and spacing_x_mm {spacing[1]}; "
            "give two positive numbers, or leave both empty"
        )
    return spacing


def read_scores(path: str | Path) -> list[dict[str, Any]]:
    """Read a score table as typed rows: fold int, flags bool, numbers float (NaN where empty).

    Raises:
        UltraRefinerError: The file is absent, lacks a column, or a cell does not hold its type.
    """
    cure = "Delete it and run again to make it anew."
    try:
        rows = read_rows(path)
    except OSError as error:
        raise UltraRefinerError(f"cannot read {path}: {error.strerror}. {cure}") from error
    if not rows:
        raise UltraRefinerError(f"{path} has no rows. {cure}")
    missing = [name for name in SCORE_COLUMNS if name not in rows[0]]
    if missing:
        raise UltraRefinerError(f"{path} lacks the columns {', '.join(missing)}. {cure}")
    try:
        return [_typed(row) for row in rows]
    except (KeyError, TypeError, ValueError) as error:
        raise UltraRefinerError(f"{path} has a cell that is no score: {error}. {cure}") from error


def _typed(row: dict[str, str]) -> dict[str, Any]:
    typed: dict[str, Any] = {name: row[name] for name in SCORE_COLUMNS}
    typed["fold"] = int(row["fold"])
    for name in (*METRICS, "area_share"):
        # Only a metric in mm may be unknown; anything else must be a number.
        unknown = row[name] == "" and name in METRICS and METRICS[name].unit == "mm"
        typed[name] = float("nan") if unknown else float(row[name])
        if not (unknown or np.isfinite(typed[name])):
            raise ValueError(f"{name} of {row['case']} is '{row[name]}'")
    for name in ("empty_prediction", "empty_truth", "oracle"):
        typed[name] = {"true": True, "false": False}[row[name]]
    return typed


def by_method(rows: Iterable[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Return the rows of each method, methods and rows sorted.

    Rows are sorted by dataset, fold and case, so that the same place in two lists is the same
    case.

    Raises:
        UltraRefinerError: A case is scored twice or not by all methods, or against another truth
            by some; or the rows of a method differ in prompt source, oracle or selection. The
            message names the cases.
    """
    truths: dict[tuple[str, int, str], tuple[Any, ...]] = {}
    methods: dict[str, dict[tuple[str, int, str], dict[str, Any]]] = defaultdict(dict)
    labels: dict[str, tuple[Any, ...]] = {}
    for row in rows:
        method, key = row["method"], (row["dataset"], row["fold"], row["case"])
        if key in methods[method]:
            raise UltraRefinerError(
                f"{method} is scored twice on {key[2]} (dataset {key[0]}, fold {key[1]}). "
                "Give each score table once."
            )
        label = row["prompt_source"], row["oracle"], row["selection"]
        if labels.setdefault(method, label) != label:
            raise UltraRefinerError(
                f"{method} has rows labelled {labels[method]} and {label} (prompt source, oracle, "
                "selection). Delete its score tables and run again."
            )
        truth = tuple(row[name] for name in ("group", "label", "empty_truth", "area_share"))
        if truths.setdefault(key, truth) != truth:
            raise UltraRefinerError(
                f"methods are scored against different truths of {key[2]}: group, label, empty "
                f"truth and area share are {truths[key]} and {truth}. The dataset has changed; "
                "delete its score tables and run again."
            )
        methods[method][key] = row
    everything = {key for scored in methods.values() for key in scored}
    problems = []
    for method in sorted(methods):
        missing = [f"{d} fold {f} {c}" for d, f, c in sorted(everything - set(methods[method]))]
        if missing:
            problems.append(f"{method} lacks {len(missing)}: {', '.join(missing)}")
    if problems:
        raise UltraRefinerError(
            "methods are not scored on the same cases, so their means cannot be compared. "
            + "; ".join(problems)
            + ". Score these cases, or leave the method out."
        )
    return {
        method: [methods[method][key] for key in sorted(everything)] for method in sorted(methods)
    }
