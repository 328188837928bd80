"""The score table summarised, and its methods compared: means, intervals, tests, failures."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ultrarefiner.errors import UltraRefinerError
from ultrarefiner.evaluation.metrics import METRICS
from ultrarefiner.evaluation.scores import SCORE_COLUMNS, by_method, plain, read_scores
from ultrarefiner.evaluation.statistics import (
    bootstrap_means,
    group_means,
    holm,
    paired_wilcoxon,
    percentile_interval,
    rank_biserial,
)
from ultrarefiner.io import item_seed, write_rows
from ultrarefiner.registry import unknown_name

SUMMARY_COLUMNS = [
    *("dataset", "method", "oracle", "selection", "prompt_source", "subgroup", "fold", "metric"),
    *("n", "mean", "std", "median", "ci_low", "ci_high", "misses", "false_positives"),
]
COMPARED = ("dice", "iou", "hd95_px")
COMPARISON_COLUMNS = [
    *("dataset", "method", "reference", "oracle", "metric", "n"),
    *("mean_method", "mean_reference", "mean_difference", "ci_low", "ci_high"),
    *("wilcoxon_p", "holm_p", "better", "worse", "equal", "rank_biserial"),
    *("groups", "group_wilcoxon_p", "group_holm_p"),
]
# Lower ends of the share of the image that the lesion covers. Fixed, so that "small" means the
# same in every dataset and study; breast lesions on ultrasound cover about 1 to 30 %.
SIZES = {"small": 0.0, "medium": 0.05, "large": 0.15}
POOLED, MACRO = "pooled", "macro"

Row = dict[str, Any]
_log = logging.getLogger(__name__)


def size_of(area_share: float) -> str:
    """Return the size subgroup: small below 5 % of the image, large from 15 %, else medium."""
    return [name for name, least in SIZES.items() if area_share >= least][-1]


def summarise_scores(
    tables: Sequence[str | Path],
    scores: str | Path,
    summary: str | Path,
    bootstrap: int = 2000,
    seed: int = 0,
) -> None:
    """Join score tables and write their summary.

    The summary has one row for each dataset, method, subgroup, fold and metric (`SUMMARY_COLUMNS`,
    plain numbers, empty where there is none):

    - ``subgroup`` is ``all``; ``label=...``; ``size=small|medium|large`` by the share of the image
      that the true lesion covers; and, where there are images without a lesion, ``truth=lesion``
      and ``truth=empty``, for an empty image scores 1 by agreeing on nothing;
    - ``fold`` is ``all``, or a number in rows of subgroup ``all``;
    - ``n`` cases, their ``mean``, ``std`` (n - 1), ``median``; misses are among them, with 0 or the
      image diagonal; a metric that no case has (``hd95_mm`` without spacing) has no row;
    - ``ci_low, ci_high``: 95 % percentile bootstrap over groups of the mean, in rows of fold
      ``all`` with at least two groups;
    - ``misses``: images with a lesion on which nothing is predicted; ``false_positives``: images
      without one on which something is.

    With several datasets there are two more: ``pooled`` has all cases, each counting once;
    ``macro`` has the means of the datasets, each counting once, so its ``n``, ``std`` and
    ``median`` are those of the dataset means. Both only have metrics that every dataset has.

    Args:
        tables: Score tables, in any order.
        scores: Table to write: all rows, sorted by dataset, method, fold and case.
        summary: Table to write.
        bootstrap: Samples of each interval.
        seed: Seed of the samples.

    Raises:
        UltraRefinerError: There is no table, one cannot be read, a case is scored twice, or the
            methods are not scored on the same cases.
    """
    if not tables:
        raise UltraRefinerError("no score table to summarise; `compare` names no method")
    methods = by_method(row for table in tables for row in read_scores(table))
    rows = [row for found in methods.values() for row in found]
    rows.sort(key=lambda row: (row["dataset"], row["method"], row["fold"], row["case"]))
    datasets = sorted({row["dataset"] for row in rows})
    taken = {POOLED, MACRO} & set(datasets)
    if taken:
        raise UltraRefinerError(
            f"a dataset is called '{taken.pop()}', the name of a summary over datasets. Rename it."
        )
    write_rows(
        scores, SCORE_COLUMNS, ({name: plain(row[name]) for name in SCORE_COLUMNS} for row in rows)
    )
    lines: list[Row] = []
    overall: list[tuple[list[Row], np.ndarray]] = []
    for dataset in datasets:
        cases = _select(methods, lambda row, dataset=dataset: row["dataset"] == dataset)
        block, samples = _summarise(dataset, cases, bootstrap, seed)
        overall.append(([line for line in block if _is_overall(line)], samples))
        lines += block
    if len(datasets) > 1:
        shared = set.intersection(*({line["metric"] for line in block} for block, _ in overall))
        pooled, _ = _summarise(POOLED, methods, bootstrap, seed)
        lines += [line for line in pooled if line["metric"] in shared]
        lines += _macro(overall, list(methods))
    write_rows(
        summary,
        SUMMARY_COLUMNS,
        ({name: plain(line[name]) for name in SUMMARY_COLUMNS} for line in lines),
    )
    _log.info("%d cases x methods of %d datasets summarised", len(rows), len(datasets))


def _select(methods: dict[str, list[Row]], wanted: Callable[[Row], bool]) -> dict[str, list[Row]]:
    return {method: [row for row in rows if wanted(row)] for method, rows in methods.items()}


def _is_overall(line: Row) -> bool:
    return line["subgroup"] == "all" and line["fold"] == "all"


def _subgroups(rows: list[Row]) -> Iterator[tuple[str, str, Callable[[Row], bool]]]:
    """Yield subgroup, fold and the test of belonging; only those that have cases."""
    yield "all", "all", lambda row: True
    for fold in sorted({row["fold"] for row in rows}):
        yield "all", str(fold), lambda row, fold=fold: row["fold"] == fold
    labels = sorted({row["label"] for row in rows})
    for label in labels if any(labels) else []:
        name = f"label={label or 'unknown'}"
        yield name, "all", lambda row, label=label: row["label"] == label
    sizes = {size_of(row["area_share"]) for row in rows if not row["empty_truth"]}
    for size in SIZES:
        if size in sizes:
            yield (
                f"size={size}",
                "all",
                lambda row, size=size: (
                    not row["empty_truth"] and size_of(row["area_share"]) == size
                ),
            )
    if any(row["empty_truth"] for row in rows):
        if sizes:
            yield "truth=lesion", "all", lambda row: not row["empty_truth"]
        yield "truth=empty", "all", lambda row: row["empty_truth"]


def _summarise(
    dataset: str, methods: dict[str, list[Row]], bootstrap: int, seed: int
) -> tuple[list[Row], np.ndarray]:
    """Return the lines of a dataset, and the bootstrap means (samples, methods, metrics) of all."""
    lines: list[Row] = []
    overall = np.empty(0)
    subgroups = list(_subgroups(next(iter(methods.values()))))
    for subgroup, fold, wanted in subgroups:
        cases = _select(methods, wanted)
        values = np.array(
            [[[row[metric] for metric in METRICS] for row in rows] for rows in cases.values()]
        ).swapaxes(0, 1)  # (cases, methods, metrics)
        low, high = np.full((2, *values.shape[1:]), np.nan)
        if fold == "all":
            # Groups of two datasets may bear the same name.
            groups = [f"{row['dataset']}\x1f{row['group']}" for row in next(iter(cases.values()))]
            samples = bootstrap_means(
                values, groups, bootstrap, item_seed(seed, "summary", dataset, subgroup)
            )
            low, high = percentile_interval(samples)
            overall = samples if subgroup == "all" else overall
        for i, (method, rows) in enumerate(cases.items()):
            for j, metric in enumerate(METRICS):
                known = values[:, i, j][~np.isnan(values[:, i, j])]
                if len(known):
                    line = _describe(known, low[i, j], high[i, j])
                    lines.append(
                        {
                            "dataset": dataset,
                            "method": method,
                            **{
                                key: rows[0][key]
                                for key in ("oracle", "selection", "prompt_source")
                            },
                            "subgroup": subgroup,
                            "fold": fold,
                            "metric": metric,
                            **line,
                            "misses": _count(rows, "empty_prediction", "empty_truth"),
                            "false_positives": _count(rows, "empty_truth", "empty_prediction"),
                        }
                    )
    order = {(name, fold): place for place, (name, fold, _) in enumerate(subgroups)}
    lines.sort(key=lambda line: (line["method"], order[line["subgroup"], line["fold"]]))
    return lines, overall


def _count(rows: list[Row], yes: str, no: str) -> int:
    return sum(row[yes] and not row[no] for row in rows)


def _describe(values: np.ndarray, low: float, high: float) -> Row:
    return {
        "n": len(values),
        "mean": float(values.mean()),
        "std": float(values.std(ddof=1)) if len(values) > 1 else None,
        "median": float(np.median(values)),
        "ci_low": float(low),
        "ci_high": float(high),
    }


def _macro(overall: list[tuple[list[Row], np.ndarray]], methods: list[str]) -> list[Row]:
    """Return the lines that give each dataset the same weight."""
    low, high = percentile_interval(np.mean([samples for _, samples in overall], axis=0))
    found = [{(line["method"], line["metric"]): line for line in lines} for lines, _ in overall]
    result = []
    for i, method in enumerate(methods):
        for j, metric in enumerate(METRICS):
            if all((method, metric) in lines for lines in found):
                parts = [lines[method, metric] for lines in found]
                means = np.array([part["mean"] for part in parts])
                result.append(
                    {
                        **parts[0],
                        "dataset": MACRO,
                        **_describe(means, low[i, j], high[i, j]),
                        "misses": sum(part["misses"] for part in parts),
                        "false_positives": sum(part["false_positives"] for part in parts),
                    }
                )
    return result


def compare_methods(
    scores: str | Path,
    reference: str,
    comparisons: str | Path,
    bootstrap: int = 2000,
    seed: int = 0,
) -> None:
    """Compare each method with a reference, case by case, within each dataset.

    Differences are method minus reference. A miss counts with its policy value (0, or the image
    diagonal), so all methods have the same n. Columns of the table beyond the plain ones:

    - ``ci_low, ci_high``: 95 % percentile bootstrap over groups of the mean difference;
    - ``wilcoxon_p``: signed-rank test over cases; ``holm_p``: the same, corrected within a family:
      one dataset and one metric, over the methods that do not use the truth. Oracle methods are
      an upper bound, not a claim; they form a family of their own;
    - ``better, worse, equal``: cases on which the method is better (higher for Dice, lower for a
      distance), worse, equal;
    - ``rank_biserial``: effect size, of the sign of the difference;
    - ``groups, group_wilcoxon_p, group_holm_p``: number of groups, and the test over the mean
      difference of each group, plain and corrected within the same family: the ones to quote when
      groups hold several images, for these are not independent.

    Args:
        scores: The study's score table.
        reference: Name of the method to compare with.
        comparisons: Table to write: `COMPARISON_COLUMNS`; no rows if there is no other method.
        bootstrap: Samples of each interval.
        seed: Seed of the samples.

    Raises:
        UltraRefinerError: A method is not scored on the same cases as the others, or the
            reference is not in the table.
    """
    methods = by_method(read_scores(scores))
    if reference not in methods:
        raise UltraRefinerError(f"{scores}: {unknown_name('reference', reference, list(methods))}")
    others = [method for method in methods if method != reference]
    datasets = sorted({row["dataset"] for row in methods[reference]})
    rows = []
    for dataset in datasets if others else []:
        cases = {
            method: [row for row in found if row["dataset"] == dataset]
            for method, found in methods.items()
        }
        rows += _compare_on(dataset, cases, reference, others, bootstrap, seed)
    write_rows(comparisons, COMPARISON_COLUMNS, rows)
    _log.info("compared %d methods with %s on %d datasets", len(others), reference, len(datasets))


def _compare_on(
    dataset: str,
    cases: dict[str, list[dict[str, Any]]],
    reference: str,
    others: list[str],
    bootstrap: int,
    seed: int,
) -> list[dict[str, Any]]:
    """Return the rows of one dataset, as CSV cells."""
    groups = [row["group"] for row in cases[reference]]
    values = {
        method: np.array([[row[metric] for metric in COMPARED] for row in cases[method]])
        for method in (reference, *others)
    }  # (cases, metrics) each
    differences = np.stack([values[method] - values[reference] for method in others], axis=1)
    samples = bootstrap_means(differences, groups, bootstrap, item_seed(seed, "compare", dataset))
    low, high = percentile_interval(samples)  # (methods, metrics)
    rows: list[dict[str, Any]] = []
    for i, method in enumerate(others):
        for j, metric in enumerate(COMPARED):
            difference = differences[:, i, j]
            gain = difference if METRICS[metric].better == "higher" else -difference
            rows.append(
                {
                    "dataset": dataset,
                    "method": method,
                    "reference": reference,
                    "oracle": cases[method][0]["oracle"],
                    "metric": metric,
                    "n": len(difference),
                    "mean_method": float(values[method][:, j].mean()),
                    "mean_reference": float(values[reference][:, j].mean()),
                    "mean_difference": float(difference.mean()),
                    "ci_low": float(low[i, j]),
                    "ci_high": float(high[i, j]),
                    "wilcoxon_p": paired_wilcoxon(difference),
                    "better": int((gain > 0).sum()),
                    "worse": int((gain < 0).sum()),
                    "equal": int((gain == 0).sum()),
                    "rank_biserial": rank_biserial(difference),
                    "groups": len(set(groups)),
                    "group_wilcoxon_p": paired_wilcoxon(group_means(difference, groups)),
                }
            )
    for metric in COMPARED:
        for oracle in (False, True):
            family = [row for row in rows if row["metric"] == metric and row["oracle"] is oracle]
            for plain_p, corrected in (
                ("wilcoxon_p", "holm_p"),
                ("group_wilcoxon_p", "group_holm_p"),
            ):
                for row, p in zip(family, holm([row[plain_p] for row in family]), strict=True):
                    row[corrected] = float(p)
    return [{name: plain(row[name]) for name in COMPARISON_COLUMNS} for row in rows]
