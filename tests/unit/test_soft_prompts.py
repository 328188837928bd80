"""Soft points and boxes are those of hard masks, whatever is spread over the background, and flow."""

import cv2
import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from tests.lesions import (
    AT_THE_CORNER,
    CRESCENT,
    DIAGONAL,
    EVERYTHING,
    ONE_PIXEL,
    RECTANGLE,
    TWO_LESIONS,
    random_lesion,
)
from ultrarefiner.config import NEGATIVE_REACH
from ultrarefiner.errors import ConfigError, PromptError
from ultrarefiner.models import mask_prompts
from ultrarefiner.prompts import points
from ultrarefiner.prompts.geometry import deepest_point, expand_box, tight_box, whole_box
from ultrarefiner.prompts.soft import (
    MASK_STYLES,
    mask_prompt_logits,
    negative_point,
    probability_logits,
    sharpen,
    soft_box,
    soft_point,
)

DRAWN = [RECTANGLE, CRESCENT, TWO_LESIONS, AT_THE_CORNER, ONE_PIXEL, DIAGONAL, EVERYTHING]
SEEDS = st.integers(0, 20_000)
FLOWING = {
    "point": soft_point,
    "box": soft_box,
    "negative": lambda p: negative_point(p, soft_box(p)),
    "point by moments": lambda p: soft_point(p, "moments"),
    "box by moments": lambda p: soft_box(p, "moments"),
    "negative by moments": lambda p: negative_point(p, soft_box(p, "moments"), "moments"),
    **{style: lambda p, style=style: mask_prompt_logits(p, 6, style) for style in MASK_STYLES},
}


def soft(mask, inside=1.0, beside=0.0):
    return torch.from_numpy(np.where(mask, inside, beside).astype(np.float32))[None]


def smooth_masks(seed, count=2, shape=(9, 12)):
    """Return random masks, float64, that cross 0.5 on slopes of their own."""
    rng = np.random.default_rng(seed)
    fields = [cv2.GaussianBlur(rng.standard_normal(shape), (0, 0), 2.0) for _ in range(count)]
    scaled = [field / field.std() for field in fields]
    return torch.from_numpy(1 / (1 + np.exp(-np.stack(scaled)))).requires_grad_()


def disc(radius, centre, side=64, sharpness=2.0):
    at = torch.arange(side, dtype=torch.float64)
    apart = torch.hypot(at - centre[0], (at - centre[1])[:, None])
    return (sharpness * (radius - apart)).sigmoid()[None]


def assert_twins(mask, p, point_within=0.5, box_within=0.0):
    """Compare the soft prompts of p with those of a hard mask."""
    box, point = tight_box(mask), deepest_point(mask)
    assert np.abs(soft_box(p)[0].numpy() - box).max() <= box_within
    found = soft_point(p)[0].numpy()
    assert np.linalg.norm(found - point) <= point_within
    column, row = np.rint(found).astype(int)
    assert mask[row, column]


@pytest.mark.parametrize("mask", DRAWN, ids=range(len(DRAWN)))
def test_drawn_masks_have_the_box_and_point_of_their_twins(mask):
    assert_twins(mask, soft(mask))


@given(SEEDS)
def test_random_masks_have_the_box_and_point_of_their_twins(seed):
    mask = random_lesion(seed)
    assert_twins(mask, soft(mask))
    # As far as the level goes, it may be any probability.
    rng = np.random.default_rng(seed)
    anything = soft(mask, rng.uniform(0.5, 1, mask.shape), rng.uniform(0, 0.499, mask.shape))
    assert np.abs(soft_box(anything)[0].numpy() - tight_box(mask)).max() <= 0.5


def crescent_and_friend(side=1024):
    """Return a crescent 120 pixels high, its centroid beside it, and a smaller lesion far away."""
    rows, columns = np.mgrid[:side, :side]
    whole = np.hypot(rows - 500, columns - 400) <= 60
    bitten = whole & (np.hypot(rows - 500, columns - 430) > 55)
    return bitten | (np.hypot(rows - 200, columns - 800) <= 12)


@pytest.mark.parametrize("background", [0.01, 0.1, 0.4])
def test_background_moves_nothing(background):
    mask = crescent_and_friend()
    assert_twins(mask, soft(mask, 1.0, background), box_within=0.5)
    box, moments = soft_box(soft(mask, 1.0, 0.01)), soft_box(soft(mask, 1.0, 0.01), "moments")
    assert np.abs(box[0].numpy() - tight_box(mask)).max() < 0.02
    # What the reference makes of 1 %: all of the image.
    assert np.abs(moments[0].numpy() - tight_box(mask)).max() > 200
    row, column = np.rint(soft_point(soft(mask), "moments")[0].numpy()).astype(int)[::-1]
    assert not mask[row, column]


@given(SEEDS)
@example(3)
def test_negative_points_are_those_of_their_twin(seed):
    mask = random_lesion(seed)
    grown = whole_box(expand_box(tight_box(mask), NEGATIVE_REACH, mask.shape))
    given_box = torch.tensor([grown], dtype=torch.float32)
    column, row = negative_point(soft(mask), given_box)[0].tolist()
    expected = points.negative_point(grown, ~mask)
    if expected is None:
        assert mask.all()
        assert (column, row) == grown[:2]
    else:
        assert (column, row) == expected
    # A hair's breadth of rounding leaves them where they are.
    nearly = given_box + torch.tensor([1e-4, 1e-4, -1e-4, -1e-4])
    assert negative_point(soft(mask), nearly)[0].tolist() == pytest.approx([column, row], abs=1e-3)


def test_a_negative_point_of_a_box_full_of_lesion_is_just_beside_it():
    p = soft(RECTANGLE)
    assert soft_box(p).tolist() == [[1, 2, 6, 5]]
    assert negative_point(p, soft_box(p)).tolist() == [[0, 1]]
    p = soft(AT_THE_CORNER)
    column, row = negative_point(p, soft_box(p))[0].int().tolist()
    assert (column, row) == (3, 4)
    assert not AT_THE_CORNER[row, column]


@pytest.mark.parametrize(
    ("free", "point", "sides"),
    [
        ((slice(0, 3), slice(0, 3)), [0.3, 1.2], [0, 1]),
        ((slice(0, 3), slice(5, 8)), [5.9, 1.2], [1, 2]),
        ((slice(4, 8), slice(5, 8)), [5.9, 4.8], [2, 3]),
        # No corner is free: the middle of a hole is where it is.
        ((slice(2, 5), slice(2, 5)), [3.0, 3.0], []),
    ],
)
def test_a_negative_point_moves_with_the_sides_that_it_lies_on(free, point, sides):
    p = torch.ones(1, 8, 8)
    p[0][free] = 0
    box = torch.tensor([[0.3, 1.2, 6.9, 5.8]], requires_grad=True)
    found = negative_point(p, box)
    assert found[0].tolist() == pytest.approx(point)
    (flow,) = torch.autograd.grad(found.sum(), box)
    assert flow[0].nonzero().flatten().tolist() == sides


@pytest.mark.parametrize("name", FLOWING)
@pytest.mark.parametrize("seed", [0, 1])
def test_gradients_are_those_of_small_steps(name, seed):
    assert torch.autograd.gradcheck(FLOWING[name], smooth_masks(seed))
    # A mask that is symmetric has ties everywhere.
    even = disc(3.3, (4.5, 5.5), 11).requires_grad_()
    assert torch.autograd.gradcheck(FLOWING[name], even)


def test_gradients_of_faint_masks_are_those_of_small_steps():
    faint = (smooth_masks(2).detach() * 0.3).requires_grad_()
    assert faint.max() < 0.5
    assert torch.autograd.gradcheck(soft_box, faint)
    assert torch.autograd.gradcheck(soft_point, faint)


@pytest.mark.parametrize("value", [0.0, 1e-30, 1e-4, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("name", ["point", "box", "negative", *MASK_STYLES])
def test_constant_masks_have_finite_prompts_and_gradients(name, value):
    p = torch.full((2, 40, 60), value, requires_grad=True)
    found = FLOWING[name](p)
    (flow,) = torch.autograd.grad(found.sum(), p)
    assert found.isfinite().all()
    assert flow.isfinite().all()
    # The reference reaches 1e14 here.
    assert flow.abs().max() < 100
    if name == "box":
        assert (found - torch.tensor([0.0, 0.0, 60.0, 40.0])).abs().max() <= 0.5


def test_a_growing_disc_moves_its_box_and_a_moving_disc_its_point():
    for step in range(40):
        radius, x = 18 + 0.1 * step, 28.3 + 0.1 * step
        box = soft_box(disc(radius, (31.3, 30.6)))[0]
        # Pixel i reaches from i to i + 1, with its index in its middle.
        edges = torch.tensor([31.8 - radius, 31.1 - radius, 31.8 + radius, 31.1 + radius])
        assert (box - edges).abs().max() < 0.6
        point = soft_point(disc(15.0, (x, 30.6)))[0]
        assert (point - torch.tensor([x, 30.6])).abs().max() < 0.6


def rims(p, box):
    """Return, as bool (H, W), the two columns and two rows on the four edges of a box."""
    x0, y0, x1, y1 = box
    on = torch.zeros(p.shape[1:], dtype=bool)
    for column in (x0 - 1, x0, x1 - 1, x1):
        on[:, column] = True
    for row in (y0 - 1, y0, y1 - 1, y1):
        on[row] = True
    return on


@pytest.mark.parametrize("hard", [True, False])
def test_probability_on_its_rim_moves_an_edge_out(hard):
    p = disc(15.0, (31.3, 30.6)).float()
    p = ((p >= 0.5).float() if hard else p).requires_grad_()
    (outward,) = torch.autograd.grad((soft_box(p) * torch.tensor([-1.0, -1, 1, 1])).sum(), p)
    assert (outward >= 0).all()
    # Nothing else is asked.
    box = tight_box(p.detach()[0].numpy() >= 0.5)
    assert not outward[0][~rims(p, box)].any()
    row = 31
    for column in (box[0] - 1, box[0], box[2] - 1, box[2]):
        assert outward[0, row, column] > 0.01
    with torch.no_grad():
        wider = soft_box(p + 0.1 * outward.sign())[0] - soft_box(p)[0]
    assert (wider[:2] < 0).all() and (wider[2:] > 0).all()


def test_probability_to_one_side_draws_a_point_there():
    p = soft(disc(15.0, (31.3, 30.6))[0].numpy() >= 0.5).requires_grad_()
    x = soft_point(p)[0, 0]
    (flow,) = torch.autograd.grad(x, p)
    columns = torch.arange(64)
    inside = p.detach()[0] == 1
    assert (flow[0][inside & (columns > x)] >= 0).all()
    assert (flow[0][inside & (columns < x - 0.01)] <= 0).all()
    assert (flow[0][inside] != 0).float().mean() > 0.8
    # The nearest pixels that are no lesion take part.
    assert flow[0][~inside].any()


def test_faint_masks_have_prompts_where_they_are():
    faint = disc(15.0, (31.3, 30.6)) * 0.2
    box = soft_box(faint)[0]
    assert (box - soft_box(faint * 5)[0]).abs().max() < 1
    assert (soft_point(faint)[0] - torch.tensor([31.3, 30.6])).abs().max() < 0.6


@pytest.mark.parametrize("name", FLOWING)
def test_masks_of_a_batch_do_not_meet(name):
    masks = smooth_masks(3, count=3).detach()
    together = FLOWING[name](masks)
    for one in range(3):
        assert (FLOWING[name](masks[one : one + 1])[0] - together[one]).abs().max() < 1e-12


@pytest.mark.parametrize("name", FLOWING)
def test_half_precision_around_it_changes_nothing(name):
    masks = smooth_masks(4).detach().float()
    expected = FLOWING[name](masks)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = FLOWING[name](masks)
        half = FLOWING[name](masks.bfloat16())
    assert found.dtype == half.dtype == torch.float32
    assert torch.equal(found, expected)
    assert torch.equal(half, FLOWING[name](masks.bfloat16().float()))


def test_mask_prompts_stand_where_those_of_a_finished_mask_do():
    """The one rule of both: of a mask that fills the frame they are the same but for resizing."""
    mask = np.kron(TWO_LESIONS, np.ones((8, 8))).astype(np.float32)
    finished = mask_prompts.mask_prompt_logits(mask, mask.shape, len(mask), 8)
    assert torch.equal(mask_prompt_logits(torch.from_numpy(mask)[None], 8), finished)
    assert probability_logits(torch.tensor([0.0, 0.5, 1.0])).tolist() == [-10, 0, 10]


def test_sharpening_pushes_from_one_half():
    found = sharpen(torch.tensor([0.01, 0.3, 0.5, 0.7, 0.99]))
    assert found.tolist() == pytest.approx([0.0074, 0.1192, 0.5, 0.8808, 0.9926], abs=1e-4)
    assert sharpen(torch.tensor(0.3), 100).item() < 1e-8


def test_what_cannot_be_a_soft_mask_is_refused():
    with pytest.raises(PromptError, match=r"\(B, H, W\), got \(1, 1, 8, 8\)"):
        soft_box(torch.zeros(1, 1, 8, 8))
    broken = torch.zeros(3, 8, 8)
    broken[1, 3, 4] = torch.nan
    broken[2] = 1
    with pytest.raises(PromptError, match="soft mask 1 of 3 holds NaN"):
        soft_point(broken)
    assert soft_box(broken).isnan().all(1).tolist() == [False, True, False]
    with pytest.raises(ConfigError, match="unknown point formula 'centroid'"):
        soft_point(broken, "centroid")
    with pytest.raises(ConfigError, match="unknown box formula 'tight'"):
        soft_box(broken, "tight")
    with pytest.raises(ConfigError, match="Did you mean 'gaussian'"):
        mask_prompt_logits(broken, style="gausian")
