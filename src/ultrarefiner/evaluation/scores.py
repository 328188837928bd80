"""The score table: a row for each method, part and case, none left out."""

from __future__ import annotations

import logging
import math
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ultrarefiner.datasets.loader import CaseRow, read_cases
from ultrarefiner.datasets.parts import parse_part, read_part
from ultrarefiner.datasets.tables import each_row
from ultrarefiner.errors import UltraRefinerError
from ultrarefiner.evaluation.metrics import METRICS, score_case
from ultrarefiner.images import read_mask
from ultrarefiner.io import write_rows

SCORE_COLUMNS = [
    *("dataset", "evaluation", "member", "fold", "case", "group", "label"),
    *("method", "trained_on", "prompt_source"),
    *METRICS,
    *("empty_prediction", "empty_truth", "oracle", "selection", "seen"),
    *("area_share", "overlay", "border", "look_alike", "spacing"),
]
EVALUATIONS = ("folds", "holdout", "unseen")
MEMBERS = ("single", "mean", "vote")

# Cells that hold one of a few words.
_WORDS = {
    "evaluation": EVALUATIONS,
    "member": MEMBERS,
    "seen": ("yes", "no", "unknown"),
    "border": ("yes", "no"),
    "look_alike": ("yes", "no"),
    "spacing": ("known", "unknown"),
}
_TRUTH = ("group", "label", "empty_truth", "area_share")

Row = dict[str, Any]
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
    part: str,
    masks: str | Path,
    truth: str | Path,
    cases: str | Path,
    splits: str | Path,
    trained_on: str,
    prompt_source: str,
    oracle: bool,
    selection: str,
    seen: str,
    output: str | Path,
) -> None:
    """Score the masks of a method on a part of a dataset, at the original size.

    The cases come from ``splits``, never from the files found: a case without a mask is an error,
    and a file that is no case of the part is ignored.

    Args:
        method: Name of the method.
        dataset: Name of the dataset.
        part: Part of the dataset, such as ``fold0`` or ``holdout-mean``; it tells the evaluation,
            the member and the fold.
        masks: Folder of predicted masks ``{case}.png``.
        truth: Folder of true masks ``{case}.png``.
        cases: Table of the prepared cases: group, label, spacing and quality.
        splits: Table that ``read_part`` takes for the part.
        trained_on: Training set of the models, as the table shall say.
        prompt_source: What the prompts were made from, as the table shall say.
        oracle: Whether the truth was used to predict.
        selection: What the models were selected on, as the table shall say.
        seen: Whether published weights of the method were trained on this dataset: "yes", "no" or
            "unknown".
        output: Table to write: `SCORE_COLUMNS`, sorted by case. ``fold`` is empty for an ensemble;
            ``area_share`` is the share of the image that the true lesion covers; ``look_alike``
            tells whether the dataset has the image twice, or nearly so.

    Raises:
        UltraRefinerError: Masks are missing or have another size than the truth, or a case of the
            part is not in ``cases``; all such cases are named.
    """
    masks, truth = Path(masks), Path(truth)
    where, wanted = parse_part(part), read_part(splits, part)
    mine = set(wanted)
    known = {row.case: row for row in read_cases(cases) if row.case in mine}
    refuse(
        [case for case in wanted if case not in known],
        f"test cases of {part} in {splits} are not in {cases}",
        "make the folds again from this table",
    )
    refuse(
        [case for case in wanted if not (masks / f"{case}.png").is_file()],
        f"test cases of {part} have no mask of {method} in {masks}",
        "run the job that predicts them again; every method is scored on every test case",
    )
    head = {
        "dataset": dataset,
        "evaluation": where.evaluation,
        "member": where.member,
        "fold": where.fold,
        "method": method,
        "trained_on": trained_on,
        "prompt_source": prompt_source,
        "oracle": oracle,
        "selection": selection,
        "seen": seen,
    }
    missed = 0

    def scored() -> Iterator[Row]:
        # Written as they come, so that a hundred thousand cases take the memory of one.
        nonlocal missed
        wrong_size = []
        for case in wanted:
            predicted = read_mask(masks / f"{case}.png")
            true = read_mask(truth / f"{case}.png")
            if predicted.shape != true.shape:
                wrong_size.append(f"{case} (mask {predicted.shape}, truth {true.shape})")
                continue
            spacing = _spacing(known[case], cases)
            row = head | _about(known[case], true, spacing) | score_case(predicted, true, spacing)
            missed += row["empty_prediction"] and not row["empty_truth"]
            yield {name: plain(row[name]) for name in SCORE_COLUMNS}
        refuse(
            wrong_size,
            f"masks of {method} in {masks} do not have the size of the truth",
            "masks are scored at the original size only; run the job that predicts them again",
        )

    write_rows(output, SCORE_COLUMNS, scored())
    _log.info("%s, %s, %s: %d cases, %d missed", dataset, method, part, len(wanted), missed)


def _about(row: CaseRow, truth: np.ndarray, spacing: tuple[float, float] | None) -> Row:
    """Return what a score row says of its case."""
    return {
        "case": row.case,
        "group": row.group or row.case,
        "label": row.label,
        "area_share": float(truth.mean()),
        "overlay": row.overlay,
        "border": "yes" if row.border else "no",
        "look_alike": "yes" if row.look_alikes else "no",
        "spacing": "unknown" if spacing is None else "known",
    }


def refuse(cases: list[str], what: str, cure: str) -> None:
    """Raise an error that names these cases, if there are any."""
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


def read_scores(path: str | Path) -> list[Row]:
    """Read a score table as typed rows.

    Returns:
        Rows with fold an int (None for an ensemble), flags bool, numbers float (NaN where empty),
        the rest text.

    Raises:
        UltraRefinerError: The file is absent, lacks a column, or a cell does not hold its type.
    """
    return read_typed(path, SCORE_COLUMNS, _typed)


def read_typed(
    path: str | Path, columns: Sequence[str], typed: Callable[[dict[str, str]], Row]
) -> list[Row]:
    """Read a table whose cells have types.

    Args:
        path: The CSV file.
        columns: Columns that it must have.
        typed: Brings a row to its types; raises ValueError, TypeError or KeyError.

    Raises:
        UltraRefinerError: The file is absent, lacks a column, has no rows, or a cell does not hold
            its type.
    """
    cure = "Delete it and run again to make it anew."
    rows: list[Row] = []
    try:
        for row in each_row(path):
            if not rows and (missing := [name for name in columns if name not in row]):
                raise UltraRefinerError(f"{path} lacks the columns {', '.join(missing)}. {cure}")
            rows.append(typed(row))
    except OSError as error:
        raise UltraRefinerError(f"cannot read {path}: {error.strerror}. {cure}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise UltraRefinerError(f"{path} has a cell that is no score: {error}. {cure}") from error
    if not rows:
        raise UltraRefinerError(f"{path} has no rows. {cure}")
    return rows


def _typed(row: dict[str, str]) -> Row:
    # Most cells hold one of a few words, each of which is in memory once.
    typed: Row = {name: sys.intern(row[name]) for name in SCORE_COLUMNS}
    for name, words in _WORDS.items():
        if row[name] not in words:
            raise ValueError(f"{name} of {row['case']} is '{row[name]}'")
    typed["fold"] = int(row["fold"]) if row["fold"] or row["member"] == "single" else None
    for name in (*METRICS, "area_share"):
        # Only a metric in mm may be unknown; anything else must be a number.
        unknown = row[name] == "" and name in METRICS and METRICS[name].unit == "mm"
        typed[name] = float("nan") if unknown else float(row[name])
        if not (unknown or np.isfinite(typed[name])):
            raise ValueError(f"{name} of {row['case']} is '{row[name]}'")
    for name in ("empty_prediction", "empty_truth", "oracle"):
        typed[name] = {"true": True, "false": False}[row[name]]
    return typed


@dataclass(frozen=True)
class Predictor:
    """Who predicted the cases of an evaluation, each case once.

    Attributes:
        method: The method.
        member: "single", or the ensemble "mean" or "vote".
        fold: Fold of the model; None for an ensemble, and for the models of all folds, each on its
            own test cases.
    """

    method: str
    member: str = "single"
    fold: int | None = None

    def __str__(self) -> str:
        fold = [] if self.fold is None else [f"fold {self.fold}"]
        joint = [] if self.member == "single" else [self.member]
        return " ".join([self.method, *joint, *fold])


Block = dict[Predictor, list[Row]]


def by_predictor(rows: Iterable[Row]) -> dict[tuple[str, str], Block]:
    """Return the rows of each dataset and evaluation, and in it of each predictor; all sorted.

    All predictors of a dataset and evaluation have the same cases in the same order (fold and
    case in evaluation ``folds``, else case), so that the same place in two lists is the same case.

    Raises:
        UltraRefinerError: A case is scored twice or not by all predictors, or against another
            truth by some; or the rows of a method differ in what it is. The message names the
            cases.
    """
    truths: dict[tuple[str, str], tuple[Any, ...]] = {}
    labels: dict[tuple[str, ...], tuple[Any, ...]] = {}
    blocks: dict[tuple[str, str], dict[Predictor, dict[str, Row]]] = defaultdict(
        lambda: defaultdict(dict)
    )
    for row in rows:
        dataset, evaluation, case = row["dataset"], row["evaluation"], row["case"]
        fold = None if evaluation == "folds" else row["fold"]
        predictor = Predictor(row["method"], row["member"], fold)
        found = blocks[dataset, evaluation][predictor]
        if case in found:
            raise UltraRefinerError(
                f"{predictor} is scored twice on {case} (dataset {dataset}, {evaluation}). "
                "Give each score table once."
            )
        _agree(labels, row)
        truth = tuple(row[name] for name in _TRUTH)
        if truths.setdefault((dataset, case), truth) != truth:
            raise UltraRefinerError(
                f"methods are scored against different truths of {case}: group, label, empty "
                f"truth and area share are {truths[dataset, case]} and {truth}. The dataset has "
                "changed; delete its score tables and run again."
            )
        found[case] = row
    order = sorted(blocks, key=lambda key: (key[0], EVALUATIONS.index(key[1])))
    return {key: _aligned(key, blocks[key]) for key in order}


def _agree(labels: dict[tuple[str, ...], tuple[Any, ...]], row: Row) -> None:
    """Check that all rows of a method say the same of it."""
    method = row["method"]
    everywhere, here = (method,), (method, row["dataset"])
    for key, names in (
        (everywhere, ("prompt_source", "oracle", "selection")),
        (here, ("trained_on", "seen")),
    ):
        label = tuple(row[name] for name in names)
        if labels.setdefault(key, label) != label:
            raise UltraRefinerError(
                f"{' on '.join(key)} has rows labelled {labels[key]} and {label} "
                f"({', '.join(names)}). Delete its score tables and run again."
            )


def _aligned(key: tuple[str, str], block: Mapping[Predictor, Mapping[str, Row]]) -> Block:
    dataset, evaluation = key

    def place(row: Row) -> tuple[int, str]:
        return (row["fold"] if evaluation == "folds" else 0), row["case"]

    def name(place: tuple[int, str]) -> str:
        return f"{dataset} fold {place[0]} {place[1]}" if evaluation == "folds" else place[1]

    places = {who: {place(row) for row in found.values()} for who, found in block.items()}
    everything = set().union(*places.values())
    order = sorted(block, key=lambda who: (who.method, MEMBERS.index(who.member), who.fold or 0))
    problems = []
    for who in order:
        missing = [name(place) for place in sorted(everything - places[who])]
        if missing:
            problems.append(f"{who} lacks {len(missing)}: {', '.join(missing)}")
    if problems:
        where = "" if evaluation == "folds" else f" of {dataset}, {evaluation}"
        raise UltraRefinerError(
            f"methods are not scored on the same cases{where}, so their means cannot be compared. "
            + "; ".join(problems)
            + ". Score these cases, or leave the method out."
        )
    return {who: sorted(block[who].values(), key=place) for who in order}


def one_for_each_method(block: Block) -> dict[str, list[Row]]:
    """Return the rows that stand for each method of an evaluation.

    Those of the only predictor, or of the ensemble `mean`. Where the models of several folds
    predict and there is no `mean`, no one stands for the method and it is left out.
    """
    predictors: dict[str, list[Predictor]] = defaultdict(list)
    for who in block:
        predictors[who.method].append(who)
    chosen = {
        method: found if len(found) == 1 else [who for who in found if who.member == "mean"]
        for method, found in predictors.items()
    }
    return {method: block[found[0]] for method, found in chosen.items() if found}
