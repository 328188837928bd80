"""Errors put into prompts on purpose, to see how much of them a refiner forgives."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ultrarefiner.config import NEGATIVE_REACH, NoiseConfig
from ultrarefiner.io import item_seed
from ultrarefiner.prompts.base import Prompt
from ultrarefiner.prompts.geometry import Box, expand_box, whole_box


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
