"""What a study reads from disk: digests that notice a change, and what is not there."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from hashlib import sha256
from pathlib import Path, PurePath

from ultrarefiner.config import DatasetConfig
from ultrarefiner.datasets import DATASETS
from ultrarefiner.datasets.dicom import DICOM_SUFFIXES
from ultrarefiner.models.weights import registered

_SAMPLE, _SAMPLES = 1 << 16, 63  # bytes of a sample of a weights file, and how many more
_READERS, _TASK = 8, 256  # files of a raw folder opened at a time, and in a row
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
    names = []
    for folder, folders, files in os.walk(root, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        # As os.walk joins them: a Path for each of some hundred thousand files would take seconds.
        below = Path(folder).relative_to(root).as_posix()
        start = "" if below == "." else f"{below}/"
        names += [start + name for name in files if _is_data(name) and not name.startswith(".")]
    # The digest of the canonical JSON of all entries, whose text is never in memory as a whole.
    digest, comma = sha256(b"["), b""
    for entry in _entries(root, sorted(names)):
        digest.update(comma + json.dumps(entry, separators=(",", ":")).encode())
        comma = b","
    digest.update(b"]")
    return digest.hexdigest()[:16]


def _entries(root: str, names: Sequence[str]) -> Iterator[tuple[str, int, str]]:
    """Yield name, size and end of files, several of which are opened at a time."""
    tasks = [names[first : first + _TASK] for first in range(0, len(names), _TASK)]
    with ThreadPoolExecutor(_READERS) as pool:
        # A few tasks at a time: what waits to be told takes more memory than the names.
        for first in range(0, len(tasks), _READERS):
            read = partial(_sizes_and_ends, root)
            for task in pool.map(read, tasks[first : first + _READERS]):
                yield from task


def _sizes_and_ends(root: str, names: Sequence[str]) -> list[tuple[str, int, str]]:
    # A PNG ends with checksums of its pixels, so an edit that keeps the size is seen too.
    found = []
    for name in names:
        handle = os.open(f"{root}/{name}", os.O_RDONLY)
        try:
            size = os.fstat(handle).st_size
            found.append((name, size, os.pread(handle, 64, max(size - 64, 0)).hex()))
        finally:
            os.close(handle)
    return found


def _is_data(name: str) -> bool:
    suffix = PurePath(name).suffix
    # DICOM files are often named by their number: 1.2.840.113619.2.1.
    return suffix.lower() in _DATA_SUFFIXES or suffix[1:].isdecimal()


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
