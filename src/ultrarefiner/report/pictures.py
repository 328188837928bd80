"""Figures and pictures as parts of the page: SVG with ids of its own, photographs as data URIs."""

from __future__ import annotations

import base64
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from markupsafe import Markup, escape

from ultrarefiner.errors import UltraRefinerError
from ultrarefiner.images import read_rgb
from ultrarefiner.report.plots import COLOURS, INK, PAPER

log = logging.getLogger(__name__)

# Characters of base64 that the pictures may take; wider ones are tried first.
_BUDGETS = {
    "gallery": 2_900_000,
    "failures": 2_900_000,
    "sheets": 1_200_000,
    "volumes": 2_900_000,
}
_WIDTHS = {
    "gallery": (1640, 1200, 900, 660, 420, 300),
    "failures": (420, 340, 280, 220, 160),
    "sheets": (1160, 1040, 900, 760, 640, 480, 360),
    "volumes": (1540, 1200, 900, 660, 420),
}
_QUALITY = {"gallery": 86, "failures": 82, "sheets": 82, "volumes": 84}
# Colours of the figures that follow the page from light to dark.
_THEMED = {INK: "currentColor", COLOURS["coarse"]: "var(--accent)", PAPER: "var(--ground)"}


@dataclass(frozen=True)
class Figure:
    """A figure of the page: the SVG, what it is, and what it shows."""

    svg: Markup
    title: str
    caption: str


def inline_svg(path: Path, words: str, maker: str = "plot_scores") -> Markup:
    """Return a figure as an element of the page: own ids, the page's text colour, no header.

    Args:
        path: The SVG.
        words: What it shows, for readers who cannot see it.
        maker: The rule that draws it, for the message.

    Raises:
        UltraRefinerError: The figure is not there.
    """
    if not path.is_file():
        raise UltraRefinerError(f"{path} is missing; run {maker} again.")
    text = path.read_text(encoding="utf-8")
    text = text[text.index("<svg") :]
    text = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>|<style.*?</style>", "", text, flags=re.S)
    text = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", text).replace("xlink:href", "href")
    stem = re.sub(r"\W", "_", path.stem)
    text = re.sub(r'(\sid="|href="#|url\(#)', rf"\g<1>{stem}-", text)
    for printed, themed in _THEMED.items():
        text = text.replace(printed, themed)
    return Markup(text.replace("<svg", f'<svg role="img" aria-label="{escape(words)}"', 1))


def embed_pictures(
    folder: Path, pictures: list[dict[str, Any]], kind: str
) -> tuple[list[dict[str, Any]], str]:
    """Return the pictures with their pixels as data URIs, as wide as the budget allows.

    Where even the smallest ones are too many, the last failures of each dataset are left out;
    a picture of the gallery never is.

    Args:
        folder: Where the pictures are.
        pictures: The list of ``index.json``.
        kind: ``gallery``, ``failures`` or ``volumes``.

    Returns:
        The pictures, and what was reduced, in words; nothing if they are as drawn.
    """
    pixels = [read_rgb(folder / item["file"]) for item in pictures]
    budget, data, width = _BUDGETS[kind], [], 0
    for width in _WIDTHS[kind]:
        data = [_jpeg(image, width, _QUALITY[kind]) for image in pixels]
        if sum(map(len, data)) <= budget:
            break
    kept = range(len(pictures))
    if kind == "failures":
        kept = _within(pictures, data, budget)
    elif kind == "gallery" and sum(map(len, data)) > budget:
        log.warning("the gallery takes %.1f MB; lower report.gallery", sum(map(len, data)) / 1e6)
    shown = [
        {
            **pictures[i],
            "data": data[i],
            "width": pixels[i].shape[1],
            "height": pixels[i].shape[0],
        }
        for i in kept
    ]
    told = []
    if any(image.shape[1] > width for image in pixels):
        told.append(f"To keep this file small, pictures are at most {width} pixels wide here.")
    if len(shown) < len(pictures):
        told.append(f"{len(shown)} of {len(pictures)} are here.")
    if told:
        told.append(f"The folder {folder.name} beside it has all of them as drawn.")
    return shown, " ".join(told)


def embed_sheets(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """Return sheets of simulated failures with their pixels as data URIs, within their budget.

    Refiners that learn from the same failures have the same sheet; it is there once.

    Args:
        paths: The PNGs, ``failures-{refiner}.png``.

    Returns:
        Dicts of ``names`` (the refiners), ``data``, ``width``, ``height`` (pixels as shown) and
        ``reduced`` (what was reduced, in words; nothing if the sheet is as drawn).

    Raises:
        UltraRefinerError: A sheet is not there.
    """
    names: dict[bytes, list[str]] = {}
    for path in paths:
        if not path.is_file():
            raise UltraRefinerError(f"{path} is missing; run draw_failures again.")
        names.setdefault(path.read_bytes(), []).append(path.stem.removeprefix("failures-"))
    first = {path.stem.removeprefix("failures-"): path for path in paths}
    pixels = [read_rgb(first[mine[0]]) for mine in names.values()]
    data, width = [], 0
    for width in _WIDTHS["sheets"]:
        data = [_jpeg(image, width, _QUALITY["sheets"]) for image in pixels]
        if sum(map(len, data)) <= _BUDGETS["sheets"]:
            break
    sheets = []
    for mine, image, uri in zip(names.values(), pixels, data, strict=True):
        height, drawn = image.shape[:2]
        shown = min(drawn, width)
        told = (
            f"To keep this file small, it is {shown} pixels wide here; failures-{mine[0]}.png beside "
            "this file is as drawn."
            if shown < drawn
            else ""
        )
        size = {"width": shown, "height": round(height * shown / drawn)}
        sheets.append({"names": mine, "data": uri, **size, "reduced": told})
    return sheets


def _within(pictures: list[dict[str, Any]], data: list[str], budget: int) -> list[int]:
    """Return the pictures that fit, taken in turn from each dataset, in their own order."""
    turns: dict[str, int] = {}
    order = []
    for i, item in enumerate(pictures):
        turns[item["dataset"]] = turns.get(item["dataset"], 0) + 1
        order.append((turns[item["dataset"]], i))
    kept, taken = [], 0
    for _, i in sorted(order):
        taken += len(data[i])
        if taken > budget:
            break
        kept.append(i)
    return sorted(kept)


def _jpeg(image: np.ndarray, width: int, quality: int) -> str:
    if image.shape[1] > width:
        size = (width, round(image.shape[0] * width / image.shape[1]))
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    # Full colour resolution: thin coloured outlines smear with the usual halved one.
    options = [cv2.IMWRITE_JPEG_QUALITY, quality]
    options += [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
    data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), options)[1]
    return f"data:image/jpeg;base64,{base64.b64encode(data.tobytes()).decode()}"
