"""SAM-UNet without prompts: its box is always the whole image, in training and ever after."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from ultrarefiner.config import CoarseConfig
from ultrarefiner.models import starting_weights
from ultrarefiner.models.sam import SamArchitecture
from ultrarefiner.models.sam_unet import (
    TINY,
    VIT_B,
    SamUNet,
    sam_architecture,
    take_resnet,
    take_sam,
)
from ultrarefiner.models.unet import as_rgb
from ultrarefiner.models.weights import locate_weights

NAME = "sam_unet"
_CLASSES = 2


class CoarseSamUNet(nn.Module):
    """SAM-UNet as a coarse model.

    Args:
        image_size: Side of the input in pixels.
        resnet: Layers of the branch.
        architecture: Sizes of the SAM.
    """

    def __init__(
        self, image_size: int, resnet: int | str = 50, architecture: SamArchitecture = VIT_B
    ) -> None:
        super().__init__()
        self.net = SamUNet(resnet, replace(architecture, image_size=image_size))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return logits (B, 2, side, side) of an image (B, 1 or 3, side, side) in [0, 1].

        The background's are 0, so that the softmax of both is the sigmoid of the lesion's.
        """
        net, side = self.net, image.shape[-1]
        pixels = net.preprocess(as_rgb(image, NAME) * 255)
        box = pixels.new_tensor([0.0, 0.0, side, side]).expand(pixels.shape[0], 4)
        logits = functional.interpolate(
            net(pixels, boxes=box), (side, side), mode="bilinear", align_corners=False
        )
        return torch.cat([torch.zeros_like(logits), logits], dim=1)


def plan_options(
    config: CoarseConfig, sizes: Callable[[], Sequence[tuple[int, int]]]
) -> dict[str, Any]:
    """Return the options of a SAM-UNet: its branch, and the sizes of the SAM that it begins as."""
    architecture = VIT_B
    if config.init == "sam":
        sam = locate_weights(starting_weights(config)[0])
        architecture = sam_architecture(sam, int(config.image_size))
    return _options(config.resnet or 50, architecture)


def plan_tiny_options(
    config: CoarseConfig, sizes: Callable[[], Sequence[tuple[int, int]]]
) -> dict[str, Any]:
    """Return the options of the small one for trials."""
    return _options(config.resnet or 10, TINY)


def _options(resnet: int, architecture: SamArchitecture) -> dict[str, Any]:
    sizes = asdict(architecture) | {"global_blocks": list(architecture.global_blocks)}
    return {"options": {"resnet": resnet, "architecture": sizes}}


def build_sam_unet(
    image_size: int,
    num_classes: int,
    resnet: int = 50,
    architecture: Mapping[str, Any] | None = None,
) -> CoarseSamUNet:
    """Return a SAM-UNet with random weights.

    Args:
        image_size: Side of the input in pixels, a multiple of 32.
        num_classes: 2; it has one mask.
        resnet: Layers of the branch.
        architecture: Fields of ``SamArchitecture``; None: those of SAM ViT-B.

    Raises:
        ValueError: Another number of classes, or a side that it cannot have.
    """
    return _build(image_size, num_classes, resnet, architecture, VIT_B)


def build_sam_unet_tiny(
    image_size: int,
    num_classes: int,
    resnet: int = 10,
    architecture: Mapping[str, Any] | None = None,
) -> CoarseSamUNet:
    """Return a small one; see ``build_sam_unet``."""
    return _build(image_size, num_classes, resnet, architecture, TINY)


def _build(
    image_size: int,
    num_classes: int,
    resnet: int,
    architecture: Mapping[str, Any] | None,
    default: SamArchitecture,
) -> CoarseSamUNet:
    if num_classes != _CLASSES:
        raise ValueError(f"num_classes: {NAME} tells a lesion from the rest, not {num_classes}")
    if image_size % 32:
        raise ValueError(f"image_size: {NAME} takes multiples of 32, not {image_size}")
    if architecture is None:
        return CoarseSamUNet(image_size, resnet, default)
    blocks = tuple(architecture["global_blocks"])
    sizes = SamArchitecture(**{**architecture, "global_blocks": blocks})
    return CoarseSamUNet(image_size, resnet, sizes)


def begin(model: CoarseSamUNet, paths: Sequence[Path]) -> None:
    """Fill a model with the SAM and, where it is given, the ResNet that its training begins as.

    Raises:
        WeightsError: A file is damaged or another model's.
    """
    take_sam(model.net, paths[0])
    for path in paths[1:]:
        take_resnet(model.net, path)
