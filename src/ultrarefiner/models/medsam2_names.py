"""Tensors of SAM 2.1 checkpoints under their authors' names and under ours, both ways.

Ours are those of the modules that ``medsam2_model`` is made of: the classes of the transformers
package, parted into encoder, prompt encoder, decoder and memory.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

import torch

State = Mapping[str, torch.Tensor]

_POINTS = "sam_prompt_encoder.point_embeddings.{}.weight"
_POINT_TABLE = "prompt_encoder.point_embed.weight"
_POINT_KINDS = 4  # background, lesion, upper left and lower right corner of a box
_MEMORY_MASKS = ("{}.conv", "{}.layer_norm")


def _mlp(theirs: str, ours: str) -> Iterator[tuple[str, str]]:
    """Yield the three layers of a feed-forward head."""
    for number, name in enumerate(("proj_in", "layers.0", "proj_out")):
        yield f"{theirs}.layers.{number}", f"{ours}.{name}"


# Beginnings of names, theirs and ours; {} stands for a number. The first that fits counts.
_RULES: tuple[tuple[str, str], ...] = (
    ("maskmem_tpos_enc", "memory.temporal_positions"),
    ("no_mem_embed", "memory.no_memory"),
    ("no_mem_pos_enc", "memory.no_memory_position"),
    ("no_obj_ptr", "memory.no_object_pointer"),
    ("no_obj_embed_spatial", "memory.no_object_spatial"),
    ("mask_downsample", "memory.mask_downsample"),
    ("obj_ptr_tpos_proj", "memory.pointer_time"),
    *_mlp("obj_ptr_proj", "memory.pointer"),
    (
        "image_encoder.trunk.patch_embed.proj",
        "image_encoder.vision.backbone.patch_embed.projection",
    ),
    *(
        (
            f"image_encoder.trunk.blocks.{{}}.{theirs}",
            f"image_encoder.vision.backbone.blocks.{{}}.{ours}",
        )
        for theirs, ours in (
            ("norm1", "layer_norm1"),
            ("norm2", "layer_norm2"),
            ("mlp.layers.0", "mlp.proj_in"),
            ("mlp.layers.1", "mlp.proj_out"),
        )
    ),
    ("image_encoder.trunk", "image_encoder.vision.backbone"),
    ("image_encoder.neck.convs.{}.conv", "image_encoder.vision.neck.convs.{}"),
    # The encoder ends with them: what they give is what all prompts of an image share.
    ("sam_mask_decoder.conv_s0", "image_encoder.conv_s0"),
    ("sam_mask_decoder.conv_s1", "image_encoder.conv_s1"),
    (
        "sam_prompt_encoder.pe_layer.positional_encoding_gaussian_matrix",
        "prompt_encoder.shared_embedding.positional_embedding",
    ),
    *(
        (f"sam_prompt_encoder.mask_downscaling.{number}", f"prompt_encoder.mask_embed.{name}")
        for number, name in enumerate(
            ("conv1", "layer_norm1", None, "conv2", "layer_norm2", None, "conv3")
        )
        if name
    ),
    ("sam_prompt_encoder", "prompt_encoder"),
    *(
        (f"sam_mask_decoder.transformer.{theirs}", f"mask_decoder.transformer.{ours}")
        for theirs, ours in (
            *(
                (f"layers.{{}}.{where}.out_proj", f"layers.{{}}.{where}.o_proj")
                for where in ("self_attn", "cross_attn_token_to_image", "cross_attn_image_to_token")
            ),
            *((f"layers.{{}}.norm{i}", f"layers.{{}}.layer_norm{i}") for i in (1, 2, 3, 4)),
            ("layers.{}.mlp.layers.0", "layers.{}.mlp.proj_in"),
            ("layers.{}.mlp.layers.1", "layers.{}.mlp.proj_out"),
            ("final_attn_token_to_image.out_proj", "final_attn_token_to_image.o_proj"),
            ("norm_final_attn", "layer_norm_final_attn"),
        )
    ),
    ("sam_mask_decoder.output_upscaling.0", "mask_decoder.upscale_conv1"),
    ("sam_mask_decoder.output_upscaling.1", "mask_decoder.upscale_layer_norm"),
    ("sam_mask_decoder.output_upscaling.3", "mask_decoder.upscale_conv2"),
    *_mlp(
        "sam_mask_decoder.output_hypernetworks_mlps.{}",
        "mask_decoder.output_hypernetworks_mlps.{}",
    ),
    *_mlp("sam_mask_decoder.iou_prediction_head", "mask_decoder.iou_prediction_head"),
    *_mlp("sam_mask_decoder.pred_obj_score_head", "mask_decoder.pred_obj_score_head"),
    ("sam_mask_decoder", "mask_decoder"),
    *(
        (
            f"memory_attention.layers.{{}}.{where}.out_proj",
            f"memory.attention.layers.{{}}.{where}.o_proj",
        )
        for where in ("self_attn", "cross_attn_image")
    ),
    *(
        (f"memory_attention.layers.{{}}.norm{i}", f"memory.attention.layers.{{}}.layer_norm{i}")
        for i in (1, 2, 3)
    ),
    ("memory_attention.norm", "memory.attention.layer_norm"),
    ("memory_attention", "memory.attention"),
    *(
        (
            f"memory_encoder.mask_downsampler.encoder.{3 * layer + number}",
            f"memory.encoder.mask_downsampler.layers.{name.format(layer)}",
        )
        for layer in range(4)
        for number, name in enumerate(_MEMORY_MASKS)
    ),
    ("memory_encoder.mask_downsampler.encoder.12", "memory.encoder.mask_downsampler.final_conv"),
    ("memory_encoder.pix_feat_proj", "memory.encoder.feature_projection"),
    *(
        (
            f"memory_encoder.fuser.layers.{{}}.{theirs}",
            f"memory.encoder.memory_fuser.layers.{{}}.{ours}",
        )
        for theirs, ours in (
            ("gamma", "scale"),
            ("dwconv", "depthwise_conv"),
            ("norm", "layer_norm"),
            ("pwconv1", "pointwise_conv1"),
            ("pwconv2", "pointwise_conv2"),
        )
    ),
    ("memory_encoder.out_proj", "memory.encoder.projection"),
)


def _pattern(beginning: str) -> re.Pattern[str]:
    return re.compile(re.escape(beginning).replace(r"\{\}", r"(\d+)") + r"(?=\.|$)")


_TO_OURS = tuple((_pattern(theirs), ours) for theirs, ours in _RULES)
_TO_THEIRS = tuple((_pattern(ours), theirs) for theirs, ours in _RULES)


def _renamed(name: str, rules: tuple[tuple[re.Pattern[str], str], ...]) -> str:
    for pattern, other in rules:
        if match := pattern.match(name):
            return other.format(*match.groups()) + name[match.end() :]
    return name


def our_name(name: str) -> str:
    """Return our name of a checkpoint's tensor; unknown names stay.

    The four kinds of points, which are rows of one table here, have no name of their own.
    """
    return _renamed(name, _TO_OURS)


def to_ours(state: State) -> dict[str, torch.Tensor]:
    """Bring a checkpoint's tensors to our names, the kinds of points to one table."""
    kinds = [state[key] for i in range(_POINT_KINDS) if (key := _POINTS.format(i)) in state]
    rows = {_POINTS.format(i) for i in range(_POINT_KINDS)} if len(kinds) == _POINT_KINDS else set()
    renamed = {our_name(name): value for name, value in state.items() if name not in rows}
    if rows:
        renamed[_POINT_TABLE] = torch.cat(kinds)
    return renamed


def to_theirs(state: State) -> dict[str, torch.Tensor]:
    """Bring a whole model's tensors to the checkpoint's names; the inverse of ``to_ours``."""
    renamed = {}
    for name, value in state.items():
        if name == _POINT_TABLE:
            for number, row in enumerate(value):
                renamed[_POINTS.format(number)] = row[None].clone()
        else:
            renamed[_renamed(name, _TO_THEIRS)] = value
    return renamed
