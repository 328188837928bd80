"""Guards that bad input is one clear error that names the file or key and the cure, before training."""

import csv
import os
import shlex
import shutil
import subprocess

import cv2
import numpy as np
import pytest
import torch

from tests.sam_fixture import write_tiny_sam
from tests.workflow.study import TINY, changed, run_snakemake, snakemake_command, write_study
from ultrarefiner.datasets.phantom import write_phantom

PLAIN = changed(
    TINY, refiners={"grabcut": {"family": "grabcut"}}, compare__refine={"grabcut": ["mask"]}
)


@pytest.fixture
def raw(tmp_path):
    """Return a BUSI folder without problems, inside a folder with a study on it."""
    write_phantom("busi", tmp_path / "raw", cases=8, size=64, seed=0, odd_cases=False)
    write_study(tmp_path, changed(PLAIN, datasets={"busi": {"root": "raw"}}))
    return tmp_path / "raw"


def failing_run(folder, *names, targets=("all",)):
    """Run until it stops; it must name every one of `names` and not have trained."""
    output = run_snakemake(folder, targets=targets, ok=False)
    for name in names:
        assert name in output, output[-4000:]
    assert not list(folder.glob("results/tiny/*/models/*/*/model.safetensors"))
    assert not list(folder.glob("results/**/.partial-*"))
    return output


def first_pair(raw):
    mask = sorted(raw.rglob("*_mask.png"))[0]
    return mask.with_name(mask.name.replace("_mask", "")), mask


def test_wrong_root(tmp_path):
    write_study(tmp_path, changed(PLAIN, datasets={"busi": {"root": "nowhere"}}))
    failing_run(tmp_path, "datasets.busi.root", "nowhere")


def test_a_curation_file_that_is_not_there(tmp_path):
    write_study(tmp_path, changed(PLAIN, datasets__busi__curation="nowhere.yaml"))
    failing_run(tmp_path, "datasets.busi.curation", "no file nowhere.yaml", "remove the key")


def test_a_folder_of_something_else(tmp_path):
    (tmp_path / "raw" / "holiday").mkdir(parents=True)
    (tmp_path / "raw" / "holiday" / "beach.png").write_bytes(b"x")
    write_study(tmp_path, changed(PLAIN, datasets={"busi": {"root": "raw"}}))
    failing_run(tmp_path, "raw", "benign")


def test_missing_mask(raw):
    image, mask = first_pair(raw)
    mask.unlink()
    failing_run(raw.parent, image.name)


def test_truncated_png(raw):
    image, _ = first_pair(raw)
    image.write_bytes(image.read_bytes()[:300])
    failing_run(raw.parent, image.name)


def test_mask_with_other_values(raw):
    _, mask = first_pair(raw)
    pixels = cv2.imread(str(mask), cv2.IMREAD_GRAYSCALE)
    cv2.imwrite(str(mask), (pixels > 127).astype(np.uint8))
    failing_run(raw.parent, mask.name, "0", "1")


def test_mask_of_another_aspect(raw):
    _, mask = first_pair(raw)
    pixels = cv2.imread(str(mask), cv2.IMREAD_GRAYSCALE)
    cv2.imwrite(str(mask), cv2.resize(pixels, (60, 200), interpolation=cv2.INTER_NEAREST))
    failing_run(raw.parent, mask.name)


def test_all_problems_are_listed_at_once(raw):
    masks = sorted(raw.rglob("*_mask.png"))[:2]
    masks[0].write_bytes(b"not a png")
    masks[1].unlink()
    failing_run(raw.parent, masks[0].name, masks[1].name.replace("_mask", ""))


def test_fewer_groups_than_folds(tmp_path):
    write_study(tmp_path, changed(PLAIN, splits__folds=12, datasets__busi__phantom__cases=6))
    failing_run(tmp_path, "12", "folds")


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"coarse__transunet__epoch": 3}, ("coarse.transunet.epoch", "Did you mean 'epochs'")),
        ({"compare__refine": {"grabcut": ["msk"]}}, ("msk", "Did you mean 'mask'")),
        (
            {
                "refiners": {"ultrasam": {"family": "ultrasam", "weights": "ultrasam"}},
                "compare__refine": {"ultrasam": ["box_loose"]},
            },
            ("refiners.ultrasam.weights", "No commercial use", "weights: {accept: [ultrasam]}"),
        ),
    ],
)
def test_configuration_errors_stop_even_the_plan(tmp_path, change, names):
    write_study(tmp_path, changed(PLAIN, **change))
    output = run_snakemake(tmp_path, "--dry-run", ok=False)
    for name in names:
        assert name in output, output
    assert "Traceback" not in output


def test_pretrained_weights_are_asked_for(tmp_path):
    study = changed(
        PLAIN,
        coarse__transunet__model="transunet",
        coarse__transunet__init=None,
        coarse__transunet__pretrained="own.npz",
    )
    write_study(tmp_path, study)
    failing_run(
        tmp_path, "coarse.transunet.pretrained", "`pretrained: r50_vit_b_16`", "init: random"
    )


def wrong_weights(path, kind):
    if kind == "text":
        path.write_text("<html>404 Not Found</html>")
    elif kind == "other model":
        torch.save(torch.nn.Linear(3, 4).state_dict(), path)
    else:
        state = torch.load(path, weights_only=True)
        torch.save({key: value for key, value in state.items() if "mask_tokens" not in key}, path)


@pytest.mark.parametrize(
    ("kind", "name"),
    [("text", "web page"), ("other model", "image_encoder"), ("keys", "mask_tokens")],
)
def test_weights_that_are_not_a_sam_checkpoint(tmp_path, kind, name):
    write_tiny_sam(tmp_path / "tiny_sam.pth")
    wrong_weights(tmp_path / "tiny_sam.pth", kind)
    write_study(tmp_path, TINY)
    failing_run(tmp_path, "refiners.tiny_sam.weights", "tiny_sam.pth", name)
    assert not (tmp_path / "results" / "tiny" / "busi").exists()


@pytest.mark.parametrize(
    "name", ["results", "results/tiny", "results/tiny/busi", "results/tiny/both"]
)
def test_a_file_where_a_results_folder_should_be(tmp_path, name):
    both = {"busi": PLAIN["datasets"]["busi"], "stu": PLAIN["datasets"]["busi"]}
    write_study(tmp_path, changed(PLAIN, datasets=both, trainsets={"both": list(both)}))
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text("a file")
    assert f"{name} is a file" in run_snakemake(tmp_path, ok=False)


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
    assert "No space left on device. Free space" in output


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
