"""Each adapter pairs the right files, reads patients, classes and folds, and lists all problems."""

import csv
import logging
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from ultrarefiner.datasets import DATASETS, find_cases, layouts, read_case
from ultrarefiner.datasets.base import slug
from ultrarefiner.datasets.layouts import list_cases
from ultrarefiner.errors import ConfigError, DatasetError
from ultrarefiner.registry import Registry


def image(path, seed=0, shape=(24, 32)):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
    Image.fromarray(pixels).save(path)


def mask(path, box=(4, 4, 12, 12), shape=(24, 32)):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.zeros(shape, np.uint8)
    if box:
        pixels[box[1] : box[3], box[0] : box[2]] = 255
    Image.fromarray(pixels).save(path)


def pair(folder, stem, suffix=".png", box=(4, 4, 12, 12), seed=0):
    image(folder / f"{stem}{suffix}", seed)
    mask(folder / f"{stem}_mask{suffix}", box)


@pytest.fixture
def busi(tmp_path):
    root = tmp_path / "Dataset_BUSI_with_GT"
    pair(root / "benign", "benign (1)")
    pair(root / "benign", "benign (10)", box=(20, 10, 30, 20))
    mask(root / "benign" / "benign (10)_mask_1.png", (0, 0, 3, 3))
    mask(root / "benign" / "benign (10)_mask_2.png", (5, 0, 8, 3))
    pair(root / "malignant", "malignant (1)", ".PNG")
    pair(root / "normal", "normal (1)", box=None)
    return root


@pytest.fixture
def busbra(tmp_path):
    root = tmp_path / "BUSBRA"
    for index, key in enumerate(["0001-l", "0001-r", "0002-l", "0003-s"]):
        image(root / "Images" / f"bus_{key}.png", index)
        mask(root / "Masks" / f"mask_{key}.png")
    return root


def table(path, rows):
    with open(path, "w", newline="", encoding="utf-8-sig") as handle:
        writer = csv.DictWriter(handle, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def stu(folder, number, mask_shape=(60, 60)):
    image(folder / f"Test_Image_{number}.png", number, (32, 32))
    mask(folder / f"mask_{number}.png", (10, 10, 40, 40), mask_shape)


def test_slugs():
    assert slug("benign (1)") == "benign_1"
    assert slug("bus_0001-l") == "bus_0001_l"
    assert slug("Lésion  #2!") == "lesion_2"
    assert slug("()") == ""


def test_busi_pairs_without_the_prefix_trap(busi):
    cases = find_cases("busi", busi)
    assert [case.id for case in cases] == [
        "busi__benign_1",
        "busi__benign_10",
        "busi__malignant_1",
    ]
    assert [[path.name for path in case.masks] for case in cases] == [
        ["benign (1)_mask.png"],
        ["benign (10)_mask.png", "benign (10)_mask_1.png", "benign (10)_mask_2.png"],
        ["malignant (1)_mask.PNG"],
    ]
    assert [case.label for case in cases] == ["benign", "benign", "malignant"]
    assert {case.patient for case in cases} == {None}
    label = read_case(cases[1])[1]
    assert label.sum() == 100 + 9 + 9


def test_busi_root_may_be_the_folder_or_its_parent(busi):
    assert find_cases("busi", busi) == find_cases("busi", busi.parent)
    assert find_cases("busi", str(busi)) == find_cases("busi", busi)


def test_empty_images_are_left_out_unless_wanted(busi):
    pair(busi / "benign", "benign (3)", box=None)
    (busi / "normal" / "normal (1)_mask.png").unlink()
    assert "busi__benign_3" not in {case.id for case in find_cases("busi", busi)}
    cases = {case.id: case for case in find_cases("busi", busi, include_empty=True)}
    assert set(cases) >= {"busi__benign_3", "busi__normal_1"}
    assert cases["busi__normal_1"].label == "normal" and cases["busi__normal_1"].masks == ()
    pixels, label = read_case(cases["busi__normal_1"])
    assert pixels.shape == (24, 32, 3) and label.shape == (24, 32) and not label.any()


def test_the_name_of_the_dataset_begins_the_ids(busi):
    assert find_cases("busi", busi, name="clinic")[0].id == "clinic__benign_1"


def test_order_does_not_depend_on_the_file_system(busi, tmp_path):
    again = tmp_path / "again"
    files = [path for path in busi.rglob("*") if path.is_file()]
    for path in sorted(files, reverse=True):
        target = again / path.relative_to(busi)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    assert [case.id for case in find_cases("busi", again)] == [
        case.id for case in find_cases("busi", busi)
    ]


def test_all_problems_come_in_one_error(busi):
    image(busi / "benign" / "benign (4).png")
    mask(busi / "malignant" / "malignant (9)_mask.png")
    image(busi / "malignant" / "malignant (2).png")
    mask(busi / "malignant" / "malignant (2)_mask_1.png")
    pair(busi / "benign", "benign (5)")
    broken = busi / "benign" / "benign (5)_mask.png"
    broken.write_bytes(broken.read_bytes()[:50])
    pair(busi / "benign", "benign (6)")
    mask(busi / "benign" / "benign (6)_mask.png", shape=(40, 32))
    pair(busi / "benign", "benign-1", seed=5)
    pair(busi / "benign", "()")
    with pytest.raises(DatasetError) as error:
        find_cases("busi", busi)
    lines = "\n".join(error.value.problems)
    assert len(error.value.problems) == 7
    assert "benign (4).png: its mask benign (4)_mask.png is missing" in lines
    assert "malignant (9)_mask.png: its image malignant (9).png is missing" in lines
    assert "malignant (2).png: its mask malignant (2)_mask.png is missing" in lines
    assert "benign (5)_mask.png: cannot be decoded" in lines
    assert "benign (6)_mask.png: its size 40x32" in lines
    assert "same case id busi__benign_1" in lines and "benign-1.png" in lines
    assert "().png: the file name has no letter or digit" in lines
    assert all(line in str(error.value) for line in error.value.problems)


@pytest.mark.parametrize("kept", [0.5, 0.9])
def test_a_truncated_image_is_found_before_it_is_read(busi, kept):
    path = busi / "benign" / "benign (1).png"
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(DatasetError, match=r"benign \(1\)\.png: cannot be decoded"):
        find_cases("busi", busi)


def test_files_of_no_case_are_named_in_a_warning(busi, caplog):
    with caplog.at_level(logging.WARNING):
        assert len(find_cases("busi", busi)) == 3
    assert not caplog.records
    for name in ("benign (2).gif", "benign (2)_mask.gif"):
        mask(busi / "benign" / name)
    with caplog.at_level(logging.WARNING):
        assert len(find_cases("busi", busi)) == 3
    (record,) = caplog.records
    line = record.getMessage()
    assert "2 files" in line and "benign/benign (2).gif, benign/benign (2)_mask.gif" in line
    assert ".png" in line and "convert or rename" in line


def test_same_name_in_two_classes_is_a_collision(busi):
    pair(busi / "malignant", "benign (1)")
    with pytest.raises(DatasetError) as error:
        find_cases("busi", busi)
    (line,) = error.value.problems
    assert "malignant/benign (1).png" in line and "benign/benign (1).png" in line


# These look for one file of a given name, so what else is there tells nothing.
FILE_LAYOUTS = ("coco", "manifest")


@pytest.mark.parametrize("layout", sorted(DATASETS))
def test_wrong_roots_say_what_is_expected_and_what_was_found(tmp_path, layout):
    expects = DATASETS[layout].expects
    for name, wrong in (
        ("nowhere", "does not exist|no folder"),
        ("holiday.txt", "a file|no folder|does not exist"),
    ):
        if name == "holiday.txt":
            (tmp_path / name).write_text("")
        with pytest.raises(DatasetError, match=rf"{name}.*(?:{wrong}).*root") as error:
            find_cases(layout, tmp_path / name)
        assert expects in str(error.value)
    (tmp_path / "photos").mkdir()
    with pytest.raises(DatasetError) as error:
        find_cases(layout, tmp_path)
    text = str(error.value)
    assert str(tmp_path) in text and "root" in text
    if layout in FILE_LAYOUTS:
        assert "options" in text
    else:
        assert expects in text and "holiday.txt" in text and "photos/" in text


def test_a_parent_with_two_copies_is_ambiguous(busi):
    pair(busi.parent / "copy" / "benign", "benign (1)")
    with pytest.raises(DatasetError, match="more than once"):
        find_cases("busi", busi.parent)


def test_unknown_layout_is_a_config_error(tmp_path):
    for name in ("bussi", "BUSI", "Busi "):
        with pytest.raises(ConfigError, match="Did you mean 'busi'"):
            find_cases(name, tmp_path)
    with pytest.raises(ConfigError, match="Did you mean 'BUSI'"):
        Registry("dataset layout", {"BUSI": 1, "stu": 2})["busi"]


def test_a_new_dataset_is_one_row(busi, monkeypatch):
    row = replace(DATASETS["busi"], adapter="ultrarefiner.datasets.busi:list_busi")
    monkeypatch.setattr(layouts, "DATASETS", Registry("dataset layout", {"clinic": row}))
    assert find_cases("clinic", busi)[0].id == "clinic__benign_1"


def test_system_files_are_nothing(busi):
    for name in (".DS_Store", "Thumbs.db", "._benign (1).png"):
        (busi / "benign" / name).write_bytes(b"x")
    (busi.parent / "__MACOSX" / "benign").mkdir(parents=True)
    assert list_cases("busi", busi).unexpected == []
    assert len(find_cases("busi", busi.parent)) == 3


def test_busbra_patients_from_names(busbra):
    cases = find_cases("busbra", busbra.parent)
    assert [(case.id, case.patient) for case in cases] == [
        ("busbra__bus_0001_l", "0001"),
        ("busbra__bus_0001_r", "0001"),
        ("busbra__bus_0002_l", "0002"),
        ("busbra__bus_0003_s", "0003"),
    ]
    assert cases[0].masks[0].name == "mask_0001-l.png" and cases[0].label is None


def test_busbra_tables(busbra):
    ids = ["bus_0001-l", "bus_0001-r", "bus_0002-l", "bus_0003-s", "bus_0099-l"]
    patients = ["1", "1", "2", "1", "99"]
    table(
        busbra / "bus_data.csv",
        [
            {"ID": i, "Case": p, "Pathology": "Malignant" if p == "1" else "benign"}
            for i, p in zip(ids, patients, strict=True)
        ],
    )
    folds = [
        {"ID": i, "Pathology": "benign", "kFold": f}
        for i, f in zip(ids, (1, 1, 2, 5, 3), strict=True)
    ]
    table(busbra / "5-fold-cv.csv", folds)
    listing = list_cases("busbra", busbra)
    assert [case.patient for case in listing.cases] == ["0001", "0001", "0002", "0001"]
    # 1-based in the file, 0-based here; the image that is not there is left out.
    assert listing.folds == [
        ("busbra__bus_0001_l", 5, 0),
        ("busbra__bus_0001_r", 5, 0),
        ("busbra__bus_0002_l", 5, 1),
        ("busbra__bus_0003_s", 5, 4),
    ]
    warnings = "\n".join(listing.warnings)
    assert "bus_0099-l" in warnings
    assert "the name says patient 0003, bus_data.csv says 1" in warnings
    assert listing.problems == []


@pytest.mark.parametrize(
    ("folds", "expected"),
    [([0, 1, 4, 2], [0, 1, 4, 2]), ([1, 2, 5, 3], [0, 1, 4, 2]), ([1, 2, 3, 4], [0, 1, 2, 3])],
)
def test_folds_start_at_zero(busbra, folds, expected):
    ids = ["bus_0001-l.png", "bus_0001-r.png", "bus_0002-l.png", "bus_0003-s.png"]
    table(
        busbra / "5-fold-cv.csv", [{"ID": i, "kFold": f} for i, f in zip(ids, folds, strict=True)]
    )
    assert [fold for _, _, fold in list_cases("busbra", busbra).folds] == expected


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([{"ID": "bus_0001-l", "kFold": 7}, {"ID": "bus_0001-r", "kFold": 0}], "more than 5 folds"),
        ([{"ID": "bus_0001-l", "kFold": "x"}], "not a whole number for bus_0001-l"),
        ([{"ID": "bus_0001-l", "fold": 1}], "columns id, kfold are needed, found id, fold"),
    ],
)
def test_wrong_fold_tables_are_problems(busbra, rows, says):
    table(busbra / "5-fold-cv.csv", rows)
    with pytest.raises(DatasetError, match=says) as error:
        find_cases("busbra", busbra)
    assert "5-fold-cv.csv" in str(error.value)


def test_busbra_missing_partners(busbra):
    (busbra / "Masks" / "mask_0002-l.png").unlink()
    (busbra / "Images" / "bus_0003-s.png").unlink()
    with pytest.raises(DatasetError) as error:
        find_cases("busbra", busbra)
    lines = "\n".join(error.value.problems)
    assert len(error.value.problems) == 2
    assert "bus_0002-l.png: its mask Masks/mask_0002-l.png is missing" in lines
    assert "mask_0003-s.png: its image Images/bus_0003-s.png is missing" in lines


def test_stu_from_the_folder_or_its_parent(tmp_path):
    for number in (1, 2, 10):
        stu(tmp_path / "Hospital", number)
    cases = find_cases("stu", tmp_path)
    assert [case.id for case in cases] == [
        "stu__test_image_1",
        "stu__test_image_10",
        "stu__test_image_2",
    ]
    assert [case.masks[0].name for case in cases] == ["mask_1.png", "mask_10.png", "mask_2.png"]
    assert [case.image for case in find_cases("stu", tmp_path / "Hospital")] == [
        case.image for case in cases
    ]
    pixels, label = read_case(cases[0])
    assert pixels.shape == (32, 32, 3) and label.shape == (32, 32)
    # 30 x 30 of 60 x 60 become a quarter of 32 x 32.
    assert label.sum() == pytest.approx(256, abs=30)


def test_stu_missing_partners(tmp_path):
    stu(tmp_path, 1)
    image(tmp_path / "Test_Image_2.png")
    mask(tmp_path / "mask_3.png")
    with pytest.raises(DatasetError) as error:
        find_cases("stu", tmp_path)
    lines = "\n".join(error.value.problems)
    assert "Test_Image_2.png: its mask mask_2.png is missing" in lines
    assert "mask_3.png: its image Test_Image_3.png is missing" in lines
