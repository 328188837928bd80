"""Whether a prompt and an image belong together."""

from __future__ import annotations

import numpy as np

from ultrarefiner.errors import PromptError
from ultrarefiner.prompts.base import Prompt
from ultrarefiner.prompts.geometry import lesion_pixels


def require_fit(prompt: Prompt, image_hw: tuple[int, int]) -> None:
    """Check that a prompt says something about an image.

    Points are pixel indices, so the image reaches half a pixel beyond the first and the last. A box
    may reach beyond the image as long as part of it is inside.

    Args:
        prompt: The prompt.
        image_hw: (height, width) of the image in pixels.

    Raises:
        PromptError: A point or the whole box is outside the image, or the mask is empty, of another
            size, or no probability.
    """
    height, width = image_hw
    if prompt.box is not None:
        x0, y0, x1, y1 = np.asarray(prompt.box).tolist()
        if x1 <= 0 or y1 <= 0 or x0 >= width or y0 >= height:
            raise PromptError(
                f"box ({x0:g}, {y0:g}, {x1:g}, {y1:g}) is outside the image of {width} x {height} "
                "pixels; boxes are (x0, y0, x1, y1) in the image's own pixels"
            )
    for x, y in [] if prompt.points is None else prompt.points.tolist():
        if not (-0.5 <= x < width - 0.5 and -0.5 <= y < height - 0.5):
            raise PromptError(
                f"point ({x:g}, {y:g}) is outside the image of {width} x {height} pixels; points "
                "are pixel indices (column, row)"
            )
    if prompt.mask is not None:
        if prompt.mask.shape != (height, width):
            raise PromptError(
                f"the prompt's mask is {prompt.mask.shape} and the image {(height, width)} "
                "(height, width). Give the mask in the image's own pixels."
            )
        if not lesion_pixels(prompt.mask).any():
            raise PromptError(
                f"the prompt's mask is empty (nothing in its {width} x {height} pixels reaches "
                "0.5); the refined mask is then empty too, without refining"
            )
