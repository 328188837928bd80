"""Guards that folds never let a group cross, and depend on the seed and the cases alone."""

import logging
import os
import subprocess
import sys
from collections import Counter, defaultdict

import numpy as np
import pytest
from sklearn.model_selection import KFold

from ultrarefiner.config import SplitsConfig
from ultrarefiner.datasets.splits import ROLES, read_split, split_folds
from ultrarefiner.errors import SplitError
from ultrarefiner.io import read_rows, write_rows

_COLUMNS = ["case", "patient", "group", "label", "sha256"]


def _random_cases(seed, groups=None):
    """Return cases in random groups of 1 to 5 images, shuffled."""
    rng = np.random.default_rng(seed)
    rows = []
    for group in range(groups or int(rng.integers(12, 40))):
        label = ["benign", "malignant", ""][int(rng.choice(3, p=[0.6, 0.3, 0.1]))]
        for _ in range(int(rng.choice([1, 1, 2, 2, 3, 5]))):
            rows.append(
                {
                    "case": f"set__{rng.integers(10**9):09d}",
                    "patient": f"p{group}",
                    "group": f"g{group}",
                    "label": label,
                }
            )
    return [rows[i] for i in rng.permutation(len(rows))]


def _split(tmp_path, rows, published=None, folds_from="made", **options):
    write_rows(tmp_path / "cases.csv", _COLUMNS, rows)
    if published is not None:
        write_rows(tmp_path / "published.csv", ["case", "folds", "fold"], published)
    split_folds(
        cases=tmp_path / "cases.csv",
        published_folds=tmp_path / "published.csv" if published is not None else None,
        output=tmp_path / "splits.csv",
        config=SplitsConfig(**options),
        folds_from=folds_from,
    )
    return tmp_path / "splits.csv"


def _folds(path):
    return sorted({int(row["fold"]) for row in read_rows(path)})


@pytest.mark.parametrize("seed", range(40))
def test_groups_never_cross_and_every_case_has_one_role(tmp_path, seed):
    rows = _random_cases(seed)
    folds, holdout = 2 + seed % 4, [0.0, 0.2][seed % 2]
    path = _split(tmp_path, rows, folds=folds, holdout=holdout, seed=seed)
    assert _folds(path) == list(range(folds))
    group = {row["case"]: row["group"] for row in rows}
    tested = Counter()
    for fold in range(folds):
        table = [row for row in read_rows(path) if row["fold"] == str(fold)]
        assert sorted(row["case"] for row in table) == sorted(group)
        assert all(row["group"] == group[row["case"]] for row in table)
        roles = defaultdict(set)
        for row in table:
            roles[row["group"]].add(row["role"])
        assert all(len(found) == 1 for found in roles.values())
        split = read_split(path, fold)
        assert list(split) == list(ROLES)
        assert split["train"] and split["validation"] and split["test"]
        assert bool(split["holdout"]) == (holdout > 0)
        assert split["holdout"] == read_split(path, 0)["holdout"]
        tested.update(split["test"])
    assert set(tested.values()) == {1}
    assert set(tested) | set(read_split(path, 0)["holdout"]) == set(group)


@pytest.mark.parametrize("protocol", ["nested", "seed"])
def test_the_order_of_the_table_changes_nothing(tmp_path, protocol):
    rows = _random_cases(7)
    first = _split(tmp_path, rows, protocol=protocol).read_bytes()
    assert _split(tmp_path, rows[::-1], protocol=protocol).read_bytes() == first
    tested = read_split(_split(tmp_path, rows, protocol=protocol), 0)["test"]
    assert read_split(_split(tmp_path, rows, protocol=protocol, seed=5), 0)["test"] != tested


def test_the_hash_seed_of_python_changes_nothing(tmp_path):
    write_rows(tmp_path / "cases.csv", _COLUMNS, _random_cases(3))
    code = (
        "import sys; from ultrarefiner.config import SplitsConfig;"
        "from ultrarefiner.datasets.splits import split_folds;"
        "split_folds(sys.argv[1], None, sys.argv[2], SplitsConfig(holdout=0.2))"
    )
    made = []
    for hash_seed in ("0", "1", "12345"):
        output = tmp_path / f"splits_{hash_seed}.csv"
        subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "cases.csv"), str(output)],
            check=True,
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
        )
        made.append(output.read_bytes())
    assert made[0] == made[1] == made[2]


def test_folds_are_balanced_by_images_and_by_label(tmp_path):
    rows = [
        {"case": f"c{i:03d}", "patient": "", "group": f"c{i:03d}", "label": label}
        for i, label in enumerate(["benign"] * 62 + ["malignant"] * 31)
    ]
    path = _split(tmp_path, rows, folds=5, validation=0.2)
    label = {row["case"]: row["label"] for row in rows}
    for fold in range(5):
        split = read_split(path, fold)
        test = Counter(label[case] for case in split["test"])
        assert 18 <= len(split["test"]) <= 19
        assert test["benign"] in (12, 13) and test["malignant"] in (6, 7)
        validation = Counter(label[case] for case in split["validation"])
        assert len(split["validation"]) == 15
        assert validation == {"benign": 10, "malignant": 5}


def test_folds_are_balanced_by_images_when_groups_differ_in_size(tmp_path):
    path = _split(tmp_path, _random_cases(11, groups=60), folds=5)
    sizes = [len(read_split(path, fold)["test"]) for fold in range(5)]
    assert max(sizes) - min(sizes) <= 3


def test_a_duplicate_across_classes_stays_in_one_fold(tmp_path):
    rows = [
        {"case": f"c{i:02d}", "patient": "", "group": f"c{i:02d}", "label": "benign"}
        for i in range(30)
    ]
    rows[25].update(group="c04", label="malignant")
    for seed in range(20):
        path = _split(tmp_path, rows, seed=seed)
        for fold in range(5):
            roles = {row["role"] for row in read_rows(path) if row["group"] == "c04"
                     and row["fold"] == str(fold)}  # fmt: skip
            assert len(roles) == 1


def test_group_option_chooses_the_column(tmp_path):
    rows = [
        {"case": f"c{i:02d}", "patient": f"p{i // 2}", "group": f"g{i // 4}", "label": ""}
        for i in range(40)
    ]
    for option, column in {
        "auto": "group",
        "patient": "patient",
        "image": "case",
    }.items():
        expected = {row["case"]: row[column] for row in rows}
        path = _split(tmp_path, rows, group=option)
        assert {row["case"]: row["group"] for row in read_rows(path)} == expected
    rows[3]["patient"] = ""
    with pytest.raises(SplitError, match=r"'patient'.*c03.*splits\.group: auto"):
        _split(tmp_path, rows, group="patient")


def _sets(path):
    """Return the sets of cases that share a group."""
    members = defaultdict(set)
    for row in read_rows(path):
        members[row["group"]].add(row["case"])
    return sorted(map(sorted, members.values()))


def test_patients_with_equal_pixels_are_joined(tmp_path, caplog):
    rows = [
        {"case": f"c{i:02d}", "patient": f"p{i // 2:02d}", "group": f"g{i // 2}", "label": "",
         "sha256": f"s{i}"}
        for i in range(20)
    ]  # fmt: skip
    assert len(_sets(_split(tmp_path, rows, group="patient"))) == 10
    assert not caplog.records
    # Patients 1, 4 and 7 through two pairs of equal pixels.
    rows[2]["sha256"] = rows[8]["sha256"]
    rows[9]["sha256"] = rows[15]["sha256"]
    path = _split(tmp_path, rows, group="patient")
    sets = _sets(path)
    assert len(sets) == 8 and ["c02", "c03", "c08", "c09", "c14", "c15"] in sets
    assert {row["group"] for row in read_rows(path) if row["case"] in ("c02", "c15")} == {"p01"}
    assert "3 patients share images of equal pixels, and are kept together as 1" in caplog.text
    assert _split(tmp_path, rows[::-1], group="patient").read_bytes() == path.read_bytes()


def test_duplicates_are_kept_together_and_patients_are_not(tmp_path, caplog):
    rows = [
        {"case": f"c{i:02d}", "patient": f"p{i // 2}" if i < 10 else "", "label": "",
         "group": f"g{i // 2}" if i < 10 else f"n{i // 3}", "sha256": f"s{i}"}
        for i in range(30)
    ]  # fmt: skip
    rows[5]["sha256"] = rows[0]["sha256"]
    rows[6]["sha256"] = rows[11]["sha256"]
    expected = [["c00", "c05"], *[[f"c{i:02d}"] for i in (1, 2, 3, 4, 7, 8, 9)],
                ["c06", "c10", "c11"],
                *[[f"c{i + k:02d}" for k in range(3)] for i in range(12, 30, 3)]]  # fmt: skip
    assert _sets(_split(tmp_path, rows, group="duplicates")) == sorted(expected)
    assert not caplog.records
    assert len(_sets(_split(tmp_path, rows, group="image"))) == 30
    assert "4 images have the pixels of another one" in caplog.text


def test_seed_protocol_is_the_kfold_of_scikit_learn(tmp_path, caplog):
    rows = _random_cases(5)
    with caplog.at_level(logging.WARNING):
        path = _split(tmp_path, rows, protocol="seed", folds=5, seed=123)
    assert "cases in more than one fold" in caplog.text
    cases = sorted(row["case"] for row in rows)
    expected = KFold(n_splits=5, shuffle=True, random_state=123).split(cases)
    for fold, (train, test) in enumerate(expected):
        split = read_split(path, fold)
        assert split["train"] == [cases[i] for i in train]
        assert split["test"] == split["validation"] == [cases[i] for i in test]
        assert split["holdout"] == []


def _published(rows, folds, start=0):
    return [
        {"case": row["case"], "folds": folds, "fold": int(row["group"][1:]) % folds + start}
        for row in rows
    ]


@pytest.mark.parametrize("start", [0, 1])
def test_published_folds_are_taken_as_they_are(tmp_path, start):
    rows = _random_cases(9, groups=30)
    published = _published(rows, 10, start) + _published(rows, 5, start)
    published.append({"case": "set__excluded", "folds": 5, "fold": start})
    path = _split(tmp_path, rows, published, "published", folds=5)
    for fold in range(5):
        expected = sorted(row["case"] for row in rows if int(row["group"][1:]) % 5 == fold)
        split = read_split(path, fold)
        assert split["test"] == expected
        group = {row["case"]: row["group"] for row in rows}
        train, validation = ({group[c] for c in split[r]} for r in ("train", "validation"))
        assert train and validation and not train & validation


def test_published_folds_that_do_not_fit_are_refused(tmp_path):
    rows = _random_cases(9, groups=30)
    published = _published(rows, 5)
    with pytest.raises(SplitError, match=r"splits\.folds: 4.*published: 5.*folds: made"):
        _split(tmp_path, rows, published, "published", folds=4)
    for nothing in (None, []):
        with pytest.raises(SplitError, match=r"has no published folds.*folds: made") as error:
            _split(tmp_path, rows, nothing, "published", folds=5)
        assert "one of these" not in str(error.value)
    with pytest.raises(SplitError, match=f"have no fold.*{published[0]['case']}"):
        _split(tmp_path, rows, published[1:], "published", folds=5)
    with pytest.raises(SplitError, match=r"protocol: seed.*folds: made"):
        _split(tmp_path, rows, published, "published", protocol="seed")
    with pytest.raises(SplitError, match="each fold needs a case"):
        squeezed = [{**row, "fold": min(row["fold"], 3)} for row in published]
        _split(tmp_path, rows, squeezed, "published", folds=5)
    group = next(g for g, n in Counter(row["group"] for row in rows).items() if n > 1)
    pair = sorted(row["case"] for row in rows if row["group"] == group)
    for row in published:
        if row["case"] == pair[0]:
            row["fold"] = (row["fold"] + 1) % 5
    with pytest.raises(SplitError, match=f"{pair[0]} in fold .*{pair[1]} in fold .*folds: made"):
        _split(tmp_path, rows, published, "published", folds=5)


def test_too_few_groups_are_refused_with_numbers_and_a_cure(tmp_path):
    rows = _random_cases(1, groups=4)
    with pytest.raises(SplitError, match=r"4 group\(s\) cannot fill 5 folds.*at most 4"):
        _split(tmp_path, rows, folds=5)
    with pytest.raises(SplitError, match=r"fold 0 has 1 group\(s\).*too few.*add cases"):
        _split(tmp_path, _random_cases(1, groups=2), folds=2)
    with pytest.raises(SplitError, match=r"2 group\(s\) cannot fill 5 folds. Add cases\."):
        _split(tmp_path, _one_by_one(2), folds=5)
    with pytest.raises(SplitError, match=r"1 case\(s\) cannot fill 5 folds. Add cases\."):
        _split(tmp_path, _one_by_one(1), folds=5, protocol="seed")
    with pytest.raises(SplitError, match=r"cannot fill 20 folds"):
        _split(tmp_path, rows, folds=20, protocol="seed")
    with pytest.raises(SplitError, match="no cases"):
        _split(tmp_path, [])
    with pytest.raises(SplitError, match="more than once"):
        _split(tmp_path, [*rows, rows[0]])
    assert not (tmp_path / "splits.csv").exists()


def _one_by_one(count, groups=None):
    return [
        {"case": f"c{i:02d}", "patient": "", "group": f"g{min(i, (groups or count) - 1)}",
         "label": ""}
        for i in range(count)
    ]  # fmt: skip


@pytest.mark.parametrize("group", ["auto", "image"])
def test_cures_are_offered_only_if_they_help(tmp_path, group):
    def message(rows, **options):
        with pytest.raises(SplitError) as error:
            _split(tmp_path, rows, group=group, **options)
        return str(error.value)

    # As many images as groups: grouping by image changes nothing.
    assert "splits.group" not in message(_one_by_one(4), folds=5)
    assert "splits.group" not in message(_one_by_one(2), folds=2)
    held = message(_one_by_one(6), folds=5, holdout=0.4)
    assert "at most 4" in held and "smaller `splits.holdout`" in held
    if group == "auto":
        assert "splits.group: image" in message(_one_by_one(9, groups=4), folds=5)
        assert "splits.group" not in message(_one_by_one(9, groups=4), folds=10)


def test_the_number_of_folds_that_is_advised_works(tmp_path):
    # One large group against three small ones leaves one group to train on in two folds.
    rows = _one_by_one(13, groups=4)
    with pytest.raises(SplitError, match=r"Set `splits\.folds: 3`"):
        _split(tmp_path, rows, folds=2)
    _split(tmp_path, rows, folds=3)
    with pytest.raises(SplitError, match="at most 3"):
        _split(tmp_path, _one_by_one(3), folds=5)
    _split(tmp_path, _one_by_one(3), folds=3)


def test_reading_refuses_absent_folds_and_leaks(tmp_path):
    path = _split(tmp_path, _random_cases(2), folds=3)
    with pytest.raises(SplitError, match=r"no fold 3, only 0, 1, 2"):
        read_split(path, 3)
    rows = read_rows(path)
    leaked = next(row for row in rows if row["role"] == "test" and row["fold"] == "1")
    write_rows(path, ["case", "group", "fold", "role"], [*rows, {**leaked, "role": "train"}])
    read_split(path, 0)
    with pytest.raises(SplitError, match=leaked["case"]):
        read_split(path, 1)
