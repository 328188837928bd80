"""A wrong weights file is refused with what it is and what to do, and no code in it ever runs."""

from __future__ import annotations

import argparse
import os
import re
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import save_file

from tests.sam_fixture import tiny_sam
from ultrarefiner.errors import ConfigError, WeightsError
from ultrarefiner.models.sam import load_sam
from ultrarefiner.models.transunet import TransUNet
from ultrarefiner.models.ultrasam import to_ultrasam

FAMILIES = ["sam", "ultrasam"]


@pytest.fixture(scope="module")
def states():
    state = tiny_sam(side=256).state_dict()
    return {"sam": state, "ultrasam": to_ultrasam(state)}


def save(content, path):
    torch.save(content, path)
    return path.read_bytes()


def truncated(state, path):
    whole = save(state, path)
    path.write_bytes(whole[: len(whole) // 2])


def web_page(state, path):
    path.write_bytes(b"\n<!DOCTYPE html><html>Sign in</html>")


def another_architecture(state, path):
    save(torchvision.models.resnet18(weights=None).state_dict(), path)


def half_the_keys(state, path):
    save({"model": {key: state[key] for key in list(state)[::2]}}, path)


def wrong_prefix(state, path):
    save({f"net.{key}": value for key, value in state.items()}, path)


def mark(path):
    """Return the folder that the code in a file would make."""
    return str(path.with_name("ran"))


class Payload:
    """Pickles into a call: whoever unpickles it without care makes a folder."""

    def __init__(self, call, *arguments):
        self.call = (call, arguments)

    def __reduce__(self):
        return self.call

    def __call__(self):
        """Be callable, so that a payload can be what another one calls."""


def pickle_with_code(state, path):
    save({"model": state, "note": Payload(eval, f"__import__('os').mkdir({mark(path)!r})")}, path)


def torchscript(state, path):
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)), path)


def empty(state, path):
    path.touch()


def wrong_size(state, path):
    name = next(
        key for key in state if key.endswith(("blocks.1.attn.qkv.weight", ".1.attn.qkv.weight"))
    )
    save({**state, name: torch.zeros(3 * 64, 64)}, path)


def medsam2(state, path):
    names = [
        "image_encoder.trunk.pos_embed",
        "image_encoder.trunk.blocks.0.attn.qkv.weight",
        "image_encoder.neck.convs.0.conv.weight",
        "memory_attention.layers.0.self_attn.q_proj.weight",
        "sam_prompt_encoder.point_embeddings.0.weight",
        "sam_mask_decoder.iou_token.weight",
        "maskmem_tpos_enc",
    ]
    save({"model": {name: torch.zeros(2) for name in names}, "epoch": 1}, path)


def sam_med2d(state, path):
    names = [f"image_encoder.blocks.{i}.Adapter.channel.0.weight" for i in range(2)]
    plain = tiny_sam(side=256).state_dict()
    save({"model": plain | {name: torch.zeros(12, 48) for name in names}}, path)


KINDS = {
    truncated: r"is cut short: .* after \d+ bytes\. Delete it and download it again",
    web_page: r"is a web page, not weights: .* download it again",
    another_architecture: r"such as layer\d.* are those of a ResNet\. Use a whole checkpoint of",
    half_the_keys: r"is not a whole checkpoint of .*\d+ missing: .*Use a whole checkpoint of",
    wrong_prefix: r"every name begins with 'net\.', .*'module\.', 'sam\.', 'model\.'.*Rename them",
    pickle_with_code: r"Python object \('eval'\) .* could run any code.*save the tensors alone",
    torchscript: r"is a TorchScript archive: .*torch\.save\(model\.state_dict\(\)",
    empty: r"is empty \(0 bytes\)\. Delete it and download it again",
    wrong_size: r"\d+ of another shape: .*1\.attn\.qkv\.weight \(192, 64\) instead of \(144, 48\)"
    r".*different sizes are mixed.*Use a whole checkpoint of",
    medsam2: r"such as image_encoder\.trunk.* of a SAM 2 model \(MedSAM2 is one\).*family: medsam2",
    sam_med2d: r"such as .*Adapter.* are those of SAM-Med2D, .*Use a whole checkpoint of",
}


def refusal(path, family):
    with pytest.raises(WeightsError) as caught:
        load_sam(path, family)
    message = str(caught.value)
    assert str(path) in message
    assert not Path(mark(path)).exists(), "code of the file ran"
    return message


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
@pytest.mark.parametrize("family", FAMILIES)
def test_every_kind_of_wrong_file_has_its_own_message(states, tmp_path, family):
    messages = {}
    for kind in KINDS:
        path = tmp_path / f"{kind.__name__}.pth"
        kind(states[family], path)
        messages[kind] = refusal(path, family)
    for kind, wanted in KINDS.items():
        matching = {other.__name__ for other in KINDS if re.search(wanted, messages[other])}
        assert matching == {kind.__name__}, messages[kind]


@pytest.mark.parametrize("family", FAMILIES)
def test_names_in_a_message_are_those_of_the_file(states, tmp_path, family):
    half_the_keys(states[family], tmp_path / "half.pth")
    message = refusal(tmp_path / "half.pth", family)
    listed = re.search(r"missing: (.*?)(?:, and|;)", message)[1].split(", ")
    assert set(listed) <= set(states[family])


@pytest.mark.parametrize("family", FAMILIES)
def test_other_architectures_are_told_apart(tmp_path, family):
    others = {
        "TransUNet": TransUNet.tiny(64).state_dict(),
        r"a SAM with a TinyViT encoder.*family: mobile_sam": {
            "image_encoder.layers.0.blocks.0.conv1.c.weight": torch.zeros(1)
        },
        "transformers package": {"vision_encoder.pos_embed": torch.zeros(1)},
        r"has nothing of a checkpoint of .*; it has 2 tensors: 0\.weight, 0\.bias": (
            torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3)).state_dict()
        ),
    }
    for wanted, state in others.items():
        save(state, tmp_path / "other.pth")
        assert re.search(wanted, refusal(tmp_path / "other.pth", family))


def test_a_file_of_the_other_family_is_named(states, tmp_path):
    save({"state_dict": states["ultrasam"]}, tmp_path / "UltraSam.pth")
    assert "`family: ultrasam`" in refusal(tmp_path / "UltraSam.pth", "sam")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("prefix", ["encoder.", "net.sam.", "ema_model.module."])
def test_a_prefix_that_is_not_known_is_quoted(states, tmp_path, family, prefix):
    path = tmp_path / "prefixed.pth"
    save({f"{prefix}{key}": value for key, value in states[family].items()}, path)
    assert f"every name begins with '{prefix}'" in refusal(path, family)


def test_a_prefix_on_only_some_names_is_not_guessed_away(states, tmp_path):
    joint = {
        **{f"sam.{key}": value for key, value in states["sam"].items()},
        "gate": torch.zeros(1),
    }
    save(joint, tmp_path / "joint.pth")
    wanted = f"{len(states['sam'])} of {len(joint)} names begin with 'sam.' and 1 do not: gate"
    assert wanted in refusal(tmp_path / "joint.pth", "sam")


class Module:
    """A class of somebody's project, pickled whole with a checkpoint."""

    def __setstate__(self, state):
        Path(state["ran"]).mkdir()


def test_no_code_of_a_pickle_runs(states, tmp_path):
    path = tmp_path / "code.pth"
    whole = Module()
    whole.ran = mark(path)
    hidden = Payload(Payload(getattr, OrderedDict, "fromkeys"), "ab")
    contents = {
        "mkdir": Payload(os.mkdir, mark(path)),
        "exec": Payload(exec, f"__import__('os').mkdir({mark(path)!r})"),
        "Module": whole,
        "Namespace": argparse.Namespace(lr=0.1),
        "besides tensors": hidden,
    }
    for name, content in contents.items():
        for legacy in (False, True):
            torch.save(
                {"model": states["sam"], "extra": content},
                path,
                _use_new_zipfile_serialization=not legacy,
            )
            message = refusal(path, "sam")
            assert "could run any code" in message and name in message


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"sam_model": {"x": torch.zeros(1)}, "epoch": 3}, "not tensors: sam_model, epoch"),
        ({"model": {"a": torch.zeros(1)}, "state_dict": {"a": torch.zeros(1)}}, "several"),
        ({"model": {"a": np.float64(1)}}, "1 entries that are not tensors: a"),
        ([torch.zeros(1)], "holds a list"),
        (torch.zeros(3), "holds a Tensor"),
        ({}, "not a state dict"),
    ],
)
def test_files_that_hold_no_single_state_dict_are_refused(tmp_path, content, reason):
    save(content, tmp_path / "odd.pth")
    assert reason in refusal(tmp_path / "odd.pth", "sam")


def test_damaged_files_are_refused_by_what_they_are(states, tmp_path):
    save_file(states["sam"], tmp_path / "whole.safetensors")
    tensors = (tmp_path / "whole.safetensors").read_bytes()
    np.savez(tmp_path / "archive.npz", a=np.zeros(3))
    old = tmp_path / "old.pth"
    torch.save({"a": torch.zeros(10)}, old, _use_new_zipfile_serialization=False)
    with zipfile.ZipFile(tmp_path / "packed.zip", "w") as archive:
        archive.writestr("weights/sam.pth", b"0")
    torch.save({"a": torch.zeros(10)}, tmp_path / "protocol.zip", pickle_protocol=4)
    damaged = {
        "page.safetensors": (b"<html><head>404</head></html>", "web page"),
        "answer.pth": (b'{"status": 404, "message": "no such record"}', "web page"),
        "pointer.pth": (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0",
            "git lfs pull",
        ),
        "old_cut.pth": (old.read_bytes()[:-20], "damaged, cut short"),
        "cut.safetensors": (tensors[: len(tensors) // 2], "damaged safetensors"),
        "cut.pth": (tensors[: len(tensors) // 2], "damaged safetensors"),
        "archive.pth": ((tmp_path / "archive.npz").read_bytes(), "NumPy archive"),
        "packed.pth": ((tmp_path / "packed.zip").read_bytes(), "holds weights/sam.pth.*Unpack it"),
        "protocol.pth": ((tmp_path / "protocol.zip").read_bytes(), "another pickle protocol"),
        "noise.pth": (np.random.default_rng(0).bytes(4096), "not a PyTorch checkpoint"),
        "text.pth": (b"hello world\n", "not a PyTorch checkpoint"),
    }
    for name, (content, reason) in damaged.items():
        (tmp_path / name).write_bytes(content)
        assert re.search(reason, refusal(tmp_path / name, "sam"))
    assert "No such file" in refusal(tmp_path / "absent.pth", "sam")
    assert "directory" in refusal(tmp_path, "sam")


def test_random_damage_never_escapes_as_another_error(tmp_path):
    rng = np.random.default_rng(0)
    path = tmp_path / "damaged.pth"
    refused = 0
    for legacy in (False, True):
        whole = {"model": {f"k{i}": torch.ones(2) for i in range(4)}, "n": np.float64(1)}
        torch.save(whole, path, _use_new_zipfile_serialization=not legacy)
        original = np.frombuffer(path.read_bytes(), np.uint8)
        for _ in range(100):
            damaged = original[: rng.integers(1, len(original) + 1)].copy()
            places = rng.integers(0, min(len(damaged), 1000), 4)
            damaged[places] = rng.integers(0, 256, 4)
            path.write_bytes(damaged.tobytes())
            try:
                load_sam(path)
            except WeightsError:
                refused += 1
    assert refused == 200


def test_an_unknown_family_is_refused_with_the_known_ones(states, tmp_path):
    save(states["sam"], tmp_path / "tiny.pth")
    with pytest.raises(
        ConfigError, match=r"unknown SAM family 'samurai'; known: .*sam, sam_unet, ultrasam"
    ):
        load_sam(tmp_path / "tiny.pth", family="samurai")


def test_a_flipped_bit_anywhere_in_the_tensors_is_found(states, tmp_path):
    path = tmp_path / "sam.pth"
    whole = save(states["sam"], path)
    for share in (0.2, 0.5, 0.8):
        changed = bytearray(whole)
        changed[int(share * len(whole))] ^= 1
        path.write_bytes(changed)
        assert "is not what was saved" in refusal(path, "sam")


def test_a_suffix_does_not_decide_how_a_file_is_read(states, tmp_path):
    path = tmp_path / "sam.safetensors"
    save(states["sam"], path)
    found = load_sam(path).state_dict()
    assert all(torch.equal(value, states["sam"][key]) for key, value in found.items())


@pytest.mark.filterwarnings("ignore:Validating sparse tensor invariants")
@pytest.mark.parametrize(
    "hollow",
    [lambda value: value.to("meta"), lambda value: value.to_sparse()],
    ids=["meta", "sparse"],
)
@pytest.mark.parametrize("family", FAMILIES)
def test_tensors_without_numbers_are_refused(states, tmp_path, family, hollow):
    save({key: hollow(value) for key, value in states[family].items()}, tmp_path / "hollow.pth")
    assert "Save them dense" in refusal(tmp_path / "hollow.pth", family)


def test_a_stray_tensor_with_a_large_index_builds_no_large_model(states, tmp_path):
    key = "image_encoder.blocks.9999999.attn.rel_pos_w"
    save({**states["sam"], key: torch.zeros(1)}, tmp_path / "stray.pth")
    assert f"1 unexpected: {key}" in refusal(tmp_path / "stray.pth", "sam")
