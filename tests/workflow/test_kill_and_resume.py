"""Guards that a killed training continues, ends with the same weights, and starts over when told."""

import shutil
import signal
import subprocess
import time

import psutil
import pytest

from tests.workflow.study import TINY, changed, run_snakemake, snakemake_command, write_study

LONG = changed(
    TINY,
    coarse__transunet__epochs=40,
    refiners={"grabcut": {"family": "grabcut"}},
    compare__refine={"grabcut": ["mask"]},
)
MODEL = "results/tiny/busi/models/transunet/fold0/model.safetensors"
LOG = "results/tiny/logs/train_coarse/busi/transunet/fold0.log"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Return a folder with everything before training, and the weights of an unbroken run."""
    folder = tmp_path_factory.mktemp("unbroken")
    write_study(folder, LONG)
    run_snakemake(folder, targets=(MODEL,))
    return folder, (folder / MODEL).read_bytes()


@pytest.fixture
def folder(prepared, tmp_path):
    """Return a copy in which nothing has been trained yet."""
    folder = tmp_path / "study"
    shutil.copytree(
        prepared[0], folder, symlinks=True, ignore=shutil.ignore_patterns("models", "train_coarse")
    )
    return folder


def training_process(snakemake):
    """Return the process that runs the training script."""
    for child in psutil.Process(snakemake.pid).children(recursive=True):
        command = child.cmdline()
        if (
            command
            and "python" in command[0]
            and any("train_coarse.py" in part for part in command)
        ):
            return child
    return None


def start(folder):
    """Start Snakemake and return it with its training process, once an epoch is saved."""
    history = (folder / MODEL).parent / "resume" / "state.pt"
    run = subprocess.Popen(
        snakemake_command(folder, targets=(MODEL,)),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    deadline = time.monotonic() + 120
    while not history.exists():
        assert time.monotonic() < deadline, "no resume state appeared"
        assert run.poll() is None, run.stdout.read().decode()
        time.sleep(0.02)
    process = training_process(run)
    assert process is not None
    return run, process


def kill_in_the_middle(folder, how):
    """Start the training, kill its process after some epochs, and wait for Snakemake's end."""
    run, process = start(folder)
    process.send_signal(how)
    run.communicate(timeout=120)
    assert run.returncode != 0
    assert not (folder / MODEL).exists()
    assert ((folder / MODEL).parent / "resume" / "state.pt").exists()


@pytest.mark.slow  # without Snakemake: tests/unit/test_resume.py, for every signal
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL], ids=["SIGTERM", "SIGKILL"])
def test_a_killed_training_ends_with_the_same_weights(prepared, folder, how):
    _, weights = prepared
    kill_in_the_middle(folder, how)
    run_snakemake(folder, targets=(MODEL,))
    log = (folder / LOG).read_text()
    assert "resum" in log.lower()
    assert (folder / MODEL).read_bytes() == weights
    # Run again for no reason that a number depends on: the result is taken, not trained for.
    run_snakemake(folder, "--forcerun", "train_coarse", targets=(MODEL,))
    assert "finished before" in (folder / LOG).read_text()
    assert (folder / MODEL).read_bytes() == weights


@pytest.mark.slow
def test_another_learning_rate_starts_over_and_says_why(folder):
    kill_in_the_middle(folder, signal.SIGTERM)
    other = changed(LONG, coarse__transunet__lr=0.004, coarse__transunet__epochs=2)
    write_study(folder, other)
    run_snakemake(folder, targets=(MODEL,))
    log = (folder / LOG).read_text()
    assert "start" in log and "over" in log
    assert "0.002" in log and "0.004" in log
    history = ((folder / MODEL).parent / "history.csv").read_text().splitlines()
    assert len(history) == 3


@pytest.mark.slow
def test_a_training_that_outlived_its_snakemake_is_named_and_not_disturbed(prepared, folder):
    _, weights = prepared
    run, orphan = start(folder)
    orphan.suspend()
    run.kill()
    run.wait(timeout=60)  # its output stays open in the orphan's hands
    run_snakemake(folder, "--unlock")
    output = run_snakemake(folder, targets=(MODEL,), ok=False)
    assert f"process {orphan.pid} on" in output
    assert "Wait for it or stop it" in output
    orphan.kill()
    run.stdout.close()
    run_snakemake(folder, targets=(MODEL,))
    assert "resuming after epoch" in (folder / LOG).read_text()
    assert (folder / MODEL).read_bytes() == weights
