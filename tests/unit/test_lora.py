"""Guards LoRA: additions count in every way the model is computed, alone train, and merge away."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from tests.sam_fixture import tiny_sam
from ultrarefiner.errors import ConfigError
from ultrarefiner.models.attention import fuse_attention, round_products
from ultrarefiner.models.lora import add_lora, lora_layers, merge_lora
from ultrarefiner.models.mobile_sam import TinyViTEncoder
from ultrarefiner.models.ultrasam import ResidualMLP, add_double_residual
from ultrarefiner.training.engine import EngineSettings, make_optimizer, set_train_mode
from ultrarefiner.training.plan import one_stage

SIDE = 128
EVERYWHERE = {"targets": ("qkv", "proj", "mlp"), "parts": ("encoder", "decoder")}


@pytest.fixture(scope="module")
def plain():
    return tiny_sam(side=SIDE, depth=3, global_blocks=(2,))


@pytest.fixture
def sam(plain):
    model = copy.deepcopy(plain)
    fuse_attention(model.image_encoder)
    return model.eval()


@pytest.fixture(scope="module")
def pixels():
    return torch.randn(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))


def fill(model, scale=0.1):
    """Give B numbers, so that the additions count."""
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _, layer in lora_layers(model):
            weight = layer.lora_B["default"].weight
            weight.copy_(scale * torch.randn(weight.shape, generator=rng))
    return model


def adapted(model):
    return {name for name, _ in lora_layers(model)}


def decode(sam, embedding):
    box = torch.tensor([[20.0, 30.0, 100.0, 90.0]])
    sparse, dense = sam.prompt_encoder(points=None, boxes=box, masks=None)
    return sam.mask_decoder(
        embedding, sam.prompt_encoder.get_dense_pe(), sparse, dense, multimask_output=True
    )


def outputs(sam, pixels):
    with torch.inference_mode():
        embedding = sam.image_encoder(pixels)
        return embedding, *decode(sam, embedding)


def test_at_the_start_nothing_changes(sam, pixels):
    before = outputs(sam, pixels)
    after = outputs(add_lora(sam, rank=3, **EVERYWHERE), pixels)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("target", ["qkv", "proj", "mlp"])
def test_additions_count_however_the_encoder_is_computed(sam, pixels, target):
    encoder = sam.image_encoder
    with torch.no_grad():
        base = encoder(pixels)
    fill(add_lora(sam, targets=(target,)))
    with_gradients = encoder(pixels)
    assert with_gradients.requires_grad
    with torch.no_grad():
        fused = encoder(pixels)
        round_products(encoder, True)
        rounded = encoder(pixels)
        round_products(encoder, False)
    change = (fused - base).abs().max()
    assert change > 0.05
    for found, tolerance in ((with_gradients.detach(), 1e-5), (rounded, 0.02)):
        torch.testing.assert_close(found, fused, atol=tolerance, rtol=0)
    merged = merge_lora(sam).image_encoder
    with torch.no_grad():
        torch.testing.assert_close(merged(pixels), fused, atol=1e-5, rtol=0)
    released_code = merged.requires_grad_(True)(pixels).detach()
    torch.testing.assert_close(released_code, fused, atol=1e-5, rtol=0)


@pytest.mark.parametrize("ultrasam", [False, True], ids=["sam", "ultrasam"])
def test_merging_leaves_a_plain_model_with_the_same_outputs(sam, plain, pixels, ultrasam):
    if ultrasam:
        add_double_residual(sam)
    kinds = {name: type(module) for name, module in sam.named_modules()}
    start = outputs(sam, pixels)
    fill(add_lora(sam, rank=3, alpha=6.0, **EVERYWHERE), 0.05)
    unmerged = outputs(sam, pixels)
    assert merge_lora(sam) is sam
    for before, wanted, found in zip(start, unmerged, outputs(sam, pixels), strict=True):
        assert (before - wanted).abs().max() > 1e-2, "the additions must count"
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    assert list(sam.state_dict()) == list(plain.state_dict())
    assert {name: type(module) for name, module in sam.named_modules()} == kinds
    assert ultrasam == any(isinstance(module, ResidualMLP) for module in sam.modules())
    assert vars(sam).keys() == vars(plain).keys()
    before_again = outputs(sam, pixels)
    merge_lora(sam)  # nothing is left to merge
    assert all(torch.equal(a, b) for a, b in zip(before_again, outputs(sam, pixels), strict=True))


def test_the_merged_weight_is_the_formulas(sam):
    add_lora(sam, rank=2, alpha=5.0)
    fill(sam)
    wanted = {}
    for name, layer in lora_layers(sam):
        a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        sums = layer.base_layer.weight.double() + 5.0 / 2 * (b.double() @ a.double())
        wanted[name] = sums.float()
    merge_lora(sam)
    assert len(wanted) == 3
    for name, weight in wanted.items():
        assert torch.equal(sam.get_submodule(name).weight, weight)


DECODER_ATTENTION = [
    *(
        f"layers.{i}.{attention}"
        for i in range(2)
        for attention in ("self_attn", "cross_attn_token_to_image", "cross_attn_image_to_token")
    ),
    "final_attn_token_to_image",
]


def in_encoder(blocks, *layers):
    return {f"image_encoder.blocks.{i}.{layer}" for i in blocks for layer in layers}


def in_decoder(*layers):
    return {
        f"mask_decoder.transformer.{name}.{layer}" for name in DECODER_ATTENTION for layer in layers
    }


@pytest.mark.parametrize(
    ("asked", "wanted"),
    [
        ({}, in_encoder(range(3), "attn.qkv")),
        ({"targets": ["proj"]}, in_encoder(range(3), "attn.proj")),
        (
            {"targets": ["qkv", "mlp"], "last": 1},
            in_encoder([2], "attn.qkv", "mlp.lin1", "mlp.lin2"),
        ),
        ({"last": 3}, in_encoder(range(3), "attn.qkv")),
        ({"parts": ["decoder"]}, in_decoder("q_proj", "k_proj", "v_proj")),
        ({"parts": ["decoder"], "targets": ["proj"]}, in_decoder("out_proj")),
        (
            {"parts": ["decoder"], "targets": ["mlp"]},
            {f"mask_decoder.transformer.layers.{i}.mlp.lin{j}" for i in range(2) for j in (1, 2)},
        ),
        (
            {"parts": ["encoder", "decoder"], "last": 2},
            in_encoder([1, 2], "attn.qkv") | in_decoder("q_proj", "k_proj", "v_proj"),
        ),
    ],
)
def test_which_layers_are_adapted(sam, asked, wanted):
    assert adapted(add_lora(sam, **asked)) == wanted


def test_of_an_adapted_part_only_the_additions_train_and_other_parts_are_left_alone(sam):
    sam.prompt_encoder.requires_grad_(False)
    before = {name: p.requires_grad for name, p in sam.named_parameters()}
    add_lora(sam, parts=("encoder",))
    for name, parameter in sam.named_parameters():
        if name.startswith("image_encoder."):
            assert parameter.requires_grad == (".lora_A." in name or ".lora_B." in name), name
        else:
            assert parameter.requires_grad == before[name], name


@pytest.mark.parametrize("parts", [("encoder",), ("decoder",), ("encoder", "decoder")])
def test_the_optimizer_gets_no_base_weight_and_nothing_twice(sam, parts):
    sam.requires_grad_(False)
    base = {p.data_ptr() for p in sam.parameters()}
    add_lora(sam, rank=2, parts=parts)
    groups = make_optimizer(one_stage(sam, 0.1), EngineSettings(1, 0.1, "adamw")).param_groups
    trained = [parameter for group in groups for parameter in group["params"]]
    assert len(trained) == len({p.data_ptr() for p in trained}) == 2 * len(adapted(sam))
    assert not base & {p.data_ptr() for p in trained}


def test_a_step_changes_the_additions_alone(sam, pixels):
    sam.requires_grad_(False)
    add_lora(sam, seed=0)
    before = {name: value.clone() for name, value in sam.state_dict().items()}
    set_train_mode(sam)
    optimizer = make_optimizer(one_stage(sam, 0.1), EngineSettings(1, 0.1, weight_decay=0.1))
    for _ in range(2):  # in the first step A has no gradient: B is zero
        optimizer.zero_grad()
        sam.image_encoder(pixels).square().mean().backward()
        optimizer.step()
    after = sam.state_dict()
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert changed == {name for name in before if ".lora_A." in name or ".lora_B." in name}


def test_dropout_acts_in_training_only(sam, pixels):
    sam.requires_grad_(False)
    fill(add_lora(sam, dropout=0.5))
    assert not any(module.training for module in sam.modules()), "it was in eval mode"
    with torch.no_grad():
        resting = sam.image_encoder(pixels)
        assert torch.equal(resting, sam.image_encoder(pixels))
        set_train_mode(sam)
        dropped = [sam.image_encoder(pixels) for _ in range(2)]
        sam.eval()
        assert torch.equal(resting, sam.image_encoder(pixels))
    assert not torch.equal(*dropped) and not torch.equal(resting, dropped[0])


def test_a_comes_from_the_seed_and_the_global_generator_is_left_alone(sam, plain):
    def drawn(seed):
        return {
            name: layer.lora_A["default"].weight
            for name, layer in lora_layers(add_lora(copy.deepcopy(plain), seed=seed))
        }

    state = torch.get_rng_state()
    first, second, other = drawn(1), drawn(1), drawn(2)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)
    # Kaiming uniform, a = sqrt 5: within 1 / sqrt(inputs), and it fills that range.
    for weight in first.values():
        bound = 1 / math.sqrt(weight.shape[1])
        assert 0.9 * bound < weight.abs().max() <= bound
        assert float(weight.detach().std()) == pytest.approx(bound / math.sqrt(3), rel=0.15)


class Odd(nn.Module):
    """A module that is no SAM."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(nn.ModuleDict({"qkv": nn.Linear(6, 18)}) for _ in range(2))
        self.qkv_norm = nn.Linear(18, 6)

    def forward(self, x):
        """Return the output of all layers."""
        for block in self.blocks:
            x = self.qkv_norm(block["qkv"](x))
        return x


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_any_module_can_be_adapted_in_its_own_type(dtype):
    model = Odd().to(dtype)
    x = torch.randn(4, 6, dtype=dtype)
    plain = model(x)
    fill(add_lora(model, rank=2), 1.0)
    assert adapted(model) == {"blocks.0.qkv", "blocks.1.qkv"}
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert len(trained) == 4 and all("lora_" in name for name in trained)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    unmerged = model(x)
    assert unmerged.dtype == dtype and not torch.equal(unmerged, plain)
    torch.testing.assert_close(
        merge_lora(model)(x), unmerged, atol=0.1 if dtype == torch.bfloat16 else 1e-5, rtol=0.05
    )
    assert {type(module) for module in model.modules()} == {
        Odd, nn.ModuleList, nn.ModuleDict, nn.Linear,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"rank": 0}, "lora.rank is 0"),
        ({"rank": 2.5}, r"lora.rank is 2\.5"),
        ({"alpha": 0.0}, r"lora.alpha is 0\.0"),
        ({"alpha": math.nan}, "lora.alpha is nan"),
        ({"dropout": 1.0}, r"lora.dropout is 1\.0"),
        ({"last": 4}, "lora.last: 4, but the encoder has 3 blocks; give 1 to 3"),
        ({"targets": ["qvk"]}, "unknown lora target 'qvk'; .*Did you mean 'qkv'"),
        ({"parts": ["head"]}, "unknown lora part 'head'; known: decoder, encoder"),
        ({"targets": []}, "no layer is meant"),
    ],
)
def test_what_cannot_be_added_is_refused_and_changes_nothing(sam, asked, says):
    names = list(sam.state_dict())
    with pytest.raises(ConfigError, match=says):
        add_lora(sam, **asked)
    assert list(sam.state_dict()) == names
    assert all(parameter.requires_grad for parameter in sam.parameters())


def test_additions_are_not_added_twice(sam):
    add_lora(sam)
    with pytest.raises(ConfigError, match="has LoRA layers already; merge them"):
        add_lora(sam, parts=("decoder",))
    add_lora(merge_lora(sam))


def test_an_encoder_without_such_blocks_is_refused_but_its_decoder_is_not(sam):
    with torch.device("meta"):
        sam.image_encoder = TinyViTEncoder()
    with pytest.raises(ConfigError, match=r"is a TinyViT, .* out of `lora\.parts`"):
        add_lora(sam)
    add_lora(sam, parts=("decoder",))
    assert len(adapted(sam)) == 21


def test_a_module_without_such_layers_is_refused():
    with pytest.raises(ConfigError, match="no linear layer is called proj"):
        add_lora(Odd(), targets=("proj",))
    with pytest.raises(ConfigError, match=r"lora\.last: is for the encoder of a SAM"):
        add_lora(Odd(), last=1)
