"""Images and masks in two folders are joined by name as the options say, and no file is lost."""

import string

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ultrarefiner.datasets import find_cases, read_case
from ultrarefiner.datasets.base import Listing
from ultrarefiner.datasets.layouts import list_cases
from ultrarefiner.datasets.pairing import MaskName, pair_folders
from ultrarefiner.errors import ConfigError, DatasetError


def image(root, path, seed=0, **options):
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (30, 40), np.uint8)
    Image.fromarray(pixels).save(file, **options)


def mask(root, path, left=5):
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.zeros((30, 40), np.uint8)
    pixels[10:20, left : left + 10] = 255
    Image.fromarray(pixels).save(file)


def pair(root, name, seed=0):
    image(root, f"images/{name}.png", seed)
    mask(root, f"masks/{name}.png")


def found(root, **options):
    return {
        case.image.relative_to(root).as_posix(): [
            path.relative_to(root).as_posix() for path in case.masks
        ]
        for case in find_cases("pairs", root, options=options)
    }


def problems(root, **options):
    with pytest.raises(DatasetError) as error:
        find_cases("pairs", root, options=options)
    return error.value.problems


def test_equal_names_whatever_the_kind_of_file(tmp_path):
    image(tmp_path, "images/a.TIF")
    image(tmp_path, "images/B.jpg", 1)
    mask(tmp_path, "masks/A.png")
    mask(tmp_path, "masks/b.BMP")
    assert found(tmp_path) == {"images/a.TIF": ["masks/A.png"], "images/B.jpg": ["masks/b.BMP"]}


def test_folders_in_the_two_mirror_each_other(tmp_path):
    for index, name in enumerate(["1", "clinic a/1", "clinic a/left/1", "clinic b/1"]):
        pair(tmp_path, name, index)
    cases = find_cases("pairs", tmp_path)
    assert [case.id for case in cases] == [
        "pairs__1",
        "pairs__clinic_a_1",
        "pairs__clinic_a_left_1",
        "pairs__clinic_b_1",
    ]
    assert all(
        case.image.relative_to(tmp_path / "images") == case.masks[0].relative_to(tmp_path / "masks")
        for case in cases
    )


def test_a_mask_of_another_folder_is_not_taken(tmp_path):
    image(tmp_path, "images/a/1.png")
    mask(tmp_path, "masks/b/1.png")
    lines = problems(tmp_path)
    assert len(lines) == 2
    assert f"{tmp_path / 'masks' / 'b' / '1.png'}: its image" in lines[0]
    assert f"its mask {tmp_path / 'masks' / 'a' / '1.png'} is missing" in lines[1]


def test_other_folders_prefix_and_suffix(tmp_path):
    image(tmp_path, "Scans/US/x1.png")
    mask(tmp_path, "truth/seg_x1_lesion.png")
    mask(tmp_path, "truth/notes.png")
    options = {
        "images": "scans/us",
        "masks": "truth",
        "mask_prefix": "seg_",
        "mask_suffix": "_lesion",
    }
    assert found(tmp_path, **options) == {"Scans/US/x1.png": ["truth/seg_x1_lesion.png"]}
    listing = list_cases("pairs", tmp_path, options=options)
    assert [path.name for path in listing.unexpected] == ["notes.png"]


@pytest.mark.parametrize("place", [".", "both"])
def test_images_and_masks_may_lie_in_one_folder(tmp_path, place):
    folder = tmp_path if place == "." else tmp_path / place
    image(folder, "case_1.png")
    mask(folder, "case_1_mask.png")
    image(folder, "case_10.png", 1)
    mask(folder, "case_10_mask.png")
    cases = find_cases(
        "pairs", tmp_path, options={"images": place, "masks": place, "mask_suffix": "_mask"}
    )
    assert [(case.image.name, [path.name for path in case.masks]) for case in cases] == [
        ("case_1.png", ["case_1_mask.png"]),
        ("case_10.png", ["case_10_mask.png"]),
    ]


def test_a_folder_of_masks_inside_that_of_the_images(tmp_path):
    image(tmp_path, "a.png")
    mask(tmp_path, "masks/a.png")
    assert found(tmp_path, images=".", masks="masks") == {"a.png": ["masks/a.png"]}


def test_numbered_masks_count_together_only_if_wanted(tmp_path):
    image(tmp_path, "images/a.png")
    image(tmp_path, "images/b_1.png", 1)
    for name, left in (("a", 2), ("a_1", 14), ("a_2", 26), ("b_1", 5)):
        mask(tmp_path, f"masks/{name}.png", left)
    lines = problems(tmp_path)
    assert len(lines) == 2 and all("its image" in line for line in lines)
    assert found(tmp_path, numbered=True) == {
        "images/a.png": ["masks/a.png", "masks/a_1.png", "masks/a_2.png"],
        "images/b_1.png": ["masks/b_1.png"],
    }
    case = find_cases("pairs", tmp_path, options={"numbered": True})[0]
    assert read_case(case)[1].sum() == 300


def test_patients_and_labels_from_names(tmp_path):
    for index, name in enumerate(["benign/P01_a", "benign/P01_b", "Malignant/P02_a"]):
        pair(tmp_path, name, index)
    options = {"patient": r"(P\d+)_[a-z]$", "label": "folder"}
    cases = find_cases("pairs", tmp_path, options=options)
    assert {case.image.stem: (case.patient, case.label) for case in cases} == {
        "P01_a": ("P01", "benign"),
        "P01_b": ("P01", "benign"),
        "P02_a": ("P02", "malignant"),
    }
    by_expression = list_cases("pairs", tmp_path, options={"label": "^([^/]+)/"}).cases
    assert [case.label for case in by_expression] == [case.label for case in cases]


def test_a_name_that_an_expression_does_not_fit_is_a_problem(tmp_path):
    """An image without its patient could land in another fold than the patient's others."""
    for index, name in enumerate(["P01_a", "Q02_a", "clinic/P03_a"]):
        pair(tmp_path, name, index)
    (line,) = problems(tmp_path, patient=r"(P\d+)")
    assert "patient: '(P\\d+)'" in line and "1 images (Q02_a)" in line and "mend the option" in line
    (line,) = problems(tmp_path, label="folder")
    assert "2 images (P01_a, Q02_a)" in line and "in no folder" in line


def test_normal_images_need_no_mask(tmp_path):
    pair(tmp_path, "benign/a")
    image(tmp_path, "images/normal/b.png", 1)
    options = {"label": "folder"}
    assert found(tmp_path, **options) == {"images/benign/a.png": ["masks/benign/a.png"]}
    cases = find_cases("pairs", tmp_path, include_empty=True, options=options)
    assert [(case.label, len(case.masks)) for case in cases] == [("benign", 1), ("normal", 0)]
    image(tmp_path, "images/benign/c.png", 2)
    (line,) = problems(tmp_path, **options)
    assert "c.png" in line and "is missing" in line


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"patient": "P01"}, "patient: .*has 0 groups.*parentheses"),
        ({"patient": "(P)(1)"}, "patient: .*has 2 groups"),
        ({"label": "(P"}, "label: .*no regular expression"),
        ({"images": "../other"}, "images: .*folder in the dataset's root"),
        ({"masks": "/data"}, "masks: .*folder in the dataset's root"),
        ({"images": "a", "masks": "a"}, "mask_suffix or mask_prefix"),
        ({"suffix": "_mask"}, "suffix"),
        ({"numbered": "maybe"}, "numbered"),
    ],
)
def test_bad_options_are_config_errors_that_name_the_key(tmp_path, options, says):
    with pytest.raises(ConfigError, match=rf"options of layout pairs: .*{says}"):
        find_cases("pairs", tmp_path, options=options)


def test_folders_that_are_not_there_are_named(tmp_path):
    (tmp_path / "pictures").mkdir()
    with pytest.raises(DatasetError, match=r"here images/ and masks/.*found pictures/"):
        find_cases("pairs", tmp_path)
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    assert "holds no image" in problems(tmp_path)[0]


def test_two_masks_of_one_name_are_a_problem_unless_they_are_numbered(tmp_path):
    pair(tmp_path, "a")
    mask(tmp_path, "masks/a.bmp", left=20)
    (line,) = problems(tmp_path)
    assert "has 2 masks of its name (a.bmp, a.png)" in line


def test_a_name_too_long_for_the_files_of_a_study_is_a_problem(tmp_path):
    pair(tmp_path, "a")
    pair(tmp_path, f"{'x' * 120}/{'y' * 90}", seed=1)
    (line,) = problems(tmp_path)
    assert "its case id would have 218 characters" in line


def test_two_images_of_one_name_are_a_problem(tmp_path):
    pair(tmp_path, "a")
    image(tmp_path, "images/a.jpg", 1)
    (line,) = problems(tmp_path)
    assert "a.jpg" in line and "a.png" in line and "same case id" in line


NAMES = st.text(string.ascii_lowercase + "_1", min_size=1, max_size=4)


@settings(max_examples=60)
@given(
    images=st.sets(NAMES, max_size=6),
    masks=st.sets(NAMES, max_size=6),
    suffix=st.sampled_from(["", "_m"]),
    numbered=st.booleans(),
)
def test_every_file_is_in_a_pair_or_in_a_line(tmp_path_factory, images, masks, suffix, numbered):
    root = tmp_path_factory.mktemp("pairs")
    for folder, names in (("images", images), ("masks", masks)):
        (root / folder).mkdir()
        for name in names:
            (root / folder / f"{name}.png").touch()
    listing = Listing(root)
    rule = MaskName(suffix=suffix, numbered=numbered)
    pairs = pair_folders(listing, root / "images", root / "masks", rule)
    assert [pair.image for pair in pairs] == sorted((root / "images").iterdir())
    taken = [path for pair in pairs for path in pair.masks]
    assert len(taken) == len(set(taken))
    for pair in pairs:
        exact = root / "masks" / f"{pair.name}{suffix}.png"
        assert exact.exists() == (exact in pair.masks)
        assert all(path.stem.startswith(pair.name) for path in pair.masks)
        assert numbered or len(pair.masks) <= 1
        assert bool(pair.masks) != any(str(pair.image) == _named(p) for p in listing.problems)
    lines = {_named(line) for line in listing.problems}
    for path in (root / "masks").iterdir():
        assert (path in taken) + (path in listing.unexpected) + (str(path) in lines) == 1


def _named(line: str) -> str:
    return line.partition(": its ")[0]


def test_the_rule_of_names_undoes_itself():
    for rule in (MaskName(), MaskName("mask_"), MaskName(suffix="_gt"), MaskName("a", "b", True)):
        for stem in ("case", "Case_1", "a", "b_2", "mask_"):
            assert stem.lower() in rule.images(rule.of(stem))
    assert MaskName(suffix="_m", numbered=True).images("x_m_2") == ["x"]
    assert MaskName(numbered=True).images("X_2") == ["x_2", "x"]
    assert MaskName("m_").images("m_") == []
