"""Guards that a job leaves a log with its traceback, and a record of what made its result."""

import json
import logging
from types import SimpleNamespace

import pytest

from ultrarefiner.errors import DatasetError
from ultrarefiner.jobs import job


@pytest.fixture
def snakemake(tmp_path):
    """Return what Snakemake gives to a script, as far as a job looks at it."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield SimpleNamespace(
        rule="train_coarse",
        log=[str(tmp_path / "logs" / "job.log")],
        threads=1,
        wildcards={"fold": "0"},
        params={"training": {"epochs": 3}},
        input={"cases": "cases.csv"},
        output={"model": "model.safetensors"},
    )
    root.handlers, root.level = handlers, level
    logging.captureWarnings(False)


def test_a_job_records_what_made_its_result(snakemake, tmp_path):
    with job(snakemake):
        logging.getLogger("somewhere").info("a line")
    assert "a line" in (tmp_path / "logs" / "job.log").read_text()
    record = json.loads((tmp_path / "logs" / "job.json").read_text())
    assert record["params"] == {"training": {"epochs": 3}}
    assert record["wildcards"] == {"fold": "0"}
    assert record["output"] == {"model": "model.safetensors"}
    assert record["seed"] == json.loads((tmp_path / "logs" / "job.json").read_text())["seed"]
    assert len(record["git_revision"]) >= 13
    assert record["versions"]["numpy"][0].isdigit()
    assert record["started"] <= record["finished"]


def test_the_users_error_is_short_on_screen_and_whole_in_the_log(snakemake, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop, job(snakemake):
        raise DatasetError("mend the mask", ["a.png"])
    assert stop.value.code == 1
    screen = capsys.readouterr().err
    assert "mend the mask" in screen
    assert "Traceback" not in screen
    log = (tmp_path / "logs" / "job.log").read_text()
    assert "Traceback" in log
    assert "DatasetError" in log
    assert json.loads((tmp_path / "logs" / "job.json").read_text())["finished"] is None


def test_a_second_attempt_keeps_the_log_of_the_first(snakemake, tmp_path):
    with pytest.raises(SystemExit), job(snakemake):
        raise DatasetError("first")
    with job(snakemake):
        logging.getLogger("somewhere").info("second")
    log = (tmp_path / "logs" / "job.log").read_text()
    assert log.index("first") < log.index("second")


def test_a_bug_is_a_traceback_in_both(snakemake, tmp_path, capsys):
    with pytest.raises(SystemExit), job(snakemake):
        _ = 1 / 0
    assert "ZeroDivisionError" in capsys.readouterr().err
    assert "ZeroDivisionError" in (tmp_path / "logs" / "job.log").read_text()


def test_a_clean_stop_keeps_its_exit_status(snakemake):
    with pytest.raises(SystemExit) as stop, job(snakemake):
        raise SystemExit(143)
    assert stop.value.code == 143


def test_two_jobs_have_two_seeds_and_a_job_always_the_same(snakemake, tmp_path):
    seeds = []
    for fold in ("0", "0", "1"):
        snakemake.wildcards = {"fold": fold}
        with job(snakemake):
            pass
        seeds.append(json.loads((tmp_path / "logs" / "job.json").read_text())["seed"])
    assert seeds[0] == seeds[1] != seeds[2]
