"""Views of an image side by side: outlines of masks, prompts and crop windows where they belong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke

# Bright enough on gray ultrasound, and apart in lightness for colour-blind readers too.
TRUTH_COLOUR = "#3ddc84"
COARSE_COLOUR = "#4aa8ff"
REFINED_COLOUR = "#ff5bd0"
BOX_COLOUR = "#ffd23f"
POINT_COLOUR = "#ff3b30"
WINDOW_COLOUR = "#f2f2f2"
# Pixels of the picture: longest side of a panel, gap between panels, height of the label strip.
PANEL = 540
_GAP = 10
_STRIP = 40
_DPI = 100
_GROUND = "#0d1117"


@dataclass(frozen=True)
class Outline:
    """A mask to outline: bool (H, W), its colour, and the line's width in picture pixels."""

    mask: np.ndarray
    colour: str
    width: float = 2.6


@dataclass(frozen=True)
class Panel:
    """One view of the image: a label, outlines, and the prompt record to draw, if any."""

    label: str
    colour: str
    outlines: tuple[Outline, ...] = ()
    prompt: Mapping[str, Any] | None = None
    note: str = ""


def draw_panels(
    path: str | Path,
    image: np.ndarray,
    panels: Sequence[Panel],
    side: int = PANEL,
    strip: int = _STRIP,
) -> dict[str, Any]:
    """Draw views of an image side by side as a PNG.

    The image is enlarged or reduced so that its longer side has ``side`` pixels. Pixel (x, y) of
    the image covers [x - 0.5, x + 0.5] × [y - 0.5, y + 0.5] there, so outlines run along the
    pixels' borders and half-open boxes [x0, x1) end at x1 - 0.5.

    Args:
        path: The PNG.
        image: uint8 (H, W, 3) RGB.
        panels: The views, from left to right.
        side: Pixels of the longer side of a panel.
        strip: Height of the strip of labels; 0 for none.

    Returns:
        ``panels``: for each view its [left, top, width, height] in pixels of the picture.
    """
    height, width = image.shape[:2]
    scale = side / max(height, width)
    wide, high = max(1, round(width * scale)), max(1, round(height * scale))
    pixels = cv2.resize(
        image, (wide, high), interpolation=cv2.INTER_CUBIC if scale > 1 else cv2.INTER_AREA
    )
    total = (len(panels) * wide + (len(panels) - 1) * _GAP, high + strip)
    style = {"font.family": "sans-serif", "text.parse_math": False, "path.simplify": False}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(total[0] / _DPI, total[1] / _DPI), dpi=_DPI, facecolor=_GROUND)
        places = []
        for number, panel in enumerate(panels):
            left = number * (wide + _GAP)
            places.append([left, strip, wide, high])
            figure.text(
                (left + 6) / total[0],
                1.0 - 0.5 * strip / total[1],
                panel.label,
                color=panel.colour,
                size=14,
                weight="bold",
                va="center",
            )
            axes = figure.add_axes(
                (left / total[0], 0.0, wide / total[0], high / total[1]), frameon=False
            )
            edges = (-0.5, width - 0.5, height - 0.5, -0.5)
            axes.imshow(pixels, extent=edges, interpolation="nearest", aspect="auto")
            _draw_panel(axes, panel)
            axes.set(xlim=edges[:2], ylim=edges[2:], xticks=[], yticks=[])
        figure.savefig(path, format="png", facecolor=_GROUND, metadata={"Software": None})
    return {"panels": places}


def _draw_panel(axes: Axes, panel: Panel) -> None:
    for outline in panel.outlines:
        draw_outline(axes, outline)
    if panel.prompt is not None:
        if panel.prompt.get("window"):
            _draw_window(axes, panel.prompt["window"], panel.prompt["image_size"])
        for shown in [panel.prompt, *panel.prompt.get("others", [])]:
            _draw_prompt(axes, shown)
    if panel.note:
        axes.text(
            0.5,
            0.05,
            panel.note,
            transform=axes.transAxes,
            color="white",
            size=15,
            ha="center",
            path_effects=[withStroke(linewidth=3, foreground="black")],
        )


def draw_outline(axes: Axes, outline: Outline) -> None:
    """Draw the border of a mask; where it meets the image's border, the line runs along that."""
    if not outline.mask.any():
        return
    padded = np.pad(outline.mask.astype(float), 1)
    height, width = outline.mask.shape
    contours = axes.contour(
        np.arange(-1, width + 1),
        np.arange(-1, height + 1),
        padded,
        levels=[0.5],
        colors=[outline.colour],
        linewidths=outline.width * 72.0 / _DPI,
    )
    shade = withStroke(linewidth=(outline.width + 1.6) * 72.0 / _DPI, foreground="#00000060")
    contours.set_path_effects([shade])


def _draw_window(axes: Axes, window: Sequence[int], image_hw: Sequence[int]) -> None:
    """Draw the crop's window; what of it lies beyond the image is padding and not drawn."""
    (left, top), (right, bottom) = np.clip(np.reshape(window, (2, 2)), 0, image_hw[::-1])
    corner = left - 0.5, top - 0.5
    rectangle = Rectangle(corner, right - left, bottom - top, fill=False, edgecolor=WINDOW_COLOUR)
    rectangle.set(linewidth=1.2, linestyle=(0, (6, 4)))
    rectangle.set_path_effects([withStroke(linewidth=2.4, foreground="#00000080")])
    axes.add_patch(rectangle)


def _draw_prompt(axes: Axes, shown: Mapping[str, Any]) -> None:
    """Draw one prompt's box and points: a star for lesion, a hollow cross for background."""
    if shown.get("box"):
        x0, y0, x1, y1 = shown["box"]
        corner = x0 - 0.5, y0 - 0.5
        axes.add_patch(
            Rectangle(corner, x1 - x0, y1 - y0, fill=False, lw=1.8, edgecolor=BOX_COLOUR)
        )
    points = shown.get("points") or []
    for (x, y), label in zip(points, shown.get("labels") or [1] * len(points), strict=True):
        axes.scatter(
            x,
            y,
            marker="*" if label else "X",
            s=260 if label else 150,
            facecolors=POINT_COLOUR if label else "white",
            edgecolors="white" if label else POINT_COLOUR,
            linewidths=1.0 if label else 1.8,
            zorder=5,
        )
