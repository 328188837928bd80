"""Groups: the cases that a split keeps together, by what makes them belong together."""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ultrarefiner.config import SplitsConfig
from ultrarefiner.errors import SplitError

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Groups:
    """Cases by group, and the labels of each group's cases."""

    members: dict[str, list[str]]
    labels: dict[str, Counter[str]]

    def cases(self, groups: Iterable[str]) -> list[str]:
        """Return the sorted cases of some groups."""
        return sorted(case for group in groups for case in self.members[group])

    def label(self, group: str) -> str:
        """Return the most frequent label of a group, the first by name among equals."""
        counts = self.labels[group]
        return min(counts, key=lambda label: (-counts[label], label))


def join(links: Iterable[tuple[str, Hashable]]) -> dict[str, str]:
    """Join names that share a link, directly or through others.

    Args:
        links: Pairs of a name and something that it may share with other names.

    Returns:
        For each name the smallest of the names that it is joined with.
    """
    parent: dict[str, str] = {}

    def find(name: str) -> str:
        while parent[name] != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    first: dict[Hashable, str] = {}
    for name, link in links:
        parent.setdefault(name, name)
        one, other = sorted((find(name), find(first.setdefault(link, name))))
        parent[other] = one
    return {name: find(name) for name in parent}


def group_cases(
    rows: Sequence[Mapping[str, str]], config: SplitsConfig, path: Path | str
) -> Groups:
    """Group the rows of a table of cases as `config.group` says.

    - ``auto``: by the column `group`: the patient, else near-duplicates; equal pixels always.
    - ``patient``: by the column `patient`; patients who share an image of equal pixels are one
      group.
    - ``duplicates``: by equal pixels (`sha256`), and by the column `group` where the patient is
      not known. Images of one patient may be parted, and so may near-duplicates of known
      patients, which the table does not tell.
    - ``image``: each by itself, with the cases of all its masks; a warning is logged if equal
      pixels may be parted.

    Args:
        rows: Rows of cases.csv, sorted by case.
        config: Options.
        path: The table, for messages.

    Raises:
        SplitError: There are no rows, a case is listed twice, or a needed column is empty.
    """
    if not rows:
        raise SplitError(f"{path} lists no cases: nothing to split. Check the dataset's folder.")
    repeated = [case for case, n in Counter(row["case"] for row in rows).items() if n > 1]
    if repeated:
        raise SplitError(f"{path} lists {', '.join(repeated[:5])} more than once. Prepare it anew.")
    column = {"image": "case", "patient": "patient"}.get(config.group, "group")
    nameless = [row["case"] for row in rows if not row.get(column)]
    if nameless:
        raise SplitError(
            f"{path}: splits.group: {config.group} needs the column '{column}', which is empty for "
            f"{len(nameless)} of {len(rows)} cases (first: {nameless[0]}). Use `splits.group: auto`."
        )
    members: dict[str, list[str]] = defaultdict(list)
    labels: dict[str, Counter[str]] = defaultdict(Counter)
    for row, name in zip(rows, _names(rows, config), strict=True):
        members[name].append(row["case"])
        labels[name][row.get("label") or ""] += 1
    return Groups(dict(members), dict(labels))


def _names(rows: Sequence[Mapping[str, str]], config: SplitsConfig) -> list[str]:
    """Return the name of each row's group."""
    if config.group == "auto":
        return [row["group"] for row in rows]
    names = [row["patient" if config.group == "patient" else "case"] for row in rows]
    if config.group == "image":
        # Where a case is one mask, an image has several; no choice parts them.
        image_of = join((row["case"], row.get("image") or row["case"]) for row in rows)
        names = [image_of[name] for name in names]
    links: list[tuple[str, Hashable]] = []
    for row, name in zip(rows, names, strict=True):
        links.append((name, ("name", name)))
        if row.get("sha256"):
            links.append((name, ("pixels", row["sha256"])))
        if config.group == "duplicates" and not row.get("patient"):
            links.append((name, ("near", row["group"])))
    joined = join(links)
    sizes = Counter(joined.values())
    shared = sum(size for size in sizes.values() if size > 1)
    if shared and config.group == "image":
        _log.warning(
            "splits.group: image: %d images have the pixels of another one and may be parted from "
            "it; `splits.group: duplicates` keeps them together",
            shared,
        )
        return names
    if shared and config.group == "patient":
        _log.warning(
            "splits.group: patient: %d patients share images of equal pixels, and are kept "
            "together as %d groups",
            shared,
            sum(size > 1 for size in sizes.values()),
        )
    return [joined[name] for name in names]


def cure_for_too_few(groups: Groups, free: Sequence[str], config: SplitsConfig) -> str:
    """Return what would give each fold a group to test and two others.

    Args:
        groups: All groups.
        free: Those that are not held out.
        config: Options that left too few.
    """
    cures = []
    if 3 <= len(free) < config.folds:
        cures.append(f"set `splits.folds` to at most {len(free)}")
    elif len(free) >= 3:
        # Three folds are the fewest that leave two groups whatever the sizes of the groups.
        cures.append("set `splits.folds: 3`")
    if config.holdout and len(groups.members) >= 3:
        cures.append("set a smaller `splits.holdout`")
    cases = sum(map(len, groups.members.values()))
    left = cases - (max(round(config.holdout * cases), 1) if config.holdout else 0)
    if cases > len(groups.members) and left >= max(config.folds, 3):
        cures.append("set `splits.group: image` if groups need not be kept together")
    text = ", or ".join([*cures, "add cases"])
    return f"{text[0].upper()}{text[1:]}."
