"""Guards: summary and comparisons keep every case, count failures, and hold plain reproducible numbers."""

import math
import os
import random
import subprocess
import sys

import numpy as np
import pytest
from score_tables import METHODS, SIDE, column, compare, make_tables, pick, summarise

from ultrarefiner.errors import UltraRefinerError
from ultrarefiner.evaluation.metrics import METRICS
from ultrarefiner.evaluation.scores import SCORE_COLUMNS
from ultrarefiner.evaluation.summary import COMPARISON_COLUMNS, SUMMARY_COLUMNS, size_of
from ultrarefiner.io import read_rows, write_rows


def test_means_and_spread_are_of_all_cases(tmp_path):
    scores, summary = summarise(tmp_path, make_tables(tmp_path))
    assert len(scores) == 36
    for method in METHODS:
        for metric in ("dice", "hd95_px", "recall"):
            line = pick(summary, method=method, subgroup="all", fold="all", metric=metric)
            values = column(scores, metric, method=method)
            assert int(line["n"]) == 12
            assert float(line["mean"]) == pytest.approx(values.mean(), abs=1e-12)
            assert float(line["std"]) == pytest.approx(values.std(ddof=1), abs=1e-12)
            assert float(line["median"]) == pytest.approx(np.median(values), abs=1e-12)
            assert float(line["ci_low"]) < values.mean() < float(line["ci_high"])
    fold = pick(summary, method="transunet", subgroup="all", fold=1, metric="dice")
    assert float(fold["mean"]) == pytest.approx(
        column(scores, "dice", method="transunet", fold=1).mean()
    )
    assert (fold["n"], fold["ci_low"], fold["ci_high"]) == ("6", "", "")


def test_interval_resamples_groups(tmp_path):
    scores, summary = summarise(tmp_path, make_tables(tmp_path), bootstrap=4000)
    line = pick(summary, method="transunet", subgroup="all", fold="all", metric="dice")
    values = column(scores, "dice", method="transunet")
    groups = [row["group"] for row in scores if row["method"] == "transunet"]
    names = sorted(set(groups))
    parts = [values[[group == name for group in groups]] for name in names]
    rng = np.random.default_rng(99)
    drawn = rng.integers(0, len(parts), (4000, len(parts)))
    means = [np.concatenate([parts[i] for i in row]).mean() for row in drawn]
    expected = np.percentile(means, [2.5, 97.5])
    assert [float(line["ci_low"]), float(line["ci_high"])] == pytest.approx(expected, abs=0.01)


def test_a_miss_is_counted_and_makes_the_means_worse(tmp_path):
    scores, summary = summarise(tmp_path, make_tables(tmp_path))
    lines = {
        metric: pick(summary, method="grabcut-mask", subgroup="all", fold="all", metric=metric)
        for metric in ("dice", "hd95_px")
    }
    assert {line["misses"] for line in lines.values()} == {"1"}
    assert (
        pick(summary, method="transunet", subgroup="all", fold="all", metric="dice")["misses"]
        == "0"
    )
    missed = pick(scores, method="grabcut-mask", case="toy__03")
    assert float(missed["hd95_px"]) == pytest.approx(math.hypot(SIDE, SIDE))
    others = [row for row in scores if row["method"] == "grabcut-mask" and row is not missed]
    assert float(lines["hd95_px"]["mean"]) > column(others, "hd95_px").mean()
    assert float(lines["dice"]["mean"]) < column(others, "dice").mean()


def test_subgroups_share_out_the_cases(tmp_path):
    scores, summary = summarise(tmp_path, make_tables(tmp_path))
    lines = [row for row in summary if row["method"] == "transunet" and row["metric"] == "dice"]
    counts = {row["subgroup"]: int(row["n"]) for row in lines if row["fold"] == "all"}
    assert counts["label=benign"] == 8
    assert counts["label=malignant"] == 4
    sizes = [size_of(float(row["area_share"])) for row in scores if row["method"] == "transunet"]
    assert {f"size={size}": sizes.count(size) for size in set(sizes)} == {
        name: count for name, count in counts.items() if name.startswith("size")
    }
    assert len(set(sizes)) == 3
    assert not any("truth" in name for name in counts)


@pytest.mark.parametrize(
    ("share", "size"),
    [(0.0, "small"), (0.0499, "small"), (0.05, "medium"), (0.1499, "medium"), (0.15, "large")],
)
def test_size_cut_offs(share, size):
    assert size_of(share) == size


def test_images_without_a_lesion_are_told_apart(tmp_path):
    scores, summary = summarise(tmp_path, make_tables(tmp_path, empty=(4, 7, 8)))
    for method, alarms in (("transunet", "3"), ("grabcut-mask", "0")):
        where = {"method": method, "fold": "all", "metric": "dice"}
        assert pick(summary, subgroup="all", **where)["false_positives"] == alarms
        empty, lesion = (
            pick(summary, subgroup=f"truth={name}", **where) for name in ("empty", "lesion")
        )
        assert (empty["n"], empty["false_positives"]) == ("3", alarms)
        assert float(empty["mean"]) == float(method != "transunet")
        assert (lesion["n"], lesion["false_positives"]) == ("9", "0")
        assert float(lesion["mean"]) == pytest.approx(
            column(scores, "dice", method=method, empty_truth="false").mean()
        )
    sizes = [
        row for row in summary if row["subgroup"].startswith("size=") and row["metric"] == "dice"
    ]
    assert sum(int(row["n"]) for row in sizes if row["method"] == "transunet") == 9


def test_pooled_and_macro_are_named_and_differ(tmp_path):
    tables = make_tables(tmp_path, "first", cases=12)
    tables += make_tables(tmp_path, "second", cases=4, spacing=(0.1, 0.1))
    scores, summary = summarise(tmp_path, tables)
    where = {"method": "transunet", "subgroup": "all", "fold": "all", "metric": "dice"}
    means = [
        column(scores, "dice", method="transunet", dataset=d).mean() for d in ("first", "second")
    ]
    pooled, macro = (pick(summary, dataset=name, **where) for name in ("pooled", "macro"))
    assert pooled["n"] == "16"
    assert float(pooled["mean"]) == pytest.approx(column(scores, "dice", method="transunet").mean())
    assert macro["n"] == "2"
    assert float(macro["mean"]) == pytest.approx(np.mean(means))
    assert float(macro["std"]) == pytest.approx(np.std(means, ddof=1))
    assert float(macro["ci_low"]) < float(macro["mean"]) < float(macro["ci_high"])
    assert abs(float(macro["mean"]) - float(pooled["mean"])) > 1e-3
    # Spacing is known in one dataset only: no mean over both may pretend otherwise.
    assert {row["dataset"] for row in summary if row["metric"] == "hd95_mm"} == {"second"}
    misses = pick(summary, dataset="pooled", **where | {"method": "grabcut-mask"})["misses"]
    assert (
        misses
        == pick(summary, dataset="macro", **where | {"method": "grabcut-mask"})["misses"]
        == "2"
    )


def test_equal_group_names_of_two_datasets_are_two_groups(tmp_path):
    tables = make_tables(tmp_path, "first", 2, 1) + make_tables(tmp_path, "second", 2, 1)
    _, summary = summarise(tmp_path, tables)
    where = {"method": "transunet", "subgroup": "all", "fold": "all", "metric": "dice"}
    assert pick(summary, dataset="first", **where)["ci_low"] == ""
    assert pick(summary, dataset="pooled", **where)["ci_low"] != ""


def test_one_dataset_has_no_row_over_datasets(tmp_path):
    _, summary = summarise(tmp_path, make_tables(tmp_path))
    assert {row["dataset"] for row in summary} == {"toy"}


def test_cells_are_plain_numbers(tmp_path):
    summarise(tmp_path, make_tables(tmp_path, cases=3))
    compare(tmp_path)
    words = {
        *("dataset", "case", "group", "label", "method", "prompt_source", "empty_prediction"),
        *("empty_truth", "oracle", "selection", "subgroup", "metric", "reference"),
    }
    for name, columns in (
        ("scores", SCORE_COLUMNS),
        ("summary", SUMMARY_COLUMNS),
        ("comparisons", COMPARISON_COLUMNS),
    ):
        rows = read_rows(tmp_path / f"{name}.csv")
        assert list(rows[0]) == columns
        for row in rows:
            for key in set(columns) - words:
                if row[key] and (key, row[key]) != ("fold", "all"):
                    assert math.isfinite(float(row[key])), (name, key, row[key])
            for key in {"oracle", "empty_truth", "empty_prediction"} & set(columns):
                assert row[key] in ("true", "false")


def test_labels_of_the_rows_survive(tmp_path):
    _, summary = summarise(tmp_path, make_tables(tmp_path))
    for row in summary:
        oracle = row["method"] == "grabcut-oracle_box"
        assert row["oracle"] == ("true" if oracle else "false")
        assert row["prompt_source"] == ("ground_truth" if oracle else "coarse")
        assert row["selection"] == "validation"
    assert {row["metric"] for row in summary} == set(METRICS) - {"hd95_mm"}


def test_order_of_tables_and_rows_does_not_change_a_byte(tmp_path):
    tables = make_tables(tmp_path, "first") + make_tables(tmp_path, "second", cases=5)
    names = ("scores.csv", "summary.csv", "comparisons.csv")
    summarise(tmp_path, tables)
    compare(tmp_path)
    expected = [(tmp_path / name).read_bytes() for name in names]
    places = [
        (row["dataset"], row["method"], int(row["fold"]), row["case"])
        for row in read_rows(tmp_path / "scores.csv")
    ]
    assert places == sorted(places)
    rng = random.Random(3)
    rng.shuffle(tables)
    for table in tables:
        rows = read_rows(table)
        rng.shuffle(rows)
        write_rows(table, SCORE_COLUMNS, rows)
    summarise(tmp_path, tables)
    rows = read_rows(tmp_path / "scores.csv")
    assert (tmp_path / "scores.csv").read_bytes() == expected[0]
    rng.shuffle(rows)
    write_rows(tmp_path / "scores.csv", SCORE_COLUMNS, rows)
    compare(tmp_path)
    assert [(tmp_path / name).read_bytes() for name in names[1:]] == expected[1:]


def test_hash_seed_and_threads_do_not_change_a_byte(tmp_path):
    tables = make_tables(tmp_path, "first") + make_tables(tmp_path, "second", cases=5)
    code = (
        "import sys; from ultrarefiner.evaluation.summary import *; out = sys.argv[1] + '/';"
        "summarise_scores(sys.argv[2:], out + 'scores.csv', out + 'summary.csv', 300, 0);"
        "compare_methods(out + 'scores.csv', 'transunet', out + 'comparisons.csv', 300, 0)"
    )
    made = []
    for seed in ("1", "2"):
        folder = tmp_path / seed
        subprocess.run(
            [sys.executable, "-c", code, str(folder), *map(str, tables)],
            env=os.environ | {"PYTHONHASHSEED": seed, "OMP_NUM_THREADS": seed},
            check=True,
        )
        made.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert len(made[0]) == 3
    assert made[0] == made[1]


def test_seed_moves_the_intervals_only(tmp_path):
    tables = make_tables(tmp_path)
    lines = [summarise(tmp_path, tables, seed=seed)[1] for seed in (0, 1)]
    assert [row["ci_low"] for row in lines[0]] != [row["ci_low"] for row in lines[1]]
    assert [row["mean"] for row in lines[0]] == [row["mean"] for row in lines[1]]


def test_unequal_cases_are_refused(tmp_path):
    tables = make_tables(tmp_path)
    rows = read_rows(tables[0])
    write_rows(tables[0], SCORE_COLUMNS, rows[1:])
    with pytest.raises(UltraRefinerError, match=r"transunet lacks 1: toy fold 0 toy__00"):
        summarise(tmp_path, tables)
    write_rows(tmp_path / "scores.csv", SCORE_COLUMNS, rows[1:] + read_rows(tables[2]))
    with pytest.raises(UltraRefinerError, match=r"transunet lacks 1: toy fold 0 toy__00"):
        compare(tmp_path)
    assert not (tmp_path / "comparisons.csv").exists()


def test_bad_studies_are_refused(tmp_path):
    tables = make_tables(tmp_path, "macro")
    with pytest.raises(UltraRefinerError, match="macro"):
        summarise(tmp_path, tables)
    with pytest.raises(UltraRefinerError, match="no score table"):
        summarise(tmp_path, [])
    with pytest.raises(UltraRefinerError, match="twice"):
        summarise(tmp_path, [tables[0], tables[0]])
