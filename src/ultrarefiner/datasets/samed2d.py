"""SA-Med2D style: `{train,test}/{images,masks}/` with JSON tables that join images and masks.

`image2label_train.json` names the masks of each image, `label2image_test.json` the image of each
mask. Masks are strictly binary: such collections are written by scripts, so any other value is a
mistake of one, and would be lost or invented by whoever reads on with another threshold.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import AfterValidator, Field

from ultrarefiner.config import Section
from ultrarefiner.datasets.base import (
    NO_LESION,
    Case,
    DatasetRow,
    Listing,
    RawMask,
    Reader,
    list_folder,
    locate_folder,
    one_group,
    shorten,
    subfolders,
    unique_names,
)
from ultrarefiner.datasets.reading import decode_image
from ultrarefiner.datasets.samed2d_tables import TABLES, FileTable, find_tables, read_table, resolve
from ultrarefiner.errors import DatasetError

_TITLE = "SA-Med2D folders"
_EXPECTS = (
    "train/ with images/, masks/ and image2label_train.json, or test/ with images/, masks/ and "
    "label2image_test.json, or a folder of these for each modality"
)
_KINDS = ("images", "masks")
# What a mask's name has after its image's in SA-Med2D.
_CLASS = re.compile(r"--(?P<label>\w+)_\d+")


def _relative(text: str) -> str:
    if Path(text).is_absolute():
        raise ValueError("give the folder by its path from the dataset's root, such as . or ..")
    return text


class SaMed2dOptions(Section):
    """What a case is, and what the paths in the tables start from."""

    masks: Literal["together", "each"] = Field(
        "together",
        description="`together`: a case is an image, with all its masks; `each`: a case is a mask.",
    )
    relative_to: Annotated[str, AfterValidator(_relative)] | None = Field(
        None,
        min_length=1,
        description="Folder that the paths in the tables start from, by its path from the root "
        "(`.`, `..`). Absent: the folder of the table, its train/ or test/, the dataset's, the "
        "root or the one above it, the first that has the table's first file.",
    )
    patient: Annotated[str, AfterValidator(one_group)] | None = Field(
        None,
        description="Regular expression with one group, searched in FOLDER/NAME of the image. "
        "Absent: of names a--b--c--d as in SA-Med2D `b--c`, the volume.",
    )


@dataclass(frozen=True)
class _Entry:
    """An image of a table and its masks."""

    image: Path
    masks: tuple[Path, ...]
    split: str


def list_samed2d(root: Path, options: SaMed2dOptions) -> Listing:
    """List the images, or the masks, of SA-Med2D style tables.

    Args:
        root: Folder of the dataset, or of several such folders.
        options: What a case is, and what paths start from.

    Raises:
        DatasetError: The folder holds no such table.
    """
    folder = locate_folder(
        root,
        lambda path: bool(find_tables(path)) or any(map(find_tables, subfolders(path).values())),
        _TITLE,
        _EXPECTS,
    )
    listing = Listing(folder)
    inside = [entry for entry in list_folder(folder) if entry.is_dir()]
    if find_tables(folder):
        homes = [folder]
        others = [one for one in inside if one.name not in TABLES and find_tables(one)]
    else:
        homes = [one for one in inside if find_tables(one)]
        others = [one for one in inside if one not in homes]
    entries: list[_Entry] = []
    listed: dict[Path, tuple[Path, str]] = {}
    for home in homes:
        tables = find_tables(home)
        listing.problems += _table_problems(home, tables)
        for table in tables:
            try:
                entries += _read(listing, table, root, options, listed)
            except DatasetError as error:
                listing.problems.append(str(error))
    if not listing.problems:
        listing.unexpected += others
        listing.unexpected += [path for home in homes for path in _not_listed(home, listed)]
    listing.cases = list(_cases(listing, entries, root, options))
    return listing


def _table_problems(home: Path, tables: list[FileTable]) -> Iterator[str]:
    for part, name in TABLES.items():
        found = [table.path for table in tables if table.part == part]
        if len(found) > 1:
            yield f"{found[0]} and {found[1]} are both there; move the one not meant away"
        elif not found and (home / part / "images").is_dir():
            yield (
                f"{home / part}: has images/ and no {name}; write or unpack the table, or move the "
                "folder away"
            )


def _read(
    listing: Listing,
    table: FileTable,
    root: Path,
    options: SaMed2dOptions,
    listed: dict[Path, tuple[Path, str]],
) -> list[_Entry]:
    """Return the images of a table whose files are there; anything else becomes a problem."""
    rows = read_table(table)
    base = _base(table, rows[0].first, listing.folder, root, options)
    found = []
    for row in rows:
        place = (table.path, row.image)
        paths: list[Path] = []
        for name, kind in [(row.image, "image"), *((mask, "mask") for mask in row.masks)]:
            path = resolve(root, base, name)
            if path is None:
                listing.problems.append(
                    f"{table.path}: the {kind} {name} lies outside of {root}; set the dataset's "
                    "root to the folder that holds all its files"
                )
            elif listed.setdefault(path, place) != place or path in paths:
                other = listed[path]
                listing.problems.append(
                    f"{path}: is listed in {other[0]} for the image {other[1]}, and again in "
                    f"{table.path} for {row.image}; an image is listed once and a mask has one image"
                )
            elif not path.is_file():
                listing.problems.append(
                    f"{path}: the {kind} is missing, {table.path} lists it; unpack the archive "
                    "again, or set options.relative_to if its paths start elsewhere"
                )
            else:
                paths.append(path)
        if len(paths) == 1 + len(row.masks):
            found.append(_Entry(paths[0], tuple(paths[1:]), table.part))
    return found


def _base(table: FileTable, first: str, folder: Path, root: Path, options: SaMed2dOptions) -> Path:
    """Return the folder that the paths of a table start from.

    Raises:
        DatasetError: It is not there, or no folder that may be meant has the table's first file.
    """
    if options.relative_to is not None:
        base = root / options.relative_to
        if not base.is_dir():
            raise DatasetError(f"{base} is no folder; correct options.relative_to")
        return base
    bases = (table.path.parent, table.home / table.part, table.home, folder, root, root.parent)
    for base in bases:
        if (base / first.replace("\\", "/")).is_file():
            return base
    tried = ", ".join(map(str, dict.fromkeys(bases)))
    raise DatasetError(
        f"{table.path}: its first file {first} is missing, or its paths start from another folder "
        f"than one of {tried}; unpack the archive again, or set options.relative_to to that folder, "
        "by its path from the dataset's root"
    )


def _not_listed(home: Path, listed: Container[Path]) -> list[Path]:
    """Return the files in the folders images/ and masks/ that no table lists."""

    def files(folder: Path) -> Iterator[Path]:
        for entry in list_folder(folder):
            if entry.is_dir():
                yield from files(entry)
            elif entry not in listed:
                yield entry

    places = [base / kind for base in (home, *(home / part for part in TABLES)) for kind in _KINDS]
    return [path for place in places if place.is_dir() for path in files(place)]


def _cases(
    listing: Listing, entries: list[_Entry], root: Path, options: SaMed2dOptions
) -> Iterator[Case]:
    reader = Reader(lambda case: decode_image(case.image), _read_masks)
    patients = {entry.image: _patient(listing, entry.image, root, options) for entry in entries}
    cases = []
    for entry in entries:
        own = entry.masks if options.masks == "each" else ()
        whole = Case(
            "",
            entry.image,
            entry.masks,
            patient=patients[entry.image],
            label=None if entry.masks else NO_LESION,
            split=entry.split,
            reader=reader,
        )
        cases += [
            replace(
                whole,
                masks=(mask,),
                label=_label(entry.image, mask),
                part=mask.relative_to(root).as_posix(),
                shares_image=True,
            )
            for mask in own
        ] or [whole]
    named = [case.masks[0] if case.shares_image else case.image for case in cases]
    rows = [(path.stem, path.relative_to(root).with_suffix("").as_posix()) for path in named]
    for case, name in zip(cases, unique_names(rows), strict=True):
        yield replace(case, id=name)


def _label(image: Path, mask: Path) -> str | None:
    """Return the class of a mask, where its name is its image's and a class, as in SA-Med2D."""
    match = _CLASS.fullmatch(mask.stem.removeprefix(image.stem))
    return match["label"].lower() if match and mask.stem.startswith(image.stem) else None


def _patient(listing: Listing, image: Path, root: Path, options: SaMed2dOptions) -> str | None:
    if options.patient is None:
        # {modality}--{dataset}--{volume}--{slice}: a volume may be there in several modalities.
        words = image.stem.split("--")
        return "--".join(words[1:3]) if len(words) == 4 else None
    name = image.relative_to(root).with_suffix("").as_posix()
    match = re.search(options.patient, name)
    if match is None or not match[1]:
        listing.problems.append(
            f"{image}: options.patient ({options.patient}) finds no patient in {name}; correct the "
            "expression"
        )
        return None
    return match[1]


def _read_masks(case: Case) -> list[RawMask]:
    problems, found = [], []
    for path in case.masks:
        try:
            found.append(read_binary_mask(path))
        except DatasetError as error:
            problems.append(str(error))
    if problems:
        raise DatasetError(f"{case.image.name}: masks cannot be used:", problems)
    return found


def read_binary_mask(path: Path) -> RawMask:
    """Read a mask that holds 0 and 255, or 0 and 1, and nothing else.

    Raises:
        DatasetError: The file cannot be decoded, is in colour, or holds another value.
    """
    raw = decode_image(path)
    pixels, cure = raw.pixels, "threshold it, and save the lesion as 255 and the background as 0"
    if pixels.ndim == 3:
        if np.ptp(pixels, axis=2).any():
            raise DatasetError(f"{path}: not a binary mask: it has colours; {cure}")
        pixels = pixels[..., 0]
    values = np.flatnonzero(np.bincount(pixels.ravel(), minlength=256)).tolist()
    if raw.deepest is not None and raw.deepest > 255:
        raise DatasetError(f"{path}: not a binary mask: its values go up to {raw.deepest}; {cure}")
    if not (set(values) <= {0, 255} or set(values) <= {0, 1}):
        raise DatasetError(
            f"{path}: not a binary mask: it holds the values {shorten(list(map(str, values)))}, "
            f"and may hold 0 and 255, or 0 and 1; {cure}"
        )
    notes = ("mask of 0 and 1",) if 1 in values else ()
    gray = np.where(pixels > 0, 255, 0).astype(np.uint8)
    return RawMask(str(path), gray, raw.mode, notes, exact=True)


ROW = DatasetRow(
    title=_TITLE,
    adapter=list_samed2d,
    expects=_EXPECTS,
    counts={},
    source="files of your own, or https://huggingface.co/datasets/OpenGVLab/SA-Med2D-20M",
    terms="those of your files; SA-Med2D-20M: those of each dataset in it",
    citation="the paper of your files; Ye et al. SA-Med2D-20M dataset (2023). arXiv:2311.11969",
    options=SaMed2dOptions,
)
