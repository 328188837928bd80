"""The dataset doctor: everything that is wrong, odd or worth knowing, before anything is computed."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ultrarefiner.datasets.base import Listing
from ultrarefiner.datasets.curation import Decisions, decide, open_problems
from ultrarefiner.datasets.findings import (
    Finding,
    count_cases,
    count_warnings,
    curation_warnings,
    depth_warnings,
    duplicate_warnings,
    exact_duplicates,
    examine_case,
    fold_warnings,
    has_note,
    mask_warnings,
    near_duplicates,
    one_of_each_image,
    quality_warnings,
)
from ultrarefiner.datasets.layouts import DATASETS, list_cases, unexpected_files, unusable
from ultrarefiner.datasets.quality import OVERLAYS
from ultrarefiner.datasets.reading import map_cases
from ultrarefiner.errors import DatasetError
from ultrarefiner.io import write_json

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Examination:
    """What the doctor found.

    Attributes:
        errors: Lines for the user; the dataset cannot be used until each is mended.
        warnings: Lines for the user; worth a look, nothing stops.
        facts: Counts, modes, sizes, duplicates, terms; plain values that JSON can hold.
    """

    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)


def check_dataset(
    name: str,
    layout: str,
    root: str | Path,
    report: str | Path,
    include_empty: bool = False,
    options: Mapping[str, Any] | None = None,
    curation: str | Path | None = None,
) -> None:
    """Examine a dataset and write a JSON report.

    The report is written before the errors are raised, but Snakemake deletes the outputs of a job
    that fails: in a study, the place to read the errors is the job's log. Warnings are logged, and
    the error that is raised lists all errors, one a line.

    Args:
        name: Name of the dataset in the study.
        layout: Row of `DATASETS`.
        root: Folder of the dataset as downloaded.
        report: JSON to write: `dataset, layout, root, errors, warnings, facts`.
        include_empty: Whether images without a lesion will be kept.
        options: The layout's own keys.
        curation: File that leaves cases out and corrects classes.

    Raises:
        ConfigError: The layout is unknown, its options are wrong, or the curation file is.
        DatasetError: The dataset cannot be used; lists all errors.
    """
    found = examine_dataset(layout, root, include_empty, name, options, curation)
    write_json(
        report,
        {
            "dataset": name,
            "layout": layout,
            "root": str(root),
            "errors": found.errors,
            "warnings": found.warnings,
            "facts": found.facts,
        },
    )
    for line in found.warnings:
        _logger.warning("%s", line)
    if found.errors:
        raise unusable(layout, root, found.errors)


def examine_dataset(
    layout: str,
    root: str | Path,
    include_empty: bool = False,
    name: str | None = None,
    options: Mapping[str, Any] | None = None,
    curation: str | Path | None = None,
) -> Examination:
    """Read every image and mask of a dataset and report all that is wrong or odd.

    Args:
        layout: Row of `DATASETS`.
        root: Folder of the dataset as downloaded; only read.
        include_empty: Whether images without a lesion will be kept.
        name: Name of the dataset in the study; default `layout`.
        options: The layout's own keys.
        curation: File that leaves cases out and corrects classes. What it leaves out counts among
            the published numbers and nowhere else, and may be unreadable.

    Raises:
        ConfigError: The layout is unknown, its options are wrong, or the curation file is.
    """
    row = DATASETS[layout]
    terms = {"source": row.source, "terms": row.terms, "citation": row.citation}
    try:
        listing = list_cases(layout, root, name, options)
    except DatasetError as error:
        return Examination(errors=[str(error)], facts={"title": row.title, **terms})
    decisions = decide(curation, listing.cases)
    errors = open_problems(listing, decisions)
    readable: list[Finding] = []
    for case, result in zip(listing.cases, map_cases(examine_case, listing.cases), strict=True):
        if not isinstance(result, DatasetError):
            readable.append(result)
        elif case.id not in decisions.excluded:
            # A volume that cannot be read is said once, not for each of its slices.
            errors += [problem for problem in result.problems if problem not in errors]
    shown = {item.case.picture for item in readable if item.empty is None}
    counts = count_cases(listing, len(shown))
    findings = [item for item in readable if item.case.id not in decisions.excluded]
    images = one_of_each_image(findings)
    equal = exact_duplicates(findings)
    alike = near_duplicates(findings)
    warnings = [
        *listing.warnings,
        *count_warnings(listing, counts, row.counts),
        *mask_warnings(findings, include_empty),
        *depth_warnings(images),
        *duplicate_warnings(equal, alike),
        *quality_warnings(images),
        *fold_warnings(listing),
        *curation_warnings(decisions, curation),
        *unexpected_files(layout, listing),
    ]
    missed = [] if include_empty else [item for item in findings if not item.case.whole]
    left_out = [item for item in missed if item.empty is not None]
    if not errors and len(left_out) == len(findings):
        errors.append(
            f"{root}: no image with a lesion is in it; set include_empty: true to keep images "
            "without one"
        )
    facts = {
        "title": row.title,
        "folder": str(listing.folder),
        "counts": counts,
        "unusable": len(listing.cases) - len(decisions.excluded) - len(findings),
        **_facts(listing, findings, left_out, equal, alike),
        **_quality_facts(images),
        "curation": _curation_facts(decisions),
        **terms,
        "published_counts": dict(row.counts),
    }
    return Examination(errors, warnings, facts)


def _facts(
    listing: Listing,
    findings: list[Finding],
    left_out: list[Finding],
    equal: list[list[Finding]],
    alike: list[list[str]],
) -> dict[str, Any]:
    image_modes = Counter(item.modes[0] for item in findings)
    mask_modes = Counter(mode for item in findings for mode in item.modes[1:])
    heights = [item.size[0] for item in findings]
    widths = [item.size[1] for item in findings]
    return {
        "cases": len(findings) - len(left_out),
        "left_out": dict(sorted(Counter(item.empty for item in left_out).items())),
        "several_masks": sum(len(item.case.masks) > 1 for item in findings),
        "masks_resized": sum(has_note(item, "mask resized") for item in findings),
        "image_modes": dict(sorted(image_modes.items())),
        "mask_modes": dict(sorted(mask_modes.items())),
        "height": [min(heights), max(heights)] if heights else None,
        "width": [min(widths), max(widths)] if widths else None,
        "exact_duplicates": [[item.case.id for item in same] for same in equal],
        "near_duplicates": {"sets": len(alike), "images": sum(map(len, alike))},
        "published_folds": {
            str(n): count for n, count in sorted(Counter(f[1] for f in listing.folds).items())
        },
        "unexpected_files": len(listing.unexpected),
    }


def _quality_facts(findings: list[Finding]) -> dict[str, Any]:
    overlays = Counter(item.quality.overlay for item in findings)
    splits = Counter(item.case.split for item in findings if item.case.split)
    known = [item.spacing for item in findings if item.spacing is not None]
    sizes = [side for spacing in known for side in spacing]
    return {
        "overlays": {name: overlays[name] for name in OVERLAYS if overlays[name]},
        "borders": sum(item.quality.border for item in findings),
        "largest_border": round(
            max((item.quality.border_share for item in findings), default=0.0), 3
        ),
        "spacing": {"known": len(known), "unknown": len(findings) - len(known)},
        "spacing_mm": [round(min(sizes), 4), round(max(sizes), 4)] if sizes else None,
        "official_splits": dict(sorted(splits.items())),
    }


def _curation_facts(decisions: Decisions) -> dict[str, Any]:
    return {"excluded": decisions.excluded, "relabelled": decisions.notes}
