"""Guards SAM-UNet from end to end: convert, train, test on datasets that it never saw, report."""

import csv
import json
from collections import Counter

import pytest

from tests.refiner_fixture import as_published
from tests.workflow.study import run_snakemake, write_study

pytestmark = pytest.mark.slow

CONVERT = {
    "run": "convert",
    "device": "cpu",
    "datasets": {"busi": {"phantom": {"cases": 60, "size": 96, "seed": 3}, "export": "samed2d"}},
    "splits": {"folds": 3, "run": [0]},
    "coarse": {"net": {"model": "sam_unet_tiny", "init": "random", "image_size": 64}},
    "compare": {"coarse": ["net"]},
}
TRAINING = as_published().model_dump(exclude_defaults=True, exclude={"cache"})
LONGER = {**TRAINING, "epochs": 25, "milestones": [20]}


def refiner(training):
    finetune = {**training, "batch_size": 4, "threads": 1}
    return {"family": "sam_unet", "init": "tiny", "resnet": 10, "finetune": finetune}


STUDY = {
    "run": "zero_shot",
    "device": "cpu",
    "datasets": {
        "converted": {
            "root": "results/convert/busi/samed2d/fold0",
            "layout": "samed2d",
            "official_test": True,
            "modality": "ultrasound",
        },
        "bus": {"phantom": {"cases": 8, "size": 96, "seed": 5}, "role": "unseen"},
        "organs": {
            "phantom": {"cases": 8, "size": 96, "seed": 6},
            "layout": "samed2d",
            "options": {"masks": "each"},
            "modality": "ct",
            "role": "unseen",
        },
    },
    "splits": {"folds": 2, "validation": 0.25},
    "coarse": {
        "net": {
            "model": "sam_unet_tiny",
            "init": "random",
            "image_size": 64,
            "epochs": 2,
            "batch_size": 4,
            "optimizer": "adam",
            "lr": 0.001,
            "loss": {"ce": 0.0, "dice": 20.0, "focal": 1.0, "focal_alpha": 0.25},
            "threads": 1,
        }
    },
    "prompts": {"box": {"kind": "box"}, "oracle_box": {"kind": "box", "source": "ground_truth"}},
    "refiners": {"samunet": refiner(TRAINING), "longer": refiner(LONGER)},
    "compare": {
        "coarse": ["net"],
        "refine": {"samunet": ["box", "oracle_box"], "longer": ["oracle_box"]},
    },
    "report": {"bootstrap": 200, "gallery": 1},
}


def table(path):
    with open(path, newline="") as handle:
        return list(csv.DictReader(handle))


@pytest.fixture(scope="module")
def finished(tmp_path_factory, stu_root):
    """Return a folder where a dataset was converted, a model trained on it and tested elsewhere."""
    folder = tmp_path_factory.mktemp("zero_shot")
    write_study(folder, CONVERT)
    run_snakemake(folder, "--until", "export_samed2d")
    stu = {"root": str(stu_root), "role": "unseen"}
    write_study(folder, {**STUDY, "datasets": {**STUDY["datasets"], "stu": stu}})
    run_snakemake(folder)
    return folder


def test_every_mask_of_every_dataset_is_scored(finished):
    results = finished / "results" / "zero_shot"
    counts = {
        name: len(table(results / name / "prepared" / "cases.csv"))
        for name in ("bus", "organs", "stu")
    }
    assert counts["stu"] == 42
    rows = table(results / "report" / "zero_shot.csv")
    masks = [row for row in rows if row["unit"] == "mask" and row["dataset"] in counts]
    assert {(row["dataset"], int(row["n"])) for row in masks} == set(counts.items())
    methods = {row["method"] for row in masks}
    assert {"net@converted", "samunet-box@converted", "samunet-oracle_box@converted"} <= methods
    for row in rows:
        assert (row["oracle"] == "true") == ("oracle" in row["method"])
        assert 0 <= float(row["dice_mean"]) <= 1


def test_several_masks_of_an_image_are_told_apart_from_images(finished):
    results = finished / "results" / "zero_shot"
    cases = table(results / "organs" / "prepared" / "cases.csv")
    masks = Counter(row["image"] for row in cases)
    assert max(masks.values()) > 1
    rows = table(results / "report" / "zero_shot.csv")
    images = [row for row in rows if (row["dataset"], row["unit"]) == ("organs", "image")]
    assert images and {int(row["n"]) for row in images} == {len(masks)}
    assert {row["modality"] for row in images} == {"ct"}


def test_a_longer_training_is_better_where_it_never_was_and_compared(finished):
    rows = table(finished / "results" / "zero_shot" / "report" / "zero_shot.csv")
    for dataset in ("bus", "stu"):
        found = {
            row["method"]: row for row in rows if (row["dataset"], row["unit"]) == (dataset, "mask")
        }
        longer, short = (found[f"{name}-oracle_box@converted"] for name in ("longer", "samunet"))
        assert float(longer["dice_mean"]) > max(0.5, float(short["dice_mean"]) + 0.1)
        assert longer["family"] == short["family"] == "sam_unet-oracle_box"
        assert short["reference"] == "longer-oracle_box@converted"
        assert float(short["ci_high"]) < 0


def test_the_report_shows_it_all(finished):
    page = (finished / "results" / "zero_shot" / "report" / "report.html").read_text()
    for words in ("Zero-shot", "samunet-oracle_box@converted", "began as random numbers", "STU"):
        assert words in page
    card = finished / "results/zero_shot/converted/models/samunet/fold0/card.json"
    assert json.loads(card.read_text())["architecture"]["options"] == {"init": "tiny", "resnet": 10}


def test_a_finished_study_plans_nothing(finished):
    assert "Nothing to be done" in run_snakemake(finished, "--dry-run")
