"""The finetuned refiners of a study: which model refines what, and what it is trained from.

A finetuned model is named by its training set and its *fit*: `fold0` and so on, or `all` for the
one model that may be applied to other datasets only. Paths are relative to where the study runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ultrarefiner.config import CropConfig, FinetuneConfig, StudyConfig
from ultrarefiner.datasets.fits import ALL
from ultrarefiner.datasets.parts import Part
from ultrarefiner.errors import ConfigError
from ultrarefiner.models.weights import planned_files
from ultrarefiner.study import methods as table
from ultrarefiner.study.methods import Shelved
from ultrarefiner.study.naming import branch_weights, changes_embeddings


@dataclass(frozen=True, order=True)
class Fitted:
    """A trained model of the study, coarse or finetuned."""

    trainset: str
    name: str
    fit: str

    @property
    def fold(self) -> int | None:
        """The fold that it belongs to; None: it trained on all."""
        return None if self.fit == ALL else int(self.fit.removeprefix("fold"))


@dataclass(frozen=True)
class Finetuning:
    """The finetuned refiners of a study, and the files that their models are made from.

    Attributes:
        config: The configuration.
    """

    config: StudyConfig

    @property
    def base(self) -> str:
        """The folder of the run's results."""
        return f"results/{self.config.run}"

    def of(self, refiner: str | None) -> FinetuneConfig | None:
        """Return how a refiner is finetuned; None: it is not, or there is no such refiner."""
        row = self.config.refiners.get(refiner or "")
        return None if row is None else row.finetune

    @property
    def names(self) -> list[str]:
        """The refiners that are finetuned and compared."""
        return [name for name in self.config.compare.refine if self.of(name)]

    @property
    def simulating(self) -> list[str]:
        """Those that learn from simulated failures."""
        return [name for name in self.names if self.of(name).simulates]

    @property
    def cropping(self) -> list[str]:
        """Those that learn from crops around the truth."""
        return [name for name in self.names if self.of(name).data == "crops"]

    @property
    def inner_folds(self) -> int:
        """How many inner folds there are in an outer one; 0: nothing is predicted for training."""
        counts = {row.cross_fit.folds for name in self.names if (row := self.of(name)).predicts}
        return max(counts, default=0)

    @cached_property
    def trainsets(self) -> dict[str, list[str]]:
        """The datasets of each training set."""
        return table.trainsets(self.config)

    @property
    def each_fold(self) -> list[str]:
        """Those that have a model for each fold."""
        return [name for name in self.names if self.of(name).on == "fold"]

    def changes_encoder(self, refiner: str) -> bool:
        """Return whether embeddings of a refiner's models are not those of its weights."""
        row = self.config.refiners.get(refiner)
        return row is not None and changes_embeddings(row)

    def embeds(self, refiner: str) -> bool:
        """Return whether a refiner trains on embeddings of whole images, those of its weights."""
        row = self.of(refiner)
        if row is None or self.changes_encoder(refiner) or row.cache != "float16":
            return False
        return row.crop is None and row.data != "crops"

    def applies(self, refiner: str, evaluation: str) -> bool:
        """Return whether a refiner is applied in an evaluation: "folds", "holdout" or "unseen"."""
        row = self.of(refiner)
        return row is None or row.on == "fold" or evaluation == "unseen"

    def fit(self, refiner: str, dataset: str, trainset: str, part: Part) -> str:
        """Return the fit of a finetuned refiner that refines a part of a dataset.

        Raises:
            ConfigError: No model of it may, or none does; the message says why.
        """
        if self.of(refiner).on == "fold":
            if part.fold is None:
                raise ConfigError(
                    f"{refiner} is finetuned on each fold, so no single model of it refines "
                    f"{part.name}; ask for {part.evaluation}-fold{self.config.splits.run_folds[0]}"
                )
            return f"fold{part.fold}"
        if dataset in self.trainsets[trainset]:
            raise ConfigError(leak(refiner, trainset, [dataset]))
        return ALL

    def model(self, refiner: str, dataset: str, at: str, part: Part, file: str) -> str | None:
        """Return a file of the finetuned model that refines a part; None: it is not finetuned.

        Args:
            refiner: Name of the refiner.
            dataset: The dataset that is refined.
            at: What the models were trained on: "" for the dataset itself, else `@` and its name.
            part: The part of the dataset.
            file: `model.safetensors`, `card.json` or `history.csv`.

        Raises:
            ConfigError: As ``fit``.
        """
        if self.of(refiner) is None:
            return None
        trainset = at[1:] or dataset
        return self.file(
            Fitted(trainset, refiner, self.fit(refiner, dataset, trainset, part)), file
        )

    def file(self, one: Fitted, name: str) -> str:
        """Return a file of a trained model."""
        return f"{self.base}/{one.trainset}/models/{one.name}/{one.fit}/{name}"

    def models(self, shelf: Sequence[Shelved]) -> list[Fitted]:
        """Return the finetuned models that a shelf of masks needs."""
        return sorted(set(self._needed(shelf)))

    def _needed(self, shelf: Sequence[Shelved]) -> Iterator[Fitted]:
        for one in shelf:
            refiner = one.method.refiner
            if refiner is not None and self.of(refiner) is not None:
                if refiner in self.each_fold and one.part.fold is None:
                    continue  # the ensemble of those that the parts of single models name
                trainset = one.method.trainset(one.dataset)
                yield Fitted(trainset, refiner, self.fit(refiner, one.dataset, trainset, one.part))

    def branch_files(self, refiner: str) -> list[str]:
        """Return the path of the weights that a refiner's ResNet begins with, where it has one."""
        branch = branch_weights(self.config.refiners[refiner])
        return [] if branch is None else planned_files([branch])

    def overlaps(self, trainset: str) -> str | None:
        """Return the table of shared images that decides on the groups of a union.

        None for a dataset alone: its groups share no image, whatever other datasets hold.
        """
        return f"{self.base}/overlaps.csv" if trainset in self.config.trainsets else None

    def failures(self, trainset: str, refiner: str) -> list[str]:
        """Return the tables of written failures that a refiner trains on."""
        row = self.of(refiner)
        if not row.simulates or row.copies is None:
            return []
        return [f"{self.base}/{name}/failures/{refiner}.csv" for name in self.trainsets[trainset]]

    def inner(self, trainset: str, refiner: str, fit: str, name: str) -> list[str]:
        """Return one file or folder of each inner model whose predictions a refiner trains on."""
        row = self.of(refiner)
        if not row.predicts:
            return []
        coarse = f"{self.base}/{trainset}/inner/{fit}/{self.config.compare.coarse[0]}"
        return [f"{coarse}/fold{inner}/{name}" for inner in range(row.cross_fit.folds)]

    def crops(self, trainset: str, refiner: str, fit: str) -> str | None:
        """Return the folder of crops that a refiner trains on, if it does."""
        if self.of(refiner).data != "crops":
            return None
        return f"{self.base}/{trainset}/crops/{refiner}/{fit}"

    def box_errors(self, trainset: str, fit: str) -> list[str]:
        """Return the errors of boxes that crops are jittered by: of the fold, or of all folds."""
        coarse = f"{self.base}/{trainset}/models/{self.config.compare.coarse[0]}"
        folds = self.config.splits.run_folds
        fits = [f"fold{fold}" for fold in folds] if fit == ALL else [fit]
        return [f"{coarse}/{name}/box_errors.json" for name in fits]

    def recipe(self, refiner: str, fit: str) -> dict[str, Any]:
        """Return what the weights of a fit depend on.

        Raises:
            ConfigError: The refiner has no such fit.
        """
        row = self.of(refiner)
        if (fit == ALL) != (row.on == "all"):
            raise ConfigError(
                f"refiners.{refiner}.finetune.on: {row.on} has no model '{fit}'; ask for "
                + ("all" if row.on == "all" else "that of a fold")
            )
        return row.recipe()

    def simulation(self, refiner: str) -> dict[str, Any]:
        """Return how failures are simulated: the simulation and its seed."""
        row = self.of(refiner)
        return {"simulation": row.simulation.model_dump(mode="json"), "seed": row.seed}

    def cropped(self, refiner: str) -> dict[str, Any]:
        """Return how crops are cut: the crop, copies of each case and the seed."""
        row = self.of(refiner)
        crop = row.crop or CropConfig()
        return {"crop": crop.model_dump(), "copies": row.copies or 1, "seed": row.seed}


def leak(refiner: str, trainset: str, datasets: Sequence[str]) -> str:
    """Return why a model of all folds may not be applied to datasets that it trained on."""
    names = " and ".join(datasets)
    return (
        f"refiners.{refiner}.finetune.on: all trains on every case of {trainset}, so it may not be "
        f"applied to {names}'s own folds or hold-out: it has seen the answers. Test it on other "
        "datasets (`compare.cross: true`, or a dataset of `role: unseen`), or train a model for "
        "each fold (`on: fold`)"
    )
