"""Training sets: the folds of several datasets joined, no image on both sides of a fold."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Hashable, Mapping
from pathlib import Path

from ultrarefiner.datasets.groups import join
from ultrarefiner.datasets.splits import COLUMNS, ROLES
from ultrarefiner.errors import SplitError
from ultrarefiner.io import read_rows, write_rows

_log = logging.getLogger(__name__)

# Who gives way where datasets share an image: what trains to what selects, both to what is scored.
_RANK = {"train": 0, "validation": 1, "test": 2, "holdout": 2}


def join_splits(
    members: Mapping[str, str | Path], overlaps: str | Path, output: str | Path
) -> None:
    """Write the folds of a union: fold k has the roles that fold k of each member gives.

    Where a group of one member shares an image with a group of another, directly or through
    others, the one that only trains is left out of the fold if the other validates, is tested or
    is held out there, and the one that validates is left out if the other is tested or held out.

    Args:
        members: ``splits.csv`` of each dataset of the union.
        overlaps: Table of images that two datasets share, which ``find_overlaps`` wrote for all
            datasets of the study.
        output: Table to write, as each member's.

    Raises:
        SplitError: The members do not have the same folds, or a fold has nothing left to train or
            select on.
    """
    rows = {name: read_rows(path) for name, path in sorted(members.items())}
    folds = {name: sorted({int(row["fold"]) for row in table}) for name, table in rows.items()}
    if len({tuple(numbers) for numbers in folds.values()}) != 1:
        told = "; ".join(f"{name} has {numbers}" for name, numbers in folds.items())
        raise SplitError(
            f"the datasets of a training set need the same folds: {told}. Delete their splits.csv "
            "and run again."
        )
    shared = _shared_images(rows, overlaps)
    table: list[dict[str, object]] = []
    left_out: set[str] = set()
    for fold in folds[next(iter(folds))]:
        mine = [row for part in rows.values() for row in part if int(row["fold"]) == fold]
        highest: dict[str, int] = defaultdict(int)
        for row in mine:
            if row["case"] in shared:
                cluster = shared[row["case"]]
                highest[cluster] = max(highest[cluster], _RANK[row["role"]])
        kept = [
            row
            for row in mine
            if row["case"] not in shared or _RANK[row["role"]] == highest[shared[row["case"]]]
        ]
        left_out |= {row["case"] for row in mine} - {row["case"] for row in kept}
        for role in ("train", "validation"):
            if not any(row["role"] == role for row in kept):
                raise SplitError(
                    f"{output}: fold {fold} has no {role} case that the tested parts of the other "
                    "datasets do not hold too. Leave one of these datasets out of the training set."
                )
        table += sorted(kept, key=lambda row: (row["case"], ROLES.index(row["role"])))
    write_rows(output, COLUMNS, [{name: row[name] for name in COLUMNS} for row in table])
    if left_out:
        _log.warning(
            "%d cases train or select in fewer folds than in their own dataset: they share images "
            "with cases that are scored there",
            len(left_out),
        )


def _shared_images(
    rows: Mapping[str, list[dict[str, str]]], overlaps: str | Path
) -> dict[str, str]:
    """Return a cluster for each case whose group is linked with a group of another dataset."""
    owner = {row["case"]: name for name, table in rows.items() for row in table}
    links: list[tuple[str, Hashable]] = []
    # Pairs with datasets outside the union too: two copies of a third image are one image, and two
    # images of its patient are one patient's.
    for row in read_rows(overlaps):
        pair = ("pair", *sorted((row["case"], row["other_case"])))
        links += [(row["case"], pair), (row["other_case"], pair)]
        links.append((row["case"], ("group", row["dataset"], row["group"])))
        links.append((row["other_case"], ("group", row["other_dataset"], row["other_group"])))
    if not links:
        return {}
    # Groups of two datasets may bear the same name.
    links += [
        (row["case"], ("group", name, row["group"]))
        for name, table in rows.items()
        for row in table
    ]
    joined = join(links)
    members: dict[str, set[str]] = defaultdict(set)
    for case, cluster in joined.items():
        if case in owner:
            members[cluster].add(owner[case])
    return {case: cluster for case, cluster in joined.items() if len(members[cluster]) > 1}
