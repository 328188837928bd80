"""Masks as the models that are prompted with them take them."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional

from ultrarefiner.prompts.soft import probability_logits


def low_resolution(
    mask: np.ndarray, input_hw: tuple[int, int], frame: int, size: int
) -> torch.Tensor:
    """Bring a mask in original pixels to the grid of a SAM's low-resolution masks.

    It takes the image's way into the model: resized to the image's place in the square frame, the
    padding is background, then blocks of pixels are averaged. So it lies on the image to the pixel,
    also where the image's size in the frame is no multiple of the block.

    Args:
        mask: (H, W) bool, or probability in [0, 1].
        input_hw: (height, width) of the image in the frame.
        frame: Side of the square frame.
        size: Side of the grid.

    Returns:
        float32 (1, 1, size, size) in [0, 1], on the CPU.
    """
    probability = torch.from_numpy(np.array(mask, dtype=np.float32))[None, None]
    resized = functional.interpolate(
        probability, input_hw, mode="bilinear", align_corners=False, antialias=True
    ).clamp(0, 1)
    padding = (0, frame - input_hw[1], 0, frame - input_hw[0])
    return functional.interpolate(functional.pad(resized, padding), (size, size), mode="area")


def mask_prompt_logits(
    mask: np.ndarray, input_hw: tuple[int, int], frame: int, size: int
) -> torch.Tensor:
    """Turn a mask in original pixels into the low-resolution logits a SAM takes as mask prompt.

    See ``probability_logits``. Padding is sure background; see ``low_resolution``, which also tells
    the arguments.

    Returns:
        float32 (1, 1, size, size), on the CPU.
    """
    return probability_logits(low_resolution(mask, input_hw, frame, size))
