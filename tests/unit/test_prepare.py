"""A prepared dataset holds the raw pixels, joins what must not be parted, and is always the same."""

import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from tests.prepared_data import prepare, texture
from ultrarefiner.config import SplitsConfig
from ultrarefiner.datasets import find_cases, read_case, reading
from ultrarefiner.datasets.duplicates import perceptual_hash, pixel_sha256
from ultrarefiner.datasets.loader import COLUMNS, read_cases, read_prepared
from ultrarefiner.datasets.phantom import write_phantom
from ultrarefiner.datasets.prepare import prepare_dataset
from ultrarefiner.datasets.splits import split_folds
from ultrarefiner.errors import DatasetError
from ultrarefiner.images import read_mask, read_rgb
from ultrarefiner.io import read_rows


def digests(folder):
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def busbra(root, images):
    """Write BUS-BRA files of {key: pixels}."""
    for folder in ("Images", "Masks"):
        (root / folder).mkdir(parents=True)
    for key, pixels in images.items():
        mask = np.zeros(pixels.shape, np.uint8)
        mask[8:20, 8:20] = 255
        Image.fromarray(pixels).save(root / "Images" / f"bus_{key}.png")
        Image.fromarray(mask).save(root / "Masks" / f"mask_{key}.png")
    return root


def busi(root, images):
    """Write benign BUSI files of {number: pixels}."""
    (root / "benign").mkdir(parents=True)
    for number, pixels in images.items():
        mask = np.zeros(pixels.shape, np.uint8)
        mask[8:20, 8:20] = 255
        Image.fromarray(pixels).save(root / "benign" / f"benign ({number}).png")
        Image.fromarray(mask).save(root / "benign" / f"benign ({number})_mask.png")
    return root


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    root = tmp_path_factory.mktemp("raw") / "busi"
    write_phantom("busi", root, cases=15, size=64, seed=0, odd_cases=True)
    return root


@pytest.fixture(scope="module")
def prepared(raw, tmp_path_factory):
    output = tmp_path_factory.mktemp("prepared")
    prepare("demo", "busi", raw, output)
    return output


def test_table_and_pixels_agree_with_the_raw_files(raw, prepared):
    rows = {row.case: row for row in read_cases(prepared / "cases.csv")}
    cases = find_cases("busi", raw, name="demo")
    assert list(rows) == [case.id for case in cases]
    header = (prepared / "cases.csv").read_text().splitlines()[0]
    assert (
        header
        == ",".join(COLUMNS)
        == (
            "case,image,mask,height,width,patient,group,label,spacing_y_mm,spacing_x_mm,sha256,note,"
            "split,overlay,border,look_alikes,appearance"
        )
    )
    for case in cases:
        image, label = read_case(case)
        row = rows[case.id]
        assert raw / row.image == case.image
        assert tuple(raw / path for path in row.mask.split(";")) == case.masks
        assert (row.height, row.width) == label.shape
        assert row.sha256 == pixel_sha256(image)
        assert row.label == case.label and row.patient is None and row.spacing_y_mm is None
        with np.load(prepared / "npz" / f"{case.id}.npz") as arrays:
            assert sorted(arrays.files) == ["image", "label", "original_size"]
            assert arrays["original_size"].tolist() == list(label.shape)
            assert arrays["original_size"].dtype == np.int64
            assert arrays["image"].dtype == arrays["label"].dtype == np.uint8
        stored = read_prepared(prepared, case.id)
        assert np.array_equal(stored[0], image) and np.array_equal(stored[1], label)
        assert np.array_equal(read_rgb(prepared / "images" / f"{case.id}.png"), image)
        assert np.array_equal(read_mask(prepared / "masks" / f"{case.id}.png"), label > 0)
    names = {case.id for case in cases}
    for folder in ("npz", "images", "masks"):
        assert {path.stem for path in (prepared / folder).iterdir()} == names


def test_notes_tell_what_is_odd(prepared):
    notes = {row.case: row.note for row in read_cases(prepared / "cases.csv")}
    assert notes["demo__benign_1"] == "3 masks"
    assert sorted(note for note in notes.values() if note) == [
        "16-bit image reduced to 8 bits",
        "3 masks",
    ]


def test_left_out_images_are_listed_with_the_reason(raw, prepared, tmp_path):
    rows = read_rows(prepared / "excluded.csv")
    assert list(rows[0]) == ["case", "image", "reason"]
    assert {row["reason"] for row in rows} == {"normal", "blank mask"}
    assert all((raw / row["image"]).is_file() for row in rows)
    everything = prepare("demo", "busi", raw, tmp_path, include_empty=True)
    assert set(everything) == {row["case"] for row in rows} | {
        row.case for row in read_cases(prepared / "cases.csv")
    }
    assert (tmp_path / "excluded.csv").read_text() == "case,image,reason\n"
    assert everything["demo__normal_1"].note == "no lesion"
    assert not read_prepared(tmp_path, "demo__normal_1")[1].any()


def test_bytes_do_not_depend_on_file_order_threads_or_hash_seed(
    raw, prepared, tmp_path, monkeypatch
):
    shuffled = tmp_path / "raw"
    for path in sorted((p for p in raw.rglob("*") if p.is_file()), key=lambda p: p.name[::-1]):
        (shuffled / path.relative_to(raw)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, shuffled / path.relative_to(raw))
    monkeypatch.setattr(reading.os, "cpu_count", lambda: 1)
    prepare("demo", "busi", shuffled, tmp_path / "one")
    assert digests(tmp_path / "one") == digests(prepared)
    code = (
        "import sys; from pathlib import Path\n"
        "from ultrarefiner.datasets.prepare import prepare_dataset\n"
        "o = Path(sys.argv[2])\n"
        "prepare_dataset('demo', 'busi', sys.argv[1], False, o / 'cases.csv', "
        "o / 'published_folds.csv', o / 'excluded.csv', o / 'npz', o / 'images', o / 'masks')\n"
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run(
        [sys.executable, "-c", code, str(raw), str(tmp_path / "two")],
        check=True,
        env={**os.environ, "PYTHONHASHSEED": "7"},
    )
    assert digests(tmp_path / "two") == digests(prepared)


def test_patients_and_equal_pixels_make_groups(tmp_path):
    looks_like = cv2.add(texture(5), 2)
    images = {
        "0001-l": texture(1),
        "0001-r": texture(2),
        "0002-l": texture(3),
        "0003-l": texture(2),  # the pixels of patient 1
        "0003-r": texture(4),
        "0004-l": texture(5),
        "0005-l": looks_like,  # patients are known: looks do not count
    }
    rows = prepare("busbra", "busbra", busbra(tmp_path / "raw", images), tmp_path / "out")
    assert {row.case[-6:]: row.group for row in rows.values()} == {
        "0001_l": "busbra__patient_0001",
        "0001_r": "busbra__patient_0001",
        "0002_l": "busbra__patient_0002",
        "0003_l": "busbra__patient_0001",
        "0003_r": "busbra__patient_0001",
        "0004_l": "busbra__patient_0004",
        "0005_l": "busbra__patient_0005",
    }
    assert rows["busbra__bus_0003_r"].patient == "0003"


def test_patients_with_one_image_in_common_stay_together_by_patient(tmp_path, caplog):
    write_phantom("busbra", tmp_path / "raw", cases=24, size=48, seed=0, odd_cases=False)
    for folder, kind in (("Images", "bus"), ("Masks", "mask")):
        files = tmp_path / "raw" / folder
        one, other = (sorted(files.glob(f"{kind}_000{n}-*.png"))[0] for n in (1, 2))
        other.write_bytes(one.read_bytes())
    rows = prepare("demo", "busbra", tmp_path / "raw", tmp_path / "out")
    options = SplitsConfig(folds=3, group="patient")
    split_folds(tmp_path / "out" / "cases.csv", None, tmp_path / "splits.csv", options)
    for fold in range(3):
        where = {row["case"]: row["role"] for row in read_rows(tmp_path / "splits.csv")
                 if row["fold"] == str(fold)}  # fmt: skip
        roles = {where[case] for case, row in rows.items() if row.patient in ("0001", "0002")}
        assert len(roles) == 1
    assert "2 patients share images" in caplog.text


def test_look_alikes_make_groups_where_patients_are_not_known(tmp_path):
    images = {2: texture(1), 3: texture(2), 10: texture(1), 11: cv2.add(texture(2), 2)}
    rows = prepare("busi", "busi", busi(tmp_path / "raw", images), tmp_path / "out")
    assert {row.case: row.group for row in rows.values()} == {
        "busi__benign_10": "busi__benign_10",
        "busi__benign_11": "busi__benign_11",
        "busi__benign_2": "busi__benign_10",
        "busi__benign_3": "busi__benign_11",
    }


def test_look_alikes_are_counted_whether_or_not_the_patient_is_known(tmp_path):
    images = {"0001-l": texture(1), "0001-r": texture(2), "0002-l": cv2.add(texture(1), 2),
              "0003-l": texture(1)}  # fmt: skip
    rows = prepare("busbra", "busbra", busbra(tmp_path / "raw", images), tmp_path / "out")
    assert {case[-6:]: row.look_alikes for case, row in rows.items()} == {
        "0001_l": 2,
        "0001_r": 0,
        "0002_l": 2,
        "0003_l": 2,
    }
    for case, row in rows.items():
        image, _ = read_prepared(tmp_path / "out", case)
        assert row.appearance == perceptual_hash(image)


def test_marks_and_borders_are_columns(tmp_path):
    plain = cv2.resize(texture(1) // 2 + 40, (320, 240))
    marked, framed = plain.copy(), plain.copy()
    cv2.drawMarker(marked, (150, 120), 255, cv2.MARKER_TILTED_CROSS, 15, 1)
    framed[:30] = 0
    root = busi(tmp_path / "raw", {1: plain, 2: marked, 3: framed})
    rows = list(prepare("busi", "busi", root, tmp_path / "out").values())
    assert [row.overlay for row in rows] == ["none", "calipers", "none"]
    assert [row.border for row in rows] == [False, False, True]


def test_parts_of_files_spacing_and_the_official_split_are_columns(tmp_path):
    write_phantom("abus", tmp_path / "raw", cases=6, size=64, seed=0, odd_cases=False)
    rows = prepare("abus", "abus", tmp_path / "raw", tmp_path / "out").values()
    assert {row.split for row in rows} == {"train", "validation", "test"}
    for row in rows:
        file, part = row.image.split("#")
        assert (tmp_path / "raw" / file).is_file() and part
        assert 0 < row.spacing_y_mm < 1 and 0 < row.spacing_x_mm < 1
    assert len({row.image for row in rows}) == len(rows)
    more = tmp_path / "more"
    folders = [more / part for part in ("npz", "images", "masks")]
    tables = [more / part for part in ("cases.csv", "folds.csv", "excluded.csv")]
    prepare_dataset(
        "abus", "abus", tmp_path / "raw", False, *tables, *folders, options={"neighbors": 1}
    )
    assert len(read_cases(tables[0])) > len(rows)


def test_published_folds_are_of_prepared_cases(tmp_path):
    write_phantom("busbra", tmp_path / "raw", cases=20, size=48, seed=1, odd_cases=True)
    mask = tmp_path / "raw" / "Masks" / "mask_0002-l.png"
    with Image.open(mask) as file:
        blank = Image.new("L", file.size)
    blank.save(mask)
    rows = prepare("busbra", "busbra", tmp_path / "raw", tmp_path / "out")
    folds = read_rows(tmp_path / "out" / "published_folds.csv")
    assert list(folds[0]) == ["case", "folds", "fold"]
    assert {row["folds"] for row in folds} == {"5", "10"}
    assert {int(row["fold"]) for row in folds if row["folds"] == "5"} == set(range(5))
    assert {row["case"] for row in folds} == set(rows) and "busbra__bus_0002_l" not in rows
    seen = {}
    for row in folds:
        patient = rows[row["case"]].patient
        assert seen.setdefault((row["folds"], patient), row["fold"]) == row["fold"]


def test_no_published_folds_is_a_header(prepared):
    assert (prepared / "published_folds.csv").read_text() == "case,folds,fold\n"


def test_nothing_is_written_when_something_is_wrong(raw, tmp_path):
    broken = tmp_path / "raw"
    shutil.copytree(raw, broken)
    images = sorted(p for p in (broken / "benign").iterdir() if "_mask" not in p.name)
    images[0].write_bytes(images[0].read_bytes()[:300])
    next((broken / "malignant").glob("*_mask.png")).unlink()
    with pytest.raises(DatasetError) as error:
        prepare("demo", "busi", broken, tmp_path / "out")
    assert len(error.value.problems) == 2
    assert any(images[0].name in line for line in error.value.problems)
    assert list((tmp_path / "out").iterdir()) == []


def test_stale_files_of_an_earlier_run_are_gone(tmp_path):
    root = busi(tmp_path / "raw", {1: texture(1), 2: texture(2)})
    prepare("busi", "busi", root, tmp_path / "out")
    for path in root.rglob("benign (2)*"):
        path.unlink()
    prepare("busi", "busi", root, tmp_path / "out")
    for folder in ("npz", "images", "masks"):
        assert [p.stem for p in (tmp_path / "out" / folder).iterdir()] == ["busi__benign_1"]


def test_only_empty_images_is_an_error(tmp_path):
    root = busi(tmp_path / "raw", {1: texture(1)})
    Image.new("L", (64, 48)).save(root / "benign" / "benign (1)_mask.png")
    with pytest.raises(DatasetError, match="include_empty: true"):
        prepare("busi", "busi", root, tmp_path / "out")


def test_damaged_prepared_files_are_named(prepared, tmp_path):
    with pytest.raises(DatasetError, match=r"demo__nobody\.npz.*prepare_dataset again"):
        read_prepared(prepared, "demo__nobody")
    (tmp_path / "npz").mkdir()
    data = (prepared / "npz" / "demo__benign_1.npz").read_bytes()
    flipped = bytearray(data)
    for place in range(200, 260):
        flipped[place] ^= 0xFF
    for wrong in (data[: len(data) // 2], b"", b"text", flipped):
        (tmp_path / "npz" / "demo__benign_1.npz").write_bytes(wrong)
        with pytest.raises(DatasetError, match=r"demo__benign_1\.npz"):
            read_prepared(tmp_path, "demo__benign_1")
    with pytest.raises(DatasetError, match="run prepare_dataset"):
        read_cases(tmp_path / "cases.csv")
    text = Path(prepared / "cases.csv").read_text()
    for wrong, says in [
        (text.splitlines()[0] + "\n", "lists no cases"),
        (text.replace("height,", "tall,"), "lacks the columns height"),
        (re.sub(r"_mask.png,\d+,", "_mask.png,tall,", text), "not a case .*'tall'"),
        (text.rsplit(",", 1)[0] + "\n", "not a case .*too few"),
        (text.replace(",none,no,", ",none,perhaps,"), "not a case .*'perhaps' is neither yes nor"),
    ]:
        (tmp_path / "cases.csv").write_text(wrong)
        with pytest.raises(DatasetError, match=says):
            read_cases(tmp_path / "cases.csv")


def test_real_stu_is_prepared(stu_root, tmp_path):
    rows = prepare("stu", "stu", stu_root, tmp_path)
    assert len(rows) == 42
    assert sum(row.note.startswith("mask resized from") for row in rows.values()) == 36
    assert rows["stu__test_image_9"].note == "mask resized from 420x420"
    assert rows["stu__test_image_9"].image == "Hospital/Test_Image_9.png"
    assert all(read_prepared(tmp_path, case)[1].any() for case in rows)
