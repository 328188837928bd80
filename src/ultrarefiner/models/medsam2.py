"""MedSAM2 and other SAM 2.1 models from files, and whole volumes segmented with them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ultrarefiner.errors import PromptError, WeightsError
from ultrarefiner.models.mask_prompts import mask_prompt_logits
from ultrarefiner.models.medsam2_model import TINY, MedSam2, Sam2Architecture
from ultrarefiner.models.medsam2_names import State, to_ours, to_theirs
from ultrarefiner.models.medsam2_tracking import Tracked, TrackedPrompt, Tracker
from ultrarefiner.models.sam import scale_coordinates
from ultrarefiner.models.state_dict import Layout, misfits, read_state_dict, refuse_foreign
from ultrarefiner.prompts.base import Prompt
from ultrarefiner.prompts.fit import require_fit
from ultrarefiner.runtime import choose_device

IMAGE_SIZE = 512
"""Side of MedSAM2's frame in pixels; SAM 2.1's own is 1024. No checkpoint tells."""

_LAYOUT = Layout(
    what="a SAM 2.1 model such as MedSAM2",
    cure="Use MedSAM2_latest.pt, or a checkpoint of SAM 2.1",
    family="medsam2",
    to_sam=to_ours,
    from_sam=to_theirs,
)

# What the tensors do not tell: sizes of the published encoders by stages.
_KNOWN = {
    one.stages: one
    for one in (
        Sam2Architecture(),
        Sam2Architecture(stages=(1, 2, 11, 2), global_blocks=(7, 10, 13)),
        Sam2Architecture(
            stages=(2, 3, 16, 3),
            embed_dim=112,
            heads=2,
            global_blocks=(12, 16, 20),
            background=(14, 14),
        ),
        Sam2Architecture(
            stages=(2, 6, 36, 4),
            embed_dim=144,
            heads=2,
            global_blocks=(23, 33, 43),
            windows=(8, 4, 16, 8),
        ),
        TINY,
    )
}
_BLOCK = re.compile(r"image_encoder\.trunk\.blocks\.(\d+)\.norm2\.weight")
_OLDER = "no_obj_embed_spatial"


def load_medsam2(
    path: str | Path, image_size: int | None = None, device: str = "cpu"
) -> VolumeSegmenter:
    """Load MedSAM2, or another SAM 2.1, to segment volumes with.

    Args:
        path: ``MedSAM2_latest.pt`` or another checkpoint: a state dict under its authors' names, by
            itself or under "model"; or a file that this project finetuned.
        image_size: Side of the frame in pixels, a multiple of 32; None: 512, MedSAM2's.
        device: "cpu", "cuda", "mps" or "auto".

    Raises:
        WeightsError: The file is absent, damaged or another model's; the message says which.
        ConfigError: The device is not on this machine.
    """
    return VolumeSegmenter(load_sam2(path, image_size).to(choose_device(device)))


def load_sam2(path: str | Path, image_size: int | None = None) -> MedSam2:
    """Load the model itself, float32, in eval mode, on the CPU; see ``load_medsam2``."""
    path = Path(path)
    state = read_state_dict(path)
    if not _is_sam2(state):
        refuse_foreign(path, state, _LAYOUT)
        raise WeightsError(
            f"{path} is not {_LAYOUT.what}: it has none of its names. {_LAYOUT.cure}."
        )
    architecture = _read_off(path, state, image_size or IMAGE_SIZE)
    # A model without memory is no small thing to fill: the tables of the rotary positions are in
    # no file, so it is built whole.
    model = MedSam2(architecture)
    wrong = misfits(to_ours(state), model.state_dict())
    if wrong:
        raise WeightsError(
            f"{path} is a SAM 2 model, but not one that loads here: {'; '.join(wrong)}. "
            f"{_LAYOUT.cure}."
        )
    model.load_state_dict({key: value.float() for key, value in to_ours(state).items()})
    return model.eval()


def _is_sam2(state: State) -> bool:
    return any(_BLOCK.match(name) for name in state)


def holds_sam2(path: str | Path) -> bool:
    """Tell whether a readable weights file holds a SAM 2.

    Raises:
        WeightsError: The file is absent or damaged.
    """
    return _is_sam2(read_state_dict(Path(path)))


def _read_off(path: Path, state: State, image_size: int) -> Sam2Architecture:
    """Read the sizes off the tensors.

    Raises:
        WeightsError: There is no encoder of such stages, or the model is of SAM 2.0.
    """
    if image_size % 32 or not 64 <= image_size <= 2048:
        raise WeightsError(f"image_size {image_size} is no multiple of 32 from 64 to 2048")
    widths = {int(m[1]): len(state[name]) for name in state if (m := _BLOCK.match(name))}
    order = [widths[block] for block in sorted(widths)]
    stages = tuple(order.count(width) for width in dict.fromkeys(order))
    known = _KNOWN.get(stages)
    if known is None:
        raise WeightsError(
            f"{path}: an encoder of stages {stages} is none of SAM 2.1's "
            f"({', '.join(map(str, _KNOWN))}). {_LAYOUT.cure}."
        )
    if _OLDER not in state:
        raise WeightsError(
            f"{path} has no {_OLDER}: it is a SAM 2.0, or not whole; only SAM 2.1 loads. "
            f"{_LAYOUT.cure}."
        )
    return replace(known, image_size=image_size)


@dataclass(frozen=True)
class VolumeSegmenter:
    """A SAM 2 that segments volumes.

    Attributes:
        model: The model.
    """

    model: MedSam2

    def segment_volume(
        self,
        volume: np.ndarray,
        prompts: Mapping[int, Prompt | Sequence[Prompt]],
        propagate: bool = True,
        mask_as_result: bool = False,
    ) -> np.ndarray:
        """Segment a volume from prompts on one slice or several.

        With ``propagate`` the objects of each prompted slice are followed by the memory from there
        to the last slice, and from there to the first; results are OR-ed. Without it each prompted
        slice is segmented by itself, and all others are empty.

        Args:
            volume: (D, H, W) gray or (D, H, W, 3) RGB, slices along the first axis; uint8, or
                floats in [0, 1], which become 0 to 255.
            prompts: By slice, one prompt for each object, in pixels of the slice.
            propagate: Whether to follow objects through the volume.
            mask_as_result: A mask prompt without points and box is the result on its slice, as SAM 2
                and MedSAM2's own scripts take it. Never to be scored there.

        Returns:
            bool (D, H, W).

        Raises:
            PromptError: There is no prompt, or one that does not fit its slice.
        """
        masks = np.zeros(volume.shape[:3], dtype=bool)
        for _, index, logits in self.logits(volume, prompts, propagate, mask_as_result):
            masks[index] |= (logits > 0).any(axis=0)
        return masks

    @torch.inference_mode()
    def logits(
        self,
        volume: np.ndarray,
        prompts: Mapping[int, Prompt | Sequence[Prompt]],
        propagate: bool = True,
        mask_as_result: bool = False,
    ) -> Iterator[tuple[tuple[int, bool], int, np.ndarray]]:
        """Yield what ``segment_volume`` makes masks of, in the order in which slices are visited.

        Yields:
            (prompted slice, whether in falling order), the slice, and float32 (N, H, W) logits of the
            objects of that prompted slice.
        """
        for pass_, tracked in self.track(volume, prompts, propagate, mask_as_result):
            full = self.model.postprocess_masks(
                tracked.logits[:, None], (0, 0), tuple(volume.shape[1:3])
            )
            yield pass_, tracked.index, full[:, 0].cpu().numpy()

    @torch.inference_mode()
    def track(
        self,
        volume: np.ndarray,
        prompts: Mapping[int, Prompt | Sequence[Prompt]],
        propagate: bool = True,
        mask_as_result: bool = False,
    ) -> Iterator[tuple[tuple[int, bool], Tracked]]:
        """Yield the objects on each visited slice; see ``logits``."""
        _require_volume(volume, prompts)
        depth, image_hw = len(volume), tuple(volume.shape[1:3])
        for start, given in prompts.items():
            several = [given] if isinstance(given, Prompt) else list(given)
            for one in several:
                require_fit(one, image_hw)
            key = self.encode(volume[start])
            queries = [self.embed(one, image_hw, mask_as_result) for one in several]
            ways = (
                [range(start, depth), range(start, -1, -1)]
                if propagate
                else [range(start, start + 1)]
            )
            for reverse, way in enumerate(ways):
                if reverse and start == 0:
                    continue
                tracker = Tracker(self.model, depth, bool(reverse))
                for index in way:
                    if index == start:
                        tracked = tracker.prompt(index, key, queries)
                    else:
                        tracked = tracker.step(index, self.encode(volume[index]))
                    yield (start, bool(reverse)), tracked

    def encode(self, pixels: np.ndarray) -> torch.Tensor:
        """Encode a slice, (H, W) or (H, W, 3) of uint8 or floats in [0, 1], to packed maps."""
        if pixels.dtype.kind == "f":
            pixels = np.rint(pixels * 255.0).astype(np.uint8)
        image = np.repeat(pixels[..., None], 3, axis=2) if pixels.ndim == 2 else pixels
        return self.model.image_encoder(self.model.input_tensor(image, "bicubic")).float()

    def embed(
        self, prompt: Prompt, image_hw: tuple[int, int], mask_as_result: bool = False
    ) -> TrackedPrompt:
        """Bring a prompt in pixels of a slice to the model's frame, and embed it.

        Args:
            prompt: The prompt.
            image_hw: (height, width) of the slice.
            mask_as_result: See ``segment_volume``.

        Raises:
            PromptError: Its logits are not of the model's size.
        """
        model, side = self.model, self.model.architecture.image_size
        frame_hw = side, side

        def placed(coordinates: np.ndarray) -> torch.Tensor:
            scaled = scale_coordinates(coordinates, image_hw, frame_hw)
            return torch.as_tensor(scaled, dtype=torch.float32, device=model.device)

        grid = 4 * model.architecture.grid
        points = None if prompt.points is None else placed(prompt.points)
        box = None if prompt.box is None else placed(prompt.box.reshape(2, 2)).ravel()
        mask = None
        if prompt.mask_logits is not None:
            if np.size(prompt.mask_logits) != grid * grid:
                raise PromptError(
                    f"mask_logits have shape {np.shape(prompt.mask_logits)}; this model takes "
                    f"logits of shape {(grid, grid)}. Give `mask` in the slice's own pixels to have them made."
                )
            mask = torch.as_tensor(prompt.mask_logits, dtype=torch.float32).reshape(1, grid, grid)
        elif prompt.mask is not None:
            mask = mask_prompt_logits(prompt.mask, frame_hw, frame_hw[0], grid)[0]
        sparse, dense = model.prompt_tokens(
            points,
            None if prompt.labels is None else torch.as_tensor(np.asarray(prompt.labels)),
            box,
            None if mask is None else mask.to(model.device),
        )
        result = None
        if mask_as_result and prompt.mask is not None and points is None and box is None:
            result = torch.as_tensor(np.asarray(prompt.mask), dtype=torch.float32)[None, None]
            result = nn.functional.interpolate(
                result.to(model.device),
                frame_hw,
                mode="bilinear",
                align_corners=False,
                antialias=True,
            )
            result = (result >= 0.5).float()
        count = (0 if points is None else len(points)) + (0 if box is None else 2)
        return TrackedPrompt(sparse, dense, count, result)


def _require_volume(volume: np.ndarray, prompts: Mapping[int, Prompt | Sequence[Prompt]]) -> None:
    gray = volume.ndim == 3 or (volume.ndim == 4 and volume.shape[3] == 3)
    shares = volume.dtype.kind == "f" and volume.size and volume.min() >= 0 and volume.max() <= 1
    if not gray or not (volume.dtype == np.uint8 or shares):
        raise PromptError(
            f"a volume must be (D, H, W) or (D, H, W, 3) of uint8 or of floats in [0, 1], got "
            f"{volume.dtype} {volume.shape}; bring its gray levels there, slices along the first "
            "axis"
        )
    if not prompts or any(not isinstance(one, Prompt) and not one for one in prompts.values()):
        raise PromptError("a volume cannot be segmented without prompts, and a slice has none")
    outside = [index for index in prompts if not 0 <= index < len(volume)]
    if outside:
        raise PromptError(f"slices {outside} are prompted, and the volume has {len(volume)}")
