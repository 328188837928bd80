"""Guards that a union keeps the folds of its members and lets no image train and be scored."""

import pytest

from ultrarefiner.datasets.overlaps import COLUMNS as COLUMNS_OF_OVERLAPS
from ultrarefiner.datasets.trainsets import join_splits
from ultrarefiner.errors import SplitError
from ultrarefiner.io import read_rows, write_rows

COLUMNS = ["case", "group", "fold", "role"]


def splits(path, folds, groups=None):
    """Write splits.csv: for each fold the roles of the cases, by name."""
    rows = [
        {"case": case, "group": (groups or {}).get(case, case), "fold": fold, "role": role}
        for fold, roles in enumerate(folds)
        for case, role in roles.items()
    ]
    write_rows(path, COLUMNS, rows)
    return path


def joined(tmp_path, members, pairs=(), outside=None):
    names = {case for pair in pairs for case in pair}
    group = {row["case"]: row["group"] for path in members.values() for row in read_rows(path)}
    group |= {case: (outside or {}).get(case, case) for case in names - set(group)}
    rows = [
        {"case": one, "dataset": one[0], "group": group[one], "other_case": other,
         "other_dataset": other[0], "other_group": group[other], "kind": "equal"}
        for one, other in pairs
    ]  # fmt: skip
    write_rows(tmp_path / "overlaps.csv", COLUMNS_OF_OVERLAPS, rows)
    join_splits(members, tmp_path / "overlaps.csv", tmp_path / "joined.csv")
    return {
        (row["case"], int(row["fold"])): row["role"] for row in read_rows(tmp_path / "joined.csv")
    }


A = [
    {"a__1": "test", "a__2": "train", "a__3": "validation", "a__4": "train"},
    {"a__1": "train", "a__2": "test", "a__3": "train", "a__4": "validation"},
]
B = [
    {"b__1": "test", "b__2": "train", "b__3": "validation", "b__4": "holdout"},
    {"b__1": "validation", "b__2": "test", "b__3": "train", "b__4": "holdout"},
]


@pytest.fixture
def members(tmp_path):
    return {"a": splits(tmp_path / "a.csv", A), "b": splits(tmp_path / "b.csv", B)}


def test_fold_k_is_fold_k_of_the_members(tmp_path, members):
    roles = joined(tmp_path, members)
    expected = {
        (case, fold): role
        for table in (A, B)
        for fold, cases in enumerate(table)
        for case, role in cases.items()
    }
    assert roles == expected


def test_a_copy_of_a_scored_image_trains_in_no_fold_where_it_is_scored(tmp_path, members):
    roles = joined(tmp_path, members, [("a__2", "b__1")])
    assert ("a__2", 0) not in roles  # b__1 is tested in fold 0
    assert roles["b__1", 0] == "test"
    assert roles["a__2", 1] == "test"
    assert ("b__1", 1) not in roles  # it would select in the fold that tests a__2


def test_a_copy_of_a_held_out_image_never_trains(tmp_path, members):
    roles = joined(tmp_path, members, [("b__4", "a__4")])
    assert not any(case == "a__4" for case, _ in roles)
    assert roles["b__4", 0] == roles["b__4", 1] == "holdout"


def test_both_copies_train_where_neither_is_scored(tmp_path, members):
    roles = joined(tmp_path, members, [("a__4", "b__2")])
    assert roles["a__4", 0] == roles["b__2", 0] == "train"


def test_the_whole_group_gives_way(tmp_path):
    groups = {"a__2": "p", "a__4": "p"}
    a, b = splits(tmp_path / "a.csv", A[:1], groups), splits(tmp_path / "b.csv", B[:1])
    extra = [{**B[0], "b__5": "train"}]
    b = splits(tmp_path / "b.csv", extra)
    more = [{**A[0], "a__5": "train"}]
    a = splits(tmp_path / "a.csv", more, groups)
    roles = joined(tmp_path, {"a": a, "b": b}, [("a__2", "b__1")])
    assert not {("a__2", 0), ("a__4", 0)} & set(roles)
    assert roles["a__5", 0] == roles["b__5", 0] == "train"


def test_groups_of_two_datasets_with_one_name_are_not_one(tmp_path):
    groups = {"a__2": "same", "b__1": "same"}
    a = splits(tmp_path / "a.csv", A[:1], groups)
    b = splits(tmp_path / "b.csv", B[:1], groups)
    roles = joined(tmp_path, {"a": a, "b": b}, [("a__4", "b__2")])
    assert roles["a__2", 0] == "train" and roles["b__1", 0] == "test"


def test_two_copies_of_an_image_outside_the_union_are_one_image(tmp_path, members):
    assert joined(tmp_path, members, [("a__2", "c__1")])["a__2", 0] == "train"
    roles = joined(tmp_path, members, [("a__2", "c__1"), ("c__1", "b__1")])
    assert ("a__2", 0) not in roles


def test_two_images_of_a_patient_outside_the_union_are_one_patients(tmp_path, members):
    pairs = [("a__2", "c__1"), ("c__2", "b__1")]
    assert joined(tmp_path, members, pairs)["a__2", 0] == "train"
    same = {"c__1": "p", "c__2": "p"}
    assert ("a__2", 0) not in joined(tmp_path, members, pairs, outside=same)


def test_a_fold_without_training_cases_is_an_error(tmp_path, members):
    pairs = [("a__2", "b__1"), ("a__4", "b__4"), ("b__2", "a__1")]
    with pytest.raises(SplitError, match="fold 0 has no train case"):
        joined(tmp_path, members, pairs)


def test_members_need_the_same_folds(tmp_path, members):
    members["b"] = splits(tmp_path / "b.csv", [*B, B[0]])
    with pytest.raises(SplitError, match=r"a has \[0, 1\]; b has \[0, 1, 2\]"):
        joined(tmp_path, members)
