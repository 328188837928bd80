"""Coarse models applied: to the cases of any part, and to the validation cases for a threshold."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from ultrarefiner import images
from ultrarefiner.datasets.parts import parse_part, read_part
from ultrarefiner.datasets.splits import read_split
from ultrarefiner.io import atomic_directory, write_json
from ultrarefiner.models.cards import check_fold, check_leak, read_threshold
from ultrarefiner.refine.shelf import Shelf
from ultrarefiner.training.data import Prepared, PreparedCases
from ultrarefiner.training.segmented import THRESHOLD, Segmented, Segmenter, mask_of
from ultrarefiner.training.segmenter import open_segmenter

log = logging.getLogger(__name__)

GRID = tuple(round(0.05 * step, 2) for step in range(1, 20))
"""Thresholds to choose from: 0.05, 0.10, ... 0.95."""


def segment_cases(
    segmenter: Segmenter, prepared: Prepared, cases: Sequence[str], flips: bool
) -> Iterator[tuple[str, Segmented, np.ndarray]]:
    """Give case id, what a model says and truth, bool (H, W), of each case; a batch in memory."""
    source, size = PreparedCases(prepared), segmenter.card["config"]["batch_size"]
    for start in range(0, len(cases), size):
        batch = cases[start : start + size]
        pairs = [source.read(case) for case in batch]
        said = segmenter.segment([image for image, _ in pairs], flips)
        for case, one, (_, label) in zip(batch, said, pairs, strict=True):
            yield case, one, label.astype(bool)


def predict_coarse(
    model: str | Path,
    card: str | Path,
    threshold: str | Path,
    prepared: Prepared,
    splits: str | Path,
    part: str,
    protocol: str,
    flips: bool,
    masks: str | Path,
    tuned: str | Path,
    probabilities: str | Path,
    device: str = "auto",
    coarse: str | Path | None = None,
    shelf: Shelf | None = None,
) -> None:
    """Write masks and probabilities of the cases of a part, at original size.

    Args:
        model: Weights that ``train_coarse`` or ``train_end_to_end`` wrote.
        card: Their card.
        threshold: What ``choose_threshold`` wrote for them.
        prepared: Folder of the prepared cases of the dataset that the part is of.
        splits: Table that ``read_part`` takes: ``splits.csv`` or ``unseen.csv`` of that dataset.
        part: ``fold0``, ``holdout-fold0`` or ``unseen-fold0``: the cases, and the fold of the model.
        protocol: ``nested`` or ``seed``; only ``seed`` allows a model selected on the test cases
            of its fold, and none is ever selected on cases outside the folds.
        flips: Take the mean of the probabilities of the image and its three flips.
        masks: Folder to write, {case}.png of 0 and 255: probability of at least 0.5.
        tuned: Folder to write, the same at the model's own threshold.
        probabilities: Folder to write, {case}.png of probability x 255.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        coarse: Folder to write, masks of the coarse model inside one that was trained end to end.
        shelf: Where embeddings are kept, for a model that was trained end to end.

    Raises:
        LeakError: The model has seen cases of the part.
        SplitError: The part is not in the table, or is not one of the model's fold.
        WeightsError: The model is absent, damaged, or another's.
    """
    segmenter = open_segmenter(model, card, device, shelf)
    facts, wanted = segmenter.card, parse_part(part)
    check_fold(facts, wanted.fold)
    cases = read_part(splits, part)
    in_fold = wanted.evaluation == "folds"
    check_leak(facts, cases, allow_selected=protocol == "seed" and in_fold)
    own = read_threshold(threshold)
    outputs = [masks, tuned, probabilities, *([] if coarse is None else [coarse])]
    with ExitStack() as stack:
        folders = [stack.enter_context(atomic_directory(path)) for path in outputs]
        for case, one, _ in segment_cases(segmenter, prepared, cases, flips):
            name = f"{case}.png"
            # Masks come of the float probability, not of its rounded picture.
            images.write_mask(folders[0] / name, one.mask)
            images.write_mask(folders[1] / name, mask_of(one.probability, own))
            images.write_probability(folders[2] / name, one.probability)
            if coarse is not None:
                images.write_mask(folders[3] / name, mask_of(one.coarse, THRESHOLD))
    log.info("%s on %s: %d masks in %s", facts["name"], part, len(cases), masks)


def _dice_curve(probability: np.ndarray, truth: np.ndarray) -> list[float]:
    """Return the Dice of a case with a lesion at each threshold of the grid."""
    lesion = int(truth.sum())
    dice = []
    for threshold in GRID:
        mask = mask_of(probability, threshold)
        both = int((mask & truth).sum())
        dice.append(2 * both / (int(mask.sum()) + lesion))
    return dice


def choose_threshold(
    model: str | Path,
    card: str | Path,
    prepared: Prepared,
    splits: str | Path,
    fold: int,
    flips: bool,
    output: str | Path,
    device: str = "auto",
    shelf: Shelf | None = None,
) -> None:
    """Write the threshold of the highest mean Dice over a fold's validation cases.

    Compared at original size, over the cases with a lesion; of equal thresholds the one nearest to
    0.5 is taken, then the lower. Without a lesion in the validation cases it is 0.5. Under the
    protocol ``seed`` the validation cases are the test cases, and ``selection`` says so.

    Args:
        model: Weights that ``train_coarse`` or ``train_end_to_end`` wrote.
        card: Their card.
        prepared: Folder ``{dataset}/prepared``, or those of all datasets of the trainset.
        splits: ``splits.csv`` of the trainset.
        fold: Outer fold.
        flips: Whether predictions are means over flips, as ``predict_coarse`` will make them.
        output: JSON to write: ``threshold``, ``dice`` (the mean at it), ``dice_at_half``,
            ``cases`` (with a lesion), ``selection``, ``curve`` (pairs of threshold and mean Dice).
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        shelf: Where embeddings are kept, for a model that was trained end to end.

    Raises:
        LeakError: The model was trained on validation cases, which would say nothing.
        SplitError: The fold is not in the table, or the model is another fold's.
        WeightsError: The model is absent, damaged, or another's.
    """
    segmenter = open_segmenter(model, card, device, shelf)
    facts = segmenter.card
    check_fold(facts, fold)
    cases = read_split(splits, fold)["validation"]
    check_leak(facts, cases, allow_selected=True)
    curves = [
        _dice_curve(one.probability, truth)
        for _, one, truth in segment_cases(segmenter, prepared, cases, flips)
        if truth.any()
    ]
    means = [float(mean) for mean in np.mean(curves, axis=0)] if curves else []
    if means:
        best = min(zip(GRID, means, strict=True), key=lambda at: (-at[1], abs(at[0] - 0.5), at[0]))
    else:
        best = (THRESHOLD, None)
        log.warning("fold %d validates on no case with a lesion; the threshold stays 0.5", fold)
    write_json(
        output,
        {
            "threshold": best[0],
            "dice": best[1],
            "dice_at_half": means[GRID.index(THRESHOLD)] if means else None,
            "cases": len(curves),
            "selection": facts["selection"],
            "curve": [list(point) for point in zip(GRID, means, strict=True)] if means else [],
        },
    )
    log.info("%s fold %d: threshold %.2f", facts["name"], fold, best[0])
