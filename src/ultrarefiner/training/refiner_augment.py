"""Random changes of a refiner's training pictures, with truth and coarse mask alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np

from ultrarefiner.config.refiner_sections import RefinerAugmentConfig
from ultrarefiner.io import item_seed
from ultrarefiner.prompts.geometry import lesion_pixels
from ultrarefiner.training.data import turn_about_centre
from ultrarefiner.training.refiner_items import Example

_TRIES = 8
_MIDDLE_GREY = 127.5


@dataclass(frozen=True)
class Augmentation:
    """One draw of changes, which any number of pictures may share.

    Contrast is about middle grey and not about a picture's mean, so that the slices of a volume
    keep their brightness to each other.

    Attributes:
        degrees: Rotation about the centre, anticlockwise.
        scale: Change of size about the centre.
        brightness: What is added to all values, a share of white.
        contrast: Factor of the values' distances from middle grey.
        noise: Standard deviation of normal noise, a share of white; each pixel's is the same in
            all channels.
        noise_seed: Seed of the noise; pictures that share a draw have the same noise, unless each
            gets another seed by ``dataclasses.replace``.
    """

    degrees: float = 0.0
    scale: float = 1.0
    brightness: float = 0.0
    contrast: float = 1.0
    noise: float = 0.0
    noise_seed: int = 0

    @classmethod
    def draw(cls, config: RefinerAugmentConfig, *seed: object) -> Augmentation:
        """Draw changes, the same for the same seed.

        Args:
            config: The largest changes, and the probability of each.
            seed: Parts of the seed, as ``item_seed`` takes them.
        """
        rng = np.random.default_rng(item_seed(*seed))
        made = rng.random(5) < config.probability
        degrees, brightness, contrast = rng.uniform(-1, 1, 3)
        drawn = {
            "degrees": float(degrees) * config.rotate,
            "scale": float(rng.uniform(*config.scale)),
            "brightness": float(brightness) * config.brightness,
            "contrast": 1 + float(contrast) * config.contrast,
            "noise": float(rng.uniform(0, config.noise)),
        }
        kept = {name: value for (name, value), use in zip(drawn.items(), made, strict=True) if use}
        return cls(**kept, noise_seed=int(rng.integers(2**31)))

    def apply(self, example: Example) -> Example:
        """Change an example: its values first, then its shape.

        Args:
            example: The example; a box of its own is not changed, so it has to have none.

        Returns:
            An example of the same size: the image and the coarse mask bilinear, the truth by its
            nearest pixels, all of them black outside.

        Raises:
            ValueError: The example has a box.
        """
        if example.box is not None:
            raise ValueError("a box cannot be turned with its picture")
        return replace(
            example,
            image=self._warp(self._relit(example.image), cv2.INTER_LINEAR),
            label=self._warp(example.label.astype(np.uint8), cv2.INTER_NEAREST).astype(bool),
            coarse=self._warp(example.coarse, cv2.INTER_LINEAR),
        )

    def _warp(self, array: np.ndarray, flags: int) -> np.ndarray:
        if self.degrees == 0.0 and self.scale == 1.0:
            return array
        turn = turn_about_centre(array.shape, self.degrees, self.scale)
        return cv2.warpAffine(array, turn, array.shape[1::-1], flags=flags)

    def _relit(self, image: np.ndarray) -> np.ndarray:
        if self.brightness == 0.0 and self.contrast == 1.0 and self.noise == 0.0:
            return image
        values = image.astype(np.float32)
        values = _MIDDLE_GREY + self.contrast * (values - _MIDDLE_GREY) + 255 * self.brightness
        if self.noise:
            rng = np.random.default_rng(self.noise_seed)
            grain = rng.standard_normal(image.shape[:2], dtype=np.float32)
            values += 255 * self.noise * grain[..., None]
        return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def draw_for(
    config: RefinerAugmentConfig, examples: Sequence[Example], seed: Sequence[object]
) -> Augmentation:
    """Return a draw for examples of one picture; the same for the same seed.

    A draw that pushes a lesion out of the picture, so that nothing prompts or nothing can be
    learned, is drawn again; after some such draws it is one that changes nothing.

    Args:
        config: The largest changes.
        examples: Masks of one picture.
        seed: Parts of the seed.
    """
    for attempt in range(_TRIES):
        draw = Augmentation.draw(config, *seed, attempt)
        if all(_still_there(one, draw.apply(one)) for one in examples):
            return draw
    return Augmentation()


def _still_there(before: Example, after: Example) -> bool:
    shown = bool(after.label.any()) or not before.label.any()
    return shown and bool(lesion_pixels(after.coarse).any())
