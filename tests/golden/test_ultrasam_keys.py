"""Every tensor of SAM has the one place in an UltraSAM file that its authors' conversion gives it."""

from __future__ import annotations

import math

import pytest
import torch

from tests.golden.ultrasam_formula import keys
from ultrarefiner.errors import WeightsError
from ultrarefiner.models.ultrasam import from_ultrasam, to_ultrasam, ultrasam_place


@pytest.fixture(scope="module")
def golden():
    return keys()


@pytest.fixture(scope="module")
def numbered(golden):
    """UltraSAM's tensors at full length, one number a row: no two rows anywhere are equal."""
    state, first = {}, 0
    for name, shape in golden["state_dict"]:
        rows = shape[0]
        numbers = torch.arange(first, first + rows, dtype=torch.float64)
        state[name] = numbers.reshape([rows] + [1] * (len(shape) - 1))
        first += rows
    return state


def test_the_table_of_the_authors_is_whole(golden):
    assert len(golden["state_dict"]) == 293 and len(golden["sam_to_ultrasam"]) == 314
    held = {name: shape[0] for name, shape in golden["state_dict"]}
    for _, name, part in golden["sam_to_ultrasam"]:
        held[name] -= held[name] if part is None else part[1] - part[0]
    assert set(held.values()) == {0}


def test_each_tensor_lies_where_the_authors_put_it(golden, numbered):
    state = from_ultrasam(numbered)
    assert state.keys() == {row[0] for row in golden["sam_to_ultrasam"]}
    for key, name, part in golden["sam_to_ultrasam"]:
        wanted = numbered[name] if part is None else numbered[name][slice(*part)]
        assert torch.equal(state[key], wanted), key
        place = ultrasam_place(key)
        assert (place if isinstance(place, str) else place[0]) == name


def test_going_there_and_back_changes_no_bit(numbered):
    state = from_ultrasam(numbered)
    again = to_ultrasam(state)
    assert again.keys() == numbered.keys()
    assert all(torch.equal(again[name], value) for name, value in numbered.items())
    twice = from_ultrasam(again)
    assert twice.keys() == state.keys()
    assert all(torch.equal(twice[key], value) for key, value in state.items())
    assert sum(math.prod(value.shape) for value in state.values()) == sum(
        len(value) for value in numbered.values()
    )


def test_names_that_are_not_known_are_never_moved_nor_dropped(numbered):
    extra = numbered | {"bbox_head.new.weight": torch.ones(1), "decoder.x.attn.rest": torch.ones(1)}
    assert from_ultrasam(extra).keys() - from_ultrasam(numbered).keys() == {
        "bbox_head.new.weight",
        "decoder.x.attn.rest",
    }
    whole = from_ultrasam(numbered)
    with pytest.raises(WeightsError, match=r"1 unknown names: refiner\.gate"):
        to_ultrasam({**whole, "refiner.gate": torch.ones(1)})
    part = {key: value for key, value in whole.items() if key != "mask_decoder.iou_token.weight"}
    with pytest.raises(WeightsError, match=r"1 incomplete tensors: prompt_encoder\.label_encoder"):
        to_ultrasam(part)
    with pytest.raises(KeyError):
        ultrasam_place("refiner.gate")
