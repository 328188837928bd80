"""How far the boxes of predicted masks are off, measured, so that training boxes can err alike.

The error of a box is four numbers: how far each edge of the predicted box lies from the same edge
of the true one, divided by the true box's width (x) or height (y)::

    (x0p - x0t) / w,  (y0p - y0t) / h,  (x1p - x1t) / w,  (y1p - y1t) / h

Positive is to the right or down, so a box that is too large all round has errors (-, -, +, +).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ultrarefiner.datasets.splits import read_split
from ultrarefiner.errors import UltraRefinerError
from ultrarefiner.io import read_json, write_json
from ultrarefiner.models.cards import check_fold, check_leak
from ultrarefiner.prompts.geometry import Box, tight_box
from ultrarefiner.training.data import Prepared
from ultrarefiner.training.prediction import segment_cases
from ultrarefiner.training.segmenter import open_segmenter

log = logging.getLogger(__name__)

Errors = tuple[float, float, float, float]
"""Relative errors of the edges x0, y0, x1, y1 of one box."""

LEAST_SIDE = 2
"""Least side of a jittered box in pixels, where the image is that large."""

_ABOUT = ("model", "dataset", "fold", "selection", "weights_sha256")


def box_error(predicted: Box, true: Box) -> Errors:
    """Return the relative errors of the edges of a half-open box ``(x0, y0, x1, y1)``."""
    width, height = true[2] - true[0], true[3] - true[1]
    x0, y0, x1, y1 = (float(p - t) for p, t in zip(predicted, true, strict=True))
    return x0 / width, y0 / height, x1 / width, y1 / height


def jittered(box: Box, errors: Errors, image_hw: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return a box with its edges moved as errors tell.

    Args:
        box: Half-open ``(x0, y0, x1, y1)`` in pixels, as ``tight_box`` gives it.
        errors: Relative errors of its edges.
        image_hw: (height, width) of the image in pixels.

    Returns:
        Half-open box of whole pixels in the image, its sides at least ``LEAST_SIDE``. The error of
        a predicted box in the image, put on its true box, gives the predicted box.
    """
    width, height = box[2] - box[0], box[3] - box[1]
    x0, y0, x1, y1 = np.rint(np.add(box, np.multiply(errors, (width, height, width, height))))
    left, right = _within(int(x0), int(x1), image_hw[1])
    top, bottom = _within(int(y0), int(y1), image_hw[0])
    return left, top, right, bottom


def _within(low: int, high: int, limit: int) -> tuple[int, int]:
    low = min(max(low, 0), max(limit - LEAST_SIDE, 0))
    return low, min(max(high, low + LEAST_SIDE), limit)


def measure_boxes(
    model: str | Path,
    card: str | Path,
    prepared: Prepared,
    splits: str | Path,
    fold: int,
    flips: bool,
    output: str | Path,
    device: str = "auto",
) -> None:
    """Measure a coarse model's boxes on its fold's validation cases.

    Boxes are those of masks at 0.5, at original size. Under the protocol ``seed`` the validation
    cases are the test cases, and ``selection`` says so.

    Args:
        model: Weights that ``train_coarse`` wrote.
        card: Their card.
        prepared: Folder ``{dataset}/prepared``, or those of all datasets of the trainset.
        splits: ``splits.csv`` of the trainset.
        fold: Outer fold.
        flips: Whether predictions are means over flips, as ``predict_coarse`` will make them.
        output: JSON to write: ``model``, ``dataset``, ``fold``, ``selection`` and
            ``weights_sha256`` of the model, what it was ``trained_on`` and ``selected_on``,
            ``flips``; ``cases``; ``errors`` of each case with a box, in the order x0, y0, x1, y1;
            ``misses``, the cases whose lesion was not predicted at all; ``without_lesion``.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.

    Raises:
        LeakError: The model was trained on validation cases.
        SplitError: The fold is not in the table, or the model is another fold's.
        WeightsError: The model is absent, damaged, or another's.
    """
    segmenter = open_segmenter(model, card, device)
    facts = segmenter.card
    check_fold(facts, fold)
    cases = read_split(splits, fold)["validation"]
    check_leak(facts, cases, allow_selected=True)
    errors: dict[str, Errors] = {}
    misses, without = [], []
    for case, one, truth in segment_cases(segmenter, prepared, cases, flips):
        if not truth.any():
            without.append(case)
        elif not one.mask.any():
            misses.append(case)
        else:
            errors[case] = box_error(tight_box(one.mask), tight_box(truth))
    write_json(
        output,
        {
            "model": facts["name"],
            **{key: facts[key] for key in _ABOUT[1:]},
            "trained_on": facts["trained_on"],
            "selected_on": facts["selected_on"],
            "flips": flips,
            "cases": cases,
            "errors": errors,
            "misses": misses,
            "without_lesion": without,
        },
    )
    log.info(
        "%s fold %d: boxes of %d validation cases, %d missed, %d without a lesion",
        facts["name"],
        fold,
        len(errors),
        len(misses),
        len(without),
    )


@dataclass(frozen=True, eq=False)
class BoxErrors:
    """Measured errors of boxes.

    Attributes:
        errors: float64 (N, 4), one row for each predicted box, in the order x0, y0, x1, y1.
        misses: Lesions that were not predicted at all, of which there is no box.
        seen: Cases that these numbers depend on: measured ones, and those that the models that made
            the boxes were trained or selected on.
        sources: One entry for each file, ready for JSON: ``model``, ``dataset``, ``fold``,
            ``selection`` and ``weights_sha256``, and ``boxes``, how many it measured.
    """

    errors: np.ndarray
    misses: int = 0
    seen: frozenset[str] = frozenset()
    sources: tuple[dict[str, Any], ...] = ()

    def draw(self, rng: np.random.Generator) -> Errors:
        """Return the errors of one measured box, drawn at random; all 0 if there is none.

        The four belong together: a box that is too large, or shifted, stays so.
        """
        if not len(self.errors):
            return 0.0, 0.0, 0.0, 0.0
        x0, y0, x1, y1 = self.errors[rng.integers(len(self.errors))].tolist()
        return x0, y0, x1, y1


def read_box_errors(paths: Sequence[str | Path]) -> BoxErrors:
    """Read the errors that ``measure_boxes`` wrote, of one fold or of several together.

    A warning is logged if no box was measured, because true boxes are then drawn.

    Raises:
        UltraRefinerError: A file is absent, damaged, or of something else.
    """
    errors: list[Errors] = []
    seen: set[str] = set()
    sources, misses = [], 0
    for path in paths:
        content = read_json(path)
        rows = _rows(content, path)
        errors += rows
        misses += len(content["misses"])
        seen |= {*content["cases"], *content["trained_on"], *content["selected_on"]}
        sources.append({key: content[key] for key in _ABOUT} | {"boxes": len(rows)})
    if not errors:
        log.warning(
            "no predicted box was measured (%d misses) in %s: training boxes are the true ones",
            misses,
            ", ".join(map(str, paths)) or "no file",
        )
    table = np.array(errors, dtype=np.float64).reshape(-1, 4)
    return BoxErrors(table, misses, frozenset(seen), tuple(sources))


def _rows(content: Any, path: str | Path) -> list[Errors]:
    lists = ("cases", "misses", "trained_on", "selected_on")
    good = (
        isinstance(content, dict)
        and set(_ABOUT) <= set(content)
        and all(isinstance(content.get(key), list) for key in lists)
        and isinstance(content.get("errors"), dict)
    )
    rows = list(content["errors"].values()) if good else [()]
    if not all(
        isinstance(row, list)
        and len(row) == 4
        and all(isinstance(value, int | float) and np.isfinite(value) for value in row)
        for row in rows
    ):
        raise UltraRefinerError(
            f"{path} holds no errors of boxes: each case needs four numbers. Delete it and run again."
        )
    # By case, so that the order of the file changes no draw.
    return [tuple(map(float, content["errors"][case])) for case in sorted(content["errors"])]
