"""What stands around a promptable model that gradients flow through: its prompts, and its choice."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from ultrarefiner.prompts.roi import crop_roi, paste_roi, roi_around, soft_roi
from ultrarefiner.prompts.soft_geometry import (
    checked,
    full_precision,
    negative_point,
    soft_box,
    soft_point,
)
from ultrarefiner.registry import Registry

__all__ = [
    "MASK_LOGIT",
    "MASK_STYLES",
    "crop_roi",
    "mask_prompt_logits",
    "mask_weights",
    "negative_point",
    "paste_roi",
    "probability_logits",
    "roi_around",
    "select_mask",
    "sharpen",
    "soft_box",
    "soft_point",
    "soft_roi",
]

MASK_LOGIT = 10.0
"""Logit of a mask prompt where its probability is 1; see ``probability_logits``."""

_SHARPNESS = 10.0
_DISTANCE_ROUNDS, _DISTANCE_SIDE = 5, 5


def mask_weights(iou: torch.Tensor, temperature: float = 0.1) -> torch.Tensor:
    """Return how much each of a decoder's masks counts: ``softmax(iou / temperature)``.

    Args:
        iou: Predicted IoU (..., K).
        temperature: How evenly masks count; near 0 the best alone does.

    Returns:
        float32 (..., K), summing to 1.
    """
    return (iou.float() / temperature).softmax(-1)


def select_mask(logits: torch.Tensor, iou: torch.Tensor, temperature: float = 0.1) -> torch.Tensor:
    """Return one mask of a decoder's several: their logits, weighted by predicted quality.

    Unlike with a choice of the best, all masks and the predictions have a gradient.

    Args:
        logits: (B, K, h, w).
        iou: Predicted IoU (B, K).
        temperature: See ``mask_weights``.

    Returns:
        float32 (B, h, w).
    """
    # Not by einsum, which autocast would compute in half precision.
    return (mask_weights(iou, temperature)[..., None, None] * logits.float()).sum(1)


def sharpen(p: torch.Tensor, temperature: float = _SHARPNESS) -> torch.Tensor:
    """Return probabilities pushed away from one half: ``sigmoid((p - 0.5) * temperature)``.

    Args:
        p: Any shape, in [0, 1].
        temperature: How far; 10 makes 0.01 to 0.007 and 0.3 to 0.12. Below 4 it levels instead.

    Returns:
        float32 of the same shape; float64 if p is.
    """
    return ((full_precision(p) - 0.5) * temperature).sigmoid()


def probability_logits(p: torch.Tensor) -> torch.Tensor:
    """Return the logits of a mask prompt, ``(2 p - 1) * MASK_LOGIT``: linear, bounded, 0 at 0.5.

    Args:
        p: Any shape, in [0, 1].
    """
    return (2 * p - 1) * MASK_LOGIT


def _gaussian(p: torch.Tensor) -> torch.Tensor:
    reach = max(p.shape[-2] // 64, 1)
    side = 2 * reach + 1
    offset = torch.arange(-reach, reach + 1, dtype=p.dtype, device=p.device)
    kernel = (-0.5 * (offset / (side / 3)).square()).exp()
    kernel = kernel / kernel.sum()
    along = F.conv2d(p, kernel.view(1, 1, 1, side), padding=(0, reach))
    return F.conv2d(along, kernel.view(1, 1, side, 1), padding=(reach, 0))


def _distance(p: torch.Tensor) -> torch.Tensor:
    rounds, level = [], p
    for _ in range(_DISTANCE_ROUNDS):
        level = sharpen(F.avg_pool2d(level, _DISTANCE_SIDE, 1, _DISTANCE_SIDE // 2))
        rounds.append(level)
    return p * (0.5 + 0.5 * torch.stack(rounds).mean(0))


MASK_STYLES: Registry[Callable[[torch.Tensor], torch.Tensor]] = Registry(
    "mask prompt style", {"direct": lambda p: p, "gaussian": _gaussian, "distance": _distance}
)


def mask_prompt_logits(p: torch.Tensor, size: int = 256, style: str = "direct") -> torch.Tensor:
    """Turn soft masks in a SAM's frame into the low-resolution logits it takes as mask prompt.

    The mask is styled, made to logits (``probability_logits``), and resized bilinearly, without
    antialiasing. The formulas are the reference's:

    * "direct": as it is.
    * "gaussian": blurred by a normalised Gaussian of 2 floor(H / 64) + 1 pixels, at least 3, with
      a third of that as standard deviation. Beyond the image are zeros, which lower a lesion at
      its border.
    * "distance": p (1 + d) / 2, higher inside than at the rim; d is the mean of five rounds of
      [5 x 5 mean, then ``sharpen``], a cheap stand-in for the distance from the rim.

    Args:
        p: (B, H, W), probability in [0, 1].
        size: Side of the logits.
        style: A row of ``MASK_STYLES``.

    Returns:
        float32 (B, 1, size, size); float64 if p is.

    Raises:
        PromptError: p is not (B, H, W).
        ConfigError: Unknown style.
    """
    p = checked(p)[:, None]
    # Autocast would blur in half precision.
    with torch.autocast(p.device.type, enabled=False):
        logits = probability_logits(MASK_STYLES[style](p))
        return F.interpolate(logits, (size, size), mode="bilinear", align_corners=False)
