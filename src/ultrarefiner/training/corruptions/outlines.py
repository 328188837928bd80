"""Errors of the outline and of the place: too large, too small, jittered, shifted, nearly gone.

Each function draws a ``Sketch``. Areas are exact: pixels are ordered by their distance to the
outline, times or plus a smooth random field, and the first so many are taken. Lengths follow the
lesion's radius (that of the disc of its area), so that they fit any image size.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import cv2
import numpy as np

from ultrarefiner.training.corruptions.fields import (
    count_holes,
    count_parts,
    dice,
    lowest,
    random_field,
)
from ultrarefiner.training.corruptions.lesion import Canvas, Lesion, thickness
from ultrarefiner.training.corruptions.sketch import Sketch

PERFECT = 0.99
"""Dice from which on a mask counts as perfect."""
_EXACT_COPIES = 0.4
_STRETCHED = 0.3
_ROTATED = 0.5
_LUMPS = 0.5
# Of the image, what a grown lesion may take if no severity is asked for.
_FULL = 0.9
# Amplitudes or distances that are tried until one gives the Dice that is asked for.
_STEPS = 9
# How near to it is near enough.
_NEAR = 0.004


def identity(lesion: Lesion, amount: float, _wobble: float, rng: np.random.Generator) -> Sketch:
    """Draw a perfect mask: the truth, or (60 %) one of a Dice of ``amount``, at least 0.99."""
    exact = rng.random() < _EXACT_COPIES
    sketch = boundary_jitter(lesion, amount, 0.0, rng)
    truth = sketch.canvas.truth

    def realise(value: float) -> np.ndarray:
        if exact:
            return truth
        mask = sketch.realise(value)
        return mask if dice(mask, truth) >= PERFECT else truth

    return Sketch(sketch.canvas, realise)


def boundary_jitter(
    lesion: Lesion, _amount: float, _wobble: float, rng: np.random.Generator
) -> Sketch:
    """Draw an outline that wanders in and out, and no new parts or holes; ``amount`` is Dice.

    The signed distance plus a times a random field of the length 0.15 to 0.5 radii, cut where the
    area is 0.93 to 1.07 of the truth's; a is searched for.
    """
    canvas = lesion.canvas(0.6 * lesion.radius + 3, 0.0, rng)
    truth = canvas.truth
    length = max(0.7, lesion.radius * rng.uniform(0.15, 0.5))
    field = random_field(truth.shape, length, rng)
    count = round(lesion.area * rng.uniform(0.93, 1.07))
    signed = canvas.signed
    unit = np.float32(thickness(truth, lesion.area))
    parts, holes = count_parts(truth), count_holes(truth)

    def moved(amplitude: float, value: float) -> np.ndarray:
        # A good mask has the truth's area too: the change of area grows with the Dice's loss.
        share = min(1.0, (1 - value) / 0.1)
        return lowest(
            -(signed + np.float32(amplitude) * unit * field),
            None,
            round(lesion.area + share * (count - lesion.area)),
        )

    def realise(value: float) -> np.ndarray:
        best = _search(lambda a: moved(a, value), truth, value, 1.0, (1 - value) / 0.8)
        if count_parts(best) != parts or count_holes(best) != holes:
            best = _tidied(best, truth)
        return best

    return Sketch(canvas, realise)


def over_segmentation(
    lesion: Lesion, amount: float, wobble: float, rng: np.random.Generator
) -> Sketch:
    """Draw a lesion grown on all sides, or (30 %) mostly to one; ``amount`` is the area ratio."""
    return _grown(lesion, max(amount, 3.0), wobble, rng, 1.2, lumps=False)


def giant_over_segmentation(
    lesion: Lesion, amount: float, wobble: float, rng: np.random.Generator
) -> Sketch:
    """Draw a mask far larger than the lesion, half of them with lumps; ``amount``: area ratio."""
    return _grown(lesion, amount, wobble, rng, 3.0, lumps=rng.random() < _LUMPS)


def _grown(
    lesion: Lesion, ratio: float, wobble: float, rng: np.random.Generator, least: float, lumps: bool
) -> Sketch:
    reach = 1.4 * lesion.radius * (math.sqrt(ratio) - 1) + 4
    rows, columns = lesion.box
    height, width = lesion.mask.shape
    if (
        min(rows.start, columns.start) < reach
        or min(height - rows.stop, width - columns.stop) < reach
    ):
        # Cut by the image's border on one side, it grows farther on the others.
        reach *= 1.7
    canvas = lesion.canvas(reach, wobble, rng)
    if canvas.truth.size < 1.3 * ratio * lesion.area:
        canvas = lesion.canvas(max(height, width), wobble, rng)
    seeds = canvas.base
    if lumps:
        seeds = seeds | _lumps(canvas, lesion, rng)
    grown = canvas if seeds is canvas.base else Canvas(canvas.window, canvas.truth, seeds)
    # As long as the grown mask asks for: on a shorter field it would come apart.
    length = max(1.0, lesion.radius * math.sqrt(ratio) * rng.uniform(0.25, 0.6))
    field = random_field(canvas.truth.shape, length, rng)
    score = grown.outside * np.exp(np.float32(0.3) * field)
    if rng.random() < _STRETCHED:
        score /= _stretch(canvas.truth, rng)

    def realise(value: float) -> np.ndarray:
        count = max(1, round(value * lesion.area) - lesion.area)
        return canvas.base | lowest(score, ~canvas.base, count)

    # Only where even the least fills the image, all of the image is taken.
    room = lesion.mask.size / lesion.area
    return Sketch(canvas, realise, most=min(room, max(_FULL * room, least)))


def _stretch(truth: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return by how much growth is faster in each direction from the centre; 1 on the far side."""
    rows, columns = np.nonzero(truth)
    y = np.arange(truth.shape[0], dtype=np.float32)[:, None] - np.float32(rows.mean())
    x = np.arange(truth.shape[1], dtype=np.float32)[None] - np.float32(columns.mean())
    angle, gain = rng.uniform(0, 2 * math.pi), rng.uniform(0.5, 2.0)
    along = y * np.float32(math.sin(angle)) + x * np.float32(math.cos(angle))
    along /= np.sqrt(y * y + x * x) + np.float32(1e-3)
    return 1 + np.float32(gain) * np.square(np.maximum(along, 0))


def _lumps(canvas: Canvas, lesion: Lesion, rng: np.random.Generator) -> np.ndarray:
    """Return 2 to 5 ellipses on the outline, each of 5 to 30 % of the lesion's area."""
    lumps = np.zeros(canvas.truth.shape, np.uint8)
    for _ in range(int(rng.integers(2, 6))):
        row, column = canvas.edge[rng.integers(len(canvas.edge))]
        aspect = rng.uniform(0.5, 2.0)
        radius = math.sqrt(rng.uniform(0.05, 0.30) * lesion.area / math.pi)
        axes = (round(radius * math.sqrt(aspect)), round(radius / math.sqrt(aspect)))
        cv2.ellipse(lumps, (int(column), int(row)), axes, rng.uniform(0, 180), 0, 360, 1, -1)
    return lumps.view(bool)


def under_segmentation(
    lesion: Lesion, _amount: float, wobble: float, rng: np.random.Generator
) -> Sketch:
    """Draw a lesion shrunk unevenly; ``amount`` is the area ratio."""
    sketch, least = _shrunk(lesion, wobble, rng), 1 / lesion.area
    return Sketch(sketch.canvas, lambda value: sketch.realise(max(least, min(value, 1 - least))))


def empty_prediction(
    lesion: Lesion, _amount: float, _wobble: float, rng: np.random.Generator
) -> Sketch:
    """Draw nothing, or what is left of a lesion in the end; ``amount`` is the area ratio."""
    sketch = _shrunk(lesion, 0.0, rng)
    return Sketch(sketch.canvas, lambda value: sketch.realise(max(0.0, value)))


def _shrunk(lesion: Lesion, wobble: float, rng: np.random.Generator) -> Sketch:
    canvas = lesion.canvas(1, wobble, rng)
    field = random_field(canvas.truth.shape, max(1.0, lesion.radius * rng.uniform(0.3, 0.9)), rng)
    score = -canvas.depth * np.exp(np.float32(0.3) * field)

    def realise(value: float) -> np.ndarray:
        return lowest(score, canvas.base, round(value * lesion.area))

    return Sketch(canvas, realise)


def shift_wrong_location(
    lesion: Lesion, amount: float, wobble: float, rng: np.random.Generator
) -> Sketch:
    """Draw the lesion elsewhere, half of them turned by 5 to 20 degrees; ``amount`` is Dice.

    Of four directions at right angles, then of up, down, left and right, the first is taken in
    which the lesion stays in the image.
    """
    reach = max(lesion.sides) + 2
    canvas = lesion.canvas(reach, wobble, rng)
    turned = rng.random() < _ROTATED
    angle = rng.uniform(5, 20) * rng.choice((-1, 1))
    quarters = rng.permutation(4) * (math.pi / 2)
    directions = [*(rng.uniform(0, 2 * math.pi) + quarters), *quarters]
    moving = canvas.base
    if turned and lesion.area >= 50:
        rotated = _rotated(moving, angle)
        if dice(rotated, canvas.truth) > amount + 0.02:
            moving = rotated

    def realise(value: float) -> np.ndarray:
        tried = []
        for direction in directions:
            mask = _search(
                lambda t, angle=direction: _moved(moving, t, angle),
                canvas.truth,
                value,
                float(reach),
                0.6 * (1 - value) * lesion.diameter,
            )
            lost = abs(np.count_nonzero(mask) / lesion.area - 1)
            missed = abs(dice(mask, canvas.truth) - value)
            if lost <= 0.05 and missed <= 0.02:
                return mask
            tried.append((max(lost, missed), len(tried), mask))
        return min(tried)[2]

    return Sketch(canvas, realise)


def _rotated(mask: np.ndarray, degrees: float) -> np.ndarray:
    rows, columns = np.nonzero(mask)
    turn = cv2.getRotationMatrix2D((columns.mean(), rows.mean()), degrees, 1.0)
    size = mask.shape[::-1]
    return cv2.warpAffine(mask.view(np.uint8) * 255, turn, size, flags=cv2.INTER_LINEAR) >= 128


def _moved(mask: np.ndarray, distance: float, angle: float) -> np.ndarray:
    """Move by whole pixels; what leaves the window is lost."""
    height, width = mask.shape
    down = int(np.clip(round(distance * math.sin(angle)), -height, height))
    right = int(np.clip(round(distance * math.cos(angle)), -width, width))
    moved = np.zeros_like(mask)
    moved[max(0, down) : height + min(0, down), max(0, right) : width + min(0, right)] = mask[
        max(0, -down) : height - max(0, down), max(0, -right) : width - max(0, right)
    ]
    return moved


def _search(
    make: Callable[[float], np.ndarray], truth: np.ndarray, value: float, high: float, guess: float
) -> np.ndarray:
    """Return the mask whose Dice is nearest to a value, of a few strengths tried.

    Args:
        make: Gives a mask for a strength; its Dice is about 1 at 0 and falls.
        truth: bool (h, w).
        value: The Dice to reach.
        high: The largest strength.
        guess: The strength to try first.
    """
    low, strength = 0.0, min(guess, high)
    best, least = truth, math.inf
    for _ in range(_STEPS):
        mask = make(strength)
        reached = dice(mask, truth)
        if abs(reached - value) < least:
            best, least = mask, abs(reached - value)
        if least <= _NEAR or high - low < 1e-3 * high:
            break
        if reached > value:
            low = strength
        else:
            high = strength
        # Dice falls about linearly; where that leads out of the interval, halve it.
        line = strength * (1 - value) / max(1 - reached, 1e-3)
        margin = 0.05 * (high - low)
        strength = line if low + margin < line < high - margin else (low + high) / 2
    return best


def _tidied(mask: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Drop specks and fill pinholes, so that there are no more parts and holes than in the truth."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask.view(np.uint8), connectivity=8)
    order = np.argsort(-stats[1:, cv2.CC_STAT_AREA], kind="stable") + 1
    kept = np.isin(labels, order[: count_parts(truth)])
    gaps = np.pad(~kept, 1, constant_values=True).view(np.uint8)
    _, labels, stats, _ = cv2.connectedComponentsWithStats(gaps, connectivity=4)
    labels, ground = labels[1:-1, 1:-1], labels[0, 0]
    order = [int(i) for i in np.argsort(-stats[:, cv2.CC_STAT_AREA], kind="stable")]
    holes = [i for i in order if i not in (0, ground)]
    # Label 0 is what is not background.
    return kept | np.isin(labels, holes[count_holes(truth) :])
