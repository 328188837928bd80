"""Guards that bad input is one clear error that names the file or key and the cure, before training."""

import csv
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from tests.sam_fixture import write_tiny_sam
from tests.workflow.study import TINY, changed, run_snakemake, snakemake_command, write_study
from ultrarefiner.datasets.phantom import write_phantom
from ultrarefiner.study import load_study

PLAIN = changed(
    TINY, refiners={"grabcut": {"family": "grabcut"}}, compare__refine={"grabcut": ["mask"]}
)


def failing_run(folder, *names, arguments=()):
    """Run until it stops; it must name every one of `names` and not have trained."""
    output = run_snakemake(folder, *arguments, ok=False)
    for name in names:
        assert name in output, output[-4000:]
    assert not list(folder.glob("results/tiny/*/models/*/*/model.safetensors"))
    assert not list(folder.glob("results/**/.partial-*"))
    return output


def damaged(root):
    """Write a BUSI folder with a problem of each kind; return what has to be said of which file."""
    write_phantom("busi", root, cases=8, size=64, seed=0, odd_cases=False)
    missing, garbage, binary, turned, cut = sorted(root.rglob("*_mask.png"))[:5]
    missing.unlink()
    garbage.write_bytes(b"not a png")
    pixels = cv2.imread(str(binary), cv2.IMREAD_GRAYSCALE)
    cv2.imwrite(str(binary), (pixels > 127).astype(np.uint8))
    pixels = cv2.imread(str(turned), cv2.IMREAD_GRAYSCALE)
    cv2.imwrite(str(turned), cv2.resize(pixels, (60, 200), interpolation=cv2.INTER_NEAREST))
    image, cut = (mask.with_name(mask.name.replace("_mask", "")) for mask in (missing, cut))
    cut.write_bytes(cut.read_bytes()[:300])
    return {
        image.name: f"its mask {re.escape(missing.name)} is missing",
        garbage.name: "cannot be decoded .*damaged, truncated or not an image",
        binary.name: "not a 0/255 mask: its largest gray value is 1",
        turned.name: "its size 200x60 .* another aspect ratio",
        cut.name: "cannot be decoded .*truncated",
    }


def test_every_problem_of_every_dataset_is_named_at_once(tmp_path):
    problems = damaged(tmp_path / "raw")
    (tmp_path / "other" / "holiday").mkdir(parents=True)
    (tmp_path / "other" / "holiday" / "beach.png").write_bytes(b"x")
    datasets = {
        "busi": {"root": "raw"},
        "holiday": {"root": "other", "layout": "busi"},
        # Fewer groups than folds.
        "stu": {"phantom": {"cases": 6, "size": 64}},
    }
    write_study(tmp_path, changed(PLAIN, datasets=datasets, splits__folds=12))
    output = failing_run(
        tmp_path,
        *("other is not a BUSI folder", "benign", "holiday"),
        "6 group(s) cannot fill 12 folds",
        arguments=["--keep-going"],
    )
    for name, words in problems.items():
        assert re.search(f"{re.escape(name)}: {words}", output), (name, words)


def test_what_a_study_needs_and_cannot_have_is_listed_before_any_job(tmp_path):
    names = {"text": "web page", "other model": "image_encoder", "keys": "mask_tokens"}
    for kind in names:
        wrong_weights(write_tiny_sam(tmp_path / f"{kind}.pth"), kind)
    study = changed(
        PLAIN,
        datasets={"busi": {"root": "nowhere"}, "stu": {"phantom": {}, "curation": "absent.yaml"}},
        coarse__transunet__model="transunet",
        coarse__transunet__init=None,
        coarse__transunet__pretrained="own.npz",
        refiners={kind.replace(" ", "_"): {"family": "sam", "weights": f"{kind}.pth"}
                  for kind in names},
        compare__refine={kind.replace(" ", "_"): ["box_loose"] for kind in names},
    )  # fmt: skip
    write_study(tmp_path, study)
    output = failing_run(
        tmp_path,
        *("datasets.busi.root", "nowhere"),
        *("datasets.stu.curation", "no file absent.yaml", "remove the key"),
        *("coarse.transunet.pretrained", "`pretrained: r50_vit_b_16`", "init: random"),
    )
    for kind, name in names.items():
        key = re.escape(f"refiners.{kind.replace(' ', '_')}.weights: ")
        assert re.search(f"{key}.*{kind}.pth.*{name}", output), output
    assert not (tmp_path / "results" / "tiny" / "busi").exists()


@pytest.mark.parametrize(
    ("change", "names"),
    [
        # A key that there is not; a name that there is not; terms that were not accepted.
        ({"coarse__transunet__epoch": 3}, ("coarse.transunet.epoch", "Did you mean 'epochs'")),
        (
            {
                "refiners__ultrasam": {"family": "ultrasam", "weights": "ultrasam"},
                "compare__refine": {"grabcut": ["msk"], "ultrasam": ["box_loose"]},
            },
            (
                *("msk", "Did you mean 'mask'"),
                *("refiners.ultrasam.weights", "No commercial use"),
                "weights: {accept: [ultrasam]}",
            ),
        ),
    ],
)
def test_configuration_errors_stop_even_the_plan(tmp_path, change, names):
    write_study(tmp_path, changed(PLAIN, **change))
    output = run_snakemake(tmp_path, "--dry-run", ok=False)
    for name in names:
        assert name in output, output
    assert "Traceback" not in output


def wrong_weights(path, kind):
    if kind == "text":
        path.write_text("<html>404 Not Found</html>")
    elif kind == "other model":
        torch.save(torch.nn.Linear(3, 4).state_dict(), path)
    else:
        state = torch.load(path, weights_only=True)
        torch.save({key: value for key, value in state.items() if "mask_tokens" not in key}, path)


def test_a_file_where_a_results_folder_should_be(tmp_path, monkeypatch):
    both = {"busi": PLAIN["datasets"]["busi"], "stu": PLAIN["datasets"]["busi"]}
    study = changed(PLAIN, datasets=both, trainsets={"both": list(both)})
    write_study(tmp_path, study)
    monkeypatch.chdir(tmp_path)
    assert load_study(study).blocked_result() is None
    for name in ("results/tiny/both", "results/tiny/busi", "results/tiny/report", "results/tiny",
                 "results"):  # fmt: skip
        shutil.rmtree(tmp_path / "results", ignore_errors=True)
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("a file")
        assert load_study(study).blocked_result() == Path(name)
    assert "results is a file" in run_snakemake(tmp_path, ok=False)


def on_another_disk(folder, options):
    """Run the study with a small or read-only disk mounted on its results folder."""
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("mounting a disk for a test needs root and unshare")
    write_study(folder, PLAIN)
    (folder / "results").mkdir()
    mounted = f"mount -t tmpfs -o {options} tmpfs {folder}/results"
    run = shlex.join(snakemake_command(folder))
    look = f"find {folder}/results -name '.partial-*' -o -type d -name npz"
    script = f"{mounted} || exit 77; {run}; status=$?; echo LEFT; {look}; exit $status"
    result = subprocess.run(
        ["unshare", "--mount", "bash", "-c", script],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    if result.returncode == 77 or "unshare failed" in result.stdout:
        pytest.skip("this machine does not let a test mount a disk")
    assert result.returncode == 1, result.stdout
    output, left = result.stdout.split("LEFT\n")
    assert left == ""
    return output


def test_a_full_disk_is_named_and_nothing_half_written_is_left(tmp_path):
    output = on_another_disk(tmp_path, "size=300k")
    assert re.search(r"the disk is full( \(\d+\.\d MB free\))?\. Free space", output), output


def test_a_read_only_disk_is_named_before_any_job(tmp_path):
    output = on_another_disk(tmp_path, "ro")
    assert "Read-only file system. Free space or grant permission" in output
    assert "Error in rule" not in output


def test_every_score_row_belongs_to_a_case(finished_study):
    run = finished_study / "results" / "tiny"
    with open(run / "report" / "scores.csv", newline="") as handle:
        scored = {row["case"] for row in csv.DictReader(handle)}
    with open(run / "busi" / "prepared" / "cases.csv", newline="") as handle:
        assert scored == {row["case"] for row in csv.DictReader(handle)}
