"""Windows hold what they are around; what is cut out of one comes back to where it was."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.lesions import random_lesion
from ultrarefiner.errors import PromptError
from ultrarefiner.prompts.geometry import tight_box
from ultrarefiner.prompts.soft import crop_roi, paste_roi, roi_around, soft_box, soft_roi
from ultrarefiner.training.refiner_losses import bce, soft_dice

SEEDS = st.integers(0, 20_000)
BOX = torch.tensor([[3.3, 2.1, 14.6, 9.8], [0.4, 1.7, 6.2, 11.9]], dtype=torch.float64)


def soft(mask):
    return torch.from_numpy(mask.astype(np.float32))[None]


def ellipse(side, centre, radii):
    rows, columns = np.mgrid[:side, :side]
    return np.hypot((rows - centre[1]) / radii[1], (columns - centre[0]) / radii[0]) <= 1


@given(SEEDS, st.floats(0.0, 2.0), st.integers(1, 90))
def test_windows_hold_their_lesion_and_stay_in_the_image(seed, expand, least):
    mask = random_lesion(seed)
    height, width = mask.shape
    start, end = soft_roi(soft(mask), expand, least)[0].view(2, 2)
    box = torch.tensor(tight_box(mask)).view(2, 2)
    assert (start <= box[0] + 1e-4).all() and (end >= box[1] - 1e-4).all()
    assert (start >= 0).all() and (end <= torch.tensor([width, height]) + 1e-4).all()
    # As long as asked, or as the image; where that leaves room the box is in the middle.
    asked = ((1 + 2 * expand) * (box[1] - box[0])).clamp(min=least)
    side = torch.minimum(asked, torch.tensor([width, height]))
    assert (end - start - side).abs().max() < 1e-3
    free = (start > 0) & (end < torch.tensor([width, height]) - 1e-3)
    assert ((start + end - box[0] - box[1])[free].abs() < 1e-3).all()


def test_windows_counted_by_hand():
    box = torch.tensor([[40.0, 50, 60, 150], [2, 80, 22, 100], [0, 0, 250, 10]])
    expected = [[18, 30, 82, 170], [0, 58, 64, 122], [0, 0, 250, 64]]
    assert roi_around(box, 200, 250).tolist() == expected
    # Not cut at the image's border but shifted, and at most the image.
    assert roi_around(box[1:2], 200, 50, 0.2, 64).tolist() == [[0, 58, 50, 122]]
    assert roi_around(torch.tensor([[230.0, 190, 250, 200]]), 200, 250).tolist() == [
        [186, 136, 250, 200]
    ]


def test_a_window_moves_with_its_mask():
    p = soft(ellipse(64, (31, 30), (14, 9))).requires_grad_()
    (outward,) = torch.autograd.grad(
        (soft_roi(p, 0.2, 8) * torch.tensor([-1.0, -1, 1, 1])).sum(), p
    )
    (of_box,) = torch.autograd.grad((soft_box(p) * torch.tensor([-1.0, -1, 1, 1])).sum(), p)
    assert outward.sum() > 0.1
    assert torch.allclose(outward, 1.4 * of_box)


def test_a_crop_of_whole_pixels_is_those_pixels():
    image = torch.rand(2, 3, 20, 30)
    box = torch.tensor([[4.0, 5, 12, 13], [22, 12, 30, 20]])
    expected = torch.stack([image[0, :, 5:13, 4:12], image[1, :, 12:20, 22:30]])
    assert (crop_roi(image, box, 8) - expected).abs().max() < 1e-5
    # Twice as many samples lie a quarter of a pixel beside the middles.
    between = crop_roi(image, box, 16)
    assert (
        between[..., 1:3, 1:3].mean((-2, -1)) - expected[..., :2, :2].mean((-2, -1))
    ).abs().max() < 1e-5


@pytest.mark.parametrize("size", [5, 16, 37])
def test_crops_are_those_of_grid_sample(size):
    """PyTorch's own resampling, where it does not look beyond the image."""
    image = torch.rand(2, 3, 13, 17, dtype=torch.float64)
    steps = (torch.arange(size, dtype=torch.float64) + 0.5) / size
    x = BOX[:, 0, None] + steps * (BOX[:, 2] - BOX[:, 0])[:, None]
    y = BOX[:, 1, None] + steps * (BOX[:, 3] - BOX[:, 1])[:, None]
    grid = torch.stack(
        [
            (2 * x / 17 - 1)[:, None].expand(-1, size, -1),
            (2 * y / 13 - 1)[:, :, None].expand(-1, -1, size),
        ],
        dim=-1,
    )
    expected = F.grid_sample(image, grid, padding_mode="border", align_corners=False)
    assert (crop_roi(image, BOX, size) - expected).abs().max() < 1e-12


def test_outside_a_window_nothing_is_half_certain():
    logits = torch.full((2, 8, 8), 3.0)
    pasted = paste_roi(logits, BOX, 13, 17)
    # A pixel is in the window if its middle is.
    inside = torch.zeros(2, 13, 17, dtype=bool)
    inside[0, 2:10, 3:15] = True
    inside[1, 2:12, 0:6] = True
    assert (pasted[inside] - 3).abs().max() < 1e-5
    assert (pasted[~inside] == -20).all()
    coarse = torch.randn(2, 13, 17)
    pasted = paste_roi(logits, BOX, 13, 17, outside=coarse)
    assert torch.equal(pasted[~inside], coarse[~inside].double())
    assert (pasted[inside] - 3).abs().max() < 1e-5


def assert_survives(mask, box, size, sure):
    """Assert that a perfect answer in a window is a nearly perfect one in the image."""
    height, width = mask.shape
    truth = soft(mask)
    cut = crop_roi(truth[:, None], box, size)[:, 0]
    pasted = paste_roi((2 * cut - 1) * sure, box, height, width)
    assert soft_dice(pasted, truth).item() < 0.02
    assert bce(pasted, truth).item() < 0.05


@given(
    st.tuples(st.integers(20, 75), st.integers(20, 75)),
    st.tuples(st.integers(8, 40), st.integers(8, 40)),
    st.floats(0.0, 0.5),
    st.sampled_from([128, 200, 256]),
    st.sampled_from([6.0, 20.0]),
)
def test_a_perfect_mask_survives_the_way_into_its_window_and_back(
    centre, radii, expand, size, sure
):
    """Also where it touches the window's border, or the image's."""
    mask = ellipse(96, centre, radii)
    assert_survives(mask, soft_roi(soft(mask), expand, 32), size, sure)


@given(SEEDS, st.integers(0, 2**31 - 1))
def test_any_perfect_mask_survives_in_any_window(seed, window):
    mask = random_lesion(seed)
    height, width = mask.shape
    assume(mask.sum() > 8)
    x0, y0, x1, y1 = tight_box(mask)
    rng = np.random.default_rng(window)
    # Nothing is left over between it and the lesion, or something, in fractions of pixels.
    out = rng.uniform(0, 4, 4) * rng.integers(0, 2, 4)
    box = [
        max(x0 - out[0], 0),
        max(y0 - out[1], 0),
        min(x1 + out[2], width),
        min(y1 + out[3], height),
    ]
    size = 4 * int(np.ceil(max(box[2] - box[0], box[3] - box[1])))
    assert_survives(mask, torch.tensor([box], dtype=torch.float32), size, 20.0)


def test_gradients_are_those_of_small_steps():
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(2, 1, 7, 9, generator=generator, dtype=torch.float64)
    logits = torch.randn(2, 4, 4, generator=generator, dtype=torch.float64)
    coarse = torch.randn(2, 7, 9, generator=generator, dtype=torch.float64)
    box = torch.tensor([[1.3, 2.1, 6.6, 5.8], [0.4, 1.7, 8.2, 6.9]], dtype=torch.float64)
    image, logits, coarse, box = (part.requires_grad_() for part in (image, logits, coarse, box))
    assert torch.autograd.gradcheck(lambda image, box: crop_roi(image, box, 5), (image, box))
    assert torch.autograd.gradcheck(
        lambda logits, box, coarse: paste_roi(logits, box, 7, 9, coarse), (logits, box, coarse)
    )
    assert torch.autograd.gradcheck(lambda box: roi_around(box, 13, 17, 0.2, 4), box)
    field = torch.linspace(-2, 2, 221, dtype=torch.float64).view(1, 13, 17).sin().square()
    assert torch.autograd.gradcheck(lambda p: soft_roi(p, 0.1, 4), field.requires_grad_())


def test_a_better_window_is_found_by_gradient():
    """The box of a paste moves to where its content belongs."""
    truth = soft(ellipse(64, (34, 30), (12, 12)))
    logits = (2 * crop_roi(truth[:, None], torch.tensor([[18.0, 14, 50, 46]]), 64)[:, 0] - 1) * 6
    box = torch.tensor([[15.0, 16, 47, 48]], requires_grad=True)
    losses = []
    for _ in range(60):
        loss = soft_dice(paste_roi(logits, box, 64, 64), truth).mean()
        (slope,) = torch.autograd.grad(loss, box)
        box = (box - 30 * slope).detach().requires_grad_()
        losses.append(loss.item())
    assert losses[0] > 0.08
    assert losses[-1] < 0.03


def test_a_window_of_no_width_breaks_nothing():
    box = torch.tensor([[5.0, 5.0, 5.0, 9.0]], requires_grad=True)
    pasted = paste_roi(torch.ones(1, 4, 4), box, 12, 12)
    (slope,) = torch.autograd.grad(pasted.sum(), box)
    assert (pasted == -20).all()
    assert slope.isfinite().all()


def test_half_precision_around_it_changes_nothing():
    image, logits = torch.rand(2, 3, 13, 17), torch.randn(2, 6, 6)
    box = BOX.float()
    crops, pasted = crop_roi(image, box, 9), paste_roi(logits, box, 13, 17)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(crop_roi(image, box, 9), crops)
        assert torch.equal(paste_roi(logits, box, 13, 17), pasted)
        assert crop_roi(image.bfloat16(), box, 9).dtype == torch.float32
        assert paste_roi(logits.bfloat16(), box, 13, 17).dtype == torch.float32


def test_a_mask_with_a_channel_is_refused():
    with pytest.raises(PromptError, match="take out its channel"):
        soft_roi(torch.zeros(1, 1, 8, 8))
