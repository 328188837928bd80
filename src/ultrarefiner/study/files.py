"""What a study reads from disk: digests that notice a change, and what is not there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

from ultrarefiner.config import DatasetConfig
from ultrarefiner.datasets import DATASETS
from ultrarefiner.datasets.dicom import DICOM_SUFFIXES
from ultrarefiner.io import json_sha256
from ultrarefiner.models.weights import registered

_SAMPLE, _SAMPLES = 1 << 16, 63  # bytes of a sample of a weights file, and how many more
# What a dataset folder is read for; other files in it (notes, thumbnails) change nothing.
_DATA_SUFFIXES = {
    *(".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".csv"),
    *(".nrrd", ".nii", ".gz", ".json", "", *DICOM_SUFFIXES),
}


def missing_root(name: str, row: DatasetConfig) -> Iterator[str]:
    """Yield what is wrong with the place of a dataset, with its cure."""
    if row.root is not None and not Path(row.root).is_dir():
        source = DATASETS[row.layout or name].source
        yield (
            f"datasets.{name}.root: there is no folder {row.root}. "
            f"Get the dataset ({source}) and unpack it there, or correct the path."
        )


def folder_listing(root: str | None) -> str:
    """Return a digest of a raw folder: the names, sizes and ends of its data files, not their times.

    A job that carries it in its params runs again when files are added, removed or replaced.
    """
    if root is None or not Path(root).is_dir():
        return "absent"
    entries = []
    for folder, folders, names in os.walk(root, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            path = Path(folder) / name
            if _is_data(path) and not name.startswith("."):
                entries.append((path.relative_to(root).as_posix(), *_size_and_end(path)))
    return json_sha256(sorted(entries))[:16]


def _is_data(path: Path) -> bool:
    # DICOM files are often named by their number: 1.2.840.113619.2.1.
    return path.suffix.lower() in _DATA_SUFFIXES or path.suffix[1:].isdecimal()


def own_weights(name_or_path: str | None) -> str | None:
    """Return a digest of a weights file of the user's own: its size, and samples of all its parts.

    A job that carries it in its params runs again when another file takes the place, whatever its
    time. None for published weights, whose bytes are checked whenever they are used, and for none.
    """
    if name_or_path is None or registered(name_or_path):
        return None
    path = Path(name_or_path)
    if not path.is_file():
        return "absent"
    digest = sha256()
    with open(path, "rb") as handle:
        last = handle.seek(0, os.SEEK_END) - _SAMPLE
        digest.update(str(last).encode())
        # The end is among them: there a file of torch.save has the check sums of all its tensors.
        for number in range(_SAMPLES + 1):
            handle.seek(max(last, 0) * number // _SAMPLES)
            digest.update(handle.read(_SAMPLE))
    return digest.hexdigest()[:16]


def _size_and_end(path: Path) -> tuple[int, str]:
    # A PNG ends with checksums of its pixels, so an edit that keeps the size is seen too.
    with open(path, "rb") as handle:
        size = handle.seek(0, os.SEEK_END)
        handle.seek(max(size - 64, 0))
        return size, handle.read().hex()
