"""Losses of the coarse models."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F


def _one_hot(target: torch.Tensor, classes: int) -> torch.Tensor:
    """Turn (B, H, W) classes into float32 (B, K, H, W), without waiting for the GPU."""
    numbers = torch.arange(classes, device=target.device)
    return (target[:, None] == numbers[None, :, None, None]).float()


def cross_entropy(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return the mean cross entropy of each sample's pixels.

    Args:
        logits: (B, K, H, W).
        target: int64 (B, H, W), class of each pixel.

    Returns:
        float32 (B,).
    """
    return F.cross_entropy(logits.float(), target, reduction="none").mean((-2, -1))


def soft_dice_loss(logits: torch.Tensor, target: torch.Tensor, smooth: float = 1.0) -> torch.Tensor:
    """Return the soft Dice loss of each sample, over the foreground classes.

    For a class with softmax probabilities q and truth t:
    ``1 - (2 sum(q t) + smooth) / (sum(q) + sum(t) + smooth)`` (V-Net's loss without squares,
    smoothed so that an empty sample has a gradient).

    Args:
        logits: (B, K, H, W); class 0 is the background.
        target: int64 (B, H, W), class of each pixel.
        smooth: Added to numerator and denominator.

    Returns:
        float32 (B,), the mean over the K - 1 foreground classes.
    """
    q = logits.float().softmax(1)[:, 1:]
    t = _one_hot(target, logits.shape[1])[:, 1:]
    overlap, size = (q * t).sum((-2, -1)), (q + t).sum((-2, -1))
    return (1 - (2 * overlap + smooth) / (size + smooth)).mean(1)


def coarse_loss(
    logits: torch.Tensor, target: torch.Tensor, ce: float = 0.5, dice: float = 0.5
) -> torch.Tensor:
    """Return ``ce`` x cross entropy + ``dice`` x soft Dice loss of each sample.

    Args:
        logits: (B, K, H, W).
        target: int64 (B, H, W), class of each pixel.
        ce: Weight of the cross entropy.
        dice: Weight of the soft Dice loss (foreground only, smooth 1).

    Returns:
        float32 (B,): one loss a sample, so that a mean over cases does not depend on batches.
    """
    return ce * cross_entropy(logits, target) + dice * soft_dice_loss(logits, target)


def dice_ce_loss(
    logits: torch.Tensor, target: torch.Tensor, ce: float = 0.5, dice: float = 0.5
) -> torch.Tensor:
    """Return cross entropy and multi-class Dice with squared sizes, over the whole batch.

    The Dice term is the mean over all K classes, background included, of
    ``1 - (2 sum(q t) + 1e-5) / (sum(q^2) + sum(t^2) + 1e-5)`` with q the softmax and sums over the
    batch, the loss that TransUNet was published with.

    Args:
        logits: (B, K, H, W).
        target: (B, H, W), class of each pixel; any integer or float type.
        ce: Weight of the cross entropy.
        dice: Weight of the Dice term.

    Returns:
        float32 scalar.
    """
    target = target.long()
    q = logits.float().softmax(1)
    t = _one_hot(target, logits.shape[1])
    over = (0, 2, 3)
    overlap, size = (q * t).sum(over), (q * q + t * t).sum(over)
    dice_term = (1 - (2 * overlap + 1e-5) / (size + 1e-5)).mean()
    return ce * F.cross_entropy(logits.float(), target) + dice * dice_term


def list_outputs(output: torch.Tensor | Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Return a model's outputs in train mode as a list, the finest first.

    Args:
        output: Logits (B, K, H, W), or several of them where the model is deeply supervised.
    """
    return [output] if isinstance(output, torch.Tensor) else list(output)


def deep_supervision_loss(
    outputs: Sequence[torch.Tensor], loss: Callable[[torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    """Return the weighted mean of the losses of outputs, which weigh 1, 1/2, 1/4, ...

    nnU-Net's weights (Isensee et al. 2021), normalised to a sum of 1; a single output has its
    plain loss.

    Args:
        outputs: Logits (B, K, H, W) each, the finest first.
        loss: Gives the loss of each sample, (B,), of one of them.

    Returns:
        float32 (B,).
    """
    weights = [0.5**depth for depth in range(len(outputs))]
    terms = [
        weight / sum(weights) * loss(output)
        for weight, output in zip(weights, outputs, strict=True)
    ]
    return torch.stack(terms).sum(0)
