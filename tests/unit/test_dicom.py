"""DICOM files of any kind that ultrasound comes in become the right 8-bit pixels and spacing."""

from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset

from ultrarefiner.datasets.dicom import count_frames, is_dicom, read_dicom, read_dicom_values
from ultrarefiner.datasets.phantoms.manifest import write_dicom
from ultrarefiner.errors import DatasetError

GRAY = np.random.default_rng(0).integers(0, 256, (20, 30)).astype(np.uint8)
SAMPLES = Path(pydicom.__file__).parent / "data" / "test_files"
"""Files of other makers, which pydicom brings along: compressed, palette, several frames."""


def region(delta_y, delta_x, units=3, space=1):
    item = Dataset()
    item.RegionSpatialFormat, item.RegionDataType = space, 1
    item.PhysicalUnitsXDirection = item.PhysicalUnitsYDirection = units
    item.PhysicalDeltaY, item.PhysicalDeltaX = delta_y, delta_x
    return item


def test_eight_bits_stay_as_they_are(tmp_path):
    write_dicom(tmp_path / "a.dcm", GRAY, spacing=0.08)
    raw = read_dicom(tmp_path / "a.dcm")
    assert np.array_equal(raw.pixels, GRAY) and raw.pixels.dtype == np.uint8
    assert raw.spacing == pytest.approx((0.08, 0.08)) and raw.notes == ()
    assert raw.mode == "DICOM MONOCHROME2"


def test_monochrome1_is_inverted(tmp_path):
    write_dicom(tmp_path / "a.dcm", 255 - GRAY, None, PhotometricInterpretation="MONOCHROME1")
    assert np.array_equal(read_dicom(tmp_path / "a.dcm").pixels, GRAY)


def test_deep_images_use_the_range_of_their_bits(tmp_path):
    write_dicom(tmp_path / "a.dcm", GRAY.astype(np.uint16) * 16, None, BitsStored=12, HighBit=11)
    raw = read_dicom(tmp_path / "a.dcm")
    assert np.abs(raw.pixels.astype(int) - GRAY).max() <= 1
    assert raw.notes == (f"DICOM gray by all 12 bits (largest value {16 * int(GRAY.max())})",)
    signed = (GRAY.astype(np.int32) - 128).astype(np.int16) * 256
    write_dicom(tmp_path / "s.dcm", signed.view(np.uint16), None, PixelRepresentation=1)
    assert np.abs(read_dicom(tmp_path / "s.dcm").pixels.astype(int) - GRAY).max() <= 1


def test_windows_and_rescaling_follow_the_standard(tmp_path):
    values = np.tile(np.arange(0, 400, dtype=np.uint16), (4, 1))
    header = {"RescaleSlope": 2, "RescaleIntercept": -100, "BitsStored": 12, "HighBit": 11}
    write_dicom(tmp_path / "a.dcm", values, None, WindowCenter=200, WindowWidth=201, **header)
    raw = read_dicom(tmp_path / "a.dcm")
    # PS3.3 C.11.2.1.2.1: ((x - (c - 0.5)) / (w - 1) + 0.5) of white, x after rescaling.
    share = (values[0] * 2.0 - 100 - 199.5) / 200 + 0.5
    assert np.array_equal(raw.pixels[0], np.rint(np.clip(share, 0, 1) * 255))
    assert "window 99.5 to 300.5" in raw.notes[0]
    several = {"WindowCenter": [200, 900], "WindowWidth": [201, 50]}
    write_dicom(tmp_path / "b.dcm", values, None, **several, **header)
    assert np.array_equal(read_dicom(tmp_path / "b.dcm").pixels, raw.pixels)
    exact = {"WindowCenter": 150, "WindowWidth": 200, "VOILUTFunction": "LINEAR_EXACT"}
    write_dicom(tmp_path / "c.dcm", values, None, BitsStored=12, HighBit=11, **exact)
    share = (values[0] - 150.0) / 200 + 0.5
    assert np.array_equal(
        read_dicom(tmp_path / "c.dcm").pixels[0], np.rint(np.clip(share, 0, 1) * 255)
    )


def test_the_whole_window_changes_nothing(tmp_path):
    write_dicom(tmp_path / "a.dcm", GRAY, None, WindowCenter=128, WindowWidth=256)
    raw = read_dicom(tmp_path / "a.dcm")
    assert np.array_equal(raw.pixels, GRAY) and raw.notes == ()


def test_a_lookup_table_is_applied(tmp_path):
    table = Dataset()
    table.LUTDescriptor = [256, 0, 16]
    table.LUTData = (65535 - 257 * np.arange(256, dtype="<u2")).astype("<u2").tobytes()
    write_dicom(tmp_path / "a.dcm", GRAY, None, VOILUTSequence=[table])
    assert np.array_equal(read_dicom(tmp_path / "a.dcm").pixels, 255 - GRAY)


def test_spacing_comes_from_ultrasound_regions_in_centimetres(tmp_path):
    path = tmp_path / "a.dcm"
    write_dicom(path, GRAY, None, SequenceOfUltrasoundRegions=[region(-0.01, 0.02)])
    assert read_dicom(path).spacing == pytest.approx((0.1, 0.2))
    # A Doppler trace (format 2) and a region in seconds have no size in the plane.
    others = [region(0.5, 0.5, space=2), region(0.5, 0.5, units=4), region(0.01, 0.01)]
    write_dicom(path, GRAY, None, SequenceOfUltrasoundRegions=others)
    assert read_dicom(path).spacing == pytest.approx((0.1, 0.1))
    two = [region(0.01, 0.01), region(0.02, 0.02)]
    write_dicom(path, GRAY, None, SequenceOfUltrasoundRegions=two)
    raw = read_dicom(path)
    assert raw.spacing is None and raw.notes == ("2 regions of different pixel spacing",)


def test_pixel_spacing_is_row_then_column(tmp_path):
    write_dicom(tmp_path / "a.dcm", GRAY, None, PixelSpacing=[0.1, 0.3])
    assert read_dicom(tmp_path / "a.dcm").spacing == (0.1, 0.3)
    write_dicom(tmp_path / "a.dcm", GRAY, 0.05, PixelSpacing=[0.1, 0.3])
    assert read_dicom(tmp_path / "a.dcm").spacing == pytest.approx((0.05, 0.05))
    write_dicom(tmp_path / "a.dcm", GRAY, None)
    assert read_dicom(tmp_path / "a.dcm").spacing is None


def test_one_of_several_frames_must_be_named(tmp_path):
    path = tmp_path / "a.dcm"
    write_dicom(path, np.stack([GRAY, GRAY[::-1]]), None)
    assert count_frames(path) == 2
    assert np.array_equal(read_dicom(path, 1).pixels, GRAY[::-1])
    with pytest.raises(DatasetError, match=r"a\.dcm: holds 2 images; say which"):
        read_dicom(path)
    with pytest.raises(DatasetError, match=r"slice 2 does not exist"):
        read_dicom(path, 2)


@pytest.mark.parametrize(
    "name",
    [
        *("SC_rgb_jpeg_gdcm.dcm", "SC_rgb_jls_lossy_line.dcm", "SC_rgb_jls_lossy_sample.dcm"),
        *("SC_rgb_jpeg_dcmtk.dcm", "SC_rgb_gdcm_KY.dcm", "SC_ybr_full_422_uncompressed.dcm"),
        *("SC_rgb_dcmtk_+eb+cy+np.dcm", "SC_rgb_dcmtk_+eb+cr.dcm", "SC_rgb_rle_16bit.dcm"),
    ],
)
def test_compressed_and_ybr_files_show_the_same_colours(name):
    """JPEG, JPEG Lossless, JPEG-LS, JPEG 2000 and RLE; pydicom alone cannot undo all of them."""
    pixels = read_dicom(SAMPLES / name).pixels
    plain = read_dicom(SAMPLES / "SC_rgb_rle.dcm").pixels
    assert pixels.shape == (100, 100, 3)
    assert np.abs(pixels.astype(int) - plain).mean() < 3


@pytest.mark.parametrize(
    "name", ["RLE", "implicit", "bigendian", "jp2klossless", "jpeg_ls_lossless"]
)
def test_lossless_compression_gives_the_same_gray(name):
    plain = read_dicom(SAMPLES / "MR_small.dcm")
    same = read_dicom(SAMPLES / f"MR_small_{name}.dcm")
    assert np.array_equal(same.pixels, plain.pixels) and same.spacing == plain.spacing


def test_palettes_become_colours():
    raw = read_dicom(SAMPLES / "examples_palette.dcm")
    assert raw.mode == "DICOM PALETTE COLOR" and raw.pixels.shape == (350, 800, 3)
    assert np.ptp(raw.pixels.astype(int), axis=2).max() > 100


def test_a_real_ultrasound_loop():
    raw = read_dicom(SAMPLES / "examples_ybr_color.dcm", 3)
    assert raw.pixels.shape == (240, 320, 3) and raw.spacing == pytest.approx(
        (0.5105, 0.5105), 1e-3
    )


@pytest.mark.parametrize("kept", [0, 100, 200, 0.5, 0.98])
def test_damaged_files_are_refused(tmp_path, kept):
    path = tmp_path / "a.dcm"
    write_dicom(path, GRAY, 0.08)
    data = path.read_bytes()
    path.write_bytes(data[: kept if isinstance(kept, int) else int(kept * len(data))])
    with pytest.raises(DatasetError, match=r"a\.dcm: "):
        read_dicom(path)


@pytest.mark.parametrize("sample", ["SC_rgb_jpeg_gdcm.dcm", "MR_small_jpeg_ls_lossless.dcm"])
def test_damaged_compressed_files_are_refused(tmp_path, sample):
    data = bytearray((SAMPLES / sample).read_bytes())
    start = data.index(b"\xff\xd8\xff") + 4
    data[start : start + 40] = bytes(40)
    (tmp_path / "a.dcm").write_bytes(data)
    with pytest.raises(DatasetError, match=r"a\.dcm: its compression .* export it uncompressed"):
        read_dicom(tmp_path / "a.dcm")


def test_foreign_files_are_refused(tmp_path):
    (tmp_path / "a.dcm").write_text("404: not found" * 30)
    with pytest.raises(DatasetError, match=r"a\.dcm.*does not begin like a DICOM file"):
        read_dicom(tmp_path / "a.dcm")
    with pytest.raises(DatasetError, match=r"gone\.dcm"):
        read_dicom(tmp_path / "gone.dcm")
    with pytest.raises(DatasetError, match="holds no image"):
        read_dicom(SAMPLES / "rtplan.dcm")


def test_files_without_a_suffix_are_known_by_their_first_bytes(tmp_path):
    write_dicom(tmp_path / "IM_0001", GRAY, None)
    (tmp_path / "notes").write_text("nothing")
    assert is_dicom(tmp_path / "IM_0001") and not is_dicom(tmp_path / "notes")
    assert is_dicom(tmp_path / "x.DCM") and not is_dicom(tmp_path / "gone")


def test_masks_keep_their_values(tmp_path):
    values = (GRAY > 128).astype(np.uint8) * 3
    write_dicom(tmp_path / "m.dcm", values, None)
    assert np.array_equal(read_dicom_values(tmp_path / "m.dcm"), values)
    with pytest.raises(DatasetError, match="colour image cannot be a mask"):
        read_dicom_values(SAMPLES / "SC_rgb_rle.dcm")
