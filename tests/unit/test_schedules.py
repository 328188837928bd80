"""Guards the learning rate: a closed form of the step's number, the same after a resumed training."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ultrarefiner.training.engine import EngineSettings, fit
from ultrarefiner.training.plan import Stage, stage_rates
from ultrarefiner.training.resume import ResumeFolder
from ultrarefiner.training.schedules import cosine_lr, learning_rate, poly_lr

STEPS = 40


def rates(steps=STEPS, **options):
    values = EngineSettings(epochs=1, lr=0.3, **options)
    return [learning_rate(values, step, steps) for step in range(steps)]


@pytest.mark.parametrize("power", [0.9, 0.0, 2.0])
def test_poly_without_warmup_is_to_the_bit_what_it_was(power):
    assert rates(power=power) == [0.3 * (1 - i / STEPS) ** power for i in range(STEPS)]
    assert EngineSettings(epochs=1, lr=0.3).schedule == "poly"


def test_cosine_falls_from_the_base_to_a_hundredth():
    found = rates(schedule="cosine")
    expected = [0.003 + 0.297 * (1 + math.cos(math.pi * i / STEPS)) / 2 for i in range(STEPS)]
    assert found == pytest.approx(expected, rel=1e-12)
    assert found[0] == 0.3
    assert cosine_lr(0.3, STEPS, STEPS) == pytest.approx(0.003)
    assert found[STEPS // 2] == pytest.approx((0.3 + 0.003) / 2)


def test_cosine_is_that_of_pytorch():
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], 0.3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS, eta_min=0.003)
    theirs = []
    for _ in range(STEPS):
        theirs.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates(schedule="cosine") == pytest.approx(theirs, rel=1e-9)


def multistep(stages, steps, **options):
    """Return the rates of stages in every step of epochs of so many steps, by multistep."""
    values = EngineSettings(epochs=len(steps), lr=0.3, schedule="multistep", **options)
    return [stage_rates(stages, values, step, steps) for step in range(sum(steps))]


@pytest.mark.parametrize("gamma", [0.5, 0.1])
@pytest.mark.parametrize("milestones", [[1], [2, 3], [1, 3, 5]])
def test_multistep_is_that_of_pytorch_stepped_once_an_epoch(milestones, gamma):
    parameter, steps = nn.Parameter(torch.zeros(1)), [3, 2, 3, 1, 4, 2]
    optimizer = torch.optim.SGD([parameter], 0.3)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones, gamma)
    theirs = []
    for of_epoch in steps:
        for _ in range(of_epoch):
            theirs.append([optimizer.param_groups[0]["lr"]])
            optimizer.step()
        scheduler.step()
    found = multistep([Stage("", (parameter,), 0.3)], steps, milestones=milestones, gamma=gamma)
    assert found == [pytest.approx(rate, rel=1e-12) for rate in theirs]
    assert found[0] == [0.3]


def test_the_epochs_of_a_part_count_from_its_own_first():
    parts = [
        Stage("all", (), 0.3),
        Stage("late", (), 0.8, first=1, last=4),
        Stage("never", (), 1, 5),
    ]
    found = multistep(parts, [2] * 5, milestones=[2], gamma=0.5)
    each = [[rates[number] for rates in found[::2]] for number in range(3)]
    assert each == [[0.3, 0.3, 0.15, 0.15, 0.15], [0, 0.8, 0.8, 0.4, 0], [0] * 5]
    assert found[::2] == found[1::2]


def test_warmup_rises_before_milestones_and_its_epochs_count():
    found = multistep([Stage("", (), 0.3)], [2] * 5, milestones=[3], warmup=0.4)
    rising = [0.075, 0.15, 0.225, 0.3]
    assert [rate for (rate,) in found] == pytest.approx([*rising, 0.3, 0.3, *[0.15] * 4])


@pytest.mark.parametrize("schedule", ["poly", "cosine"])
def test_warmup_rises_evenly_to_the_base_and_the_schedule_has_the_rest(schedule):
    found = rates(schedule=schedule, warmup=0.25)
    assert found[:10] == pytest.approx([0.3 * (i + 1) / 10 for i in range(10)])
    assert found[10:] == rates(steps=30, schedule=schedule)


@given(
    st.integers(1, 300),
    st.floats(0, 0.5),
    st.sampled_from(["poly", "cosine"]),
    st.floats(0.1, 3),
)
@settings(max_examples=300, deadline=None)
def test_every_step_learns_and_no_rate_is_above_the_base(steps, warmup, schedule, power):
    found = rates(steps, warmup=warmup, schedule=schedule, power=power)
    assert all(0 < rate <= 0.3 for rate in found)
    peak = found.index(max(found))
    assert found[peak] == 0.3
    assert found[: peak + 1] == sorted(found[: peak + 1])
    assert found[peak:] == sorted(found[peak:], reverse=True)


def test_the_smallest_warmup_is_one_step_at_the_base():
    assert rates(10, warmup=0.01, schedule="cosine")[:2] == [0.3, 0.3]
    assert rates(1, warmup=0.5) == [0.3]


def test_poly_lr_keeps_its_arguments():
    assert poly_lr(0.3, 5, 9, 0.0) == 0.3 and poly_lr(1.0, 9, 9, 0.9) == 0.0


class LineTask:
    """One weight, two batches an epoch; the rate of every step is noted; it can be stopped."""

    def __init__(self, stop_in=None):
        torch.manual_seed(0)
        self.model = nn.Linear(1, 1)
        self.stop_in = stop_in

    def batch_sizes(self, epoch):
        return [2, 2]

    def batches(self, epoch, first=0):
        assert first == 0
        if epoch == self.stop_in:
            raise KeyboardInterrupt
        yield from (torch.full((2, 1), 1.0 + epoch), torch.full((2, 1), 2.0))

    def losses(self, model, batch):
        return (model(batch) - 3 * batch)[:, 0] ** 2, torch.zeros(2, 1, dtype=torch.long)

    def measure(self, observed):
        return {}

    def validate(self, check):
        return {"dice": 0.5}


@pytest.mark.parametrize(
    ("optimizer", "options"),
    [
        ("sgd", {"schedule": "cosine", "warmup": 0.3}),
        ("adamw", {"schedule": "cosine", "warmup": 0.3}),
        ("adam", {"schedule": "multistep", "warmup": 0.3, "milestones": [2, 4]}),
    ],
)
def test_a_resumed_training_has_the_rates_and_weights_of_an_unbroken_one(
    tmp_path, monkeypatch, optimizer, options
):
    taken = []
    kinds = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW, "adam": torch.optim.Adam}
    kind = kinds[optimizer]
    step = kind.step

    def noted(self, *args, **options):
        taken.append(self.param_groups[0]["lr"])
        return step(self, *args, **options)

    monkeypatch.setattr(kind, "step", noted)
    chosen = EngineSettings(epochs=5, lr=0.01, optimizer=optimizer, device="cpu", **options)

    def run(task, name):
        fit(task, chosen, ResumeFolder(tmp_path / name, {}), tmp_path / f"{name}.csv")
        return task.model.state_dict()

    unbroken = run(LineTask(), "unbroken")
    expected, taken = taken, []
    assert expected == [learning_rate(chosen, i, 10, i // 2) for i in range(10)]
    # With a warm-up of three steps the second epoch begins within it.
    for stop_in in (1, 3):
        with pytest.raises(KeyboardInterrupt):
            run(LineTask(stop_in), "broken")
    resumed = run(LineTask(), "broken")
    assert taken == expected
    for name, value in unbroken.items():
        assert torch.equal(value, resumed[name])
