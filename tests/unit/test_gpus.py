"""Guards that jobs on one machine take different GPUs, and give them back however they end."""

import os
import subprocess
import sys

import pytest

from ultrarefiner import gpus
from ultrarefiner.gpus import installed_gpus, take_gpus

HOLDER = """
import sys, time
from pathlib import Path
from ultrarefiner.gpus import take_gpus
with take_gpus(int(sys.argv[1]), ["0", "1", "2"], Path(sys.argv[2])) as taken:
    print(",".join(taken), flush=True)
    time.sleep(60)
"""


@pytest.fixture(autouse=True)
def no_scheduler(monkeypatch):
    for name in (*gpus._SCHEDULERS, gpus.VISIBLE):
        monkeypatch.delenv(name, raising=False)


def hold(count, folder):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(count), str(folder)], stdout=subprocess.PIPE, text=True
    )
    return process, process.stdout.readline().strip()


def test_jobs_take_different_gpus_and_a_killed_one_gives_its_own_back(tmp_path):
    first, one = hold(1, tmp_path)
    second, two = hold(1, tmp_path)
    assert (one, two) == ("0", "1")
    with take_gpus(1, ["0", "1", "2"], tmp_path) as taken:
        assert taken == ["2"]
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "2"
        first.kill()
        first.wait()
        with take_gpus(1, ["0", "1", "2"], tmp_path) as other:
            assert other == ["0"]
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "2"
    assert "CUDA_VISIBLE_DEVICES" not in os.environ
    second.kill()
    second.wait()
    first.stdout.close()
    second.stdout.close()


def test_a_job_waits_while_too_few_are_free_and_holds_none_meanwhile(tmp_path, monkeypatch):
    process, taken = hold(2, tmp_path)
    assert taken == "0,1"
    waited = []

    def pause(seconds):
        waited.append(seconds)
        with take_gpus(1, ["0", "1", "2"], tmp_path) as free:
            assert free == ["2"]
        process.kill()
        process.wait()

    monkeypatch.setattr(gpus.time, "sleep", pause)
    with take_gpus(2, ["0", "1", "2"], tmp_path) as both:
        assert both == ["0", "1"]
    assert len(waited) == 1
    process.stdout.close()


def test_a_scheduler_has_chosen_and_one_gpu_needs_no_choice(tmp_path, monkeypatch):
    with take_gpus(0, ["0", "1"], tmp_path) as taken:
        assert taken == []
    with take_gpus(2, ["0", "1"], tmp_path) as taken:
        assert taken == []
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    with take_gpus(1, None, tmp_path) as taken:
        assert taken == []
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "3,5"
    assert list(tmp_path.iterdir()) == []


def test_what_the_user_hides_is_not_taken(tmp_path, monkeypatch):
    assert installed_gpus({"CUDA_VISIBLE_DEVICES": "4, 6"}) == ["4", "6"]
    assert installed_gpus({"CUDA_VISIBLE_DEVICES": ""}) == []
    monkeypatch.setattr(gpus, "_LISTED", tmp_path / "gpus")
    assert installed_gpus({}) == []
    for name in ("0000:01:00.0", "0000:02:00.0"):
        (tmp_path / "gpus" / name).mkdir(parents=True)
    assert installed_gpus({}) == ["0", "1"]
