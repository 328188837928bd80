"""The reference's soft prompts, windows and gates by its numbers, and where ours differ by intent."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.golden.formula import fill_with_formula
from ultrarefiner.models.gates import build_gate, fuse
from ultrarefiner.prompts.geometry import deepest_point, tight_box
from ultrarefiner.prompts.soft import (
    crop_roi,
    mask_prompt_logits,
    negative_point,
    paste_roi,
    roi_around,
    sharpen,
    soft_box,
    soft_point,
)
from ultrarefiner.prompts.soft_geometry import moment_box

FOLDER = Path(__file__).parent / "refiner"
STYLES = ["direct", "gaussian", "distance"]
TOLERANCE = 1e-5
PIXELS = 1e-3
# An empty mask, and a constant one of 1e-4: their gradients say nothing.
USEFUL = [0, 1, 2, 3, 6, 7, 8]


def tensors(name):
    with np.load(FOLDER / name) as stored:
        return {key: torch.from_numpy(stored[key]) for key in stored.files}


@pytest.fixture(scope="module")
def prompts():
    return tensors("prompts.npz")


@pytest.fixture(scope="module")
def roi():
    return tensors("roi.npz")


@pytest.fixture
def masks(prompts):
    return prompts["masks"].clone().requires_grad_()


def close(found, expected, tolerance=TOLERANCE):
    np.testing.assert_allclose(found.detach(), expected, rtol=0, atol=tolerance)


def gradient(scalar, masks):
    return torch.autograd.grad(scalar, masks)[0][:, ::4, ::4]


def close_gradients(found, expected):
    """Compare rows by their own largest entry: they reach from 0.02 to 9000."""
    for row in USEFUL:
        scale = max(float(expected[row].abs().max()), 1.0)
        close(found[row] / scale, expected[row] / scale, 1e-6)


def first_masks(height, width):
    """Return the first four golden masks at another size, by their formulas."""
    rows, columns = np.mgrid[:height, :width].astype(np.float64)

    def radius(y, x, of_y, of_x):
        down, along = (rows - y * height) / (of_y * height), (columns - x * width) / (of_x * width)
        return np.hypot(down, along)

    def sigmoid(z):
        return 1 / (1 + np.exp(-z))

    found = [
        np.exp(-(radius(0.45, 0.55, 0.12, 0.15) ** 2) / 2),
        sigmoid(8 * (1 - radius(0.6, 0.35, 0.2, 0.15))),
        np.maximum(
            0.9 * sigmoid(6 * (1 - radius(0.3, 0.25, 0.1, 0.1))),
            0.6 * sigmoid(6 * (1 - radius(0.75, 0.8, 0.12, 0.08))),
        ),
        sigmoid(10 * (1 - radius(0, 1, 0.25, 0.2))),
    ]
    return torch.from_numpy(np.stack(found).astype(np.float32))


def at_1024():
    small = first_masks(224, 224)[:, None]
    return F.interpolate(small, (1024, 1024), mode="bilinear", align_corners=False)[:, 0]


def test_the_formulas_give_the_stored_masks(prompts):
    close(first_masks(96, 128), prompts["masks"][:4], 1e-7)


@pytest.mark.parametrize("style", STYLES)
def test_mask_prompts(prompts, masks, style):
    found = mask_prompt_logits(masks, style=style)
    close(found[..., ::4, ::4], prompts[f"mask_prompt_{style}_s4"])
    expected = prompts[f"grad_mask_prompt_{style}_s4"]
    close(gradient(found.square().mean(), masks), expected, 1e-8)


@pytest.mark.parametrize("style", STYLES)
def test_mask_prompts_of_larger_masks(prompts, style):
    found = mask_prompt_logits(first_masks(512, 512), style=style)
    close(found[..., ::8, ::8], prompts[f"mask_prompt512_{style}_s8"])
    if style != "distance":
        found = mask_prompt_logits(at_1024(), style=style)
        # The reference's sums of 1089 products are off by 1.2e-5 themselves; ours, of 33, by 3e-6.
        close(found[..., ::8, ::8], prompts[f"up1024_mask_{style}_s8"], 2e-5)


def test_sharpening(prompts):
    close(sharpen(prompts["masks"])[:, ::4, ::4], prompts["sharpened_T10_s4"])


def test_the_points_of_its_moments(prompts, masks):
    found = soft_point(masks, "moments")
    close(found, prompts["point"][:, 0], PIXELS)
    close_gradients(gradient(found.sum(), masks), prompts["grad_point_sum_s4"])
    close(soft_point(at_1024(), "moments"), prompts["up1024_point"][:, 0], PIXELS)


def test_the_boxes_of_its_moments(prompts, masks):
    found = soft_box(masks, "moments")
    close(found, prompts["box"], PIXELS)
    weighted = (found * torch.arange(1.0, 5.0)).sum()
    close_gradients(gradient(weighted, masks), prompts["grad_box_w1234_s4"])
    close(soft_box(at_1024(), "moments"), prompts["up1024_box"], PIXELS)


def test_the_negative_points_of_its_moments(prompts, masks):
    found = negative_point(masks, soft_box(masks, "moments"), "moments")
    # Of a symmetric mask the corners tie, and rounding decides.
    clear = prompts["neg_distance_margin"] > 0.05
    assert clear.sum() >= 4
    close(found[clear], prompts["neg_point"][clear, 0], PIXELS)
    expected = torch.where(clear[:, None, None], prompts["grad_neg_sum_s4"], 0.0)
    found = torch.where(clear[:, None, None], gradient(found.sum(), masks), 0.0)
    close_gradients(found, expected)


@pytest.mark.parametrize("row", [0, 1, 2, 3, 7, 8])
def test_our_boxes_and_points_are_those_of_the_mask_cut_at_one_half(prompts, row):
    """By intent: the reference's boxes are 6 to 30 pixels larger, on images of 96 x 128."""
    mask = prompts["masks"][row]
    box, point = np.array(tight_box(mask.numpy() >= 0.5)), deepest_point(mask.numpy() >= 0.5)
    assert np.abs(soft_box(mask[None]).numpy() - box).max() <= 0.5
    assert np.linalg.norm(soft_point(mask[None]).numpy() - point) <= 0.5
    assert 6 < np.abs(prompts["box"][row].numpy() - box).max() < 31
    # Its point lies 25 pixels away, between the two lesions of the third mask.
    apart = np.linalg.norm(prompts["point"][row].numpy() - point)
    assert 24 < apart < 25 if row == 2 else apart < 1.5


def reference_window(masks, min_size):
    """Return the reference's window, grown as ours, then cut at the image's last pixels."""
    height, width = masks.shape[1:]
    # In so large an image nothing is shifted back.
    far = torch.tensor([width, height] * 2, dtype=torch.float32) * 4
    grown = roi_around(moment_box(masks) + far, height * 9, width * 9, 0.2, min_size) - far
    last = torch.tensor([width, height] * 2) - 1
    return torch.minimum(grown.clamp(min=0), last)


def test_windows_grow_as_the_reference_grows_them(prompts, roi):
    """Only the ends differ: it cuts a window at the image's border, ours is shifted back whole."""
    masks = prompts["masks"]
    close(reference_window(masks, 64), roi["roi_box_default_all"], PIXELS)
    close(reference_window(masks[:4], 32), roi["roi_box_min32"], PIXELS)
    shifted = roi_around(moment_box(masks), 96, 128, 0.2, 64)
    # The fourth is in the corner, the sixth empty at (0, 0): the reference's are narrower than 64.
    assert shifted[3].tolist() == pytest.approx([64, 0, 128, 64])
    assert shifted[5].tolist() == pytest.approx([0, 0, 64, 64])


def test_crops(prompts, roi):
    """They go on beyond the image's edge, where the reference fades to 0: one row of the last."""
    box = roi["roi_box_min32"]
    image, mask = crop_roi(roi["image"], box, 64), crop_roi(prompts["masks"][:4, None], box, 64)
    faded = (box[3, 1] + 0.5 * (box[3, 3] - box[3, 1]) / 64 < 0.5).item()
    assert faded
    close(image[:3, :, ::2, ::2], roi["crop_image"][:3])
    close(mask[:3, 0], roi["crop_mask"][:3])
    close(image[3, :, 2::2, ::2], roi["crop_image"][3, :, 1:])
    close(mask[3, 0, 1:], roi["crop_mask"][3, 1:])
    # At the middle of its first pixels the image is as bright as they are, not darker.
    assert (image[3, :, 0, ::2] - roi["crop_image"][3, :, 0]).min() > 0


def test_the_gradient_of_a_crop_reaches_the_mask_that_chose_it(roi, masks):
    box = reference_window(masks[:2], 32)
    crops = crop_roi(roi["image"][:2], box, 64)
    # The reference's mean is over four images.
    found = gradient(crops.square().mean((1, 2, 3)).sum() / 4, masks)
    expected = roi["grad_crop_wrt_mask_s4"][:2]
    assert expected.abs().amax((1, 2)).min() > 3e-5
    close(found[:2], expected, 2e-8)


def test_pasted_windows(roi):
    """Outside of the window by intent not: the reference has a logit of 0 there."""
    box = roi["roi_box_min32"]
    logits = (2 * roi["crop_mask"] - 1) * 6
    found = paste_roi(logits, box, 96, 128)[:, ::2, ::2]
    rows, columns = torch.arange(0, 96, 2)[:, None], torch.arange(0, 128, 2)
    for row in range(4):
        x0, y0, x1, y1 = box[row].tolist()
        # The reference fades its window in over three pixels.
        inner = (columns > x0 + 3) & (columns < x1 - 3) & (rows > y0 + 3) & (rows < y1 - 3)
        assert inner.sum() > 100
        close(found[row][inner], roi["paste_logits_zero"][row][inner], 6 * TOLERANCE)
        outer = (
            (columns + 0.5 < x0) | (columns + 0.5 >= x1) | (rows + 0.5 < y0) | (rows + 0.5 >= y1)
        )
        assert (found[row][outer] == -20).all()
    # Where the second window is not, half of the reference's image is at a probability of one half.
    assert roi["frac_pixels_exact_zero_logit"][1] > 0.5


UNCERTAINTY = [(1.0, 0.0, 1.0), (1.0, 0.0, 0.8), (2.0, 0.1, 0.8), (0.5, 0.0, 1.0)]


def close_gate(prompts, gate, name):
    golden = tensors("gate.npz")
    p, q = prompts["masks"][:4], golden["sam_prob"]
    found = gate(p, q)
    close(found[:, ::2, ::2], golden[f"{name}.gate_s2"])
    fused = fuse(p.logit(), q.logit(), found).sigmoid()
    close(fused[:, ::2, ::2], golden[f"{name}.refined_s2"])


@pytest.mark.parametrize("values", UNCERTAINTY, ids=str)
def test_gates_by_uncertainty(prompts, values):
    name = "uncertainty_g{}_min{}_max{}".format(*values)
    close_gate(prompts, build_gate("uncertainty", *values), name)


@pytest.mark.parametrize("kind", ["learned", "hybrid"])
def test_learned_gates(prompts, kind):
    gate = build_gate(kind)
    keys = json.loads((FOLDER / "learned_gate_keys.json").read_text())["keys"]
    expected = {row["name"]: row["shape"] for row in keys}
    assert {name: list(part.shape) for name, part in gate.state_dict().items()} == expected
    assert gate.state_dict()["learned_gate.gate_net.4.bias"].item() == -2
    close_gate(prompts, fill_with_formula(gate), kind)
