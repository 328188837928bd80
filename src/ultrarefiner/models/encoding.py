"""The image encoder at work: batches, arithmetic and memory."""

from __future__ import annotations

from typing import Literal

import torch
from segment_anything.modeling import ImageEncoderViT, Sam
from torch import nn

from ultrarefiner.models.attention import is_fused, round_products

Precision = Literal["float32", "bfloat16"]

_MOST = 16  # images at a time; more gain nothing on any GPU that we know of
_LIVE = 16  # tensors of (tokens, channels) floats alive at the same time, on the safe side
_SHARE = 0.7  # of the free memory


def encode(
    sam: Sam, pixels: torch.Tensor, precision: Precision = "float32", compiled: bool = False
) -> torch.Tensor:
    """Encode a batch of images.

    Args:
        sam: The model.
        pixels: float32 (B, 3, side, side), normalised and padded, on the model's device.
        precision: Arithmetic of the encoder. ``bfloat16`` is for matrix products: on a GPU all of
            them, on a CPU those that take most of the time and change masks least (the MLPs of the
            later blocks). The sums that run through all blocks stay float32.
        compiled: Compile the encoder at its first use: that takes a minute, and pays off from some
            hundred images on.

    Returns:
        float32 (B, channels, grid, grid) on the model's device.
    """
    encoder = sam.image_encoder
    if compiled and encoder._compiled_call_impl is None:
        encoder.compile()
    rounded = precision == "bfloat16"
    if pixels.device.type == "cpu" and is_fused(encoder):
        round_products(encoder, rounded)
        return encoder(pixels)
    with torch.autocast(pixels.device.type, torch.bfloat16, enabled=rounded):
        return encoder(pixels).float()


def encoder_batch(sam: Sam) -> int:
    """Return how many images the encoder should take at a time on the model's device.

    One on a CPU, where more gain nothing. On a GPU as many as fit into most of its free memory,
    judged by the encoder's sizes.
    """
    if sam.device.type != "cuda":
        return 1
    free, _ = torch.cuda.mem_get_info(sam.device)
    fixed, each = _needed_bytes(sam.image_encoder)
    return int(min(max((_SHARE * free - fixed) // each, 1), _MOST))


def _needed_bytes(encoder: nn.Module) -> tuple[int, int]:
    """Return what an encoder needs for any number of images at once, and for each image more."""
    if not isinstance(encoder, ImageEncoderViT):
        # TinyViT: the first blocks have 256 channels at a quarter of the frame.
        return 0, 4 * _LIVE * 256 * (encoder.img_size // 4) ** 2
    weight = encoder.patch_embed.proj.weight
    tokens = (encoder.img_size // weight.shape[-1]) ** 2
    heads = max(block.attn.num_heads for block in encoder.blocks)
    # The bias of one image, and its sum.
    return 2 * 4 * heads * tokens**2, 4 * _LIVE * tokens * weight.shape[0]
