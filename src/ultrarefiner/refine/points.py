"""The point prompt analysis of a part: where points fall, and what a refiner makes of each.

Model code is imported when the refiner is loaded, so that a wrong configuration is told at once.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ultrarefiner.datasets.ahead import read_ahead
from ultrarefiner.datasets.loader import CaseRow, read_cases
from ultrarefiner.datasets.parts import parse_part, read_part
from ultrarefiner.errors import ConfigError, UltraRefinerError
from ultrarefiner.images import read_mask
from ultrarefiner.io import item_seed, write_rows
from ultrarefiner.prompts.base import Prompt
from ultrarefiner.prompts.geometry import deepest_point
from ultrarefiner.prompts.records import require_files
from ultrarefiner.refine import REFINERS, load_refiner
from ultrarefiner.refine.base import Embedding, Refiner
from ultrarefiner.refine.embeddings import IndexRow, read_index
from ultrarefiner.refine.seeing import (
    Seen,
    embed_again,
    look_at,
    progress,
    read_image,
    stale_index,
)
from ultrarefiner.refine.shelf import Shelf

logger = logging.getLogger(__name__)

POINT_COLUMNS = [
    *("dataset", "fold", "case", "group", "label", "refiner", "source", "sigma", "draw", "x", "y"),
    *("inside", "distance_px", "distance_share", "dice", "oracle", "seen"),
]
"""Columns of the table that ``analyse_points`` writes; see there."""

SOURCES = ("coarse", "oracle", "noise")
"""Where a point comes from: the coarse mask, the truth, the truth with an error added."""


def analyse_points(
    refiner: str,
    family: str,
    weights: str | None,
    options: dict[str, Any],
    images: str | Path,
    truth: str | Path,
    masks: str | Path,
    cases: str | Path,
    splits: str | Path,
    part: str,
    dataset: str,
    embeddings: str | Path | None,
    shelf: str | Path | None,
    limit_gb: float,
    sigmas: Sequence[float],
    draws: int,
    seed: int,
    seen: str,
    output: str | Path,
    device: str,
) -> None:
    """Prompt a refiner with one point a time, good ones and bad ones, and score what comes out.

    Each image with a lesion is encoded at most once. Its points are

    - ``coarse``: the deepest point of the coarse mask's largest component, as the prompt kind
      ``point`` takes it;
    - ``oracle``: the same of the truth;
    - ``noise``: the oracle's, moved by a Gaussian error; see ``moved_points``.

    Where the coarse mask is empty there is no coarse point: the row has no x and y, Dice 0 and the
    image's diagonal as distance, so that a miss counts in every summary and never as a good value.
    Images without a lesion have no rows. A row does not depend on which other sigmas are analysed.

    Columns: ``x, y`` pixel indices of the original image; ``inside``: the pixel at the point is
    lesion in the truth, whichever component; ``distance_px`` to the oracle's point,
    ``distance_share`` the same as a share of the image's diagonal; ``dice`` of the refined mask;
    ``oracle``: true where the truth made the point; ``sigma`` and ``draw``: empty but for ``noise``.

    Args:
        refiner: Name of the refiner, as the table shall say.
        family: Row of ``REFINERS`` that takes points.
        weights: File of the weights, or their name in the weights table.
        options: The refiner row's own keys.
        images: Folder of ``{case}.png``.
        truth: Folder of true masks ``{case}.png``.
        masks: Folder of coarse masks ``{case}.png``.
        cases: Table of the prepared cases: group and label.
        splits: Table that ``read_part`` takes for the part.
        part: Part of the dataset, such as ``fold0``.
        dataset: Name of the dataset, as the table shall say.
        embeddings: Index that ``embed_images`` wrote for the full images; None to encode here.
        shelf: Folder of the shelf; None with no index.
        limit_gb: Its limit in 10^9 bytes.
        sigmas: Standard deviations of the errors in pixels of the image, of each coordinate.
        draws: Errors drawn for each case and sigma.
        seed: Seed of the errors.
        seen: Whether the weights were trained on this dataset: "yes", "no" or "unknown".
        output: Table to write: ``POINT_COLUMNS``, sorted by case.
        device: "cpu", "cuda", "mps" or "auto".

    Raises:
        ConfigError: Unknown family or option, or a family that takes no points.
        WeightsError: The weights are absent, damaged or another model's.
        SplitError: The part is not in the table.
        UltraRefinerError: A file is absent, damaged or of another size than its image, a case is
            not in ``cases``, or the index is not of these images, weights and options.
        OutputError: The table or the shelf cannot be written.
    """
    if REFINERS[family].needs_mask:
        raise ConfigError(
            f"refiner '{refiner}' cannot be analysed with points: family '{family}' refuses them "
            f"({REFINERS[family].needs_mask}). Remove it from `points.refiners`."
        )
    names = read_part(splits, part)
    known = {row.case: row for row in read_cases(cases)}
    if absent := [case for case in names if case not in known]:
        raise UltraRefinerError(
            f"{len(absent)} cases of {part} in {splits} are not in {cases}: "
            f"{', '.join(absent[:10])}. Make the splits again from this table."
        )
    require_files(images, names, "image", "Run prepare_dataset again.")
    require_files(truth, names, "true mask", "Run prepare_dataset again.")
    require_files(masks, names, "mask", "Run the job that writes this folder again.")
    index = None if embeddings is None else read_index(embeddings)
    # Moved copies of a prompt tell its agreement, which is not looked at here.
    options = {key: value for key, value in options.items() if key != "jitter"}
    model = load_refiner(family, weights, device, **options)
    store = None if index is None else Shelf(shelf, round(limit_gb * 1e9), images=len(names))

    def read(case: str) -> _Case | None:
        image = read_image(images, case)
        lesion, coarse = (_mask(folder, case, image) for folder in (truth, masks))
        if not lesion.any():
            return None
        view = look_at(model, store, case, image, None)
        if index is not None and index.get(case) != IndexRow(view.key, None):
            raise UltraRefinerError(stale_index(embeddings, case, index.get(case), view))
        found = np.array(deepest_point(coarse), float) if coarse.any() else None
        return _Case(view, lesion, np.array(deepest_point(lesion), float), found)

    shared = {"dataset": dataset, "fold": parse_part(part).fold, "refiner": refiner, "seen": seen}
    rows: list[dict[str, Any]] = []
    for one in progress(read_ahead(read, names), len(names), "analyse points of"):
        if one is None:
            continue
        embedding = one.view.embedding or embed_again(model, store, one.view)
        facts = shared | _facts(known[one.view.case])
        for point, dice in _score(model, embedding, one, sigmas, draws, seed):
            row = facts | _measure(one, point) | {"dice": dice}
            rows.append({name: _cell(row[name]) for name in POINT_COLUMNS})
    write_rows(output, POINT_COLUMNS, rows)
    coarse = [row for row in rows if row["source"] == "coarse"]
    logger.info(
        "%d coarse points: %d inside the lesion, %d missing as the coarse mask is empty; %d images "
        "have no lesion",
        len(coarse),
        sum(row["inside"] == "true" for row in coarse),
        sum(row["x"] == "" for row in coarse),
        len(names) - len(coarse),
    )


def moved_points(
    point: np.ndarray,
    sigma: float,
    draws: int,
    seed: int,
    case: str,
    image_hw: tuple[int, int],
) -> np.ndarray:
    """Return copies of a point, each moved by a Gaussian error and then put back into the image.

    Every error has a seed of its own, made of ``seed``, case, sigma and draw: it is the same
    whichever other cases, sigmas, draws and refiners there are.

    Args:
        point: (2,) pixel index (column, row).
        sigma: Standard deviation of each coordinate's error, in pixels.
        draws: How many copies.
        seed: Seed of the errors.
        case: Case id.
        image_hw: (height, width) of the image in pixels.

    Returns:
        float64 (draws, 2) pixel indices (column, row), in general not whole numbers.
    """
    errors = [
        np.random.default_rng(item_seed(seed, case, float(sigma), draw)).normal(0.0, sigma, 2)
        for draw in range(draws)
    ]
    height, width = image_hw
    return np.clip(np.add(point, errors), 0.0, (width - 1.0, height - 1.0))


@dataclass(frozen=True, eq=False)
class _Case:
    """What is read of a case.

    Attributes:
        view: What the refiner sees.
        lesion: The truth, bool (H, W).
        target: The deepest point of the truth, (column, row).
        coarse: That of the coarse mask; None where it is empty.
    """

    view: Seen
    lesion: np.ndarray
    target: np.ndarray
    coarse: np.ndarray | None


@dataclass(frozen=True, eq=False)
class _Point:
    """A point prompt: (column, row), or None where there is nothing to point at."""

    source: str
    at: np.ndarray | None
    sigma: float | None = None
    draw: int | None = None


def _score(
    refiner: Refiner,
    embedding: Embedding,
    one: _Case,
    sigmas: Sequence[float],
    draws: int,
    seed: int,
) -> Iterator[tuple[_Point, float]]:
    """Yield each point of a case with the Dice of what the refiner makes of it.

    Points are decoded in the same batches whichever other sigmas there are: the last digits of a
    model's logits depend on the batch.
    """
    batches = [[_Point("coarse", one.coarse)], [_Point("oracle", one.target)]]
    for sigma in sigmas:
        moved = moved_points(one.target, sigma, draws, seed, one.view.case, one.lesion.shape)
        batches.append([_Point("noise", at, float(sigma), draw) for draw, at in enumerate(moved)])
    for batch in batches:
        prompts = [Prompt(points=point.at[None]) for point in batch if point.at is not None]
        refined = iter(refiner.refine_each(embedding, prompts) if prompts else [])
        for point in batch:
            yield point, 0.0 if point.at is None else _dice(next(refined).mask, one.lesion)


def _measure(one: _Case, point: _Point) -> dict[str, Any]:
    """Return what the table says of a point, but for its Dice."""
    height, width = one.lesion.shape
    diagonal = math.hypot(height, width)
    distance, inside = diagonal, False
    x = y = None
    if point.at is not None:
        x, y = point.at.tolist()
        distance = math.dist((x, y), one.target)
        # A pixel reaches half a pixel to each side of its index.
        inside = bool(one.lesion[math.floor(y + 0.5), math.floor(x + 0.5)])
    return {
        "source": point.source,
        "sigma": point.sigma,
        "draw": point.draw,
        "x": x,
        "y": y,
        "inside": inside,
        "distance_px": distance,
        "distance_share": distance / diagonal,
        "oracle": point.source != "coarse",
    }


def _dice(mask: np.ndarray, lesion: np.ndarray) -> float:
    """Return the Dice of a mask and a lesion that is not empty, as ``evaluation.metrics`` does."""
    return 2 * int((mask & lesion).sum()) / (int(mask.sum()) + int(lesion.sum()))


def _mask(folder: str | Path, case: str, image: np.ndarray) -> np.ndarray:
    mask = read_mask(Path(folder) / f"{case}.png")
    if mask.shape != image.shape[:2]:
        raise UltraRefinerError(
            f"the mask of {case} in {folder} is {mask.shape}, its image {image.shape[:2]} (height, "
            "width). Run the job that writes this folder again."
        )
    return mask


def _facts(row: CaseRow) -> dict[str, Any]:
    return {"case": row.case, "group": row.group or row.case, "label": row.label}


def _cell(value: Any) -> Any:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    return repr(value) if isinstance(value, float) else value
