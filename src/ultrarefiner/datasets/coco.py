"""COCO annotation files: images in a folder, lesions as polygons or run lengths in a JSON file.

All annotations of an image together are its lesion; `iscrowd` only tells how a mask is stored. An
image without annotations (of the categories asked for) is one without a lesion.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field, field_validator

from ultrarefiner.config import Section
from ultrarefiner.datasets.base import (
    NO_LESION,
    Case,
    DatasetRow,
    Listing,
    RawImage,
    RawMask,
    Reader,
    image_files,
    shorten,
    unique_names,
)
from ultrarefiner.datasets.reading import decode_image
from ultrarefiner.datasets.run_lengths import decode_segmentation, segmentation_problem
from ultrarefiner.errors import DatasetError

_PARTS = {"train": "train", "val": "validation", "validation": "validation", "test": "test"}
_Part = Literal["train", "val", "validation", "test"]
_TITLE = "COCO annotations"
_EXPECTS = (
    "an annotation file in COCO's JSON form and a folder of images; `options` names both "
    "(annotations.json and images/ where absent)"
)


class CocoOptions(Section):
    """Where the annotations and images are, and what of them is a lesion."""

    annotations: str | dict[_Part, str] = Field(
        "annotations.json",
        description="Annotation file, relative to the root; or one for each part of an official "
        "division, `{train: a.json, val: b.json}`.",
    )
    images: str | dict[_Part, str] = Field(
        "images",
        description="Folder that the file names are relative to; or one for each part.",
    )
    categories: list[str] | None = Field(
        None, min_length=1, description="Names of the categories that are lesions; null: all."
    )
    patient: str | None = Field(
        None, description="Regular expression whose one group is the patient in a file name."
    )
    label: Literal["category"] | None = Field(
        None, description="`category`: the category's name is the class of its image."
    )

    @field_validator("annotations", "images")
    @classmethod
    def _inside(cls, value: str | dict[_Part, str]) -> str | dict[_Part, str]:
        for path in value.values() if isinstance(value, dict) else [value]:
            if Path(path).is_absolute() or ".." in Path(path).parts:
                raise ValueError("must lie in the dataset's root; give the path relative to it")
        return value

    @field_validator("patient")
    @classmethod
    def _one_group(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                groups = re.compile(value).groups
            except re.error as error:
                raise ValueError(f"is no regular expression ({error})") from None
            if groups != 1:
                raise ValueError("must have exactly one group (...)")
        return value


@dataclass
class _Entry:
    """An image of an annotation file and what is annotated in it."""

    where: str
    name: str
    path: Path
    table: Path
    height: int
    width: int
    split: str | None
    annotations: list[dict[str, Any]] = field(default_factory=list)
    labels: set[str] = field(default_factory=set)


def list_coco(root: Path, options: CocoOptions) -> Listing:
    """List the images of one or several COCO annotation files.

    Args:
        root: Folder that `annotations` and `images` are relative to.
        options: Where they are, and what of them is a lesion.

    Raises:
        DatasetError: An annotation file or the folder of images is missing or is something else.
    """
    if not root.is_dir():
        raise DatasetError(
            f"{root} is no folder. Set the dataset's root to one that holds {_EXPECTS}."
        )
    listing = Listing(root)
    entries: list[_Entry] = []
    for part, table, folder in _files(root, options):
        entries += _read_file(listing, table, folder, part, options)
    entries = _once(listing, entries)
    listing.unexpected += _not_listed(entries)
    reader = _entry_reader({entry.path: entry for entry in entries})
    for entry, name in zip(entries, _names(entries, root), strict=True):
        listing.cases.append(
            Case(
                name,
                entry.path,
                (entry.table,) if entry.annotations else (),
                patient=_patient(listing, entry, options),
                label=_label(listing, entry, options),
                split=entry.split,
                part=entry.table.name,
                reader=reader,
            )
        )
    if not listing.cases and not listing.problems:
        listing.problems.append(f"{root}: the annotation files list no images; check `options`")
    return listing


def _files(root: Path, options: CocoOptions) -> list[tuple[str | None, Path, Path]]:
    """Return part, annotation file and image folder of each annotation file."""
    tables, folders = options.annotations, options.images
    named: Mapping[str | None, str] = tables if isinstance(tables, dict) else {None: tables}
    found = []
    for part, table in named.items():
        folder = folders.get(part) if isinstance(folders, dict) else folders
        if folder is None:
            raise DatasetError(
                f"options.images names no folder for '{part}', options.annotations does; name the "
                "same parts in both, or one folder for all"
            )
        if not (root / table).is_file():
            raise DatasetError(
                f"{root / table} does not exist; set options.annotations to the annotation file, "
                "relative to the dataset's root"
            )
        if not (root / folder).is_dir():
            raise DatasetError(
                f"{root / folder} is no folder; set options.images to the folder of the images, "
                "relative to the dataset's root"
            )
        found.append((_PARTS.get(part or ""), root / table, root / folder))
    return found


def _load(table: Path) -> dict[str, list[dict[str, Any]]]:
    try:
        content = json.loads(table.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise DatasetError(f"{table}: is not JSON ({error}); export or unpack it again") from error
    lists = ("images", "annotations", "categories")
    wrong = [
        name
        for name in lists
        if not isinstance(content, dict)
        or not isinstance(content.get(name, []), list)
        or not all(isinstance(item, dict) for item in content.get(name, []))
    ]
    if wrong or "images" not in content or "annotations" not in content:
        raise DatasetError(
            f"{table}: is no COCO annotation file; it must hold the lists images, annotations and "
            "categories, each of objects"
        )
    return {name: content.get(name, []) for name in lists}


def _read_file(
    listing: Listing, table: Path, folder: Path, split: str | None, options: CocoOptions
) -> list[_Entry]:
    content = _load(table)
    names = {_id(item, "id"): str(item.get("name", "")) for item in content["categories"]}
    wanted = set(options.categories) if options.categories is not None else None
    if wanted and (unknown := sorted(wanted - set(names.values()))):
        raise DatasetError(
            f"{table}: has no category {shorten(unknown)}; options.categories may name "
            f"{shorten(sorted(names.values())) or 'nothing, the file lists none'}"
        )
    entries: dict[Any, _Entry] = {}
    for place, item in enumerate(content["images"]):
        entry = _entry(listing, item, f"{table}, images[{place}]", table, folder, split)
        if entry is None:
            continue
        if item["id"] in entries:
            listing.problems.append(f"{entry.where}: the id {item['id']} is there twice; renumber")
        else:
            entries[item["id"]] = entry
    ids = {_id(item, "id") for item in content["images"]} - {None}
    unseen: list[str] = []
    crowds = 0
    for place, item in enumerate(content["annotations"]):
        where = f"{table}, annotations[{place}]"
        image, category = _id(item, "image_id"), _id(item, "category_id")
        if image not in ids:
            listing.problems.append(f"{where}: no image has the id {image}; export the file again")
        elif category not in names and (wanted or options.label):
            listing.problems.append(
                f"{where}: no category has the id {category}; export the file again"
            )
        elif wanted is not None and names[category] not in wanted:
            continue
        elif entry := entries.get(image):
            if problem := segmentation_problem(item.get("segmentation"), entry.height, entry.width):
                listing.problems.append(f"{where} (of {entry.name}): {problem}")
                continue
            crowds += bool(item.get("iscrowd"))
            if not decode_segmentation(item["segmentation"], entry.height, entry.width).any():
                unseen.append(entry.name)
            entry.annotations.append({"place": place, "segmentation": item["segmentation"]})
            entry.labels.add(names.get(category, "").lower())
    if unseen:
        listing.warnings.append(
            f"{table}: {len(unseen)} annotations cover no pixel, in {shorten(unseen)}; they mark "
            "nothing, correct or remove them"
        )
    if crowds:
        listing.warnings.append(
            f"{table}: {crowds} annotations have iscrowd: 1; they are lesions like the others"
        )
    return list(entries.values())


def _id(item: dict[str, Any], key: str) -> int | str | None:
    """Return an id, or None for what cannot be one."""
    value = item.get(key)
    return value if isinstance(value, int | str) else None


def _entry(
    listing: Listing, item: dict[str, Any], where: str, table: Path, folder: Path, split: str | None
) -> _Entry | None:
    name, height, width = item.get("file_name"), item.get("height"), item.get("width")
    # Some exports write whole numbers as 640.0.
    sizes = [
        int(value)
        for value in (height, width)
        if isinstance(value, int | float) and value > 0 and value == value // 1
    ]
    if (
        not isinstance(name, str)
        or not name
        or len(sizes) != 2
        or not isinstance(item.get("id"), int | str)
    ):
        listing.problems.append(
            f"{where}: must have id, file_name, width and height; export the file again"
        )
        return None
    path = folder / name.replace("\\", "/")
    if Path(name).is_absolute() or ".." in Path(name.replace("\\", "/")).parts:
        listing.problems.append(f"{where}: {name} is not in {folder}; make it relative to it")
    elif not path.is_file():
        listing.problems.append(
            f"{path}: the image is missing ({where}); unpack the archive again, or set "
            "options.images"
        )
    else:
        return _Entry(where, name.replace("\\", "/"), path, table, *sizes, split)
    return None


def _names(entries: list[_Entry], root: Path) -> list[str]:
    """Return what each case's id is made of: the shortest of three names that no other image has."""
    rows = []
    for entry in entries:
        name = Path(entry.name).with_suffix("")
        full = entry.path.relative_to(root).with_suffix("")
        rows.append((name.name, name.as_posix(), full.as_posix()))
    return unique_names(rows)


def _once(listing: Listing, entries: list[_Entry]) -> list[_Entry]:
    """Return the first entry of each image; a second one becomes a problem."""
    first: dict[Path, _Entry] = {}
    for entry in entries:
        known = first.setdefault(entry.path, entry)
        if known is not entry:
            listing.problems.append(
                f"{entry.where}: {entry.name} is listed already as {known.where}; list each image "
                "once, with all its annotations"
            )
    return list(first.values())


def _not_listed(entries: list[_Entry]) -> list[Path]:
    """Return the images that lie beside those of the annotation files."""
    used = {entry.path for entry in entries}
    folders = sorted({entry.path.parent for entry in entries})
    return [path for folder in folders for path in image_files(folder)[0] if path not in used]


def _patient(listing: Listing, entry: _Entry, options: CocoOptions) -> str | None:
    if options.patient is None:
        return None
    match = re.search(options.patient, entry.name)
    if match is None or not match[1]:
        listing.problems.append(
            f"{entry.path}: options.patient ({options.patient}) finds no patient in {entry.name}; "
            "correct the expression"
        )
        return None
    return match[1]


def _label(listing: Listing, entry: _Entry, options: CocoOptions) -> str | None:
    if not entry.annotations:
        return NO_LESION
    if options.label is None:
        return None
    if len(entry.labels) > 1:
        listing.warnings.append(
            f"{entry.path}: has lesions of several categories ({', '.join(sorted(entry.labels))}); "
            "its class is left open"
        )
        return None
    return next(iter(entry.labels)) or None


def _entry_reader(by_image: Mapping[Path, _Entry]) -> Reader:
    def image(case: Case) -> RawImage:
        entry, raw = by_image[case.image], decode_image(case.image)
        height, width = raw.pixels.shape[:2]
        if (height, width) != (entry.height, entry.width):
            raise DatasetError(
                f"{case.image}: has {height}x{width} pixels (height x width), {entry.where} says "
                f"{entry.height}x{entry.width}; put the image in place that was annotated"
            )
        return raw

    def masks(case: Case) -> list[RawMask]:
        entry = by_image[case.image]
        return [
            RawMask(
                f"{entry.table}, annotations[{item['place']}]",
                decode_segmentation(item["segmentation"], entry.height, entry.width)
                * np.uint8(255),
                "COCO",
            )
            for item in entry.annotations
        ]

    return Reader(image, masks)


ROW = DatasetRow(
    title=_TITLE,
    adapter=list_coco,
    expects=_EXPECTS,
    counts={},
    source="files of your own",
    terms="those of your files",
    citation="the paper of your files, if there is one",
    options=CocoOptions,
)
