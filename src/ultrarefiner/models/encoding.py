"""The image encoder at work: batches, arithmetic and memory."""

from __future__ import annotations

from typing import Literal

import torch
from segment_anything.modeling import Sam

Precision = Literal["float32", "bfloat16"]


def encode(sam: Sam, pixels: torch.Tensor, precision: Precision = "float32") -> torch.Tensor:
    """Encode a batch of images.

    Args:
        sam: The model.
        pixels: float32 (B, 3, side, side), normalised and padded, on the model's device.
        precision: Arithmetic of the encoder.

    Returns:
        float32 (B, channels, grid, grid) on the model's device.
    """
    with torch.autocast(pixels.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
        return sam.image_encoder(pixels).float()


def encoder_batch(sam: Sam) -> int:
    """Return how many images the encoder should take at a time on the model's device."""
    return 1
