"""Images that two datasets share: found before anything trains, so that nothing is tested on a copy.

Datasets are published under several names (Dataset B and UDIAT are one), collections take images
over from others, and a mirror may hold a scaled or recompressed copy. Equal pixels and equal
appearance are told by the hashes in each table of cases, so no image is read again.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ultrarefiner.datasets.base import shorten
from ultrarefiner.datasets.duplicates import similar_pairs
from ultrarefiner.datasets.groups import join
from ultrarefiner.datasets.loader import CaseRow, read_cases
from ultrarefiner.datasets.splits import COLUMNS as SPLIT_COLUMNS
from ultrarefiner.errors import DatasetError
from ultrarefiner.io import write_rows

COLUMNS = ["case", "dataset", "group", "other_case", "other_dataset", "other_group", "kind"]

_log = logging.getLogger(__name__)


class Overlap(NamedTuple):
    """An image of one dataset that another one holds too; kind is "equal" or "alike"."""

    case: str
    dataset: str
    group: str
    other_case: str
    other_dataset: str
    other_group: str
    kind: str


def find_overlaps(
    cases: Mapping[str, str | Path],
    acknowledged: Mapping[str, Collection[str]],
    trained: Collection[str],
    tested: Collection[str],
    output: str | Path,
    unseen: Mapping[str, str | Path],
) -> None:
    """Find the images that datasets share, and write which cases of each no other one trains on.

    An image is shared if its pixels are equal to those of another dataset's image, or if it looks
    like it (`perceptual_hash`). All cases of its group go with it: a model that saw one image of a
    patient or a near-duplicate has seen the others.

    Args:
        cases: ``cases.csv`` of each dataset of the study.
        acknowledged: For each dataset those that it is known to share images with; it is enough
            if one of the two names the other.
        trained: Datasets that a model trains on, alone or in a union.
        tested: Datasets that models of others are tested on.
        output: Table to write: `case, dataset, group`, the same of the `other_case`, and `kind`; each
            pair once;
            only a header where nothing is shared.
        unseen: For each dataset the table to write: `case, group, fold, role`, where `fold` is
            empty and `role` is unseen; its cases that are linked with no case of another dataset
            that is trained on.

    Raises:
        DatasetError: Two datasets hold equal pixels and neither acknowledges it, or one that is
            tested by models of others has no image that the trained ones have not.
    """
    tables = {name: read_cases(path) for name, path in sorted(cases.items())}
    overlaps = _overlaps(tables)
    _require_acknowledged(overlaps, acknowledged)
    for line in _told(overlaps):
        _log.warning("%s", line)
    trainers = _trainers(tables, overlaps, trained)
    kept = {name: [row for row in rows if not trainers[row.case]] for name, rows in tables.items()}
    problems = []
    for name in [name for name, rows in kept.items() if not rows]:
        others = ", ".join(sorted(set().union(*(trainers[row.case] for row in tables[name]))))
        line = (
            f"{name} holds no image that is not in {others}, or goes with one that is: a model of "
            f"{others} has seen them all"
        )
        if name in tested:
            cure = " or set compare.cross: false" if name in trained else ""
            problems.append(f"{line}; remove {name}, train on none of {others},{cure}".rstrip(","))
        else:
            _log.warning("%s; no model of another dataset can be tested on it", line)
    if problems:
        raise DatasetError("datasets that are to be unseen and are not:", problems)
    write_rows(output, COLUMNS, (overlap._asdict() for overlap in overlaps))
    for name, path in unseen.items():
        table = (
            {"case": row.case, "group": row.group, "fold": "", "role": "unseen"}
            for row in kept[name]
        )
        write_rows(path, SPLIT_COLUMNS, table)


def _overlaps(tables: Mapping[str, Sequence[CaseRow]]) -> list[Overlap]:
    everything = [row for rows in tables.values() for row in rows]
    names = [name for name, rows in tables.items() for _ in rows]
    pairs = similar_pairs(
        [row.sha256 for row in everything], [row.appearance for row in everything]
    )
    found = []
    for i, j, equal in pairs:
        name, other, row, copy = names[i], names[j], everything[i], everything[j]
        if name != other:
            kind = "equal" if equal else "alike"
            found.append(Overlap(row.case, name, row.group, copy.case, other, copy.group, kind))
    return sorted(found)


def _require_acknowledged(
    overlaps: Sequence[Overlap], acknowledged: Mapping[str, Collection[str]]
) -> None:
    equal: dict[tuple[str, str], list[str]] = defaultdict(list)
    for pair in overlaps:
        known = pair.other_dataset in acknowledged.get(pair.dataset, ())
        known = known or pair.dataset in acknowledged.get(pair.other_dataset, ())
        if pair.kind == "equal" and not known:
            names = f"{pair.case} = {pair.other_case}"
            equal[pair.dataset, pair.other_dataset].append(names)
    if not equal:
        return
    first, second = next(iter(equal))
    raise DatasetError(
        "datasets hold the same images, so a model trained on the one has seen the other. Leave "
        "one of them out, or say that you know, and they are kept apart: "
        f"`datasets.{second}.shares_images_with: [{first}]`. Equal pixels:",
        [
            f"{one} and {other}: {len(names)} images: {shorten(names)}"
            for (one, other), names in equal.items()
        ],
    )


def _told(overlaps: Sequence[Overlap]) -> list[str]:
    """Return a warning for each two datasets and kind of overlap."""
    pairs: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for pair in overlaps:
        sign = "=" if pair.kind == "equal" else "~"
        key = (pair.dataset, pair.other_dataset, pair.kind)
        pairs[key].append(f"{pair.case} {sign} {pair.other_case}")
    what = {"equal": "pairs of images of equal pixels", "alike": "pairs of images that look alike"}
    return [
        f"{one} and {other}: {len(names)} {what[kind]}: {shorten(names)}; they are kept apart: no "
        "model is tested on what it trained on in the other dataset"
        for (one, other, kind), names in pairs.items()
    ]


def _trainers(
    tables: Mapping[str, Sequence[CaseRow]],
    overlaps: Sequence[Overlap],
    trained: Collection[str],
) -> dict[str, frozenset[str]]:
    """Return for each case the other datasets that are trained on and hold what goes with it."""
    cluster = join(_links(tables, overlaps))
    # Equal sets are one object: there are few, and a case each.
    sets: dict[frozenset[str], frozenset[str]] = {}
    none: frozenset[str] = frozenset()
    trainers: dict[str, frozenset[str]] = {}
    for name in sorted(set(trained) & set(tables)):
        for row in tables[name]:
            more = trainers.get(cluster[row.case], none) | {name}
            trainers[cluster[row.case]] = sets.setdefault(more, more)
    others: dict[str, frozenset[str]] = {}
    for name, rows in tables.items():
        for row in rows:
            less = trainers.get(cluster[row.case], none) - {name}
            others[row.case] = sets.setdefault(less, less)
    return others


def _links(
    tables: Mapping[str, Sequence[CaseRow]], overlaps: Sequence[Overlap]
) -> Iterator[tuple[str, Hashable]]:
    for name, rows in tables.items():
        for row in rows:
            # Groups of two datasets may bear the same name.
            yield row.case, (name, row.group)
    for number, pair in enumerate(overlaps):
        yield pair.case, number
        yield pair.other_case, number
