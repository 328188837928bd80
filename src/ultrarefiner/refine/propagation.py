"""From the prompts of a few slices to masks of a whole volume, slice by slice, in little memory.

Every lesion of the mask volume that prompts are made from, which is a coarse model's, is looked up
on its own key slice and followed from there to both ends.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy import ndimage

from ultrarefiner.errors import PromptError
from ultrarefiner.models.medsam2_tracking import Tracked, Tracker
from ultrarefiner.prompts.base import Prompt
from ultrarefiner.prompts.fit import require_fit
from ultrarefiner.prompts.geometry import PROMPTS, lesion_pixels, prompt_from_mask
from ultrarefiner.refine.base import Refinement
from ultrarefiner.refine.embeddings import SamEmbedding
from ultrarefiner.refine.linked import LinkedLesions, Node, link_lesions
from ultrarefiner.refine.medsam2 import MedSam2Refiner

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Slices:
    """A volume as it is followed through: everything is read slice by slice, and forgotten.

    Attributes:
        name: What to call the volume in a message.
        count: Number of slices.
        embedding: The embedding of a slice.
        mask: The mask of a slice that prompts are made from, (H, W) bool or probability.
        prompts: The prompts of a slice, none where its mask is empty.
        kind: Kind of those prompts.
    """

    name: str
    count: int
    embedding: Callable[[int], SamEmbedding]
    mask: Callable[[int], np.ndarray]
    prompts: Callable[[int], list[Prompt]]
    kind: str


@dataclass(frozen=True, eq=False)
class Found:
    """What was found on a slice on one of the ways through the volume.

    Attributes:
        index: The slice.
        refinement: Mask and logits of all objects that are followed on that way.
        prompts: How many prompts were decoded here; 0 on slices that no prompt was about.
    """

    index: int
    refinement: Refinement
    prompts: int


def propagate(refiner: MedSam2Refiner, slices: Slices) -> Iterator[Found]:
    """Follow every lesion through a volume; masks of one slice are to be OR-ed.

    With ``propagate: memory`` the model's memory carries each object on; ``masks``: the prompt of a
    slice is made from the mask found on the slice before, as long as there is one.

    Args:
        refiner: The refiner.
        slices: The volume.

    Raises:
        PromptError: A prompt does not fit its slice, or the refiner.
    """
    options = refiner.options
    keys = key_slices(slices, options.key, options.objects)
    logger.info("%s: key slices %s of %d", slices.name, keys or "none", slices.count)
    follow = _by_memory if options.propagate == "memory" else _by_masks
    for key in keys:
        held = _holding(slices, key)
        yield from follow(refiner, held, key, range(key, slices.count))
        if key > 0:
            # The key slice itself has been there; it is taken up again for the way back.
            back = follow(refiner, held, key, range(key, -1, -1))
            next(back)
            yield from back


def _holding(slices: Slices, key: int) -> Slices:
    """Return a volume whose key slice, from which two ways go, is embedded once."""
    embedding = slices.embedding(key)
    return replace(
        slices, embedding=lambda index: embedding if index == key else slices.embedding(index)
    )


def key_slices(slices: Slices, choice: str, most: int) -> list[int]:
    """Return the slices on which lesions are looked up, in rising order.

    Lesions are components of the mask volume; small ones beside larger ones are left out, see
    ``LinkedLesions.lesions``. Lesions that share a key slice are looked up together.

    Args:
        slices: The volume.
        choice: ``largest``: where the lesion has most pixels; ``confident``: where the mean
            probability of its pixels is highest, among slices with at least half as many as the
            largest; ``middle``: the middle one of its slices. The first of equals.
        most: Lesions at most.

    Returns:
        Without any lesion the middle slice, if that has prompts all the same
        (``on_empty: full_image``); else nothing.
    """
    linked = link_lesions(slices.mask, slices.count)
    lesions = linked.lesions(most)
    if not lesions:
        middle = slices.count // 2
        return [middle] if slices.prompts(middle) else []
    return sorted({_key(linked, lesion, choice) for lesion in lesions})


def _key(linked: LinkedLesions, lesion: list[Node], choice: str) -> int:
    areas, means = linked.areas(lesion), linked.means(lesion)
    where = sorted(areas)
    if choice == "middle":
        return where[len(where) // 2]
    largest = max(areas.values())
    if choice == "confident":
        where = [index for index in where if 2 * areas[index] >= largest]
        return max(where, key=lambda index: (round(means[index], 6), areas[index], -index))
    return max(where, key=lambda index: (areas[index], -index))


@torch.inference_mode()
def _by_memory(refiner: MedSam2Refiner, slices: Slices, key: int, way: range) -> Iterator[Found]:
    tracker = None
    for index in way:
        embedding = slices.embedding(index)
        features = torch.from_numpy(embedding.features)[None].to(refiner.device)
        if tracker is None:
            prompts = _require_prompts(slices, key, embedding)
            tracker = Tracker(refiner.sam, slices.count, reverse=way.step < 0)
            yield _found(
                refiner,
                embedding,
                _look_up(refiner, tracker, index, embedding, features, prompts),
                len(prompts),
            )
            objects = len(prompts)
            continue
        found = _found(refiner, embedding, tracker.step(index, features), 0)
        if refiner.options.reprompt is not None and _strays(refiner, slices, found):
            prompts = _require_prompts(slices, index, embedding)
            if len(prompts) != objects:
                # Other objects than those that are remembered: they begin anew.
                tracker = Tracker(refiner.sam, slices.count, reverse=way.step < 0)
                objects = len(prompts)
            tracked = _look_up(refiner, tracker, index, embedding, features, prompts)
            found = _found(refiner, embedding, tracked, len(prompts))
        yield found


def _look_up(
    refiner: MedSam2Refiner,
    tracker: Tracker,
    index: int,
    embedding: SamEmbedding,
    features: torch.Tensor,
    prompts: list[Prompt],
) -> Tracked:
    tokens = [refiner.tracked_prompt(refiner.query(embedding, one)) for one in prompts]
    return tracker.prompt(index, features, tokens)


def _strays(refiner: MedSam2Refiner, slices: Slices, found: Found) -> bool:
    """Tell whether what was followed and the mask that prompts are made from part company."""
    coarse = lesion_pixels(slices.mask(found.index))
    if not coarse.any():
        return False
    mask = found.refinement.mask
    dice = 2 * np.count_nonzero(mask & coarse) / (np.count_nonzero(mask) + np.count_nonzero(coarse))
    return dice < refiner.options.reprompt


def _by_masks(refiner: MedSam2Refiner, slices: Slices, key: int, way: range) -> Iterator[Found]:
    prompts: list[Prompt] = []
    for index in way:
        embedding = slices.embedding(index)
        if index == key:
            prompts = _require_prompts(slices, key, embedding)
        refinement = refiner.refine(embedding, prompts)
        yield Found(index, refinement, len(prompts))
        if not refinement.mask.any():
            return
        made = prompt_from_mask(
            refinement.mask, slices.kind, components="mask" not in PROMPTS[slices.kind].parts
        )
        prompts = made if isinstance(made, list) else [made]


def _require_prompts(slices: Slices, index: int, embedding: SamEmbedding) -> list[Prompt]:
    prompts = slices.prompts(index)
    if not prompts:
        raise PromptError(
            f"{slices.name}: slice {index} has a lesion and no prompt; run make_prompts again"
        )
    for one in prompts:
        require_fit(one, embedding.image_hw)
    return prompts


def _found(
    refiner: MedSam2Refiner, embedding: SamEmbedding, tracked: Tracked, prompts: int
) -> Found:
    masks = refiner.full_masks(embedding, tracked.logits)
    mask = masks.any(dim=0).cpu().numpy()
    if refiner.options.fill_holes:
        mask = ndimage.binary_fill_holes(mask)
    low_res = tracked.logits.amax(dim=0).cpu().numpy()
    return Found(tracked.index, Refinement(mask, low_res, float(tracked.ious.mean())), prompts)
