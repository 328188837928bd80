"""The JSON tables of SA-Med2D style folders: found, checked, and their paths made files."""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ultrarefiner.datasets.base import shorten
from ultrarefiner.errors import DatasetError

TABLES = {"train": "image2label_train.json", "test": "label2image_test.json"}
"""Name of the table of each part: masks by image, and image by mask."""


class _Pairs(list):
    """A JSON object as its pairs, so that a key that is there twice is seen."""


@dataclass(frozen=True)
class FileTable:
    """A table of a dataset.

    Attributes:
        path: The JSON file.
        part: "train" or "test".
        home: Folder of the dataset that it belongs to.
    """

    path: Path
    part: str
    home: Path


@dataclass(frozen=True)
class TableRow:
    """An image of a table, by the paths that stand in it.

    Attributes:
        image: The image.
        masks: Its masks; none for an image without a lesion.
        first: What stands first in the row.
    """

    image: str
    masks: tuple[str, ...]
    first: str


def find_tables(home: Path) -> list[FileTable]:
    """Return the tables of a dataset's folder: in train/ and test/, or beside these."""
    return [
        FileTable(path, part, home)
        for part, name in TABLES.items()
        for path in (home / part / name, home / name)
        if path.is_file()
    ]


def read_table(table: FileTable) -> list[TableRow]:
    """Return the images of a table with their masks.

    Raises:
        DatasetError: The file is not JSON, is no such mapping, is empty, or lists something twice.
    """
    try:
        content = json.loads(table.path.read_text(encoding="utf-8-sig"), object_pairs_hook=_Pairs)
    except (OSError, ValueError) as error:
        raise DatasetError(f"{table.path}: is not JSON ({error}); write it again") from error
    masks_by_image = table.part == "train"
    if not isinstance(content, _Pairs):
        raise _no_mapping(table, f"a {type(content).__name__}")
    if not content:
        raise DatasetError(f"{table.path}: lists nothing; write it again, or remove it")
    wrong = [
        key
        for key, value in content
        if not (key and (_is_list(value) if masks_by_image else _is_name(value)))
    ]
    if wrong:
        raise _no_mapping(table, f"something else at {shorten([repr(key) for key in wrong], 3)}")
    times = Counter(key for key, _ in content)
    if repeated := [key for key, count in times.items() if count > 1]:
        raise DatasetError(
            f"{table.path}: lists {shorten(repeated, 3)} more than once; list each "
            + ("image once, with all its masks" if masks_by_image else "mask once, with its image")
        )
    if masks_by_image:
        return [TableRow(image, tuple(masks), image) for image, masks in content]
    masks_of: dict[str, list[str]] = {}
    for mask, image in content:
        masks_of.setdefault(image, []).append(mask)
    return [TableRow(image, tuple(masks), masks[0]) for image, masks in masks_of.items()]


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _is_list(value: Any) -> bool:
    return isinstance(value, list) and not isinstance(value, _Pairs) and all(map(_is_name, value))


def _no_mapping(table: FileTable, found: str) -> DatasetError:
    example = (
        '{"images/a.png": ["masks/a_0.png", "masks/a_1.png"]}'
        if table.part == "train"
        else '{"masks/a_0.png": "images/a.png"}'
    )
    return DatasetError(
        f"{table.path}: must be an object of the form {example}, but holds {found}; write it again"
    )


def resolve(root: Path, base: Path, name: str) -> Path | None:
    """Return the file that a table means, by its path below the root; None: it lies outside.

    Args:
        root: Root of the dataset.
        base: Folder that the paths of the table start from.
        name: What stands in the table.
    """
    # Without following links: a file may be linked into the root.
    path = Path(os.path.normpath((base / name.replace("\\", "/")).absolute()))
    above = Path(os.path.normpath(root.absolute()))
    return root / path.relative_to(above) if path.is_relative_to(above) else None
