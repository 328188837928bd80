"""The whole differentiable refiner, image to gradient, by the reference's numbers.

The image is given at 1024 pixels, so that no prompt is scaled: with smaller ones ours lie half a
pixel of the image off the reference's, by intent. Windows differ by intent too (ours have no
logits of 0 outside, hold what they are made for, and no pixels beside the image).
"""

import json
import math
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from tests.golden.formula import formula_state_dict, over_root, standard_normal
from ultrarefiner.config import EndToEndConfig
from ultrarefiner.refine import load_refiner
from ultrarefiner.training.end_to_end_model import EndToEnd, EndToEndSample
from ultrarefiner.training.features import Features, Stage

FOLDER = Path(__file__).parent / "refiner"
SIDE, COARSE = 1024, 224
LOGITS = 2e-3

VARIANTS = {
    "direct": {},
    "gaussian": {"style": "gaussian"},
    "point_box_only": {"prompts": ["box", "point", "negative"]},
    "no_negative": {"prompts": ["mask", "box", "point"]},
}


@pytest.fixture(scope="module")
def golden():
    with np.load(FOLDER / "pipeline.npz") as stored:
        return {key: torch.from_numpy(stored[key]) for key in stored.files}


def formula_image():
    """Return the image, uint8 (224, 224, 3), in whole numbers."""
    y, x, channel = np.mgrid[:COARSE, :COARSE, :3]
    base = (3 * x + 5 * y + 40 * channel) // 4 % 128 + 40 * ((x // 16 + y // 16) % 2)
    cy, cx, ry, rx = 9 * COARSE // 20, 11 * COARSE // 20, COARSE // 5, COARSE // 4
    inside = ((y - cy) * rx) ** 2 + ((x - cx) * ry) ** 2 <= (rx * ry) ** 2
    return np.where(inside, base // 3 + 8 * channel, base + 20).astype(np.uint8)


def formula_mask():
    """Return the coarse mask, float32 (224, 224): an asymmetric lesion with a faint lobe."""
    y, x = (np.mgrid[:COARSE, :COARSE] / COARSE).astype(np.float64)

    def lobe(height, slope, cy, cx, ry, rx):
        away = np.hypot((y - cy) / ry, (x - cx) / rx)
        return height / (1 + np.exp(-slope * (1 - away)))

    both = np.maximum(lobe(0.95, 8, 0.6, 0.35, 0.2, 0.15), lobe(0.35, 6, 0.72, 0.58, 0.12, 0.12))
    return both.astype(np.float32)


class Given(torch.nn.Module):
    """A coarse model that says the same of every image."""

    def __init__(self, probability):
        super().__init__()
        self.z = torch.nn.Parameter(torch.logit(probability.double()).float())

    def forward(self, images):
        return torch.stack([torch.zeros_like(self.z), self.z])[None]


def make_model(weights, **changes):
    """Return the model and the sample of the image, prompted by the reference's formulas."""
    train = {"coarse": {}}
    config = EndToEndConfig(coarse="a", refiner="b", formula="moments", train=train, **changes)
    refiner = load_refiner("sam", str(weights), "cpu", mask_choice="softmax")
    refiner.sam.requires_grad_(False)
    model = EndToEnd(
        Given(torch.from_numpy(formula_mask())), refiner, Features(refiner, None), config
    )
    pixels = torch.from_numpy(formula_image()).permute(2, 0, 1)[None].float()
    enlarged = functional.interpolate(pixels, (SIDE, SIDE), mode="bilinear", align_corners=False)
    normal = (enlarged - refiner.sam.pixel_mean) / refiner.sam.pixel_std
    stage = Stage(normal[0], (SIDE, SIDE), (SIDE, SIDE))
    return model.eval(), stage


def say(model, stage, size):
    pixels = torch.zeros(COARSE, COARSE, 3, dtype=torch.uint8)
    return model([EndToEndSample(pixels, (size, size), (SIDE, SIDE), stage, None)])


def write_weights(path, keys):
    shapes = {row["name"]: row["shape"] for row in json.loads((FOLDER / keys).read_text())["keys"]}
    state = formula_state_dict(shapes)
    # Here positions have the formula of every other matrix.
    name = "image_encoder.pos_embed"
    state[name] = over_root(standard_normal(name, shapes[name]), math.prod(shapes[name][1:]))
    torch.save({name: torch.from_numpy(values) for name, values in state.items()}, path)
    return path


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return write_weights(tmp_path_factory.mktemp("tiny") / "sam.pth", "tiny_sam_keys.json")


def close(found, expected, tolerance):
    torch.testing.assert_close(found.detach(), expected, atol=tolerance, rtol=0)


def test_the_image_is_the_one_of_the_golden_numbers(golden, tiny):
    assert zlib.crc32(formula_image().tobytes()) == int(golden["image_crc32"])
    _, stage = make_model(tiny)
    close(stage.features[:, ::16, ::16], golden["sam_input_s16"], 1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_prompts_masks_and_gradients(golden, tiny, variant):
    expected = {
        key.removeprefix(f"tiny.{variant}."): value
        for key, value in golden.items()
        if key.startswith(f"tiny.{variant}.")
    }
    model, stage = make_model(tiny, **VARIANTS[variant])
    asked = []
    decode = model._refiner.run_passes

    def listen(live, queries):
        answers = decode(live, queries)
        asked.append((live, queries, answers))
        return answers

    model._refiner.run_passes = listen
    output = say(model, stage, COARSE)
    (live, (query,), ((low, iou),)) = asked[0]
    close(query.box[None], expected["boxes"], 1e-3)
    close(query.points[None], expected["points"], 1e-3)
    assert query.labels.tolist() == expected["point_labels"][0].tolist()
    if "mask_input_s8" in expected:
        close(query.mask[None][..., ::8, ::8], expected["mask_input_s8"], 1e-4)
    close(live.features[0, ::32, ::8, ::8], expected["image_embedding_s"], LOGITS)
    close(iou[None], expected["iou"], LOGITS)
    close(low[None][..., ::4, ::4], expected["low_res_s4"], LOGITS)
    close(output.refined_logits[0][None, ::2, ::2], expected["refined224_s2"], LOGITS)
    output.refined_logits[0].mean().backward()
    p = torch.from_numpy(formula_mask())
    gradient = model.coarse.z.grad / (p * (1 - p))
    wanted = expected["grad_mean_refined224_wrt_coarse224_s4"][0]
    close(gradient[::4, ::4], wanted, 2e-3 * float(wanted.abs().max()))
    with torch.no_grad():
        whole = say(model, stage, SIDE).refined_logits[0]
    close(whole[None, ::16, ::16], expected["refined1024_s16"], LOGITS)


def test_the_gate(golden, tiny):
    # These numbers were made with the style that was the default of the reference's command.
    fusion = {"gate": "uncertainty", "maximum": 0.8}
    model, stage = make_model(tiny, style="gaussian", fusion=fusion)
    weights = []
    model.gate.register_forward_hook(lambda module, args, output: weights.append(output))
    with torch.no_grad():
        masks = say(model, stage, SIDE).refined_logits[0].sigmoid()
    close(weights[0][..., ::16, ::16], golden["tiny.gated.gate_s16"], 1e-4)
    close(masks[None, ::16, ::16], golden["tiny.gated.masks_s16"], 1e-3)


@pytest.mark.slow
def test_the_released_size(golden, tmp_path):
    model, stage = make_model(write_weights(tmp_path / "sam.pth", "sam_vit_b_keys.json"))
    with torch.no_grad():
        output = say(model, stage, COARSE)
    close(output.refined_logits[0][None, ::2, ::2], golden["vit_b.direct.refined224_s2"], LOGITS)
