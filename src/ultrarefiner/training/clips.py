"""Training samples of several slices: the first is prompted, the memory has to follow the rest."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import torch

from ultrarefiner.config import FinetuneConfig
from ultrarefiner.datasets.volumes import is_slice, parse_slice
from ultrarefiner.errors import DatasetError, first_names
from ultrarefiner.io import item_seed
from ultrarefiner.refine.sam import SamRefiner
from ultrarefiner.training.data import PreparedCases
from ultrarefiner.training.features import Features, Stage
from ultrarefiner.training.refiner_augment import Augmentation
from ultrarefiner.training.refiner_items import Example, Item
from ultrarefiner.training.refiner_samples import Sample, on_grid


class Clips:
    """Which slices follow which, within the cases of one role.

    Args:
        config: The finetuning; ``clip`` slices are a sample.
        source: The prepared cases.
        roles: Cases of each role; slices of other roles are never read.

    Raises:
        DatasetError: A case is no slice of a volume.
    """

    def __init__(
        self, config: FinetuneConfig, source: PreparedCases, roles: Iterable[Iterable[str]]
    ) -> None:
        self.config, self.source = config, source
        self._places: dict[str, tuple[str, int]] = {}
        self._cases: dict[tuple[str, int], str] = {}
        images = source.images()
        for number, role in enumerate(roles):
            for case in role:
                volume, _, part = images[case].rpartition("#")
                if not is_slice(part):
                    raise DatasetError(
                        f"{first_names([case])} is no slice of a volume, and `clip` "
                        f"{config.clip} needs slices; set clip: 1, or train on volumes"
                    )
                index = parse_slice(part)[1]
                self._places[case] = (f"{number} {volume}", index)
                self._cases[self._places[case]] = case

    def after(self, case: str, step: int = 1) -> list[str]:
        """Return the cases of the slices that come after a case's own in its clip.

        Args:
            case: The prompted case.
            step: 1 for rising slices, -1 for falling ones. Where the volume ends the clip does.
        """
        volume, index = self._places[case]
        found = []
        for number in range(1, self.config.clip):
            next_one = self._cases.get((volume, index + step * number))
            if next_one is None:
                break
            found.append(next_one)
        return found

    def drawn(self, item: Item, epoch: int) -> list[str]:
        """Return the slices after an item's in a training clip, this way or that way by chance."""
        rng = np.random.default_rng(
            item_seed(self.config.seed, "clip", epoch, item.case, item.copy)
        )
        step = 1 if rng.random() < 0.5 else -1
        return self.after(item.case, step) or self.after(item.case, -step)

    def extend(
        self,
        sample: Sample,
        cases: Iterable[str],
        refiner: SamRefiner,
        features: Features,
        flipped: bool,
        draw: Augmentation | None,
    ) -> Sample:
        """Return a sample with the slices that follow its own.

        Args:
            sample: The prompted slice.
            cases: The slices after it.
            refiner: The refiner.
            features: How pictures come to it.
            flipped: Whether to exchange left and right.
            draw: The change of the prompted slice; every slice has it, with noise of its own.
        """
        following, targets, coarses = [], [sample.target], [sample.coarse]
        for number, case in enumerate(cases, start=1):
            stage, label = self._slice(features, case, number, flipped, draw)
            following.append(stage)
            target = (on_grid(refiner, stage, label) >= 0.5).float()[None]
            targets.append(target)
            # No coarse mask is shown here: to change nothing is right where there is no lesion.
            coarses.append(torch.zeros_like(target))
        return Sample(
            sample.stage, sample.queries, torch.cat(targets), torch.cat(coarses), tuple(following)
        )

    def _slice(
        self,
        features: Features,
        case: str,
        number: int,
        flipped: bool,
        draw: Augmentation | None,
    ) -> tuple[Stage, np.ndarray]:
        image, label = self.source.read(case)
        example = Example(image, label.astype(bool), label.astype(np.float32))
        if draw is not None:
            example = replace(draw, noise_seed=draw.noise_seed + number).apply(example)
        if flipped:
            image, label = (
                np.ascontiguousarray(one[:, ::-1]) for one in (example.image, example.label)
            )
        else:
            image, label = example.image, example.label
        return features.of(case, flipped, lambda: image), label
