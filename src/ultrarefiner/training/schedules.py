"""Learning rates in closed form: a step's rate depends on its number, not on how training got there."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ultrarefiner.training.settings import EngineSettings

_FLOOR = 0.01  # share of the base at which the cosine ends


def poly_lr(base: float, step: int, steps: int, power: float) -> float:
    """Return the learning rate of optimizer step ``step``: base * (1 - step / steps) ** power.

    Args:
        base: Rate of the first step.
        step: Number of steps already taken.
        steps: Steps of the whole training.
        power: Exponent; 0 keeps the rate constant.
    """
    return base * (1 - step / steps) ** power


def cosine_lr(base: float, step: int, steps: int) -> float:
    """Return the learning rate of optimizer step ``step``, falling to 1 % along half a cosine.

    base * (0.01 + 0.99 * (1 + cos(pi * step / steps)) / 2), after Loshchilov & Hutter (2017).

    Args:
        base: Rate of the first step.
        step: Number of steps already taken.
        steps: Steps of the whole training.
    """
    return base * (_FLOOR + (1 - _FLOOR) * (1 + math.cos(math.pi * step / steps)) / 2)


def multistep_lr(base: float, epoch: int, milestones: Sequence[int], gamma: float) -> float:
    """Return the learning rate of an epoch: base * gamma ** (number of milestones reached).

    Args:
        base: Rate of the first epoch.
        epoch: Number of finished epochs.
        milestones: Numbers of finished epochs from which on the rate is lower, each by ``gamma``.
        gamma: Factor.
    """
    return base * gamma ** sum(milestone <= epoch for milestone in milestones)


def learning_rate(settings: EngineSettings, step: int, steps: int, epoch: int = 0) -> float:
    """Return the learning rate of optimizer step ``step``.

    Step i of w steps of warm-up has ``lr * (i + 1) / w``; the schedule then runs over the steps
    that are left, and begins with ``lr`` itself. Milestones count epochs, those of the warm-up too.

    Args:
        settings: ``lr``, ``schedule``, ``power`` of the poly schedule, ``milestones`` and ``gamma``
            of the multistep one, and ``warmup``, the share of all steps; above 0 it is at least
            one step.
        step: Number of steps already taken, below ``steps``.
        steps: Steps of the whole training.
        epoch: Number of epochs that are finished by then; only milestones ask for it.
    """
    rising = max(1, round(settings.warmup * steps)) if settings.warmup else 0
    if step < rising:
        return settings.lr * (step + 1) / rising
    if settings.schedule == "multistep":
        return multistep_lr(settings.lr, epoch, settings.milestones, settings.gamma)
    step, steps = step - rising, steps - rising
    if settings.schedule == "cosine":
        return cosine_lr(settings.lr, step, steps)
    return poly_lr(settings.lr, step, steps, settings.power)
