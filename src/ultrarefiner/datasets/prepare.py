"""Raw dataset in, prepared dataset out: one table, and the same pixels as NPZ and PNG."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ultrarefiner.datasets.base import Case, slug
from ultrarefiner.datasets.curation import Decisions, decide, open_problems
from ultrarefiner.datasets.duplicates import (
    case_sha256,
    count_look_alikes,
    perceptual_hash,
    similar_pairs,
)
from ultrarefiner.datasets.groups import join
from ultrarefiner.datasets.layouts import list_cases, unexpected_files, unusable
from ultrarefiner.datasets.loader import COLUMNS
from ultrarefiner.datasets.quality import Quality, assess_quality
from ultrarefiner.datasets.reading import load_case, map_cases, why_empty
from ultrarefiner.errors import DatasetError
from ultrarefiner.images import write_mask, write_png
from ultrarefiner.io import atomic_directory, write_rows

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Prepared:
    """What is kept of a case once its pixels are written; `excluded` says why they are not."""

    case: Case
    excluded: str | None
    height: int
    width: int
    sha256: str
    appearance: int
    notes: tuple[str, ...]
    spacing: tuple[float, float] | None
    quality: Quality


def prepare_dataset(
    name: str,
    layout: str,
    root: str | Path,
    include_empty: bool,
    cases: str | Path,
    published_folds: str | Path,
    excluded: str | Path,
    npz: str | Path,
    images: str | Path,
    masks: str | Path,
    options: Mapping[str, Any] | None = None,
    curation: str | Path | None = None,
) -> None:
    """Read a raw dataset once and write it in the project's own form.

    The outputs depend on the files only, not on their order or the number of threads. One image
    for each thread is in memory at a time.

    Args:
        name: Name of the dataset in the study; begins the case ids.
        layout: Row of `DATASETS`.
        root: Folder of the dataset as downloaded; only read.
        include_empty: Keep images without a lesion; those of whole volumes are always kept.
        cases: CSV to write, one row a case; columns `loader.COLUMNS`. `image` and `mask` are
            relative to `root`, several masks joined by ";". `sha256` is of the decoded pixels; see
            `case_sha256`.
            `group` joins what must not be parted: images of one patient or one file, equal pixels,
            and near-duplicates where the patient of one is not known. Sizes in `note` are
            height x width.
            `look_alikes` counts other images of equal pixels or alike appearance, known patient or
            not. `appearance` is the perceptual hash in 16 hex digits.
        published_folds: CSV to write: `case, folds, fold` (fold from 0); only a header where the
            dataset has none.
        excluded: CSV to write: `case, image, reason` ("normal", "blank mask", "curation: ...").
        npz: Folder to write: `{case}.npz` with `image` uint8 (H, W, 3) RGB, `label` uint8 (H, W)
            in {0, 1}, `original_size` int64 [H, W].
        images: Folder to write: the same images as PNG.
        masks: Folder to write: the same labels as PNG of 0 and 255.
        options: The layout's own keys.
        curation: File that leaves cases out, unread, and corrects classes; see `curation`.

    Raises:
        ConfigError: The layout is unknown, its options are wrong, or the curation file is.
        DatasetError: The dataset cannot be used; lists all problems, and writes nothing.
    """
    root = Path(root)
    listing = list_cases(layout, root, name, options)
    decisions = decide(curation, listing.cases)
    for line in [*listing.warnings, *unexpected_files(layout, listing)]:
        _logger.warning("%s", line)
    problems = open_problems(listing, decisions)
    wanted = [case for case in listing.cases if case.id not in decisions.excluded]
    done: list[_Prepared] = []
    with (
        atomic_directory(npz) as npz_folder,
        atomic_directory(images) as image_folder,
        atomic_directory(masks) as mask_folder,
    ):

        def prepare(case: Case) -> _Prepared:
            return _prepare_case(case, include_empty, npz_folder, image_folder, mask_folder)

        for result in map_cases(prepare, wanted):
            if isinstance(result, DatasetError):
                problems += [one for one in result.problems if one not in problems]
            else:
                done.append(result)
        kept = [item for item in done if item.excluded is None]
        if not problems and not kept:
            problems.append(
                f"{root}: no image with a lesion is in it; set include_empty: true to keep images "
                "without one"
            )
        if problems:
            raise unusable(layout, root, problems)
    groups = _group(name, kept)
    alike = _look_alikes(kept)
    rows = (
        _row(item, groups[item.case.id], alike[item.case.picture], decisions, root) for item in kept
    )
    write_rows(cases, COLUMNS, rows)
    reasons = {item.case.id: item.excluded for item in done if item.excluded is not None}
    reasons |= {case: f"curation: {reason}" for case, reason in decisions.excluded.items()}
    write_rows(
        excluded,
        ["case", "image", "reason"],
        (
            {"case": case.id, "image": _raw_image(case, root), "reason": reasons[case.id]}
            for case in listing.cases
            if case.id in reasons
        ),
    )
    ids = {item.case.id for item in kept}
    write_rows(
        published_folds,
        ["case", "folds", "fold"],
        (
            {"case": case, "folds": count, "fold": fold}
            for case, count, fold in sorted(listing.folds)
            if case in ids
        ),
    )
    _logger.info("%s: %d cases prepared, %d left out", name, len(kept), len(reasons))


def _prepare_case(
    case: Case, include_empty: bool, npz: Path, images: Path, masks: Path
) -> _Prepared:
    pixels = load_case(case)
    image, label = pixels.image, pixels.label
    height, width = label.shape
    reason = None if include_empty or case.whole else why_empty(case, pixels)
    if reason is None:
        np.savez_compressed(
            npz / f"{case.id}.npz",
            image=image,
            label=label,
            original_size=np.array([height, width], np.int64),
        )
        write_png(images / f"{case.id}.png", image)
        write_mask(masks / f"{case.id}.png", label > 0)
    return _Prepared(
        case,
        reason,
        height,
        width,
        case_sha256(image, case),
        perceptual_hash(image),
        pixels.notes,
        pixels.spacing,
        assess_quality(image),
    )


def _raw(path: Path, root: Path) -> str:
    # A table may name files outside of the folder that it lies in.
    return (path.relative_to(root) if path.is_relative_to(root) else path).as_posix()


def _raw_image(case: Case, root: Path) -> str:
    # Equal in this column means one image: where each mask is a case, the part is but the mask.
    part = None if case.shares_image else case.part
    return _raw(case.image, root) + (f"#{part}" if part else "")


def _row(
    item: _Prepared, group: str, look_alikes: int, decisions: Decisions, root: Path
) -> dict[str, str | int | float]:
    case = item.case
    spacing_y, spacing_x = item.spacing or ("", "")
    note = decisions.notes.get(case.id)
    return {
        "case": case.id,
        "image": _raw_image(case, root),
        "mask": ";".join(_raw(path, root) for path in case.masks),
        "height": item.height,
        "width": item.width,
        "patient": case.patient or "",
        "group": group,
        "label": decisions.labels.get(case.id, case.label or ""),
        "spacing_y_mm": spacing_y,
        "spacing_x_mm": spacing_x,
        "sha256": item.sha256,
        "note": "; ".join([*item.notes, *([note] if note else [])]),
        "split": case.split or "",
        "overlay": item.quality.overlay,
        "border": "yes" if item.quality.border else "no",
        "look_alikes": look_alikes,
        "appearance": f"{item.appearance:016x}",
    }


def _look_alikes(items: list[_Prepared]) -> dict[str, int]:
    """Return for each image how many others have equal pixels or look like it."""
    images = {item.case.picture: item for item in items}
    counts = count_look_alikes(
        [item.sha256 for item in images.values()], [item.appearance for item in images.values()]
    )
    return dict(zip(images, counts, strict=True))


def _links(items: list[_Prepared]) -> Iterator[tuple[str, Hashable]]:
    """Yield what each case may share with others, one link at a time: there may be millions."""
    for item in items:
        case = item.case
        yield case.id, ("case", case.id)
        yield case.id, ("pixels", item.sha256)
        yield case.id, ("file", case.image)
        if case.patient:
            yield case.id, ("patient", case.patient)
    pairs = similar_pairs([item.sha256 for item in items], [item.appearance for item in items])
    for i, j, _ in pairs:
        one, other = items[i].case, items[j].case
        if not (one.patient and other.patient):
            yield one.id, ("case", other.id)


def _group(name: str, items: list[_Prepared]) -> dict[str, str]:
    """Return the group of each case id: what must never be parted by a split.

    Groups are the connected components of "same patient", "same pixels", "same file" (slices of a
    volume, frames of a loop) and "near-duplicate" where one of the two has no known patient.
    """
    first = join(_links(items))
    patients: dict[str, str] = {}
    for item in items:
        if item.case.patient:
            group = first[item.case.id]
            patients[group] = min(patients.get(group, item.case.patient), item.case.patient)
    words = {group: slug(patient) for group, patient in patients.items()}
    named = {group: f"{name}__patient_{text}" for group, text in words.items() if text}
    # Patients without a Latin letter or digit, and those who differ in signs only, must not become
    # one group by their names: theirs is called like its first case.
    used = Counter([*named.values(), *set(first.values())])
    return {
        case: named[group] if group in named and used[named[group]] == 1 else group
        for case, group in first.items()
    }
