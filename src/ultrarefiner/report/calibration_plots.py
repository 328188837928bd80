"""Reliability curves: do the coarse models' probabilities mean what they say?"""

from __future__ import annotations

import math

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from ultrarefiner.report.plots import COLOURS, MARKERS, QUIET
from ultrarefiner.report.tables import EVALUATIONS, fixed

_COLUMNS = 3
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_SHADES = {"folds": COLOURS["coarse"], "holdout": "#d55e00", "unseen": "#009e73"}


def draw_reliability(rows: pd.DataFrame) -> Figure:
    """Return a panel for each method: share of lesion against probability; below, how many pixels.

    Args:
        rows: Rows of ``calibration.csv`` for one dataset.
    """
    methods = sorted(set(rows["method"]))
    columns = min(_COLUMNS, len(methods))
    lines = -(-len(methods) // columns)
    width = 4.6 if len(methods) == 1 else 3.65 * columns + 0.35
    figure = Figure(figsize=(width, 4.3 * lines + 0.45), layout="constrained")
    heights = [3.0, 1.0] * lines
    grid = figure.subplots(2 * lines, columns, squeeze=False, sharex=True, height_ratios=heights)
    for place, method in enumerate(methods):
        above = grid[2 * (place // columns), place % columns]
        below = grid[2 * (place // columns) + 1, place % columns]
        mine = rows[rows["method"].eq(method)]
        above.plot([0, 1], [0, 1], color=QUIET, linewidth=1.0, linestyle=(0, (4, 3)))
        for number, (key, bins) in enumerate(mine.groupby(["evaluation", "member"], sort=True)):
            colour = _SHADES.get(key[0], QUIET)
            known = bins[bins["pixels"].gt(0)].sort_values("bin")
            words = EVALUATIONS.get(key[0], key[0])
            above.plot(
                known["mean_probability"],
                known["lesion_share"],
                color=colour,
                linewidth=1.6,
                marker=MARKERS[number % len(MARKERS)],
                markersize=5,
                label=f"{words}: ECE {fixed(float(bins['ece'].iloc[0]), 4)}",
            )
            middle = (known["low"] + known["high"]) / 2.0
            below.plot(middle, known["pixels"], color=colour, linewidth=1.4, drawstyle="steps-mid")
        above.set_title(method)
        above.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
        above.set_ylabel("" if place % columns else "Share of lesion")
        above.legend(loc="upper left")
        below.set_yscale("log")
        below.yaxis.set_major_formatter(FuncFormatter(_power))
        below.set_ylabel("" if place % columns else "Pixels")
        below.set_xlabel("Probability")
        below.tick_params(labelbottom=True)
    for place in range(len(methods), lines * columns):
        grid[2 * (place // columns), place % columns].set_visible(False)
        grid[2 * (place // columns) + 1, place % columns].set_visible(False)
    return figure


def _power(value: float, _: int | None = None) -> str:
    """Return a power of ten in plain characters: text of the figures is never math."""
    return "10" + str(round(math.log10(value))).translate(_SUPERSCRIPTS)


def describe_reliability(rows: pd.DataFrame, dataset: str) -> str:
    """Return the curves in words, for readers who cannot see them."""
    parts = [
        f"{method}, {EVALUATIONS.get(evaluation, evaluation)}: expected calibration error "
        f"{fixed(float(bins['ece'].iloc[0]), 4)}"
        for (method, evaluation, _), bins in rows.groupby(["method", "evaluation", "member"])
    ]
    return f"Reliability curves on {dataset}. {'; '.join(parts)}."
