"""UltraSAM gives the numbers of the original detector, from the checkpoint file to the final mask."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from ultrarefiner.prompts.base import Prompt
from ultrarefiner.refine import load_refiner
from ultrarefiner.refine.options import UltraSamOptions

from .ultrasam_formula import FOLDER, ultrasam_formula_state

CASES = {"reference": ["box", "point", "both"], "official": ["official_box", "official_point"]}
ALL = [(compat, case) for compat, cases in CASES.items() for case in cases]


@pytest.fixture(scope="module")
def golden():
    with np.load(FOLDER / "predict.npz") as stored:
        return {key: stored[key] for key in stored.files}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Write the weights as the released file holds them: under `state_dict`, beside `meta`."""
    state = {name: torch.from_numpy(value) for name, value in ultrasam_formula_state().items()}
    path = tmp_path_factory.mktemp("ultrasam") / "UltraSam.pth"
    torch.save({"meta": {"epoch": 8, "iter": 30000}, "state_dict": state}, path)
    yield path
    path.unlink()  # 375 MB that pytest would keep


@pytest.fixture(scope="module")
def refiners(weights):
    return {compat: load_refiner("ultrasam", str(weights), compat=compat) for compat in CASES}


@pytest.fixture(scope="module")
def embeddings(refiners, golden):
    return {compat: one.embed(golden["image_rgb"]) for compat, one in refiners.items()}


def prompts_of(golden, case):
    """Return the prompts in the order of the golden instances: in `both` the point comes first."""
    centre = golden["box"].reshape(2, 2).mean(axis=0)  # what the official pipeline points at
    point = centre if case.startswith("official") else golden["point"]
    box, point = Prompt(box=golden["box"]), Prompt(points=point[None])
    return {"box": [box], "point": [point], "both": [point, box]}[case.removeprefix("official_")]


def unpacked(golden, name):
    shape = golden["image_rgb"].shape[:2]
    bits = np.atleast_2d(golden[name])
    masks = np.unpackbits(bits, axis=1, count=shape[0] * shape[1]).reshape(-1, *shape)
    return masks.astype(bool)


def close(found, wanted, tolerance):
    np.testing.assert_allclose(found, wanted, atol=tolerance, rtol=0)


@pytest.mark.parametrize("compat", CASES)
def test_the_input_tensor_and_the_embedding(refiners, embeddings, golden, compat):
    name = {"reference": "pipeline", "official": "official"}[compat]
    pixels, input_hw = refiners[compat].input_tensor(golden["image_rgb"])
    assert input_hw == (786, 1024) == embeddings[compat].input_size
    np.testing.assert_array_equal(pixels[:, :, ::32, ::32].numpy(), golden[f"{name}_input_s32"])
    found = embeddings[compat].features[None, ::8, ::4, ::4]
    close(found, golden[f"{name}_image_embedding_s"], 5e-5)


@pytest.mark.parametrize(("compat", "case"), ALL)
def test_both_passes(refiners, embeddings, golden, compat, case):
    refiner, embedding = refiners[compat], embeddings[compat]
    queries = [refiner.query(embedding, prompt) for prompt in prompts_of(golden, case)]
    with torch.inference_mode():
        first = refiner.decode_queries(embedding, queries, multimask=False)
        second = [
            refiner._second(embedding, query, logits)
            for query, (logits, _) in zip(queries, first, strict=True)
        ]
        third = refiner.decode_queries(embedding, second, multimask=True)
        masks = refiner.full_masks(embedding, torch.cat([logits for logits, _ in first]))
    stride = 1 if f"{case}_pass1_logits" in golden else 4
    wanted = golden[f"{case}_pass1_logits" + ("" if stride == 1 else "_s4")]
    close(torch.cat([logits for logits, _ in first])[:, ::stride, ::stride], wanted, 2e-4)
    close(torch.cat([ious for _, ious in first]), golden[f"{case}_pass1_score"], 1e-5)
    assert np.count_nonzero(masks.numpy() != unpacked(golden, f"{case}_pass1_inst_mask_bits")) <= 64
    # The boxes of the second pass, before segment-anything's prompt encoder adds its 0.5.
    boxes = np.stack([query.box for query in second]).reshape(-1, 2, 2) + 0.5
    close(boxes, golden[f"{case}_pass2_prompt_boxes"], 1e-4)  # the golden ones are float32
    stride = 2 if f"{case}_pass2_logits_s2" in golden else 4
    logits = torch.stack([logits for logits, _ in third])[..., ::stride, ::stride]
    close(logits, golden[f"{case}_pass2_logits_s{stride}"], 1e-3)
    ious = torch.stack([ious for _, ious in third])
    close(ious, golden[f"{case}_pass2_iou3"], 1e-5)
    assert ious.argmax(dim=1).tolist() == golden[f"{case}_pass2_choice"].tolist()


@pytest.mark.parametrize(("compat", "case"), ALL)
def test_the_final_masks(refiners, embeddings, golden, compat, case):
    refiner, embedding = refiners[compat], embeddings[compat]
    prompts = prompts_of(golden, case)
    each = refiner.refine_each(embedding, prompts)
    close([one.score for one in each], golden[f"{case}_score"], 1e-5)
    wanted = unpacked(golden, f"{case}_inst_mask_bits")
    assert np.count_nonzero(np.stack([one.mask for one in each]) != wanted) <= 64
    joined = refiner.refine(embedding, prompts)
    assert np.count_nonzero(joined.mask != unpacked(golden, f"{case}_mask_bits")[0]) <= 64
    assert 0.05 < joined.mask.mean() < 0.95, "a mask that any model would give proves nothing"
    if f"{case}_pass2_selected_logits" in golden:
        close(each[0].low_res_logits, golden[f"{case}_pass2_selected_logits"][0], 1e-3)


def test_the_threshold_after_upsampling_is_that_of_sam(refiners, embeddings, golden, monkeypatch):
    """Our default at the threshold gives the area that was computed for it beside the golden run."""
    refiner = refiners["reference"]
    changed = {"padding": "before", "half_pixel": False, "scale": "longest", "threshold": "after"}
    monkeypatch.setattr(refiner, "options", UltraSamOptions(**changed))
    mask = refiner.refine(embeddings["reference"], prompts_of(golden, "box")).mask
    info = json.loads((FOLDER / "predict_info.json").read_text())["box"]["alternatives"]
    assert abs(int(mask.sum()) - info["sam_style_logit_interp"]) <= 64


@pytest.mark.slow
def test_bfloat16_changes_less_than_a_thousandth_of_the_pixels(
    refiners, embeddings, golden, weights
):
    exact = refiners["official"]
    rounded = load_refiner("ultrasam", str(weights), compat="official", precision="bfloat16")
    embedding = rounded.embed(golden["image_rgb"])
    for prompt in prompts_of(golden, "box") + prompts_of(golden, "point"):
        wanted = exact.refine(embeddings["official"], prompt).mask
        found = rounded.refine(embedding, prompt).mask
        assert 0 < np.count_nonzero(found != wanted) <= 0.001 * wanted.size
