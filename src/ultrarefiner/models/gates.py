"""How far a refined mask replaces the coarse one, pixel by pixel.

p is the probability of the coarse mask, q that of the refined one, and a gate g in [0, 1] makes
``p + g (q - p)`` of them. All are (B, H, W).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from ultrarefiner.prompts.soft_geometry import full_precision
from ultrarefiner.registry import Registry

_WIDTH = 32
_FIRST_BIAS = -2.0
# Keeps a logit within 16.1 of 0: single precision tells no probability nearer to 1.
_LEAST_PROBABILITY = 1e-7


def _certainty(p: torch.Tensor) -> torch.Tensor:
    return (2 * full_precision(p) - 1).abs()


def uncertainty_gate(
    p: torch.Tensor, gamma: float = 1.0, minimum: float = 0.0, maximum: float = 0.8
) -> torch.Tensor:
    """Return a gate that opens where the coarse mask is unsure.

    ``minimum + (maximum - minimum) (1 - |2 p - 1|^gamma)``. The gradient is 0 at p = 0.5, where
    that of the plain formula is not a number for gamma below 1.

    Args:
        p: Probability of the coarse mask.
        gamma: Above 1 the gate stays open farther from p = 0.5, below 1 it closes sooner.
        minimum: Gate where p is 0 or 1.
        maximum: Gate where p is one half.

    Returns:
        float32 of the same shape; float64 if p is.
    """
    certainty = _certainty(p)
    unsure = certainty == 0
    power = certainty.masked_fill(unsure, 1.0).pow(gamma).masked_fill(unsure, 0.0)
    return minimum + (maximum - minimum) * (1 - power)


class LearnedGate(nn.Module):
    """A gate by a small network that sees p, q and ``1 - |2 p - 1|`` of a pixel and its neighbours.

    Two 3 x 3 convolutions with 32 channels and ReLU, and a 1 x 1 convolution; the reference's
    layers and names. The last bias begins at -2, a gate near 0.12: at first the coarse mask stands.
    """

    def __init__(self) -> None:
        super().__init__()
        self.gate_net = nn.Sequential(
            nn.Conv2d(3, _WIDTH, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(_WIDTH, _WIDTH, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(_WIDTH, 1, 1),
        )
        nn.init.constant_(self.gate_net[-1].bias, _FIRST_BIAS)

    def forward(self, p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
        """Return the gate of probabilities p and q, float32 (B, H, W)."""
        p, q = p.float(), q.float()
        seen = torch.stack([p, q, 1 - _certainty(p)], 1)
        return self.gate_net(seen)[:, 0].float().sigmoid()


@dataclass(frozen=True)
class GateKind:
    """A row of the registry: which gates are multiplied.

    Attributes:
        uncertainty: ``uncertainty_gate``.
        learned: ``LearnedGate``.
    """

    uncertainty: bool = False
    learned: bool = False


GATES: Registry[GateKind] = Registry(
    "gate",
    {
        "uncertainty": GateKind(uncertainty=True),
        "learned": GateKind(learned=True),
        "hybrid": GateKind(uncertainty=True, learned=True),
    },
)


class MaskGate(nn.Module):
    """A gate as a row of ``GATES`` says; made by ``build_gate``."""

    def __init__(self, kind: GateKind, gamma: float, minimum: float, maximum: float) -> None:
        super().__init__()
        self.kind, self.range = kind, (gamma, minimum, maximum)
        self.learned_gate = LearnedGate() if kind.learned else None

    def forward(self, p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
        """Return the gate of probabilities p and q, float32 (B, H, W)."""
        parts = [uncertainty_gate(p, *self.range)] if self.kind.uncertainty else []
        parts += [] if self.learned_gate is None else [self.learned_gate(p, q)]
        return torch.stack(parts).prod(0)


def build_gate(
    kind: str, gamma: float = 1.0, minimum: float = 0.0, maximum: float = 0.8
) -> MaskGate:
    """Return a gate, called with probabilities p and q.

    Args:
        kind: A row of ``GATES``; "hybrid" is the product of the others.
        gamma: See ``uncertainty_gate``; as minimum and maximum without effect on "learned".
        minimum: See ``uncertainty_gate``.
        maximum: See ``uncertainty_gate``.

    Returns:
        A module whose state dict has the keys ``learned_gate.gate_net.*``, or none.

    Raises:
        ConfigError: Unknown kind.
    """
    return MaskGate(GATES[kind], gamma, minimum, maximum)


def fuse(
    coarse_logits: torch.Tensor, refined_logits: torch.Tensor, gate: torch.Tensor
) -> torch.Tensor:
    """Return the logits of ``p + g (q - p)``.

    Probabilities of lesion and of background are mixed each for itself, so that neither is what
    rounding left of the other, and ``log((lesion + 1e-7) / (background + 1e-7))`` is returned: the
    gradient is bounded, and does not vanish where both masks are sure and wrong.

    Args:
        coarse_logits: (B, H, W), of p.
        refined_logits: (B, H, W), of q.
        gate: (B, H, W), in [0, 1].

    Returns:
        float32 (B, H, W); float64 if they are.
    """
    z, y, g = full_precision(coarse_logits), full_precision(refined_logits), full_precision(gate)
    lesion = (1 - g) * z.sigmoid() + g * y.sigmoid()
    background = (1 - g) * (-z).sigmoid() + g * (-y).sigmoid()
    return (lesion + _LEAST_PROBABILITY).log() - (background + _LEAST_PROBABILITY).log()
