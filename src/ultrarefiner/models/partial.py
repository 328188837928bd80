"""The image encoder in two halves: what does not train, computed once, and the rest.

Both halves together do what the encoder does, operation by operation.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from segment_anything.modeling import ImageEncoderViT, Sam
from torch import nn

from ultrarefiner.models.parts import vit_encoder


def encode_until(sam: Sam, pixels: torch.Tensor, block: int) -> torch.Tensor:
    """Return what comes to a block of the image encoder, without gradients and in eval mode.

    Args:
        sam: The model.
        pixels: float32 (B, 3, side, side), normalised and padded, on the model's device.
        block: Index of the first block that is left out; the number of blocks leaves out only the
            neck.

    Returns:
        Tokens (B, grid, grid, width of the encoder).

    Raises:
        ConfigError: The encoder has no row of blocks.
        ValueError: There is no such block; or gradients are on and a parameter of this half asks
            for one, which it would silently not get.
    """
    encoder = _encoder(sam, block)
    half = [encoder.patch_embed, *encoder.blocks[:block]]
    if torch.is_grad_enabled():
        trained = [encoder.pos_embed, *(weight for part in half for weight in part.parameters())]
        if any(weight is not None and weight.requires_grad for weight in trained):
            raise ValueError(
                f"encode_until: parameters before block {block} require a gradient and would get "
                "none; freeze them (set_trainable), or call it under torch.no_grad()"
            )
    with torch.no_grad(), _in_eval_mode(half):
        tokens = encoder.patch_embed(pixels)
        if encoder.pos_embed is not None:
            tokens = tokens + encoder.pos_embed
        for one in encoder.blocks[:block]:
            tokens = one(tokens)
    return tokens


def encode_from(sam: Sam, tokens: torch.Tensor, block: int) -> torch.Tensor:
    """Return the embedding from what comes to a block, with gradients where they are wanted.

    Args:
        sam: The model.
        tokens: (B, grid, grid, width of the encoder) as ``encode_until`` gives them, on the model's
            device; of any float type.
        block: Index of the first block that is still to be computed.

    Returns:
        (B, channels, grid, grid) in the type of the model.

    Raises:
        ConfigError: The encoder has no row of blocks.
        ValueError: There is no such block.
    """
    encoder = _encoder(sam, block)
    tokens = tokens.to(encoder.neck[0].weight.dtype)
    for one in encoder.blocks[block:]:
        tokens = one(tokens)
    return encoder.neck(tokens.permute(0, 3, 1, 2))


def _encoder(sam: Sam, block: int) -> ImageEncoderViT:
    encoder = vit_encoder(
        sam,
        "keeping activations of a half-trained encoder",
        "Freeze the encoder, or set `cache: none`",
    )
    if not 0 <= block <= len(encoder.blocks):
        raise ValueError(f"block {block} is not among 0 to {len(encoder.blocks)}")
    return encoder


@contextmanager
def _in_eval_mode(modules: Iterable[nn.Module]) -> Iterator[None]:
    modes = [(module, module.training) for one in modules for module in one.modules()]
    for module, _ in modes:
        module.training = False
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
