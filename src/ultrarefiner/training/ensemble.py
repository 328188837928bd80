"""Ensembles of the folds' models, made of the pictures that each of them wrote. No torch."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from ultrarefiner import images
from ultrarefiner.datasets.parts import read_part
from ultrarefiner.errors import SplitError, UltraRefinerError, first_names
from ultrarefiner.io import atomic_directory, write_rows
from ultrarefiner.models.cards import check_leak, read_card, read_threshold
from ultrarefiner.refine.guard import mask_iou
from ultrarefiner.refine.jobs import TABLE_COLUMNS

log = logging.getLogger(__name__)

THRESHOLD = 0.5
_LEVELS = 255


def mean_mask(total: np.ndarray, members: int, threshold: float) -> np.ndarray:
    """Return where the mean of rounded probabilities is at least a threshold.

    Args:
        total: int (H, W), sum over the members of probability x 255.
        members: How many they are.
        threshold: In (0, 1).

    Returns:
        bool (H, W).
    """
    # Computed, 0.64 x 255 x 5 is 816.0000000000001; the least step of a total is 1.
    return total >= threshold * _LEVELS * members - 5e-7


def ensemble_masks(
    members: Sequence[str | Path],
    member_masks: Sequence[str | Path],
    cards: Sequence[str | Path],
    thresholds: Sequence[str | Path],
    splits: str | Path,
    cases: str,
    mean: str | Path,
    tuned: str | Path,
    probabilities: str | Path,
    vote: str | Path,
) -> None:
    """Write two ensembles of the folds' models for cases of no fold: mean probability and vote.

    Probabilities are read as 8-bit pictures: each is off by at most 0.5 / 255, so is their mean
    (0.002), and a pixel may differ from a mean of unrounded ones only where that lies so near to
    the threshold. One case is in memory at a time.

    Args:
        members: Folder of probabilities of each fold's model, {case}.png.
        member_masks: Folder of masks at 0.5 of each, in the same order as all of the following.
        cards: Card of each.
        thresholds: ``threshold.json`` of each.
        splits: Table that ``read_part`` takes: ``splits.csv`` or ``unseen.csv``.
        cases: ``holdout`` or ``unseen``.
        mean: Folder to write, masks: mean probability of at least 0.5.
        tuned: Folder to write, masks: mean probability of at least the mean of the thresholds.
        probabilities: Folder to write, mean probability x 255, rounded once more.
        vote: Folder to write, masks: pixels in the masks of more than half of the members.

    Raises:
        LeakError: A member was trained, or selected, on one of the cases.
        SplitError: There are no such cases.
        UltraRefinerError: The members are not folds of one model, a picture is absent or damaged,
            or two pictures of a case differ in size.
    """
    wanted = _unseen_cases(cards, members, splits, cases)
    _check_complete([*members, *member_masks], wanted)
    own = float(np.mean([read_threshold(path) for path in thresholds]))
    with ExitStack() as stack:
        folders = {
            name: stack.enter_context(atomic_directory(path))
            for name, path in (
                ("mean", mean), ("tuned", tuned), ("soft", probabilities), ("vote", vote)
            )
        }  # fmt: skip
        for case in wanted:
            name = f"{case}.png"
            total, votes = _sums(members, member_masks, name)
            count = len(members)
            images.write_mask(folders["mean"] / name, mean_mask(total, count, THRESHOLD))
            images.write_mask(folders["tuned"] / name, mean_mask(total, count, own))
            images.write_probability(folders["soft"] / name, total / (_LEVELS * count))
            images.write_mask(folders["vote"] / name, 2 * votes > count)
    log.info("%d members, %d cases, threshold %.3f: %s", len(members), len(wanted), own, mean)


def ensemble_refined(
    member_masks: Sequence[str | Path],
    cards: Sequence[str | Path],
    splits: str | Path,
    cases: str,
    output: str | Path,
    table: str | Path,
) -> None:
    """Write the ensemble of a refiner that was finetuned on each fold, for cases of no fold.

    A pixel is lesion where at least half of the members' masks say so: refined masks have no
    probabilities, and this is the mean of theirs of 0 and 1, cut at 0.5 as the mean of coarse
    probabilities is.

    Args:
        member_masks: Folder of each fold's refined masks, {case}.png.
        cards: Card of each fold's finetuned model, in the same order.
        splits: Table that ``read_part`` takes: ``splits.csv`` or ``unseen.csv``.
        cases: ``holdout`` or ``unseen``.
        output: Folder to write, masks {case}.png.
        table: CSV to write, columns ``refine.jobs.TABLE_COLUMNS``: ``agreement`` is the mean IoU of
            the members' masks with the joint one, two empty masks agree; the others are empty.

    Raises:
        LeakError: A member was trained, or selected, on one of the cases.
        SplitError: There are no such cases, or the members are not folds of one model.
        UltraRefinerError: A mask is absent or damaged, or two masks of a case differ in size.
    """
    wanted = _unseen_cases(cards, member_masks, splits, cases)
    _check_complete(member_masks, wanted)
    rows = []
    with atomic_directory(output) as folder:
        for case in wanted:
            name = f"{case}.png"
            masks = _read_masks([Path(member) / name for member in member_masks])
            joint = 2 * masks.sum(axis=0, dtype=np.int32) >= len(masks)
            images.write_mask(folder / name, joint)
            agreement = float(np.mean([mask_iou(mask, joint) for mask in masks]))
            rows.append({"case": case, "agreement": agreement})
    write_rows(table, TABLE_COLUMNS, rows)
    log.info("%d members, %d cases: %s", len(member_masks), len(wanted), output)


def _unseen_cases(
    cards: Sequence[str | Path], members: Sequence[str | Path], splits: str | Path, cases: str
) -> list[str]:
    """Return the cases of an ensemble, of which none of its members has seen any."""
    # A member without a card would go unchecked.
    facts = [read_card(card) for card, _ in zip(cards, members, strict=True)]
    _check_members(facts)
    wanted = read_part(splits, f"{cases}-mean")
    for card in facts:
        # No protocol lets a model be selected on cases outside the folds.
        check_leak(card, wanted, allow_selected=False)
    return wanted


def _check_members(cards: Sequence[dict[str, Any]]) -> None:
    models = sorted({f"{card['dataset']}/{card['name']}" for card in cards})
    folds = [card["fold"] for card in cards]
    if len(models) != 1 or len(set(folds)) < len(folds):
        raise SplitError(
            "an ensemble is made of the folds of one model, each once; these are "
            f"{', '.join(models)}, folds {', '.join(map(str, folds))}. Give the models of one "
            "training set's folds."
        )


def _check_complete(folders: Sequence[str | Path], cases: Sequence[str]) -> None:
    paths = [Path(folder) / f"{case}.png" for folder in folders for case in cases]
    absent = [str(path) for path in paths if not path.is_file()]
    if absent:
        raise UltraRefinerError(
            f"{len(absent)} pictures of the ensemble's members are not there: "
            f"{first_names(absent)}. Delete their folders and run again."
        )


def _sums(
    members: Sequence[str | Path], member_masks: Sequence[str | Path], name: str
) -> tuple[np.ndarray, np.ndarray]:
    """Return int32 (H, W) sums over the members: of probability x 255, and of masks."""
    soft = [Path(folder) / name for folder in members]
    hard = [Path(folder) / name for folder in member_masks]
    total = votes = np.zeros(images.read_gray(soft[0]).shape, np.int32)
    for path, mask_path in zip(soft, hard, strict=True):
        level, mask = images.read_gray(path), images.read_mask(mask_path)
        for found, where in ((level, path), (mask, mask_path)):
            _check_size(found, where, total, soft[0])
        total, votes = total + level, votes + mask
    return total, votes


def _read_masks(paths: Sequence[Path]) -> np.ndarray:
    """Return the members' masks of a case, bool (N, H, W)."""
    masks = [images.read_mask(path) for path in paths]
    for mask, path in zip(masks, paths, strict=True):
        _check_size(mask, path, masks[0], paths[0])
    return np.stack(masks)


def _check_size(found: np.ndarray, where: Path, first: np.ndarray, first_where: Path) -> None:
    if found.shape != first.shape:
        raise UltraRefinerError(
            f"{where} has {found.shape[0]} x {found.shape[1]} pixels and {first_where} has "
            f"{first.shape[0]} x {first.shape[1]}. Delete both folders and run again."
        )
