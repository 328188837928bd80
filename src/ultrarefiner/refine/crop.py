"""Refining in a crop: cut the image, move the prompts, paste the mask back."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ultrarefiner.errors import PromptError
from ultrarefiner.prompts.base import Prompt
from ultrarefiner.prompts.crop import Window
from ultrarefiner.refine.base import Embedding, Refinement, Refiner


def _overlap(window: Window, image_hw: tuple[int, int]) -> tuple[tuple[slice, slice], ...]:
    """Return where window and image meet: as slices of the image, and of the window."""
    x0, y0, x1, y1 = window
    left, top = max(x0, 0), max(y0, 0)
    right, bottom = max(min(x1, image_hw[1]), left), max(min(y1, image_hw[0]), top)
    in_image = slice(top, bottom), slice(left, right)
    return in_image, (slice(top - y0, bottom - y0), slice(left - x0, right - x0))


def cut_window(image: np.ndarray, window: Window) -> np.ndarray:
    """Return a window of an image, mask or probability (H, W, ...); beyond the image it is 0."""
    x0, y0, x1, y1 = window
    cut = np.zeros((y1 - y0, x1 - x0, *image.shape[2:]), dtype=image.dtype)
    in_image, in_window = _overlap(window, image.shape[:2])
    cut[in_window] = image[in_image]
    return cut


def prompt_in_window(prompt: Prompt, window: Window, image_hw: tuple[int, int]) -> Prompt:
    """Return a prompt in the window's pixels.

    A box is cut to the part of the window inside the image, a mask to the window.

    Args:
        prompt: In original pixels.
        window: The window.
        image_hw: (height, width) of the whole image.

    Raises:
        PromptError: A point or the whole box is outside that part, the mask is not of the image's
            size, or the prompt has logits, which lie on the whole image and cannot be cut.
    """
    if prompt.mask_logits is not None:
        raise PromptError("mask_logits lie on the whole image; give `mask` to refine in a crop")
    corner = np.array(window[:2])
    low = np.maximum(corner, 0)
    high = np.minimum(window[2:], image_hw[::-1])
    box, points, mask = prompt.box, prompt.points, prompt.mask
    if box is not None:
        box = np.clip(box.reshape(2, 2), low, high)
        if (box[0] >= box[1]).any():
            raise PromptError(_outside("box", prompt.box, window))
        box = (box - corner).ravel()
    if points is not None:
        # Points are pixel indices: a pixel reaches half a pixel to each side.
        beyond = ((points < low - 0.5) | (points >= high - 0.5)).any(axis=1)
        if beyond.any():
            raise PromptError(_outside("point", points[beyond][0], window))
        points = points - corner
    if mask is not None:
        if mask.shape != tuple(image_hw):
            raise PromptError(
                f"the prompt's mask is {mask.shape} and the image {tuple(image_hw)} (height, "
                "width). Give the mask in the image's own pixels."
            )
        mask = cut_window(mask, window)
    return Prompt(box=box, points=points, labels=prompt.labels, mask=mask)


def _outside(what: str, where: np.ndarray, window: Window) -> str:
    return (
        f"{what} {where.tolist()} is outside the part of the image in the window {list(window)}. "
        "Prompts are given in the whole image's pixels; take a window that holds them."
    )


def paste_window(refined: Refinement, window: Window, image_hw: tuple[int, int]) -> Refinement:
    """Return a refinement with its mask in the whole image; outside the window nothing is lesion.

    ``low_res_logits`` stay those of the window.
    """
    mask = np.zeros(image_hw, dtype=bool)
    in_image, in_window = _overlap(window, image_hw)
    mask[in_image] = refined.mask[in_window]
    return replace(refined, mask=mask)


def refine_in_window(
    refiner: Refiner,
    embedding: Embedding,
    prompt: Prompt | list[Prompt],
    window: Window | None,
    image_hw: tuple[int, int],
) -> Refinement:
    """Refine an image of which the refiner sees a window.

    Args:
        refiner: The refiner.
        embedding: What it made of the window (``cut_window``), or of the whole image.
        prompt: One or several prompts, in original pixels.
        window: The window; None for the whole image.
        image_hw: (height, width) of the whole image.

    Returns:
        The refinement, its mask (H, W) of the whole image.

    Raises:
        PromptError: A prompt does not fit the image or the refiner.
    """
    if window is None:
        return refiner.refine(embedding, prompt)
    prompts = [prompt] if isinstance(prompt, Prompt) else prompt
    moved = [prompt_in_window(one, window, image_hw) for one in prompts]
    return paste_window(refiner.refine(embedding, moved), window, image_hw)
