"""Which parts of a model train in which epochs, and how fast: known before the first step.

Every part is a parameter group of the optimizer from the beginning, also one that is still frozen.
So a training that is interrupted before a part is unfrozen and goes on after it has the optimizer
that it would have had.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from torch import nn

from ultrarefiner.errors import UltraRefinerError
from ultrarefiner.training.schedules import learning_rate
from ultrarefiner.training.settings import EngineSettings


@dataclass(frozen=True, eq=False)
class Stage:
    """A part of a model and the epochs in which it trains.

    Attributes:
        name: What the history calls it; "" where there is only one.
        parameters: Its parameters.
        lr: Its highest learning rate.
        first: Its first epoch, from 0.
        last: The epoch in which it is frozen again; None: never.
    """

    name: str
    parameters: tuple[nn.Parameter, ...]
    lr: float
    first: int = 0
    last: int | None = None

    def is_open(self, epoch: int) -> bool:
        """Return whether the part trains in an epoch."""
        return self.first <= epoch and (self.last is None or epoch < self.last)


def one_stage(model: nn.Module, lr: float) -> list[Stage]:
    """Return the plan of a model of which the same parameters train in all epochs.

    Raises:
        UltraRefinerError: No parameter requires a gradient.
    """
    parameters = tuple(one for one in model.parameters() if one.requires_grad)
    if not parameters:
        raise UltraRefinerError("every parameter of the model is frozen; unfreeze a part to train")
    return [Stage("", parameters, lr)]


def open_stages(stages: Sequence[Stage], epoch: int) -> None:
    """Let the parameters of the parts that train in an epoch require a gradient, and no others."""
    for stage in stages:
        for parameter in stage.parameters:
            parameter.requires_grad_(stage.is_open(epoch))


def stage_rates(
    stages: Sequence[Stage], settings: EngineSettings, step: int, steps: Sequence[int]
) -> list[float]:
    """Return the learning rate of each part in an optimizer step.

    A part's warm-up and its schedule, with its count of epochs, begin when it is unfrozen and end
    when it is frozen again; at other times its rate is 0.

    Args:
        stages: The parts.
        settings: Schedule and warm-up.
        step: Number of steps already taken.
        steps: Optimizer steps of each epoch.
    """
    rates = []
    for stage in stages:
        before, ends = sum(steps[: stage.first]), list(accumulate(steps[stage.first : stage.last]))
        taken = step - before
        if not ends or not 0 <= taken < ends[-1]:
            rates.append(0.0)
            continue
        finished = sum(end <= taken for end in ends)
        rates.append(learning_rate(replace(settings, lr=stage.lr), taken, ends[-1], finished))
    return rates
