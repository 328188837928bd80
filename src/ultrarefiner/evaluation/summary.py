"""The score table summarised: means, intervals and failures of each method and subgroup."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ultrarefiner.errors import UltraRefinerError
from ultrarefiner.evaluation.metrics import METRICS
from ultrarefiner.evaluation.scores import (
    SCORE_COLUMNS,
    Block,
    Predictor,
    Row,
    by_predictor,
    plain,
    read_scores,
)
from ultrarefiner.evaluation.statistics import bootstrap_means, percentile_interval
from ultrarefiner.evaluation.subgroups import Traits, find_traits, read_elsewhere, subgroups
from ultrarefiner.io import item_seed, write_rows

SUMMARY_COLUMNS = [
    *("dataset", "evaluation", "member", "method", "trained_on", "oracle", "seen", "selection"),
    *("prompt_source", "subgroup", "fold", "metric"),
    *("n", "mean", "std", "median", "ci_low", "ci_high", "misses", "false_positives"),
]
SPECIFICITY = "specificity"
SUMMARISED = (*METRICS, SPECIFICITY)
"""The metrics of the summary, in its order."""
POOLED, MACRO = "pooled", "macro"

_OF_METHOD = ("trained_on", "oracle", "seen", "selection", "prompt_source")
_log = logging.getLogger(__name__)


def summarise_scores(
    tables: Sequence[str | Path],
    scores: str | Path,
    summary: str | Path,
    overlaps: str | Path | None = None,
    bootstrap: int = 2000,
    seed: int = 0,
) -> None:
    """Join score tables and write their summary.

    The summary has one row for each dataset, evaluation, predictor, subgroup and metric
    (`SUMMARY_COLUMNS`, plain numbers, empty where there is none):

    - in evaluation ``folds``, ``fold`` is ``all``, or a number in rows of subgroup ``all``: the
      test cases of that fold. In ``holdout`` and ``unseen`` it is the fold of the model, whose
      cases are all of them, or ``all`` for an ensemble;
    - ``subgroup`` is ``all``, or in rows of fold ``all`` a subgroup of `subgroups.find_traits`;
    - ``n`` images with a lesion, the ``mean``, ``std`` (n - 1), ``median`` of their metric; misses
      are among them, with 0 or the image diagonal; a metric that no case has (``hd95_mm`` without
      spacing) has no row. Images without a lesion are in the rows of metric ``specificity`` alone:
      there ``n`` counts them, and the ``mean`` is the share on which nothing is predicted;
    - ``ci_low, ci_high``: 95 % percentile bootstrap over groups of the mean, where there are at
      least two groups; none in rows of one fold's test cases;
    - ``misses``: images with a lesion on which nothing is predicted; ``false_positives``: images
      without one on which something is; both over all images of the subgroup.

    If the folds of several datasets are evaluated there are two more: ``pooled`` has all cases,
    each counting once; ``macro`` has the means of the datasets, each counting once, so its ``n``,
    ``std`` and ``median`` are those of the dataset means. Both have the methods and the metrics
    that every such dataset has; ``trained_on`` is empty where they differ in it.

    Args:
        tables: Score tables, in any order.
        scores: Table to write: all rows, sorted by dataset, evaluation, method, member, fold and
            case.
        summary: Table to write.
        overlaps: Table of images that datasets share: ``case, dataset, other_case, other_dataset``.
        bootstrap: Samples of each interval.
        seed: Seed of the samples.

    Raises:
        UltraRefinerError: There is no table, one cannot be read, a case is scored twice, or the
            methods are not scored on the same cases.
    """
    if not tables:
        raise UltraRefinerError("no score table to summarise; `compare` names no method")
    blocks = by_predictor(row for table in tables for row in read_scores(table))
    rows = [row for block in blocks.values() for found in block.values() for row in found]
    taken = {POOLED, MACRO} & {dataset for dataset, _ in blocks}
    if taken:
        raise UltraRefinerError(
            f"a dataset is called '{taken.pop()}', the name of a summary over datasets. Rename it."
        )
    write_rows(
        scores, SCORE_COLUMNS, ({name: plain(row[name]) for name in SCORE_COLUMNS} for row in rows)
    )
    traits = find_traits(rows, read_elsewhere(overlaps))
    made = {key: _summarise(*key, block, traits, bootstrap, seed) for key, block in blocks.items()}
    lines = [line for part in made.values() for line in part.lines]
    folds = [key for key in blocks if key[1] == "folds"]
    shared = set.intersection(*(set(blocks[key]) for key in folds)) if len(folds) > 1 else set()
    if shared:
        metrics = set.intersection(*(made[key].metrics for key in folds))
        joined = {
            who: [row for key in folds for row in blocks[key][who]]
            for who in blocks[folds[0]]
            if who in shared
        }
        pooled = _summarise(POOLED, "folds", joined, traits, bootstrap, seed)
        lines += [line for line in pooled.lines if line["metric"] in metrics]
        lines += _macro([made[key] for key in folds], joined)
    write_rows(
        summary,
        SUMMARY_COLUMNS,
        ({name: plain(line[name]) for name in SUMMARY_COLUMNS} for line in lines),
    )
    _log.info(
        "%d scores of %d datasets summarised", len(rows), len({dataset for dataset, _ in blocks})
    )


@dataclass(frozen=True)
class _Summary:
    """Summary of one evaluation of one dataset.

    Attributes:
        lines: Rows of the summary.
        samples: For each predictor the bootstrap means over all cases, (samples, metrics).
    """

    lines: list[Row]
    samples: dict[Predictor, np.ndarray]

    @property
    def overall(self) -> dict[tuple[str, str], Row]:
        """The lines over all cases, by method and metric."""
        return {
            (line["method"], line["metric"]): line
            for line in self.lines
            if line["subgroup"] == "all" and line["fold"] == "all"
        }

    @property
    def metrics(self) -> set[str]:
        """The metrics that some case has."""
        return {metric for _, metric in self.overall}


def _summarise(
    dataset: str, evaluation: str, block: Block, traits: Traits, bootstrap: int, seed: int
) -> _Summary:
    cases = next(iter(block.values()))
    # Groups of two datasets may bear the same name.
    groups = np.array([f"{row['dataset']}\x1f{row['group']}" for row in cases])
    values = np.stack([_measured(rows) for rows in block.values()], axis=1)
    predictors = list(block)
    facts = [of_method(rows) for rows in block.values()]
    found: list[tuple[tuple[int, int], list[Row]]] = []
    overall: dict[Predictor, np.ndarray] = {}
    for place, (subgroup, fold, mask) in enumerate(_views(evaluation, cases, traits)):
        # A model of one fold among those of others is shown over all cases only.
        wanted = [i for i, who in enumerate(predictors) if subgroup == "all" or who.fold is None]
        if not wanted:
            continue
        part = values[mask][:, wanted]
        low, high = np.full((2, *part.shape[1:]), np.nan)
        if fold is None:
            salt = item_seed(seed, "summary", dataset, evaluation, subgroup)
            samples = bootstrap_means(part, groups[mask], bootstrap, salt)
            low, high = percentile_interval(samples)
            if subgroup == "all":
                overall = {who: samples[:, i] for i, who in enumerate(predictors)}
        for j, i in enumerate(wanted):
            who = predictors[i]
            rows = [row for row, inside in zip(block[who], mask, strict=True) if inside]
            number = who.fold if fold is None else fold
            head = {
                "dataset": dataset,
                "evaluation": evaluation,
                "member": who.member,
                "method": who.method,
                **facts[i],
                "subgroup": subgroup,
                "fold": "all" if number is None else str(number),
                **failures(rows),
            }
            found.append(((i, place), _describe_all(head, part[:, j], low[j], high[j])))
    found.sort(key=lambda item: item[0])
    return _Summary([line for _, lines in found for line in lines], overall)


def _views(
    evaluation: str, cases: Sequence[Row], traits: Traits
) -> Iterator[tuple[str, int | None, np.ndarray]]:
    """Yield a subgroup, the only fold of its cases if it has but one, and which cases it has."""
    named = subgroups(cases, traits)
    name, everything = next(named)
    yield name, None, everything
    if evaluation == "folds":
        folds = np.array([row["fold"] for row in cases])
        for fold in np.unique(folds):
            yield name, int(fold), folds == fold
    for name, mask in named:
        yield name, None, mask


def _measured(rows: Sequence[Row]) -> np.ndarray:
    """Return float64 (cases, metrics): `SUMMARISED`, NaN where the policy leaves a case out."""
    nothing = [np.nan] * len(METRICS)
    return np.array(
        [
            [*nothing, float(row["empty_prediction"])]
            if row["empty_truth"]
            else [*(row[metric] for metric in METRICS), np.nan]
            for row in rows
        ]
    )


def of_method(rows: Sequence[Row]) -> Row:
    """Return what a method is; of cases of several datasets, what holds for all."""
    values = {name: {row[name] for row in rows} for name in _OF_METHOD}
    same = {name: found.pop() if len(found) == 1 else "" for name, found in values.items()}
    seen = {row["seen"] for row in rows}
    worst = next(word for word in ("yes", "unknown", "no") if word in seen)
    return same | {"seen": worst}


def failures(rows: Sequence[Row]) -> dict[str, int]:
    """Return on how many cases a lesion was missed, and on how many one was seen without any."""
    return {
        "misses": sum(row["empty_prediction"] and not row["empty_truth"] for row in rows),
        "false_positives": sum(row["empty_truth"] and not row["empty_prediction"] for row in rows),
    }


def _describe_all(head: Row, values: np.ndarray, low: np.ndarray, high: np.ndarray) -> list[Row]:
    """Return a line for each metric that a case has."""
    lines = []
    for i, metric in enumerate(SUMMARISED):
        known = values[:, i][~np.isnan(values[:, i])]
        if len(known):
            lines.append({**head, "metric": metric, **_describe(known, low[i], high[i])})
    return lines


def _describe(values: np.ndarray, low: float, high: float) -> Row:
    return {
        "n": len(values),
        "mean": float(values.mean()),
        "std": float(values.std(ddof=1)) if len(values) > 1 else None,
        "median": float(np.median(values)),
        "ci_low": float(low),
        "ci_high": float(high),
    }


def _macro(parts: Sequence[_Summary], joined: Mapping[Predictor, list[Row]]) -> list[Row]:
    """Return the lines that give each dataset the same weight."""
    found = [part.overall for part in parts]
    lines = []
    for who, rows in joined.items():
        low, high = percentile_interval(np.mean([part.samples[who] for part in parts], axis=0))
        for i, metric in enumerate(SUMMARISED):
            if all((who.method, metric) in overall for overall in found):
                mine = [overall[who.method, metric] for overall in found]
                lines.append(
                    {
                        **mine[0],
                        "dataset": MACRO,
                        **of_method(rows),
                        **_describe(np.array([line["mean"] for line in mine]), low[i], high[i]),
                        **failures(rows),
                    }
                )
    return lines
