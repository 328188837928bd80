"""Points lie inside the lesion and apart, negative ones outside of it; every component has its own."""

from itertools import pairwise

import numpy as np
import pytest
from scipy import ndimage

from tests.lesions import (
    CRESCENT,
    DIAGONAL,
    EVERYTHING,
    RECTANGLE,
    TWO_LESIONS,
    drawn,
    random_lesion,
)
from ultrarefiner.config import NEGATIVE_REACH
from ultrarefiner.errors import PromptError
from ultrarefiner.prompts import prompt_from_mask
from ultrarefiner.prompts.geometry import (
    MOST_COMPONENTS,
    SPECK,
    expand_box,
    largest_component,
    lesion_components,
    tight_box,
    whole_box,
)
from ultrarefiner.prompts.points import negative_point, spread_points


def depths(component):
    return ndimage.distance_transform_edt(np.pad(component, 1))[1:-1, 1:-1]


@pytest.mark.parametrize("block", range(5))
def test_positive_points_of_random_masks(block):
    for seed in range(block * 120, block * 120 + 120):
        mask, count = random_lesion(seed), 1 + seed % 8
        component = largest_component(mask)
        prompt = prompt_from_mask(mask, "point", points=count)
        points = prompt.points.astype(int)
        assert len(points) == min(count, component.sum())
        assert prompt.labels.tolist() == [1] * len(points)
        assert component[points[:, 1], points[:, 0]].all()
        assert len({tuple(point) for point in points.tolist()}) == len(points)
        # The definition, worked out slowly: depth times distance to earlier points.
        depth = depths(component)
        assert depth[points[0, 1], points[0, 0]] == pytest.approx(depth.max())
        rows, columns = np.mgrid[: mask.shape[0], : mask.shape[1]]
        nearest = np.full(mask.shape, np.inf)
        for before, (column, row) in pairwise(points):
            distance = np.hypot(columns - before[0], rows - before[1])
            nearest = np.minimum(nearest, distance)
            assert depth[row, column] * nearest[row, column] == pytest.approx(
                (depth * nearest).max()
            )


def test_further_points_never_move_earlier_ones():
    for seed in range(60):
        mask = random_lesion(seed)
        many = prompt_from_mask(mask, "point", points=6).points
        for count in range(1, len(many) + 1):
            np.testing.assert_array_equal(
                prompt_from_mask(mask, "point", points=count).points, many[:count]
            )


def test_points_counted_by_hand():
    # 5 x 3 pixels: the middle row is 2 deep but for its ends.
    assert spread_points(RECTANGLE, 2).tolist() == [[2, 3], [4, 3]]
    # All but (1, 1) and (1, 6) is 1 deep: (7, 7) is farthest, then 5 x the root of 2 is most.
    assert spread_points(CRESCENT, 3).tolist() == [[1, 1], [7, 7], [1, 6]]
    # A long lesion has its points along its whole length, however thin it is.
    line = np.zeros((9, 120), bool)
    line[3:6, 10:110] = True
    assert spread_points(line, 3)[:, 0].tolist() == [11, 108, 59]
    assert len(spread_points(drawn("....", ".#..", ".##."), 16)) == 3


@pytest.mark.parametrize("block", range(5))
def test_negative_points_of_random_masks(block):
    beside = 0
    for seed in range(block * 120, block * 120 + 120):
        mask = random_lesion(seed)
        prompt = prompt_from_mask(mask, "point", points=2, negative=True)
        negative = prompt.points[prompt.labels == 0].astype(int)
        assert len(negative) == (0 if mask.all() else 1)
        if not len(negative):
            continue
        ((column, row),) = negative
        assert not mask[row, column]
        x0, y0, x1, y1 = whole_box(expand_box(tight_box(mask), NEGATIVE_REACH, mask.shape))
        assert x0 <= column < x1 and y0 <= row < y1
        distance = ndimage.distance_transform_edt(~mask)
        corners = [(y, x) for y in (y0, y1 - 1) for x in (x0, x1 - 1) if not mask[y, x]]
        best = max((distance[corner] for corner in corners), default=distance[y0:y1, x0:x1].max())
        assert distance[row, column] == pytest.approx(best)
        beside += bool(corners)
    assert beside > 60


@pytest.mark.parametrize(
    ("mask", "point"),
    [
        # 5 x 3 pixels grow by half a pixel and 0.3, in whole pixels by one; all corners are equal.
        (RECTANGLE, (0, 1)),
        # It fills the image's height: the only corners are the image's, one of them free.
        (drawn("###", "###", "##."), (2, 2)),
        # All corners are lesion; the middle of the hole is farthest.
        (drawn("#####", "#...#", "#...#", "#...#", "#####"), (2, 2)),
        (EVERYTHING, None),
    ],
)
def test_negative_points_counted_by_hand(mask, point):
    prompt = prompt_from_mask(mask, "point", negative=True)
    if point is None:
        assert prompt.labels.tolist() == [1]
    else:
        assert prompt.labels.tolist() == [1, 0]
        assert prompt.points[1].tolist() == list(point)


def test_the_negative_point_of_a_component_avoids_the_others():
    mask = np.zeros((30, 30), bool)
    mask[10:20, 10:20] = True
    mask[5:9, 5:10] = mask[5:9, 20:25] = mask[21:25, 5:10] = True
    first = prompt_from_mask(mask, "point", negative=True, components=True)[0]
    assert first.points[first.labels == 0].tolist() == [[20, 20]]
    assert negative_point((9, 9, 21, 21), ~mask) == (20, 20)


@pytest.mark.parametrize("block", range(3))
def test_components_of_random_masks(block):
    several = 0
    for seed in range(block * 120, block * 120 + 120):
        mask = random_lesion(seed)
        found = lesion_components(mask)
        labels, count = ndimage.label(mask, np.ones((3, 3)))
        sizes = np.bincount(labels.ravel(), minlength=count + 1)[1:]
        large = [i + 1 for i in range(count) if sizes[i] >= SPECK * sizes.max()]
        # SciPy numbers components in reading order.
        order = sorted(large, key=lambda i: (-sizes[i - 1], i))[:MOST_COMPONENTS]
        assert len(found) == len(order)
        for component, number in zip(found, order, strict=True):
            np.testing.assert_array_equal(component, labels == number)
        several += len(found) > 1
    assert several > 10


@pytest.mark.parametrize("kind", ["box", "point", "both", "box+point"])
def test_each_component_gives_the_prompts_of_a_mask_of_its_own(kind):
    prompts = prompt_from_mask(TWO_LESIONS, kind, components=True)
    alone = []
    for component in lesion_components(TWO_LESIONS):
        own = prompt_from_mask(component, kind)
        alone += own if isinstance(own, list) else [own]
    assert len(prompts) == len(alone) == (4 if kind == "both" else 2)
    for one, other in zip(prompts, alone, strict=True):
        np.testing.assert_equal((one.box, one.points), (other.box, other.points))
    assert isinstance(prompt_from_mask(DIAGONAL, kind, components=True), list)


def test_specks_are_left_out_and_equals_are_read_in_order():
    mask = np.zeros((40, 60), bool)
    mask[20:30, 40:50] = mask[5:15, 2:12] = True
    mask[0, 30:34] = True
    mask[35, 30:35] = True
    boxes = [prompt.box.tolist() for prompt in prompt_from_mask(mask, "box", components=True)]
    assert boxes == [[2, 5, 12, 15], [40, 20, 50, 30], [30, 35, 35, 36]]
    assert prompt_from_mask(mask, "box").box.tolist() == [2, 0, 50, 36]


def test_a_mask_of_noise_gives_no_flood_of_prompts():
    mask = np.zeros((200, 200), bool)
    mask[::2, ::2] = True
    prompts = prompt_from_mask(mask, "box", components=True)
    assert len(prompts) == MOST_COMPONENTS
    assert prompts[0].box.tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("kind", "options", "complaint"),
    [
        ("box", {"points": 2}, "points and negative have no effect on kind 'box'"),
        ("mask", {"negative": True}, "points and negative have no effect on kind 'mask'"),
        ("point", {"points": 0}, "at least one"),
    ],
)
def test_options_without_effect_are_refused(kind, options, complaint):
    with pytest.raises(PromptError, match=complaint):
        prompt_from_mask(RECTANGLE, kind, **options)


def test_a_mask_prompt_of_a_component_holds_nothing_of_the_others():
    soft = np.where(TWO_LESIONS, 0.75, 0.25).astype(np.float32)
    for mask in (TWO_LESIONS, soft):
        prompts = prompt_from_mask(mask, "mask+point", components=True)
        lesions = [prompt.mask >= 0.5 for prompt in prompts]
        assert len(prompts) == 2
        assert np.array_equal(lesions[0] | lesions[1], TWO_LESIONS)
        assert not (lesions[0] & lesions[1]).any()
        for prompt, lesion in zip(prompts, lesions, strict=True):
            (x, y) = prompt.points[0].astype(int)
            assert lesion[y, x]
            assert prompt.mask.dtype == mask.dtype
