"""Guards: our TransUNet and its ImageNet-21k loader give the published code's numbers."""

from __future__ import annotations

import copy
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from ultrarefiner.models.transunet import TransUNet, load_imagenet21k
from ultrarefiner.models.transunet_weights import POSITION_ARRAY, resize_positions

from .formula import fill_with_formula, formula_tensor, imagenet21k_array, sums

HERE = Path(__file__).parent
FOLDER = HERE / "transunet"
KEYS = json.loads((FOLDER / "keys.json").read_text())
RECIPE = json.loads((HERE / "recipe_check.json").read_text())
# The samples that the golden files hold of each encoder output.
TOKENS = np.s_[:, ::14, ::16]
SKIPS = {
    "skip0": np.s_[:, ::8, ::4, ::4],
    "skip1": np.s_[:, ::8, ::8, ::8],
    "skip2": np.s_[:, ::4, ::16, ::16],
}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def golden():
    with np.load(FOLDER / "forward.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def loaded():
    results = json.loads((FOLDER / "npz_load.json").read_text())
    with np.load(FOLDER / "npz_load.npz") as arrays:
        return results, dict(arrays)


@pytest.fixture(scope="module")
def model():
    return fill_with_formula(TransUNet()).eval()


@pytest.fixture(scope="module")
def arrays():
    return {name: imagenet21k_array(name, shape) for name, shape in KEYS["npz_arrays"]}


def image(pixels: np.ndarray, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return (torch.from_numpy(pixels).float() / 255).to(dtype)


def distance(ours: torch.Tensor, golden: np.ndarray) -> float:
    assert tuple(ours.shape) == golden.shape
    return float(np.abs(ours.numpy() - golden).max())


def statistics(values: torch.Tensor | np.ndarray) -> list[float]:
    flat = np.asarray(values, dtype=np.float64).ravel()
    return [*sums(flat), *flat[:4]]


@pytest.mark.parametrize("row", RECIPE["arrays"], ids=lambda row: row["key"])
def test_formula_reproduces_the_recorded_arrays(row):
    rule = formula_tensor if row["rule"] == "state_dict" else imagenet21k_array
    values = rule(row["key"], row["shape"], RECIPE["seed"])
    assert values.dtype == np.float32
    assert hashlib.sha256(values.tobytes()).hexdigest() == row["sha256"]


def test_state_dict_has_the_published_names_shapes_and_dtypes(model):
    ours = [[n, list(t.shape), str(t.dtype)[6:]] for n, t in model.state_dict().items()]
    assert ours == KEYS["state_dict"]
    assert len(ours) == 409


@torch.no_grad()
def test_logits_and_encoder_for_three_channels(model, golden):
    pixels = image(golden["x3_uint8"])
    assert distance(model(pixels), golden["logits_x3_full"]) < 2e-5
    tokens, skips = model.encode(pixels)
    assert distance(tokens[TOKENS], golden["x3_encoded_tokens_s"]) < 1e-3
    for skip, (name, sample) in zip(skips, SKIPS.items(), strict=True):
        assert distance(skip[sample], golden[f"x3_{name}_s"]) < 1e-3, name


@torch.no_grad()
def test_logits_for_one_channel(model, golden):
    logits = model(image(golden["x1_uint8"]))
    assert distance(logits[..., ::8, ::8], golden["logits_x1_stride8"]) < 2e-5


@torch.no_grad()
def test_logits_and_encoder_in_float64(model, golden):
    double = copy.deepcopy(model).double()
    pixels = image(golden["x1_uint8"], torch.float64)
    tokens, skips = double.encode(pixels)
    logits = double.segmentation_head(double.decoder(tokens, skips, double.grid))
    assert logits.dtype == torch.float64
    assert distance(logits[..., ::8, ::8], golden["logits_x1_f64_stride8"]) < 1e-9
    assert distance(tokens[TOKENS], golden["x1_f64_encoded_tokens_s"]) < 1e-8
    assert distance(skips[0][:, ::16, ::4, ::4], golden["x1_f64_skip0_s"]) < 1e-8
    assert distance(skips[2][SKIPS["skip2"]], golden["x1_f64_skip2_s"]) < 1e-8


# 256 is read from a file whose ResNet norms have the shape (C,), 224 from one with (1, 1, 1, C).
@pytest.mark.parametrize(("size", "flat_norms"), [(224, False), (256, True)])
@torch.no_grad()
def test_imagenet21k_file_loads_as_the_published_loader_does(
    size, flat_norms, model, arrays, loaded, tmp_path
):
    results, golden = loaded
    model = copy.deepcopy(model) if size == 224 else fill_with_formula(TransUNet(size)).eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    path = tmp_path / "R50+ViT-B_16.npz"
    written = {
        name: values.ravel() if flat_norms and values.shape[:3] == (1, 1, 1) else values
        for name, values in arrays.items()
    }
    # The published file also holds a classifier, which has no place in TransUNet.
    np.savez(path, **written, **{"cls": np.zeros((1, 1, 768), np.float32)})
    load_imagenet21k(model, path)

    after = model.state_dict()
    for name, row in results["results"][str(size)].items():
        tensor = after[name]
        assert list(tensor.shape) == row["shape"], name
        assert (not torch.equal(tensor, before[name])) == row["loaded"], name
        if "position" not in name:
            np.testing.assert_allclose(statistics(tensor), row["stats"], rtol=0, atol=1e-9)
    logits = model(image(golden[f"x{size}_uint8"]))
    if size == 224:
        assert distance(logits, golden["logits_224_full"]) < 2e-5
        name = "transformer.embeddings.position_embeddings"
        expected = results["results"]["224"][name]["stats"]
        np.testing.assert_allclose(statistics(after[name]), expected, rtol=0, atol=1e-9)
    else:
        assert distance(logits[..., ::8, ::8], golden["logits_256_stride8"]) < 2e-5


def test_synthetic_file_follows_its_recorded_rule(arrays, loaded):
    checks = loaded[0]["array_checks"]
    assert set(checks) == set(arrays)
    for name, row in checks.items():
        assert list(arrays[name].shape) == row["shape"], name
        np.testing.assert_allclose(statistics(arrays[name]), row["stats"], rtol=0, atol=1e-9)


@pytest.mark.parametrize("grid", [16, 20, 32])
def test_position_grid_is_resized_as_published(grid, arrays, loaded):
    resized = resize_positions(arrays[POSITION_ARRAY], grid).reshape(grid, grid, 768)
    assert distance(resized[..., ::48], loaded[1][f"pos_embed_{16 * grid}_s"]) < 1e-5
