"""The oracle gap: how much of what perfect prompts would gain a refiner gains without the truth."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ultrarefiner.errors import UltraRefinerError
from ultrarefiner.evaluation.comparisons import reference_of
from ultrarefiner.evaluation.scores import (
    Row,
    by_predictor,
    one_for_each_method,
    plain,
    read_scores,
)
from ultrarefiner.evaluation.statistics import bootstrap_means, percentile_interval
from ultrarefiner.io import item_seed, write_rows

GAP_COLUMNS = [
    *("dataset", "evaluation", "method", "oracle_method", "trained_on", "seen", "n"),
    *("dice_coarse", "dice_method", "dice_oracle", "gap", "closed", "closed_low", "closed_high"),
]
# An interval leaves out 2.5 % at either end; where more samples have no gap, an end is among them.
_MOST_WITHOUT_GAP = 0.025

_log = logging.getLogger(__name__)


def measure_oracle_gap(
    scores: str | Path,
    pairs: Sequence[Mapping[str, str]],
    reference: str,
    output: str | Path,
    bootstrap: int = 2000,
    seed: int = 0,
) -> None:
    """Measure the share of the oracle gap that each refined method closes.

    With mean Dice over the same images with a lesion, misses counted as 0:
    ``closed = (method - coarse) / (oracle - coarse)``. It is 0 for a method as good as the coarse
    masks that prompt it, 1 for one as good as the same refiner prompted from the truth, negative
    for one that makes the masks worse. The oracle is an upper bound of this refiner with this
    prompt, not a result, and not a bound of what is possible.

    ``closed_low, closed_high`` are a 95 % percentile bootstrap over groups, all three means from
    the same samples. There is no interval with fewer than two groups, or where more than 2.5 % of
    the samples have no gap, for then a ratio to it has no bound; and no ``closed`` where the
    oracle is not better than the coarse masks.

    Args:
        scores: The study's score table.
        pairs: Dicts of ``method`` and ``oracle_method``: the same refiner and prompt, from the
            coarse masks and from the truth.
        reference: The coarse method that gives the prompts; ``{reference}@all`` for methods
            ``...@all``.
        output: Table to write: `GAP_COLUMNS`, a row for each pair, dataset and evaluation; for
            ``holdout`` and ``unseen`` with the ensemble ``mean``.
        bootstrap: Samples of each interval.
        seed: Seed of the samples.

    Raises:
        UltraRefinerError: A pair is not in the table, or its methods or their reference are not
            scored on the same datasets.
    """
    rows, measured = [], set()
    for (dataset, evaluation), block in by_predictor(read_scores(scores)).items():
        found = {
            method: [row for row in cases if not row["empty_truth"]]
            for method, cases in one_for_each_method(block).items()
        }
        for method, oracle in sorted((pair["method"], pair["oracle_method"]) for pair in pairs):
            if method not in found and oracle not in found:
                continue
            wanted = reference_of(method, reference), method, oracle
            absent = [name for name in wanted if name not in found]
            if absent:
                raise UltraRefinerError(
                    f"{scores}: the oracle gap of {method} on {dataset} ({evaluation}) needs "
                    f"{' and '.join(absent)} on the same cases. Score {' and '.join(absent)} too."
                )
            measured.add((method, oracle))
            if found[method]:
                salt = item_seed(seed, "oracle gap", dataset, evaluation, method, oracle)
                head = {"dataset": dataset, "evaluation": evaluation, "oracle_method": oracle}
                rows.append(head | _gap([found[name] for name in wanted], bootstrap, salt))
    unknown = [pair for pair in pairs if (pair["method"], pair["oracle_method"]) not in measured]
    if unknown:
        raise UltraRefinerError(
            f"{scores} has no rows of {unknown[0]['method']} or {unknown[0]['oracle_method']}, "
            "whose oracle gap is asked for. Score them, or leave the pair out."
        )
    write_rows(
        output, GAP_COLUMNS, ({name: plain(row[name]) for name in GAP_COLUMNS} for row in rows)
    )
    _log.info("%d oracle gaps measured", len(rows))


def _gap(methods: Sequence[Sequence[Row]], bootstrap: int, seed: int) -> Row:
    """Return the cells of a row from the rows of the coarse method, the refined and the oracle."""
    values = np.array([[row["dice"] for row in rows] for rows in methods]).T  # (cases, 3)
    coarse, method, oracle = (float(mean) for mean in values.mean(axis=0))
    closed = low = high = float("nan")
    if oracle > coarse:
        closed = (method - coarse) / (oracle - coarse)
        means = bootstrap_means(values, [row["group"] for row in methods[1]], bootstrap, seed)
        gaps = means[:, 2] - means[:, 0]
        has_gap = gaps > 0
        if np.mean(~has_gap) <= _MOST_WITHOUT_GAP:
            ratios = (means[has_gap, 1] - means[has_gap, 0]) / gaps[has_gap]
            low, high = (float(end) for end in percentile_interval(ratios))
    return {
        **{name: methods[1][0][name] for name in ("method", "trained_on", "seen")},
        "n": len(values),
        "dice_coarse": coarse,
        "dice_method": method,
        "dice_oracle": oracle,
        "gap": oracle - method,
        "closed": closed,
        "closed_low": low,
        "closed_high": high,
    }
