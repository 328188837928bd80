"""Every raw file of any mode becomes the right RGB image and 0/1 label, or is refused by name."""

import cv2
import numpy as np
import pytest
from PIL import Image

from ultrarefiner.datasets import Case, find_cases, read_case
from ultrarefiner.datasets.phantom import draw_phantom
from ultrarefiner.datasets.reading import align_mask, load_case, read_gray_mask, read_rgb
from ultrarefiner.errors import DatasetError

GRAY = np.random.default_rng(0).integers(0, 256, (40, 60), np.uint8)
LESION = np.zeros((40, 60), bool)
LESION[10:30, 20:45] = True
WHITE = np.where(LESION, 255, 0).astype(np.uint8)


def disc(height: int, width: int) -> np.ndarray:
    """Return the gray of an ellipse drawn with anti-aliased edges."""
    rows, columns = np.mgrid[0:height, 0:width]
    radius = np.hypot((rows - height / 2) / height, (columns - width / 2) / width)
    return np.clip((0.3 - radius) * max(height, width) * 255 + 128, 0, 255).astype(np.uint8)


def save(path, pixels, mode=None, **options):
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(path, **options)
    return path


def with_alpha(gray, alpha, mode):
    image = Image.fromarray(gray).convert(mode)
    image.putalpha(Image.fromarray(alpha))
    return image


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "P", "I;16"])
def test_image_modes_give_the_same_rgb(tmp_path, mode):
    path = tmp_path / "image.png"
    if mode == "I;16":
        Image.fromarray(GRAY.astype(np.uint16) * 257).save(path)
    elif mode in ("LA", "RGBA"):
        # Alpha 0 over half of the image: transparent pixels keep their gray.
        with_alpha(GRAY, np.where(LESION, 0, 255).astype(np.uint8), mode).save(path)
    elif mode == "P":
        save(path, GRAY, "P", transparency=bytes([0, 128] + [255] * 254))
    else:
        save(path, GRAY, mode)
    with Image.open(path) as file:
        assert file.mode == mode
    image = read_rgb(path)
    assert image.dtype == np.uint8 and image.shape == (40, 60, 3)
    assert np.array_equal(image, np.repeat(GRAY[..., None], 3, axis=2))


def test_colours_stay_red_green_blue(tmp_path):
    pixels = np.random.default_rng(1).integers(0, 256, (20, 30, 3), np.uint8)
    assert np.array_equal(read_rgb(save(tmp_path / "a.png", pixels)), pixels)
    assert np.array_equal(read_rgb(save(tmp_path / "a.bmp", pixels)), pixels)


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_jpeg_images(tmp_path, mode):
    smooth = cv2.resize(GRAY[:5, :8], (64, 40), interpolation=cv2.INTER_CUBIC)
    image = read_rgb(save(tmp_path / "a.jpg", smooth, mode, quality=95))
    assert image.shape == (40, 64, 3)
    assert np.abs(image[..., 0].astype(int) - smooth).max() < 25


def test_one_bit_images(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(LESION).save(path)
    assert np.array_equal(read_rgb(path)[..., 1], WHITE)


def test_sixteen_bits_that_hold_eight_are_kept(tmp_path):
    path = save(tmp_path / "a.png", GRAY.astype(np.uint16))
    assert np.array_equal(read_rgb(path)[..., 0], GRAY)


@pytest.mark.parametrize("kept", [0, 20, 0.5, 0.95])
@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_damaged_files_are_named_with_a_cure(tmp_path, kept, suffix):
    path = save(tmp_path / f"benign (7){suffix}", np.dstack([GRAY] * 3))
    data = path.read_bytes()
    path.write_bytes(data[: kept if isinstance(kept, int) else int(len(data) * kept)])
    with pytest.raises(DatasetError, match=r"benign \(7\).*unpack or download it again"):
        read_rgb(path)


def test_flipped_byte_and_text_file_are_refused(tmp_path):
    path = save(tmp_path / "a.png", GRAY)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(DatasetError, match=r"a\.png"):
        read_rgb(path)
    path.write_text("404: not found")
    with pytest.raises(DatasetError, match=r"a\.png"):
        read_rgb(path)
    with pytest.raises(DatasetError, match=r"gone\.png"):
        read_rgb(tmp_path / "gone.png")
    Image.fromarray(GRAY.astype(np.float32)).save(tmp_path / "a.tiff")
    with pytest.raises(DatasetError, match="floating-point"):
        read_rgb(tmp_path / "a.tiff")


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16", "I;16 of 0/255"])
def test_mask_modes_give_the_same_label(tmp_path, mode):
    image, mask = save(tmp_path / "i.png", GRAY), tmp_path / "m.png"
    if mode == "P":
        file = Image.fromarray(LESION.astype(np.uint8)).convert("P")
        file.putpalette([0, 0, 0, 255, 255, 255])
        file.save(mask)
    elif mode.startswith("I;16"):
        save(mask, WHITE.astype(np.uint16) * (1 if "of" in mode else 257))
    elif mode in ("LA", "RGBA"):
        with_alpha(WHITE, np.full_like(WHITE, 128), mode).save(mask)
    else:
        save(mask, WHITE, mode)
    pixels = load_case(Case("a", image, (mask,)))
    assert pixels.modes[1] == mode.split(" ")[0]
    assert np.array_equal(pixels.label, LESION) and pixels.label.dtype == np.uint8
    assert pixels.notes == ()


def test_threshold_is_128(tmp_path):
    edge = np.where(LESION, 255, 0).astype(np.uint8)
    edge[10:12, 20:45], edge[28:30, 20:45] = 127, 128
    image, mask = save(tmp_path / "i.png", GRAY), save(tmp_path / "m.png", edge)
    label = read_case(Case("a", image, (mask,)))[1]
    expected = LESION.copy()
    expected[10:12] = False
    assert np.array_equal(label > 0, expected)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({1: LESION}, "largest gray value is 1,"),
        ({100: LESION}, "largest gray value is 100,"),
        ({127: LESION}, "largest gray value is 127,"),
    ],
)
def test_masks_that_never_reach_128_are_refused(tmp_path, values, says):
    pixels = np.zeros(LESION.shape, np.uint8)
    for value, where in values.items():
        pixels[where] = value
    with pytest.raises(DatasetError, match=says) as error:
        read_gray_mask(save(tmp_path / "m.png", pixels))
    assert "m.png" in str(error.value) and "255" in str(error.value)


def test_class_indices_are_refused_even_when_one_is_bright(tmp_path):
    pixels = np.zeros((40, 60), np.uint8)
    pixels[5:15, 5:15], pixels[20:35, 20:50] = 85, 170
    with pytest.raises(DatasetError, match=r"flat patches of gray 85, 170"):
        read_gray_mask(save(tmp_path / "m.png", pixels))
    pixels = WHITE.copy()
    pixels[20:25, 25:30] = 128
    with pytest.raises(DatasetError, match="flat patches of gray 128"):
        read_gray_mask(save(tmp_path / "m.png", pixels))


@pytest.mark.parametrize("value", [1, 2, 3, 15, 85, 100, 120, 200, 240])
@pytest.mark.parametrize("shape", ["second lesion", "4x4 block", "band", "inside"])
def test_a_third_value_is_refused_wherever_it_is(tmp_path, value, shape):
    lesion = np.where(disc(200, 240) >= 128, 255, 0).astype(np.uint8)
    if shape == "second lesion":
        lesion[10:20, 15:30] = value
    elif shape == "4x4 block":
        lesion[10:14, 15:19] = value
    elif shape == "band":
        ring = cv2.dilate(lesion, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (7, 7)))
        lesion[(ring > 0) & (lesion == 0)] = value
    else:
        lesion[95:105, 110:130] = value
    with pytest.raises(DatasetError, match=rf"m\.png: not a 0/255 mask: .*of gray {value} "):
        read_gray_mask(save(tmp_path / "m.png", lesion))


@pytest.mark.parametrize("sigma", [3, 5, 10, 20, 40])
def test_heat_maps_are_refused(tmp_path, sigma):
    rows, columns = np.mgrid[:200, :240]
    heat = 255 * np.exp(-((rows - 100) ** 2 + (columns - 120) ** 2) / 2 / sigma**2)
    with pytest.raises(DatasetError, match="neither dark nor bright") as error:
        read_gray_mask(save(tmp_path / "m.png", heat.astype(np.uint8)))
    assert "m.png" in str(error.value)


def test_noise_and_images_under_the_name_of_a_mask_are_refused(tmp_path):
    random = np.random.default_rng(5)
    pictures = {
        "uniform": random.integers(0, 256, (100, 120), np.uint8),
        "normal": np.clip(random.normal(128, 60, (100, 120)), 0, 255).astype(np.uint8),
        "ramp": np.tile(np.arange(256, dtype=np.uint8), (40, 1)),
    }
    for index in range(6):
        pictures[f"phantom {index}"] = draw_phantom(index, 96, index % 2 == 1)[0]
    for name, pixels in pictures.items():
        with pytest.raises(DatasetError, match=r"m\.png: not a 0/255 mask"):
            read_gray_mask(save(tmp_path / "m.png", pixels))
            pytest.fail(name)


def test_the_real_stu_images_are_no_masks_and_the_masks_are(stu_root, tmp_path):
    for case in find_cases("stu", stu_root):
        with pytest.raises(DatasetError, match="not a 0/255 mask"):
            read_gray_mask(case.image)
        clean = read_gray_mask(case.masks[0])[0]
        for quality in (30, 40, 70, 95):
            read_gray_mask(save(tmp_path / "m.jpg", clean, quality=quality))


@pytest.mark.parametrize("quality", range(30, 96, 5))
def test_jpeg_noise_of_lesions_of_all_sizes_passes(tmp_path, quality):
    rows, columns = np.ogrid[:96, :120]
    masks = [((rows - 45) ** 2 + (columns - 60) ** 2 <= r * r) for r in (1, 2, 3, 5, 8, 15, 30)]
    for side in (4, 8, 16, 33):
        for offset in (0, 3):
            square = np.zeros((96, 120), bool)
            square[24 + offset : 24 + offset + side, 24 : 24 + 2 * side] = True
            masks.append(square)
    for mask in masks:
        for pixels in (np.where(mask, 255, 0), np.where(mask, 0, 255)):
            read_gray_mask(save(tmp_path / "m.jpg", pixels.astype(np.uint8), quality=quality))


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_small_lesions_drawn_with_few_grays_pass(tmp_path, factor):
    # Sub-pixels averaged: edges of at most factor squared + 1 grays, one pixel wide.
    for side in (1, 2, 5, 12, 40):
        fine = np.zeros((100 * factor, 100 * factor), np.uint8)
        fine[31 : 31 + side * factor, 41 : 41 + side * factor] = 255
        gray = cv2.resize(fine, (100, 100), interpolation=cv2.INTER_AREA)
        if gray.max() >= 128:
            read_gray_mask(save(tmp_path / "m.png", gray))


def test_coloured_masks_are_read_by_their_gray(tmp_path):
    red, green = np.zeros((2, 40, 60, 3), np.uint8)
    red[LESION], green[LESION] = (255, 0, 0), (0, 255, 0)
    with pytest.raises(DatasetError, match="painted in a colour whose gray value is 76"):
        read_gray_mask(save(tmp_path / "red.png", red))
    # Green is gray 150: above the threshold, yet a flat patch that is not white.
    with pytest.raises(DatasetError, match="flat patches of gray 150"):
        read_gray_mask(save(tmp_path / "green.png", green))


@pytest.mark.parametrize("quality", [30, 60, 95])
def test_jpeg_noise_is_no_other_value(tmp_path, quality):
    clean = np.where(disc(150, 200) >= 128, 255, 0).astype(np.uint8)
    gray = read_gray_mask(save(tmp_path / "m.jpg", clean, quality=quality))[0]
    assert len(np.unique(gray)) > 10
    assert np.mean((gray >= 128) == (clean >= 128)) > 0.999


def test_anti_aliased_and_blurred_edges_are_fine(tmp_path):
    for name, gray in {
        "sharp": disc(420, 420),
        "blurred": cv2.GaussianBlur(disc(200, 300), (0, 0), 3),
        "enlarged four times": np.kron(disc(80, 90), np.ones((4, 4), np.uint8)),
        "at the border": np.roll(disc(100, 100), 50, axis=1),
    }.items():
        assert len(np.unique(gray)) > 5, name
        assert np.array_equal(read_gray_mask(save(tmp_path / "m.png", gray))[0], gray)


@pytest.mark.parametrize("size", [(420, 420), (512, 512), (64, 64), (130, 129)])
def test_masks_of_another_size_are_aligned(tmp_path, size):
    image = save(tmp_path / "i.png", np.zeros((128, 128), np.uint8))
    mask = save(tmp_path / "m.png", disc(*size))
    pixels = load_case(Case("a", image, (mask,)))
    truth = disc(128, 128) >= 128
    overlap = 2 * (truth & (pixels.label > 0)).sum() / (truth.sum() + pixels.label.sum())
    assert pixels.label.shape == (128, 128) and overlap > 0.97
    assert pixels.notes == (f"mask resized from {size[0]}x{size[1]}",)


def test_alignment_does_not_shift():
    # A centred square stays centred: sums over mirror halves are equal.
    square = np.zeros((420, 420), np.uint8)
    square[101:319, 101:319] = 255
    for side in (128, 588, 840, 210):
        label, kept = align_mask(square, side, side)
        assert kept == 0
        assert np.array_equal(label, label[::-1]) and np.array_equal(label, label[:, ::-1])
        assert label.sum() == pytest.approx((side * 218 / 420) ** 2, rel=0.02)


def test_a_lesion_smaller_than_a_pixel_is_kept_as_one(tmp_path):
    image = save(tmp_path / "i.png", np.zeros((128, 128), np.uint8))
    pixels = np.zeros((420, 420), np.uint8)
    pixels[200, 200] = 255
    found = load_case(Case("a", image, (save(tmp_path / "m.png", pixels),)))
    assert np.argwhere(found.label).tolist() == [[60, 60]] and found.kept == 1
    assert found.notes == (
        "mask resized from 420x420",
        "1 lesions smaller than a pixel kept as one",
    )
    # Beside a large lesion too, and of two pixels the brighter one; the large one is as before.
    pixels[300:380, 300:380] = 255
    large = align_mask(np.where(np.indices(pixels.shape).min(0) >= 300, pixels, 0), 128, 128)
    assert large[1] == 0
    pixels[0, 6:9] = 255
    label, kept = align_mask(pixels, 128, 128)
    assert kept == 2
    assert np.argwhere(label & ~large[0]).tolist() == [[0, 2], [60, 60]]


def test_each_mask_is_thresholded_before_they_are_joined(tmp_path):
    image = save(tmp_path / "i.png", np.zeros((40, 60), np.uint8))
    halves = []
    for index, columns in enumerate([slice(0, 20), slice(30, 50), slice(52, 58)]):
        pixels = np.zeros((80, 120) if index == 1 else (40, 60), np.uint8)
        step = 2 if index == 1 else 1
        pixels[10 * step : 20 * step, columns.start * step : columns.stop * step] = 255
        halves.append(save(tmp_path / f"m{index}.png", pixels))
    pixels = load_case(Case("a", image, tuple(halves)))
    expected = np.zeros((40, 60), bool)
    expected[10:20, [*range(20), *range(30, 50), *range(52, 58)]] = True
    assert np.array_equal(pixels.label > 0, expected)
    assert pixels.notes == ("mask resized from 80x120", "3 masks")


def test_another_aspect_ratio_is_an_error_that_names_both_files(tmp_path):
    image = save(tmp_path / "i.png", GRAY)
    turned = save(tmp_path / "m.png", np.ascontiguousarray(WHITE.T))
    with pytest.raises(DatasetError, match=r"m\.png.*60x40.*40x60.*i\.png"):
        read_case(Case("a", image, (turned,)))


def test_all_problems_of_a_case_come_in_one_error(tmp_path):
    image = tmp_path / "i.png"
    image.write_bytes(b"")
    bad = save(tmp_path / "m.png", LESION.astype(np.uint8))
    with pytest.raises(DatasetError) as error:
        read_case(Case("a", image, (bad, tmp_path / "gone.png")))
    assert [
        name in line
        for name, line in zip(["i.png", "m.png", "gone.png"], error.value.problems, strict=True)
    ] == [True] * 3


def test_extreme_shapes(tmp_path):
    for shape in ((3000, 20), (4, 4), (1, 300)):
        mask = np.zeros(shape, np.uint8)
        mask[0, 0] = 255
        case = Case("a", save(tmp_path / "i.png", mask), (save(tmp_path / "m.png", mask),))
        image, label = read_case(case)
        assert image.shape == (*shape, 3) and label.sum() == 1


def test_the_real_stu_masks_pass(stu_root):
    cases = find_cases("stu", stu_root)
    assert len(cases) == 42
    resized = 0
    for case in cases:
        pixels = load_case(case)
        gray = read_gray_mask(case.masks[0])[0]
        assert pixels.image.shape == (128, 128, 3) and pixels.label.shape == (128, 128)
        assert pixels.label.mean() == pytest.approx((gray >= 128).mean(), rel=0.02)
        resized += bool(pixels.notes)
    assert resized == 36
