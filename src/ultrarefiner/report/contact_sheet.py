"""A contact sheet of simulated failures: every kind of error on a few cases of a dataset."""

from __future__ import annotations

import logging
import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from ultrarefiner.config import SimulationConfig
from ultrarefiner.datasets.loader import read_cases, read_prepared
from ultrarefiner.errors import DatasetError
from ultrarefiner.io import atomic_path, item_seed
from ultrarefiner.report.panels import COARSE_COLOUR, TRUTH_COLOUR
from ultrarefiner.training.corrupt import CORRUPTIONS, CorruptedMask, corrupt_mask

log = logging.getLogger(__name__)

# Inches: a panel, the gap that holds its title, the column of names, the head.
_PANEL, _GAP, _NAMES, _HEAD = 1.62, 0.26, 1.75, 1.22
_DPI = 100
_GROUND, _INK, _QUIET, _ALARM = "#0d1117", "#e6edf3", "#8b98a8", "#ffb454"
# Side of the view, in longer sides of the lesion's box, and least, as a share of the image's.
_VIEW, _LEAST_VIEW = 3.0, 0.3


def draw_failures(
    prepared: str | Path | Sequence[str | Path],
    simulation: SimulationConfig | Mapping[str, Any],
    seed: int,
    output: str | Path,
    cases: Sequence[str] | None = None,
    columns: int = 6,
) -> None:
    """Draw all kinds of error on a few cases as a PNG: a row for each kind, a column for each case.

    A panel shows the image around the lesion, the outline of the truth, the outline of the
    simulated mask and, where it is soft, its probability as a tint. The title has the Dice, and
    "could not" where the kind found no room for what it declares.

    Args:
        prepared: The folder of prepared cases, with cases.csv and npz/ in it, or several.
        simulation: Share and temperatures of soft masks; every kind is drawn, whatever the preset.
        seed: Seed of the simulation.
        output: The PNG.
        cases: Case ids to choose from, those of a fold for example; all if None.
        columns: Cases to show, from the smallest to the largest lesion in even steps of rank.

    Raises:
        DatasetError: No case has a lesion, or one cannot be read.
    """
    config = SimulationConfig.model_validate(simulation)
    shown = _choose(prepared, cases, columns)
    width = _NAMES + len(shown) * _PANEL + 0.1
    height = _HEAD + len(CORRUPTIONS) * (_PANEL + _GAP) + 0.1
    style = {"font.family": "sans-serif", "text.parse_math": False, "path.simplify": False}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(width, height), dpi=_DPI, facecolor=_GROUND)
        _write_head(figure, width, height)
        for column, (case, image, truth) in enumerate(shown):
            left = _NAMES + column * _PANEL
            _write_case(figure, left / width, 1 - (_HEAD - 0.20) / height, case, truth)
            for row, kind in enumerate(CORRUPTIONS):
                top = _HEAD + row * (_PANEL + _GAP) + _GAP
                rng = np.random.default_rng(item_seed("contact sheet", seed, case, kind))
                made = corrupt_mask(
                    truth, rng, kind, soft=config.soft, temperature=config.temperature
                )
                size = (_PANEL - 0.06) / width, (_PANEL - 0.06) / height
                place = (left / width, 1 - (top + _PANEL - 0.06) / height)
                axes = figure.add_axes((*place, *size), frameon=False)
                _draw_panel(axes, image, truth, made)
                if column == 0:
                    _write_kind(figure, 1 - (top + 0.42 * _PANEL) / height, kind, width, height)
        with atomic_path(output) as temporary:
            figure.savefig(temporary, format="png", facecolor=_GROUND, metadata={"Software": None})
    log.info("drew %d kinds on %d cases", len(CORRUPTIONS), len(shown))


def _choose(
    prepared: str | Path | Sequence[str | Path], cases: Sequence[str] | None, columns: int
) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """Return id, image and truth of cases from the smallest lesion to the largest."""
    folders = [Path(prepared)] if isinstance(prepared, str | Path) else list(map(Path, prepared))
    wanted = None if cases is None else set(cases)
    sizes = []
    for folder in folders:
        for row in read_cases(folder / "cases.csv"):
            if wanted is None or row.case in wanted:
                share = float(np.mean(read_prepared(folder, row.case)[1] > 0))
                sizes.append((share, row.case, folder))
    lesions = sorted(size for size in sizes if size[0] > 0)
    if not lesions:
        where = ", ".join(map(str, folders))
        raise DatasetError(f"none of the {len(sizes)} chosen cases in {where} has a lesion")
    ranks = np.unique(np.linspace(0, len(lesions) - 1, columns).round().astype(int))
    shown = []
    for rank in ranks:
        _, case, folder = lesions[rank]
        image, label = read_prepared(folder, case)
        shown.append((case, image, label > 0))
    return shown


def _write_head(figure: Figure, width: float, height: float) -> None:
    words = (
        (0.12, 0.26, "Simulated failures", _INK, 15),
        (0.12, 0.60, "truth", TRUTH_COLOUR, 10),
        (0.62, 0.60, "simulated mask, tinted by its probability", COARSE_COLOUR, 10),
    )
    for left, top, text, colour, size in words:
        place = left / width, 1 - top / height
        figure.text(*place, text, color=colour, size=size, weight="bold", va="center")


def _write_case(figure: Figure, left: float, top: float, case: str, truth: np.ndarray) -> None:
    name = case.partition("__")[2] or case
    short = name if len(name) <= 20 else f"{name[:9]}…{name[-10:]}"
    area = f"{np.count_nonzero(truth)} px, {100 * truth.mean():.1f} %"
    figure.text(left, top, f"{short}\n{area}", color=_QUIET, size=8, va="center", linespacing=1.4)


def _write_kind(figure: Figure, middle: float, kind: str, width: float, height: float) -> None:
    row = CORRUPTIONS[kind]
    name = "\n".join(_wrapped(kind.replace("_", " "), 15))
    left = 0.12 / width
    figure.text(left, middle, name, color=_INK, size=10.5, weight="bold", va="bottom")
    told = "\n".join(_wrapped(row.description, 27))
    below = middle - 0.06 / height
    figure.text(left, below, told, color=_QUIET, size=7.5, va="top", linespacing=1.35)


def _wrapped(text: str, columns: int) -> list[str]:
    return textwrap.wrap(text, columns, break_long_words=False)


def _draw_panel(axes: Axes, image: np.ndarray, truth: np.ndarray, made: CorruptedMask) -> None:
    rows, columns = _view(truth)
    window = (rows, columns)
    left, top = columns.start - 0.5, rows.start - 0.5
    edges = (left, columns.stop - 0.5, rows.stop - 0.5, top)
    axes.imshow(image[window], extent=edges, interpolation="antialiased")
    tint = np.empty((*truth[window].shape, 4), np.float32)
    tint[..., :3] = to_rgb(COARSE_COLOUR)
    tint[..., 3] = 0.5 * made.soft[window]
    axes.imshow(tint, extent=edges, interpolation="antialiased")
    for mask, colour, width in ((truth, TRUTH_COLOUR, 1.2), (made.mask, COARSE_COLOUR, 1.6)):
        _draw_outline(axes, mask[window], (left + 0.5, top + 0.5), colour, width)
    side = max(rows.stop - rows.start, columns.stop - columns.start)
    middle = (left + edges[1]) / 2, (top + edges[2]) / 2
    axes.set(xticks=[], yticks=[], aspect="equal")
    axes.set(
        xlim=(middle[0] - side / 2, middle[0] + side / 2),
        ylim=(middle[1] + side / 2, middle[1] - side / 2),
    )
    title = f"Dice {made.dice:.2f}"
    axes.set_title(
        title if made.reached else f"{title}, could not",
        loc="left",
        color=_INK if made.reached else _ALARM,
        size=8.5,
        pad=2.5,
    )
    if not made.mask.any():
        axes.text(
            *(0.5, 0.06, "empty mask"),
            transform=axes.transAxes,
            color="white",
            size=8.5,
            ha="center",
            path_effects=[withStroke(linewidth=2.5, foreground="black")],
        )


def _draw_outline(
    axes: Axes, mask: np.ndarray, corner: tuple[float, float], colour: str, width: float
) -> None:
    """Draw the border of a part of a mask whose first pixel lies at ``corner`` (x, y)."""
    if not mask.any():
        return
    padded = np.pad(mask.astype(float), 1)
    height, width_px = padded.shape
    contours = axes.contour(
        np.arange(width_px) + corner[0] - 1,
        np.arange(height) + corner[1] - 1,
        padded,
        levels=[0.5],
        colors=[colour],
        linewidths=width * 72.0 / _DPI,
    )
    contours.set_path_effects([withStroke(linewidth=(width + 1.2) * 0.72, foreground="#00000060")])


def _view(truth: np.ndarray) -> tuple[slice, slice]:
    """Return rows and columns of a square around the lesion, within the image."""
    box = [np.flatnonzero(truth.any(axis=axis)) for axis in (1, 0)]
    longer = max(int(found[-1] - found[0]) + 1 for found in box)
    side = math.ceil(max(_VIEW * longer, _LEAST_VIEW * max(truth.shape)))
    spans = []
    for found, size in zip(box, truth.shape, strict=True):
        start = int(found[0] + found[-1] + 1 - side) // 2
        start = max(0, min(start, size - side))
        spans.append(slice(start, min(size, start + side)))
    return spans[0], spans[1]
