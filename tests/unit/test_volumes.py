"""A volume's axes, gray scale and spacing are read right, and a damaged or permuted one is refused."""

import threading

import numpy as np
import pytest
import SimpleITK as sitk

from ultrarefiner.datasets.volumes import (
    Volume,
    VolumeShelf,
    axis_problem,
    is_volume,
    name_slice,
    parse_slice,
    read_header,
    read_volume,
    spacing_differs,
)
from ultrarefiner.errors import DatasetError

# Indexed [axis 2, axis 1, axis 0].
ARRAY = np.random.default_rng(0).integers(0, 256, (6, 20, 30)).astype(np.uint8)
SPACING = (0.2, 0.07, 0.5)


def save(path, array=ARRAY, spacing=SPACING, direction=None, compress=False):
    image = sitk.GetImageFromArray(array)
    if spacing:
        image.SetSpacing(spacing)
    if direction:
        image.SetDirection(direction)
    sitk.WriteImage(image, str(path), useCompression=compress)
    return path


@pytest.mark.parametrize("suffix", [".nrrd", ".nii", ".nii.gz"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32])
def test_values_axes_and_spacing_come_back(tmp_path, suffix, dtype):
    path = save(tmp_path / f"a{suffix}", ARRAY.astype(dtype))
    assert is_volume(path)
    header = read_header(path)
    assert header.size == (30, 20, 6) and header.spacing == SPACING
    volume = read_volume(path)
    assert np.array_equal(volume.array, ARRAY)
    assert np.array_equal(volume.cut(2, 4), ARRAY[4])
    assert np.array_equal(volume.cut(1, 7), ARRAY[:, 7])
    assert np.array_equal(volume.cut(0, 29), ARRAY[:, :, 29])
    assert header.pixel_spacing(2) == (0.07, 0.2)
    assert header.pixel_spacing(1) == (0.5, 0.2)
    assert header.pixel_spacing(0) == (0.5, 0.07)


def test_axis_zero_is_the_one_whose_values_follow_each_other_in_the_file(tmp_path):
    path = tmp_path / "a.nrrd"
    head = "NRRD0004\ntype: uchar\ndimension: 3\nsizes: 4 3 2\nencoding: raw\n\n"
    path.write_bytes(head.encode() + bytes(range(24)))
    volume = read_volume(path)
    assert volume.header.size == (4, 3, 2) and volume.header.spacing is None
    assert volume.cut(2, 0).tolist() == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]


def test_one_gray_scale_for_all_slices(tmp_path):
    array = np.zeros((3, 8, 8), np.int16)
    array[0, 2:6, 2:6], array[1, 2:6, 2:6], array[2, 2:6, 2:6] = 100, 200, 1000
    volume = read_volume(save(tmp_path / "a.nrrd", array))
    dark, middle, bright = (volume.image(2, index).pixels for index in range(3))
    assert (dark.max(), middle.max(), bright.max()) == (26, 51, 255)
    assert all(pixels.min() == 0 and pixels.dtype == np.uint8 for pixels in (dark, bright))
    assert volume.image(2, 0).notes == ("volume's 0 to 1000 as 0 to 255",)
    assert volume.image(2, 0).spacing == (0.07, 0.2)


def test_eight_bits_that_use_the_range_stay_as_they_are(tmp_path):
    array = ARRAY.copy()
    array[0, 0, :2] = 0, 255
    raw = read_volume(save(tmp_path / "a.nrrd", array)).image(2, 3)
    assert np.array_equal(raw.pixels, array[3]) and raw.notes == ()


def test_percentiles_leave_out_what_sticks_out(tmp_path):
    array = np.tile(np.arange(100, dtype=np.uint16), (4, 5, 1))
    array[0, 0, 0] = 60000
    path = save(tmp_path / "a.nrrd", array)
    assert read_volume(path).image(2, 1).pixels.max() == 0
    pixels = read_volume(path, (1.0, 99.0)).image(2, 1).pixels
    assert pixels.max() == 255 and pixels[0, 50] == pytest.approx(128, abs=3)


def test_values_that_are_no_numbers_are_refused(tmp_path):
    array = ARRAY.astype(np.float32)
    array[2, 2, 2] = np.nan
    with pytest.raises(DatasetError, match=r"a\.nrrd.*no numbers"):
        read_volume(save(tmp_path / "a.nrrd", array)).image(2, 0)


@pytest.mark.parametrize("kept", [0.05, 0.4, 0.9, 0.99])
@pytest.mark.parametrize("suffix", [".nrrd", ".nii", ".nii.gz"])
@pytest.mark.parametrize("compress", [False, True])
def test_truncated_files_are_refused(tmp_path, suffix, kept, compress):
    path = save(tmp_path / f"a{suffix}", compress=compress)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(DatasetError, match=rf"a\{suffix}: .*truncated"):
        read_volume(path)


def test_absent_and_foreign_files_are_refused(tmp_path):
    with pytest.raises(DatasetError, match=r"gone\.nrrd: the file is missing"):
        read_volume(tmp_path / "gone.nrrd")
    for name in ("a.nrrd", "a.nii", "a.nii.gz"):
        (tmp_path / name).write_text("404: not found")
        with pytest.raises(DatasetError, match=name):
            read_volume(tmp_path / name)
        (tmp_path / name).unlink()


def test_a_compressed_file_beside_a_plain_one_is_refused(tmp_path):
    # The library below would read a.nii where a.nii.gz was asked for.
    save(tmp_path / "a.nii.gz")
    save(tmp_path / "a.nii", ARRAY * 0)
    with pytest.raises(DatasetError, match=r"a\.nii lies beside it"):
        read_volume(tmp_path / "a.nii.gz")
    (tmp_path / "a.nii").unlink()
    assert np.array_equal(read_volume(tmp_path / "a.nii.gz").array, ARRAY)


def test_colour_and_time_series_are_refused(tmp_path):
    colour = sitk.GetImageFromArray(np.zeros((4, 5, 6, 3), np.uint8), isVector=True)
    sitk.WriteImage(colour, str(tmp_path / "c.nrrd"))
    series = sitk.GetImageFromArray(np.zeros((2, 4, 5, 6), np.uint8))
    sitk.WriteImage(series, str(tmp_path / "t.nii"))
    for name in ("c.nrrd", "t.nii"):
        with pytest.raises(DatasetError, match=f"{name}.*a gray volume of at most 3 axes"):
            read_header(tmp_path / name)


def test_an_image_of_two_axes_is_a_volume_of_one_slice(tmp_path):
    volume = read_volume(save(tmp_path / "a.nii", ARRAY[0], SPACING[:2]))
    assert volume.header.size == (30, 20, 1)
    assert np.array_equal(volume.cut(2, 0), ARRAY[0])
    assert volume.header.pixel_spacing(2) == (0.07, 0.2)


def headers(tmp_path, image, mask):
    return (
        read_header(save(tmp_path / "image.nrrd", **image)),
        read_header(save(tmp_path / "mask.nrrd", **mask)),
    )


def test_permuted_sizes_are_told_from_other_sizes(tmp_path):
    turned = np.ascontiguousarray(ARRAY.transpose(2, 1, 0))
    said = axis_problem(*headers(tmp_path, {}, {"array": turned}))
    assert "mask.nrrd: its axes are in another order" in said
    assert "axes 0, 1, 2 of the volume are axes 2, 1, 0 of the mask" in said
    other = axis_problem(*headers(tmp_path, {}, {"array": ARRAY[:5]}))
    assert "30 x 20 x 5 is not 30 x 20 x 6" in other and "another order" not in other
    assert axis_problem(*headers(tmp_path, {}, {})) is None


def test_a_transposed_cube_is_found_by_its_spacing(tmp_path):
    cube = np.zeros((8, 8, 8), np.uint8)
    turned = {"array": cube, "spacing": (0.07, 0.2, 0.5)}
    pair = headers(tmp_path, {"array": cube}, turned)
    assert "axes 0, 1, 2 of the volume are axes 1, 0, 2 of the mask" in axis_problem(*pair)
    # A header without spacing says nothing; another spacing is worth a warning only.
    assert (
        axis_problem(*headers(tmp_path, {"array": cube}, {"array": cube, "spacing": None})) is None
    )
    other = headers(tmp_path, {"array": cube}, {"array": cube, "spacing": (0.3, 0.3, 0.3)})
    assert axis_problem(*other) is None and spacing_differs(*other)
    assert not spacing_differs(*headers(tmp_path, {}, {"spacing": (0.2001, 0.07, 0.5)}))


def test_axes_that_run_elsewhere_in_space_are_found(tmp_path):
    cube = np.zeros((8, 8, 8), np.uint8)
    for direction in [(0, 1, 0, 1, 0, 0, 0, 0, 1), (1, 0, 0, 0, 1, 0, 0, 0, -1)]:
        pair = headers(tmp_path, {"array": cube}, {"array": cube, "direction": direction})
        assert "run along" in axis_problem(*pair)


def test_lesion_areas_along_each_axis(tmp_path):
    mask = np.zeros(ARRAY.shape, np.uint8)
    mask[2:4, 5:15, 3] = 1
    mask[3, 5:15, 4:6] = 1
    volume = read_volume(save(tmp_path / "m.nrrd", mask))
    assert volume.lesion_areas(2).tolist() == [0, 0, 10, 30, 0, 0]
    assert np.array_equal(volume.lesion_areas(1), (mask > 0).sum(axis=(0, 2)))
    assert np.array_equal(volume.lesion_areas(0), (mask > 0).sum(axis=(0, 1)))
    assert np.array_equal(volume.lesion(2, 3), mask[3] > 0)


def test_masks_of_several_values_need_a_choice(tmp_path):
    mask = np.zeros(ARRAY.shape, np.uint8)
    mask[1, :5], mask[2, :5] = 1, 2
    volume = read_volume(save(tmp_path / "m.nrrd", mask))
    with pytest.raises(DatasetError, match=r"m\.nrrd: not a mask.*from 0 to 2"):
        volume.lesion_areas(2)
    assert volume.lesion_areas(2, [2]).tolist() == [0, 0, 150, 0, 0, 0]
    assert volume.lesion_areas(2, [1, 2]).sum() == 300
    for value in (1, 255, -1):
        plain = np.where(mask == 1, value, 0).astype(np.int16)
        assert read_volume(save(tmp_path / "p.nrrd", plain)).lesion_areas(2).sum() == 150
    assert read_volume(save(tmp_path / "p.nrrd", mask * 0)).lesion_areas(2).sum() == 0


def test_names_of_slices():
    assert parse_slice(name_slice(1, 57)) == (1, 57)
    assert sorted(name_slice(2, index) for index in (10, 9, 100)) == [
        name_slice(2, index) for index in (9, 10, 100)
    ]


def test_the_shelf_reads_once_and_again_when_the_file_changed(tmp_path):
    path = save(tmp_path / "a.nrrd")
    shelf = VolumeShelf(keep=1)
    found: list[Volume] = []
    threads = [threading.Thread(target=lambda: found.append(shelf.read(path))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 6 and len(set(map(id, found))) == 1
    save(path, ARRAY[:4])
    assert shelf.read(path).array.shape[0] == 4
    path.write_bytes(path.read_bytes()[:-100])
    for _ in range(2):
        with pytest.raises(DatasetError, match=r"a\.nrrd"):
            shelf.read(path)
