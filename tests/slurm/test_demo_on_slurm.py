"""Guards the promise of one flag: the demo on a real Slurm, with the numbers of a local run."""

import csv
import re
import time

import pytest

from tests.checkout import DEMO, Checkout, copy_checkout
from tests.slurm.cluster import end

CLOCKS = {"seconds"}
"""Columns that hold times."""


@pytest.fixture(scope="module")
def on_slurm(cluster, tmp_path_factory):
    """Return what Snakemake said on Slurm, and the results."""
    checkout = Checkout(copy_checkout(tmp_path_factory.mktemp("demo") / "checkout"))
    started = time.monotonic()
    process = checkout.start("--profile", "slurm", *DEMO)
    assert end(process, 900) == 0, checkout.said()[-6000:]
    print(f"the demo took {time.monotonic() - started:.0f} s on the local Slurm")
    return checkout.said(), checkout.root / "results" / "demo"


def rows_without_times(path):
    with open(path, newline="") as handle:
        return [
            {key: value for key, value in row.items() if key not in CLOCKS}
            for row in csv.DictReader(handle)
        ]


def test_the_csv_files_equal_those_of_a_local_run(finished_demo, on_slurm):
    here, (_, remote) = finished_demo / "results" / "demo", on_slurm
    names = sorted(str(path.relative_to(here)) for path in here.rglob("*.csv"))
    assert names == sorted(str(path.relative_to(remote)) for path in remote.rglob("*.csv"))
    assert len([name for name in names if name.startswith("report/")]) >= 5
    different = [
        name
        for name in names
        if rows_without_times(remote / name) != rows_without_times(here / name)
    ]
    assert different == []


def test_a_shared_slurm_job_asks_for_one_job_at_a_time_and_the_time_of_all(cluster, on_slurm):
    said, remote = on_slurm
    # Slurm forgets jobs that ended five minutes ago; those that score are among the last.
    jobs = re.findall(r"SLURM jobid (\d+) \(log: \S+/group_scoring_", said)
    minutes = 0
    for job in jobs:
        assert cluster.detail(job, "NumCPUs") == "1"
        assert "mem=1500M" in cluster.detail(job, "TRES")
        hour, minute, _ = cluster.detail(job, "TimeLimit").split(":")
        minutes += 60 * int(hour) + int(minute)
    rules = ("score_masks", "guard_masks", "measure_calibration")
    members = [path for rule in rules for path in (remote / "logs" / rule).rglob("*.log")]
    assert minutes == 5 * len(members) > 0


def test_short_jobs_shared_slurm_jobs_or_stayed_where_snakemake_ran(on_slurm):
    said, remote = on_slurm
    submitted = len(re.findall(r"has been submitted with SLURM jobid", said))
    jobs = int(re.search(r"^total +(\d+)$", said, re.M)[1])
    print(f"{jobs} jobs, {submitted} of them or groups of them sent to Slurm")
    assert submitted < jobs / 2
    assert not list((remote.parents[1] / "logs" / "slurm").rglob("*.log"))
