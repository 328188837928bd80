"""Metrics of one predicted mask against the truth, and the policy for empty masks.

Surface metrics measure between border elements: those of a mask with at least one neighbour
outside it (4 neighbours in 2-D, 6 in 3-D; beyond the image is outside).

Empty masks, here and nowhere else: two empty masks agree (dice = iou = 1, distances 0); exactly
one is a miss (dice = iou = 0, distances infinite). `score_case` puts the image diagonal in the
place of an infinite distance, so that a miss can be averaged and is never a good value: no mask
that is not empty is farther from the truth, nor scores below 0 elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy.ndimage import distance_transform_edt
from scipy.spatial import cKDTree

from ultrarefiner.registry import Registry

Spacing = Sequence[float] | float | None

_UNIT = (1.0, 1.0)
# Above this share of border elements in the union box a distance transform beats a tree search;
# measured on smooth shapes and noise in 2-D and 3-D.
_DENSE = 0.1


def _checked(mask: np.ndarray, name: str) -> np.ndarray:
    mask = np.asarray(mask)
    if mask.ndim not in (2, 3):
        raise ValueError(f"{name} has shape {mask.shape}; metrics take 2-D and 3-D masks")
    if mask.dtype == np.bool_:
        return mask
    if not np.issubdtype(mask.dtype, np.integer):
        raise ValueError(f"{name} is {mask.dtype}, not bool; threshold it first")
    if mask.size and (mask.min() < 0 or mask.max() > 1):
        raise ValueError(
            f"{name} holds integers from {mask.min()} to {mask.max()}; a mask is bool, or 0 and 1"
        )
    return mask.astype(bool)


def _masks(prediction: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    prediction, truth = _checked(prediction, "prediction"), _checked(truth, "truth")
    if prediction.shape != truth.shape:
        raise ValueError(
            f"prediction has shape {prediction.shape}, truth {truth.shape}; "
            "bring the prediction to the size of the truth before scoring"
        )
    return prediction, truth


def _steps(spacing: Spacing, ndim: int) -> np.ndarray:
    """Return the spacing as float64 (ndim,)."""
    if spacing is None:
        return np.ones(ndim)
    try:
        steps = np.asarray(spacing, dtype=np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"spacing {spacing!r} is not numbers") from None
    # The default is written for 2-D; it means 1 along each axis of a volume, too.
    if steps.ndim == 0 or tuple(steps) == _UNIT:
        steps = np.full(ndim, steps.flat[0])
    if steps.shape != (ndim,) or not np.isfinite(steps).all() or (steps <= 0).any():
        raise ValueError(f"spacing {spacing!r} is not {ndim} positive numbers, one for each axis")
    return steps


def _diagonal(shape: tuple[int, ...], spacing: Spacing) -> float:
    return float(np.linalg.norm(shape * _steps(spacing, len(shape))))


def _ratio(part: int, whole: int, both_empty: bool) -> float:
    if whole:
        return part / whole
    return 1.0 if both_empty else 0.0


def _counts(prediction: np.ndarray, truth: np.ndarray, spacing: Spacing) -> tuple[int, int, int]:
    """Return the sizes of the intersection, the prediction and the truth."""
    prediction, truth = _masks(prediction, truth)
    _steps(spacing, truth.ndim)
    return (
        int(np.count_nonzero(prediction & truth)),
        int(np.count_nonzero(prediction)),
        int(np.count_nonzero(truth)),
    )


def dice(prediction: np.ndarray, truth: np.ndarray, spacing: Spacing = _UNIT) -> float:
    """Return the Dice coefficient, 2 |P ∩ T| / (|P| + |T|); 1 when both masks are empty.

    Args:
        prediction: Bool mask, 2-D or 3-D; integers 0 and 1 are taken as bool.
        truth: Bool mask of the same shape.
        spacing: Size of an element along each axis; checked, without effect on a ratio.

    Raises:
        ValueError: The shapes differ, a mask is not binary, or the spacing does not fit.
    """
    both, predicted, true = _counts(prediction, truth, spacing)
    return _ratio(2 * both, predicted + true, both_empty=True)


def iou(prediction: np.ndarray, truth: np.ndarray, spacing: Spacing = _UNIT) -> float:
    """Return the intersection over union; 1 when both masks are empty. Arguments as `dice`."""
    both, predicted, true = _counts(prediction, truth, spacing)
    return _ratio(both, predicted + true - both, both_empty=True)


def precision(prediction: np.ndarray, truth: np.ndarray, spacing: Spacing = _UNIT) -> float:
    """Return |P ∩ T| / |P|; 1 when both masks are empty, 0 when exactly one is. As `dice`."""
    both, predicted, true = _counts(prediction, truth, spacing)
    return _ratio(both, predicted, both_empty=not true)


def recall(prediction: np.ndarray, truth: np.ndarray, spacing: Spacing = _UNIT) -> float:
    """Return |P ∩ T| / |T|; 1 when both masks are empty, 0 when exactly one is. As `dice`."""
    both, predicted, true = _counts(prediction, truth, spacing)
    return _ratio(both, true, both_empty=not predicted)


def _union_box(prediction: np.ndarray, truth: np.ndarray) -> tuple[slice, ...]:
    union = prediction | truth
    box = []
    for axis in range(union.ndim):
        others = tuple(other for other in range(union.ndim) if other != axis)
        inside = np.flatnonzero(union.any(axis=others))
        box.append(slice(inside[0], inside[-1] + 1))
    return tuple(box)


def _border(mask: np.ndarray) -> np.ndarray:
    """Return the elements of a mask that have a neighbour outside it, as bool."""
    padded = np.zeros([side + 2 for side in mask.shape], dtype=bool)
    core = (slice(1, -1),) * mask.ndim
    padded[core] = mask
    inner = mask.copy()
    for axis in range(mask.ndim):
        for shift in (slice(None, -2), slice(2, None)):
            inner &= padded[(*core[:axis], shift, *core[axis + 1 :])]
    return mask ^ inner


def _points(border: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """Return the places of border elements, float64 (N, ndim), in units of the spacing."""
    indices = np.unravel_index(np.flatnonzero(border), border.shape)
    return np.stack(indices, axis=1) * steps


def surface_distances(
    prediction: np.ndarray, truth: np.ndarray, spacing: Spacing = _UNIT
) -> tuple[np.ndarray, np.ndarray]:
    """Return the distance of each border element of one mask to the border of the other.

    Both ways that are used are exact: a tree search for thin borders, a Euclidean distance
    transform of the box around both masks for dense ones (noise, checkerboards).

    Args:
        prediction: Bool mask, 2-D or 3-D, not empty.
        truth: Bool mask of the same shape, not empty.
        spacing: Size of an element along each axis.

    Returns:
        Distances from the prediction's border, float64 (N,), and from the truth's, (M,).

    Raises:
        ValueError: A mask is empty, or as `dice`.
    """
    prediction, truth = _masks(prediction, truth)
    steps = _steps(spacing, truth.ndim)
    if not prediction.any() or not truth.any():
        raise ValueError("an empty mask has no border to measure from")
    box = _union_box(prediction, truth)
    borders = _border(prediction[box]), _border(truth[box])
    found = sum(int(np.count_nonzero(border)) for border in borders)
    if found > _DENSE * borders[0].size:
        to_prediction, to_truth = (
            distance_transform_edt(~border, sampling=steps) for border in borders
        )
        return to_truth[borders[0]], to_prediction[borders[1]]
    places = [_points(border, steps) for border in borders]
    # Leaves of 32: the fastest of 4 to 128 for outlines of some hundred elements.
    trees = [cKDTree(points, leafsize=32) for points in places]
    return trees[1].query(places[0])[0], trees[0].query(places[1])[0]


def _distances_or_limit(
    prediction: np.ndarray, truth: np.ndarray, spacing: Spacing
) -> tuple[np.ndarray, np.ndarray] | float:
    """Return the surface distances, or what any distance is when a mask is empty: 0 or inf."""
    prediction, truth = _masks(prediction, truth)
    _steps(spacing, truth.ndim)
    empty = (not prediction.any()) + (not truth.any())
    if empty:
        return math.inf if empty == 1 else 0.0
    return surface_distances(prediction, truth, spacing)


def hd95(prediction: np.ndarray, truth: np.ndarray, spacing: Spacing = _UNIT) -> float:
    """Return the 95th percentile Hausdorff distance, MedPy's definition.

    Both directed sets of surface distances are pooled into one list; its 95th percentile is
    interpolated linearly. (MONAI takes the maximum of the two directed percentiles instead.)

    Args:
        prediction: Bool mask, 2-D or 3-D; integers 0 and 1 are taken as bool.
        truth: Bool mask of the same shape.
        spacing: Size of an element along each axis; the result has its unit.

    Returns:
        The distance; ``inf`` when exactly one mask is empty, 0 when both are.

    Raises:
        ValueError: The shapes differ, a mask is not binary, or the spacing does not fit.
    """
    distances = _distances_or_limit(prediction, truth, spacing)
    if isinstance(distances, float):
        return distances
    return float(np.percentile(np.concatenate(distances), 95))


def hd95_share(prediction: np.ndarray, truth: np.ndarray, spacing: Spacing = _UNIT) -> float:
    """Return `hd95` as a share of the image diagonal, so that images of any size can be averaged.

    Below 1 for any two masks that are not empty. Arguments, empty masks and errors as `hd95`.
    """
    distance = hd95(prediction, truth, spacing)
    # An image without pixels has no diagonal, and its masks are both empty.
    return distance / _diagonal(np.shape(truth), spacing) if distance else 0.0


def assd(prediction: np.ndarray, truth: np.ndarray, spacing: Spacing = _UNIT) -> float:
    """Return the average symmetric surface distance, MedPy's definition.

    The mean of both directed sets of surface distances pooled into one list, so that a longer
    border weighs more; not the mean of the two directed means.
    Arguments, empty masks and errors as `hd95`.
    """
    distances = _distances_or_limit(prediction, truth, spacing)
    if isinstance(distances, float):
        return distances
    return float(np.concatenate(distances).mean())


def nsd(
    prediction: np.ndarray, truth: np.ndarray, spacing: Spacing = _UNIT, tolerance: float = 2.0
) -> float:
    """Return the normalised surface Dice: the share of both borders within a tolerance.

    The definition of Nikolov et al. (2021), with border elements counted, as MONAI does, rather
    than weighted by the area they stand for.

    Args:
        prediction: Bool mask, 2-D or 3-D.
        truth: Bool mask of the same shape.
        spacing: Size of an element along each axis.
        tolerance: Largest distance that counts as agreement, in the unit of the spacing.

    Returns:
        A share in [0, 1]; 0 when exactly one mask is empty, 1 when both are.

    Raises:
        ValueError: As `hd95`, or the tolerance is negative.
    """
    if not tolerance >= 0:
        raise ValueError(f"tolerance {tolerance} is not a distance of 0 or more")
    distances = _distances_or_limit(prediction, truth, spacing)
    if isinstance(distances, float):
        return 1.0 if distances == 0 else 0.0
    pooled = np.concatenate(distances)
    return float(np.count_nonzero(pooled <= tolerance) / pooled.size)


@dataclass(frozen=True)
class Metric:
    """A row of `METRICS`: a column of the score table.

    Attributes:
        function: ``(prediction, truth, spacing) -> float``; infinite for a miss if a distance.
        better: Whether higher or lower values are better.
        unit: ``px``, ``mm`` (computed where the spacing is known), or empty for a share of 1.
        label: Name in the report.
    """

    function: Callable[[np.ndarray, np.ndarray, Spacing], float]
    better: Literal["higher", "lower"]
    unit: str
    label: str


METRICS: Registry[Metric] = Registry(
    "metric",
    {
        "dice": Metric(dice, "higher", "", "Dice"),
        "iou": Metric(iou, "higher", "", "IoU"),
        "hd95_px": Metric(hd95, "lower", "px", "HD95 (px)"),
        "hd95_mm": Metric(hd95, "lower", "mm", "HD95 (mm)"),
        "hd95_share": Metric(hd95_share, "lower", "", "HD95 (share of the diagonal)"),
        "assd_px": Metric(assd, "lower", "px", "ASSD (px)"),
        "nsd": Metric(nsd, "higher", "", "NSD (2 px)"),
        "precision": Metric(precision, "higher", "", "Precision"),
        "recall": Metric(recall, "higher", "", "Recall"),
    },
)


def score_case(
    prediction: np.ndarray, truth: np.ndarray, spacing_mm: Sequence[float] | None = None
) -> dict[str, Any]:
    """Return all metrics of one case, with the policy for empty masks applied.

    Args:
        prediction: Bool mask at the original size.
        truth: Bool mask of the same shape.
        spacing_mm: Size of an element along each axis in millimetres, if known.

    Returns:
        A float for each row of `METRICS` (None for those in mm when the spacing is not known),
        always finite: a distance to or from an empty mask is the image diagonal, so ``hd95_share``
        is 1; then ``empty_prediction`` and ``empty_truth``, bool.

    Raises:
        ValueError: The shapes differ, a mask is not binary, or the spacing does not fit.
    """
    prediction, truth = _masks(prediction, truth)
    scores: dict[str, Any] = {}
    for name, metric in METRICS.items():
        if metric.unit == "mm" and spacing_mm is None:
            scores[name] = None
            continue
        steps = spacing_mm if metric.unit == "mm" else None
        value = metric.function(prediction, truth, steps)
        if math.isinf(value):
            value = _diagonal(truth.shape, steps) if metric.unit else 1.0
        scores[name] = value
    scores["empty_prediction"] = not prediction.any()
    scores["empty_truth"] = not truth.any()
    return scores
