"""Guards that a dataset's official test part trains and selects in no fold."""

import logging

import pytest

from ultrarefiner.config import SplitsConfig
from ultrarefiner.datasets.splits import read_split, split_folds
from ultrarefiner.errors import SplitError
from ultrarefiner.io import write_rows


def cases(path, groups, splits):
    """Write a cases.csv: for each case its group and its part of the official division."""
    rows = [
        {"case": f"abus__{i:02d}", "group": group, "patient": group, "label": "", "sha256": str(i),
         "split": split}
        for i, (group, split) in enumerate(zip(groups, splits, strict=True))
    ]  # fmt: skip
    write_rows(path, list(rows[0]), rows)
    return path


def test_the_official_test_part_is_the_hold_out_of_every_fold(tmp_path):
    splits = ["train", "test", "validation", "test"] * 5
    table = cases(tmp_path / "cases.csv", map(str, range(20)), splits)
    config = SplitsConfig(folds=3, holdout=0.3)
    split_folds(table, None, tmp_path / "splits.csv", config, official_test=True)
    official = [f"abus__{i:02d}" for i, split in enumerate(splits) if split == "test"]
    tested = []
    for fold in range(3):
        parts = read_split(tmp_path / "splits.csv", fold)
        assert parts["holdout"] == official
        tested += parts["test"]
        assert sorted(parts["train"] + parts["validation"] + parts["test"] + official) == sorted(
            f"abus__{i:02d}" for i in range(20)
        )
    assert sorted(tested) == sorted({f"abus__{i:02d}" for i in range(20)} - set(official))


@pytest.mark.parametrize("protocol", ["nested", "seed"])
def test_without_the_key_the_official_division_has_no_say(tmp_path, protocol):
    table = cases(tmp_path / "cases.csv", map(str, range(12)), ["test"] * 6 + ["train"] * 6)
    split_folds(table, None, tmp_path / "splits.csv", SplitsConfig(folds=3, protocol=protocol))
    assert read_split(tmp_path / "splits.csv", 0)["holdout"] == []


def test_who_shares_a_group_with_the_test_part_is_held_out_too(tmp_path, caplog):
    groups = ["a", "a", *"bcdefgh"]
    table = cases(tmp_path / "cases.csv", groups, ["test", *["train"] * 8])
    with caplog.at_level(logging.WARNING):
        split_folds(table, None, tmp_path / "splits.csv", SplitsConfig(folds=2), official_test=True)
    assert read_split(tmp_path / "splits.csv", 1)["holdout"] == ["abus__00", "abus__01"]
    assert "1 cases are held out too" in caplog.text and "abus__01" in caplog.text


def test_no_official_test_part_is_an_error_with_its_cure(tmp_path):
    table = cases(tmp_path / "cases.csv", map(str, range(9)), ["train"] * 9)
    with pytest.raises(SplitError, match=r"`official_test: false`"):
        split_folds(table, None, tmp_path / "s.csv", SplitsConfig(folds=2), official_test=True)
