"""Boxes are half-open and hold the whole lesion, points lie inside it: counted by hand and at random."""

import cv2
import numpy as np
import pytest
from scipy import ndimage

from tests.lesions import (
    AT_THE_CORNER,
    CRESCENT,
    DIAGONAL,
    EVERYTHING,
    ONE_PIXEL,
    RECTANGLE,
    TWO_LESIONS,
    drawn,
)
from ultrarefiner.errors import ConfigError, PromptError
from ultrarefiner.prompts import PROMPTS, prompt_from_mask
from ultrarefiner.prompts.geometry import deepest_point, expand_box, largest_component, tight_box


@pytest.mark.parametrize(
    ("mask", "box", "point"),
    [
        (RECTANGLE, (1, 2, 6, 5), (2, 3)),
        # Its centroid, (2.9, 3.5), is outside. (1, 1) and (1, 6) are equally deep: the upper one.
        (CRESCENT, (0, 0, 8, 8), (1, 1)),
        (TWO_LESIONS, (0, 0, 8, 8), (1, 1)),
        # The image's border is an outline: without it the deepest pixel would be (7, 0).
        (AT_THE_CORNER, (4, 0, 8, 4), (5, 1)),
        (ONE_PIXEL, (7, 6, 8, 7), (7, 6)),
        # Diagonal neighbours are one component; otherwise the point would be in the square.
        (DIAGONAL, (0, 0, 7, 8), (0, 0)),
        (EVERYTHING, (0, 0, 8, 8), (3, 3)),
    ],
)
def test_box_and_point_counted_by_hand(mask, box, point):
    assert prompt_from_mask(mask, "box").box.tolist() == list(box)
    prompt = prompt_from_mask(mask, "point")
    assert prompt.points.tolist() == [list(point)]
    assert prompt.labels.tolist() == [1]


def test_of_equally_large_components_the_first_in_reading_order_is_taken():
    mask = drawn(
        "......#.",
        "......#.",
        "#.......",
        "#.......",
        "........",
        "..##....",
    )
    assert np.argwhere(largest_component(mask)).tolist() == [[0, 6], [1, 6]]
    assert deepest_point(mask) == (6, 0)


@pytest.mark.parametrize(
    ("expand", "box"),
    [
        (0.0, (1, 2, 6, 5)),
        (0.2, (0, 1.4, 7, 5.6)),
        (1.0, (0, 0, 8, 8)),
        (-0.2, (2, 2.6, 5, 4.4)),
    ],
)
def test_expand_moves_each_side_by_its_share_within_the_image(expand, box):
    # The rectangle is 5 wide and 3 high in an image of 8 x 8.
    assert prompt_from_mask(RECTANGLE, "box", expand).box == pytest.approx(box)
    assert prompt_from_mask(RECTANGLE, "box+point", expand).box == pytest.approx(box)
    assert prompt_from_mask(RECTANGLE, "both", expand)[0].box == pytest.approx(box)


def test_a_box_is_never_shrunk_to_nothing():
    x0, y0, x1, y1 = prompt_from_mask(ONE_PIXEL, "box", expand=-0.45).box
    assert x1 - x0 == pytest.approx(0.1)
    assert y1 - y0 == pytest.approx(0.1)
    for expand in (-0.5, -3.0, float("nan")):
        with pytest.raises(PromptError, match="must be above"):
            prompt_from_mask(ONE_PIXEL, "box", expand)


def blobs(seed: int) -> np.ndarray:
    """Return a random mask of smooth, often concave, often cut blobs, never empty."""
    rng = np.random.default_rng(seed)
    height, width = rng.integers(1, 60, 2)
    field = cv2.GaussianBlur(rng.standard_normal((height, width)), (0, 0), rng.uniform(0.5, 5))
    return field >= np.quantile(field, rng.uniform(0.2, 0.99))


@pytest.mark.parametrize("block", range(5))
def test_random_masks_are_enclosed_tightly_and_pointed_at_where_deepest(block):
    outside_centroids = 0
    for seed in range(block * 100, block * 100 + 100):
        mask = blobs(seed)
        x0, y0, x1, y1 = tight_box(mask)
        assert mask[y0:y1, x0:x1].sum() == mask.sum()
        for edge in (mask[y0, x0:x1], mask[y1 - 1, x0:x1], mask[y0:y1, x0], mask[y0:y1, x1 - 1]):
            assert edge.any()
        column, row = deepest_point(mask)
        labels, count = ndimage.label(mask, np.ones((3, 3)))
        sizes = np.bincount(labels.ravel(), minlength=count + 1)[1:]
        assert sizes[labels[row, column] - 1] == sizes.max()
        distance = ndimage.distance_transform_edt(np.pad(labels == labels[row, column], 1))
        assert distance[row + 1, column + 1] == pytest.approx(distance.max())
        middle = np.argwhere(mask).mean(axis=0).astype(int)
        outside_centroids += not mask[tuple(middle)]
        rng = np.random.default_rng(seed)
        grown = expand_box((x0, y0, x1, y1), rng.uniform(0, 2), mask.shape)
        assert 0 <= grown[0] <= x0 < x1 <= grown[2] <= mask.shape[1]
        assert 0 <= grown[1] <= y0 < y1 <= grown[3] <= mask.shape[0]
    assert outside_centroids > 10  # or the masks were too easy to tell a centroid from a point


def test_probabilities_count_from_one_half_and_are_kept_by_mask_prompts():
    probability = np.array([[0.1, 0.5, 0.9], [0.0, 0.49, 0.3]])
    assert prompt_from_mask(probability, "box").box.tolist() == [1, 0, 3, 1]
    for kind in ("mask", "mask+point", "mask+box"):
        mask = prompt_from_mask(probability, kind).mask
        assert mask.dtype == np.float32
        np.testing.assert_allclose(mask, probability, rtol=1e-6)
    whole = prompt_from_mask((probability >= 0.5).astype(np.uint8), "mask").mask
    assert whole.dtype == bool
    assert whole.tolist() == [[False, True, True], [False, False, False]]


@pytest.mark.parametrize(
    ("mask", "complaint"),
    [
        (np.zeros((8, 8), bool), "empty"),
        (np.full((8, 8), 0.49), "empty"),
        (RECTANGLE.astype(np.uint8) * 255, "divide"),
        (np.full((8, 8), -0.1), "0, 1"),
        (np.full((8, 8), np.nan), "0, 1"),
        (RECTANGLE[None], r"\(H, W\)"),
        (np.zeros((0, 8), bool), r"\(H, W\)"),
    ],
)
@pytest.mark.parametrize("kind", sorted(PROMPTS))
def test_what_is_no_mask_or_empty_is_refused(mask, complaint, kind):
    with pytest.raises(PromptError, match=complaint):
        prompt_from_mask(mask, kind)


def test_an_unknown_kind_names_the_nearest():
    with pytest.raises(ConfigError, match="Did you mean 'mask\\+point'"):
        prompt_from_mask(RECTANGLE, "mask_point")
