"""Guards: a method that misses a lesion gets worse in every summary, never better."""

import math
import shutil

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from score_tables import (
    SIDE,
    column,
    compare,
    disc,
    edit,
    make_held_back,
    make_tables,
    pick,
    summarise,
)

from ultrarefiner.datasets.parts import parse_part
from ultrarefiner.errors import UltraRefinerError
from ultrarefiner.evaluation.metrics import METRICS, score_case
from ultrarefiner.evaluation.oracle_gap import measure_oracle_gap
from ultrarefiner.evaluation.scores import SCORE_COLUMNS, plain
from ultrarefiner.evaluation.summary import SPECIFICITY
from ultrarefiner.io import read_rows, write_rows

SIZE = (9, 14)
PLACE = ("dataset", "evaluation", "member", "method", "subgroup", "fold", "metric")
METHOD = "grabcut-mask"
BY_HAND = {"dice": 0.0, "iou": 0.0, "precision": 0.0, "recall": 0.0, "nsd": 0.0}


def test_a_miss_is_counted_and_makes_the_means_worse(tmp_path):
    scores, summary = summarise(tmp_path, make_tables(tmp_path))
    lines = {
        metric: pick(summary, method=METHOD, subgroup="all", fold="all", metric=metric)
        for metric in ("dice", "hd95_px")
    }
    assert {line["misses"] for line in lines.values()} == {"1"}
    other = pick(summary, method="transunet", subgroup="all", fold="all", metric="dice")
    assert other["misses"] == "0"
    missed = pick(scores, method=METHOD, case="toy__03")
    assert float(missed["hd95_px"]) == pytest.approx(math.hypot(SIDE, SIDE))
    others = [row for row in scores if row["method"] == METHOD and row is not missed]
    assert float(lines["hd95_px"]["mean"]) > column(others, "hd95_px").mean()
    assert float(lines["dice"]["mean"]) < column(others, "dice").mean()


def masks(at_least):
    pixels = st.lists(st.booleans(), min_size=math.prod(SIZE), max_size=math.prod(SIZE))
    found = pixels.map(lambda bits: np.array(bits).reshape(SIZE))
    corner = st.just(np.arange(math.prod(SIZE)).reshape(SIZE) == 0)
    far = st.just(np.arange(math.prod(SIZE)).reshape(SIZE) == math.prod(SIZE) - 1)
    return st.one_of(found, corner, far).filter(lambda mask: mask.sum() >= at_least)


@given(prediction=masks(0), truth=masks(1), spacing=st.sampled_from([None, (0.1, 0.3)]))
@settings(max_examples=150)
def test_no_mask_scores_worse_than_a_missed_lesion(prediction, truth, spacing):
    scores = score_case(prediction, truth, spacing)
    miss = score_case(np.zeros(SIZE, dtype=bool), truth, spacing)
    assert {name: miss[name] for name in BY_HAND} == BY_HAND
    assert (miss["hd95_share"], miss["hd95_px"]) == (1.0, pytest.approx(math.hypot(*SIZE)))
    for name in [name for name in METRICS if scores[name] is not None]:
        sign = 1 if METRICS[name].better == "higher" else -1
        assert sign * miss[name] <= sign * scores[name], name


def study(folder, spacing=(0.1, 0.2)):
    """Write tables of every evaluation; two datasets, images without lesions among them."""
    return [
        *make_tables(folder, "first", cases=6, spacing=spacing, empty=(4,)),
        *make_tables(folder, "second", cases=4, spacing=spacing, empty=(1,)),
        *make_held_back(folder, "holdout", "first", range(20, 26), spacing=spacing, empty=(22,)),
        *make_held_back(folder, "unseen", "third", range(4), members=("fold0", "mean")),
    ]


def evaluate(folder, tables):
    """Return every number by its place that has a better and a worse direction, higher better."""
    _, summary = summarise(folder, tables, bootstrap=60)
    found = {}
    for row in summary:
        lower = row["metric"] != SPECIFICITY and METRICS[row["metric"]].better == "lower"
        for name in ("mean", "median", "ci_low", "ci_high"):
            if row[name]:
                place = (*(row[key] for key in PLACE), name)
                found[place] = float(row[name]) * (-1 if lower else 1)
        found[(*(row[key] for key in PLACE), "misses")] = -int(row["misses"])
    for row in compare(folder, bootstrap=60):
        lower = METRICS[row["metric"]].better == "lower"
        for name in ("mean_difference", "ci_low", "ci_high"):
            if row[name]:
                place = (row["dataset"], row["evaluation"], row["method"], row["metric"], name)
                found[place] = float(row[name]) * (-1 if lower else 1)
    pairs = [{"method": METHOD, "oracle_method": "grabcut-oracle_box"}]
    measure_oracle_gap(folder / "scores.csv", pairs, "transunet", folder / "gap.csv", bootstrap=60)
    for row in read_rows(folder / "gap.csv"):
        for name in ("dice_method", "closed", "closed_low", "closed_high"):
            if row[name]:
                found["gap", row["dataset"], row["evaluation"], name] = float(row[name])
    return found


def miss(table, case):
    """Put an empty mask in the place of what a method predicted for a case."""

    def change(row):
        if row["case"] != case:
            return {}
        spacing = (0.1, 0.2) if row["hd95_mm"] else None
        truth = disc(3 + int(case[-2:]) % 20)
        assert float(row["area_share"]) == truth.mean()
        scores = score_case(np.zeros_like(truth), truth, spacing)
        return {name: plain(value) for name, value in scores.items()}

    edit(table, change)


LESIONS = [
    *(("first", f"fold{i % 2}", i) for i in range(6) if i != 4),
    *(("second", f"fold{i % 2}", i) for i in range(4) if i != 1),
    *(("first", "holdout-mean", i) for i in range(20, 26) if i != 22),
    *(("first", "holdout-fold1", i) for i in range(20, 26) if i != 22),
    *(("third", "unseen-mean", i) for i in range(4)),
]


@pytest.fixture(scope="module")
def before(tmp_path_factory):
    folder = tmp_path_factory.mktemp("before")
    return folder, evaluate(folder, study(folder))


def check_never_better(before, folder, missed):
    base, expected = before
    for dataset in {dataset for dataset, _, _ in missed}:
        shutil.copytree(base / dataset, folder / dataset, dirs_exist_ok=True)
    for dataset in ("first", "second", "third"):
        if not (folder / dataset).exists():
            (folder / dataset).symlink_to(base / dataset)
    for dataset, part, i in missed:
        miss(folder / dataset / METHOD / f"{part}.csv", f"{dataset}__{i:02d}")
    found = evaluate(folder, sorted(folder.glob("*/*/*.csv")))
    assert set(found) == set(expected)
    better = {key for key in found if found[key] > expected[key] + 1e-12}
    assert not better
    return {key for key in found if found[key] < expected[key] - 1e-12}


@pytest.mark.parametrize("lesion", LESIONS, ids=lambda lesion: "-".join(map(str, lesion)))
def test_missing_any_lesion_improves_nothing(before, tmp_path, lesion):
    dataset, part, number = lesion
    worse = check_never_better(before, tmp_path, [lesion])
    if number == 3:
        assert not worse, f"{METHOD} misses case 3 as it is"
        return
    where = parse_part(part)
    fold = "all" if where.evaluation == "folds" or where.fold is None else str(where.fold)
    means = {key for key in worse if len(key) == 8 and key[4:6] == ("all", fold)}
    here = (dataset, where.evaluation, where.member)
    metrics = {key[6] for key in means if key[:3] == here and key[7] == "mean"}
    assert metrics >= set(METRICS) - {"hd95_mm"}
    for joint in ("pooled", "macro") if where.evaluation == "folds" else ():
        assert (joint, "folds", "single", METHOD, "all", "all", "dice", "mean") in worse
    if part != "holdout-fold1":  # The ensemble stands for the method.
        assert ("gap", dataset, where.evaluation, "closed") in worse
        assert (dataset, where.evaluation, METHOD, "dice", "mean_difference") in worse
    assert not {key for key in worse if SPECIFICITY in key and key[-1] != "misses"}
    assert not {key for key in worse if "transunet" in key}


@given(st.lists(st.sampled_from(LESIONS), unique=True, min_size=2, max_size=8))
@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_missing_several_lesions_improves_nothing(before, tmp_path_factory, missed):
    check_never_better(before, tmp_path_factory.mktemp("missed"), missed)


def test_one_case_that_is_not_there_fails_the_summary(tmp_path):
    tables = make_tables(tmp_path)
    rows = read_rows(tables[-1])
    write_rows(tables[-1], SCORE_COLUMNS, rows[:-1])
    with pytest.raises(UltraRefinerError, match="oracle_box lacks 1: toy fold 1 toy__11"):
        summarise(tmp_path, tables)
    assert not (tmp_path / "summary.csv").exists()
