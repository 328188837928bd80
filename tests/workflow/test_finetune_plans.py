"""Guards the plans of studies that finetune: what each training needs, reruns and refuses."""

import os
import re
import shutil
from copy import deepcopy

import pytest

from tests.sam_fixture import write_tiny_sam
from tests.workflow.study import TINY, changed, planned, run_snakemake, write_study
from ultrarefiner.models.cards import read_card
from ultrarefiner.models.weights import weights_name

PHANTOM = {"phantom": {"cases": 14, "size": 64}}
UNNEEDED = {"split_inner", "train_inner", "predict_inner", "simulate_failures", "crop_dataset"}
REPORT = {
    *("summarise_scores", "compare_methods", "measure_gap"),
    *("plot_scores", "draw_overlays", "write_tables", "write_report"),
}
BASE = "results/tiny"


def refiner(weights="tiny_sam.pth", **finetune):
    return {"family": "sam", "finetune": finetune} | ({"weights": weights} if weights else {})


def study(refiners, **changes):
    rows = {"refiners": deepcopy(refiners)}
    rows["compare__refine"] = {name: ["box_loose"] for name in refiners}
    return changed(TINY, **rows, **changes)


def write(folder, some):
    (folder / "tiny_sam.pth").touch()
    write_study(folder, some)
    return folder


def inputs_of(output):
    """Return the inputs that other jobs make, of each job of a plan, by its message."""
    jobs = re.findall(r"^Job \d+: (.+)\nReason: .*Input files updated by another job: (.+)$",
                      output, re.M)  # fmt: skip
    return {name: {path.removeprefix(f"{BASE}/") for path in files.split(", ")}
            for name, files in jobs}  # fmt: skip


def test_each_kind_of_data_plans_what_it_needs_and_no_more(tmp_path):
    rows = {
        "fly": refiner(),
        "copies": refiner(copies=3),
        "predicted": refiner(data="predictions"),
        "mixed": refiner(data="hybrid", copies=2),
        "truth": refiner(data="truth"),
        "crops": refiner(data="crops", copies=2),
        "lora": refiner(lora={"rank": 2}),
        "scratch": refiner(None, scratch="tiny", train="full"),
        "parent": {"family": "sam", "weights": "tiny_sam.pth"},
    }
    output = run_snakemake(write(tmp_path, study(rows)), "--dry-run")
    jobs = planned(output)
    assert (jobs["train_refiner"], jobs["refine_masks"], jobs["train_coarse"]) == (16, 18, 2)
    # The inner models are those of both refiners that learn from predictions: 2 folds of 3 each.
    assert (jobs["split_inner"], jobs["train_inner"], jobs["predict_inner"]) == (2, 6, 6)
    assert (jobs["simulate_failures"], jobs["draw_failures"]) == (2, 5)
    assert (jobs["measure_boxes"], jobs["crop_dataset"]) == (2, 2)
    # Full images by their common encoder, and by each of the two that train theirs.
    assert jobs["embed_images"] == 2 * 3
    needs = inputs_of(output)
    plain = {"busi/prepared/cases.csv", "busi/prepared/npz", "busi/splits.csv"}
    embedded = f"busi/embeddings/{weights_name('tiny_sam.pth')}/full/fold0.csv"
    inner = "busi/inner/fold1/transunet"
    predictions = {
        f"{inner}/fold{k}/{file}" for k in range(3) for file in ("probabilities", "card.json")
    }
    more = {
        "copies": {"busi/failures/copies.csv"},
        "predicted": predictions,
        "mixed": predictions | {"busi/failures/mixed.csv"},
        "crops": {"busi/crops/crops/fold1"},
    }
    for name in set(rows) - {"parent"}:
        wanted = plain | more.get(name, set())
        if name not in ("lora", "scratch", "crops"):
            wanted = wanted | {embedded}
        assert needs[f"Finetune {name} on busi, fold1"] == wanted, name
    errors = {"busi/models/transunet/fold1/box_errors.json"}
    cut = needs["Cut the lesions of busi, fold1, out for crops"]
    assert cut == errors | plain
    own = "busi/models/lora/fold1"
    assert f"{own}/model.safetensors" in needs["Encode busi, fold1 once with lora: full"]
    refined = needs["Refine busi, fold1 by lora-box_loose"]
    assert {f"{own}/model.safetensors", f"{own}/card.json"} <= refined
    assert "busi/embeddings/lora/full/fold1.csv" in refined
    page = needs[f"Write {BASE}/report/report.html"]
    assert {f"{own}/card.json", "report/failures-mixed.png"} <= page
    assert "report/failures-truth.png" not in page


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    """Return a study with a union, an unseen dataset, and refiners of all folds and of each."""
    rows = {"joint": refiner(on="all"), "own": refiner(on="all", train="full"), "each": refiner()}
    datasets = {"busi": PHANTOM, "busbra": PHANTOM, "stu": {**PHANTOM, "role": "unseen"}}
    both = {"both": ["busi", "busbra"]}
    some = study(rows, datasets=datasets, trainsets=both)
    return write(tmp_path_factory.mktemp("elsewhere"), some)


def test_models_of_all_folds_and_of_unions_plan(elsewhere):
    output = run_snakemake(elsewhere, "--dry-run")
    assert "Error" not in output
    jobs = planned(output)
    # Three training sets: two refiners of all folds, one of each of two folds.
    assert jobs["train_refiner"] == 3 * (2 + 2)
    # Of all folds: stu by three; of each: own folds, union's folds, stu by three, of two folds.
    assert jobs["refine_masks"] == 2 * 3 + (2 * 2 + 2 * 2 + 3 * 2)
    # The common encoder: two datasets of two folds, and stu; the own one: stu for three models.
    assert jobs["embed_images"] == 5 + 3
    assert not UNNEEDED & set(jobs)
    needs = inputs_of(output)
    assert (
        "both/models/joint/all/card.json"
        in needs["Refine stu, unseen-mean by joint-box_loose@both"]
    )
    joint = needs["Let the models of all folds of each decide on stu: box_loose@busbra"]
    for fold in (0, 1):
        assert f"busbra/models/each/fold{fold}/card.json" in joint
        assert f"stu/masks/each-box_loose@busbra/unseen-fold{fold}" in joint
    assert (
        "busbra/models/each/fold1/card.json"
        in (needs["Refine stu, unseen-fold1 by each-box_loose@busbra"])
    )
    trained = needs["Finetune each on both, fold0"]
    assert {"both/splits.csv", "busi/prepared/npz", "busbra/prepared/npz"} <= trained


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("busi/masks/joint-box_loose/fold0", ("joint", "every case of busi", "busi's own folds")),
        ("busi/masks/own-box_loose@both/fold1", ("own", "every case of both", "on: fold")),
    ],
)
def test_a_leak_is_named_and_not_called_a_missing_file(elsewhere, target, words):
    output = run_snakemake(elsewhere, "--dry-run", targets=(f"{BASE}/{target}",), ok=False)
    assert "WorkflowError" in output and "Missing" not in output
    for word in words:
        assert word in output


def test_a_study_that_would_leak_does_not_start(tmp_path):
    folder = write(tmp_path, study({"joint": refiner(on="all")}))
    output = run_snakemake(folder, "--dry-run", ok=False)
    assert "refiners.joint.finetune.on: all trains on every case of busi" in output


def make_up(folder, some, *targets):
    """Let Snakemake believe that it has made what some targets need; return the folder."""
    write_tiny_sam(folder / "tiny_sam.pth", side=256)
    write_study(folder, some)
    plan = run_snakemake(folder, "--dry-run", targets=targets)
    for name in ", ".join(re.findall(r"Missing output files: ([^;\n]*)", plan)).split(", "):
        path = folder / name.strip()
        if path.suffix:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        else:
            path.mkdir(parents=True, exist_ok=True)
    run_snakemake(folder, "--touch", "--forceall", targets=targets)
    return folder


TRAINED = {
    "mixed": refiner(data="hybrid", copies=2, cross_fit={"folds": 2}),
    "crops": refiner(data="crops"),
    "lora": refiner(lora={"rank": 2}),
}
TARGETS = tuple(f"{BASE}/busi/masks/{name}-box_loose/fold0" for name in TRAINED)


@pytest.fixture(scope="module")
def made_up(tmp_path_factory):
    return make_up(tmp_path_factory.mktemp("made_up"), study(TRAINED), *TARGETS)


def replan(folder, **changes):
    write_study(folder, study(TRAINED, **changes))
    return planned(run_snakemake(folder, "--dry-run", targets=TARGETS))


# That every key reruns what it must and no more, test_rerun_table.py guards.
@pytest.mark.slow
def test_nothing_is_trained_again_for_speed_or_for_a_wider_study(made_up):
    assert replan(made_up) == {}
    wider = {
        "refiners__mixed__finetune__threads": 1,
        "refiners__mixed__finetune__tensorboard": True,
        "compare__refine__mixed": ["box_loose", "mask"],
        "datasets__busbra": PHANTOM,
        "compare__cross": True,
        "embeddings": {"limit_gb": 3},
        "splits__run": [0],
    }
    assert replan(made_up, **wider) == {}
    # Jitter has a part in refining, none in training.
    jitter = {"refiners__lora__jitter": {"copies": 2}}
    assert replan(made_up, **wider, **jitter) == {"refine_masks": 1}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "jobs"),
    [
        ({"refiners__mixed__finetune__lr": 0.5}, {"train_refiner": 1, "refine_masks": 1}),
        (
            {"refiners__mixed__finetune__copies": 3},
            {"simulate_failures": 1, "train_refiner": 1, "refine_masks": 1},
        ),
        (
            {"refiners__lora__finetune__epochs": 3},
            {"train_refiner": 1, "embed_images": 1, "refine_masks": 1},
        ),
        (
            {"refiners__crops__finetune__crop": {"expand": 1.0}},
            {"crop_dataset": 1, "train_refiner": 1, "refine_masks": 1},
        ),
    ],
)
def test_a_change_of_the_finetuning_reruns_what_follows_from_it(made_up, changes, jobs):
    assert replan(made_up, **changes) == jobs


@pytest.mark.slow
def test_other_weights_of_ones_own_are_finetuned_anew(made_up, tmp_path):
    folder = tmp_path / "study"
    shutil.copytree(made_up, folder, symlinks=True)
    os.utime(write_tiny_sam(folder / "tiny_sam.pth", seed=1, side=256), (0, 0))
    jobs = replan(folder)
    assert (jobs["train_refiner"], jobs["refine_masks"]) == (3, 3)
    assert not {"train_coarse", "train_inner", "simulate_failures", "crop_dataset"} & set(jobs)


@pytest.mark.slow
def test_what_is_planned_can_be_made(study_copy):
    write_tiny_sam(study_copy / "tiny_sam.pth", side=256)
    short = {"epochs": 1, "threads": 1}
    rows = {
        "mixed": refiner(data="hybrid", copies=2, cross_fit={"folds": 2}, **short),
        "crops": refiner(data="crops", **short),
        "scratch": refiner(None, scratch="tiny", train="full", **short),
    }
    write_study(study_copy, study(rows))
    targets = [f"{BASE}/busi/masks/{name}-box_loose/fold0" for name in rows]
    targets.append(f"{BASE}/report/failures-mixed.png")
    run_snakemake(study_copy, targets=tuple(targets))
    made = study_copy / BASE / "busi"
    tested = {path.stem for path in (made / "masks/transunet/fold0").glob("*.png")}
    for name in rows:
        masks = (made / f"masks/{name}-box_loose/fold0").glob("*.png")
        assert {path.stem for path in masks} == tested
        card = read_card(made / f"models/{name}/fold0/card.json")
        assert not tested & {*card["trained_on"], *card["selected_on"]}
    card = read_card(made / "models/mixed/fold0/card.json")
    for model in card["sources"]["models"]:
        assert not {*tested, *model["predicted"]} & {*model["trained_on"], *model["selected_on"]}
    predicted = [case for model in card["sources"]["models"] for case in model["predicted"]]
    assert sorted(predicted) == sorted(card["trained_on"] + card["selected_on"])
    assert planned(run_snakemake(study_copy, "--dry-run", targets=tuple(targets))) == {}


# test_end_to_end.py goes this way in CI.
@pytest.mark.slow
def test_a_refiner_is_trained_and_refines_its_fold(study_copy):
    short = {"epochs": 1, "threads": 1, "copies": 2}
    rows = {"scratch": refiner(None, scratch="tiny", train="full", **short)}
    write_study(study_copy, study(rows))
    masks = f"{BASE}/busi/masks/scratch-box_loose/fold0"
    targets = (masks, f"{BASE}/report/failures-scratch.png")
    run_snakemake(study_copy, targets=targets)
    made = study_copy / BASE / "busi"
    tested = {path.stem for path in (made / "masks/transunet/fold0").glob("*.png")}
    assert {path.stem for path in (study_copy / masks).glob("*.png")} == tested
    card = read_card(made / "models/scratch/fold0/card.json")
    assert not tested & {*card["trained_on"], *card["selected_on"]}
    assert (made / "models/scratch/fold0/resume/state.pt").is_file()
    assert planned(run_snakemake(study_copy, "--dry-run", targets=targets)) == {}
