"""Errors put into prompts on purpose: to see how much a refiner forgives, and to teach it to."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ultrarefiner.config import NEGATIVE_REACH, BoxNoiseConfig, NoiseConfig
from ultrarefiner.io import item_seed
from ultrarefiner.prompts.base import Prompt
from ultrarefiner.prompts.geometry import Box, expand_box, whole_box

BANDS = {
    "exact": (0.0, 0.0),
    "slight_enlarge": (0.05, 0.20),
    "slight_shrink": (-0.15, -0.05),
    "heavy_enlarge": (0.30, 0.60),
    "heavy_shrink": (-0.30, -0.15),
}
"""How far each edge of a training box moves out, as a share of the box's side (reference numbers).

The names are the fields of ``BoxNoiseConfig``.
"""

LEAST_SIDE = 2
"""Pixels that a training box has at least on each side, where the image has them."""

SHIFT_SIDE = 256
"""Longest side of an image, in the pixels that shifts of training boxes are given in."""


def perturb_prompt(
    prompt: Prompt, extent: Box, noise: NoiseConfig, item: str, image_hw: tuple[int, int]
) -> Prompt:
    """Return a prompt with its box edges and points moved at random, within the image.

    All moves are uniform. Each edge of the box moves by at most ``noise.box`` of the box's own side
    (width or height), so that at least a tenth of the side remains; each coordinate of a point by
    at most ``noise.point`` of the side of ``extent``. A mask stays.

    Args:
        prompt: The prompt, as ``prompt_from_mask`` makes it.
        extent: Box of the lesion that it was made from.
        noise: How far, which seed.
        item: What the moves belong to, such as the case id; the same item gets the same moves,
            whatever else the prompt holds.
        image_hw: (height, width) of the image in pixels.
    """
    height, width = image_hw
    rng = np.random.default_rng(item_seed("noise", noise.seed, item))
    # Drawn in any case, so that the points' moves are those of a prompt without a box.
    edges = rng.uniform(-1, 1, (2, 2)) * noise.box
    box, points = prompt.box, prompt.points
    if box is not None:
        moved = box.reshape(2, 2) + edges * (box[2:] - box[:2])
        box = np.clip(moved, 0, (width, height)).ravel()
    if points is not None:
        sides = np.subtract(extent[2:], extent[:2])
        moved = points + rng.uniform(-1, 1, points.shape) * noise.point * sides
        # A negative point stands on a whole pixel, so up to one beyond its reach. What the crop
        # windows are made to hold is this reach and that of the noise, in whole pixels.
        reach = expand_box(extent, NEGATIVE_REACH + noise.point, image_hw)
        x0, y0, x1, y1 = whole_box(reach)
        points = np.clip(moved, (x0, y0), (x1 - 1, y1 - 1))
    return replace(prompt, box=box, points=points)


def draw_band(bands: BoxNoiseConfig, rng: np.random.Generator) -> str:
    """Return the name of one of ``BANDS``, drawn by the shares of the config."""
    shares = np.array([getattr(bands, name) for name in BANDS])
    return str(rng.choice(list(BANDS), p=shares / shares.sum()))


def move_edges(box: Box, band: str, rng: np.random.Generator, image_hw: tuple[int, int]) -> Box:
    """Move each edge of a box by its own uniform share of the box's side.

    Args:
        box: Half-open ``(x0, y0, x1, y1)`` in original pixels.
        band: One of ``BANDS``: which way the edges move, and how far.
        rng: Where the four shares come from; four numbers are drawn in any band.
        image_hw: (height, width) of the image in pixels.

    Returns:
        The box within the image, in fractions of pixels; a side shorter than ``LEAST_SIDE`` grows
        to it.
    """
    x0, y0, x1, y1 = box
    left, top, right, bottom = rng.uniform(*BANDS[band], 4)
    wide, high = x1 - x0, y1 - y0
    height, width = image_hw
    x0, x1 = _within(x0 - left * wide, x1 + right * wide, width)
    y0, y1 = _within(y0 - top * high, y1 + bottom * high, height)
    return x0, y0, x1, y1


def perturb_box(
    box: Box, bands: BoxNoiseConfig, rng: np.random.Generator, image_hw: tuple[int, int]
) -> Box:
    """Return a training box with an error: ``draw_band``, then ``move_edges``.

    Args:
        box: Half-open ``(x0, y0, x1, y1)`` in original pixels.
        bands: Share of each band.
        rng: Where all numbers come from, as many for any box and band.
        image_hw: (height, width) of the image in pixels.

    Returns:
        The box; see ``move_edges``.
    """
    return move_edges(box, draw_band(bands, rng), rng, image_hw)


def shift_box(box: Box, most: float, rng: np.random.Generator, image_hw: tuple[int, int]) -> Box:
    """Return a training box that is moved as a whole, keeping its size.

    Both offsets are uniform up to ``most``, but to half of the box's shorter side: a small lesion
    stays in its box (SAM-UNet's augmentation).

    Args:
        box: Half-open ``(x0, y0, x1, y1)`` in original pixels.
        most: Largest offset, in pixels of the image brought to a longest side of ``SHIFT_SIDE``.
        rng: Where the two offsets come from.
        image_hw: (height, width) of the image in pixels.
    """
    x0, y0, x1, y1 = box
    height, width = image_hw
    reach = min(most * max(image_hw) / SHIFT_SIDE, min(x1 - x0, y1 - y0) / 2)
    right, down = rng.uniform(-reach, reach, 2)
    right = float(np.clip(right, min(-x0, 0), max(width - x1, 0)))
    down = float(np.clip(down, min(-y0, 0), max(height - y1, 0)))
    return x0 + right, y0 + down, x1 + right, y1 + down


def _within(low: float, high: float, size: int) -> tuple[float, float]:
    """Return an interval cut to [0, size], then grown about its middle to ``LEAST_SIDE``."""
    low, high = float(np.clip(low, 0, size)), float(np.clip(high, 0, size))
    least = min(LEAST_SIDE, size)
    if high - low < least:
        low = min(max((low + high - least) / 2, 0.0), float(size - least))
        high = low + least
    return low, high
