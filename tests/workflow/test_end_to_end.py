"""All three phases in one run of Snakemake: from images to scores, and what a change makes again."""

import numpy as np
import pytest

from tests.sam_fixture import write_tiny_sam
from tests.workflow.study import TINY, changed, planned, run_snakemake, write_study
from ultrarefiner.cli import app
from ultrarefiner.datasets.splits import read_split
from ultrarefiner.images import read_mask
from ultrarefiner.io import file_sha256, read_json, read_rows
from ultrarefiner.models.cards import read_card
from ultrarefiner.refine.guard_jobs import read_rule

JOINT = {
    "coarse": "transunet",
    "refiner": "tuned",
    "prompts": ["mask", "box"],
    "train": {
        "coarse_decoder": {"lr": 1e-4},
        "coarse_encoder": {"lr": 1e-4, "from_epoch": 1},
        "decoder": {"lr": 1e-4},
    },
    "loss": {"size": 64},
    "epochs": 2,
    "largest_drop": None,
    "threads": 1,
}
TUNED = {
    "family": "sam",
    "weights": "tiny_sam.pth",
    "finetune": {"prompts": ["mask+box"], "epochs": 1, "threads": 1, "validation_copies": 1},
}
STUDY = changed(
    TINY,
    splits__holdout=0.2,
    datasets__busi={"phantom": {"cases": 20, "size": 64, "seed": 3}},
    prompts__mask_box={"kind": "mask+box"},
    refiners={"tuned": TUNED},
    end_to_end={"joint": JOINT},
    compare__refine={"tuned": ["mask_box"]},
    compare__end_to_end=["joint"],
    compare__guarded=["joint", "tuned-mask_box"],
)
METHODS = {
    "transunet",
    "transunet-tuned",
    "tuned-mask_box",
    "tuned-mask_box-guarded",
    "joint",
    "joint-tuned",
    "joint-coarse",
    "joint-guarded",
}


def write_phases(folder, folds, **changes):
    run = "all" if folds == (0, 1) else list(folds)
    return write_study(folder, changed(STUDY, splits__run=run, **changes))


@pytest.fixture(
    scope="module",
    # Both folds take twice the time, and are asked for only where one does not say it all.
    params=[(0,), pytest.param((0, 1), marks=pytest.mark.slow)],
    ids=["one fold", "both folds"],
)
def finished(request, tmp_path_factory):
    """Return the folder of a finished run of all phases, and its folds."""
    folder = tmp_path_factory.mktemp("phases")
    write_tiny_sam(folder / "tiny_sam.pth", side=128)
    write_phases(folder, request.param)
    run_snakemake(folder)
    return folder, request.param


both_folds = pytest.mark.parametrize(
    "finished", [pytest.param((0, 1), marks=pytest.mark.slow)], ids=["both folds"], indirect=True
)


def rows_of(folder, name):
    return read_rows(folder / "results/tiny/report" / f"{name}.csv")


def test_every_method_is_scored_on_every_case(finished):
    folder, folds = finished
    counts = {}
    for row in rows_of(folder, "scores"):
        if row["evaluation"] == "folds":
            counts[row["method"]] = counts.get(row["method"], 0) + 1
    assert set(counts) == METHODS
    splits = folder / "results/tiny/busi/splits.csv"
    assert set(counts.values()) == {sum(len(read_split(splits, fold)["test"]) for fold in folds)}
    compared = {row["method"] for row in rows_of(folder, "comparisons")}
    assert METHODS - {"transunet"} <= compared


@both_folds
def test_ensembles_are_scored_on_what_was_held_out(finished):
    held = {row["method"] for row in rows_of(finished[0], "scores") if row["member"] == "mean"}
    assert held == METHODS - {"joint-coarse"}


def test_phases_are_chained_by_the_digests_of_their_models(finished):
    folder, folds = finished
    models = folder / "results/tiny/busi/models"
    for fold in folds:
        card = read_card(models / f"joint/fold{fold}/card.json")
        for name in ("transunet", "tuned"):
            file = models / name / f"fold{fold}" / "model.safetensors"
            assert card["parents"][name] == file_sha256(file)
        test = set(read_split(folder / "results/tiny/busi/splits.csv", fold)["test"])
        behind = [card, *card["sources"]["parents"]]
        assert {entry["name"] for entry in behind} == {"joint", "transunet", "tuned"}
        for entry in behind:
            assert not test & {*entry["trained_on"], *entry["selected_on"]}


def test_guarded_masks_are_what_the_rule_says(finished):
    folder, folds = finished
    base = folder / "results/tiny/busi"
    for method in ("joint", "tuned-mask_box"):
        for fold in folds:
            roles = read_split(base / "splits.csv", fold)
            rule = read_rule(base / f"guards/{method}/fold{fold}.json")
            assert rule.chosen_on == sorted(roles["validation"])
            shelf = base / f"masks/{method}-guarded/fold{fold}"
            table = {row["case"]: row for row in read_rows(shelf.with_suffix(".csv"))}
            assert sorted(table) == sorted(roles["test"])
            for case, row in table.items():
                guarded, coarse, refined = (
                    read_mask(base / f"masks/{name}/fold{fold}/{case}.png")
                    for name in (f"{method}-guarded", "transunet", method)
                )
                if row["verdict"].startswith("rejected"):
                    assert np.array_equal(guarded, coarse)
                elif row["verdict"] == "kept":
                    assert np.array_equal(guarded, refined)


@both_folds
def test_the_ensemble_of_finetuned_refiners_is_what_half_of_them_say(finished):
    base = finished[0] / "results/tiny/busi/masks/tuned-mask_box"
    names = sorted(path.name for path in (base / "holdout-mean").glob("*.png"))
    assert names
    for name in names:
        one, other = (read_mask(base / f"holdout-fold{fold}" / name) for fold in (0, 1))
        assert np.array_equal(read_mask(base / "holdout-mean" / name), one | other)


def test_a_finished_run_predicts_new_images(finished, tmp_path):
    from typer.testing import CliRunner

    folder, _ = finished
    base = folder / "results/tiny/busi"
    case = read_split(base / "splits.csv", 0)["test"][0]
    for method in ("joint", "joint-guarded", "tuned-mask_box"):
        arguments = [
            "predict", str(base / f"prepared/images/{case}.png"), "--run", "tiny",
            "--method", method, "--fold", "0", "--device", "cpu",
            "--results", str(folder / "results"), "-o", str(tmp_path / method),
        ]  # fmt: skip
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, result.output
        found = read_mask(tmp_path / method / "masks" / f"{case}.png")
        assert np.array_equal(found, read_mask(base / f"masks/{method}/fold0/{case}.png"))


def test_a_changed_end_to_end_row_trains_nothing_else_again(finished):
    folder, folds = finished
    assert planned(run_snakemake(folder, "--dry-run")) == {}
    write_phases(folder, folds, end_to_end__joint__gradient_scale=0.5)
    jobs = planned(run_snakemake(folder, "--dry-run"))
    write_phases(folder, folds)
    assert jobs["train_end_to_end"] == len(folds)
    assert not {"train_coarse", "train_refiner", "predict_coarse", "refine_masks"} & set(jobs)
    # The guard of the other method stands.
    assert jobs["choose_guard"] == len(folds)


def test_the_study_is_recorded(finished):
    recorded = read_json(finished[0] / "results/tiny/study.json")
    assert recorded["format"] == 1
    assert recorded["config"]["end_to_end"]["joint"]["gradient_scale"] == 1.0
