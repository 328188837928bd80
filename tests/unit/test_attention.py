"""The faster image encoder gives the released encoder's numbers, gradients and state dict."""

from __future__ import annotations

import copy
from functools import partial
from shutil import which

import pytest
import torch
from segment_anything.modeling import ImageEncoderViT

from tests.golden.formula import fill_with_formula
from tests.sam_fixture import tiny_sam
from ultrarefiner.models import attention
from ultrarefiner.models.attention import FusedBlock, fuse_attention
from ultrarefiner.models.encoding import encode, encoder_batch


def encoder(side=256, window=14, rel_pos=True, bias=True, **sizes):
    """Return a released encoder with formula weights; the second block is global."""
    sizes = {"embed_dim": 48, "num_heads": 3, "depth": 2} | sizes
    built = ImageEncoderViT(
        img_size=side,
        out_chans=32,
        norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
        use_rel_pos=rel_pos,
        qkv_bias=bias,
        window_size=window,
        global_attn_indexes=(1,),
        **sizes,
    )
    return fill_with_formula(built).eval()


def fused(released):
    ours = copy.deepcopy(released)
    fuse_attention(ours)
    assert all(type(block) is FusedBlock for block in ours.blocks)
    return ours


def image(side, count=1, seed=0):
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"side": 512},  # more tokens than a piece holds
        {"side": 224},  # the windows fit the grid: no padding
        {"side": 208, "window": 5},
        {"window": 0},
        {"rel_pos": False},
        {"bias": False},
        {"embed_dim": 128, "num_heads": 8},
    ],
    ids=str,
)
@pytest.mark.parametrize("path", ["pieces", "fused"])
def test_embeddings_are_the_released_encoders(options, path, monkeypatch):
    if path == "fused":  # what a GPU runs, here on the CPU
        monkeypatch.setattr(attention, "_attend_in_pieces", attention._attend_fused)
    released = encoder(**options)
    pixels = image(options.get("side", 256), count=2)
    with torch.inference_mode():
        wanted = released(pixels)
        found = fused(released)(pixels)
    assert wanted.std() > 0.1
    torch.testing.assert_close(found, wanted, atol=2e-5, rtol=0)


def test_pieces_of_any_size_give_the_same(monkeypatch):
    released = encoder(side=256)
    pixels = image(256)
    with torch.inference_mode():
        wanted = released(pixels)
        for rows in (16, 48, 100, 256):
            monkeypatch.setattr(attention, "_ROWS", rows)
            monkeypatch.setattr(attention, "_TOKENS", 3 * rows)
            torch.testing.assert_close(fused(released)(pixels), wanted, atol=2e-5, rtol=0)


def test_gradients_are_the_released_encoders():
    released = encoder()
    ours = fused(released)
    for model in (released, ours):
        model(image(256)).square().mean().backward()
    for (name, theirs), (own, mine) in zip(
        released.named_parameters(), ours.named_parameters(), strict=True
    ):
        assert name == own and theirs.grad is not None, name
        torch.testing.assert_close(mine.grad, theirs.grad, atol=1e-6, rtol=1e-4)


def test_a_frozen_encoder_needs_no_autograd_for_its_speed():
    ours = fused(encoder()).requires_grad_(False)
    assert not ours(image(256)).requires_grad


def test_names_and_values_of_the_state_dict_stay():
    released = encoder()
    ours = fused(released)
    before, after = released.state_dict(), ours.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[name], after[name]) for name in before)
    again = copy.deepcopy(ours)
    again.load_state_dict(before)


@pytest.fixture(scope="module")
def small():
    """A tiny SAM with six blocks, the fourth global."""
    sam = tiny_sam(side=256, depth=6, global_blocks=(3,)).requires_grad_(False)
    fuse_attention(sam.image_encoder)
    return sam


def test_bfloat16_is_near_and_the_call_leaves_the_model_alone(small):
    with torch.inference_mode():
        exact = encode(small, image(256))
        rounded = encode(small, image(256), "bfloat16")
        again = encode(small, image(256))
    assert exact.dtype == rounded.dtype == torch.float32
    assert 0 < float((exact - rounded).abs().mean()) < 0.002 * float(exact.std())
    assert torch.equal(exact, again)
    assert all(value.dtype == torch.float32 for value in small.image_encoder.parameters())


def test_only_the_later_blocks_round(small):
    seen = {}
    hooks = [
        block.register_forward_hook(lambda _m, _i, out, n=n: seen.setdefault(n, []).append(out))
        for n, block in enumerate(small.image_encoder.blocks)
    ]
    with torch.inference_mode():
        encode(small, image(256))
        encode(small, image(256), "bfloat16")
    for hook in hooks:
        hook.remove()
    assert [torch.equal(*seen[n]) for n in range(6)] == [True, True, False, False, False, False]


def test_rounding_about_the_mean_token_is_far_better_than_autocast(small):
    with torch.inference_mode():
        exact = encode(small, image(256))
        rounded = encode(small, image(256), "bfloat16")
        with torch.autocast("cpu", torch.bfloat16):
            plain = small.image_encoder(image(256)).float()
    assert 3 * (exact - rounded).abs().mean() < (exact - plain).abs().mean()


def test_the_rounding_of_an_image_does_not_depend_on_its_batch(small):
    pixels = image(256, count=3)
    with torch.inference_mode():
        together = encode(small, pixels, "bfloat16")
        alone = torch.cat([encode(small, one[None], "bfloat16") for one in pixels])
    torch.testing.assert_close(together, alone, atol=2e-5, rtol=0)


def test_an_encoder_that_is_not_ours_rounds_by_autocast():
    sam = tiny_sam(side=256).requires_grad_(False)
    with torch.inference_mode():
        assert not torch.equal(encode(sam, image(256)), encode(sam, image(256), "bfloat16"))


def test_the_input_is_not_changed():
    pixels = image(256)
    before = pixels.clone()
    with torch.inference_mode():
        fused(encoder())(pixels)
    assert torch.equal(pixels, before)


@pytest.mark.slow
@pytest.mark.skipif(which("c++") is None, reason="torch.compile needs a C++ compiler on a CPU")
def test_a_compiled_encoder_gives_the_same():
    sam = tiny_sam(side=256).requires_grad_(False)
    fuse_attention(sam.image_encoder)
    with torch.inference_mode():
        wanted = encode(sam, image(256))
        found = encode(sam, image(256), compiled=True)
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=0)


def test_one_image_at_a_time_on_a_cpu():
    assert encoder_batch(tiny_sam(side=256)) == 1
