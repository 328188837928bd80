"""The report's figures as SVG: vector, the same bytes for the same numbers, safe for colour-blind.

Text stays text (``svg.fonttype: none``), so figures can be searched and take the page's font.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ultrarefiner.io import item_seed
from ultrarefiner.report.tables import Method, fixed

# One ink for text and axes: the page replaces it by its own text colour, light or dark.
INK = "#1b2430"
_GRID = "#8a94a633"
QUIET = "#7a8494"
# Behind words that stand on points: the page replaces it by its own ground.
PAPER = "#fffffe"
# Okabe and Ito's palette (2008), safe for colour-blind readers.
COLOURS = {
    "coarse": "#0072b2",
    "refined": "#cc79a7",
    "end_to_end": "#009e73",
    "inner": "#0072b2",
    "oracle": "#8a94a6",
}
_FOLDS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7a8494")
_LABELS = ("#0072b2", "#d55e00", "#009e73", "#e69f00", "#56b4e9")
MARKERS = ("o", "^", "s", "D", "v")
MANY_POINTS = 2000
# Column of a history: Dice of the masks that are refined in validation.
_COARSE = "val_coarse_dice"
# What a model is by its history: in words, and whose masks it refines.
_TRAINED = {
    "coarse": ("coarse", ""),
    "refiner": ("refiner", "coarse masks"),
    "end_to_end": ("end to end", "coarse model inside"),
}
# Inches: the width of the page's text at 96 pixels an inch.
_WIDTH = 11.4
STYLE = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a class may have a $ in its name
    "font.family": "sans-serif",
    "font.size": 10.0,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": _GRID,
    "grid.linewidth": 0.8,
    "xtick.labelsize": 9.0,
    "ytick.labelsize": 9.0,
    "legend.frameon": False,
    "legend.fontsize": 9.0,
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "savefig.dpi": 200,
    **dict.fromkeys(
        ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK
    ),
}


def save_figure(path: Path, draw: Callable[[], Figure]) -> None:
    """Draw a figure in the report's style and write it as SVG, with ids that no other file has."""
    # The salt goes into the ids of an SVG: one for each file keeps them apart on one page.
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": path.stem}):
        figure = draw()
        figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})


def draw_boxes(rows: pd.DataFrame, methods: list[Method]) -> Figure:
    """Return box plots of Dice, a row for each method: quartiles, all cases, the mean as diamond.

    Args:
        rows: Scores of one dataset.
        methods: The methods, from top to bottom.
    """
    figure = Figure(figsize=(_WIDTH, 1.0 + 0.55 * len(methods)), layout="constrained")
    axes = figure.add_subplot()
    many = len(rows) > MANY_POINTS
    for position, method in enumerate(methods):
        mine = rows[rows["method"].eq(method.name)]
        dice = mine["dice"].to_numpy(float)
        colour = COLOURS[method.kind]
        drawn = axes.boxplot(
            dice,
            positions=[position],
            orientation="horizontal",
            widths=0.56,
            showfliers=False,
            patch_artist=True,
            boxprops={"facecolor": f"{colour}30", "edgecolor": colour},
            medianprops={"color": colour, "linewidth": 2.2},
            whiskerprops={"color": colour},
            capprops={"color": colour},
        )
        drawn["boxes"][0].set_linestyle("--" if method.oracle else "-")
        # The height of a dot has no meaning; it comes from the case, so it never changes.
        jitter = [item_seed("jitter", case) / 2**63 - 0.5 for case in mine["case"]]
        axes.scatter(
            dice,
            position + 0.44 * np.array(jitter),
            s=9,
            color=colour,
            alpha=0.55,
            linewidths=0,
            zorder=3,
            rasterized=many,
        )
        axes.scatter(
            dice.mean(),
            position,
            marker="D",
            s=34,
            color=colour,
            edgecolors="white",
            linewidths=0.9,
            zorder=4,
        )
    if any(method.oracle for method in methods):
        first = next(i for i, method in enumerate(methods) if method.oracle)
        if first:
            axes.axhline(first - 0.5, color=QUIET, linewidth=0.8, linestyle=(0, (2, 3)))
    axes.set_yticks(range(len(methods)), [method.label for method in methods])
    axes.set_ylim(len(methods) - 0.4, -0.6)
    # Where no image has a lesion there is nothing to draw.
    low = float(rows["dice"].min()) if len(rows) else 0.0
    axes.set_xlim(max(-0.02, math.floor(low * 10.0) / 10.0 - 0.02), 1.01)
    axes.set_xlabel("Dice (dot: case, diamond: mean, line: median, box: quartiles)")
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    return figure


def draw_scatters(rows: pd.DataFrame, methods: list[Method], reference: str) -> Figure:
    """Return one panel for each method: Dice of the reference (x) against the method's (y).

    Args:
        rows: Scores of one dataset.
        methods: Methods that refine; cases that one shares with the reference are drawn.
        reference: The coarse method.
    """
    columns = min(3, len(methods))
    lines = -(-len(methods) // columns)
    figure = Figure(figsize=(3.65 * columns + 0.35, 3.85 * lines + 0.6), layout="compressed")
    figure.get_layout_engine().set(h_pad=0.1)
    before = rows[rows["method"].eq(reference)].set_index("case")
    labels = sorted({label for label in before["label"] if label})
    low = float(
        rows.loc[rows["method"].isin([reference, *(m.name for m in methods)]), "dice"].min()
    )
    low = max(0.0, math.floor(low * 10.0 - 0.2) / 10.0)
    many = len(before) > MANY_POINTS
    grid = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True)
    for place, (axes, method) in enumerate(zip(grid.flat, methods, strict=False)):
        after = rows[rows["method"].eq(method.name)].set_index("case")["dice"]
        pairs = before.join(after.rename("after"), how="inner")
        axes.fill_between([low, 1.0], [low, 1.0], 1.0, color=COLOURS["refined"], alpha=0.07, lw=0)
        axes.plot([low, 1.0], [low, 1.0], color=QUIET, linewidth=1.0, zorder=2)
        for number, label in enumerate(labels or [""]):
            mine = pairs[pairs["label"].eq(label)] if label else pairs
            axes.scatter(
                mine["dice"],
                mine["after"],
                s=18,
                marker=MARKERS[number % len(MARKERS)],
                color=_LABELS[number % len(_LABELS)],
                alpha=0.75,
                linewidths=0,
                label=label or None,
                zorder=3,
                rasterized=many,
            )
        better = int(pairs["after"].gt(pairs["dice"]).sum())
        worse = int(pairs["after"].lt(pairs["dice"]).sum())
        axes.set_title(f"{method.name} {method.mark}".strip())
        over_points = {"facecolor": PAPER, "alpha": 0.8, "edgecolor": "none", "pad": 1.5}
        counts = {"transform": axes.transAxes, "size": 9, "bbox": over_points}
        axes.text(0.04, 0.95, f"better: {better}", va="top", **counts)
        axes.text(0.96, 0.05, f"worse: {worse}", ha="right", **counts)
        # Room for whole markers at 0 and 1.
        room = 0.02 * (1.0 - low)
        axes.set(xlim=(low - room, 1.0 + room), ylim=(low - room, 1.0 + room), aspect="equal")
        axes.set_xlabel(f"Dice of {reference}")
        axes.set_ylabel("" if place % columns else "Dice after refining")
        # A panel above an empty place is the lowest of its column and needs the numbers.
        axes.tick_params(labelbottom=place + columns >= len(methods))
    for axes in grid.flat[len(methods) :]:
        axes.set_visible(False)
    if labels:
        handles, texts = grid.flat[0].get_legend_handles_labels()
        figure.legend(handles, texts, loc="outside upper left", ncols=len(labels))
    return figure


def draw_curves(histories: list[Mapping[str, Any]]) -> Figure:
    """Return training curves, a row for each model: training loss and validation Dice per fold.

    Refiners come after the coarse models, and those trained end to end, whose curves begin at
    epoch 0, after them. The Dice of the coarse masks that are refined in validation is a dashed
    line in the colour of the fold: above it, refining helps.

    Args:
        histories: Dicts with ``model``, ``fold`` (None: trained on all folds), ``table`` (epoch,
            train_loss, val_dice; of a refiner or an end-to-end model also val_coarse_dice) and
            ``kept``, the epoch whose weights were kept (None or absent: the one of the best Dice).
    """
    trained = {str(item["model"]): _trained(item["table"]) for item in histories}
    models = sorted(trained, key=lambda name: (list(_TRAINED).index(trained[name]), name))
    figure = Figure(figsize=(_WIDTH, 3.1 * len(models) + 0.25), layout="constrained")
    grid = figure.subplots(len(models), 2, squeeze=False)
    for (left, right), model in zip(grid, models, strict=True):
        mine = [item for item in histories if str(item["model"]) == model]
        for item in sorted(mine, key=lambda item: int(item["fold"] or 0)):
            table, fold = item["table"], item["fold"]
            colour = _FOLDS[int(fold or 0) % len(_FOLDS)]
            label = "all folds" if fold is None else f"fold {int(fold)}"
            _line(left, table, "train_loss", colour, label)
            _line(right, table, "val_dice", colour, label)
            if _COARSE in table:
                _line(right, table, _COARSE, colour, None, lw=1.2, linestyle="--", alpha=0.75)
            if (best := _kept_row(table, item.get("kept"))) is not None:
                right.scatter(
                    table["epoch"][best],
                    table["val_dice"][best],
                    marker="*",
                    s=110,
                    color=colour,
                    edgecolors="white",
                    linewidths=0.8,
                    zorder=4,
                )
        words, refined = _TRAINED[trained[model]]
        name = f"{model} ({words})"
        left.set_title(f"{name}: training loss")
        right.set_title(f"{name}: validation Dice (star: epoch kept)")
        if refined:
            right.plot([], [], color=QUIET, lw=1.2, linestyle="--", label=refined)
        for axes in (left, right):
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        left.set_xlabel("Epoch")
        right.set_xlabel("Epoch (0: before training)" if words == "end to end" else "Epoch")
        left.set_ylim(bottom=0.0)
        if trained[model] == "end_to_end":
            left.set_xlim(right.get_xlim())
        right.legend(
            loc="best" if refined else "lower right", ncols=1 + (len(mine) + bool(refined)) // 4
        )
    return figure


def _line(
    axes: Axes,
    table: pd.DataFrame,
    column: str,
    colour: str,
    label: str | None,
    lw: float = 1.6,
    **style: Any,
) -> None:
    # Epochs without a validation have no value; the line goes on to the next one.
    known = table[table[column].notna()]
    marker = "o" if len(known) < 3 else None
    axes.plot(
        known["epoch"], known[column], color=colour, lw=lw, label=label, marker=marker, **style
    )


def _trained(table: pd.DataFrame) -> str:
    """Return what kind of training a history is of."""
    if _COARSE not in table:
        return "coarse"
    return "end_to_end" if table["epoch"].eq(0).any() else "refiner"


def _kept_row(table: pd.DataFrame, kept: int | None) -> int | None:
    """Return the row of the epoch that was kept; where nobody says which, of the best Dice."""
    known = table["val_dice"].dropna()
    if kept is not None:
        known = known[table["epoch"].eq(kept)]
    return None if known.empty else int(known.idxmax())


def describe_boxes(rows: pd.DataFrame, methods: list[Method]) -> str:
    """Return a box plot in words, for readers who cannot see it."""
    if not methods:
        return "No image has a lesion, so there is no Dice to draw."
    means = [
        f"{method.label} mean {fixed(rows.loc[rows['method'].eq(method.name), 'dice'].mean())}"
        for method in methods
    ]
    return "Box plots of Dice: " + "; ".join(means) + "."
