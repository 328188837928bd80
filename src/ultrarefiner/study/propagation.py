"""Refiners that follow lesions through volumes: what they need, and where they cannot work."""

from __future__ import annotations

from collections.abc import Iterator

from ultrarefiner.config import PromptConfig, RefinerConfig, StudyConfig
from ultrarefiner.datasets.volume_records import holds_volumes
from ultrarefiner.errors import ConfigError
from ultrarefiner.refine import REFINERS, parse_options

_IDLE = ("expand", "points", "negative", "largest", "noise")
"""Keys of a prompt mode that say nothing about prompts made from the mask before."""


def propagation_of(row: RefinerConfig) -> str:
    """Return how a refiner goes through volumes: ``none`` for one that takes each case by itself.

    Raises:
        ConfigError: Its options cannot be read.
    """
    if "propagate" not in REFINERS[row.family].options.model_fields:
        return "none"
    return parse_options(row.family, row.options).propagate


def followed_slices(config: StudyConfig, run: str, dataset: str, refiner: str) -> str | list[str]:
    """Return the table of the slices that a refiner follows; [] for one that follows nothing."""
    if propagation_of(config.refiners[refiner]) == "none":
        return []
    return f"results/{run}/{dataset}/volumes/slices.csv"


def propagation_problems(config: StudyConfig) -> Iterator[str]:
    """Yield where a refiner that follows lesions through volumes cannot, with key and cure."""
    for name, prompts in config.compare.refine.items():
        row = config.refiners.get(name)
        if row is None or row.family not in REFINERS:
            continue
        try:
            way = propagation_of(row)
        except ConfigError:
            continue  # said of the row itself
        if way == "none":
            continue
        yield from _flat_datasets(name, config)
        yield from (
            f"compare.guarded: {method} follows volumes, and a guard judges single images; remove it"
            for method in config.compare.guarded
            if method in {f"{name}-{prompt}" for prompt in prompts}
        )
        for prompt in prompts:
            if prompt in config.prompts:
                yield from _unfit_prompt(name, way, prompt, config.prompts[prompt])


def _flat_datasets(name: str, config: StudyConfig) -> Iterator[str]:
    for dataset, data in config.datasets.items():
        try:
            whole = holds_volumes(data.layout or dataset, data.options)
        except ConfigError:
            continue  # said of the dataset itself
        if not whole:
            yield (
                f"refiners.{name}.propagate: dataset '{dataset}' holds single images, or not all "
                "slices of its volumes; leave it to another study, or keep all slices"
            )


def _unfit_prompt(name: str, way: str, prompt: str, mode: PromptConfig) -> Iterator[str]:
    where = f"compare.refine.{name}: prompt mode '{prompt}'"
    if mode.crop is not None:
        yield f"{where} crops around each mask, and a volume is followed in whole slices; take another"
    default = PromptConfig(kind=mode.kind, source=mode.source)
    moved = [key for key in _IDLE if getattr(mode, key) != getattr(default, key)]
    if way == "masks" and moved:
        yield (
            f"{where} has `{moved[0]}`, which says nothing about prompts made from the mask of the "
            "slice before (propagate: masks); take a mode without it"
        )
