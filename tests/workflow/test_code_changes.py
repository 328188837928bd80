"""Guards that changed code reruns what it made if the study asks for it, and is told otherwise."""

import os
import shutil

import pytest

from tests.workflow import study
from tests.workflow.study import ROOT, TINY, changed, planned, run_snakemake, write_study

REPORT = "results/tiny/busi/check/report.json"
DOCTOR = "src/ultrarefiner/datasets/doctor.py"


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """Return a copy of the workflow and its package, which Snakemake then runs from."""
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    ignore = shutil.ignore_patterns("__pycache__")
    for name in ("rules", "workflow", "profiles", "src"):
        shutil.copytree(ROOT / name, checkout / name, ignore=ignore)
    shutil.copy(ROOT / "Snakefile", checkout)
    monkeypatch.setattr(study, "ROOT", checkout)
    monkeypatch.setenv("PYTHONPATH", str(checkout / "src"))
    return checkout


def append(path, line):
    """Add a line to a file of the checkout and return what it was."""
    text = path.read_text()
    path.write_text(f"{text}{line}\n")
    return text


@pytest.mark.slow
def test_changed_code_reruns_its_results_only_if_the_study_asks_for_it(checkout, tmp_path):
    def plan(mode):
        settings = ("--config", f"rerun_on_code_change={mode}")
        return planned(run_snakemake(folder, "--dry-run", *settings, targets=(REPORT,)))

    folder = tmp_path / "study"
    folder.mkdir()
    # Made in the default mode, `warn`.
    small = changed(TINY, datasets__busi__phantom__cases=4, refiners=None, compare__refine=None)
    write_study(folder, small)
    run_snakemake(folder, targets=(REPORT,))

    append(checkout / DOCTOR, "# A thought.")
    append(checkout / "workflow/scripts/write_phantom.py", "# Another.")
    assert plan("true") == {}

    before = append(checkout / DOCTOR, "MORE = 1")
    assert plan("true") == {"check_dataset": 1}
    assert plan("warn") == {}
    assert plan("false") == {}
    output = run_snakemake(folder, targets=("results/tiny/study.json",))
    assert (
        "Finished results that older code made: check_dataset 1. Set rerun_on_code_change: true "
        "to make them again." in output
    )

    (checkout / DOCTOR).write_text(before)
    os.utime(checkout / DOCTOR)
    assert plan("true") == {}
