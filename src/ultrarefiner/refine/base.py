"""What every refiner is: embed an image once, refine it with any number of prompts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ultrarefiner.errors import PromptError, UltraRefinerError
from ultrarefiner.prompts.base import Prompt
from ultrarefiner.registry import resolve


@dataclass(frozen=True)
class Refinement:
    """A refined mask.

    Attributes:
        mask: bool (H, W) in original pixels.
        low_res_logits: float32 (h, w) as the model's decoder gives them.
        score: The refiner's own estimate of its quality, in [0, 1] where it has one, else nan.
    """

    mask: np.ndarray
    low_res_logits: np.ndarray
    score: float


def require_image(image: np.ndarray) -> None:
    """Check that an image is uint8 (H, W, 3).

    Raises:
        UltraRefinerError: It has another type or shape.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise UltraRefinerError(
            f"an image must be uint8 (H, W, 3) RGB with values 0..255, got {image.dtype} "
            f"{image.shape}. Read it with ultrarefiner.images.read_rgb, or convert it."
        )


class Embedding(ABC):
    """An image as a refiner holds it; made once, used by every prompt."""

    @property
    @abstractmethod
    def image_hw(self) -> tuple[int, int]:
        """Original (height, width) in pixels."""

    @abstractmethod
    def save(self, path: str | Path) -> None:
        """Write the embedding to one file, atomically."""

    @classmethod
    def load(cls, path: str | Path) -> Embedding:
        """Read an embedding that ``save`` wrote, of whichever family.

        Raises:
            UltraRefinerError: No family can read the file; the message says why not.
        """
        from ultrarefiner.refine import REFINERS

        reasons = []
        for row in REFINERS.values():
            try:
                return resolve(row.target).embedding_type.load(path)
            except UltraRefinerError as error:
                reasons.append(str(error))
        raise UltraRefinerError("\n  - ".join([f"{path} is no embedding:", *reasons]))


class Refiner(ABC):
    """A promptable segmentation method."""

    family: ClassVar[str]
    embedding_type: ClassVar[type[Embedding]]

    @abstractmethod
    def embed(self, image: np.ndarray) -> Embedding:
        """Take in a uint8 (H, W, 3) RGB image."""

    @abstractmethod
    def refine_one(self, embedding: Any, prompt: Prompt) -> Refinement:
        """Refine with one prompt."""

    def refine(self, embedding: Embedding, prompt: Prompt | list[Prompt]) -> Refinement:
        """Refine with one prompt, or with several whose masks are OR-ed.

        Several: ``low_res_logits`` is the pixelwise maximum, ``score`` the mean.

        Raises:
            PromptError: The refiner cannot use such a prompt.
        """
        if isinstance(prompt, Prompt):
            return self.refine_one(embedding, prompt)
        if not prompt:
            raise PromptError("an empty list of prompts cannot be refined")
        parts = [self.refine_one(embedding, one) for one in prompt]
        return Refinement(
            mask=np.logical_or.reduce([part.mask for part in parts]),
            low_res_logits=np.maximum.reduce([part.low_res_logits for part in parts]),
            score=float(np.mean([part.score for part in parts])),
        )
