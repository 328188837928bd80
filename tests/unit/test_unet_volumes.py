"""Volumes in UNet layout: which axis is which, one gray scale, and what is refused with its cure."""

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage

from tests.volume_data import AXES, drawn, prepared, save_nifti, save_pair
from ultrarefiner.config import SplitsConfig
from ultrarefiner.datasets import find_cases, read_case
from ultrarefiner.datasets.doctor import examine_dataset
from ultrarefiner.datasets.layouts import list_cases
from ultrarefiner.datasets.phantom import write_phantom
from ultrarefiner.datasets.reading import load_case
from ultrarefiner.datasets.splits import read_split, split_folds
from ultrarefiner.datasets.volume_files import read_geometry, read_values
from ultrarefiner.errors import ConfigError, DatasetError

STRAIGHT = np.diag([0.4, 0.4, 1.2, 1.0])
SAME = np.diag([0.5, 0.5, 0.5, 1.0])


def save_arrays(root, axis="HWD", name="one", values=None, mask=None):
    """Write a pair of npy files from arrays (D, H, W)."""
    own = drawn()
    for home, array in (("volumes", values), ("labels", mask)):
        (root / home).mkdir(parents=True, exist_ok=True)
        array = own[home == "labels"] if array is None else array
        np.save(root / home / f"{name}.npy", array.transpose(AXES[axis]))
    return own


def problems(root, **options):
    return list_cases("volumes", root, options=options).problems


@pytest.mark.parametrize("axis", AXES)
def test_a_slice_has_h_rows_and_w_columns_and_all_are_cases(tmp_path, axis):
    affine = STRAIGHT if axis == "HWD" else np.diag([1.2, 0.4, 0.4, 1.0])
    values, mask = save_pair(tmp_path, "P1 left", affine, axis)
    cases = find_cases("volumes", tmp_path, options={"axis": axis})
    assert [case.id for case in cases] == [f"volumes__p1_left_slice_{k:03d}" for k in range(6)]
    assert {case.patient for case in cases} == {"P1 left"}
    low, high = values.min(), values.max()
    for index, case in enumerate(cases):
        image, label = read_case(case)
        assert image.shape == (20, 16, 3)
        gray = np.rint((values[index].astype(float) - low) / (high - low) * 255)
        assert np.array_equal(image[..., 0], gray)
        assert np.array_equal(label, mask[index])
        assert load_case(case).spacing == (0.4, 0.4)


def test_every_kind_of_file_gives_the_same_slices(tmp_path):
    values, mask = drawn()
    volume, labels = values.transpose(AXES["HWD"]), mask.astype(np.uint8).transpose(AXES["HWD"])
    for home, array in (("volumes", volume), ("labels", labels)):
        for name in ("a.nii.gz", "b.nii"):
            save_nifti(tmp_path / home / name, array, STRAIGHT)
        np.save(tmp_path / home / "c.npy", array)
    write_nrrd(tmp_path / "volumes/d.nrrd", volume)
    # Kinds may be mixed, and letter case of the end does not matter.
    np.save(tmp_path / "labels/d.npy", labels)
    (tmp_path / "volumes/c.npy").rename(tmp_path / "volumes/c.NPY")
    pixels = {}
    for case in find_cases("volumes", tmp_path):
        pixels.setdefault(case.patient, []).append(read_case(case))
    assert list(pixels) == ["a", "b", "c", "d"]
    for found in pixels.values():
        for (image, label), (first, truth) in zip(found, pixels["a"], strict=True):
            assert np.array_equal(image, first) and np.array_equal(label, truth)


def write_nrrd(path, array):
    image = sitk.GetImageFromArray(np.ascontiguousarray(array.T))
    image.SetSpacing((0.4, 0.4, 1.2))
    image.SetDirection((-1, 0, 0, 0, -1, 0, 0, 0, 1))
    sitk.WriteImage(image, str(path))


@pytest.mark.parametrize("affine", [STRAIGHT, SAME, np.eye(4)], ids=["1.2 mm", "same", "unknown"])
@pytest.mark.parametrize("axis", ["HWD", "DHW"])
def test_a_wrong_axis_is_refused_with_the_shapes_though_the_label_agrees(tmp_path, axis, affine):
    wrong = {"HWD": "DHW", "DHW": "HWD"}[axis]
    if axis == "DHW":
        affine = affine[np.ix_([2, 0, 1, 3], [2, 0, 1, 3])]
    save_pair(tmp_path, "one", affine, axis)
    assert problems(tmp_path, axis=axis) == []
    (line,) = problems(tmp_path, axis=wrong)
    size, lost = {"HWD": ("20 x 16 x 6", "20 slices of 16 x 6"), "DHW": ("6 x 20 x 16", "")}[axis]
    assert f"options.axis is {wrong}, so its size {size} would be {lost}" in line
    assert "6 slices of 20 x 16 pixels" in line and f"set options.axis: {axis}" in line
    assert "axis_check: false" in line and "one.nii.gz" in line
    assert problems(tmp_path, axis=wrong, axis_check=False) == []
    with pytest.raises(DatasetError, match=f"set options.axis: {axis}"):
        find_cases("volumes", tmp_path, options={"axis": wrong})
    assert examine_dataset("volumes", tmp_path, options={"axis": wrong}).errors == [line]


@pytest.mark.parametrize("axis", AXES)
def test_a_wrong_axis_of_an_array_is_told_by_its_sizes(tmp_path, axis):
    save_arrays(tmp_path, axis)
    wrong = {"HWD": "DHW", "DHW": "HWD"}[axis]
    assert problems(tmp_path, axis=axis) == []
    (line,) = problems(tmp_path, axis=wrong)
    assert "20" in line and f"set options.axis: {axis}" in line


def test_square_pixels_say_more_than_sizes(tmp_path):
    """A long sweep has more slices than its slices have rows."""
    save_pair(tmp_path, "one", STRAIGHT, shape=(40, 20, 16))
    assert problems(tmp_path) == []
    (line,) = problems(tmp_path, axis="DHW")
    assert "40 slices of 20 x 16 pixels of 0.4 x 0.4 mm" in line
    assert "20 slices of 16 x 40 pixels of 0.4 x 1.2 mm" in line


def test_slices_across_the_middle_axis_are_to_be_saved_anew(tmp_path):
    save_pair(tmp_path, "one", np.diag([0.4, 1.2, 0.4, 1.0]))
    (line,) = problems(tmp_path)
    assert "cut along axis 1 they would be" in line and "save it with its slices along" in line


def test_a_cube_is_what_it_is_declared_to_be(tmp_path):
    save_pair(tmp_path, "one", SAME, shape=(18, 20, 17))
    assert problems(tmp_path) == [] == problems(tmp_path, axis="DHW")


def test_what_is_no_image_is_refused_without_the_check_too(tmp_path):
    save_arrays(tmp_path, values=np.zeros((6, 20, 1)), mask=np.zeros((6, 20, 1), bool))
    (line,) = problems(tmp_path, axis_check=False)
    assert "6 slices of 20 x 1 pixels, which are no images" in line


def test_a_label_of_another_size_or_order_is_named_with_both_sizes(tmp_path):
    save_pair(tmp_path, "one", STRAIGHT)
    mask = drawn()[1].astype(np.uint8)
    save_nifti(tmp_path / "labels/one.nii.gz", mask, STRAIGHT)
    (line,) = problems(tmp_path)
    assert "another order" in line and "6 x 20 x 16" in line and "20 x 16 x 6" in line
    save_nifti(tmp_path / "labels/one.nii.gz", mask[:4].transpose(AXES["HWD"]), STRAIGHT)
    (line,) = problems(tmp_path)
    assert "its size 20 x 16 x 4 is not 20 x 16 x 6" in line


def test_partners_that_miss_and_names_that_are_there_twice(tmp_path):
    save_pair(tmp_path, "one", STRAIGHT)
    save_pair(tmp_path, "two", STRAIGHT, seed=1)
    (tmp_path / "labels/one.nii.gz").rename(tmp_path / "labels/three.nii.gz")
    np.save(tmp_path / "volumes/two.npy", drawn()[0])
    (tmp_path / "volumes/notes.txt").write_text("")
    found = list_cases("volumes", tmp_path)
    text = "\n".join(found.problems)
    assert len(found.problems) == 3 and "two.npy" in text and "have one name" in text
    assert "one.nii.gz: its mask" in text and "three.nii.gz: its image" in text
    assert [path.name for path in found.unexpected] == ["notes.txt"]


@pytest.mark.parametrize("labels", ["labels", "volumes"])
def test_labels_have_a_suffix_and_may_lie_beside_the_volumes(tmp_path, labels):
    save_pair(tmp_path, "one", STRAIGHT)
    (tmp_path / "labels/one.nii.gz").rename(tmp_path / labels / "one_gt.nii.gz")
    options = {"gt_suffix": "_gt", "labels": labels}
    assert len(find_cases("volumes", tmp_path, options=options)) == 6
    with pytest.raises(ConfigError, match="need a gt_suffix"):
        find_cases("volumes", tmp_path, options={"labels": "volumes"})


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("kind", ["nii.gz", "npy"])
def test_a_value_that_is_no_number_is_named_with_its_place_once(tmp_path, value, kind):
    values, _ = drawn()
    values[4, 7, 2] = value
    if kind == "npy":
        save_arrays(tmp_path, values=values)
    else:
        save_pair(tmp_path, "one", STRAIGHT)
        save_nifti(tmp_path / "volumes/one.nii.gz", values.transpose(AXES["HWD"]), STRAIGHT)
    with pytest.raises(DatasetError) as error:
        find_cases("volumes", tmp_path)
    (line,) = error.value.problems[:1]
    assert f"one.{kind}: 1 values are no numbers" in line and "[7, 2, 4]" in line
    assert str(error.value).count("no numbers") == 1


def test_one_scale_for_all_slices_of_a_volume(tmp_path):
    values = np.zeros((6, 20, 16), np.float32)
    values[:] = np.linspace(-100.0, 400.0, 6)[:, None, None]
    values[0, 0, 0] = 5000.0
    save_arrays(tmp_path, values=values)

    def grays(**options):
        cases = find_cases("volumes", tmp_path, options=options)
        (note,) = {load_case(case).notes[0] for case in cases}
        return [int(read_case(case)[0][9, 9, 0]) for case in cases], note

    assert grays() == ([0, 5, 10, 15, 20, 25], "volume's -100 to 5000 as 0 to 255")
    clipped, note = grays(window=[0.0, 300.0])
    assert clipped == [0, 0, 85, 170, 255, 255] and note == "volume's 0 to 300 as 0 to 255"
    assert grays(percentiles=[0.0, 99.0])[0] == [0, 51, 102, 153, 204, 255]
    with pytest.raises(DatasetError, match=r"values from -100 to 5000, and options\.normalise"):
        grays(normalise="unit")
    for option in ({"window": [0, 1]}, {"percentiles": [1, 99]}):
        with pytest.raises(ConfigError, match="no effect beside normalise: unit"):
            grays(normalise="unit", **option)


def test_unit_values_stay_on_their_own_scale(tmp_path):
    values = np.full((6, 20, 16), 0.5, np.float32)
    values[1] = 1.0 + 2e-7
    save_arrays(tmp_path, values=values)
    cases = find_cases("volumes", tmp_path, options={"normalise": "unit"})
    assert [int(read_case(case)[0].max()) for case in cases] == [128, 255, 128, 128, 128, 128]


def test_labels_of_several_values_need_to_be_told(tmp_path):
    _, mask = drawn()
    labels = mask.astype(np.uint8)
    labels[2, 15:17, 11:14] = 2
    save_arrays(tmp_path, mask=labels)
    with pytest.raises(DatasetError, match=r"one\.npy: not a mask .* options\.lesion") as error:
        find_cases("volumes", tmp_path)
    assert len(error.value.problems) == 1
    for lesion, truth in (([1], labels == 1), ([1, 2], mask)):
        cases = find_cases("volumes", tmp_path, options={"lesion": lesion})
        assert np.array_equal(np.stack([read_case(case)[1] for case in cases]), truth)


def test_a_stated_spacing_must_not_contradict_a_header(tmp_path):
    save_pair(tmp_path, "one", STRAIGHT)
    save_arrays(tmp_path, name="two")
    options = {"spacing": [1.2, 0.4, 0.4]}
    cases = find_cases("volumes", tmp_path, options=options)
    assert {case.spacing for case in cases} == {(0.4, 0.4)}
    (line,) = problems(tmp_path, spacing=[0.4, 0.4, 1.2])
    assert "by its header the spacing [z, y, x] is 1.2 x 0.4 x 0.4 mm" in line


def test_flat_slices_do_not_join_volumes_nor_do_labels_without_a_lesion_stop_anything(tmp_path):
    """Black slices at the ends of scans are equal: as duplicates they would make one group."""
    for seed in range(6):
        values, mask = drawn(seed)
        values[:2] = values[-2:] = 0.0
        save_arrays(tmp_path / "raw", name=f"v{seed}", values=values, mask=mask & (seed != 3))
    records = prepared(tmp_path / "raw", tmp_path / "out")
    assert len({record.group for record in records.values()}) == 6
    found = examine_dataset("volumes", tmp_path / "raw")
    assert found.errors == [] and found.facts["cases"] == 36 and not found.facts["left_out"]
    assert found.facts["exact_duplicates"] == []
    blank = [line for line in found.warnings if "blank" in line]
    assert len(blank) == 1 and "v3.npy: its labels are blank in all slices" in blank[0]


def test_volumes_and_patients_never_straddle_a_split(tmp_path):
    for patient in range(6):
        for side in "lr":
            save_arrays(tmp_path / "raw", name=f"P{patient}_{side}", values=drawn(patient)[0])
    options = {"patient": r"^(P\d)_"}
    records = prepared(tmp_path / "raw", tmp_path / "out", options=options)
    split_folds(tmp_path / "out/cases.csv", None, tmp_path / "splits.csv", SplitsConfig(folds=3))
    for fold in range(3):
        split = read_split(tmp_path / "splits.csv", fold)
        role_of = {case: role for role, cases in split.items() for case in cases}
        for name, record in records.items():
            other = records[name.replace("_l", "_x").replace("_r", "_l").replace("_x", "_r")]
            assert len({role_of[case] for case in (*record.cases, *other.cases)}) == 1
    assert problems(tmp_path / "raw", patient="^(Q)")[0].count("finds no patient") == 1


@pytest.mark.parametrize("kind", ["nii", "nii.gz", "npy", "nrrd"])
def test_truncated_files_are_refused_by_name(tmp_path, kind):
    save_pair(tmp_path, "one", STRAIGHT)
    volume = drawn()[0].transpose(AXES["HWD"])
    (tmp_path / "volumes/one.nii.gz").unlink()
    path = tmp_path / f"volumes/one.{kind}"
    if kind == "npy":
        np.save(path, volume)
    elif kind == "nrrd":
        write_nrrd(path, volume)
    else:
        nibabel.save(nibabel.Nifti1Image(volume, STRAIGHT), path)
    data = path.read_bytes()
    for length in (len(data) * 3 // 4, 100, 0):
        path.write_bytes(data[:length])
        with pytest.raises(DatasetError, match=rf"one\.{kind}: .*(damaged|truncated|3 axes)"):
            find_cases("volumes", tmp_path)


@pytest.mark.parametrize("shape", [(20, 16), (20, 16, 6, 2), (20, 16, 6, 3, 1)])
def test_files_of_other_than_three_axes_are_refused(tmp_path, shape):
    save_arrays(tmp_path)
    np.save(tmp_path / "volumes/one.npy", np.zeros(shape))
    (line,) = problems(tmp_path)
    assert f"has {len(shape)} axes of sizes {' x '.join(map(str, shape))}" in line


def test_phantoms_are_what_their_page_says(tmp_path):
    write_phantom("volumes", tmp_path, cases=6, size=64, seed=0, odd_cases=True)
    paths = sorted((tmp_path / "labels").iterdir())
    assert [path.name.split(".", 1)[1] for path in paths] == [
        *("nii.gz", "nii.gz", "nii.gz", "nii", "nrrd", "nii.gz")
    ]
    straight = []
    for path in paths:
        geometry, mask = read_geometry(path), read_values(path) > 0
        assert geometry.size == (64, 56, 12) and geometry.spacing == (0.4, 0.4, 1.2)
        shown = mask.any(axis=(0, 1))
        assert not shown[0] and not shown[-1] and shown.sum() >= 4
        assert np.all(np.diff(np.flatnonzero(shown)) == 1)
        straight.append(np.count_nonzero(geometry.affine) == 4)
        volume = read_geometry(tmp_path / "volumes" / path.name)
        assert volume.affine == geometry.affine and volume.size == geometry.size
    assert straight == [True, False, True, True, True, True]
    middle = read_values(paths[2])[..., 6]
    assert ndimage.label(middle)[1] == 2
