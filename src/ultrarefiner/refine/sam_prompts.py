"""What a SAM's decoder is asked: prompts in the model's own frame, and moved copies of prompts."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from ultrarefiner.io import item_seed
from ultrarefiner.prompts.base import Prompt
from ultrarefiner.prompts.geometry import lesion_pixels, tight_box
from ultrarefiner.refine.options import JitterOptions


@dataclass(frozen=True, eq=False)
class Query:
    """A prompt as the prompt encoder takes it, before that adds its half pixel.

    Gradients flow through the tensors among its parts.

    Attributes:
        points: (N, 2) in the model's frame, x and y.
        labels: (N,) 1 for lesion, 0 for background.
        box: (4,) x0, y0, x1, y1 in the model's frame.
        mask: float32 (1, side, side) low-resolution logits.
    """

    points: np.ndarray | torch.Tensor | None = None
    labels: np.ndarray | None = None
    box: np.ndarray | torch.Tensor | None = None
    mask: torch.Tensor | None = None

    def with_mask(self, logits: torch.Tensor) -> Query:
        """Return the same query with low-resolution logits (side, side) as its mask prompt.

        No gradient flows from a later pass to the one that gave the logits, as SAM is trained.
        """
        return replace(self, mask=logits[None].detach())


@dataclass(frozen=True, eq=False)
class LiveFeatures:
    """Images as a model in training holds them.

    Attributes:
        features: float32 (B, channels, grid, grid) on the model's device: one image for all
            queries, or one for each.
        image_hw: Original (height, width) in pixels, of one image.
        input_size: (height, width) of the image inside the model's square frame.
    """

    features: torch.Tensor
    image_hw: tuple[int, int]
    input_size: tuple[int, int]


def fed_back(query: Query, answer: tuple[torch.Tensor, torch.Tensor]) -> Query:
    """Return a query for the next pass: its mask prompt is the best of its answer's logits.

    Args:
        query: What was asked.
        answer: Low-resolution logits (K, side, side) and predicted IoU (K,).
    """
    logits, ious = answer
    return query.with_mask(logits[int(ious.argmax())])


def moved_copies(
    prompt: Prompt, refined: np.ndarray, jitter: JitterOptions, image_sha256: str
) -> list[Prompt]:
    """Return copies of a prompt with its edges and points moved at random, within the image.

    Each edge and coordinate moves by a uniform share of the side of the prompt's box, a mask as a
    whole. A prompt without box is measured by the box of its mask, one of points by that of the
    refined mask, which may be the whole image. Logits stay where they are.

    Args:
        prompt: The prompt, in original pixels.
        refined: bool (H, W), what the prompt itself gave.
        jitter: How many copies, how far, which seed.
        image_sha256: Digest of the image, so that images get moves of their own.

    Returns:
        ``jitter.copies`` prompts, the same for the same arguments; none if nothing can be moved.
    """
    if prompt.box is None and prompt.points is None and prompt.mask is None:
        return []
    height, width = refined.shape
    sides = _measure(prompt, refined)
    copies = []
    for copy in range(jitter.copies):
        rng = np.random.default_rng(item_seed("jitter", jitter.seed, image_sha256, copy))
        edges = rng.uniform(-1, 1, (2, 2)) * jitter.box * sides
        shift = rng.uniform(-1, 1, 2) * jitter.box * sides
        parts = {}
        if prompt.box is not None:
            parts["box"] = (prompt.box.reshape(2, 2) + edges).ravel()
            parts["box"][:2] = np.clip(parts["box"][:2], 0, (width - 1, height - 1))
            parts["box"][2:] = np.clip(parts["box"][2:], parts["box"][:2] + 1, (width, height))
        if prompt.points is not None:
            moves = rng.uniform(-1, 1, prompt.points.shape) * jitter.point * sides
            parts["points"] = np.clip(prompt.points + moves, 0, (width - 1, height - 1))
            parts["labels"] = prompt.labels
        if prompt.mask is not None:
            parts["mask"] = _shifted(prompt.mask, *np.rint(shift).astype(int))
        copies.append(Prompt(**parts, mask_logits=prompt.mask_logits))
    return copies


def _measure(prompt: Prompt, refined: np.ndarray) -> np.ndarray:
    """Return width and height of what a prompt is about."""
    if prompt.mask is not None:
        x0, y0, x1, y1 = tight_box(lesion_pixels(prompt.mask))
    elif prompt.box is not None:
        x0, y0, x1, y1 = prompt.box
    elif refined.any():
        x0, y0, x1, y1 = tight_box(refined)
    else:
        (x0, y0), (y1, x1) = (0, 0), refined.shape
    return np.array([x1 - x0, y1 - y0], dtype=np.float64)


def _shifted(mask: np.ndarray, dx: int, dy: int) -> np.ndarray:
    """Return the mask moved by whole pixels; what comes in from outside is 0."""
    height, width = mask.shape
    moved = np.zeros_like(mask)
    to = (slice(max(dy, 0), height + min(dy, 0)), slice(max(dx, 0), width + min(dx, 0)))
    back = (slice(max(-dy, 0), height + min(-dy, 0)), slice(max(-dx, 0), width + min(-dx, 0)))
    moved[to] = mask[back]
    return moved


def mean_iou(mask: np.ndarray, others: np.ndarray) -> float:
    """Return the mean IoU of a bool (H, W) mask with others (N, H, W); two empty masks agree."""
    both = (mask & others).sum(axis=(1, 2))
    either = (mask | others).sum(axis=(1, 2))
    return float(np.where(either == 0, 1.0, both / np.maximum(either, 1)).mean())
