"""The table of dataset layouts, and the cases in a folder.

A new dataset is one module with a `ROW` and one line in `DATASETS`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ultrarefiner.datasets import (
    abus,
    bus,
    bus_uc,
    bus_uclm,
    busbra,
    busi,
    coco,
    manifest,
    nifti,
    pairs,
    samed2d,
    stu,
    udiat,
    unet_volumes,
)
from ultrarefiner.datasets.base import IMAGE_SUFFIXES, Case, DatasetRow, Listing, shorten, slug
from ultrarefiner.datasets.reading import load_case, map_cases, why_empty
from ultrarefiner.errors import ConfigError, DatasetError
from ultrarefiner.registry import Registry, resolve

_logger = logging.getLogger(__name__)
# File names may have 255 bytes; some are a case id and more.
_LONGEST_ID = 200

DATASETS: Registry[DatasetRow] = Registry(
    "dataset layout",
    {
        "abus": abus.ROW,
        "bus": bus.ROW,
        "bus_uc": bus_uc.ROW,
        "bus_uclm": bus_uclm.ROW,
        "busbra": busbra.ROW,
        "busi": busi.ROW,
        "coco": coco.ROW,
        "manifest": manifest.ROW,
        "nifti": nifti.ROW,
        "pairs": pairs.ROW,
        "samed2d": samed2d.ROW,
        "stu": stu.ROW,
        "udiat": udiat.ROW,
        "volumes": unet_volumes.ROW,
    },
)


def list_cases(
    layout: str,
    root: str | Path,
    name: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> Listing:
    """List a dataset without reading images.

    Args:
        layout: Row of `DATASETS`.
        root: Folder of the dataset as downloaded.
        name: Name of the dataset in the study, which begins the case ids; default `layout`.
        options: The layout's own keys, where it takes some.

    Returns:
        The listing, its cases sorted by id, problems included.

    Raises:
        ConfigError: The layout is unknown, or does not take these options.
        DatasetError: The folder is not of this layout.
    """
    row = DATASETS[layout]
    adapter = resolve(row.adapter) if isinstance(row.adapter, str) else row.adapter
    try:
        parsed = row.parse_options(options or {})
    except ConfigError as error:
        raise ConfigError(f"options of layout {layout}: {error}") from None
    listing = adapter(Path(root)) if row.options is None else adapter(Path(root), parsed)
    ids: dict[str, str] = {}
    first: dict[str, Path] = {}
    cases = []
    for case in sorted(listing.cases, key=lambda case: (case.image, case.part or "")):
        words = slug(case.id)
        case_id = f"{name or layout}__{words}"
        if not words:
            listing.problems.append(
                f"{case.image}: the file name has no letter or digit to make a case id of; rename it"
            )
        elif len(case_id) > _LONGEST_ID:
            listing.problems.append(
                f"{case.image}: its case id would have {len(case_id)} characters, too many for file "
                f"names (at most {_LONGEST_ID}); shorten the names of the file and its folders"
            )
        elif case_id in first:
            listing.problems.append(
                f"{case.image} and {first[case_id]} make the same case id {case_id}; rename one "
                "of them, with its masks"
            )
        else:
            ids[case.id] = case_id
            first[case_id] = case.image
            cases.append(replace(case, id=case_id))
    listing.cases = sorted(cases, key=lambda case: case.id)
    listing.folds = sorted((ids[raw], n, fold) for raw, n, fold in listing.folds if raw in ids)
    return listing


def find_cases(
    layout: str,
    root: str | Path,
    include_empty: bool = False,
    name: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> list[Case]:
    """Find the cases of a dataset and make sure, by decoding them, that all files can be used.

    Args:
        layout: Row of `DATASETS`.
        root: Folder of the dataset as downloaded.
        include_empty: Keep images without a lesion (BUSI normal/, blank masks).
        name: Name of the dataset in the study, which begins the case ids; default `layout`.
        options: The layout's own keys, where it takes some.

    Returns:
        Cases sorted by id. Files that belong to no case are named in a logged warning.

    Raises:
        ConfigError: The layout is unknown.
        DatasetError: Something is missing, unreadable or contradictory; lists all problems.
    """
    listing = list_cases(layout, root, name, options)
    for line in [*listing.warnings, *unexpected_files(layout, listing)]:
        _logger.warning("%s", line)
    problems = list(listing.problems)
    found = []
    cases = listing.cases

    def empty(case: Case) -> bool:
        return why_empty(case, load_case(case)) is not None

    for case, result in zip(cases, map_cases(empty, cases), strict=True):
        if isinstance(result, DatasetError):
            problems += result.problems
        elif include_empty or case.whole or not result:
            found.append(case)
    if problems:
        raise unusable(layout, root, problems)
    return found


def unexpected_files(layout: str, listing: Listing) -> list[str]:
    """Return the warning that names what a listing leaves out, or nothing."""
    if not listing.unexpected:
        return []
    names = [path.relative_to(listing.folder).as_posix() for path in listing.unexpected]
    return [
        f"{listing.folder}: {len(names)} files are not part of {DATASETS[layout].title} and are "
        f"not used: {shorten(names)}; images are {', '.join(sorted(IMAGE_SUFFIXES))}: convert or "
        "rename them if they should be"
    ]


def unusable(layout: str, root: str | Path, problems: list[str]) -> DatasetError:
    """Return the one error that lists all problems of a dataset, each once."""
    # What is wrong with a volume comes with each of its slices.
    lines = list(dict.fromkeys(problems))
    return DatasetError(
        f"{root} cannot be used as {DATASETS[layout].title}; {len(lines)} to mend:", lines
    )
