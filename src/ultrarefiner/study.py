"""A study: the configuration checked against the registries, and the methods it asks for.

This is what the Snakefile works from. It imports no model code, so that planning stays fast.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ultrarefiner.config import (
    CoarseConfig,
    DatasetConfig,
    RefinerConfig,
    SplitsConfig,
    StudyConfig,
    WindowRecipe,
    load_config,
)
from ultrarefiner.datasets import DATASETS
from ultrarefiner.errors import ConfigError, UltraRefinerError
from ultrarefiner.io import json_sha256, require_writable
from ultrarefiner.models import MODELS
from ultrarefiner.models.weights import (
    WEIGHTS,
    how_to_get,
    planned_file,
    registered,
    to_be_fetched,
    unaccepted_terms,
    weights_name,
    weights_path,
)
from ultrarefiner.prompts import PROMPTS
from ultrarefiner.refine import REFINERS, load_refiner, parse_options
from ultrarefiner.registry import unknown_name

# What a dataset folder is read for; other files in it (notes, thumbnails) change nothing.
_DATA_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".csv"}


@dataclass(frozen=True)
class Method:
    """A named folder of masks on the shelf.

    Attributes:
        name: `transunet`, or `{refiner}-{prompt}`.
        coarse: The coarse model that it is, or whose masks prompt it.
        refiner: Name of the refiner row; None for a coarse model.
        prompt: Name of the prompt mode; None for a coarse model.
        source: What its prompts are made from: "none", "coarse" or "ground_truth".
    """

    name: str
    coarse: str
    refiner: str | None = None
    prompt: str | None = None
    source: str = "none"

    @property
    def oracle(self) -> bool:
        """Whether the truth went into it."""
        return self.source == "ground_truth"


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
    """A checked configuration with its methods."""

    config: StudyConfig
    methods: dict[str, Method]

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
        """Return the name under which a refiner's embeddings are shelved; None: it has none.

        The weights' name; digits follow where an option that changes embeddings is not the default.
        """
        row = self.config.refiners[refiner]
        if not REFINERS[row.family].shelves_embeddings or row.weights is None:
            return None
        options = _embedding_options(row)
        suffix = f"_{json_sha256(options)[:8]}" if options else ""
        return weights_name(row.weights) + suffix

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

    @property
    def views(self) -> dict[str, View]:
        """The views that images are encoded in, by name."""
        shelving = (name for name in self.config.compare.refine if self.embeddings_of(name))
        prompts = {p: None for name in shelving for p in self.config.compare.refine[name]}
        return {view.name: view for view in map(self.view_of, prompts)}

    def weights_file(self, refiner: str) -> str | None:
        """Return the path of a refiner's weights, there or still to be fetched.

        None: it has none, or a file of the user's own is not there.
        """
        return planned_file(self.config.refiners[refiner].weights)

    def pretrained_file(self, coarse: str) -> str | None:
        """Return the path of a coarse model's starting weights; as ``weights_file``."""
        row = self.config.coarse[coarse]
        return None if row.init == "random" else planned_file(row.pretrained)

    def blocked_result(self) -> Path | None:
        """Return a file that stands where a folder of the results has to be."""
        run = Path("results") / self.config.run
        folders = [run.parent, run, run / "report", *(run / name for name in self.config.datasets)]
        return next((path for path in folders if path.exists() and not path.is_dir()), None)

    @property
    def embedders(self) -> dict[str, RefinerConfig]:
        """The refiner row that makes the embeddings of each weights name.

        Where rows share embeddings they differ in nothing that an embedding depends on.
        """
        rows = {self.embeddings_of(name): row for name, row in self.config.refiners.items()}
        return {name: row for name, row in rows.items() if name is not None}

    def embedder_options(self, name: str) -> dict[str, Any]:
        """Return the options with which embeddings are made."""
        rows = self.config.refiners
        sharing = [rows[refiner] for refiner in rows if self.embeddings_of(refiner) == name]
        compiled = any(row.options.get("compile") for row in sharing)
        return _embedding_options(sharing[0]) | ({"compile": True} if compiled else {})

    def require_files(self) -> None:
        """Check, before any job, that raw folders are there, weights load and results can be written.

        Weights are loaded whole, on the CPU: a damaged file is found now and not after days of
        training. Weights of the table that are not there yet are fetched first of all jobs.

        Raises:
            ConfigError: Something is missing or damaged; the message lists it all, with cures.
            OutputError: The results folder cannot be written.
        """
        require_writable(Path("results") / self.config.run)
        problems = [
            *(p for name, row in self.config.datasets.items() for p in _missing_root(name, row)),
            *(p for name in self.config.compare.coarse for p in self._missing_pretrained(name)),
            *(p for name in self.config.compare.refine for p in self._unusable_weights(name)),
        ]
        if problems:
            raise ConfigError("\n  - ".join(["the study cannot start:", *problems]))

    def _missing_pretrained(self, name: str) -> Iterator[str]:
        row = self.config.coarse[name]
        path = weights_path(row.pretrained)
        if row.init == "random" or to_be_fetched(row.pretrained) or zipfile.is_zipfile(path):
            return
        known = MODELS[row.model].pretrained
        yield (
            f"coarse.{name}.pretrained: {path} {'is damaged' if path.exists() else 'is not there'}. "
            f"{how_to_get(known, WEIGHTS[known], path)}; or set `init: random` to train from scratch."
        )

    def _unusable_weights(self, name: str) -> Iterator[str]:
        row = self.config.refiners[name]
        if row.weights is not None and not to_be_fetched(row.weights):
            try:
                load_refiner(row.family, row.weights, "cpu", **row.options)
            except UltraRefinerError as error:
                yield f"refiners.{name}.weights: {error}"


def _missing_root(name: str, row: DatasetConfig) -> Iterator[str]:
    if row.root is not None and not Path(row.root).is_dir():
        source = DATASETS[row.layout or name].source
        yield (
            f"datasets.{name}.root: there is no folder {row.root}. "
            f"Get the dataset ({source}) and unpack it there, or correct the path."
        )


def folder_listing(root: str | None) -> str:
    """Return a digest of a raw folder: the names, sizes and ends of its data files, not their times.

    A job that carries it in its params runs again when files are added, removed or replaced.
    """
    if root is None or not Path(root).is_dir():
        return "absent"
    entries = []
    for folder, folders, names in os.walk(root, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            path = Path(folder) / name
            if path.suffix.lower() in _DATA_SUFFIXES and not name.startswith("."):
                entries.append((path.relative_to(root).as_posix(), *_size_and_end(path)))
    return json_sha256(sorted(entries))[:16]


def _size_and_end(path: Path) -> tuple[int, str]:
    # A PNG ends with checksums of its pixels, so an edit that keeps the size is seen too.
    with open(path, "rb") as handle:
        size = handle.seek(0, os.SEEK_END)
        handle.seek(max(size - 64, 0))
        return size, handle.read().hex()


def _embedding_options(row: RefinerConfig) -> dict[str, Any]:
    """Return the options that change an embedding, presets resolved, where they are no defaults."""
    family = REFINERS[row.family]
    options, default = parse_options(row.family, row.options), family.options()
    names = sorted(family.embedding_options)
    return {
        name: value for name in names if (value := getattr(options, name)) != getattr(default, name)
    }


def _check_names(config: StudyConfig) -> Iterator[str]:
    for name, row in config.datasets.items():
        layout = row.layout or name
        key = f"datasets.{name}" + (".layout" if row.layout else "")
        if layout not in DATASETS:
            hint = "" if row.layout else " A dataset of another name needs `layout:`."
            yield f"{key}: {unknown_name('dataset layout', layout, DATASETS)}{hint}"
        elif row.folds == "published":
            yield from _check_published(name, layout, config.splits)
    for name in config.compare.coarse:
        if name not in config.coarse:
            yield f"compare.coarse: {unknown_name('coarse model', name, config.coarse)}"
    for refiner, prompts in config.compare.refine.items():
        if refiner not in config.refiners:
            yield f"compare.refine: {unknown_name('refiner', refiner, config.refiners)}"
        if not prompts:
            yield f"compare.refine.{refiner}: no prompt mode is listed; add one or remove the line"
        for prompt in prompts:
            if prompt not in config.prompts:
                yield (
                    f"compare.refine.{refiner}: {unknown_name('prompt mode', prompt, config.prompts)}"
                )


def _check_published(name: str, layout: str, splits: SplitsConfig) -> Iterator[str]:
    there, folds = DATASETS[layout].published_folds, splits.folds
    if splits.protocol == "seed":
        yield (
            f"datasets.{name}.folds: published cannot go with splits.protocol: seed, which makes its "
            "own folds; use `folds: made` or `protocol: nested`"
        )
    if folds not in there:
        have = f"has partitions of {' and '.join(map(str, there))}" if there else "has none"
        yield (
            f"datasets.{name}.folds: there is no published partition of {layout} into {folds} folds "
            f"(it {have}); change splits.folds or use `folds: made`"
        )


def _check_coarse(name: str, row: CoarseConfig) -> Iterator[str]:
    if row.model not in MODELS:
        yield f"coarse.{name}.model: {unknown_name('model', row.model, MODELS)}"
    elif row.init == "imagenet21k" and not MODELS[row.model].imagenet21k:
        yield f"coarse.{name}.init: {row.model} has no ImageNet weights; use `init: random`"


def _check_refiner(name: str, row: RefinerConfig) -> Iterator[str]:
    try:
        parse_options(row.family, row.options)
    except ConfigError as error:
        yield f"refiners.{name}: {error}"
        return
    family = REFINERS[row.family]
    if family.needs_weights and row.weights is None:
        yield f"refiners.{name}.weights: missing; family {row.family} needs a file or a known name"
    if not family.needs_weights and row.weights is not None:
        yield f"refiners.{name}.weights: family {row.family} takes none; remove the key"


def _check_weights(config: StudyConfig) -> Iterator[str]:
    for name in config.weights.accept:
        if name not in WEIGHTS:
            yield f"weights.accept: {unknown_name('weights', name, WEIGHTS)}"
    for mirror in config.weights.mirrors:
        if not mirror.startswith(("http://", "https://")):
            yield f"weights.mirrors: '{mirror}' is no address; it begins with https:// or http://"
    for refiner in config.compare.refine:
        row = config.refiners.get(refiner)
        if row is None or row.weights is None:
            continue
        terms = unaccepted_terms(row.weights, config.weights.accept)
        if terms:
            yield f"refiners.{refiner}.weights: {terms}"
        family = WEIGHTS[known].family if (known := registered(row.weights)) else row.family
        if family != row.family:
            yield f"refiners.{refiner}: weights '{known}' are for family '{family}'; set that"


def _check_prompt_fits(config: StudyConfig) -> Iterator[str]:
    for refiner, prompts in config.compare.refine.items():
        row = config.refiners.get(refiner)
        if row is None or row.family not in REFINERS:
            continue
        reason = REFINERS[row.family].needs_mask
        for prompt in prompts:
            kind = config.prompts[prompt].kind if prompt in config.prompts else "mask"
            if reason and "mask" not in PROMPTS[kind].parts:
                yield f"compare.refine.{refiner}: prompt '{prompt}' is of kind '{kind}': {reason}"


def _methods(config: StudyConfig) -> Iterator[Method]:
    reference = config.compare.coarse[0]
    for name in dict.fromkeys(config.compare.coarse):
        yield Method(name, coarse=name)
    for refiner, prompts in config.compare.refine.items():
        for prompt in dict.fromkeys(prompts):
            source = config.prompts[prompt].source
            yield Method(f"{refiner}-{prompt}", reference, refiner, prompt, source)


def load_study(values: Mapping[str, Any]) -> Study:
    """Check a configuration against the registries and list its methods.

    Args:
        values: The YAML file as nested dicts.

    Raises:
        ConfigError: An unknown key or name, a bad value, or a combination that cannot work; the
            message lists them all.
    """
    config = load_config(values)
    problems = [
        *_check_names(config),
        *(p for name, row in config.coarse.items() for p in _check_coarse(name, row)),
        *(p for name, row in config.refiners.items() for p in _check_refiner(name, row)),
        *_check_weights(config),
        *_check_prompt_fits(config),
    ]
    if problems:
        raise ConfigError("\n  - ".join(["the configuration has errors:", *problems]))
    return Study(config, {method.name: method for method in _methods(config)})
