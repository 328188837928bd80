"""Refiner on segment-anything models: SAM, MedSAM and every checkpoint of that layout."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from segment_anything.modeling import Sam

from ultrarefiner.errors import PromptError
from ultrarefiner.models.encoding import encode, encoder_batch
from ultrarefiner.models.finetuned import encoder_sha256
from ultrarefiner.models.mask_prompts import mask_prompt_logits
from ultrarefiner.models.sam import input_tensor, load_sam, scale_coordinates
from ultrarefiner.models.weights import locate_weights
from ultrarefiner.prompts.base import Prompt
from ultrarefiner.prompts.soft import mask_weights, select_mask
from ultrarefiner.refine.base import Refinement, Refiner, require_image
from ultrarefiner.refine.embeddings import SamEmbedding, image_sha256
from ultrarefiner.refine.options import SamOptions
from ultrarefiner.refine.sam_prompts import (
    LiveFeatures,
    Query,
    fed_back,
    mean_iou,
    moved_copies,
)
from ultrarefiner.runtime import choose_device

logger = logging.getLogger(__name__)

Answer = tuple[torch.Tensor, torch.Tensor]
"""What the decoder gives for one query: logits (K, h, w) and predicted IoU (K,)."""

_DECODER_BATCH = 32  # prompts in one call; each holds about 36 MB while it is decoded


class SamRefiner(Refiner):
    """Refine with a SAM: the image is encoded once, its prompts share the decoder's calls.

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
    passes_know_the_image: ClassVar[bool] = False
    """Whether ``run_passes`` asks for the size of the one image that its queries are about."""
    predicts_iou: ClassVar[bool] = True
    """Whether the decoder predicts the IoU of its masks."""

    def __init__(self, weights: str | Path, device: str, options: SamOptions) -> None:
        path = locate_weights(weights)
        self._take(load_sam(path, family=self.family), encoder_sha256(path), device, options)
        logger.info("%s: frame %d, %s", path.name, self.sam.image_encoder.img_size, self.device)

    @classmethod
    def of_model(
        cls, sam: Sam, weights_sha256: str, device: str, options: SamOptions
    ) -> SamRefiner:
        """Return a refiner around a model in memory, which may be in training.

        Args:
            sam: The model; it is moved to the device, not copied.
            weights_sha256: What its embeddings are kept under.
            device: "cpu", "cuda", "mps" or "auto".
            options: Options of the family.
        """
        refiner = cls.__new__(cls)
        refiner._take(sam, weights_sha256, device, options)
        return refiner

    def _take(self, sam: Sam, weights_sha256: str, device: str, options: SamOptions) -> None:
        self.device = choose_device(device)
        self.sam = sam.to(self.device)
        self.weights_sha256 = weights_sha256
        self.options = options

    @property
    def recipe(self) -> dict[str, Any]:
        """What an embedding depends on beside the weights and the pixels."""
        return {"precision": self.options.precision}

    @property
    def batch_size(self) -> int:
        """How many images ``embed_batch`` takes at a time, as the device's memory allows."""
        return encoder_batch(self.sam)

    def input_tensor(self, image: np.ndarray) -> tuple[torch.Tensor, tuple[int, int]]:
        """Return the encoder's input (1, 3, side, side) and the image's (height, width) in it."""
        return input_tensor(image, self.sam)

    @property
    def loss_side(self) -> int:
        """Side of the grid on which masks are compared with the truth in training."""
        return self.sam.prompt_encoder.mask_input_size[0]

    def for_loss(self, logits: torch.Tensor) -> torch.Tensor:
        """Bring low-resolution logits (N, h, w) to that grid."""
        return logits

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """Encode (B, 3, side, side), normalised and padded, to float32 (B, channels, grid, grid)."""
        options = self.options
        return encode(self.sam, pixels, options.precision, compiled=options.compile)

    def embed(self, image: np.ndarray) -> SamEmbedding:
        """Encode a uint8 (H, W, 3) RGB image.

        Raises:
            UltraRefinerError: The image has another type or shape.
        """
        return self.embed_batch([image])[0]

    @torch.inference_mode()
    def embed_batch(self, images: Sequence[np.ndarray]) -> list[SamEmbedding]:
        """Encode several uint8 (H, W, 3) RGB images, of any sizes, in one call of the encoder.

        Raises:
            UltraRefinerError: An image has another type or shape.
        """
        for image in images:
            require_image(image)
        if not images:
            return []
        inputs = [self.input_tensor(image) for image in images]
        features = self.encode(torch.cat([tensor for tensor, _ in inputs]))
        return [
            SamEmbedding(
                features=one,
                image_size=(image.shape[0], image.shape[1]),
                input_size=input_hw,
                image_sha256=image_sha256(image),
                weights_sha256=self.weights_sha256,
                family=self.family,
                recipe=self.recipe,
            )
            for one, image, (_, input_hw) in zip(
                features.cpu().numpy(), images, inputs, strict=True
            )
        ]

    def refine_one(self, embedding: SamEmbedding, prompt: Prompt) -> Refinement:
        """Refine with one prompt; see ``refine_each``."""
        return self.refine_each(embedding, [prompt])[0]

    @torch.inference_mode()
    def refine_each(self, embedding: SamEmbedding, prompts: Sequence[Prompt]) -> list[Refinement]:
        """Refine with each of several prompts; box, points and mask of one prompt act jointly.

        ``score`` is the predicted IoU as the model gives it, which may lie a little outside [0, 1]:
        that of the chosen mask, the highest for ``mask_choice: union``, the weighted mean for
        ``softmax``.

        Raises:
            PromptError: A prompt does not fit the model.
            WeightsError: The embedding was made with other weights.
        """
        refined = self._refined(embedding, prompts)
        jitter = self.options.jitter
        if jitter is None:
            return refined
        copies = [
            moved_copies(prompt, one.mask, jitter, embedding.image_sha256)
            for prompt, one in zip(prompts, refined, strict=True)
        ]
        moved = iter(self._refined(embedding, [copy for some in copies for copy in some]))
        return [
            replace(one, agreement=mean_iou(one.mask, np.stack([next(moved).mask for _ in some])))
            if some
            else one
            for one, some in zip(refined, copies, strict=True)
        ]

    def _refined(self, embedding: SamEmbedding, prompts: Sequence[Prompt]) -> list[Refinement]:
        refined: list[Refinement] = []
        for start in range(0, len(prompts), _DECODER_BATCH):
            part = prompts[start : start + _DECODER_BATCH]
            queries = [self.query(embedding, prompt) for prompt in part]
            for answer in self.run_passes(embedding, queries):
                logits, score = self.choose(*answer)
                # One at a time: at full size the masks of a batch could fill the memory.
                mask = self.full_masks(embedding, logits[None])[0]
                refined.append(
                    Refinement(
                        mask=mask.cpu().numpy(),
                        low_res_logits=np.array(logits.cpu()),
                        score=float(score),
                    )
                )
        return refined

    def run_passes(self, embedding: SamEmbedding, queries: list[Query]) -> list[Answer]:
        """Decode queries as often as ``passes`` says.

        Each further pass has the same box and points; its mask prompt is the logits with the
        highest predicted IoU of the pass before. A mask prompt of the query's own counts in the
        first pass.

        Returns:
            The last pass's logits (K, h, w) and predicted IoU (K,) of each query.
        """
        multimask = self.options.mask_choice != "single"
        for _ in range(self.options.passes - 1):
            answers = self.decode_queries(embedding, queries, multimask)
            queries = [fed_back(*pair) for pair in zip(queries, answers, strict=True)]
        return self.decode_queries(embedding, queries, multimask)

    def choose(self, logits: torch.Tensor, ious: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Make one mask of the decoder's, as ``mask_choice`` says; a single one stays as it is.

        Args:
            logits: (K, h, w), low-resolution.
            ious: Predicted IoU (K,).

        Returns:
            Logits (h, w) and a score, both tensors.
        """
        if self.options.mask_choice == "union":
            return logits.amax(dim=0), ious.max()
        if self.options.mask_choice == "softmax":
            temperature = self.options.temperature
            score = (mask_weights(ious, temperature) * ious).sum()
            return select_mask(logits[None], ious[None], temperature)[0], score
        best = ious.argmax()
        return logits[best], ious[best]

    def full_masks(self, embedding: SamEmbedding, logits: torch.Tensor) -> torch.Tensor:
        """Return bool (N, H, W) masks in original pixels from logits (N, h, w).

        Logits go to the original size first and are thresholded last: thresholding before fattens
        small lesions.
        """
        full = self.sam.postprocess_masks(logits[:, None], embedding.input_size, embedding.image_hw)
        return full[:, 0] > self.sam.mask_threshold

    @torch.inference_mode()
    def decode(self, embedding: SamEmbedding, prompt: Prompt, multimask: bool) -> Answer:
        """Run prompt encoder and mask decoder once.

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
        return self.decode_queries(embedding, [self.query(embedding, prompt)], multimask)[0]

    def decode_queries(
        self, embedding: SamEmbedding | LiveFeatures, queries: list[Query], multimask: bool
    ) -> list[Answer]:
        """Decode queries of one image; those with equally many tokens in one call of the decoder.

        Gradients flow where the features are those of a model in training.

        Returns:
            Low-resolution logits (K, h, w) and predicted IoU (K,) of each query.

        Raises:
            WeightsError: The embedding was made with other weights.
            UltraRefinerError: It was made by another family or with other options.
        """
        if isinstance(embedding, LiveFeatures):
            return self._decoded(embedding.features, queries, multimask)
        embedding.require(self.weights_sha256, self.family, self.recipe)
        features = torch.from_numpy(embedding.features)[None].to(self.device)
        with torch.inference_mode():
            return self._decoded(features, queries, multimask)

    def _decoded(
        self, features: torch.Tensor, queries: list[Query], multimask: bool
    ) -> list[Answer]:
        encoded = [self._encoded(query) for query in queries]
        together = defaultdict(list)
        for index, (sparse, _) in enumerate(encoded):
            together[sparse.shape[1]].append(index)
        results: dict[int, Answer] = {}
        for indexes in together.values():
            sparse, dense = (torch.cat([encoded[i][of] for i in indexes]) for of in (0, 1))
            logits, ious = self.decode_together(features, sparse, dense, indexes, multimask)
            results |= zip(indexes, zip(logits, ious, strict=True), strict=True)
        return [results[index] for index in range(len(queries))]

    def decode_together(
        self,
        features: torch.Tensor,
        sparse: torch.Tensor,
        dense: torch.Tensor,
        indexes: Sequence[int],
        multimask: bool,
    ) -> Answer:
        """Decode prompts of equally many tokens in one call.

        Args:
            features: Of one image, or of several; see ``LiveFeatures``.
            sparse: (N, tokens, channels).
            dense: (N, channels, grid, grid).
            indexes: Which of several images each prompt is about.
            multimask: The three masks for ambiguous prompts instead of the single one.

        Returns:
            Logits (N, K, h, w) and predicted IoU (N, K).
        """
        image = features
        if len(features) > 1:
            # The decoder adds one image to the dense prompts of all queries. Of several images
            # each is added here, to its own query, and nothing there.
            image, dense = torch.zeros_like(features[:1]), dense + features[list(indexes)]
        return self.sam.mask_decoder(
            image_embeddings=image,
            image_pe=self._positions,
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=multimask,
        )

    @cached_property
    def _positions(self) -> torch.Tensor:
        # Made once: in inference mode it could take no part in a training step later.
        with torch.inference_mode(False), torch.no_grad():
            return self.sam.prompt_encoder.get_dense_pe()

    def _encoded(self, query: Query) -> tuple[torch.Tensor, torch.Tensor]:
        points = None
        if query.points is not None:
            labels = torch.as_tensor(query.labels, dtype=torch.int, device=self.device)
            points = self._tensor(query.points)[None], labels[None]
        # In mixed precision a box would lie where half of the digits put it.
        with torch.autocast(self.device.type, enabled=False):
            return self.sam.prompt_encoder(
                points=points,
                boxes=None if query.box is None else self._tensor(query.box)[None],
                masks=None if query.mask is None else query.mask[None],
            )

    def query(self, embedding: SamEmbedding, prompt: Prompt) -> Query:
        """Bring a prompt in original pixels into the model's frame.

        Raises:
            PromptError: The prompt does not fit the model.
        """
        box = None
        if prompt.box is not None:
            box = self.scale(prompt.box.reshape(2, 2), embedding).ravel()
        return Query(
            points=None if prompt.points is None else self.scale(prompt.points, embedding),
            labels=prompt.labels,
            box=box,
            mask=self._mask(embedding, prompt),
        )

    def scale(self, coordinates: np.ndarray, embedding: SamEmbedding) -> np.ndarray:
        """Bring (N, 2) coordinates from original pixels to the model's frame.

        The prompt encoder adds half a pixel to the result.
        """
        return scale_coordinates(coordinates, embedding.image_hw, embedding.input_size)

    def _mask(self, embedding: SamEmbedding, prompt: Prompt) -> torch.Tensor | None:
        size = self.sam.prompt_encoder.mask_input_size
        if prompt.mask_logits is not None:
            logits = np.asarray(prompt.mask_logits, dtype=np.float32)
            if logits.shape not in (size, (1, *size)) or not np.isfinite(logits).all():
                raise PromptError(
                    f"mask_logits have shape {logits.shape}; this model takes finite logits of "
                    f"shape {size}. Give `mask` in original pixels to have them made."
                )
            return torch.from_numpy(logits).to(self.device).reshape(1, *size)
        if prompt.mask is None:
            return None
        frame = self.sam.image_encoder.img_size
        logits = mask_prompt_logits(prompt.mask, embedding.input_size, frame, size[0])
        return logits[0].to(self.device)

    def _tensor(self, values: np.ndarray) -> torch.Tensor:
        return torch.as_tensor(values, dtype=torch.float32, device=self.device)
