"""A finished run of tiny models, made by the library's jobs, and what its study would shelve."""

import shutil
from functools import cache
from pathlib import Path

import numpy as np

from tests.end_to_end_fixture import joint, train_joint
from tests.made_once import made_once
from tests.refiner_fixture import finetune, quick, write_weights
from tests.training_fixture import tiny_config, train, write_case
from ultrarefiner.config import load_config
from ultrarefiner.deploy.guarding import choose_guard
from ultrarefiner.images import read_rgb, write_png
from ultrarefiner.io import read_json, write_json, write_rows
from ultrarefiner.prompts.records import make_prompts
from ultrarefiner.refine.guard_jobs import guard_masks
from ultrarefiner.refine.jobs import embed_images, refine_masks
from ultrarefiner.study.study import load_study
from ultrarefiner.training.prediction import choose_threshold, predict_coarse

CASES = [f"toy__{number}" for number in range(10)]
FOLDS = {
    0: {"test": CASES[:3], "validation": CASES[3:5], "train": CASES[5:]},
    1: {"test": CASES[5:8], "validation": CASES[8:], "train": CASES[:5]},
}
CROP = {"expand": 0.4, "min_size": 24}
SAM = {"family": "sam", "weights": "own/tiny.safetensors"}
COARSE = tiny_config(epochs=20, validate_every=10, augment={}, flips=True)
JOINT = joint(refiner="small", flips=True)
GUARDS = {"tuned-box": "tiny", "joint": "tiny"}
"""Guarded methods, and the coarse model that each gives way to."""
CONFIG = {
    "run": "tiny",
    "device": "cpu",
    "datasets": {
        "toy": {"layout": "busi", "phantom": {"cases": 10}},
        "other": {"layout": "stu", "phantom": {"cases": 4}, "role": "unseen"},
    },
    "splits": {"folds": 2},
    "coarse": {"tiny": COARSE.model_dump(mode="json")},
    "prompts": {
        "mask": {"kind": "mask"},
        "box": {"kind": "box", "expand": 0.1},
        "crop": {"kind": "both", "crop": CROP, "components": True, "on_empty": "full_image"},
        "noisy": {"kind": "box+point", "noise": {"box": 0.2, "point": 0.2}},
        "oracle_box": {"kind": "box", "source": "ground_truth"},
    },
    "refiners": {
        "grabcut": {"family": "grabcut"},
        "small": {**SAM, "jitter": {"copies": 2}},
        "tuned": {**SAM, "mask_choice": "single", "finetune": {"train": "full", "epochs": 1}},
        "whole": {**SAM, "finetune": {"on": "all", "epochs": 1}},
    },
    "end_to_end": {"joint": JOINT.model_dump(mode="json")},
    "guard": {"min_iou": 0.35, "area_ratio": None, "max_components": None, "band": 0.5},
    "compare": {
        "coarse": ["tiny"],
        "end_to_end": ["joint"],
        "guarded": list(GUARDS),
        "refine": {
            "grabcut": ["mask"],
            "small": ["mask", "box", "crop", "noisy", "oracle_box"],
            "tuned": ["box", "crop"],
            "whole": ["box"],
        },
    },
}


def write_study(folder, config=CONFIG):
    """Write what a finished run says of itself."""
    dump = load_config(config).model_dump(mode="json")
    run = Path(folder) / "results" / dump["run"]
    write_json(run / "study.json", {"format": 1, "config": dump, "methods": {}})


@cache
def make_run(base):
    """Return the folder of a finished study below a folder; one for all tests of a process.

    Nobody changes it.
    """
    made = made_once(base, "deployed_study", _make_run)
    return shutil.copytree(made, base / "deployed_study")


def _make_run(root):
    toy = root / "results" / "tiny" / "toy"
    for seed, case in enumerate(CASES):
        write_case(toy / "prepared", case, seed)
        with np.load(toy / "prepared" / "npz" / f"{case}.npz") as stored:
            write_png(toy / "prepared" / "images" / f"{case}.png", stored["image"])
    rows = [
        {"case": case, "group": case, "fold": fold, "role": role}
        for fold, roles in FOLDS.items()
        for role, cases in roles.items()
        for case in cases
    ]
    write_rows(toy / "splits.csv", ["case", "group", "fold", "role"], rows)
    study = toy / "prepared", toy / "splits.csv"
    weights = write_weights(root / "own")
    for fold in FOLDS:
        folder = train(COARSE, study, toy / "models" / "tiny" / f"fold{fold}", fold=fold)
        files = folder / "model.safetensors", folder / "card.json"
        choose_threshold(*files, *study, fold, COARSE.flips, folder / "threshold.json", "cpu")
        tuning = quick(train="full", epochs=1, prompts=["box"])
        finetune(
            tuning, study, weights, toy / "models" / "tuned" / f"fold{fold}", fit=f"fold{fold}"
        )
        train_joint(
            JOINT, study, toy / "models" / "tiny" / f"fold{fold}", weights,
            toy / "models" / "joint" / f"fold{fold}", fold=fold, options={}, shelf=root / "shelf",
        )  # fmt: skip
        model = toy / "models" / "joint" / f"fold{fold}"
        files = model / "model.safetensors", model / "card.json"
        choose_threshold(*files, *study, fold, JOINT.flips, model / "threshold.json", "cpu")
    whole = quick(on="all", epochs=1, prompts=["box"])
    finetune(whole, study, weights, toy / "models" / "whole" / "all", fit="all", name="whole")
    write_study(root)
    for method, reference in GUARDS.items():
        for fold in FOLDS:
            rule = toy / "guards" / method / f"fold{fold}.json"
            run = root / "results" / "tiny"
            given = run, read_json(run / "study.json")["config"], method, reference, "toy", fold
            choose_guard(*given, CONFIG["guard"], *study, rule, "cpu")


def image_of(root, case):
    """Return a prepared image of a finished run."""
    return read_rgb(root / "results" / "tiny" / "toy" / "prepared" / "images" / f"{case}.png")


@cache
def _predicted(root, model, fold):
    """Return the folder in which the masks of a model that predicts by itself lie."""
    toy = root / "results" / "tiny" / "toy"
    folder, out = toy / "models" / model / f"fold{fold}", toy / "shelf" / f"fold{fold}"
    predict_coarse(
        folder / "model.safetensors",
        folder / "card.json",
        folder / "threshold.json",
        toy / "prepared",
        toy / "splits.csv",
        f"fold{fold}",
        "nested",
        {"tiny": COARSE, "joint": JOINT}[model].flips,
        out / model,
        out / f"{model}-tuned",
        out / f"{model}-probabilities",
        "cpu",
        out / f"{model}-coarse" if model == "joint" else None,
    )
    return out


def shelved(root, method, fold):
    """Return the folder of masks that the jobs of the study make of a fold's test cases."""
    toy, out = root / "results" / "tiny" / "toy", _predicted(root, "tiny", fold)
    if method.startswith("joint"):
        _predicted(root, "joint", fold)
    if (out / method).is_dir():
        return out / method
    part, splits = f"fold{fold}", toy / "splits.csv"
    if method.endswith("-guarded"):
        plain = method.removesuffix("-guarded")
        masks = out / GUARDS[plain], shelved(root, plain, fold)
        rules = [toy / "guards" / plain / f"fold{fold}.json"]
        guard_masks(rules, *masks, splits, part, out / method, out / f"{method}.csv")
        return out / method
    study = load_study(CONFIG)
    one = study.methods[method]
    row, prompt = study.config.refiners[one.refiner], study.config.prompts[one.prompt]
    tuned = toy / "models" / "tuned" / f"fold{fold}"
    card = tuned / "card.json" if row.finetune else None
    weights = None if row.weights is None else str(root / row.weights)
    weights = str(tuned / "model.safetensors") if row.finetune else weights
    options = study.refiner_options(one.refiner)
    images, shelf = toy / "prepared" / "images", root / "embeddings"
    make_prompts(prompt, one.prompt, splits, part, out / "tiny", out / f"{method}.json")
    index = None
    if study.embeddings_of(one.refiner):
        index, window = out / f"{method}-index.csv", prompt.window and prompt.window.model_dump()
        embed_images(
            row.family, weights, {}, images, splits, part, out / "tiny" if window else None,
            window, shelf, 1.0, index, "cpu",
        )  # fmt: skip
    refine_masks(
        row.family, weights, options, out / f"{method}.json", images, out / "tiny-probabilities",
        index, shelf, 1.0, out / method, out / f"{method}.csv", "cpu", card,
    )  # fmt: skip
    return out / method
