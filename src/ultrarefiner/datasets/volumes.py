"""Volumes as slices: which axis is which, one gray scale for a whole volume, damaged files refused.

Axes have the numbers 0, 1, 2 in the order of the file: along axis 0 lie the values that follow each
other in the file. A slice is what is left when the index along one axis is fixed; of the other two
axes the lower one runs along its rows (to the right), the higher one down. SimpleITK's arrays have
the reverse order, [axis 2, axis 1, axis 0].
"""

from __future__ import annotations

import gzip
import itertools
import re
import struct
import threading
import zlib
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path

import numpy as np

from ultrarefiner.datasets.base import RawImage, RawMask
from ultrarefiner.errors import DatasetError

VOLUME_SUFFIXES = (".nrrd", ".nii", ".nii.gz")
"""Ends of the names of volume files."""

_SAME_SPACING = 0.01
_NIFTI_HEADER = 348
_CHUNK = 1 << 20
_PART = re.compile(r"axis ([012]) slice (\d+)")


@dataclass(frozen=True)
class VolumeHeader:
    """What a volume file says of itself, axis by axis in the order of the file.

    Attributes:
        path: The file.
        size: Values along each axis; 1 along axes that the file does not have.
        spacing: mm from one value to the next along each axis; None where the header does not tell
            (no spacing, or 1 along every axis, which is what writers put there when they know none).
        directions: What each axis of the file runs along in space: "+x", "-z", ...
    """

    path: Path
    size: tuple[int, int, int]
    spacing: tuple[float, float, float] | None
    directions: tuple[str, str, str]

    def pixel_spacing(self, axis: int) -> tuple[float, float] | None:
        """Return the (row, column) size in mm of a pixel in slices along an axis."""
        if self.spacing is None:
            return None
        column, row = (self.spacing[other] for other in range(3) if other != axis)
        return row, column


def is_volume(path: Path) -> bool:
    """Tell by its name whether a file is one of the volumes that can be read."""
    return path.name.lower().endswith(VOLUME_SUFFIXES)


def name_slice(axis: int, index: int) -> str:
    """Return the name of a slice, as it stands in `Case.part`."""
    return f"axis {axis} slice {index:04d}"


def parse_slice(part: str) -> tuple[int, int]:
    """Return the axis and the index of a name that `name_slice` made."""
    axis, index = _PART.fullmatch(part).groups()
    return int(axis), int(index)


def is_slice(part: str) -> bool:
    """Tell whether a name is one that `name_slice` made."""
    return _PART.fullmatch(part) is not None


def _reader(path: Path):  # noqa: ANN202 - a SimpleITK type, imported only where volumes are read
    # Imported here: it takes 0.3 s, and most studies have no volumes.
    import SimpleITK as sitk

    if not path.is_file():
        raise DatasetError(f"{path}: the file is missing; unpack the archive again")
    plain = path.with_suffix("")
    if path.name.lower().endswith(".nii.gz") and plain.is_file():
        # The NIfTI library opens the uncompressed file, whichever of the two was asked for.
        raise DatasetError(f"{path}: {plain.name} lies beside it; move the one not meant away")
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    return reader


def _unreadable(path: Path, why: object) -> DatasetError:
    reason = str(why).strip().splitlines()[-1] if str(why).strip() else "unknown error"
    return DatasetError(
        f"{path}: cannot be read as a volume ({reason.strip()}); the file is damaged, truncated or "
        "of another kind: unpack or download it again"
    )


def read_header(path: Path) -> VolumeHeader:
    """Read the header of a volume, and none of its values.

    Raises:
        DatasetError: The file is absent, no volume, a colour volume or one of more than 3 axes.
    """
    reader = _reader(path)
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise _unreadable(path, error) from error
    size, spacing = list(reader.GetSize()), list(reader.GetSpacing())
    dimension = len(size)
    while len(size) > 3 and size[-1] == 1:
        size.pop()
    if len(size) > 3 or reader.GetNumberOfComponents() != 1:
        raise DatasetError(
            f"{path}: has {dimension} axes of sizes {_shape(size)} and "
            f"{reader.GetNumberOfComponents()} values in each place; a gray volume of at most 3 "
            "axes is needed: save each image as a file of its own"
        )
    known = any(value != 1.0 for value in spacing[: len(size)]) and min(spacing) > 0
    # NIfTI stores single precision: 0.08 comes back as 0.0799999982.
    spacing = [float(f"{value:.6g}") for value in spacing]
    matrix = np.reshape(reader.GetDirection(), (dimension, dimension))
    missing = 3 - len(size)
    return VolumeHeader(
        path,
        (*size, *[1] * missing)[:3],
        (*spacing[: len(size)], *[1.0] * missing)[:3] if known else None,
        (*_directions(matrix)[: len(size)], *["+x", "+y", "+z"][len(size) :])[:3],
    )


def _directions(matrix: np.ndarray) -> list[str]:
    """Return the axis of space that each axis of the file is nearest to, with its sense."""
    nearest = np.abs(matrix).argmax(axis=0)
    return [
        ("-" if matrix[row, axis] < 0 else "+") + "xyzt"[row] for axis, row in enumerate(nearest)
    ]


def _shape(size: list[int] | tuple[int, ...]) -> str:
    return " x ".join(map(str, size))


def axis_problem(image: VolumeHeader, mask: VolumeHeader) -> str | None:
    """Return why a mask does not lie on a volume axis by axis, with the cure, or None if it does."""
    cure = "save the mask in the axis order of the volume"
    if mask.size != image.size:
        order = _order(image.size, mask.size, 0.0)
        if order is not None:
            return (
                f"{mask.path}: its axes are in another order than those of {image.path}: sizes "
                f"{_shape(mask.size)} and {_shape(image.size)}, so axes 0, 1, 2 of the volume are "
                f"axes {order} of the mask; {cure}"
            )
        return (
            f"{mask.path}: its size {_shape(mask.size)} is not {_shape(image.size)} of "
            f"{image.path} (axes 0, 1, 2): they do not show the same; restore the right mask"
        )
    if image.spacing is None or mask.spacing is None:
        return None
    if mask.directions != image.directions:
        return (
            f"{mask.path}: by its header the axes 0, 1, 2 run along {', '.join(mask.directions)}, "
            f"those of {image.path} along {', '.join(image.directions)}; {cure}"
        )
    if not _close(image.spacing, mask.spacing):
        order = _order(image.spacing, mask.spacing, _SAME_SPACING)
        if order is not None:
            return (
                f"{mask.path}: its axes are in another order than those of {image.path}: spacings "
                f"{_mm(mask.spacing)} and {_mm(image.spacing)} mm, so axes 0, 1, 2 of the volume "
                f"are axes {order} of the mask; {cure}"
            )
    return None


def spacing_differs(image: VolumeHeader, mask: VolumeHeader) -> bool:
    """Tell whether two headers both give a spacing, and not the same."""
    return bool(image.spacing and mask.spacing and not _close(image.spacing, mask.spacing))


def _close(
    one: tuple[float, ...], other: tuple[float, ...], tolerance: float = _SAME_SPACING
) -> bool:
    return all(abs(a - b) <= tolerance * a for a, b in zip(one, other, strict=True))


def _order(image: tuple[float, ...], mask: tuple[float, ...], tolerance: float) -> str | None:
    """Return which axes of the mask are the axes 0, 1, 2 of the volume, if one order fits."""
    for order in itertools.permutations(range(3)):
        if order != (0, 1, 2) and _close(image, tuple(mask[i] for i in order), tolerance):
            return ", ".join(map(str, order))
    return None


def _mm(spacing: tuple[float, ...]) -> str:
    return " x ".join(f"{value:.3g}" for value in spacing)


@dataclass(frozen=True)
class Volume:
    """The values of a volume.

    Attributes:
        header: What its file says of it.
        array: Values, indexed [axis 2, axis 1, axis 0].
        percentiles: Percentiles of all values that become gray 0 and 255.
    """

    header: VolumeHeader
    array: np.ndarray
    percentiles: tuple[float, float] = (0.0, 100.0)

    def cut(self, axis: int, index: int) -> np.ndarray:
        """Return the values of a slice, (H, W)."""
        return np.take(self.array, index, axis=2 - axis)

    @cached_property
    def scale(self) -> tuple[float, float]:
        """The values that become gray 0 and 255: of the volume, so that all its slices agree."""
        low, high = self.percentiles
        if (low, high) == (0.0, 100.0):
            return float(self.array.min()), float(self.array.max())
        return tuple(map(float, np.percentile(self.array, (low, high))))

    def image(self, axis: int, index: int) -> RawImage:
        """Return a slice as uint8 gray on the volume's scale, with its pixel spacing."""
        low, high = self.scale
        if not np.isfinite([low, high]).all():
            raise DatasetError(f"{self.header.path}: holds values that are no numbers; mend them")
        gray = to_gray(self.cut(axis, index), low, high)
        notes = (
            () if (low, high) == (0.0, 255.0) else (f"volume's {low:g} to {high:g} as 0 to 255",)
        )
        spacing = self.header.pixel_spacing(axis)
        return RawImage(gray, f"slice of {self.array.dtype}", notes=notes, spacing=spacing)

    def lesion_areas(self, axis: int, lesion: list[int] | None = None) -> np.ndarray:
        """Return the number of lesion pixels in each slice along an axis of a mask volume.

        Args:
            axis: Axis along which slices are cut.
            lesion: Values that are lesion; None: the one value that is not 0.

        Raises:
            DatasetError: `lesion` is None and the mask holds more than 0 and one other value.
        """
        others = tuple(2 - other for other in range(3) if other != axis)
        return np.count_nonzero(self._lesion(self.array, lesion), axis=others)

    def lesion(self, axis: int, index: int, lesion: list[int] | None = None) -> np.ndarray:
        """Return the lesion in a slice of a mask volume as bool (H, W); see `lesion_areas`."""
        return self._lesion(self.cut(axis, index), lesion)

    def _lesion(self, values: np.ndarray, lesion: list[int] | None) -> np.ndarray:
        if lesion is not None:
            return np.isin(values, lesion)
        if self._other_values:
            raise DatasetError(
                f"{self.header.path}: not a mask of background and lesion: {self._other_values}; "
                "save the lesion as 1 and the background as 0"
            )
        return values != 0

    @cached_property
    def _other_values(self) -> str | None:
        """What a mask holds beside 0 and one other value."""
        low, high = self.array.min(), self.array.max()
        nonzero = np.count_nonzero(self.array)
        other = high if high != 0 else low
        if nonzero == 0 or nonzero == np.count_nonzero(self.array == other):
            return None
        return f"beside 0 it holds several values from {low:g} to {high:g}"


def to_gray(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Return values as uint8, from `low` as 0 to `high` as 255."""
    scaled = (values.astype(np.float64) - low) * (255.0 / max(high - low, 1e-12))
    return np.rint(np.clip(scaled, 0.0, 255.0)).astype(np.uint8)


def read_volume(path: Path, percentiles: tuple[float, float] = (0.0, 100.0)) -> Volume:
    """Read a volume completely.

    Raises:
        DatasetError: The file is absent, damaged, truncated or not a gray volume.
    """
    import SimpleITK as sitk

    header = read_header(path)
    if not path.name.lower().endswith(".nrrd"):
        _require_whole_nifti(path)
    try:
        values = sitk.GetArrayFromImage(_reader(path).Execute())
    except RuntimeError as error:
        raise _unreadable(path, error) from error
    return Volume(header, values.reshape(header.size[::-1]), percentiles)


def _require_whole_nifti(path: Path) -> None:
    """Refuse a truncated NIfTI file: the library that reads it fills up with zeros, silently."""
    try:
        with gzip.open(path) if path.name.lower().endswith(".gz") else open(path, "rb") as file:
            head = file.read(_NIFTI_HEADER)
            order = "<" if head[:4] == struct.pack("<i", _NIFTI_HEADER) else ">"
            if struct.unpack(f"{order}i", head[:4])[0] != _NIFTI_HEADER:
                raise _unreadable(path, "no NIfTI-1 header")
            dims = struct.unpack(f"{order}8h", head[40:56])
            bits = struct.unpack(f"{order}h", head[72:74])[0]
            offset = struct.unpack(f"{order}f", head[108:112])[0]
            needed = int(offset) + prod(dims[1 : 1 + dims[0]]) * bits // 8
            found = len(head)
            while block := file.read(_CHUNK):
                found += len(block)
    except (OSError, EOFError, struct.error, zlib.error) as error:
        raise _unreadable(path, error) from error
    if found < needed:
        raise _unreadable(path, f"{found} of {needed} bytes")


class VolumeShelf:
    """The volumes read last, for slices of one that are asked for one after the other.

    A volume is read once however many threads ask for it, and again when its file has changed.
    """

    def __init__(self, read: Callable[[Path], Volume] = read_volume, keep: int = 2) -> None:
        self._read = read
        self._keep = keep
        self._lock = threading.Lock()
        self._volumes: OrderedDict[tuple[Path, int, int], Future[Volume]] = OrderedDict()

    def read(self, path: Path) -> Volume:
        """Return a volume; see `read_volume`."""
        try:
            facts = path.stat()
        except OSError as error:
            raise _unreadable(path, error) from error
        key = (path, facts.st_mtime_ns, facts.st_size)
        with self._lock:
            future = self._volumes.get(key)
            mine = future is None
            if future is None:
                future = self._volumes[key] = Future()
                while len(self._volumes) > self._keep:
                    self._volumes.popitem(last=False)
        if mine:
            try:
                future.set_result(self._read(path))
            except BaseException as error:
                # Whoever waits for it gets the same error; the next one reads again.
                with self._lock:
                    self._volumes.pop(key, None)
                future.set_exception(error)
                raise
        return future.result()

    def mask(self, path: Path, part: str, lesion: list[int] | None = None) -> RawMask:
        """Return the lesion in a slice of a mask volume.

        Args:
            path: The mask volume.
            part: The slice, as `name_slice` calls it.
            lesion: Values that are lesion; see `Volume.lesion_areas`.
        """
        found = self.read(path).lesion(*parse_slice(part), lesion)
        return RawMask(f"{path} ({part})", np.where(found, 255, 0).astype(np.uint8), "slice")
