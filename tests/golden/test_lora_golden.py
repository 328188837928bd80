"""Guards: LoRA layers and their merging give the reference numbers, and adapt what they should."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from segment_anything import sam_model_registry
from torch import nn

from ultrarefiner.models.lora import add_lora, lora_layers, merge_lora

from .formula import formula_tensor

FILE = Path(__file__).parent / "refiner" / "lora.npz"
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def golden():
    with np.load(FILE) as stored:
        return {key: stored[key] for key in stored.files}


def tensor(name, *shape):
    return torch.from_numpy(formula_tensor(f"lora_test.{name}", shape))


class Attention(nn.Module):
    """One linear layer under the name of an attention's first."""

    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(48, 144)
        with torch.no_grad():
            self.qkv.weight.copy_(tensor("base.weight", 144, 48))
            self.qkv.bias.copy_(tensor("base.bias", 144))

    def forward(self, x):
        """Return the layer's output."""
        return self.qkv(x)


def close(found, wanted):
    torch.testing.assert_close(
        found.detach(), torch.from_numpy(np.asarray(wanted)), atol=TOLERANCE, rtol=0
    )


@pytest.mark.parametrize(("rank", "alpha"), [(4, 4.0), (8, 16.0), (4, 1.0)])
def test_forward_and_merged_weight(golden, rank, alpha):
    x, key = torch.from_numpy(golden["x"]), f"r{rank}_a{alpha}"
    model = Attention()
    close(model(x), golden["base"])
    plain = model(x)
    add_lora(model, rank=rank, alpha=alpha)
    assert golden[f"{key}.init_equal_base_maxdiff"] == 0
    assert torch.equal(model(x), plain)
    ((name, layer),) = lora_layers(model)
    assert name == "qkv"
    with torch.no_grad():
        layer.lora_A["default"].weight.copy_(tensor("lora_A.weight", rank, 48))
        layer.lora_B["default"].weight.copy_(tensor("lora_B.weight", 144, rank))
    close(model(x), golden[f"{key}.forward"])
    merge_lora(model)
    assert type(model.qkv) is nn.Linear
    close(model.qkv.weight, golden[f"{key}.merged_weight"])
    close(model(x), golden[f"{key}.forward"])


def test_alpha_is_the_rank_when_it_is_not_given(golden):
    model = add_lora(Attention(), rank=4)
    ((_, layer),) = lora_layers(model)
    with torch.no_grad():
        layer.lora_A["default"].weight.copy_(tensor("lora_A.weight", 4, 48))
        layer.lora_B["default"].weight.copy_(tensor("lora_B.weight", 144, 4))
    close(model(torch.from_numpy(golden["x"])), golden["r4_a4.0.forward"])


def test_rank_4_on_the_attention_of_vit_b_is_147456_parameters():
    with torch.device("meta"):
        sam = sam_model_registry["vit_b"]()
    sam.requires_grad_(False)
    add_lora(sam, rank=4, targets=("qkv",))
    assert sum(p.numel() for p in sam.parameters() if p.requires_grad) == 147_456
    assert sum(1 for _ in lora_layers(sam)) == 12
