"""What in a study's datasets, folds and training sets cannot work."""

from __future__ import annotations

from collections.abc import Iterator

from ultrarefiner.config import DatasetConfig, SplitsConfig, StudyConfig
from ultrarefiner.datasets import DATASETS
from ultrarefiner.errors import ConfigError
from ultrarefiner.registry import unknown_name


def data_problems(config: StudyConfig) -> Iterator[str]:
    """Yield what is wrong with datasets and training sets, each with its key and its cure."""
    for name, row in config.datasets.items():
        yield from _check_dataset(name, row, config)
    if all(row.role == "unseen" for row in config.datasets.values()):
        yield "datasets: all are of role `unseen`, so there is nothing to train on; change one role"
    elif config.compare.cross and len(config.datasets) == 1:
        yield "compare.cross: has no effect with one dataset; add another, or remove the key"
    for name, members in config.trainsets.items():
        yield from _check_trainset(name, members, config)


def _check_dataset(name: str, row: DatasetConfig, config: StudyConfig) -> Iterator[str]:
    layout = row.layout or name
    key = f"datasets.{name}" + (".layout" if row.layout else "")
    if layout not in DATASETS:
        hint = "" if row.layout else " A dataset of another name needs `layout:`."
        yield f"{key}: {unknown_name('dataset layout', layout, DATASETS)}{hint}"
        return
    if row.folds == "published":
        yield from _check_published(name, layout, config.splits)
    try:
        DATASETS[layout].parse_options(row.options)
    except ConfigError as error:
        yield f"datasets.{name}.options: {error}"
    if row.official_test and row.role == "unseen":
        yield (
            f"datasets.{name}.official_test: has no effect on a dataset of role `unseen`, which is "
            "tested whole; remove it"
        )
    for other in row.shares_images_with:
        if other == name:
            yield f"datasets.{name}.shares_images_with: it names itself; remove that"
        elif other not in config.datasets:
            yield (
                f"datasets.{name}.shares_images_with: "
                f"{unknown_name('dataset', other, config.datasets)}"
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


def _check_trainset(name: str, members: list[str], config: StudyConfig) -> Iterator[str]:
    if name in config.datasets:
        yield f"trainsets.{name}: is the name of a dataset too; choose another name"
    if len(set(members)) < 2:
        yield (
            f"trainsets.{name}: a union needs two datasets or more; models train on each dataset "
            "alone anyway"
        )
    for member in members:
        if member not in config.datasets:
            yield f"trainsets.{name}: {unknown_name('dataset', member, config.datasets)}"
        elif config.datasets[member].role == "unseen":
            yield (
                f"trainsets.{name}: {member} is of role `unseen`, which nothing trains on; leave it "
                "out, or change its role"
            )
