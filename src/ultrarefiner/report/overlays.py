"""The gallery's pictures: best, median and worst cases with their contours where they belong."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ultrarefiner.errors import UltraRefinerError
from ultrarefiner.images import read_mask, read_rgb
from ultrarefiner.io import atomic_directory, read_json, write_json
from ultrarefiner.report.failures import coarse_of, describe_failure, failed_cases, member_of
from ultrarefiner.report.panels import (
    COARSE_COLOUR,
    REFINED_COLOUR,
    TRUTH_COLOUR,
    Outline,
    Panel,
    draw_panels,
)
from ultrarefiner.report.tables import (
    FOOTNOTES,
    MARKS,
    fixed,
    leading_method,
    main_rows,
    read_scores,
    with_lesion,
)

log = logging.getLogger(__name__)

RANKS = ("best", "median", "worst")
# Pixels of the longer side of a failure's picture.
_THUMB = 420


def draw_overlays(
    scores: str | Path,
    entries: Sequence[Mapping[str, Any]],
    reference: str,
    count: int,
    failures: int,
    output: str | Path,
) -> None:
    """Draw best, median, worst and failed cases of each dataset into the folder ``output``.

    The cases are ranked by the Dice of the method that refines and leads on the dataset (oracles
    never lead); without one, by the reference's. A picture has three panels: image with the
    truth, coarse mask with the prompts, refined mask. A failure has one, with all outlines.
    ``index.json`` lists the ``pictures`` and the ``failures``.

    Args:
        scores: ``scores.csv``, one row a case, method and member.
        entries: A dict for each dataset, method and part that may be shown: ``dataset``,
            ``method``, ``evaluation``, ``member``, ``fold`` (None for an ensemble), ``images``,
            ``truth``, ``coarse``, ``masks`` (folders of ``{case}.png``), ``prompts`` (JSON file or
            None), ``oracle``. Those of a dataset start from models of one training set.
        reference: The coarse method.
        count: Cases of each rank; fewer where a dataset is small. No case is shown twice.
        failures: Worst cases of each dataset; missed lesions and false alarms come on top.
        output: The folder; what it held before goes away.

    Raises:
        UltraRefinerError: A table, mask, image or prompt is absent, sizes differ, or no entry tells
            where the masks of a case are.
    """
    table = read_scores(scores, reference)
    places = {_key(entry): entry for entry in entries}
    with atomic_directory(output) as folder:
        pictures, failed = [], []
        for dataset in sorted(set(table["dataset"])):
            rows = _shown(table, dataset, places, scores)
            coarse = coarse_of(rows, reference)
            method = leading_method(rows, reference)
            before = rows[rows["method"].eq(coarse)].set_index("case")["dice"]
            mine = rows[rows["method"].eq(method)]
            if places[_key(mine.iloc[0])]["oracle"]:
                raise UltraRefinerError(
                    f"{method} on {dataset} is an oracle by its folder and none by {scores}; run "
                    "summarise_scores again for this study."
                )
            for rank, number, row in rank_cases(mine, count):
                name = f"{dataset}_{rank}_{number}.png"
                coarse_dice = float(before.get(row["case"], np.nan))
                picture = _draw_case(folder / name, row, places[_key(row)], coarse)
                pictures.append(
                    {
                        "file": name,
                        "dataset": dataset,
                        "method": method,
                        "reference": coarse,
                        "fold": None if pd.isna(row["fold"]) else int(row["fold"]),
                        "case": str(row["case"]),
                        "label": str(row["label"]),
                        "rank": rank,
                        "dice": float(row["dice"]),
                        "coarse_dice": coarse_dice if np.isfinite(coarse_dice) else None,
                        "area_share": float(row["area_share"]),
                        "caption": _caption(row, coarse_dice, coarse, picture["prompt"]),
                        **picture,
                    }
                )
            for number, row in enumerate(failed_cases(mine, failures), 1):
                name = f"{dataset}_failure_{number}.png"
                place = places[_key(row)]
                drawn = _draw_failure(folder / name, row, place, coarse)
                failed.append({"file": name, **describe_failure(row, rows, coarse), **drawn})
        write_json(folder / "index.json", {"pictures": pictures, "failures": failed})
        log.info("drew %d pictures and %d failures", len(pictures), len(failed))


def _key(item: Mapping[str, Any] | pd.Series) -> tuple[str, str, str, str, int | None]:
    """Return what an entry and a row of scores have in common."""
    fold = None if item["fold"] is None or pd.isna(item["fold"]) else int(item["fold"])
    words = (str(item[key]) for key in ("dataset", "method", "evaluation", "member"))
    return (*words, fold)


def _shown(
    table: pd.DataFrame, dataset: str, places: Mapping[tuple[Any, ...], Any], source: str | Path
) -> pd.DataFrame:
    """Return the rows of the methods whose masks may be shown."""
    known = {key[1:4] for key in places if key[0] == dataset}
    parts = [
        main_rows(table, dataset, evaluation) for evaluation in sorted({key[1] for key in known})
    ]
    rows = pd.concat(parts) if parts else table.iloc[:0]
    rows = rows[[_key(row)[1:4] in known for _, row in rows.iterrows()]]
    absent = next((row for _, row in rows.iterrows() if _key(row) not in places), None)
    if rows.empty or absent is not None:
        method = "any method" if absent is None else f"{absent['method']} ({member_of(absent)})"
        raise UltraRefinerError(
            f"no folder is known for the masks of {method} on {dataset}, although {source} has "
            "its scores; run summarise_scores again for this study."
        )
    return rows


def rank_cases(rows: pd.DataFrame, count: int) -> list[tuple[str, int, pd.Series]]:
    """Return (rank, number within the rank, row) of the lesions to show, by falling Dice.

    At most a third of the cases goes to each rank, so that no case is shown twice; the worst come
    worst first.

    Args:
        rows: Scores of one method on one dataset.
        count: Cases of each rank, at most.
    """
    # Of an image without a lesion there is nothing to look at.
    lesions = with_lesion(rows)
    rows = rows if lesions.empty else lesions
    ordered = rows.sort_values(["dice", "case"], ascending=[False, True], ignore_index=True)
    total = len(ordered)
    each = min(count, max(1, total // 3))
    start = (total - each) // 2
    chosen = {
        "best": range(each),
        "median": range(start, start + each),
        "worst": range(total - 1, total - 1 - each, -1),
    }
    shown: set[int] = set()
    picked = []
    # A dataset of one or two cases has no median of its own: best and worst go first.
    for rank in ("best", "worst", "median"):
        for number, index in enumerate(chosen[rank], 1):
            if 0 <= index < total and index not in shown:
                shown.add(index)
                picked.append((rank, number, ordered.iloc[index]))
    return sorted(picked, key=lambda item: (RANKS.index(item[0]), item[1]))


def _caption(row: pd.Series, coarse_dice: float, reference: str, prompt: str) -> str:
    if row["method"] == reference:
        dice = f"Dice {fixed(row['dice'])} ({reference})"
    else:
        dice = f"Dice {fixed(coarse_dice)} ({reference}) → {fixed(row['dice'])} ({row['method']})"
    label = [row["label"]] if row["label"] else []
    mark = [FOOTNOTES[MARKS[row["seen"]]]] if row["seen"] in MARKS else []
    lesion = f"lesion {fixed(100.0 * row['area_share'], 1)} % of the image"
    told = [prompt] if prompt else []
    return " · ".join([row["case"], *label, dice, lesion, member_of(row), *told, *mark])


def _draw_case(path: Path, row: pd.Series, place: Mapping[str, Any], reference: str) -> dict:
    case, method = str(row["case"]), str(row["method"])
    image = read_rgb(Path(place["images"]) / f"{case}.png")
    truth = _mask(Path(place["truth"]) / f"{case}.png", image)
    coarse = _mask(Path(place["coarse"]) / f"{case}.png", image)
    panels = [Panel("truth", TRUTH_COLOUR, (Outline(truth, TRUTH_COLOUR),))]
    thin = Outline(truth, TRUTH_COLOUR, 1.6)
    outlines = (Outline(coarse, COARSE_COLOUR),)
    if method == reference:
        panels.append(
            Panel(f"coarse: {reference}", COARSE_COLOUR, (thin, *outlines), note=_empty(coarse))
        )
        told = ""
    else:
        record = _prompt(place["prompts"], case)
        told = describe_prompt(record)
        if row["kind"] == "end_to_end":
            told = "prompted by the coarse model inside it"
        refined = _mask(Path(place["masks"]) / f"{case}.png", image)
        panels.append(
            Panel(f"coarse: {reference}", COARSE_COLOUR, outlines, record, _empty(coarse))
        )
        after = (thin, Outline(refined, REFINED_COLOUR))
        panels.append(Panel(f"refined: {method}", REFINED_COLOUR, after, None, _empty(refined)))
    return {**draw_panels(path, image, panels), "prompt": told}


def _draw_failure(
    path: Path, row: pd.Series, place: Mapping[str, Any], reference: str
) -> dict[str, Any]:
    case = str(row["case"])
    image = read_rgb(Path(place["images"]) / f"{case}.png")
    truth = _mask(Path(place["truth"]) / f"{case}.png", image)
    shown = _mask(Path(place["masks"]) / f"{case}.png", image)
    outlines = [Outline(truth, TRUTH_COLOUR)]
    if row["method"] != reference:
        coarse = _mask(Path(place["coarse"]) / f"{case}.png", image)
        outlines += [Outline(coarse, COARSE_COLOUR, 2.0), Outline(shown, REFINED_COLOUR)]
    else:
        outlines.append(Outline(shown, COARSE_COLOUR))
    panel = Panel("", TRUTH_COLOUR, tuple(outlines), note=_empty(shown))
    return draw_panels(path, image, [panel], side=_THUMB, strip=0)


def _empty(mask: np.ndarray) -> str:
    return "" if mask.any() else "empty mask"


def _mask(path: Path, image: np.ndarray) -> np.ndarray:
    mask = read_mask(path)
    if mask.shape != image.shape[:2]:
        raise UltraRefinerError(
            f"{path} is {mask.shape[1]}×{mask.shape[0]} pixels, its image "
            f"{image.shape[1]}×{image.shape[0]}; make the mask again from the prepared images."
        )
    return mask


def _prompt(path: str | Path | None, case: str) -> dict[str, Any] | None:
    if path is None:
        return None
    cases = read_json(path).get("cases", {})
    if case not in cases:
        raise UltraRefinerError(f"{path} has no prompt for {case}; run make_prompts again.")
    return cases[case]


def describe_prompt(record: Mapping[str, Any] | None) -> str:
    """Return in words what the refiner was told, from a record of a prompts file."""
    if record is None:
        return ""
    labels = record.get("labels") or []
    parts = ["box"] if record.get("box") else []
    if points := sum(labels):
        parts.append("point" if points == 1 else f"{points} points")
    if len(labels) > points:
        parts.append("a negative point")
    if record.get("mask"):
        parts.append("the coarse mask itself")
    if record.get("empty"):
        # With `on_empty: full_image` the parts that are there stand for the whole image.
        return f"{'prompt: the full image, for' if parts else 'no prompt, for'} the coarse mask is empty"
    if not parts:
        return ""
    told = ", ".join(parts[:-1]) + " and " * (len(parts) > 1) + parts[-1]
    if others := len(record.get("others") or []):
        told += f" for each of {others + 1} components"
    if window := record.get("window"):
        told += f", in a crop of {window[2] - window[0]} × {window[3] - window[1]} pixels"
    return f"prompt: {told}"
