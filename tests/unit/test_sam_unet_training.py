"""Guards SAM-UNet's training: what rests and what learns, masks that share an image, what is kept."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torchvision.models import ResNet
from torchvision.models.resnet import BasicBlock

from tests.refiner_fixture import SAM_UNET, as_published, finetune
from tests.training_fixture import tiny_config, train
from ultrarefiner.errors import WeightsError
from ultrarefiner.io import file_sha256
from ultrarefiner.models.export import export_sam, read_about, save_sam
from ultrarefiner.models.finetuned import ENCODER_OF
from ultrarefiner.models.sam import build_sam
from ultrarefiner.models.sam_unet import TINY, SamUNet, begin_sam_unet, load_sam_unet
from ultrarefiner.models.scratch import start_weights
from ultrarefiner.prompts import Prompt
from ultrarefiner.prompts.noise import shift_box
from ultrarefiner.refine import load_refiner
from ultrarefiner.refine.begin import begin_refiner
from ultrarefiner.training.data import PreparedCases
from ultrarefiner.training.refiner_items import Items

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def trained(toy_study, one_thread, tmp_path_factory):
    """Return the folder of a small SAM-UNet, trained by its recipe."""
    folder = tmp_path_factory.mktemp("sam_unet") / "model"
    return finetune(as_published(), toy_study, None, folder, **SAM_UNET)


def test_all_but_the_encoder_learns(trained):
    begun = begin_sam_unet(None, None, 10, seed=3, random="tiny").state_dict()
    learned = load_sam_unet(trained / "model.safetensors").state_dict()
    assert begun.keys() == learned.keys()
    same = {name for name, value in begun.items() if torch.equal(value, learned[name])}
    rests = {name for name in begun if name.startswith("image_encoder.")}
    assert rests <= same
    # No points and no masks were prompted with, so theirs alone stay beside the encoder.
    silent = ("points", "point_embeddings.0", "point_embeddings.1", "not_a_point", "mask_down")
    others = {n for n in same - rests if not any(part in n for part in silent)}
    assert others == {
        "prompt_encoder.sam_prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"
    }


def test_the_card_and_the_file_say_what_it_is(trained):
    card = json.loads((trained / "card.json").read_text())
    assert card["architecture"]["model"] == "sam_unet"
    assert card["config"]["masks_per_image"] == 5
    about = read_about(trained / "model.safetensors")
    # Its embeddings are its own, though its encoder is another's.
    assert about == {"family": "sam_unet"} and ENCODER_OF not in about


def test_a_trained_model_refines_and_goes_to_its_authors_code(trained, tmp_path):
    refiner = load_refiner("sam_unet", str(trained / "model.safetensors"))
    image = np.random.default_rng(0).integers(0, 255, (90, 120, 3), dtype=np.uint8)
    embedding = refiner.embed(image)
    box = Prompt(box=np.array([20.0, 10.0, 80.0, 70.0]))
    refined = refiner.refine(embedding, [box, box])
    assert refined.mask.shape == (90, 120) and np.isnan(refined.score)
    assert export_sam(trained / "model.safetensors", None, tmp_path / "out.pth") == "sam_unet"
    saved = torch.load(tmp_path / "out.pth", weights_only=True)
    again = load_refiner("sam_unet", str(tmp_path / "out.pth"))
    assert set(saved) == {"model"} and set(saved["model"]) == set(refiner.sam.state_dict())
    found = again.refine(again.embed(image), box).low_res_logits
    np.testing.assert_allclose(found, refined.low_res_logits, atol=1e-5)


def test_what_is_kept_of_the_frozen_part_changes_nothing(trained, toy_study, tmp_path):
    computed = finetune(
        as_published(cache="none"), toy_study, None, tmp_path / "none" / "model", **SAM_UNET
    )
    one, other = (
        load_sam_unet(folder / "model.safetensors").state_dict() for folder in (trained, computed)
    )
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], atol=1e-5, rtol=1e-4, msg=name)


def test_a_random_encoder_has_to_be_asked_for(tmp_path):
    with pytest.raises(WeightsError, match="would stay random; give `weights: sam_vit_b`"):
        begin_refiner("sam_unet", None, "cpu", {})
    model = begin_sam_unet(None, None, 10, random="tiny")
    sam = tmp_path / "sam.pth"
    torch.save({"image_encoder.pos_embed": model.image_encoder.sam_img_encoder.pos_embed}, sam)
    with pytest.raises(WeightsError, match="not a whole checkpoint of SAM"):
        begin_refiner("sam_unet", str(sam), "cpu", {"branch": "random"})


def test_the_reported_fold_has_no_part_in_the_choice(trained, toy_study, tmp_path):
    prepared, splits, roles = toy_study
    changed = tmp_path / "toy" / "prepared"
    for path in prepared.rglob("*"):
        if path.is_file():
            (changed / path.relative_to(prepared)).parent.mkdir(parents=True, exist_ok=True)
            (changed / path.relative_to(prepared)).write_bytes(path.read_bytes())
    for case in roles["test"]:
        path = changed / "npz" / f"{case}.npz"
        with np.load(path) as stored:
            arrays = dict(stored)
        np.savez_compressed(path, **{**arrays, "label": 1 - arrays["label"]})
    again = finetune(as_published(), (changed, splits, roles), None, tmp_path / "model", **SAM_UNET)
    first, second = (json.loads((at / "card.json").read_text()) for at in (trained, again))
    assert first["metrics"] == second["metrics"]
    assert first["weights_sha256"] == second["weights_sha256"]


def test_it_is_a_coarse_model_too(toy_study, tmp_path):
    folder = train(
        tiny_config(model="sam_unet_tiny", image_size=64, epochs=1), toy_study, tmp_path / "model"
    )
    card = json.loads((folder / "card.json").read_text())
    assert card["architecture"]["options"]["resnet"] == 10
    from ultrarefiner.training.coarse_segmenter import CoarseSegmenter

    segmenter = CoarseSegmenter(folder / "model.safetensors", folder / "card.json", "cpu")
    image = np.random.default_rng(0).integers(0, 255, (90, 120, 3), dtype=np.uint8)
    (found,) = segmenter.segment([image])
    assert found.probability.shape == (90, 120)
    assert 0 < found.probability.min() < found.probability.max() < 1


def test_a_tiny_model_has_the_published_ones_shape():
    model = SamUNet.tiny()
    pixels = torch.rand(2, 3, 128, 128)
    logits = model(pixels, boxes=torch.tensor([[0.0, 0, 64, 64], [10, 10, 90, 90]]))
    assert logits.shape == (2, 1, 32, 32)


def test_a_training_begins_as_a_sam_of_any_frame(tmp_path):
    sam = build_sam(replace(TINY, image_size=256)).to_empty(device="cpu")
    start_weights(sam)
    with torch.no_grad():
        sam.image_encoder.pos_embed.normal_()
    path = tmp_path / "sam.safetensors"
    save_sam(path, sam, "sam")
    options = {"branch": "random", "resnet": 10, "image_size": 128}
    refiner, parents = begin_refiner("sam_unet", str(path), "cpu", options, seed=1)
    assert parents == {"sam.safetensors": file_sha256(path)}
    own, given = refiner.sam.state_dict(), sam.state_dict()
    inside = "image_encoder.sam_img_encoder."
    assert torch.equal(
        own[f"{inside}blocks.0.attn.qkv.weight"],
        given["image_encoder.blocks.0.attn.qkv.weight"],
    )
    assert own[f"{inside}pos_embed"].shape == (1, 8, 8, 64)
    # To half the grid without antialiasing: each place is the mean of the four nearest.
    coarse = given["image_encoder.pos_embed"].reshape(1, 8, 2, 8, 2, 64).mean((2, 4))
    torch.testing.assert_close(own[f"{inside}pos_embed"], coarse)
    again, _ = begin_refiner("sam_unet", str(path), "cpu", options, seed=1)
    other, _ = begin_refiner("sam_unet", str(path), "cpu", options, seed=2)
    token = "mask_decoder.med_token.weight"
    assert torch.equal(again.sam.state_dict()[token], own[token])
    assert not torch.equal(other.sam.state_dict()[token], own[token])
    with pytest.raises(WeightsError, match="is a SAM, from which a SAM-UNet can be trained"):
        load_refiner("sam_unet", str(path))


def test_masks_of_one_image_share_a_step(toy_study):
    prepared, _, roles = toy_study
    images = dict.fromkeys(roles["train"][:3], "one.png")
    images |= {case: f"{case}.png" for case in roles["train"][3:]}
    config = as_published(masks_per_image=4)
    items = Items(
        config, PreparedCases(prepared), roles["train"], roles["validation"], images=images
    )
    first = [choices[0].case for choices in items.slots]
    assert first == [roles["train"][0], *roles["train"][3:]]
    drawn = items.together(items.slots[0][0], epoch=0)
    assert len(drawn) == 4 and {one.case for one in drawn[:3]} == set(roles["train"][:3])
    assert len({one.copy for one in drawn}) == 4
    epochs = [[one.case for one in items.together(items.slots[0][0], epoch)] for epoch in range(9)]
    assert len(set(map(tuple, epochs))) > 3
    alone = items.together(items.slots[1][0], epoch=0)
    assert [one.case for one in alone] == [roles["train"][3]] * 4
    # Validation measures each mask, with its box as it is.
    assert [one.case for one in items.fixed()] == roles["validation"]


def test_boxes_shift_as_a_whole_and_no_farther_than_they_may():
    rng = np.random.default_rng(0)
    box, size = (100.0, 60.0, 140.0, 90.0), (256, 512)
    moved = np.array([shift_box(box, 5, rng, size) for _ in range(300)])
    assert np.ptp(moved[:, 2:] - moved[:, :2], axis=0) == pytest.approx(0, abs=1e-9)
    offsets = moved[:, :2] - box[:2]
    # Five pixels of a 256-pixel image are ten of this one.
    assert 8 < np.abs(offsets).max() <= 10
    assert abs(np.corrcoef(offsets.T)[0, 1]) < 0.2
    small = np.array([shift_box((10, 10, 14, 12), 5, rng, size) for _ in range(50)])
    assert np.abs(small[:, :2] - 10).max() <= 1
    edge = np.array([shift_box((0, 0, 40, 40), 5, rng, size) for _ in range(50)])
    assert edge.min() >= 0


def test_the_branch_begins_as_torchvisions(tmp_path):
    small, other = (ResNet(BasicBlock, layers) for layers in ([1, 1, 1, 1], [2, 1, 1, 1]))
    path, wrong = tmp_path / "resnet10.pth", tmp_path / "resnet12.pth"
    torch.save(small.state_dict(), path)
    torch.save(other.state_dict(), wrong)
    options = {"init": "tiny", "resnet": 10}
    refiner, parents = begin_refiner("sam_unet", None, "cpu", {**options, "branch": str(path)})
    assert list(parents) == ["resnet10.pth"]
    own, given = refiner.sam.state_dict(), small.state_dict()
    assert torch.equal(own["resnet.stage0.0.weight"], given["conv1.weight"])
    assert torch.equal(own["resnet.stage4.0.bn2.running_var"], given["layer4.0.bn2.running_var"])
    trained = {name for name, one in refiner.sam.named_parameters() if one.requires_grad}
    assert "resnet.stage0.0.weight" in trained
    with pytest.raises(WeightsError, match=r"a ResNet; nothing was loaded: .*stage1\.1\.conv1"):
        begin_refiner("sam_unet", None, "cpu", {**options, "branch": str(wrong)})
