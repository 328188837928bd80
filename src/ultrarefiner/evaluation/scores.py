"""Scores of one method on one fold: a row for each test case, none left out."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np

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
    known = {row["case"]: row for row in read_rows(cases)}
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
            "group": known[case]["group"] or case,
            "label": known[case]["label"],
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


def _spacing(row: dict[str, str], cases: str | Path) -> tuple[float, float] | None:
    """Return the (row, column) spacing in mm, or None where it is not known."""
    cells = row["spacing_y_mm"], row["spacing_x_mm"]
    if cells == ("", ""):
        return None
    try:
        spacing = float(cells[0]), float(cells[1])
    except ValueError:
        spacing = (0.0, 0.0)
    if not all(0 < step < float("inf") for step in spacing):
        raise UltraRefinerError(
            f"{cases}: {row['case']} has spacing_y_mm '{cells[0]}' and spacing_x_mm '{cells[1]}'; "
            "give two positive numbers, or leave both empty"
        )
    return spacing
