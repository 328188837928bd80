"""What MedSAM2's own training reads: whole volumes, each in the folder of its one role."""

import json
import shutil

import numpy as np
import pytest

from tests.volume_data import prepared, save_pair
from ultrarefiner.config import SplitsConfig
from ultrarefiner.datasets.loader import read_prepared
from ultrarefiner.datasets.medsam2_export import export_medsam2
from ultrarefiner.datasets.splits import COLUMNS, read_split, split_folds
from ultrarefiner.errors import DatasetError, SplitError, UltraRefinerError
from ultrarefiner.images import write_mask
from ultrarefiner.io import read_rows, write_rows

AFFINE = np.diag([0.4, 0.4, 1.2, 1.0])
ROLES = ("train", "validation", "test", "holdout")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A dataset of 10 volumes, prepared in `prepared/`, and its two folds."""
    folder = tmp_path_factory.mktemp("made")
    for seed in range(10):
        save_pair(folder / "raw", f"v{seed}", AFFINE, seed=seed)
    prepared(folder / "raw", folder / "prepared")
    return split(folder)


@pytest.fixture
def home(made, tmp_path):
    """The same, to be changed."""
    return shutil.copytree(made, tmp_path / "home")


def split(home, **config):
    config = SplitsConfig(**{"folds": 2, "validation": 0.25, "holdout": 0.15} | config)
    split_folds(home / "prepared/cases.csv", None, home / "splits.csv", config)
    return home


def export(home, part="fold0", table="splits.csv"):
    base = home / "prepared"
    tables = base / "volumes.csv", base / "slices.csv"
    export_medsam2(base, *tables, home / table, part, home / "out" / part)
    return home / "out" / part


def test_each_volume_is_in_the_folder_of_its_role_and_in_no_other(home):
    for fold in range(2):
        out = export(home, f"fold{fold}")
        split_of = read_split(home / "splits.csv", fold)
        expected = {
            role: sorted({case.rpartition("_slice_")[0] for case in split_of[role]})
            for role in ROLES
        }
        found = {role: sorted(path.stem for path in (out / role).iterdir()) for role in ROLES}
        assert found == expected and all(found.values())
        assert sum(map(len, found.values())) == len(set().union(*found.values())) == 10
        rows = {row["volume"]: row for row in read_rows(out / "volumes.csv")}
        assert {row["file"] for row in rows.values()} == {
            f"{role}/{name}.npz" for role, names in found.items() for name in names
        }
        about = json.loads((out / "dataset.json").read_text())
        assert about["roles"] == {role: len(names) for role, names in sorted(found.items())}


def test_a_file_holds_the_prepared_slices_and_numbers_the_lesions(home):
    out = export(home)
    for path in out.glob("*/*.npz"):
        with np.load(path, allow_pickle=False) as arrays:
            images, labels, spacing = arrays["imgs"], arrays["gts"], arrays["spacing"]
        assert images.dtype == labels.dtype == np.uint8
        assert images.shape == labels.shape == (6, 20, 16)
        assert spacing.tolist() == [1.2, 0.4, 0.4]
        for index in range(6):
            image, label = read_prepared(home / "prepared", f"{path.stem}_slice_{index:03d}")
            assert np.array_equal(images[index], image[..., 0])
            assert np.array_equal(labels[index] > 0, label > 0)
        assert set(np.unique(labels)) == {0, 1, 2}
        # The one in a slice of its own is one object, the one through slices another.
        assert len({*np.unique(labels[:, 15:17])} - {0}) == 1
        assert len({*np.unique(labels[:, 5:11])} - {0}) == 1


def test_lesions_that_touch_by_a_corner_are_one_object(home):
    folder = home / "prepared/masks"
    for index in range(6):
        mask = np.zeros((20, 16), bool)
        mask[2 * index : 2 * index + 2, 2 * index : 2 * index + 2] = True
        write_mask(folder / f"study__v0_slice_{index:03d}.png", mask)
    out = export(home)
    (row,) = [row for row in read_rows(out / "volumes.csv") if row["volume"] == "study__v0"]
    assert row["objects"] == "1"


def test_a_volume_without_a_lesion_is_left_out_of_what_is_trained_on_and_named(home, caplog):
    base = home / "prepared"
    split_of = read_split(home / "splits.csv", 0)
    blank = {role: split_of[role][0].rpartition("_slice_")[0] for role in ("train", "test")}
    for name in blank.values():
        for index in range(6):
            write_mask(base / "masks" / f"{name}_slice_{index:03d}.png", np.zeros((20, 16), bool))
    out = export(home)
    assert not (out / f"train/{blank['train']}.npz").exists()
    assert (out / f"test/{blank['test']}.npz").exists()
    assert json.loads((out / "dataset.json").read_text())["left_out"] == [blank["train"]]
    assert blank["train"] in caplog.text


def test_what_validates_and_is_tested_is_in_test_alone(home):
    rows = [row for row in read_rows(home / "splits.csv") if row["role"] != "validation"]
    tested = [dict(row, role="validation") for row in rows if row["role"] == "test"]
    write_rows(home / "splits.csv", list(rows[0]), [*rows, *tested])
    out = export(home)
    assert sorted(path.name for path in out.iterdir()) == [
        *("dataset.json", "holdout", "test", "train", "volumes.csv")
    ]
    train, test = ({path.stem for path in (out / role).iterdir()} for role in ("train", "test"))
    assert train and test and not train & test


def test_of_an_unseen_dataset_all_volumes_are_tested_on(home):
    rows = [
        {"case": row["case"], "group": row["group"], "fold": "", "role": "unseen"}
        for row in read_rows(home / "prepared/cases.csv")
        if "__v0_" not in row["case"]
    ]
    write_rows(home / "unseen.csv", COLUMNS, rows)
    out = export(home, "unseen", "unseen.csv")
    assert sorted(path.name for path in out.glob("*/*.npz")) == [
        f"study__v{seed}.npz" for seed in range(1, 10)
    ]
    assert {path.parent.name for path in out.glob("*/*.npz")} == {"test"}


def test_folds_that_part_volumes_are_refused(home):
    with pytest.raises(SplitError, match=r"several roles .*splits\.protocol: nested"):
        export(split(home, protocol="seed"))


def test_a_volume_of_two_roles_is_refused(home):
    rows = read_rows(home / "splits.csv")
    for row in rows:
        if row["case"] == "study__v0_slice_003":
            row["role"] = {"train": "test", "test": "train"}.get(row["role"], "train")
    write_rows(home / "splits.csv", list(rows[0]), rows)
    with pytest.raises(SplitError, match=r"study__v0 have several roles .*splits\.group: auto"):
        export(home)
    assert not (home / "out/fold0").exists()


def test_parts_that_are_no_folds_and_missing_files_are_refused(home):
    with pytest.raises(SplitError, match="'holdout' cannot be exported"):
        export(home, "holdout")
    (home / "prepared/images/study__v4_slice_002.png").unlink()
    with pytest.raises(UltraRefinerError, match="study__v4_slice_002"):
        export(home)
    assert not (home / "out/fold0").exists()


def test_more_lesions_than_numbers_are_refused(tmp_path):
    for seed in range(4):
        save_pair(tmp_path / "raw", f"v{seed}", AFFINE, seed=seed, shape=(6, 48, 48))
    prepared(tmp_path / "raw", tmp_path / "prepared")
    dots = np.zeros((48, 48), bool)
    dots[::2, ::2] = True
    write_mask(tmp_path / "prepared/masks/study__v0_slice_003.png", dots)
    with pytest.raises(DatasetError, match=r"v0\.nii\.gz: has 5\d\d separate lesions, .* 255"):
        export(split(tmp_path, holdout=0.0))
