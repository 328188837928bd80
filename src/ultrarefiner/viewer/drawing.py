"""The parts of the page that change: the image with its outlines, and what is known of them."""

from __future__ import annotations

import base64
from html import escape

import cv2
import numpy as np
from contourpy import contour_generator

from ultrarefiner.report.panels import BOX_COLOUR, COARSE_COLOUR, POINT_COLOUR, REFINED_COLOUR
from ultrarefiner.viewer.session import Looked

COLOURS = {
    "coarse": COARSE_COLOUR,
    "refined": REFINED_COLOUR,
    "box": BOX_COLOUR,
    "point": POINT_COLOUR,
}
_MARKS = 90  # of the image's longer side, for the radius of a mark


def image_address(image: np.ndarray) -> str:
    """Return uint8 (H, W, 3) RGB as a PNG inside an address."""
    data = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1]
    return f"data:image/png;base64,{base64.b64encode(data.tobytes()).decode()}"


def outline_path(mask: np.ndarray) -> str:
    """Return the border of a bool (H, W) mask as the ``d`` of an SVG path; empty for an empty mask.

    Pixel (x, y) covers [x - 0.5, x + 0.5] x [y - 0.5, y + 0.5], as in the report's pictures.
    """
    lines = contour_generator(z=np.pad(mask.astype(float), 1)).lines(0.5)
    return "".join(
        "M" + "L".join(f"{x - 1:g} {y - 1:g}" for x, y in line[:-1].tolist()) + "Z"
        for line in lines
    )


def drawing(looked: Looked) -> str:
    """Return outlines and prompts of an image as SVG elements in pixels of the image."""
    coarse = looked.predicted.coarse
    shown = {} if coarse is None else {"coarse": coarse}
    shown["refined" if coarse is not None or looked.answer is not None else "coarse"] = looked.mask
    parts = []
    for name, mask in shown.items():
        path = outline_path(mask)
        parts.append(f'<path class="halo" d="{path}"/><path class="{name}" d="{path}"/>')
    if looked.box is not None:
        x0, y0, x1, y1 = looked.box
        parts.append(
            f'<rect class="box" x="{x0 - 0.5:g}" y="{y0 - 0.5:g}" width="{x1 - x0:g}" '
            f'height="{y1 - y0:g}"/>'
        )
    radius = max(looked.mask.shape) / _MARKS
    for x, y, label in looked.points:
        arm = 0.6 * radius
        cross = f"M{x - arm:g} {y:g}H{x + arm:g}" + (f"M{x:g} {y - arm:g}V{y + arm:g}" * label)
        kind = "lesion" if label else "background"
        parts.append(
            f'<g class="point {kind}"><circle cx="{x:g}" cy="{y:g}" r="{radius:g}"/>'
            f'<path d="{cross}"/></g>'
        )
    return "".join(parts)


def facts(looked: Looked | None, message: str = "", closed: str = "") -> str:
    """Return what is known of an image, as HTML.

    Args:
        looked: The image; None: there is none.
        message: Why something could not be done, in words.
        closed: Why nothing can be drawn, in words.
    """
    parts = []
    if message:
        parts.append(f'<p class="problem" role="alert">{escape(message)}</p>')
    if looked is not None:
        parts += [_areas(looked), _list("warnings", "Look at this mask", looked.warnings)]
        about = [f"{looked.name}: {looked.mask.shape[1]} × {looked.mask.shape[0]} px"]
        about += [looked.pixels.note] if looked.pixels.note else []
        about += [f"expected IoU {looked.score:.2f}"] if looked.score is not None else []
        if looked.predicted.agreement is not None and looked.answer is None:
            about.append(f"agreement of folds {looked.predicted.agreement:.2f}")
        parts.append(_list("about", "", about))
    if closed:
        parts.append(f'<p class="quiet">{escape(closed[:1].upper() + closed[1:])}.</p>')
    return "".join(parts)


def _areas(looked: Looked) -> str:
    coarse, drawn = looked.predicted.coarse, looked.answer is not None
    rows = [] if coarse is None else [("coarse", "coarse", coarse)]
    if drawn:
        rows.append(("refined", "by your prompt", looked.mask))
    else:
        rows.append(
            ("coarse", "mask", looked.mask)
            if coarse is None
            else ("refined", "refined", looked.mask)
        )
    cells = "".join(
        f'<tr><th scope="row"><span class="key {name}"></span>{words}</th>'
        f'<td class="{name}-area">{_area(mask, looked.pixels.spacing)}</td></tr>'
        for name, words, mask in rows
    )
    return f'<table class="areas"><caption>Lesion area</caption>{cells}</table>'


def _area(mask: np.ndarray, spacing: tuple[float, float] | None) -> str:
    count = int(np.count_nonzero(mask))
    pixels = f"{count:,} px".replace(",", " ")
    if spacing is None:
        return pixels
    return f"{pixels}, {count * spacing[0] * spacing[1]:.1f} mm²"


def _list(name: str, title: str, lines: list[str] | tuple[str, ...]) -> str:
    if not lines:
        return ""
    head = f"<strong>{escape(title)}</strong>" if title else ""
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f'<div class="{name}">{head}<ul>{items}</ul></div>'
