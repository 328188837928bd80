"""The parts of a promptable model: which parameter is whose, and the blocks of its encoder."""

from __future__ import annotations

from segment_anything.modeling import ImageEncoderViT, Sam
from torch import nn

from ultrarefiner.config.finetuning import PARTS
from ultrarefiner.errors import ConfigError
from ultrarefiner.models.medsam2_model import MedSam2

# How the names of parameters begin; the first match counts.
_BEGINNINGS: tuple[tuple[str, str], ...] = (
    ("image_encoder.", "encoder"),
    ("memory.", "memory"),
    *((name, "branch") for name in ("resnet.", "adapters_in.", "adapters_bridge.")),
    ("embedding_encoder.", "branch"),
    ("prompt_encoder.", "prompt_encoder"),
    ("mask_decoder.sam_mask_decoder.output_upscaling.", "head"),
    ("mask_decoder.hf_mlp.", "head"),
    ("mask_decoder.embedding_maskfeature.", "head"),
    ("mask_decoder.output_upscaling.", "head"),
    *((f"mask_decoder.upscale_{name}.", "head") for name in ("conv1", "conv2", "layer_norm")),
    ("mask_decoder.pred_obj_score_head.", "head"),
    ("mask_decoder.output_hypernetworks_mlps.", "head"),
    ("mask_decoder.iou_prediction_head.", "head"),
    ("mask_decoder.", "decoder"),
)


def part_of(name: str) -> str:
    """Return the part that a SAM's parameter or module of this name belongs to.

    The head is what makes masks and predicted IoUs of the decoder's tokens; the decoder is its
    transformer and the tokens themselves. The branch is what a SAM-UNet has beside its encoder,
    the memory what a SAM 2 follows objects with.

    Raises:
        ValueError: No SAM has such a name.
    """
    for beginning, part in _BEGINNINGS:
        if f"{name}.".startswith(beginning):
            return part
    raise ValueError(f"'{name}' is in no part of a SAM ({', '.join(PARTS)})")


def row_of_blocks(sam: Sam | MedSam2, wish: str, instead: str) -> nn.ModuleList:
    """Return the blocks of a model's image encoder, first to last: those of a ViT, or of a Hiera.

    Args:
        sam: The model.
        wish: What needs them, for the error message.
        instead: What to do without them, for the error message.

    Raises:
        ConfigError: The encoder has no such blocks.
    """
    if isinstance(sam, MedSam2):
        return sam.image_encoder.blocks
    return vit_encoder(sam, wish, instead).blocks


def vit_encoder(sam: Sam, wish: str, instead: str) -> ImageEncoderViT:
    """Return a model's image encoder, if it is a ViT: one row of equal blocks.

    Args:
        sam: The model.
        wish: What needs such an encoder, for the error message.
        instead: What to do without it, for the error message.

    Raises:
        ConfigError: It is another one, such as MobileSAM's TinyViT.
    """
    encoder: nn.Module = sam.image_encoder
    if not isinstance(encoder, ImageEncoderViT):
        kind = type(encoder).__name__.removesuffix("Encoder")
        raise ConfigError(
            f"{wish} needs the image encoder of SAM, a row of equal blocks; this model's is a "
            f"{kind}, which has no such blocks. {instead}."
        )
    return encoder
