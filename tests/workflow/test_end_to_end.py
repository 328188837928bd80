"""All three phases in one run of Snakemake: from images to scores, and what a change makes again."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from tests.made_once import made_once
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
FOLDS = (0, 1)
DEMO = {
    "transunet",
    "transunet-tuned",
    "grabcut-mask",
    "grabcut-oracle_mask",
    "repaired-mask",
    "end_to_end",
    "end_to_end-tuned",
    "end_to_end-coarse",
    "end_to_end-guarded",
}
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


@dataclass(frozen=True)
class Finished:
    """A finished run of all phases, and what it is called there."""

    root: Path
    run: str
    refiner: str
    joint: str
    methods: set[str]
    guarded: tuple[str, ...]

    @property
    def base(self):
        return self.root / "results" / self.run / "busi"

    def rows(self, name):
        return read_rows(self.base.parent / "report" / f"{name}.csv")


def run_both(folder):
    write_tiny_sam(folder / "tiny_sam.pth", side=128)
    write_study(folder, STUDY)
    run_snakemake(folder)


# The study has what the demo has not: images held out, a published SAM, a guarded refiner.
@pytest.fixture(
    scope="module", params=["demo", pytest.param("study", marks=pytest.mark.slow)], ids=str
)
def finished(request, tmp_path_factory):
    """Return a finished run of all phases."""
    if request.param == "demo":
        root = request.getfixturevalue("finished_demo")
        return Finished(root, "demo", "repaired", "end_to_end", DEMO, ("end_to_end",))
    folder = made_once(tmp_path_factory.getbasetemp(), "phases", run_both)
    return Finished(folder, "tiny", "tuned", "joint", METHODS, ("joint", "tuned-mask_box"))


only_study = pytest.mark.parametrize(
    "finished", [pytest.param("study", marks=pytest.mark.slow)], indirect=True
)


def test_every_method_is_scored_on_every_case(finished):
    counts = Counter(
        row["method"] for row in finished.rows("scores") if row["evaluation"] == "folds"
    )
    assert set(counts) == finished.methods
    splits = finished.base / "splits.csv"
    assert set(counts.values()) == {sum(len(read_split(splits, fold)["test"]) for fold in FOLDS)}
    compared = {row["method"] for row in finished.rows("comparisons")}
    assert finished.methods - {"transunet"} <= compared


@only_study
def test_ensembles_are_scored_on_what_was_held_out(finished):
    held = {row["method"] for row in finished.rows("scores") if row["member"] == "mean"}
    assert held == METHODS - {"joint-coarse"}


def test_phases_are_chained_by_the_digests_of_their_models(finished):
    models, parents = finished.base / "models", {"transunet", finished.refiner}
    for fold in FOLDS:
        card = read_card(models / finished.joint / f"fold{fold}" / "card.json")
        for name in parents:
            file = models / name / f"fold{fold}" / "model.safetensors"
            assert card["parents"][name] == file_sha256(file)
        test = set(read_split(finished.base / "splits.csv", fold)["test"])
        behind = [card, *card["sources"]["parents"]]
        assert {entry["name"] for entry in behind} == {finished.joint, *parents}
        for entry in behind:
            assert not test & {*entry["trained_on"], *entry["selected_on"]}


def test_guarded_masks_are_what_the_rule_says(finished):
    base = finished.base
    for method in finished.guarded:
        for fold in FOLDS:
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


@only_study
def test_the_ensemble_of_finetuned_refiners_is_what_half_of_them_say(finished):
    base = finished.base / "masks" / "tuned-mask_box"
    names = sorted(path.name for path in (base / "holdout-mean").glob("*.png"))
    assert names
    for name in names:
        one, other = (read_mask(base / f"holdout-fold{fold}" / name) for fold in (0, 1))
        assert np.array_equal(read_mask(base / "holdout-mean" / name), one | other)


def test_a_finished_run_predicts_new_images(finished, tmp_path):

    case = read_split(finished.base / "splits.csv", 0)["test"][0]
    for method in (finished.joint, *(f"{name}-guarded" for name in finished.guarded)):
        arguments = [
            "predict", str(finished.base / f"prepared/images/{case}.png"), "--run", finished.run,
            "--method", method, "--fold", "0", "--device", "cpu",
            "--results", str(finished.root / "results"), "-o", str(tmp_path / method),
        ]  # fmt: skip
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, result.output
        found = read_mask(tmp_path / method / "masks" / f"{case}.png")
        assert np.array_equal(found, read_mask(finished.base / f"masks/{method}/fold0/{case}.png"))


@only_study
def test_a_changed_end_to_end_row_trains_nothing_else_again(finished):
    assert planned(run_snakemake(finished.root, "--dry-run")) == {}
    write_study(finished.root, changed(STUDY, end_to_end__joint__gradient_scale=0.5))
    jobs = planned(run_snakemake(finished.root, "--dry-run"))
    write_study(finished.root, STUDY)
    assert jobs["train_end_to_end"] == len(FOLDS)
    assert not {"train_coarse", "train_refiner", "predict_coarse", "refine_masks"} & set(jobs)
    # The guard of the other method stands.
    assert jobs["choose_guard"] == len(FOLDS)


def test_the_study_is_recorded(finished):
    recorded = read_json(finished.base.parent / "study.json")
    assert recorded["format"] == 1
    assert recorded["config"]["end_to_end"][finished.joint]["gradient_scale"] == 1.0
