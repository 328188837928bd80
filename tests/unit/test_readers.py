"""A layout with files of its own kind gets the same alignment, checks and notes as plain images."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ultrarefiner.datasets import Case
from ultrarefiner.datasets.base import RawImage, RawMask, Reader
from ultrarefiner.datasets.reading import decode_image, load_case, read_rgb, why_empty
from ultrarefiner.errors import DatasetError

GRAY = np.random.default_rng(0).integers(0, 256, (40, 60), np.uint8)
LESION = np.zeros((40, 60), bool)
LESION[10:30, 20:45] = True
WHITE = np.where(LESION, 255, 0).astype(np.uint8)


def case(image, *masks, **more):
    """Return a case whose reader gives these; an error is raised in place of what it stands for."""

    def read_image(case):
        if isinstance(image, DatasetError):
            raise image
        return image

    def read_masks(case):
        if masks and isinstance(masks[0], DatasetError):
            raise masks[0]
        return list(masks)

    files = (Path("truth.json"),)
    return Case("a", Path("volume.dat"), files, reader=Reader(read_image, read_masks), **more)


def test_pixels_of_a_reader_become_image_and_label():
    pixels = load_case(case(RawImage(GRAY, "slice"), RawMask("truth.json, 7", WHITE, "polygon")))
    assert np.array_equal(pixels.image, np.repeat(GRAY[..., None], 3, axis=2))
    assert np.array_equal(pixels.label > 0, LESION) and pixels.label.dtype == np.uint8
    assert pixels.modes == ("slice", "polygon") and pixels.notes == () and pixels.spacing is None


def test_masks_of_a_reader_are_aligned_joined_and_counted():
    large = np.kron(WHITE, np.ones((3, 3), np.uint8))
    other = np.zeros((40, 60), np.uint8)
    other[0:5, 0:5] = 255
    raw = RawImage(GRAY, "DICOM", deepest=4095, notes=("12 bits, window 0 to 4095",))
    masks = RawMask("m1", large, "1"), RawMask("m2", other, "1", ("drawn twice",))
    pixels = load_case(case(raw, *masks))
    assert pixels.label.sum() == LESION.sum() + 25
    assert pixels.notes == (
        "12 bits, window 0 to 4095",
        "mask resized from 120x180",
        "2 masks",
        "drawn twice",
    )
    assert pixels.deepest == 4095


def test_spacing_is_the_tables_before_the_files():
    mask = RawMask("m", WHITE, "L")
    raw = RawImage(GRAY, "DICOM", spacing=(0.1, 0.2))
    assert load_case(case(raw, mask)).spacing == (0.1, 0.2)
    assert load_case(case(raw, mask, spacing=(0.3, 0.3))).spacing == (0.3, 0.3)
    assert load_case(case(replace(raw, spacing=None), mask)).spacing is None


def test_spacing_of_a_plain_file_is_that_of_the_table(tmp_path):
    for name, pixels in (("i.png", GRAY), ("m.png", WHITE)):
        Image.fromarray(pixels).save(tmp_path / name)
    plain = Case("a", tmp_path / "i.png", (tmp_path / "m.png",), spacing=(0.07, 0.08))
    assert load_case(plain).spacing == (0.07, 0.08)
    assert load_case(replace(plain, spacing=None)).spacing is None


def test_a_reader_without_mask_or_lesion_is_an_empty_case():
    blank = case(RawImage(GRAY, "slice"), RawMask("m", np.zeros((40, 60), np.uint8), "1"))
    assert load_case(blank).notes == ("no lesion",)
    assert why_empty(blank, load_case(blank)) == "blank mask"
    none = case(RawImage(GRAY, "slice"))
    assert why_empty(none, load_case(none)) == "blank mask"


@pytest.mark.parametrize(
    ("mask", "says"),
    [
        (LESION.astype(np.uint8), "truth.json, 7: not a 0/255 mask: its largest gray value is 1,"),
        (np.where(LESION, 170, 0).astype(np.uint8), "truth.json, 7: not a 0/255 mask: .*gray 170"),
        (np.ascontiguousarray(WHITE.T), "truth.json, 7: its size 60x40.*volume.dat"),
    ],
)
def test_masks_of_a_reader_are_checked_like_files(mask, says):
    with pytest.raises(DatasetError, match=says):
        load_case(case(RawImage(GRAY, "slice"), RawMask("truth.json, 7", mask, "L")))


def test_all_that_a_reader_finds_wrong_comes_in_one_error():
    broken = DatasetError("volume.dat: truncated")
    several = DatasetError("truth.json:", ["truth.json, 1: no area", "truth.json, 2: no area"])
    with pytest.raises(DatasetError) as error:
        load_case(case(broken, several))
    assert error.value.problems == [
        "volume.dat: truncated",
        "truth.json, 1: no area",
        "truth.json, 2: no area",
    ]


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_deflate"])
@pytest.mark.parametrize("deep", [False, True])
def test_tiff_files_are_plain_images(tmp_path, compression, deep):
    pixels = GRAY.astype(np.uint16) * 257 if deep else GRAY
    Image.fromarray(pixels).save(tmp_path / "a.tif", compression=compression)
    assert np.array_equal(read_rgb(tmp_path / "a.tif")[..., 0], GRAY)
    assert decode_image(tmp_path / "a.tif").deepest == (pixels.max() if deep else None)
    data = (tmp_path / "a.tif").read_bytes()
    for share in (0.3, 0.75):
        (tmp_path / "a.tif").write_bytes(data[: int(len(data) * share)])
        with pytest.raises(DatasetError, match=r"a\.tif: cannot be decoded"):
            read_rgb(tmp_path / "a.tif")


def test_a_tiff_of_several_images_is_refused_instead_of_taking_the_first(tmp_path):
    pages = [Image.fromarray(GRAY), Image.fromarray(WHITE), Image.fromarray(GRAY)]
    pages[0].save(tmp_path / "stack.tiff", save_all=True, append_images=pages[1:])
    with pytest.raises(DatasetError, match=r"stack\.tiff: holds 3 images; save each"):
        read_rgb(tmp_path / "stack.tiff")


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_a_photo_that_viewers_turn_is_refused(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(GRAY).save(tmp_path / "a.jpg", exif=exif)
    if orientation == 1:
        assert decode_image(tmp_path / "a.jpg").pixels.shape == GRAY.shape
    else:
        with pytest.raises(DatasetError, match=f"orientation {orientation}.*save it upright"):
            decode_image(tmp_path / "a.jpg")
