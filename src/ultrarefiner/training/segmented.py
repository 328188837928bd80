"""What trained models say about an image, whichever they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

THRESHOLD = 0.5
END_TO_END = "end_to_end"
"""Phase, in its card, of a model that was trained end to end."""
REFINER = "refiner.safetensors"
"""Name of the weights of such a model's SAM, beside those of its coarse model."""


def mask_of(probability: np.ndarray, threshold: float) -> np.ndarray:
    """Return bool (H, W): probability (float32) of at least the threshold, rounded to float32."""
    return probability >= np.float32(threshold)


@dataclass(frozen=True, eq=False)
class Segmented:
    """What a model says about one image.

    Attributes:
        probability: float32 (H, W), of the lesion, at original size.
        coarse: float32 (H, W), the probability before refining; None for a coarse model.
        score: IoU that the model predicts for its mask; None where it predicts none.
    """

    probability: np.ndarray
    coarse: np.ndarray | None = None
    score: float | None = None

    @property
    def mask(self) -> np.ndarray:
        """Bool (H, W): probability of at least one half."""
        return mask_of(self.probability, THRESHOLD)


class Segmenter(Protocol):
    """A model with its card, on its device, in eval mode.

    Attributes:
        card: The model's card.
    """

    card: dict[str, Any]

    def segment(self, images: Sequence[np.ndarray], flips: bool = False) -> list[Segmented]:
        """Segment images, uint8 (H, W, 3) RGB of any sizes, together.

        Args:
            images: The images.
            flips: Give the mean of the probabilities of each image and its three flips.
        """
