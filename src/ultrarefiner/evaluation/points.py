"""The point prompt analysis summarised: where points fall, and what a wrong one costs."""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ultrarefiner.errors import UltraRefinerError
from ultrarefiner.evaluation.scores import plain
from ultrarefiner.evaluation.statistics import bootstrap_means, percentile_interval
from ultrarefiner.io import item_seed, read_rows, write_rows
from ultrarefiner.refine.points import POINT_COLUMNS, SOURCES

POINT_SUMMARY_COLUMNS = [
    *("dataset", "refiner", "source", "sigma", "oracle", "seen", "n", "cases", "groups", "misses"),
    *("inside_rate", "inside_low", "inside_high", "distance_median", "distance_share_median"),
    *("dice_mean", "dice_low", "dice_high", "change_mean", "change_low", "change_high"),
    *("spearman", "spearman_low", "spearman_high"),
]
"""Columns of the table that ``summarise_points`` writes; see there."""

_COUNTS = ("n", "cases", "groups", "misses")
_TEXTS = ("dataset", "case", "group", "label", "refiner", "source", "seen")
_FLAGS = {"true": True, "false": False}

_log = logging.getLogger(__name__)

Row = dict[str, Any]


def summarise_points(
    tables: Sequence[str | Path], output: str | Path, bootstrap: int = 2000, seed: int = 0
) -> None:
    """Summarise the points of every dataset and refiner: a line for each source and sigma.

    Columns of the table beyond the plain ones:

    - ``n``: points; ``cases``, ``groups``: what they belong to; ``misses``: cases without a coarse
      point, which count as outside, with Dice 0 and the image's diagonal as distance;
    - ``inside_rate``: share of the points on lesion; ``distance_median`` in pixels,
      ``distance_share_median`` as a share of the image's diagonal;
    - ``change_mean``: mean difference of Dice from the truth's own point, case by case;
    - ``spearman``: rank correlation of Dice with the distance in pixels, over the points that
      exist; empty where all distances are the same, as the oracle's are;
    - ``*_low, *_high``: 95 % percentile bootstrap over groups. A group's cases and their draws
      stay together, and all lines of a dataset share the samples. Empty with fewer than two groups.

    Args:
        tables: Tables that ``analyse_points`` wrote.
        output: Table to write: `POINT_SUMMARY_COLUMNS`.
        bootstrap: Samples of each interval.
        seed: Seed of the samples.

    Raises:
        UltraRefinerError: A table is absent or damaged, there is no point at all, or the refiners
            of a dataset were not given the same points.
    """
    rows = [row for path in tables for row in read_points(path)]
    if not rows:
        raise UltraRefinerError(
            "no image with a lesion was analysed with points. Set `datasets.*` to images with "
            "lesions, or remove `points`."
        )
    lines = []
    for (dataset, refiner), found in by_refiner(rows).items():
        best = {row["case"]: row["dice"] for row in found if row["source"] == "oracle"}
        parts: dict[tuple[int, float], list[Row]] = defaultdict(list)
        for row in found:
            parts[SOURCES.index(row["source"]), row["sigma"] or 0.0].append(row)
        for place in sorted(parts):
            salt = item_seed(seed, "points", dataset)
            line = {"dataset": dataset, "refiner": refiner}
            lines.append(line | _summarise(parts[place], best, bootstrap, salt))
    write_rows(
        output,
        POINT_SUMMARY_COLUMNS,
        ({name: plain(line[name]) for name in POINT_SUMMARY_COLUMNS} for line in lines),
    )
    _log.info("summarised %d points in %d lines", len(rows), len(lines))


def _summarise(rows: list[Row], best: dict[str, float], bootstrap: int, seed: int) -> Row:
    """Return the line of one source and sigma."""
    groups = [row["group"] for row in rows]
    oracle = rows[0]["source"] == "oracle"
    values = np.array(
        [
            [row["inside"], row["dice"], math.nan if oracle else row["dice"] - best[row["case"]]]
            for row in rows
        ],
        dtype=float,
    )
    low, high = percentile_interval(bootstrap_means(values, groups, bootstrap, seed))
    line = {name: rows[0][name] for name in ("source", "sigma", "oracle", "seen")} | {
        "n": len(rows),
        "cases": len({row["case"] for row in rows}),
        "groups": len(set(groups)),
        "misses": len({row["case"] for row in rows if row["x"] is None}),
        "distance_median": float(np.median([row["distance_px"] for row in rows])),
        "distance_share_median": float(np.median([row["distance_share"] for row in rows])),
    }
    means = values.mean(axis=0)
    ends = zip(("inside", "dice", "change"), means, low, high, strict=True)
    for name, mean, least, most in ends:
        line["inside_rate" if name == "inside" else f"{name}_mean"] = float(mean)
        line |= {f"{name}_low": float(least), f"{name}_high": float(most)}
    there = [row for row in rows if row["x"] is not None]
    rho, least, most = bootstrap_spearman(
        [row["distance_px"] for row in there],
        [row["dice"] for row in there],
        [row["group"] for row in there],
        bootstrap,
        seed,
    )
    return line | {"spearman": rho, "spearman_low": least, "spearman_high": most}


def bootstrap_spearman(
    x: Sequence[float], y: Sequence[float], groups: Sequence[str], n: int = 2000, seed: int = 0
) -> tuple[float, float, float]:
    """Return Spearman's rank correlation and its 95 % percentile interval over groups.

    Each sample of whole groups is ranked anew, by the counts of its values, so that nothing is
    copied. Ties have the mean of their ranks.

    Args:
        x: (N,) numbers.
        y: (N,) numbers.
        groups: Group of each pair, (N,).
        n: Samples.
        seed: Seed of the draws.

    Returns:
        Correlation, low end, high end. NaN where x or y does not vary; the ends are NaN with fewer
        than two groups, too.
    """
    if not len(x):
        return math.nan, math.nan, math.nan
    names, members = np.unique(np.asarray(groups), return_inverse=True)
    # Sums depend on the order of their terms, so that is settled first.
    order = np.lexsort((y, x, members))
    members = members[order]
    classes = [np.unique(np.asarray(v)[order], return_inverse=True)[1] for v in (x, y)]
    rho = _weighted_spearman(*classes, np.ones(len(order)))
    if len(names) < 2:
        return rho, math.nan, math.nan
    rng = np.random.default_rng(seed)
    samples = np.empty(n)
    for i in range(n):
        times = np.bincount(rng.integers(0, len(names), len(names)), minlength=len(names))
        samples[i] = _weighted_spearman(*classes, times[members].astype(float))
    low, high = percentile_interval(samples)
    return rho, float(low), float(high)


def _weighted_spearman(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> float:
    """Return the rank correlation of pairs that each stand there ``weights`` times.

    Args:
        x: (N,) numbers of the classes of equal values, ascending with the value.
        y: The same of the other side.
        weights: (N,) whole numbers as float.
    """
    ranks = []
    for classes in (x, y):
        totals = np.bincount(classes, weights=weights)
        ranks.append((np.cumsum(totals) - (totals - 1.0) / 2.0)[classes])
    # Ranks of w pairs have the mean (w + 1) / 2, ties or not.
    first, second = (rank - (weights.sum() + 1.0) / 2.0 for rank in ranks)
    spread = math.sqrt((weights * first**2).sum() * (weights * second**2).sum())
    return float((weights * first * second).sum() / spread) if spread > 0 else math.nan


def by_refiner(rows: Iterable[Row]) -> dict[tuple[str, str], list[Row]]:
    """Return the rows of each (dataset, refiner), keys and rows sorted.

    Raises:
        UltraRefinerError: A point is there twice, a refiner of a dataset lacks points that another
            one has, or its rows differ in ``seen``.
    """
    found: dict[tuple[str, str], dict[tuple[Any, ...], Row]] = defaultdict(dict)
    seen: dict[tuple[str, str], str] = {}
    for row in rows:
        whose = row["dataset"], row["refiner"]
        sigma, draw = row["sigma"] or 0.0, row["draw"] or 0
        key = row["case"], SOURCES.index(row["source"]), sigma, draw
        if key in found[whose]:
            raise UltraRefinerError(
                f"{whose[1]} has a {row['source']} point of {row['case']} twice (dataset "
                f"{whose[0]}). Give each table once."
            )
        if seen.setdefault(whose, row["seen"]) != row["seen"]:
            raise UltraRefinerError(
                f"{whose[1]} on {whose[0]} has rows with seen '{seen[whose]}' and '{row['seen']}'. "
                "Delete its tables and run analyse_points again."
            )
        found[whose][key] = row
    for dataset in {whose[0] for whose in found}:
        _require_same_points({r: keys for (d, r), keys in found.items() if d == dataset}, dataset)
    return {whose: [found[whose][key] for key in sorted(found[whose])] for whose in sorted(found)}


def _require_same_points(found: dict[str, dict[tuple[Any, ...], Row]], dataset: str) -> None:
    cases = {key[0] for keys in found.values() for key in keys}
    points = {key[1:] for keys in found.values() for key in keys}
    points |= {(SOURCES.index(source), 0.0, 0) for source in ("coarse", "oracle")}
    for refiner, keys in sorted(found.items()):
        if len(keys) != len(cases) * len(points):
            lacking = sorted(c for c in cases if any((c, *point) not in keys for point in points))
            raise UltraRefinerError(
                f"{refiner} lacks points of {len(lacking)} cases of {dataset}: "
                f"{', '.join(lacking[:10])}. Means over other cases cannot be compared; delete its "
                "tables and run analyse_points again."
            )


def read_points(path: str | Path) -> list[Row]:
    """Read a table of ``analyse_points`` as typed rows; empty cells are None.

    Raises:
        UltraRefinerError: The file is absent, lacks a column, or a cell does not hold its type.
    """
    rows = _read(path, POINT_COLUMNS, "analyse_points")
    for row in rows:
        if row["source"] not in SOURCES or None in (row["dice"], row["distance_px"]):
            raise UltraRefinerError(
                f"{path} has a row of {row['case']} without a known source, a Dice or a distance. "
                "Delete it and run analyse_points again."
            )
    return rows


def read_point_summary(path: str | Path) -> list[Row]:
    """Read the table of ``summarise_points`` as typed rows; empty cells are None.

    Raises:
        UltraRefinerError: The file is absent, lacks a column, or a cell does not hold its type.
    """
    return _read(path, POINT_SUMMARY_COLUMNS, "summarise_points")


def _read(path: str | Path, columns: list[str], maker: str) -> list[Row]:
    cure = f"Delete it and run {maker} again."
    try:
        rows = read_rows(path)
    except OSError as error:
        raise UltraRefinerError(f"cannot read {path}: {error.strerror}. {cure}") from error
    missing = [name for name in columns if rows and name not in rows[0]]
    if missing:
        raise UltraRefinerError(f"{path} lacks the columns {', '.join(missing)}. {cure}")
    try:
        return [{name: _typed(name, row[name]) for name in columns} for row in rows]
    except (KeyError, TypeError, ValueError) as error:
        raise UltraRefinerError(f"{path} has a cell of another type: {error}. {cure}") from error


def _typed(name: str, cell: str) -> Any:
    if name in _TEXTS:
        return str(cell)
    if name in ("inside", "oracle"):
        return _FLAGS[cell]
    if cell == "":
        return None
    if name in ("fold", "draw", *_COUNTS):
        return int(cell)
    value = float(cell)
    if not math.isfinite(value):
        raise ValueError(f"{name} is '{cell}'")
    return value
