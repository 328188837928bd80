"""Guards: summary and comparisons keep every case, and hold plain reproducible numbers."""

import math
import os
import random
import subprocess
import sys

import numpy as np
import pytest
from score_tables import (
    METHODS,
    column,
    compare,
    edit,
    make_held_back,
    make_tables,
    pick,
    prompt_source,
    summarise,
)

from ultrarefiner.errors import UltraRefinerError
from ultrarefiner.evaluation.comparisons import COMPARISON_COLUMNS
from ultrarefiner.evaluation.metrics import METRICS
from ultrarefiner.evaluation.scores import SCORE_COLUMNS
from ultrarefiner.evaluation.summary import SUMMARY_COLUMNS
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


def test_held_back_cases_have_a_line_for_each_member(tmp_path):
    scores, summary = summarise(tmp_path, [*make_tables(tmp_path), *make_held_back(tmp_path)])
    where = {"evaluation": "holdout", "method": "grabcut-mask", "metric": "dice"}
    for member, fold in (("single", 0), ("single", 1), ("mean", "all"), ("vote", "all")):
        line = pick(summary, **where, member=member, fold=fold, subgroup="all")
        of = {"evaluation": "holdout", "method": "grabcut-mask", "member": member}
        of |= {"fold": "" if fold == "all" else fold}
        assert float(line["mean"]) == pytest.approx(column(scores, "dice", **of).mean())
        assert line["n"] == "10"
        assert float(line["ci_low"]) < float(line["mean"]) < float(line["ci_high"])
    # Subgroups are those of the ensembles, whose lines are not one of several.
    parts = [row for row in summary if row["evaluation"] == "holdout" and row["subgroup"] != "all"]
    assert {row["member"] for row in parts} == {"mean", "vote"}
    assert {row["fold"] for row in parts} == {"all"}
    # The folds are summarised as without them.
    alone = summarise(tmp_path, make_tables(tmp_path))[1]
    label = {"evaluation": "folds", "subgroup": "label=benign", "method": "transunet"}
    line, other = (pick(rows, **label, metric="dice") for rows in (summary, alone))
    assert line == other


def test_pooled_and_macro_are_of_folds_and_of_methods_that_all_datasets_have(tmp_path):
    tables = make_tables(tmp_path, "first") + make_tables(tmp_path, "second")
    tables += make_tables(tmp_path, "first", methods=["transunet@all"])
    tables += make_held_back(tmp_path, dataset="second")
    tables += make_held_back(tmp_path, "unseen", "third", methods=["transunet@first"])
    _, summary = summarise(tmp_path, tables)
    joint = [row for row in summary if row["dataset"] in ("pooled", "macro")]
    assert {row["method"] for row in joint} == set(METHODS)
    assert {(row["evaluation"], row["member"]) for row in joint} == {("folds", "single")}
    # Trained on the dataset itself, which is another one each time.
    assert {row["trained_on"] for row in joint} == {""}
    assert {row["seen"] for row in joint if row["method"] == "transunet"} == {"no"}
    line = pick(joint, dataset="macro", method="transunet", metric="dice")
    assert line["n"] == "2"


def test_overlap_with_pretraining_of_one_dataset_marks_all(tmp_path):
    tables = make_tables(tmp_path, "first") + make_tables(tmp_path, "second")
    for table in tables:
        word = "unknown" if table.parents[1].name == "first" else "no"
        edit(table, lambda row, word=word: {"seen": word})
    _, summary = summarise(tmp_path, tables)
    assert {row["seen"] for row in summary if row["dataset"] in ("pooled", "macro")} == {"unknown"}
    assert {row["seen"] for row in summary if row["dataset"] == "second"} == {"no"}


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
        *("evaluation", "member", "trained_on", "seen"),
        *("overlay", "border", "look_alike", "spacing"),
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
        assert row["prompt_source"] == prompt_source(row["method"])
        assert row["selection"] == "validation"
        assert (row["trained_on"], row["evaluation"], row["member"]) == ("toy", "folds", "single")
        assert row["seen"] == ("no" if row["method"] == "transunet" else "yes")
    assert {row["metric"] for row in summary} == set(METRICS) - {"hd95_mm"}


def test_order_of_tables_and_rows_does_not_change_a_byte(tmp_path):
    tables = make_tables(tmp_path, "first") + make_tables(tmp_path, "second", cases=5)
    tables += make_held_back(tmp_path, dataset="second")
    names = ("scores.csv", "summary.csv", "comparisons.csv")
    summarise(tmp_path, tables)
    compare(tmp_path)
    expected = [(tmp_path / name).read_bytes() for name in names]
    places = [
        (row["dataset"], row["evaluation"], row["method"], row["member"], row["fold"], row["case"])
        for row in read_rows(tmp_path / "scores.csv")
    ]
    members = ["single", "mean", "vote"]
    assert places == sorted(places, key=lambda place: (*place[:3], members.index(place[3]), place))
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
        "import sys; out = sys.argv[1] + '/';"
        "from ultrarefiner.evaluation.summary import summarise_scores;"
        "from ultrarefiner.evaluation.comparisons import compare_methods;"
        "summarise_scores(sys.argv[2:], out + 'scores.csv', out + 'summary.csv', None, 300, 0);"
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
