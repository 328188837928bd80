"""Segmentation models by name; torch is imported when one is built, not before."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ultrarefiner.config import CoarseConfig
from ultrarefiner.registry import Registry, resolve

if TYPE_CHECKING:
    from torch import nn

__all__ = ["MODELS", "Model", "build_model", "height_width", "plan_model", "unusable_keys"]

NUM_CLASSES = 2


@dataclass(frozen=True)
class Model:
    """A row of the registry.

    Attributes:
        target: Function that builds it, as "module:attribute"; called with ``image_size`` (the
            side, or (height, width) where ``rectangular``), ``num_classes`` and the options that
            the planner gave.
        pretrained: Name in ``WEIGHTS`` of the encoder weights that it can start from; None when
            it is only trained from random weights.
        rectangular: Whether the input may be other than square.
        planner: Function that says what the model is to be, as "module:attribute"; called with the
            config and a function that gives the training images' sizes. None: nothing but the
            input's side is to be said.
        plans_size: Whether the planner can choose the input's size (``image_size: auto``).
        width: Channels of the first level, where the config's ``width`` can change them.
        deep_supervision: Whether it can be supervised at several depths.
        decoder: How the names of its decoder's parameters begin; none: it is not divided.
    """

    target: str
    pretrained: str | None = None
    rectangular: bool = False
    planner: str | None = None
    plans_size: bool = False
    width: int | None = None
    deep_supervision: bool = False
    decoder: tuple[str, ...] = ()

    @property
    def imagenet21k(self) -> bool:
        """Whether the encoder can start from the ImageNet-21k file."""
        return self.pretrained == "r50_vit_b_16"


MODELS: Registry[Model] = Registry(
    "model",
    {
        "transunet": Model(
            "ultrarefiner.models.transunet:build_transunet",
            pretrained="r50_vit_b_16",
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
