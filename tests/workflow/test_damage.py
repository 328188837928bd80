"""Guards that damage on the disk is found by the job that would read it, and mended by a rerun."""

import csv
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.workflow.study import planned, run_snakemake
from ultrarefiner.artefacts import begin_outputs
from ultrarefiner.cli import app
from ultrarefiner.study.explain import explain

RUN = "results/tiny"
BUSI = f"{RUN}/busi"
MODEL = f"{BUSI}/models/transunet/fold0/model.safetensors"
MASKS = f"{BUSI}/masks/tiny_sam-box_loose/fold0"


def flip(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def contents(folder, pattern="*.png"):
    return {path.name: path.read_bytes() for path in folder.glob(pattern)}


def test_every_output_of_the_study_has_a_card(finished_study):
    run, made = finished_study / RUN, set()
    for path in (run / "logs").glob("*/**/*.json"):
        for output in json.loads(path.read_text())["output"].values():
            made |= {output} if isinstance(output, str) else set(output)
    cards = [json.loads(path.read_text()) for path in run.glob("provenance/**/*.json")]
    assert len(made) > 50
    assert {card["artefact"] for card in cards} == made


@pytest.mark.parametrize("what", ["table", "mask", "checkpoint"])
def test_a_finished_study_is_traced_to_its_raw_images(finished_study, monkeypatch, what):
    monkeypatch.chdir(finished_study)
    with open(f"{BUSI}/splits.csv", newline="") as handle:
        tested = [row["case"] for row in csv.DictReader(handle) if row["role"] == "test"]
    mask = next(path for case in tested if (path := Path(MASKS, f"{case}.png")).is_file())
    path = {"table": f"{RUN}/report/summary.csv", "mask": str(mask), "checkpoint": MODEL}[what]
    chain = explain(path)
    assert not chain.changes
    rules = [step.record["rule"] for step in chain.steps.values()]
    assert {"train_coarse", "split_folds", "prepare_dataset", "write_phantom"} <= set(rules)
    assert rules.count("train_coarse") == (2 if what == "table" else 1)
    result = CliRunner().invoke(app, ["explain", path])
    assert result.exit_code == 0, result.output
    assert f"→ {BUSI}/phantom" in result.output


def test_a_damaged_mask_is_found_by_the_job_that_reads_it_and_made_anew(study_copy):
    scores = study_copy / BUSI / "scores/grabcut-mask/fold1.csv"
    before = scores.read_bytes()
    mask = sorted((study_copy / BUSI / "masks/grabcut-mask/fold1").glob("*.png"))[2]
    flip(mask)
    scores.unlink()
    target = str(scores.relative_to(study_copy))
    output = run_snakemake(study_copy, targets=(target,), ok=False)
    shelf = f"{BUSI}/masks/grabcut-mask/fold1"
    assert f"{shelf} is not what refine_masks wrote: {mask.name} (changed)" in output
    assert f"moved to {shelf}.damaged" in output
    assert "Run the same command again" in output
    assert "Traceback" not in output
    run_snakemake(study_copy, targets=(target,))
    assert scores.read_bytes() == before
    assert not explain(scores).changes


@pytest.mark.slow
def test_a_torn_npz_and_a_flipped_bit_of_a_model_are_found_and_made_anew(study_copy):
    npz = sorted((study_copy / BUSI / "prepared/npz").glob("*.npz"))[3]
    target = f"{BUSI}/scores/transunet/fold0.csv"
    tables = [target, f"{BUSI}/splits.csv", f"{BUSI}/prepared/cases.csv", MODEL]
    before = [(study_copy / path).read_bytes() for path in tables]
    model = study_copy / MODEL
    saved = next((model.parent / "resume").glob("best-*"))
    saved.unlink()
    saved.hardlink_to(model)  # as the training left it; a copy of the study has two files
    with open(model, "r+b") as handle:
        handle.seek(-1, 2)
        handle.write(bytes([before[-1][-1] ^ 1]))
    cut(npz)
    command = ("--forcerun", "predict_coarse")
    output = run_snakemake(study_copy, *command, targets=(target,), ok=False)
    assert f"{MODEL} is not what train_coarse wrote: model.safetensors (changed)" in output
    assert f"{BUSI}/prepared/npz is not what prepare_dataset wrote: {npz.name} (changed)" in output
    assert "Traceback" not in output
    run_snakemake(study_copy, *command, targets=(target,))
    assert [(study_copy / path).read_bytes() for path in tables] == before
    assert not explain(study_copy / target).changes
    assert planned(run_snakemake(study_copy, "--dry-run", targets=(target,))) == {}


@pytest.mark.slow
def test_a_damaged_embedding_is_told_and_encoded_again(study_copy):
    shelf = sorted((study_copy / "resources/embeddings").rglob("*.safetensors"))
    whole = {path: path.read_bytes() for path in shelf}
    for path in shelf:
        flip(path)
    index = next((study_copy / BUSI / "embeddings").glob("*/full/fold0.csv"))
    before = index.read_text()
    index.unlink()
    output = run_snakemake(study_copy, targets=(str(index.relative_to(study_copy)),))
    assert "its numbers are not the ones that were written" in output
    assert index.read_text() == before
    with open(index, newline="") as handle:
        keys = {row["key"] for row in csv.DictReader(handle)}
    mended = {path.stem for path in shelf if path.read_bytes() == whole[path]}
    assert mended == keys


def test_what_a_failed_job_left_undone_is_made_although_all_that_needs_it_is_there(study_copy):
    run = study_copy / RUN
    prompts = run / "busi/prompts/transunet/box_loose/fold0.json"
    prompts.unlink()
    assert planned(run_snakemake(study_copy, "--dry-run")) == {}
    # As Snakemake and a job that fails leave it.
    begin_outputs(run, run / "logs/make_prompts/some.log", [str(prompts.relative_to(study_copy))])
    jobs = planned(run_snakemake(study_copy, "--dry-run"))
    assert jobs["make_prompts"] == 1
    assert {"refine_masks", "score_masks", "summarise_scores", "write_report"} <= set(jobs)
