"""SA-Med2D folders are read whole: paths from any base, strictly binary masks, no image parted."""

import json

import numpy as np
import pytest
from PIL import Image

from tests.prepared_data import prepare, texture
from ultrarefiner.config import SplitsConfig
from ultrarefiner.datasets import find_cases, read_case
from ultrarefiner.datasets.doctor import examine_dataset
from ultrarefiner.datasets.layouts import list_cases
from ultrarefiner.datasets.prepare import prepare_dataset
from ultrarefiner.datasets.reading import load_case
from ultrarefiner.datasets.splits import read_split, split_folds
from ultrarefiner.errors import ConfigError, DatasetError
from ultrarefiner.io import read_rows

SHAPE = (48, 64)


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def square(top, left, side=12, value=255):
    mask = np.zeros(SHAPE, np.uint8)
    mask[top : top + side, left : left + side] = value
    return mask


class Folder:
    """A dataset in the making; `write` leaves the tables, paths from `start` on."""

    def __init__(self, home, start=""):
        self.home, self.start = home, start
        self.tables = {"train": {}, "test": {}}

    def add(self, part, name, *masks, seed=None):
        image = f"{part}/images/{name}.png"
        seed = sum(map(ord, part + name)) if seed is None else seed
        save(self.home / image, texture(seed, SHAPE))
        names = [f"{part}/masks/{name}_{place}.png" for place in range(len(masks))]
        for path, mask in zip(names, masks, strict=True):
            save(self.home / path, mask)
        if part == "train":
            self.tables[part][self.start + image] = [self.start + path for path in names]
        else:
            self.tables[part] |= {self.start + path: self.start + image for path in names}
        return self

    def write(self, top=False):
        for part, table in self.tables.items():
            if table:
                self.table(part, top).write_text(json.dumps(table))
        return self.home

    def table(self, part, top=False):
        name = "image2label_train.json" if part == "train" else "label2image_test.json"
        return (self.home if top else self.home / part) / name


def two_parts(home, start=""):
    folder = Folder(home, start)
    folder.add("train", "a", square(4, 4), square(30, 40)).add("train", "b", square(10, 10))
    return folder.add("test", "c", square(8, 20), square(24, 2))


def problems(root, **options):
    return list_cases("samed2d", root, options=options).problems


def test_masks_of_an_image_are_one_case_by_default(tmp_path):
    cases = find_cases("samed2d", two_parts(tmp_path / "raw").write())
    assert [(case.id, case.split) for case in cases] == [
        ("samed2d__a", "train"),
        ("samed2d__b", "train"),
        ("samed2d__c", "test"),
    ]
    assert np.array_equal(read_case(cases[0])[1] * 255, square(4, 4) | square(30, 40))
    assert not any(case.shares_image or case.part for case in cases)


def test_each_mask_is_a_case_on_demand(tmp_path):
    root = two_parts(tmp_path / "raw").write()
    cases = list_cases("samed2d", root, options={"masks": "each"}).cases
    assert [case.id.removeprefix("samed2d__") for case in cases] == [
        "a_0",
        "a_1",
        "b_0",
        "c_0",
        "c_1",
    ]
    assert [case.part for case in cases][:2] == ["train/masks/a_0.png", "train/masks/a_1.png"]
    first, second = (read_case(case) for case in cases[:2])
    assert np.array_equal(first[0], second[0])
    assert np.array_equal(second[1] * 255, square(30, 40))


@pytest.mark.parametrize(
    ("start", "top"),
    [("", False), ("", True), ("raw/", False), ("raw/", True)],
    ids=["dataset", "dataset, table beside", "above", "above, table beside"],
)
def test_paths_may_start_from_the_dataset_or_above(tmp_path, start, top):
    root = two_parts(tmp_path / "raw", start).write(top)
    assert len(find_cases("samed2d", root)) == 3


def test_paths_may_start_from_the_part_or_above_all_modalities(tmp_path):
    folder = two_parts(tmp_path / "data" / "ct", "data/ct/")
    folder.tables["test"] = {
        mask.removeprefix("data/ct/test/"): image.removeprefix("data/ct/test/")
        for mask, image in folder.tables["test"].items()
    }
    folder.write(top=True)
    assert len(find_cases("samed2d", tmp_path / "data")) == 3
    folder = two_parts(tmp_path / "more" / "ct", "more/ct/")
    home = folder.write()
    assert len(problems(home)) == 2
    assert len(find_cases("samed2d", home, options={"relative_to": "../.."})) == 3


def test_paths_from_a_folder_that_is_not_tried_are_one_problem_with_its_cure(tmp_path):
    root = two_parts(tmp_path / "raw", "elsewhere/").write()
    train, test = problems(root)
    assert "image2label_train.json" in train and "elsewhere/train/images/a.png" in train
    assert "label2image_test.json" in test and "options.relative_to" in test
    (line, *_) = problems(root, relative_to="nowhere")
    assert "nowhere is no folder" in line


def test_several_modalities_in_one_root(tmp_path):
    for modality in ("ct", "mr_t1"):
        two_parts(tmp_path / modality, f"{modality}/").write()
    two_parts(tmp_path / "mr_t2")  # images, and no table
    listing = list_cases("samed2d", tmp_path)
    assert not listing.problems and [path.name for path in listing.unexpected] == ["mr_t2"]
    ids = [case.id for case in listing.cases]
    assert len(ids) == 6 and "samed2d__mr_t1_test_images_c" in ids


def test_a_missing_file_is_named_with_its_table_and_nothing_is_skipped(tmp_path):
    """The original printed the error, went on, and failed later with another one."""
    root = two_parts(tmp_path / "raw").write()
    (root / "train" / "masks" / "b_0.png").unlink()
    (root / "test" / "images" / "c.png").unlink()
    mask, image = problems(root)
    assert mask.startswith(str(root / "train/masks/b_0.png")) and "image2label_train.json" in mask
    assert image.startswith(str(root / "test/images/c.png")) and "label2image_test.json" in image
    with pytest.raises(DatasetError, match=r"b_0\.png"):
        find_cases("samed2d", root)


@pytest.mark.parametrize("value", [1, 255])
def test_masks_of_one_or_of_255_are_lesions(tmp_path, value):
    folder = Folder(tmp_path / "raw").add("train", "a", square(4, 4, value=value))
    (case,) = find_cases("samed2d", folder.write())
    assert np.array_equal(read_case(case)[1], square(4, 4, value=1))


def soft(mask):
    mask[4, 4:16] = 128
    return mask


@pytest.mark.parametrize(
    ("mask", "values"),
    [
        (square(4, 4, value=254), "0, 254"),
        (square(4, 4, value=200), "0, 200"),
        (square(4, 4, value=2), "0, 2"),
        (soft(square(4, 4)), "0, 128, 255"),
        (square(4, 4, value=1) | square(30, 40), "0, 1, 255"),
    ],
)
def test_masks_that_are_not_strictly_binary_are_refused_by_name(tmp_path, mask, values):
    """254 and 200 were lost in the original: divided by 255, and cut to whole numbers."""
    root = Folder(tmp_path / "raw").add("train", "a", square(8, 8), mask).write()
    for masks in ("together", "each"):
        with pytest.raises(DatasetError) as error:
            find_cases("samed2d", root, options={"masks": masks})
        (line,) = error.value.problems
        assert line.startswith(str(root / "train/masks/a_1.png"))
        assert f"holds the values {values}," in line and "threshold it" in line


def test_colours_other_sizes_and_deep_masks_are_refused(tmp_path):
    coloured = np.dstack([square(4, 4), square(4, 4) * 0, square(4, 4) * 0])
    deep = square(4, 4).astype(np.uint16) * 257
    for mask, words in [
        (coloured, "it has colours"),
        (deep, "its values go up to 65535"),
        (square(4, 4)[::2, ::2], "has 24x32 pixels (height x width), its image"),
    ]:
        folder = Folder(tmp_path / words[:6]).add("train", "a", square(8, 8))
        save(folder.home / "train/masks/a_0.png", mask)
        with pytest.raises(DatasetError) as error:
            find_cases("samed2d", folder.write())
        (line,) = error.value.problems
        assert words in line and "a_0.png" in line


def test_a_black_mask_and_an_image_without_masks_show_no_lesion(tmp_path):
    folder = Folder(tmp_path / "raw").add("train", "a", square(4, 4))
    root = folder.add("train", "b", square(0, 0, 0)).add("train", "c").write()
    for options in ({}, {"masks": "each"}):
        (case,) = find_cases("samed2d", root, options=options)
        assert case.image.name == "a.png"
        assert len(find_cases("samed2d", root, include_empty=True, options=options)) == 3


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "is not JSON"),
        ("[1, 2]", "must be an object of the form"),
        ('{"train/images/a.png": "train/masks/a_0.png"}', "something else at 'train/images/a.png'"),
        ('{"train/images/a.png": [1]}', "something else at"),
        ("{}", "lists nothing"),
        (
            '{"train/images/a.png": ["train/masks/a_0.png"], "train/images/a.png": []}',
            "lists train/images/a.png more than once",
        ),
        ('{"train/images/a.png": ["../../x.png"]}', "lies outside of"),
        (
            '{"train/images/a.png": ["train/masks/a_0.png", "train/masks/a_0.png"]}',
            "a mask has one image",
        ),
        (
            '{"train/images/a.png": ["train/masks/a_0.png"], "train/images/b.png": '
            '["./train/masks/a_0.png"]}',
            "is listed in",
        ),
    ],
)
def test_a_table_that_is_none_is_a_clear_problem(tmp_path, text, words):
    folder = Folder(tmp_path / "raw").add("train", "a", square(4, 4))
    root = folder.add("train", "b", square(4, 4)).write()
    folder.table("train").write_text(text)
    (line,) = problems(root)
    assert words in line and "image2label_train.json" in line


def test_an_image_of_both_parts_would_be_trained_and_tested_on(tmp_path):
    folder = two_parts(tmp_path / "raw")
    folder.tables["test"]["test/masks/c_0.png"] = "train/images/b.png"
    (line,) = problems(folder.write())
    assert "train/images/b.png" in line and "label2image_test.json" in line


def test_a_part_without_its_table_and_files_of_no_table(tmp_path):
    folder = two_parts(tmp_path / "raw")
    root = folder.write()
    save(root / "train/masks/stray.png", square(1, 1))
    assert [path.name for path in list_cases("samed2d", root).unexpected] == ["stray.png"]
    folder.table("test").unlink()
    (line,) = problems(root)
    assert "has images/ and no label2image_test.json" in line
    with pytest.raises(DatasetError, match="image2label_train"):
        list_cases("samed2d", root / "train" / "images")


def test_the_volume_of_sa_med2d_names_is_the_patient_whatever_the_modality(tmp_path):
    folder = Folder(tmp_path / "raw")
    for stem in ("mr_t1--BraTS--0001--x_0077", "mr_t2--BraTS--0001--x_0078", "plain"):
        folder.add("train", stem, square(4, 4))
    folder.add("test", "ct_00--AMOS--7--y_0001", square(4, 4))
    cases = list_cases("samed2d", folder.write()).cases
    assert [case.patient for case in cases] == ["AMOS--7", "BraTS--0001", "BraTS--0001", None]


def test_the_patient_and_the_class_may_be_told_by_names(tmp_path):
    folder = Folder(tmp_path / "raw").add("train", "p7_a", square(4, 4))
    folder.tables["train"]["train/images/p7_a.png"] = ["train/masks/p7_a--0003_001.png"]
    (root := folder.write()).joinpath("train/masks/p7_a_0.png").rename(
        root / "train/masks/p7_a--0003_001.png"
    )
    options = {"patient": r"(p\d+)_", "masks": "each"}
    (case,) = list_cases("samed2d", root, options=options).cases
    assert (case.patient, case.label) == ("p7", "0003")
    (line,) = problems(root, patient=r"(q\d+)_")
    assert "finds no patient" in line
    with pytest.raises(ConfigError, match="2 groups"):
        list_cases("samed2d", root, options={"patient": "(a)(b)"})
    with pytest.raises(ConfigError, match="from the dataset's root"):
        list_cases("samed2d", root, options={"relative_to": "/data"})


@pytest.fixture
def many(tmp_path):
    """Eight images of two masks each, six to train on; one of them is there twice."""
    folder = Folder(tmp_path / "raw")
    for index in range(6):
        folder.add("train", f"t{index}", square(4, 4), square(30, 40), seed=index)
    folder.add("test", "u0", square(4, 4), square(30, 40), seed=10)
    folder.add("test", "u1", square(4, 4), square(20, 20), seed=11)
    return folder.write()


def prepared_each(root, output):
    prepare_dataset(
        "study",
        "samed2d",
        root,
        False,
        **{name: output / f"{name}.csv" for name in ("cases", "published_folds", "excluded")},
        **{name: output / name for name in ("npz", "images", "masks")},
        options={"masks": "each"},
    )
    return read_rows(output / "cases.csv")


def test_cases_of_one_image_are_no_duplicates_with_contradictory_masks(many, tmp_path):
    found = examine_dataset("samed2d", many, options={"masks": "each"})
    assert not found.errors and found.facts["cases"] == 16
    assert found.facts["counts"]["images"] == found.facts["counts"]["lesions"] == 8
    assert not [line for line in found.warnings if "equal pixels" in line or "look alike" in line]
    rows = prepared_each(many, tmp_path / "prepared")
    assert {row["look_alikes"] for row in rows} == {"0"}
    # Equal in the column `image` means one image, and nothing else does.
    assert len({row["image"] for row in rows}) == 8 and not [r for r in rows if "#" in r["image"]]


def test_a_copy_of_an_image_is_still_told_and_its_other_masks_too(many):
    table = many / "train/image2label_train.json"
    content = json.loads(table.read_text())
    for name in ("images/copy.png", "masks/copy_0.png", "masks/copy_1.png"):
        source = name.replace("copy", "t0")
        (many / "train" / name).write_bytes((many / "train" / source).read_bytes())
    masks = ["train/masks/copy_0.png", "train/masks/copy_1.png"]
    table.write_text(json.dumps(content | {"train/images/copy.png": masks}))
    options = {"masks": "each"}
    warnings = examine_dataset("samed2d", many, options=options).warnings
    (line,) = [line for line in warnings if "equal pixels" in line]
    assert "1 sets of images have equal pixels: copy.png = t0.png;" in line
    save(many / "train/masks/copy_1.png", square(1, 1, 5))
    warnings = examine_dataset("samed2d", many, options=options).warnings
    (line,) = [line for line in warnings if "equal pixels" in line]
    assert line.startswith("copy.png = t0.png: equal pixels under different masks")


@pytest.mark.parametrize("group", ["auto", "image", "duplicates"])
def test_no_fold_parts_the_masks_of_an_image(many, tmp_path, group):
    rows = prepared_each(many, tmp_path / "prepared")
    config = SplitsConfig(folds=3, group=group)
    split_folds(tmp_path / "prepared/cases.csv", None, tmp_path / "splits.csv", config)
    image_of = {row["case"]: row["image"] for row in rows}
    for fold in range(3):
        roles = read_split(tmp_path / "splits.csv", fold)
        images = [{image_of[case] for case in cases} for cases in roles.values()]
        assert sum(map(len, images)) == len(set.union(*images)) == 8


def test_the_test_part_is_held_out_on_demand(many, tmp_path):
    prepared_each(many, tmp_path / "prepared")
    config = SplitsConfig(folds=3)
    split_folds(
        tmp_path / "prepared/cases.csv", None, tmp_path / "s.csv", config, official_test=True
    )
    held = read_split(tmp_path / "s.csv", 0)["holdout"]
    assert held == ["study__u0_0", "study__u0_1", "study__u1_0", "study__u1_1"]


def test_together_the_prepared_dataset_has_a_row_for_an_image(many, tmp_path):
    table = prepare("study", "samed2d", many, tmp_path / "prepared")
    assert len(table) == 8
    assert table["study__t0"].mask == "train/masks/t0_0.png;train/masks/t0_1.png"
    (case,) = [case for case in find_cases("samed2d", many) if case.id == "samed2d__t0"]
    assert "2 masks" in load_case(case).notes
