"""Segmentation models by name; torch is imported when one is built, not before."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ultrarefiner.registry import Registry, resolve

if TYPE_CHECKING:
    from torch import nn

__all__ = ["MODELS", "Model", "build_model"]


@dataclass(frozen=True)
class Model:
    """A row of the registry.

    Attributes:
        target: Function that builds it, as "module:attribute"; called with ``image_size`` and
            ``num_classes``.
        pretrained: Name in ``WEIGHTS`` of the encoder weights that it can start from; None when
            it is only trained from random weights.
    """

    target: str
    pretrained: str | None = None

    @property
    def imagenet21k(self) -> bool:
        """Whether the encoder can start from the ImageNet-21k file."""
        return self.pretrained == "r50_vit_b_16"


MODELS: Registry[Model] = Registry(
    "model",
    {
        "transunet": Model(
            "ultrarefiner.models.transunet:build_transunet", pretrained="r50_vit_b_16"
        ),
        "transunet_tiny": Model("ultrarefiner.models.transunet:build_transunet_tiny"),
    },
)


def build_model(name: str, image_size: int, num_classes: int = 2) -> nn.Module:
    """Return a model with random weights (B, 1 or 3, H, W) -> (B, num_classes, H, W).

    Args:
        name: A row of ``MODELS``.
        image_size: Height and width of the input in pixels.
        num_classes: Channels of the logits.

    Raises:
        ConfigError: No such model.
        ValueError: The model cannot have that size.
    """
    return resolve(MODELS[name].target)(image_size=image_size, num_classes=num_classes)
