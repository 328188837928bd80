"""Write phantoms as files of many kinds with a manifest: PNG, TIFF, 16 bits, DICOM, NIfTI."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ultrarefiner.datasets.phantoms.drawing import Phantom, draw_scene
from ultrarefiner.datasets.phantoms.files import (
    IMAGE_MODES,
    Odd,
    draw_case,
    gray_mask,
    is_malignant,
    save_png,
)
from ultrarefiner.datasets.phantoms.volumes import draw_volume, write_volume
from ultrarefiner.io import item_seed, write_rows

_KINDS = ("png", "tiff", "png16", "dicom", "nifti")
_COLUMNS = ["image", "mask", "patient", "label", "spacing", "slice"]
_SPACING = 0.08
_ODD = Odd(image="L", drawing={"lesions": 2, "normal_size": True})
# By index of the case, where odd files are wanted.
_TWO_MASKS, _INVERTED, _FRAMES = 5, 8, 13


def write_dicom(path: Path, frames: np.ndarray, spacing: float | None, **attributes: Any) -> None:
    """Write gray images as an uncompressed ultrasound file.

    Args:
        path: File to write.
        frames: uint8 or uint16, (H, W) or (frames, H, W).
        spacing: Size of a pixel in mm, given as an ultrasound region (in cm).
        attributes: Elements of the header to set beside the usual ones, or to overwrite.
    """
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import UID, ExplicitVRLittleEndian

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = UID("1.2.840.10008.5.1.4.1.1.6.1")
    # An identifier made from the name, so that the same phantoms are the same files.
    meta.MediaStorageSOPInstanceUID = UID(f"2.25.{item_seed(path.name)}")
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = Dataset()
    data.file_meta = meta
    data.SOPClassUID = meta.MediaStorageSOPClassUID
    data.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    data.Modality = "US"
    data.Rows, data.Columns = frames.shape[-2:]
    if frames.ndim == 3:
        data.NumberOfFrames = len(frames)
    data.SamplesPerPixel = 1
    data.PhotometricInterpretation = "MONOCHROME2"
    data.BitsAllocated = data.BitsStored = 8 * frames.dtype.itemsize
    data.HighBit = data.BitsStored - 1
    data.PixelRepresentation = 0
    if spacing is not None:
        region = Dataset()
        region.RegionSpatialFormat = region.RegionDataType = 1
        region.PhysicalUnitsXDirection = region.PhysicalUnitsYDirection = 3
        region.PhysicalDeltaX = region.PhysicalDeltaY = spacing / 10.0
        data.SequenceOfUltrasoundRegions = [region]
    for name, value in attributes.items():
        setattr(data, name, value)
    data.PixelData = frames.astype(frames.dtype.newbyteorder("<")).tobytes()
    data["PixelData"].VR = "OW"
    data.save_as(path, enforce_file_format=True)


def write_manifest(folder: Path, cases: int, size: int, seed: int, odd_cases: bool) -> None:
    """Write `manifest.csv`, and `images/` and `masks/` with a file of another kind in each row."""
    (folder / "images").mkdir()
    (folder / "masks").mkdir()
    rows: list[dict[str, Any]] = []
    for index in range(cases):
        kind = _KINDS[index % len(_KINDS)]
        malignant = is_malignant(index)
        item = item_seed(seed, "manifest", index)
        row = {
            "patient": f"P{index // 2:03d}",
            "label": "malignant" if malignant else "benign",
            "spacing": "" if kind in ("dicom", "nifti") else _SPACING,
        }
        if kind == "nifti":
            files = _write_nifti(folder, index, *draw_volume(item, size, malignant))
        else:
            odd = _ODD if odd_cases and index == _TWO_MASKS else Odd(image="L")
            phantom = draw_case("manifest", seed, index, size, odd, malignant)
            files = _write_pair(folder, index, kind, phantom, index if odd_cases else -1)
        rows.append({**row, **files})
    for index in range(2 if odd_cases else 1):
        image = draw_scene(item_seed(seed, "manifest", "normal", index), size, False, lesions=0)
        name = f"images/normal_{index}.png"
        save_png(Image.fromarray(image.image), folder / name)
        rows.append({"image": name, "mask": "", "patient": f"N{index:03d}", "label": "normal"})
    write_rows(folder / "manifest.csv", _COLUMNS, rows)


def _write_nifti(folder: Path, index: int, values: np.ndarray, mask: np.ndarray) -> dict[str, Any]:
    image, label = f"images/image_{index:03d}.nii.gz", f"masks/mask_{index:03d}.nii.gz"
    spacing = (_SPACING, _SPACING, 0.5)
    write_volume(folder / image, values, spacing)
    write_volume(folder / label, mask.astype(np.uint8), spacing)
    return {"image": image, "mask": label}


def _write_pair(folder: Path, index: int, kind: str, phantom: Phantom, odd: int) -> dict[str, Any]:
    """Write an image and its masks, one for each lesion; return the cells that name them."""
    stem = f"images/image_{index:03d}"
    cells: dict[str, Any] = {}
    if kind == "dicom":
        cells["image"] = f"{stem}.dcm"
        if odd == _FRAMES:
            frames = np.stack([phantom.image // 2, phantom.image])
            write_dicom(folder / cells["image"], frames, _SPACING)
            cells["slice"] = 1
        elif odd == _INVERTED:
            photo = {"PhotometricInterpretation": "MONOCHROME1"}
            write_dicom(folder / cells["image"], 255 - phantom.image, _SPACING, **photo)
        else:
            deep = phantom.image.astype(np.uint16) * 16
            write_dicom(folder / cells["image"], deep, _SPACING, BitsStored=12, HighBit=11)
    elif kind == "tiff":
        cells["image"] = f"{stem}.tif"
        Image.fromarray(phantom.image).save(folder / cells["image"], format="TIFF")
    else:
        cells["image"] = f"{stem}.png"
        save_png(
            IMAGE_MODES["I;16" if kind == "png16" else "L"](phantom.image), folder / cells["image"]
        )
    names = [f"masks/mask_{index:03d}_{place}.png" for place in range(len(phantom.lesions))]
    for name, lesion in zip(names, phantom.lesions, strict=True):
        save_png(Image.fromarray(gray_mask(lesion)), folder / name)
    return {**cells, "mask": ";".join(names)}
