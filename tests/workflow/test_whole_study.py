"""Guards the main job: raw folders in, a report out, every artifact where the design says."""

import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest

from tests.workflow.study import TINY, planned, run_snakemake, write_study
from ultrarefiner.config import CoarseConfig
from ultrarefiner.images import read_gray

REFINED = ("grabcut-mask", "grabcut-oracle_mask", "tiny_sam-box_loose")
METHODS = ("transunet", "transunet-tuned", *REFINED)


def rows(path):
    with open(path, newline="") as handle:
        return list(csv.DictReader(handle))


def test_every_artifact_is_where_the_design_says(finished_study):
    run = finished_study / "results" / "tiny"
    cases = rows(run / "busi" / "prepared" / "cases.csv")
    splits = rows(run / "busi" / "splits.csv")
    assert len(cases) == 14
    for case in cases:
        with np.load(run / "busi" / "prepared" / "npz" / f"{case['case']}.npz") as data:
            assert data["image"].dtype == np.uint8
            assert data["image"].shape == (int(case["height"]), int(case["width"]), 3)
            assert set(np.unique(data["label"])) <= {0, 1}
            assert data["original_size"].tolist() == list(data["label"].shape)
    for fold in (0, 1):
        test = {row["case"] for row in splits if row["fold"] == str(fold) and row["role"] == "test"}
        model = run / "busi" / "models" / "transunet" / f"fold{fold}"
        assert (model / "model.safetensors").is_file()
        assert not test & set(json.loads((model / "card.json").read_text())["trained_on"])
        for method in METHODS:
            shelf = run / "busi" / "masks" / method / f"fold{fold}"
            assert {path.stem for path in shelf.glob("*.png")} == test
            for path in shelf.glob("*.png"):
                assert set(np.unique(read_gray(path))) <= {0, 255}
            table = rows(run / "busi" / "scores" / method / f"fold{fold}.csv")
            assert {row["case"] for row in table} == test
            assert {row["oracle"] for row in table} == {str("oracle" in method).lower()}
        tables = list((run / "busi" / "embeddings").glob(f"tiny_sam_*/full/fold{fold}.csv"))
        tables += [run / "busi" / "masks" / name / f"fold{fold}.csv" for name in REFINED]
        assert len(tables) == 4
        for path in tables:
            assert {row["case"] for row in rows(path)} == test
    assert {row["method"] for row in rows(run / "report" / "scores.csv")} == set(METHODS)


def test_every_key_of_the_model_arrives_in_its_training(finished_study):
    model = finished_study / "results" / "tiny" / "busi" / "models" / "transunet" / "fold0"
    asked = CoarseConfig(**TINY["coarse"]["transunet"]).model_dump(mode="json")
    assert json.loads((model / "card.json").read_text())["config"] == asked
    assert list((model / "tensorboard").glob("events*"))


def test_the_log_carries_provenance(finished_study):
    logs = finished_study / "results" / "tiny" / "logs"
    record = json.loads((logs / "train_coarse" / "busi/transunet/fold0.json").read_text())
    assert record["params"]["training"]["epochs"] == 2
    assert record["seed"] > 0
    assert {"torch", "snakemake", "python"} <= set(record["versions"])
    assert "★" in (logs / "train_coarse" / "busi/transunet/fold0.log").read_text()


def test_the_report_is_one_offline_file(finished_study):
    page = (finished_study / "results" / "tiny" / "report" / "report.html").read_text()
    assert 'src="http' not in page
    assert 'href="http' not in page
    assert "oracle" in page
    for method in METHODS:
        assert method in page
    # The cards of the run tell the revision of the run: no caution where there is no reason.
    assert "Synthetic images" in page
    assert "Not all models were trained by the code of this report" not in page


@pytest.mark.slow
def test_same_inputs_give_the_same_bytes(finished_study, tmp_path):
    write_study(tmp_path, TINY)
    (tmp_path / "tiny_sam.pth").write_bytes((finished_study / "tiny_sam.pth").read_bytes())
    target = "results/tiny/busi/masks/grabcut-mask/fold1"
    run_snakemake(tmp_path, targets=(target, "results/tiny/busi/splits.csv"))
    for name in ("busi/splits.csv", "busi/prepared/cases.csv"):
        again, first = (f / "results" / "tiny" / name for f in (tmp_path, finished_study))
        assert again.read_bytes() == first.read_bytes()
    masks = sorted((tmp_path / target).glob("*.png"))
    assert masks
    for path in masks:
        assert path.read_bytes() == (finished_study / target / path.name).read_bytes()


def test_what_is_made_again_is_the_same_and_strays_on_the_shelf_are_not_scored(study_copy):
    base = study_copy / "results" / "tiny"
    shelf, table = (base / "busi" / kind / "transunet" for kind in ("masks", "scores"))
    some = next((shelf / "fold0").glob("*.png"))
    (shelf / "fold0" / "busi__intruder.png").write_bytes(some.read_bytes())
    made = [table / "fold0.csv", base / "report/summary.csv", base / "report/comparisons.csv"]
    before = {path: path.read_bytes() for path in made}
    made[0].unlink()
    targets = tuple(str(path.relative_to(study_copy)) for path in made)
    jobs = planned(run_snakemake(study_copy, targets=targets))
    assert jobs == {"score_masks": 1, "summarise_scores": 1, "compare_methods": 1}
    assert {path: path.read_bytes() for path in made} == before


def test_a_leaking_card_stops_the_prediction(study_copy):
    base = study_copy / "results" / "tiny" / "busi"
    test = [
        r["case"] for r in rows(base / "splits.csv") if r["fold"] == "0" and r["role"] == "test"
    ]
    path = base / "models" / "transunet" / "fold0" / "card.json"
    card = json.loads(path.read_text())
    card["trained_on"].append(test[0])
    path.write_text(json.dumps(card))
    # Else the card is found to be another than was written, which stops the job before it begins.
    (study_copy / "results/tiny/provenance/busi/models/transunet/fold0/card.json.json").unlink()
    output = run_snakemake(
        study_copy, "--forcerun", "predict_coarse",
        targets=("results/tiny/busi/masks/transunet/fold0",), ok=False,
    )  # fmt: skip
    assert test[0] in output
    log = study_copy / "results/tiny/logs/predict_coarse/busi/transunet/fold0.log"
    assert "Traceback" in log.read_text()
    assert "LeakError" in log.read_text()
    assert not (base / "masks" / "transunet" / "fold0").exists()


@pytest.mark.slow
def test_conda_makes_no_environment_and_is_no_reason_to_make_anything_again(
    study_copy, tmp_path, monkeypatch
):
    # Snakemake asks where conda is as soon as it may use it.
    conda = tmp_path / "bin" / "conda"
    conda.parent.mkdir()
    answer = json.dumps({"conda_prefix": str(tmp_path), "platform": "linux-64"})
    conda.write_text(f"#!/bin/sh\necho \"$@\" >> '{conda}.calls'\necho '{answer}'\n")
    conda.chmod(0o755)
    monkeypatch.setenv("PATH", f"{conda.parent}{os.pathsep}{os.environ['PATH']}")
    table = study_copy / "results/tiny/report/comparisons.csv"
    before = table.read_bytes()
    table.unlink()
    target = str(table.relative_to(study_copy))
    output = run_snakemake(study_copy, "--sdm", "conda", targets=(target,))
    assert planned(output) == {"compare_methods": 1}
    assert table.read_bytes() == before
    assert set(Path(f"{conda}.calls").read_text().splitlines()) == {"info --json"}
