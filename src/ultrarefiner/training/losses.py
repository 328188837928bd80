"""Losses of the coarse models, and those of the reference's phases as one number for a batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F

from ultrarefiner.config import RefinerLossConfig
from ultrarefiner.training.refiner_losses import focal as focal_loss
from ultrarefiner.training.refiner_losses import refiner_loss


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
    logits: torch.Tensor,
    target: torch.Tensor,
    ce: float = 0.5,
    dice: float = 0.5,
    *,
    focal: float = 0.0,
    focal_alpha: float | None = None,
) -> torch.Tensor:
    """Return ``ce`` x cross entropy + ``dice`` x soft Dice + ``focal`` x focal loss of each sample.

    Args:
        logits: (B, K, H, W).
        target: int64 (B, H, W), class of each pixel.
        ce: Weight of the cross entropy.
        dice: Weight of the soft Dice loss (foreground only, smooth 1).
        focal: Weight of the focal loss (all foreground against background, gamma 2).
        focal_alpha: Its balancing factor; see ``refiner_losses.focal``.

    Returns:
        float32 (B,): one loss a sample, so that a mean over cases does not depend on batches.
    """
    total = ce * cross_entropy(logits, target) + dice * soft_dice_loss(logits, target)
    if focal:
        z = logits.float()
        # The log-odds of the foreground: of two classes, the difference of their logits.
        odds = z[:, 1:].logsumexp(1) - z[:, 0]
        total = total + focal * focal_loss(odds, target, alpha=focal_alpha)
    return total


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


def quality_aware_loss(
    logits: torch.Tensor,
    target: torch.Tensor,
    coarse: torch.Tensor,
    change_penalty: float = 0.5,
    *,
    focal: float = 0.5,
    iou_prediction: torch.Tensor | None = None,
    iou: float = 0.1,
    change: str = "quality",
) -> torch.Tensor:
    """Return the loss of finetuning a refiner: the mean of ``refiner_loss`` over the batch.

    Binary cross entropy + soft Dice + ``focal`` x focal loss + ``change_penalty`` x change penalty
    + ``iou`` x error of the predicted IoU. As it stands this is the reference's loss for augmented
    and online training, whose IoU term comes in with ``iou_prediction``; that of its offline and
    hybrid training has ``focal=0, change="correct_pixels"`` and no IoU term.

    Args:
        logits: (B, H, W).
        target: (B, H, W), bool or 0 and 1.
        coarse: (B, H, W), probability of the mask that the prompt was made from.
        change_penalty: Weight of the change penalty.
        focal: Weight of the focal loss, gamma 2.
        iou_prediction: (B,), the IoU predicted for these logits; none: without that term.
        iou: Weight of the IoU term.
        change: What the change penalty is weighted by, ``quality`` or ``correct_pixels``; see
            ``refiner_losses.change_penalty``.

    Returns:
        float32 scalar.

    Raises:
        UltraRefinerError: The masks have not the same size.
        ConfigError: Unknown ``change``.
    """
    # Unchecked, so that an unknown `change` meets the registry, which names the known ones.
    weights = RefinerLossConfig.model_construct(
        focal=focal, iou=iou, change_penalty=change_penalty, change=change
    )
    return refiner_loss(logits, target, coarse, iou_prediction, weights).mean()


def end_to_end_loss(
    coarse_logits: torch.Tensor,
    refined_logits: torch.Tensor,
    target: torch.Tensor,
    coarse_weight: float = 0.5,
    refined_weight: float = 0.5,
    *,
    probabilities: bool = False,
) -> torch.Tensor:
    """Return the loss of training coarse model and refiner as one, over the whole batch.

    ``coarse_weight`` x ``dice_ce_loss`` of the coarse logits + ``refined_weight`` x (half binary
    cross entropy, half ``1 - (2 sum(q t) + 1e-5) / (sum(q) + sum(t) + 1e-5)`` with sums over the
    batch) of the refined ones; the reference's formula. Each term is taken on its own logits' grid,
    to which the target is brought by its nearest pixels.

    Args:
        coarse_logits: (B, K, h, w); class 0 is the background.
        refined_logits: (B, H, W), of any foreground.
        target: Class of each pixel, any integer or float type, (B, h, w), (B, H, W) or another
            size of the same field of view.
        coarse_weight: Weight of the coarse term.
        refined_weight: Weight of the refined term.
        probabilities: ``refined_logits`` holds probabilities, as a gate between coarse and refined
            mask gives them; their cross entropy is that of [1e-7, 1 - 1e-7].

    Returns:
        float32 scalar.
    """
    coarse_term = dice_ce_loss(coarse_logits, _on_grid(target, coarse_logits))
    refined, t = refined_logits.float(), (_on_grid(target, refined_logits) > 0).float()
    if probabilities:
        q, safe = refined, refined.clamp(1e-7, 1 - 1e-7)
        # Not by PyTorch's function, which autocast forbids.
        entropy = -(t * safe.log() + (1 - t) * (1 - safe).log()).mean()
    else:
        q, entropy = refined.sigmoid(), F.binary_cross_entropy_with_logits(refined, t)
    dice_term = 1 - (2 * (q * t).sum() + 1e-5) / ((q + t).sum() + 1e-5)
    return coarse_weight * coarse_term + refined_weight * (0.5 * entropy + 0.5 * dice_term)


def _on_grid(target: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """Bring classes (B, H, W) to the grid of logits (..., h, w), by their nearest pixels."""
    size = logits.shape[-2:]
    if target.shape[-2:] == size:
        return target
    # The pixel whose middle is nearest: whole factors give the same as the reference's rounding
    # down, others are not shifted by it.
    return F.interpolate(target[:, None].float(), size, mode="nearest-exact")[:, 0]
