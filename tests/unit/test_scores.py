"""Guards: every case of a part is scored at its own size, or the job fails naming the cases."""

import os
import subprocess
import sys

import numpy as np
import pytest

from ultrarefiner.datasets import loader
from ultrarefiner.errors import UltraRefinerError
from ultrarefiner.evaluation.metrics import dice, hd95
from ultrarefiner.evaluation.scores import (
    SCORE_COLUMNS,
    Predictor,
    by_predictor,
    one_for_each_method,
    read_scores,
    score_masks,
)
from ultrarefiner.images import write_mask, write_png
from ultrarefiner.io import read_rows, write_rows

CASES = ["toy__a", "toy__b", "toy__c", "toy__train"]


def lesion(height, width, top, left, side):
    found = np.zeros((height, width), dtype=bool)
    found[top : top + side, left : left + side] = True
    return found


@pytest.fixture
def study(tmp_path):
    """Return the arguments of score_masks for a fold of three test cases, files written."""
    sizes = {"toy__a": (40, 50), "toy__b": (30, 40), "toy__c": (64, 32), "toy__train": (20, 20)}
    rows = []
    for case, size in sizes.items():
        write_mask(tmp_path / "truth" / f"{case}.png", lesion(*size, 5, 6, 10))
        blank = dict.fromkeys(loader.COLUMNS, "")
        rows.append(
            blank
            | {"case": case, "height": size[0], "width": size[1]}
            | {"group": f"patient-{case[-1]}", "label": "benign", "overlay": "none"}
            | {"border": "no", "look_alikes": 0, "appearance": "0"}
        )
    rows[0] |= {"overlay": "calipers+text", "border": "yes", "look_alikes": 2}
    rows[1] |= {"spacing_y_mm": "0.1", "spacing_x_mm": "0.2", "label": ""}
    write_mask(tmp_path / "masks" / "toy__a.png", lesion(40, 50, 6, 7, 10))
    write_mask(tmp_path / "masks" / "toy__b.png", lesion(30, 40, 0, 0, 0))
    write_mask(tmp_path / "masks" / "toy__c.png", lesion(64, 32, 5, 6, 10))
    write_rows(tmp_path / "cases.csv", loader.COLUMNS, rows)
    roles = dict.fromkeys(CASES, "test") | {"toy__train": "train"}
    write_rows(
        tmp_path / "splits.csv",
        ["case", "group", "fold", "role"],
        ({"case": case, "group": case, "fold": 0, "role": roles[case]} for case in CASES[::-1]),
    )
    return {
        "method": "grabcut-mask",
        "dataset": "toy",
        "part": "fold0",
        "masks": tmp_path / "masks",
        "truth": tmp_path / "truth",
        "cases": tmp_path / "cases.csv",
        "splits": tmp_path / "splits.csv",
        "trained_on": "all",
        "prompt_source": "coarse",
        "oracle": False,
        "selection": "validation",
        "seen": "unknown",
        "output": tmp_path / "scores" / "fold0.csv",
    }


def test_table_holds_every_test_case_once(study):
    score_masks(**study)
    rows = read_rows(study["output"])
    assert study["output"].read_text().splitlines()[0] == (
        "dataset,evaluation,member,fold,case,group,label,method,trained_on,prompt_source,dice,iou,"
        "hd95_px,hd95_mm,hd95_share,assd_px,nsd,precision,recall,empty_prediction,empty_truth,"
        "oracle,selection,seen,area_share,overlay,border,look_alike,spacing"
    )
    assert [row["case"] for row in rows] == ["toy__a", "toy__b", "toy__c"]
    first, miss, perfect = rows
    masks = lesion(40, 50, 6, 7, 10), lesion(40, 50, 5, 6, 10)
    assert float(first["dice"]) == dice(*masks) == 0.81
    assert float(first["hd95_px"]) == hd95(*masks)
    assert float(first["area_share"]) == 100 / (40 * 50)
    assert first["hd95_mm"] == ""
    assert (first["group"], first["label"], first["fold"]) == ("patient-a", "benign", "0")
    assert (first["method"], first["prompt_source"]) == ("grabcut-mask", "coarse")
    assert (first["oracle"], first["selection"]) == ("false", "validation")
    assert (miss["empty_prediction"], miss["empty_truth"]) == ("true", "false")
    assert (first["evaluation"], first["member"]) == ("folds", "single")
    assert (first["trained_on"], first["seen"]) == ("all", "unknown")
    quality = ("overlay", "border", "look_alike", "spacing")
    assert [first[name] for name in quality] == ["calipers+text", "yes", "yes", "unknown"]
    assert [miss[name] for name in quality] == ["none", "no", "no", "known"]
    assert float(first["hd95_share"]) == pytest.approx(hd95(*masks) / np.hypot(40, 50))
    assert (float(miss["hd95_px"]), miss["hd95_share"]) == (50.0, "1.0")
    assert float(miss["hd95_mm"]) == pytest.approx(np.hypot(30 * 0.1, 40 * 0.2))
    assert miss["label"] == ""
    assert (perfect["dice"], perfect["hd95_px"]) == ("1.0", "0.0")


def test_missing_masks_are_an_error_that_names_them_all(study):
    for case in ("toy__a", "toy__c"):
        (study["masks"] / f"{case}.png").unlink()
    with pytest.raises(UltraRefinerError, match="toy__a, toy__c"):
        score_masks(**study)
    assert not study["output"].exists()


def test_files_that_are_no_test_case_are_ignored(study):
    score_masks(**study)
    expected = study["output"].read_bytes()
    write_mask(study["masks"] / "toy__train.png", lesion(20, 20, 0, 0, 20))
    write_mask(study["masks"] / "toy__old.png", lesion(9, 9, 0, 0, 3))
    score_masks(**study)
    assert study["output"].read_bytes() == expected


def test_masks_of_another_size_are_an_error_that_names_them_all(study):
    write_mask(study["masks"] / "toy__a.png", lesion(50, 40, 5, 6, 10))
    write_mask(study["masks"] / "toy__b.png", lesion(29, 40, 5, 6, 10))
    with pytest.raises(UltraRefinerError, match=r"toy__a .*50, 40.*toy__b .*29, 40"):
        score_masks(**study)
    assert not study["output"].exists()


def test_unreadable_mask_is_an_error_that_names_it(study):
    (study["masks"] / "toy__b.png").write_bytes(b"no PNG")
    with pytest.raises(UltraRefinerError, match=r"toy__b\.png"):
        score_masks(**study)


def test_test_case_that_is_not_in_the_table_of_cases(study):
    rows = [row for row in read_rows(study["cases"]) if row["case"] != "toy__c"]
    write_rows(study["cases"], loader.COLUMNS, rows)
    with pytest.raises(UltraRefinerError, match="toy__c"):
        score_masks(**study)


@pytest.mark.parametrize("spacing", [("0.1", ""), ("0", "0.1"), ("-1", "0.1"), ("nan", "0.1")])
def test_half_a_spacing_is_refused(study, spacing):
    rows = read_rows(study["cases"])
    rows[0] |= {"spacing_y_mm": spacing[0], "spacing_x_mm": spacing[1]}
    write_rows(study["cases"], loader.COLUMNS, rows)
    with pytest.raises(UltraRefinerError, match=r"toy__a.*spacing"):
        score_masks(**study)


def test_truth_is_not_thresholded_by_more_than_its_own_rule(study):
    gray = np.where(lesion(40, 50, 5, 6, 10), 128, 127).astype(np.uint8)
    write_png(study["truth"] / "toy__a.png", gray)
    score_masks(**study)
    assert float(read_rows(study["output"])[0]["dice"]) == 0.81


def test_read_scores_gives_back_what_was_written(study):
    score_masks(**study)
    first, miss, _ = read_scores(study["output"])
    assert first["dice"] == 0.81
    assert np.isnan(first["hd95_mm"])
    assert miss["fold"] == 0
    assert miss["empty_prediction"] is True
    assert miss["oracle"] is False
    with pytest.raises(UltraRefinerError, match=r"absent\.csv"):
        read_scores(study["output"].with_name("absent.csv"))


@pytest.mark.parametrize(
    ("column", "cell"),
    [
        ("dice", ""),
        ("dice", "nan"),
        ("hd95_px", "inf"),
        ("iou", "0.5±0.1"),
        ("oracle", "1"),
        ("fold", "x"),
        ("fold", ""),
        ("hd95_share", ""),
        ("evaluation", "test"),
        ("member", "median"),
        ("seen", "perhaps"),
        ("border", "true"),
    ],
)
def test_cells_that_are_no_scores_are_refused(study, column, cell):
    score_masks(**study)
    rows = read_rows(study["output"])
    rows[1][column] = cell
    write_rows(study["output"], SCORE_COLUMNS, rows)
    with pytest.raises(UltraRefinerError, match=r"fold0\.csv"):
        read_scores(study["output"])


def test_missing_column_is_named(study):
    score_masks(**study)
    rows = [{"case": row["case"], "dice": row["dice"]} for row in read_rows(study["output"])]
    write_rows(study["output"], ["case", "dice"], rows)
    with pytest.raises(UltraRefinerError, match="oracle"):
        read_scores(study["output"])


@pytest.mark.parametrize(
    ("part", "evaluation", "member", "fold"),
    [
        ("holdout-fold3", "holdout", "single", "3"),
        ("holdout-mean", "holdout", "mean", ""),
        ("unseen-vote", "unseen", "vote", ""),
    ],
)
def test_parts_without_a_fold_are_scored_on_their_cases(study, part, evaluation, member, fold):
    rows = read_rows(study["splits"])
    for row in rows:
        row["role"] = evaluation if row["case"] in CASES[:2] else row["role"]
    write_rows(study["splits"], list(rows[0]), rows)
    score_masks(**study | {"part": part})
    rows = read_rows(study["output"])
    assert [row["case"] for row in rows] == ["toy__a", "toy__b"]
    for row in rows:
        assert (row["evaluation"], row["member"], row["fold"]) == (evaluation, member, fold)
    assert read_scores(study["output"])[0]["fold"] == (int(fold) if fold else None)


def test_methods_on_other_cases_are_refused(study):
    score_masks(**study)
    rows = read_scores(study["output"])
    other = [row | {"method": "transunet"} for row in rows]
    block = by_predictor([*other, *rows[::-1]])["toy", "folds"]
    assert list(block) == [Predictor("grabcut-mask"), Predictor("transunet")]
    assert [[row["case"] for row in found] for found in block.values()] == [CASES[:3]] * 2
    with pytest.raises(UltraRefinerError, match=r"transunet lacks 1: toy fold 0 toy__b"):
        by_predictor([*rows, other[0], other[2]])
    with pytest.raises(UltraRefinerError, match=r"twice on toy__a"):
        by_predictor([*rows, rows[0]])
    with pytest.raises(UltraRefinerError, match=r"twice on toy__a"):
        by_predictor([*rows, rows[0] | {"fold": 1}])
    with pytest.raises(UltraRefinerError, match=r"different truths of toy__c"):
        by_predictor([*rows, *other[:2], other[2] | {"area_share": 0.5}])
    with pytest.raises(UltraRefinerError, match="selection"):
        by_predictor([*rows[:2], rows[2] | {"selection": "reported fold"}])
    with pytest.raises(UltraRefinerError, match=r"grabcut-mask on toy .*seen"):
        by_predictor([*rows[:2], rows[2] | {"seen": "yes"}])


def test_each_predictor_of_held_back_cases_has_them_all(study):
    score_masks(**study)
    rows = read_scores(study["output"])

    def member(name, fold=None, method="grabcut-mask", evaluation="holdout"):
        changed = {"member": name, "fold": fold, "method": method, "evaluation": evaluation}
        return [row | changed for row in rows]

    more = [*rows, *member("single", 1), *member("mean"), *member("single", 0), *member("vote")]
    blocks = by_predictor(more)
    assert list(blocks) == [("toy", "folds"), ("toy", "holdout")]
    assert [str(who) for who in blocks["toy", "holdout"]] == [
        "grabcut-mask fold 0",
        "grabcut-mask fold 1",
        "grabcut-mask mean",
        "grabcut-mask vote",
    ]
    with pytest.raises(
        UltraRefinerError,
        match=r"of toy, holdout, .*transunet mean lacks 1: toy__a",
    ):
        by_predictor([*more, *member("mean", method="transunet")[1:]])
    # The ensemble stands for its models; several models without one are no one method.
    lone = [*member("single", 0, "one"), *member("single", 0, "two"), *member("single", 1, "two")]
    chosen = one_for_each_method(by_predictor([*more, *lone])["toy", "holdout"])
    assert {method: found[0]["member"] for method, found in chosen.items()} == {
        "grabcut-mask": "mean",
        "one": "single",
    }


def test_scoring_needs_no_torch_and_no_pandas():
    code = (
        "import sys, ultrarefiner.evaluation.scores, ultrarefiner.evaluation.summary;"
        "import ultrarefiner.evaluation.oracle_gap, ultrarefiner.evaluation.calibration;"
        "sys.exit(', '.join({'torch', 'pandas', 'snakemake'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
