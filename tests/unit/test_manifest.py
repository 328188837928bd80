"""A manifest brings images of any kind with what its columns tell, and names each wrong line."""

import numpy as np
import pytest
from PIL import Image

from ultrarefiner.datasets import find_cases, read_case
from ultrarefiner.datasets.layouts import list_cases
from ultrarefiner.datasets.phantom import write_phantom
from ultrarefiner.datasets.phantoms.manifest import write_dicom
from ultrarefiner.datasets.phantoms.volumes import draw_volume, write_volume
from ultrarefiner.datasets.reading import load_case
from ultrarefiner.errors import ConfigError, DatasetError

GRAY = np.random.default_rng(0).integers(0, 256, (40, 60)).astype(np.uint8)
LESION = np.zeros((40, 60), bool)
LESION[10:25, 20:45] = True


class Folder:
    """Files and a table under way."""

    def __init__(self, root):
        self.root = root
        root.mkdir()
        self.lines = ["image,mask,patient,label,spacing,slice,split"]

    def picture(self, name, pixels=GRAY):
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
        return name

    def mask(self, name, mask=LESION, values=(0, 255)):
        return self.picture(name, np.where(mask, values[1], values[0]).astype(np.uint8))

    def volume(self, name, array, spacing=(0.08, 0.05, 0.5)):
        write_volume(self.root / name, array.astype(np.uint8), spacing)
        return name

    def row(self, image, mask="", *rest):
        self.lines.append(",".join([image, mask, *map(str, rest)]))

    def listing(self, **options):
        (self.root / "manifest.csv").write_text("\n".join(self.lines) + "\n")
        return list_cases("manifest", self.root, options=options)

    def problems(self, **options):
        return "\n".join(self.listing(**options).problems)


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path / "mine")


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".tiff", ".PNG"])
def test_pictures_of_each_format(folder, suffix):
    folder.row(folder.picture(f"a{suffix}"), folder.mask("m.png"), "P1", "Benign", 0.1)
    (case,) = folder.listing().cases
    image, label = read_case(case)
    assert np.array_equal(image[..., 0], GRAY) and np.array_equal(label > 0, LESION)
    assert (case.id, case.patient, case.label) == ("manifest__a", "P1", "benign")
    assert load_case(case).spacing == (0.1, 0.1)


def test_dicom_with_and_without_a_suffix(folder):
    folder.mask("m.png")
    for name in ("a.dcm", "IM_0002"):
        write_dicom(folder.root / name, GRAY, 0.07)
        folder.row(name, "m.png")
    write_dicom(folder.root / "m.dcm", LESION.astype(np.uint8), None)
    folder.row(folder.picture("b.png"), "m.dcm")
    for case in folder.listing().cases:
        image, label = read_case(case)
        assert np.array_equal(image[..., 0], GRAY) and np.array_equal(label > 0, LESION)
    assert [case.id for case in folder.listing().cases] == [
        *("manifest__a", "manifest__b"),
        "manifest__im_0002",
    ]
    spacings = [load_case(case).spacing for case in folder.listing().cases]
    assert spacings == [pytest.approx((0.07, 0.07)), None, pytest.approx((0.07, 0.07))]


def test_the_table_overrules_the_header_in_spacing(folder):
    write_dicom(folder.root / "a.dcm", GRAY, 0.07)
    folder.row("a.dcm", folder.mask("m.png"), "", "", '"0.2, 0.3"')
    assert load_case(folder.listing().cases[0]).spacing == (0.2, 0.3)
    folder.lines = ["image,mask,spacing_y_mm,spacing_x_mm", "a.dcm,m.png,0.4,0.5"]
    assert load_case(folder.listing().cases[0]).spacing == (0.4, 0.5)


def test_frames_of_a_dicom_loop_are_cases(folder):
    write_dicom(folder.root / "a.dcm", np.stack([GRAY, GRAY[::-1]]), None)
    folder.mask("m.png")
    for frame in (0, 1):
        folder.row("a.dcm", "m.png", "P1", "", "", frame)
    cases = folder.listing().cases
    assert [case.id for case in cases] == ["manifest__a_0000", "manifest__a_0001"]
    assert np.array_equal(read_case(cases[1])[0][..., 0], GRAY[::-1])
    folder.lines[2:] = ["a.dcm,m.png,P1"]
    assert "line 3: " in folder.problems() and "holds 2 images; say which" in folder.problems()


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd"])
def test_volumes_give_the_slice_of_the_largest_lesion_or_the_one_asked_for(folder, suffix):
    values, mask = draw_volume(4, 48, True)
    image, label = folder.volume(f"v{suffix}", values), folder.volume(f"m{suffix}", mask)
    folder.row(image, label, "P1")
    folder.row(image, label, "P1", "", "", 4)
    largest = int(mask.sum(axis=(1, 2)).argmax())
    cases = folder.listing().cases
    assert [case.id for case in cases] == sorted([f"manifest__v_{largest:04d}", "manifest__v_0004"])
    for case, index in zip(cases, sorted([largest, 4]), strict=True):
        assert np.array_equal(read_case(case)[1] > 0, mask[index])
        assert load_case(case).spacing == pytest.approx((0.05, 0.08))
    (other,) = Folder.listing(folder_with(folder, image, label), axis=1).cases
    index = int(mask.sum(axis=(0, 2)).argmax())
    assert np.array_equal(read_case(other)[1] > 0, mask[:, index])
    assert load_case(other).spacing == pytest.approx((0.5, 0.08))


def folder_with(folder, *row):
    folder.lines = [folder.lines[0]]
    folder.row(*row)
    return folder


def test_a_volume_of_one_slice_needs_no_axis_and_takes_a_picture_as_its_mask(folder):
    folder.row(folder.volume("flat.nii", GRAY[None]), folder.mask("m.png"))
    folder.row(folder.volume("side.nii", GRAY[:, None]), "m.png")
    folder.row(folder.picture("p.png"), folder.volume("mask.nii.gz", LESION[None]))
    for case in folder.listing().cases:
        image, label = read_case(case)
        assert image.shape == (40, 60, 3) and np.array_equal(label > 0, LESION)


def test_a_volume_mask_in_another_axis_order_is_refused(folder):
    values, mask = draw_volume(4, 48, True)
    folder.row(
        folder.volume("v.nii", values), folder.volume("m.nii", mask.transpose(0, 2, 1).copy())
    )
    said = folder.problems()
    assert "line 2: " in said and "its axes are in another order" in said


def test_a_slice_that_is_not_known_is_asked_for(folder):
    values, mask = draw_volume(4, 48, True)
    folder.volume("v.nii", values)
    folder.row("v.nii", folder.mask("m.png", np.ones((48, 60), bool)))
    folder.row("v.nii", folder.volume("empty.nii", mask * 0))
    folder.row("v.nii", folder.volume("m.nii", mask), "", "", "", 12)
    problems = folder.listing().problems
    for line, words in enumerate(
        (
            "along axis 2; say which one",
            "marks no lesion, so it does not tell",
            "slice 12 does not",
        ),
        start=2,
    ):
        assert sum(f"line {line}: " in text and words in text for text in problems) == 1


def test_several_masks_are_joined_and_none_means_no_lesion(folder):
    other = np.zeros_like(LESION)
    other[30:35, 3:9] = True
    folder.row(folder.picture("a.png"), f"{folder.mask('m1.png')}; {folder.mask('m2.png', other)}")
    folder.row(folder.picture("b.png", GRAY[::-1]))
    (case,) = find_manifest(folder)
    assert np.array_equal(read_case(case)[1] > 0, LESION | other)
    kept = find_manifest(folder, include_empty=True)
    assert [case.label for case in kept] == [None, "normal"]


def find_manifest(folder, include_empty=False, **options):
    folder.listing()
    return find_cases("manifest", folder.root, include_empty=include_empty, options=options)


def test_label_maps_need_the_values_that_are_lesion(folder):
    values = np.zeros(GRAY.shape, np.uint8)
    values[10:20, 10:20], values[20:30, 20:40] = 1, 2
    folder.row(folder.picture("a.png"), folder.picture("map.png", values))
    with pytest.raises(DatasetError, match="largest gray value is 2"):
        find_manifest(folder)
    for wanted in ([1], [2], [1, 2]):
        (case,) = find_manifest(folder, mask_value=wanted)
        assert np.array_equal(read_case(case)[1] > 0, np.isin(values, wanted))
    palette = Image.fromarray(values).convert("P")
    palette.putpalette([0, 0, 0, 200, 0, 0, 0, 200, 0])
    palette.save(folder.root / "map.png")
    (case,) = find_manifest(folder, mask_value=[2])
    assert np.array_equal(read_case(case)[1] > 0, values == 2)
    folder.picture("map.png", np.dstack([values, values, values * 0]))
    with pytest.raises(DatasetError, match=r"map\.png: has colours"):
        find_manifest(folder, mask_value=[2])
    for name in ("map.nii.gz", "map.dcm"):
        if name.endswith("dcm"):
            write_dicom(folder.root / name, values, None)
        else:
            folder.volume(name, values[None])
        folder_with(folder, "a.png", name)
        with pytest.raises(DatasetError, match="several values"):
            find_manifest(folder)
        (case,) = find_manifest(folder, mask_value=[1])
        assert np.array_equal(read_case(case)[1] > 0, values == 1)


def test_names_are_files_names_or_paths_where_those_repeat_or_the_column_case(folder):
    folder.mask("m.png")
    for name in ("p1/us.png", "p2/us.png", "p2/other.1.png"):
        folder.row(folder.picture(name), "m.png")
    assert [case.id for case in folder.listing().cases] == [
        *("manifest__other_1", "manifest__p1_us"),
        "manifest__p2_us",
    ]
    folder.lines = ["case,image,mask", "first,p1/us.png,m.png", "second,p2/us.png,m.png"]
    assert [case.id for case in folder.listing().cases] == ["manifest__first", "manifest__second"]


def test_tables_of_other_programs(folder):
    folder.picture("a/b.png")
    folder.mask("a/m.png")
    (folder.root / "table.csv").write_bytes(
        "\ufeffImage ; Mask ;SPLIT\r\na\\b.png;a\\m.png;val\r\n\r\n".encode()
    )
    (case,) = list_cases("manifest", folder.root, options={"file": "table.csv"}).cases
    assert case.split == "validation" and read_case(case)[1].any()
    (folder.root / "a" / "table.csv").write_text("image,mask\nb.png,../a/m.png\n")
    (case,) = list_cases("manifest", folder.root, options={"file": "a/table.csv"}).cases
    assert case.image == folder.root / "a" / "b.png"


def test_every_wrong_line_is_listed_at_once(folder, tmp_path):
    folder.picture("../outside.png")
    folder.picture("a.png")
    folder.mask("m.png")
    (folder.root / "notes.txt").write_text("no image")
    wrong = {
        "gone.png,m.png": "gone.png does not exist",
        "a.png,gone.png": "mask ",
        ",m.png": "image is empty",
        "../outside.png,m.png": "is not in",
        "notes.txt,m.png": "of no kind that can be read",
        "a.png,m.png,,,-1": "spacing '-1'",
        "a.png,m.png,,,1 2 3": "spacing '1 2 3'",
        "a.png,m.png,,,,x": "slice 'x'",
        "a.png,m.png,,,,,fold1": "split 'fold1'",
        "a.png,,,malignant": "has no mask, which means no lesion, but the label malignant",
        "a.png,m.png,,,,3": "slice 3 does not exist",
    }
    folder.lines += [*wrong, "a.png,m.png,P1", "a.png,m.png,P2"]
    problems = folder.listing().problems
    for line, words in enumerate(wrong.values(), start=2):
        assert (
            sum(f"manifest.csv, line {line}: " in text and words in text for text in problems) == 1
        )
    last = [text for text in problems if f"line {len(wrong) + 3}: " in text]
    assert len(last) == 1 and "already" in last[0]
    assert len(problems) == len(wrong) + 1


def test_a_division_must_name_every_row(folder):
    folder.mask("m.png")
    for name, split in (("a.png", "train"), ("b.png", "")):
        folder.row(folder.picture(name), "m.png", "", "", "", "", split)
    assert "the column split is empty for b.png" in folder.problems()


@pytest.mark.parametrize(
    "text", ["", "image\na.png\n", "image,mask,image\n", "image,mask\na.png,m.png,P1\n"]
)
def test_other_tables_are_refused(folder, text):
    (folder.root / "manifest.csv").write_text(text)
    with pytest.raises(DatasetError, match=r"manifest\.csv: "):
        list_cases("manifest", folder.root)


def test_a_missing_table_and_wrong_options_are_refused(folder):
    with pytest.raises(DatasetError, match=r"manifest\.csv does not exist. Set the dataset's root"):
        list_cases("manifest", folder.root)
    for wrong in ({"axis": 3}, {"mask_value": []}, {"table": "a.csv"}, {"file": "../a.csv"}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            folder.listing(**wrong)


def test_a_decimal_comma_is_not_taken_for_two_numbers(folder):
    folder.picture("a.png")
    folder.mask("m.png")
    for cell in ("1,5", "0,08"):
        folder.lines = ["image;mask;spacing", f"a.png;m.png;{cell}"]
        assert f"'{cell}': write a decimal point" in folder.problems()
    folder.lines = ["image;mask;spacing", "a.png;m.png;0.2,0.3"]
    assert folder.listing().cases[0].spacing == (0.2, 0.3)


def test_empty_columns_at_the_end_of_a_sheet_are_nothing(folder):
    folder.picture("a.png")
    folder.mask("m.png")
    folder.lines = ["image,mask,patient,,", "a.png,m.png,P1,,", "", ",,,,"]
    listing = folder.listing()
    assert listing.problems == [] and [case.patient for case in listing.cases] == ["P1"]
    folder.lines = ["image,mask,,", "a.png,m.png,P1,"]
    with pytest.raises(DatasetError, match="line 2 has more values than the 2 columns"):
        folder.listing()


@pytest.mark.parametrize("cell", [".", "./", "..", "../a.png"])
def test_a_folder_is_no_image(folder, cell):
    folder.row(cell, folder.mask("m.png"))
    folder.row(folder.picture("a.png"), "m.png")
    assert folder.listing().problems and "line 2: image" in folder.problems()


def test_columns_that_are_not_used_and_missing_patients_are_said(folder):
    folder.picture("a.png")
    folder.mask("m.png")
    folder.lines = ["image,mask,patinet", "a.png,m.png,P1"]
    warnings = "\n".join(folder.listing().warnings)
    assert "patinet" in warnings and "1 images have no patient: a.png" in warnings


@pytest.mark.parametrize("name", ["a.tif", "a.dcm", "a.nii.gz", "m.nii.gz"])
def test_damaged_files_are_named(folder, name):
    folder.picture("a.tif")
    write_dicom(folder.root / "a.dcm", GRAY, None)
    folder.volume("a.nii.gz", GRAY[None])
    folder.volume("m.nii.gz", LESION[None])
    folder.row("a.nii.gz" if name.startswith("m") else name, "m.nii.gz", "", "", "", 0)
    path = folder.root / name
    path.write_bytes(path.read_bytes()[:-60])
    with pytest.raises(DatasetError, match=name.replace(".", r"\.")):
        find_manifest(folder)


def test_phantoms_hold_all_kinds_of_files(tmp_path):
    write_phantom("manifest", tmp_path / "raw", cases=15, size=48, seed=1, odd_cases=True)
    listing = list_cases("manifest", tmp_path / "raw")
    kinds = {case.image.suffix for case in listing.cases}
    assert kinds == {".png", ".tif", ".dcm", ".gz"}
    modes = {load_case(case).modes[0] for case in listing.cases}
    assert {"L", "I;16", "DICOM MONOCHROME1", "DICOM MONOCHROME2", "slice of uint8"} == modes
    assert any(len(case.masks) == 2 for case in listing.cases)
    assert any(case.part == "frame 0001" for case in listing.cases)
    assert all(load_case(case).spacing for case in listing.cases if case.masks)
