"""Figures of the point prompt analysis: what an error of some pixels costs, and where points fall."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ultrarefiner.errors import UltraRefinerError
from ultrarefiner.evaluation.points import read_point_summary, read_points
from ultrarefiner.io import atomic_path
from ultrarefiner.report.plots import COLOURS, INK, MANY_POINTS, PAPER, QUIET, STYLE
from ultrarefiner.report.tables import MARKS, fixed

log = logging.getLogger(__name__)

Row = dict[str, Any]

_MARKED = {
    MARKS["yes"]: "trained on this dataset",
    MARKS["unknown"]: "not known whether trained on this dataset",
}
# Okabe and Ito's palette again: the three fates of a coarse point, each with a shape of its own.
_FATES = {
    "inside": ("#0072b2", "o", "inside the lesion"),
    "outside": ("#d55e00", "^", "outside"),
    "missing": (INK, "x", "no coarse mask: Dice 0"),
}
_PANELS = 3  # in a row


def plot_points(tables: Sequence[str | Path], summary: str | Path, folder: str | Path) -> None:
    """Draw the figures of the point prompt analysis, as SVG.

    For each dataset ``points_curve_{dataset}.svg`` and ``points_distance_{dataset}.svg``; other
    files in the folder stay.

    Args:
        tables: Tables that ``analyse_points`` wrote.
        summary: Table that ``summarise_points`` made of them.
        folder: Folder to write to.

    Raises:
        UltraRefinerError: A table is absent or damaged, or the summary is not of these tables.
        OutputError: The folder cannot be written.
    """
    lines = read_point_summary(summary)
    points = [row for path in tables for row in read_points(path)]
    points.sort(key=lambda row: (row["refiner"], row["case"]))
    folder = Path(folder)
    datasets = sorted({line["dataset"] for line in lines})
    for dataset in datasets:
        mine = [line for line in lines if line["dataset"] == dataset]
        dots = [row for row in points if row["dataset"] == dataset and row["source"] == "coarse"]
        for line in mine:
            found = sum(row["refiner"] == line["refiner"] for row in dots)
            if line["source"] == "coarse" and found != line["n"]:
                raise UltraRefinerError(
                    f"{summary} counts {line['n']} coarse points of {line['refiner']} on {dataset}, "
                    f"the tables have {found}. Run summarise_points again."
                )
        _write(folder / f"points_curve_{dataset}.svg", partial(draw_point_curve, mine))
        _write(folder / f"points_distance_{dataset}.svg", partial(draw_point_distance, dots, mine))
    log.info("drew the points of %d datasets", len(datasets))


def _write(path: Path, draw: Callable[[], Figure]) -> None:
    # The salt goes into the ids of an SVG: one for each file keeps them apart on one page.
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": path.stem}), atomic_path(path) as file:
        draw().savefig(file, format="svg", metadata={"Date": None, "Creator": None})


def draw_point_curve(lines: list[Row]) -> Figure:
    """Return a panel for each refiner: mean Dice of truth's points with growing errors.

    The band is the 95 % interval. The horizontal line with its band is the point of the coarse
    mask: where the curve meets it, the coarse model points as well as an error of that size.

    Args:
        lines: Lines of ``summarise_points`` for one dataset.
    """
    refiners = _refiners(lines)
    figure, grid = _grid(len(refiners), 3.3)
    ends = [line[f"dice_{end}"] for line in lines for end in ("low", "mean", "high")]
    known = [end for end in ends if end is not None]
    room = max(0.15 * (max(known) - min(known)), 0.03)
    for place, (axes, refiner) in enumerate(zip(grid.flat, refiners, strict=False)):
        curve, coarse = _curve(lines, refiner), _line(lines, refiner, "coarse")
        x = [line["sigma"] or 0.0 for line in curve]
        means = [line["dice_mean"] for line in curve]
        _band(axes, x, curve, QUIET)
        axes.plot(
            x,
            means,
            color=QUIET,
            linewidth=1.8,
            linestyle="--",
            marker="D",
            markersize=5,
            label="truth's point with an error (oracle – upper bound)",
        )
        for number, (at, mean) in enumerate(zip(x, means, strict=True)):
            # In turns above and below, for small errors stand close together.
            axes.annotate(
                fixed(mean),
                (at, mean),
                (0, -15 if number % 2 else 7),
                textcoords="offset points",
                ha="center",
                size=8.5,
            )
        axes.set_xticks(x)
        axes.set_xlim(-0.09 * max(x), 1.09 * max(x))
        edges = [-0.09 * max(x), 1.09 * max(x)]
        _band(axes, edges, [coarse, coarse], COLOURS["refined"])
        axes.axhline(
            coarse["dice_mean"],
            color=COLOURS["refined"],
            linewidth=2.0,
            label="point of the coarse mask",
        )
        axes.annotate(
            f"coarse point: {fixed(coarse['dice_mean'])}",
            (max(x), coarse["dice_mean"]),
            (0, -5),
            textcoords="offset points",
            ha="right",
            va="top",
            size=9,
            weight="bold",
        )
        axes.set_title(_label(coarse))
        axes.set_ylim(max(min(known) - room, -0.02), min(max(known) + room, 1.04))
        axes.set_xlabel("Standard deviation of the error (pixels)")
        axes.set_ylabel("" if place % grid.shape[1] else "Mean Dice (band: 95 % CI)")
    _finish(figure, grid, len(refiners))
    return figure


def draw_point_distance(points: list[Row], lines: list[Row]) -> Figure:
    """Return a panel for each refiner: Dice against the coarse point's distance from the truth's.

    Cases without a coarse mask stand at the right edge, with Dice 0.

    Args:
        points: Coarse points of one dataset, as ``read_points`` gives them.
        lines: Lines of ``summarise_points`` for that dataset.
    """
    refiners = _refiners(lines)
    figure, grid = _grid(len(refiners), 3.5)
    farthest = max((row["distance_px"] for row in points if row["x"] is not None), default=1.0)
    edge = 1.06 * max(farthest, 1.0)
    for place, (axes, refiner) in enumerate(zip(grid.flat, refiners, strict=False)):
        mine = [row for row in points if row["refiner"] == refiner]
        for fate, (colour, marker, label) in _FATES.items():
            some = [row for row in mine if _fate(row) == fate]
            if some or fate != "missing":
                x = [edge if fate == "missing" else row["distance_px"] for row in some]
                axes.scatter(
                    x,
                    [row["dice"] for row in some],
                    s=20,
                    marker=marker,
                    color=colour,
                    alpha=0.75,
                    linewidths=1.4 if marker == "x" else 0,
                    label=label,
                    zorder=3,
                    rasterized=len(mine) > MANY_POINTS,
                    clip_on=False,
                )
        line = _line(lines, refiner, "coarse")
        axes.set_title(_label(line))
        axes.annotate(
            "\n".join(_facts(line)),
            (0.97, 0.97),
            xycoords="axes fraction",
            ha="right",
            va="top",
            size=9,
            bbox={"facecolor": PAPER, "alpha": 0.8, "edgecolor": "none", "pad": 1.5},
        )
        axes.set(xlim=(-0.02 * edge, 1.02 * edge), ylim=(-0.03, 1.03))
        axes.set_xlabel("Distance from the truth's point (pixels)")
        axes.set_ylabel("" if place % grid.shape[1] else "Dice after the coarse point")
    _finish(figure, grid, len(refiners))
    return figure


def describe_points(
    lines: list[Row], dataset: str, figure: Literal["curve", "distance"] = "curve"
) -> str:
    """Return one of the two figures of a dataset in words, for readers who cannot see it.

    Args:
        lines: Lines of ``summarise_points``, as ``read_point_summary`` gives them.
        dataset: The dataset.
        figure: Which of the two.
    """
    mine = [line for line in lines if line["dataset"] == dataset]
    parts = []
    for refiner in _refiners(mine):
        coarse = _line(mine, refiner, "coarse")
        if figure == "distance":
            parts.append(f"{_label(coarse)}: {', '.join(_facts(coarse))}")
            continue
        first, *others = _curve(mine, refiner)
        moved = [f"{fixed(o['dice_mean'])} at {o['sigma']:g} pixels" for o in others]
        parts.append(
            f"{_label(coarse)}: coarse point {_mean(coarse)}; truth's point (oracle) "
            f"{_mean(first)}, with an error {', '.join(moved)}"
        )
    head = {
        "curve": "Curves of mean Dice against the error of a point prompt",
        "distance": "Scatter of Dice against the distance of the coarse point from the truth's",
    }
    return f"{head[figure]} on {dataset}. {'; '.join(parts)}."


def _refiners(lines: list[Row]) -> list[str]:
    return sorted({line["refiner"] for line in lines})


def _line(lines: list[Row], refiner: str, source: str) -> Row:
    return next(one for one in lines if (one["refiner"], one["source"]) == (refiner, source))


def _curve(lines: list[Row], refiner: str) -> list[Row]:
    """Return the truth's point without an error, and then with growing ones."""
    noise = [line for line in lines if (line["refiner"], line["source"]) == (refiner, "noise")]
    return [_line(lines, refiner, "oracle"), *sorted(noise, key=lambda line: line["sigma"])]


def _label(line: Row) -> str:
    return f"{line['refiner']} {MARKS.get(line['seen'], '')}".strip()


def _fate(row: Row) -> str:
    return "missing" if row["x"] is None else "inside" if row["inside"] else "outside"


def _facts(line: Row) -> Iterator[str]:
    """Yield what a coarse line says, in words."""
    yield f"inside: {_share(line['inside_rate'])}{_interval(line, 'inside', _share)}"
    yield f"median distance: {fixed(line['distance_median'], 1)} px"
    if line["spearman"] is not None:
        yield f"rank correlation: {fixed(line['spearman'], 2)}{_interval(line, 'spearman', _two)}"
    if line["misses"]:
        yield f"no coarse mask: {line['misses']} of {line['cases']}"


def _mean(line: Row) -> str:
    return fixed(line["dice_mean"]) + _interval(line, "dice", fixed)


def _interval(line: Row, name: str, words: Any) -> str:
    low, high = line[f"{name}_low"], line[f"{name}_high"]
    return "" if low is None or high is None else f" [{words(low)}, {words(high)}]"


def _share(value: float) -> str:
    return f"{fixed(100.0 * value, 1)} %"


def _two(value: float) -> str:
    return fixed(value, 2)


def _band(axes: Axes, x: Sequence[float], lines: list[Row], colour: str) -> None:
    if all(line["dice_low"] is not None for line in lines):
        low, high = ([line[f"dice_{end}"] for line in lines] for end in ("low", "high"))
        axes.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)


def _grid(count: int, height: float) -> tuple[Figure, np.ndarray]:
    columns = min(_PANELS, count)
    rows = -(-count // columns)
    # One panel alone is wider, for its labels.
    width = 5.6 if count == 1 else 3.65 * columns + 0.35
    figure = Figure(figsize=(width, height * rows + 0.6), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)


def _finish(figure: Figure, grid: np.ndarray, count: int) -> None:
    """Hide the places without a panel, and name what is drawn above the panels."""
    for place, axes in enumerate(grid.flat):
        axes.set_visible(place < count)
        axes.tick_params(labelbottom=place + grid.shape[1] >= count)
    named: dict[str, Any] = {}
    for axes in grid.flat:
        handles, labels = axes.get_legend_handles_labels()
        named = dict(zip(labels, handles, strict=True)) | named
    for mark, words in _MARKED.items():
        if any(axes.get_title(loc="left").endswith(mark) for axes in grid.flat):
            named[f"{mark} {words}"] = Line2D([], [], linestyle="none")
    figure.legend(
        list(named.values()),
        list(named),
        loc="outside upper left",
        ncols=(1, 2, 4)[min(count, 3) - 1],
    )
