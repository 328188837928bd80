"""Guards models from scratch: they start as segment-anything starts one, from their seed alone."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from segment_anything.modeling import (
    ImageEncoderViT,
    MaskDecoder,
    PromptEncoder,
    Sam,
    TwoWayTransformer,
)

from ultrarefiner.config.finetuning import FinetuneConfig
from ultrarefiner.errors import ConfigError
from ultrarefiner.models.export import save_sam
from ultrarefiner.models.sam import infer_architecture, load_sam
from ultrarefiner.models.scratch import SCRATCH, build_scratch


@pytest.fixture(scope="module", params=list(SCRATCH))
def name(request):
    return request.param


@pytest.fixture(scope="module")
def sam(name):
    return build_scratch(name, 0)


def released(name):
    """Return the same model as segment-anything's own classes start it."""
    a = SCRATCH[name]
    grid = a.image_size // a.patch_size
    torch.manual_seed(0)
    return Sam(
        ImageEncoderViT(
            img_size=a.image_size,
            patch_size=a.patch_size,
            embed_dim=a.embed_dim,
            depth=a.depth,
            num_heads=a.num_heads,
            mlp_ratio=a.mlp_ratio,
            out_chans=a.prompt_dim,
            norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
            use_rel_pos=True,
            window_size=a.window_size,
            global_attn_indexes=a.global_blocks,
        ),
        PromptEncoder(
            embed_dim=a.prompt_dim,
            image_embedding_size=(grid, grid),
            input_image_size=(a.image_size, a.image_size),
            mask_in_chans=a.mask_channels,
        ),
        MaskDecoder(
            transformer_dim=a.prompt_dim,
            transformer=TwoWayTransformer(
                a.decoder_depth, a.prompt_dim, 8, a.decoder_mlp_dim,
                attention_downsample_rate=a.decoder_downsample,
            ),
            iou_head_depth=a.iou_depth,
            iou_head_hidden_dim=a.iou_hidden,
        ),
    )  # fmt: skip


def test_weights_start_as_segment_anything_starts_them(sam, name):
    twin = released(name).state_dict()
    own = sam.state_dict()
    assert {key: value.shape for key, value in own.items()} == {
        key: value.shape for key, value in twin.items()
    }
    for key, wanted in twin.items():
        found = own[key]
        assert found.dtype == torch.float32
        if float(wanted.std(correction=0)) == 0:  # zeros and ones
            assert torch.equal(found, wanted), key
            continue
        assert not torch.equal(found, wanted), key
        if found.numel() >= 500:
            assert float(found.std()) == pytest.approx(float(wanted.std()), rel=0.15), key
            assert abs(float(found.mean())) < 0.15 * float(found.std()), key
            assert float(found.abs().max()) == pytest.approx(float(wanted.abs().max()), rel=0.3)


def test_the_model_is_ready_to_use(sam, name):
    side = SCRATCH[name].image_size
    assert not any(module.training for module in sam.modules())
    assert all(parameter.requires_grad for parameter in sam.parameters())
    assert sam.pixel_std.flatten().tolist() == pytest.approx([58.395, 57.12, 57.375])
    image = torch.rand(3, side, side, generator=torch.Generator().manual_seed(0)) * 255
    box = torch.tensor([[10.0, 10.0, side - 10.0, side - 20.0]])
    with torch.no_grad():
        (found,) = sam(
            [{"image": image, "boxes": box, "original_size": (side, side)}], multimask_output=True
        )
    assert found["masks"].shape == (1, 3, side, side)
    assert bool(found["low_res_logits"].isfinite().all())
    grid = side // SCRATCH[name].patch_size
    assert found["low_res_logits"].shape == (1, 3, 4 * grid, 4 * grid)


def test_the_seed_decides_and_the_global_generator_does_not(sam, name):
    torch.manual_seed(5)
    state = torch.get_rng_state()
    same, other = build_scratch(name, 0).state_dict(), build_scratch(name, 1).state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, same[key]) for key, value in sam.state_dict().items())
    assert not torch.equal(
        other["mask_decoder.iou_token.weight"], same["mask_decoder.iou_token.weight"]
    )


def test_a_file_of_it_gives_the_same_architecture_and_outputs(sam, name, tmp_path):
    assert infer_architecture(tmp_path / "x", sam.state_dict()) == SCRATCH[name]
    with torch.no_grad():  # so that positions count too
        for key, value in sam.state_dict().items():
            if "pos" in key:
                value.normal_(std=0.1)
    save_sam(tmp_path / "model.safetensors", sam, "sam")
    loaded = load_sam(tmp_path / "model.safetensors")
    assert all(torch.equal(v, sam.state_dict()[key]) for key, v in loaded.state_dict().items())
    side = SCRATCH[name].image_size
    pixels = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(loaded.image_encoder(pixels), sam.image_encoder(pixels))
    windows = [block.window_size for block in loaded.image_encoder.blocks]
    assert windows == [block.window_size for block in sam.image_encoder.blocks]
    assert 0 in windows and SCRATCH[name].window_size in windows


def test_every_name_of_the_config_is_there():
    for name in ("tiny",):
        assert FinetuneConfig(scratch=name, train="full").scratch in SCRATCH
    with pytest.raises(ConfigError, match="unknown model to train from scratch 'huge'"):
        build_scratch("huge", 0)
