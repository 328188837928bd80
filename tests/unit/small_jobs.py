"""Jobs that take milliseconds, run by the wrapper of all jobs: raw files, prepared ones, a table."""

from __future__ import annotations

import logging
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace

from ultrarefiner.io import atomic_directory, write_text
from ultrarefiner.jobs import job
from ultrarefiner.study.files import folder_listing

RUN = Path("results/tiny")
NPZ = RUN / "busi/prepared/npz"
CASES = RUN / "busi/prepared/cases.csv"
SCORES = RUN / "report/scores.csv"


def stand_in(rule, inputs, outputs, params=None, **wildcards):
    """Return what Snakemake gives to the script of a rule."""
    return SimpleNamespace(
        rule=rule,
        log=[str(RUN / "logs" / rule / "all.log")],
        threads=1,
        resources={"gpu": 1},
        wildcards={"run": "tiny", **wildcards},
        params=params or {},
        input={name: str(path) for name, path in inputs.items()},
        output={name: str(path) for name, path in outputs.items()},
    )


def prepare():
    """Make a folder of two files, and a table, from the folder raw/."""
    outputs = {"npz": NPZ, "cases": CASES}
    params = {"root": "raw", "listing": folder_listing("raw")}
    with quiet(stand_in("prepare_dataset", {}, outputs, params, dataset="busi")):
        with atomic_directory(NPZ) as folder:
            (folder / "busi__1.npz").write_bytes(b"one" * 1000)
            (folder / "busi__2.npz").write_bytes(b"two" * 1000)
        write_text(CASES, "case\nbusi__1\nbusi__2\n")


def score():
    """Make a table from the folder and the table."""
    inputs = {"npz": NPZ, "cases": CASES}
    with quiet(stand_in("score_masks", inputs, {"scores": SCORES}, {"bootstrap": 200})):
        write_text(SCORES, f"{sorted(path.name for path in NPZ.glob('*.npz'))}\n")


@contextmanager
def quiet(snakemake):
    """Run the body as a job that leaves no handlers to the tests after it."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    try:
        with job(snakemake):
            yield
    finally:
        root.handlers, root.level = handlers, level
        logging.captureWarnings(False)


def fails(run) -> bool:
    """Run something and return whether it ended as a failed job does."""
    with suppress(SystemExit):
        run()
        return False
    return True
