"""Guards that what the page on one's own images shows works on such files as it is written."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pydicom
import pytest
import yaml
from PIL import Image

from ultrarefiner.datasets import DATASETS, find_cases
from ultrarefiner.datasets.layouts import list_cases
from ultrarefiner.datasets.phantoms.manifest import write_dicom
from ultrarefiner.datasets.phantoms.volumes import draw_volume, write_volume
from ultrarefiner.datasets.reading import load_case

PAGE = (Path(__file__).resolve().parents[2] / "docs/how-to/your_own_images.md").read_text()
GRAY = np.random.default_rng(0).integers(0, 256, (40, 60)).astype(np.uint8)
LESION = np.zeros((40, 60), np.uint8)
LESION[10:25, 20:45] = 255


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.M | re.S)


def datasets():
    return [row for block in blocks("yaml") for row in yaml.safe_load(block)["datasets"].values()]


def options(layout):
    return next(
        row["options"] for row in datasets() if row["layout"] == layout and "options" in row
    )


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def test_every_dataset_of_the_page_has_options_that_its_layout_takes():
    assert {row["layout"] for row in datasets()} == {"pairs", "coco", "manifest"}
    for row in datasets():
        DATASETS[row["layout"]].parse_options(row.get("options", {}))


def test_two_folders(tmp_path):
    save(tmp_path / "scans" / "P01_a.png", GRAY)
    save(tmp_path / "outlines" / "P01_a.png", LESION)
    (case,) = find_cases("pairs", tmp_path, options=options("pairs"))
    assert case.patient == "P01"


def test_a_coco_file(tmp_path):
    save(tmp_path / "images" / "P07_1.png", GRAY)
    outline = [20, 10, 45, 10, 45, 25, 20, 25]
    content = {
        "images": [{"id": 1, "file_name": "P07_1.png", "height": 40, "width": 60}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 2, "segmentation": [outline]}],
        "categories": [{"id": 1, "name": "benign"}, {"id": 2, "name": "malignant"}],
    }
    (tmp_path / "result.json").write_text(json.dumps(content))
    (case,) = find_cases("coco", tmp_path, options=options("coco"))
    assert (case.patient, case.label) == ("P07", "malignant")
    assert np.array_equal(load_case(case).label * 255, LESION)


def test_the_manifest_of_the_page(tmp_path):
    for folder in ("dicom", "volumes"):
        (tmp_path / folder).mkdir()
    write_dicom(tmp_path / "dicom" / "IM_0001", GRAY, 0.07)
    write_dicom(tmp_path / "dicom" / "loop.dcm", np.stack([GRAY] * 13), 0.07)
    values, mask = draw_volume(1, 48, True)
    write_volume(tmp_path / "volumes" / "P03.nii.gz", values, (0.1, 0.1, 0.5))
    write_volume(tmp_path / "volumes" / "P03_seg.nii.gz", mask.astype(np.uint8), (0.1, 0.1, 0.5))
    for name in ("IM_0001", "loop_12"):
        save(tmp_path / "masks" / f"{name}.png", LESION)
    for name in ("P04.tif", "P05.png"):
        save(tmp_path / "scans" / name, GRAY)
    for name in ("P04_1.png", "P04_2.png"):
        save(tmp_path / "scans" / name, LESION)
    (tmp_path / "manifest.csv").write_text(blocks("csv")[0])
    cases = find_cases("manifest", tmp_path, include_empty=True)
    assert [case.patient for case in cases] == ["P01", "P02", "P03", "P04", "P05"]
    assert [load_case(case).spacing for case in cases] == [
        *(pytest.approx((side, side)) for side in (0.07, 0.07, 0.1, 0.08, 0.08)),
    ]
    assert [len(case.masks) for case in cases] == [1, 1, 1, 2, 0]


def test_the_script_that_writes_a_manifest(tmp_path):
    home = tmp_path / "data" / "clinic"
    (home / "dicom").mkdir(parents=True)
    for number in (1, 2):
        path = home / "dicom" / f"{number}.dcm"
        write_dicom(path, GRAY, 0.07, PatientID=f"A{number}")
        assert pydicom.dcmread(path).PatientID == f"A{number}"
        save(home / "masks" / f"{number}.png", LESION)
    subprocess.run([sys.executable, "-c", blocks("python")[0]], cwd=tmp_path, check=True)
    listing = list_cases("manifest", home)
    assert [case.patient for case in listing.cases] == ["A1", "A2"] and listing.problems == []
