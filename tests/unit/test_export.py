"""Guards what is written of a model: it loads back whole, gives equal masks, or is refused."""

from __future__ import annotations

import json
import logging
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from typer.testing import CliRunner

from tests.sam_fixture import tiny_sam, write_mobile_sam, write_tiny_sam, write_tiny_ultrasam
from ultrarefiner.cli import app
from ultrarefiner.errors import ConfigError, OutputError, WeightsError
from ultrarefiner.models.export import export_sam, read_about, save_sam
from ultrarefiner.models.lora import add_lora, merge_lora
from ultrarefiner.models.sam import load_sam
from ultrarefiner.models.ultrasam import to_ultrasam
from ultrarefiner.prompts.base import Prompt
from ultrarefiner.refine import load_refiner

SIDE = 256
WRITERS = {"sam": write_tiny_sam, "ultrasam": write_tiny_ultrasam}


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """Return a file of each family as it is published."""
    folder = tmp_path_factory.mktemp("published")
    return {family: write(folder / f"{family}.pth", side=SIDE) for family, write in WRITERS.items()}


@pytest.fixture
def tuned(published, tmp_path):
    """Return, by family, a file that finetuning could have written: LoRA merged, decoder moved."""

    def make(family):
        sam = load_sam(published[family], family)
        rng = torch.Generator().manual_seed(3)
        add_lora(sam, seed=0)
        with torch.no_grad():
            for name, value in sam.named_parameters():
                if "lora_B" in name or name.startswith("mask_decoder."):
                    value.add_(0.02 * torch.randn(value.shape, generator=rng))
        path = tmp_path / f"{family}.safetensors"
        save_sam(path, merge_lora(sam), family, {"note": "fold 0"})
        return path

    return make


def masks(path, family):
    """Return what a refiner makes of prompts with these weights."""
    refiner = load_refiner(family, weights=str(path), device="cpu")
    image = np.random.default_rng(0).integers(0, 255, (90, 120, 3), dtype=np.uint8)
    embedding = refiner.embed(image)
    prompts = [
        Prompt(box=np.array([20.0, 20.0, 90.0, 70.0])),
        Prompt(points=np.array([[60.0, 45.0]]), labels=np.array([1])),
    ]
    refined = refiner.refine_each(embedding, prompts)
    return np.stack([one.low_res_logits for one in refined]), [one.score for one in refined]


def assert_same_masks(one, other, family):
    for found, wanted in zip(masks(one, family), masks(other, family), strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-6, rtol=0)


@pytest.mark.parametrize("family", WRITERS)
def test_a_saved_model_loads_back_to_the_bit_and_without_a_warning(
    published, tuned, family, caplog
):
    path = tuned(family)
    sam = load_sam(path, family)
    save_sam(path.with_name("again.safetensors"), sam, family, {"note": "fold 0"})
    assert path.read_bytes() == path.with_name("again.safetensors").read_bytes()
    again = load_sam(path.with_name("again.safetensors"), family)
    assert all(torch.equal(v, sam.state_dict()[key]) for key, v in again.state_dict().items())
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert_same_masks(path, path.with_name("again.safetensors"), family)
    assert not np.allclose(masks(path, family)[0], masks(published[family], family)[0], atol=1e-3)
    with safe_open(path, framework="pt") as stored:
        names = set(stored.keys())
    state = tiny_sam(side=SIDE).state_dict()
    assert names == set(to_ultrasam(state) if family == "ultrasam" else state)


def test_a_mobile_sam_loads_back_to_the_bit(tmp_path):
    published = write_mobile_sam(tmp_path / "mobile_sam.pt")
    sam = load_sam(published, "mobile_sam")
    with torch.no_grad():
        sam.mask_decoder.iou_token.weight.add_(1.0)
    save_sam(tmp_path / "tuned.safetensors", sam, "mobile_sam")
    again = load_sam(tmp_path / "tuned.safetensors", "mobile_sam").state_dict()
    assert all(torch.equal(value, again[key]) for key, value in sam.state_dict().items())
    with safe_open(tmp_path / "tuned.safetensors", framework="pt") as stored:
        names = {key for key in stored.keys() if not key.endswith("num_batches_tracked")}  # noqa: SIM118
    assert names == set(torch.load(published, weights_only=True))
    with pytest.raises(ConfigError, match=r"no layout for family 'mobile_sam'.*use it as it is"):
        export_sam(tmp_path / "tuned.safetensors", None, tmp_path / "out.pth")


def test_a_file_says_what_it_is(tuned, published, tmp_path):
    path = tuned("sam")
    assert read_about(path) == {"family": "sam", "note": "fold 0"}
    with safe_open(path, framework="pt") as stored:
        metadata = stored.metadata()
    assert list(metadata) == ["about"], "several entries would come in an order that changes"
    assert json.loads(metadata["about"]) == {"family": "sam", "note": "fold 0"}
    assert read_about(published["sam"]) == {}
    state = {"a": torch.zeros(1)}
    for name, about in (("none", None), ("other", {"about": "a cat"}), ("list", {"about": "[1]"})):
        save_file(state, tmp_path / name, metadata=about)
        assert read_about(tmp_path / name) == {}
    with pytest.raises(WeightsError, match=r"cannot read weights .*absent\.safetensors: No such"):
        read_about(tmp_path / "absent.safetensors")


def test_the_sam_layout_is_a_plain_state_dict_for_the_released_classes(tuned, tmp_path):
    path = tuned("sam")
    assert export_sam(path, None, tmp_path / "plain.pth") == "sam"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        state = torch.load(tmp_path / "plain.pth", weights_only=True)
    assert all(type(value) is torch.Tensor and not value.requires_grad for value in state.values())
    released = tiny_sam(side=SIDE)
    released.load_state_dict(state, strict=True)
    sam = load_sam(path)
    pixels = torch.randn(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found, wanted = released.image_encoder(pixels), sam.image_encoder(pixels)
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=0)
    assert_same_masks(tmp_path / "plain.pth", path, "sam")


def test_the_ultrasam_layout_is_that_of_the_released_file(tuned, published, tmp_path):
    path = tuned("ultrasam")
    assert export_sam(path, "ultrasam", tmp_path / "ultra.pth", "ultrasam") == "ultrasam"
    content = torch.load(tmp_path / "ultra.pth", weights_only=True)
    wanted = torch.load(published["ultrasam"], weights_only=True)
    assert content.keys() == wanted.keys() == {"meta", "state_dict"}
    assert content["meta"] == {"family": "ultrasam", "note": "fold 0"}
    assert {k: v.shape for k, v in content["state_dict"].items()} == {
        k: v.shape for k, v in wanted["state_dict"].items()
    }
    assert_same_masks(tmp_path / "ultra.pth", path, "ultrasam")


@pytest.mark.parametrize("family", WRITERS)
def test_published_files_export_too_and_twice_to_the_same_bytes(published, tmp_path, family):
    for name in ("a.pth", "b.pth"):
        export_sam(published[family], family, tmp_path / name, family)
    assert (tmp_path / "a.pth").read_bytes() == (tmp_path / "b.pth").read_bytes()
    # Neither numbers of other tensors nor temporary names come along.
    assert (tmp_path / "a.pth").stat().st_size < 1.1 * published[family].stat().st_size
    assert_same_masks(tmp_path / "a.pth", published[family], family)


@pytest.mark.parametrize(("family", "layout"), [("sam", "ultrasam"), ("ultrasam", "sam")])
def test_a_family_is_not_written_in_a_layout_that_computes_differently(
    published, tmp_path, family, layout
):
    says = f"is of family '{family}', .* would compute other masks .* Use layout '{family}'"
    with pytest.raises(ConfigError, match=says):
        export_sam(published[family], family, tmp_path / "out.pth", layout)
    assert not (tmp_path / "out.pth").exists()


def test_a_file_that_says_its_family_is_not_taken_for_another(tuned, tmp_path):
    with pytest.raises(ConfigError, match="says that it is of family 'sam', not 'ultrasam'"):
        export_sam(tuned("sam"), "ultrasam", tmp_path / "out.pth", "ultrasam")


def test_a_model_is_not_saved_as_what_it_is_not(published, tmp_path):
    sam, ultrasam = load_sam(published["sam"]), load_sam(published["ultrasam"], "ultrasam")
    for model, own, other in ((sam, "sam", "ultrasam"), (ultrasam, "ultrasam", "sam")):
        with pytest.raises(ConfigError, match=f"one of family '{own}' does; called '{other}'"):
            save_sam(tmp_path / "x.safetensors", model, other)
    with pytest.raises(ConfigError, match="family 'sam' cannot be said to be 'ultrasam'"):
        save_sam(tmp_path / "x.safetensors", sam, "sam", {"family": "ultrasam"})
    with pytest.raises(ConfigError, match="unknown SAM family 'samm'"):
        save_sam(tmp_path / "x.safetensors", sam, "samm")
    with pytest.raises(
        ConfigError, match="unknown layout 'onnx'; known: medsam2, sam, sam_unet, ultrasam"
    ):
        export_sam(published["sam"], "sam", tmp_path / "x.pth", "onnx")
    assert not list(tmp_path.iterdir())


def test_a_model_that_nobody_could_load_is_not_saved(published, tmp_path):
    sam = load_sam(published["sam"])
    with pytest.raises(WeightsError, match=r"has LoRA layers.*Merge them first"):
        save_sam(tmp_path / "x.safetensors", add_lora(sam), "sam")
    merge_lora(sam)
    with torch.no_grad():
        sam.mask_decoder.iou_token.weight[0, 3] = torch.inf
    with pytest.raises(WeightsError, match=r"1 tensors .* such as mask_decoder\.iou_token\.weight"):
        save_sam(tmp_path / "x.safetensors", sam, "sam")
    assert not list(tmp_path.iterdir())


def test_a_save_that_fails_leaves_what_was_there(published, tmp_path, monkeypatch):
    sam = load_sam(published["sam"])
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"before")

    def full(self, data):
        raise OSError(28, "No space left on device", str(self))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OutputError, match="the disk is full"):
        save_sam(path, sam, "sam")
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


def test_files_can_be_read_by_the_group_where_the_umask_allows(published, tmp_path):
    save_sam(tmp_path / "model.safetensors", load_sam(published["sam"]), "sam")
    export_sam(tmp_path / "model.safetensors", None, tmp_path / "plain.pth")
    plain = tmp_path / "touched"
    plain.touch()
    modes = {path.stat().st_mode for path in tmp_path.iterdir()}
    assert modes == {plain.stat().st_mode}


def run(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return result.exit_code, " ".join(result.output.split())


def test_the_command_reads_the_family_off_the_file(tuned, tmp_path):
    path = tuned("ultrasam")
    status, output = run("export", path, "-o", tmp_path / "out.pth")
    assert status == 0 and "layout ultrasam" in output
    assert_same_masks(tmp_path / "out.pth", path, "ultrasam")
    status, output = run("export", path, "-o", tmp_path / "out.pth")
    assert status == 1 and "out.pth exists; name a file that does not" in output


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--layout", "ultrasam"], "would compute other masks"),
        (["--family", "mobile_sam"], "no layout for family 'mobile_sam'"),
        (["--family", "smasam"], "unknown SAM family 'smasam'"),
        (["--layout", "sma"], "Did you mean 'sam'?"),
    ],
)
def test_the_command_refuses_with_the_reason(published, tmp_path, arguments, says):
    status, output = run("export", published["sam"], "-o", tmp_path / "out.pth", *arguments)
    assert status == 1 and says in output
    assert not (tmp_path / "out.pth").exists()


def test_the_command_refuses_a_wrong_file(tmp_path):
    torch.save({"a": torch.zeros(1)}, tmp_path / "wrong.pth")
    status, output = run("export", tmp_path / "wrong.pth", "-o", tmp_path / "out.pth")
    assert status == 1 and "has nothing of a checkpoint of SAM" in output
    status, output = run("export", tmp_path / "absent.pth", "-o", tmp_path / "out.pth")
    assert status == 1 and "No such file" in output
