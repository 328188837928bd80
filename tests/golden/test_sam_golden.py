"""SAM ViT-B gives segment-anything's own numbers, from the checkpoint file to the final mask."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from ultrarefiner.models.sam import input_tensor
from ultrarefiner.prompts.base import Prompt
from ultrarefiner.refine import load_refiner
from ultrarefiner.refine.options import SamOptions

from .formula import formula_state_dict

FOLDER = Path(__file__).parent / "sam_prompt"
CASES = ["box", "point", "point_box", "points3", "mask_box"]


@pytest.fixture(scope="module")
def golden():
    with np.load(FOLDER / "predict.npz") as stored:
        return {key: stored[key] for key in stored.files}


@pytest.fixture(scope="module")
def refiner(tmp_path_factory):
    """Load ViT-B from a file of the official layout, weights by formula."""
    shapes = json.loads((FOLDER / "keys.json").read_text())["state_dict"]
    state = formula_state_dict({name: shape for name, shape, *_ in shapes})
    path = tmp_path_factory.mktemp("sam") / "sam_vit_b_formula.pth"
    torch.save({name: torch.from_numpy(values) for name, values in state.items()}, path)
    loaded = load_refiner("sam", weights=str(path), device="cpu")
    path.unlink()  # 375 MB that pytest would keep
    return loaded


@pytest.fixture(scope="module")
def embedding(refiner, golden):
    return refiner.embed(golden["image_rgb"])


@pytest.fixture(scope="module")
def prompts(golden):
    box, point = golden["box"], golden["point"]
    return {
        "box": Prompt(box=box),
        "point": Prompt(points=point, labels=golden["point_label"]),
        "point_box": Prompt(box=box, points=point, labels=golden["point_label"]),
        "points3": Prompt(points=golden["points3"], labels=golden["points3_label"]),
        "mask_box": Prompt(box=box, mask_logits=golden["mask_input"]),
    }


def golden_masks(golden, name):
    """Return the golden masks of a case at every second row and column of the original size."""
    height, width = (golden["image_rgb"].shape[0] + 1) // 2, (golden["image_rgb"].shape[1] + 1) // 2
    bits = np.unpackbits(golden[f"{name}_mask_bits_s2"], axis=1, count=height * width)
    return bits.reshape(-1, height, width).astype(bool)


def test_the_input_tensor_is_the_predictors(refiner, golden):
    pixels, input_hw = input_tensor(golden["image_rgb"], refiner.sam)
    assert input_hw == tuple(golden["input_size"]) == (853, 1024)
    assert pixels.shape == (1, 3, 1024, 1024)
    np.testing.assert_allclose(
        pixels[:, :, ::32, ::32].numpy(), golden["input_tensor_s32"], atol=1e-6, rtol=0
    )
    assert float(pixels.std()) > 0.1
    assert not pixels[..., 853:, :].any()


def test_the_image_embedding_is_the_predictors(embedding, golden):
    assert embedding.features.shape == (256, 64, 64) and embedding.features.dtype == np.float32
    found = embedding.features[None, ::8, ::4, ::4]
    np.testing.assert_allclose(found, golden["image_embedding_s"], atol=5e-5, rtol=0)


@pytest.mark.parametrize("choice", ["multi", "single"])
@pytest.mark.parametrize("case", CASES)
def test_logits_and_predicted_iou_are_the_predictors(
    refiner, embedding, golden, prompts, case, choice
):
    logits, ious = refiner.decode(embedding, prompts[case], multimask=choice == "multi")
    stride = 1 if f"{case}_{choice}_lowres" in golden else 2
    wanted = golden[f"{case}_{choice}_lowres{'' if stride == 1 else '_s2'}"]
    found = logits[:, ::stride, ::stride].numpy()
    np.testing.assert_allclose(found, wanted, atol=5e-5, rtol=0)
    np.testing.assert_allclose(ious.numpy(), golden[f"{case}_{choice}_iou"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("choice", ["multi", "single"])
def test_all_prompts_together_give_the_predictors_masks(
    refiner, embedding, golden, prompts, choice
):
    queries = [refiner.query(embedding, prompts[case]) for case in CASES]
    answers = refiner.decode_queries(embedding, queries, multimask=choice == "multi")
    for case, (logits, ious) in zip(CASES, answers, strict=True):
        name = f"{case}_{choice}"
        found = logits[:, ::2, ::2].numpy()
        wanted = golden.get(f"{name}_lowres_s2")
        wanted = golden[f"{name}_lowres"][:, ::2, ::2] if wanted is None else wanted
        np.testing.assert_allclose(found, wanted, atol=5e-5, rtol=0)
        np.testing.assert_allclose(ious.numpy(), golden[f"{name}_iou"], atol=1e-5, rtol=0)
        masks = refiner.full_masks(embedding, logits).numpy()[:, ::2, ::2]
        assert masks.shape == golden_masks(golden, name).shape
        assert np.count_nonzero(masks != golden_masks(golden, name)) <= 2 * len(masks)


@pytest.mark.parametrize("choice", ["best", "single"])
@pytest.mark.parametrize("case", CASES)
def test_the_final_mask_is_the_predictors(
    refiner, embedding, golden, prompts, case, choice, monkeypatch
):
    monkeypatch.setattr(refiner, "options", SamOptions(mask_choice=choice))
    refined = refiner.refine(embedding, prompts[case])
    name = f"{case}_{'multi' if choice == 'best' else 'single'}"
    best = int(golden[f"{name}_iou"].argmax())
    assert refined.score == pytest.approx(float(golden[f"{name}_iou"][best]), abs=1e-5)
    assert refined.mask.shape == golden["image_rgb"].shape[:2] and refined.mask.dtype == bool
    wanted = golden_masks(golden, name)[best]
    assert 0.01 < wanted.mean() < 0.99, "a mask that any model would give proves nothing"
    # A logit within rounding of 0 may fall on either side.
    assert np.count_nonzero(refined.mask[::2, ::2] != wanted) <= 2
