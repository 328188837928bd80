"""A study: the configuration checked against the registries, and the methods it asks for.

This is what the Snakefile works from. It imports no model code, so that planning stays fast.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from ultrarefiner.config import (
    DatasetConfig,
    RefinerConfig,
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
    weights_name,
    weights_path,
)
from ultrarefiner.refine import REFINERS, load_refiner, parse_options
from ultrarefiner.study_checks import problems

_SAMPLE, _SAMPLES = 1 << 16, 63  # bytes of a sample of a weights file, and how many more
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

        The weights' name; the family follows where a file of the user's own is not plain SAM's, and
        digits where an option that changes embeddings is not the default.
        """
        row = self.config.refiners[refiner]
        if not REFINERS[row.family].shelves_embeddings or row.weights is None:
            return None
        options = _embedding_options(row)
        # One file may be read as two families, and their frames differ.
        suffix = "" if registered(row.weights) or row.family == "sam" else f"_{row.family}"
        suffix += f"_{json_sha256(options)[:8]}" if options else ""
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
        return _embedding_options(sharing[0]) | ({"compile": True} if compiled else {})

    def embeds_full_images(self, name: str) -> bool:
        """Return whether full images are encoded under a weights name, beside any crops."""
        prompts = (
            p for refiner in self._sharing(name) for p in self.config.compare.refine[refiner]
        )
        return any(self.view_of(prompt).window is None for prompt in prompts)

    def _sharing(self, name: str) -> list[str]:
        return [row for row in self.config.compare.refine if self.embeddings_of(row) == name]

    def refiner_options(self, refiner: str) -> dict[str, Any]:
        """Return a refiner's own keys, presets resolved, without those that say the default."""
        row = self.config.refiners[refiner]
        default = REFINERS[row.family].options().model_dump(mode="json")
        given = parse_options(row.family, row.options).model_dump(mode="json")
        return {key: value for key, value in sorted(given.items()) if value != default[key]}

    def require_files(self) -> None:
        """Check, before any job, that raw folders are there, weights load and results can be written.

        Weights are loaded whole, on the CPU: a damaged file is found now and not after days of
        training. Weights of the table that are not there yet are fetched first of all jobs.

        Raises:
            ConfigError: Something is missing or damaged; the message lists it all, with cures.
            OutputError: The results folder cannot be written.
        """
        require_writable(Path("results") / self.config.run)
        found = [
            *(p for name, row in self.config.datasets.items() for p in _missing_root(name, row)),
            *(p for name in self.config.compare.coarse for p in self._missing_pretrained(name)),
            *(p for name in self.config.compare.refine for p in self._unusable_weights(name)),
        ]
        if found:
            raise ConfigError("\n  - ".join(["the study cannot start:", *found]))

    def _missing_pretrained(self, name: str) -> Iterator[str]:
        row = self.config.coarse[name]
        path = weights_path(row.pretrained)
        if row.init == "random" or to_be_fetched(row.pretrained) or zipfile.is_zipfile(path):
            return
        known = MODELS[row.model].pretrained
        cure = (
            how_to_get(known, WEIGHTS[known], path)
            if path.name == WEIGHTS[known].file
            else f"Correct the path, or set `pretrained: {known}`, which is fetched"
        )
        yield (
            f"coarse.{name}.pretrained: {path} {'is damaged' if path.exists() else 'is not there'}. "
            f"{cure}; or set `init: random` to train from scratch."
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


def own_weights(name_or_path: str | None) -> str | None:
    """Return a digest of a weights file of the user's own: its size, and samples of all its parts.

    A job that carries it in its params runs again when another file takes the place, whatever its
    time. None for published weights, whose bytes are checked whenever they are used, and for none.
    """
    if name_or_path is None or registered(name_or_path):
        return None
    path = Path(name_or_path)
    if not path.is_file():
        return "absent"
    digest = sha256()
    with open(path, "rb") as handle:
        last = handle.seek(0, os.SEEK_END) - _SAMPLE
        digest.update(str(last).encode())
        # The end is among them: there a file of torch.save has the check sums of all its tensors.
        for number in range(_SAMPLES + 1):
            handle.seek(max(last, 0) * number // _SAMPLES)
            digest.update(handle.read(_SAMPLE))
    return digest.hexdigest()[:16]


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
    if found := problems(config):
        raise ConfigError("\n  - ".join(["the configuration has errors:", *found]))
    return Study(config, {method.name: method for method in _methods(config)})
