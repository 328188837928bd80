"""The masks of a part whose refiner follows lesions through whole volumes."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ultrarefiner.errors import UltraRefinerError, first_names
from ultrarefiner.images import read_mask, read_probability, write_mask
from ultrarefiner.io import read_rows
from ultrarefiner.prompts.base import Prompt
from ultrarefiner.prompts.records import PromptFile
from ultrarefiner.refine.embeddings import SamEmbedding
from ultrarefiner.refine.linked import label_slice, link_lesions
from ultrarefiner.refine.medsam2 import MedSam2Refiner
from ultrarefiner.refine.propagation import Found, Slices, propagate
from ultrarefiner.refine.seeing import progress

logger = logging.getLogger(__name__)


def read_volume_cases(slices: str | Path, cases: Sequence[str]) -> dict[str, list[str]]:
    """Return the cases of each volume of a part, the first slice first.

    Args:
        slices: Table that ``list_volumes`` wrote: case, volume, index.
        cases: Cases of the part.

    Raises:
        UltraRefinerError: A case is no slice of any volume, or a volume has slices that are not
            among the cases.
    """
    volumes: dict[str, list[str]] = {}
    for row in sorted(read_rows(slices), key=lambda row: (row["volume"], int(row["index"]))):
        volumes.setdefault(row["volume"], []).append(row["case"])
    wanted = set(cases)
    mine = {name: found for name, found in volumes.items() if wanted & set(found)}
    listed = {case for found in mine.values() for case in found}
    if strange := sorted(wanted - listed):
        raise UltraRefinerError(
            f"{slices} does not say of which volume {first_names(strange)} are slices. Run "
            "list_volumes again."
        )
    if absent := sorted(listed - wanted):
        raise UltraRefinerError(
            f"{first_names(absent)} are slices of volumes of which this part has others: a volume "
            "is followed as a whole. Delete splits.csv and run again."
        )
    return mine


def follow_volumes(
    refiner: MedSam2Refiner,
    file: PromptFile,
    slices: str | Path,
    soft_masks: str | Path,
    embed: Callable[[str], SamEmbedding],
    folder: Path,
) -> Iterator[dict[str, Any]]:
    """Write the masks of a part, volume by volume, and yield the row of each case.

    Args:
        refiner: The refiner.
        file: The prompts.
        slices: Table that ``list_volumes`` wrote.
        soft_masks: Folder of the probabilities or masks ``{case}.png`` that prompts are made from.
        embed: Gives the embedding of a case.
        folder: Folder to write ``{case}.png`` to.

    Raises:
        PromptError: A prompt does not fit its slice.
        UltraRefinerError: The table and the part do not fit.
    """
    volumes = read_volume_cases(slices, sorted(file.cases))
    for name, cases in progress(volumes.items(), len(volumes), "follow", "volume"):
        seen = _Seen()
        for found in propagate(refiner, _slices(name, cases, file, Path(soft_masks), embed)):
            seen.add(found)
            _write_union(folder / f"{cases[found.index]}.png", found.refinement.mask)
        for index, case in enumerate(cases):
            if index not in seen.scores:
                write_mask(
                    folder / f"{case}.png", np.zeros(file.cases[case].image_size, dtype=bool)
                )
        if refiner.options.largest_component:
            keep_largest([folder / f"{case}.png" for case in cases])
        for index, case in enumerate(cases):
            score = seen.scores.get(index, math.nan)
            yield {
                "case": case,
                "score": "" if math.isnan(score) else score,
                "agreement": "",
                "prompts": seen.prompts.get(index, 0),
                "window": "",
            }


class _Seen:
    """Best score and number of prompts of each slice that was visited."""

    def __init__(self) -> None:
        self.scores: dict[int, float] = {}
        self.prompts: dict[int, int] = {}

    def add(self, found: Found) -> None:
        index, score = found.index, found.refinement.score
        self.scores[index] = max(score, self.scores.get(index, -math.inf))
        self.prompts[index] = found.prompts + self.prompts.get(index, 0)


def _slices(
    name: str,
    cases: Sequence[str],
    file: PromptFile,
    soft_masks: Path,
    embed: Callable[[str], SamEmbedding],
) -> Slices:
    def mask(index: int) -> np.ndarray:
        return read_probability(soft_masks / f"{cases[index]}.png")

    def prompts(index: int) -> list[Prompt]:
        case = cases[index]
        needed = file.cases[case].mask is not None
        made = file.prompts(case, mask(index) if needed else None)
        return [made] if isinstance(made, Prompt) else made or []

    return Slices(name, len(cases), lambda index: embed(cases[index]), mask, prompts, file.kind)


def _write_union(path: Path, mask: np.ndarray) -> None:
    write_mask(path, mask | read_mask(path) if path.is_file() else mask)


def keep_largest(paths: Sequence[Path]) -> None:
    """Leave the largest lesion of a volume's masks, and nothing beside it, in place.

    Args:
        paths: Files of the slices, in order.
    """
    lesions = link_lesions(lambda index: read_mask(paths[index]), len(paths)).lesions(1)
    kept = set(lesions[0]) if lesions else set()
    for index, path in enumerate(paths):
        count, labels = label_slice(read_mask(path))
        wrong = [label for label in range(1, count + 1) if (index, label) not in kept]
        if wrong:
            write_mask(path, (labels > 0) & ~np.isin(labels, wrong))
