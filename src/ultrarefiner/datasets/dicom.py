"""DICOM images as 8-bit pixels, by the rules of the standard that ultrasound needs.

Gray values go through the modality transform (rescale), then the first window or lookup table of
the file; without one, the range of the stored bits becomes 0 to 255, so that images of one scanner
keep their common scale. MONOCHROME1 is inverted; palettes and YBR colours become RGB. Pixel
spacing is that of the ultrasound regions (cm per pixel), else the attribute Pixel Spacing (mm).
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ultrarefiner.datasets.base import RawImage
from ultrarefiner.errors import DatasetError

if TYPE_CHECKING:
    from pydicom import Dataset

DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")
"""Ends of the names of DICOM files; many have none, and `is_dicom` looks into those."""

_MARK = b"DICM"
_CENTIMETRES = 3
_TWO_DIMENSIONAL = 1
_SAME_SPACING = 0.01
# What pydicom raises for files that are damaged in one way or another.
_DAMAGED = (
    *(AttributeError, EOFError, IndexError, KeyError, NotImplementedError, OSError, OverflowError),
    *(RuntimeError, TypeError, ValueError, struct.error, zlib.error),
)


def is_dicom(path: Path) -> bool:
    """Tell by its name, or by its first bytes where the name says nothing, whether it is DICOM."""
    if path.suffix.lower() in DICOM_SUFFIXES:
        return True
    try:
        with open(path, "rb") as file:
            return file.read(132)[128:] == _MARK
    except OSError:
        return False


def read_dicom(path: Path, frame: int | None = None) -> RawImage:
    """Read an image as uint8 (H, W) gray or (H, W, 3) RGB, with its pixel spacing.

    Args:
        path: DICOM file.
        frame: Which image of a file with several, from 0; None: the only one.

    Raises:
        DatasetError: The file is absent, damaged, holds no image or several, or is compressed in a
            way that cannot be undone here.
    """
    data = _read(path)
    values, rescaled = _frame_values(data, path, frame)
    kind = str(data.get("PhotometricInterpretation", ""))
    notes: tuple[str, ...] = ()
    try:
        if kind == "PALETTE COLOR" and values.ndim == 2:
            pixels = _colours(_from_palette(values, data))
        elif values.ndim == 3:
            pixels = _colours(values)
        else:
            pixels, notes = _gray(values, data, rescaled)
        spacing, spacing_notes = _spacing(data)
    except _DAMAGED as error:
        raise _unreadable(path, error) from error
    if kind == "MONOCHROME1":
        pixels = 255 - pixels
    return RawImage(pixels, f"DICOM {kind}", notes=notes + spacing_notes, spacing=spacing)


def read_dicom_values(path: Path, frame: int | None = None) -> np.ndarray:
    """Read the stored values of a gray image, (H, W), as they stand in a mask or a label map.

    Raises:
        DatasetError: As `read_dicom`; or the image has colours.
    """
    data = _read(path)
    values, _ = _frame_values(data, path, frame)
    if values.ndim != 2:
        raise DatasetError(
            f"{path}: a colour image cannot be a mask; save one value for each pixel"
        )
    return values


def count_frames(path: Path) -> int:
    """Return the number of images in a DICOM file, from its header."""
    data = _read(path, pixels=False)
    try:
        return int(data.get("NumberOfFrames") or 1)
    except _DAMAGED as error:
        raise _unreadable(path, error) from error


def _read(path: Path, pixels: bool = True) -> Dataset:
    # Imported here: it takes 0.2 s, and most studies have no such files.
    import pydicom
    from pydicom.errors import InvalidDicomError

    try:
        data = pydicom.dcmread(path, stop_before_pixels=not pixels)
    except InvalidDicomError as error:
        raise _unreadable(path, "it does not begin like a DICOM file") from error
    except _DAMAGED as error:
        raise _unreadable(path, error) from error
    if pixels and "PixelData" not in data:
        raise DatasetError(f"{path}: this DICOM file holds no image; name the file that does")
    return data


def _unreadable(path: Path, why: object) -> DatasetError:
    reason = " ".join(str(why).split())[:200]
    return DatasetError(
        f"{path}: cannot be read as DICOM ({reason}); the file is damaged, truncated or of another "
        "kind: export it again"
    )


def _frame_values(data: Dataset, path: Path, frame: int | None) -> tuple[np.ndarray, bool]:
    """Return the values of one image, (H, W) or RGB (H, W, 3); and whether they are rescaled."""
    from pydicom.pixels import get_decoder, pixel_array

    try:
        frames = int(data.get("NumberOfFrames") or 1)
        if frame is None and frames > 1:
            raise DatasetError(
                f"{path}: holds {frames} images; say which one in the column slice (0 to "
                f"{frames - 1})"
            )
        if frame is not None and not 0 <= frame < frames:
            raise DatasetError(
                f"{path}: slice {frame} does not exist; it holds {frames}, numbered from 0"
            )
        syntax = data.file_meta.TransferSyntaxUID
        if syntax.is_compressed and syntax.is_encapsulated:
            try:
                available = get_decoder(syntax).is_available
            except NotImplementedError:
                available = False
            if not available or _is_twelve_bit_jpeg(data):
                return _values_by_gdcm(path, syntax.name, frame or 0, frames), True
        return pixel_array(data, index=frame or 0), False
    except _DAMAGED as error:
        raise _unreadable(path, error) from error


def _is_twelve_bit_jpeg(data: Dataset) -> bool:
    """Tell whether this is JPEG Extended of 12 bits, which Pillow cannot decode."""
    from pydicom.uid import JPEGExtended12Bit

    return data.file_meta.TransferSyntaxUID == JPEGExtended12Bit and int(data.BitsStored) > 8


def _values_by_gdcm(path: Path, syntax: str, frame: int, frames: int) -> np.ndarray:
    """Decode what pydicom cannot by itself (JPEG Lossless, JPEG-LS), with the GDCM in SimpleITK."""
    import SimpleITK as sitk

    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.SetImageIO("GDCMImageIO")
    try:
        values = sitk.GetArrayFromImage(reader.Execute())
    except RuntimeError as error:
        raise DatasetError(
            f"{path}: its compression ({syntax}) cannot be undone here, or the file is damaged; "
            "export it uncompressed"
        ) from error
    return values[frame] if values.shape[0] == frames and values.ndim > 2 else values


def _from_palette(values: np.ndarray, data: Dataset) -> np.ndarray:
    from pydicom.pixels import apply_color_lut

    return apply_color_lut(values, data)


def _colours(values: np.ndarray) -> np.ndarray:
    """Return RGB of 8 bits; deeper colours keep their upper bits."""
    if values.dtype == np.uint8:
        return np.ascontiguousarray(values[..., :3])
    shift = 8 * (values.dtype.itemsize - 1)
    return np.ascontiguousarray((values >> shift).astype(np.uint8)[..., :3])


def _gray(values: np.ndarray, data: Dataset, rescaled: bool) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return gray of 8 bits, and a note on how it was made."""
    from pydicom.pixels import apply_modality_lut, apply_voi_lut

    bits = int(data.get("BitsStored", 8))
    if bits == 1:
        return (values > 0).astype(np.uint8) * 255, ()
    if not rescaled:
        values = apply_modality_lut(values, data)
    width, center = _first(data.get("WindowWidth")), _first(data.get("WindowCenter"))
    if table := data.get("VOILUTSequence"):
        share = apply_voi_lut(values, data, index=0) / ((1 << int(table[0].LUTDescriptor[2])) - 1)
        how = "its lookup table"
    elif width is not None and center is not None and width > 1:
        share = _window(values, center, width, str(data.get("VOILUTFunction") or "LINEAR"))
        how = f"the window {center - width / 2:g} to {center + width / 2:g}"
    else:
        low = -(1 << (bits - 1)) if data.get("PixelRepresentation") else 0
        ends = apply_modality_lut(np.array([[low, low + (1 << bits) - 1]]), data)[0]
        share = (values - float(ends.min())) / max(float(np.ptp(ends)), 1e-12)
        how = f"all {bits} bits (largest value {values.max():g})"
    gray = np.rint(np.clip(share, 0.0, 1.0) * 255.0).astype(np.uint8)
    unchanged = values.dtype == np.uint8 and np.array_equal(gray, values)
    return gray, () if unchanged else (f"DICOM gray by {how}",)


def _first(value: Any) -> float | None:
    """Return a number of the header, the first one where there are several."""
    if value is None or value == "":
        return None
    return float(value[0] if hasattr(value, "__len__") and not isinstance(value, str) else value)


def _window(values: np.ndarray, center: float, width: float, function: str) -> np.ndarray:
    """Return the share of full white of each value (DICOM PS3.3 C.11.2.1.2 and C.11.2.1.3)."""
    if function.upper() == "SIGMOID":
        return 1.0 / (1.0 + np.exp(-4.0 * (values - center) / width))
    if function.upper() == "LINEAR":
        center, width = center - 0.5, width - 1.0
    return (values - center) / width + 0.5


def _spacing(data: Dataset) -> tuple[tuple[float, float] | None, tuple[str, ...]]:
    """Return the (row, column) size of a pixel in mm, and a note where regions disagree."""
    found = []
    for region in data.get("SequenceOfUltrasoundRegions") or []:
        units = (region.get("PhysicalUnitsYDirection"), region.get("PhysicalUnitsXDirection"))
        in_plane = int(region.get("RegionSpatialFormat", 0)) == _TWO_DIMENSIONAL
        deltas = (region.get("PhysicalDeltaY"), region.get("PhysicalDeltaX"))
        if in_plane and units == (_CENTIMETRES, _CENTIMETRES) and all(deltas):
            found.append(tuple(10.0 * abs(float(delta)) for delta in deltas))
    if found:
        first = np.array(found[0])
        if np.allclose(found, first, rtol=_SAME_SPACING, atol=0.0):
            return found[0], ()
        return None, (f"{len(found)} regions of different pixel spacing",)
    shared = data.get("SharedFunctionalGroupsSequence")
    measures = shared[0].get("PixelMeasuresSequence") if shared else None
    spacing = (measures[0] if measures else data).get("PixelSpacing")
    if not spacing or min(map(float, spacing)) <= 0:
        return None, ()
    return (float(spacing[0]), float(spacing[1])), ()
