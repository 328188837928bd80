"""Methods compared with their reference, case by case: differences, tests, effect sizes."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from ultrarefiner.errors import UltraRefinerError
from ultrarefiner.evaluation.metrics import METRICS
from ultrarefiner.evaluation.scores import (
    Row,
    by_predictor,
    one_for_each_method,
    plain,
    read_scores,
)
from ultrarefiner.evaluation.statistics import (
    bootstrap_means,
    cohens_dz,
    group_means,
    holm,
    paired_wilcoxon,
    percentile_interval,
    rank_biserial,
)
from ultrarefiner.io import item_seed, write_rows
from ultrarefiner.registry import unknown_name

COMPARED = ("dice", "iou", "hd95_px")
COMPARISON_COLUMNS = [
    *("dataset", "evaluation", "member", "method", "reference", "trained_on", "oracle", "seen"),
    *("metric", "n", "mean_method", "mean_reference", "mean_difference", "ci_low", "ci_high"),
    *("wilcoxon_p", "holm_p", "better", "worse", "equal", "rank_biserial", "cohens_dz"),
    *("groups", "group_wilcoxon_p", "group_holm_p"),
]

_log = logging.getLogger(__name__)


def compare_methods(
    scores: str | Path,
    reference: str,
    comparisons: str | Path,
    bootstrap: int = 2000,
    seed: int = 0,
) -> None:
    """Compare each method with its reference, case by case, within each dataset and evaluation.

    The reference of a method is the named one with models of the same training set:
    ``transunet@all`` for ``ultrasam-box@all``. Where there are several training sets, their
    references are compared with the first: the one trained on the dataset itself, else the first
    by name. In ``holdout`` and ``unseen`` the ensemble ``mean`` stands for a method; where there is
    no ensemble and several models, nothing is compared.

    Differences are method minus reference, over the images with a lesion. A miss counts with its
    policy value (0, or the image diagonal), so all methods have the same n. Columns of the table
    beyond the plain ones:

    - ``ci_low, ci_high``: 95 % percentile bootstrap over groups of the mean difference;
    - ``wilcoxon_p``: signed-rank test over cases; ``holm_p``: the same, corrected within a family:
      all comparisons of the study in one metric, over datasets, evaluations and methods, but those
      of oracles. Oracle methods are an upper bound, not a claim; they form a family of their own;
    - ``better, worse, equal``: cases on which the method is better (higher for Dice, lower for a
      distance), worse, equal;
    - ``rank_biserial``: effect size over cases, of the sign of the difference;
    - ``cohens_dz``: effect size over the mean differences of the groups, which are independent:
      their mean in standard deviations; of the sign of the difference;
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
    blocks = by_predictor(read_scores(scores))
    known = {who.method for block in blocks.values() for who in block}
    if reference not in {base_of(method) for method in known}:
        raise UltraRefinerError(f"{scores}: {unknown_name('reference', reference, sorted(known))}")
    rows: list[Row] = []
    for (dataset, evaluation), block in blocks.items():
        found = {
            method: [row for row in found if not row["empty_truth"]]
            for method, found in one_for_each_method(block).items()
        }
        if not any(found.values()):
            continue
        for base, others in _families(scores, reference, found):
            salt = item_seed(seed, "compare", dataset, evaluation, base)
            rows += compare_with(base, others, found, bootstrap, salt)
    for metric in COMPARED:
        for oracle in (False, True):
            correct_by_holm(
                [row for row in rows if row["metric"] == metric and row["oracle"] is oracle]
            )
    write_rows(
        comparisons,
        COMPARISON_COLUMNS,
        ({name: plain(row[name]) for name in COMPARISON_COLUMNS} for row in rows),
    )
    _log.info("%d comparisons in %d metrics", len(rows) // len(COMPARED), len(COMPARED))


def base_of(method: str) -> str:
    """Return a method's name without its training set."""
    return method.partition("@")[0]


def reference_of(method: str, reference: str) -> str:
    """Return the reference with models of the same training set as a method's."""
    return reference + method.removeprefix(base_of(method))


def _families(
    scores: str | Path, reference: str, methods: Mapping[str, list[Row]]
) -> Iterator[tuple[str, list[str]]]:
    """Yield each reference of a dataset and evaluation, with the methods to compare with it."""
    others: dict[str, list[str]] = {}
    for method in methods:
        base = reference_of(method, reference)
        if base not in methods:
            raise UltraRefinerError(
                f"{scores}: {method} has no reference {base} on the same cases. Score {base} there "
                "too, or leave the method out."
            )
        others.setdefault(base, [])
        if method != base:
            others[base].append(method)
    # No training set sorts before any.
    first, *more = sorted(others)
    others[first] += more
    yield from ((base, sorted(others[base])) for base in sorted(others) if others[base])


def compare_with(
    reference: str,
    others: Sequence[str],
    cases: Mapping[str, list[Row]],
    bootstrap: int,
    seed: int,
) -> list[Row]:
    """Return the rows of the methods that have one reference, but for the corrected p values.

    Args:
        reference: The method to compare with.
        others: The methods that are compared with it.
        cases: The rows of each of them, all of images with a lesion and in the same order.
        bootstrap: Samples of each interval.
        seed: Seed of the samples.

    Returns:
        Rows of `COMPARISON_COLUMNS`, for each method one in each of `COMPARED`.
    """
    groups = [row["group"] for row in cases[reference]]
    values = {
        method: np.array([[row[metric] for metric in COMPARED] for row in cases[method]])
        for method in (reference, *others)
    }  # (cases, metrics) each
    differences = np.stack([values[method] - values[reference] for method in others], axis=1)
    low, high = percentile_interval(bootstrap_means(differences, groups, bootstrap, seed))
    rows: list[Row] = []
    for i, method in enumerate(others):
        for j, metric in enumerate(COMPARED):
            difference = differences[:, i, j]
            gain = difference if METRICS[metric].better == "higher" else -difference
            by_group = group_means(difference, groups)
            same = ("dataset", "evaluation", "member", "trained_on", "oracle", "seen")
            rows.append(
                {
                    **{name: cases[method][0][name] for name in same},
                    "method": method,
                    "reference": reference,
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
                    "cohens_dz": cohens_dz(by_group),
                    "groups": len(by_group),
                    "group_wilcoxon_p": paired_wilcoxon(by_group),
                }
            )
    return rows


def correct_by_holm(family: Sequence[Row]) -> None:
    """Add to the rows of a family their p values corrected by Holm over it."""
    for raw, corrected in (("wilcoxon_p", "holm_p"), ("group_wilcoxon_p", "group_holm_p")):
        for row, p in zip(family, holm([row[raw] for row in family]), strict=True):
            row[corrected] = float(p)
