"""ABUS volumes become the right slices on one gray scale, and every mistake of axes is refused."""

import csv

import numpy as np
import pytest
import SimpleITK as sitk

from ultrarefiner.datasets import find_cases, read_case
from ultrarefiner.datasets.layouts import list_cases
from ultrarefiner.datasets.phantom import write_phantom
from ultrarefiner.datasets.phantoms.volumes import SPACING, draw_volume, write_volume
from ultrarefiner.datasets.reading import load_case
from ultrarefiner.errors import ConfigError, DatasetError

PARTS = {"Train": "train", "Validation": "validation", "Test": "test"}


class Archive:
    """A folder of volumes in the form of the archive, and its tables."""

    def __init__(self, root):
        self.root = root
        self.rows = {}

    def add(
        self, number, part="Train", label="B", volume=None, mask=None, spacing=SPACING, **cells
    ):
        """Write a volume and its mask; both are indexed [axis 2, axis 1, axis 0]."""
        drawn = draw_volume(number, 48, False)
        values, lesion = drawn[0] if volume is None else volume, drawn[1] if mask is None else mask
        home = self.root / part
        for folder, array in (("DATA", values), ("MASK", lesion)):
            (home / folder).mkdir(parents=True, exist_ok=True)
            write_volume(
                home / folder / f"{folder}_{number:03d}.nrrd", array.astype(np.uint8), spacing
            )
        names = {"data_path": f"DATA\\DATA_{number:03d}.nrrd"}
        names["mask_path"] = names["data_path"].replace("DATA", "MASK")
        self.rows.setdefault(part, []).append({"case_id": number, "label": label, **names, **cells})
        with open(home / "labels.csv", "w", newline="") as file:
            writer = csv.DictWriter(file, ["case_id", "label", "data_path", "mask_path"])
            writer.writeheader()
            writer.writerows(self.rows[part])
        return values, lesion

    def mask(self, number, part="Train"):
        return self.root / part / "MASK" / f"MASK_{number:03d}.nrrd"

    def data(self, number, part="Train"):
        return self.root / part / "DATA" / f"DATA_{number:03d}.nrrd"

    def cases(self, **options):
        return list_cases("abus", self.root, options=options)

    def problems(self, **options):
        return "\n".join(self.cases(**options).problems)


@pytest.fixture
def archive(tmp_path):
    return Archive(tmp_path / "abus")


def test_the_slice_of_the_largest_lesion_area_is_the_case(archive):
    values, lesion = archive.add(7, label="M")
    (case,) = archive.cases().cases
    assert (case.id, case.patient, case.label, case.split) == (
        *("abus__007_max", "007", "malignant"),
        "train",
    )
    largest = int(lesion.sum(axis=(1, 2)).argmax())
    pixels = load_case(case)
    # Columns run along axis 0, rows along axis 1: depth is down.
    assert pixels.label.shape == values.shape[1:]
    assert np.array_equal(pixels.label > 0, lesion[largest])
    low, high = float(values.min()), float(values.max())
    gray = np.rint((values[largest] - low) / (high - low) * 255)
    assert np.array_equal(pixels.image[..., 0], gray)
    assert pixels.spacing == pytest.approx((SPACING[1], SPACING[0]))


def test_neighbours_have_a_lesion_and_share_patient_and_gray_scale(archive):
    volume = np.full((8, 48, 60), 10, np.uint8)
    mask = np.zeros(volume.shape, np.uint8)
    for index, half in {3: 6, 4: 10, 5: 8}.items():
        mask[index, 24 - half : 24 + half, 20:40] = 1
    volume[4], volume[5] = 120, 200
    volume[3, 0, 0] = 0
    archive.add(1, volume=volume, mask=mask)
    cases = archive.cases(neighbors=3).cases
    assert [case.id for case in cases] == ["abus__001_max", "abus__001_n01", "abus__001_p01"]
    assert {case.patient for case in cases} == {"001"} and len({case.part for case in cases}) == 3
    levels = [int(np.median(read_case(case)[0])) for case in cases]
    # Per slice each of them would be stretched to the same grays.
    assert levels == [153, 13, 255]
    areas = [int(read_case(case)[1].sum()) for case in cases]
    assert areas == [400, 240, 320]
    assert len(archive.cases(neighbors=0).cases) == 1


def test_the_official_split_is_kept(archive):
    for number, part in enumerate(PARTS):
        archive.add(number, part)
    assert {case.id: case.split for case in archive.cases().cases} == {
        f"abus__{number:03d}_max": PARTS[part] for number, part in enumerate(PARTS)
    }


def test_equal_numbers_in_two_parts_are_two_patients(archive):
    archive.add(1, "Train")
    archive.add(1, "Test")
    cases = archive.cases().cases
    assert [case.id for case in cases] == ["abus__test_001_max", "abus__train_001_max"]
    assert [case.patient for case in cases] == ["test_001", "train_001"]


@pytest.mark.parametrize("order", [(2, 1, 0), (0, 2, 1), (1, 2, 0)])
def test_a_mask_in_another_axis_order_is_refused(archive, order):
    values, lesion = draw_volume(3, 48, True)
    archive.add(3, volume=values, mask=np.ascontiguousarray(lesion.transpose(order)))
    said = archive.problems()
    assert "MASK_003.nrrd: its axes are in another order than those of" in said
    assert "save the mask in the axis order of the volume" in said
    with pytest.raises(DatasetError, match="another order"):
        find_cases("abus", archive.root)


def test_a_transposed_mask_of_a_cube_is_refused_by_its_header(archive):
    cube = np.random.default_rng(0).integers(0, 256, (24, 24, 24))
    lesion = np.zeros(cube.shape)
    lesion[10:14, 3:9, 12:20] = 1
    archive.add(1, volume=cube, mask=lesion)
    write_volume(
        archive.mask(1), lesion.transpose(0, 2, 1).astype(np.uint8), (*SPACING[1::-1], SPACING[2])
    )
    assert "axes 0, 1, 2 of the volume are axes 1, 0, 2 of the mask" in archive.problems()


@pytest.mark.parametrize("axis", [0, 1])
def test_an_axis_that_is_not_the_sweep_is_refused(archive, axis):
    archive.add(5)
    said = archive.problems(axis=axis)
    assert "DATA_005.nrrd: its axes 0, 1, 2 have steps of 0.2, 0.073, 0.476 mm" in said
    assert f"runs along axis 2 and not along axis {axis}; set options.axis: 2" in said
    (case,) = archive.cases(axis=axis, reformatted=True).cases
    assert read_case(case)[1].shape == ((12, 48) if axis == 0 else (12, 60))


def test_volumes_saved_in_another_axis_order_are_refused(archive):
    for number in (1, 2, 3):
        archive.add(number)
    values, lesion = draw_volume(3, 48, False)
    for path, array in ((archive.data(3), values), (archive.mask(3), lesion)):
        write_volume(path, array.transpose(2, 1, 0).astype(np.uint8), SPACING[::-1])
    said = archive.problems()
    assert (
        "DATA_003.nrrd" in said and "the sweep, with the coarsest steps, runs along axis 0" in said
    )
    assert "DATA_001" not in said and "DATA_002" not in said
    # The same, told by the directions alone: two in-plane axes exchanged.
    for path, array in ((archive.data(3), values), (archive.mask(3), lesion)):
        image = sitk.GetImageFromArray(
            np.ascontiguousarray(array.transpose(0, 2, 1)).astype(np.uint8)
        )
        image.SetSpacing((SPACING[1], SPACING[0], SPACING[2]))
        image.SetDirection((0, 1, 0, 1, 0, 0, 0, 0, 1))
        sitk.WriteImage(image, str(path))
    said = archive.problems()
    assert "DATA_003.nrrd: its axes 0, 1, 2 run along +y, +x, +z" in said
    assert "those of most volumes along +x, +y, +z" in said


def test_slices_of_one_column_are_refused(archive):
    values = draw_volume(1, 48, False)[0]
    archive.add(1, volume=values[:, :, :1], mask=np.ones((12, 48, 1)), spacing=None)
    assert "slices along axis 2 would have 48 x 1 pixels" in archive.problems()


def test_options_out_of_range_are_refused(archive):
    archive.add(1)
    for wrong in (
        {"axis": 3},
        {"neighbors": -1},
        {"percentiles": [99, 1]},
        {"spacing": [1, 0, 1]},
        {"neighbours": 1},
    ):
        with pytest.raises(ConfigError, match=rf"options of layout abus: .*{next(iter(wrong))}"):
            archive.cases(**wrong)


def test_a_header_without_spacing_is_said(archive):
    archive.add(1, spacing=None)
    listing = archive.cases()
    assert listing.problems == []
    assert any("1 volumes tell no spacing: DATA_001.nrrd" in line for line in listing.warnings)
    assert load_case(listing.cases[0]).spacing is None


def test_a_stated_spacing_stands_where_headers_have_none(archive):
    archive.add(1, spacing=None)
    archive.add(2)
    listing = archive.cases(spacing=(0.3, 0.1, 0.9))
    assert listing.problems == [] and not any(
        "tell no spacing" in line for line in listing.warnings
    )
    spacings = [load_case(case).spacing for case in listing.cases]
    assert spacings == [(0.1, 0.3), pytest.approx((SPACING[1], SPACING[0]))]
    # Now the axis can be checked.
    assert "runs along axis 0 and not along axis 2" in archive.problems(spacing=(0.9, 0.1, 0.3))


def test_an_empty_mask_is_an_image_without_a_lesion(archive):
    archive.add(1)
    archive.add(2, mask=np.zeros((12, 48, 60)))
    listing = archive.cases()
    assert any("MASK_002.nrrd: no lesion is marked" in line for line in listing.warnings)
    assert [case.id for case in find_cases("abus", archive.root)] == ["abus__001_max"]
    kept = find_cases("abus", archive.root, include_empty=True)
    assert [case.id for case in kept] == ["abus__001_max", "abus__002_mid"]


def test_masks_of_several_values_are_refused(archive):
    mask = np.zeros((12, 48, 60))
    mask[4, 10:20, 10:20], mask[5, 10:20, 10:20] = 1, 2
    archive.add(1, mask=mask)
    assert "MASK_001.nrrd: not a mask of background and lesion" in archive.problems()


def test_every_wrong_row_and_file_is_listed_at_once(archive):
    for number in range(1, 8):
        cells = {2: {"label": "X"}, 3: {"mask_path": "MASK\\gone.nrrd"}}.get(number, {})
        archive.add(number, **cells)
    archive.data(4).unlink()
    archive.mask(5).write_bytes(archive.mask(5).read_bytes()[:500])
    archive.data(6).write_text("not a volume")
    problems = archive.cases().problems
    for words in (
        *("labels.csv, line 3: case_id '2'", "DATA_003.nrrd: its mask MASK\\gone.nrrd"),
        *("labels.csv, line 5: the volume DATA\\DATA_004.nrrd is missing", "MASK_005.nrrd"),
        "DATA_006.nrrd",
    ):
        assert sum(words in line for line in problems) == 1, words
    assert len(problems) == 5
    assert [case.id for case in archive.cases().cases] == ["abus__001_max", "abus__007_max"]
    archive.data(1).write_bytes(archive.data(1).read_bytes()[:-500])
    with pytest.raises(DatasetError, match=r"DATA_001\.nrrd"):
        find_cases("abus", archive.root)


def test_a_table_that_lacks_a_column_and_a_foreign_folder_are_refused(archive, tmp_path):
    archive.add(1)
    (archive.root / "Train" / "labels.csv").write_text("case_id,label\n1,M\n")
    assert "the first line must name each column once" in archive.problems()
    with pytest.raises(DatasetError, match="is not a TDSC-ABUS 2023 folder"):
        list_cases("abus", tmp_path / "abus" / "Train" / "DATA")


def test_paths_may_begin_at_the_root_but_not_lead_out(archive):
    archive.add(1, data_path="Train/DATA/DATA_001.nrrd", mask_path="Train\\MASK\\MASK_001.nrrd")
    archive.add(2, data_path="..\\Train\\DATA\\DATA_002.nrrd")
    listing = archive.cases()
    assert [case.id for case in listing.cases] == ["abus__001_max"]
    assert len(listing.problems) == 1 and "line 3" in listing.problems[0]


def test_files_beside_the_table_are_named(archive):
    archive.add(1)
    (archive.root / "bbx_labels.csv").touch()
    (archive.root / "Train" / "DATA" / "DATA_099.nrrd").touch()
    assert {path.name for path in archive.cases().unexpected} == {"bbx_labels.csv", "DATA_099.nrrd"}


def test_phantoms_hold_the_oddities_of_the_archive(tmp_path):
    write_phantom("abus", tmp_path / "raw", cases=8, size=48, seed=1, odd_cases=True)
    text = (tmp_path / "raw" / "Train" / "labels.csv").read_text()
    assert "DATA\\DATA_000.nrrd" in text
    listing = list_cases("abus", tmp_path / "raw")
    assert {case.split for case in listing.cases} == {"train", "validation", "test"}
    assert {case.label for case in listing.cases} == {"benign", "malignant"}
    assert sum(case.id.endswith("_mid") for case in listing.cases) == 1
    assert {load_case(case).modes[0] for case in listing.cases} == {
        "slice of uint8",
        "slice of uint16",
    }
