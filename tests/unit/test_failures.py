"""Guards: simulated masks on disk are whole, the same for any number of workers, and of their source's fold."""

import csv
import math
import os
import subprocess
import sys

import numpy as np
import pytest

from tests.prepared_data import prepare
from ultrarefiner.config import SimulationConfig, SplitsConfig
from ultrarefiner.datasets.loader import read_cases, read_prepared
from ultrarefiner.datasets.phantom import write_phantom
from ultrarefiner.datasets.splits import ROLES, read_split, split_folds
from ultrarefiner.errors import DatasetError, UltraRefinerError
from ultrarefiner.images import read_probability
from ultrarefiner.training.corrupt import simulate_failure
from ultrarefiner.training.failures import COLUMNS, read_failures, simulate_failures

SEED, COPIES = 5, 3


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    root = tmp_path_factory.mktemp("study")
    write_phantom("busi", root / "raw", cases=9, size=64, seed=0, odd_cases=False)
    prepare("busi", "busi", root / "raw", root / "busi/prepared", include_empty=True)
    return root / "busi/prepared"


@pytest.fixture(scope="module")
def written(prepared, tmp_path_factory):
    folder = tmp_path_factory.mktemp("failures")
    write(prepared, folder)
    return folder


def write(prepared, folder, **changes):
    given = {"simulation": {}, "seed": SEED, "copies": COPIES} | changes
    simulate_failures(
        **given, prepared=prepared, output=folder / "tuned", table=folder / "tuned.csv"
    )


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted((folder / "tuned").iterdir())} | {
        "table": (folder / "tuned.csv").read_bytes()
    }


def test_masks_and_table_are_what_is_simulated(prepared, written):
    failures = read_failures(written / "tuned.csv")
    cases = [row.case for row in read_cases(prepared / "cases.csv")]
    assert list(failures) == cases
    assert {path.name for path in (written / "tuned").iterdir()} == {
        failure.file for mine in failures.values() for failure in mine
    }
    assert read_table(written)[0].keys() == set(COLUMNS)
    for case, mine in failures.items():
        label = read_prepared(prepared, case)[1]
        assert [failure.copy for failure in mine] == [0, 1, 2]
        for failure in mine:
            made = simulate_failure(label, SimulationConfig(), SEED, case, failure.copy)
            stored = read_probability(written / "tuned" / f"{case}-{failure.copy}.png")
            assert np.abs(stored - made.soft).max() <= 0.5 / 255 + 1e-6
            assert np.array_equal(stored >= 0.5, made.mask)
            assert (failure.kind, failure.band) == (made.kind, made.band)
            assert (failure.reached, failure.reason) == (made.reached, made.reason)
            assert failure.dice == pytest.approx(made.dice, abs=1e-6)
            assert failure.severity == pytest.approx(made.severity, abs=1e-6)
            assert failure.area_ratio == pytest.approx(made.area_ratio, abs=1e-6)
            assert failure.soft == (made.temperature is not None)
            if made.temperature is not None:
                assert failure.temperature == pytest.approx(made.temperature, abs=1e-6)


def test_an_image_without_a_lesion_keeps_its_empty_mask(prepared, written):
    failures = read_failures(written / "tuned.csv")
    normal = [case for case in failures if not read_prepared(prepared, case)[1].any()]
    assert normal
    for case in normal:
        for failure in failures[case]:
            assert failure.kind == "identity" and "empty" in failure.reason
            assert not read_probability(written / "tuned" / failure.file).any()


@pytest.mark.parametrize("workers", [2, 3])
def test_any_number_of_workers_writes_the_same_bytes(prepared, written, tmp_path, workers):
    write(prepared, tmp_path, workers=workers)
    assert contents(tmp_path) == contents(written)


def test_another_process_writes_the_same_bytes_whatever_its_hash_seed(prepared, written, tmp_path):
    code = (
        "import sys; from ultrarefiner.training.failures import simulate_failures as s\n"
        f"s({{}}, {SEED}, {COPIES}, *sys.argv[1:4], workers=2)\n"
        "assert 'torch' not in sys.modules"
    )
    given = [str(prepared), str(tmp_path / "tuned"), str(tmp_path / "tuned.csv")]
    environment = {**os.environ, "PYTHONHASHSEED": "77"}
    subprocess.run([sys.executable, "-c", code, *given], env=environment, check=True)
    assert contents(tmp_path) == contents(written)


def test_more_copies_change_none(prepared, written, tmp_path):
    write(prepared, tmp_path, copies=1)
    fewer, all_of_them = contents(tmp_path), contents(written)
    assert len(fewer) - 1 == (len(all_of_them) - 1) / COPIES
    assert all(all_of_them[name] == data for name, data in fewer.items() if name != "table")


def test_what_stood_there_before_is_gone(prepared, tmp_path):
    (tmp_path / "tuned").mkdir()
    (tmp_path / "tuned/stale.png").write_bytes(b"old")
    write(prepared, tmp_path, copies=1, simulation={"preset": "severe", "soft": 0.0})
    assert not (tmp_path / "tuned/stale.png").exists()
    assert not any(f.soft for mine in read_failures(tmp_path / "tuned.csv").values() for f in mine)


def test_nothing_half_written_is_left(prepared, tmp_path):
    broken = tmp_path / "busi/prepared"
    broken.mkdir(parents=True)
    (broken / "cases.csv").write_bytes((prepared / "cases.csv").read_bytes())
    with pytest.raises(DatasetError, match="run prepare_dataset"):
        write(broken, tmp_path)
    assert not (tmp_path / "tuned").exists() and not (tmp_path / "tuned.csv").exists()
    with pytest.raises(DatasetError, match=r"cases\.csv"):
        write(tmp_path, tmp_path)


def test_several_datasets_and_none_twice(prepared, written, tmp_path):
    write_phantom("stu", tmp_path / "raw", cases=3, size=128, seed=1, odd_cases=False)
    prepare("stu", "stu", tmp_path / "raw", tmp_path / "stu/prepared")
    write([prepared, tmp_path / "stu/prepared"], tmp_path)
    both, one = contents(tmp_path), contents(written)
    assert len(both) == len(one) + 3 * COPIES
    assert all(both[name] == data for name, data in one.items() if name != "table")
    with pytest.raises(DatasetError, match="name each dataset once"):
        write([prepared, prepared], tmp_path)


def test_a_copy_is_in_the_fold_of_its_source(prepared, written, tmp_path):
    split_folds(
        prepared / "cases.csv", None, tmp_path / "splits.csv", SplitsConfig(folds=3, seed=1)
    )
    failures = read_failures(written / "tuned.csv")
    assert all(f.case == f.source == case for case, mine in failures.items() for f in mine)
    # Copies have no ids of their own, so there is nothing that a split could place elsewhere.
    for fold in range(3):
        roles = read_split(tmp_path / "splits.csv", fold)
        files = {role: {f.file for case in roles[role] for f in failures[case]} for role in ROLES}
        assert len(files["train"]) == COPIES * len(roles["train"])
        assert not files["train"] & (files["validation"] | files["test"])


def read_table(folder):
    with open(folder / "tuned.csv", newline="") as handle:
        return list(csv.DictReader(handle))


def test_infinite_ratios_are_read_back(written, tmp_path):
    rows = read_table(written)
    rows[0]["area_ratio"] = "inf"
    save(tmp_path / "f.csv", rows)
    first = read_failures(tmp_path / "f.csv")[rows[0]["case"]][0]
    assert math.isinf(first.area_ratio)


def save(path, rows):
    with open(path, "w", newline="") as handle:
        writer = csv.DictWriter(handle, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


@pytest.mark.parametrize(
    ("column", "value", "told"),
    [
        ("copy", "first", "line 3"),
        ("kind", "disaster", "'disaster' is no kind"),
        ("soft", "maybe", "maybe"),
        ("dice", "", "line 3"),
        ("source", "busi__other", "busi__other"),
        ("copy", "0", "is there twice"),
    ],
)
def test_a_damaged_row_is_named(written, tmp_path, column, value, told):
    rows = read_table(written)
    rows[1][column] = value
    save(tmp_path / "f.csv", rows)
    with pytest.raises(UltraRefinerError, match=told) as error:
        read_failures(tmp_path / "f.csv")
    assert "f.csv" in str(error.value) and "simulate_failures" in str(error.value)


def test_a_wrong_file_is_named(written, tmp_path):
    with pytest.raises(UltraRefinerError, match="run simulate_failures"):
        read_failures(tmp_path / "none.csv")
    rows = [{key: row[key] for key in row if key != "band"} for row in read_table(written)]
    save(tmp_path / "f.csv", rows)
    with pytest.raises(UltraRefinerError, match="lacks the columns band"):
        read_failures(tmp_path / "f.csv")
    (tmp_path / "f.csv").write_text(",".join(COLUMNS) + "\n")
    with pytest.raises(UltraRefinerError, match="lists no masks"):
        read_failures(tmp_path / "f.csv")
