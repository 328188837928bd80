"""The reference's losses, their gradients, its choice of masks and its schedules, by its numbers."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from ultrarefiner.config import RefinerLossConfig
from ultrarefiner.prompts.soft import select_mask
from ultrarefiner.training.curriculum import curriculum_order, curriculum_size, difficulty
from ultrarefiner.training.engine import EngineSettings
from ultrarefiner.training.losses import dice_ce_loss, end_to_end_loss, quality_aware_loss
from ultrarefiner.training.refiner_losses import (
    bce,
    change_penalty,
    focal,
    input_quality,
    iou_error,
    refiner_loss,
    soft_dice,
)
from ultrarefiner.training.schedules import learning_rate

FOLDER = Path(__file__).parent / "refiner"
LOSSES = json.loads((FOLDER / "losses.json").read_text())
SCHEDULES = json.loads((FOLDER / "schedules.json").read_text())
OFFLINE = {"focal": 0.0, "change": "correct_pixels"}
TOLERANCE = 1e-5


def tensors(name):
    with np.load(FOLDER / name) as stored:
        return {key: torch.from_numpy(stored[key]) for key in stored.files}


@pytest.fixture(scope="module")
def golden():
    return tensors("losses.npz")


@pytest.fixture
def inputs(golden):
    logits = golden["pred_logits"].clone().requires_grad_()
    return logits, golden["target"], golden["coarse"]


def close(found, expected, tolerance=TOLERANCE):
    found = found.detach() if isinstance(found, torch.Tensor) else found
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)


def gradient(loss, *inputs):
    found = torch.autograd.grad(loss, inputs)
    return found[0] if len(inputs) == 1 else found


def test_terms(golden, inputs):
    expected = LOSSES["phase2_augmented_w0.5"]
    close(bce(*inputs[:2]).mean(), expected["bce"])
    close(soft_dice(*inputs[:2]).mean(), expected["dice"])
    close(focal(*inputs[:2]).mean(), expected["focal"])
    close(change_penalty(*inputs).mean(), expected["change_penalty"])
    close(iou_error(*inputs[:2], golden["iou_pred"]).mean(), expected["iou_loss"])
    offline = LOSSES["phase2_offline_w0.5"]["change_penalty"]
    close(change_penalty(*inputs, "correct_pixels").mean(), offline)


def test_quality_of_the_input_is_from_its_smoothed_dice(inputs):
    dice = np.array(LOSSES["compute_dice_batch"])
    assert dice.mean() == pytest.approx(LOSSES["phase2_augmented_w0.5"]["avg_input_quality"])
    close(input_quality(*inputs[1:]), np.clip((dice - 0.6) / 0.4, 0, 1))


@pytest.mark.parametrize("weight", [0.5, 0.1])
@pytest.mark.parametrize(
    ("name", "options", "predicts"),
    [
        ("phase2_augmented_noiou_w{}", {}, False),
        ("phase2_augmented_w{}", {}, True),
        ("phase2_offline_w{}", OFFLINE, False),
    ],
)
def test_totals(golden, inputs, name, weight, options, predicts):
    total = LOSSES[name.format(weight)]["total"]
    iou = golden["iou_pred"] if predicts else None
    close(quality_aware_loss(*inputs, weight, iou_prediction=iou, **options), total)
    weights = RefinerLossConfig(change_penalty=weight, **options)
    close(refiner_loss(*inputs, iou, weights).mean(), total)


def test_the_total_without_a_penalty(golden, inputs):
    loss = quality_aware_loss(*inputs, 0.0, iou_prediction=golden["iou_pred"])
    close(loss, LOSSES["phase2_combined"]["total"])


def test_gradients(golden, inputs):
    logits = inputs[0]
    augmented, offline = golden["grad_phase2_augmented_w0.1"], golden["grad_phase2_offline_w0.5"]
    # Beside gradients of at most 2e-4 the tolerance of losses would say nothing.
    close(gradient(quality_aware_loss(*inputs, 0.1), logits), augmented, 1e-9)
    with_iou = quality_aware_loss(*inputs, 0.1, iou_prediction=golden["iou_pred"])
    close(gradient(with_iou, logits), augmented, 1e-9)
    close(gradient(quality_aware_loss(*inputs, **OFFLINE), logits), offline, 1e-9)


@pytest.mark.parametrize("classes", [2, 4])
def test_the_coarse_loss(golden, classes):
    logits = golden[f"p1_logits_c{classes}"].clone().requires_grad_()
    loss = dice_ce_loss(logits, golden[f"p1_label_c{classes}"])
    close(loss, LOSSES[f"phase1_c{classes}"]["total"])
    close(gradient(loss, logits), golden[f"grad_p1_c{classes}"], 1e-9)


@pytest.mark.parametrize("weights", [(0.5, 0.5), (0.3, 0.7)])
def test_the_end_to_end_loss(golden, weights):
    coarse = golden["p1_logits_c2"].clone().requires_grad_()
    refined = golden["e2e_refined_logits_hires"].clone().requires_grad_()
    loss = end_to_end_loss(coarse, refined, golden["target"], *weights)
    close(loss, LOSSES["e2e_{}_{}".format(*weights)]["total"])
    if weights == (0.5, 0.5):
        found = gradient(loss, coarse, refined)
        close(found[0][..., ::2, ::2], golden["grad_e2e_coarse"], 1e-9)
        close(found[1][..., ::2, ::2], golden["grad_e2e_refined_s2"], 1e-9)


@pytest.mark.parametrize("weights", [(0.5, 0.5), (0.3, 0.7)])
def test_the_gated_end_to_end_loss(golden, weights):
    refined = golden["pred_logits"].sigmoid()
    coarse, target = golden["p1_logits_c2"], golden["target"]
    loss = end_to_end_loss(coarse, refined, target, *weights, probabilities=True)
    close(loss, LOSSES["e2e_gated_{}_{}".format(*weights)]["total"])


@pytest.mark.parametrize("temperature", ["0.1", "0.01", "1.0"])
def test_soft_selection(temperature):
    golden = tensors("selection.npz")
    iou = golden["iou"].requires_grad_()
    found = select_mask(golden["masks"], iou, float(temperature))
    close(found, golden[f"selected_tau{temperature}"])
    if temperature == "0.1":
        # The sum over 768 pixels: gradients reach 396.
        close(gradient(found.sum(), iou), golden["grad_iou_tau0.1"], 1e-4)


@pytest.mark.parametrize("run", SCHEDULES["curriculum"])
def test_the_curriculum(run):
    samples, epochs = run["total_samples"], run["total_epochs"]
    dices = np.random.default_rng(samples).random(samples)
    for row in run["rows"]:
        epoch = row["epoch"]
        assert difficulty(epoch, epochs) == pytest.approx(row["difficulty"], abs=1e-12)
        assert curriculum_size(samples, epoch, epochs, least=100) == row["n"]
        order = curriculum_order(dices, epoch, epochs, least=100)
        np.testing.assert_array_equal(dices[order], np.sort(dices)[::-1][: row["n"]])


@pytest.mark.parametrize("row", SCHEDULES["poly_lr"])
def test_the_poly_schedule_one_step_earlier(row):
    """The reference sets a rate after the step that it belongs to; here it counts in that step."""
    settings = EngineSettings(epochs=1, lr=row["base_lr"])
    found = learning_rate(settings, row["iter"], row["max_iter"])
    assert found == pytest.approx(row["lr_set_after_step"], rel=1e-12)
