"""Guards: methods are compared case by case, on all cases, with tests and intervals one can recompute."""

import numpy as np
import pytest
from scipy import stats
from score_tables import column, compare, make_tables, pick, summarise

from ultrarefiner.errors import UltraRefinerError
from ultrarefiner.evaluation.scores import SCORE_COLUMNS
from ultrarefiner.evaluation.statistics import holm
from ultrarefiner.evaluation.summary import COMPARISON_COLUMNS
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
        rows = [row | {"oracle": "false"} for row in read_rows(table)]
        write_rows(table, SCORE_COLUMNS, rows)
    summarise(tmp_path, plain_tables)
    rows = compare(tmp_path, reference="grabcut-mask")
    for metric in ("dice", "iou", "hd95_px"):
        family = [row for row in rows if row["metric"] == metric]
        adjusted = holm([float(row["wilcoxon_p"]) for row in family])
        assert [float(row["holm_p"]) for row in family] == pytest.approx(list(adjusted))
        assert any(row["holm_p"] != row["wilcoxon_p"] for row in family)


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
