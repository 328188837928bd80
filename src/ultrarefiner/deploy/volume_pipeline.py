"""What a method says of each slice of a volume: by itself, or by following lesions through it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from ultrarefiner.deploy.pipeline import Answer, Predictor, as_written, mean_map, prompt_file
from ultrarefiner.deploy.predicted import Predicted, mean_agreement
from ultrarefiner.deploy.volume_inputs import Slices
from ultrarefiner.prompts.base import Prompt
from ultrarefiner.prompts.entries import prompt_record
from ultrarefiner.prompts.records import PromptFile, PromptRecord
from ultrarefiner.refine.linked import label_slice, link_lesions
from ultrarefiner.training.segmented import mask_of


def predicted_slices(
    predictor: Predictor, name: str, slices: Slices, batch_size: int
) -> Iterator[tuple[int, Predicted]]:
    """Yield what a method says of each slice of a volume, the first slice first.

    Args:
        predictor: The method.
        name: What the volume is called.
        slices: The volume.
        batch_size: Slices that the coarse models see together.

    Raises:
        UltraRefinerError: A prompt made from a coarse mask cannot be used.
    """
    if predictor.bundle.propagates:
        yield from _followed(predictor, name, slices, batch_size)
        return
    for batch, images in _batches(slices, batch_size):
        names = [_name(name, index) for index in batch]
        yield from zip(batch, predictor.predict_batch(images, names), strict=True)


def _batches(slices: Slices, size: int) -> Iterator[tuple[range, list[np.ndarray]]]:
    depth = slices.shape[0]
    for first in range(0, depth, size):
        batch = range(first, min(first + size, depth))
        yield batch, [slices.image(index) for index in batch]


def _name(name: str, index: int) -> str:
    return f"{name}_slice_{index:03d}"


def _followed(
    predictor: Predictor, name: str, slices: Slices, batch_size: int
) -> Iterator[tuple[int, Predicted]]:
    bundle, refiners = predictor.bundle, predictor.refiners
    coarse = np.zeros(slices.shape, bool)
    # Of each refiner what it prompts from, as the study reads it; then what it made of that.
    levels = np.zeros((len(refiners), *slices.shape), np.uint8)
    records: list[dict[str, PromptRecord]] = [{} for _ in refiners]
    agreements: list[float | None] = []
    for batch, images in _batches(slices, batch_size):
        for index, said in zip(batch, predictor.segment(images), strict=True):
            maps = [one.probability for one in said]
            members = [mask_of(one, predictor.threshold) for one in maps]
            joint = mean_map(maps)
            coarse[index] = mask_of(joint, predictor.threshold)
            agreements.append(mean_agreement(members, coarse[index]))
            if not bundle.refines_each:
                maps, members = [joint], [coarse[index]]
            for number, (soft, mask) in enumerate(zip(maps, members, strict=True)):
                levels[number, index] = np.rint(as_written(soft) * 255)
                case = _name(name, index)
                records[number][case] = prompt_record(bundle.refiner.prompt, case, mask)
    scores = []
    for number, refiner in enumerate(refiners):
        file = prompt_file(bundle.refiner, records[number])
        mask, known = _follow(refiner, name, slices, file, levels[number])
        levels[number] = mask
        scores.append(known)
    for index in range(slices.shape[0]):
        masks = levels[:, index] > 0
        mask = 2 * masks.sum(axis=0) >= len(masks)
        agreement = mean_agreement(masks, mask) if bundle.refines_each else agreements[index]
        answer = Answer(
            mask=mask,
            probability=mean_map(masks.astype(np.float32)),
            scores=[known.get(index) for known in scores],
            agreement=agreement,
            coarse=coarse[index],
            before=coarse[index].astype(np.float32),
        )
        yield index, predictor.finish(answer)


def _follow(
    refiner: Any, name: str, slices: Slices, file: PromptFile, levels: np.ndarray
) -> tuple[np.ndarray, dict[int, float]]:
    """Return the mask that a refiner finds, bool (D, H, W), and the best score of each slice."""
    # SAM 2's library, which only these methods need.
    from ultrarefiner.refine.propagation import Slices as Followed
    from ultrarefiner.refine.propagation import propagate

    def soft(index: int) -> np.ndarray:
        return levels[index].astype(np.float32) / 255.0

    def prompts(index: int) -> list[Prompt]:
        made = file.prompts(_name(name, index), soft(index))
        return [made] if isinstance(made, Prompt) else made or []

    def embedding(index: int) -> Any:
        # Rounded as on the shelf, from where the study has them.
        return refiner.embed(slices.image(index)).rounded()

    volume = Followed(name, slices.shape[0], embedding, soft, prompts, file.kind)
    mask, scores = np.zeros(slices.shape, bool), {}
    for found in propagate(refiner, volume):
        index, refined = found.index, found.refinement
        mask[index] |= refined.mask
        scores[index] = max(refined.score, scores.get(index, refined.score))
    if refiner.options.largest_component:
        _keep_largest(mask)
    return mask, scores


def _keep_largest(mask: np.ndarray) -> None:
    """Leave the largest lesion of a volume, in place."""
    lesions = link_lesions(lambda index: mask[index], len(mask)).lesions(1)
    kept = set(lesions[0]) if lesions else set()
    for index in range(len(mask)):
        count, labels = label_slice(mask[index])
        mask[index] = np.isin(labels, [n for n in range(1, count + 1) if (index, n) in kept])
