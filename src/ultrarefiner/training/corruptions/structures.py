"""Errors of structure: chunks and holes cut out, cuts through, bridges, islands, scattered specks.

Each function draws a ``Sketch`` whose amount is the ratio of areas, result to truth. An order of
pixels is drawn, by the distance to seeds (a wedge, ellipses, lines), and the first so many are
added or removed: so the area is exact, whatever the lesion looks like.
"""

from __future__ import annotations

import math

import cv2
import numpy as np

from ultrarefiner.training.corruptions.fields import distance_to, lowest, random_field
from ultrarefiner.training.corruptions.lesion import Canvas, Lesion
from ultrarefiner.training.corruptions.sketch import Sketch

# Pixels between what is added or removed and an outline that it must not touch, corners included.
_GAP = 2.0


def missing_chunk(lesion: Lesion, amount: float, wobble: float, rng: np.random.Generator) -> Sketch:
    """Draw a lesion that lacks a wedge (45 %), a bite (35 %) or a whole side (20 %)."""
    canvas = lesion.canvas(1, wobble, rng)
    y, x = _grid(canvas.base.shape)
    rows, columns = np.nonzero(canvas.base)
    centre = np.array((rows.mean(), columns.mean()))
    angle, which = rng.uniform(0, 2 * math.pi), rng.random()
    out = np.array((math.sin(angle), math.cos(angle)))
    field = random_field(canvas.base.shape, max(1.0, lesion.radius * rng.uniform(0.2, 0.5)), rng)
    if which < 0.45:
        # A small wedge has its tip off the centre, so that it is no slit.
        share = min(1.0, math.sqrt((1 - amount) / rng.uniform(0.15, 0.3)))
        tip = centre + out * (1 - share) * 0.8 * lesion.radius
        score = _away(y - np.float32(tip[0]), x - np.float32(tip[1]), angle)
        score += np.float32(0.15) * field
    elif which < 0.8:
        row, column = canvas.edge[rng.integers(len(canvas.edge))]
        aspect = np.float32(rng.uniform(0.5, 2.0))
        down, right = y - np.float32(row), x - np.float32(column)
        along = down * np.float32(out[0]) + right * np.float32(out[1])
        across = down * np.float32(out[1]) - right * np.float32(out[0])
        score = np.sqrt(np.square(along) / aspect + np.square(across) * aspect)
        score *= np.exp(np.float32(0.2) * field)
    else:
        score = np.float32(0.12 * lesion.radius) * field
        score -= y * np.float32(out[0]) + x * np.float32(out[1])

    return _removing(lesion, canvas, score, canvas.base)


def internal_holes(
    lesion: Lesion, amount: float, wobble: float, rng: np.random.Generator
) -> Sketch:
    """Draw 1 to 3 holes anywhere in the lesion, none of which reaches the outline."""
    canvas = lesion.canvas(1, wobble, rng)
    inner = canvas.depth >= _GAP
    room = int(np.count_nonzero(inner))
    size = min(room, (1 - amount) * lesion.area)
    seeds = np.zeros(canvas.base.shape, np.uint8)
    places = np.argwhere(inner)
    shares = rng.dirichlet(np.full(int(rng.integers(1, 4)), 3.0))
    for share in shares if room else []:
        row, column = places[rng.integers(room)]
        _ellipse(seeds, row, column, 0.6 * share * size, rng)
    score = _around(seeds.view(bool) & inner, lesion, rng) if room else canvas.depth
    return _removing(lesion, canvas, score, inner)


def fragmentation(lesion: Lesion, amount: float, wobble: float, rng: np.random.Generator) -> Sketch:
    """Draw a lesion that 1 to 5 wavy cuts take apart; of several components the largest."""
    canvas = lesion.canvas(1, wobble, rng)
    y, x = _grid(canvas.base.shape)
    removed = (1 - amount) * lesion.area
    part = _largest_part(canvas.base)
    rows, columns = np.nonzero(part)
    diameter = 2 * math.sqrt(rows.size / math.pi)
    # A cut has to be wide enough to part pixels that touch at corners.
    most = int(max(1, min(5, removed / (2.5 * diameter))))
    field = random_field(canvas.base.shape, max(1.0, lesion.radius * rng.uniform(0.4, 1.0)), rng)
    wave = np.float32(rng.uniform(0.02, 0.12) * lesion.radius) * field
    score, length = np.full(canvas.base.shape, np.inf, np.float32), 0.0
    for _ in range(int(rng.integers(1, most + 1))):
        # Where little may go, the cut that parts a piece with the least is taken of a few.
        tried = [_cut(rows, columns, rng) for _ in range(1 if removed > 3 * diameter else 6)]
        chord, angle, offset = min(tried)
        line = y * np.float32(math.sin(angle)) + x * np.float32(math.cos(angle)) + wave
        score = np.minimum(score, np.abs(line - np.float32(offset)) / rng.uniform(0.6, 1.4))
        length += chord
    allowed = part if removed < 0.6 * rows.size else canvas.base
    sketch = _removing(lesion, canvas, score, allowed)
    return Sketch(canvas, sketch.realise, sketch.least, 1 - min(1.5 * length / lesion.area, 0.6))


def _largest_part(mask: np.ndarray) -> np.ndarray:
    """Return the largest component of a mask, bool (h, w)."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask.view(np.uint8), connectivity=8)
    return labels == 1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA]))


def _cut(
    rows: np.ndarray, columns: np.ndarray, rng: np.random.Generator
) -> tuple[float, float, float]:
    """Return a line through a lesion: pixels within one pixel of it / 2, angle, offset."""
    angle = rng.uniform(0, math.pi)
    along = rows * math.sin(angle) + columns * math.cos(angle)
    low, high = float(along.min()), float(along.max())
    offset = low + rng.uniform(0.2, 0.8) * (high - low)
    return float(np.count_nonzero(np.abs(along - offset) <= 1)) / 2, angle, offset


def bridge_adhesion(
    lesion: Lesion, amount: float, wobble: float, rng: np.random.Generator
) -> Sketch:
    """Draw a lesion with a band that leaves it outwards, half of them with a blob at the end."""
    size = max(1.0, (amount - 1) * lesion.area)
    # Thin enough to be a bridge, and never thinner than two pixels.
    length = min(rng.uniform(0.4, 1.2) * lesion.diameter, max(1.0, size / 2))
    blob = rng.uniform(0.3, 0.7) * size if rng.random() < 0.5 else 0.0
    canvas = lesion.canvas(length + math.sqrt(size) + 4, wobble, rng)
    inwards = cv2.blur(canvas.base.astype(np.float32), (7, 7))
    best: tuple[float, tuple[int, int], tuple[int, int]] | None = None
    for _ in range(6):
        row, column = (int(value) for value in canvas.edge[rng.integers(len(canvas.edge))])
        angle = _outwards(inwards, row, column) + rng.uniform(-math.pi / 4, math.pi / 4)
        end = (row + length * math.sin(angle), column + length * math.cos(angle))
        inside = np.clip(end, 0, np.subtract(canvas.base.shape, 1))
        lost = float(np.hypot(*np.subtract(end, inside)))
        if best is None or lost < best[0]:
            best = (lost, (row, column), (round(inside[0]), round(inside[1])))
        if lost <= 0:
            break
    assert best is not None
    (_, start, end) = best
    seeds = np.zeros(canvas.base.shape, np.uint8)
    cv2.line(seeds, start[::-1], end[::-1], 1, 1, cv2.LINE_4)
    if blob > 4:
        _ellipse(seeds, *end, 0.6 * blob, rng)
    field = random_field(canvas.base.shape, max(1.0, lesion.radius * rng.uniform(0.2, 0.6)), rng)
    score = distance_to(seeds.view(bool)) * np.exp(np.float32(0.25) * field)
    y, x = _grid(canvas.base.shape)
    # Of the seeds themselves the nearest to the lesion come first: what is there hangs together.
    score += np.float32(1e-3) * np.sqrt(np.square(y - start[0]) + np.square(x - start[1]))
    return _adding(lesion, canvas, score, ~canvas.base)


def _outwards(inwards: np.ndarray, row: int, column: int) -> float:
    """Return the angle in which a field falls fastest."""
    height, width = inwards.shape
    up, down = max(0, row - 2), min(height - 1, row + 2)
    left, right = max(0, column - 2), min(width - 1, column + 2)
    return math.atan2(
        float(inwards[up, column] - inwards[down, column]),
        float(inwards[row, left] - inwards[row, right]),
    )


def false_positive_islands(
    lesion: Lesion, amount: float, wobble: float, rng: np.random.Generator
) -> Sketch:
    """Draw the lesion and 1 to 5 islands (70 %) or 6 to 29 beside it, none of which touches it."""
    count = int(rng.integers(1, 6) if rng.random() < 0.7 else rng.integers(6, 30))
    canvas, score, allowed = _scattered(lesion, (amount - 1) * lesion.area, count, wobble, rng)
    return _adding(lesion, canvas, score, allowed)


def noise_only_scatter(
    lesion: Lesion, amount: float, _wobble: float, rng: np.random.Generator
) -> Sketch:
    """Draw 10 to 49 specks around the lesion, and not the lesion."""
    count = int(rng.integers(10, 50))
    canvas, score, allowed = _scattered(lesion, amount * lesion.area, count, 0.0, rng)

    def realise(value: float) -> np.ndarray:
        return lowest(score, allowed, max(1, round(value * lesion.area)))

    return Sketch(canvas, realise, most=np.count_nonzero(allowed) / lesion.area)


def _scattered(
    lesion: Lesion, size: float, count: int, wobble: float, rng: np.random.Generator
) -> tuple[Canvas, np.ndarray, np.ndarray]:
    """Return the order in which islands of ``size`` pixels in all grow around a lesion, and where.

    Their centres lie in the lesion's box grown by half its longer side, and at least 8 pixels.
    """
    count = int(max(1, min(count, size / 4)))
    shares = rng.dirichlet(np.full(count, 2.0))
    reach = max(0.5 * max(lesion.sides), 8.0)
    widest = math.sqrt(max(1.0, size) * shares.max())
    canvas = lesion.canvas(reach + widest + 3, wobble, rng)
    allowed = canvas.outside >= _GAP
    near = np.zeros_like(allowed)
    spans = [
        slice(
            max(0, math.floor(box.start - reach) - window.start),
            math.ceil(box.stop + reach) - window.start,
        )
        for box, window in zip(lesion.box, canvas.window, strict=True)
    ]
    near[tuple(spans)] = allowed[tuple(spans)]
    places = np.flatnonzero(near)
    if not places.size:
        return canvas, canvas.outside, allowed
    seeds = np.zeros(allowed.shape, np.uint8)
    for share in shares:
        radius = math.sqrt(max(1.0, share * size) / math.pi)
        tried = places[rng.integers(places.size, size=10)]
        # The first of ten places with room for it, or the one with most room.
        room = canvas.outside.ravel()[tried] - radius
        place = tried[int(np.argmax(np.minimum(room, _GAP)))]
        _ellipse(seeds, *divmod(int(place), allowed.shape[1]), 0.6 * share * size, rng)
    return canvas, _around(seeds.view(bool) & allowed, lesion, rng), allowed


def _ellipse(
    seeds: np.ndarray, row: int, column: int, area: float, rng: np.random.Generator
) -> None:
    """Fill an ellipse of a random aspect from 0.5 to 2, and at least its centre."""
    aspect = math.sqrt(rng.uniform(0.5, 2.0))
    radius = math.sqrt(max(0.0, area) / math.pi)
    axes = (int(radius * aspect), int(radius / aspect))
    cv2.ellipse(seeds, (int(column), int(row)), axes, rng.uniform(0, 180), 0, 360, 1, -1)
    seeds[int(row), int(column)] = 1


def _around(seeds: np.ndarray, lesion: Lesion, rng: np.random.Generator) -> np.ndarray:
    """Return the distance to the seeds, unevenly stretched."""
    field = random_field(seeds.shape, max(1.0, lesion.radius * rng.uniform(0.1, 0.4)), rng)
    # The small rest puts the pixels of the seeds in an order too.
    return distance_to(seeds) * np.exp(np.float32(0.25) * field) + np.float32(1e-3) * field


def _removing(lesion: Lesion, canvas: Canvas, score: np.ndarray, allowed: np.ndarray) -> Sketch:
    """Return the sketch of an error that takes the lowest pixels away."""
    room = int(np.count_nonzero(allowed))

    def realise(value: float) -> np.ndarray:
        count = min(max(1, round((1 - value) * lesion.area)), lesion.area - 1)
        return canvas.base & ~lowest(score, allowed, count)

    return Sketch(canvas, realise, least=1 - room / lesion.area)


def _adding(lesion: Lesion, canvas: Canvas, score: np.ndarray, allowed: np.ndarray) -> Sketch:
    """Return the sketch of an error that adds the lowest pixels."""
    room = int(np.count_nonzero(allowed))

    def realise(value: float) -> np.ndarray:
        return canvas.base | lowest(score, allowed, max(1, round((value - 1) * lesion.area)))

    return Sketch(canvas, realise, most=1 + room / lesion.area)


def _grid(shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows (h, 1) and columns (1, w) of each pixel, float32."""
    return (
        np.arange(shape[0], dtype=np.float32)[:, None],
        np.arange(shape[1], dtype=np.float32)[None],
    )


def _away(y: np.ndarray, x: np.ndarray, angle: float) -> np.ndarray:
    """Return the angle between each offset and a direction, float32, 0 to pi."""
    along = y * np.float32(math.sin(angle)) + x * np.float32(math.cos(angle))
    across = y * np.float32(math.cos(angle)) - x * np.float32(math.sin(angle))
    return np.abs(np.arctan2(across, along))
