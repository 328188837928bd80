"""Guards which parts train: exactly those of the config; what is frozen keeps every bit."""

from __future__ import annotations

import copy

import pytest
import torch
from pydantic import ValidationError
from segment_anything import sam_model_registry
from torch import nn

from tests.sam_fixture import tiny_sam
from ultrarefiner.config.finetuning import PARTS, FinetuneConfig
from ultrarefiner.errors import ConfigError, UltraRefinerError
from ultrarefiner.models.lora import lora_layers
from ultrarefiner.models.mobile_sam import TinyViTEncoder
from ultrarefiner.models.parts import part_of
from ultrarefiner.models.trainable import first_trainable_block, set_trainable
from ultrarefiner.training.engine import EngineSettings, make_optimizer, set_train_mode
from ultrarefiner.training.plan import one_stage

DEPTH = 3
HEAD = ("output_upscaling.", "output_hypernetworks_mlps.", "iou_prediction_head.")


@pytest.fixture(scope="module")
def plain():
    return tiny_sam(side=128, depth=DEPTH, global_blocks=(2,))


@pytest.fixture
def sam(plain):
    return copy.deepcopy(plain)


@pytest.fixture(scope="module")
def mobile_sam():
    with torch.device("meta"):
        sam = sam_model_registry["vit_b"]()
        sam.image_encoder = TinyViTEncoder()
    return sam


def trained(sam):
    return {name for name, parameter in sam.named_parameters() if parameter.requires_grad}


def own_part(name):
    """Say whose a parameter is without asking the code under test."""
    top, _, rest = name.partition(".")
    if top == "mask_decoder":
        return "head" if rest.startswith(HEAD) else "decoder"
    return {"image_encoder": "encoder", "prompt_encoder": "prompt_encoder"}[top]


def test_every_parameter_has_its_part(plain, mobile_sam):
    for sam in (plain, mobile_sam):
        names = [name for name, _ in sam.named_parameters()]
        assert {name: part_of(name) for name in names} == {name: own_part(name) for name in names}
        assert {part_of(name) for name in names} == set(PARTS)
    with pytest.raises(ValueError, match="'net' is in no part"):
        part_of("net")


PRESETS = {
    "full": set(PARTS),
    "freeze_encoder": {"prompt_encoder", "decoder", "head"},
    "decoder_and_head": {"decoder", "head"},
    "head": {"head"},
}


@pytest.mark.parametrize(
    ("keys", "parts"),
    [
        *(({"train": name}, parts) for name, parts in PRESETS.items()),
        ({}, PRESETS["freeze_encoder"]),
        ({"freeze": []}, set(PARTS)),
        *(({"freeze": part}, set(PARTS) - {part}) for part in PARTS),
        ({"freeze": ["prompt_encoder", "head"]}, {"encoder", "decoder"}),
    ],
)
def test_presets_and_flags(sam, keys, parts):
    sam.requires_grad_(False)  # what was set before does not count
    summary = set_trainable(sam, FinetuneConfig(**keys))
    assert trained(sam) == {n for n, _ in sam.named_parameters() if own_part(n) in parts}
    for part, (count, total) in summary.parts.items():
        sizes = [p.numel() for name, p in sam.named_parameters() if own_part(name) == part]
        assert total == sum(sizes) and count == (total if part in parts else 0)
    assert summary.total == sum(p.numel() for p in sam.parameters())
    assert summary.trained == sum(p.numel() for p in sam.parameters() if p.requires_grad)
    assert summary.lora_layers == 0


@pytest.mark.parametrize("count", [1, 2, DEPTH])
def test_the_last_blocks_train_with_the_neck(sam, count):
    set_trainable(sam, FinetuneConfig(freeze=["encoder", "decoder"], unfreeze_last=count))
    blocks = tuple(f"image_encoder.blocks.{i}." for i in range(DEPTH - count, DEPTH))
    assert {n for n in trained(sam) if own_part(n) == "encoder"} == {
        n for n, _ in sam.named_parameters() if n.startswith((*blocks, "image_encoder.neck."))
    }
    assert not any(own_part(name) == "decoder" for name in trained(sam))
    assert first_trainable_block(sam) == DEPTH - count


def test_additions_come_on_top(sam):
    lora = {"rank": 2, "targets": ["qkv"], "parts": ["encoder", "decoder"], "last": 2}
    summary = set_trainable(sam, FinetuneConfig(freeze=["encoder", "decoder"], lora=lora))
    for name in trained(sam):
        assert (".lora_" in name) == (own_part(name) in ("encoder", "decoder")), name
    assert summary.lora_layers == 2 + 21
    assert summary.parts["encoder"][0] == 2 * (2 * 48 + 144 * 2)
    assert "encoder 768 of" in summary.text and "LoRA in 23 layers" in summary.text
    assert first_trainable_block(sam) == 1


def test_additions_are_drawn_from_the_configs_seed(plain):
    def drawn(seed):
        sam = copy.deepcopy(plain)
        set_trainable(sam, FinetuneConfig(lora={}, seed=seed))
        return [layer.lora_A["default"].weight for _, layer in lora_layers(sam)]

    assert all(torch.equal(a, b) for a, b in zip(drawn(1), drawn(1), strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(drawn(1), drawn(2), strict=True))


@pytest.mark.parametrize(
    ("names", "block"),
    [
        ([], None),
        (["neck.0.weight"], DEPTH),
        (["neck.0.weight", "blocks.2.norm1.weight"], 2),
        (["blocks.1.attn.qkv.bias", "blocks.2.norm1.weight"], 1),
        (["blocks.2.norm1.weight", "pos_embed"], 0),
        (["patch_embed.proj.bias"], 0),
    ],
)
def test_the_first_block_that_trains(sam, names, block):
    sam.image_encoder.requires_grad_(False)
    for name in names:
        sam.image_encoder.get_parameter(name).requires_grad_(True)
    assert first_trainable_block(sam) == block


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"unfreeze_last": 4}, "unfreeze_last: 4, but the encoder has 3 blocks; give 1 to 3"),
        ({"lora": {"last": 4}}, "lora.last: 4, but the encoder has 3 blocks"),
    ],
)
def test_more_blocks_than_there_are_is_refused(sam, keys, says):
    with pytest.raises(ConfigError, match=says):
        set_trainable(sam, FinetuneConfig(**keys))


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"unfreeze_last": 1}, "unfreeze_last needs .* is a TinyViT.*`train: full`"),
        (
            {"lora": {}},
            r"lora in the encoder needs .* is a TinyViT.* `encoder` out of `lora\.parts`",
        ),
    ],
)
def test_an_encoder_without_blocks_is_refused_with_a_cure(mobile_sam, keys, says):
    with pytest.raises(ConfigError, match=says):
        set_trainable(mobile_sam, FinetuneConfig(**keys))
    set_trainable(mobile_sam, FinetuneConfig())
    assert first_trainable_block(mobile_sam) is None
    set_trainable(mobile_sam, FinetuneConfig(train="full"))
    assert first_trainable_block(mobile_sam) == 0


def test_nothing_to_train_is_refused(sam):
    with pytest.raises(ValidationError, match="every part is frozen"):
        FinetuneConfig(freeze=list(PARTS))
    with pytest.raises(UltraRefinerError, match="every parameter of the model is frozen"):
        one_stage(sam.requires_grad_(False), 0.1)


def decode(sam, embedding):
    box = torch.tensor([[20.0, 30.0, 100.0, 90.0]])
    sparse, dense = sam.prompt_encoder(points=None, boxes=box, masks=None)
    positions = sam.prompt_encoder.get_dense_pe()
    masks, ious = sam.mask_decoder(embedding, positions, sparse, dense, multimask_output=True)
    return masks.square().mean() + ious.square().mean()


def train_steps(sam, pixels, steps=2):
    """Take steps as the engine takes them."""
    optimizer = make_optimizer(
        one_stage(sam, 0.05), EngineSettings(1, 0.05, "adamw", weight_decay=0.1)
    )
    set_train_mode(sam)
    for _ in range(steps):
        optimizer.zero_grad()
        decode(sam, sam.image_encoder(pixels)).backward()
        optimizer.step()
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


@pytest.mark.parametrize(
    "keys",
    [
        {"train": "freeze_encoder"},
        {"train": "decoder_and_head"},
        {"train": "head"},
        {"unfreeze_last": 1},
        {"lora": {"rank": 2, "targets": ["qkv", "mlp"], "dropout": 0.5}},
        {"freeze": ["encoder", "decoder"], "lora": {"parts": ["decoder"]}},
    ],
)
def test_training_changes_what_trains_and_no_bit_of_anything_else(sam, keys):
    set_trainable(sam, FinetuneConfig(**keys))
    wanted = trained(sam)
    before = {name: value.clone() for name, value in sam.state_dict().items()}
    pixels = torch.randn(1, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    entries = train_steps(sam, pixels)
    assert {id(p) for p in entries} == {id(p) for n, p in sam.named_parameters() if n in wanted}
    assert len(entries) == len(wanted)
    after = sam.state_dict()
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert changed <= wanted
    # A box gives no gradient to the tokens of points and masks, and one layer is not enough.
    idle = {name for name in wanted - changed if not name.startswith("prompt_encoder.")}
    assert not idle, idle
    for name, module in sam.named_modules():
        weights = list(module.parameters())
        if weights and not any(weight.requires_grad for weight in weights):
            assert not module.training, name


class Noisy(TinyViTEncoder):
    """MobileSAM's encoder, its neck preceded by dropout, on frames of 64 pixels."""

    def forward(self, x):
        """Encode (B, 3, 64, 64) pixels to (B, 256, 4, 4)."""
        return self.neck(
            nn.functional.dropout(self.stages(self.patch_embed(x)), 0.1, self.training)
        )


def test_a_frozen_tinyvit_keeps_its_statistics_and_does_not_drop(sam):
    torch.manual_seed(0)
    sam.image_encoder = Noisy()
    sam.prompt_encoder.image_embedding_size = (4, 4)
    set_trainable(sam, FinetuneConfig(train="freeze_encoder"))
    encoder = sam.image_encoder
    statistics = [name for name, _ in encoder.named_buffers() if "running_" in name]
    assert len(statistics) > 20
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        resting = encoder.eval()(pixels)
    train_steps(sam, pixels[:1], steps=3)
    with torch.no_grad():
        assert torch.equal(encoder(pixels), resting)
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
    # The same steps do change statistics that are not frozen.
    set_trainable(sam, FinetuneConfig(train="full"))
    train_steps(sam, pixels[:1], steps=1)
    after = encoder.state_dict()
    assert not any(torch.equal(after[name], before[name]) for name in statistics)
