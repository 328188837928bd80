"""Guards that burned-in marks and borders are found on most images, and on few that have none."""

import cv2
import numpy as np
import pytest

from ultrarefiner.datasets.phantoms.drawing import draw_scene
from ultrarefiner.datasets.quality import OVERLAYS, assess_quality, border_share, find_marks
from ultrarefiner.images import read_rgb

WORDS = ("RT BREAST 3:00", "D 1.24cm", "LEFT 12 RADIAL", "12:34:56")
WHITE, GRAY, GREEN, YELLOW = (255, 255, 255), (220, 220, 220), (0, 255, 0), (255, 220, 0)


def rgb(gray):
    return cv2.cvtColor(gray, cv2.COLOR_GRAY2RGB)


@pytest.fixture(scope="module")
def scenes():
    """Phantoms of the sizes that datasets have, half of them with a lesion that casts a shadow."""
    return [rgb(draw_scene(seed, 300 + 40 * (seed % 5), seed % 2 == 0).image) for seed in range(60)]


@pytest.fixture(scope="module")
def real(stu_root):
    """Images of a scanner, at the size that images are mostly published in."""
    images = [read_rgb(path) for path in sorted(stu_root.glob("Hospital/Test_Image_*.png"))]
    return [cv2.resize(image, (400, 400), interpolation=cv2.INTER_CUBIC) for image in images]


def write_words(image, number, colour=WHITE):
    rng = np.random.default_rng(number)
    marked, words = image.copy(), WORDS[number % len(WORDS)]
    height, width = image.shape[:2]
    scale, font = 0.45 + 0.15 * (number % 3), cv2.FONT_HERSHEY_SIMPLEX
    (long, tall), _ = cv2.getTextSize(words, font, scale, 1)
    at = int(rng.integers(2, max(3, width - long))), int(rng.integers(tall + 2, height - 4))
    return cv2.putText(marked, words, at, font, scale, colour, 1, cv2.LINE_AA)


def set_calipers(image, number, colour=WHITE):
    rng = np.random.default_rng(number)
    marked, (height, width) = image.copy(), image.shape[:2]
    kind = (cv2.MARKER_CROSS, cv2.MARKER_TILTED_CROSS)[number % 2]
    for _ in range(2):
        at = int(rng.integers(20, width - 20)), int(rng.integers(20, height - 20))
        cv2.drawMarker(marked, at, colour, kind, 8 + number % 12, 1 + number % 3 // 2)
    return marked


def set_dots(image, number, colour=WHITE):
    rng = np.random.default_rng(number)
    marked, (height, width) = image.copy(), image.shape[:2]
    one = np.array([rng.uniform(0.1, 0.4) * width, rng.uniform(0.2, 0.8) * height])
    other = np.array([rng.uniform(0.6, 0.9) * width, rng.uniform(0.2, 0.8) * height])
    for share in np.linspace(0, 1, int(np.hypot(*(other - one)) / (5 + number % 4))):
        x, y = np.rint(one + share * (other - one)).astype(int)
        cv2.circle(marked, (int(x), int(y)), 1, colour, -1)
    return marked


def rate(images, draw, wanted, **options):
    """Return the share of images in which exactly what was drawn is found."""
    found = [
        assess_quality(draw(image, number, **options)).overlay
        for number, image in enumerate(images)
    ]
    return found.count(wanted) / len(found)


def false_alarms(images):
    return sum(assess_quality(image).overlay != "none" for image in images) / len(images)


def test_phantoms_without_marks_give_few_alarms(scenes):
    assert false_alarms(scenes) <= 0.05
    small = [rgb(draw_scene(seed, 128, seed % 2 == 0).image) for seed in range(100, 160)]
    assert false_alarms(small) <= 0.05


def test_real_images_without_marks_give_few_alarms(stu_root, real):
    images = [read_rgb(path) for path in sorted(stu_root.glob("Hospital/Test_Image_*.png"))]
    assert len(images) == 42
    assert [assess_quality(image).overlay for image in images].count("none") == 42
    # One scan ends in pure black over its whole width.
    assert sum(assess_quality(image).border for image in images) <= 1
    assert false_alarms(real) <= 0.05


@pytest.mark.parametrize(
    ("draw", "wanted"),
    [(write_words, "text"), (set_calipers, "calipers"), (set_dots, "calipers")],
)
def test_marks_are_found(scenes, real, draw, wanted):
    assert rate(scenes, draw, wanted) >= 0.9
    assert rate(real, draw, wanted) >= 0.9


def test_dim_and_coloured_marks_are_found(scenes):
    some = scenes[:30]
    assert rate(some, write_words, "text", colour=YELLOW) >= 0.9
    assert rate(some, set_calipers, "calipers", colour=GREEN) >= 0.9
    assert rate(some, set_calipers, "calipers", colour=GRAY) >= 0.9
    line = [cv2.line(image.copy(), (30, 40), (90, 80), GREEN, 1) for image in some]
    assert all(assess_quality(image).overlay == "calipers" for image in line)


def test_both_are_told_together(scenes):
    def both(image, number):
        return set_calipers(write_words(image, number), number + 1000)

    assert rate(scenes[:30], both, "calipers+text") >= 0.9


def test_marks_survive_compression(scenes):
    def compressed(draw):
        def through_jpeg(image, number):
            data = cv2.imencode(".jpg", draw(image, number), [cv2.IMWRITE_JPEG_QUALITY, 85])[1]
            return cv2.imdecode(data, cv2.IMREAD_COLOR)

        return through_jpeg

    assert rate(scenes[:30], compressed(set_calipers), "calipers") >= 0.9
    assert rate(scenes[:30], compressed(write_words), "text") >= 0.9


def test_a_coloured_image_is_no_mark(scenes):
    tinted = [np.clip(image * [1.0, 0.8, 0.3], 0, 255).astype(np.uint8) for image in scenes[:20]]
    assert false_alarms(tinted) <= 0.05
    doppler = scenes[0].copy()
    doppler[60:180, 80:220] = np.maximum(doppler[60:180, 80:220], (200, 20, 20))
    assert assess_quality(doppler).overlay == "none"


@pytest.mark.parametrize("turns", range(4))
def test_a_strip_along_any_edge_is_a_border_of_its_share(scenes, turns):
    for image in scenes[:15]:
        bordered = np.rot90(image, turns).copy()
        rows = round(0.1 * len(bordered))
        bordered[:rows] = 0
        framed = np.ascontiguousarray(np.rot90(bordered, -turns))
        assert 0.1 - 0.01 <= border_share(framed) <= border_share(image) + 0.11
        assert assess_quality(framed).border


def test_text_on_a_border_leaves_it_one(scenes):
    image = cv2.copyMakeBorder(scenes[0], 40, 0, 60, 60, cv2.BORDER_CONSTANT, value=(1, 1, 1))
    cv2.putText(image, "RT BREAST 3:00", (70, 26), cv2.FONT_HERSHEY_SIMPLEX, 0.5, WHITE, 1)
    black = 1 - scenes[0].size / image.size
    assert border_share(image) == pytest.approx(black, abs=0.02)
    assert assess_quality(image).overlay == "text"


def test_the_corners_around_a_sector_are_a_border(scenes):
    image = scenes[1].copy()
    height, width = image.shape[:2]
    outside = np.ones((height, width), np.uint8)
    cv2.ellipse(outside, (width // 2, -height // 2), (height * 3 // 2, height * 3 // 2), 0, 50, 130,
                0, -1)  # fmt: skip
    image[outside > 0] = 0
    assert border_share(image) == pytest.approx(outside.mean(), abs=0.05)
    assert assess_quality(image).border


def test_few_scans_without_borders_seem_to_have_some(scenes):
    assert sum(assess_quality(image).border for image in scenes) / len(scenes) <= 0.05


@pytest.mark.parametrize("shape", [(1, 1), (1, 50), (50, 1), (24, 24), (3000, 200), (2000, 1500)])
def test_extremes_have_an_answer(shape):
    for level in (0, 7, 128, 255):
        quality = assess_quality(np.full((*shape, 3), level, np.uint8))
        assert quality.overlay == "none"
        assert quality.border_share == (1.0 if level <= 4 else quality.border_share)
        assert 0.0 <= quality.border_share <= 1.0
    noise = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    assert assess_quality(noise).overlay in OVERLAYS


def test_marks_on_a_large_image_are_found():
    image = rgb(draw_scene(5, 1500, False, width=2000).image)
    assert find_marks(image) == (False, False)
    cv2.drawMarker(image, (700, 600), WHITE, cv2.MARKER_CROSS, 50, 5)
    cv2.putText(image, "RT BREAST 3:00", (90, 900), cv2.FONT_HERSHEY_SIMPLEX, 1.6, WHITE, 4)
    assert assess_quality(image).overlay == "calipers+text"


def test_the_answer_is_the_same_for_any_memory_layout(scenes):
    image = write_words(scenes[3], 3)
    assert assess_quality(np.asfortranarray(image)) == assess_quality(image)
    view = np.repeat(image, 2, axis=1)[:, ::2]
    assert assess_quality(view) == assess_quality(image)
