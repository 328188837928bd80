"""UltraSAM checkpoints to segment-anything models, without OpenMMLab.

UltraSAM (Meyer et al., UltraSam: A Foundation Model for Ultrasound using Large Open-Access
Segmentation Datasets, 2024, arXiv 2411.16222) is a ViT-B SAM rebuilt from OpenMMLab's parts. Every
tensor of SAM has its place in an UltraSAM file, under another name: the ten learned tokens lie in
one table, and the query, key and value biases of the decoder in one vector. One thing besides names
differs: the decoder's MLP adds its input before the block adds it again (``ResidualMLP``).
"""

from __future__ import annotations

import logging
import re
from pathlib import Path

import torch
from segment_anything.modeling import Sam
from segment_anything.modeling.common import MLPBlock

from ultrarefiner.errors import WeightsError
from ultrarefiner.models.sam import sam_from_state
from ultrarefiner.models.state_dict import Layout, State, listing, read_state_dict

logger = logging.getLogger(__name__)

_TABLE = "prompt_encoder.label_encoder.label_embedding.weight"
# Rows of the table of learned tokens: SAM name, first row, number of rows.
_TOKENS = (
    ("prompt_encoder.no_mask_embed.weight", 0, 1),
    ("prompt_encoder.point_embeddings.0.weight", 1, 1),
    ("prompt_encoder.point_embeddings.1.weight", 2, 1),
    ("prompt_encoder.point_embeddings.2.weight", 3, 1),
    ("prompt_encoder.point_embeddings.3.weight", 4, 1),
    ("prompt_encoder.not_a_point_embed.weight", 5, 1),
    ("mask_decoder.mask_tokens.weight", 6, 4),
    ("mask_decoder.iou_token.weight", 10, 1),
)
_ROWS = 11

# SAM's name and UltraSAM's, for a tensor that is one tensor in both; the first match counts.
_NAMES = (
    ("image_encoder.pos_embed", "backbone.pos_embed"),
    ("image_encoder.patch_embed.proj.{leaf}", "backbone.patch_embed.projection.{leaf}"),
    ("image_encoder.blocks.{n}.norm{i}.{leaf}", "backbone.layers.{n}.ln{i}.{leaf}"),
    ("image_encoder.blocks.{n}.attn.{rest}", "backbone.layers.{n}.attn.{rest}"),
    ("image_encoder.blocks.{n}.mlp.lin1.{leaf}", "backbone.layers.{n}.ffn.layers.0.0.{leaf}"),
    ("image_encoder.blocks.{n}.mlp.lin2.{leaf}", "backbone.layers.{n}.ffn.layers.1.{leaf}"),
    ("image_encoder.neck.{rest}", "backbone.channel_reduction.{rest}"),
    ("mask_decoder.transformer.{attn}.{p}_proj.weight", "decoder.{attn}.attn.{p}_proj_weight"),
    ("mask_decoder.transformer.{attn}.out_proj.{leaf}", "decoder.{attn}.attn.out_proj.{leaf}"),
    (
        "mask_decoder.transformer.layers.{n}.mlp.lin1.{leaf}",
        "decoder.layers.{n}.mlp.layers.0.0.{leaf}",
    ),
    (
        "mask_decoder.transformer.layers.{n}.mlp.lin2.{leaf}",
        "decoder.layers.{n}.mlp.layers.1.{leaf}",
    ),
    ("mask_decoder.transformer.layers.{n}.norm{i}.{leaf}", "decoder.layers.{n}.norm{i}.{leaf}"),
    ("mask_decoder.transformer.norm_final_attn.{leaf}", "decoder.post_norm.{leaf}"),
    ("mask_decoder.{head}.{rest}", "bbox_head.{head}.{rest}"),
    ("prompt_encoder.mask_downscaling.{rest}", "prompt_encoder.mask_downscaling.{rest}"),
    ("prompt_encoder.pe_layer.{rest}", "prompt_encoder.pe_layer.{rest}"),
)
_GAPS = {
    "n": r"\d+",
    "i": r"[1-4]",
    "p": r"[qkv]",
    "leaf": r"\w+",
    "rest": r"[\w.]+",
    "attn": r"(?:layers\.\d+\.)?\w*attn\w*",
    "head": r"output_upscaling|output_hypernetworks_mlps|iou_prediction_head",
}


def _pattern(template: str) -> re.Pattern[str]:
    gaps = {name: f"(?P<{name}>{pattern})" for name, pattern in _GAPS.items()}
    return re.compile(template.replace(".", r"\.").format(**gaps))


_TO_ULTRASAM = tuple((_pattern(sam), ultrasam) for sam, ultrasam in _NAMES)
_TO_SAM = tuple((_pattern(ultrasam), sam) for sam, ultrasam in _NAMES)
_BIAS = _pattern("mask_decoder.transformer.{attn}.{p}_proj.bias")
_BIASES = _pattern("decoder.{attn}.attn.in_proj_bias")
_OWN = ("backbone.", "bbox_head.", "decoder.", "prompt_encoder.label_encoder.")
_CURE = "Use a whole checkpoint of UltraSAM, such as UltraSam.pth, or one finetuned from it"


class ResidualMLP(MLPBlock):
    """The MLP of UltraSAM's decoder blocks: it adds its input, and the block around adds it again.

    So a block computes norm(2 q + mlp(q)) where SAM computes norm(q + mlp(q)). Same parameters and
    names as segment-anything's ``MLPBlock``.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``x + mlp(x)``, same shape."""
        return x + super().forward(x)


def add_double_residual(sam: Sam) -> None:
    """Turn the decoder of a segment-anything model into UltraSAM's, in place."""
    for block in sam.mask_decoder.transformer.layers:
        plain = block.mlp
        with torch.device("meta"):
            residual = ResidualMLP(plain.lin1.in_features, plain.lin1.out_features, type(plain.act))
        residual.lin1, residual.lin2 = plain.lin1, plain.lin2
        block.mlp = residual.train(plain.training)


def is_ultrasam(state: State) -> bool:
    """Return whether a state dict has UltraSAM's names rather than segment-anything's."""
    return any(key.startswith(_OWN) for key in state)


def ultrasam_place(key: str) -> tuple[str, int, int] | str:
    """Return where an UltraSAM file holds the tensor that SAM calls ``key``.

    Returns:
        A name; for a part of a tensor (name, index, parts): rows of the table of tokens (name, first
        row, number of rows), or a third of a combined bias (name, 0 | 1 | 2, 3).

    Raises:
        KeyError: SAM has no such tensor.
    """
    for name, first, rows in _TOKENS:
        if key == name:
            return _TABLE, first, rows
    if match := _BIAS.fullmatch(key):
        return f"decoder.{match['attn']}.attn.in_proj_bias", "qkv".index(match["p"]), 3
    name = _renamed(key, _TO_ULTRASAM)
    if name is None:
        raise KeyError(key)
    return name


def to_ultrasam(state: State) -> dict[str, torch.Tensor]:
    """Return SAM's tensors under UltraSAM's names.

    Args:
        state: Whole state dict of a segment-anything model.

    Returns:
        The same tensors; those that UltraSAM holds as one (tokens, biases) are copies.

    Raises:
        WeightsError: A key is not SAM's, or a tensor that UltraSAM's are put together from is
            missing; the message lists them.
    """
    result: dict[str, torch.Tensor] = {}
    parts: dict[str, dict[int, torch.Tensor]] = {}
    unknown = []
    for key, value in state.items():
        try:
            place = ultrasam_place(key)
        except KeyError:
            unknown.append(key)
            continue
        if isinstance(place, str):
            result[place] = value
        else:
            parts.setdefault(place[0], {})[place[1]] = value
    gaps = [
        name
        for name, pieces in parts.items()
        if len(pieces) != (len(_TOKENS) if name == _TABLE else 3)
    ]
    if unknown or gaps:
        raise WeightsError(
            f"this is not a whole SAM: {listing('unknown names', unknown)}; "
            f"{listing('incomplete tensors', gaps)}. Give the state dict of a whole model."
        )
    for name, pieces in parts.items():
        result[name] = torch.cat([pieces[index] for index in sorted(pieces)])
    return result


def from_ultrasam(state: State) -> dict[str, torch.Tensor]:
    """Return UltraSAM's tensors under SAM's names.

    Args:
        state: Tensors by their UltraSAM name. Other names stay as they are, and so does a table
            of tokens or a combined bias that cannot be split: comparing with a model finds them.

    Returns:
        The same tensors; those that SAM holds apart (tokens, biases) are copies.
    """
    result: dict[str, torch.Tensor] = {}
    for name, value in state.items():
        if name == _TABLE and value.shape[:1] == (_ROWS,):
            for key, first, rows in _TOKENS:
                result[key] = value[first : first + rows].clone()
        elif (match := _BIASES.fullmatch(name)) and value.ndim == 1 and len(value) % 3 == 0:
            for part, third in zip("qkv", value.chunk(3), strict=True):
                result[f"mask_decoder.transformer.{match['attn']}.{part}_proj.bias"] = third.clone()
        else:
            result[_renamed(name, _TO_SAM) or name] = value
    return result


def _renamed(name: str, table: tuple[tuple[re.Pattern[str], str], ...]) -> str | None:
    for pattern, template in table:
        if match := pattern.fullmatch(name):
            return template.format(**match.groupdict())
    return None


def _name_of(key: str) -> str:
    try:
        place = ultrasam_place(key)
    except KeyError:
        return key
    return place if isinstance(place, str) else place[0]


ULTRASAM_LAYOUT = Layout("UltraSAM", _CURE, "ultrasam", from_ultrasam, to_ultrasam, _name_of)
"""The names of the released file."""
SAM_NAMES_LAYOUT = Layout("UltraSAM", _CURE, "ultrasam")
"""An UltraSAM under segment-anything's names."""


def load_ultrasam(path: Path) -> Sam:
    """Load an UltraSAM checkpoint; see ``ultrarefiner.models.sam.load_sam``.

    The released file (``state_dict`` inside), finetuned ones (``model_state_dict``; LoRA layers with
    their ``lora_config`` are merged), and UltraSAMs saved under segment-anything's names all load.
    Such names do not tell whether a file was trained as UltraSAM or as SAM, and SAM's weights in
    UltraSAM's decoder give other masks: that is the caller's ``family`` to say, and a warning names
    the file.

    Raises:
        WeightsError: The file is absent, damaged or another model's; the message lists the keys.
    """
    state = read_state_dict(path)
    table = state.get(_TABLE)
    if table is not None and table.shape[:1] != (_ROWS,):
        shape = listing("of another shape", [f"{_TABLE} {tuple(table.shape)}"])
        raise WeightsError(f"{path}: {shape}, UltraSAM's has {_ROWS} rows. {_CURE}.")
    if is_ultrasam(state):
        sam = sam_from_state(path, state, ULTRASAM_LAYOUT)
    else:
        sam = sam_from_state(path, state, SAM_NAMES_LAYOUT)
        logger.warning(
            "%s has segment-anything's names and is taken for an UltraSAM saved under them; if it "
            "is a SAM or MedSAM, use `family: sam`: names cannot tell them apart",
            path,
        )
    add_double_residual(sam)
    return sam.eval()
