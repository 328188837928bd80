"""Who is in which fold: decided here, once, for every method.

Everything follows from the seed and the sets of cases and groups: cases are sorted first, and
choices by chance go by a hash of seed and group, so neither the order of ``cases.csv`` nor the
versions of libraries change a fold.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from ultrarefiner.config import SplitsConfig
from ultrarefiner.datasets.groups import Groups, cure_for_too_few, group_cases
from ultrarefiner.datasets.tables import each_row
from ultrarefiner.errors import SplitError
from ultrarefiner.io import item_seed, read_rows, write_rows

ROLES = ("train", "validation", "test", "holdout")
COLUMNS = ["case", "group", "fold", "role"]
# What is read of a table of cases.
_USED = ("case", "image", "group", "patient", "label", "sha256", "split")

_log = logging.getLogger(__name__)


def split_folds(
    cases: Path | str,
    published_folds: Path | str | None,
    output: Path | str,
    config: SplitsConfig,
    folds_from: Literal["made", "published"] = "made",
    official_test: bool = False,
) -> None:
    """Write who trains, validates and tests in each outer fold.

    With ``protocol: nested``, groups never cross roles: holdout groups are taken out first, the
    others are shared among the folds with equal numbers of images and of each label, and each
    fold's validation groups come out of its training groups. With ``protocol: seed``, the folds
    are scikit-learn's ``KFold(n_splits, shuffle=True, random_state=seed)`` of the sorted cases:
    each test case has a second row as ``validation``, and groups may cross.

    Args:
        cases: Table of the prepared cases; `case`, `image`, `group`, `patient`, `label`, `sha256`
            and `split` are used.
        published_folds: Table `case, folds, fold` of the dataset's own partitions, where `folds`
            is the number of folds in a partition; numbering from 0 and from 1 are both taken.
        output: Table to write: `case, group, fold, role`, folds from 0.
        config: Options; `group_cases` tells what `group` keeps together.
        folds_from: Make the folds, or take the published ones.
        official_test: Hold out the dataset's official test part, not a share drawn here.

    Raises:
        SplitError: There are too few groups, the published folds do not fit, or there is no
            official test part.
    """
    rows = sorted(each_row(cases, _USED), key=lambda row: row["case"])
    groups = group_cases(rows, config, cases)
    if official_test:
        holdout = _official_test(groups, rows, cases)
        # The share of `splits.holdout` has no part in this dataset.
        config = config.model_copy(update={"holdout": 0.0})
    else:
        holdout = draw_groups(
            groups, list(groups.members), config.holdout, ("holdout", config.seed)
        )
    free = [group for group in groups.members if group not in holdout]
    write_rows(
        output,
        COLUMNS,
        _table(groups, free, holdout, config, published_folds, folds_from, cases),
    )


def _table(
    groups: Groups,
    free: Sequence[str],
    holdout: set[str],
    config: SplitsConfig,
    published: Path | str | None,
    folds_from: Literal["made", "published"],
    path: Path | str,
) -> Iterator[dict[str, object]]:
    """Yield the rows of the table, one fold at a time; see `split_folds`."""
    if config.protocol == "seed":
        if folds_from == "published":
            raise SplitError(
                "splits.protocol: seed makes its own folds, and the dataset asks for "
                "`folds: published`. Set the dataset's `folds: made`, or `splits.protocol: nested`."
            )
        folds = _seed_folds(groups.cases(free), config, path)
        for fold, test in enumerate(folds):
            train = sorted(set(groups.cases(free)) - set(test))
            parts = {
                "train": train,
                "validation": test,
                "test": test,
                "holdout": groups.cases(holdout),
            }
            yield from fold_rows(groups, fold, parts)
        _warn_of_crossing(groups, folds)
        return
    if folds_from == "published":
        group_folds = _published_folds(groups, free, published, config)
    else:
        group_folds = _made_folds(groups, free, config, path)
    for fold, test_groups in enumerate(group_folds):
        rest = [group for group in free if group not in test_groups]
        validation = draw_groups(
            groups, rest, config.validation, ("validation", config.seed, fold), leave=1
        )
        if not validation or len(validation) == len(rest):
            raise SplitError(
                f"{path}: fold {fold} has {len(rest)} group(s) outside its test set, too few "
                f"for training and validation (2 needed). {cure_for_too_few(groups, free, config)}"
            )
        parts = {
            "train": set(rest) - validation,
            "validation": validation,
            "test": test_groups,
            "holdout": holdout,
        }
        yield from fold_rows(
            groups, fold, {role: groups.cases(part) for role, part in parts.items()}
        )


def read_split(splits: Path | str, fold: int) -> dict[str, list[str]]:
    """Return the cases of each role in one fold.

    Args:
        splits: Table written by `split_folds`.
        fold: Outer fold, from 0.

    Returns:
        For each of `ROLES` the sorted case ids; with ``protocol: seed``, validation and test
        are the same cases.

    Raises:
        SplitError: The table has no such fold, or a training case has a second role.
    """
    parts: dict[str, list[str]] = {role: [] for role in ROLES}
    folds = set()
    # Row by row: the table has a row for each case and fold.
    for row in each_row(splits, ("case", "fold", "role")):
        folds.add(row["fold"])
        if row["fold"] == str(fold):
            if row["role"] not in parts:
                raise SplitError(f"{splits}: unknown role '{row['role']}' of {row['case']}")
            parts[row["role"]].append(row["case"])
    if str(fold) not in folds:
        raise SplitError(
            f"{splits} has no fold {fold}, only {', '.join(sorted(folds, key=int)) or 'none'}. "
            "Delete it and run again, or set `splits.run` to folds that it has."
        )
    kept_out = set(parts["validation"]) | set(parts["test"]) | set(parts["holdout"])
    both = sorted(kept_out & set(parts["train"]))
    if both:
        raise SplitError(
            f"{splits}: fold {fold} trains on cases that it also evaluates: {', '.join(both[:5])}. "
            "Delete the file and run again."
        )
    return {role: sorted(ids) for role, ids in parts.items()}


def draw_groups(
    groups: Groups, among: Sequence[str], share: float, salt: tuple[object, ...], leave: int = 0
) -> set[str]:
    """Draw a share of groups, at least one if the share is positive, in proportion to labels.

    Args:
        groups: All groups.
        among: Those to draw from.
        share: Share of them to draw.
        salt: What chance depends on, beside the groups' names: what is drawn, and the seed.
        leave: How many groups stay undrawn at least.
    """
    count = min(max(round(share * len(among)), 1), len(among) - leave) if share > 0 else 0
    if count <= 0:
        return set()
    strata: dict[str, list[str]] = defaultdict(list)
    for group in among:
        strata[groups.label(group)].append(group)
    quota = {label: count * len(names) / len(among) for label, names in strata.items()}
    take = {label: int(value) for label, value in quota.items()}
    by_remainder = sorted(quota, key=lambda label: (take[label] - quota[label], label))
    for label in by_remainder[: count - sum(take.values())]:
        take[label] += 1
    return {
        group
        for label, names in strata.items()
        for group in sorted(names, key=lambda name: (item_seed(*salt, name), name))[: take[label]]
    }


def _official_test(groups: Groups, rows: Sequence[Mapping[str, str]], path: Path | str) -> set[str]:
    """Return the groups that the dataset's official division tests on."""
    official = {row["case"] for row in rows if row.get("split") == "test"}
    if not official:
        raise SplitError(
            f"{path}: no case is of the official test part (column split). Set the dataset's "
            "`official_test: false`, or complete the dataset."
        )
    held = {group for group, cases in groups.members.items() if official & set(cases)}
    more = set(groups.cases(held)) - official
    if more:
        _log.warning(
            "%d cases are held out too, for they belong to a group of the official test part: %s",
            len(more),
            ", ".join(sorted(more)[:5]),
        )
    return held


def share_groups(
    groups: Groups, free: Sequence[str], folds: int, salt: tuple[object, ...]
) -> list[set[str]]:
    """Share groups among folds: the largest first, each to the fold that it unbalances least.

    Args:
        groups: All groups.
        free: Those to share, at least as many as folds.
        folds: Number of folds; none stays empty.
        salt: What the order of equally large groups depends on, beside their names.
    """
    labels = sorted({label for group in free for label in groups.labels[group]})
    # One column for each label and one for the images, so that both are balanced.
    counts = {
        group: np.array([groups.labels[group][label] for label in labels] + [0], float)
        for group in free
    }
    for vector in counts.values():
        vector[-1] = vector.sum()
    weight = 1.0 / sum(counts.values())
    filled = np.zeros((folds, len(labels) + 1))
    shared: list[set[str]] = [set() for _ in range(folds)]
    order = sorted(free, key=lambda g: (-counts[g][-1], item_seed(*salt, g), g))
    for group in order:
        added = counts[group]
        # Growth of the weighted sum of squares, which is least when all folds are equal.
        cost = ((2.0 * filled + added) * added * weight).sum(axis=1)
        fold = int(np.lexsort((np.arange(folds), np.round(cost, 9)))[0])
        shared[fold].add(group)
        filled[fold] += added
    return shared


def _made_folds(
    groups: Groups, free: Sequence[str], config: SplitsConfig, path: Path | str
) -> list[set[str]]:
    """Return the groups of each fold made here."""
    if len(free) < config.folds:
        raise SplitError(
            f"{path}: {len(free)} group(s) cannot fill {config.folds} folds. "
            f"{cure_for_too_few(groups, free, config)}"
        )
    return share_groups(groups, free, config.folds, ("fold", config.seed))


def _published_folds(
    groups: Groups, free: Sequence[str], path: Path | str | None, config: SplitsConfig
) -> list[set[str]]:
    """Return the groups of each published fold.

    Raises:
        SplitError: No partition has so many folds, a case is in none, or a group is in two.
    """
    partitions: dict[int, dict[str, int]] = defaultdict(dict)
    for row in read_rows(path) if path is not None else []:
        partitions[int(row["folds"])][row["case"]] = int(row["fold"])
    if not partitions:
        raise SplitError(
            "this dataset has no published folds (or their table was not found with it). Set the "
            "dataset's `folds: made`."
        )
    if config.folds not in partitions:
        have = ", ".join(str(count) for count in sorted(partitions))
        raise SplitError(
            f"splits.folds: {config.folds} is not a published partition of this dataset "
            f"(published: {have}). Set `splits.folds` to one of these, or the dataset's "
            "`folds: made`."
        )
    published = partitions[config.folds]
    wanted = groups.cases(free)
    missing = [case for case in wanted if case not in published]
    if missing:
        raise SplitError(
            f"{path}: {len(missing)} case(s) have no fold in the published {config.folds}-fold "
            f"partition: {', '.join(missing[:5])}. Complete the dataset's table of folds, or set "
            "the dataset's `folds: made`."
        )
    numbers = sorted({published[case] for case in wanted})
    if len(numbers) != config.folds:
        raise SplitError(
            f"{path}: the published {config.folds}-fold partition gives these cases the folds "
            f"{numbers} only; each fold needs a case. Use the whole dataset, or `folds: made`."
        )
    folds: list[set[str]] = [set() for _ in numbers]
    for group in free:
        first, *others = groups.members[group]
        for other in others:
            if published[other] != published[first]:
                raise SplitError(
                    f"{path}: the published {config.folds}-fold partition puts {first} in fold "
                    f"{published[first]} and {other} in fold {published[other]}, but both belong "
                    f"to group '{group}', so one would be tested by a model that has seen the "
                    "other. Set the dataset's `folds: made`."
                )
        folds[numbers.index(published[first])].add(group)
    return folds


def _seed_folds(cases: Sequence[str], config: SplitsConfig, path: Path | str) -> list[list[str]]:
    """Return the test cases of each fold of the original protocol."""
    if len(cases) < config.folds:
        raise SplitError(
            f"{path}: {len(cases)} case(s) cannot fill {config.folds} folds. "
            + (f"Set `splits.folds` to at most {len(cases)}, or add" if len(cases) > 1 else "Add")
            + " cases."
        )
    # Imported here: it takes longer than the rest of this job, and only this protocol needs it.
    from sklearn.model_selection import KFold

    folds = KFold(n_splits=config.folds, shuffle=True, random_state=config.seed)
    return [[cases[i] for i in test] for _, test in folds.split(np.zeros(len(cases)))]


def _warn_of_crossing(groups: Groups, folds: Sequence[Sequence[str]]) -> None:
    fold_of = {case: fold for fold, test in enumerate(folds) for case in test}
    crossing = sum(
        len({fold_of[case] for case in members if case in fold_of}) > 1
        for members in groups.members.values()
    )
    if crossing:
        _log.warning(
            "protocol seed: %d of %d groups have cases in more than one fold, so their scores are "
            "too good; `splits.protocol: nested` keeps them together",
            crossing,
            len(groups.members),
        )


def fold_rows(
    groups: Groups, fold: int, parts: Mapping[str, Sequence[str]]
) -> list[dict[str, object]]:
    """Return the rows of a fold in a table of splits, sorted.

    Args:
        groups: All groups.
        fold: Number of the fold.
        parts: For each of `ROLES` its cases, or for some of them.
    """
    group_of = {case: group for group, members in groups.members.items() for case in members}
    rows = [
        {"case": case, "group": group_of[case], "fold": fold, "role": role}
        for role in ROLES
        for case in parts.get(role, ())
    ]
    return sorted(rows, key=lambda row: (row["case"], ROLES.index(row["role"])))
