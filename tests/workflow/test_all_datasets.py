"""Guards that a study over every dataset layout runs end to end, and its report answers for it all."""

import csv
import json

import pytest

from tests.sam_fixture import write_tiny_sam
from tests.workflow.study import TINY, changed, planned, run_snakemake, write_study
from ultrarefiner.datasets import DATASETS

SMALL = {"cases": 12, "size": 56, "seed": 5}
UNSEEN = ("stu", "udiat")
STUDY = changed(
    TINY,
    run="everything",
    datasets={
        name: {"phantom": dict(SMALL), "include_empty": True, "role": "train"} for name in DATASETS
    }
    | {name: {"phantom": dict(SMALL), "role": "unseen"} for name in UNSEEN},
    trainsets={"all": ["busi", "busbra", "bus_uclm"]},
    splits={"folds": 2, "validation": 0.25, "holdout": 0.15},
    coarse__transunet__tensorboard=None,
    compare__refine={"tiny_sam": ["box_loose"]},
    points={"refiners": ["tiny_sam"], "sigmas": [3.0], "draws": 1},
)
STUDY["datasets"]["udiat"]["shares_images_with"] = ["bus"]
STUDY["datasets"]["bus_uclm"]["phantom"]["cases"] = 20  # several frames a patient
STUDY["datasets"]["volumes"]["phantom"]["cases"] = 6  # 12 slices each


def rows(path):
    with open(path, newline="") as handle:
        return list(csv.DictReader(handle))


@pytest.mark.slow
def test_every_layout_in_one_study(tmp_path):
    assert set(STUDY["datasets"]) == set(DATASETS)
    write_tiny_sam(tmp_path / "tiny_sam.pth", side=256)
    write_study(tmp_path, STUDY)
    stages = ("overlaps.csv", "busi/splits.csv", "report/summary.csv", "report/report.html")
    for stage in stages:  # each within the time that a test may take
        run_snakemake(tmp_path, targets=(f"results/everything/{stage}",), timeout=1500)
    run_snakemake(tmp_path)
    assert planned(run_snakemake(tmp_path, "-n")) == {}

    run = tmp_path / "results" / "everything"
    scores = rows(run / "report" / "scores.csv")
    assert {row["dataset"] for row in scores} == set(DATASETS)
    assert {row["evaluation"] for row in scores} == {"folds", "holdout", "unseen"}
    assert {row["member"] for row in scores} == {"single", "mean", "vote"}
    assert {row["evaluation"] for row in scores if row["dataset"] in UNSEEN} == {"unseen"}
    trained = {row["trained_on"] for row in scores if row["dataset"] == "stu"}
    assert trained == set(DATASETS) - set(UNSEEN) | {"all"}
    held = {
        row["case"] for row in scores if row["dataset"] == "abus" and row["evaluation"] == "holdout"
    }
    official = {
        row["case"] for row in rows(run / "abus/prepared/cases.csv") if row["split"] == "test"
    }
    assert held == official
    shared = {row["case"] for row in rows(run / "overlaps.csv")} | {
        row["other_case"] for row in rows(run / "overlaps.csv")
    }
    assert shared
    assert not shared & {row["case"] for row in scores if row["dataset"] == "udiat"}
    for card in run.glob("*/models/transunet/fold*/card.json"):
        seen = json.loads(card.read_text())
        assert not {case.split("__")[0] for case in seen["trained_on"]} & set(UNSEEN)

    page = (run / "report" / "report.html").read_text()
    for name in DATASETS:
        assert f'id="{name}"' in page
    assert 'src="http' not in page and 'href="http' not in page
    assert list((run / "report" / "tables").glob("*.tex"))


@pytest.mark.slow
def test_three_coarse_models_side_by_side(tmp_path):
    tiny = TINY["coarse"]["transunet"]
    write_study(
        tmp_path,
        changed(
            TINY,
            coarse={
                "transunet": tiny,
                "unet": {**tiny, "model": "unet", "width": 4, "flips": True},
                "dynunet": {**tiny, "model": "dynunet", "image_size": "auto", "width": 4},
            },
            compare={"coarse": ["transunet", "unet", "dynunet"], "refine": {}},
        ),
    )
    run_snakemake(tmp_path)
    summary = rows(tmp_path / "results/tiny/report/summary.csv")
    names = {"transunet", "unet", "dynunet"}
    assert {row["method"] for row in summary} == names | {f"{name}-tuned" for name in names}
    overall = [
        row
        for row in summary
        if (row["fold"], row["subgroup"], row["metric"]) == ("all", "all", "dice")
    ]
    assert len(overall) == 6 and all(row["ci_low"] and row["ci_high"] for row in overall)
