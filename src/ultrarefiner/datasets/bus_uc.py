"""BUS_UC: `All/images/001.png` with `All/masks/001.png`, repeated in `Benign/` and `Malignant/`."""

from __future__ import annotations

import filecmp
from collections.abc import Mapping
from pathlib import Path

from ultrarefiner.datasets.base import (
    Case,
    DatasetRow,
    Listing,
    image_files,
    locate_folder,
    shorten,
    subfolders,
)
from ultrarefiner.datasets.pairing import Pair, leave_out, pair_folders

_ALL = "all"
_CLASSES = ("benign", "malignant")
_FOLDERS = {"images", "masks"}
_TITLE = "BUS_UC"
_EXPECTS = "the folders All/, Benign/ and Malignant/, each with images/ and masks/ (BUS_UC)"


def list_bus_uc(root: Path) -> Listing:
    """List the images, masks and classes of BUS_UC, every image once.

    All/ repeats the two others: the cases are its own, and the class of each is that of the folder
    that holds a file of equal bytes, else a file of its name. Without All/ the cases are those of
    the two others; where these use a name twice, the class begins the case id.

    Args:
        root: `BUS_UC` or the folder that holds it.

    Raises:
        DatasetError: The folder holds neither All/ nor Benign/ nor Malignant/ with images/ and
            masks/.
    """
    folder = locate_folder(root, lambda path: bool(_parts(path)), _TITLE, _EXPECTS)
    listing = Listing(folder)
    parts = _parts(folder)
    leave_out(listing, folder, set(parts))
    for part in parts.values():
        leave_out(listing, part, _FOLDERS)
    missing = [f"{label.capitalize()}/" for label in _CLASSES if label not in parts]
    if missing:
        what = "classes of images are unknown" if _ALL in parts else "images are left out"
        listing.warnings.append(
            f"{folder} lacks {' and '.join(missing)}, so {what}; unpack the whole archive unless a "
            "part of it is meant"
        )
    if _ALL not in parts:
        _list_classes(listing, {label: parts[label] for label in _CLASSES if label in parts})
        return listing
    pairs = _pair(listing, parts[_ALL])
    copies = {}
    for label in _CLASSES:
        if label in parts:
            copies[label], others = image_files(subfolders(parts[label])["images"])
            listing.unexpected += others
    labels = _label(listing, pairs, copies)
    listing.cases += [
        Case(pair.name, pair.image, pair.masks, label=label)
        for pair, label in zip(pairs, labels, strict=True)
    ]
    return listing


def _parts(folder: Path) -> dict[str, Path]:
    inside = subfolders(folder)
    return {
        name: inside[name]
        for name in (_ALL, *_CLASSES)
        if name in inside and set(subfolders(inside[name])) >= _FOLDERS
    }


def _pair(listing: Listing, part: Path) -> list[Pair]:
    inside = subfolders(part)
    return pair_folders(listing, inside["images"], inside["masks"])


def _list_classes(listing: Listing, parts: Mapping[str, Path]) -> None:
    """List the cases of the classes' own folders."""
    pairs = {label: _pair(listing, part) for label, part in parts.items()}
    names = [pair.name.lower() for own in pairs.values() for pair in own]
    unique = len(names) == len(set(names))
    for label, own in pairs.items():
        for pair in own:
            name = pair.name if unique else f"{label} {pair.name}"
            listing.cases.append(Case(name, pair.image, pair.masks, label=label))


def _label(
    listing: Listing, pairs: list[Pair], copies: Mapping[str, list[Path]]
) -> list[str | None]:
    """Return the class of each image of All/, and warn of what does not agree.

    Bytes come before names: if the two classes are numbered for themselves, names mislead.
    """
    by_size: dict[int, list[tuple[str, Path]]] = {}
    by_name: dict[str, set[str]] = {}
    for label, files in copies.items():
        for file in files:
            by_size.setdefault(file.stat().st_size, []).append((label, file))
            by_name.setdefault(file.stem.lower(), set()).add(label)
    labels: list[str | None] = []
    doubtful, renamed = [], []
    repeated: set[Path] = set()
    for pair in pairs:
        equal = [
            (label, file)
            for label, file in by_size.get(pair.image.stat().st_size, ())
            if filecmp.cmp(pair.image, file, shallow=False)
        ]
        repeated |= {file for _, file in equal}
        named = by_name.get(pair.name.lower(), set())
        if not equal and len(named) == 1:
            renamed.append(pair.image.name)
        found = {label for label, _ in equal} or named
        if len(found) > 1 and len(named) == 1:
            found = named
        if len(found) != 1:
            doubtful.append(pair.image.name)
        labels.append(found.pop() if len(found) == 1 else None)
    if doubtful and copies:
        listing.warnings.append(
            f"{listing.folder}: the class of {len(doubtful)} images of All/ is unknown, since not "
            f"exactly one of {' and '.join(sorted(copies))} has them: {shorten(doubtful)}; unpack "
            "the archive again"
        )
    if renamed:
        listing.warnings.append(
            f"{listing.folder}: {len(renamed)} images of All/ have the class of a file of their "
            f"name whose bytes differ: {shorten(renamed)}; unpack the archive again if they do not "
            "show the same"
        )
    known = {pair.name.lower() for pair in pairs}
    extra = [
        f"{file.parent.parent.name}/{file.name}"
        for files in copies.values()
        for file in files
        if file not in repeated and file.stem.lower() not in known
    ]
    if extra:
        listing.warnings.append(
            f"{listing.folder}: All/ does not hold {len(extra)} images of the classes' folders, "
            f"and they are not used: {shorten(extra)}; unpack the archive again, or remove All/ to "
            "use those folders alone"
        )
    return labels


ROW = DatasetRow(
    title=_TITLE,
    adapter=list_bus_uc,
    expects=_EXPECTS,
    counts={"images": 811, "benign": 358, "malignant": 453},
    source="https://data.mendeley.com/datasets/3ksd7w7jkx/1",
    terms="CC BY 4.0, as far as known: see the page",
    citation="Iqbal and Sharif. BUS_UC. Mendeley Data, V1 (2023). doi:10.17632/3ksd7w7jkx.1",
)
