"""Rates, distances and intervals of points are those of all their cases, misses among them."""

import random

import numpy as np
import pytest
from point_tables import DIAGONAL, point_rows, write_points, write_study
from scipy.stats import spearmanr

from ultrarefiner.errors import UltraRefinerError
from ultrarefiner.evaluation.points import (
    POINT_SUMMARY_COLUMNS,
    bootstrap_spearman,
    read_point_summary,
    read_points,
    summarise_points,
)
from ultrarefiner.io import read_rows


@pytest.fixture
def tables(tmp_path):
    return write_study(tmp_path)


def summarise(tables, output, **options):
    summarise_points(tables, output, **{"bootstrap": 300} | options)
    return read_point_summary(output)


def only(lines, **wanted):
    [line] = [line for line in lines if all(line[key] == value for key, value in wanted.items())]
    return line


def test_there_is_a_line_for_each_dataset_refiner_source_and_sigma(tables, tmp_path):
    lines = summarise(tables, tmp_path / "points.csv")
    assert list(read_rows(tmp_path / "points.csv")[0]) == POINT_SUMMARY_COLUMNS
    kinds = [("coarse", None), ("oracle", None), ("noise", 5.0), ("noise", 20.0)]
    assert [
        (line["dataset"], line["refiner"], line["source"], line["sigma"]) for line in lines
    ] == [
        (dataset, refiner, *kind)
        for dataset in ("busi", "stu")
        for refiner in ("sam", "ultrasam")
        for kind in kinds
    ]
    noise = only(lines, dataset="busi", refiner="sam", sigma=5.0)
    assert (noise["n"], noise["cases"], noise["groups"], noise["misses"]) == (24, 12, 6, 0)
    assert {line["oracle"] for line in lines if line["source"] != "coarse"} == {True}
    assert only(lines, dataset="busi", refiner="ultrasam", source="coarse")["seen"] == "yes"
    assert only(lines, dataset="stu", refiner="ultrasam", source="coarse")["seen"] == "unknown"


def test_rate_distance_and_dice_are_those_by_hand(tables, tmp_path):
    lines = summarise(tables, tmp_path / "points.csv")
    coarse = only(lines, dataset="busi", refiner="sam", source="coarse")
    # Cases 0 to 5 lie up to 20 pixels off, but case 3 has no coarse mask: 5 of 12 are inside.
    assert coarse["inside_rate"] == pytest.approx(5 / 12)
    assert coarse["misses"] == 1
    distances = [DIAGONAL if i == 3 else 4.0 * i for i in range(12)]
    assert coarse["distance_median"] == np.median(distances)
    assert coarse["distance_share_median"] == pytest.approx(np.median(distances) / DIAGONAL)
    rows = [r for path in tables for r in read_points(path) if r["dataset"] == "busi"]
    rows = [row for row in rows if row["refiner"] == "sam"]
    oracle = {row["case"]: row["dice"] for row in rows if row["source"] == "oracle"}
    for line in lines[:4]:
        mine = [
            row for row in rows if (row["source"], row["sigma"]) == (line["source"], line["sigma"])
        ]
        assert line["dice_mean"] == pytest.approx(np.mean([row["dice"] for row in mine]))
        lost = np.mean([row["dice"] - oracle[row["case"]] for row in mine])
        if line["source"] == "oracle":
            assert line["change_mean"] is line["change_low"] is line["spearman"] is None
        else:
            assert line["change_mean"] == pytest.approx(lost)
            assert line["change_low"] <= line["change_mean"] <= line["change_high"]
            assert -1 <= line["spearman_low"] <= line["spearman"] <= line["spearman_high"] < 0
        assert line["dice_low"] < line["dice_mean"] < line["dice_high"]


def test_a_miss_makes_every_number_worse(tmp_path):
    whole = write_points(tmp_path / "whole.csv", point_rows(miss=()))
    missed = write_points(tmp_path / "missed.csv", point_rows(miss=(2,)))
    good, bad = (summarise([path], tmp_path / "out.csv")[0] for path in (whole, missed))
    assert bad["n"] == good["n"]
    assert bad["dice_mean"] < good["dice_mean"] and bad["inside_rate"] < good["inside_rate"]
    assert bad["distance_median"] >= good["distance_median"]
    assert bad["change_mean"] < good["change_mean"]
    assert (good["misses"], bad["misses"]) == (0, 1)


def test_order_of_rows_and_tables_changes_nothing(tables, tmp_path):
    summarise(tables, tmp_path / "first.csv")
    rows = [row for path in tables for row in read_rows(path)]
    random.Random(5).shuffle(rows)
    shuffled = write_points(tmp_path / "shuffled.csv", rows)
    summarise([shuffled], tmp_path / "second.csv")
    assert (tmp_path / "first.csv").read_bytes() == (tmp_path / "second.csv").read_bytes()
    summarise(tables, tmp_path / "third.csv", seed=1)
    assert (tmp_path / "first.csv").read_bytes() != (tmp_path / "third.csv").read_bytes()


def test_another_dataset_changes_no_line(tables, tmp_path):
    both = summarise(tables, tmp_path / "both.csv")
    alone = summarise([path for path in tables if "stu" in path.parts], tmp_path / "stu.csv")
    assert alone == [line for line in both if line["dataset"] == "stu"]


def test_bands_hold_the_true_mean_about_as_often_as_they_say(tmp_path):
    held = []
    for study in range(60):
        rng = np.random.default_rng(study)
        rows = point_rows(cases=60, miss=(), draws=1) + point_rows(
            cases=60, fold=1, miss=(), draws=1
        )
        patients = {row["group"]: rng.normal(0, 0.1) for row in rows}
        for row in rows:
            row["dice"] = 0.5 + patients[row["group"]] + rng.normal(0, 0.02)
        path = write_points(tmp_path / "points.csv", rows)
        line = summarise([path], tmp_path / "out.csv", seed=study)[1]
        held.append(line["dice_low"] <= 0.5 <= line["dice_high"])
    # 95 % of 60 is 57. Over single cases, as if two images of a patient were independent, it
    # would be about 83 %, or 50.
    assert 52 <= sum(held) <= 60


def test_one_group_has_no_interval(tmp_path):
    rows = [row | {"group": "one"} for row in point_rows()]
    line = summarise([write_points(tmp_path / "points.csv", rows)], tmp_path / "out.csv")[0]
    assert line["groups"] == 1 and line["dice_mean"] is not None
    assert line["dice_low"] is line["inside_high"] is line["spearman_low"] is None


@pytest.mark.parametrize("ties", [False, True])
def test_rank_correlation_is_that_of_scipy_on_resampled_groups(ties):
    rng = np.random.default_rng(4)
    x = rng.integers(0, 6, 40).astype(float) if ties else rng.normal(size=40)
    y = -x + rng.normal(0, 2.0, 40)
    groups = [f"g{i % 9}" for i in range(40)]
    rho, low, high = bootstrap_spearman(x, y, groups, n=400, seed=3)
    assert rho == pytest.approx(spearmanr(x, y).statistic)
    members = {group: np.flatnonzero([g == group for g in groups]) for group in set(groups)}
    names, draws = sorted(members), np.random.default_rng(3)
    samples = []
    for _ in range(400):
        rows = np.concatenate([members[names[i]] for i in draws.integers(0, 9, 9)])
        samples.append(spearmanr(x[rows], y[rows]).statistic)
    assert (low, high) == pytest.approx(tuple(np.percentile(samples, [2.5, 97.5])))
    assert np.isnan(bootstrap_spearman(np.ones(40), y, groups, 10)).all()
    assert np.isnan(bootstrap_spearman([], [], [])).all()


def test_wrong_tables_are_refused_by_name(tables, tmp_path):
    output = tmp_path / "out.csv"
    with pytest.raises(UltraRefinerError, match=r"sam has a coarse point of busi__00 twice"):
        summarise([*tables, tables[0]], output)
    with pytest.raises(UltraRefinerError, match=r"sam lacks points of 6 cases of busi: busi__00"):
        summarise(tables[1:], output)
    rows = point_rows()
    with pytest.raises(UltraRefinerError, match=r"sam lacks points of 1 cases of busi: busi__10"):
        summarise([write_points(tmp_path / "cut.csv", rows[:-1])], output)
    no_oracle = [row for row in rows if row["source"] != "oracle"]
    with pytest.raises(UltraRefinerError, match=r"sam lacks points of 6 cases"):
        summarise([write_points(tmp_path / "cut.csv", no_oracle)], output)
    rows[0]["seen"] = "yes"
    with pytest.raises(UltraRefinerError, match=r"rows with seen 'yes' and 'no'"):
        summarise([write_points(tmp_path / "seen.csv", rows)], output)
    with pytest.raises(UltraRefinerError, match="no image with a lesion was analysed"):
        summarise([write_points(tmp_path / "empty.csv", [])], output)
    with pytest.raises(UltraRefinerError, match=r"cannot read .*absent\.csv"):
        summarise([tmp_path / "absent.csv"], output)
    for cell, value in (("dice", "nan"), ("dice", ""), ("inside", "maybe"), ("source", "guess")):
        bad = [row | {cell: value} for row in point_rows()]
        with pytest.raises(UltraRefinerError, match=r"bad\.csv has a"):
            summarise([write_points(tmp_path / "bad.csv", bad)], output)
    (tmp_path / "old.csv").write_text("case,dice\na,0.5\n")
    with pytest.raises(UltraRefinerError, match=r"old\.csv lacks the columns dataset"):
        summarise([tmp_path / "old.csv"], output)
    assert not output.exists()
