"""Guards: the oracle gap is a ratio of means over the same lesions, paired, empty where there is none."""

import numpy as np
import pytest
from score_tables import column, edit, make_held_back, make_tables, pick, summarise

from ultrarefiner.errors import UltraRefinerError
from ultrarefiner.evaluation.oracle_gap import GAP_COLUMNS, measure_oracle_gap
from ultrarefiner.io import read_rows

METHODS = ("transunet", "grabcut-mask", "grabcut-oracle_box")
PAIR = {"method": "grabcut-mask", "oracle_method": "grabcut-oracle_box"}


def measure(folder, pairs=(PAIR,), bootstrap=500, seed=0):
    output = folder / "oracle_gap.csv"
    measure_oracle_gap(folder / "scores.csv", list(pairs), "transunet", output, bootstrap, seed)
    return read_rows(output)


def write_dice(tables, values):
    """Give the methods these Dice values, one for each case."""
    for table in tables:
        mine = values[table.parent.name]
        edit(table, lambda row, mine=mine: {"dice": repr(float(mine[int(row["case"][-2:])]))})


def test_closed_share_by_hand(tmp_path):
    tables = make_tables(tmp_path, cases=4, folds=1, empty=(3,))
    write_dice(
        tables,
        {
            "transunet": [0.5, 0.6, 0.7, 0.0],
            "grabcut-mask": [0.7, 0.6, 0.8, 1.0],
            "grabcut-oracle_box": [0.9, 0.8, 1.0, 1.0],
        },
    )
    summarise(tmp_path, tables)
    (row,) = measure(tmp_path)
    assert list(row) == GAP_COLUMNS
    # Over the three images with a lesion: means 0.6, 0.7 and 0.9.
    assert row["n"] == "3"
    names = ("dice_coarse", "dice_method", "dice_oracle", "gap", "closed")
    found = [float(row[name]) for name in names]
    assert found == pytest.approx([0.6, 0.7, 0.9, 0.2, 1 / 3])
    assert (row["dataset"], row["evaluation"], row["trained_on"]) == ("toy", "folds", "toy")
    assert (row["method"], row["seen"]) == ("grabcut-mask", "yes")


def test_interval_takes_all_means_from_the_same_groups(tmp_path):
    rng = np.random.default_rng(0)
    coarse = rng.uniform(0.3, 0.7, 40)
    gap = rng.uniform(0.1, 0.3, 40)
    values = {
        "transunet": coarse,
        "grabcut-mask": coarse + gap / 2,
        "grabcut-oracle_box": coarse + gap,
    }
    tables = make_tables(tmp_path, cases=40)
    write_dice(tables, values)
    summarise(tmp_path, tables)
    # Each case closes half of its gap, so each sample does, however the cases differ.
    (row,) = measure(tmp_path)
    ends = [float(row[name]) for name in ("closed", "closed_low", "closed_high")]
    assert ends == pytest.approx([0.5] * 3)

    values["grabcut-mask"] = coarse + rng.uniform(-0.1, 0.3, 40)
    write_dice(tables, values)
    summarise(tmp_path, tables)
    (row,) = measure(tmp_path, bootstrap=4000)
    table = np.array([values[name] for name in METHODS]).T.reshape(20, 2, 3).mean(axis=1)
    draws = rng.integers(0, 20, (4000, 20))
    means = table[draws].mean(axis=1)
    ratios = (means[:, 1] - means[:, 0]) / (means[:, 2] - means[:, 0])
    expected = np.percentile(ratios, [2.5, 97.5])
    ends = [float(row[name]) for name in ("closed_low", "closed_high")]
    assert ends == pytest.approx(expected, abs=0.03)
    assert measure(tmp_path, seed=1)[0]["closed_low"] != measure(tmp_path)[0]["closed_low"]


def test_no_gap_has_no_share(tmp_path):
    tables = make_tables(tmp_path, cases=12)
    better = {"transunet": [0.9] * 12, "grabcut-mask": [0.7] * 12, "grabcut-oracle_box": [0.8] * 12}
    write_dice(tables, better)
    summarise(tmp_path, tables)
    (row,) = measure(tmp_path)
    assert float(row["gap"]) == pytest.approx(0.1)
    assert row["closed"] == row["closed_low"] == row["closed_high"] == ""
    write_dice(tables, better | {"grabcut-oracle_box": [0.9] * 12})
    summarise(tmp_path, tables)
    assert measure(tmp_path)[0]["closed"] == ""


def test_gap_that_may_be_none_has_no_interval(tmp_path):
    tables = make_tables(tmp_path, cases=12)
    oracle = [0.7] * 10 + [0.2] * 2
    write_dice(
        tables,
        {"transunet": [0.6] * 12, "grabcut-mask": [0.6] * 12, "grabcut-oracle_box": oracle},
    )
    summarise(tmp_path, tables)
    # The last of six groups has a loss; samples that draw it twice have no gap, one in four.
    (row,) = measure(tmp_path)
    assert float(row["closed"]) == pytest.approx(0.0)
    assert row["closed_low"] == row["closed_high"] == ""


def test_a_method_that_makes_masks_worse_closes_less_than_nothing(tmp_path):
    tables = make_tables(tmp_path)
    write_dice(
        tables,
        {
            "transunet": [0.6] * 12,
            "grabcut-mask": [0.5] * 12,
            "grabcut-oracle_box": [0.8] * 12,
        },
    )
    summarise(tmp_path, tables)
    assert float(measure(tmp_path)[0]["closed"]) == pytest.approx(-0.5)


def test_each_evaluation_and_training_set_has_its_own(tmp_path):
    tables = [*make_tables(tmp_path), *make_held_back(tmp_path)]
    tables += make_held_back(tmp_path, "unseen", "third", methods=[f"{m}@toy" for m in METHODS])
    scores, _ = summarise(tmp_path, tables)
    pairs = [{key: name + at for key, name in PAIR.items()} for at in ("", "@toy")]
    rows = measure(tmp_path, pairs)
    assert [(row["dataset"], row["evaluation"], row["method"]) for row in rows] == [
        ("third", "unseen", "grabcut-mask@toy"),
        ("toy", "folds", "grabcut-mask"),
        ("toy", "holdout", "grabcut-mask"),
    ]
    held = pick(rows, evaluation="holdout")
    assert held["n"] == "10"
    of = {"evaluation": "holdout", "member": "mean"}
    assert float(held["dice_coarse"]) == column(scores, "dice", method="transunet", **of).mean()
    other = pick(rows, evaluation="unseen")
    assert other["trained_on"] == "toy"
    expected = column(scores, "dice", method="transunet@toy", member="mean").mean()
    assert float(other["dice_coarse"]) == expected


def test_pairs_that_are_not_scored_are_refused(tmp_path):
    summarise(tmp_path, make_tables(tmp_path, methods=METHODS[:2]))
    with pytest.raises(UltraRefinerError, match=r"of grabcut-mask on toy .*needs grabcut-oracle"):
        measure(tmp_path)
    with pytest.raises(UltraRefinerError, match="no rows of sam-box or sam-oracle_box"):
        measure(tmp_path, [{"method": "sam-box", "oracle_method": "sam-oracle_box"}])
    assert not (tmp_path / "oracle_gap.csv").exists()
    assert measure(tmp_path, []) == []
    assert (tmp_path / "oracle_gap.csv").read_text().strip() == ",".join(GAP_COLUMNS)
