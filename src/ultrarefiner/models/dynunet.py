"""MONAI's DynUNet, planned from the training images as nnU-Net plans its 2D network.

The rules are those of Isensee et al. 2021, "nnU-Net: a self-configuring method for deep
learning-based biomedical image segmentation", Nature Methods 18, 203-211, and of its software,
version 2. What differs: the whole image is resized to the planned size, where nnU-Net slides a
window of that size over an image resampled to a common spacing; the size is the median rounded to
the nearest size that the network can take, not padded to the next larger one; pixels are divided
by 255, not standardised; augmentation, batch size and schedule are the config's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from ultrarefiner.config import CoarseConfig
from ultrarefiner.models.unet import SMALLEST, as_rgb

MIN_FEATURES = 4
"""Least side of a feature map, at the bottom of the network."""
WIDTH = 32
CAP = 512


@dataclass(frozen=True)
class Plan:
    """What a DynUNet is to be.

    Attributes:
        size: Height and width of the input in pixels, the "patch".
        kernels: Height and width of each level's convolutions, the finest first.
        strides: By what each level is smaller than the one before, along height and width; the
            first is (1, 1).
        filters: Channels of each level.
        supervised: Outputs that are compared with the label in training, the finest first: all of
            the decoder's but the lowest (nnU-Net), at least one.
    """

    size: tuple[int, int]
    kernels: tuple[tuple[int, int], ...]
    strides: tuple[tuple[int, int], ...]
    filters: tuple[int, ...]
    supervised: int

    @property
    def divisors(self) -> tuple[int, int]:
        """What height and width of an input must be multiples of."""
        return (
            math.prod(height for height, _ in self.strides),
            math.prod(width for _, width in self.strides),
        )

    def options(self) -> dict[str, Any]:
        """Return all but the size as JSON values, for a card."""
        return {
            "kernels": [list(kernel) for kernel in self.kernels],
            "strides": [list(stride) for stride in self.strides],
            "filters": list(self.filters),
            "supervised": self.supervised,
        }

    @classmethod
    def of(cls, size: tuple[int, int], options: Mapping[str, Any]) -> Plan:
        """Return the plan whose ``options`` these are."""
        return cls(
            size=size,
            kernels=tuple((height, width) for height, width in options["kernels"]),
            strides=tuple((height, width) for height, width in options["strides"]),
            filters=tuple(options["filters"]),
            supervised=options["supervised"],
        )


def _strides(size: Sequence[int]) -> list[tuple[int, int]]:
    """Halve each axis while it stays at least 4; a lone axis only from 12 on (nnU-Net 2)."""
    sides, strides = list(size), [(1, 1)]
    while True:
        halved = [side >= 2 * MIN_FEATURES for side in sides]
        if not any(halved) or (sum(halved) == 1 and max(sides) < 3 * MIN_FEATURES):
            return strides
        strides.append((1 + halved[0], 1 + halved[1]))
        sides = [
            math.ceil(side / 2) if half else side for side, half in zip(sides, halved, strict=True)
        ]


def plan_network(size: tuple[int, int], width: int = WIDTH, deep_supervision: bool = True) -> Plan:
    """Return the network for inputs of a given size.

    Args:
        size: Height and width in pixels; where a level's sides are odd it is not halved again.
        width: Channels of the first level; doubled on each level, to at most 16 times as many
            (nnU-Net 2D: 32 to 512).
        deep_supervision: Whether outputs of several levels are supervised.

    Raises:
        ValueError: The size allows fewer than three levels.
    """
    strides = _strides(size)
    # A size that was asked for need not fit: halvings that would leave a remainder are given up.
    depths = [min(sum(s[axis] == 2 for s in strides), _twos(size[axis])) for axis in (0, 1)]
    strides = [(1, 1)] + [
        (1 + (level < depths[0]), 1 + (level < depths[1])) for level in range(max(depths))
    ]
    if len(strides) < 3 or min(size) < SMALLEST:
        raise ValueError(
            f"image_size: dynunet takes sides from {SMALLEST} pixels on that 4 divides, not "
            f"{size[0]} x {size[1]}; multiples of 32 suit it best"
        )
    levels = len(strides)
    return Plan(
        size=size,
        kernels=((3, 3),) * levels,
        strides=tuple(strides),
        filters=tuple(width * min(2**level, 16) for level in range(levels)),
        supervised=max(levels - 2, 1) if deep_supervision else 1,
    )


def _twos(number: int) -> int:
    """Return how often a number can be halved without a remainder."""
    return (number & -number).bit_length() - 1


def plan_dynunet(
    sizes: Sequence[tuple[int, int]],
    cap: int = CAP,
    width: int = WIDTH,
    deep_supervision: bool = True,
) -> Plan:
    """Plan input size and depth from the sizes of the training images.

    The input is their median height and width, clipped to [32, cap] and rounded to what the
    network's halvings divide: along each axis as many as leave at least 4 (nnU-Net's least feature
    map).

    Args:
        sizes: Height and width of each training image, in pixels; never of a test image.
        cap: Largest side, a power of two from 32 on.
        width: Channels of the first level.
        deep_supervision: Whether outputs of several levels are supervised.

    Raises:
        ValueError: There are no images, or the cap is no power of two.
    """
    if not sizes:
        raise ValueError("no training images to plan from")
    if cap < SMALLEST or cap & (cap - 1):
        raise ValueError(f"cap: {cap} is no power of two from {SMALLEST} on")
    median = np.median(np.asarray(sizes, float), axis=0)
    # Half pixels of an even number of images go down.
    height, wide = (math.ceil(side - 0.5) for side in median.clip(SMALLEST, cap))
    strides = _strides((height, wide))
    unit = [math.prod(stride[axis] for stride in strides) for axis in (0, 1)]
    size = (round(height / unit[0]) * unit[0], round(wide / unit[1]) * unit[1])
    return plan_network(size, width, deep_supervision)


class DynamicUNet(nn.Module):
    """A DynUNet of a plan: instance norm, leaky ReLU, strided convolutions, deep supervision.

    Args:
        plan: The plan.
        num_classes: Channels of the logits.
    """

    def __init__(self, plan: Plan, num_classes: int = 2) -> None:
        super().__init__()
        # Imported here: it takes longer than all other imports of a job together.
        from monai.networks.nets import DynUNet

        self.plan = plan
        self.net = DynUNet(
            spatial_dims=2,
            in_channels=3,
            out_channels=num_classes,
            kernel_size=plan.kernels,
            strides=plan.strides,
            upsample_kernel_size=plan.strides[1:],
            filters=plan.filters,
            norm_name=("instance", {"affine": True}),
            act_name=("leakyrelu", {"inplace": True, "negative_slope": 0.01}),
            deep_supervision=plan.supervised > 1,
            deep_supr_num=max(plan.supervised - 1, 1),
        )
        # The layers have a second name each, by which the forward pass does not know them; kept,
        # every weight would be saved twice.
        for name in ("input_block", "downsamples", "bottleneck", "upsamples"):
            delattr(self.net, name)
        if plan.supervised > 1:
            del self.net.deep_supervision_heads

    def forward(self, image: torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
        """Return logits (B, num_classes, H, W) of an image (B, 1 or 3, H, W) in [0, 1].

        In train mode under deep supervision: a list of as many such logits as the plan supervises,
        the finest first; the coarser ones are enlarged by repeating pixels.
        """
        logits = self.net(as_rgb(image, "dynunet", self.plan.divisors))
        return list(logits.unbind(1)) if logits.dim() == 5 else logits


def plan_options(
    config: CoarseConfig, sizes: Callable[[], Sequence[tuple[int, int]]]
) -> dict[str, Any]:
    """Return ``image_size`` and ``options`` of the DynUNet of a config; see ``plan_model``."""
    width, deep = config.width or WIDTH, config.deep_supervision is not False
    if config.image_size == "auto":
        plan = plan_dynunet(sizes(), config.size_cap, width, deep)
    else:
        plan = plan_network((config.image_size, config.image_size), width, deep)
    return {"image_size": list(plan.size), "options": plan.options()}


def build_dynunet(image_size: tuple[int, int], num_classes: int, **options: Any) -> DynamicUNet:
    """Return a ``DynamicUNet`` with random weights.

    Args:
        image_size: Height and width of the input.
        num_classes: Channels of the logits.
        options: Of a plan, as ``Plan.options`` gives them; none: as ``plan_network`` plans for
            that size.
    """
    plan = Plan.of(image_size, options) if options else plan_network(image_size)
    return DynamicUNet(plan, num_classes)
