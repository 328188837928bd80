"""Guards the encoder in two halves: together they are the whole encoder, to the bit, anywhere."""

from __future__ import annotations

import copy

import pytest
import torch
from segment_anything import sam_model_registry

from tests.sam_fixture import tiny_sam
from ultrarefiner.config.finetuning import FinetuneConfig
from ultrarefiner.errors import ConfigError
from ultrarefiner.models.attention import fuse_attention
from ultrarefiner.models.lora import lora_layers
from ultrarefiner.models.mobile_sam import TinyViTEncoder
from ultrarefiner.models.partial import encode_from, encode_until
from ultrarefiner.models.scratch import build_scratch
from ultrarefiner.models.trainable import first_trainable_block, set_trainable

SIDE, DEPTH = 128, 3


@pytest.fixture(scope="module")
def plain():
    return tiny_sam(side=SIDE, depth=DEPTH, global_blocks=(1,)).requires_grad_(False)


@pytest.fixture(params=["released", "fused", "scratch"])
def sam(request, plain):
    if request.param == "scratch":
        return build_scratch("tiny", 0).requires_grad_(False)
    model = copy.deepcopy(plain)
    if request.param == "fused":
        fuse_attention(model.image_encoder)
    return model.eval()


@pytest.fixture(scope="module")
def pixels():
    return torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("block", range(DEPTH + 1))
def test_both_halves_are_the_encoder_to_the_bit(sam, pixels, block):
    tokens = encode_until(sam, pixels, block)
    width = sam.image_encoder.patch_embed.proj.out_channels
    grid = sam.image_encoder.pos_embed.shape[1]
    assert tokens.shape == (2, grid, grid, width)
    kept = tokens.clone()
    assert torch.equal(encode_from(sam, tokens, block), sam.image_encoder(pixels))
    assert torch.equal(tokens, kept), "what is kept on the shelf must not change"
    # And the two halves are halves: what the first one leaves is not what it got.
    assert block == 0 or not torch.equal(tokens, encode_until(sam, pixels, block - 1))


TRAINABLE = {
    "neck": (DEPTH, {}),
    "last block": (DEPTH - 1, {"unfreeze_last": 1}),
    "last two blocks": (DEPTH - 2, {"unfreeze_last": 2}),
    "LoRA": (DEPTH - 2, {"lora": {"last": 2, "targets": ["qkv", "proj", "mlp"]}}),
}


@pytest.mark.parametrize("name", TRAINABLE)
def test_gradients_are_those_of_the_whole_encoder(sam, pixels, name):
    block, keys = TRAINABLE[name]
    set_trainable(sam, FinetuneConfig(**keys))
    if name == "neck":
        sam.image_encoder.neck.requires_grad_(True)
    for _, layer in lora_layers(sam):
        torch.nn.init.normal_(layer.lora_B["default"].weight, std=0.1)
    assert first_trainable_block(sam) == block
    tokens = encode_until(sam, pixels, block)
    assert not tokens.requires_grad

    def gradients(embedding):
        sam.zero_grad()
        embedding.square().mean().backward()
        return {
            key: parameter.grad.clone()
            for key, parameter in sam.image_encoder.named_parameters()
            if parameter.grad is not None
        }

    whole, halves = sam.image_encoder(pixels), encode_from(sam, tokens, block)
    assert torch.equal(whole, halves)
    wanted, found = gradients(whole), gradients(halves)
    trained = {k for k, p in sam.image_encoder.named_parameters() if p.requires_grad}
    assert wanted.keys() == found.keys() == trained
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)


def test_half_precision_tokens_come_back_as_the_models_type(sam, pixels):
    tokens = encode_until(sam, pixels, 2)
    found = encode_from(sam, tokens.half(), 2)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, sam.image_encoder(pixels), atol=0.05, rtol=0)
    assert torch.equal(found, encode_from(sam, tokens.half().float(), 2))


def test_modes_are_given_back(sam, pixels):
    sam.image_encoder.train()
    sam.image_encoder.blocks[0].mlp.eval()
    before = {name: module.training for name, module in sam.named_modules()}
    encode_until(sam, pixels, 2)
    assert {name: module.training for name, module in sam.named_modules()} == before


def test_what_trains_is_not_silently_left_without_gradients(plain, pixels):
    sam = copy.deepcopy(plain)
    for name, block in (("blocks.1.norm1.bias", 2), ("pos_embed", 0), ("patch_embed.proj.bias", 0)):
        sam.image_encoder.requires_grad_(False)
        sam.image_encoder.get_parameter(name).requires_grad_(True)
        with pytest.raises(ValueError, match=f"before block {block} require a gradient"):
            encode_until(sam, pixels, block)
        with torch.no_grad():
            encode_until(sam, pixels, block)
    encode_until(sam.requires_grad_(False), pixels, 2)


@pytest.mark.parametrize("block", [-1, DEPTH + 1])
def test_a_block_that_is_not_there_is_refused(plain, pixels, block):
    with pytest.raises(ValueError, match=f"block {block} is not among 0 to {DEPTH}"):
        encode_until(plain, pixels, block)
    with pytest.raises(ValueError, match=f"block {block} is not among 0 to {DEPTH}"):
        encode_from(plain, torch.zeros(1, 8, 8, 48), block)


def test_an_encoder_without_a_row_of_blocks_is_refused_with_a_cure(pixels):
    with torch.device("meta"):
        sam = sam_model_registry["vit_b"]()
        sam.image_encoder = TinyViTEncoder()
    with pytest.raises(
        ConfigError, match=r"is a TinyViT.* Freeze the encoder, or set `cache: none`"
    ):
        encode_until(sam, pixels, 1)
