"""A study: the configuration checked against the registries, and the methods it asks for.

This is what the Snakefile works from. It imports no model code, so that planning stays fast.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

from ultrarefiner.config import (
    CoarseConfig,
    EndToEndConfig,
    StudyConfig,
    WindowRecipe,
    load_config,
)
from ultrarefiner.datasets import DATASETS
from ultrarefiner.datasets.parts import Part, parse_part
from ultrarefiner.errors import ConfigError
from ultrarefiner.models import starting_weights
from ultrarefiner.models.weights import WEIGHTS, planned_file, planned_files, registered
from ultrarefiner.study import methods as table
from ultrarefiner.study.checks import problems
from ultrarefiner.study.end_to_end import EndToEndMethods
from ultrarefiner.study.finetuning import Finetuning, Fitted
from ultrarefiner.study.methods import Method, Shelved
from ultrarefiner.study.naming import (
    embedding_options,
    embeddings_name,
    refiner_options,
    trained_options,
)


@dataclass(frozen=True)
class View:
    """What a refiner sees of an image; prompt modes that see the same share embeddings.

    Attributes:
        name: `full`, or `crop-{expand}-{min_size}-{aspect}` with what else its windows depend on.
        window: What the windows are cut by; None for the full image.
        oracle: Whether they are cut around the truth, not around the coarse mask.
    """

    name: str
    window: WindowRecipe | None = None
    oracle: bool = False


@dataclass(frozen=True)
class Study:
    """A checked configuration with its methods.

    Attributes:
        config: The configuration.
        methods: By name, as they are applied to the dataset that their models trained on.
    """

    config: StudyConfig
    methods: dict[str, Method]

    @cached_property
    def shelf(self) -> list[Shelved]:
        """Every folder of masks that is scored."""
        return list(table.shelved(self.config, list(self.methods.values())))

    @cached_property
    def applied(self) -> dict[str, Method]:
        """The methods by name, also as they are applied with models of other training sets."""
        return {one.method.name: one.method for one in self.shelf}

    @cached_property
    def finetuning(self) -> Finetuning:
        """The finetuned refiners, and what their models are made from."""
        return Finetuning(self.config)

    @cached_property
    def end_to_end(self) -> EndToEndMethods:
        """The end-to-end methods, and what their models are made from."""
        return EndToEndMethods(self.config, self.finetuning)

    @cached_property
    def models(self) -> list[Fitted]:
        """Every trained model: the coarse ones, the finetuned ones, those trained end to end."""

        def each(names: list[str]) -> list[Fitted]:
            folds = [f"fold{fold}" for fold in self.folds]
            return [Fitted(*key) for key in product(self.trainsets, names, folds)]

        finetuned = self.finetuning.models(self.shelf)
        return each(self.coarse) + finetuned + each(self.end_to_end.names)

    def predicting(self, name: str) -> CoarseConfig | EndToEndConfig:
        """Return the row of a model that predicts without prompts."""
        return self.config.coarse.get(name) or self.config.end_to_end[name]

    @cached_property
    def trainsets(self) -> dict[str, list[str]]:
        """The datasets of each training set; a dataset alone is one too."""
        return table.trainsets(self.config)

    @property
    def tested_unseen(self) -> list[str]:
        """The datasets that models of other datasets are tested on."""
        return sorted({one.dataset for one in self.shelf if one.part.evaluation == "unseen"})

    @property
    def coarse(self) -> list[str]:
        """The coarse models."""
        return list(dict.fromkeys(self.config.compare.coarse))

    def official_test(self, dataset: str) -> bool:
        """Return whether a dataset's own test part is its hold-out."""
        return table.official_test(self.config, dataset)

    def calibrated(self, dataset: str, coarse: str) -> list[Part]:
        """Return the parts on which a coarse model's probabilities are compared with the truth."""
        return table.calibrated(self.shelf, dataset, coarse)

    def pictured(self, dataset: str) -> list[Shelved]:
        """Return the folders of masks that the gallery of a dataset shows."""
        return table.pictured(self.shelf, dataset)

    def scored_on(self, one: Shelved) -> dict[str, Any]:
        """Return what the score table says of a folder of masks beside its scores."""
        return {
            "trained_on": one.method.trainset(one.dataset),
            "prompt_source": one.method.source,
            "oracle": one.method.oracle,
            "selection": self.selection,
            "seen": self.seen(one.method, one.dataset),
        }

    def seen(self, method: Method, dataset: str) -> str:
        """Return whether the weights of a method's refiner were trained on a dataset.

        "unknown": nobody says what weights of the user's own were trained on, or the dataset may
        be any.
        """
        refiner = self.end_to_end.of(method.coarse).refiner if method.joint else method.refiner
        row = self.config.refiners.get(refiner or "")
        if row is None or row.weights is None:
            return "no"
        known = registered(row.weights)
        layouts = row.seen if known is None else WEIGHTS[known].seen
        if layouts is None:
            return "unknown"
        layout = self.layout(dataset)
        if layouts and not DATASETS[layout].counts:
            return "unknown"
        return "yes" if layout in layouts else "no"

    @cached_property
    def oracle_pairs(self) -> list[dict[str, str]]:
        """The refined methods that have an oracle: prompted alike, but from the truth.

        Not those that several models apply to the same cases with none that stands for them all.
        """
        standing, prompts = table.standing(self.shelf), self.config.prompts.items()
        plain = {name: row.model_dump(exclude={"source"}) for name, row in prompts}
        mine = [
            method
            for method in self.applied.values()
            if method.refiner and not method.guarded and method.name in standing
        ]
        return [
            {"method": one.name, "oracle_method": other.name}
            for one in mine
            for other in mine
            if other.oracle
            and not one.oracle
            and (one.refiner, one.at) == (other.refiner, other.at)
            and plain[one.prompt] == plain[other.prompt]
        ]

    @property
    def reference(self) -> str:
        """The coarse model that gives the prompts and that methods are compared with."""
        return self.config.compare.coarse[0]

    @property
    def folds(self) -> list[int]:
        """The folds to run."""
        return self.config.splits.run_folds

    @property
    def selection(self) -> str:
        """What the models are selected on, in the words of the score table."""
        return "validation" if self.config.splits.protocol == "nested" else "reported fold"

    def layout(self, dataset: str) -> str:
        """Return the folder layout of a dataset."""
        return self.config.datasets[dataset].layout or dataset

    def embeddings_of(self, refiner: str) -> str | None:
        """Return the name under which a refiner's embeddings are shelved; None: it has none."""
        # Every job of a plan asks.
        return self._embeddings_names[refiner]

    @cached_property
    def _embeddings_names(self) -> dict[str, str | None]:
        return {name: embeddings_name(self.config, name) for name in self.config.refiners}

    def view_of(self, prompt: str) -> View:
        """Return what a refiner sees of an image in a prompt mode."""
        row = self.config.prompts[prompt]
        recipe = row.window
        if recipe is None:
            return View("full")
        crop = recipe.crop
        aspect = "free" if crop.aspect is None else f"{crop.aspect:.10g}"
        name = f"crop-{crop.expand:.10g}-{crop.min_size}-{aspect}"
        if recipe.reach:
            name += f"-reach{recipe.reach:.10g}"
        return View(name + "-oracle" * row.oracle, recipe, row.oracle)

    @cached_property
    def views(self) -> dict[str, View]:
        """The views that images are encoded in, by name."""
        shelving = [name for name in self.config.compare.refine if self.embeddings_of(name)]
        prompts = {p: None for name in shelving for p in self.config.compare.refine[name]}
        views = {view.name: view for view in map(self.view_of, prompts)}
        if any(map(self._takes_whole_images, shelving)):
            views[self.full_view.name] = self.full_view
        return views

    @property
    def full_view(self) -> View:
        """The view of whole images."""
        return View("full")

    def weights_file(self, refiner: str) -> str | None:
        """Return the path of a refiner's weights; None: none, or a file of one's own is absent."""
        return planned_file(self.config.refiners[refiner].weights)

    def pretrained_files(self, coarse: str) -> list[str]:
        """Return the paths of a coarse model's starting weights; as ``weights_file``."""
        return planned_files(starting_weights(self.config.coarse[coarse]))

    def blocked_result(self) -> Path | None:
        """Return a file that stands where a folder of the results has to be."""
        run, names = Path("results") / self.config.run, [*self.config.datasets, *self.trainsets]
        folders = [run.parent, run, run / "report", *(run / name for name in names)]
        return next((path for path in folders if path.exists() and not path.is_dir()), None)

    @cached_property
    def embedders(self) -> dict[str, str]:
        """The refiner that makes the embeddings of each weights name.

        Where rows share embeddings they differ in nothing that an embedding depends on.
        """
        made = {self.embeddings_of(name): name for name in self.config.compare.refine}
        return {weights: name for weights, name in made.items() if weights is not None}

    def embedder_options(self, name: str) -> dict[str, Any]:
        """Return the options with which embeddings are made."""
        sharing = [self.config.refiners[refiner] for refiner in self._sharing(name)]
        compiled = any(row.options.get("compile") for row in sharing)
        return embedding_options(sharing[0]) | ({"compile": True} if compiled else {})

    def embeds_full_images(self, name: str, evaluation: str) -> bool:
        """Return whether full images of a part are encoded under a weights name, beside any crops.

        Args:
            name: Weights name.
            evaluation: Of the part: "folds", "holdout" or "unseen". Points are analysed in folds,
                and refiners are trained on them.
        """
        sharing = self._sharing(name)
        if evaluation == "folds" and any(map(self._takes_whole_images, sharing)):
            return True
        return any(
            self.view_of(prompt).window is None
            for refiner in sharing
            if self.finetuning.applies(refiner, evaluation)
            for prompt in self.config.compare.refine[refiner]
        )

    def index(self, refiner: str, view: View, dataset: str, at: str, part: Part) -> str | None:
        """Return the index of the embeddings of a view on a part; None: the refiner has none.

        Args:
            refiner: Name of the refiner.
            view: What it sees.
            dataset: The dataset.
            at: What the models were trained on; see ``Method``.
            part: The part of the dataset.
        """
        name = self.embeddings_of(refiner)
        if name is None:
            return None
        base = f"results/{self.config.run}/{dataset}/embeddings/{name}/{view.name}"
        alike = view.window is None or view.oracle
        if alike and not self.finetuning.changes_encoder(refiner):
            # The same whoever predicts, so it is made once for the cases.
            return f"{base}/{part.cases}.csv"
        return f"{base}{at}/{part.name}.csv"

    def shared_indices(self, name: str, view: View, dataset: str, at: str, part: Part) -> list[str]:
        """Return the indices of full images that an embedding job waits for, as it may share files.

        Args:
            name: Weights name.
            view: What the job encodes.
            dataset: The dataset.
            at: What the models were trained on; see ``Method``.
            part: The part of the dataset.
        """
        refiner, full = self.embedders[name], self.full_view
        if view.window is not None:
            if not self.embeds_full_images(name, part.evaluation):
                return []
            return [self.index(refiner, full, dataset, at, part)]
        if part.evaluation != "unseen":
            return []
        mine = [one for one in self.shelf if one.dataset == dataset]
        if self.finetuning.changes_encoder(refiner):
            if self.finetuning.of(refiner).on == "fold":
                return []
            # One model, on the same images in each of the parts.
            first = next(o for o in mine if (o.method.refiner, o.method.at) == (refiner, at)).part
            return [] if part == first else [self.index(refiner, full, dataset, at, first)]
        # All images of the dataset: those of its folds and its hold-out are encoded by their own jobs.
        parts = {one.part for one in mine}
        own = {one.cases for one in parts if self.embeds_full_images(name, one.evaluation)}
        cases = sorted(own - {"unseen"})
        return [self.index(refiner, full, dataset, at, parse_part(name)) for name in cases]

    def training_indices(self, trainset: str, refiner: str, fit: str) -> list[str]:
        """Return the indices of the images that a refiner trains on, where it needs no more of them.

        They follow from the fit alone: a further prompt mode or fold must train nothing again.
        """
        return self._fold_indices(trainset, refiner, fit) if self.finetuning.embeds(refiner) else []

    def joint_indices(self, trainset: str, name: str, fit: str) -> list[str]:
        """Return the same of an end-to-end method."""
        if not self.end_to_end.embeds(name):
            return []
        return self._fold_indices(trainset, self.end_to_end.of(name).refiner, fit)

    def _fold_indices(self, trainset: str, refiner: str, fit: str) -> list[str]:
        mine = None if self.config.splits.protocol == "seed" else fit
        folds = [f"fold{fold}" for fold in range(self.config.splits.folds)]
        return [
            self.index(refiner, self.full_view, dataset, "", parse_part(fold))
            for dataset in self.trainsets[trainset]
            for fold in folds
            if fold != mine  # what a fold reports on no other role of it holds
        ]

    def _takes_whole_images(self, refiner: str) -> bool:
        """Return whether a training or the analysis of points needs embeddings of whole images."""
        joint, points = self.end_to_end, self.config.points
        if self.finetuning.embeds(refiner) or (points and refiner in points.refiners):
            return True
        return any(joint.of(name).refiner == refiner and joint.embeds(name) for name in joint.names)

    def _sharing(self, name: str) -> list[str]:
        return [row for row in self.config.compare.refine if self.embeddings_of(row) == name]

    def training_start(self, trainset: str, refiner: str, fit: str) -> dict[str, Any]:
        """Return what a finetuned model is called, what it begins as and where it is trained."""
        row, options = self.config.refiners[refiner], self.refiner_options(refiner)
        return {
            "name": refiner,
            "trainset": trainset,
            "fit": fit,
            "family": row.family,
            "weights": row.weights,
            "options": trained_options(options),
            "protocol": self.config.splits.protocol,
            "device": self.config.device,
        }

    def refiner_options(self, refiner: str) -> dict[str, Any]:
        """Return a refiner's own keys, presets resolved, without those that say the default."""
        return refiner_options(self.config, refiner)


def load_study(values: Mapping[str, Any]) -> Study:
    """Check a configuration against the registries and list its methods.

    Args:
        values: The YAML file as nested dicts.

    Raises:
        ConfigError: An unknown key or name, a bad value, or a combination that cannot work; the
            message lists them all.
    """
    config = load_config(values)
    if found := problems(config):
        raise ConfigError("\n  - ".join(["the configuration has errors:", *found]))
    return Study(config, {method.name: method for method in table.base_methods(config)})
