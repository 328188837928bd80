"""Guards that a killed training continues, ends with the same weights, and starts over when told."""

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


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL], ids=["SIGTERM", "SIGKILL"])
def test_a_killed_training_ends_with_the_same_weights(prepared, tmp_path, how):
    _, weights = prepared
    write_study(tmp_path, LONG)
    kill_in_the_middle(tmp_path, how)
    run_snakemake(tmp_path, targets=(MODEL,))
    log = (tmp_path / LOG).read_text()
    assert "resum" in log.lower()
    assert (tmp_path / MODEL).read_bytes() == weights
    # Run again for no reason that a number depends on: the result is taken, not trained for.
    run_snakemake(tmp_path, "--forcerun", "train_coarse", targets=(MODEL,))
    assert "finished before" in (tmp_path / LOG).read_text()
    assert (tmp_path / MODEL).read_bytes() == weights


def test_another_learning_rate_starts_over_and_says_why(prepared, tmp_path):
    write_study(tmp_path, LONG)
    kill_in_the_middle(tmp_path, signal.SIGTERM)
    other = changed(LONG, coarse__transunet__lr=0.004, coarse__transunet__epochs=2)
    write_study(tmp_path, other)
    run_snakemake(tmp_path, targets=(MODEL,))
    log = (tmp_path / LOG).read_text()
    assert "start" in log and "over" in log
    assert "0.002" in log and "0.004" in log
    history = ((tmp_path / MODEL).parent / "history.csv").read_text().splitlines()
    assert len(history) == 3


def test_a_training_that_outlived_its_snakemake_is_named_and_not_disturbed(prepared, tmp_path):
    _, weights = prepared
    write_study(tmp_path, LONG)
    run, orphan = start(tmp_path)
    orphan.suspend()
    run.kill()
    run.wait(timeout=60)  # its output stays open in the orphan's hands
    run_snakemake(tmp_path, "--unlock")
    output = run_snakemake(tmp_path, targets=(MODEL,), ok=False)
    assert f"process {orphan.pid} on" in output
    assert "Wait for it or stop it" in output
    orphan.kill()
    run.stdout.close()
    run_snakemake(tmp_path, targets=(MODEL,))
    assert "resuming after epoch" in (tmp_path / LOG).read_text()
    assert (tmp_path / MODEL).read_bytes() == weights
