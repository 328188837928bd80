"""Guards that a run fetches the weights it needs, whole and verified, and leaves others alone."""

import json
import os
import re

import pytest

from tests.weights_server import Manners, serving
from tests.workflow.study import TINY, changed, planned, run_snakemake, write_study
from ultrarefiner.models.weights import FOLDER, WEIGHTS

LIGHT = changed(
    TINY, refiners={"grabcut": {"family": "grabcut"}}, compare__refine={"grabcut": ["mask"]}
)
WITH_SAM = changed(TINY, refiners__tiny_sam__weights="sam_vit_b")


@pytest.fixture(autouse=True)
def no_internet(monkeypatch):
    """Let nothing but this machine answer: a test must not fetch from the authors."""
    for name in ("https_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "127.0.0.1")


def weights_in(folder):
    """Return what lies there; Snakemake removes the folder when a failed job left it empty."""
    return sorted(path.name for path in (folder / FOLDER).glob("*"))


def test_absent_weights_are_planned_and_present_ones_are_plain_inputs(tmp_path):
    write_study(tmp_path, WITH_SAM)
    assert planned(run_snakemake(tmp_path, "--dry-run"))["fetch_weights"] == 1
    path = tmp_path / FOLDER / WEIGHTS["sam_vit_b"].file
    path.parent.mkdir(parents=True)
    path.touch()
    os.truncate(path, WEIGHTS["sam_vit_b"].bytes)
    for arguments in ((), ("--forceall",)):
        assert "fetch_weights" not in planned(run_snakemake(tmp_path, "--dry-run", *arguments))
    assert path.exists()


def test_wrong_bytes_end_the_run_before_any_training_and_leave_no_file(tmp_path):
    manners = Manners(bytes(WEIGHTS["mobile_sam"].bytes))
    with serving(manners) as url:
        study = changed(LIGHT, weights={"mirrors": [f"{url}/copies"]})
        write_study(tmp_path, study)
        target = f"{FOLDER}/{WEIGHTS['mobile_sam'].file}"
        output = run_snakemake(tmp_path, targets=(target,), ok=False)
    for part in (
        f"{url}/copies/mobile_sam.pt: its bytes are not those of the published file",
        WEIGHTS["mobile_sam"].checksum,
        f"{WEIGHTS['mobile_sam'].urls[0]}: no connection",
        f"save it as {tmp_path / target}",
        "ultrarefiner fetch mobile_sam",
    ):
        assert part in output
    assert "Traceback" not in output
    assert weights_in(tmp_path) == []
    log = tmp_path / "results/tiny/logs/fetch_weights/mobile_sam.pt.log"
    assert "its bytes are not those" in log.read_text()


def test_fetching_comes_before_all_other_jobs(tmp_path):
    write_study(tmp_path, WITH_SAM)
    output = run_snakemake(tmp_path, "--cores", "1", ok=False)
    assert "weights 'sam_vit_b' could not be fetched" in output
    started = re.findall(r"^Job \d+: (.*)$", output, re.M)
    assert started[0] == "Fetch sam_vit_b_01ec64.pth"
    assert not list(tmp_path.glob("results/tiny/*/models/*/*/model.safetensors"))


@pytest.mark.slow
def test_a_broken_download_ends_as_a_whole_recorded_file(tmp_path):
    # The one kind of file that a test can make: of the published size, without a checksum.
    row = WEIGHTS["r50_vit_b_16"]
    assert row.checksum is None
    manners = Manners(bytes(row.bytes), breaks=(row.bytes // 2, 1))
    with serving(manners) as url:
        write_study(tmp_path, changed(LIGHT, weights={"mirrors": [url]}))
        run_snakemake(tmp_path, targets=(f"{FOLDER}/{row.file}",))
    assert weights_in(tmp_path) == [row.file, f"{row.file}.json"]
    assert (tmp_path / FOLDER / row.file).stat().st_size == row.bytes
    record = json.loads((tmp_path / FOLDER / f"{row.file}.json").read_text())
    assert record["url"].startswith(url)
    assert manners.requests[1][1].startswith("bytes=")
