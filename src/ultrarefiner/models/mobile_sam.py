"""MobileSAM checkpoints to a segment-anything model with a TinyViT image encoder.

MobileSAM (Zhang et al., Faster Segment Anything: Towards Lightweight SAM for Mobile Applications,
2023, arXiv 2306.14289) has SAM's prompt encoder and mask decoder; its image encoder is timm's
TinyViT-5M with the last downsampling left out and SAM's neck on top: about 40 times fewer
multiplications than ViT-H, 5 million weights.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch
from segment_anything import sam_model_registry
from segment_anything.modeling import Sam
from segment_anything.modeling.common import LayerNorm2d
from timm.models.tiny_vit import TinyVit
from torch import nn

from ultrarefiner.models.sam import set_pixel_constants, without_pixel_constants
from ultrarefiner.models.state_dict import Layout, read_state_dict, refuse_foreign, refuse_misfits

_CURE = "Use a whole checkpoint of MobileSAM, such as mobile_sam.pt"
# What the published file has and no mask depends on: TinyViT's classifier, tables that follow from
# the window size, and how many batches its normalisation has seen.
_UNUSED = re.compile(
    r"image_encoder\.(norm_head|head)\.(weight|bias)"
    r"|image_encoder\..*\.(attention_bias_idxs|num_batches_tracked)"
)
# timm's names and MobileSAM's; every one that matches counts.
_NAMES = (
    (re.compile(r"\.stages\.(\d+)\.blocks\."), lambda m: f".layers.{m[1]}.blocks."),
    (
        re.compile(r"\.stages\.(\d+)\.downsample\."),
        lambda m: f".layers.{int(m[1]) - 1}.downsample.",
    ),
    (re.compile(r"\.patch_embed\.conv1\."), ".patch_embed.seq.0."),
    (re.compile(r"\.patch_embed\.conv2\."), ".patch_embed.seq.2."),
    (re.compile(r"\.conv\.weight$"), ".c.weight"),
)


class TinyViTEncoder(TinyVit):
    """TinyViT-5M as an image encoder of SAM: stride 16 instead of 32, and SAM's neck.

    Attributes:
        img_size: Side of the square input frame in pixels.
    """

    img_size = 1024

    def __init__(self) -> None:
        width, channels = 320, 256
        super().__init__(
            num_classes=0,
            global_pool="",
            embed_dims=(64, 128, 160, width),
            num_heads=(2, 4, 5, 10),
            window_sizes=(7, 7, 14, 7),
            drop_path_rate=0.0,
        )
        self.head = nn.Identity()
        self.stages[3].downsample.conv2.conv.stride = (1, 1)
        self.neck = nn.Sequential(
            nn.Conv2d(width, channels, kernel_size=1, bias=False),
            LayerNorm2d(channels),
            nn.Conv2d(channels, channels, kernel_size=3, padding=1, bias=False),
            LayerNorm2d(channels),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Encode float32 (B, 3, 1024, 1024) pixels to (B, 256, 64, 64)."""
        return self.neck(self.stages(self.patch_embed(x)))


def mobile_sam_name(key: str) -> str:
    """Return how a MobileSAM file calls the tensor that the model here calls ``key``."""
    if key.startswith("image_encoder."):
        for pattern, name in _NAMES:
            key = pattern.sub(name, key)
    return key


def load_mobile_sam(path: Path) -> Sam:
    """Load a MobileSAM checkpoint; see ``ultrarefiner.models.sam.load_sam``.

    Raises:
        WeightsError: The file is absent, damaged or another model's; the message lists the keys.
    """
    with torch.device("meta"):
        sam = sam_model_registry["vit_b"]()  # for its prompt encoder and mask decoder
    # In memory: its tables of relative positions are in no file.
    sam.image_encoder = TinyViTEncoder()
    set_pixel_constants(sam)
    own = sam.state_dict()
    names = {key: mobile_sam_name(key) for key in own if not _UNUSED.fullmatch(key)}
    layout = Layout("MobileSAM", _CURE, "mobile_sam")
    state = read_state_dict(path)
    refuse_foreign(path, state, layout, names.values())
    state = without_pixel_constants(path, state, layout)
    # The state dict of a model that was loaded here has timm's names.
    state = {
        names.get(key, key): value for key, value in state.items() if not _UNUSED.fullmatch(key)
    }
    refuse_misfits(path, state, {name: own[key] for key, name in names.items()}, layout)
    filled = {key: state[name].float() for key, name in names.items()}
    kept = {key: value for key, value in own.items() if key not in names}
    sam.load_state_dict(filled | kept, assign=True)
    return sam.eval()
