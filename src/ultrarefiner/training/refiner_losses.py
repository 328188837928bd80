"""Terms of a refiner's loss, each of one value a sample, so that no mean depends on batches.

Logits and masks are (B, H, W) on one grid; z a logit, q = sigmoid(z), t the truth, p the
probability of the coarse mask that the prompt was made from. All is computed in float32.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ultrarefiner.config import RefinerLossConfig
from ultrarefiner.errors import UltraRefinerError
from ultrarefiner.registry import Registry

_GOOD_FROM, _PERFECT = 0.6, 1.0  # coarse Dice at which the change penalty begins, and is whole
_PIXELS = (-2, -1)


def bce(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return the mean binary cross entropy of each sample's pixels.

    Args:
        logits: (B, H, W).
        target: (B, H, W), bool or 0 and 1.

    Returns:
        float32 (B,).
    """
    each = F.binary_cross_entropy_with_logits(logits.float(), target.float(), reduction="none")
    return each.mean(_PIXELS)


def soft_dice(logits: torch.Tensor, target: torch.Tensor, smooth: float = 1.0) -> torch.Tensor:
    """Return the soft Dice loss of each sample.

    ``1 - (2 sum(q t) + smooth) / (sum(q) + sum(t) + smooth)``, 0 where nothing is found in an
    empty truth.

    Args:
        logits: (B, H, W).
        target: (B, H, W), bool or 0 and 1.
        smooth: Added to numerator and denominator.

    Returns:
        float32 (B,).
    """
    overlap, size = _overlap_and_size(logits, target)
    return 1 - (2 * overlap + smooth) / (size + smooth)


def focal(
    logits: torch.Tensor, target: torch.Tensor, gamma: float = 2.0, alpha: float | None = None
) -> torch.Tensor:
    """Return the focal loss of each sample: cross entropy that counts hard pixels most.

    The mean of ``a x (1 - r)^gamma x cross entropy`` with r the probability given to the right
    class, and a the balancing factor: ``alpha`` in the lesion, ``1 - alpha`` in the background
    (Lin et al. 2017).

    Args:
        logits: (B, H, W).
        target: (B, H, W), bool or 0 and 1.
        gamma: How little easy pixels count; 0 makes it the cross entropy.
        alpha: Weight of the lesion's pixels; none: all pixels weigh 1.

    Returns:
        float32 (B,).
    """
    z, lesion = logits.float(), target > 0.5
    wrong = torch.where(lesion, -z, z)
    each = wrong.sigmoid() ** gamma * F.softplus(wrong)
    if alpha is not None:
        each = each * torch.where(lesion, alpha, 1 - alpha)
    return each.mean(_PIXELS)


def input_quality(target: torch.Tensor, coarse: torch.Tensor) -> torch.Tensor:
    """Return how good coarse masks are, from 0 (Dice at most 0.6) to 1 (perfect), float32 (B,).

    The Dice is that of ``coarse > 0.5``, smoothed by 1: ``(2 I + 1) / (|a| + |b| + 1)``.

    Args:
        target: (B, H, W), bool or 0 and 1.
        coarse: (B, H, W), probability.
    """
    a, b = (coarse > 0.5).float(), (target > 0.5).float()
    dice = (2 * (a * b).sum(_PIXELS) + 1) / ((a + b).sum(_PIXELS) + 1)
    return ((dice - _GOOD_FROM) / (_PERFECT - _GOOD_FROM)).clamp(0, 1)


def _by_quality(logits: torch.Tensor, target: torch.Tensor, coarse: torch.Tensor) -> torch.Tensor:
    change = (logits.float().sigmoid() - coarse.float()) ** 2
    return input_quality(target, coarse) * change.mean(_PIXELS)


def _of_correct_pixels(
    logits: torch.Tensor, target: torch.Tensor, coarse: torch.Tensor
) -> torch.Tensor:
    found = coarse > 0.5
    change = (logits.float().sigmoid() - found.float()).abs()
    return (change * (found == (target > 0.5))).mean(_PIXELS)


CHANGES = Registry("change penalty", {"quality": _by_quality, "correct_pixels": _of_correct_pixels})
"""What the penalty on changes is weighted by; the rows of ``RefinerLossConfig.change``."""


def change_penalty(
    logits: torch.Tensor, target: torch.Tensor, coarse: torch.Tensor, change: str = "quality"
) -> torch.Tensor:
    """Return the cost of changing what was good in each sample's coarse mask.

    ``quality``: the mean of ``(q - p)^2`` times ``input_quality``, so that a bad mask may be
    changed at will. ``correct_pixels``: the mean over all pixels of ``|q - c|`` where
    ``c = (p > 0.5)`` is right, and of 0 elsewhere.

    Args:
        logits: (B, H, W).
        target: (B, H, W), bool or 0 and 1.
        coarse: (B, H, W), probability.
        change: A row of ``CHANGES``.

    Returns:
        float32 (B,).

    Raises:
        ConfigError: Unknown ``change``.
    """
    return CHANGES[change](logits, target, coarse)


def iou_error(
    logits: torch.Tensor, target: torch.Tensor, iou_prediction: torch.Tensor
) -> torch.Tensor:
    """Return the squared error of each sample's predicted IoU.

    The IoU to predict is the soft one, ``I / (sum(q) + sum(t) - I + 1)`` with ``I = sum(q t)``. It
    is detached: the prediction follows the mask, the mask does not follow its prediction.

    Args:
        logits: (B, H, W).
        target: (B, H, W), bool or 0 and 1.
        iou_prediction: (B,), what the model predicts for these logits.

    Returns:
        float32 (B,).
    """
    overlap, size = _overlap_and_size(logits.detach(), target)
    return (iou_prediction.float() - overlap / (size - overlap + 1)) ** 2


def refiner_loss(
    logits: torch.Tensor,
    target: torch.Tensor,
    coarse: torch.Tensor,
    iou_prediction: torch.Tensor | None,
    weights: RefinerLossConfig,
) -> torch.Tensor:
    """Return the weighted sum of the terms for each sample.

    A term whose weight is 0 is not computed.

    Args:
        logits: (B, H, W).
        target: (B, H, W), bool or 0 and 1.
        coarse: (B, H, W), probability of the mask that the prompt was made from.
        iou_prediction: (B,), the IoU predicted for these logits; none: without that term.
        weights: Weights of the terms, and what the change penalty is weighted by.

    Returns:
        float32 (B,).

    Raises:
        UltraRefinerError: The three masks, or the predictions, have not the same sizes.
        ConfigError: Unknown ``weights.change``.
    """
    _require_one_size(logits, target, coarse, iou_prediction)
    total = logits.new_zeros(logits.shape[0], dtype=torch.float32)
    if weights.bce:
        total = total + weights.bce * bce(logits, target)
    if weights.dice:
        total = total + weights.dice * soft_dice(logits, target)
    if weights.focal:
        total = total + weights.focal * focal(logits, target, alpha=weights.focal_alpha)
    if weights.change_penalty:
        changed = change_penalty(logits, target, coarse, weights.change)
        total = total + weights.change_penalty * changed
    if weights.iou and iou_prediction is not None:
        total = total + weights.iou * iou_error(logits, target, iou_prediction)
    return total


def _overlap_and_size(
    logits: torch.Tensor, target: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    q, t = logits.float().sigmoid(), target.float()
    return (q * t).sum(_PIXELS), (q + t).sum(_PIXELS)


def _require_one_size(
    logits: torch.Tensor,
    target: torch.Tensor,
    coarse: torch.Tensor,
    iou_prediction: torch.Tensor | None,
) -> None:
    """Fail where broadcasting would make a wrong loss of tensors that do not belong together."""
    one_size = logits.ndim == 3 and logits.shape == target.shape == coarse.shape
    if not one_size or (iou_prediction is not None and iou_prediction.shape != logits.shape[:1]):
        predicted = None if iou_prediction is None else tuple(iou_prediction.shape)
        raise UltraRefinerError(
            f"the loss takes logits, target and coarse mask of one size (B, H, W) and predicted IoU "
            f"(B,); got {tuple(logits.shape)}, {tuple(target.shape)}, {tuple(coarse.shape)} and "
            f"{predicted}"
        )
