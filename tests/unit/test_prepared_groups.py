"""Cases that may show one patient get one group, and patients who differ get two."""

import cv2
import numpy as np
from PIL import Image

from tests.prepared_data import prepare, texture
from ultrarefiner.datasets.phantoms.volumes import write_volume


def manifest(root, rows):
    """Write a manifest of [(pixels, patient)], and one mask for all."""
    root.mkdir()
    mask = np.zeros((48, 64), np.uint8)
    mask[8:20, 8:20] = 255
    Image.fromarray(mask).save(root / "mask.png")
    lines = ["image,mask,patient"]
    for number, (pixels, patient) in enumerate(rows):
        Image.fromarray(pixels).save(root / f"{number}.png")
        lines.append(f"{number}.png,mask.png,{patient}")
    (root / "manifest.csv").write_text("\n".join(lines), encoding="utf-8")
    return root


def test_a_look_alike_without_a_patient_stays_with_the_patient_it_may_be_of(tmp_path):
    rows = [(texture(1), "P1"), (cv2.add(texture(1), 2), ""), (texture(2), "P2"), (texture(3), "")]
    rows = prepare("mine", "manifest", manifest(tmp_path / "raw", rows), tmp_path / "out")
    assert [row.group for row in rows.values()] == [
        *("mine__patient_p1", "mine__patient_p1", "mine__patient_p2", "mine__3"),
    ]


def test_slices_of_one_file_stay_together_though_no_patient_is_named(tmp_path):
    root = tmp_path / "raw"
    root.mkdir()
    volume = np.stack([texture(seed) for seed in range(3)])
    mask = np.zeros(volume.shape, np.uint8)
    mask[:, 8:20, 8:20] = 1
    write_volume(root / "a.nii.gz", volume, (0.1, 0.1, 0.5))
    write_volume(root / "m.nii.gz", mask, (0.1, 0.1, 0.5))
    lines = ["image,mask,slice", *(f"a.nii.gz,m.nii.gz,{index}" for index in range(3))]
    (root / "manifest.csv").write_text("\n".join(lines))
    rows = prepare("mine", "manifest", root, tmp_path / "out")
    assert len(rows) == 3 and {row.group for row in rows.values()} == {"mine__a_0000"}


def test_patients_whose_names_read_alike_in_file_names_are_not_one_group(tmp_path):
    patients = ["李", "王", "P 1", "P-1", "李", "P2"]
    raw = manifest(tmp_path / "raw", [(texture(n), who) for n, who in enumerate(patients)])
    rows = prepare("mine", "manifest", raw, tmp_path / "out")
    assert [row.group for row in rows.values()] == [
        *("mine__0", "mine__1", "mine__2", "mine__3", "mine__0", "mine__patient_p2"),
    ]
