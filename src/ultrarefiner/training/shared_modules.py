"""BatchNorm and dropout of a batch that a team shares: what one process would compute.

While a team trains, a module's class is exchanged for its twin's: parameters, buffers and their
names stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from ultrarefiner.errors import UltraRefinerError
from ultrarefiner.training.team import Share, Team


class Current:
    """The batch that is being computed.

    Attributes:
        team: Who computes it.
        share: What this member has of it.
    """

    def __init__(self, team: Team) -> None:
        self.team, self.share = team, Share(0, 0, 0)


class _Normalize(torch.autograd.Function):
    """Normalisation of (B, C, H, W) by the mean and variance of all members' batches."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor,
        eps: float,
        team: Team,
    ) -> tuple[torch.Tensor, ...]:
        dims, wide = (0, 2, 3), _wide(x)
        count = wide.new_tensor([x.numel() / x.shape[1]])
        sums = team.sum(torch.cat([wide.sum(dims), count]))
        count, mean = sums[-1], sums[:-1] / sums[-1]
        # Of centred values: the difference of two large sums would lose digits.
        centred = wide - _along(mean)
        variance = team.sum(centred.square().sum(dims)) / count
        scale = (variance + eps).rsqrt()
        ctx.save_for_backward(x, weight, mean, scale, count)
        ctx.team = team
        ctx.mark_non_differentiable(mean, variance, count)
        normal = centred * _along(scale * weight) + _along(bias)
        return normal.to(x.dtype), mean, variance, count

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor, *_: Any) -> tuple[torch.Tensor | None, ...]:
        x, weight, mean, scale, count = ctx.saved_tensors
        dims, wide = (0, 2, 3), _wide(gradient)
        normal = (_wide(x) - _along(mean)) * _along(scale)
        # Those of weight and bias are summed over the team with all others, later.
        to_bias, to_weight = wide.sum(dims), (wide * normal).sum(dims)
        bias, slope = ctx.team.sum(torch.cat([to_bias, to_weight])).div(count).chunk(2)
        passed = (wide - _along(bias) - normal * _along(slope)) * _along(scale * weight)
        return passed.to(x.dtype), to_weight.to(weight.dtype), to_bias.to(weight.dtype), None, None


def _wide(values: torch.Tensor) -> torch.Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _along(values: torch.Tensor) -> torch.Tensor:
    """Return (C,) as (1, C, 1, 1)."""
    return values.view(1, -1, 1, 1)


class SharedBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm of the whole batch, on the CPU too."""

    current: Current

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise (B, C, H, W), B being this member's part of the batch."""
        if not self.training or self.current.share.is_whole:
            return super().forward(x)
        made, mean, variance, count = _Normalize.apply(
            x, self.weight, self.bias, self.eps, self.current.team
        )
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            part = self.momentum
            if part is None:
                part = 1 / float(self.num_batches_tracked)
            unbiased = variance * count / (count - 1)
            self.running_mean.mul_(1 - part).add_(part * mean)
            self.running_var.mul_(1 - part).add_(part * unbiased)
        return made


class SharedDropout(nn.Dropout):
    """Dropout that draws for the whole batch and drops this member's part of it.

    All members draw the same numbers, those that one process draws.
    """

    current: Current

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Drop from (k * B, ...), B being this member's part of the batch."""
        share = self.current.share
        if not self.training or self.p == 0 or share.is_whole:
            return super().forward(x)
        each = x.shape[0] // len(share)  # windows of an image, say
        shape = (each * share.of, *x.shape[1:])
        # In the order in memory that the whole batch would have: numbers are drawn in it.
        whole = x.new_empty(shape)
        if x.stride(0) == max(x.stride()):
            whole = torch.empty_strided(shape, x.stride(), dtype=x.dtype, device=x.device)
        drawn = functional.dropout(whole.fill_(1), self.p, training=True)
        return x * drawn[each * share.start : each * share.stop]


_TWINS: dict[type[nn.Module], type[nn.Module]] = {
    nn.BatchNorm2d: SharedBatchNorm2d,
    nn.Dropout: SharedDropout,
}


@contextmanager
def sharing(model: nn.Module, team: Team) -> Iterator[Current]:
    """Let the modules in train mode treat a team's parts of a batch as the batch.

    Args:
        model: The model, its frozen parts in eval mode.
        team: Who trains.

    Yields:
        Where to say, before each batch, which part of it this member has.

    Raises:
        UltraRefinerError: The model has a module in train mode that cannot.
    """
    current, changed = Current(team), []
    try:
        for name, module in model.named_modules() if team.size > 1 else ():
            if not module.training or not isinstance(module, _BatchNorm | _DropoutNd):
                continue
            kind = type(module)
            plain = kind is nn.BatchNorm2d and not (module.affine and module.track_running_stats)
            if kind not in _TWINS or plain:
                raise UltraRefinerError(
                    f"gpu: {name} is a {kind.__name__}, which several GPUs cannot share; set `gpu: 1`"
                )
            module.__class__ = _TWINS[kind]
            module.current = current
            changed.append((module, kind))
        yield current
    finally:
        for module, kind in changed:
            module.__class__ = kind
            del module.current
