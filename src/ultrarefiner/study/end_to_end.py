"""The end-to-end methods of a study: what each is trained from.

Paths are relative to where the study runs. A model that was trained end to end lies where coarse
models do, under its own name, and predicts by the same rules.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ultrarefiner.config import EndToEndConfig, StudyConfig
from ultrarefiner.datasets.parts import Part
from ultrarefiner.models.weights import planned_file
from ultrarefiner.study.finetuning import Finetuning, Fitted
from ultrarefiner.study.naming import refiner_options, trained_options


@dataclass(frozen=True)
class EndToEndMethods:
    """The end-to-end methods of a study.

    Attributes:
        config: The configuration.
        finetuning: Its finetuned refiners.
    """

    config: StudyConfig
    finetuning: Finetuning

    @property
    def names(self) -> list[str]:
        """The methods that are compared."""
        return list(dict.fromkeys(self.config.compare.end_to_end))

    def of(self, name: str) -> EndToEndConfig:
        """Return how a method is trained."""
        return self.config.end_to_end[name]

    def coarse_file(self, trainset: str, name: str, fold: int | str, file: str) -> str:
        """Return a file of the coarse model that a method begins as."""
        one = Fitted(trainset, self.of(name).coarse, f"fold{fold}")
        return self.finetuning.file(one, file)

    def refiner_file(self, trainset: str, name: str, fold: int | str, file: str) -> str | None:
        """Return a file of the finetuned refiner that a method begins as; None: it is not finetuned."""
        refiner = self.of(name).refiner
        if self.finetuning.of(refiner) is None:
            return None
        return self.finetuning.file(Fitted(trainset, refiner, f"fold{fold}"), file)

    def embeds(self, name: str) -> bool:
        """Return whether a method trains on embeddings of whole images that others use too."""
        row = self.of(name)
        shared = row.roi is None and not row.encoder_changes and row.cache == "float16"
        return shared and not self.finetuning.changes_encoder(row.refiner)

    def weights(self, trainset: str, name: str, fold: int | str) -> str | list[str]:
        """Return the file of the refiner that a method begins as, as an input of its training."""
        own = self.refiner_file(trainset, name, fold, "model.safetensors")
        return own or planned_file(self.config.refiners[self.of(name).refiner].weights) or []

    def start(self, trainset: str, name: str, fold: int | str) -> dict[str, Any]:
        """Return what a method is called, what its refiner begins as and where it is trained."""
        refiner = self.of(name).refiner
        row = self.config.refiners[refiner]
        own = self.refiner_file(trainset, name, fold, "model.safetensors")
        return {
            "name": name,
            "trainset": trainset,
            "fold": int(fold),
            "family": row.family,
            "weights": own or row.weights,
            "options": trained_options(refiner_options(self.config, refiner)),
            "protocol": self.config.splits.protocol,
            "device": self.config.device,
        }

    def fallback(self, method: str) -> str:
        """Return the coarse model that a guarded method, named without its guard, gives way to."""
        if method in self.names:
            return self.of(method).coarse
        return self.config.compare.coarse[0]

    def guards(self, dataset: str, method: str, at: str, part: Part) -> list[str]:
        """Return the rules by which the masks of a part are guarded: its fold's, or all folds'."""
        folder = f"{self.finetuning.base}/{at[1:] or dataset}/guards/{method}"
        folds = self.config.splits.run_folds if part.fold is None else [part.fold]
        return [f"{folder}/fold{fold}.json" for fold in folds]

    def guard_models(self, trainset: str, method: str, fold: int | str) -> list[str]:
        """Return the files of the models that choosing the guard of a method needs."""
        names, others = [self.fallback(method)], []
        if method in self.names:
            names.append(method)
        else:
            refiner = method.partition("-")[0]
            if self.finetuning.of(refiner) is not None:
                names.append(refiner)
            else:
                others.append(planned_file(self.config.refiners[refiner].weights))
        trained = [
            self.finetuning.file(Fitted(trainset, name, f"fold{fold}"), file)
            for name in names
            for file in ("model.safetensors", "card.json")
        ]
        return [*trained, *(file for file in others if file)]

    def asked(self, method: str) -> dict[str, Any]:
        """Return how a guarded method predicts and prompts; what its models are, its inputs say."""
        rows = {**self.config.coarse, **self.config.end_to_end}
        flips = {"flips": rows[self.fallback(method)].flips}
        if method in self.names:
            return flips | {"own_flips": self.of(method).flips}
        refiner, _, prompt = method.partition("-")
        return flips | {
            "prompt": self.config.prompts[prompt].model_dump(mode="json"),
            "options": refiner_options(self.config, refiner),
        }
