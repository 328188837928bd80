"""Calibration: whether pixels called a lesion with probability 0.8 are lesion 8 times in 10."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ultrarefiner.datasets.parts import parse_part, read_part
from ultrarefiner.errors import UltraRefinerError
from ultrarefiner.evaluation.scores import EVALUATIONS, MEMBERS, plain, refuse
from ultrarefiner.images import read_gray, read_mask
from ultrarefiner.io import read_rows, write_rows

CALIBRATION_COLUMNS = [
    *("dataset", "method", "trained_on", "evaluation", "member", "bin", "low", "high"),
    *("pixels", "mean_probability", "lesion_share", "ece", "brier", "ece_near"),
]
BINS = 15
# Probabilities are stored in 256 steps, 17 of them in each bin and 1.0 in the last.
_LEVELS = 256
_STEPS = (_LEVELS - 1) // BINS

_log = logging.getLogger(__name__)


def measure_calibration(
    method: str,
    dataset: str,
    trained_on: str,
    parts: Sequence[Mapping[str, str]],
    truth: str | Path,
    output: str | Path,
) -> None:
    """Measure how well a method's probabilities agree with the share of lesion pixels.

    All pixels of all cases of an evaluation are pooled, those of images without a lesion too. The
    test cases of all folds are one evaluation, each predicted by the model that never saw it; so
    are the same cases predicted by the models of several folds, each pixel once for each model.

    The probability ``p`` of a pixel is of bin ``b`` (from 0) if ``low <= p < high``, and 1 is of
    the last. For each of 15 bins of equal width the table has its number of ``pixels``, their
    ``mean_probability`` and ``lesion_share`` (both empty in an empty bin), and repeats for the
    whole evaluation:

    - ``ece``, the expected calibration error (Naeini et al. 2015, Guo et al. 2017): the mean over
      pixels of ``|mean_probability - lesion_share|`` of their bins. Background that is easily told
      makes up most pixels and so makes it small for every method;
    - ``ece_near``, the same over the pixels near the lesion: its bounding box, grown to twice its
      height and width and cut at the image's edge. Empty where no image has a lesion;
    - ``brier``: the mean over pixels of ``(p - y)^2``, ``y`` 1 in the lesion, 0 outside.

    Args:
        method: Name of the method.
        dataset: Name of the dataset.
        trained_on: Training set of the models, as the table shall say.
        parts: Parts of the dataset, dicts of ``part``; ``table``, which ``read_part`` takes for it;
            and ``probabilities``, folder of ``{case}.png``, gray of 255 times the probability.
        truth: Folder of true masks ``{case}.png``.
        output: Table to write: `CALIBRATION_COLUMNS`.

    Raises:
        UltraRefinerError: Probabilities are missing or have another size than the truth (all such
            cases are named), or a part is given twice.
    """
    counts: dict[tuple[str, str], np.ndarray] = {}
    names = [row["part"] for row in parts]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise UltraRefinerError(
            f"calibration of {method} on {dataset}: {twice[0]} is given twice. Give each part once."
        )
    for row in parts:
        part = parse_part(row["part"])
        cases = read_part(row["table"], part.name)
        key = part.evaluation, part.member
        label = f"{method}, {part.name}"
        counts[key] = counts.get(key, 0) + _count(label, cases, row["probabilities"], truth)
    rows: list[dict[str, Any]] = []
    for evaluation, member in sorted(counts, key=_order):
        head = {
            "dataset": dataset,
            "method": method,
            "trained_on": trained_on,
            "evaluation": evaluation,
            "member": member,
        }
        rows += [head | line for line in _describe(*counts[evaluation, member])]
    write_rows(
        output,
        CALIBRATION_COLUMNS,
        ({name: plain(row[name]) for name in CALIBRATION_COLUMNS} for row in rows),
    )
    _log.info("%s on %s: calibration of %d evaluations", method, dataset, len(counts))


def _order(key: tuple[str, str]) -> tuple[int, int]:
    return EVALUATIONS.index(key[0]), MEMBERS.index(key[1])


def _count(
    label: str, cases: Sequence[str], probabilities: str | Path, truth: str | Path
) -> np.ndarray:
    """Return how often each probability is given to background and lesion pixels.

    Returns:
        int64 (2, 2, 256): over all pixels and over those near a lesion; background, lesion; steps
        of 1/255.
    """
    probabilities, truth = Path(probabilities), Path(truth)
    refuse(
        [case for case in cases if not (probabilities / f"{case}.png").is_file()],
        f"test cases have no probabilities in {probabilities} ({label})",
        "run the job that predicts them again",
    )
    total = np.zeros((2, 2 * _LEVELS), dtype=np.int64)
    wrong_size = []
    for case in cases:
        steps, lesion = read_gray(probabilities / f"{case}.png"), read_mask(truth / f"{case}.png")
        if steps.shape != lesion.shape:
            wrong_size.append(f"{case} (probabilities {steps.shape}, truth {lesion.shape})")
            continue
        kinds = steps + _LEVELS * lesion.astype(np.int64)
        for i, window in enumerate((kinds, kinds[_near(lesion)])):
            total[i] += np.bincount(window.ravel(), minlength=2 * _LEVELS)
    refuse(
        wrong_size,
        f"probabilities in {probabilities} do not have the size of the truth ({label})",
        "run the job that predicts them again",
    )
    return total.reshape(2, 2, _LEVELS)


def _near(lesion: np.ndarray) -> tuple[slice, slice]:
    """Return the lesion's box grown by half its side lengths on each side; nothing without one."""
    box = []
    for axis in (1, 0):
        inside = np.flatnonzero(lesion.any(axis=axis))
        if not len(inside):
            return slice(0), slice(0)
        first, last = int(inside[0]), int(inside[-1]) + 1
        margin = (last - first + 1) // 2
        box.append(slice(max(first - margin, 0), last + margin))
    return box[0], box[1]


def _describe(everywhere: np.ndarray, near: np.ndarray) -> list[dict[str, Any]]:
    """Return the lines of the bins from int64 (2, 256) counts of background and lesion."""
    level = np.arange(_LEVELS) / (_LEVELS - 1)
    background, lesion = everywhere
    brier = (lesion @ (level - 1) ** 2 + background @ level**2) / everywhere.sum()
    whole = {"ece": _error(everywhere), "brier": float(brier), "ece_near": _error(near)}
    lines = []
    for number, (pixels, mean, share) in enumerate(zip(*_bins(everywhere), strict=True)):
        lines.append(
            {
                "bin": number,
                "low": number / BINS,
                "high": (number + 1) / BINS,
                "pixels": int(pixels),
                "mean_probability": float(mean),
                "lesion_share": float(share),
                **whole,
            }
        )
    return lines


def _bins(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return pixels, mean probability and lesion share of each bin; NaN in empty ones."""
    places = np.minimum(np.arange(_LEVELS) // _STEPS, BINS - 1)
    weights = counts.sum(axis=0), counts.sum(axis=0) * np.arange(_LEVELS), counts[1]
    pixels, steps, lesion = (np.bincount(places, weights=weight) for weight in weights)
    with np.errstate(invalid="ignore"):
        return pixels, steps / (_LEVELS - 1) / pixels, lesion / pixels


def _error(counts: np.ndarray) -> float:
    """Return the expected calibration error; NaN without pixels."""
    pixels, mean, share = _bins(counts)
    if not pixels.sum():
        return float("nan")
    return float(np.nansum(pixels * np.abs(mean - share)) / pixels.sum())


def collect_calibration(tables: Sequence[str | Path], output: str | Path) -> None:
    """Join calibration tables, sorted by dataset, method, training set, evaluation and bin.

    Args:
        tables: Tables of `measure_calibration`; none makes a table without rows.
        output: Table to write.

    Raises:
        UltraRefinerError: A table cannot be read, is none of calibration, or two have the same
            rows.
    """
    found: dict[tuple[Any, ...], dict[str, str]] = {}
    for table in tables:
        for key, row in _read_calibration(table):
            if found.setdefault(key, row) is not row:
                raise UltraRefinerError(
                    f"{table}: the calibration of {row['method']} on {row['dataset']} is in "
                    "another table too. Give each table once."
                )
    write_rows(output, CALIBRATION_COLUMNS, [found[key] for key in sorted(found)])
    _log.info("%d calibration tables joined", len(tables))


def _read_calibration(table: str | Path) -> Iterator[tuple[tuple[Any, ...], dict[str, str]]]:
    """Yield the rows of a table with their place."""
    cure = "Delete it and run measure_calibration again."
    try:
        rows = read_rows(table)
    except OSError as error:
        raise UltraRefinerError(f"cannot read {table}: {error.strerror}. {cure}") from error
    missing = [name for name in CALIBRATION_COLUMNS if not rows or name not in rows[0]]
    if missing:
        raise UltraRefinerError(f"{table} lacks the columns {', '.join(missing)}. {cure}")
    for row in rows:
        names = [row[name] for name in ("dataset", "method", "trained_on")]
        try:
            place = *_order((row["evaluation"], row["member"])), int(row["bin"])
        except ValueError as error:
            raise UltraRefinerError(f"{table} has a cell that is none: {error}. {cure}") from error
        yield (*names, *place), {name: row[name] for name in CALIBRATION_COLUMNS}
