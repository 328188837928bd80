"""How sure a mean or a difference is: group bootstrap, paired tests, Holm's correction.

Images of one patient are alike, so intervals resample groups (patients, scans, near-duplicate
clusters), never single images.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.stats import rankdata, wilcoxon

# With 5 pairs the smallest two-sided p of the signed-rank test is 2 / 2**5 > 0.05.
MIN_PAIRS = 6
# Entries of the (resamples, groups) matrix made at once: 32 MB.
_CHUNK = 1 << 22


def _group_rows(values: np.ndarray, groups: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return the values sorted by group and value, and each one's group number.

    Sums of sorted numbers do not depend on the order in which they came.
    """
    numbers = np.unique(np.asarray(groups), return_inverse=True)[1].reshape(-1)
    order = np.lexsort((*values.T, numbers))
    return values[order], numbers[order]


def bootstrap_means(
    values: np.ndarray, groups: Sequence[str], n: int = 2000, seed: int = 0
) -> np.ndarray:
    """Return the means of ``n`` samples of whole groups, drawn with replacement.

    Args:
        values: Float (N,) or (N, K), a row for each case; NaN is left out of its column.
        groups: Group of each case, (N,).
        n: Samples.
        seed: Seed of the draws; all columns share them.

    Returns:
        Float (n,) or (n, K); NaN where a sample has no value, and everywhere when there are fewer
        than two groups, for then nothing varies.

    Raises:
        ValueError: The numbers of values and groups differ, or there are none.
    """
    values = np.asarray(values, dtype=np.float64)
    if not len(values) or len(values) != len(groups):
        raise ValueError(f"{len(values)} values and {len(groups)} groups; give one group a value")
    table, numbers = _group_rows(values.reshape(len(values), -1), groups)
    size, columns = int(numbers[-1]) + 1, table.shape[1]
    if size < 2:
        return np.full((n, *values.shape[1:]), np.nan)
    sums, counts = np.zeros((size, columns)), np.zeros((size, columns))
    np.add.at(sums, numbers, np.nan_to_num(table, nan=0.0))
    np.add.at(counts, numbers, ~np.isnan(table))
    # Most columns miss the same cases.
    counts, alike = np.unique(counts, axis=1, return_inverse=True)
    rng = np.random.default_rng(seed)
    means = []
    step = max(1, _CHUNK // size)
    for first in range(0, n, step):
        rows = min(step, n - first)
        draws = rng.integers(0, size, (rows, size)) + size * np.arange(rows)[:, None]
        times = np.bincount(draws.ravel(), minlength=rows * size).reshape(rows, size).astype(float)
        # einsum, not matmul: the order of a BLAS sum depends on the number of threads.
        total = np.einsum("rg,gk->rk", times, counts)[:, alike.reshape(-1)]
        with np.errstate(invalid="ignore"):
            means.append(np.einsum("rg,gk->rk", times, sums) / total)
    return np.concatenate(means).reshape(n, *values.shape[1:])


def percentile_interval(
    samples: np.ndarray, confidence: float = 0.95
) -> tuple[np.ndarray, np.ndarray]:
    """Return the percentile interval of bootstrap samples (n, ...) along the first axis.

    NaN samples are left out; a column of NaN alone gives NaN.
    """
    outside = 50 * (1 - confidence)
    flat = samples.reshape(len(samples), -1)
    ends = np.full((2, flat.shape[1]), np.nan)
    known = ~np.isnan(flat).all(axis=0)
    if known.any():
        ends[:, known] = np.nanpercentile(flat[:, known], [outside, 100 - outside], axis=0)
    low, high = ends.reshape(2, *samples.shape[1:])
    return low, high


def holm(p_values: Sequence[float]) -> np.ndarray:
    """Return p values adjusted by Holm's step-down method; NaN is no test and stays NaN."""
    p = np.asarray(p_values, dtype=np.float64)
    adjusted = np.full(p.shape, np.nan)
    order = [i for i in np.argsort(p, kind="stable") if not np.isnan(p[i])]
    largest = 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p[i]))
        adjusted[i] = largest
    return adjusted


def paired_wilcoxon(differences: np.ndarray) -> float:
    """Return the two-sided p of Wilcoxon's signed-rank test of paired differences.

    Differences of exactly 0 are left out, as Wilcoxon did; 1 when nothing else remains.

    Returns:
        The p value; NaN below `MIN_PAIRS` pairs, which could not reach 0.05 whatever they are.
    """
    differences = np.asarray(differences, dtype=np.float64)
    if len(differences) < MIN_PAIRS:
        return float("nan")
    changed = np.sort(differences[differences != 0])
    return float(wilcoxon(changed).pvalue) if len(changed) else 1.0


def rank_biserial(differences: np.ndarray) -> float:
    """Return the matched-pairs rank-biserial correlation (Kerby 2014), in [-1, 1].

    The share of rank sum for positive differences minus that for negative ones; zeros are left
    out, and 0 when nothing else remains.
    """
    differences = np.asarray(differences, dtype=np.float64)
    changed = differences[differences != 0]
    if not len(changed):
        return 0.0
    ranks = rankdata(np.abs(changed))
    return float((ranks * np.sign(changed)).sum() / ranks.sum())


def cohens_dz(differences: np.ndarray) -> float:
    """Return Cohen's dz (Cohen 1988, Lakens 2013): mean of paired differences / their std (n - 1).

    Returns:
        A number of standard deviations, of the sign of the mean; 0 when nothing differs; NaN for
        fewer than two pairs, or where all differ by the same, for then it has no bound.
    """
    differences = np.sort(np.asarray(differences, dtype=np.float64))
    if len(differences) < 2:
        return float("nan")
    mean, std = differences.mean(), differences.std(ddof=1)
    # Equal differences may have a std of rounding errors.
    if std <= 1e-12 * abs(mean):
        return 0.0 if mean == 0 else float("nan")
    return float(mean / std)


def group_means(values: np.ndarray, groups: Sequence[str]) -> np.ndarray:
    """Return the mean of the values (N,) of each group, groups sorted."""
    table, numbers = _group_rows(np.asarray(values, dtype=np.float64)[:, None], groups)
    return np.bincount(numbers, weights=table[:, 0]) / np.bincount(numbers)
