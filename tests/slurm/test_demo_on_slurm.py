"""Guards the demo: all three phases here, and on a real Slurm in one flag with the same numbers."""

import csv
import re
import time

import numpy as np
import pytest
from typer.testing import CliRunner

from tests.slurm.cluster import Checkout, copy_checkout, end
from ultrarefiner.cli import app
from ultrarefiner.datasets.splits import read_split
from ultrarefiner.images import read_mask
from ultrarefiner.io import file_sha256, read_rows
from ultrarefiner.models.cards import read_card
from ultrarefiner.refine.guard_jobs import read_rule

pytestmark = pytest.mark.slow

DEMO = ("all", "--configfile", "config/demo.yaml")
CLOCKS = {"seconds"}
"""Columns that hold times."""


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """Return the results of the demo, run without a scheduler."""
    checkout = Checkout(copy_checkout(tmp_path_factory.mktemp("local") / "checkout"))
    process = checkout.start("--cores", "2", *DEMO)
    assert end(process, 900) == 0, checkout.said()[-6000:]
    return checkout.root / "results" / "demo"


@pytest.fixture(scope="module")
def on_slurm(cluster, tmp_path_factory):
    """Return what Snakemake said on Slurm, and the results."""
    checkout = Checkout(copy_checkout(tmp_path_factory.mktemp("demo") / "checkout"))
    started = time.monotonic()
    process = checkout.start("--profile", "slurm", *DEMO)
    assert end(process, 900) == 0, checkout.said()[-6000:]
    print(f"the demo took {time.monotonic() - started:.0f} s on the local Slurm")
    return checkout.said(), checkout.root / "results" / "demo"


def test_phases_are_chained_by_the_digests_of_their_models(here):
    for dataset in ("busi", "busbra"):
        models = here / dataset / "models"
        for fold in (0, 1):
            card = read_card(models / f"end_to_end/fold{fold}/card.json")
            for name in ("transunet", "repaired"):
                file = models / name / f"fold{fold}" / "model.safetensors"
                assert card["parents"][name] == file_sha256(file)
            test = set(read_split(here / dataset / "splits.csv", fold)["test"])
            behind = [card, *card["sources"]["parents"]]
            assert {entry["name"] for entry in behind} == {"end_to_end", "transunet", "repaired"}
            for entry in behind:
                assert not test & {*entry["trained_on"], *entry["selected_on"]}


def test_guarded_masks_are_what_the_rule_says(here):
    base = here / "busi"
    for fold in (0, 1):
        roles = read_split(base / "splits.csv", fold)
        rule = read_rule(base / f"guards/end_to_end/fold{fold}.json")
        assert rule.chosen_on == sorted(roles["validation"])
        shelf = base / f"masks/end_to_end-guarded/fold{fold}"
        table = {row["case"]: row for row in read_rows(shelf.with_suffix(".csv"))}
        assert sorted(table) == sorted(roles["test"])
        for case, row in table.items():
            guarded, coarse, refined = (
                read_mask(base / f"masks/{name}/fold{fold}/{case}.png")
                for name in ("end_to_end-guarded", "transunet", "end_to_end")
            )
            if row["verdict"].startswith("rejected"):
                assert np.array_equal(guarded, coarse)
            elif row["verdict"] == "kept":
                assert np.array_equal(guarded, refined)


def test_a_finished_run_predicts_new_images(here, tmp_path):
    base = here / "busi"
    case = read_split(base / "splits.csv", 0)["test"][0]
    for method in ("end_to_end", "end_to_end-guarded", "repaired-mask"):
        arguments = [
            "predict", str(base / f"prepared/images/{case}.png"), "--run", "demo",
            "--method", method, "--trainset", "busi", "--fold", "0", "--device", "cpu",
            "--results", str(here.parent), "-o", str(tmp_path / method),
        ]  # fmt: skip
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, result.output
        found = read_mask(tmp_path / method / "masks" / f"{case}.png")
        assert np.array_equal(found, read_mask(base / f"masks/{method}/fold0/{case}.png"))


def rows_without_times(path):
    with open(path, newline="") as handle:
        return [
            {key: value for key, value in row.items() if key not in CLOCKS}
            for row in csv.DictReader(handle)
        ]


def test_the_csv_files_equal_those_of_a_local_run(here, on_slurm):
    _, remote = on_slurm
    names = sorted(str(path.relative_to(here)) for path in here.rglob("*.csv"))
    assert names == sorted(str(path.relative_to(remote)) for path in remote.rglob("*.csv"))
    assert len([name for name in names if name.startswith("report/")]) >= 5
    different = [
        name
        for name in names
        if rows_without_times(remote / name) != rows_without_times(here / name)
    ]
    assert different == []


def test_short_jobs_shared_slurm_jobs_or_stayed_where_snakemake_ran(on_slurm):
    said, remote = on_slurm
    submitted = len(re.findall(r"has been submitted with SLURM jobid", said))
    jobs = int(re.search(r"^total +(\d+)$", said, re.M)[1])
    print(f"{jobs} jobs, {submitted} of them or groups of them sent to Slurm")
    assert submitted < jobs / 2
    assert not list((remote.parents[1] / "logs" / "slurm").rglob("*.log"))
