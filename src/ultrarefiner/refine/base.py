"""What every refiner is: embed an image once, refine it with any number of prompts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ultrarefiner.errors import PromptError, UltraRefinerError
from ultrarefiner.prompts.base import Prompt
from ultrarefiner.prompts.fit import require_fit
from ultrarefiner.registry import resolve


@dataclass(frozen=True, eq=False)
class Refinement:
    """A refined mask.

    Attributes:
        mask: bool (H, W) in original pixels.
        low_res_logits: float32 (h, w), positive inside; of one size for all prompts of an image. A
            model's are as its decoder gives them.
        score: The refiner's own estimate of its quality, in [0, 1] where it has one, else nan.
        agreement: Mean IoU of this mask with those of moved copies of the prompt, in [0, 1]; nan
            where no copies were made. Low values mark cases to look at.
    """

    mask: np.ndarray
    low_res_logits: np.ndarray
    score: float
    agreement: float = float("nan")


def require_image(image: np.ndarray) -> None:
    """Check that an image is uint8 (H, W, 3).

    Raises:
        UltraRefinerError: It has another type or shape.
    """
    if not isinstance(image, np.ndarray):
        raise UltraRefinerError(
            f"an image must be a uint8 NumPy array (H, W, 3), got a {type(image).__name__}. Read it "
            "with ultrarefiner.images.read_rgb, or convert it."
        )
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
        # Families share types: each is tried once.
        for kind in dict.fromkeys(resolve(row.target).embedding_type for row in REFINERS.values()):
            try:
                return kind.load(path)
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

    def embed_batch(self, images: Sequence[np.ndarray]) -> list[Embedding]:
        """Take in several images; a refiner on a GPU encodes them together."""
        return [self.embed(image) for image in images]

    @property
    def batch_size(self) -> int:
        """How many images ``embed_batch`` takes at a time, as the device's memory allows."""
        return 1

    @abstractmethod
    def refine_one(self, embedding: Any, prompt: Prompt) -> Refinement:
        """Refine with one prompt, which ``refine`` has found to fit the image."""

    def refine_each(self, embedding: Any, prompts: Sequence[Prompt]) -> list[Refinement]:
        """Refine with each of several prompts of an image; a model decodes them together."""
        return [self.refine_one(embedding, prompt) for prompt in prompts]

    def refine(self, embedding: Embedding, prompt: Prompt | list[Prompt]) -> Refinement:
        """Refine with one prompt, or with several whose masks are OR-ed.

        Several: ``low_res_logits`` is the pixelwise maximum, ``score`` and ``agreement`` the
        mean.

        Raises:
            PromptError: The prompt does not fit the image, or the refiner cannot use such a prompt.
            UltraRefinerError: The embedding is another family's.
        """
        if not isinstance(embedding, self.embedding_type):
            raise UltraRefinerError(
                f"refiner family '{self.family}' takes a {self.embedding_type.__name__}, got "
                f"{type(embedding).__name__}. Embed the image with this very refiner."
            )
        prompts = [prompt] if isinstance(prompt, Prompt) else prompt
        if not isinstance(prompts, list | tuple) or not all(isinstance(p, Prompt) for p in prompts):
            raise PromptError(
                f"a prompt must be a Prompt or a list of them, got {type(prompt).__name__}; an "
                "empty coarse mask has no prompt, and its refined mask is empty without refining"
            )
        if not prompts:
            raise PromptError("an empty list of prompts cannot be refined")
        for one in prompts:
            require_fit(one, embedding.image_hw)
        parts = self.refine_each(embedding, prompts)
        if len(parts) == 1:
            return parts[0]
        return Refinement(
            mask=np.logical_or.reduce([part.mask for part in parts]),
            low_res_logits=np.maximum.reduce([part.low_res_logits for part in parts]),
            score=float(np.mean([part.score for part in parts])),
            agreement=float(np.mean([part.agreement for part in parts])),
        )
