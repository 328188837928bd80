"""Segmentation models by name; torch is imported when one is built, not before."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ultrarefiner.config import CoarseConfig
from ultrarefiner.models.weights import resnet_weights
from ultrarefiner.registry import Registry, resolve

if TYPE_CHECKING:
    from torch import nn

__all__ = [
    "MODELS",
    "Model",
    "build_model",
    "height_width",
    "plan_model",
    "starting_weights",
    "unusable_keys",
]

NUM_CLASSES = 2


@dataclass(frozen=True)
class Model:
    """A row of the registry.

    Attributes:
        target: Function that builds it, as "module:attribute"; called with ``image_size`` (the
            side, or (height, width) where ``rectangular``), ``num_classes`` and the options that
            the planner gave.
        init: The value of the config's ``init`` with which it starts from weights; None when it is
            only trained from random ones.
        pretrained: Name in ``WEIGHTS`` of those weights.
        starter: Fills it with them, as "module:attribute"; called with the model and the files that
            ``starting_weights`` names.
        rectangular: Whether the input may be other than square.
        planner: Function that says what the model is to be, as "module:attribute"; called with the
            config and a function that gives the training images' sizes. None: nothing but the
            input's side is to be said.
        plans_size: Whether the planner can choose the input's size (``image_size: auto``).
        width: Channels of the first level, where the config's ``width`` can change them.
        deep_supervision: Whether it can be supervised at several depths.
        decoder: How the names of its decoder's parameters begin; none: it is not divided.
        resnet: Whether the config's ``resnet`` and ``branch`` are about a part of it.
    """

    target: str
    init: str | None = None
    pretrained: str | None = None
    starter: str = ""
    rectangular: bool = False
    planner: str | None = None
    plans_size: bool = False
    width: int | None = None
    deep_supervision: bool = False
    decoder: tuple[str, ...] = ()
    resnet: bool = False


MODELS: Registry[Model] = Registry(
    "model",
    {
        "transunet": Model(
            "ultrarefiner.models.transunet:build_transunet",
            init="imagenet21k",
            pretrained="r50_vit_b_16",
            starter="ultrarefiner.models.transunet_weights:begin",
            decoder=("decoder.", "segmentation_head."),
        ),
        "transunet_tiny": Model(
            "ultrarefiner.models.transunet:build_transunet_tiny",
            decoder=("decoder.", "segmentation_head."),
        ),
        "unet": Model(
            "ultrarefiner.models.unet:build_unet",
            rectangular=True,
            planner="ultrarefiner.models.unet:plan_options",
            width=64,
        ),
        "dynunet": Model(
            "ultrarefiner.models.dynunet:build_dynunet",
            rectangular=True,
            planner="ultrarefiner.models.dynunet:plan_options",
            plans_size=True,
            width=32,
            deep_supervision=True,
        ),
        "sam_unet": Model(
            "ultrarefiner.models.sam_unet_coarse:build_sam_unet",
            init="sam",
            pretrained="sam_vit_b",
            starter="ultrarefiner.models.sam_unet_coarse:begin",
            planner="ultrarefiner.models.sam_unet_coarse:plan_options",
            resnet=True,
        ),
        "sam_unet_tiny": Model(
            "ultrarefiner.models.sam_unet_coarse:build_sam_unet_tiny",
            planner="ultrarefiner.models.sam_unet_coarse:plan_tiny_options",
            resnet=True,
        ),
    },
)


def unusable_keys(config: CoarseConfig) -> Iterator[str]:
    """Give what a config asks of its model and the model does not have, with key and cure.

    Raises:
        ConfigError: No such model.
    """
    row, name = MODELS[config.model], config.model

    def able(field: str) -> str:
        return ", ".join(model for model, other in MODELS.items() if getattr(other, field))

    if config.image_size == "auto" and not row.plans_size:
        yield (
            f"image_size: auto is for models that plan their input ({able('plans_size')}); {name} "
            "takes a side in pixels, such as 224"
        )
    if config.width is not None and row.width is None:
        yield f"width: {name} has fixed widths (not so: {able('width')}); remove the key"
    if config.deep_supervision is not None and not row.deep_supervision:
        yield (
            f"deep_supervision: {name} has one output (several: {able('deep_supervision')}); "
            "remove the key"
        )
    for key in ("resnet", "branch"):
        if getattr(config, key) is not None and not row.resnet:
            yield f"{key}: {name} has no ResNet of its own (these do: {able('resnet')}); remove it"
    if config.branch is not None and row.resnet and config.init == "random":
        yield "branch: has no effect on init: random; remove the key"
    if row.resnet and isinstance(config.image_size, int) and config.image_size % 32:
        nearest = round(config.image_size / 32) * 32
        yield f"image_size: {name} takes multiples of 32; try {nearest}"
    if config.init not in ("random", row.init):
        instead = "use `init: random`"
        if row.init is not None:
            instead = f"use `init: {row.init}`, or `init: random` if you mean it"
        what = {"imagenet21k": "ImageNet weights", "sam": "SAM inside"}[config.init]
        yield f"init: {name} has no {what}; {instead}"


def starting_weights(config: CoarseConfig) -> list[str]:
    """Return the weights that a training starts from, by name or path: the main ones first.

    Raises:
        ConfigError: No such model.
    """
    if config.init == "random":
        return []
    row, given = MODELS[config.model], config.pretrained
    default = given == type(config).model_fields["pretrained"].default
    main = str(row.pretrained) if default and row.init == "sam" else given
    branch = resnet_weights(config.resnet or 50, config.branch) if row.resnet else None
    return [main] if branch is None else [main, branch]


def height_width(image_size: int | Sequence[int]) -> tuple[int, int]:
    """Return height and width of a model's input, which is given by them or by a square's side."""
    if isinstance(image_size, int):
        return image_size, image_size
    height, width = image_size
    return int(height), int(width)


def plan_model(
    config: CoarseConfig, sizes: Callable[[], Sequence[tuple[int, int]]]
) -> dict[str, Any]:
    """Return what a model is to be: all that ``build_model`` needs to make it again.

    Args:
        config: The model's config, without ``unusable_keys``.
        sizes: Gives height and width of each training image; called only if the model is planned
            from them.

    Returns:
        ``model``, ``image_size`` (a side, or [height, width]), ``num_classes`` and, where the
        model has any, ``options``. JSON values only; a checkpoint's card holds them.

    Raises:
        ConfigError: No such model.
    """
    planner = MODELS[config.model].planner
    architecture = {
        "model": config.model,
        "image_size": config.image_size,
        "num_classes": NUM_CLASSES,
    }
    return architecture if planner is None else architecture | resolve(planner)(config, sizes)


def build_model(
    model: str,
    image_size: int | Sequence[int],
    num_classes: int = NUM_CLASSES,
    options: dict[str, Any] | None = None,
) -> nn.Module:
    """Return a model with random weights (B, 1 or 3, H, W) -> (B, num_classes, H, W).

    In train mode a model may return a list of such logits instead, the finest first, of which each
    is to be compared with the whole label.

    Args:
        model: A row of ``MODELS``.
        image_size: Height and width of the input in pixels, or the side of a square.
        num_classes: Channels of the logits.
        options: What the model's planner gave; None: its own for an input of that size.

    Raises:
        ConfigError: No such model.
        ValueError: The model cannot have that size.
    """
    row, size = MODELS[model], height_width(image_size)
    if not row.rectangular and size[0] != size[1]:
        raise ValueError(f"image_size: {model} takes square inputs, not {size[0]} x {size[1]}")
    build = resolve(row.target)
    return build(
        image_size=size if row.rectangular else size[0], num_classes=num_classes, **(options or {})
    )
