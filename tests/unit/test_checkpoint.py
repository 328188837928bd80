"""Guards checkpoints: they load whole or not at all, and never meet cases that they have seen."""

import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file

from ultrarefiner.errors import LeakError, WeightsError
from ultrarefiner.io import file_sha256
from ultrarefiner.models import build_model
from ultrarefiner.training.checkpoint import (
    check_leak,
    load_model,
    read_card,
    save_weights,
    versions,
    write_card,
)


def card_of(model_path, **changes):
    card = {
        "architecture": {"model": "transunet_tiny", "image_size": 32, "num_classes": 2},
        "phase": "coarse",
        "name": "tiny",
        "dataset": "toy",
        "fold": 0,
        "protocol": "nested",
        "config": {},
        "metrics": {"dice": 0.5},
        "selection": "validation",
        "trained_on": ["toy__a", "toy__b"],
        "selected_on": ["toy__c"],
        "parents": {},
        "weights_sha256": file_sha256(model_path),
        "licence": "-",
        "versions": versions(),
        "fingerprint": "0" * 64,
    }
    return {**card, **changes}


@pytest.fixture
def saved(tmp_path):
    torch.manual_seed(0)
    net = build_model("transunet_tiny", 32, 2).eval()
    model, card = tmp_path / "model.safetensors", tmp_path / "card.json"
    save_weights(model, net.state_dict())
    write_card(card, card_of(model))
    return net, model, card


def test_round_trip(saved):
    net, model, card = saved
    again, facts = load_model(model, card)
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        assert torch.equal(again(x), net(x))
    assert not again.training
    assert facts["trained_on"] == ["toy__a", "toy__b"]
    assert facts["format"] == 1


def test_weights_of_another_training_are_refused(saved):
    net, model, card = saved
    with torch.no_grad():
        next(net.parameters()).add_(1)
    save_weights(model, net.state_dict())
    with pytest.raises(WeightsError, match=r"model\.safetensors is not the file.*train the model"):
        load_model(model, card)


@pytest.mark.parametrize("change", ["missing", "added", "shape"])
def test_weights_load_whole_or_not_at_all(saved, change):
    _, model, card = saved
    state = load_file(model)
    key = sorted(state)[0]
    if change == "missing":
        del state[key]
    elif change == "added":
        state["extra.weight"] = torch.zeros(2)
    else:
        state[key] = torch.zeros(1, 2, 3)
    save_file(state, model)
    write_card(card, card_of(model))
    named = "extra.weight" if change == "added" else key
    with pytest.raises(WeightsError) as caught:
        load_model(model, card)
    assert named in str(caught.value)
    assert str(model) in str(caught.value)


def test_damaged_and_absent_files_are_named(saved, tmp_path):
    _, model, card = saved
    with pytest.raises(WeightsError, match=r"absent\.safetensors"):
        load_model(tmp_path / "absent.safetensors", card)
    with pytest.raises(WeightsError, match=r"absent\.json"):
        load_model(model, tmp_path / "absent.json")
    model.write_bytes(model.read_bytes()[:-100])
    write_card(card, card_of(model))
    with pytest.raises(WeightsError, match=r"cannot read the weights.*model\.safetensors"):
        load_model(model, card)


def test_unknown_architecture_and_format_are_refused(saved):
    _, model, card = saved
    write_card(card, card_of(model, architecture={"model": "nonet", "image_size": 32}))
    with pytest.raises(WeightsError, match="nonet"):
        load_model(model, card)
    values = json.loads(card.read_text())
    card.write_text(json.dumps({**values, "format": 2}))
    with pytest.raises(WeightsError, match="format 1"):
        read_card(card)
    del values["trained_on"]
    card.write_text(json.dumps(values))
    with pytest.raises(WeightsError, match="lacks trained_on"):
        read_card(card)


def test_a_card_with_other_keys_is_not_written(saved, tmp_path):
    _, model, _ = saved
    with pytest.raises(ValueError, match="colour"):
        write_card(tmp_path / "other.json", card_of(model, colour="red"))


def test_a_trained_case_is_a_leak(saved):
    card = read_card(saved[2])
    for allowed in (True, False):
        with pytest.raises(LeakError, match=r"trained on 1 of the 2 cases.*toy__b\."):
            check_leak(card, ["toy__b", "toy__z"], allow_selected=allowed)
    check_leak(card, ["toy__y", "toy__z"], allow_selected=False)


def test_a_selected_case_is_a_leak_unless_the_protocol_says_so(saved):
    card = read_card(saved[2])
    with pytest.raises(LeakError, match=r"selected on 1 of the 1 cases.*toy__c"):
        check_leak(card, ["toy__c"], allow_selected=False)
    check_leak(card, ["toy__c"], allow_selected=True)


def test_a_leak_names_ten_cases_and_counts_the_rest(saved):
    cases = [f"toy__{i:02d}" for i in range(13)]
    card = {**read_card(saved[2]), "trained_on": cases}
    with pytest.raises(LeakError) as caught:
        check_leak(card, reversed(cases), allow_selected=False)
    message = str(caught.value)
    assert "13 of the 13" in message
    assert "toy__00, toy__01" in message
    assert "toy__09 and 3 more" in message
    assert "toy__10" not in message


def test_a_weights_file_follows_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        save_weights(tmp_path / "model.safetensors", {"weight": torch.ones(2)})
    finally:
        os.umask(before)
    assert (tmp_path / "model.safetensors").stat().st_mode & 0o777 == 0o640
