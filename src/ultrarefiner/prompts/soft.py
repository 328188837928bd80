"""Choices around a promptable model that gradients flow through."""

from __future__ import annotations

import torch


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
