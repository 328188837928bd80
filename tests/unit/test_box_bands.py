"""Guards the errors of training boxes: each band's share and range, and that boxes stay boxes."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ultrarefiner.config import BoxNoiseConfig
from ultrarefiner.prompts import Prompt
from ultrarefiner.prompts.noise import BANDS, draw_band, move_edges, perturb_box

HW = (400, 600)
BOX = (200, 150, 300, 200)
# By hand from the reference: how far edges move, and whether outwards or inwards.
RANGES = {
    "exact": (0.0, 0.0, 1),
    "slight_enlarge": (0.05, 0.20, 1),
    "slight_shrink": (0.05, 0.15, -1),
    "heavy_enlarge": (0.30, 0.60, 1),
    "heavy_shrink": (0.15, 0.30, -1),
}


def outwards(box, of=BOX):
    """Return how far each edge lies outside a box's, as a share of its own side."""
    sides = np.tile(np.subtract(of[2:], of[:2]), 2)
    return (np.array(box) - of) / sides * (-1, -1, 1, 1)


def only(band):
    return BoxNoiseConfig(**{name: float(name == band) for name in BANDS})


def test_bands_are_those_of_the_config():
    assert set(BANDS) == set(BoxNoiseConfig.model_fields) == set(RANGES)


@pytest.mark.parametrize("band", RANGES)
def test_edges_move_independently_and_evenly_within_the_band(band):
    low, high, way = RANGES[band]
    rng = np.random.default_rng(7)
    moves = np.array([way * outwards(perturb_box(BOX, only(band), rng, HW)) for _ in range(3000)])
    assert moves.min() >= low - 1e-9 and moves.max() <= high + 1e-9
    width = high - low
    np.testing.assert_allclose(moves.mean(axis=0), (low + high) / 2, atol=0.03 * width)
    np.testing.assert_allclose(moves.std(axis=0), width / np.sqrt(12), rtol=0.05)
    if width:
        assert np.abs(np.corrcoef(moves.T) - np.eye(4)).max() < 0.07
    else:
        assert (moves == 0).all()


def test_shares_are_those_asked_for():
    rng = np.random.default_rng(0)
    two = {"exact": 0, "slight_enlarge": 0.3, "slight_shrink": 0, "heavy_enlarge": 0.7}
    for shares in (BoxNoiseConfig(), BoxNoiseConfig(**two, heavy_shrink=0)):
        drawn = [draw_band(shares, rng) for _ in range(10000)]
        for name in BANDS:
            share, found = getattr(shares, name), drawn.count(name) / 10000
            assert abs(found - share) < 0.02
            assert share or not found, "a band without a share was drawn"


def test_shares_that_sum_to_1_but_for_rounding_are_taken():
    shares = BoxNoiseConfig(
        exact=0.1 + 9e-7, slight_enlarge=0.4, slight_shrink=0.4, heavy_enlarge=0.1, heavy_shrink=0
    )
    assert draw_band(shares, np.random.default_rng(0)) in BANDS


def test_the_same_generator_gives_the_same_boxes():
    def boxes(seed):
        rng = np.random.default_rng(seed)
        return [perturb_box(BOX, BoxNoiseConfig(), rng, HW) for _ in range(50)]

    assert boxes(3) == boxes(3) != boxes(4)


def test_what_comes_after_does_not_depend_on_the_band():
    after = set()
    for band in BANDS:
        rng = np.random.default_rng(5)
        perturb_box(BOX, only(band), rng, HW)
        after.add(rng.random())
    assert len(after) == 1


def test_a_perturbed_box_is_of_the_band_that_was_drawn():
    for seed in range(200):
        band = draw_band(BoxNoiseConfig(), np.random.default_rng(seed))
        moves = outwards(perturb_box(BOX, BoxNoiseConfig(), np.random.default_rng(seed), HW))
        low, high, way = RANGES[band]
        assert (way * moves >= low - 1e-9).all() and (way * moves <= high + 1e-9).all()


@st.composite
def boxes_in_images(draw):
    height, width = draw(st.integers(1, 80)), draw(st.integers(1, 80))
    x0, y0 = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
    x1, y1 = draw(st.integers(x0 + 1, width)), draw(st.integers(y0 + 1, height))
    return (x0, y0, x1, y1), (height, width)


@given(boxes_in_images(), st.sampled_from(list(BANDS)), st.integers(0, 2**32 - 1))
@example(((0, 63, 10, 64), (67, 10)), "heavy_shrink", 63)
@settings(max_examples=500, deadline=None)
def test_every_box_stays_in_its_image_and_a_prompt(case, band, seed):
    box, (height, width) = case
    x0, y0, x1, y1 = moved = move_edges(box, band, np.random.default_rng(seed), (height, width))
    assert x0 >= 0 and y0 >= 0 and x1 <= width and y1 <= height
    assert x1 - x0 >= min(2, width) - 1e-9 and y1 - y0 >= min(2, height) - 1e-9
    assert np.array_equal(Prompt(box=moved).box, moved)
    if band == "exact":
        assert (x1 - x0, y1 - y0) == (
            max(box[2] - box[0], min(2, width)),
            max(box[3] - box[1], min(2, height)),
        )
        assert x0 <= box[0] and y0 <= box[1] and x1 >= box[2] and y1 >= box[3]
    # What is within the image and more than two pixels wide is only moved, not mended; a side that
    # was mended is 2 but for rounding.
    free = min(x0, y0, width - x1, height - y1) >= 2
    if free and min(x1 - x0, y1 - y0) > 2 + 1e-9:
        low, high, way = RANGES[band]
        moves = way * outwards(moved, box)
        assert (moves >= low - 1e-9).all() and (moves <= high + 1e-9).all()


def test_small_boxes_grow_about_their_middle_and_at_the_border_inwards():
    rng = np.random.default_rng(0)
    assert move_edges((10, 20, 11, 30), "exact", rng, HW) == (9.5, 20, 11.5, 30)
    assert move_edges((0, 399, 1, 400), "exact", rng, HW) == (0, 398, 2, 400)
    assert move_edges((0, 0, 1, 1), "heavy_enlarge", rng, (1, 1)) == (0, 0, 1, 1)
    x0, _, x1, _ = move_edges((10, 10, 12, 30), "heavy_shrink", rng, HW)
    assert x1 - x0 == pytest.approx(2) and (x0 + x1) / 2 == pytest.approx(11, abs=0.15)
