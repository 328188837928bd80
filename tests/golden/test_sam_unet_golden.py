"""SAM-UNet gives its authors' numbers, from the image to the mask, and loads SAM as they do."""

from __future__ import annotations

import json
from pathlib import Path
from zlib import crc32

import numpy as np
import pytest
import torch

from ultrarefiner.models.sam import scale_coordinates
from ultrarefiner.models.sam_unet import SamUNet, take_sam
from ultrarefiner.models.sam_unet_model import unpack
from ultrarefiner.prompts.base import Prompt
from ultrarefiner.prompts.geometry import prompt_from_mask
from ultrarefiner.refine import load_refiner

from .formula import fill_with_formula, over_root, standard_normal, sums

FOLDER = Path(__file__).parent / "sam_unet"
CASES = {"sq256": (256, 256), "rect": (180, 240), "big": (300, 412)}
# Building and filling 138 million numbers takes a while; the branches share all else.
BRANCHES = [34, pytest.param(50, marks=pytest.mark.slow)]


def fill(model):
    """Fill a model by the formula; here its positions of the grid are plain tensors."""
    fill_with_formula(model)
    name = "image_encoder.sam_img_encoder.pos_embed"
    positions = model.state_dict()[name]
    plain = over_root(standard_normal(name, positions.shape), positions[0].numel())
    positions.copy_(torch.from_numpy(plain))
    return model.eval()


def picture(height, width):
    """Return the image of a case: an ellipse on a grid of shades, in whole numbers."""
    y, x = np.mgrid[:height, :width]
    cy, cx, ry, rx = 9 * height // 20, 11 * width // 20, height // 5, width // 4
    inside = (y - cy) ** 2 * rx**2 + (x - cx) ** 2 * ry**2 <= rx**2 * ry**2
    shades = [(3 * x + 5 * y + 40 * c) // 4 % 128 for c in range(3)]
    base = np.stack(shades, -1) + 40 * ((x // 16 + y // 16) % 2)[..., None]
    return np.where(inside[..., None], base // 3 + 8 * np.arange(3), base + 20).astype(np.uint8)


def truth(height, width):
    """Return the mask of a case: an ellipse, and a small square that no box may cover."""
    y, x = np.mgrid[:height, :width]
    cy, cx = 9 * height // 20, 11 * width // 20
    inside = (4 * width * (y - cy)) ** 2 + (5 * height * (x - cx)) ** 2 <= (width * height) ** 2
    inside[height - 20 : height - 8, 6:26] = True
    return inside


@pytest.fixture(scope="module")
def golden():
    with np.load(FOLDER / "forward.npz") as stored:
        return {key: stored[key] for key in stored.files}


@pytest.fixture(scope="module", params=BRANCHES)
def refiner(request, tmp_path_factory):
    """Load a model from a file as its authors save it: a state dict under `model`."""
    path = tmp_path_factory.mktemp("sam_unet") / "epoch9_sam_unet.pth"
    torch.save({"model": fill(SamUNet(request.param)).state_dict()}, path)
    loaded = load_refiner("sam_unet", weights=str(path))
    path.unlink()  # 550 MB that pytest would keep
    assert loaded.sam.resnet_layers == str(request.param)
    return loaded


@pytest.mark.parametrize("resnet", [34, 50])
def test_the_names_and_shapes_are_the_authors(resnet):
    facts = json.loads((FOLDER / f"keys_res{resnet}.json").read_text())
    with torch.device("meta"):
        model = SamUNet(resnet)
    rows = {row["name"]: row for row in facts["keys"]}
    own = {name: list(value.shape) for name, value in model.state_dict().items()}
    assert own == {name: row["shape"] for name, row in rows.items()}
    assert len(own) == facts["n_keys"]
    trained = {name for name, one in model.named_parameters() if one.requires_grad}
    assert trained == {name for name, row in rows.items() if row["trainable"]}
    count = sum(one.numel() for one in model.parameters() if one.requires_grad)
    assert count == facts["n_trainable_elements"]


@pytest.mark.parametrize("case", CASES)
def test_a_box_gives_the_authors_mask(refiner, golden, case):
    image, size = picture(*CASES[case]), CASES[case]
    key = f"res{refiner.sam.resnet_layers}.{case}"
    assert crc32(image.tobytes()) == golden[f"{key}.image_crc32"]
    # The authors prompt with the largest component alone.
    prompt = prompt_from_mask(truth(*size), "box", largest=True)
    np.testing.assert_array_equal(prompt.box, golden[f"{key}.box_orig"][0])
    embedding = refiner.embed(image)
    scaled = scale_coordinates(prompt.box.reshape(2, 2), size, embedding.input_size)
    np.testing.assert_allclose(scaled.ravel(), golden[f"{key}.box_in"][0], atol=1e-4)
    refined = refiner.refine(embedding, prompt)
    np.testing.assert_allclose(
        refined.low_res_logits, golden[f"{key}.low_res"][0, 0], atol=2e-3, rtol=0
    )
    logits = torch.from_numpy(refined.low_res_logits)[None, None]
    full = refiner.sam.postprocess_masks(logits, embedding.input_size, size)[0, 0].numpy()
    np.testing.assert_allclose(
        full[::4, ::4], golden[f"{key}.full_logits_s4"][0, 0], atol=2e-3, rtol=0
    )
    assert refined.mask.shape == size
    assert abs(int(refined.mask.sum()) - int(golden[f"{key}.mask_count"])) <= 4
    assert np.isnan(refined.score)


def test_every_stage_is_the_authors(refiner, golden):
    net, key = refiner.sam, f"res{refiner.sam.resnet_layers}.sq256"
    pixels, _ = refiner.input_tensor(picture(256, 256))
    with torch.inference_mode():
        maps = net.resnet(pixels)
        for number, one in enumerate(maps):
            channels, height, width = one.shape[1:]
            some = one[0, :: channels // 16, :: height // 8, :: width // 8].numpy()
            np.testing.assert_allclose(some, golden[f"{key}.resnet_f{number + 1}_s"], atol=1e-4)
            adapted = net.adapters_in[number](one)[0, ::48, ::2, ::2].numpy()
            np.testing.assert_allclose(adapted, golden[f"{key}.adapter_in{number}_s"], atol=1e-4)
        _, fine = unpack(net.encode(pixels), 256)
        np.testing.assert_allclose(
            fine[0, ::4, ::8, ::8].numpy(), golden[f"{key}.multi_scale_s"], atol=2e-4
        )


def test_several_boxes_and_points_are_decoded_as_the_authors_do(refiner, golden):
    key = f"res{refiner.sam.resnet_layers}.sq256"
    embedding = refiner.embed(picture(256, 256))
    boxes = [Prompt(box=box) for box in golden[f"{key}.two_boxes.in"]]
    found = [one.low_res_logits for one in refiner.refine_each(embedding, boxes)]
    wanted = golden[f"{key}.two_boxes.low_res"][:, 0]
    np.testing.assert_allclose(np.stack(found)[:, ::2, ::2], wanted, atol=2e-3, rtol=0)
    points = Prompt(points=golden[f"{key}.points.in"][0], labels=golden[f"{key}.points.labels"][0])
    found = refiner.refine_one(embedding, points).low_res_logits
    np.testing.assert_allclose(found, golden[f"{key}.points.low_res"][0, 0], atol=2e-3, rtol=0)


def test_sam_fills_what_is_its_own(tmp_path):
    keys = json.loads((FOLDER / "sam_vit_b_load.json").read_text())
    shapes = json.loads((FOLDER.parent / "sam_prompt" / "keys.json").read_text())["state_dict"]
    state = {}
    for name, shape, *_ in shapes:
        normal = standard_normal(name, shape)
        fan = int(np.prod(shape[1:]))
        value = over_root(normal, fan) if len(shape) > 1 else np.float32(0.1) * normal
        if len(shape) == 1 and name.endswith("weight"):
            value = np.float32(1) + value
        state[name] = torch.from_numpy(value)
    path = tmp_path / "sam_vit_b_01ec64.pth"
    torch.save(state, path)
    model = SamUNet(34)
    before = model.mask_decoder.med_token.weight.clone()
    taken = take_sam(model, path)
    path.unlink()
    assert (len(taken.copied), len(taken.interpolated)) == (273, 9)
    assert list(taken.left) == keys["dropped_checkpoint_keys"]
    torch.testing.assert_close(model.mask_decoder.med_token.weight, before)
    own = {
        name.replace("sam_img_encoder.", "")
        .replace("sam_prompt_encoder.", "")
        .replace("sam_mask_decoder.", ""): value.numpy()
        for name, value in model.state_dict().items()
    }
    with np.load(FOLDER / "sam_vit_b_load_interpolated.npz") as interpolated:
        for row in keys["keys"]:
            name, value = row["name"], own[row["name"]]
            if row["status"] == "copied":
                assert name in taken.copied
                assert crc32(value.tobytes()) == row["crc32"], name
                continue
            assert name in taken.interpolated
            some = value[:, ::4, ::4, ::8] if value.ndim == 4 else value
            np.testing.assert_allclose(some, interpolated[name], atol=1e-6, rtol=0)
            np.testing.assert_allclose(sums(value), (row["sum"], row["abs_sum"]), rtol=1e-4)
    encoder = model.eval().image_encoder.sam_img_encoder
    pixels = model.preprocess(torch.from_numpy(picture(256, 256)).permute(2, 0, 1).float())
    with torch.inference_mode(), np.load(FOLDER / "encoder256_after_load.npz") as wanted:
        found = encoder(pixels[None])[0, ::8, ::2, ::2].numpy()
        np.testing.assert_allclose(found, wanted["embedding_s"], atol=5e-5, rtol=0)
