"""One differentiable model: coarse mask, soft prompts of it, refined mask.

The gradient of the refined mask's loss flows through the prompts into the coarse model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from ultrarefiner.config import NEGATIVE_REACH, EndToEndConfig
from ultrarefiner.models.encoding import encode
from ultrarefiner.models.gates import build_gate, fuse
from ultrarefiner.prompts.roi import crop_roi, paste_roi, soft_roi
from ultrarefiner.prompts.soft import (
    mask_prompt_logits,
    negative_point,
    sharpen,
    soft_box,
    soft_point,
)
from ultrarefiner.refine.sam import SamRefiner
from ultrarefiner.refine.sam_prompts import LiveFeatures, Query
from ultrarefiner.training.changing import PartlyTrained
from ultrarefiner.training.data import as_input
from ultrarefiner.training.features import Features, Stage
from ultrarefiner.training.losses import list_outputs

_LEAST = 1e-7  # probabilities nearer to 0 and 1 have no logit of their own

Size = tuple[int, int]
"""Height and width in pixels."""


class _ScaledGradient(torch.autograd.Function):
    """The identity, whose gradient is scaled."""

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, scale: float) -> torch.Tensor:
        ctx.scale = scale
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradient * ctx.scale, None


def scale_gradient(values: torch.Tensor, scale: float) -> torch.Tensor:
    """Return the same values, through which ``scale`` times the gradient flows back."""
    return values if scale == 1.0 else _ScaledGradient.apply(values, scale)


class EndToEndSample:
    """One image as the model sees it.

    No dataclass: the engine would take it apart to move it between devices.

    Attributes:
        pixels: uint8 (h, w, 3) RGB, at the coarse model's size.
        size: Size of the refined mask to make.
        image_hw: Original size.
        stage: The image, as far as the frozen part of the SAM's encoder takes it; None in windows.
        image: uint8 (H, W, 3) RGB, original, from which windows are cut; None without windows.
        label: uint8 (H, W) of ``size``, the truth; None where it is not needed.
    """

    def __init__(
        self,
        pixels: torch.Tensor,
        size: Size,
        image_hw: Size,
        stage: Stage | None,
        image: torch.Tensor | None,
        label: torch.Tensor | None = None,
    ) -> None:
        self.pixels, self.size, self.image_hw = pixels, size, image_hw
        self.stage, self.image, self.label = stage, image, label

    def to(self, device: torch.device | str, non_blocking: bool = False) -> EndToEndSample:
        """Return the sample on a device."""

        def moved(values: torch.Tensor | None) -> torch.Tensor | None:
            return None if values is None else values.to(device, non_blocking=non_blocking)

        stage = None if self.stage is None else self.stage.to(device, non_blocking)
        return EndToEndSample(
            self.pixels.to(device, non_blocking=non_blocking),
            self.size,
            self.image_hw,
            stage,
            moved(self.image),
            moved(self.label),
        )


class EndToEndOutput(NamedTuple):
    """What the model gives for B images.

    Attributes:
        coarse_logits: float32 (B, K, h, w), at the coarse model's size.
        refined_logits: float32 (H, W) each, of the size that the sample asks for; logits also
            where a gate has mixed them with the coarse mask.
        predicted_iou: float32 (B,).
    """

    coarse_logits: torch.Tensor
    refined_logits: list[torch.Tensor]
    predicted_iou: torch.Tensor


@dataclass(frozen=True, eq=False)
class _Look:
    """What the refiner sees of an image, and the coarse mask there.

    Attributes:
        lesion: (1, h, w), probability, one value a pixel of what is seen in the model's frame.
        image_hw: Size of what is seen, in the pixels in which prompts are given.
        box: (1, 4), the window in pixels of the image's place in the frame; None: all of it.
        input_hw: The image's place in the frame.
    """

    lesion: torch.Tensor
    image_hw: Size
    box: torch.Tensor | None
    input_hw: Size


class EndToEnd(PartlyTrained):
    """A coarse model and a refiner as one.

    Args:
        coarse: The coarse model, of two classes.
        refiner: The refiner around its SAM.
        features: How images come to the SAM.
        config: Prompts, window, fusion and gradient scale.
    """

    def __init__(
        self, coarse: nn.Module, refiner: SamRefiner, features: Features, config: EndToEndConfig
    ) -> None:
        super().__init__()
        self.coarse, self.sam = coarse, refiner.sam
        self.gate: nn.Module | None = None
        if config.fusion is not None:
            fusion = config.fusion
            self.gate = build_gate(fusion.gate, fusion.gamma, fusion.minimum, fusion.maximum)
        self._refiner, self._features, self.config = refiner, features, config

    @property
    def frame(self) -> int:
        """Side of the SAM's square frame in pixels."""
        return self.sam.image_encoder.img_size

    def forward(self, samples: Sequence[EndToEndSample]) -> EndToEndOutput:
        """Segment images and refine what was segmented."""
        pixels = torch.stack([one.pixels for one in samples])
        coarse_logits = list_outputs(self.coarse(as_input(pixels)))[0].float()
        # Everything that the refined mask is made of comes from here, and nothing else does.
        lesion = scale_gradient(
            coarse_logits[:, 1] - coarse_logits[:, 0], self.config.gradient_scale
        )
        with torch.autocast(lesion.device.type, enabled=False):
            looks = [self._look(z[None], one) for z, one in zip(lesion, samples, strict=True)]
            queries = [self._query(look) for look in looks]
        answers = self._answers(looks, samples, queries)
        refined, ious = [], []
        with torch.autocast(lesion.device.type, enabled=False):
            for z, look, sample, (logits, iou) in zip(lesion, looks, samples, answers, strict=True):
                refined.append(self._refined(z, look, sample.size, logits.float()))
                ious.append(iou.float())
        return EndToEndOutput(coarse_logits, refined, torch.stack(ious))

    def _look(self, z: torch.Tensor, sample: EndToEndSample) -> _Look:
        probability = z.sigmoid()
        if self.config.sharpen is not None:
            probability = sharpen(probability, self.config.sharpen)
        input_hw = _input_size(sample, self.frame)
        lesion = _resize(probability, input_hw)
        roi = self.config.roi
        if roi is None:
            return _Look(lesion, sample.image_hw, None, input_hw)
        box = soft_roi(lesion, roi.expand, roi.min_size)
        seen = crop_roi(lesion[:, None], box, self.frame)[:, 0]
        return _Look(seen, (self.frame, self.frame), box, input_hw)

    def _query(self, look: _Look) -> Query:
        """Return the prompt; differentiable, and scaled as the refiner scales prompts."""
        parts, lesion = self.config.prompts, look.lesion
        shape = lesion.shape[-2:]
        place = LiveFeatures(lesion, look.image_hw, (shape[0], shape[1]))
        moments = self.config.formula == "moments"
        box = None
        if {"box", "negative"} & set(parts):
            box = soft_box(lesion, "moments" if moments else "edges")
        points, labels = [], []
        if "point" in parts:
            points.append(soft_point(lesion, "moments" if moments else "deepest")[0])
            labels.append(1)
        if "negative" in parts:
            if moments:
                beside = negative_point(lesion, box, "moments")
            else:
                beside = negative_point(lesion, _grown(box, shape))
            points.append(beside[0])
            labels.append(0)
        mask = None
        if "mask" in parts:
            padded = functional.pad(lesion, (0, self.frame - shape[1], 0, self.frame - shape[0]))
            side = self.sam.prompt_encoder.mask_input_size[0]
            mask = mask_prompt_logits(padded, side, self.config.style)[0]
        return Query(
            points=self._placed(torch.stack(points), place, 0.5) if points else None,
            labels=np.array(labels) if points else None,
            box=self._placed(box.reshape(2, 2), place, 0.0).ravel() if "box" in parts else None,
            mask=mask,
        )

    def _placed(self, frame: torch.Tensor, place: LiveFeatures, half: float) -> torch.Tensor:
        """Bring (N, 2) coordinates from pixels of the frame to what the prompt encoder takes.

        By way of the image's own pixels, as every prompt goes: pixel indices (``half`` 0.5) name
        the middle of a pixel, box edges do not.
        """
        ratio = frame.new_tensor(
            [
                place.input_size[1] / place.image_hw[1],
                place.input_size[0] / place.image_hw[0],
            ]
        )
        image = (frame + half) / ratio - half
        # The refiner's own scaling is affine on each axis.
        ends = self._refiner.scale(np.array([[0.0, 0.0], [1.0, 1.0]]), place)
        start, gain = image.new_tensor(ends[0]), image.new_tensor(ends[1] - ends[0])
        return image * gain + start

    def _answers(
        self, looks: list[_Look], samples: Sequence[EndToEndSample], queries: list[Query]
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        refiner, features = self._refiner, self._embedded(looks, samples)
        shapes = [(look.lesion.shape[-2], look.lesion.shape[-1]) for look in looks]
        if refiner.passes_know_the_image:
            answers = [
                refiner.run_passes(LiveFeatures(one[None], look.image_hw, shape), [query])[0]
                for one, look, shape, query in zip(features, looks, shapes, queries, strict=True)
            ]
        else:
            live = LiveFeatures(features, looks[0].image_hw, shapes[0])
            answers = refiner.run_passes(live, queries)
        return [refiner.choose(*answer) for answer in answers]

    def _embedded(self, looks: Sequence[_Look], samples: Sequence[EndToEndSample]) -> torch.Tensor:
        if self.config.roi is None:
            return self._features.finish(torch.stack([one.stage.features for one in samples]))
        windows = []
        for look, sample in zip(looks, samples, strict=True):
            image = sample.image.permute(2, 0, 1)[None].float()
            # The window's place has its gradient by the prompts and the paste, not by the pixels.
            box = look.box.detach() * _ratio(sample.image_hw, look.input_hw, look.box)
            windows.append(crop_roi(image, box, self.frame))
        pixels = (torch.cat(windows) - self.sam.pixel_mean) / self.sam.pixel_std
        if any(one.requires_grad for one in self.sam.image_encoder.parameters()):
            return self.sam.image_encoder(pixels)
        with torch.no_grad():
            return encode(self.sam, pixels, self._refiner.options.precision)

    def _refined(
        self, z: torch.Tensor, look: _Look, size: Size, logits: torch.Tensor
    ) -> torch.Tensor:
        """Return the refined logits (H, W) of ``size`` from low-resolution ones (h, w)."""
        roi, coarse = self.config.roi, None
        if self.gate is not None or (roi is not None and roi.outside == "coarse"):
            # Enlarged as probabilities, as coarse masks are everywhere.
            coarse = torch.logit(_resize(z[None].sigmoid(), size), eps=_LEAST)
        if look.box is None:
            refined = self.sam.postprocess_masks(logits[None, None], look.input_hw, size)[0]
        else:
            box = look.box * _ratio(size, look.input_hw, look.box)
            outside = coarse if roi.outside == "coarse" else -20.0
            refined = paste_roi(logits[None], box, *size, outside=outside)
        if self.gate is not None:
            weight = self.gate(coarse.sigmoid(), refined.sigmoid())
            refined = fuse(coarse, refined, weight)
        return refined[0]


def _input_size(sample: EndToEndSample, frame: int) -> Size:
    """Return the image's place in the SAM's frame."""
    if sample.stage is not None:
        return sample.stage.input_size
    scale = frame / max(sample.image_hw)
    height, width = (max(1, round(length * scale)) for length in sample.image_hw)
    return height, width


def _resize(maps: torch.Tensor, size: Size) -> torch.Tensor:
    """Return (B, h, w) maps at another size."""
    return functional.interpolate(
        maps[:, None], size, mode="bilinear", align_corners=False, antialias=True
    )[:, 0]


def _grown(box: torch.Tensor, shape: Size) -> torch.Tensor:
    """Return a box (1, 4) grown as the one at whose corners negative points lie."""
    reach = NEGATIVE_REACH * (box[:, 2:] - box[:, :2])
    low = (box[:, :2] - reach).clamp(min=0)
    return torch.cat([low, torch.minimum(box[:, 2:] + reach, box.new_tensor(shape[::-1]))], 1)


def _ratio(to: Size, of: Size, like: torch.Tensor) -> torch.Tensor:
    """Return by what box edges (x0, y0, x1, y1) are multiplied between two sizes of an image."""
    across, down = to[1] / of[1], to[0] / of[0]
    return like.new_tensor([across, down, across, down])
