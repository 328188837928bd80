"""From a coarse mask to a training sample: prompted by the code that prompts at inference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch

from ultrarefiner.config import FinetuneConfig, WindowRecipe
from ultrarefiner.io import item_seed
from ultrarefiner.models.mask_prompts import low_resolution
from ultrarefiner.prompts import Prompt, prompt_from_mask
from ultrarefiner.prompts.crop import Window, window_of_mask
from ultrarefiner.prompts.geometry import Box, lesion_pixels
from ultrarefiner.prompts.noise import perturb_box, shift_box
from ultrarefiner.refine.crop import cut_window
from ultrarefiner.refine.sam import SamRefiner
from ultrarefiner.refine.sam_prompts import Query
from ultrarefiner.training.features import Features, Stage
from ultrarefiner.training.refiner_items import Example, Item


class Sample:
    """What one picture teaches, as tensors: a mask of it, or several (M).

    No dataclass: the engine would take it apart to move it between devices.

    Attributes:
        stage: The picture, as far as the frozen part of the encoder takes it.
        queries: The prompts in the model's frame, M.
        target: float32 (M, h, w) of 0 and 1, the truth on the grid of the loss, as far as the
            picture fills it.
        coarse: float32 (M, h, w) in [0, 1], the coarse masks there.
        following: Slices after the picture, which no prompt is about; ``queries`` is one prompt
            then, and M counts the slices.
    """

    def __init__(
        self,
        stage: Stage,
        queries: Sequence[Query],
        target: torch.Tensor,
        coarse: torch.Tensor,
        following: tuple[Stage, ...] = (),
    ) -> None:
        self.stage, self.queries, self.target, self.coarse = stage, queries, target, coarse
        self.following = following

    @property
    def stages(self) -> list[Stage]:
        """All pictures of the sample."""
        return [self.stage, *self.following]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Sample:
        """Return the sample on a device."""
        stage = self.stage.to(device, non_blocking=True)
        queries = [
            one if one.mask is None else replace(one, mask=one.mask.to(device))
            for one in self.queries
        ]
        following = tuple(one.to(device, non_blocking=True) for one in self.following)
        return Sample(stage, queries, self.target.to(device), self.coarse.to(device), following)


@dataclass(frozen=True, eq=False)
class View:
    """An example as the refiner sees it: cut to its window, perhaps flipped.

    Attributes:
        name: What the picture is called on the shelf; equal names have equal pixels.
        flipped: Whether left and right are exchanged.
        window: The part of the image; None for all of it.
        item: The item.
        read: Reads the item; called once at most.
    """

    name: str
    flipped: bool
    window: Window | None
    item: Item
    read: Callable[[], Example]

    @cached_property
    def example(self) -> Example:
        """The item, cut and flipped."""
        whole = self.read()
        image, label, coarse, box = whole.image, whole.label, whole.coarse, whole.box
        if self.window is not None:
            image, label, coarse = (
                cut_window(array, self.window) for array in (image, label, coarse)
            )
        if self.flipped:
            image, label, coarse = (
                np.ascontiguousarray(array[:, ::-1]) for array in (image, label, coarse)
            )
            if box is not None:
                width = label.shape[1]
                box = (width - box[2], box[1], width - box[0], box[3])
        return Example(image, label, coarse, box)

    def pixels(self) -> np.ndarray:
        """Return what the refiner sees, uint8 (h, w, 3) RGB."""
        return self.example.image


def view_of(config: FinetuneConfig, item: Item, read: Callable[[], Example], flipped: bool) -> View:
    """Return how an item is seen.

    Args:
        config: The finetuning; ``crop`` decides about windows.
        item: The item.
        read: Reads it.
        flipped: Whether to exchange left and right.
    """
    if config.crop is None or item.origin == "crop":
        return View(item.picture, flipped, None, item, read)
    example = read()
    window = window_of_mask(lesion_pixels(example.coarse), WindowRecipe(crop=config.crop))
    name = item.picture if window is None else f"{item.picture} {window}"
    return View(name, flipped, window, item, lambda: example)


def example_prompt(
    config: FinetuneConfig, example: Example, kind: str, rng: np.random.Generator | None
) -> Prompt:
    """Return the prompt of an example, by the code that makes prompts at inference.

    Args:
        config: The finetuning; ``box_noise`` or ``box_shift`` moves boxes.
        example: The example; its coarse mask has a lesion.
        kind: Kind of prompt.
        rng: Source of the noise; None: no noise, as in validation.

    Raises:
        PromptError: The coarse mask is empty.
    """
    prompt = prompt_from_mask(example.coarse, kind)
    assert isinstance(prompt, Prompt), kind
    if prompt.box is None:
        return prompt
    box: Box = prompt.box if example.box is None else example.box
    if config.box_noise is not None and rng is not None:
        box = perturb_box(box, config.box_noise, rng, example.label.shape)
    if config.box_shift is not None and rng is not None:
        box = shift_box(box, config.box_shift, rng, example.label.shape)
    return replace(prompt, box=box)


def make_sample(
    config: FinetuneConfig,
    refiner: SamRefiner,
    features: Features,
    views: Sequence[View],
    epoch: int,
) -> Sample:
    """Return the training sample of views of one picture, the same for the same arguments."""
    first = views[0]
    stage = features.of(first.name, first.flipped, first.pixels)
    queries, targets, coarses = [], [], []
    for view in views:
        item, example = view.item, view.example
        rng = np.random.default_rng(item_seed(config.seed, "prompt", epoch, item.case, item.copy))
        kind = config.kinds[int(rng.integers(len(config.kinds)))]
        queries.append(refiner.query(stage, example_prompt(config, example, kind, rng)))
        targets.append((on_grid(refiner, stage, example.label) >= 0.5).float())
        coarses.append(on_grid(refiner, stage, example.coarse))
    return Sample(stage, queries, torch.stack(targets), torch.stack(coarses))


def on_grid(refiner: SamRefiner, stage: Stage, mask: np.ndarray) -> torch.Tensor:
    """Return a mask on the grid of the loss, float32 (h, w), without padding."""
    side = refiner.loss_side
    frame = refiner.sam.image_encoder.img_size
    grid = low_resolution(mask, stage.input_size, frame, side)[0, 0]
    return grid[used(stage.input_size, frame, side)]


def used(input_hw: tuple[int, int], frame: int, side: int) -> tuple[slice, slice]:
    """Return the part of a grid over the frame that a picture fills."""
    block = frame // side
    return tuple(slice(0, -(-length // block)) for length in input_hw)
