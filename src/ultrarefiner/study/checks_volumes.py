"""What in a study cannot work on whole volumes, or needs them where there are none."""

from __future__ import annotations

from collections.abc import Iterator

from ultrarefiner.config import DatasetConfig, StudyConfig
from ultrarefiner.datasets.volume_records import holds_volumes
from ultrarefiner.errors import ConfigError
from ultrarefiner.refine import REFINERS


def volume_problems(config: StudyConfig) -> Iterator[str]:
    """Yield where a study would tear volumes, or needs whole ones and has none, with key and cure."""
    for name, row in config.datasets.items():
        whole = _holds_volumes(name, row)
        if whole and row.role == "train":
            yield from _torn(name, config)
        if whole is False and row.export == "medsam2":
            yield (
                f"datasets.{name}.export: medsam2 writes whole volumes, and this dataset holds "
                "single images, or not all slices of its volumes; keep all slices, or use `samed2d`"
            )
    yield from _clip_problems(config)


def _holds_volumes(name: str, row: DatasetConfig) -> bool | None:
    """Tell whether a dataset holds whole volumes; None where its row is wrong, which is told."""
    try:
        return holds_volumes(row.layout or name, row.options)
    except ConfigError:
        return None


def _torn(name: str, config: StudyConfig) -> Iterator[str]:
    splits = config.splits
    why = f"would part the slices of a volume of dataset '{name}'"
    if splits.protocol == "seed":
        yield (
            f"splits.protocol: seed makes folds of cases and {why}; use `protocol: nested`, or leave "
            "the dataset to another study"
        )
    if splits.group in ("image", "duplicates"):
        yield (
            f"splits.group: {splits.group} {why}; use `group: auto`, or leave the dataset to another "
            "study"
        )


def _clip_problems(config: StudyConfig) -> Iterator[str]:
    able = [name for name, family in REFINERS.items() if "propagate" in family.options.model_fields]
    flat = [
        name
        for name, row in config.datasets.items()
        if row.role == "train" and _holds_volumes(name, row) is False
    ]
    for name, row in config.refiners.items():
        if row.finetune is None or row.finetune.clip == 1 or row.family not in REFINERS:
            continue
        key = f"refiners.{name}.finetune.clip"
        if row.family not in able:
            yield (
                f"{key}: family {row.family} has no memory to follow a lesion with (this has: "
                f"{', '.join(able)}); remove the key"
            )
        elif name in config.compare.refine:
            for dataset in flat:
                yield (
                    f"{key}: dataset '{dataset}', on which it trains, holds single images, or not "
                    "all slices of its volumes; keep all slices, set `role: unseen`, or remove the "
                    "key"
                )
