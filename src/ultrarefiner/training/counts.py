"""Overlap of masks, counted for each case: what training watches and selects on.

The policy for empty masks is the one of the project's metrics: both empty is perfect (1), exactly
one empty is a miss (0). A case is measured first and the cases are averaged afterwards, so no
number depends on how the cases were batched.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch


def confusion_counts(prediction: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Count pixels by prediction and truth, for each case.

    Args:
        prediction: bool (..., H, W).
        truth: bool (..., H, W).

    Returns:
        int64 (..., 4): true positives, false positives, false negatives, true negatives.
    """
    pixels = (-2, -1)
    both = (prediction & truth).sum(pixels)
    predicted, true = prediction.sum(pixels), truth.sum(pixels)
    total = truth.shape[-1] * truth.shape[-2]
    return torch.stack([both, predicted - both, true - both, total - predicted - true + both], -1)


def measures(counts: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the measures of each case.

    Args:
        counts: int64 (N, 4), as ``confusion_counts`` gives them.

    Returns:
        ``dice``, ``iou``, ``precision``, ``recall`` and ``accuracy``, each float64 (N,).
    """
    tp, fp, fn, tn = counts.cpu().double().unbind(-1)

    def share(part: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
        empty = (tp + fp + fn == 0).double()
        return torch.where(whole > 0, part / whole.clamp(min=1), empty)

    return {
        "dice": share(2 * tp, 2 * tp + fp + fn),
        "iou": share(tp, tp + fp + fn),
        "precision": share(tp, tp + fp),
        "recall": share(tp, tp + fn),
        "accuracy": share(tp + tn, tp + fp + fn + tn),
    }


def pooled(counts: torch.Tensor, wholes: Sequence[str]) -> torch.Tensor:
    """Add up the counts of the parts of each whole, such as the slices of each volume.

    Measured one by one, slices without a lesion would be perfect for a model that finds nothing.

    Args:
        counts: int64 (N, 4), as ``confusion_counts`` gives them.
        wholes: What each of the N is a part of.

    Returns:
        int64 (number of wholes, 4), in the order in which they first come.
    """
    places = {name: place for place, name in enumerate(dict.fromkeys(wholes))}
    index = torch.tensor([places[name] for name in wholes], device=counts.device)
    return counts.new_zeros((len(places), 4)).index_add_(0, index, counts)


def mean_measures(counts: torch.Tensor) -> dict[str, float]:
    """Return the mean over cases of each of ``measures``."""
    return {name: float(values.mean()) for name, values in measures(counts).items()}
