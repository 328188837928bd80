"""Guards: intervals resample groups, tests agree with scipy, and the order of cases changes nothing."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats
from score_tables import group_bootstrap

from ultrarefiner.evaluation.statistics import (
    bootstrap_means,
    cohens_dz,
    group_means,
    holm,
    paired_wilcoxon,
    percentile_interval,
    rank_biserial,
)


def interval(values, groups, n=2000, seed=0):
    return [float(end) for end in percentile_interval(bootstrap_means(values, groups, n, seed))]


def test_interval_holds_95_percent_of_the_samples():
    samples = np.random.default_rng(1).permutation(np.arange(1001.0))
    low, high = percentile_interval(np.stack([samples, -samples], axis=1))
    assert low.tolist() == pytest.approx([25.0, -975.0])
    assert high.tolist() == pytest.approx([975.0, -25.0])


def test_interval_of_single_images_is_scipys():
    values = np.random.default_rng(0).normal(0.8, 0.1, 60)
    low, high = interval(values, [str(i) for i in range(60)], n=20000, seed=1)
    theirs = stats.bootstrap(
        (values,), np.mean, n_resamples=20000, method="percentile", rng=2
    ).confidence_interval
    assert low == pytest.approx(theirs.low, abs=0.001)
    assert high == pytest.approx(theirs.high, abs=0.001)


def test_samples_are_all_the_samples_of_groups():
    # Two groups of 1 and 3 cases: a sample is one of 0, (0 + 3) / 4 and 1.
    values, groups = [0.0, 1.0, 1.0, 1.0], ["a", "b", "b", "b"]
    samples = bootstrap_means(np.array(values), groups, n=4000, seed=0)
    found, counts = np.unique(samples, return_counts=True)
    assert found.tolist() == [0.0, 0.75, 1.0]
    np.testing.assert_allclose(counts / 4000, [0.25, 0.5, 0.25], atol=0.03)


def test_alike_cases_of_a_group_do_not_narrow_the_interval():
    patients = np.random.default_rng(3).normal(0.7, 0.2, 30)
    once = interval(patients, [str(i) for i in range(30)], n=5000)
    many = interval(np.repeat(patients, 5), [str(i // 5) for i in range(150)], n=5000)
    assert many == pytest.approx(once, abs=1e-12)
    ignoring = interval(np.repeat(patients, 5), [str(i) for i in range(150)])
    assert np.diff(ignoring) < 0.6 * np.diff(many)


def test_order_of_cases_does_not_change_a_bit():
    rng = np.random.default_rng(4)
    # Many cases in a group: their sum depends on the order of adding in its last bits.
    values, groups = rng.random(400), rng.integers(0, 8, 400).astype(str)
    expected = interval(values, groups, n=300, seed=7)
    for _ in range(5):
        order = rng.permutation(400)
        assert interval(values[order], groups[order], n=300, seed=7) == expected
    assert interval(values, groups, n=300, seed=8) != expected


def test_samples_agree_with_joining_the_drawn_groups():
    rng = np.random.default_rng(5)
    values, groups = rng.random(60), rng.integers(0, 30, 60).astype(str)
    slow = group_bootstrap(values, groups, n=4000, seed=2)
    assert interval(values, groups, n=4000, seed=1) == pytest.approx(slow, abs=0.01)


def test_columns_are_independent_and_leave_out_what_is_unknown():
    rng = np.random.default_rng(6)
    values, groups = rng.random((40, 3)), rng.integers(0, 12, 40).astype(str)
    values[::4, 1] = np.nan
    values[:, 2] = np.nan
    samples = bootstrap_means(values, groups, n=500, seed=3)
    assert samples.shape == (500, 3)
    np.testing.assert_allclose(samples[:, 0], bootstrap_means(values[:, 0], groups, 500, 3))
    assert np.isnan(samples[:, 2]).all()
    low, high = percentile_interval(samples)
    known = ~np.isnan(values[:, 1])
    assert low[1] < np.mean(values[known, 1]) < high[1]
    assert np.isnan([low[2], high[2]]).all()


def test_chunks_do_not_matter(monkeypatch):
    values, groups = np.arange(20.0), [str(i % 7) for i in range(20)]
    whole = bootstrap_means(values, groups, n=100, seed=0)
    monkeypatch.setattr("ultrarefiner.evaluation.statistics._CHUNK", 7 * 10)
    np.testing.assert_array_equal(bootstrap_means(values, groups, n=100, seed=0), whole)


def test_one_group_has_no_interval():
    assert all(math.isnan(end) for end in interval([0.1, 0.9], ["a", "a"]))


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="3 values and 2 groups"):
        bootstrap_means([1.0, 2.0, 3.0], ["a", "b"])
    with pytest.raises(ValueError, match="0 values"):
        bootstrap_means([], [])


def test_holm_by_hand():
    # Sorted 0.01, 0.02, 0.03, 0.04: times 4, 3, 2, 1, never below the one before.
    np.testing.assert_allclose(holm([0.04, 0.01, 0.03, 0.02]), [0.06, 0.04, 0.06, 0.06])
    np.testing.assert_allclose(holm([0.5, 0.9]), [1.0, 1.0])
    np.testing.assert_allclose(holm([0.03]), [0.03])
    assert holm([]).size == 0


def test_holm_leaves_out_what_was_not_tested():
    np.testing.assert_allclose(holm([math.nan, 0.01, 0.04]), [math.nan, 0.02, 0.04])


def test_holm_rejects_what_the_step_down_procedure_rejects():
    rng = np.random.default_rng(0)
    for _ in range(50):
        p = rng.random(6) ** 3
        rejected = set()
        for rank, i in enumerate(np.argsort(p)):
            if p[i] > 0.05 / (6 - rank):
                break
            rejected.add(i)
        assert set(np.flatnonzero(holm(p) <= 0.05)) == rejected


def test_wilcoxon_by_all_signs():
    differences = np.array([0.3, -0.1, 0.5, 0.7, 0.2, 0.9, -0.4])
    ranks = stats.rankdata(np.abs(differences))
    least = min(ranks[differences > 0].sum(), ranks[differences < 0].sum())
    sums = [np.dot(signs, ranks) for signs in itertools.product((0, 1), repeat=7)]
    assert paired_wilcoxon(differences) == pytest.approx(2 * np.mean(np.array(sums) <= least))


def test_wilcoxon_is_scipys_without_zeros():
    rng = np.random.default_rng(2)
    one, two = rng.random(80), rng.random(80)
    one[:20] = two[:20]
    assert paired_wilcoxon(one - two) == stats.wilcoxon((one - two)[20:]).pvalue
    order = rng.permutation(80)
    assert paired_wilcoxon((one - two)[order]) == paired_wilcoxon(one - two)


def test_wilcoxon_of_equal_or_of_few():
    assert paired_wilcoxon(np.zeros(10)) == 1.0
    assert math.isnan(paired_wilcoxon(np.ones(5)))
    assert paired_wilcoxon(np.array([0.1, 0, 0, 0, 0, 0])) == 1.0


def test_rank_biserial_by_hand():
    # Ranks 1, 2, 3 for 0.1, -0.2, 0.3: (1 + 3 - 2) / 6.
    assert rank_biserial(np.array([0.1, -0.2, 0.0, 0.3])) == pytest.approx(2 / 6)
    assert rank_biserial(np.array([1.0, 2.0])) == 1.0
    assert rank_biserial(np.array([-1.0, -2.0])) == -1.0
    assert rank_biserial(np.zeros(4)) == 0.0


def test_cohens_dz_by_hand():
    # Mean 2.4; squared deviations 1.96, 0.36, 0.16, 0.16, 2.56, together 5.2 = 4 * 1.3.
    assert cohens_dz(np.array([1.0, 3.0, 2.0, 2.0, 4.0])) == pytest.approx(2.4 / math.sqrt(1.3))
    signs = np.array([1, -1])[:, None] * [0.2, -0.2, 0.4]
    assert cohens_dz(signs[0]) == pytest.approx(-cohens_dz(signs[1]))
    # The t statistic is dz times the root of n.
    differences = np.random.default_rng(1).normal(0.1, 1, 30)
    t = stats.ttest_1samp(differences, 0).statistic
    assert cohens_dz(differences) == pytest.approx(t / math.sqrt(30))


def test_cohens_dz_without_spread():
    assert cohens_dz(np.zeros(4)) == 0.0
    assert math.isnan(cohens_dz(np.full(7, 0.1)))
    assert math.isnan(cohens_dz(np.array([0.1])))
    assert math.isnan(cohens_dz(0.3 + np.arange(5) / 10 - np.arange(5) / 10))


def test_group_means():
    assert group_means([1.0, 5.0, 3.0], ["b", "a", "b"]).tolist() == [5.0, 2.0]
