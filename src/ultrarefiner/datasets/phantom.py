"""Phantoms: synthetic ultrasound in the exact files and folders of a public dataset.

They stand in for data that may not be redistributed, in the demo and in tests, and they carry the
oddities of the real downloads that once broke readers.
"""

from __future__ import annotations

from pathlib import Path

from ultrarefiner.datasets.phantoms.bus_uclm import write_bus_uclm
from ultrarefiner.datasets.phantoms.coco import write_coco
from ultrarefiner.datasets.phantoms.drawing import Phantom, draw_phantom, draw_scene
from ultrarefiner.datasets.phantoms.files import Layout
from ultrarefiner.datasets.phantoms.folders import write_busbra, write_busi, write_stu
from ultrarefiner.datasets.phantoms.manifest import write_manifest
from ultrarefiner.datasets.phantoms.nifti import write_nifti
from ultrarefiner.datasets.phantoms.pairs import (
    write_bus,
    write_bus_uc,
    write_pairs,
    write_udiat,
)
from ultrarefiner.datasets.phantoms.samed2d import write_samed2d
from ultrarefiner.datasets.phantoms.unet_volumes import write_unet_volumes
from ultrarefiner.datasets.phantoms.volumes import write_abus
from ultrarefiner.errors import ConfigError, OutputError
from ultrarefiner.io import atomic_directory, write_json
from ultrarefiner.registry import Registry

__all__ = ["LAYOUTS", "MARKER", "Phantom", "draw_phantom", "draw_scene", "write_phantom"]

MARKER = ".phantom.json"
"""File in the root that tells a folder of phantoms, which may be written over, from real data."""

LAYOUTS: Registry[Layout] = Registry(
    "phantom layout",
    {
        "busi": Layout("benign/, malignant/ and normal/ with `benign (1)_mask.png`", write_busi),
        "busbra": Layout("Images/, Masks/, bus_data.csv and the tables of folds", write_busbra),
        "stu": Layout("Hospital/ with 128 x 128 images and larger masks", write_stu),
        "bus": Layout("BUS/original and BUS/GT", write_bus),
        "udiat": Layout("UDIAT/original and UDIAT/GT; odd: two images of `bus`", write_udiat),
        "bus_uc": Layout("BUS_UC/All, repeated in Benign/ and Malignant/", write_bus_uc),
        "bus_uclm": Layout("BUS-UCLM/images, and masks/ in green and red", write_bus_uclm),
        "pairs": Layout("images/ and masks/ with files of one name", write_pairs),
        "abus": Layout("Train/, Validation/ and Test/ with NRRD volumes", write_abus),
        "coco": Layout("images/ and annotations.json with polygons and run lengths", write_coco),
        "manifest": Layout("manifest.csv and files of many kinds", write_manifest),
        "samed2d": Layout("train/ and test/ with images/, masks/ and JSON tables", write_samed2d),
        "nifti": Layout("a folder for each patient with ct.nii.gz and seg.nii.gz", write_nifti),
        "volumes": Layout("volumes/ and labels/ with NIfTI of equal names", write_unet_volumes),
    },
)


def write_phantom(
    layout: str, output: Path | str, cases: int, size: int, seed: int, odd_cases: bool
) -> None:
    """Write a folder of phantoms, whole or not at all.

    Image number i depends on the seed, the layout, the size and i alone: more cases add images
    and change none (but for published folds, which are shared out among all patients).

    Args:
        layout: Name in `LAYOUTS`.
        output: Folder to write; one with earlier phantoms, or an empty one, is replaced.
        cases: Images with a lesion; about two benign for each malignant one. Images without a
            lesion, where the dataset has some, come on top. Of `volumes` it is the number of
            volumes, of 12 slices each.
        size: Typical image height in pixels; `stu` is 128 x 128 always, like the dataset.
        seed: Seed of everything.
        odd_cases: Include the odd files of the real datasets. All of them can be read.

    Raises:
        ConfigError: Unknown layout, or a number out of range.
        OutputError: The folder holds something else than phantoms, or cannot be written.
    """
    row = LAYOUTS[layout]
    if cases < 1 or size < 48:
        raise ConfigError(
            f"phantom: cases {cases}, size {size}: at least 1 case of at least 48 pixels is needed."
        )
    output = Path(output)
    if output.exists() and not _may_replace(output):
        raise OutputError(
            f"{output} exists and holds no phantoms; it was left as it is. Choose a new folder, or "
            "empty this one."
        )
    with atomic_directory(output) as folder:
        row.write(folder, cases, size, seed, odd_cases)
        facts = {"layout": layout, "cases": cases, "size": size, "seed": seed}
        write_json(folder / MARKER, {"synthetic": True, **facts, "odd_cases": odd_cases})


def _may_replace(folder: Path) -> bool:
    return folder.is_dir() and ((folder / MARKER).exists() or not any(folder.iterdir()))
