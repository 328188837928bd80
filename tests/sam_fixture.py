"""A tiny SAM in the official checkpoint layout, so that SAM code runs for real within a second."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file
from segment_anything.modeling import (
    ImageEncoderViT,
    MaskDecoder,
    PromptEncoder,
    Sam,
    TwoWayTransformer,
)

from tests.golden.formula import fill_with_formula, formula_tensor
from ultrarefiner.models.medsam2_model import TINY, MedSam2
from ultrarefiner.models.medsam2_names import to_theirs
from ultrarefiner.models.mobile_sam import TinyViTEncoder, mobile_sam_name
from ultrarefiner.models.sam_unet import SamUNet
from ultrarefiner.models.ultrasam import to_ultrasam


def tiny_sam(
    seed: int = 0, depth: int = 2, global_blocks: tuple[int, ...] = (1,), side: int = 1024
) -> Sam:
    """Return a SAM with a 48-wide encoder and full-size prompt encoder and mask decoder."""
    grid = side // 16
    sam = Sam(
        image_encoder=ImageEncoderViT(
            img_size=side,
            embed_dim=48,
            depth=depth,
            num_heads=2,
            out_chans=256,
            norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
            use_rel_pos=True,
            window_size=14,
            global_attn_indexes=global_blocks,
        ),
        prompt_encoder=PromptEncoder(
            embed_dim=256,
            image_embedding_size=(grid, grid),
            input_image_size=(side, side),
            mask_in_chans=16,
        ),
        mask_decoder=MaskDecoder(
            transformer_dim=256,
            transformer=TwoWayTransformer(depth=2, embedding_dim=256, mlp_dim=2048, num_heads=8),
        ),
    )
    return fill_with_formula(sam, seed).eval()


def write_tiny_sam(path: str | Path, seed: int = 0, side: int = 1024) -> Path:
    """Write the tiny SAM, weights by formula, as .pth or .safetensors; return the path.

    ``side`` is its input frame: 256 makes it about ten times as fast as SAM's own 1024.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    state = tiny_sam(seed, side=side).state_dict()
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    return path


def write_tiny_ultrasam(path: str | Path, seed: int = 0, side: int = 256) -> Path:
    """Write the tiny SAM in the layout of the released UltraSAM file; return the path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    state = to_ultrasam(tiny_sam(seed, side=side).state_dict())
    torch.save({"meta": {"epoch": 1}, "state_dict": state}, path)
    return path


def write_mobile_sam(path: str | Path, seed: int = 0) -> Path:
    """Write a MobileSAM, weights by formula, under the names of the published file.

    There is one size of it; it encodes an image in a second or two.
    """
    sam = tiny_sam()
    sam.image_encoder = TinyViTEncoder()
    named = {mobile_sam_name(key): value.shape for key, value in sam.state_dict().items()}
    state = {
        key: torch.from_numpy(formula_tensor(key, shape, seed))
        for key, shape in named.items()
        if not key.endswith("num_batches_tracked")
    }
    torch.save(state, path)
    return Path(path)


def write_tiny_medsam2(path: str | Path, seed: int = 0) -> Path:
    """Write a small SAM 2.1, weights by formula, as it is published; return the path."""
    state = to_theirs(fill_with_formula(MedSam2(TINY), seed).state_dict())
    # As drawn, no object would ever be there.
    state["sam_mask_decoder.pred_obj_score_head.layers.2.bias"].fill_(10.0)
    torch.save({"model": state}, path)
    return Path(path)


def write_tiny_sam_unet(path: str | Path, seed: int = 0) -> Path:
    """Write a small SAM-UNet, weights by formula, as its authors save it; return the path."""
    torch.save({"model": fill_with_formula(SamUNet.tiny(), seed).state_dict()}, path)
    return Path(path)
