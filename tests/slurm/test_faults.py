"""Guards that a study on Slurm survives what clusters do; each test prints what its user would see."""

import os
import re
import shutil
import signal
import threading
import time

import psutil
import pytest
import yaml

from tests.checkout import Checkout, copy_checkout
from tests.slurm.cluster import end, wait_until
from tests.workflow.study import TINY, changed
from ultrarefiner.io import file_sha256

pytestmark = pytest.mark.slow

STUDY = changed(
    TINY,
    coarse__transunet__epochs=400,
    coarse__transunet__tensorboard=False,
    refiners={"grabcut": {"family": "grabcut"}},
    compare__refine={"grabcut": ["mask"]},
)
FOLDER = "results/tiny/busi/models/transunet/fold0"
MODEL = f"{FOLDER}/model.safetensors"
LOG = "results/tiny/logs/train_coarse/busi/transunet/fold0.log"
# The profile but for the size of its requests: all rows at once, for one that is given replaces them.
QUICK = (*("--slurm-init-seconds-before-status-checks", "3"), *("--latency-wait", "30"))


def asked(**resources):
    """Return the arguments that change what the training asks Slurm for."""
    wanted = {"slurm_partition": "gpu", "mem_mb": 3000, "runtime": 10} | resources
    rows = [f"train_coarse:{name}={value}" for name, value in wanted.items()]
    return ("--set-resources", *rows)


def slurm(*arguments):
    """Return the arguments of a run on Slurm that makes the model of the first fold."""
    return ("--profile", "slurm", MODEL, "--configfile", "study.yaml", *QUICK, *arguments)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """Return a checkout with all that comes before the training, and the weights of a run of it."""
    checkout = Checkout(copy_checkout(tmp_path_factory.mktemp("unbroken") / "checkout"))
    (checkout.root / "study.yaml").write_text(yaml.safe_dump(STUDY))
    checkout.run("--cores", "2", MODEL, "--configfile", "study.yaml")
    weights = file_sha256(checkout.root / MODEL)
    for name in (FOLDER, "results/tiny/logs/train_coarse", "results/tiny/provenance"):
        shutil.rmtree(checkout.root / name, ignore_errors=True)
    return checkout, weights


@pytest.fixture
def study(cluster, unbroken, tmp_path):
    """Return a copy in which only the training is left to do."""
    checkout = Checkout(tmp_path / "checkout")
    shutil.copytree(unbroken[0].root, checkout.root, symlinks=True)
    yield checkout
    for job in cluster.jobs():
        cluster.ask("scancel", job)
    wait_until("the end of all jobs", lambda: not cluster.jobs())
    cluster.resume_nodes()


def training(checkout):
    """Return the process that trains there, once it has saved an epoch."""

    def found():
        if not (checkout.root / FOLDER / "resume" / "state.pt").exists():
            return None
        for process in psutil.process_iter(["cmdline", "cwd"]):
            words = process.info["cmdline"] or []
            if (
                len(words) > 1
                and "python" in words[0]
                and "train_coarse.py" in words[-1]
                and process.info["cwd"] == str(checkout.root)
            ):
                return process
        return None

    return wait_until("a training that has saved an epoch", found)


def show(title, checkout, *patterns):
    """Print what the user sees of it, and return it."""
    said = checkout.said()
    lines = [line for line in said.splitlines() if re.search("|".join(patterns), line)]
    print(f"\n--- {title}", *dict.fromkeys(lines), sep="\n    ")
    return said


SEEN = (
    r"[Ee]rror",
    r"Trying to restart",
    r"SLURM",
    r"failed",
    r"steps \(100%\)",
    r"[Ww]aiting at most",
)


def finish(title, checkout, process, unbroken):
    """Wait for the end; the weights are those of a training that nobody disturbed."""
    code = end(process)
    said = show(title, checkout, *SEEN)
    assert code == 0, said[-5000:]
    assert file_sha256(checkout.root / MODEL) == unbroken[1]
    return said


def test_a_killed_job_is_tried_again_and_goes_on(study, unbroken):
    process = study.start(*slurm(*asked()))
    training(study).kill()
    said = finish("a job killed by -9", study, process, unbroken)
    assert "Trying to restart" in said
    assert "resuming" in (study.root / LOG).read_text()


def test_a_cancelled_job_is_noticed_and_tried_again(cluster, study, unbroken):
    process = study.start(*slurm(*asked()))
    training(study)
    cluster.ask("scancel", *cluster.jobs())
    said = finish("a job cancelled by scancel", study, process, unbroken)
    assert "CANCELLED" in said
    assert "resuming" in (study.root / LOG).read_text()


def test_a_pre_empted_training_saves_stops_and_goes_on(cluster, study, unbroken):
    process = study.start(*slurm(*asked()))
    training(study)
    cluster.ask("scancel", "--signal=TERM", *cluster.jobs())
    said = finish("a training that was told to stop", study, process, unbroken)
    assert "stopped by SIGTERM" in said
    assert "resuming" in (study.root / LOG).read_text()


@pytest.mark.parametrize(
    ("extra", "epochs"),
    [("'--signal=TERM@25'", 600), ("''", 1500)],
    ids=["warned", "not warned"],
)
def test_a_training_longer_than_the_time_limit_ends_without_a_hand(study, extra, epochs):
    longer = changed(STUDY, coarse__transunet__epochs=epochs)
    (study.root / "study.yaml").write_text(yaml.safe_dump(longer))
    process = study.start(*slurm(*asked(runtime=1, slurm_extra=extra), "--retries", "9"))
    code = end(process, 900)
    said = show("a time limit of one minute", study, *SEEN)
    assert code == 0, said[-5000:]
    print(f"    finished in attempt {said.count('Trying to restart') + 1}")
    assert "Trying to restart" in said
    assert "stopped by SIGTERM" in said
    assert "resuming" in (study.root / LOG).read_text()
    rows = (study.root / FOLDER / "history.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows[1:]] == [str(epoch) for epoch in range(1, epochs + 1)]


def test_a_job_that_needs_more_memory_gets_more(study, unbroken):
    process = study.start(*slurm(*asked(mem_mb="400 * attempt ** 2")))
    said = finish("a job beyond its memory", study, process, unbroken)
    assert "Trying to restart" in said


def test_a_node_that_goes_down_is_left_for_another(cluster, study, unbroken):
    process = study.start(*slurm(*asked()))
    training(study)
    (job,) = cluster.jobs()
    node = cluster.detail(job, "NodeList")
    cluster.ask("scontrol", "update", f"nodename={node}", "state=down", "reason=test")
    said = finish(f"node {node} down", study, process, unbroken)
    assert "NODE_FAIL" in said
    assert cluster.jobs() == []


def test_after_a_killed_snakemake_recover_ends_what_is_left_and_goes_on(cluster, study, unbroken):
    process = study.start(*slurm(*asked()))
    training(study)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (left,) = cluster.jobs()
    planned = study.command("ultrarefiner", "recover", "--dry-run")
    assert left in planned.stdout and cluster.jobs() == [left]
    done = study.command("ultrarefiner", "recover", "--", *slurm(*asked()))
    print(
        "\n--- Snakemake killed by -9, then `ultrarefiner recover -- ...`",
        planned.stdout,
        done.stdout,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert file_sha256(study.root / MODEL) == unbroken[1]
    log = (study.root / LOG).read_text()
    assert log.count("resuming") == 1
    assert cluster.jobs() == []


def test_files_that_a_shared_disk_shows_late_are_waited_for(cluster, study, unbroken):
    process = study.start(*slurm(*asked()))
    training(study)
    (job,) = cluster.jobs()
    folder, hidden = study.root / FOLDER, study.root / "not-shown-yet"

    def hide():
        while cluster.detail(job, "JobState") == "RUNNING":
            time.sleep(0.1)
        os.replace(folder, hidden)
        wait_until("Snakemake's wait", lambda: "aiting at most" in study.said(), 60)
        os.replace(hidden, folder)

    thread = threading.Thread(target=hide)
    thread.start()
    said = finish("files that appear late", study, process, unbroken)
    thread.join()
    assert "aiting at most 30 seconds for missing files" in said
    assert "Trying to restart" not in said
