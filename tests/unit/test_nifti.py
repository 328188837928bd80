"""NIfTI volumes become the slices and grays of the recipe; nothing is left out without a word."""

import numpy as np
import pytest
import SimpleITK as sitk

from ultrarefiner.datasets import find_cases, read_case
from ultrarefiner.datasets.layouts import list_cases
from ultrarefiner.datasets.phantoms.volumes import write_volume
from ultrarefiner.datasets.reading import load_case
from ultrarefiner.errors import ConfigError, DatasetError

SPACING = (0.8, 0.7, 3.0)
SHAPE = (5, 32, 40)
HECKTOR = {"lesion": [1], "window": [-200, 300], "scale": "slice"}


def scan(seed=0):
    """Return values like those of CT, indexed [axis 2, axis 1, axis 0]."""
    rng = np.random.default_rng(seed)
    values = rng.integers(-1000, 1500, SHAPE).astype(np.int16)
    values[:, ::2] = rng.integers(-100, 200, (SHAPE[0], SHAPE[1] // 2, SHAPE[2]))
    return values


def lesion(*sides, value=1):
    """Return a mask with a square of each side, slice after slice."""
    mask = np.zeros(SHAPE, np.uint8)
    for index, side in enumerate(sides):
        mask[index, 6 : 6 + side, 9 : 9 + side] = value
    return mask


def write(home, name, values, spacing=SPACING):
    home.mkdir(parents=True, exist_ok=True)
    write_volume(home / name, values, spacing)


def patient(root, name, values=None, mask=None):
    write(root / name, "ct.nii.gz", scan() if values is None else values)
    write(root / name, "seg.nii.gz", lesion(0, 4, 8) if mask is None else mask)


def listed(root, **options):
    return list_cases("nifti", root, options=options)


def test_slices_with_enough_of_the_lesion_are_cases_and_the_others_are_counted(tmp_path):
    patient(tmp_path, "CHUM-001", mask=lesion(0, 1, 2, 8))
    patient(tmp_path, "CHUM-002")
    listing = listed(tmp_path, min_foreground=4 / (32 * 40))
    assert [(case.id, case.patient) for case in listing.cases] == [
        ("nifti__chum_001_slice_002", "CHUM-001"),
        ("nifti__chum_001_slice_003", "CHUM-001"),
        ("nifti__chum_002_slice_001", "CHUM-002"),
        ("nifti__chum_002_slice_002", "CHUM-002"),
    ]
    (line,) = listing.warnings
    assert "6 of 10 slices are left out: 5 show no lesion, and of 1 it covers less" in line
    assert not listing.problems and not listing.unexpected
    assert len(listed(tmp_path, min_foreground=0).cases) == 10


def test_the_default_share_is_100_of_65536_pixels(tmp_path):
    mask = np.zeros((3, 256, 256), np.uint8)
    mask[1, :9, :11], mask[2, :10, :10] = 1, 1
    patient(tmp_path, "p", np.zeros(mask.shape, np.int16), mask)
    assert [case.part for case in listed(tmp_path).cases] == ["axis 2 slice 0002"]


def test_the_hecktor_recipe(tmp_path):
    """Clipped to the window, then each slice from its smallest to its largest value, as RGB."""
    values, mask = scan(), lesion(0, 6, 9)
    mask[1, 20:26, 20:26] = 2  # a lymph node
    patient(tmp_path, "p", values, mask)
    with pytest.raises(DatasetError, match=r"several values from 0 to 2.*options\.lesion"):
        find_cases("nifti", tmp_path)
    values[2][values[2] < -50] = -50
    write(tmp_path / "p", "ct.nii.gz", values)
    for case, index, low in zip(
        find_cases("nifti", tmp_path, options=HECKTOR), (1, 2), (-200, -50), strict=True
    ):
        image, label = read_case(case)
        clipped = np.clip(values[index].astype(float), -200, 300)
        assert (clipped.min(), clipped.max()) == (low, 300)
        expected = np.rint((clipped - low) / (300 - low) * 255)
        assert image.shape == (32, 40, 3) and np.array_equal(image[..., 0], expected)
        assert np.array_equal(image[..., 0], image[..., 2])
        assert np.array_equal(label, mask[index] == 1)
        pixels = load_case(case)
        assert f"slice's {low} to 300 as 0 to 255" in pixels.notes
        assert pixels.spacing == (0.7, 0.8)


def test_pet_has_no_window_and_both_labels_may_count(tmp_path):
    values, mask = scan(1).astype(np.float32) / 100, lesion(0, 6)
    mask[1, 20:26, 20:26] = 2
    write(tmp_path / "p", "pt.nii.gz", values)
    write(tmp_path / "p", "seg.nii.gz", mask)
    write(tmp_path / "p", "ct.nii.gz", scan())
    options = {"image": "pt.nii.gz", "lesion": [1, 2], "scale": "slice"}
    listing = listed(tmp_path, **options)
    assert any("ct.nii.gz (1)" in line for line in listing.warnings) and not listing.unexpected
    (case,) = listing.cases
    image, label = read_case(case)
    low, high = values[1].min(), values[1].max()
    assert np.array_equal(image[..., 0], np.rint((values[1] - low) / (high - low) * 255))
    assert label.sum() == 72


def test_one_scale_for_the_volume_by_default_and_a_window_of_it(tmp_path):
    values = np.zeros(SHAPE, np.int16)
    values[0, 0, 0], values[1], values[2], values[3, 0, 0] = -1000, 100, 200, 3000
    patient(tmp_path, "p", values, lesion(0, 8, 8))
    grays = [int(read_case(case)[0].max()) for case in listed(tmp_path).cases]
    assert grays == [70, 76]  # (100 + 1000) / 4000 and (200 + 1000) / 4000 of 255
    cases = listed(tmp_path, window=[-200, 300]).cases
    assert [int(read_case(case)[0].max()) for case in cases] == [153, 204]


@pytest.mark.parametrize("options", [{"scale": "slice"}, {"scale": "slice", "window": [500, 600]}])
def test_a_slice_of_one_value_is_black_and_divides_nothing(tmp_path, options):
    values = scan()
    values[1] = 40
    values[2] = np.clip(values[2], -1000, 400)
    patient(tmp_path, "p", values)
    with np.errstate(all="raise"):
        images = [read_case(case)[0] for case in listed(tmp_path, **options).cases]
    assert not images[0].any()
    assert images[1].any() == ("window" not in options)


def test_values_that_are_no_numbers_are_refused(tmp_path):
    values = scan().astype(np.float32)
    values[1, 3, 3] = np.nan
    patient(tmp_path, "p")
    write(tmp_path / "p", "ct.nrrd", values)  # the library reads them as 0 from NIfTI
    for scale in ("slice", "volume"):
        with pytest.raises(DatasetError, match=r"ct\.nrrd: holds values that are no numbers"):
            find_cases("nifti", tmp_path, options={"image": "ct.nrrd", "scale": scale})


@pytest.mark.parametrize("suffix", ["", "__CT"])
def test_two_folders_with_equal_names(tmp_path, suffix):
    for name in ("a", "b"):
        write(tmp_path / "imagesTr", f"{name}{suffix}.nii.gz", scan())
        write(tmp_path / "labelsTr", f"{name}.nii.gz", lesion(0, 8))
    write(tmp_path / "imagesTr", "a__PT.nii.gz", scan())
    options = {"images": "imagesTr", "masks": "labelsTr", "image_suffix": suffix}
    listing = listed(tmp_path, **options)
    if suffix:
        assert [path.name for path in listing.unexpected] == ["a__PT.nii.gz"]
        assert [case.patient for case in listing.cases] == ["a", "b"]
        (tmp_path / "labelsTr" / "a.nii.gz").unlink()
    (line,) = listed(tmp_path, **options).problems
    assert "imagesTr/a_" in line and "is missing" in line


def test_a_patient_without_mask_or_volume_is_a_problem(tmp_path):
    for name in ("p1", "p2", "p3"):
        patient(tmp_path, name)
    (tmp_path / "p1" / "seg.nii.gz").unlink()
    (tmp_path / "p2" / "ct.nii.gz").unlink()
    (tmp_path / "notes").mkdir()
    listing = listed(tmp_path)
    mask, image = listing.problems
    assert "p1" in mask and "seg.nii.gz is missing" in mask
    assert "p2" in image and "ct.nii.gz is missing" in image
    assert [path.name for path in listing.unexpected] == ["notes"]
    with pytest.raises(DatasetError, match="a folder for each patient"):
        listed(tmp_path / "notes")


def test_a_mask_on_another_grid_is_refused_and_other_directions_are_told(tmp_path):
    patient(tmp_path, "p1", mask=lesion(0, 8)[:, ::2])
    assert "its size 40 x 16 x 5 is not 40 x 32 x 5" in listed(tmp_path).problems[0]
    for name, direction in [("p1", -1), ("p2", 1), ("p3", 1)]:
        for file, array in (("ct.nii.gz", scan()), ("seg.nii.gz", lesion(0, 8))):
            image = sitk.GetImageFromArray(array)
            image.SetSpacing(SPACING)
            image.SetDirection((direction, 0, 0, 0, direction, 0, 0, 0, 1))
            (tmp_path / name).mkdir(exist_ok=True)
            sitk.WriteImage(image, str(tmp_path / name / file))
    listing = listed(tmp_path)
    assert not listing.problems
    assert any("1 volumes run along other directions" in line for line in listing.warnings)
    (line,) = [line for line in listing.warnings if "directions" in line]
    assert line.split(": ")[2].startswith("p1;")


def test_an_axis_that_gives_no_images_and_one_that_is_chosen(tmp_path):
    patient(tmp_path, "p", mask=lesion(0, 8, 8))
    cases = listed(tmp_path, axis=1).cases
    assert [case.part for case in cases] == [f"axis 1 slice {row:04d}" for row in range(6, 14)]
    assert read_case(cases[0])[1].shape == (5, 40)
    patient(tmp_path, "p", scan()[:1], lesion(8)[:1])
    (line,) = listed(tmp_path, axis=0).problems
    assert "would have 1 x 32 pixels; set options.axis" in line


def test_no_slice_at_all_is_a_problem(tmp_path):
    patient(tmp_path, "p")
    (line,) = listed(tmp_path, lesion=[7]).problems
    assert "no slice of 1 volumes" in line and "options.lesion" in line


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"images": "a"}, "give both, or neither"),
        ({"images": "a", "masks": "b", "image": "pt.nii.gz"}, "have no effect beside"),
        ({"image_suffix": "_0000"}, "has no effect without images"),
        ({"image": "seg.nii.gz"}, "cannot be the same files"),
        ({"images": "a", "masks": "a"}, "cannot be the same files"),
        ({"image": "sub/ct.nii.gz"}, "name of a file"),
        ({"image": "ct.png"}, "ending with"),
        ({"window": [300, -200]}, "ascending"),
        ({"images": "../a", "masks": "b"}, "in the dataset's root"),
        ({"min_foreground": 1.0}, "less than 1"),
    ],
)
def test_options_that_cannot_work_are_refused(tmp_path, options, words):
    with pytest.raises(ConfigError, match=words):
        listed(tmp_path, **options)
