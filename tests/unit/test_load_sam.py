"""A SAM checkpoint loads whole, whatever its size and wrapping, or is refused with its reason."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file
from segment_anything import sam_model_registry

from tests.sam_fixture import tiny_sam, write_tiny_sam
from ultrarefiner.errors import WeightsError
from ultrarefiner.models.sam import build_sam, infer_architecture, load_sam


@pytest.fixture(scope="module")
def state():
    return tiny_sam().state_dict()


def save(state, path):
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    return path


def assert_same(sam, state):
    loaded = sam.state_dict()
    assert list(loaded) == list(state)
    assert all(torch.equal(loaded[key], state[key]) for key in state)


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".safetensors"])
def test_every_file_type_gives_the_same_weights_ready_to_use(state, tmp_path, suffix):
    sam = load_sam(write_tiny_sam(tmp_path / f"tiny{suffix}"))
    assert_same(sam, state)
    assert not sam.training and not sam.image_encoder.training
    tensors = [*sam.parameters(), *sam.buffers()]
    assert {value.device.type for value in tensors} == {"cpu"}
    assert {value.dtype for value in tensors} == {torch.float32}
    assert all(parameter.requires_grad for parameter in sam.parameters())
    assert sam.pixel_mean.flatten().tolist() == pytest.approx([123.675, 116.28, 103.53])


@pytest.mark.parametrize("wrapper", [None, "model", "state_dict", "model_state_dict"])
@pytest.mark.parametrize("prefix", ["", "module.", "sam.", "model.", "module.sam."])
def test_known_wrappers_and_prefixes_are_taken_off(state, tmp_path, wrapper, prefix):
    named = {prefix + key: value for key, value in state.items()}
    content = named if wrapper is None else {wrapper: named, "epoch": 3, "optimizer": {"lr": 0.1}}
    assert_same(load_sam(save(content, tmp_path / "wrapped.pth")), state)


def test_half_precision_files_become_float32(state, tmp_path):
    half = {key: value.half() for key, value in state.items()}
    sam = load_sam(save(half, tmp_path / "half.pth"))
    assert_same(sam, {key: value.float() for key, value in half.items()})


def test_saved_pixel_constants_are_accepted_when_they_are_sams_own(state, tmp_path):
    own = {
        "pixel_mean": torch.tensor([123.675, 116.28, 103.53]).view(3, 1, 1),
        "pixel_std": torch.tensor([58.395, 57.12, 57.375]).view(3, 1, 1),
    }
    assert_same(load_sam(save({**state, **own}, tmp_path / "own.pth")), state)
    other = {**own, "pixel_mean": torch.tensor([0.485, 0.456, 0.406])}
    with pytest.raises(WeightsError, match=r"pixel_mean is .*0.485"):
        load_sam(save({**state, **other}, tmp_path / "other.pth"))


@pytest.mark.parametrize(
    ("depth", "global_blocks", "side"), [(3, (0, 2), 1024), (1, (), 512), (2, (0, 1), 256)]
)
def test_the_architecture_is_read_off_the_shapes(tmp_path, depth, global_blocks, side):
    made = tiny_sam(1, depth, global_blocks, side)
    sam = load_sam(save(made.state_dict(), tmp_path / "other_sizes.pth"))
    assert sam.image_encoder.img_size == side
    assert [block.window_size for block in sam.image_encoder.blocks] == [
        0 if index in global_blocks else 14 for index in range(depth)
    ]
    pixels = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        found, wanted = sam.image_encoder(pixels), made.image_encoder(pixels)
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["vit_b", "vit_l", "vit_h"])
def test_the_official_sizes_are_recognised(tmp_path, name):
    with torch.device("meta"):
        official = sam_model_registry[name]()
    architecture = infer_architecture(tmp_path / "x.pth", official.state_dict())
    built = build_sam(architecture)
    assert {key: value.shape for key, value in built.state_dict().items()} == {
        key: value.shape for key, value in official.state_dict().items()
    }
    for ours, theirs in zip(built.image_encoder.blocks, official.image_encoder.blocks, strict=True):
        assert ours.window_size == theirs.window_size
        assert ours.attn.num_heads == theirs.attn.num_heads
        assert ours.norm1.eps == theirs.norm1.eps
    ours, theirs = built.mask_decoder.transformer, official.mask_decoder.transformer
    assert ours.num_heads == theirs.num_heads
    assert built.prompt_encoder.input_image_size == official.prompt_encoder.input_image_size
    assert built.prompt_encoder.mask_input_size == official.prompt_encoder.mask_input_size


def test_a_missing_key_is_named(state, tmp_path):
    key = "mask_decoder.iou_token.weight"
    part = {name: value for name, value in state.items() if name != key}
    with pytest.raises(WeightsError, match=f"1 missing: {key}"):
        load_sam(save(part, tmp_path / "part.pth"))


def test_many_missing_keys_are_counted_and_the_first_ten_named(state, tmp_path):
    part = {key: value for key, value in state.items() if ".blocks.1." not in key}
    part["image_encoder.blocks.1.attn.proj.bias"] = state["image_encoder.blocks.1.attn.proj.bias"]
    with pytest.raises(WeightsError, match=r"13 missing: image_encoder.blocks.1.*and 3 more"):
        load_sam(save(part, tmp_path / "part.pth"))


def test_an_unexpected_key_is_named(state, tmp_path):
    extra = {**state, "refiner.gate.weight": torch.zeros(3)}
    with pytest.raises(WeightsError, match=r"1 unexpected: refiner\.gate\.weight"):
        load_sam(save(extra, tmp_path / "extra.pth"))


@pytest.mark.parametrize(
    ("key", "shape"),
    [
        ("prompt_encoder.point_embeddings.2.weight", (1, 128)),
        ("image_encoder.neck.0.weight", (128, 48, 1, 1)),
        ("image_encoder.blocks.1.attn.rel_pos_h", (63, 24)),
        ("mask_decoder.mask_tokens.weight", (3, 256)),
    ],
)
def test_a_tensor_of_another_shape_is_named_with_both_shapes(state, tmp_path, key, shape):
    bad = {**state, key: torch.zeros(shape)}
    with pytest.raises(WeightsError) as caught:
        load_sam(save(bad, tmp_path / "bad.pth"))
    if key == "mask_decoder.mask_tokens.weight":  # tells the number of masks, so others misfit
        assert "output_hypernetworks_mlps.3.layers.0.weight" in str(caught.value)
    else:
        assert f"{key} {shape} instead of {tuple(state[key].shape)}" in str(caught.value)


def test_shapes_that_fit_no_sam_are_refused(state, tmp_path):
    bad = {**state, "image_encoder.blocks.0.attn.rel_pos_w": torch.zeros(27, 7)}
    with pytest.raises(WeightsError, match=r"fit no SAM: .*rel_pos_w \(27, 7\)"):
        load_sam(save(bad, tmp_path / "bad.pth"))
    flat = {**state, "image_encoder.pos_embed": torch.zeros(4097, 48)}
    with pytest.raises(
        WeightsError, match=r"impossible shape: image_encoder.pos_embed \(4097, 48\)"
    ):
        load_sam(save(flat, tmp_path / "flat.pth"))


def test_numbers_that_cannot_be_weights_are_refused(state, tmp_path):
    key = "image_encoder.neck.1.weight"
    with pytest.raises(WeightsError, match=f"1 with NaN or infinity: {key}"):
        load_sam(save({**state, key: state[key] / 0}, tmp_path / "nan.pth"))
    with pytest.raises(WeightsError, match=f"1 not of a float type: {key}"):
        load_sam(save({**state, key: state[key].long()}, tmp_path / "long.pth"))


def test_writing_the_tiny_sam_twice_gives_the_same_model(tmp_path):
    first = torch.load(write_tiny_sam(tmp_path / "a.pth"), weights_only=True)
    second = torch.load(write_tiny_sam(tmp_path / "b.pth"), weights_only=True)
    other = torch.load(write_tiny_sam(tmp_path / "c.pth", seed=1), weights_only=True)
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not any(torch.equal(first[key], other[key]) for key in first)
