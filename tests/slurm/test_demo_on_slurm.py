"""Guards the promise of one flag: the demo on a real Slurm, and the same numbers as without one."""

import csv
import re
import time

import pytest

from tests.slurm.cluster import Checkout, copy_checkout, end

DEMO = ("all", "--configfile", "config/demo.yaml")
CLOCKS = {"seconds"}
"""Columns that hold times."""


@pytest.fixture(scope="module")
def finished(cluster, tmp_path_factory):
    """Return what Snakemake said, and the results of both runs: on Slurm and here."""
    root = copy_checkout(tmp_path_factory.mktemp("demo") / "checkout")
    local = copy_checkout(tmp_path_factory.mktemp("local") / "checkout")
    started = time.monotonic()
    process = Checkout(root).start("--profile", "slurm", *DEMO)
    assert end(process, 900) == 0, Checkout(root).said()[-6000:]
    print(f"the demo took {time.monotonic() - started:.0f} s on the local Slurm")
    here = Checkout(local).start("--cores", "2", *DEMO)
    assert end(here, 900) == 0, Checkout(local).said()[-6000:]
    return Checkout(root).said(), root / "results" / "demo", local / "results" / "demo"


def rows_without_times(path):
    with open(path, newline="") as handle:
        return [
            {key: value for key, value in row.items() if key not in CLOCKS}
            for row in csv.DictReader(handle)
        ]


def test_the_csv_files_equal_those_of_a_local_run(finished):
    _, remote, local = finished
    names = sorted(str(path.relative_to(local)) for path in local.rglob("*.csv"))
    assert names == sorted(str(path.relative_to(remote)) for path in remote.rglob("*.csv"))
    assert len([name for name in names if name.startswith("report/")]) >= 5
    different = [
        name
        for name in names
        if rows_without_times(remote / name) != rows_without_times(local / name)
    ]
    assert different == []


def test_short_jobs_shared_slurm_jobs_or_stayed_where_snakemake_ran(finished):
    said, remote, _ = finished
    submitted = len(re.findall(r"has been submitted with SLURM jobid", said))
    jobs = int(re.search(r"^total +(\d+)$", said, re.M)[1])
    print(f"{jobs} jobs, {submitted} of them or groups of them sent to Slurm")
    assert submitted < jobs / 2
    assert not list((remote.parents[1] / "logs" / "slurm").rglob("*.log"))
