"""Inner folds: one outer fold's training and validation cases, split again.

A model of an inner fold predicts cases that it has not seen, and has seen nothing that the outer
fold reports on. So a refiner may learn from its predictions without learning from a leak.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence
from pathlib import Path

from ultrarefiner.datasets.groups import Groups, join
from ultrarefiner.datasets.splits import (
    COLUMNS,
    draw_groups,
    fold_rows,
    read_split,
    share_groups,
)
from ultrarefiner.errors import SplitError
from ultrarefiner.io import read_rows, write_rows

_KEY = "refiners.*.finetune.cross_fit.folds"


def split_inner(
    splits: str | Path,
    fold: int,
    folds: int,
    seed: int,
    validation: float,
    output: str | Path,
    overlaps: str | Path | None = None,
) -> None:
    """Write inner folds over the training and validation cases of one outer fold.

    Each of these cases is tested in one inner fold; the outer fold's test and holdout cases are
    in none. Groups never cross roles. Folds have equal numbers of images, of each dataset.

    Args:
        splits: ``splits.csv`` of the trainset, of ``protocol: nested``.
        fold: Outer fold.
        folds: Inner folds.
        seed: Seed of the inner folds.
        validation: Share of the groups left for training that is kept for model selection.
        output: Table to write, in the form of ``splits.csv``: inner folds from 0, roles train,
            validation and test; `group` is what was kept together, see ``read_groups``.
        overlaps: Images that datasets share; needed if the trainset is a union.

    Raises:
        SplitError: There are too few groups, the outer fold is not in the table, or the table is
            of ``protocol: seed``.
    """
    roles = read_split(splits, fold)
    both = set(roles["validation"]) & set(roles["test"])
    if both:
        raise SplitError(
            f"{splits}: fold {fold} validates on its test cases ({sorted(both)[0]}, ...), as "
            "`splits.protocol: seed` does, so inner folds would hold what is reported. Set "
            "`splits.protocol: nested`, or refiners.*.finetune.data to one that needs no "
            "predictions (`simulated`)."
        )
    kept = {*roles["train"], *roles["validation"]}
    names = read_groups(splits, overlaps)
    groups = _groups({case: names[case] for case in sorted(kept)})
    free = list(groups.members)
    _require_enough(free, folds, splits, fold)
    table: list[dict[str, object]] = []
    for inner, test in enumerate(share_groups(groups, free, folds, ("inner", seed, fold))):
        rest = [group for group in free if group not in test]
        if len(rest) < 2:
            raise _too_few(
                f"{splits}: inner fold {inner} of fold {fold} has {len(rest)} group(s) outside its "
                "test set, too few for training and validation (2 needed)",
                # Three folds are the fewest that leave two groups whatever the sizes of the groups.
                f"Set {_KEY} to 3",
            )
        chosen = draw_groups(
            groups, rest, validation, ("inner validation", seed, fold, inner), leave=1
        )
        parts = {"train": set(rest) - chosen, "validation": chosen, "test": test}
        table += fold_rows(
            groups, inner, {role: groups.cases(part) for role, part in parts.items()}
        )
    write_rows(output, COLUMNS, table)


def read_groups(splits: str | Path, overlaps: str | Path | None = None) -> dict[str, str]:
    """Return the group of each case of a table of splits.

    Groups of one dataset are those of the table. In a union their names are led by the dataset,
    since two datasets may use one name; groups that share an image, directly or through others,
    are one.

    Args:
        splits: ``splits.csv``.
        overlaps: Table of images that two datasets share, which ``find_overlaps`` wrote.
    """
    rows = read_rows(splits)
    several = len({_dataset(row["case"]) for row in rows}) > 1
    names = {
        row["case"]: f"{_dataset(row['case'])}/{row['group']}" if several else row["group"]
        for row in rows
    }
    if overlaps is None:
        return names
    links: list[tuple[str, Hashable]] = [(case, ("name", name)) for case, name in names.items()]
    # Cases of other datasets too: two copies of a third image are one image.
    for row in read_rows(overlaps):
        pair = ("pair", *sorted((row["case"], row["other_case"])))
        links += [(row["case"], pair), (row["other_case"], pair)]
        links.append((row["case"], ("group", row["dataset"], row["group"])))
        links.append((row["other_case"], ("group", row["other_dataset"], row["other_group"])))
    cluster = join(links)
    first: dict[str, str] = {}
    for case, name in names.items():
        first[cluster[case]] = min(name, first.get(cluster[case], name))
    return {case: first[cluster[case]] for case in names}


def _dataset(case: str) -> str:
    """Return the dataset that leads a case id."""
    dataset, mark, _ = case.partition("__")
    return dataset if mark else ""


def _groups(names: dict[str, str]) -> Groups:
    """Return groups whose labels are the datasets, so that each is in every fold."""
    members: dict[str, list[str]] = defaultdict(list)
    labels: dict[str, Counter[str]] = defaultdict(Counter)
    for case, name in names.items():
        members[name].append(case)
        labels[name][_dataset(case)] += 1
    return Groups(dict(members), dict(labels))


def _require_enough(free: Sequence[str], folds: int, splits: str | Path, fold: int) -> None:
    if len(free) < 3:
        raise _too_few(
            f"{splits}: fold {fold} trains and validates on {len(free)} group(s), and inner folds "
            f"({_KEY}) need 3",
            "Set refiners.*.finetune.data to one that needs no predictions (`simulated`)",
        )
    if len(free) < folds:
        raise _too_few(
            f"{splits}: the {len(free)} group(s) that fold {fold} trains and validates on cannot "
            f"fill {folds} inner folds",
            f"Set {_KEY} to at most {len(free)}",
        )


def _too_few(problem: str, cure: str) -> SplitError:
    return SplitError(f"{problem}. {cure}, or add cases.")
