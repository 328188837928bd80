"""Guards the losses: their values by hand, and that no case's loss depends on its batch."""

import numpy as np
import pytest
import torch
from torchvision.ops import sigmoid_focal_loss

from ultrarefiner.training.counts import confusion_counts, mean_measures, measures
from ultrarefiner.training.losses import (
    coarse_loss,
    cross_entropy,
    deep_supervision_loss,
    dice_ce_loss,
    list_outputs,
    soft_dice_loss,
)


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 2, 6, 5, generator=generator)
    target = torch.randint(0, 2, (3, 6, 5), generator=generator)
    target[2] = 0
    return logits, target


def softmax(logits):
    exp = np.exp(logits - logits.max(1, keepdims=True))
    return exp / exp.sum(1, keepdims=True)


def test_soft_dice_is_of_the_foreground_of_each_sample(batch):
    logits, target = batch
    q, t = softmax(logits.numpy().astype(np.float64))[:, 1], target.numpy()
    expected = [1 - (2 * (q[i] * t[i]).sum() + 1) / (q[i].sum() + t[i].sum() + 1) for i in range(3)]
    assert soft_dice_loss(logits, target).numpy() == pytest.approx(expected, abs=1e-6)


def test_coarse_loss_weighs_its_terms(batch):
    logits, target = batch
    q = softmax(logits.numpy().astype(np.float64))
    ce = -np.log(np.take_along_axis(q, target.numpy()[:, None], 1)).mean((1, 2, 3))
    assert cross_entropy(logits, target).numpy() == pytest.approx(ce, abs=1e-6)
    dice = soft_dice_loss(logits, target).numpy()
    loss = coarse_loss(logits, target, ce=0.3, dice=0.9).numpy()
    assert loss == pytest.approx(0.3 * ce + 0.9 * dice, abs=1e-6)


def test_the_focal_term_is_of_the_two_classes_probabilities(batch):
    logits, target = batch
    q = softmax(logits.numpy().astype(np.float64))
    right = np.take_along_axis(q, target.numpy()[:, None], 1)[:, 0]
    each = (1 - right) ** 2 * -np.log(right)
    balanced = np.where(target.numpy() == 1, 0.3, 0.7) * each
    rest = coarse_loss(logits, target, 0.2, 20.0).numpy()
    for alpha, terms in ((None, each), (0.3, balanced)):
        loss = coarse_loss(logits, target, 0.2, 20.0, focal=1.5, focal_alpha=alpha).numpy()
        assert loss == pytest.approx(rest + 1.5 * terms.mean((1, 2)), abs=1e-5)
        theirs = sigmoid_focal_loss(
            logits[:, 1] - logits[:, 0], target.float(), -1 if alpha is None else alpha
        ).mean((1, 2))
        found = coarse_loss(logits, target, 0.0, 0.0, focal=1.0, focal_alpha=alpha)
        assert found.numpy() == pytest.approx(theirs.numpy(), abs=1e-6)


def test_the_focal_term_tells_any_foreground_from_the_background():
    logits = torch.randn(2, 4, 5, 6, generator=torch.Generator().manual_seed(1))
    target = torch.arange(60).reshape(2, 5, 6) % 4
    background = softmax(logits.numpy().astype(np.float64))[:, 0]
    right = np.where(target.numpy() == 0, background, 1 - background)
    found = coarse_loss(logits, target, 0.0, 0.0, focal=1.0)
    assert found.numpy() == pytest.approx(
        ((1 - right) ** 2 * -np.log(right)).mean((1, 2)), abs=1e-6
    )


@pytest.mark.parametrize("options", [{}, {"focal": 1.0, "focal_alpha": 0.25}])
def test_a_samples_loss_does_not_depend_on_its_batch(batch, options):
    logits, target = batch
    together = coarse_loss(logits, target, **options)
    alone = torch.cat(
        [coarse_loss(logits[i : i + 1], target[i : i + 1], **options) for i in range(3)]
    )
    assert together.numpy() == pytest.approx(alone.numpy(), abs=1e-6)


def test_perfect_logits_have_no_loss():
    target = torch.zeros(1, 8, 8, dtype=torch.long)
    target[0, 2:5, 3:7] = 1
    logits = torch.stack([1.0 - target, target.float()], 1) * 60 - 30
    assert coarse_loss(logits, target).item() < 1e-6
    assert coarse_loss(-logits, target).item() > 10


def test_deep_supervision_weighs_coarser_outputs_half_as_much(batch):
    logits, target = batch
    outputs = [logits, 2 * logits, -logits]
    one, two, three = (coarse_loss(output, target).numpy() for output in outputs)
    loss = deep_supervision_loss(outputs, lambda output: coarse_loss(output, target))
    assert loss.numpy() == pytest.approx((4 * one + 2 * two + three) / 7, abs=1e-6)
    assert loss.shape == (3,)


def test_a_single_output_has_its_plain_loss_to_the_bit(batch):
    logits, target = batch
    assert list_outputs([logits, target])[1] is target
    (only,) = list_outputs(logits)
    loss = deep_supervision_loss([only], lambda output: coarse_loss(output, target))
    assert torch.equal(loss, coarse_loss(logits, target))


@pytest.mark.parametrize("classes", [2, 4])
def test_dice_ce_loss_is_the_published_formula(classes):
    rng = np.random.default_rng(classes)
    logits = rng.normal(size=(2, classes, 5, 7))
    target = rng.integers(0, classes, (2, 5, 7))
    q = softmax(logits)
    terms = []
    for k in range(classes):
        t = (target == k).astype(float)
        size = (q[:, k] ** 2).sum() + (t**2).sum()
        terms.append(1 - (2 * (q[:, k] * t).sum() + 1e-5) / (size + 1e-5))
    ce = -np.log(np.take_along_axis(q, target[:, None], 1)).mean()
    loss = dice_ce_loss(torch.tensor(logits), torch.tensor(target))
    assert loss.item() == pytest.approx(0.5 * ce + 0.5 * np.mean(terms), abs=1e-6)
    as_float = dice_ce_loss(torch.tensor(logits), torch.tensor(target, dtype=torch.float32))
    assert as_float.item() == loss.item()


def test_counts_by_hand():
    prediction = torch.tensor([[[1, 1, 0], [0, 0, 0]]], dtype=torch.bool)
    truth = torch.tensor([[[1, 0, 0], [1, 1, 0]]], dtype=torch.bool)
    counts = confusion_counts(prediction, truth)
    assert counts.tolist() == [[1, 1, 2, 2]]
    found = {name: value.item() for name, value in measures(counts).items()}
    assert found == pytest.approx(
        {"dice": 2 / 5, "iou": 1 / 4, "precision": 1 / 2, "recall": 1 / 3, "accuracy": 3 / 6}
    )


def test_empty_masks_follow_the_policy():
    both_empty, missed, invented = [0, 0, 0, 9], [0, 0, 4, 5], [0, 4, 0, 5]
    found = measures(torch.tensor([both_empty, missed, invented]))
    for name in ("dice", "iou", "precision", "recall"):
        assert found[name].tolist() == [1, 0, 0], name


def test_measures_are_means_of_cases_not_of_pixels():
    large, small = [900, 0, 0, 100], [0, 0, 10, 990]
    assert mean_measures(torch.tensor([large, small]))["dice"] == 0.5
