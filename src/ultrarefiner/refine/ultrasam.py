"""Refiner on UltraSAM: its two passes, and its authors' pipeline where it is asked for.

In the first pass every prompt gives a single mask. Its logits are the mask prompt of the second
pass, in which a point is replaced by the box of that mask, and whose three masks are chosen from.
What lies around the model (padding, half pixels, the threshold) is set by ``UltraSamOptions``.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import cv2
import numpy as np
import torch
from torch.nn import functional

from ultrarefiner.models.sam import scale_coordinates
from ultrarefiner.prompts.base import Prompt
from ultrarefiner.prompts.geometry import lesion_pixels, tight_box
from ultrarefiner.refine.embeddings import SamEmbedding
from ultrarefiner.refine.options import UltraSamOptions
from ultrarefiner.refine.sam import Answer, SamRefiner
from ultrarefiner.refine.sam_prompts import Query, fed_back

_HALF = 0.5  # what segment-anything's prompt encoder adds to every coordinate


class UltraSamRefiner(SamRefiner):
    """Refine with UltraSAM.

    The model was trained with one box or one positive point for each lesion. Other prompts run the
    same way: several points are one prompt of the first pass and become a box in the second; box
    and points given together stay together in both; a mask takes the place of the first pass, its
    own box that of a missing box. ``mask_choice`` is about the last pass. With ``passes: 1`` the
    single mask is the result (a prompt with a mask still has its second pass); with more than two
    the second is repeated, each time with the best logits of the one before.
    """

    family: ClassVar[str] = "ultrasam"
    passes_know_the_image: ClassVar[bool] = True
    options: UltraSamOptions

    @property
    def recipe(self) -> dict[str, Any]:
        """What an embedding depends on beside the weights and the pixels."""
        return super().recipe | {"padding": self.options.padding}

    def input_tensor(self, image: np.ndarray) -> tuple[torch.Tensor, tuple[int, int]]:
        """Return the encoder's input (1, 3, side, side) and the image's (height, width) in it.

        OpenCV's bilinear resize without antialiasing; sizes are cut off, not rounded, so that the
        longest side may come out one pixel short.
        """
        side = self.sam.image_encoder.img_size
        scale = side / max(image.shape[:2])
        height, width = (max(1, int(length * scale)) for length in image.shape[:2])
        resized = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
        pixels = torch.from_numpy(resized).permute(2, 0, 1).to(self.device, torch.float32)
        padding = (0, side - width, 0, side - height)
        if self.options.padding == "before":
            pixels, padding = functional.pad(pixels, padding), (0, 0, 0, 0)
        normalised = (pixels - self.sam.pixel_mean) / self.sam.pixel_std
        return functional.pad(normalised, padding)[None], (height, width)

    def scale(self, coordinates: np.ndarray, embedding: SamEmbedding) -> np.ndarray:
        """Bring (N, 2) coordinates from original pixels to the model's frame."""
        if self.options.scale == "longest":
            scaled = coordinates * (self.sam.image_encoder.img_size / max(embedding.image_hw))
        else:
            scaled = scale_coordinates(coordinates, embedding.image_hw, embedding.input_size)
        return scaled if self.options.half_pixel else scaled - _HALF

    def query(self, embedding: SamEmbedding, prompt: Prompt) -> Query:
        """Bring a prompt in original pixels into the model's frame."""
        query = super().query(embedding, prompt)
        if query.mask is None or query.box is not None:
            return query
        if prompt.mask is None:
            logits = self.full_masks(embedding, query.mask)[0].cpu().numpy()
            return replace(query, box=self._box_of(embedding, logits))
        return replace(query, box=self._box_of(embedding, lesion_pixels(prompt.mask)))

    def run_passes(self, embedding: SamEmbedding, queries: list[Query]) -> list[Answer]:
        """Run the single-mask pass, then those with three masks; see the class."""
        first = {i: query for i, query in enumerate(queries) if query.mask is None}
        later = {i: query for i, query in enumerate(queries) if query.mask is not None}
        answers = self._decode(embedding, first, multimask=False)
        if self.options.passes > 1:
            for i, (logits, _) in answers.items():
                later[i] = self._second(embedding, first[i], logits)
        for _ in range(max(1, self.options.passes - 1)):
            given = self._decode(embedding, later, self.options.mask_choice != "single")
            later = {i: fed_back(later[i], answer) for i, answer in given.items()}
            answers |= given
        return [answers[i] for i in range(len(queries))]

    def _decode(
        self, embedding: SamEmbedding, queries: dict[int, Query], multimask: bool
    ) -> dict[int, Answer]:
        answers = self.decode_queries(embedding, list(queries.values()), multimask)
        return dict(zip(queries, answers, strict=True))

    def _second(self, embedding: SamEmbedding, query: Query, logits: torch.Tensor) -> Query:
        """Return a query for the second pass from the single mask (1, h, w) of the first."""
        if query.box is None:
            mask = self.full_masks(embedding, logits)[0].cpu().numpy()
            query = Query(box=self._box_of(embedding, mask))
        return query.with_mask(logits[0])

    def _box_of(self, embedding: SamEmbedding, mask: np.ndarray) -> np.ndarray:
        """Return the box of a mask in the model's frame; of an empty mask (0, 0, 0, 0).

        Scaled on each axis and not shifted by half a pixel, whatever the options say: this is part
        of the model, not of the pipeline around it.
        """
        corners = np.reshape(tight_box(mask) if mask.any() else (0, 0, 0, 0), (2, 2))
        scaled = scale_coordinates(corners, embedding.image_hw, embedding.input_size)
        return scaled.ravel() - _HALF

    def full_masks(self, embedding: SamEmbedding, logits: torch.Tensor) -> torch.Tensor:
        """Return bool (N, H, W) masks in original pixels from logits (N, h, w)."""
        if self.options.threshold == "after":
            return super().full_masks(embedding, logits)
        touched = self.sam.postprocess_masks(
            (logits[:, None] > 0).float(), embedding.input_size, embedding.image_hw
        )
        return touched[:, 0] > 0
