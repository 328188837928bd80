"""The zero-shot tables: methods on datasets that neither they nor their weights have seen."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from ultrarefiner.evaluation.comparisons import COMPARED
from ultrarefiner.evaluation.summary import MACRO, POOLED
from ultrarefiner.evaluation.zero_shot import UNKNOWN
from ultrarefiner.report.result_tables import label_of
from ultrarefiner.report.results import (
    Cell,
    Row,
    Table,
    count_cell,
    difference_cells,
    mean_cell,
)
from ultrarefiner.report.tables import MARKS

_DIGITS = {"hd95_px": 1}
_OVER = {POOLED: "masks", MACRO: "datasets' means"}
_PER_MASK = "Per mask: each mask counts once."
_BOTH = (
    f"{_PER_MASK} Per image: the mean over the masks of an image first, then over the images, so "
    "that each image counts once, however many masks it has."
)
_ALIKE = "Each image has one mask here, so means per mask and per image are the same."


@dataclass(frozen=True)
class ZeroShot:
    """The page of zero-shot results.

    Attributes:
        parts: A heading for each modality, and its tables.
        words: What the tables have and lack.
    """

    parts: list[tuple[str, list[Table]]]
    words: list[str]

    @property
    def tables(self) -> list[Table]:
        """All tables."""
        return [table for _, tables in self.parts for table in tables]


def zero_shot_page(lines: pd.DataFrame, scores: pd.DataFrame) -> ZeroShot:
    """Return the zero-shot results of a study.

    Args:
        lines: ``zero_shot.csv``.
        scores: As `ultrarefiner.report.tables.read_scores` gives them.
    """
    kinds = dict(zip(scores["method"], scores["kind"], strict=True))
    parts = []
    for modality, mine in lines.groupby("modality", sort=False):
        joint = mine["dataset"].isin([*_OVER])
        tables = [
            _table(f"zero_shot_{dataset}", f"Zero-shot on {dataset}", rows, kinds)
            for dataset, rows in mine[~joint].groupby("dataset", sort=False)
        ]
        if joint.any():
            title = f"Zero-shot over datasets: {_title(modality)}"
            tables.append(_table(f"all_zero_shot_{modality}", title, mine[joint], kinds))
        parts.append((_title(modality), tables))
    return ZeroShot(parts, [*_words(lines), *_seen(scores)])


def _title(modality: str) -> str:
    """Return a modality as a heading: abbreviations in capitals."""
    if modality == UNKNOWN:
        return "Modality not told"
    plain = modality.replace("_", " ")
    return plain.upper() if len(plain) <= 3 else plain.capitalize()


def _seen(scores: pd.DataFrame) -> list[str]:
    """Return a sentence for what is left out, as its weights were trained on the dataset."""
    rows = scores[scores["evaluation"].eq("unseen") & scores["seen"].eq("yes")]
    told = [
        f"{', '.join(sorted(set(found['method'])))} on {dataset}"
        for dataset, found in rows.groupby("dataset")
    ]
    if not told:
        return []
    return [
        "Left out, because published weights were trained on the dataset, so it is no zero-shot: "
        f"{'; '.join(told)}. Their scores are in the other tables, marked †."
    ]


def _words(lines: pd.DataFrame) -> list[str]:
    words = []
    if lines["seen"].eq("unknown").any():
        words.append(
            "‡: nobody says what these weights were trained on; such a row may be no zero-shot. "
            "`refiners.*.seen` tells it of weights of your own."
        )
    if lines["oracle"].any():
        words.append(
            "Oracle: the prompt is made from the truth, as published zero-shot numbers of "
            "promptable models often are. It is an upper bound; compare such rows with each other "
            "alone."
        )
    return words


def _table(name: str, title: str, rows: pd.DataFrame, kinds: Mapping[str, str]) -> Table:
    """Return the table of a dataset, or of all datasets of a modality."""
    joint = rows["dataset"].isin([*_OVER]).any()
    by_image = rows["unit"].eq("image").any()
    alone = rows["fold"].ne("all") | rows["member"].eq("vote")
    compared = rows["reference"].ne("").any()
    alarms = rows["false_positives"].gt(0).any()
    table = Table(name, title, "Method", [])
    words = ["Datasets", "Over"] if joint else []
    words += ["Per"] if by_image else []
    words += ["Predicted by"] if alone.any() else []
    numbers = ["n", *(["Images"] if by_image else []), *map(label_of, COMPARED), "Missed"]
    table.columns = [*words, *numbers, *(["False alarms"] if alarms else [])]
    table.columns += ["Against", "Δ Dice", "Holm p", "Effect (dz)"] if compared else []
    table.words = frozenset([*words, "Against"])
    firsts = {(row.reference, row.unit) for row in rows.itertuples() if row.reference}
    reach = _reach(rows)
    best = _best(rows)
    for row in rows.to_dict("records"):
        cells = []
        if joint:
            datasets = row["datasets"].replace(";", ", ")
            cells += [Cell(datasets), Cell(_OVER[row["dataset"]])]
        cells += [Cell(row["unit"])] if by_image else []
        cells += [Cell(_predictor(row))] if alone.any() else []
        cells.append(count_cell(row["n"]))
        cells += [count_cell(row["images"])] if by_image else []
        for metric in COMPARED:
            mean = _mean(row, metric)
            lead = row["dice_mean"] == best.get(_group(row)) and metric == "dice"
            cells.append(mean_cell(mean, _DIGITS.get(metric, 3), best=lead and not row["oracle"]))
        cells.append(count_cell(row["misses"]))
        cells += [count_cell(row["false_positives"])] if alarms else []
        if compared:
            first = (row["method"], row["unit"]) in firsts
            found = row if row["reference"] else None
            cells.append(Cell(row["reference"] or "–"))
            cells += difference_cells(found, reach, first)
        kind = kinds[row["method"]]
        table.rows.append(Row(row["method"], cells, kind, MARKS.get(row["seen"], ""), row["seen"]))
    table.rows.sort(key=lambda row: row.oracle)
    table.caption = _caption(joint, by_image, compared)
    return table


def _caption(joint: bool, by_image: bool, compared: bool) -> str:
    words = [
        "Means over lesions with 95 % confidence interval over groups; a missed lesion counts "
        "with Dice 0 and the image diagonal. No model was trained on these datasets; what follows "
        "@ is what it was trained on.",
        _BOTH if by_image else _ALIKE,
    ]
    if joint:
        words.append(
            "Over masks: all masks of these datasets together. Over the datasets' means: each "
            "dataset counts once, and n counts datasets. Only rows of the same datasets can be "
            "compared."
        )
    if compared:
        words.append(
            "Δ Dice: mean paired difference to the first checkpoint of the same architecture that "
            "was prompted in the same way. Holm p: corrected for all of these comparisons in the "
            "study, oracles a family of their own."
        )
    words.append("Bold: best Dice, oracles apart.")
    return " ".join(words)


def _predictor(row: Mapping[str, Any]) -> str:
    if row["fold"] != "all":
        return f"model of fold {row['fold']}"
    return "vote of all folds' models" if row["member"] == "vote" else "all folds' models"


def _mean(row: Mapping[str, Any], metric: str) -> dict[str, float]:
    ends = {"mean": "mean", "low": "ci_low", "high": "ci_high"}
    return {name: float(row[f"{metric}_{end}"]) for end, name in ends.items()}


def _group(row: Mapping[str, Any]) -> tuple[str, str, str]:
    """Return what rows have to agree in to be compared."""
    return row["dataset"], row["datasets"], row["unit"]


def _best(rows: pd.DataFrame) -> dict[tuple[str, ...], float]:
    """Return the highest mean Dice of the rows that can be compared, oracles apart."""
    plain = rows[~rows["oracle"]]
    means = plain.groupby(["dataset", "datasets", "unit"])["dice_mean"].max()
    return {tuple(key): float(mean) for key, mean in means.items()}


def _reach(rows: pd.DataFrame) -> tuple[float, float]:
    """Return the least and the largest end of the intervals of all differences, and zero."""
    ends: Sequence[float] = [*rows["ci_low"], *rows["ci_high"], 0.0]
    known = [float(end) for end in ends if math.isfinite(end)]
    return min(known), max(known)
