"""Guards that a job leaves a log with its traceback, and a record of what made its result."""

import hashlib
import json
import logging
import os
import platform
import sys
from types import SimpleNamespace

import pytest

from ultrarefiner.errors import DatasetError, OutputError
from ultrarefiner.jobs import job


@pytest.fixture
def snakemake(tmp_path, monkeypatch):
    """Return what Snakemake gives to a script, as far as a job looks at it."""
    monkeypatch.chdir(tmp_path)
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    (tmp_path / "cases.csv").write_text("case\n")
    (tmp_path / "code").write_text("c0de\n")
    yield SimpleNamespace(
        rule="train_coarse",
        log=["results/tiny/logs/train_coarse/job.log"],
        threads=1,
        resources={"gpu": 1},
        wildcards={"fold": "0"},
        params={"training": {"epochs": 3}},
        input={"code": "code", "cases": "cases.csv", "pretrained": [], "tables": ["cases.csv"]},
        output={"model": "results/tiny/model.safetensors", "shelf": "elsewhere.bin"},
    )
    root.handlers, root.level = handlers, level
    logging.captureWarnings(False)


@pytest.fixture
def log(tmp_path):
    return tmp_path / "results/tiny/logs/train_coarse/job.log"


def record_of(log):
    return json.loads(log.with_suffix(".json").read_text())


def test_a_job_records_what_made_its_result(snakemake, log):
    with job(snakemake):
        logging.getLogger("somewhere").info("a line")
    assert "a line" in log.read_text()
    record = record_of(log)
    assert record["params"] == {"training": {"epochs": 3}}
    assert record["wildcards"] == {"fold": "0"}
    assert record["output"]["model"] == "results/tiny/model.safetensors"
    assert record["seed"] > 0
    assert len(record["git_revision"]) >= 13
    assert record["versions"]["numpy"][0].isdigit()
    assert record["started"] <= record["finished"]
    assert 0 <= record["duration_s"] < 60
    assert 20 < record["peak_memory_mb"] < 5000


def test_a_job_records_the_gpus_that_it_could_use(snakemake, log, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    for asked, given in ((2, ["2", "3"]), (0, [])):
        snakemake.resources["gpu"] = asked
        with job(snakemake):
            pass
        assert record_of(log)["gpus"] == given


def test_a_job_records_the_checksums_of_its_inputs_and_of_its_code(snakemake, log):
    with job(snakemake):
        assert record_of(log)["inputs"], "a job that is killed has said what it read"
    digest = hashlib.sha256(b"case\n").hexdigest()
    assert record_of(log)["inputs"] == {"cases.csv": {"sha256": digest, "bytes": 5}}
    assert record_of(log)["code"] == "c0de"
    snakemake.input.pop("code")
    with job(snakemake):
        pass
    assert record_of(log)["code"] is None


def test_a_record_tells_the_kind_of_machine_and_never_which(snakemake, log, monkeypatch):
    monkeypatch.setattr(platform, "node", lambda: "secretive-host")
    cuda = SimpleNamespace(
        is_initialized=lambda: True,
        get_device_name=lambda: "a card",
        max_memory_allocated=lambda: 3 * 10**6,
    )
    stand_in = SimpleNamespace(cuda=cuda, set_num_threads=print, manual_seed=print)
    monkeypatch.setitem(sys.modules, "torch", stand_in)
    with job(snakemake):
        pass
    record = record_of(log)
    assert record["host"] == {
        "system": platform.system(),
        "machine": platform.machine(),
        "cpu": record["host"]["cpu"],
        "cores": os.cpu_count(),
        "gpu": "a card",
    }
    assert record["host"]["cpu"]
    assert record["peak_gpu_memory_mb"] == 3
    assert "secretive-host" not in json.dumps(record)


def test_each_output_of_the_run_gets_a_card_when_the_job_has_succeeded(snakemake, log, tmp_path):
    card = tmp_path / "results/tiny/provenance/model.safetensors.json"
    with pytest.raises(SystemExit), job(snakemake):
        (tmp_path / "results/tiny/model.safetensors").write_bytes(b"half")
        raise DatasetError("no")
    assert not card.exists()
    with job(snakemake):
        (tmp_path / "results/tiny/model.safetensors").write_bytes(b"weights")
        (tmp_path / "elsewhere.bin").touch()
    written = json.loads(card.read_text())
    assert written.pop("job") == record_of(log)
    assert written == {
        "artefact": "results/tiny/model.safetensors",
        "sha256": hashlib.sha256(b"weights").hexdigest(),
        "bytes": 7,
    }
    assert [path.name for path in card.parent.rglob("*") if path.is_file()] == [card.name]
    with pytest.raises(SystemExit), job(snakemake):
        assert not card.exists(), "what it says does not hold while the output is made again"
        raise DatasetError("no")


def test_the_users_error_is_short_on_screen_and_whole_in_the_log(snakemake, log, capsys):
    with pytest.raises(SystemExit) as stop, job(snakemake):
        raise DatasetError("mend the mask", ["a.png"])
    assert stop.value.code == 1
    screen = capsys.readouterr().err
    assert "mend the mask" in screen
    assert "Traceback" not in screen
    assert "Traceback" in log.read_text()
    assert "DatasetError" in log.read_text()
    assert record_of(log)["finished"] is None


def test_a_second_attempt_keeps_the_log_of_the_first_and_is_counted(snakemake, log):
    attempts = []
    for fails in (True, True, False, False):
        try:
            with job(snakemake):
                logging.getLogger("somewhere").info("a line of %d", len(attempts))
                if fails:
                    raise DatasetError("no")
        except SystemExit:
            pass
        attempts.append(record_of(log)["attempt"])
    assert attempts == [1, 2, 3, 1]
    text = log.read_text()
    assert text.index("line of 0") < text.index("line of 1") < text.index("line of 3")


def test_a_bug_is_a_traceback_in_both(snakemake, log, capsys):
    with pytest.raises(SystemExit), job(snakemake):
        _ = 1 / 0
    assert "ZeroDivisionError" in capsys.readouterr().err
    assert "ZeroDivisionError" in log.read_text()


def test_a_disk_that_is_full_from_the_start_is_told_without_a_traceback(
    snakemake, monkeypatch, capsys
):
    def refuse(path, value):
        raise OutputError(f"cannot write {path}: the disk is full")

    monkeypatch.setattr("ultrarefiner.jobs.write_json", refuse)
    with pytest.raises(SystemExit) as stop, job(snakemake):
        pass
    assert stop.value.code == 1
    screen = capsys.readouterr().err
    assert "job.json: the disk is full" in screen
    assert "Traceback" not in screen


def test_a_clean_stop_keeps_its_exit_status(snakemake):
    with pytest.raises(SystemExit) as stop, job(snakemake):
        raise SystemExit(143)
    assert stop.value.code == 143


def test_two_jobs_have_two_seeds_and_a_job_always_the_same(snakemake, log):
    seeds = []
    for fold in ("0", "0", "1"):
        snakemake.wildcards = {"fold": fold}
        with job(snakemake):
            pass
        seeds.append(record_of(log)["seed"])
    assert seeds[0] == seeds[1] != seeds[2]
