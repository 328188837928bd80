"""Guards that what clusters do to a run costs time at most: kills, full and slow disks, two at once.

Each test prints what the user would see: `pytest -s tests/workflow/test_faults.py`.
"""

import csv
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from safetensors.numpy import load_file

from tests.workflow.study import (
    TINY,
    changed,
    planned,
    run_snakemake,
    snakemake_command,
    write_study,
)
from ultrarefiner.datasets.phantom import write_phantom

EPOCHS = 20
EPOCH_TABLE = re.compile("EPOCH |  validation |  +[01][.]")
LONG = changed(
    TINY,
    coarse__transunet__epochs=EPOCHS,
    refiners={"grabcut": {"family": "grabcut"}},
    compare__refine={"grabcut": ["mask"]},
)
TRAINED = Path("results/tiny/busi/models/transunet/fold0")
MODEL = str(TRAINED / "model.safetensors")
SPLITS = "results/tiny/busi/splits.csv"
LOG = "results/tiny/logs/train_coarse/busi/transunet/fold0.log"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Return a folder with everything that comes before training."""
    folder = tmp_path_factory.mktemp("prepared")
    write_study(folder, LONG)
    run_snakemake(folder, targets=(SPLITS, "results/tiny/overlaps.csv"))
    return folder


@pytest.fixture
def study(prepared, tmp_path):
    """Return a copy of the prepared folder."""
    return Path(shutil.copytree(prepared, tmp_path / "study", symlinks=True))


@pytest.fixture
def no_slurm(tmp_path, monkeypatch):
    """Let squeue answer that there is no job, whatever this machine has."""
    (tmp_path / "bin").mkdir()
    squeue = tmp_path / "bin" / "squeue"
    squeue.write_text("#!/bin/sh\n")
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", f"{squeue.parent}{os.pathsep}{os.environ['PATH']}")


def screen(folder):
    """Return the file, beside a study's folder, that takes what Snakemake prints."""
    return folder.with_suffix(".screen")


def started(folder, *arguments):
    """Start a training; return Snakemake and the training, put to sleep after its first epochs."""
    with open(screen(folder), "w") as seen:
        run = psutil.Popen(
            snakemake_command(folder, *arguments, targets=(MODEL,)),
            stdout=seen,
            stderr=subprocess.STDOUT,
        )
    deadline = time.monotonic() + 120
    while not (folder / TRAINED / "resume" / "state.pt").exists():
        assert time.monotonic() < deadline, "no resume state appeared"
        assert run.poll() is None, screen(folder).read_text()
        time.sleep(0.02)
    training = next(
        child
        for child in run.children(recursive=True)
        if any(word.endswith(".train_coarse.py") for word in child.cmdline()[:2])
    )
    training.suspend()
    return run, training


def ended(folder, run):
    """Wait for Snakemake; return its status and what the user has seen."""
    run.wait(timeout=300)
    return run.returncode, screen(folder).read_text()


def recover(*arguments):
    """Run `ultrarefiner recover`; return its status and what it printed."""
    result = subprocess.run(
        [sys.executable, "-c", "from ultrarefiner.cli import app; app()", "recover", *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300,
    )  # fmt: skip
    return result.returncode, result.stdout


def shown(what, text):
    """Print what the user sees, without the table of each epoch."""
    lines = [line for line in text.splitlines() if not EPOCH_TABLE.match(line)]
    print("\n".join([f"\n===== {what} =====", *lines]))


def check_whole(folder, resumptions):
    """Check that a training ended well: every epoch once, its files whole, nothing left to do."""
    with open(folder / TRAINED / "history.csv", newline="") as handle:
        assert [int(row["epoch"]) for row in csv.DictReader(handle)] == list(range(1, EPOCHS + 1))
    assert load_file(folder / MODEL)
    assert (folder / LOG).read_text().count("resuming after epoch") == resumptions
    assert not list(folder.rglob(".partial-*"))
    assert planned(run_snakemake(folder, "--dry-run", targets=(MODEL,))) == {}


@pytest.mark.slow
def test_a_second_snakemake_in_the_folder_is_refused_and_the_first_ends_well(study, no_slurm):
    run, training = started(study)
    second = run_snakemake(study, targets=(MODEL,), ok=False)
    shown("two snakemake calls at once: the second", second)
    assert "Directory cannot be locked" in second
    assert str(study) in second
    status, output = recover("--", *snakemake_command(study)[3:])
    shown("ultrarefiner recover while Snakemake is alive", output)
    assert status == 1
    assert f"Snakemake is alive in {study}: process {run.pid}" in output
    training.resume()
    status, output = ended(study, run)
    shown("two snakemake calls at once: the first", output)
    assert status == 0
    check_whole(study, resumptions=0)


@pytest.mark.slow
def test_a_killed_snakemake_is_recovered_and_nothing_is_written_twice(study, no_slurm):
    run, training = started(study)
    run.kill()
    run.wait(timeout=60)
    arguments = snakemake_command(study, targets=(MODEL,))[3:]
    status, output = recover("--dry-run", "--", *arguments)
    shown("snakemake killed -9: ultrarefiner recover --dry-run", output)
    assert status == 0
    assert training.is_running() and list(study.glob(".snakemake/locks/*.lock"))
    assert f"process {training.pid} (train_coarse), training in {TRAINED}" in output
    assert "would be stopped" in output and "would be taken away" in output

    status, output = recover("--", *arguments)
    shown("snakemake killed -9: ultrarefiner recover -- ...", output)
    assert status == 0
    assert "being stopped" in output and "lock: taken away" in output
    assert not training.is_running()
    # The killed Snakemake's screen is still the training's.
    assert "stopped by SIGTERM" in screen(study).read_text()
    check_whole(study, resumptions=1)
    status, output = recover("--", "--dry-run", *arguments)
    shown("ultrarefiner recover where nothing is wrong", output)
    assert status == 0
    assert "processes on" in output and "none left" in output and "lock: none" in output


@pytest.mark.slow
def test_a_killed_job_is_tried_again_and_goes_on(study):
    run, training = started(study, "--retries", "1")
    training.kill()
    status, output = ended(study, run)
    shown("a job killed -9, --retries 1", output)
    assert status == 0
    assert "died with <Signals.SIGKILL: 9>" in output
    assert "Trying to restart job" in output
    check_whole(study, resumptions=1)


@pytest.fixture
def small_disk(prepared, tmp_path):
    """Return a copy of the prepared folder that is a disk of its own, of 16 MB."""
    folder = tmp_path / "study"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("this machine does not let a test mount a disk")
    yield Path(shutil.copytree(prepared, folder, symlinks=True, dirs_exist_ok=True))
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill_disk(folder):
    """Write a file until nothing more fits; return it."""
    filler = folder / "filler"
    with pytest.raises(OSError), open(filler, "wb", buffering=0) as handle:
        while True:
            handle.write(bytes(4096))
    return filler


@pytest.mark.slow
def test_a_disk_that_fills_up_during_a_training_is_named_and_the_training_goes_on_later(
    small_disk,
):
    run, training = started(small_disk)
    filler = fill_disk(small_disk)
    training.resume()
    status, output = ended(small_disk, run)
    shown("a disk that fills up during a training", output)
    assert status == 1
    assert "train_coarse: cannot write" in output and "the disk is full" in output
    assert "Free space" in output
    assert "Traceback" not in output
    assert not list(small_disk.rglob(".partial-*"))
    assert not (small_disk / MODEL).exists()
    filler.unlink()
    shown("the same with room again", run_snakemake(small_disk, targets=(MODEL,)))
    check_whole(small_disk, resumptions=1)


LATE = """
import atexit, os, sys

def hide():
    if sys.argv[0].endswith(".split_folds.py"):
        os.rename({path!r}, {path!r} + ".late")

atexit.register(hide)
"""


@pytest.mark.slow
def test_a_file_that_other_machines_see_late_is_waited_for(study, tmp_path, monkeypatch):
    # What a slow shared disk does: the file is there for the job, and appears to Snakemake later.
    path = study / SPLITS
    late = Path(f"{path}.late")
    whole = path.read_bytes()
    (tmp_path / "sitecustomize.py").write_text(LATE.format(path=str(path)))
    before = os.environ.get("PYTHONPATH")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path) + (os.pathsep + before if before else ""))

    def show_it_later():
        deadline = time.monotonic() + 120
        while not late.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(3)
        late.rename(path)

    for patience, ok in ((1, False), (20, True)):
        path.unlink()
        disk = threading.Thread(target=show_it_later)
        disk.start()
        output = run_snakemake(
            study, "--latency-wait", str(patience), targets=(SPLITS,), ok=ok, timeout=120
        )
        disk.join()
        shown(f"a file that appears 3 s late, --latency-wait {patience}", output)
        assert f"Waiting at most {patience} seconds for missing files" in output
        assert ("might be due to filesystem latency" in output) is not ok
        # Whole in both cases: no job's file has its name before it is whole.
        assert path.read_bytes() == whole
    assert planned(run_snakemake(study, "--dry-run", targets=(SPLITS,))) == {}


@pytest.mark.slow
def test_a_job_with_an_error_leaves_no_output_half_written(tmp_path):
    write_phantom("busi", tmp_path / "BUSI", cases=14, size=64, seed=3, odd_cases=False)
    write_study(tmp_path, changed(LONG, datasets={"busi": {"root": "BUSI"}}))
    run_snakemake(tmp_path, targets=("results/tiny/busi/check/report.json",))
    # The doctor has passed this image; then its disk loses some bytes of it.
    image = sorted(tmp_path.glob("BUSI/malignant/*).png"))[-1]
    sound = image.read_bytes()
    image.write_bytes(sound[: len(sound) // 2] + bytes(200) + sound[len(sound) // 2 + 200 :])
    output = run_snakemake(tmp_path, targets=(SPLITS,), ok=False)
    shown("an image that cannot be read any more", output)
    assert "prepare_dataset: " in output and image.name in output
    left = [path for path in tmp_path.glob("results/tiny/busi/**/*") if path.is_file()]
    assert [path.name for path in left] == ["report.json"]
    assert not list(tmp_path.rglob(".partial-*"))
    image.write_bytes(sound)
    run_snakemake(tmp_path, targets=(SPLITS,))
    assert len(list(tmp_path.glob("results/tiny/busi/prepared/npz/*.npz"))) == 14
