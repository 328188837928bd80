"""The dataset doctor: everything that is wrong, odd or worth knowing, before anything is computed."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from ultrarefiner.datasets.base import NO_LESION, Case, Listing, shorten
from ultrarefiner.datasets.duplicates import cluster_duplicates, perceptual_hash, pixel_sha256
from ultrarefiner.datasets.layouts import DATASETS, list_cases, unexpected_files, unusable
from ultrarefiner.datasets.reading import load_case, map_cases, why_empty
from ultrarefiner.errors import DatasetError
from ultrarefiner.io import write_json

_logger = logging.getLogger(__name__)
# A lesion that fills more of the image than this is more likely an inverted mask.
_INVERTED = 0.9
# A 16-bit image all below this leaves its highest bit unused.
_UNUSED_BIT = 1 << 15


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


@dataclass(frozen=True)
class _Finding:
    case: Case
    empty: str | None
    lesion_share: float
    size: tuple[int, int]
    modes: tuple[str, ...]
    notes: tuple[str, ...]
    sha256: str
    label_sha256: str
    appearance: int
    deepest: int | None
    kept: int


def check_dataset(
    name: str, layout: str, root: str | Path, report: str | Path, include_empty: bool = False
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

    Raises:
        ConfigError: The layout is unknown.
        DatasetError: The dataset cannot be used; lists all errors.
    """
    found = examine_dataset(layout, root, include_empty, name)
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
    layout: str, root: str | Path, include_empty: bool = False, name: str | None = None
) -> Examination:
    """Read every image and mask of a dataset and report all that is wrong or odd.

    Args:
        layout: Row of `DATASETS`.
        root: Folder of the dataset as downloaded; only read.
        include_empty: Whether images without a lesion will be kept.
        name: Name of the dataset in the study; default `layout`.

    Raises:
        ConfigError: The layout is unknown.
    """
    row = DATASETS[layout]
    terms = {"source": row.source, "terms": row.terms, "citation": row.citation}
    try:
        listing = list_cases(layout, root, name)
    except DatasetError as error:
        return Examination(errors=[str(error)], facts={"title": row.title, **terms})
    errors = list(listing.problems)
    findings: list[_Finding] = []
    for result in map_cases(_examine_case, listing.cases):
        if isinstance(result, DatasetError):
            errors += result.problems
        else:
            findings.append(result)
    equal = _exact_duplicates(findings)
    alike = _near_duplicates(findings)
    warnings = [
        *listing.warnings,
        *_count_warnings(listing, row.counts),
        *_mask_warnings(findings, include_empty),
        *_depth_warnings(findings),
        *_duplicate_warnings(equal, alike),
        *_fold_warnings(listing),
        *unexpected_files(layout, listing),
    ]
    left_out = [item for item in findings if item.empty is not None and not include_empty]
    if not errors and len(left_out) == len(findings):
        errors.append(
            f"{root}: no image with a lesion is in it; set include_empty: true to keep images "
            "without one"
        )
    facts = {"title": row.title, **_facts(listing, findings, left_out, equal, alike), **terms}
    facts["published_counts"] = dict(row.counts)
    return Examination(errors, warnings, facts)


def _examine_case(case: Case) -> _Finding:
    pixels = load_case(case)
    return _Finding(
        case=case,
        empty=why_empty(case, pixels),
        lesion_share=float(pixels.label.mean()),
        size=pixels.label.shape,
        modes=pixels.modes,
        notes=pixels.notes,
        sha256=pixel_sha256(pixels.image),
        label_sha256=pixel_sha256(pixels.label),
        appearance=perceptual_hash(pixels.image),
        deepest=pixels.deepest,
        kept=pixels.kept,
    )


def _counts(listing: Listing) -> dict[str, int]:
    counts = Counter(case.label for case in listing.cases if case.label)
    patients = {case.patient for case in listing.cases if case.patient}
    known = {"patients": len(patients)} if patients else {}
    return {"images": len(listing.cases), **dict(sorted(counts.items())), **known}


def _count_warnings(listing: Listing, published: dict[str, int]) -> list[str]:
    here = _counts(listing)
    differ = [
        f"{number} {what} expected, {here.get(what, 0)} found"
        for what, number in published.items()
        if here.get(what, 0) != number
    ]
    if not differ:
        return []
    return [
        f"{listing.folder}: {'; '.join(differ)}; results on this copy are not comparable with "
        "published ones: unpack the whole archive unless a part of it is meant"
    ]


def _mask_warnings(findings: list[_Finding], include_empty: bool) -> list[str]:
    lines = []
    fate = (
        "is kept without a lesion"
        if include_empty
        else "is left out (include_empty: true keeps it)"
    )
    for item in findings:
        image = item.case.image
        if item.empty == "blank mask":
            lines.append(f"{image}: its mask is blank; the image {fate}; check the mask")
        if item.case.label == NO_LESION and item.lesion_share > 0:
            lines.append(f"{image}: is labelled {NO_LESION} but its mask has a lesion; check both")
        if item.lesion_share > _INVERTED:
            lines.append(
                f"{image}: the lesion fills {item.lesion_share:.0%} of the image; check whether "
                "the mask is inverted"
            )
    resized = [item.case.image.name for item in findings if _has_note(item, "mask resized")]
    if resized:
        lines.append(
            f"{len(resized)} masks have another size than their image and are aligned to it: "
            f"{shorten(resized)}; nothing to do if the archive is like that"
        )
    small = [item.case.image.name for item in findings if item.kept]
    if small:
        lines.append(
            f"{len(small)} masks have lesions smaller than a pixel of their image, each kept as "
            f"one pixel: {shorten(small)}; check that they are not stray pixels of the mask"
        )
    return lines


def _depth_warnings(findings: list[_Finding]) -> list[str]:
    deep = [item for item in findings if item.deepest is not None and item.deepest > 255]
    if not deep:
        return []
    lines = [
        f"{len(deep)} images have 16 bits and are reduced to 8 (divided by 257): "
        f"{shorten([item.case.image.name for item in deep])}; nothing to do if they use the whole "
        "range"
    ]
    dark = [item for item in deep if item.deepest < _UNUSED_BIT]
    if dark:
        names = [f"{item.case.image.name} (largest value {item.deepest})" for item in dark]
        lines.append(
            f"{len(dark)} of the 16-bit images use a part of the range only, so they become dark: "
            f"{shorten(names)}; if their scanner wrote fewer bits (12 bits end at 4095), scale "
            "the files so that the largest possible value becomes 65535"
        )
    return lines


def _has_note(item: _Finding, start: str) -> bool:
    return any(note.startswith(start) for note in item.notes)


def _exact_duplicates(findings: list[_Finding]) -> list[list[_Finding]]:
    """Return the sets of two or more images with equal pixels."""
    ordered = sorted(findings, key=lambda item: (item.sha256, item.case.id))
    sets = [list(same) for _, same in groupby(ordered, key=lambda item: item.sha256)]
    return sorted((same for same in sets if len(same) > 1), key=lambda same: same[0].case.id)


def _duplicate_warnings(equal: list[list[_Finding]], alike: list[list[str]]) -> list[str]:
    lines = []
    plain = []
    for same in equal:
        names = " = ".join(item.case.image.name for item in same)
        odd = []
        if len({item.case.label for item in same}) > 1:
            odd.append("classes " + " and ".join(sorted({str(item.case.label) for item in same})))
        if len({item.case.patient for item in same}) > 1:
            odd.append(
                "patients " + " and ".join(sorted({str(item.case.patient) for item in same}))
            )
        if len({item.label_sha256 for item in same}) > 1:
            odd.append("masks")
        if odd:
            lines.append(
                f"{names}: equal pixels under different {', '.join(odd)}; they stay in one fold: "
                "decide which one is right"
            )
        else:
            plain.append(names)
    if plain:
        lines.append(
            f"{len(plain)} sets of images have equal pixels: {shorten(plain)}; they stay in one "
            "fold, nothing to do"
        )
    if alike:
        count = sum(map(len, alike))
        lines.append(
            f"{count} images in {len(alike)} sets look alike (perceptual hash), for example "
            f"{shorten(alike[0])}; without patients known they stay in one fold, nothing to do"
        )
    return lines


def _near_duplicates(findings: list[_Finding]) -> list[list[str]]:
    """Return the file names of look-alikes, beyond the sets whose pixels are all equal."""
    clusters = cluster_duplicates(
        [item.case.id for item in findings],
        [item.sha256 for item in findings],
        [item.appearance for item in findings],
    )
    members: dict[str, list[_Finding]] = {}
    for item in findings:
        members.setdefault(clusters[item.case.id], []).append(item)
    return [
        [item.case.image.name for item in same]
        for _, same in sorted(members.items())
        if len({item.sha256 for item in same}) > 1
    ]


def _fold_warnings(listing: Listing) -> list[str]:
    patients = {case.id: case.patient for case in listing.cases}
    seen: dict[tuple[int, str], set[int]] = {}
    for case, count, fold in listing.folds:
        if patients[case]:
            seen.setdefault((count, patients[case]), set()).add(fold)
    crossing = sorted(f"{who} ({n} folds)" for (n, who), folds in seen.items() if len(folds) > 1)
    if not crossing:
        return []
    return [
        f"{listing.folder}: the published folds part the images of {len(crossing)} patients: "
        f"{shorten(crossing)}; use `folds: made`"
    ]


def _facts(
    listing: Listing,
    findings: list[_Finding],
    left_out: list[_Finding],
    equal: list[list[_Finding]],
    alike: list[list[str]],
) -> dict[str, Any]:
    image_modes = Counter(item.modes[0] for item in findings)
    mask_modes = Counter(mode for item in findings for mode in item.modes[1:])
    heights = [item.size[0] for item in findings]
    widths = [item.size[1] for item in findings]
    return {
        "folder": str(listing.folder),
        "counts": _counts(listing),
        "cases": len(findings) - len(left_out),
        "left_out": dict(sorted(Counter(item.empty for item in left_out).items())),
        "unusable": len(listing.cases) - len(findings),
        "several_masks": sum(len(item.case.masks) > 1 for item in findings),
        "masks_resized": sum(_has_note(item, "mask resized") for item in findings),
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
