"""An UltraSAM checkpoint loads whole in every layout it comes in, and gives the same outputs."""

from __future__ import annotations

import sys
import types
from collections import OrderedDict
from pickle import UnpicklingError

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from segment_anything import sam_model_registry
from segment_anything.modeling.common import MLPBlock

from tests.sam_fixture import tiny_sam
from ultrarefiner.errors import WeightsError
from ultrarefiner.models.sam import build_sam, infer_architecture, load_sam
from ultrarefiner.models.ultrasam import from_ultrasam, to_ultrasam

SIDE = 256
RANK, ALPHA = 3, 6.0


@pytest.fixture(scope="module")
def state():
    return tiny_sam(side=SIDE).state_dict()


def save(content, path):
    torch.save(content, path)
    return path


def outputs(sam):
    """Return the embedding and the decoder's masks and predicted IoUs for a box."""
    pixels = torch.rand(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    box = torch.tensor([[20.0, 30.0, 200.0, 220.0]])
    with torch.inference_mode():
        embedding = sam.image_encoder(pixels)
        sparse, dense = sam.prompt_encoder(points=None, boxes=box, masks=None)
        masks, ious = sam.mask_decoder(
            embedding, sam.prompt_encoder.get_dense_pe(), sparse, dense, multimask_output=True
        )
    return embedding, masks, ious


def assert_equal(one, other):
    assert all(torch.equal(a, b) for a, b in zip(outputs(one), outputs(other), strict=True))


def test_a_round_trip_through_the_other_layout_gives_equal_tensors_and_outputs(state, tmp_path):
    again = from_ultrasam(to_ultrasam(state))
    assert again.keys() == state.keys()
    assert all(torch.equal(again[key], value) for key, value in state.items())
    one = load_sam(save(state, tmp_path / "sam.pth"))
    other = load_sam(save(again, tmp_path / "again.pth"))
    assert_equal(one, other)


def test_a_finetuned_checkpoint_in_both_layouts_gives_equal_outputs(state, tmp_path):
    rng = torch.Generator().manual_seed(1)
    tuned = {
        key: value + 0.01 * torch.randn(value.shape, generator=rng) for key, value in state.items()
    }
    content = {"epoch": 3, "model_state_dict": to_ultrasam(tuned), "val_iou": np.float64(0.7)}
    mmdet = load_sam(save(content, tmp_path / "best.pth"), "ultrasam")
    plain = load_sam(save({"model": tuned}, tmp_path / "plain.pth"), "ultrasam")
    assert list(mmdet.state_dict()) == list(plain.state_dict()) == list(tuned)
    assert_equal(mmdet, plain)
    released = load_sam(save(to_ultrasam(state), tmp_path / "released.pth"), "ultrasam")
    assert not torch.equal(outputs(mmdet)[1], outputs(released)[1])


def test_ultrasams_decoder_adds_the_input_of_its_mlp_twice(state, tmp_path):
    path = save(state, tmp_path / "sam.pth")
    sam, ultrasam = load_sam(path), load_sam(path, "ultrasam")
    assert list(ultrasam.state_dict()) == list(sam.state_dict())
    layers = zip(
        ultrasam.mask_decoder.transformer.layers, sam.mask_decoder.transformer.layers, strict=True
    )
    queries = torch.rand(2, 7, 256, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        for ours, plain in layers:
            assert isinstance(ours.mlp, MLPBlock)
            assert torch.equal(ours.mlp(queries), queries + plain.mlp(queries))
    (embedding, masks, _), (same, other, _) = outputs(sam), outputs(ultrasam)
    assert torch.equal(embedding, same)
    assert (masks - other).abs().max() > 0.1
    assert not ultrasam.training and not any(module.training for module in ultrasam.modules())
    assert all(parameter.requires_grad for parameter in ultrasam.parameters())


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model_state_dict", "model"])
@pytest.mark.parametrize("prefix", ["", "module.", "model."])
def test_known_wrappers_and_prefixes_are_taken_off(state, tmp_path, wrapper, prefix):
    named = {prefix + key: value for key, value in to_ultrasam(state).items()}
    path = save(named if wrapper is None else {wrapper: named}, tmp_path / "wrapped.pth")
    loaded = load_sam(path, "ultrasam").state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in state.items())


def test_safetensors_and_half_precision_load_too(state, tmp_path):
    half = {key: value.half() for key, value in to_ultrasam(state).items()}
    save_file(half, tmp_path / "half.safetensors")
    loaded = load_sam(tmp_path / "half.safetensors", "ultrasam").state_dict()
    assert all(torch.equal(loaded[key], value.half().float()) for key, value in state.items())


class HistoryBuffer:
    """Pickles as mmengine's log of a number does: with arrays, and with its own methods by name."""

    def __init__(self):
        self._log_history = np.array([0.5, 0.25])

    def mean(self):
        """Stand among the methods that a log carries with it."""

    def __getstate__(self):
        return {**self.__dict__, "statistics_methods": {"mean": HistoryBuffer.mean}}


def write_as_mmengine(content, path, monkeypatch):
    """Save while the class above stands where mmengine's stands, so that the file has its name."""
    name = "mmengine.logging.history_buffer"
    module = types.ModuleType(name)
    module.HistoryBuffer = HistoryBuffer
    with monkeypatch.context() as patch:
        for part in ("mmengine", "mmengine.logging"):
            patch.setitem(sys.modules, part, types.ModuleType(part))
        patch.setitem(sys.modules, name, module)
        patch.setattr(HistoryBuffer, "__module__", name)
        return save(content, path)


def test_the_logs_of_a_released_checkpoint_are_passed_over(state, tmp_path, monkeypatch):
    scalars = OrderedDict({"train/loss": HistoryBuffer()})
    info = {"best": np.float32(0.5), "sizes": np.zeros((2, 3), np.int16), "on": np.bool_(True)}
    content = {
        "meta": {"epoch": 8, "cfg": "model = dict()", "dataset_meta": {"classes": ("object",)}},
        "state_dict": OrderedDict(to_ultrasam(state)),
        "message_hub": {"log_scalars": scalars, "runtime_info": info, "resumed_keys": {}},
        "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 1e-4}]},
    }
    path = write_as_mmengine(content, tmp_path / "UltraSam.pth", monkeypatch)
    for part in (b"cmmengine.logging.history_buffer\nHistoryBuffer", b"c__builtin__\ngetattr"):
        assert part in path.read_bytes()
    loaded = load_sam(path, "ultrasam").state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in state.items())
    with pytest.raises(UnpicklingError, match="HistoryBuffer"):
        torch.load(path, weights_only=True)  # what is passed over here is not allowed elsewhere
    # Nothing that such an object stands for can end up among the weights.
    content["state_dict"]["backbone.pos_embed"] = np.zeros(3)
    with pytest.raises(WeightsError, match=r"1 entries that are not tensors: backbone\.pos_embed"):
        load_sam(save(content["state_dict"], tmp_path / "array.pth"), "ultrasam")


def test_pixel_constants_of_the_preprocessor_are_checked(state, tmp_path):
    own = {
        "data_preprocessor.mean": torch.tensor([123.675, 116.28, 103.53]).view(3, 1, 1),
        "data_preprocessor.std": torch.tensor([58.395, 57.12, 57.375]).view(3, 1, 1),
    }
    named = to_ultrasam(state)
    loaded = load_sam(save(named | own, tmp_path / "own.pth"), "ultrasam").state_dict()
    assert loaded.keys() == state.keys()
    swapped = own | {"data_preprocessor.mean": own["data_preprocessor.mean"].flip(0)}
    with pytest.raises(WeightsError, match=r"data_preprocessor\.mean is \[103\.5"):
        load_sam(save(named | swapped, tmp_path / "bgr.pth"), "ultrasam")


@pytest.mark.parametrize(("depth", "global_blocks", "side"), [(3, (0, 2), 512), (1, (), 256)])
def test_other_sizes_load_too(tmp_path, depth, global_blocks, side):
    made = tiny_sam(1, depth, global_blocks, side)
    sam = load_sam(save(to_ultrasam(made.state_dict()), tmp_path / "other.pth"), "ultrasam")
    assert sam.image_encoder.img_size == side and len(sam.image_encoder.blocks) == depth
    loaded = sam.state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in made.state_dict().items())


@pytest.mark.parametrize("name", ["vit_b", "vit_l", "vit_h"])
def test_the_official_sizes_survive_the_other_layout(tmp_path, name):
    with torch.device("meta"):
        official = sam_model_registry[name]().state_dict()
    again = from_ultrasam(to_ultrasam(official))
    built = build_sam(infer_architecture(tmp_path / "x.pth", again)).state_dict()
    assert {key: value.shape for key, value in built.items()} == {
        key: value.shape for key, value in official.items()
    }


def test_sams_names_are_taken_for_ultrasam_with_a_warning(state, tmp_path, caplog):
    load_sam(save(to_ultrasam(state), tmp_path / "own_names.pth"), "ultrasam")
    assert not caplog.records
    load_sam(save(state, tmp_path / "sam_names.pth"), "ultrasam")
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "sam_names.pth" in record.getMessage() and "family: sam" in record.getMessage()


@pytest.mark.parametrize(
    ("name", "shape", "reason"),
    [
        ("prompt_encoder.label_encoder.label_embedding.weight", (10, 256), "has 11 rows"),
        ("decoder.layers.0.self_attn.attn.in_proj_bias", (767,), r"\(767,\) instead of \(768,\)"),
        ("backbone.layers.1.attn.rel_pos_h", (63, 24), r"\(63, 24\) instead of \(31, 24\)"),
        ("decoder.post_norm.weight", None, r"1 missing: decoder\.post_norm\.weight"),
        ("backbone.pos_embed", None, r"1 missing: backbone\.pos_embed; it has 152 tensors"),
        ("bbox_head.gate.weight", (3,), r"1 unexpected: bbox_head\.gate\.weight"),
        ("image_encoder.pos_embed", (1, 16, 16, 48), r"1 unexpected: image_encoder\.pos_embed"),
    ],
)
def test_a_file_that_is_not_whole_is_refused(state, tmp_path, name, shape, reason):
    named = to_ultrasam(state)
    if shape is None:
        del named[name]
    else:
        named[name] = torch.zeros(shape)
    with pytest.raises(WeightsError, match=reason) as caught:
        load_sam(save({"state_dict": named}, tmp_path / "bad.pth"), "ultrasam")
    assert name in str(caught.value)


LORA_LAYERS = {
    "backbone.layers.0.attn.qkv": "image_encoder.blocks.0.attn.qkv",
    "backbone.layers.1.attn.proj": "image_encoder.blocks.1.attn.proj",
    "backbone.layers.1.ffn.layers.0.0": "image_encoder.blocks.1.mlp.lin1",
    "decoder.layers.0.mlp.layers.1": "mask_decoder.transformer.layers.0.mlp.lin2",
    "bbox_head.iou_prediction_head.layers.0": "mask_decoder.iou_prediction_head.layers.0",
}


def lora_checkpoint(state, rows_first=True, leaf=""):
    """Return the file's content, and A (rank, in) and B (out, rank) of each layer by SAM name."""
    rng = torch.Generator().manual_seed(2)
    named, low_rank = to_ultrasam(state), {}
    for name, sam_name in LORA_LAYERS.items():
        weight = named.pop(f"{name}.weight")
        a = 0.1 * torch.randn(RANK, weight.shape[1], generator=rng)
        b = 0.1 * torch.randn(weight.shape[0], RANK, generator=rng)
        low_rank[sam_name] = a, b
        named[f"{name}.original.weight"] = weight
        named[f"{name}.original.bias"] = named.pop(f"{name}.bias")
        named[f"{name}.lora.lora_A{leaf}"] = a if rows_first else a.T.contiguous()
        named[f"{name}.lora.lora_B{leaf}"] = b if rows_first else b.T.contiguous()
    return {"model_state_dict": named, "lora_config": {"rank": RANK, "alpha": ALPHA}}, low_rank


class Unmerged(torch.nn.Module):
    """A linear layer with its low-rank addition beside it."""

    def __init__(self, original, a, b):
        super().__init__()
        self.original, self.a, self.b = original, a, b

    def forward(self, x):
        """Return the layer's output and the addition's."""
        return self.original(x) + ALPHA / RANK * (x @ self.a.T @ self.b.T)


@pytest.mark.parametrize(("rows_first", "leaf"), [(True, ""), (False, ""), (True, ".weight")])
def test_merged_lora_layers_give_what_the_unmerged_ones_give(state, tmp_path, rows_first, leaf):
    content, low_rank = lora_checkpoint(state, rows_first, leaf)
    merged = load_sam(save(content, tmp_path / "lora.pth"), "ultrasam")
    base = load_sam(save(to_ultrasam(state), tmp_path / "base.pth"), "ultrasam")
    assert list(merged.state_dict()) == list(state)
    before = outputs(base)
    for name, (a, b) in low_rank.items():
        parent, leaf_name = name.rsplit(".", 1)
        layer = base.get_submodule(name)
        setattr(base.get_submodule(parent), leaf_name, Unmerged(layer, a, b))
    for start, wanted, found in zip(before, outputs(base), outputs(merged), strict=True):
        torch.testing.assert_close(found, wanted, atol=2e-5, rtol=0)
        assert (start - wanted).abs().max() > 1e-3, "the additions must count"


def without(key):
    return lambda content: content["model_state_dict"].pop(key)


def rewrite(change):
    """Return a function that adds tensors to the first block's attention."""
    return lambda content: content["model_state_dict"].update(change("backbone.layers.0.attn.qkv"))


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda c: c.pop("lora_config"), r"LoRA layers \(5, .*no `lora_config`"),
        (lambda c: c["lora_config"].pop("alpha"), "no `lora_config` with their rank and alpha"),
        (lambda c: c["lora_config"].update(rank=4), r"rank 4 does not fit .*lora_A \(3, 48\)"),
        (lambda c: c["lora_config"].update(rank=0), "rank is a whole number from 1"),
        (lambda c: c["lora_config"].update(alpha=float("nan")), "alpha a number"),
        (lambda c: c["lora_config"].update(alpha=np.float64(6)), "alpha an unread object"),
        (without("backbone.layers.0.attn.qkv.lora.lora_B"), r"attn\.qkv lacks lora\.lora_B"),
        (without("backbone.layers.0.attn.qkv.original.weight"), r"lacks original\.weight"),
        (
            lambda c: c["model_state_dict"].update({"x.lora_A.default.weight": torch.zeros(3, 4)}),
            r"1 LoRA tensors under names that are not known, such as x\.lora_A\.default\.weight",
        ),
        (lambda c: c["lora_config"].update(use_rslora=True), "use_rslora, whose layers merge by"),
        (rewrite(lambda qkv: {f"{qkv}.weight": torch.zeros(144, 48)}), "twice, under two names"),
        (
            rewrite(lambda qkv: {f"{qkv}.lora.lora_A.weight": torch.zeros(RANK, 48)}),
            "twice, under two names",
        ),
        (
            rewrite(lambda qkv: {f"{qkv}.original.weight": torch.ones(144, 48, dtype=torch.int8)}),
            r"original\.weight is of type torch\.int8",
        ),
        (
            rewrite(lambda qkv: {f"{qkv}.original.weight": torch.zeros(144, 48, device="meta")}),
            "without numbers",
        ),
    ],
)
def test_lora_layers_that_cannot_be_merged_are_refused(state, tmp_path, spoil, reason):
    content, _ = lora_checkpoint(state)
    spoil(content)
    with pytest.raises(WeightsError, match=reason) as caught:
        load_sam(save(content, tmp_path / "lora.pth"), "ultrasam")
    assert str(tmp_path / "lora.pth") in str(caught.value)
