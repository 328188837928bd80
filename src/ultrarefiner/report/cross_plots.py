"""The cross-dataset matrix as a figure: a number, its interval and a colour in every cell."""

from __future__ import annotations

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from ultrarefiner.report.cross import Matrix, Pair
from ultrarefiner.report.plots import INK

# Cividis is made for colour-blind readers and grows evenly in lightness.
_COLOURS = colormaps["cividis"]
# Luminance from which black letters have more contrast than white ones.
_BRIGHT = 0.179
_CELL = (1.62, 0.92)


def draw_matrix(matrix: Matrix) -> Figure:
    """Return the matrix: rows are training sets, columns the datasets tested on.

    A cell has mean Dice, its interval, and, where an ensemble was tested, the mean ± standard
    deviation of the single models. Cells of the training set's own folds have a frame.

    Args:
        matrix: The pairs of one method.
    """
    rows, columns = len(matrix.trainsets), len(matrix.datasets)
    figure = Figure(
        figsize=(2.1 + _CELL[0] * columns, 1.15 + _CELL[1] * rows), layout="constrained"
    )
    axes = figure.add_subplot()
    values = [pair.cell.value for pair in matrix.pairs.values()]
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    room = max(high - low, 0.1)
    for place, name in enumerate(matrix.trainsets):
        for column, dataset in enumerate(matrix.datasets):
            pair = matrix.pairs.get((name, dataset))
            if pair is None or not np.isfinite(pair.cell.value):
                axes.text(column, place, "–", ha="center", va="center", color=INK)
                continue
            colour = _COLOURS(0.08 + 0.88 * (pair.cell.value - high + room) / room)
            _draw_cell(axes, column, place, pair, colour)
    axes.set(xlim=(-0.5, columns - 0.5), ylim=(rows - 0.5, -0.5))
    axes.set_xticks(range(columns), matrix.datasets)
    axes.set_yticks(range(rows), matrix.trainsets)
    axes.set_xlabel("tested on")
    axes.set_ylabel("trained on")
    axes.xaxis.set_label_position("top")
    axes.xaxis.tick_top()
    axes.tick_params(length=0, labelsize=10)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    return figure


def _draw_cell(axes: object, x: int, y: int, pair: Pair, colour: tuple[float, ...]) -> None:
    ink = "#000000" if _luminance(colour) > _BRIGHT else "#ffffff"
    axes.add_patch(
        Rectangle((x - 0.48, y - 0.47), 0.96, 0.94, facecolor=colour, edgecolor="none", zorder=1)
    )
    if pair.own:
        axes.add_patch(
            Rectangle(
                (x - 0.455, y - 0.43), 0.91, 0.86, fill=False, edgecolor=ink, lw=1.4, zorder=2
            )
        )
    style = {"ha": "center", "va": "center", "color": ink, "zorder": 3}
    lines = [line for line in (_interval(pair), pair.words) if line]
    top = {0: 0.0, 1: -0.13, 2: -0.22}[len(lines)]
    axes.text(x, y + top, f"{pair.cell.text} {pair.marks}".strip(), size=14, weight="bold", **style)
    for number, line in enumerate(lines):
        axes.text(x, y + top + 0.27 + 0.22 * number, line, size=8, **style)


def _interval(pair: Pair) -> str:
    return f"[{pair.cell.low}, {pair.cell.high}]" if pair.cell.low else ""


def _luminance(colour: tuple[float, ...]) -> float:
    """Return the relative luminance of an sRGB colour, as WCAG 2 defines it."""
    part = np.array(colour[:3])
    linear = np.where(part <= 0.04045, part / 12.92, ((part + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def describe_matrix(matrix: Matrix) -> str:
    """Return the matrix in words, for readers who cannot see it."""
    parts = [
        f"{name} on {dataset}: {pair.cell.text}{' (own folds)' if pair.own else ''}{pair.marks}"
        for (name, dataset), pair in sorted(matrix.pairs.items())
    ]
    return f"Mean Dice of {matrix.method}, trained on one set and tested on another. " + "; ".join(
        parts
    )
