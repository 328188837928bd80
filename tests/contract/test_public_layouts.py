"""The traps of the public archives stay shut: colours, sizes, repeats, classes and patients."""

import logging
import shutil

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ultrarefiner.datasets import DATASETS, find_cases, read_case
from ultrarefiner.datasets.bus_uclm import read_class_mask
from ultrarefiner.datasets.duplicates import pixel_sha256
from ultrarefiner.datasets.layouts import list_cases
from ultrarefiner.datasets.phantom import draw_phantom, write_phantom
from ultrarefiner.datasets.phantoms.files import jpeg_noise
from ultrarefiner.datasets.reading import load_case
from ultrarefiner.errors import DatasetError

RED, GREEN = (255, 0, 0), (0, 255, 0)


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def speckle(seed, shape=(90, 120)):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def paint(*lesions, shape=(90, 120)):
    """Return a mask in colours; a lesion is (colour, top, left, side)."""
    mask = np.zeros((*shape, 3), np.uint8)
    for colour, top, left, side in lesions:
        mask[top : top + side, left : left + side] = colour
    return mask


def uclm(root, name, mask, seed=0):
    save(root / "images" / f"{name}.png", speckle(seed, mask.shape[:2]))
    save(root / "masks" / f"{name}.png", mask)


def gray(*box, shape=(90, 120)):
    mask = np.zeros(shape, np.uint8)
    if box:
        mask[box[1] : box[3], box[0] : box[2]] = 255
    return mask


def test_a_red_lesion_of_bus_uclm_survives(tmp_path):
    """The luma of pure red is 76: by the rule for gray masks no malignant lesion would be left."""
    uclm(tmp_path, "ABCD_000", paint((RED, 20, 30, 25)))
    uclm(tmp_path, "ABCD_001", paint((GREEN, 20, 30, 25)), seed=1)
    assert cv2.cvtColor(paint((RED, 20, 30, 25)), cv2.COLOR_RGB2GRAY).max() == 76
    red, green = find_cases("bus_uclm", tmp_path)
    assert (red.label, green.label) == ("malignant", "benign")
    for case in (red, green):
        label = read_case(case)[1]
        assert np.array_equal(label > 0, paint((RED, 20, 30, 25)).any(axis=2))


def test_a_phantom_malignant_lesion_keeps_all_its_pixels(tmp_path):
    write_phantom("bus_uclm", tmp_path / "raw", cases=9, size=96, seed=1, odd_cases=False)
    found = [case for case in find_cases("bus_uclm", tmp_path / "raw") if case.label == "malignant"]
    assert len(found) == 3
    for case in found:
        red = np.asarray(Image.open(case.masks[0]))[..., 0] == 255
        assert np.array_equal(read_case(case)[1] > 0, red) and red.sum() > 20


@pytest.mark.parametrize("colour", [RED, GREEN])
def test_noise_and_soft_edges_keep_lesion_and_class(tmp_path, colour):
    truth = draw_phantom(7, 180, colour == RED)[1]
    mask = np.zeros((*truth.shape, 3), np.uint8)
    mask[truth] = colour
    height, width = truth.shape
    small = cv2.resize(mask, (width // 2, height // 2), interpolation=cv2.INTER_AREA)
    large = cv2.resize(mask, (width * 2, height * 2), interpolation=cv2.INTER_LINEAR)
    variants = [jpeg_noise(mask, quality) for quality in (50, 75, 95)]
    variants += [cv2.GaussianBlur(mask, (0, 0), 1.0), small, large]
    for index, variant in enumerate(variants):
        save(tmp_path / "images" / f"ABCD_{index:03d}.png", speckle(index, truth.shape))
        save(tmp_path / "masks" / f"ABCD_{index:03d}.png", variant)
    cases = find_cases("bus_uclm", tmp_path)
    assert len(cases) == len(variants)
    for case in cases:
        label = read_case(case)[1] > 0
        assert case.label == ("malignant" if colour == RED else "benign")
        dice = 2 * (label & truth).sum() / (label.sum() + truth.sum())
        assert dice > 0.95, case.id
        assert not [note for note in load_case(case).notes if "malignant" in note]


@pytest.mark.parametrize(
    ("red", "green", "label", "share"),
    [(20, 30, "benign", "31%"), (30, 20, "malignant", "69%"), (20, 20, "malignant", "50%")],
)
def test_two_classes_in_one_mask_give_the_class_of_the_larger_area(
    tmp_path, red, green, label, share
):
    uclm(tmp_path, "ABCD_000", paint((RED, 10, 10, red), (GREEN, 50, 60, green)))
    listing = list_cases("bus_uclm", tmp_path)
    (case,) = listing.cases
    assert case.label == label
    (line,) = listing.warnings
    assert "ABCD_000.png" in line and "larger area" in line
    pixels = load_case(case)
    assert pixels.label.sum() == red**2 + green**2
    assert f"benign and malignant lesions ({share} malignant)" in pixels.notes


def test_black_masks_are_normal_and_left_out_unless_wanted(tmp_path):
    uclm(tmp_path, "ABCD_000", paint((RED, 10, 10, 30)))
    uclm(tmp_path, "ABCD_001", paint(), seed=1)
    save(tmp_path / "images" / "EFGH_000.png", speckle(2))
    save(tmp_path / "masks" / "EFGH_000.png", gray())
    assert [case.id for case in find_cases("bus_uclm", tmp_path)] == ["bus_uclm__abcd_000"]
    everything = find_cases("bus_uclm", tmp_path, include_empty=True)
    assert [case.label for case in everything] == ["malignant", "normal", "normal"]


def test_the_patient_is_the_prefix(tmp_path):
    for index, name in enumerate(["ABCD_000", "abcd_001", "ABCE_000", "ABC_000"]):
        uclm(tmp_path, name, paint((GREEN, 10, 10, 30)), seed=index)
    patients = {c.image.stem: c.patient for c in find_cases("bus_uclm", tmp_path)}
    assert patients == {
        "ABCD_000": "ABCD",
        "abcd_001": "ABCD",
        "ABCE_000": "ABCE",
        "ABC_000": "ABC",
    }
    uclm(tmp_path, "scan", paint((GREEN, 10, 10, 30)), seed=9)
    with pytest.raises(DatasetError, match=r"scan\.png: the name has no patient"):
        find_cases("bus_uclm", tmp_path)


@pytest.mark.parametrize(
    "colour",
    [(0, 0, 255), (255, 255, 255), (128, 128, 128), (255, 255, 0), (255, 0, 255), (0, 255, 255)],
)
@pytest.mark.parametrize("side", [1, 3, 20])
@pytest.mark.parametrize("beside", [False, True], ids=["alone", "beside a lesion"])
def test_a_colour_of_no_class_is_refused_by_name(tmp_path, colour, side, beside):
    lesions = [(colour, 60, 70, side)] + ([(RED, 10, 10, 30)] if beside else [])
    uclm(tmp_path, "ABCD_000", paint(*lesions))
    with pytest.raises(DatasetError) as error:
        find_cases("bus_uclm", tmp_path)
    (line,) = error.value.problems
    assert line.startswith(str(tmp_path / "masks" / "ABCD_000.png"))
    assert str(colour) in line and "row 60, column 70" in line and "green (0, 255, 0)" in line


SIDES = st.integers(4, 20)
ROOMS = st.permutations([(5, 5), (5, 60), (50, 5), (50, 60)])


@settings(max_examples=50)
@given(red=st.lists(SIDES, max_size=2), green=st.lists(SIDES, max_size=2), rooms=ROOMS)
def test_any_lesions_keep_their_pixels_and_the_larger_class(tmp_path_factory, red, green, rooms):
    painted = [(RED, side) for side in red] + [(GREEN, side) for side in green]
    mask = paint(
        *((colour, *room, side) for (colour, side), room in zip(painted, rooms, strict=False))
    )
    path = save(tmp_path_factory.mktemp("mask") / "m.png", mask)
    found = read_class_mask(path)
    areas = sum(side**2 for side in red), sum(side**2 for side in green)
    assert (found.malignant, found.benign) == areas
    assert np.array_equal(found.gray, mask.max(axis=2))
    assert found.both == (min(areas) > 0)
    expected = "malignant" if areas[0] >= areas[1] else "benign"
    assert found.label == (expected if sum(areas) else "normal")


def test_dark_red_is_refused_like_every_mask_that_never_reaches_128(tmp_path):
    uclm(tmp_path, "ABCD_000", paint(((100, 0, 0), 10, 10, 30)))
    with pytest.raises(DatasetError, match=r"largest gray value is 100"):
        find_cases("bus_uclm", tmp_path)


@pytest.mark.parametrize("layout", ["stu", "bus", "bus_uc", "bus_uclm", "pairs"])
def test_a_mask_of_420_aligns_with_an_image_of_128(tmp_path, layout):
    truth = np.zeros((420, 420), bool)
    truth[105:315, 210:399] = True
    mask = np.where(truth, 255, 0).astype(np.uint8)
    if layout == "bus_uclm":
        mask = np.dstack([mask, 0 * mask, 0 * mask])
    image, place = {
        "stu": ("Test_Image_1.png", "mask_1.png"),
        "bus": ("original/000001.png", "GT/000001.png"),
        "bus_uc": ("All/images/001.png", "All/masks/001.png"),
        "bus_uclm": ("images/ABCD_000.png", "masks/ABCD_000.png"),
        "pairs": ("images/a.png", "masks/a.png"),
    }[layout]
    save(tmp_path / image, speckle(0, (128, 128)))
    save(tmp_path / place, mask)
    (case,) = find_cases(layout, tmp_path)
    pixels = load_case(case)
    assert pixels.label.shape == pixels.image.shape[:2] == (128, 128)
    # 128 / 420 of each edge: 32, 96, 64, 121.6 pixels, to half a pixel.
    rows, columns = np.nonzero(pixels.label)
    assert (rows.min(), rows.max() + 1) == (32, 96)
    assert (columns.min(), columns.max() + 1) == (64, 122)
    assert "mask resized from 420x420" in pixels.notes


def uc(root, part, number, image, mask):
    save(root / part / "images" / f"{number:03d}.png", image)
    save(root / part / "masks" / f"{number:03d}.png", mask)


@pytest.fixture
def bus_uc(tmp_path):
    """All/ with 4 images, 1 and 2 benign, 3 and 4 malignant, each repeated under its name."""
    root = tmp_path / "BUS_UC"
    for number in range(1, 5):
        for part in ("All", "Benign" if number < 3 else "Malignant"):
            uc(root, part, number, speckle(number), gray(10, 10, 20 + number, 30))
    return root


def labels(listing):
    return {case.image.name: case.label for case in listing.cases}


def test_repeats_of_bus_uc_are_not_counted_twice(bus_uc):
    listing = list_cases("bus_uc", bus_uc.parent)
    assert len(listing.cases) == 4 and not listing.unexpected and not listing.warnings
    assert all(case.image.parent == bus_uc / "All" / "images" for case in listing.cases)
    assert labels(listing) == {
        "001.png": "benign",
        "002.png": "benign",
        "003.png": "malignant",
        "004.png": "malignant",
    }
    pixels = {pixel_sha256(read_case(case)[0]) for case in find_cases("bus_uc", bus_uc)}
    assert len(pixels) == 4


def test_without_all_the_classes_give_the_same_cases(bus_uc):
    before = list_cases("bus_uc", bus_uc)
    shutil.rmtree(bus_uc / "All")
    after = list_cases("bus_uc", bus_uc)
    assert [(c.id, c.label) for c in after.cases] == [(c.id, c.label) for c in before.cases]
    assert not after.warnings


def test_all_alone_has_no_classes_and_says_so(bus_uc):
    for part in ("Benign", "Malignant"):
        shutil.rmtree(bus_uc / part)
    listing = list_cases("bus_uc", bus_uc)
    assert set(labels(listing).values()) == {None}
    (line,) = listing.warnings
    assert "lacks Benign/ and Malignant/" in line and "unpack the whole archive" in line


def test_classes_numbered_for_themselves_are_told_by_their_bytes(bus_uc):
    """In Malignant/ the numbers begin anew: 001 and 002 are the images 3 and 4 of All/."""
    for kind in ("images", "masks"):
        for number in (3, 4):
            path = bus_uc / "Malignant" / kind / f"{number:03d}.png"
            path.rename(path.with_name(f"{number - 2:03d}.png"))
    listing = list_cases("bus_uc", bus_uc)
    assert list(labels(listing).values()) == ["benign", "benign", "malignant", "malignant"]
    assert not listing.warnings
    shutil.rmtree(bus_uc / "All")
    cases = find_cases("bus_uc", bus_uc)
    assert [case.id for case in cases] == [
        f"bus_uc__{label}_{number:03d}" for label in ("benign", "malignant") for number in (1, 2)
    ]


def test_a_class_that_names_and_bytes_leave_open_is_not_guessed(bus_uc):
    uc(bus_uc, "All", 5, speckle(5), gray(1, 1, 30, 30))
    uc(bus_uc, "Malignant", 1, speckle(1), gray(10, 10, 21, 30))
    uc(bus_uc, "Benign", 9, speckle(9), gray(1, 1, 30, 30))
    save(bus_uc / "Benign" / "images" / "002.png", speckle(22))
    listing = list_cases("bus_uc", bus_uc)
    assert labels(listing) == {
        "001.png": None,
        "002.png": "benign",
        "003.png": "malignant",
        "004.png": "malignant",
        "005.png": None,
    }
    doubtful, renamed, extra = listing.warnings
    assert "2 images" in doubtful and "001.png, 005.png" in doubtful
    assert "002.png" in renamed and "bytes differ" in renamed
    assert "Benign/009.png" in extra and "not used" in extra


def test_a_blank_mask_and_one_of_half_size_in_bus_uc(bus_uc):
    save(bus_uc / "All" / "masks" / "001.png", gray())
    save(bus_uc / "All" / "masks" / "003.png", gray(10, 10, 30, 30, shape=(45, 60)))
    cases = find_cases("bus_uc", bus_uc)
    assert [case.image.name for case in cases] == ["002.png", "003.png", "004.png"]
    label = read_case(cases[1])[1]
    assert np.array_equal(label > 0, gray(20, 20, 60, 60) > 0)
    assert len(find_cases("bus_uc", bus_uc, include_empty=True)) == 4


def test_bus_and_udiat_are_read_alike_and_say_that_they_are_the_same(tmp_path, caplog):
    for number in (1, 2):
        save(tmp_path / "original" / f"{number:06d}.png", np.dstack([speckle(number)] * 3))
        mask = np.dstack([gray(20, 20, 70, 60)] * 3)
        save(tmp_path / "GT" / f"{number:06d}.png", jpeg_noise(mask, 60))
    (tmp_path / "DatasetB.xlsx").write_bytes(b"PK")
    for layout, other in (("bus", "udiat"), ("udiat", "bus")):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            cases = find_cases(layout, tmp_path)
        assert [case.id for case in cases] == [f"{layout}__000001", f"{layout}__000002"]
        assert all(abs(int(read_case(case)[1].sum()) - 2000) < 60 for case in cases)
        (record,) = caplog.records
        assert "DatasetB.xlsx" in record.getMessage() and "manifest" in record.getMessage()
        assert DATASETS[layout].counts == {"images": 163}
        assert f"`{other}`" in DATASETS[layout].terms and "163 images" in DATASETS[layout].terms


def test_published_counts_add_up():
    uclm_counts = DATASETS["bus_uclm"].counts
    assert uclm_counts["normal"] + uclm_counts["lesions"] == uclm_counts["images"] == 683
    assert uclm_counts["benign"] + uclm_counts["malignant"] == uclm_counts["lesions"] == 264
    uc_counts = DATASETS["bus_uc"].counts
    assert uc_counts["benign"] + uc_counts["malignant"] == uc_counts["images"] == 811
