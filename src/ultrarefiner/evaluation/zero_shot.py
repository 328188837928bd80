"""Zero-shot tables: how models do on datasets that neither they nor their weights have seen.

A case is a mask. Where a dataset has several masks of one image, a mean over masks and a mean over
images differ: both are given.
"""

from __future__ import annotations

import logging
import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import numpy as np

from ultrarefiner.datasets.loader import read_cases
from ultrarefiner.errors import UltraRefinerError
from ultrarefiner.evaluation.comparisons import COMPARED, compare_with, correct_by_holm
from ultrarefiner.evaluation.scores import (
    Block,
    Predictor,
    Row,
    by_predictor,
    one_for_each_method,
    plain,
    read_scores,
)
from ultrarefiner.evaluation.statistics import bootstrap_means, percentile_interval
from ultrarefiner.evaluation.summary import MACRO, POOLED, failures, of_method
from ultrarefiner.io import item_seed, write_rows

UNITS = ("mask", "image")
UNKNOWN = "unknown"
"""Modality of images of which nobody says what they are."""
DIFFERENCE = (
    *("reference", "mean_difference", "ci_low", "ci_high", "wilcoxon_p", "holm_p"),
    *("group_wilcoxon_p", "group_holm_p", "cohens_dz"),
)
ZERO_SHOT_COLUMNS = [
    *("modality", "dataset", "datasets", "family", "method", "member", "fold", "trained_on"),
    *("prompt_source", "oracle", "seen", "unit", "n", "images", "groups"),
    *(f"{metric}_{end}" for metric in COMPARED for end in ("mean", "low", "high")),
    *("misses", "false_positives", *DIFFERENCE),
]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Part:
    """A dataset, counted by mask or by image.

    Attributes:
        dataset: Its name.
        unit: Of `UNITS`.
        units: A row for each mask or image of each predictor, all in the same order.
        lines: What stands of each predictor in the table.
        samples: Bootstrap means of each predictor, (samples, metrics).
    """

    dataset: str
    unit: str
    units: Block
    lines: dict[Predictor, Row]
    samples: dict[Predictor, np.ndarray]


def summarise_zero_shot(
    scores: str | Path,
    datasets: Sequence[Mapping[str, str]],
    families: Mapping[str, str],
    output: str | Path,
    bootstrap: int = 2000,
    seed: int = 0,
) -> None:
    """Summarise what models made of datasets that they were not trained on.

    Of evaluation ``unseen``, without methods whose published weights have seen the dataset. The
    ensemble ``mean`` stands for a method; where several folds' models predict and there is none,
    each predictor has its own rows. Columns of the table beyond the plain ones:

    - ``dataset``: a dataset; or, where a predictor was tested on several datasets of a known
      modality, ``pooled`` (all their masks together) and ``macro`` (the mean of their means).
      ``datasets`` names them, joined by ";": only rows that agree in it can be compared;
    - ``family``: what checkpoints of one architecture, asked in the same way, have in common;
    - ``unit``: ``mask`` counts every mask once; ``image`` takes the mean over the masks of an image
      first, so that each image counts once. Where every image has one mask the two are the same,
      and there are rows of ``mask`` alone;
    - ``n``: masks or images with a lesion, which the means are over; of ``macro`` the number of
      datasets. ``images``, ``groups``: how many of them these belong to;
    - ``{metric}_mean``, and its 95 % percentile bootstrap interval over groups. A missed lesion
      counts with its policy value (0, or the image diagonal);
    - ``misses``: masks with a lesion for which nothing is predicted; ``false_positives``: those
      without one for which something is. Both count masks, whatever the unit;
    - ``reference`` and what follows: the paired difference of Dice from the first checkpoint of the
      family on the same dataset, as in ``comparisons.csv``. Holm corrects for all comparisons of
      this table in one unit, oracles a family of their own.

    Args:
        scores: The study's score table.
        datasets: The datasets, each with ``dataset``, ``modality`` and ``cases``, its table of
            prepared cases, which tells what image a mask is of.
        families: Family of each method, by its name without a training set.
        output: Table to write: `ZERO_SHOT_COLUMNS`, by modality, dataset, family and method.
        bootstrap: Samples of each interval.
        seed: Seed of the samples.

    Raises:
        UltraRefinerError: A table cannot be read, a case of the scores is not in the table of its
            dataset, or the masks of an image are of several groups.
    """
    blocks = {
        dataset: found
        for (dataset, evaluation), block in by_predictor(read_scores(scores)).items()
        if evaluation == "unseen" and (found := _shown(block))
    }
    facts = {row["dataset"]: row for row in datasets}
    parts = [
        _part(dataset, unit, masks, units, bootstrap, seed)
        for dataset, masks in blocks.items()
        for unit, units in _units(masks, _images(scores, facts[dataset]["cases"], masks))
    ]
    for part in parts:
        _compare(part, families, bootstrap, seed)
    for unit in UNITS:
        for oracle in (False, True):
            lines = [line for part in parts if part.unit == unit for line in part.lines.values()]
            correct_by_holm(
                [line for line in lines if line["reference"] and line["oracle"] is oracle]
            )
    lines = []
    for modality in sorted({facts[dataset]["modality"] for dataset in blocks}):
        mine = [part for part in parts if facts[part.dataset]["modality"] == modality]
        found = [line for part in mine for line in part.lines.values()]
        if modality != UNKNOWN:
            found += _over_datasets(mine, bootstrap, item_seed(seed, "zero_shot", modality))
        for line in found:
            line |= {"modality": modality, "family": _family(line["method"], families)}
        lines += sorted(found, key=_place)
    write_rows(
        output,
        ZERO_SHOT_COLUMNS,
        ({name: plain(line.get(name)) for name in ZERO_SHOT_COLUMNS} for line in lines),
    )
    _log.info("%d lines of %d datasets", len(lines), len(blocks))


def _shown(block: Block) -> Block:
    """Return who stands for the methods, without those whose weights have seen the dataset."""
    fresh = {who: rows for who, rows in block.items() if rows[0]["seen"] != "yes"}
    standing = one_for_each_method(fresh)
    return {who: rows for who, rows in fresh.items() if standing.get(who.method, rows) is rows}


def _images(scores: str | Path, cases: str, block: Block) -> dict[str, str]:
    """Return the image of each case of a block."""
    known = {row.case: row.image for row in read_cases(cases)}
    wanted = [row["case"] for row in next(iter(block.values()))]
    if lacking := [case for case in wanted if case not in known]:
        raise UltraRefinerError(
            f"{len(lacking)} cases of {scores} are not in {cases}, so it is not known what image "
            f"they are of: {', '.join(lacking[:10])}. The dataset has changed; delete its score "
            "tables and run again."
        )
    return {case: known[case] for case in wanted}


def _units(masks: Block, images: Mapping[str, str]) -> Iterator[tuple[str, Block]]:
    """Yield what the cases are counted by, and the rows; images where one has several masks."""
    yield (
        "mask",
        {
            who: [row | {"image": images[row["case"]]} for row in rows]
            for who, rows in masks.items()
        },
    )
    there = Counter(images[row["case"]] for row in _lesions(next(iter(masks.values()))))
    if any(number > 1 for number in there.values()):
        yield "image", {who: _by_image(rows, images) for who, rows in masks.items()}


def _by_image(rows: Sequence[Row], images: Mapping[str, str]) -> list[Row]:
    """Return a row for each image: the means over its masks with a lesion."""
    found: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        found[images[row["case"]]].append(row)
    return [_mean_row(image, found[image]) for image in sorted(found)]


def _mean_row(image: str, masks: Sequence[Row]) -> Row:
    groups = sorted({row["group"] for row in masks})
    if len(groups) > 1:
        raise UltraRefinerError(
            f"the masks of {image} ({', '.join(row['case'] for row in masks)}) are of several "
            f"groups: {', '.join(groups)}. Delete {masks[0]['dataset']}'s prepared cases and run "
            "again; an image belongs to one patient."
        )
    lesions = _lesions(masks)
    means = {metric: fmean(row[metric] for row in lesions) for metric in COMPARED if lesions}
    return masks[0] | {"case": image, "image": image, "empty_truth": not lesions} | means


def _lesions(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if not row["empty_truth"]]


def _part(dataset: str, unit: str, masks: Block, units: Block, bootstrap: int, seed: int) -> _Part:
    """Return the lines of a dataset, but for what compares them."""
    everyone = list(units)
    values = np.stack([_values(rows) for rows in units.values()], axis=1)
    groups = [row["group"] for row in units[everyone[0]]]
    # The same groups are drawn for masks and for images.
    salt = item_seed(seed, "zero_shot", dataset)
    drawn = bootstrap_means(values, groups, bootstrap, salt)  # (samples, predictors, metrics)
    samples = {who: drawn[:, i] for i, who in enumerate(everyone)}
    lines = {
        who: {
            "dataset": dataset,
            "datasets": dataset,
            **_head(who, unit, masks[who]),
            **_means(_values(_lesions(rows)), samples[who]),
            "n": len(_lesions(rows)),
            "images": len({row["image"] for row in _lesions(rows)}),
            "groups": len({row["group"] for row in _lesions(rows)}),
            **failures(masks[who]),
            "reference": "",
        }
        for who, rows in units.items()
    }
    return _Part(dataset, unit, units, lines, samples)


def _head(who: Predictor, unit: str, rows: Sequence[Row]) -> Row:
    facts = of_method(rows)
    same = {name: facts[name] for name in ("trained_on", "prompt_source", "oracle", "seen")}
    fold = "all" if who.fold is None else str(who.fold)
    return {"method": who.method, "member": who.member, "fold": fold, "unit": unit, **same}


def _values(rows: Sequence[Row]) -> np.ndarray:
    """Return float64 (rows, metrics), NaN where there is no lesion."""
    nothing = [math.nan] * len(COMPARED)
    values = [nothing if row["empty_truth"] else [row[m] for m in COMPARED] for row in rows]
    return np.array(values, dtype=np.float64).reshape(len(rows), len(COMPARED))


def _means(values: np.ndarray, samples: np.ndarray) -> Row:
    """Return the mean of each metric over values (N, metrics) without NaN, and its interval."""
    low, high = percentile_interval(samples)
    line: Row = {}
    for i, metric in enumerate(COMPARED):
        line[f"{metric}_mean"] = float(values[:, i].mean()) if len(values) else math.nan
        line |= {f"{metric}_low": float(low[i]), f"{metric}_high": float(high[i])}
    return line


def _family(method: str, families: Mapping[str, str]) -> str:
    return families[method.partition("@")[0]]


def _compare(part: _Part, families: Mapping[str, str], bootstrap: int, seed: int) -> None:
    """Add to the lines of checkpoints of one family how they differ from the first of them."""
    times = Counter(who.method for who in part.units)
    # Where each fold's model stands for itself there is nobody to compare.
    alone = {who.method: who for who in part.units if times[who.method] == 1}
    members: dict[str, list[str]] = defaultdict(list)
    for method in sorted(alone, key=_by_name):
        members[_family(method, families)].append(method)
    cases = {method: _lesions(part.units[who]) for method, who in alone.items()}
    for family, (first, *others) in sorted(members.items()):
        if not (others and cases[first]):
            continue
        salt = item_seed(seed, "zero_shot", part.dataset, family)
        for row in compare_with(first, others, cases, bootstrap, salt):
            if row["metric"] == "dice":
                part.lines[alone[row["method"]]] |= {
                    name: row[name] for name in DIFFERENCE if name in row
                }


def _over_datasets(parts: Sequence[_Part], bootstrap: int, seed: int) -> list[Row]:
    """Return the lines of all datasets of a modality together, where a predictor has several."""
    found: dict[Predictor, dict[str, dict[str, _Part]]] = defaultdict(lambda: defaultdict(dict))
    for part in parts:
        for who in part.units:
            found[who][part.dataset][part.unit] = part
    lines = []
    for who, mine in found.items():
        units = [unit for unit in UNITS if any(unit in one for one in mine.values())]
        for unit in units if len(mine) > 1 else []:
            # A dataset with one mask in each image has the same numbers in both units.
            counted = [one.get(unit, one["mask"]) for one in mine.values()]
            lines += _joined(who, unit, counted, bootstrap, seed)
    return lines


def _joined(
    who: Predictor, unit: str, parts: Sequence[_Part], bootstrap: int, seed: int
) -> Iterator[Row]:
    """Yield the pooled and the macro line of a predictor."""
    rows = [row for part in parts for row in part.units[who]]
    mine = [part.lines[who] for part in parts]
    datasets = ";".join(part.dataset for part in parts)
    counts = ("n", "images", "groups", "misses", "false_positives")
    line = {
        "datasets": datasets,
        **_head(who, unit, rows),
        **{name: sum(line[name] for line in mine) for name in counts},
    }
    # Groups of two datasets may bear the same name.
    groups = [f"{row['dataset']}\x1f{row['group']}" for row in rows]
    drawn = bootstrap_means(_values(rows), groups, bootstrap, item_seed(seed, datasets))
    yield {**line, "dataset": POOLED, **_means(_values(_lesions(rows)), drawn)}
    known = [(line, part.samples[who]) for line, part in zip(mine, parts, strict=True) if line["n"]]
    if len(known) > 1:
        means = np.array([[line[f"{metric}_mean"] for metric in COMPARED] for line, _ in known])
        drawn = np.mean([samples for _, samples in known], axis=0)
        yield {**line, "dataset": MACRO, "n": len(known), **_means(means, drawn)}


def _by_name(method: str) -> tuple[str, str]:
    """Return the sorting key of a method: without its training set, then the training set."""
    base, _, at = method.partition("@")
    return base, at


def _place(line: Row) -> tuple[object, ...]:
    """Return the sorting key of a line: checkpoints of one family stand together."""
    dataset = (line["dataset"] in (POOLED, MACRO), line["datasets"], line["dataset"] == MACRO)
    kind = (line["oracle"], line["prompt_source"] != "none", line["family"])
    who = (*_by_name(line["method"]), line["member"], line["fold"])
    return *dataset, *kind, *who, UNITS.index(line["unit"])
