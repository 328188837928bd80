"""Small SAMs with random weights: the classes of segment-anything, to be trained from nothing."""

from __future__ import annotations

import torch
from segment_anything.modeling import Sam
from segment_anything.modeling.common import LayerNorm2d
from segment_anything.modeling.image_encoder import Attention, ImageEncoderViT
from segment_anything.modeling.prompt_encoder import PositionEmbeddingRandom
from torch import nn

from ultrarefiner.io import item_seed
from ultrarefiner.models.sam import SamArchitecture, build_sam, set_pixel_constants
from ultrarefiner.registry import Registry

SCRATCH: Registry[SamArchitecture] = Registry(
    "model to train from scratch",
    {
        "tiny": SamArchitecture(
            embed_dim=64,
            depth=3,
            num_heads=4,
            global_blocks=(2,),
            window_size=8,
            mlp_ratio=4.0,
            patch_size=8,
            image_size=128,
            prompt_dim=64,
            mask_channels=16,
            decoder_depth=2,
            decoder_mlp_dim=128,
            decoder_downsample=2,
            multimask_outputs=3,
            iou_depth=3,
            iou_hidden=64,
        ),
    },
)
"""Sizes by name. A window is smaller than the grid: else no file would tell it from no window."""


def build_scratch(name: str, seed: int) -> Sam:
    """Return a SAM with random weights, as segment-anything itself would start one.

    Linear, convolution, embedding and norm layers start as torch starts them, positions of the
    grid and relative positions at zero, the frequencies of the prompts' positions normal. torch's
    global generator is left as it is.

    Args:
        name: A row of ``SCRATCH``.
        seed: Seed of the weights; equal seeds give equal weights in any process.

    Returns:
        The model, float32, in eval mode, on the CPU.

    Raises:
        ConfigError: No such row; the message lists the known ones.
    """
    sam = build_sam(SCRATCH[name]).to_empty(device="cpu")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(item_seed("scratch", name, seed))
        start_weights(sam)
    set_pixel_constants(sam)
    return sam.eval()


@torch.no_grad()
def start_weights(sam: Sam) -> None:
    """Give a SAM whose tensors have memory but no values those it would start with, in place.

    They come from torch's global generator.
    """
    for value in sam.state_dict().values():
        value.fill_(torch.nan)  # so that a forgotten one shows
    for module in sam.modules():
        _start(module)
    forgotten = [key for key, value in sam.state_dict().items() if not value.isfinite().all()]
    if forgotten:
        raise AssertionError(f"no start values for {', '.join(forgotten)}")


def _start(module: nn.Module) -> None:
    """Draw the parameters and buffers that are a module's own."""
    if hasattr(module, "reset_parameters"):
        module.reset_parameters()
    elif isinstance(module, LayerNorm2d):
        module.weight.fill_(1.0)
        module.bias.zero_()
    elif isinstance(module, ImageEncoderViT):
        module.pos_embed.zero_()
    elif isinstance(module, Attention):
        module.rel_pos_h.zero_()
        module.rel_pos_w.zero_()
    elif isinstance(module, PositionEmbeddingRandom):
        module.positional_encoding_gaussian_matrix.normal_()
