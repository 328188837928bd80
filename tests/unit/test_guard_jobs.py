"""Guards the guard's files: rules come back as written; none meets a case it was chosen on."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest
from mask_sets import disc

from tests.training_fixture import write_splits
from ultrarefiner.errors import LeakError, SplitError, UltraRefinerError
from ultrarefiner.images import read_gray, read_mask, write_mask
from ultrarefiner.io import read_rows
from ultrarefiner.refine.guard import CANDIDATES, GuardRule, choose_rule, guard_mask
from ultrarefiner.refine.guard_jobs import GUARD_COLUMNS, guard_masks, read_rule, write_rule

SHAPE = (48, 64)
TRUTH = disc(SHAPE, (22, 30), 12)
COARSE = np.roll(TRUTH, 2, axis=1)
STRICT = GuardRule(min_iou=0.5, area_ratio=(0.3, 3.0), max_components=5, band=0.25)
CRUMBS = TRUTH.copy()
CRUMBS[2, 2:14:2] = True
PAIRS = {
    "toy__alike": (COARSE, COARSE, "kept"),
    "toy__apart": (COARSE, disc(SHAPE, (22, 50), 10), "rejected: iou"),
    "toy__crumbs": (COARSE, CRUMBS, "rejected: components"),
    "toy__empty": (np.zeros(SHAPE, bool), TRUTH, "kept"),
    "toy__far": (COARSE, COARSE | disc(SHAPE, (22, 46), 5), "fused"),
    "toy__none": (np.zeros(SHAPE, bool), np.zeros(SHAPE, bool), "kept"),
}


def write_rule_of(path, rule, chosen_on=("toy__v",), selection="validation"):
    write_rule(path, choose_rule([(COARSE, TRUTH, TRUTH)], [rule]), chosen_on, selection)
    return path


@pytest.fixture
def study(tmp_path):
    """Write pairs of masks, splits whose fold 0 tests them, and a strict rule."""
    for case, (coarse, refined, _) in PAIRS.items():
        write_mask(tmp_path / f"coarse/{case}.png", coarse)
        write_mask(tmp_path / f"refined/{case}.png", refined)
    write_splits(tmp_path / "splits.csv", {"validation": ["toy__v"], "test": list(PAIRS)})
    write_splits(tmp_path / "unseen.csv", {"unseen": list(PAIRS)})
    write_rule_of(tmp_path / "rule.json", STRICT)
    return tmp_path


def guard(study, rules=("rule.json",), part="fold0", **changes):
    arguments = {
        "rules": [study / rule for rule in rules],
        "coarse_masks": study / "coarse",
        "refined_masks": study / "refined",
        "splits": study / ("unseen.csv" if part.startswith("unseen") else "splits.csv"),
        "part": part,
        "output": study / "guarded",
        "table": study / "guarded.csv",
    }
    guard_masks(**{**arguments, **changes})
    return study / "guarded"


def test_masks_and_table_of_a_part(study, caplog):
    write_mask(study / "coarse/stale.png", COARSE)
    with caplog.at_level(logging.INFO, logger="ultrarefiner"):
        made = guard(study)
    assert sorted(path.stem for path in made.iterdir()) == sorted(PAIRS)
    rows = {row["case"]: row for row in read_rows(study / "guarded.csv")}
    assert list(rows) == sorted(PAIRS)
    for case, (coarse, refined, verdict) in PAIRS.items():
        found = guard_mask(coarse, refined, STRICT)
        assert set(np.unique(read_gray(made / f"{case}.png"))) <= {0, 255}
        assert np.array_equal(read_mask(made / f"{case}.png"), found.mask)
        row = rows[case]
        assert list(row) == GUARD_COLUMNS
        assert row["verdict"] == found.verdict == verdict
        assert float(row["iou"]) == found.compared.iou
        assert int(row["components"]) == found.compared.components
        ratio = found.compared.area_ratio
        assert row["area_ratio"] == ("" if ratio is None else repr(ratio))
    assert rows["toy__empty"]["area_ratio"] == rows["toy__none"]["area_ratio"] == ""
    counts = "1 fused, 3 kept, 1 rejected: components, 1 rejected: iou"
    assert f"6 cases of fold0: {counts}" in caplog.text


def test_a_rule_that_is_off_copies_the_refined_masks(study):
    write_rule_of(study / "off.json", GuardRule())
    made = guard(study, ["off.json"])
    for case, (_, refined, _) in PAIRS.items():
        assert np.array_equal(read_mask(made / f"{case}.png"), refined)
    assert {row["verdict"] for row in read_rows(study / "guarded.csv")} == {"kept"}


def test_an_ensemble_is_guarded_by_the_rule_of_most_folds(study):
    write_rule_of(study / "one.json", GuardRule(min_iou=0.3))
    write_rule_of(study / "off.json", GuardRule())
    made = guard(study, ["rule.json", "one.json", "off.json"], "unseen-mean")
    joint = GuardRule(min_iou=0.4)
    for case, (coarse, refined, _) in PAIRS.items():
        found = guard_mask(coarse, refined, joint).mask
        assert np.array_equal(read_mask(made / f"{case}.png"), found)
    verdicts = {row["case"]: row["verdict"] for row in read_rows(study / "guarded.csv")}
    assert verdicts["toy__crumbs"] == "kept"
    assert verdicts["toy__apart"] == "rejected: iou"


@pytest.mark.parametrize("part", ["fold0", "unseen-fold0"])
def test_a_part_of_one_fold_has_one_rule(study, part):
    with pytest.raises(SplitError, match=rf"{part} is of one fold, and 2 rules .*rule of fold 0"):
        guard(study, ["rule.json", "rule.json"], part)


@pytest.mark.parametrize("number", [0, 1])
def test_a_rule_never_meets_a_case_that_it_was_chosen_on(study, number):
    write_rule_of(study / "leaky.json", STRICT, chosen_on=["toy__v", "toy__far"])
    rules = ["rule.json", "leaky.json"]
    for part, given in (("fold0", ["leaky.json"]), ("unseen-mean", rules[:: 1 - 2 * number])):
        with pytest.raises(LeakError, match=r"leaky\.json was chosen on 1 of the 6 .*toy__far"):
            guard(study, given, part)
        assert not (study / "guarded").exists()
        assert not (study / "guarded.csv").exists()


def test_under_the_protocol_seed_a_fold_chooses_on_itself_but_nothing_else_does(study):
    write_rule_of(study / "seed.json", STRICT, chosen_on=PAIRS, selection="reported fold")
    assert len(list(guard(study, ["seed.json"], protocol="seed").iterdir())) == len(PAIRS)
    with pytest.raises(LeakError, match="6 of the 6"):
        guard(study, ["seed.json"], part="unseen-fold0", protocol="seed")
    with pytest.raises(LeakError, match="6 of the 6"):
        guard(study, ["seed.json"])


@pytest.mark.parametrize("which", ["coarse", "refined"])
def test_absent_masks_are_named(study, which):
    (study / f"{which}/toy__far.png").unlink()
    with pytest.raises(UltraRefinerError, match=rf"{which} has no {which} mask of toy__far\. Run"):
        guard(study)
    assert not (study / "guarded").exists()


def test_masks_of_other_sizes_are_named(study):
    write_mask(study / "refined/toy__far.png", TRUTH.T)
    wrong = r"refined/toy__far\.png has 64 x 48 pixels and .*coarse/toy__far\.png has 48 x 64"
    with pytest.raises(UltraRefinerError, match=wrong):
        guard(study)
    assert not (study / "guarded").exists()
    assert not (study / "guarded.csv").exists()


@pytest.mark.parametrize("rule", [CANDIDATES[0], CANDIDATES[-1], STRICT], ids=["off", "all", "mid"])
def test_a_rule_comes_back_as_it_was_written(tmp_path, rule):
    choice = choose_rule([(COARSE, CRUMBS, TRUTH)] * 3, [rule])
    write_rule(tmp_path / "rule.json", choice, ["toy__b", "toy__a", "toy__n"], "validation")
    found = read_rule(tmp_path / "rule.json")
    assert found.rule == rule
    assert hash(found.rule) == hash(rule)
    assert (found.dice, found.dice_off, found.cases) == (choice.dice, choice.dice_off, 3)
    assert (found.candidates, found.selection) == (1, "validation")
    assert found.chosen_on == ["toy__a", "toy__b", "toy__n"]


def test_without_a_lesion_to_choose_by_the_file_says_so(tmp_path, caplog):
    choice = choose_rule([(COARSE, TRUTH, np.zeros(SHAPE, bool))])
    write_rule(tmp_path / "rule.json", choice, ["toy__n"], "validation")
    content = json.loads((tmp_path / "rule.json").read_text())
    assert content["rule"] == dict.fromkeys(["min_iou", "area_ratio", "max_components", "band"])
    assert (content["dice"], content["cases"], content["candidates"]) == (None, 0, 72)
    assert read_rule(tmp_path / "rule.json").rule == GuardRule()
    assert "no case with a lesion" in caplog.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rule": None}, "the keys of `rule`"),
        ({"rule": {"min_iou": 0.5}}, "the keys of `rule`"),
        ({"min_iou": 1.5}, "min_iou 1.5 is not a number above 0, at most 1"),
        ({"area_ratio": [2, 1]}, r"area_ratio \(2, 1\) is not two numbers"),
        ({"chosen_on": "toy__v"}, "`chosen_on` is no list"),
        ({"chosen_on": [1]}, "`chosen_on` is no list"),
        ({"extra": 1}, "its keys have to be"),
    ],
    ids=["no rule", "part of a rule", "iou", "area", "text", "numbers", "extra"],
)
def test_damaged_rules_are_refused(study, change, message):
    path = study / "rule.json"
    content = json.loads(path.read_text())
    for key, value in change.items():
        (content["rule"] if key in content["rule"] else content)[key] = value
    path.write_text(json.dumps(content))
    with pytest.raises(
        UltraRefinerError, match=rf"rule\.json holds no rule of a guard: .*{message}"
    ):
        guard(study)


def test_a_file_that_is_no_rule_is_refused(tmp_path):
    (tmp_path / "list.json").write_text("[1]")
    with pytest.raises(UltraRefinerError, match="holds no rule of a guard"):
        read_rule(tmp_path / "list.json")
    with pytest.raises(UltraRefinerError, match="cannot read"):
        read_rule(tmp_path / "absent.json")
