"""A crop window always holds the prompt, has the sides that were asked for, and pastes back exactly."""

import numpy as np
import pytest

from tests.lesions import random_lesion
from tests.sam_fixture import write_tiny_sam
from ultrarefiner.config import CropConfig, NoiseConfig, PromptConfig
from ultrarefiner.errors import PromptError
from ultrarefiner.models.sam import frame_size, scale_coordinates
from ultrarefiner.prompts import PROMPTS, Prompt, prompt_from_mask
from ultrarefiner.prompts.crop import NEAR_FULL, crop_window, window_of_mask
from ultrarefiner.prompts.entries import prompt_record
from ultrarefiner.prompts.geometry import expand_box, whole_box
from ultrarefiner.refine import load_refiner
from ultrarefiner.refine.base import Refinement
from ultrarefiner.refine.crop import cut_window, paste_window, prompt_in_window, refine_in_window

ASPECTS = [None, 1.0, 0.5, 2.0, 4 / 3, 0.37, 7.3]


def random_image(rng):
    kind = rng.integers(4)
    if kind == 0:
        return (200, 3000) if rng.random() < 0.5 else (3000, 200)
    if kind == 1:
        return tuple(rng.integers(1, 64, 2).tolist())
    return tuple(rng.integers(64, 1200, 2).tolist())


def random_box(rng, height, width):
    """Return a box of whole pixels in the image: of one pixel, at a border, nearly all, or any."""
    x = np.sort(rng.choice(width + 1, 2, replace=False))
    y = np.sort(rng.choice(height + 1, 2, replace=False))
    kind = rng.integers(5)
    if kind == 0:
        x[1], y[1] = x[0] + 1, y[0] + 1
    elif kind == 1:
        x -= x[0]
    elif kind == 2:
        y += height - y[1]
    return int(x[0]), int(y[0]), int(x[1]), int(y[1])


def check(box, image_hw, crop):
    height, width = image_hw
    window = crop_window(box, image_hw, crop)
    if window is None:
        return None
    x0, y0, x1, y1 = window
    wide, high = x1 - x0, y1 - y0
    assert all(type(side) is int for side in window)
    assert x0 <= box[0] and y0 <= box[1] and x1 >= box[2] and y1 >= box[3], "the box is inside"
    assert wide >= crop.min_size and high >= crop.min_size
    assert wide < NEAR_FULL * width or high < NEAR_FULL * height
    if crop.aspect is not None:
        assert abs(wide - high * crop.aspect) < 1 and abs(high - wide / crop.aspect) < 1
    # Padding only where the image is too small.
    assert (x0 >= 0 and x1 <= width) if wide <= width else (x0 <= 0 and x1 >= width)
    assert (y0 >= 0 and y1 <= height) if high <= height else (y0 <= 0 and y1 >= height)
    # No larger than it has to be.
    left, top, right, bottom = whole_box(expand_box(box, crop.expand, image_hw))
    least = max(right - left, crop.min_size), max(bottom - top, crop.min_size)
    if crop.aspect is None:
        assert (wide, high) == least
    else:
        assert wide < max(least[0], least[1] * crop.aspect) + 1 + crop.aspect
        assert high < max(least[1], least[0] / crop.aspect) + 1 + 1 / crop.aspect
    return window


def test_twenty_thousand_random_boxes():
    rng = np.random.default_rng(0)
    found = padded = 0
    for _ in range(20_000):
        height, width = random_image(rng)
        crop = CropConfig(
            expand=float(rng.choice([0.0, 0.5, 2.0, rng.uniform(0, 2)])),
            min_size=int(rng.choice([8, 64, 100, rng.integers(8, 400)])),
            aspect=ASPECTS[rng.integers(len(ASPECTS))],
        )
        window = check(random_box(rng, height, width), (height, width), crop)
        found += window is not None
        padded += window is not None and (min(window[:2]) < 0)
    assert 8_000 < found < 16_000 and padded > 500, "the draw has to reach every branch"


@pytest.mark.parametrize("share", [0.5, 0.94, 0.96])
def test_only_a_window_of_nearly_both_sides_is_the_full_image(share):
    high = crop_window((0, 0, 40, round(500 * share)), (500, 600), CropConfig(expand=0))
    assert high == (0, 0, 64, round(500 * share))
    both = crop_window((0, 0, 590, round(500 * share)), (500, 600), CropConfig(expand=0))
    assert both == (None if share >= NEAR_FULL else (0, 0, 590, round(500 * share)))


@pytest.mark.parametrize(
    ("box", "image_hw", "options", "window"),
    [
        ((100, 100, 200, 160), (480, 640), {}, (50, 70, 250, 190)),
        ((100, 100, 200, 160), (480, 640), {"expand": 0}, (100, 98, 200, 162)),
        ((100, 100, 200, 160), (480, 640), {"aspect": 1.0}, (50, 30, 250, 230)),
        ((0, 0, 10, 10), (480, 640), {}, (0, 0, 64, 64)),
        ((630, 470, 640, 480), (480, 640), {}, (576, 416, 640, 480)),
        ((0, 0, 600, 50), (100, 640), {"expand": 0, "aspect": 4.0}, (0, -25, 600, 125)),
        ((10, 10, 600, 470), (480, 640), {}, None),
        ((5, 5, 9, 9), (40, 40), {}, None),
    ],
)
def test_known_windows(box, image_hw, options, window):
    assert crop_window(box, image_hw, CropConfig(**options)) == window


def test_the_window_also_holds_a_second_box():
    crop = CropConfig(expand=0.1, min_size=8)
    x0, y0, x1, y1 = crop_window((100, 100, 120, 120), (400, 400), crop, (40.5, 90, 130.2, 140))
    assert x0 <= 40 and y0 <= 90 and x1 >= 131 and y1 >= 140


def random_mask(rng):
    height, width = rng.integers(20, 120, 2)
    rows, columns = np.mgrid[:height, :width]
    mask = np.zeros((height, width), dtype=bool)
    for _ in range(rng.integers(1, 4)):
        centre = rng.uniform(0, (height, width))
        radii = rng.uniform(0.6, 25, 2)
        mask |= ((rows - centre[0]) / radii[0]) ** 2 + ((columns - centre[1]) / radii[1]) ** 2 <= 1
    return mask


def random_mode(rng):
    kind = str(rng.choice(["box", "point", "both", "mask", "box+point", "mask+point", "mask+box"]))
    boxes, points = "box" in kind or kind == "both", "point" in kind or kind == "both"
    noise = {}
    if boxes and rng.random() < 0.5:
        noise["box"] = float(rng.uniform(0.01, 0.45))
    if points and rng.random() < 0.5:
        noise["point"] = float(rng.uniform(0.01, 1.0))
    return PromptConfig(
        kind=kind,
        expand=float(rng.uniform(-0.45, 2)) if boxes and rng.random() < 0.7 else None,
        points=int(rng.integers(1, 6)) if points else 1,
        negative=bool(points and rng.random() < 0.5),
        components=bool("mask" not in kind and rng.random() < 0.5),
        noise=NoiseConfig(**noise, seed=int(rng.integers(99))) if noise else None,
        crop=CropConfig(
            expand=float(rng.choice([0.0, 0.1, 0.5])),
            min_size=8,
            aspect=ASPECTS[rng.integers(len(ASPECTS))],
        ),
    )


@pytest.mark.parametrize("block", range(4))
def test_every_prompt_lies_in_its_window(block):
    rng = np.random.default_rng(block)
    windows = beside = 0
    for number in range(1_000):
        mask = random_lesion(number) if number % 3 == 0 else random_mask(rng)
        config = random_mode(rng)
        # The record refuses a prompt outside its window, too; here it is looked at.
        record = prompt_record(config, f"case_{number}", mask)
        assert record.window == (window_of_mask(mask, config.window) if mask.any() else None)
        if record.window is None:
            continue
        windows += 1
        x0, y0, x1, y1 = record.window
        for one in [record, *record.others]:
            if one.box is not None:
                assert x0 <= one.box[0] < one.box[2] <= x1 and y0 <= one.box[1] < one.box[3] <= y1
            for x, y in one.points or []:
                assert x0 <= x <= x1 - 1 and y0 <= y <= y1 - 1
            beside += 0 in (one.labels or [])
    assert windows > 300 and beside > 60


def test_what_is_cut_and_pasted_is_what_was_there():
    rng = np.random.default_rng(2)
    for _ in range(300):
        image = rng.integers(1, 256, (*rng.integers(8, 90, 2), 3), dtype=np.uint8)
        height, width = image.shape[:2]
        box = random_box(rng, height, width)
        crop = CropConfig(min_size=int(rng.integers(8, 60)), aspect=ASPECTS[rng.integers(7)])
        window = crop_window(box, (height, width), crop)
        if window is None:
            continue
        cut = cut_window(image, window)
        assert cut.shape == (window[3] - window[1], window[2] - window[0], 3)
        mask = image[..., 0] > 128
        part = cut_window(mask, window)
        pasted = paste_window(
            Refinement(part, part.astype(np.float32), 0.5), window, (height, width)
        )
        inside = np.zeros_like(mask)
        inside[max(window[1], 0) : window[3], max(window[0], 0) : window[2]] = True
        np.testing.assert_array_equal(pasted.mask, mask & inside)
        assert pasted.score == 0.5 and pasted.low_res_logits.shape == part.shape
        x, y = box[0], box[1]
        np.testing.assert_array_equal(cut[y - window[1], x - window[0]], image[y, x])


def truncated(height, width, side):
    """Return UltraSAM's frame: sizes are cut off where SAM rounds them."""
    scale = side / max(height, width)
    return max(1, int(height * scale)), max(1, int(width * scale))


@pytest.mark.parametrize("frame", [frame_size, truncated])
def test_coordinates_come_back_from_window_and_frame(frame):
    rng = np.random.default_rng(3)
    for _ in range(3_000):
        height, width = (int(side) for side in rng.integers(30, 1300, 2))
        box = random_box(rng, height, width)
        window = crop_window(
            box, (height, width), CropConfig(expand=0.3, aspect=ASPECTS[rng.integers(7)])
        )
        points = rng.uniform(box[:2], np.subtract(box[2:], 1), (4, 2))
        prompt = Prompt(box=box, points=points)
        x0, y0, hw = 0, 0, (height, width)
        if window is not None:
            prompt = prompt_in_window(prompt, window, (height, width))
            x0, y0 = window[:2]
            hw = (window[3] - y0, window[2] - x0)
        inner = frame(*hw, 1024)
        for given, moved in ((points, prompt.points), (np.reshape(box, (2, 2)), prompt.box)):
            framed = scale_coordinates(np.reshape(moved, (-1, 2)), hw, inner)
            assert (framed >= -1e-9).all() and (framed <= np.array(inner[::-1]) + 1e-9).all()
            back = np.add(scale_coordinates(framed, inner, hw), (x0, y0))
            np.testing.assert_allclose(back, given, atol=1e-3, rtol=0)


def test_a_box_beyond_the_image_is_cut_to_what_the_window_shows_of_it():
    prompt = Prompt(box=(-5, -5, 30, 20))
    moved = prompt_in_window(prompt, (-10, 4, 26, 40), (50, 50))
    assert moved.box.tolist() == [10, 0, 36, 16]


@pytest.mark.parametrize(
    ("parts", "complaint"),
    [
        ({"box": (0, 0, 9, 30)}, r"box \[0.0, 0.0, 9.0, 30.0\] is outside .* window \[10, 4"),
        ({"points": [[20, 20], [9, 20]]}, r"point \[9.0, 20.0\] is outside"),
        ({"points": [[60, 20]]}, r"point \[60.0, 20.0\] is outside"),
        ({"mask": np.ones((36, 70), bool)}, "image's own pixels"),
    ],
)
def test_a_prompt_outside_of_the_window_is_refused_in_the_pixels_it_was_given_in(parts, complaint):
    with pytest.raises(PromptError, match=complaint):
        prompt_in_window(Prompt(**parts), (10, 4, 80, 40), (50, 50))


@pytest.fixture(scope="module")
def sam(tmp_path_factory, one_thread):
    return load_refiner("sam", write_tiny_sam(tmp_path_factory.mktemp("sam") / "sam.pth", side=256))


@pytest.mark.parametrize("kind", sorted(PROMPTS))
@pytest.mark.parametrize("aspect", [None, 0.5])
def test_refining_in_a_window_is_refining_the_cut_as_an_image_of_its_own(sam, kind, aspect):
    rng = np.random.default_rng(4)
    image = rng.integers(0, 256, (90, 120, 3), dtype=np.uint8)
    lesion = np.zeros((90, 120), bool)
    lesion[2:30, 60:100] = True
    crop = CropConfig(expand=0.2, min_size=8, aspect=aspect)
    window = window_of_mask(lesion, PromptConfig(kind=kind, crop=crop).window)
    assert (min(window[:2]) < 0 or window[3] > 90) == (aspect is not None)
    embedding = sam.embed(cut_window(image, window))
    prompt = prompt_from_mask(lesion, kind)
    out = refine_in_window(sam, embedding, prompt, window, (90, 120))
    alone = sam.refine(embedding, prompt_from_mask(cut_window(lesion, window), kind))
    inside = cut_window(out.mask, window)
    in_image = cut_window(np.ones((90, 120), bool), window)
    assert inside.any() and not (inside & in_image).all()
    np.testing.assert_array_equal(inside, alone.mask & in_image)
    assert out.mask.shape == (90, 120) and out.mask.sum() == inside.sum()
    np.testing.assert_array_equal(out.low_res_logits, alone.low_res_logits)
    assert out.score == alone.score


def test_without_a_window_the_image_is_refined_whole(sam):
    image = np.random.default_rng(5).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    embedding, prompt = sam.embed(image), Prompt(box=(10, 10, 40, 40))
    out = refine_in_window(sam, embedding, prompt, None, (50, 70))
    np.testing.assert_array_equal(out.mask, sam.refine(embedding, prompt).mask)


def test_logits_of_the_whole_image_cannot_be_cut():
    with pytest.raises(PromptError, match="give `mask`"):
        prompt_in_window(Prompt(mask_logits=np.zeros((256, 256))), (0, 0, 9, 9), (50, 50))
