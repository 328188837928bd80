"""Guards what a part of a dataset means: which cases, and whose models predict them."""

import pytest

from ultrarefiner.datasets.parts import Part, parse_part, read_part
from ultrarefiner.errors import SplitError
from ultrarefiner.io import write_rows


@pytest.mark.parametrize(
    ("name", "part", "cases"),
    [
        ("fold3", Part("fold3", "folds", fold=3), "fold3"),
        ("fold12", Part("fold12", "folds", fold=12), "fold12"),
        ("holdout-fold1", Part("holdout-fold1", "holdout", fold=1), "holdout"),
        ("holdout-mean", Part("holdout-mean", "holdout", "mean"), "holdout"),
        ("unseen-vote", Part("unseen-vote", "unseen", "vote"), "unseen"),
        ("unseen", Part("unseen", "unseen"), "unseen"),
    ],
)
def test_a_name_says_which_cases_and_who_predicts_them(name, part, cases):
    assert parse_part(name) == part
    assert parse_part(name).cases == cases


@pytest.mark.parametrize("name", ["", "fold", "fold-1", "holdout-", "unseen-median", "Fold0", "0"])
def test_any_other_name_is_refused(name):
    with pytest.raises(SplitError, match="is no part"):
        parse_part(name)


@pytest.fixture
def tables(tmp_path):
    rows = [
        {"case": case, "group": case, "fold": fold, "role": role}
        for fold, roles in enumerate((("test", "train"), ("train", "test")))
        for case, role in zip(("d__b", "d__a", "d__h"), (*roles, "holdout"), strict=True)
    ]
    write_rows(tmp_path / "splits.csv", list(rows[0]), rows)
    unseen = [{"case": "d__c", "group": "d__c", "fold": "", "role": "unseen"}]
    write_rows(tmp_path / "unseen.csv", list(rows[0]), unseen)
    return tmp_path


def test_the_cases_of_a_part_come_from_its_table(tables):
    assert read_part(tables / "splits.csv", "fold0") == ["d__b"]
    assert read_part(tables / "splits.csv", "fold1") == ["d__a"]
    for part in ("holdout", "holdout-fold0", "holdout-mean"):
        assert read_part(tables / "splits.csv", part) == ["d__h"]
    assert read_part(tables / "unseen.csv", "unseen-fold4") == ["d__c"]


def test_a_table_without_the_part_is_named(tables):
    with pytest.raises(SplitError, match=r"unseen\.csv has no case of role 'holdout'"):
        read_part(tables / "unseen.csv", "holdout-mean")
    with pytest.raises(SplitError, match=r"splits\.csv has no case of role 'unseen'"):
        read_part(tables / "splits.csv", "unseen-mean")
