"""The plain U-Net: the baseline that every segmentation paper is asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from ultrarefiner.config import CoarseConfig

WIDTH = 64
SMALLEST = 32


def as_rgb(image: torch.Tensor, model: str, divisors: tuple[int, int] = (1, 1)) -> torch.Tensor:
    """Return an image with three channels, after a look at its shape and type.

    Args:
        image: (B, 1 or 3, H, W), floating, in [0, 1]; one channel is repeated to three.
        model: Name for the error messages.
        divisors: What height and width must be multiples of.

    Raises:
        ValueError: Another shape or an integer image.
    """
    shape = tuple(image.shape)
    if len(shape) != 4 or shape[1] not in (1, 3):
        raise ValueError(
            f"image of shape {shape}; {model} takes (B, 1 or 3, H, W), channels second"
        )
    if min(shape[2:]) < SMALLEST or shape[2] % divisors[0] or shape[3] % divisors[1]:
        raise ValueError(
            f"image of {shape[2]} x {shape[3]} pixels; this {model} takes heights that "
            f"{divisors[0]} divides and widths that {divisors[1]} divides, from {SMALLEST} on: "
            "resize the image"
        )
    if not image.is_floating_point():
        raise ValueError(
            f"image of dtype {image.dtype}; {model} takes floating values in [0, 1]: divide 8-bit "
            "pixels by 255"
        )
    return image.expand(-1, 3, -1, -1)


class PlainUNet(nn.Module):
    """U-Net of Ronneberger et al. 2015: five levels, twice (convolution, norm, ReLU) on each.

    The network is MONAI's ``BasicUNet``: unlike the original, convolutions are padded, so that
    output and input are of one size, and batch-normalised; upsampling is by transposed
    convolution, as there.

    Args:
        num_classes: Channels of the logits.
        width: Channels of the first level; each next one has twice as many (64 to 1024: 31 M
            parameters).
    """

    def __init__(self, num_classes: int = 2, width: int = WIDTH) -> None:
        super().__init__()
        # Imported here: it takes longer than all other imports of a job together.
        from monai.networks.nets import BasicUNet

        self.net = BasicUNet(
            spatial_dims=2,
            in_channels=3,
            out_channels=num_classes,
            features=(width, 2 * width, 4 * width, 8 * width, 16 * width, width),
            act=("relu", {"inplace": True}),
            norm="batch",
            bias=False,
        )

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return logits (B, num_classes, H, W) of an image (B, 1 or 3, H, W) in [0, 1].

        Any size from 32 pixels on will do; multiples of 16 need no padding inside.
        """
        return self.net(as_rgb(image, "unet"))


def plan_options(
    config: CoarseConfig, sizes: Callable[[], Sequence[tuple[int, int]]]
) -> dict[str, Any]:
    """Return the options of a U-Net; its input is the config's square, whatever the images are."""
    return {"options": {"width": config.width or WIDTH}}


def build_unet(image_size: tuple[int, int], num_classes: int, width: int = WIDTH) -> PlainUNet:
    """Return ``PlainUNet(num_classes, width)`` with random weights; it takes any size."""
    return PlainUNet(num_classes, width)
