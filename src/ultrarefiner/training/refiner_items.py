"""What a refiner is trained on: for each case the coarse masks that prompts are made from.

A mask belongs to its case wherever it comes from, and cases have their role from ``splits.csv``: no
copy of an image can be on another side of a fold than the image itself.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ultrarefiner.config import FinetuneConfig
from ultrarefiner.errors import DatasetError, UltraRefinerError
from ultrarefiner.images import read_probability
from ultrarefiner.io import item_seed
from ultrarefiner.prompts.geometry import Box, lesion_pixels
from ultrarefiner.training.corrupt import simulate_failure
from ultrarefiner.training.crop_items import CropItem
from ultrarefiner.training.curriculum import curriculum_order, curriculum_size
from ultrarefiner.training.data import PreparedCases

log = logging.getLogger(__name__)

Origin = Literal["simulated", "written", "prediction", "truth", "crop"]

_TRIES = 8


@dataclass(frozen=True)
class Item:
    """A coarse mask of a case, not yet read.

    Attributes:
        case: Case id.
        copy: Which of the case's masks; for a simulated one the seed's last part.
        origin: Where the mask comes from.
    """

    case: str
    copy: str
    origin: Origin

    @property
    def picture(self) -> str:
        """What the item shows of the image: items of equal pictures have equal pixels."""
        return f"{self.case}/{self.copy}" if self.origin == "crop" else self.case


@dataclass(frozen=True, eq=False)
class Example:
    """An item, read.

    Attributes:
        image: uint8 (H, W, 3) RGB.
        label: bool (H, W), the truth.
        coarse: float32 (H, W) in [0, 1], the mask that prompts are made from.
        box: Box that the prompt has whatever the mask says; None: that of the mask.
    """

    image: np.ndarray
    label: np.ndarray
    coarse: np.ndarray
    box: Box | None = None

    def dice(self) -> float:
        """Return the Dice of the coarse mask."""
        coarse = lesion_pixels(self.coarse)
        size = int(coarse.sum()) + int(self.label.sum())
        return 2 * int((coarse & self.label).sum()) / size if size else 1.0


class Items:
    """The items of a training, by epoch, and how they are read.

    Args:
        config: The finetuning.
        source: The prepared cases.
        failures: Files of the simulated masks of each case, by copy, where ``config.copies`` asks
            for them.
        predictions: File of each case's out-of-fold prediction, for the data that need them.
        crops: Exported crops by case, for ``data: crops``.
        train: Training cases.
        validation: Validation cases; the two sets never meet.
        images: Image of each training case, where cases may be masks of one image; None: each has
            its own.

    Attributes:
        slots: What each sample of an epoch may be: one item, or for `hybrid` one of two.

    Raises:
        UltraRefinerError: A case has no mask of a kind that it should have, or no training case has
            a mask with a lesion.
    """

    def __init__(
        self,
        config: FinetuneConfig,
        source: PreparedCases,
        train: Sequence[str],
        validation: Sequence[str],
        failures: Mapping[str, Sequence[Path]] | None = None,
        predictions: Mapping[str, Path] | None = None,
        crops: Mapping[str, Sequence[CropItem]] | None = None,
        images: Mapping[str, str] | None = None,
    ) -> None:
        if both := sorted(set(train) & set(validation)):
            raise UltraRefinerError(
                f"{len(both)} cases are for training and for validation: {', '.join(both[:5])}. "
                "Delete splits.csv and run again."
            )
        self.config, self.source = config, source
        self.train, self.validation = tuple(train), tuple(validation)
        self._failures, self._predictions, self._crops = failures, predictions, crops
        self._dices: dict[Item, float] = {}
        self._mates: dict[str, list[str]] = {}
        self.slots = self._train_slots()
        if config.masks_per_image > 1 and images is not None:
            self.slots = self._one_an_image(images)
        if not self.slots:
            raise UltraRefinerError(
                "no training case has a coarse mask with a lesion in it, so nothing can be prompted"
            )

    def _train_slots(self) -> list[list[Item]]:
        """Return what each step of an epoch may show: one item, or for `hybrid` one of two."""
        slots, empty = [], 0
        for case in self.train:
            for number in range(self._copies(case)):
                choices = [self._item(case, number, origin) for origin in self._origins()]
                usable = [item for item in choices if self._prompts(item)]
                empty += len(choices) - len(usable)
                if usable:
                    slots.append(usable)
        if empty:
            log.warning("%d training masks are empty and prompt nothing; they are left out", empty)
        return slots

    def _one_an_image(self, images: Mapping[str, str]) -> list[list[Item]]:
        """Return the slots of each image's first case, and note the others as its mates."""
        first: dict[str, str] = {}
        for case in dict.fromkeys(choices[0].case for choices in self.slots):
            standing = first.setdefault(images[case], case)
            self._mates.setdefault(standing, []).append(case)
        return [choices for choices in self.slots if choices[0].case in self._mates]

    def together(self, item: Item, epoch: int) -> list[Item]:
        """Return the items that share an item's picture in a step: ``masks_per_image`` of them.

        Masks of the image are drawn without repetition as far as there are so many; each time a
        mask has a prompt of its own.
        """
        count = self.config.masks_per_image
        if count == 1:
            return [item]
        rng = np.random.default_rng(item_seed(self.config.seed, "masks", epoch, item.case))
        pool = self._mates.get(item.case, [item.case])
        drawn: list[int] = []
        while len(drawn) < count:
            drawn += rng.permutation(len(pool)).tolist()
        return [
            Item(pool[number], f"{item.copy}, mask {place}", item.origin)
            for place, number in enumerate(drawn[:count])
        ]

    def _copies(self, case: str) -> int:
        if self.config.data == "crops":
            return len(self._of(self._crops, case, "crop"))
        return self.config.copies or 1

    def _origins(self) -> list[Origin]:
        data = self.config.data
        written: Origin = "simulated" if self.config.copies is None else "written"
        return {
            "simulated": [written],
            "predictions": ["prediction"],
            "hybrid": [written, "prediction"],
            "truth": ["truth"],
            "crops": ["crop"],
        }[data]

    def _item(self, case: str, number: int, origin: Origin) -> Item:
        if origin == "crop":
            number = self._of(self._crops, case, "crop")[number].copy
        # A case has one prediction, however many copies of its failures there are.
        return Item(case, "0" if origin == "prediction" else str(number), origin)

    def _prompts(self, item: Item) -> bool:
        """Return whether a training item says where the lesion is; keep its Dice."""
        if item.origin in ("simulated", "truth"):
            # One made on the fly is drawn again while it is empty.
            return bool(self.source.read(item.case)[1].any())
        example = self.read(item)
        self._dices[item] = example.dice()
        return bool(lesion_pixels(example.coarse).any())

    def count(self, epoch: int) -> int:
        """Return the number of items of an epoch."""
        if not self.config.curriculum:
            return len(self.slots)
        least, epochs = self.config.batch_size, self.config.epochs
        return curriculum_size(len(self.slots), epoch, epochs, least=least)

    def epoch(self, epoch: int) -> list[Item]:
        """Return the items of an epoch in their order; it depends on seed and epoch alone."""
        seed, items = self.config.seed, []
        for number, choices in enumerate(self.slots):
            rng = np.random.default_rng(item_seed(seed, "source", epoch, number, choices[0].case))
            chosen = choices[0]
            if len(choices) == 2 and rng.random() < self.config.ratio:
                chosen = choices[1]
            if chosen.origin == "simulated":
                chosen = replace(chosen, copy=f"epoch {epoch}, {chosen.copy}")
            items.append(chosen)
        if self.config.curriculum:
            dices = [self._dices[item] for item in items]
            kept = curriculum_order(dices, epoch, self.config.epochs, least=self.config.batch_size)
            items = [items[i] for i in kept]
        rng = np.random.default_rng(item_seed(seed, "order", epoch))
        return [items[i] for i in rng.permutation(len(items))]

    def fixed(self) -> list[Item]:
        """Return the validation items, the same in every epoch."""
        items = []
        for case in self.validation:
            if self.config.simulates:
                copies = range(self.config.validation_copies)
                items += [Item(case, f"validation {copy}", "simulated") for copy in copies]
            if self.config.predicts:
                items.append(Item(case, "0", "prediction"))
            if self.config.data == "truth":
                items.append(Item(case, "0", "truth"))
            if self.config.data == "crops":
                found = self._of(self._crops, case, "crop")
                items += [Item(case, str(crop.copy), "crop") for crop in found]
        return items

    def read(self, item: Item) -> Example:
        """Read an item.

        Raises:
            UltraRefinerError: A file is absent, damaged or of another size than the image.
        """
        if item.origin == "crop":
            found = self._of(self._crops, item.case, "crop")
            crop = next(one for one in found if str(one.copy) == item.copy)
            label = crop.mask
            return Example(crop.read_image(), label, label.astype(np.float32), crop.box)
        image, label = self.source.read(item.case)
        label = label.astype(bool)
        coarse = self._coarse(item, label)
        if coarse.shape != label.shape:
            raise DatasetError(
                f"the {item.origin} mask of {item.case} is {coarse.shape}, its image {label.shape} "
                "(height, width). Run the job that writes it again."
            )
        return Example(image, label, coarse)

    def _coarse(self, item: Item, label: np.ndarray) -> np.ndarray:
        if item.origin == "truth":
            return label.astype(np.float32)
        if item.origin == "prediction":
            return read_probability(self._of(self._predictions, item.case, "prediction"))
        if item.origin == "written":
            found = self._of(self._failures, item.case, "simulated mask")
            if int(item.copy) >= len(found):
                raise UltraRefinerError(
                    f"there are {len(found)} simulated masks of {item.case}, and {self.config.copies} are "
                    "asked for. Run simulate_failures again."
                )
            return read_probability(found[int(item.copy)])
        validates = item.copy.startswith("validation")
        for attempt in range(_TRIES):
            copy = item.copy if attempt == 0 else f"{item.copy}, again {attempt}"
            simulation, seed = self.config.simulation, self.config.seed
            made = simulate_failure(label, simulation, seed, item.case, copy)
            # Validation keeps what was drawn: a miss counts there as it does in the study.
            if made.mask.any() or validates:
                return made.soft
        return label.astype(np.float32)

    def _of(self, table: Mapping[str, Any] | None, case: str, what: str) -> Any:
        if table is None or case not in table:
            raise UltraRefinerError(
                f"there is no {what} of {case}, which has to train or validate. Run the job that "
                "makes it again."
            )
        return table[case]
