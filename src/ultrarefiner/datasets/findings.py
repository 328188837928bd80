"""What the doctor found in each case, and the warnings that follow from all of them together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

from ultrarefiner.datasets.base import NO_LESION, Case, Listing, shorten
from ultrarefiner.datasets.curation import Decisions
from ultrarefiner.datasets.duplicates import (
    case_sha256,
    cluster_duplicates,
    perceptual_hash,
    pixel_sha256,
)
from ultrarefiner.datasets.quality import Quality, assess_quality
from ultrarefiner.datasets.reading import load_case, why_empty

# A lesion that fills more of the image than this is more likely an inverted mask.
_INVERTED = 0.9
# A 16-bit image all below this leaves its highest bit unused.
_UNUSED_BIT = 1 << 15
# How the numbers are called where their key does not say it.
_SAID = {"lesions": "images with a lesion"}


@dataclass(frozen=True, slots=True)
class Finding:
    """What there is to know of a case that can be read.

    Attributes:
        case: The case.
        empty: Why it counts as one without a lesion, None if it has one.
        lesion_share: Share of the image that the lesions cover.
        size: (height, width).
        modes: What the file of the image held, and that of each mask.
        notes: What differs from a plain pair of files.
        sha256: Of the decoded pixels; see `case_sha256`.
        label_sha256: Of the mask.
        appearance: Perceptual hash.
        deepest: Largest value of a file deeper than 8 bits.
        kept: Lesions smaller than a pixel, each kept as one.
        spacing: (row, column) size of a pixel in mm, None where nothing tells.
        quality: Marks and borders.
    """

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
    spacing: tuple[float, float] | None
    quality: Quality


def examine_case(case: Case) -> Finding:
    """Read a case and judge it.

    Raises:
        DatasetError: A file cannot be used; `problems` lists them all.
    """
    pixels = load_case(case)
    return Finding(
        case=case,
        empty=why_empty(case, pixels),
        lesion_share=float(pixels.label.mean()),
        size=pixels.label.shape,
        modes=pixels.modes,
        notes=pixels.notes,
        sha256=case_sha256(pixels.image, case),
        label_sha256=pixel_sha256(pixels.label),
        appearance=perceptual_hash(pixels.image),
        deepest=pixels.deepest,
        kept=pixels.kept,
        spacing=pixels.spacing,
        quality=assess_quality(pixels.image),
    )


def count_cases(listing: Listing, lesions: int) -> dict[str, int]:
    """Return the numbers of images, of those that show a lesion, of each class, and of patients.

    Args:
        listing: All that is in the folder.
        lesions: How many of its images show a lesion.
    """
    counts = Counter(case.label for case in listing.cases if case.label)
    patients = {case.patient for case in listing.cases if case.patient}
    known = {"patients": len(patients)} if patients else {}
    return {
        "images": len({case.picture for case in listing.cases}),
        "lesions": lesions,
        **dict(sorted(counts.items())),
        **known,
    }


def count_warnings(
    listing: Listing, here: Mapping[str, int], published: Mapping[str, int]
) -> list[str]:
    """Return the warning that the numbers are not the published ones, or nothing."""
    # Neighbouring slices are further cases of a volume, and volumes are what was published.
    files = {case.image: case for case in listing.cases}
    if len(files) < len(listing.cases):
        here = count_cases(replace(listing, cases=list(files.values())), here["lesions"])
    differ = [
        f"{number} {_SAID.get(what, what)} expected, {here.get(what, 0)} found"
        for what, number in published.items()
        if here.get(what, 0) != number
    ]
    if not differ:
        return []
    return [
        f"{listing.folder}: {'; '.join(differ)}; results on this copy are not comparable with "
        "published ones: unpack the whole archive unless a part of it is meant"
    ]


def one_of_each_image(findings: Sequence[Finding]) -> list[Finding]:
    """Return the first finding of each image: some datasets have a case for each mask of it."""
    return list({item.case.picture: item for item in reversed(findings)}.values())[::-1]


def mask_warnings(findings: list[Finding], include_empty: bool) -> list[str]:
    """Return what is odd about the masks."""
    lines = []
    fate = (
        "is kept without a lesion"
        if include_empty
        else "is left out (include_empty: true keeps it)"
    )
    for item in findings:
        image = item.case.image
        if item.case.shares_image and item.case.masks:
            image = f"{image} ({item.case.masks[0].name})"
        if item.empty == "blank mask" and not item.case.whole:
            lines.append(f"{image}: its mask is blank; the image {fate}; check the mask")
        if item.case.label == NO_LESION and item.lesion_share > 0:
            lines.append(f"{image}: is labelled {NO_LESION} but its mask has a lesion; check both")
        if item.lesion_share > _INVERTED:
            lines.append(
                f"{image}: the lesion fills {item.lesion_share:.0%} of the image; check whether "
                "the mask is inverted"
            )
    lines += [
        f"{path}: its labels are blank in all slices; the volume is kept without a lesion; check them"
        for path in _blank_volumes(findings)
    ]
    resized = [item.case.image.name for item in findings if has_note(item, "mask resized")]
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


def _blank_volumes(findings: list[Finding]) -> list[Path]:
    """Return the volumes of which all slices are cases, and none shows a lesion."""
    shown: dict[Path, bool] = {}
    for item in findings:
        if item.case.whole:
            shown[item.case.image] = shown.get(item.case.image, False) or item.empty is None
    return sorted(path for path, lesion in shown.items() if not lesion)


def depth_warnings(findings: list[Finding]) -> list[str]:
    """Return what became of images deeper than 8 bits."""
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


def has_note(item: Finding, start: str) -> bool:
    """Return whether a note of a case begins with some words."""
    return any(note.startswith(start) for note in item.notes)


def exact_duplicates(findings: list[Finding]) -> list[list[Finding]]:
    """Return the sets of two or more images with equal pixels, as the cases of these images."""
    ordered = sorted(findings, key=lambda item: (item.sha256, item.case.id))
    sets = [list(same) for _, same in groupby(ordered, key=lambda item: item.sha256)]
    several = [same for same in sets if len({item.case.picture for item in same}) > 1]
    return sorted(several, key=lambda same: same[0].case.id)


def duplicate_warnings(equal: list[list[Finding]], alike: list[list[str]]) -> list[str]:
    """Return what is to be said of equal pixels and of look-alikes."""
    lines = []
    plain = []
    for same in equal:
        names = " = ".join(item.case.image.name for item in one_of_each_image(same))
        odd = []
        if len(_of_each_image(same, lambda item: item.case.label)) > 1:
            odd.append("classes " + " and ".join(sorted({str(item.case.label) for item in same})))
        if len({item.case.patient for item in same}) > 1:
            odd.append(
                "patients " + " and ".join(sorted({str(item.case.patient) for item in same}))
            )
        if len(_of_each_image(same, lambda item: item.label_sha256)) > 1:
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


def _of_each_image(
    same: Sequence[Finding], value: Callable[[Finding], Hashable]
) -> set[frozenset[Hashable]]:
    """Return what some images say of themselves, each distinct answer once."""
    said: dict[str, set[Hashable]] = {}
    for item in same:
        said.setdefault(item.case.picture, set()).add(value(item))
    return {frozenset(values) for values in said.values()}


def near_duplicates(findings: list[Finding]) -> list[list[str]]:
    """Return the file names of look-alikes, beyond the sets whose pixels are all equal.

    That slices of one volume look alike goes without saying.
    """
    clusters = cluster_duplicates(
        [item.case.id for item in findings],
        [item.sha256 for item in findings],
        [item.appearance for item in findings],
    )
    members: dict[str, list[Finding]] = {}
    for item in findings:
        members.setdefault(clusters[item.case.id], []).append(item)
    return [
        list(dict.fromkeys(item.case.image.name for item in one_of_each_image(same)))
        if same[0].case.whole
        else [item.case.image.name for item in one_of_each_image(same)]
        for _, same in sorted(members.items())
        if len({item.sha256 for item in same}) > 1 and not _one_volume(same)
    ]


def _one_volume(same: list[Finding]) -> bool:
    return all(item.case.whole for item in same) and len({item.case.image for item in same}) == 1


def fold_warnings(listing: Listing) -> list[str]:
    """Return the warning that published folds part patients, or nothing."""
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


def quality_warnings(findings: Sequence[Finding]) -> list[str]:
    """Return what is burned into images, and whether all have a known size of pixels."""
    lines = []
    marked = [item for item in findings if item.quality.overlay != "none"]
    if marked:
        lines.append(
            f"{len(marked)} images have calipers or text burned in: "
            f"{shorten([f'{item.case.image.name} ({item.quality.overlay})' for item in marked])}; "
            "networks take such marks for a hint, so the report compares images with and without"
        )
    bordered = [item.case.image.name for item in findings if item.quality.border]
    if bordered:
        lines.append(
            f"{len(bordered)} images have black borders: {shorten(bordered)}; the report compares "
            "images with and without"
        )
    unknown = [item.case.image.name for item in findings if item.spacing is None]
    if 0 < len(unknown) < len(findings):
        lines.append(
            f"{len(unknown)} of {len(findings)} images do not tell the size of their pixels, so "
            f"they have no distances in mm: {shorten(unknown)}; the report tells how many count"
        )
    return lines


def curation_warnings(decisions: Decisions, curation: str | Path | None) -> list[str]:
    """Return what a curation file changes, or nothing."""
    parts = []
    if decisions.excluded:
        parts.append(f"leaves out {len(decisions.excluded)}: {shorten(sorted(decisions.excluded))}")
    if decisions.labels:
        parts.append(f"relabels {len(decisions.labels)}: {shorten(sorted(decisions.labels))}")
    if not parts:
        return []
    return [
        f"{curation} {' and '.join(parts)}; results differ from those of the whole dataset, so say "
        "so with them"
    ]
