"""Subgroups of cases: by what the truth and the image are, never by what was predicted."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ultrarefiner.io import read_rows

# Lower ends of the share of the image that the lesion covers. Fixed, so that "small" means the
# same in every dataset and study; breast lesions on ultrasound cover about 1 to 30 %.
SIZES = {"small": 0.0, "medium": 0.05, "large": 0.15}
DIMENSIONS = (
    *("label", "size", "tertile", "overlay", "border", "look_alike", "spacing", "elsewhere"),
)
"""What cases are divided by, in the order of the summary."""

_ORDER = [*SIZES, "yes", "no", "known", "unknown"]

Row = dict[str, Any]
Traits = dict[tuple[str, str], dict[str, str | None]]
"""For each dataset and case, its value in each of `DIMENSIONS`; None where it has none."""


def size_of(area_share: float) -> str:
    """Return the size subgroup: small below 5 % of the image, large from 15 %, else medium."""
    return [name for name, least in SIZES.items() if area_share >= least][-1]


def read_elsewhere(overlaps: str | Path | None) -> set[tuple[str, str]]:
    """Return the (dataset, case) whose image another dataset has too, or nearly so."""
    found = set()
    for row in read_rows(overlaps) if overlaps is not None else []:
        if row["dataset"] != row["other_dataset"]:
            found |= {(row["dataset"], row["case"]), (row["other_dataset"], row["other_case"])}
    return found


def find_traits(rows: Iterable[Row], elsewhere: set[tuple[str, str]]) -> Traits:
    """Return what subgroups each case belongs to.

    A case without a lesion has no size and no tertile. Tertiles are those of the lesions of a
    dataset, by the share of the image that they cover; a lesion at a boundary is of the lower one.

    Args:
        rows: Typed rows of score tables; a case may be in many.
        elsewhere: Cases that another dataset has too.
    """
    cases = {(row["dataset"], row["case"]): row for row in rows}
    areas: dict[str, list[float]] = defaultdict(list)
    for row in cases.values():
        if not row["empty_truth"]:
            areas[row["dataset"]].append(row["area_share"])
    thirds = {dataset: _thirds(sorted(found)) for dataset, found in areas.items()}
    traits: Traits = {}
    for key, row in cases.items():
        area = None if row["empty_truth"] else row["area_share"]
        tertile = None if area is None else 1 + sum(area > end for end in thirds[row["dataset"]])
        traits[key] = {
            "label": row["label"] or "unknown",
            "size": None if area is None else size_of(area),
            "tertile": None if tertile is None else str(tertile),
            "overlay": "no" if row["overlay"] in ("", "none") else "yes",
            "border": row["border"],
            "look_alike": row["look_alike"],
            "spacing": row["spacing"],
            "elsewhere": "yes" if key in elsewhere else "no",
        }
    return traits


def subgroups(rows: Iterable[Row], traits: Traits) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the name of each subgroup, `all` first, and which of the rows it has, bool (N,).

    A dimension in which all rows are alike has no subgroups.
    """
    mine: list[Mapping[str, str | None]] = [traits[row["dataset"], row["case"]] for row in rows]
    yield "all", np.ones(len(mine), dtype=bool)
    for dimension in DIMENSIONS:
        values = np.array([found[dimension] or "" for found in mine])
        names = sorted(set(values) - {""}, key=lambda name: (_place(name), name))
        for name in names if len(names) > 1 else []:
            yield f"{dimension}={name}", values == name


def _thirds(areas: list[float]) -> tuple[float, float]:
    """Return the largest value of the lower third, and of the middle one, of sorted values."""
    first, second = (-(-part * len(areas) // 3) - 1 for part in (1, 2))
    return areas[first], areas[second]


def _place(name: str) -> int:
    return _ORDER.index(name) if name in _ORDER else -1
