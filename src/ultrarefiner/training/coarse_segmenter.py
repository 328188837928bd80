"""Coarse models applied to images: in training, and to whatever comes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ultrarefiner.models import height_width
from ultrarefiner.runtime import choose_device
from ultrarefiner.training.checkpoint import load_model
from ultrarefiner.training.data import CoarseData, as_input, enlarge, resize_image
from ultrarefiner.training.segmented import THRESHOLD, Segmented, mask_of

_FLIPS = ((), (3,), (2,), (2, 3))
"""Dimensions of (B, C, H, W) turned round: none, left-right, up-down, both."""


@dataclass(frozen=True)
class Prediction:
    """A coarse model's answer for one case.

    Attributes:
        index: Place of the case in its ``CoarseData``.
        logits: float32 (K, h, w), at the model's size, on the model's device; of the image as it
            is, also where the probability is a mean over flips.
        probability: float32 (H, W), of the lesion, at original size.
    """

    index: int
    logits: torch.Tensor
    probability: np.ndarray

    @property
    def mask(self) -> np.ndarray:
        """Bool (H, W): probability of at least one half."""
        return mask_of(self.probability, THRESHOLD)


def _probabilities(
    model: nn.Module, batch: torch.Tensor, flips: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits (B, K, h, w) and probabilities of the lesion (B, h, w) of (B, 3, h, w)."""
    logits = model(batch).float()
    probability = logits.softmax(1)[:, 1:2]
    if flips:
        for dims in _FLIPS[1:]:
            flipped = model(batch.flip(dims)).float().softmax(1)[:, 1:2]
            probability = probability + flipped.flip(dims)
        probability = probability / len(_FLIPS)
    return logits, probability[:, 0]


def predict(
    model: nn.Module,
    data: CoarseData,
    batch_size: int,
    check: Callable[[], None] = lambda: None,
    flips: bool = False,
) -> Iterator[Prediction]:
    """Apply a coarse model; validation and prediction both go through here, in float32.

    Args:
        model: The model, on its device; put in eval mode.
        data: The cases.
        batch_size: Images in a forward pass.
        check: Called before each pass.
        flips: Give the mean of the probabilities of the image and its three flips.
    """
    device = next(model.parameters()).device
    model.eval()
    for start in range(0, len(data), batch_size):
        check()
        batch = torch.from_numpy(data.images[start : start + batch_size]).to(device)
        with torch.inference_mode():
            logits, soft = _probabilities(model, as_input(batch), flips)
            probabilities = soft.cpu().numpy()
        for offset, probability in enumerate(probabilities):
            shape = data.truths[start + offset].shape
            yield Prediction(start + offset, logits[offset], enlarge(probability, *shape))


class CoarseSegmenter:
    """A coarse model, ready for any image; see ``segmenter.Segmenter``."""

    def __init__(self, model: str | Path, card: str | Path, device: str) -> None:
        net, self.card = load_model(model, card)
        self._net = net.to(choose_device(device))
        self._size = height_width(self.card["architecture"]["image_size"])

    def segment(self, images: Sequence[np.ndarray], flips: bool = False) -> list[Segmented]:
        """Segment uint8 (H, W, 3) RGB images of any sizes together."""
        resized = np.stack([resize_image(image, self._size) for image in images])
        batch = torch.from_numpy(resized).to(next(self._net.parameters()).device)
        with torch.inference_mode():
            soft = _probabilities(self._net, as_input(batch), flips)[1].cpu().numpy()
        return [
            Segmented(enlarge(one, *image.shape[:2]))
            for one, image in zip(soft, images, strict=True)
        ]
