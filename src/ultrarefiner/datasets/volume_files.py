"""Volume files with their place in space: NIfTI, NRRD and npy, read in file order and written back.

Arrays here are in file order: index [i, j, k] is the value at i along axis 0, j along axis 1 and k
along axis 2, as nibabel, pynrrd and NumPy number them. NIfTI is read with nibabel, which keeps an
oblique or sheared affine, its codes and its units, and gives values that are no numbers as they
are.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ultrarefiner.datasets.base import (
    Listing,
    list_folder,
    missing_image,
    missing_mask,
    shorten,
)
from ultrarefiner.datasets.volumes import VolumeHeader
from ultrarefiner.errors import DatasetError
from ultrarefiner.io import atomic_path

ENDS = (".nii.gz", ".nii", ".nrrd", ".npy")
"""Ends of the names of the files that can be read, the longer of two first."""

Affine = tuple[tuple[float, ...], ...]

_MM = {"meter": 1000.0, "mm": 1.0, "micron": 0.001}
# LPS, which SimpleITK counts in, to RAS, which NIfTI counts in; and back.
_FLIP = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True)
class VolumeGeometry:
    """What a volume file says of itself; its values stay unread.

    Attributes:
        path: The file.
        size: Values along the axes 0, 1, 2.
        spacing: mm from one value to the next along them; None where the file does not tell (no
            spacing, or 1 along every axis, which is what writers put there when they know none).
        affine: 4 x 4, indices along the axes -> RAS, in the units of the file (mostly mm); the
            identity for a file without one (npy).
    """

    path: Path
    size: tuple[int, int, int]
    spacing: tuple[float, float, float] | None
    affine: Affine

    @property
    def header(self) -> VolumeHeader:
        """The same for those who compare axes: directions are those of LPS, as SimpleITK's."""
        matrix = (_FLIP @ np.array(self.affine))[:3, :3]
        nearest = np.abs(matrix).argmax(axis=0)
        directions = tuple(
            ("-" if matrix[row, axis] < 0 else "+") + "xyz"[row] for axis, row in enumerate(nearest)
        )
        return VolumeHeader(self.path, self.size, self.spacing, directions)


@dataclass(frozen=True)
class _Opened:
    """A file whose header has been read; `image` is what its library made of it."""

    geometry: VolumeGeometry
    image: Any = field(repr=False)


def paired_names(
    listing: Listing,
    images: Mapping[str, Path],
    masks: Mapping[str, Path],
    homes: tuple[Path, Path],
    suffixes: tuple[str, str],
) -> list[str]:
    """Return the names that have both a volume and a mask; of the others the listing is told.

    Args:
        listing: Takes the problems.
        images: Volumes by name.
        masks: Masks by name.
        homes: Folder of the volumes, and of the masks.
        suffixes: What follows the name in a volume's file, and in a mask's.
    """
    for name in sorted(images.keys() - masks.keys()):
        wanted = homes[1] / f"{name}{suffixes[1]}.nii.gz"
        listing.problems.append(missing_mask(images[name], str(wanted)))
    for name in sorted(masks.keys() - images.keys()):
        wanted = homes[0] / f"{name}{suffixes[0]}.nii.gz"
        listing.problems.append(missing_image(masks[name], str(wanted)))
    return sorted(images.keys() & masks.keys())


def named_volumes(
    listing: Listing, folder: Path, suffix: str, ends: Sequence[str] = ENDS
) -> dict[str, Path]:
    """Return the volume files of a folder by their names without end and suffix.

    Others are added to the listing as unexpected, two files of one name as a problem.

    Args:
        listing: What becomes of the folder's dataset.
        folder: The folder.
        suffix: What the names have at their ends, before that of a volume file.
        ends: Ends of the names of volume files.
    """
    found: dict[str, Path] = {}
    for entry in list_folder(folder):
        end = next((end for end in ends if entry.name.lower().endswith(end)), None)
        stem = entry.name[: -len(end)] if end else ""
        name = stem.removesuffix(suffix)
        if not name or not stem.endswith(suffix) or not entry.is_file():
            listing.unexpected.append(entry)
        elif name in found:
            listing.problems.append(
                f"{found[name]} and {entry} have one name; move the one not meant away"
            )
        else:
            found[name] = entry
    return found


def warn_of_turned(listing: Listing, headers: Mapping[str, VolumeHeader]) -> None:
    """Add a warning of the volumes whose axes run along other directions than those of most.

    Args:
        listing: What becomes of the dataset.
        headers: Headers by the volumes' names.
    """
    known = {name: one.directions for name, one in headers.items() if one.spacing is not None}
    if len(set(known.values())) <= 1:
        return
    all_directions = list(known.values())
    usual = max(sorted(set(all_directions)), key=all_directions.count)
    turned = [name for name, directions in known.items() if directions != usual]
    listing.warnings.append(
        f"{listing.folder}: the axes of {len(turned)} volumes run along other directions than "
        f"the usual {', '.join(usual)}: {shorten(turned)}; their slices are turned, mirrored or "
        "cut another way: bring all volumes into one orientation"
    )


def read_geometry(path: Path) -> VolumeGeometry:
    """Read size, spacing and affine of a volume file.

    Raises:
        DatasetError: The file is absent, damaged, no volume, or has another number of axes than 3.
    """
    return _open(path).geometry


def read_values(path: Path) -> np.ndarray:
    """Read the values of a volume file in file order, (size 0, size 1, size 2).

    NIfTI's slope and intercept are applied.

    Raises:
        DatasetError: As `read_geometry`; also a truncated file, values that are not real numbers,
            and any that is NaN or infinite, with its place.
    """
    opened = _open(path)
    with _clear(path):
        if path.name.lower().endswith(".nrrd"):
            import SimpleITK as sitk

            values = sitk.GetArrayFromImage(opened.image.Execute()).T
        else:
            values = np.asanyarray(getattr(opened.image, "dataobj", opened.image))
        values = np.array(values).reshape(opened.geometry.size)
    if values.dtype.kind not in "buif":
        raise DatasetError(
            f"{path}: holds values of the kind {values.dtype}; save one real number in each place"
        )
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        wrong = ~np.isfinite(values)
        first = ", ".join(str(int(index)) for index in np.argwhere(wrong)[0])
        raise DatasetError(
            f"{path}: {int(wrong.sum())} values are no numbers (NaN or infinite), the first at "
            f"[{first}] (axes 0, 1, 2); mend them"
        )
    return values


def write_like(source: Path, mask: np.ndarray, affine: Affine, path: Path) -> None:
    """Write a mask as NIfTI on the grid of a volume file.

    Of a NIfTI source all that says where a voxel lies is kept to the bit: qform and sform with
    their codes, voxel sizes, units. Other sources get their affine as qform and sform.

    Args:
        source: The volume file.
        mask: bool in file order, in its size.
        affine: Its affine; of a NIfTI source its own is taken.
        path: File to write, `.nii.gz` or `.nii`; 0 and 1 as uint8.

    Raises:
        DatasetError: The source cannot be read, or the mask has another size.
    """
    # Imported here: most studies have no volumes.
    import nibabel

    opened = _open(source)
    geometry, data = opened.geometry, mask.astype(np.uint8)
    if mask.shape != geometry.size:
        raise DatasetError(
            f"{source}: its size {geometry.size} is not {mask.shape} of the mask for {path}; the "
            "file has changed: prepare the dataset again"
        )
    if isinstance(opened.image, nibabel.Nifti1Pair):
        header = opened.image.header.copy()
        header.extensions.clear()
        header.set_data_dtype(np.uint8)
        header.set_slope_inter(1.0, 0.0)
        header["cal_min"] = header["cal_max"] = 0.0
        header["descrip"] = b""
        image = type(opened.image)(data, opened.image.affine, header)
    else:
        image = nibabel.Nifti1Image(data, np.array(affine))
        image.set_sform(np.array(affine), code="scanner")
        image.set_qform(np.array(affine), code="scanner")
        image.header.set_xyzt_units(None if np.array_equal(affine, np.eye(4)) else "mm")
    with atomic_path(path) as temporary:
        nibabel.save(image, temporary)


def spaced_affine(spacing: tuple[float, float, float]) -> Affine:
    """Return the affine of a file that has none: its axes along R, A, S, from its first value."""
    return _rows(np.diag([*spacing, 1.0]))


def _open(path: Path) -> _Opened:
    if not path.is_file():
        raise DatasetError(f"{path}: the file is missing; unpack the archive again")
    name = path.name.lower()
    with _clear(path):
        if name.endswith(".npy"):
            return _npy(path)
        return _nrrd(path) if name.endswith(".nrrd") else _nifti(path)


@contextmanager
def _clear(path: Path) -> Iterator[None]:
    """Turn the errors of the reading libraries into one line."""
    try:
        yield
    except DatasetError:
        raise
    # nibabel's own errors have no base but Exception, SimpleITK's are RuntimeErrors.
    except (OSError, EOFError, ValueError, RuntimeError, zlib.error, *_nibabel_errors()) as error:
        reason = str(error).strip().splitlines()[-1].strip() if str(error).strip() else "no reason"
        raise DatasetError(
            f"{path}: cannot be read as a volume ({reason}); the file is damaged, truncated or of "
            "another kind: unpack or download it again"
        ) from error


def _nibabel_errors() -> tuple[type[Exception], ...]:
    from nibabel.filebasedimages import ImageFileError
    from nibabel.spatialimages import HeaderDataError

    return ImageFileError, HeaderDataError


def _npy(path: Path) -> _Opened:
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    size = _three(path, array.shape)
    return _Opened(VolumeGeometry(path, size, None, _rows(np.eye(4))), array)


def _nrrd(path: Path) -> _Opened:
    import SimpleITK as sitk

    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    if reader.GetNumberOfComponents() != 1:
        raise DatasetError(f"{path}: has {reader.GetNumberOfComponents()} values in each place")
    size = _three(path, reader.GetSize())
    dimension = reader.GetDimension()
    steps = np.array(reader.GetSpacing())
    affine = np.eye(4)
    directions = np.reshape(reader.GetDirection(), (dimension, dimension))
    affine[:3, :3] = (directions * steps)[:3, :3]
    affine[:3, 3] = reader.GetOrigin()[:3]
    # Negative zeros would be another text in our tables.
    return _Opened(
        VolumeGeometry(path, size, _known(steps[:3]), _rows(_FLIP @ affine + 0.0)), reader
    )


def _nifti(path: Path) -> _Opened:
    import nibabel

    image = nibabel.load(path)
    if not isinstance(image, nibabel.Nifti1Pair):
        raise DatasetError(
            f"{path}: is no NIfTI file inside ({type(image).__name__}); save it anew"
        )
    size = _three(path, image.shape)
    unit = _MM.get(image.header.get_xyzt_units()[0], 1.0)
    sides = nibabel.affines.voxel_sizes(image.affine) * unit
    return _Opened(VolumeGeometry(path, size, _known(sides), _rows(image.affine)), image)


def _three(path: Path, shape: tuple[int, ...]) -> tuple[int, int, int]:
    size = [int(length) for length in shape]
    while len(size) > 3 and size[-1] == 1:
        size.pop()
    if len(size) != 3 or min(size) < 1:
        raise DatasetError(
            f"{path}: has {len(shape)} axes of sizes {' x '.join(map(str, shape))}; a gray volume "
            "of 3 axes is needed: save each volume as a file of its own"
        )
    return size[0], size[1], size[2]


def _known(sides: np.ndarray) -> tuple[float, float, float] | None:
    # NIfTI stores single precision: 0.08 comes back as 0.0799999982.
    x, y, z = (float(f"{side:.6g}") for side in sides)
    return (x, y, z) if min(x, y, z) > 0.0 and (x, y, z) != (1.0, 1.0, 1.0) else None


def _rows(matrix: np.ndarray) -> Affine:
    return tuple(tuple(float(value) for value in row) for row in matrix)
