"""Guards: methods are compared case by case, on all cases, with tests and intervals one can recompute."""

import numpy as np
import pytest
from scipy import stats
from score_tables import (
    column,
    compare,
    edit,
    make_held_back,
    make_tables,
    pick,
    summarise,
)

from ultrarefiner.errors import UltraRefinerError
from ultrarefiner.evaluation.comparisons import COMPARISON_COLUMNS
from ultrarefiner.evaluation.scores import SCORE_COLUMNS
from ultrarefiner.evaluation.statistics import holm
from ultrarefiner.io import read_rows, write_rows


def test_unknown_reference_is_refused_with_the_nearest(tmp_path):
    summarise(tmp_path, make_tables(tmp_path))
    with pytest.raises(UltraRefinerError, match=r"Did you mean 'transunet'"):
        compare(tmp_path, reference="transnet")


def test_comparison_is_case_by_case(tmp_path):
    scores, _ = summarise(tmp_path, make_tables(tmp_path))
    rows = compare(tmp_path)
    assert len(rows) == 2 * 3
    for metric in ("dice", "iou", "hd95_px"):
        row = pick(rows, method="grabcut-mask", metric=metric)
        mine = column(scores, metric, method="grabcut-mask")
        base = column(scores, metric, method="transunet")
        difference = mine - base
        assert (row["n"], row["groups"]) == ("12", "6")
        assert float(row["mean_method"]) == pytest.approx(mine.mean())
        assert float(row["mean_reference"]) == pytest.approx(base.mean())
        assert float(row["mean_difference"]) == pytest.approx(difference.mean())
        assert float(row["ci_low"]) <= difference.mean() <= float(row["ci_high"])
        assert float(row["wilcoxon_p"]) == pytest.approx(
            stats.wilcoxon(difference[difference != 0]).pvalue
        )
        better = difference > 0 if metric != "hd95_px" else difference < 0
        assert int(row["better"]) == better.sum()
        assert int(row["equal"]) == (difference == 0).sum()
        assert sum(int(row[name]) for name in ("better", "worse", "equal")) == 12
        assert -1 <= float(row["rank_biserial"]) <= 1


def test_comparison_of_groups_takes_the_mean_of_each(tmp_path):
    scores, _ = summarise(tmp_path, make_tables(tmp_path))
    row = pick(compare(tmp_path), method="grabcut-mask", metric="dice")
    groups = {}
    for case in sorted({row["case"] for row in scores}):
        mine = pick(scores, method="grabcut-mask", case=case)
        base = pick(scores, method="transunet", case=case)
        groups.setdefault(mine["group"], []).append(float(mine["dice"]) - float(base["dice"]))
    expected = stats.wilcoxon([np.mean(found) for found in groups.values()]).pvalue
    assert float(row["group_wilcoxon_p"]) == pytest.approx(expected)


def test_the_test_over_groups_is_corrected_within_the_same_family(tmp_path):
    summarise(tmp_path, make_tables(tmp_path))
    rows = compare(tmp_path, reference="grabcut-oracle_box")
    rows = [row for row in rows if row["metric"] == "dice"]
    assert len(rows) == 2
    plain = [float(row["group_wilcoxon_p"]) for row in rows]
    assert [float(row["group_holm_p"]) for row in rows] == pytest.approx(list(holm(plain)))
    assert [row["group_holm_p"] for row in rows] != [row["holm_p"] for row in rows]


def test_the_seed_of_the_report_reaches_the_intervals(tmp_path):
    summarise(tmp_path, make_tables(tmp_path))
    ends = {
        pick(compare(tmp_path, seed=seed), method="grabcut-mask", metric="dice")["ci_low"]
        for seed in (0, 0, 1)
    }
    assert len(ends) == 2


def test_interval_of_the_difference_is_paired(tmp_path):
    # The method is better by exactly 1/8 on each case, though the cases differ widely.
    tables = make_tables(tmp_path, methods=("transunet", "grabcut-mask"))
    for i, table in enumerate(tables):
        rows = read_rows(table)
        for j, row in enumerate(rows):
            row["dice"] = repr(j / 8 + (0.125 if i >= 2 else 0.0))
        write_rows(table, SCORE_COLUMNS, rows)
    summarise(tmp_path, tables)
    row = pick(compare(tmp_path), metric="dice")
    assert row["ci_low"] == row["ci_high"] == row["mean_difference"] == "0.125"
    assert (row["better"], row["rank_biserial"]) == ("12", "1.0")


def test_oracle_methods_are_a_family_of_their_own(tmp_path):
    summarise(tmp_path, make_tables(tmp_path))
    rows = compare(tmp_path, reference="grabcut-mask")
    for row in rows:
        assert row["oracle"] == ("true" if row["method"] == "grabcut-oracle_box" else "false")
        # One method in each family: nothing to correct.
        assert row["holm_p"] == row["wilcoxon_p"]
    plain_tables = make_tables(tmp_path)
    for table in plain_tables:
        edit(table, lambda row: {"oracle": "false"})
    summarise(tmp_path, plain_tables)
    rows = compare(tmp_path, reference="grabcut-mask")
    for metric in ("dice", "iou", "hd95_px"):
        family = [row for row in rows if row["metric"] == metric]
        adjusted = holm([float(row["wilcoxon_p"]) for row in family])
        assert [float(row["holm_p"]) for row in family] == pytest.approx(list(adjusted))
        assert any(row["holm_p"] != row["wilcoxon_p"] for row in family)


def holm_by_hand(rows, name):
    """Return the corrected p of each row: times how many are left, never below the one before."""
    ranked = sorted(rows, key=lambda row: float(row[name]))
    found, least = {}, 0.0
    for rank, row in enumerate(ranked):
        least = max(least, min(1.0, (len(ranked) - rank) * float(row[name])))
        found[row["dataset"], row["evaluation"], row["method"], row["reference"]] = least
    return found


def test_family_of_a_metric_is_the_whole_study(tmp_path):
    tables = make_tables(tmp_path, "first", cases=14) + make_tables(tmp_path, "second", cases=16)
    tables += make_tables(
        tmp_path, "first", cases=14, methods=("transunet@all", "grabcut-mask@all")
    )
    tables += make_held_back(tmp_path, dataset="second", cases=range(20, 34))
    summarise(tmp_path, tables)
    rows = compare(tmp_path)
    for metric in ("dice", "iou", "hd95_px"):
        claims = [row for row in rows if (row["metric"], row["oracle"]) == (metric, "false")]
        assert len(claims) == 5
        for raw, corrected in (("wilcoxon_p", "holm_p"), ("group_wilcoxon_p", "group_holm_p")):
            expected = holm_by_hand(claims, raw)
            for row in claims:
                key = row["dataset"], row["evaluation"], row["method"], row["reference"]
                assert float(row[corrected]) == pytest.approx(expected[key])
            oracles = [row for row in rows if (row["metric"], row["oracle"]) == (metric, "true")]
            bounds = holm_by_hand(oracles, raw)
            assert {float(row[corrected]) for row in oracles} == set(bounds.values())


def test_reference_is_of_the_same_training_set(tmp_path):
    tables = make_tables(tmp_path, "own") + make_held_back(tmp_path, dataset="own")
    union = ("transunet@all", "grabcut-mask@all", "grabcut-oracle_box@all")
    tables += make_tables(tmp_path, "own", methods=union)
    cross = ("transunet@zoo", "grabcut-mask@zoo", "transunet@all", "grabcut-mask@all")
    tables += make_held_back(tmp_path, "unseen", "third", methods=cross)
    summarise(tmp_path, tables)
    rows = [row for row in compare(tmp_path) if row["metric"] == "dice"]
    found = {(row["dataset"], row["evaluation"], row["method"], row["reference"]) for row in rows}
    assert found == {
        ("own", "folds", "grabcut-mask", "transunet"),
        ("own", "folds", "grabcut-oracle_box", "transunet"),
        ("own", "folds", "transunet@all", "transunet"),
        ("own", "folds", "grabcut-mask@all", "transunet@all"),
        ("own", "folds", "grabcut-oracle_box@all", "transunet@all"),
        ("own", "holdout", "grabcut-mask", "transunet"),
        ("own", "holdout", "grabcut-oracle_box", "transunet"),
        ("third", "unseen", "grabcut-mask@all", "transunet@all"),
        ("third", "unseen", "transunet@zoo", "transunet@all"),
        ("third", "unseen", "grabcut-mask@zoo", "transunet@zoo"),
    }
    assert len(found) == len(rows)
    held = pick(rows, evaluation="holdout", method="grabcut-mask")
    scores = [row for row in read_rows(tmp_path / "scores.csv") if row["member"] == "mean"]
    means = [
        column(scores, "dice", dataset="own", method=name).mean()
        for name in ("grabcut-mask", "transunet")
    ]
    assert float(held["mean_method"]) == pytest.approx(means[0])
    assert float(held["mean_reference"]) == pytest.approx(means[1])
    assert (held["member"], held["trained_on"], held["seen"]) == ("mean", "own", "yes")
    other = pick(rows, method="grabcut-mask@all", evaluation="folds")
    assert (other["member"], other["trained_on"]) == ("single", "all")


def test_method_without_its_reference_is_refused(tmp_path):
    tables = make_tables(tmp_path) + make_tables(tmp_path, methods=["grabcut-mask@all"])
    summarise(tmp_path, tables)
    with pytest.raises(UltraRefinerError, match="grabcut-mask@all has no reference transunet@all"):
        compare(tmp_path)


def test_models_of_several_folds_without_an_ensemble_are_not_compared(tmp_path):
    several = make_held_back(tmp_path, members=("fold0", "fold1", "vote"))
    summarise(tmp_path, several)
    assert compare(tmp_path) == []
    summarise(tmp_path, several[::3])
    assert {row["member"] for row in compare(tmp_path)} == {"single"}


def test_only_images_with_a_lesion_are_compared(tmp_path):
    scores, _ = summarise(tmp_path, make_tables(tmp_path, empty=(4, 7)))
    row = pick(compare(tmp_path), method="grabcut-mask", metric="dice")
    lesions = [row for row in scores if row["empty_truth"] == "false"]
    assert row["n"] == "10"
    assert float(row["mean_reference"]) == column(lesions, "dice", method="transunet").mean()
    assert sum(int(row[name]) for name in ("better", "worse", "equal")) == 10
    summarise(tmp_path, make_tables(tmp_path, empty=range(12)))
    assert compare(tmp_path) == []


def test_effect_sizes_by_hand(tmp_path):
    tables = make_tables(tmp_path, cases=6, folds=1, methods=("transunet", "grabcut-mask"))
    # Groups of two: their mean differences are 0.15, 0.25 and -0.05.
    gains = [0.1, 0.2, 0.3, 0.2, -0.05, -0.05]
    edit(tables[0], lambda row: {"dice": "0.5"})
    edit(tables[1], lambda row: {"dice": repr(0.5 + gains[int(row["case"][-1])])})
    summarise(tmp_path, tables)
    row = pick(compare(tmp_path), metric="dice")
    mean = 0.35 / 3
    spread = sum((gain - mean) ** 2 for gain in (0.15, 0.25, -0.05)) / 2
    assert float(row["cohens_dz"]) == pytest.approx(mean / spread**0.5)
    # Ranks of the sizes, rounding apart: 1.5 twice negative; 3, 4.5 twice, 6 positive; 21 in all.
    assert float(row["rank_biserial"]) == pytest.approx((18 - 3) / 21)


def test_too_few_cases_leave_cells_empty(tmp_path):
    summarise(tmp_path, make_tables(tmp_path, cases=2, folds=1))
    row = compare(tmp_path)[0]
    assert row["n"] == "2"
    assert row["wilcoxon_p"] == row["holm_p"] == row["ci_low"] == row["ci_high"] == ""
    assert row["mean_difference"] != ""


def test_one_method_has_nothing_to_compare(tmp_path):
    summarise(tmp_path, make_tables(tmp_path, methods=("transunet",)))
    assert compare(tmp_path) == []
    assert (tmp_path / "comparisons.csv").read_text().strip() == ",".join(COMPARISON_COLUMNS)
