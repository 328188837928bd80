"""MedSAM2 gives its authors' numbers: prompts of images, and objects followed through a volume."""

from __future__ import annotations

import json
import math
from pathlib import Path
from zlib import crc32

import numpy as np
import pytest
import torch

from ultrarefiner.models.export import save_sam
from ultrarefiner.models.medsam2 import VolumeSegmenter, load_medsam2
from ultrarefiner.models.medsam2_model import unpack
from ultrarefiner.models.medsam2_names import to_theirs
from ultrarefiner.models.medsam2_tracking import Tracker
from ultrarefiner.prompts.base import Prompt
from ultrarefiner.refine import load_refiner

from .formula import formula_tensor, over_root, standard_normal

FOLDER = Path(__file__).parent / "medsam2"
CASES = {"sq512": (512, 512), "rect": (300, 420)}
DEPTH, HEIGHT, WIDTH = 6, 96, 80
KEY = 3
PRESENCE = "sam_mask_decoder.pred_obj_score_head.layers.2.bias"


def tensors():
    """Return the 471 tensors by the formula; here positions of the grid are plain tensors too."""
    found = {}
    for one in json.loads((FOLDER / "keys.json").read_text())["keys"]:
        name, shape = one["name"], tuple(one["shape"])
        if name.endswith("pos_embed"):
            values = over_root(standard_normal(name, shape), math.prod(shape[1:]))
        else:
            values = formula_tensor(name, shape)
        found[name] = torch.from_numpy(np.ascontiguousarray(values))
    # As drawn, no object would ever be there.
    found[PRESENCE] = torch.full_like(found[PRESENCE], 10.0)
    return found


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """The weights as they are published: a state dict under "model"."""
    path = tmp_path_factory.mktemp("medsam2") / "MedSAM2_latest.pt"
    torch.save({"model": tensors()}, path)
    return path


@pytest.fixture(scope="module")
def segmenter(checkpoint):
    return load_medsam2(checkpoint)


@pytest.fixture(scope="module")
def refiner(checkpoint):
    return load_refiner("medsam2", checkpoint)


def stored(name):
    with np.load(FOLDER / name) as archive:
        return {key: archive[key] for key in archive.files}


def picture(height, width):
    """Return the image of a case: an ellipse on a grid of shades, in whole numbers."""
    y, x, c = np.mgrid[:height, :width, :3]
    base = (3 * x + 5 * y + 40 * c) // 4 % 128 + 40 * ((x // 16 + y // 16) % 2)
    cy, cx, ry, rx = 9 * height // 20, 11 * width // 20, height // 5, width // 4
    inside = (y - cy) ** 2 * rx**2 + (x - cx) ** 2 * ry**2 <= rx**2 * ry**2
    return np.where(inside, base // 3 + 8 * c, base + 20).astype(np.uint8)


def lesion():
    """Return where the volume's object is, bool (D, H, W)."""
    z, y, x = np.mgrid[:DEPTH, :HEIGHT, :WIDTH]
    radius = 18 - 2 * abs(z - KEY)
    return 2 * (y - 44 - 2 * z) ** 2 + 3 * (x - 38 - z) ** 2 <= 2 * radius**2


def volume():
    """Return the volume, uint8 (D, H, W)."""
    z, y, x = np.mgrid[:DEPTH, :HEIGHT, :WIDTH]
    base = (4 * x + 3 * y + 11 * z) % 97 + 30 * ((x // 8 + y // 8 + z) % 2)
    return np.where(lesion(), base // 4 + 10, base + 90).astype(np.uint8)


def prompts_of(golden, case):
    y, x = np.mgrid[:128, :128]
    mask = np.where(4 * (y - 58) ** 2 + 3 * (x - 70) ** 2 <= 3600, 6.0, -6.0).astype(np.float32)
    assert crc32(mask[None].tobytes()) == golden[f"{case}.mask_input_crc32"]
    box, point, two = (golden[f"{case}.{name}"] for name in ("box", "point", "points2"))
    one = {"points": point, "labels": [1]}
    return {
        "box": Prompt(box=box),
        "point": Prompt(**one),
        "points2": Prompt(points=two, labels=[1, 0]),
        "box_point": Prompt(box=box, **one),
        "mask_point": Prompt(mask_logits=mask, **one),
        "mask": Prompt(mask_logits=mask),
        "box_mask": Prompt(box=box, mask_logits=mask),
    }


def test_every_tensor_has_a_place_and_goes_back_to_its_name(segmenter, tmp_path):
    wanted = tensors()
    given = to_theirs(segmenter.model.state_dict())
    assert given.keys() == wanted.keys()
    assert all(torch.equal(given[name], wanted[name]) for name in wanted)
    save_sam(tmp_path / "model.safetensors", segmenter.model, "medsam2")
    again = load_medsam2(tmp_path / "model.safetensors").model.state_dict()
    assert all(
        torch.equal(again[name], value) for name, value in segmenter.model.state_dict().items()
    )


@pytest.mark.parametrize("case", CASES)
def test_prompts_of_an_image(refiner, case):
    golden = stored("image_predictor.npz")
    image = picture(*CASES[case])
    assert crc32(image.tobytes()) == golden[f"{case}.image_crc32"]
    embedding = refiner.embed(image)
    seen, finer = unpack(torch.from_numpy(embedding.features)[None])
    parts = [
        refiner.sam.without_memory(seen).detach()[0, ::16, ::4, ::4],
        finer[0][0, ::4, ::16, ::16],
    ]
    parts.append(finer[1][0, ::8, ::8, ::8])
    for name, part in zip(("image_embed_s", "high_res0_s", "high_res1_s"), parts, strict=True):
        np.testing.assert_allclose(part, golden[f"{case}.{name}"], atol=1e-4)
    compared = 0
    for kind, prompt in prompts_of(golden, case).items():
        for several in (0, 1):
            name = f"{case}.{kind}.multi{several}"
            if f"{name}.low_res" not in golden:
                continue
            logits, ious = refiner.decode(embedding, prompt, bool(several))
            full = refiner.sam.postprocess_masks(logits[:, None], (512, 512), image.shape[:2])[:, 0]
            low_res = logits[:, ::4, ::4] if case == "rect" else logits
            np.testing.assert_allclose(low_res, golden[f"{name}.low_res"], atol=1e-3)
            np.testing.assert_allclose(ious, golden[f"{name}.iou"], atol=1e-4)
            np.testing.assert_allclose(full[:, ::8, ::8], golden[f"{name}.full_s8"], atol=1e-3)
            compared += 1
    assert (
        compared
        == {"sq512": 14, "rect": sum(key.endswith("low_res") and "rect" in key for key in golden)}[
            case
        ]
    )


@pytest.fixture(scope="module")
def encoded(segmenter):
    """The slices of the volume, encoded once."""
    with torch.inference_mode():
        return [segmenter.encode(pixels) for pixels in volume()]


@pytest.fixture(scope="module")
def golden_volume():
    golden = stored("volume.npz")
    assert crc32(volume().tobytes()) == golden["volume_crc32"]
    return golden


def follow(segmenter, encoded, prompts, key, order, binarise=True, shortcut=False):
    """Yield what is found on the slices of one pass."""
    model = segmenter.model
    with torch.inference_mode():
        tracker = Tracker(model, DEPTH, reverse=order[-1] < order[0], binarise=binarise)
        for index in order:
            if index == key:
                tokens = [segmenter.embed(one, (HEIGHT, WIDTH), shortcut) for one in prompts]
                yield tracker.prompt(index, encoded[index], tokens)
            else:
                yield tracker.step(index, encoded[index])


def compare(segmenter, golden, group, tracked, pixels=3):
    """Compare what was found on a slice with the golden numbers; return the logits at full size."""
    name = f"{group}.f{tracked.index}"
    for number in range(len(tracked.logits)):
        stem = f"{name}.obj{number}"
        np.testing.assert_allclose(
            tracked.logits[number, ::2, ::2], golden[f"{stem}.low_res_s2"], atol=1e-3
        )
        np.testing.assert_allclose(
            tracked.pointers[number, ::8], golden[f"{stem}.obj_ptr_s8"], atol=1e-3
        )
        np.testing.assert_allclose(
            tracked.presence[number], golden[f"{stem}.object_score"][0], atol=1e-4
        )
        memory = tracked.memory[number, ::8, ::8, ::8].float()
        np.testing.assert_allclose(memory, golden[f"{stem}.maskmem_s"], rtol=0.01, atol=2e-3)
    return segmenter.model.postprocess_masks(tracked.logits[:, None], (0, 0), (HEIGHT, WIDTH))[:, 0]


@pytest.mark.parametrize("group", ["ct_box", "ct_mask"])
def test_a_volume_is_followed_both_ways(segmenter, encoded, golden_volume, group):
    golden = golden_volume
    if group == "ct_box":
        prompt = Prompt(box=golden["box"])
    else:
        packed = np.unpackbits(golden["ct_mask.mask_prompt"])[: HEIGHT * WIDTH]
        prompt = Prompt(mask=packed.reshape(HEIGHT, WIDTH).astype(bool))
    for way in ("fwd", "rev"):
        order = golden[f"{group}.{way}.frames"].tolist()
        for tracked in follow(segmenter, encoded, [prompt], KEY, order, shortcut=True):
            full = compare(segmenter, golden, f"{group}.{way}", tracked)
            stem = f"{group}.{way}.f{tracked.index}"
            np.testing.assert_allclose(full[:, ::2, ::2], golden[f"{stem}.logits_s2"], atol=1e-3)
            assert abs(int((full > 0).sum()) - int(golden[f"{stem}.pos_count"][0])) <= 3


def test_a_volume_from_a_point(segmenter, encoded, golden_volume):
    prompt = Prompt(points=[[40, 50]], labels=[1])
    order = golden_volume["ct_point.fwd.frames"].tolist()
    for tracked in follow(segmenter, encoded, [prompt], KEY, order):
        compare(segmenter, golden_volume, "ct_point.fwd", tracked)


@pytest.mark.slow
def test_two_objects_from_masks(segmenter, encoded, golden_volume):
    other = np.zeros((HEIGHT, WIDTH), dtype=bool)
    other[70:88, 8:30] = True
    prompts = [Prompt(mask=lesion()[0]), Prompt(mask=other)]
    decoder = segmenter.model.mask_decoder
    order = golden_volume["video2obj.fwd.frames"].tolist()
    decoder.dynamic_multimask_via_stability = False  # as that script has it
    try:
        for tracked in follow(segmenter, encoded, prompts, 0, order, binarise=False, shortcut=True):
            compare(segmenter, golden_volume, "video2obj.fwd", tracked)
    finally:
        decoder.dynamic_multimask_via_stability = True


@pytest.mark.slow
@pytest.mark.parametrize(("group", "bias"), [("noobj", None), ("noobj_neg10", -10.0)])
def test_an_object_that_is_absent(segmenter, encoded, golden_volume, group, bias):
    drawn = torch.from_numpy(np.ascontiguousarray(formula_tensor(PRESENCE, (1,))))
    last = segmenter.model.mask_decoder.pred_obj_score_head.proj_out.bias
    kept = last.detach().clone()
    last.data.copy_(drawn if bias is None else torch.full_like(drawn, bias))
    try:
        order = golden_volume[f"{group}.fwd.frames"].tolist()
        prompt = Prompt(box=golden_volume["box"])
        for tracked in follow(segmenter, encoded, [prompt], KEY, order):
            compare(segmenter, golden_volume, f"{group}.fwd", tracked)
    finally:
        last.data.copy_(kept)


@pytest.mark.slow
def test_segment_volume_is_the_union_of_both_ways(segmenter, golden_volume):
    masks = segmenter.segment_volume(volume(), {KEY: Prompt(box=golden_volume["box"])})
    size = DEPTH * HEIGHT * WIDTH
    union = np.unpackbits(golden_volume["ct_box.seg_union"])[:size].reshape(masks.shape)
    assert np.count_nonzero(masks != union.astype(bool)) <= 3 * DEPTH
    counts = masks.sum(axis=(1, 2)) - golden_volume["ct_box.seg_union_count"]
    assert np.abs(counts).max() <= 3


def test_a_mask_goes_through_the_decoder_unless_the_authors_way_is_asked_for(segmenter, encoded):
    truth = lesion()[KEY]
    for shortcut in (True, False):
        (found,) = follow(segmenter, encoded, [Prompt(mask=truth)], KEY, [KEY], shortcut=shortcut)
        full = VolumeSegmenter(segmenter.model).model.postprocess_masks(
            found.logits[:, None], (0, 0), truth.shape
        )
        mask = full[0, 0].numpy() > 0
        dice = 2 * np.count_nonzero(mask & truth) / (mask.sum() + truth.sum())
        # Random weights cannot segment; only the shortcut gives the mask back.
        assert (dice > 0.95) == shortcut, dice
