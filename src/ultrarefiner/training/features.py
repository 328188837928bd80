"""What the part of the encoder that does not train makes of each picture, computed once.

Where nothing in the encoder trains that is the embedding, the very file that ``embed_images`` puts
on the shelf; where its last blocks do, the activations before the first of them. Of a SAM-UNet it is
the activations before its branch first comes in, with the pixels, which the branch sees.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from segment_anything.modeling import ImageEncoderViT
from torch.nn import functional

from ultrarefiner.models.encoding import encode
from ultrarefiner.models.partial import encode_from, encode_until
from ultrarefiner.models.trainable import first_trainable_block
from ultrarefiner.refine import REFINERS
from ultrarefiner.refine.embeddings import SamEmbedding, embedding_key, image_sha256
from ultrarefiner.refine.sam import SamRefiner
from ultrarefiner.refine.seeing import progress
from ultrarefiner.refine.shelf import Shelf

log = logging.getLogger(__name__)

Pixels = Callable[[], np.ndarray]
"""Reads a picture, uint8 (H, W, 3) RGB."""


@dataclass(frozen=True, eq=False)
class Stage:
    """A picture on its way through the encoder.

    Attributes:
        features: float32 on the CPU: pixels (3, side, side), activations (channels, grid, grid)
            before a block, or the embedding (channels, grid, grid); ``Features`` knows which.
        image_hw: (height, width) of the picture in pixels.
        input_size: (height, width) of the picture inside the model's frame.
    """

    features: torch.Tensor
    image_hw: tuple[int, int]
    input_size: tuple[int, int]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Stage:
        """Return the stage with its features on a device."""
        return replace(self, features=self.features.to(device, non_blocking=non_blocking))


class Features:
    """Pictures as far as the frozen part of the encoder takes them.

    Args:
        refiner: The refiner in training, its trainable parts set.
        shelf: Where results are kept; None: each step starts from pixels.
        rounded: Round what a frozen encoder gives as the shelf does, also where there is none.

    Attributes:
        block: The first block that trains; None if the encoder is frozen.
        kept: Whether results are kept.
    """

    def __init__(self, refiner: SamRefiner, shelf: Shelf | None, rounded: bool = False) -> None:
        self.refiner, self.shelf, self.rounded = refiner, shelf, rounded
        self.block = first_trainable_block(refiner.sam)
        # Before the first block there is next to nothing to save.
        partly = self.block is not None and isinstance(refiner.sam.image_encoder, ImageEncoderViT)
        self.kept = shelf is not None and (self.block is None or (partly and self.block > 0))
        self._keys: dict[tuple[str, bool], str] = {}

    @property
    def recipe(self) -> dict[str, Any]:
        """What kept results depend on beside the weights and the pixels."""
        recipe = dict(self.refiner.recipe)
        if self.block is not None:
            recipe["until_block"] = self.block
        if self.shelf is not None and self.shelf.dtype != "float16":
            recipe["stored"] = self.shelf.dtype
        return recipe

    def prepare(self, pictures: Iterable[tuple[str, bool, Pixels]]) -> None:
        """Put on the shelf what is not there yet.

        Args:
            pictures: Name, whether flipped, and how to read it.
        """
        if not self.kept:
            log.info("the encoder runs in every step")
            return
        made, total, waiting = 0, 0, {}
        for name, flipped, read in progress(pictures, None, "encode", "picture"):
            pixels, total = read(), total + 1
            key = self._key(name, flipped, pixels)
            if self.shelf.get(key, self.refiner.weights_sha256) is None:
                waiting[key] = pixels
            if len(waiting) >= self.refiner.batch_size:
                made += self._make(waiting)
        made += self._make(waiting)
        log.info("encoded %d pictures, %d were on the shelf", made, total - made)

    def _make(self, waiting: dict[str, np.ndarray]) -> int:
        made = len(waiting)
        if made:
            for one in self._encoded(list(waiting.values())):
                self.shelf.put(one)
        waiting.clear()
        return made

    def _key(self, name: str, flipped: bool, pixels: np.ndarray) -> str:
        digest, refiner = image_sha256(pixels), self.refiner
        key = embedding_key(digest, refiner.weights_sha256, refiner.family, self.recipe)
        self._keys[name, flipped] = key
        return key

    @torch.no_grad()
    def _encoded(self, pictures: list[np.ndarray]) -> list[SamEmbedding]:
        """Return what is kept of pictures, as embeddings with this recipe."""
        refiner = self.refiner
        inputs = [refiner.input_tensor(pixels) for pixels in pictures]
        batch = torch.cat([tensor for tensor, _ in inputs])
        made = self._until(batch)
        return [
            SamEmbedding(
                features=one,
                image_size=(pixels.shape[0], pixels.shape[1]),
                input_size=input_hw,
                image_sha256=image_sha256(pixels),
                weights_sha256=refiner.weights_sha256,
                family=refiner.family,
                recipe=self.recipe,
            )
            for one, pixels, (_, input_hw) in zip(made.cpu().numpy(), pictures, inputs, strict=True)
        ]

    def _until(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return what is kept of a batch, (B, channels, grid, grid)."""
        if self.block is None:
            return encode(self.refiner.sam, pixels, self.refiner.options.precision)
        return encode_until(self.refiner.sam, pixels, self.block).permute(0, 3, 1, 2)

    def of(self, name: str, flipped: bool, read: Pixels) -> Stage:
        """Return a picture as far as it is kept; from the shelf, or computed.

        Args:
            name: What the picture is called; equal names have equal pixels.
            flipped: Whether ``read`` gives it flipped.
            read: Reads the pixels, which is not done if they are not needed.
        """
        if not self.kept:
            pixels = read()
            tensor, input_hw = self.refiner.input_tensor(pixels)
            return Stage(tensor[0].cpu(), (pixels.shape[0], pixels.shape[1]), input_hw)
        key, pixels = self._keys.get((name, flipped)), None
        if key is None:
            pixels = read()
            key = self._key(name, flipped, pixels)
        found = self.shelf.get(key, self.refiner.weights_sha256)
        if found is None:
            found = self._encoded([read() if pixels is None else pixels])[0]
            self.shelf.put(found)
            found = found.rounded() if self.shelf.dtype == "float16" else found
        return Stage(torch.from_numpy(found.features), found.image_hw, found.input_size)

    def finish(self, features: torch.Tensor) -> torch.Tensor:
        """Take a batch through the rest of the encoder, with gradients where they are wanted.

        Args:
            features: What ``Stage`` holds, float32 (B, ...), on the model's device.

        Returns:
            float32 (B, channels, grid, grid).
        """
        sam = self.refiner.sam
        if not self.kept:
            if self.block is not None:
                return sam.image_encoder(features)
            with torch.no_grad():
                made = encode(sam, features, self.refiner.options.precision)
            return made.half().float() if self.rounded else made
        if self.block is None:
            return features
        return encode_from(sam, features.permute(0, 2, 3, 1).contiguous(), self.block)

    @torch.inference_mode()
    def embedding(self, stage: Stage) -> SamEmbedding:
        """Return the embedding of a picture with the present weights, as ``refine`` takes it."""
        features = self.finish(stage.features[None].to(self.refiner.device))[0]
        refiner = self.refiner
        return SamEmbedding(
            features=features.float().cpu().numpy(),
            image_size=stage.image_hw,
            input_size=stage.input_size,
            image_sha256="0" * 64,  # of no use here: nothing is kept under it
            weights_sha256=refiner.weights_sha256,
            family=refiner.family,
            recipe=refiner.recipe,
        )


class AdaptedFeatures(Features):
    """The same of a SAM-UNet, whose branch adds to what the frozen blocks see.

    Kept are the tokens before the first adapted block and the normalised pixels, which take as
    much room. Arguments are those of ``Features``.
    """

    def __init__(self, refiner: SamRefiner, shelf: Shelf | None) -> None:
        super().__init__(refiner, shelf)
        self.block = refiner.sam.first_adapted_block
        self.kept = shelf is not None and self.block > 0

    @torch.no_grad()
    def _until(self, pixels: torch.Tensor) -> torch.Tensor:
        tokens = self.refiner.sam.encode_until(pixels).permute(0, 3, 1, 2)
        patch = self.refiner.sam.architecture.patch_size
        return torch.cat([tokens, functional.pixel_unshuffle(pixels, patch)], dim=1)

    def finish(self, features: torch.Tensor) -> torch.Tensor:
        """Take a batch through the rest of the model, with gradients; see ``Features.finish``."""
        sam = self.refiner.sam
        if not self.kept:
            return sam.encode(features)
        width, patch = sam.architecture.embed_dim, sam.architecture.patch_size
        tokens = features[:, :width].permute(0, 2, 3, 1).contiguous()
        return sam.encode_from(tokens, functional.pixel_shuffle(features[:, width:], patch))


def features_of(refiner: SamRefiner, shelf: Shelf | None) -> Features:
    """Return how pictures come to a refiner in training; see ``Features``."""
    adapted = REFINERS[refiner.family].adapts_encoder
    return (AdaptedFeatures if adapted else Features)(refiner, shelf)
