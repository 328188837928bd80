"""Guards `ultrarefiner recover`: it stops only what a dead Snakemake left, and spares a live one."""

import getpass
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import yaml
from typer.testing import CliRunner

from ultrarefiner.cli import app
from ultrarefiner.cluster import state
from ultrarefiner.cluster.processes import find_processes
from ultrarefiner.cluster.slurm import JOB_PREFIX, find_jobs
from ultrarefiner.cluster.state import TRAINING_LOCKS, read_runs

ROOT = Path(__file__).resolve().parents[2]
RUN = f"{JOB_PREFIX}_11112222-3333"
# squeue prints a file; scancel lets jobs end, and those of that file end at the second look only.
SQUEUE = """#!/bin/sh
cd {jobs}
[ "$*" = "--me --noheader --format=%i|%T|%j|%Z|%k" ] || exit 2
[ -e broken ] && {{ echo "Unable to contact slurm controller" >&2; exit 1; }}
cat queue
grep -v COMPLETING queue > next; mv next queue
"""
SCANCEL = """#!/bin/sh
cd {jobs}
echo "$*" > cancelled
[ -e stubborn ] && {{ echo "Access denied" >&2; exit 1; }}
for job in "$@"; do sed "/^$job|/s/RUNNING\\\\|PENDING/COMPLETING/" queue > next; mv next queue; done
"""


@pytest.fixture
def folder(tmp_path):
    """Return a folder where Snakemake was killed: a log, a lock, a Snakefile."""
    folder = tmp_path / "study"
    for name in ("log", "locks"):
        (folder / ".snakemake" / name).mkdir(parents=True)
    (folder / "Snakefile").write_text("rule all:\n    input: []\n")
    write_log(folder, "2026-01-01T120000.snakemake.log", platform.node())
    (folder / ".snakemake" / "locks" / "0.input.lock").write_text("a\n")
    return folder


def write_log(folder, name, host, slurm=None, worked=True):
    """Write the head of a log as Snakemake does."""
    lines = ["", "SNAKEMAKE", "=========", "  Date: 2026-01-01 12:00:00", f"  Host: {host}"]
    lines += [f"  User: {getpass.getuser()}", "  Command: /bin/snakemake --cores 2 all"]
    lines += ["Building DAG of jobs..."]
    lines += [f"SLURM run ID: {slurm}"] if slurm else []
    lines += ["Job stats:", "job    count"] if worked else ["LockException:"]
    (folder / ".snakemake" / "log" / name).write_text("\n".join(lines) + "\n")


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """Return the folder of a stand-in for Slurm: write lines of its queue to the file `queue`."""
    jobs, programs = tmp_path / "jobs", tmp_path / "bin"
    jobs.mkdir()
    programs.mkdir()
    (jobs / "queue").touch()
    for name, text in (("squeue", SQUEUE), ("scancel", SCANCEL)):
        (programs / name).write_text(text.format(jobs=jobs))
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    return jobs


@pytest.fixture
def slurm_less(monkeypatch):
    """Let this machine have no Slurm."""
    monkeypatch.setattr("ultrarefiner.cluster.recover.slurm_is_here", lambda: False)


@pytest.fixture
def spawn():
    """Return a function that starts a process, which does not outlive the test."""
    started = []

    def start(folder, *words, code="import time; print('up', flush=True); time.sleep(300)"):
        script = folder / words[0]
        script.parent.mkdir(parents=True, exist_ok=True)
        script.write_text(code)
        process = subprocess.Popen(
            [sys.executable, str(script), *words[1:]], cwd=folder, stdout=subprocess.PIPE
        )
        started.append(process)
        assert process.stdout.readline() == b"up\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def job_line(number, folder, name=RUN, status="RUNNING", rule="train_coarse"):
    return f"{number}|{status}|{name}|{folder}|rule_{rule}_wildcards_busi\n"


def recover(*options):
    """Run the command; return its exit status and what it printed, in one line."""
    result = CliRunner().invoke(app, ["recover", "--wait", "5", *options])
    return result.exit_code, " ".join(result.output.split())


def locked(folder):
    return list(folder.glob(".snakemake/locks/*.lock"))


@pytest.fixture
def here(folder, monkeypatch):
    monkeypatch.chdir(folder)
    return folder


def test_the_jobs_of_this_folder_are_cancelled_and_no_others(here, slurm, tmp_path):
    other = tmp_path / "other checkout"
    queue = [
        job_line(11, here),
        job_line("12_3", here, status="PENDING"),
        job_line(13, other, name=f"{JOB_PREFIX}_9999"),
        job_line(14, here, name="my_own_job"),
        # An automounter shows the nodes another path; the run is one of this folder's logs.
        job_line(15, "/net/elsewhere"),
    ]
    (slurm / "queue").write_text("".join(queue))
    write_log(here, "2026-01-02T120000.snakemake.log", platform.node(), slurm=RUN)
    status, output = recover("--dry-run")
    assert status == 0
    assert "Slurm jobs: 3 left, would be cancelled 11 RUNNING train_coarse_wildcards_busi" in output
    assert not (slurm / "cancelled").exists()
    assert locked(here)
    status, output = recover()
    assert status == 0, output
    assert (slurm / "cancelled").read_text() == "11 12_3 15\n"
    assert [line.split("|")[0] for line in (slurm / "queue").read_text().splitlines()] == [
        "13",
        "14",
    ]
    assert "lock: taken away" in output
    assert not locked(here)
    assert "the last one was: snakemake --cores 2 all" in output


def test_two_folders_that_are_one_by_a_link(here, slurm, tmp_path):
    (tmp_path / "link").symlink_to(here)
    (slurm / "queue").write_text(job_line(11, tmp_path / "link"))
    assert [job.number for job in find_jobs(here, ())] == ["11"]


def test_jobs_that_do_not_go_keep_the_lock(here, slurm):
    (slurm / "queue").write_text(job_line(11, here))
    (slurm / "stubborn").touch()
    status, output = recover("--wait", "1")
    assert status == 1
    assert "1 Slurm jobs are still there 1 s after scancel: 11 RUNNING" in output
    assert "scancel said: Access denied" in output
    assert locked(here)


def test_a_slurm_that_does_not_answer_stops_only_those_who_used_it(here, slurm):
    (slurm / "broken").touch()
    status, output = recover("--dry-run")
    assert status == 0
    assert "none was ever sent from here (squeue does not answer: Unable to contact" in output
    write_log(here, "2026-01-02T120000.snakemake.log", platform.node(), slurm=RUN)
    status, output = recover()
    assert status == 1
    assert "Run recover again when Slurm answers" in output
    assert locked(here)


def test_jobs_were_sent_and_this_machine_has_no_slurm(here, slurm_less):
    write_log(here, "2026-01-02T120000.snakemake.log", platform.node(), slurm=RUN)
    status, output = recover()
    assert status == 1
    assert "this machine has no squeue" in output
    assert locked(here)


@pytest.mark.parametrize(
    "words", [["snakemake", "--cores", "2"], ["bin/snakemake", "all", "--mode", "default"]]
)
def test_a_live_snakemake_is_named_and_its_lock_and_jobs_stay(here, slurm, spawn, words):
    process = spawn(here, *words)
    (slurm / "queue").write_text(job_line(11, here))
    status, output = recover()
    assert status == 1
    assert f"Snakemake is alive in {here}: process {process.pid}" in output
    assert locked(here)
    assert process.poll() is None
    assert not (slurm / "cancelled").exists()


def test_jobs_of_a_dead_snakemake_are_stopped_and_nobody_else(here, slurm_less, spawn, tmp_path):
    (tmp_path / "other").mkdir()
    script = ".snakemake/scripts/tmpab_1.score_masks.py"
    job = spawn(here, script)
    elsewhere = spawn(tmp_path / "other", script)
    mine = spawn(here, "notebook.py")
    wrapped = spawn(here, "bin/snakemake", "--executor", "slurm-jobstep", "--mode", "remote")
    status, output = recover("--dry-run")
    assert status == 0
    assert f"process {job.pid} (score_masks)" in output
    assert f"process {wrapped.pid} (" in output
    assert "2 left, would be stopped" in output
    assert job.poll() is None
    psutil.Process(job.pid).suspend()
    status, output = recover()
    assert status == 0, output
    assert job.wait(5) < 0 and wrapped.wait(5) < 0
    assert elsewhere.poll() is None and mine.poll() is None
    assert not locked(here)


STUBBORN = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print('up', flush=True)
time.sleep(300)
"""


def test_a_process_that_does_not_stop_keeps_the_lock(here, slurm_less, spawn):
    job = spawn(here, ".snakemake/scripts/tmpab_1.score_masks.py", code=STUBBORN)
    status, output = recover("--wait", "1")
    assert status == 1
    assert f"not stopped after 1 s: process {job.pid} (score_masks)" in output
    assert f"kill -9 {job.pid}" in output
    assert locked(here)


PARENT = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", '''{child}'''], stdout=subprocess.PIPE)
child.stdout.readline()
print('up', flush=True)
child.wait()
"""


def test_children_of_a_job_are_waited_for(here, slurm_less, spawn):
    code = PARENT.format(child=STUBBORN)
    job = spawn(here, ".snakemake/scripts/tmpab_1.train_coarse.py", code=code)
    (child,) = psutil.Process(job.pid).children()
    status, output = recover("--wait", "1")
    assert status == 1
    assert f"kill -9 {child.pid}" in output
    child.kill()


TRAINING = """
import pathlib, sys, time
from ultrarefiner.training.resume import ResumeFolder
folder = ResumeFolder(pathlib.Path(sys.argv[1]), {"config": {}})
print('up', flush=True)
time.sleep(300)
"""


def test_a_training_that_lost_its_job_is_found_by_its_lock(here, slurm_less, spawn):
    model = Path("results/main/busi/models/transunet/fold0")
    orphan = spawn(here, "launched.py", str(model / "resume"), code=TRAINING)
    lock = here / model / "resume" / "lock"
    assert lock.read_text() == f"process {orphan.pid} on {platform.node()}"
    finished = here / model.with_name("fold1") / "resume"
    finished.mkdir(parents=True)
    (finished / "lock").write_text(f"process {os.getpid()} on {platform.node()}")
    status, output = recover("--dry-run")
    assert status == 0
    assert "1 left, would be stopped" in output
    assert f"process {orphan.pid} (" in output and f"training in {model}" in output
    # The same lock, held by a machine that is not this one.
    lock.write_text(f"process {orphan.pid} on node7")
    status, output = recover("--wait", "1")
    assert status == 1
    assert f"process {orphan.pid} on node7 is training in {model}. Nothing was unlocked" in output
    assert orphan.poll() is None
    assert locked(here)
    lock.write_text(f"process {orphan.pid} on {platform.node()}")
    status, output = recover()
    assert status == 0, output
    assert orphan.wait(5) < 0
    assert not locked(here)


def test_every_training_has_its_lock_where_recover_looks():
    text = "".join(path.read_text() for path in (ROOT / "rules").glob("*.smk"))
    rules = re.split(r"^rule ", text, flags=re.M)
    models = [
        re.search(r'^ +model="(.+?)",$', rule.split("output:")[1], re.M)[1]
        for rule in rules
        if rule.startswith("train_")
    ]
    assert len(models) == 4
    for model in models:
        lock = Path(re.sub(r"\{\w+\}", "x", model)).parent / "resume" / "lock"
        assert any(lock.match(pattern) for pattern in TRAINING_LOCKS), lock


def test_the_prefix_is_the_profiles():
    profile = yaml.safe_load((ROOT / "profiles" / "slurm" / "config.yaml").read_text())
    assert profile["slurm-jobname-prefix"] == JOB_PREFIX


def test_another_machine_has_to_be_named_dead(here, slurm_less):
    write_log(here, "2026-01-02T120000.snakemake.log", "login2")
    # A call that was refused at the lock says nothing about who holds it.
    write_log(here, "2026-01-03T120000.snakemake.log", platform.node(), worked=False)
    for options in ([], ["--dead", "login3"]):
        status, output = recover(*options)
        assert status == 1
        assert f"on login2, and this is {platform.node()}" in output
        assert "ultrarefiner recover --dead login2" in output
        assert locked(here)
    status, output = recover("--dead", "login2")
    assert status == 0, output
    assert not locked(here)


def test_without_a_lock_another_machine_is_of_no_interest(here, slurm_less):
    write_log(here, "2026-01-02T120000.snakemake.log", "login2")
    for path in locked(here):
        path.unlink()
    status, output = recover()
    assert status == 0
    assert "lock: none" in output


def test_the_lock_of_another_user_is_left_alone(here, slurm_less, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    status, output = recover()
    assert status == 1
    assert f"made by another user (id {os.getuid()})" in output
    assert locked(here)


def test_the_working_directory_among_snakemakes_arguments_counts(folder, slurm_less):
    status, output = recover("--dry-run", "--", "--cores", "2", "-d", str(folder), "--", "all")
    assert status == 0, output
    assert "lock: would be taken away" in output
    assert f"next: snakemake --rerun-incomplete --cores 2 -d {folder} -- all" in output


def test_a_folder_where_snakemake_never_ran(tmp_path, monkeypatch, slurm_less):
    monkeypatch.chdir(tmp_path)
    status, output = recover()
    assert status == 1
    assert f"Snakemake has never run in {tmp_path}" in output


def test_an_unlock_that_fails_says_what_to_give(here, slurm_less):
    (here / "Snakefile").unlink()
    status, output = recover()
    assert status == 1
    assert "No Snakefile found" in output
    assert "ultrarefiner recover -- --cores 2 all" in output
    assert locked(here)


def test_a_system_that_shows_no_processes_is_refused(here, slurm_less, monkeypatch):
    monkeypatch.setattr("ultrarefiner.cluster.processes.PROC", here / "proc")
    status, output = recover()
    assert status == 1
    assert "cannot see processes here" in output
    assert locked(here)


def test_a_process_knows_its_folder_and_its_parent(tmp_path, spawn):
    child = spawn(tmp_path, "a name (with) words.py")
    found = {process.number: process for process in find_processes(tmp_path)}
    assert found[child.pid].here
    assert found[child.pid].parent == os.getpid()
    assert not found[os.getpid()].here
    assert found[child.pid].words[1] == str(tmp_path / "a name (with) words.py")


def test_a_lock_that_nobody_holds_is_no_training(tmp_path):
    lock = tmp_path / "results/main/busi/models/transunet/fold0/resume/lock"
    lock.parent.mkdir(parents=True)
    lock.write_text("process 1 on node7")
    assert state.running_trainings(tmp_path) == []


def test_a_log_says_where_and_how_the_run_began(folder):
    write_log(folder, "2026-01-02T120000.snakemake.log", "login2", slurm=RUN)
    first, second = read_runs(folder)
    assert (first.host, first.slurm, first.worked) == (platform.node(), None, True)
    assert (second.host, second.slurm, second.command) == ("login2", RUN, "--cores 2 all")
