"""Guards the refiner's loss: each term by hand, each weight's effect, no sample's share of another.

The reference's numbers are in tests/golden.
"""

from typing import get_args

import numpy as np
import pytest
import torch
from torchvision.ops import sigmoid_focal_loss

from ultrarefiner.config import RefinerLossConfig
from ultrarefiner.errors import ConfigError, UltraRefinerError
from ultrarefiner.prompts.soft import select_mask
from ultrarefiner.training.losses import dice_ce_loss, end_to_end_loss, quality_aware_loss
from ultrarefiner.training.refiner_losses import (
    CHANGES,
    bce,
    change_penalty,
    focal,
    input_quality,
    iou_error,
    refiner_loss,
    soft_dice,
)

WEIGHTS = ["bce", "dice", "focal", "iou", "change_penalty"]


@pytest.fixture
def batch():
    """Logits, truth, coarse probability (mostly right) and predicted IoU of three samples."""
    generator = torch.Generator().manual_seed(0)
    target = torch.zeros(3, 12, 10, dtype=torch.bool)
    target[0, 2:9, 3:8] = True
    target[1, 4:, :6] = True
    noise = torch.rand(3, 12, 10, generator=generator)
    coarse = torch.where(target, 0.95 - 0.5 * noise, 0.05 + 0.5 * noise)
    logits = 2 * torch.randn(3, 12, 10, generator=generator)
    return logits.requires_grad_(), target, coarse, torch.tensor([0.4, 0.9, 0.1])


def expected(logits, target, coarse, iou):
    """Return every term by NumPy in float64."""
    z, t, p = (x.detach().numpy().astype(np.float64) for x in (logits, target, coarse))
    q, c = 1 / (1 + np.exp(-z)), p > 0.5
    right, entropy = np.where(t == 1, q, 1 - q), np.logaddexp(0, np.where(t == 1, -z, z))
    overlap, size = (q * t).sum((1, 2)), (q + t).sum((1, 2))
    dice = (2 * (c * t).sum((1, 2)) + 1) / (c.sum((1, 2)) + t.sum((1, 2)) + 1)
    return {
        "bce": entropy.mean((1, 2)),
        "dice": 1 - (2 * overlap + 1) / (size + 1),
        "focal": ((1 - right) ** 2 * entropy).mean((1, 2)),
        "quality": np.clip((dice - 0.6) / 0.4, 0, 1) * ((q - p) ** 2).mean((1, 2)),
        "correct_pixels": (np.abs(q - c) * (c == t)).mean((1, 2)),
        "iou": (iou.numpy() - overlap / (size - overlap + 1)) ** 2,
    }


def test_every_term_is_its_formula(batch):
    logits, target, coarse, iou = batch
    found = {
        "bce": bce(logits, target),
        "dice": soft_dice(logits, target),
        "focal": focal(logits, target),
        "quality": change_penalty(logits, target, coarse),
        "correct_pixels": change_penalty(logits, target, coarse, "correct_pixels"),
        "iou": iou_error(logits, target, iou),
    }
    for name, values in expected(*batch).items():
        assert found[name].dtype == torch.float32
        np.testing.assert_allclose(found[name].detach(), values, rtol=0, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("alpha", [None, 0.25, 0.8])
def test_the_balance_of_the_focal_loss_is_that_of_torchvision(batch, alpha):
    logits, target, *_ = batch
    pixels = sigmoid_focal_loss(logits, target.float(), -1 if alpha is None else alpha)
    theirs = pixels.mean((1, 2)).detach()
    np.testing.assert_allclose(focal(logits, target, alpha=alpha).detach(), theirs, atol=1e-6)
    weights = RefinerLossConfig(
        bce=0, dice=0, focal=3.0, focal_alpha=alpha, iou=0, change_penalty=0
    )
    np.testing.assert_allclose(refiner_loss(*batch, weights).detach(), 3 * theirs, atol=1e-6)


@pytest.mark.parametrize("change", ["quality", "correct_pixels"])
def test_the_loss_is_the_weighted_sum_and_its_mean_the_public_one(batch, change):
    parts = expected(*batch)
    weights = RefinerLossConfig(
        bce=0.7, dice=1.3, focal=0.2, iou=0.4, change_penalty=0.9, change=change
    )
    total = 0.7 * parts["bce"] + 1.3 * parts["dice"] + 0.2 * parts["focal"] + 0.4 * parts["iou"]
    total += 0.9 * parts[change]
    np.testing.assert_allclose(refiner_loss(*batch, weights).detach(), total, rtol=0, atol=1e-5)
    *masks, iou = batch
    public = quality_aware_loss(*masks, 0.9, focal=0.2, iou_prediction=iou, iou=0.4, change=change)
    same = refiner_loss(*batch, weights.model_copy(update={"bce": 1.0, "dice": 1.0})).mean()
    assert public.item() == pytest.approx(same.item(), abs=1e-7)


def test_a_samples_loss_does_not_depend_on_its_batch(batch):
    together = refiner_loss(*batch, RefinerLossConfig())
    alone = [
        refiner_loss(*(part[i : i + 1] for part in batch), RefinerLossConfig()) for i in range(3)
    ]
    np.testing.assert_allclose(together.detach(), torch.cat(alone).detach(), rtol=0, atol=1e-6)


def loss_and_gradients(batch, **changes):
    *masks, iou = batch
    iou = iou.clone().requires_grad_()
    loss = refiner_loss(*masks, iou, RefinerLossConfig(**changes))
    gradients = torch.autograd.grad(loss.sum(), (masks[0], iou), allow_unused=True)
    return loss.detach(), *(torch.zeros(1) if g is None else g for g in gradients)


@pytest.mark.parametrize("name", WEIGHTS)
def test_every_weight_has_an_effect_on_loss_and_gradient(batch, name):
    loss, *gradients = loss_and_gradients(batch)
    doubled = {name: 2 * getattr(RefinerLossConfig(), name)}
    other, *others = loss_and_gradients(batch, **doubled)
    # The last sample's coarse mask may be bad enough for a change to cost nothing.
    assert (other > loss).sum() >= 2
    moved = [not torch.allclose(a, b) for a, b in zip(gradients, others, strict=True)]
    assert moved == ([False, True] if name == "iou" else [True, False])


def test_the_kind_of_change_penalty_has_an_effect(batch):
    one, other = (loss_and_gradients(batch, change=change) for change in CHANGES)
    assert (one[0] != other[0]).all() and not torch.allclose(one[1], other[1])


def test_every_field_of_the_config_is_tested_here():
    assert set(RefinerLossConfig.model_fields) == {*WEIGHTS, "focal_alpha", "change"}
    assert set(get_args(RefinerLossConfig.model_fields["change"].annotation)) == set(CHANGES)


@pytest.mark.parametrize("name", WEIGHTS)
def test_a_weight_of_0_removes_its_term(batch, name):
    parts = expected(*batch) | {"change_penalty": expected(*batch)["quality"]}
    defaults = RefinerLossConfig()
    total = sum(getattr(defaults, other) * parts[other] for other in WEIGHTS if other != name)
    found = loss_and_gradients(batch, **{name: 0.0})[0]
    np.testing.assert_allclose(found, total, rtol=0, atol=1e-5)


def test_what_a_removed_term_would_read_cannot_spoil_the_rest(batch):
    logits, target, coarse, iou = batch
    weights = RefinerLossConfig(change_penalty=0, iou=0)
    clean = refiner_loss(*batch, weights)
    spoilt = refiner_loss(logits, target, coarse * np.nan, iou * np.nan, weights)
    assert torch.equal(clean, spoilt)
    alone = refiner_loss(logits, target, coarse, None, RefinerLossConfig(change_penalty=0))
    assert torch.equal(clean, alone)


def test_changing_a_bad_mask_costs_nothing_and_a_perfect_one_most():
    target = torch.zeros(3, 20, 20)
    target[:, 5:15, 5:15] = 1
    coarse = target.clone()
    coarse[1, 5:8, 5:15] = 0  # Dice 0.82
    coarse[2] = 1 - target[2]
    quality = input_quality(target, coarse)
    np.testing.assert_allclose(quality, [1, (141 / 171 - 0.6) / 0.4, 0], atol=1e-6)
    penalty = change_penalty(torch.zeros(3, 20, 20), target, coarse)
    np.testing.assert_allclose(penalty, 0.25 * quality, rtol=1e-6)


def test_only_pixels_that_were_right_hold_the_mask(batch):
    logits, target, coarse, _ = batch
    wrong = coarse.clone()
    wrong[0, 5, 5] = 0.1  # lesion, missed
    loss = change_penalty(logits, target, wrong, "correct_pixels").sum()
    (gradient,) = torch.autograd.grad(loss, logits)
    assert gradient[0, 5, 5] == 0
    assert (gradient[0, 4] != 0).all()


def test_the_mask_does_not_follow_its_predicted_iou(batch):
    logits, target, _, iou = batch
    assert not iou_error(logits, target, iou).requires_grad
    iou.requires_grad_()
    iou_error(logits, target, iou).sum().backward()
    assert logits.grad is None and (iou.grad != 0).all()


@pytest.mark.parametrize("truth", ["empty", "full", "lesion"])
@pytest.mark.parametrize("level", [-60.0, 0.0, 60.0])
@pytest.mark.parametrize("change", CHANGES)
def test_extreme_masks_and_logits_give_finite_numbers(truth, level, change):
    target = torch.zeros(2, 8, 8, dtype=torch.bool)
    target[:] = truth == "full"
    target[:, 2:5, 2:5] |= truth == "lesion"
    logits = torch.full((2, 8, 8), level, requires_grad=True)
    iou = torch.full((2,), 0.5, requires_grad=True)
    for coarse in (torch.zeros(2, 8, 8), torch.ones(2, 8, 8)):
        loss = refiner_loss(logits, target, coarse, iou, RefinerLossConfig(change=change))
        gradients = torch.autograd.grad(loss.sum(), (logits, iou))
        assert all(torch.isfinite(part).all() for part in (loss, *gradients))
        assert (loss >= 0).all()


@pytest.mark.parametrize("truth", [0.0, 1.0])
def test_a_perfect_answer_to_an_empty_or_full_mask_has_no_loss(truth):
    target = torch.full((1, 64, 64), truth)
    iou = torch.full((1,), truth)
    loss = refiner_loss(60 * target - 30, target, target, iou, RefinerLossConfig())
    assert loss.item() < 1e-6


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_single(batch, dtype):
    logits, target, coarse, iou = (part.detach() for part in batch)
    halves = [part.to(dtype) for part in (logits, coarse, iou)]
    # So large that sums in float16 would overflow, and in bfloat16 lose most digits.
    large = [part.repeat(1, 80, 80) if part.ndim == 3 else part for part in (*halves, target)]
    found = refiner_loss(large[0], large[3], large[1], large[2], RefinerLossConfig())
    exact = refiner_loss(
        large[0].float(), large[3], large[1].float(), large[2].float(), RefinerLossConfig()
    )
    assert found.dtype == torch.float32 and torch.isfinite(found).all()
    np.testing.assert_allclose(found, exact, rtol=0, atol=1e-6)
    with torch.autocast("cpu", torch.bfloat16):
        again = refiner_loss(large[0], large[3], large[1], large[2], RefinerLossConfig())
    assert torch.equal(again, found)


def test_float_and_bool_truth_are_the_same(batch):
    logits, target, coarse, iou = batch
    one = refiner_loss(*batch, RefinerLossConfig())
    other = refiner_loss(logits, target.float(), coarse, iou, RefinerLossConfig())
    assert torch.equal(one, other)


def test_tensors_that_do_not_belong_together_fail(batch):
    logits, target, coarse, iou = batch
    for wrong in (
        (logits[:, None], target, coarse, iou),
        (logits, target[:1], coarse, iou),
        (logits, target, coarse[:, None], iou),
        (logits, target, coarse, iou[:, None]),
    ):
        with pytest.raises(UltraRefinerError, match=r"one size \(B, H, W\)"):
            refiner_loss(*wrong, RefinerLossConfig())


def test_an_unknown_change_penalty_names_the_known_ones(batch):
    with pytest.raises(ConfigError, match="Did you mean 'quality'"):
        quality_aware_loss(*batch[:3], change="qualty")


def test_soft_selection_lies_between_the_mean_and_the_best():
    logits = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    iou = torch.tensor([[0.1, 0.9, 0.3], [0.8, 0.2, 0.1]])
    best = torch.stack([logits[0, 1], logits[1, 0]])
    np.testing.assert_allclose(select_mask(logits, iou, 1e-3), best, atol=1e-6)
    np.testing.assert_allclose(select_mask(logits, iou, 1e6), logits.mean(1), atol=1e-5)
    both, alone = select_mask(logits, iou), select_mask(logits[1:], iou[1:])
    np.testing.assert_allclose(both[1:], alone, atol=1e-6)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(select_mask(logits, iou), both)


def end_to_end(target, classes=2, size=(24, 20)):
    generator = torch.Generator().manual_seed(3)
    coarse = torch.randn(3, classes, 12, 10, generator=generator)
    return end_to_end_loss(coarse, torch.randn(3, *size, generator=generator), target).item()


def test_the_target_may_come_at_either_size(batch):
    small = batch[1]
    large = small.repeat_interleave(2, 1).repeat_interleave(2, 2)
    for kind in (torch.bool, torch.uint8, torch.int64, torch.float32):
        assert end_to_end(large.to(kind)) == pytest.approx(end_to_end(small.to(kind)), abs=1e-7)


def test_a_target_that_is_no_multiple_is_not_shifted():
    # A square about the middle of 30 x 25 pixels; on 12 x 10 and 24 x 20 it is about theirs.
    target = torch.zeros(1, 30, 25, dtype=torch.bool)
    target[:, 10:20, 5:20] = True
    coarse = torch.zeros(1, 2, 12, 10)
    inside = torch.zeros(1, 12, 10, dtype=torch.bool)
    inside[:, 4:8, 2:8] = True
    coarse[:, 1][inside] = 60.0
    coarse[:, 0][~inside] = 60.0
    refined = (inside.float() * 120 - 60).repeat_interleave(2, 1).repeat_interleave(2, 2)
    assert end_to_end_loss(coarse, refined, target).item() < 1e-6


def test_every_foreground_class_is_foreground_to_the_refiner():
    generator = torch.Generator().manual_seed(4)
    target = torch.randint(0, 4, (2, 12, 10), generator=generator)
    coarse = torch.randn(2, 4, 12, 10, generator=generator)
    refined = torch.randn(2, 24, 20, generator=generator)
    found = end_to_end_loss(coarse, refined, target) - 0.5 * dice_ce_loss(coarse, target)
    two = torch.randn(2, 2, 12, 10, generator=generator)
    binary = (target > 0).float()
    same = end_to_end_loss(two, refined, binary) - 0.5 * dice_ce_loss(two, binary)
    assert found.item() == pytest.approx(same.item(), abs=1e-6)


def test_logits_and_their_probabilities_have_the_same_loss(batch):
    coarse = torch.zeros(3, 2, 12, 10)
    logits, target = batch[0].detach(), batch[1]
    one = end_to_end_loss(coarse, logits, target)
    other = end_to_end_loss(coarse, logits.sigmoid(), target, probabilities=True)
    assert one.item() == pytest.approx(other.item(), abs=1e-6)


def test_sure_probabilities_give_a_finite_loss_also_under_autocast(batch):
    target = batch[1]
    gated = (~target).float().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        loss = end_to_end_loss(torch.zeros(3, 2, 12, 10), gated, target, probabilities=True)
    (gradient,) = torch.autograd.grad(loss, gated)
    assert torch.isfinite(loss) and torch.isfinite(gradient).all()
