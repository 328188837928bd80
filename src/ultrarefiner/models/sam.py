"""SAM checkpoints to segment-anything models, and the pixel frame those models see.

Every file of the SAM layout loads (ViT-B, L, H, MedSAM, a tiny test model): the architecture is
read off the tensor shapes. A file loads whole or not at all.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from segment_anything.modeling import (
    ImageEncoderViT,
    MaskDecoder,
    PromptEncoder,
    Sam,
    TwoWayTransformer,
)

from ultrarefiner.errors import WeightsError
from ultrarefiner.models.attention import fuse_attention
from ultrarefiner.models.state_dict import (
    Layout,
    State,
    listing,
    read_state_dict,
    refuse_foreign,
    refuse_misfits,
)
from ultrarefiner.registry import Registry, resolve

PIXEL_MEAN = (123.675, 116.28, 103.53)
PIXEL_STD = (58.395, 57.12, 57.375)

_PIXEL_CONSTANTS = {
    "pixel_mean": PIXEL_MEAN,
    "pixel_std": PIXEL_STD,
    "data_preprocessor.mean": PIXEL_MEAN,
    "data_preprocessor.std": PIXEL_STD,
}
_DECODER_HEADS = 8  # the one size that leaves no trace in a tensor's shape; 8 in every SAM
_MOST_MODULES = 100  # in a row; ViT-H has 32 blocks
# Tensors whose shapes tell the architecture, with their number of dimensions.
_TELLING = {
    "image_encoder.pos_embed": 4,
    "image_encoder.patch_embed.proj.weight": 4,
    "image_encoder.blocks.0.attn.rel_pos_w": 2,
    "image_encoder.blocks.0.mlp.lin1.weight": 2,
    "prompt_encoder.no_mask_embed.weight": 2,
    "prompt_encoder.mask_downscaling.3.weight": 4,
    "mask_decoder.transformer.layers.0.mlp.lin1.weight": 2,
    "mask_decoder.transformer.layers.0.cross_attn_token_to_image.q_proj.weight": 2,
    "mask_decoder.mask_tokens.weight": 2,
    "mask_decoder.iou_prediction_head.layers.0.weight": 2,
}
SAM_LAYOUT = Layout(
    "SAM", "Use a whole checkpoint of SAM, such as sam_vit_b_01ec64.pth or medsam_vit_b.pth"
)
"""Segment-anything's own names."""


@dataclass(frozen=True)
class SamArchitecture:
    """Sizes of a SAM, as the tensor shapes of a checkpoint tell them.

    Attributes:
        embed_dim: Width of the image encoder.
        depth: Blocks of the image encoder.
        num_heads: Attention heads of the image encoder.
        global_blocks: Indexes of the blocks whose attention spans the whole grid.
        window_size: Side of the attention windows of the other blocks, in patches.
        mlp_ratio: Hidden width of the encoder's MLPs over ``embed_dim``.
        patch_size: Side of a patch in pixels.
        image_size: Side of the square input frame in pixels.
        prompt_dim: Channels of image embedding and prompt tokens.
        mask_channels: Channels inside the mask prompt's downscaling.
        decoder_depth: Layers of the decoder's transformer.
        decoder_mlp_dim: Hidden width of its MLPs.
        decoder_downsample: ``prompt_dim`` over the width of its cross attention.
        multimask_outputs: Masks of the ambiguous-prompt output.
        iou_depth: Layers of the predicted-IoU head.
        iou_hidden: Hidden width of that head.
    """

    embed_dim: int
    depth: int
    num_heads: int
    global_blocks: tuple[int, ...]
    window_size: int
    mlp_ratio: float
    patch_size: int
    image_size: int
    prompt_dim: int
    mask_channels: int
    decoder_depth: int
    decoder_mlp_dim: int
    decoder_downsample: int
    multimask_outputs: int
    iou_depth: int
    iou_hidden: int


def frame_size(height: int, width: int, side: int) -> tuple[int, int]:
    """Return the (height, width) of an image whose longest side is brought to ``side``.

    The other side is rounded half up, as segment-anything's predictor does it.
    """
    scale = side / max(height, width)
    return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))


def scale_coordinates(
    coordinates: np.ndarray, image_hw: tuple[int, int], input_hw: tuple[int, int]
) -> np.ndarray:
    """Bring (..., 2) coordinates (x, y) from original pixels to the input frame.

    Each axis is multiplied by new size / old size and not shifted: the half pixel is added by the
    prompt encoder itself, for points and for box corners.
    """
    factors = np.array([input_hw[1] / image_hw[1], input_hw[0] / image_hw[0]])
    return np.asarray(coordinates, dtype=np.float64) * factors


def input_tensor(image: np.ndarray, sam: Sam) -> tuple[torch.Tensor, tuple[int, int]]:
    """Return the model's input for an image, and the size of the image inside it.

    Pillow's bilinear resize (antialiased when it shrinks) works on the uint8 pixels, as it does in
    segment-anything's predictor; the padding comes after the normalisation, so it is 0.

    Args:
        image: uint8 (H, W, 3) RGB.
        sam: The model; it knows its frame, mean and standard deviation.

    Returns:
        float32 (1, 3, side, side) on the model's device, and (height, width) of its used corner.
    """
    input_hw = frame_size(*image.shape[:2], sam.image_encoder.img_size)
    resized = Image.fromarray(image).resize(input_hw[::-1], Image.Resampling.BILINEAR)
    pixels = torch.from_numpy(np.array(resized)).permute(2, 0, 1).to(sam.device, torch.float32)
    return sam.preprocess(pixels)[None], input_hw


def load_sam(path: str | Path, family: str = "sam") -> Sam:
    """Load a checkpoint of the SAM layout.

    Args:
        path: A ``.safetensors`` file, or one that ``torch.save`` wrote (``.pth``, ``.pt``): a flat
            state dict, or one under ``model``, ``state_dict`` or ``model_state_dict``; key
            prefixes ``module.``, ``sam.`` and ``model.`` are taken off when every key has them;
            LoRA layers are merged if the file has their ``lora_config``.
        family: Kind of model; a row of ``SAM_FAMILIES``.

    Returns:
        The segment-anything model, float32, in eval mode, on the CPU.

    Raises:
        ConfigError: Unknown family.
        WeightsError: The file is absent, damaged or of another layout, or any key is missing,
            unexpected or of another shape; the message lists them.
    """
    return resolve(SAM_FAMILIES[family])(Path(path))


SAM_FAMILIES: Registry[str] = Registry(
    "SAM family",
    {
        "sam": "ultrarefiner.models.sam:load_plain_sam",
        "ultrasam": "ultrarefiner.models.ultrasam:load_ultrasam",
        "medsam2": "ultrarefiner.models.medsam2:load_sam2",
        "mobile_sam": "ultrarefiner.models.mobile_sam:load_mobile_sam",
        "sam_unet": "ultrarefiner.models.sam_unet:load_sam_unet",
    },
)
"""Loaders of the families, as "module:attribute"; called with the path."""


def load_plain_sam(path: Path) -> Sam:
    """Load a checkpoint that has segment-anything's names; see ``load_sam``."""
    return sam_from_state(path, read_state_dict(path), SAM_LAYOUT)


def sam_from_state(path: Path, state: State, layout: Layout) -> Sam:
    """Build the model that a state dict describes, and fill it whole.

    Args:
        path: The file it comes from, for the error message.
        state: Tensors under the file's own names.
        layout: What it is, and how its names become SAM's.

    Returns:
        The model, float32, in eval mode, on the CPU.

    Raises:
        WeightsError: It is another model's, or a key is missing, unexpected or of another shape;
            the message lists them.
    """
    refuse_foreign(path, state, layout, dict.fromkeys(map(layout.name_of, _TELLING)))
    state = without_pixel_constants(path, state, layout)
    converted = layout.to_sam(state)
    sam = build_sam(infer_architecture(path, converted, layout))
    refuse_misfits(path, state, layout.from_sam(sam.state_dict()), layout)
    # assign: the model was built without memory, the file's tensors become its own.
    sam.load_state_dict({key: value.float() for key, value in converted.items()}, assign=True)
    return sam.eval()


def infer_architecture(path: Path, state: State, layout: Layout = SAM_LAYOUT) -> SamArchitecture:
    """Read the architecture off the tensor shapes of a state dict.

    Args:
        path: The file they come from, for the error message.
        state: Tensors by their SAM name.
        layout: What the file is, for the error message.

    Raises:
        WeightsError: Telling tensors are absent or have impossible shapes.
    """
    shapes = {key: tuple(value.shape) for key, value in state.items()}
    absent = [key for key in _TELLING if key not in shapes]
    if absent:
        missing, names = (
            list(dict.fromkeys(map(layout.name_of, keys))) for keys in (absent, shapes)
        )
        whole = "is not a whole" if len(absent) < len(_TELLING) else "has nothing of a"
        raise WeightsError(
            f"{path} {whole} checkpoint of {layout.what}: of the tensors that tell its sizes, "
            f"{listing('missing', missing)}; it has {listing('tensors', names)}. {layout.cure}."
        )
    tell = {key: shapes[key] for key in _TELLING}
    odd = [key for key, rank in _TELLING.items() if len(tell[key]) != rank or 0 in tell[key]]
    if odd:
        described = [f"{key} {shapes[key]}" for key in odd]
        raise WeightsError(f"{path}: {listing('of impossible shape', described)}. {layout.cure}.")
    grid, embed_dim = tell["image_encoder.pos_embed"][1::2]
    head_dim = tell["image_encoder.blocks.0.attn.rel_pos_w"][1]
    prompt_dim = tell["prompt_encoder.no_mask_embed.weight"][1]
    cross = "mask_decoder.transformer.layers.0.cross_attn_token_to_image.q_proj.weight"
    mask_channels = tell["prompt_encoder.mask_downscaling.3.weight"][0]
    if (
        embed_dim % head_dim
        or prompt_dim % 8
        or mask_channels % 4
        or prompt_dim % tell[cross][0]
        or tell[cross][0] % _DECODER_HEADS
    ):
        sizes = ", ".join(f"{key} {shape}" for key, shape in tell.items())
        raise WeightsError(f"{path}: these shapes fit no {layout.what}: {sizes}. {layout.cure}.")
    depth = _count(shapes, "image_encoder.blocks")
    spans = [shapes.get(f"image_encoder.blocks.{i}.attn.rel_pos_w", (0,))[0] for i in range(depth)]
    windows = Counter((span + 1) // 2 for span in spans if span not in (0, 2 * grid - 1))
    patch = tell["image_encoder.patch_embed.proj.weight"][2]
    return SamArchitecture(
        embed_dim=embed_dim,
        depth=depth,
        num_heads=embed_dim // head_dim,
        global_blocks=tuple(i for i, span in enumerate(spans) if span == 2 * grid - 1),
        window_size=max(windows, key=lambda size: (windows[size], size), default=0),
        mlp_ratio=tell["image_encoder.blocks.0.mlp.lin1.weight"][0] / embed_dim,
        patch_size=patch,
        image_size=grid * patch,
        prompt_dim=prompt_dim,
        mask_channels=mask_channels,
        decoder_depth=_count(shapes, "mask_decoder.transformer.layers"),
        decoder_mlp_dim=tell["mask_decoder.transformer.layers.0.mlp.lin1.weight"][0],
        decoder_downsample=prompt_dim // tell[cross][0],
        multimask_outputs=tell["mask_decoder.mask_tokens.weight"][0] - 1,
        iou_depth=_count(shapes, "mask_decoder.iou_prediction_head.layers"),
        iou_hidden=tell["mask_decoder.iou_prediction_head.layers.0.weight"][0],
    )


def build_sam(architecture: SamArchitecture) -> Sam:
    """Build a segment-anything model whose parameters have shapes but no memory yet.

    Fill it with ``load_state_dict(..., assign=True)``. (Random start values of a ViT-H would take
    longer than reading the file.)
    """
    a = architecture
    grid = a.image_size // a.patch_size
    with torch.device("meta"):
        sam = Sam(
            image_encoder=ImageEncoderViT(
                img_size=a.image_size,
                patch_size=a.patch_size,
                embed_dim=a.embed_dim,
                depth=a.depth,
                num_heads=a.num_heads,
                mlp_ratio=a.mlp_ratio,
                out_chans=a.prompt_dim,
                norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
                use_rel_pos=True,
                window_size=a.window_size,
                global_attn_indexes=a.global_blocks,
            ),
            prompt_encoder=PromptEncoder(
                embed_dim=a.prompt_dim,
                image_embedding_size=(grid, grid),
                input_image_size=(a.image_size, a.image_size),
                mask_in_chans=a.mask_channels,
            ),
            mask_decoder=MaskDecoder(
                num_multimask_outputs=a.multimask_outputs,
                transformer=TwoWayTransformer(
                    depth=a.decoder_depth,
                    embedding_dim=a.prompt_dim,
                    mlp_dim=a.decoder_mlp_dim,
                    num_heads=_DECODER_HEADS,
                    attention_downsample_rate=a.decoder_downsample,
                ),
                transformer_dim=a.prompt_dim,
                iou_head_depth=a.iou_depth,
                iou_head_hidden_dim=a.iou_hidden,
            ),
        )
    fuse_attention(sam.image_encoder)
    set_pixel_constants(sam)
    return sam


def set_pixel_constants(sam: Sam) -> None:
    """Fill the mean and std of the pixels, which are in no state dict, in place."""
    sam.pixel_mean = torch.tensor(PIXEL_MEAN).view(-1, 1, 1)
    sam.pixel_std = torch.tensor(PIXEL_STD).view(-1, 1, 1)


def without_pixel_constants(path: Path, state: State, layout: Layout) -> dict[str, torch.Tensor]:
    """Return a state dict without the pixel mean and std that some tools save.

    Raises:
        WeightsError: They are not SAM's own.
    """
    state = dict(state)
    for key, values in _PIXEL_CONSTANTS.items():
        found = state.pop(key, None)
        if found is None:
            continue
        if found.numel() != 3 or not torch.allclose(found.flatten().float(), torch.tensor(values)):
            raise WeightsError(
                f"{path}: {key} is {found.flatten().tolist()}, SAM's is {list(values)}: this model "
                f"sees other pixels than SAM. {layout.cure}."
            )
    return state


def _count(shapes: Mapping[str, Any], prefix: str) -> int:
    """Return 1 + the highest index under ``prefix``; a higher one than any model has is a stray."""
    found = re.compile(re.escape(prefix) + r"\.(\d+)\.")
    indexes = (int(match[1]) for key in shapes if (match := found.match(key)))
    return 1 + max((index for index in indexes if index < _MOST_MODULES), default=-1)
