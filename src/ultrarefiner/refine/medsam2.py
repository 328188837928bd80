"""Refiner on SAM 2.1 models such as MedSAM2: slice by slice, or with a memory of the slices before."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from ultrarefiner.models.finetuned import encoder_sha256
from ultrarefiner.models.medsam2 import load_sam2
from ultrarefiner.models.medsam2_model import unpack
from ultrarefiner.models.medsam2_tracking import TrackedPrompt, Tracker
from ultrarefiner.models.weights import locate_weights
from ultrarefiner.prompts.base import Prompt
from ultrarefiner.refine.embeddings import SamEmbedding
from ultrarefiner.refine.options import MedSam2Options
from ultrarefiner.refine.sam import Answer, SamRefiner
from ultrarefiner.refine.sam_prompts import Query

logger = logging.getLogger(__name__)


class MedSam2Refiner(SamRefiner):
    """Refine with a SAM 2.1.

    An embedding holds the finer maps of the encoder too, so that all prompts of an image share
    them. The image is stretched to the frame, whatever its sides.
    """

    family: ClassVar[str] = "medsam2"
    options: MedSam2Options

    def __init__(self, weights: str | Path, device: str, options: MedSam2Options) -> None:
        path = locate_weights(weights)
        self._take(load_sam2(path, options.image_size), encoder_sha256(path), device, options)
        logger.info("%s: frame %d, %s", path.name, options.image_size, self.device)

    @property
    def recipe(self) -> dict[str, Any]:
        """What an embedding depends on beside the weights and the pixels."""
        options = self.options
        return {
            "precision": options.precision,
            "resize": options.resize,
            "image_size": self.sam.architecture.image_size,
        }

    def input_tensor(self, image: np.ndarray) -> tuple[torch.Tensor, tuple[int, int]]:
        """Return the encoder's input (1, 3, side, side) and the image's (height, width) in it."""
        side = self.sam.architecture.image_size
        return self.sam.input_tensor(image, self.options.resize), (side, side)

    def decode_together(
        self,
        features: torch.Tensor,
        sparse: torch.Tensor,
        dense: torch.Tensor,
        indexes: Sequence[int],
        multimask: bool,
    ) -> Answer:
        """Decode prompts of equally many tokens; see ``SamRefiner.decode_together``."""
        embedding, finer = unpack(features if len(features) == 1 else features[list(indexes)])
        image = self.sam.without_memory(embedding)
        out = self.sam.decode(image, finer, sparse, dense, self._positions, multimask)
        return out.logits, out.ious

    def tracked_prompt(self, query: Query) -> TrackedPrompt:
        """Return a prompt in the model's frame as a tracker takes it."""
        points = 0 if query.points is None else len(query.points)
        return TrackedPrompt(*self._encoded(query), points + (0 if query.box is None else 2))

    def follow_clip(
        self, features: torch.Tensor, query: Query
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Follow the object of a prompt through slices, with gradients where they are wanted.

        Args:
            features: (S, channels, grid, grid) of the slices in order; the prompt is about the
                first.
            query: The prompt.

        Returns:
            Low-resolution logits (S, h, w) whether or not the object is there, predicted IoU (S,),
            and logits (S,) of its being there.
        """
        tracker = Tracker(self.sam, len(features))
        found = [tracker.prompt(0, features[:1], [self.tracked_prompt(query)])]
        found += [
            tracker.step(index, features[index : index + 1]) for index in range(1, len(features))
        ]
        return tuple(
            torch.cat([getattr(one, name) for one in found]) for name in ("raw", "ious", "presence")
        )

    @torch.inference_mode()
    def follow_stages(
        self, embeddings: Sequence[SamEmbedding], prompt: Prompt
    ) -> list[torch.Tensor]:
        """Return the masks, bool (H, W), of the slices after the first, which a prompt is about."""
        features = torch.stack([torch.from_numpy(one.features) for one in embeddings])
        query = self.query(embeddings[0], prompt)
        logits, _, presence = self.follow_clip(features.to(self.device), query)
        masks = self.full_masks(embeddings[0], logits) & (presence > 0)[:, None, None]
        return list(masks[1:].cpu())

    @cached_property
    def _positions(self) -> torch.Tensor:
        # Made once: in inference mode it could take no part in a training step later.
        with torch.inference_mode(False), torch.no_grad():
            return self.sam.image_positions()

    def _encoded(self, query: Query) -> tuple[torch.Tensor, torch.Tensor]:
        # In mixed precision a box would lie where half of the digits put it.
        with torch.autocast(self.device.type, enabled=False):
            return self.sam.prompt_tokens(
                None if query.points is None else self._tensor(query.points),
                None if query.labels is None else torch.as_tensor(np.asarray(query.labels)),
                None if query.box is None else self._tensor(query.box),
                query.mask,
            )
