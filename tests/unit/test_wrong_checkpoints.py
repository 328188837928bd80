"""Guards finetuned weights: a file that would load by half is refused with the keys that differ.

Ten files that finetuning programs leave behind, each in SAM's and in UltraSAM's names.
"""

from __future__ import annotations

import re

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from tests.sam_fixture import tiny_sam
from ultrarefiner.cli import app
from ultrarefiner.errors import WeightsError
from ultrarefiner.models.lora import add_lora, merge_lora
from ultrarefiner.models.sam import load_sam
from ultrarefiner.models.transunet import TransUNet
from ultrarefiner.models.ultrasam import to_ultrasam

SIDE = 128
FAMILIES = ("sam", "ultrasam")
PARTS = {
    "encoder": ("image_encoder.", "backbone."),
    "decoder": ("mask_decoder.", "decoder.", "bbox_head."),
}


def make_state(family, **sizes):
    state = tiny_sam(side=SIDE, **sizes).state_dict()
    return to_ultrasam(state) if family == "ultrasam" else dict(state)


@pytest.fixture(scope="module")
def states():
    return {family: make_state(family) for family in FAMILIES}


def of_part(state, part):
    return [key for key in state if key.startswith(PARTS[part])]


def with_additions(state, prefix=""):
    """Return a state dict as peft leaves it: wrapped layers, A and B beside them."""
    found = {}
    for key, value in state.items():
        layer, _, leaf = key.rpartition(".")
        if not layer.endswith("attn.qkv"):
            found[prefix + key] = value
            continue
        found[f"{prefix}{layer}.base_layer.{leaf}"] = value
        if leaf == "weight":
            found[f"{prefix}{layer}.lora_A.default.weight"] = torch.zeros(4, value.shape[1])
            found[f"{prefix}{layer}.lora_B.default.weight"] = torch.zeros(value.shape[0], 4)
    return found


# Each returns the file's tensors, and the names that are missing and unexpected among them: the
# message has to count or quote some of each, and no others.


def half_of_the_decoder(state, family):
    lost = of_part(state, "decoder")[::2]
    return {key: state[key] for key in state if key not in lost}, lost, []


def the_encoder_alone(state, family):
    kept = of_part(state, "encoder")
    return {key: state[key] for key in kept}, [key for key in state if key not in kept], []


def additions_alone(state, family):
    wrapped = with_additions(state, "base_model.model.")
    found = {key: value for key, value in wrapped.items() if "lora_" in key}
    missing = [f"base_model.model.{key}" for key in state if key.endswith("attn.qkv.weight")]
    return found, missing, list(found)


def unmerged_additions(state, family):
    found = with_additions(state)
    missing = [key for key in state if key.endswith("attn.qkv.weight")]
    return found, missing, [key for key in found if key not in state]


def another_prefix(state, family):
    found = {f"sam_refiner.{key}": value for key, value in state.items()}
    return found, list(state), list(found)


def both_networks(state, family):
    mine = {f"sam_model.{key}": value for key, value in state.items()}
    other = TransUNet.tiny(64).state_dict()
    return mine | {f"coarse.{key}": value for key, value in other.items()}, list(state), list(mine)


def the_coarse_network(state, family):
    found = TransUNet.tiny(64).state_dict()
    return found, list(state), list(found)


def another_depth(state, family):
    deeper = make_state(family, depth=3)
    more = [key for key in deeper if key not in state]
    kept = [key for key in more if ".attn.qkv." in key or ".attn.rel_pos" in key]
    found = state | {key: deeper[key] for key in kept}
    return found, [key for key in more if key not in kept], []


def a_renamed_key(state, family):
    key = of_part(state, "decoder")[-1]
    name = key.replace("weight", "w").replace("bias", "b")
    return {name if k == key else k: value for k, value in state.items()}, [key], [name]


def another_layer(state, family):
    extra = {f"{of_part(state, 'decoder')[-1]}.gate.weight": torch.zeros(3)}
    lost = of_part(state, "decoder")[-1]
    return {k: v for k, v in (state | extra).items() if k != lost}, [lost], list(extra)


TABLE = [
    half_of_the_decoder,
    the_encoder_alone,
    additions_alone,
    unmerged_additions,
    another_prefix,
    both_networks,
    the_coarse_network,
    another_depth,
    a_renamed_key,
    another_layer,
]


def quoted(message, word):
    """Return how many names a message says are missing or unexpected, and those that it lists."""
    match = re.search(rf"(\d+) {word}: ((?:[\w.]+, )*[\w.]+)", message)
    if match is None:
        return 0, []
    return int(match[1]), [name.rstrip(".") for name in match[2].split(", ") if name != "and"]


def check(message, word, names):
    count, listed = quoted(message, word)
    assert (count > 0) == bool(names), message
    assert len(listed) == min(count, 10) and set(listed) <= set(names), message
    assert count <= len(names)


def test_the_table_has_ten_rows_of_different_files(states):
    contents = [frozenset(row(states["sam"], "sam")[0]) for row in TABLE]
    assert len(set(contents)) == len(TABLE) == 10
    assert frozenset(states["sam"]) not in contents


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.__name__)
def test_a_wrong_file_is_refused_with_its_missing_and_unexpected_keys(
    states, tmp_path, row, family, suffix
):
    content, missing, unexpected = row(states[family], family)
    path = tmp_path / f"best{suffix}"
    if suffix == ".pth":
        torch.save({"model_state_dict": content, "epoch": 3}, path)
    else:
        save_file({key: value.clone() for key, value in content.items()}, path)
    with pytest.raises(WeightsError) as caught:
        load_sam(path, family)
    message = str(caught.value)
    assert message.startswith(str(path))
    check(message, "missing", missing)
    check(message, "unexpected", unexpected)


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.__name__)
def test_the_command_line_says_so_and_fails(states, tmp_path, row):
    torch.save(row(states["sam"], "sam")[0], tmp_path / "best.pth")
    out = tmp_path / "out.pth"
    result = CliRunner().invoke(app, ["export", str(tmp_path / "best.pth"), "-o", str(out)])
    assert result.exit_code == 1 and " missing: " in result.output
    assert not out.exists()


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_of_another_width_are_named_with_both_shapes(states, tmp_path, family):
    state = dict(states[family])
    key = {
        "sam": "image_encoder.blocks.1.norm1.weight",
        "ultrasam": "backbone.layers.1.ln1.weight",
    }[family]
    state[key] = torch.ones(64)
    torch.save(state, tmp_path / "wide.pth")
    says = rf"1 of another shape: {re.escape(key)} \(64,\) instead of \(48,\)"
    with pytest.raises(WeightsError, match=says):
        load_sam(tmp_path / "wide.pth", family)


@pytest.mark.parametrize(
    "entries",
    [["sam_model", "epoch"], ["state", "param_groups"], ["model_state", "optimizer"]],
    ids=" and ".join,
)
def test_a_file_that_holds_no_weights_where_they_are_looked_for_names_its_entries(
    states, tmp_path, entries
):
    content = {entries[0]: states["sam"], entries[1]: {"lr": 0.1}}
    torch.save(content, tmp_path / "odd.pth")
    with pytest.raises(WeightsError, match=f"not tensors: {', '.join(entries)}"):
        load_sam(tmp_path / "odd.pth")


def test_our_own_model_in_training_does_not_load_before_it_is_merged(tmp_path):
    sam = add_lora(tiny_sam(side=SIDE))
    torch.save(sam.state_dict(), tmp_path / "training.pth")
    with pytest.raises(WeightsError) as caught:
        load_sam(tmp_path / "training.pth")
    check(
        str(caught.value),
        "missing",
        [f"image_encoder.blocks.{i}.attn.qkv.weight" for i in range(2)],
    )
    torch.save(merge_lora(sam).state_dict(), tmp_path / "merged.pth")
    load_sam(tmp_path / "merged.pth")
