"""Refiner on segment-anything models: SAM, MedSAM and every checkpoint of that layout."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from segment_anything.modeling import Sam
from torch.nn import functional

from ultrarefiner.errors import PromptError, WeightsError
from ultrarefiner.io import file_sha256
from ultrarefiner.models.sam import input_tensor, load_sam, scale_coordinates
from ultrarefiner.models.weights import locate_weights
from ultrarefiner.prompts.base import Prompt
from ultrarefiner.refine.base import Refinement, Refiner, require_image
from ultrarefiner.refine.embeddings import SamEmbedding, image_sha256
from ultrarefiner.refine.options import SamOptions
from ultrarefiner.runtime import choose_device

logger = logging.getLogger(__name__)

MASK_LOGIT = 10.0
"""Logit of a mask prompt where its probability is 1; see ``mask_prompt_logits``."""


class SamRefiner(Refiner):
    """Refine with a SAM: the image is encoded once, each prompt costs one pass of the decoder.

    Args:
        weights: File of the weights, or their name in the weights table.
        device: "cpu", "cuda", "mps" or "auto".
        options: Options of the family.

    Raises:
        WeightsError: The weights are absent, damaged or another model's.
        ConfigError: The device is not on this machine.
    """

    family: ClassVar[str] = "sam"
    embedding_type: ClassVar[type[SamEmbedding]] = SamEmbedding

    def __init__(self, weights: str | Path, device: str, options: SamOptions) -> None:
        path = locate_weights(weights)
        self.device = choose_device(device)
        self.sam: Sam = load_sam(path, family=self.family).to(self.device)
        self.weights_sha256 = file_sha256(path)
        self.options = options
        encoder = self.sam.image_encoder
        logger.info("%s: frame %d, %s", path.name, encoder.img_size, self.device)

    @torch.inference_mode()
    def embed(self, image: np.ndarray) -> SamEmbedding:
        """Encode a uint8 (H, W, 3) RGB image.

        Raises:
            UltraRefinerError: The image has another type or shape.
        """
        require_image(image)
        pixels, input_hw = input_tensor(image, self.sam)
        return SamEmbedding(
            features=self.sam.image_encoder(pixels)[0].float().cpu().numpy(),
            image_size=(image.shape[0], image.shape[1]),
            input_size=input_hw,
            image_sha256=image_sha256(image),
            weights_sha256=self.weights_sha256,
        )

    @torch.inference_mode()
    def refine_one(self, embedding: SamEmbedding, prompt: Prompt) -> Refinement:
        """Refine with one prompt; box, points and mask of one prompt are used jointly.

        ``score`` is the predicted IoU as the model gives it; it may lie a little outside [0, 1].

        Raises:
            PromptError: The prompt does not fit the model.
            WeightsError: The embedding was made with other weights.
        """
        logits, ious = self.decode(embedding, prompt, multimask=self.options.mask_choice == "best")
        best = int(ious.argmax())
        # Logits go to the original size first and are thresholded last: thresholding before
        # fattens small lesions.
        full = self.sam.postprocess_masks(
            logits[None, best : best + 1], embedding.input_size, embedding.image_hw
        )
        return Refinement(
            mask=(full[0, 0] > self.sam.mask_threshold).cpu().numpy(),
            low_res_logits=logits[best].cpu().numpy(),
            score=float(ious[best]),
        )

    @torch.inference_mode()
    def decode(
        self, embedding: SamEmbedding, prompt: Prompt, multimask: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Run prompt encoder and mask decoder.

        Args:
            embedding: From ``embed`` with these weights.
            prompt: In original pixels.
            multimask: The three masks for ambiguous prompts instead of the single one.

        Returns:
            Low-resolution logits (K, 4 * grid, 4 * grid) and predicted IoU (K,), float32.

        Raises:
            PromptError: The prompt does not fit the model.
            WeightsError: The embedding was made with other weights.
        """
        if embedding.weights_sha256 != self.weights_sha256:
            raise WeightsError(
                f"the embedding was made with weights {embedding.weights_sha256[:12]}..., this "
                f"refiner has {self.weights_sha256[:12]}.... Run embed_images with these weights, "
                "or refine with those."
            )
        sparse, dense = self.sam.prompt_encoder(
            points=self._points(embedding, prompt),
            boxes=self._box(embedding, prompt),
            masks=self._mask(embedding, prompt),
        )
        logits, ious = self.sam.mask_decoder(
            image_embeddings=torch.from_numpy(embedding.features)[None].to(self.device),
            image_pe=self.sam.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=multimask,
        )
        return logits[0], ious[0]

    def _points(
        self, embedding: SamEmbedding, prompt: Prompt
    ) -> tuple[torch.Tensor, torch.Tensor] | None:
        if prompt.points is None:
            return None
        points = scale_coordinates(prompt.points, embedding.image_hw, embedding.input_size)
        labels = torch.as_tensor(prompt.labels, dtype=torch.int, device=self.device)
        return self._tensor(points)[None], labels[None]

    def _box(self, embedding: SamEmbedding, prompt: Prompt) -> torch.Tensor | None:
        if prompt.box is None:
            return None
        corners = np.reshape(prompt.box, (2, 2))
        scaled = scale_coordinates(corners, embedding.image_hw, embedding.input_size)
        return self._tensor(scaled).reshape(1, 4)

    def _mask(self, embedding: SamEmbedding, prompt: Prompt) -> torch.Tensor | None:
        size = self.sam.prompt_encoder.mask_input_size
        if prompt.mask_logits is not None:
            logits = np.asarray(prompt.mask_logits, dtype=np.float32)
            if logits.shape not in (size, (1, *size)) or not np.isfinite(logits).all():
                raise PromptError(
                    f"mask_logits have shape {logits.shape}; this model takes finite logits of "
                    f"shape {size}. Give `mask` in original pixels to have them made."
                )
            return torch.from_numpy(logits).to(self.device).reshape(1, 1, *size)
        if prompt.mask is None:
            return None
        frame = self.sam.image_encoder.img_size
        return mask_prompt_logits(prompt.mask, embedding.input_size, frame, size[0]).to(self.device)

    def _tensor(self, values: np.ndarray) -> torch.Tensor:
        return torch.as_tensor(values, dtype=torch.float32, device=self.device)


def mask_prompt_logits(
    mask: np.ndarray, input_hw: tuple[int, int], frame: int, size: int
) -> torch.Tensor:
    """Turn a mask in original pixels into the low-resolution logits a SAM takes as mask prompt.

    A probability p becomes the logit (2p - 1) * 10: linear, bounded, 0 at p = 0.5. It takes the
    image's way into the model: resized to the image's place in the square frame, the padding is
    sure background, then blocks of pixels are averaged. So it lies on the image to the pixel, also
    where the image's size in the frame is no multiple of the block.

    Args:
        mask: (H, W) bool, or probability in [0, 1].
        input_hw: (height, width) of the image in the frame.
        frame: Side of the square frame.
        size: Side of the logits.

    Returns:
        float32 (1, 1, size, size), on the CPU.
    """
    probability = torch.from_numpy(np.array(mask, dtype=np.float32))[None, None]
    resized = functional.interpolate(
        probability, input_hw, mode="bilinear", align_corners=False, antialias=True
    ).clamp(0, 1)
    padding = (0, frame - input_hw[1], 0, frame - input_hw[0])
    averaged = functional.interpolate(functional.pad(resized, padding), (size, size), mode="area")
    return (2 * averaged - 1) * MASK_LOGIT
