"""Cuts through a volume side by side, each with the sides that it has in space."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import matplotlib
import numpy as np
from matplotlib.figure import Figure

from ultrarefiner.report.panels import Outline, draw_outline

# Pixels of the picture: longest side of a slice and of a cut, gap, height of a strip of labels.
SLICE_SIDE, CUT_SIDE = 300, 460
_GAP = 10
_STRIP = 30
_DPI = 100
_GROUND = "#0d1117"
_INK = "#e6edf3"


@dataclass(frozen=True)
class Tile:
    """A cut through a volume.

    Attributes:
        label: What it is.
        image: uint8 (H, W) gray.
        outlines: Masks of the same shape.
        size: Height and width in space, in any unit that all tiles of a row share.
    """

    label: str
    image: np.ndarray
    outlines: tuple[Outline, ...]
    size: tuple[float, float]


def draw_montage(path: str | Path, rows: Sequence[tuple[Sequence[Tile], int]]) -> None:
    """Draw rows of cuts as a PNG.

    Args:
        path: The PNG.
        rows: The tiles of each row, and how many pixels the longest side of any of them has; the
            others of the row have the same scale.
    """
    placed, top, wide = [], 0, 0
    for tiles, side in rows:
        scale = side / max(length for tile in tiles for length in tile.size)
        left, tall = 0, 0
        for tile in tiles:
            high, broad = (max(1, round(length * scale)) for length in tile.size)
            placed.append((tile, left, top + _STRIP, broad, high))
            left, tall = left + broad + _GAP, max(tall, high)
        top, wide = top + _STRIP + tall + _GAP, max(wide, left - _GAP)
    total = (wide, top - _GAP)
    style = {"font.family": "sans-serif", "text.parse_math": False, "path.simplify": False}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(total[0] / _DPI, total[1] / _DPI), dpi=_DPI, facecolor=_GROUND)
        for tile, left, upper, broad, high in placed:
            middle = 1.0 - (upper - 0.5 * _STRIP) / total[1]
            figure.text((left + 4) / total[0], middle, tile.label, color=_INK, size=11, va="center")
            place = (
                left / total[0],
                1.0 - (upper + high) / total[1],
                broad / total[0],
                high / total[1],
            )
            axes = figure.add_axes(place, frameon=False)
            height, width = tile.image.shape
            larger = broad * high > height * width
            pixels = cv2.resize(
                tile.image,
                (broad, high),
                interpolation=cv2.INTER_LINEAR if larger else cv2.INTER_AREA,
            )
            edges = (-0.5, width - 0.5, height - 0.5, -0.5)
            axes.imshow(
                pixels,
                extent=edges,
                interpolation="nearest",
                aspect="auto",
                cmap="gray",
                vmin=0,
                vmax=255,
            )
            for outline in tile.outlines:
                draw_outline(axes, outline)
            axes.set(xlim=edges[:2], ylim=edges[2:], xticks=[], yticks=[])
        figure.savefig(path, format="png", facecolor=_GROUND, metadata={"Software": None})
