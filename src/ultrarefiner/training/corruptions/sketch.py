"""What a kind of error is: a sketch with its chance drawn, of which the amount is still open."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ultrarefiner.training.corruptions.lesion import Canvas, Lesion

Measure = Literal["area", "dice"]
"""What says how strong an error is: the ratio of areas, result to truth, or Dice against it."""
Topology = Literal["", "holes added", "components added", "components kept", "no overlap"]
"""What a kind does to the topology of a mask, beside changing its outline."""
TOLERANCE = 0.10
"""By how much, relatively, an error may miss its range and still count as within it."""


@dataclass(frozen=True)
class Sketch:
    """An error of which everything but the amount is drawn.

    Attributes:
        canvas: Where it is drawn.
        realise: Gives the mask, bool (h, w) of the canvas, for an amount in the kind's measure. It
            draws nothing at random: more amount is more of the same error.
        least: Smallest amount that shows the error, if that is known.
        most: Largest amount that there is room for, if that is known.
    """

    canvas: Canvas
    realise: Callable[[float], np.ndarray]
    least: float | None = None
    most: float | None = None

    def within(self, amount: float) -> float:
        """Return the nearest amount that can be drawn."""
        low = -math.inf if self.least is None else self.least
        high = math.inf if self.most is None else self.most
        return min(max(amount, low), high)


Draw = Callable[[Lesion, float, float, np.random.Generator], Sketch]
"""Makes a sketch from the lesion, the amount it is meant for, the wobble of the outline, and rng."""


@dataclass(frozen=True)
class Corruption:
    """A kind of error.

    Attributes:
        draw: Makes a sketch of it.
        description: What it looks like, for a table.
        measure: What its amount is.
        mildest: Amount at severity 0.
        worst: Amount at severity 1.
        area_ratio: Declared range of the result's area over the truth's.
        dice: Declared range of Dice against the truth.
        probability: How often it is drawn, before presets, bands and lesions change that.
        topology: What it does to the topology.
        with_smallness: How many times more often a tiny lesion gets it than a large one, minus 1.
        with_irregularity: The same for the most irregular lesion against a disc.
        wobbles: Whether the outline may be jittered on top.
        tolerance: Relative tolerance of the declared ranges.
    """

    draw: Draw
    description: str
    measure: Measure
    mildest: float
    worst: float
    area_ratio: tuple[float, float]
    dice: tuple[float, float]
    probability: float
    topology: Topology = ""
    with_smallness: float = 0.0
    with_irregularity: float = 0.0
    wobbles: bool = True
    tolerance: float = TOLERANCE

    def amount(self, severity: float) -> float:
        """Return the amount at a severity in [0, 1]: linear between the ends."""
        return self.mildest + severity * (self.worst - self.mildest)

    def severity(self, amount: float) -> float:
        """Return the severity of an amount, limited to [0, 1]."""
        share = (amount - self.mildest) / (self.worst - self.mildest)
        return min(1.0, max(0.0, share))

    def amount_for(self, dice: float) -> float:
        """Return the declared amount that gives a Dice, or the nearest, if no jitter is on top."""
        if self.measure == "dice":
            return self.declared(dice)
        if max(self.mildest, self.worst) > 1:
            return self.declared(2 / max(dice, 1e-3) - 1)
        return self.declared(dice / max(1e-3, 2 - dice))

    def dice_for(self, amount: float) -> float:
        """Return the Dice that an amount gives, if no jitter is on top.

        A mask that lies around the truth and is r times as large has the Dice 2 / (1 + r), one
        that lies within it 2 r / (1 + r).
        """
        if self.measure == "dice":
            return amount
        if self.topology == "no overlap":
            return 0.0
        amount = max(0.0, amount)
        return 2 / (1 + amount) if amount > 1 else 2 * amount / (1 + amount)

    def declared(self, amount: float) -> float:
        """Return the nearest amount between those at severity 0 and 1."""
        low, high = sorted((self.mildest, self.worst))
        return min(max(amount, low), high)

    def declares(self, area_ratio: float, dice: float) -> bool:
        """Return whether area and Dice are in the declared ranges, within the tolerance."""
        pairs = ((self.area_ratio, area_ratio), (self.dice, dice))
        return all(
            low * (1 - self.tolerance) <= value <= high * (1 + self.tolerance)
            for (low, high), value in pairs
        )

    def weight(self, smallness: float, irregularity: float) -> float:
        """Return by how much a lesion's size and shape multiply the probability."""
        return (1 + self.with_smallness * smallness) * (1 + self.with_irregularity * irregularity)
