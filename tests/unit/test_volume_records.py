"""Masks of slices become volumes again, on the very grid of the file they were cut from."""

import subprocess
import sys

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from tests.volume_data import AXES, drawn, listed, prepared, save_nifti, save_pair
from ultrarefiner.datasets.phantom import write_phantom
from ultrarefiner.datasets.volume_files import read_geometry
from ultrarefiner.datasets.volume_records import (
    holds_volumes,
    in_file_order,
    read_volumes,
    stack_masks,
    write_mask_volume,
)
from ultrarefiner.errors import ConfigError, DatasetError, UltraRefinerError
from ultrarefiner.images import write_mask
from ultrarefiner.io import read_rows, write_rows

STRAIGHT = np.diag([0.4, 0.4, 1.2, 1.0])
TURN = np.array([[0.8, -0.6, 0.0], [0.48, 0.64, -0.6], [0.36, 0.48, 0.8]])
OBLIQUE = np.eye(4)
OBLIQUE[:3, :3] = TURN @ np.diag([0.4, 0.4, 1.2])
OBLIQUE[:3, 3] = [-31.7, 12.3, 101.1]
SHEARED = OBLIQUE @ np.array([[1, 0.2, 0, 0], [0, 1, 0.1, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
KEPT = (
    *("pixdim", "qform_code", "sform_code", "xyzt_units", "srow_x", "srow_y", "srow_z"),
    *("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
)


@pytest.fixture(scope="module")
def phantom(tmp_path_factory):
    """Records of phantom volumes, and the folder of what was prepared."""
    folder = tmp_path_factory.mktemp("volumes")
    write_phantom("volumes", folder / "raw", cases=5, size=48, seed=1, odd_cases=True)
    return prepared(folder / "raw", folder / "prepared"), folder


def copied(phantom, tmp_path):
    """Return a folder with the table of cases alone, to be damaged."""
    (tmp_path / "cases.csv").write_text((phantom[1] / "prepared/cases.csv").read_text())
    return tmp_path / "cases.csv"


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize(
    ("affine", "codes"),
    [
        (STRAIGHT, {"sform": 1, "qform": 1}),
        (OBLIQUE, {"sform": 2, "qform": 1}),
        (OBLIQUE, {"sform": 0, "qform": 1}),
        (SHEARED, {"sform": 4, "qform": 0}),
        (OBLIQUE @ np.diag([1000.0, 1000, 1000, 1]), {"sform": 1, "units": "micron"}),
    ],
    ids=["straight", "oblique", "qform only", "sheared", "micron"],
)
def test_a_mask_goes_back_onto_the_grid_of_its_nifti_file_to_the_bit(tmp_path, axis, affine, codes):
    if axis == "DHW":
        affine = affine[:, [2, 0, 1, 3]]
    _, mask = save_pair(tmp_path / "raw", "one", affine, axis, **codes)
    (record,) = prepared(tmp_path / "raw", tmp_path, options={"axis": axis}).values()
    source = nibabel.load(tmp_path / "raw/volumes/one.nii.gz")
    truth = nibabel.load(tmp_path / "raw/labels/one.nii.gz")
    assert np.array_equal(record.affine, source.affine)
    assert record.size == source.shape
    found = stack_masks(record, tmp_path / "masks")
    assert np.array_equal(found, mask)
    write_mask_volume(record, found, tmp_path / "out/mask.nii.gz")
    written = nibabel.load(tmp_path / "out/mask.nii.gz")
    assert written.affine.tobytes() == source.affine.tobytes()
    for field in KEPT:
        assert written.header[field].tobytes() == source.header[field].tobytes(), field
    assert written.header.get_data_dtype() == np.uint8
    assert np.array_equal(np.asarray(written.dataobj), np.asarray(truth.dataobj))
    sides = nibabel.affines.voxel_sizes(source.affine) * (0.001 if "units" in codes else 1.0)
    assert record.spacing == pytest.approx(tuple(sides[list(record.order)]), rel=1e-5)


def test_voxels_have_the_volume_that_they_have_in_the_source(tmp_path):
    _, mask = save_pair(tmp_path / "raw", "one", OBLIQUE)
    (record,) = prepared(tmp_path / "raw", tmp_path).values()
    write_mask_volume(record, mask, tmp_path / "mask.nii.gz")
    written = nibabel.load(tmp_path / "mask.nii.gz")
    voxel = abs(np.linalg.det(written.affine[:3, :3]))
    assert voxel == pytest.approx(0.4 * 0.4 * 1.2, rel=1e-5)
    assert voxel == pytest.approx(np.prod(record.spacing), rel=1e-5)
    assert np.asarray(written.dataobj).sum() * voxel == pytest.approx(mask.sum() * voxel)


def test_two_masks_are_the_same_bytes(tmp_path):
    _, mask = save_pair(tmp_path / "raw", "one", OBLIQUE)
    (record,) = prepared(tmp_path / "raw", tmp_path).values()
    for name in ("a", "b"):
        write_mask_volume(record, mask, tmp_path / name / "mask.nii.gz")
    assert (tmp_path / "a/mask.nii.gz").read_bytes() == (tmp_path / "b/mask.nii.gz").read_bytes()


def test_an_nrrd_file_keeps_its_place_in_space(tmp_path):
    values, mask = drawn()
    for home, array in (("volumes", values), ("labels", mask.astype(np.uint8))):
        (tmp_path / "raw" / home).mkdir(parents=True)
        # As SimpleITK has it: (H, W, D) in the file is [D, W, H] here.
        image = sitk.GetImageFromArray(array.transpose(0, 2, 1))
        image.SetSpacing((0.4, 0.4, 1.2))
        image.SetOrigin((7.5, -3.25, 11.0))
        image.SetDirection(TURN.ravel())
        sitk.WriteImage(image, str(tmp_path / "raw" / home / "one.nrrd"))
    (record,) = prepared(tmp_path / "raw", tmp_path).values()
    assert record.spacing == (1.2, 0.4, 0.4)
    write_mask_volume(record, stack_masks(record, tmp_path / "masks"), tmp_path / "mask.nii.gz")
    truth = sitk.ReadImage(str(tmp_path / "raw/labels/one.nrrd"))
    written = sitk.ReadImage(str(tmp_path / "mask.nii.gz"))
    assert np.array_equal(sitk.GetArrayFromImage(truth), sitk.GetArrayFromImage(written))
    for index in [(0, 0, 0), (19, 15, 5), (3, 9, 4)]:
        assert written.TransformIndexToPhysicalPoint(index) == pytest.approx(
            truth.TransformIndexToPhysicalPoint(index), abs=1e-4
        )


@pytest.mark.parametrize("spacing", [None, [1.2, 0.4, 0.3]])
def test_of_an_array_the_stated_spacing_is_all_that_is_known(tmp_path, spacing):
    values, mask = drawn()
    for home, array in (("volumes", values), ("labels", mask)):
        (tmp_path / "raw" / home).mkdir(parents=True)
        np.save(tmp_path / "raw" / home / "one.npy", array.transpose(AXES["HWD"]))
    options = {"spacing": spacing}
    (record,) = prepared(tmp_path / "raw", tmp_path, options=options).values()
    assert record.spacing == (tuple(spacing) if spacing else None)
    affine = np.diag([0.4, 0.3, 1.2, 1.0]) if spacing else np.eye(4)
    assert np.array_equal(record.affine, affine)
    write_mask_volume(record, stack_masks(record, tmp_path / "masks"), tmp_path / "mask.nii.gz")
    written = nibabel.load(tmp_path / "mask.nii.gz")
    assert np.allclose(written.affine, affine)
    assert np.array_equal(np.asarray(written.dataobj) > 0, mask.transpose(AXES["HWD"]))


@pytest.mark.parametrize("layout", ["abus", "nifti"])
def test_other_layouts_give_whole_volumes_on_demand(tmp_path, layout):
    write_phantom(layout, tmp_path / "raw", cases=4, size=48, seed=1, odd_cases=True)
    options = {"slices": "all"}
    records = prepared(tmp_path / "raw", tmp_path, layout, options)
    assert len(records) == {"abus": 5, "nifti": 2}[layout]
    for record in records.values():
        truth = sitk.GetArrayFromImage(sitk.ReadImage(str(record.mask))) > 0
        # The lower axis runs along the rows: SimpleITK's [axis 2, axis 1, axis 0] is (D, H, W).
        assert (record.depth, record.height, record.width) == truth.shape
        found = stack_masks(record, tmp_path / "masks")
        assert np.array_equal(found, truth)
        assert np.array_equal(in_file_order(record, found), truth.T)
    for key, value in {"abus": {"neighbors": 1}, "nifti": {"min_foreground": 0.1}}[layout].items():
        with pytest.raises(ConfigError, match=f"{key} has no effect beside slices: all"):
            holds_volumes(layout, options | {key: value})


def test_which_datasets_hold_volumes_is_known_without_reading_any():
    assert holds_volumes("volumes", {"axis": "DHW"})
    assert holds_volumes("abus", {"slices": "all"}) and holds_volumes("nifti", {"slices": "all"})
    for layout in ("abus", "nifti", "busi", "manifest"):
        assert not holds_volumes(layout, {})
    code = (
        "import sys; from ultrarefiner.datasets.volume_records import holds_volumes;"
        "holds_volumes('volumes', {});"
        "sys.exit(','.join({'SimpleITK', 'nibabel', 'torch', 'pandas'} & set(sys.modules)) or 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_records_are_those_of_the_dataset(phantom):
    records, folder = phantom
    assert list(records) == [f"study__vol_{index:03d}" for index in range(5)]
    rows = {row["case"]: row for row in read_rows(folder / "prepared/cases.csv")}
    assert sorted(case for record in records.values() for case in record.cases) == sorted(rows)
    for record in records.values():
        assert {rows[case]["group"] for case in record.cases} == {record.group}
        assert [rows[case]["image"][-4:] for case in record.cases] == [
            f"{index:04d}" for index in range(12)
        ]
        assert record.image.is_file() and record.mask.is_file() and record.label == ""
        assert (record.depth, record.height, record.width) == (12, 48, 42)
        assert record.spacing == (1.2, 0.4, 0.4)
        assert read_geometry(record.image).affine == record.affine
    assert len({record.group for record in records.values()}) == 5


def test_a_slice_without_a_case_and_one_with_two_are_named(phantom, tmp_path):
    table = copied(phantom, tmp_path)
    rows = read_rows(table)
    wanted = [row for row in rows if row["case"] != "study__vol_001_slice_004"]
    write_rows(table, list(rows[0]), wanted)
    with pytest.raises(DatasetError, match=r"vol_001\.nii\.gz: of its 12 slices 1 are no case: 4"):
        listed(phantom[1] / "raw", tmp_path)
    again = dict(rows[3], case="study__vol_000_slice_999")
    write_rows(table, list(rows[0]), [*rows, again])
    with pytest.raises(DatasetError, match=r"slice 3 is two cases, .*_003 and .*_999"):
        listed(phantom[1] / "raw", tmp_path)


@pytest.mark.parametrize("column", ["group", "label"])
def test_slices_of_a_volume_that_disagree_are_refused(phantom, tmp_path, column):
    table = copied(phantom, tmp_path)
    rows = read_rows(table)
    write_rows(table, list(rows[0]), [dict(rows[0], **{column: "other"}), *rows[1:]])
    with pytest.raises(DatasetError, match=f"different values of {column}: .*other"):
        listed(phantom[1] / "raw", tmp_path)


def test_a_layout_that_leaves_slices_out_has_no_volumes(phantom, tmp_path):
    copied(phantom, tmp_path)
    with pytest.raises(DatasetError, match="nifti with these options does not keep all slices"):
        listed(phantom[1] / "raw", tmp_path, "nifti")


def test_masks_that_do_not_fit_are_refused(phantom, tmp_path):
    record = phantom[0]["study__vol_000"]
    with pytest.raises(UltraRefinerError, match="study__vol_000_slice_000"):
        stack_masks(record, tmp_path)
    for case in record.cases:
        write_mask(tmp_path / f"{case}.png", np.zeros((42, 48), bool))
    with pytest.raises(DatasetError, match=r"has 42 x 48 pixels .* have 48 x 42"):
        stack_masks(record, tmp_path)
    with pytest.raises(DatasetError, match=r"\(48, 42, 12\) is not \(48, 42, 11\)"):
        write_mask_volume(record, np.zeros((11, 48, 42), bool), tmp_path / "mask.nii.gz")
    assert not (tmp_path / "mask.nii.gz").exists()


def test_damaged_tables_say_what_to_do(phantom, tmp_path):
    home = phantom[1] / "prepared"
    volumes, slices = (read_rows(home / name) for name in ("volumes.csv", "slices.csv"))
    with pytest.raises(DatasetError, match="run list_volumes"):
        read_volumes(tmp_path / "volumes.csv", home / "slices.csv")
    write_rows(tmp_path / "slices.csv", list(slices[0]), slices[1:])
    with pytest.raises(DatasetError, match="run list_volumes again"):
        read_volumes(home / "volumes.csv", tmp_path / "slices.csv")
    write_rows(tmp_path / "volumes.csv", list(volumes[0]), volumes[1:])
    with pytest.raises(DatasetError, match=r"not those of .*: study__vol_000"):
        read_volumes(tmp_path / "volumes.csv", home / "slices.csv")


def test_a_4d_file_of_one_volume_gets_a_mask_of_three_axes(tmp_path):
    values, mask = drawn()
    array = values.transpose(AXES["HWD"])[..., None]
    save_nifti(tmp_path / "raw/volumes/one.nii.gz", array, OBLIQUE)
    labels = mask.astype(np.uint8).transpose(AXES["HWD"])
    save_nifti(tmp_path / "raw/labels/one.nii.gz", labels, OBLIQUE)
    (record,) = prepared(tmp_path / "raw", tmp_path).values()
    write_mask_volume(record, mask, tmp_path / "mask.nii.gz")
    written = nibabel.load(tmp_path / "mask.nii.gz")
    assert written.shape == (20, 16, 6)
    assert written.affine.tobytes() == nibabel.load(record.image).affine.tobytes()
