"""Guards how the members of a team share batches and cases: each once, none left out."""

from itertools import chain
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ultrarefiner.config import AugmentConfig, CoarseConfig
from ultrarefiner.errors import ConfigError, UltraRefinerError
from ultrarefiner.training.data import CoarseData, TrainingBatches
from ultrarefiner.training.progress import Progress
from ultrarefiner.training.shared_modules import SharedDropout, sharing
from ultrarefiner.training.team import ALONE, Share, Team, join_team

TEAMS = st.integers(1, 6)


def members(size):
    return [Team(rank, size) for rank in range(size)]


@given(TEAMS, st.integers(0, 40), st.integers(1, 5))
def test_cases_are_shared_once_each_and_evenly(size, count, batch):
    shares = [team.share(count) for team in members(size)]
    assert [i for one in shares for i in range(one.start, one.stop)] == list(range(count))
    lengths = [len(one) for one in shares]
    assert max(lengths) - min(lengths) <= 1
    # Every member asks as often as the others whether to stop.
    asked = [
        -(-len(share) // batch) + team.spare_rounds(count, batch)
        for team, share in zip(members(size), shares, strict=True)
    ]
    assert len(set(asked)) == 1 and asked[0] == -(-max(lengths) // batch)


@given(TEAMS, st.lists(st.integers(1, 9), min_size=1, max_size=8), st.integers(0, 3))
def test_batches_are_shared_and_small_ones_are_everybodys(size, sizes, first):
    items = list(range(sum(sizes)))
    parts = [team.batches(items, sizes, first) for team in members(size)]
    for number, count in enumerate(sizes[first:], first):
        offset = sum(sizes[:number])
        whole = items[offset : offset + count]
        mine = [part[number - first] for part in parts]
        if count < size:
            assert mine == [whole] * size
            assert members(size)[0].batch_share(count) == Share(0, count, count, size)
        else:
            assert list(chain(*mine)) == whole and all(mine)


@given(TEAMS, st.integers(0, 30), st.integers(1, 7))
def test_what_is_dealt_out_keeps_its_batches(size, count, hand):
    dealt = [list(team.dealt(range(count), hand)) for team in members(size)]
    assert sorted(chain(*dealt)) == list(range(count))
    hands = [one[i : i + hand] for one in dealt for i in range(0, len(one), hand)]
    assert all(part[0] % hand == 0 and part == sorted(part) for part in hands)
    assert list(ALONE.dealt(range(count), hand)) == list(range(count))


def test_a_team_of_one_exchanges_nothing():
    rows = torch.tensor([[3, 3], [1, 1], [2, 2]])
    assert ALONE.gather([2, 0, 1], rows).tolist() == [[1, 1], [2, 2], [3, 3]]
    parameter = nn.Parameter(torch.ones(2))
    ALONE.sum_gradients([parameter])
    assert parameter.grad is None
    assert (ALONE.largest(3), ALONE.tell("word"), ALONE.is_first) == (3, "word", True)
    net = nn.Sequential(nn.BatchNorm2d(2), nn.Dropout())
    with sharing(net, ALONE):
        assert [type(one) for one in net] == [nn.BatchNorm2d, nn.Dropout]


def test_modules_have_their_own_class_back_and_frozen_ones_never_lose_it():
    net = nn.Sequential(nn.BatchNorm2d(2), nn.Dropout(), nn.Dropout())
    net[0].eval()
    names = set(net.state_dict())
    with pytest.raises(KeyError), sharing(net, Team(1, 2)) as current:
        assert [type(one) for one in net] == [nn.BatchNorm2d, SharedDropout, SharedDropout]
        assert net[1].current is current and set(net.state_dict()) == names
        raise KeyError
    assert [type(one) for one in net] == [nn.BatchNorm2d, nn.Dropout, nn.Dropout]
    assert not hasattr(net[1], "current")


@pytest.mark.parametrize(
    "module", [nn.BatchNorm1d(2), nn.Dropout2d(), nn.BatchNorm2d(2, affine=False)]
)
def test_what_cannot_be_shared_is_named(module):
    with (
        pytest.raises(UltraRefinerError, match=rf"1 is a {type(module).__name__}.*`gpu: 1`"),
        sharing(nn.Sequential(nn.Dropout(), module), Team(0, 2)),
    ):
        pass


def test_the_samples_of_an_epoch_count_once_each_whoever_computed_them():
    sizes = [3, 1, 2]
    alone = Progress(ALONE, sizes)
    for size in sizes[:2]:
        alone.add(ALONE.batch_share(size), torch.ones(size), torch.full((size, 2), size))
    state = alone.state({"torch": 1})
    assert state["batches"] == 2 and len(state["losses"]) == 4
    again = Progress(ALONE, sizes, state)
    assert again.rows()[1].tolist() == state["observed"].tolist()
    again.add(ALONE.batch_share(2), torch.zeros(2), torch.full((2, 2), 2))
    assert again.rows()[0].tolist() == [1, 1, 1, 1, 0, 0]
    second = Progress(Team(1, 2), sizes)
    second.add(Team(1, 2).batch_share(3), torch.ones(2), torch.ones(2, 2))
    second.add(Team(1, 2).batch_share(1), torch.ones(1), torch.ones(1, 2))
    assert second._index == [1, 2]  # the batch of one is the first member's


def test_the_loader_makes_only_what_a_member_needs(toy_study):
    data = CoarseData.read(toy_study[0], toy_study[2]["train"], 32)
    made = [
        TrainingBatches(data, AugmentConfig(), 3, seed=1, team=team).epoch(2, first)
        for team, first in ((ALONE, 0), (Team(0, 2), 0), (Team(1, 2), 0), (Team(1, 2), 1))
    ]
    whole, one, other, later = ([images for images, _ in batches] for batches in made)
    for batch, *parts in zip(whole, one, other, strict=True):
        assert torch.equal(torch.cat(parts), batch)
    assert len(later) == 1 and torch.equal(later[0], other[1])


def test_a_job_with_fewer_gpus_than_processes_is_refused(monkeypatch):
    for name, value in {"RANK": 0, "WORLD_SIZE": 4, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 4}.items():
        monkeypatch.setenv(name, str(value))
    device = SimpleNamespace(type="cuda")
    monkeypatch.setattr("ultrarefiner.training.team.choose_device", lambda _: device)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    with pytest.raises(ConfigError, match="4 GPUs are asked for and this job has 2"):
        join_team("auto").__enter__()
    device.type = "mps"
    with pytest.raises(ConfigError, match="`gpu: 1`"):
        join_team("auto").__enter__()


def test_a_batch_has_a_sample_for_each_gpu():
    with pytest.raises(ValueError, match="8 GPUs cannot share a batch of 6"):
        CoarseConfig(gpu=4, nodes=2, batch_size=6)
    assert CoarseConfig(gpu=4, nodes=2).recipe() == CoarseConfig().recipe()
