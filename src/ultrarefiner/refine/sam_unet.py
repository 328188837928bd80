"""Refiner on SAM-UNet: SAM's prompts, one mask, no predicted IoU."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch.nn import functional

from ultrarefiner.errors import WeightsError
from ultrarefiner.models.digests import module_sha256
from ultrarefiner.models.sam_unet import NO_SAM, begin_sam_unet, holds_sam_unet
from ultrarefiner.models.weights import locate_weights
from ultrarefiner.models.weights_record import checked_sha256
from ultrarefiner.refine.options import SamUNetOptions
from ultrarefiner.refine.sam import Answer, SamRefiner
from ultrarefiner.refine.sam_prompts import Query


class SamUNetRefiner(SamRefiner):
    """Refine with a SAM-UNet.

    An embedding holds the mask features of the branch too, so that all prompts of an image share
    both. ``score`` is nan: the model predicts no IoU.
    """

    family: ClassVar[str] = "sam_unet"
    predicts_iou: ClassVar[bool] = False
    options: SamUNetOptions

    def __init__(self, weights: str | Path, device: str, options: SamUNetOptions) -> None:
        super().__init__(weights, device, options)
        asked = {"resnet": options.resnet, "image_size": options.image_size}
        found = {
            "resnet": int(self.sam.resnet_layers),
            "image_size": self.sam.image_encoder.img_size,
        }
        for key, value in asked.items():
            if value not in (None, found[key]):
                raise WeightsError(
                    f"{weights} is a SAM-UNet of {key} {found[key]}, and {key}: {value} is asked "
                    "for; remove the key, or use another file"
                )

    @property
    def recipe(self) -> dict[str, Any]:
        """What an embedding depends on beside the weights and the pixels: nothing."""
        return {}

    @property
    def batch_size(self) -> int:
        """How many images are encoded at a time."""
        return 1 if self.device.type == "cpu" else 16

    @property
    def loss_side(self) -> int:
        """Side of the grid on which masks are compared with the truth in training: the frame's."""
        return self.sam.image_encoder.img_size

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """Encode (B, 3, side, side), normalised and padded; see ``SamUNet.encode``."""
        return self.sam.encode(pixels).float()

    def for_loss(self, logits: torch.Tensor) -> torch.Tensor:
        """Bring low-resolution logits (N, h, w) to the frame, bilinearly."""
        side = self.loss_side
        return functional.interpolate(
            logits[:, None], (side, side), mode="bilinear", align_corners=False
        )[:, 0]

    def run_passes(self, embedding: Any, queries: list[Query]) -> list[Answer]:
        """Decode queries once: the one mask has no choice, and was not trained to be fed back."""
        return self.decode_queries(embedding, queries, multimask=False)

    def choose(self, logits: torch.Tensor, ious: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the one mask's logits (h, w), and nan."""
        return logits[0], ious[0]

    def decode_together(
        self,
        features: torch.Tensor,
        sparse: torch.Tensor,
        dense: torch.Tensor,
        indexes: Sequence[int],
        multimask: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Decode prompts of equally many tokens; see ``SamRefiner.decode_together``."""
        image = features if len(features) == 1 else features[list(indexes)]
        logits = self.sam.decode(image, sparse, dense, self._positions)
        return logits, logits.new_full(logits.shape[:2], math.nan)


def begin(
    weights: str | None, device: str, options: SamUNetOptions, seed: int
) -> tuple[SamUNetRefiner, dict[str, str]]:
    """Return a SAM-UNet to be trained; see ``refine.begin.begin_refiner``.

    It begins as the SAM of ``weights``, or goes on from a SAM-UNet.
    """
    parents: dict[str, str] = {}
    if weights is None and options.init == "pretrained":
        raise WeightsError(f"family sam_unet: {NO_SAM}")
    if weights is not None:
        path = locate_weights(weights)
        parents[path.name] = checked_sha256(path)
        if holds_sam_unet(path):
            return SamUNetRefiner(weights, device, options), parents
    branch = None
    if options.branch_weights is not None:
        branch = locate_weights(options.branch_weights)
        parents[branch.name] = checked_sha256(branch)
    model = begin_sam_unet(
        None if weights is None else path,
        branch,
        options.layers,
        seed,
        options.image_size or 256,
        None if options.init == "pretrained" else options.init,
    )
    # The frozen part is all that is kept between epochs.
    digest = module_sha256(model.image_encoder)
    return SamUNetRefiner.of_model(model, digest, device, options), parents
