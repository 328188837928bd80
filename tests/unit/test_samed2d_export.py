"""What is exported for other tools reads back equal, and nothing that is tested is trained on."""

import json

import numpy as np
import pytest

from tests.prepared_data import prepare
from tests.workflow.planner import Planner
from tests.workflow.study import TINY, changed
from ultrarefiner.config import SplitsConfig
from ultrarefiner.datasets import find_cases, read_case
from ultrarefiner.datasets.loader import read_cases, read_prepared
from ultrarefiner.datasets.phantom import write_phantom
from ultrarefiner.datasets.prepare import prepare_dataset
from ultrarefiner.datasets.samed2d_export import export_samed2d
from ultrarefiner.datasets.splits import COLUMNS, read_split, split_folds
from ultrarefiner.errors import DatasetError, SplitError
from ultrarefiner.io import read_rows, write_rows


def prepared_phantom(folder, layout, cases=12, options=None, include_empty=False):
    """Prepare phantoms of a layout and make two folds; return the folder `prepared`."""
    write_phantom(layout, folder / "raw", cases=cases, size=56, seed=2, odd_cases=True)
    home = folder / "prepared"
    prepare_dataset(
        "study",
        layout,
        folder / "raw",
        include_empty,
        **{name: home / f"{name}.csv" for name in ("cases", "published_folds", "excluded")},
        **{name: home / name for name in ("npz", "images", "masks")},
        options=options,
    )
    return home


def split(home, **config):
    config = SplitsConfig(**{"folds": 2, "validation": 0.25, "holdout": 0.15} | config)
    split_folds(home / "cases.csv", None, home.parent / "splits.csv", config)
    return home.parent / "splits.csv"


@pytest.fixture(scope="module")
def each(tmp_path_factory):
    """A dataset with a case for each mask, and its folds."""
    home = prepared_phantom(tmp_path_factory.mktemp("each"), "samed2d", options={"masks": "each"})
    return home, split(home)


def test_what_is_read_back_has_the_same_pixels_and_labels(each, tmp_path):
    home, table = each
    export_samed2d(home, table, "fold1", tmp_path / "out")
    options = {"masks": "each"}
    cases = find_cases("samed2d", tmp_path / "out", options=options, include_empty=True)
    rows = {row["mask"]: row for row in read_rows(tmp_path / "out" / "cases.csv")}
    split_of = {"train": "train", "validation": "train", "test": "test", "holdout": "test"}
    assert len(cases) == len(rows) == len(read_cases(home / "cases.csv"))
    for case in cases:
        row = rows[case.part]
        assert case.split == split_of[row["role"]]
        for raw, stored in zip(read_case(case), read_prepared(home, row["case"]), strict=True):
            assert np.array_equal(raw, stored)
    roles = read_split(table, 1)
    assert {
        role: sorted(r["case"] for r in rows.values() if r["role"] == role) for role in roles
    } == (roles)


def test_an_image_of_several_masks_is_written_once_with_its_masks(each, tmp_path):
    home, table = each
    export_samed2d(home, table, "fold0", tmp_path / "out")
    rows = read_cases(home / "cases.csv")
    images = {row.image for row in rows}
    assert len(images) < len(rows)
    assert len(list(tmp_path.glob("out/*/images/*.png"))) == len(images)
    train = json.loads((tmp_path / "out/train/image2label_train.json").read_text())
    test = json.loads((tmp_path / "out/test/label2image_test.json").read_text())
    assert {len(masks) for masks in train.values()} == {1, 2}
    assert sum(map(len, train.values())) + len(test) == len(rows)
    # Relative to the folder that holds train/ and test/: that is what dataset.json says.
    for path in [*train, *(mask for masks in train.values() for mask in masks), *test]:
        assert (tmp_path / "out" / path).is_file()
    about = json.loads((tmp_path / "out/dataset.json").read_text())
    assert about["layout"] == "samed2d" and "relative to the folder of this file" in about["paths"]
    assert about["parts"]["train"]["masks"] == sum(map(len, train.values()))
    together = find_cases("samed2d", tmp_path / "out", include_empty=True)
    assert len(together) == len(images)


def test_images_of_a_patient_are_in_one_part(each, tmp_path):
    home, table = each
    export_samed2d(home, table, "fold0", tmp_path / "out")
    part_of = {}
    for row in read_rows(tmp_path / "out" / "cases.csv"):
        part = row["image"].split("/")[0]
        assert part_of.setdefault(row["patient"], part) == part


def test_nothing_that_is_tested_is_in_train_though_it_validates_too(tmp_path):
    """With `protocol: seed` the validation cases are the test cases."""
    home = prepared_phantom(tmp_path, "bus")
    table = split(home, protocol="seed")
    export_samed2d(home, table, "fold0", tmp_path / "out")
    roles = read_split(table, 0)
    assert roles["validation"] == roles["test"]
    train = sorted(path.stem for path in (tmp_path / "out/train/images").iterdir())
    test = sorted(path.stem for path in (tmp_path / "out/test/images").iterdir())
    assert train == roles["train"] and test == sorted(roles["test"] + roles["holdout"])


@pytest.mark.parametrize("layout", ["busi", "nifti"])
def test_of_an_unseen_dataset_all_cases_are_tested_on(tmp_path, layout):
    home = prepared_phantom(tmp_path, layout, cases=8, include_empty=True)
    cases = read_cases(home / "cases.csv")
    rows = [{"case": c.case, "group": c.group, "fold": "", "role": "unseen"} for c in cases[1:]]
    write_rows(tmp_path / "unseen.csv", COLUMNS, rows)
    export_samed2d(home, tmp_path / "unseen.csv", "unseen", tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        *("cases.csv", "dataset.json", "test"),
    ]
    again = prepare("again", "samed2d", tmp_path / "out", tmp_path / "again", include_empty=True)
    assert [row.sha256 for row in again.values()] == [case.sha256 for case in cases[1:]]
    for case, row in zip(again, cases[1:], strict=True):
        label = read_prepared(tmp_path / "again", case)[1]
        assert np.array_equal(label, read_prepared(home, row.case)[1])


def test_parts_and_tables_that_do_not_fit_are_refused_and_nothing_is_left(each, tmp_path):
    home, table = each
    output = tmp_path / "out"
    with pytest.raises(SplitError, match="parts to export are fold0"):
        export_samed2d(home, table, "holdout-mean", output)
    with pytest.raises(SplitError, match="has no fold 7"):
        export_samed2d(home, table, "fold7", output)
    write_rows(
        tmp_path / "unseen.csv",
        COLUMNS,
        [{"case": "study__gone", "group": "g", "fold": "", "role": "unseen"}],
    )
    with pytest.raises(DatasetError, match=r"study__gone.*Delete"):
        export_samed2d(home, tmp_path / "unseen.csv", "unseen", output)
    mask = next((home / "masks").iterdir())
    hidden = mask.rename(mask.with_name(f".{mask.name}"))
    with pytest.raises(DatasetError, match=r"is missing; delete its folder"):
        export_samed2d(home, table, "fold0", output)
    hidden.rename(mask)
    assert [path.name for path in tmp_path.iterdir()] == ["unseen.csv"]


def test_a_plan_exports_only_what_asks_for_it(tmp_path):
    small = {"cases": 14, "size": 64}
    study = changed(
        TINY,
        datasets={
            "busi": {"phantom": small},
            "busbra": {"phantom": small, "export": "samed2d"},
            "stu": {"phantom": small, "role": "unseen", "export": "samed2d"},
        },
        compare__refine={},
    )
    with Planner() as planner:
        plan = planner.plan(tmp_path, study)
    made = sorted(one.path for one in plan.outputs if one.rule == "export_samed2d")
    assert made == [
        "results/tiny/busbra/samed2d/fold0",
        "results/tiny/busbra/samed2d/fold1",
        "results/tiny/stu/samed2d/unseen",
    ]
