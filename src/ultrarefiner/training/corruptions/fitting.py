"""A kind of error fitted to a severity or to a band of quality, and checked against its promise."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ultrarefiner.training.corruptions.fields import count_holes, count_parts, dice
from ultrarefiner.training.corruptions.kinds import BANDS, CORRUPTIONS, reaches
from ultrarefiner.training.corruptions.lesion import Lesion
from ultrarefiner.training.corruptions.sketch import TOLERANCE, Corruption, Sketch

# Sketches of one kind, and amounts of one sketch, that are tried before the nearest is taken.
_SKETCHES, _AMOUNTS = 3, 4
# How far from the ends of a band its Dice is aimed at.
_MARGIN = 0.005


@dataclass(frozen=True)
class Goal:
    """What is asked for: a severity, a band, both none (the kind's own range), never both."""

    severity: float | None = None
    band: str | None = None


@dataclass(frozen=True)
class Fit:
    """An error as it was made.

    Attributes:
        kind: Its name.
        window: Rows and columns of the image that hold it and the truth.
        mask: bool (h, w) of the window.
        dice: Against the truth.
        area_ratio: Area over the truth's.
        severity: Its amount, as a severity of the kind.
        jittered: Whether the outline was jittered on top.
        misses: What was not reached, in words; nothing if all was.
        gap: How far the Dice is from the band that was asked for; 0 within.
    """

    kind: str
    window: tuple[slice, slice]
    mask: np.ndarray
    dice: float
    area_ratio: float
    severity: float
    jittered: bool
    misses: tuple[str, ...]
    gap: float

    @property
    def penalty(self) -> tuple[float, int]:
        """What a better fit has less of."""
        return self.gap, len(self.misses)


def harder(difficulty: float, rng: np.random.Generator) -> float:
    """Draw a number in [0, 1] that is larger for difficult lesions.

    It is u^(1 / (1 + difficulty)) for a uniform u: 1/2 in the mean for difficulty 0, 2/3 for 1.
    """
    return float(rng.random() ** (1 / (1 + difficulty)))


def fit(lesion: Lesion, kind: str, goal: Goal, rng: np.random.Generator) -> Fit:
    """Draw an error of a kind that meets a goal, or the nearest of a few.

    Args:
        lesion: The true mask.
        kind: A name of ``CORRUPTIONS``.
        goal: The severity or the band to meet.
        rng: Source of chance.
    """
    row = CORRUPTIONS[kind]
    difficulty = lesion.shape.difficulty
    drawn = harder(difficulty, rng)
    jittered = row.wobbles and rng.random() < 0.3 + 0.4 * difficulty
    wobble = rng.uniform(0.01, 0.02) * (1 + difficulty) if jittered else 0.0
    best: Fit | None = None
    # Where the kind never has such a Dice, one sketch is as good as several.
    sketches = _SKETCHES if goal.band is None or reaches(kind, goal.band) else 1
    for trial in range(sketches):
        # A jittered outline may be what is in the way.
        wobbled = wobble if trial < sketches - 1 or sketches == 1 else 0.0
        made = _try(lesion, kind, goal, drawn, wobbled, rng)
        if best is None or made.penalty < best.penalty:
            best = made
        if not best.misses:
            break
    assert best is not None
    return best


def _try(
    lesion: Lesion,
    kind: str,
    goal: Goal,
    drawn: float,
    wobble: float,
    rng: np.random.Generator,
) -> Fit:
    """Draw one sketch, and find the amount of it that meets the goal."""
    row = CORRUPTIONS[kind]
    target = _target(row, goal.band, drawn)
    if target is not None:
        amount = row.amount_for(target)
    else:
        amount = row.amount(drawn if goal.severity is None else goal.severity)
    sketch = row.draw(lesion, amount, wobble, rng)
    if goal.severity is None:
        if target is None:
            # The severity is drawn from what there is room for, so that it does not pile up there.
            mildest, worst = sketch.within(row.mildest), sketch.within(row.worst)
            amount = mildest + drawn * (worst - mildest)
        amount = row.declared(sketch.within(amount))
    best = _check(lesion, kind, goal, sketch, amount, wobble)
    aim = row.dice_for(amount)
    for _ in range(_AMOUNTS - 1):
        if not best.gap:
            break
        low, high = BANDS[goal.band or "heavy"]
        wanted = min(max(best.dice, low + _MARGIN), high - _MARGIN) if target is None else target
        # What the jittered outline costs is added to what is aimed at.
        aim += wanted - best.dice
        amount = row.declared(sketch.within(row.amount_for(aim)))
        made = _check(lesion, kind, goal, sketch, amount, wobble)
        if made.penalty >= best.penalty:
            break
        best = made
    return best


def _target(row: Corruption, band: str | None, drawn: float) -> float | None:
    """Return the Dice to aim at, or None where any severity of the kind will do."""
    if band is None:
        return None
    worst, best = sorted((row.dice_for(row.mildest), row.dice_for(row.worst)))
    low, high = BANDS[band]
    if low <= worst and (best < high or band == "perfect"):
        return None
    low, high = max(worst, low + _MARGIN), min(best, high - _MARGIN)
    if low > high:
        # No severity will do: the nearest end of the range.
        return worst if worst > high else best
    return high - drawn * (high - low)


def _gap(dice: float, band: str | None) -> float:
    """Return how far a Dice is from a band, above 0 where it is not in it."""
    if band is None or (band == "perfect" and dice >= BANDS[band][0]):
        return 0.0
    low, high = BANDS[band]
    return max(low - dice, 0.0) if dice < high else dice - high + 1e-6


def _check(
    lesion: Lesion, kind: str, goal: Goal, sketch: Sketch, amount: float, wobble: float
) -> Fit:
    """Make the mask of an amount, and compare it with what was asked for and what is declared."""
    row, canvas = CORRUPTIONS[kind], sketch.canvas
    mask = sketch.realise(amount)
    reached, ratio = dice(mask, canvas.truth), int(np.count_nonzero(mask)) / lesion.area
    misses, gap = [], _gap(reached, goal.band)
    if gap:
        misses.append(f"Dice {reached:.2f} is not {goal.band}")
    got, asked = (ratio if row.measure == "area" else reached), max(0.0, amount)
    # Where a pixel is a tenth of the lesion, the nearest whole pixel has to do.
    if abs(got - asked) > max(TOLERANCE * asked, 1 / lesion.area):
        what = "area ratio" if row.measure == "area" else "Dice"
        misses.append(f"{what} {got:.2f} instead of {asked:.2f}")
    elif reached == 1 and row.dice[1] < 1:
        misses.append("no pixel is wrong")
    elif not row.declares(ratio, reached):
        misses.append(f"area ratio {ratio:.2f}, Dice {reached:.2f}: not as declared")
    if miss := _topology_miss(row, mask, canvas.base):
        misses.append(miss)
    severity = row.severity(amount)
    jittered = canvas.base is not canvas.truth and wobble > 0
    return Fit(kind, canvas.window, mask, reached, ratio, severity, jittered, tuple(misses), gap)


def _topology_miss(row: Corruption, mask: np.ndarray, base: np.ndarray) -> str:
    """Return in words what the mask lacks of the kind's topology; nothing if it has it."""
    if row.topology == "holes added" and count_holes(mask) <= count_holes(base):
        return "no room for a hole"
    if row.topology == "components added" and count_parts(mask) <= count_parts(base):
        return "no new component"
    if row.topology == "components kept" and count_parts(mask) > count_parts(base):
        return "a part came loose"
    if row.topology == "no overlap" and not mask.any():
        return "no room beside the lesion"
    return ""
