"""What has to be there before any job starts: raw folders, weights that load, a place to write."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ultrarefiner.config import DatasetConfig, FinetuneConfig, StudyConfig
from ultrarefiner.errors import ConfigError, UltraRefinerError
from ultrarefiner.io import require_writable
from ultrarefiner.models import MODELS, starting_weights
from ultrarefiner.models.weights import (
    WEIGHTS,
    how_to_get,
    planned_file,
    to_be_fetched,
    weights_path,
)
from ultrarefiner.refine import load_refiner
from ultrarefiner.study.files import missing_root
from ultrarefiner.study.naming import branch_weights
from ultrarefiner.study.study import Study


def require_files(study: Study) -> None:
    """Check, before any job, that raw folders are there, weights load and results can be written.

    Weights are loaded whole, on the CPU: a damaged file is found now and not after days of
    training. Weights of the table that are not there yet are fetched first of all jobs.

    Raises:
        ConfigError: Something is missing or damaged; the message lists it all, with cures.
        OutputError: The results folder cannot be written.
    """
    config = study.config
    require_writable(Path("results") / config.run)
    found = [
        *(p for name, row in config.datasets.items() for p in missing_root(name, row)),
        *(p for name, row in config.datasets.items() for p in _missing_curation(name, row)),
        *(p for name in config.compare.coarse for p in _missing_pretrained(config, name)),
        *(p for name in config.compare.refine for p in _unusable_weights(config, name)),
    ]
    if found:
        raise ConfigError("\n  - ".join(["the study cannot start:", *found]))


def _missing_curation(name: str, row: DatasetConfig) -> Iterator[str]:
    if row.curation is not None and not Path(row.curation).is_file():
        yield (
            f"datasets.{name}.curation: there is no file {row.curation}. Correct the path, or remove "
            "the key to take the dataset as it is."
        )


def _missing_pretrained(config: StudyConfig, name: str) -> Iterator[str]:
    row = config.coarse[name]
    published = str(MODELS[row.model].pretrained), f"resnet{row.resnet or 50}"
    keys = zip(("pretrained", "branch"), published, starting_weights(row), strict=False)
    for key, known, given in keys:
        path = weights_path(given)
        # A file of NumPy's or torch's; one of safetensors is no archive.
        whole = zipfile.is_zipfile(path) or (path.suffix == ".safetensors" and path.is_file())
        if to_be_fetched(given) or whole:
            continue
        cure = (
            how_to_get(known, WEIGHTS[known], path)
            if path.name == WEIGHTS[known].file
            else f"Correct the path, or set `{key}: {known}`, which is fetched"
        )
        yield (
            f"coarse.{name}.{key}: {path} {'is damaged' if path.exists() else 'is not there'}. "
            f"{cure}; or set `init: random` to train from scratch."
        )


def _unusable_weights(config: StudyConfig, name: str) -> Iterator[str]:
    row = config.refiners[name]
    branch = branch_weights(row)
    if branch is not None and planned_file(branch) is None:
        yield f"refiners.{name}.branch: there is no file {branch}. Correct the path."
        return
    if row.weights is None or any(map(to_be_fetched, filter(None, (row.weights, branch)))):
        return
    try:
        if row.finetune is None:
            load_refiner(row.family, row.weights, "cpu", **row.options)
            return
        # Loads torch, which planning does not.
        from ultrarefiner.refine.begin import begin_refiner

        refiner, _ = begin_refiner(row.family, row.weights, "cpu", row.options)
    except UltraRefinerError as error:
        yield f"refiners.{name}.weights: {error}"
        return
    yield from _untrainable(name, refiner.sam, row.finetune)


def _untrainable(name: str, sam: Any, finetune: FinetuneConfig) -> Iterator[str]:
    """Yield what keeps a model from being trained so: fewer blocks than are to train, for example."""
    # They load torch, which planning does not.
    from ultrarefiner.models.checkpointing import checkpoint_blocks
    from ultrarefiner.models.trainable import set_trainable

    try:
        set_trainable(sam, finetune)
        if finetune.checkpointing:
            checkpoint_blocks(sam)
    except ConfigError as error:
        yield f"refiners.{name}.finetune: {error}"
