"""A study with finetuned refiners, as the jobs leave it, for the tests of what the report says.

`tuned` has a model for each fold and refines what that fold's coarse model predicts; `joint` is
trained on all folds of busi and refines stu, with the ensemble's masks.
"""

import json

import numpy as np
import pandas as pd
from report_inputs import REVISION, make_cases, write_study
from report_page import write_parts

from ultrarefiner.config import load_config
from ultrarefiner.images import write_png
from ultrarefiner.io import read_json
from ultrarefiner.models.cards import upstream, write_card

REFINERS = {
    "sam": {"family": "sam", "weights": "sam_vit_b"},
    "grabcut": {"family": "grabcut"},
    "tuned": {
        "family": "sam",
        "weights": "medsam_vit_b",
        "finetune": {
            **{"data": "hybrid", "ratio": 0.4, "prompts": ["box", "mask"], "copies": 2},
            **{"lora": {"rank": 4, "targets": ["qkv", "mlp"]}, "epochs": 12},
        },
    },
    "joint": {
        "family": "sam",
        "finetune": {
            **{"data": "simulated", "scratch": "tiny", "train": "full", "on": "all"},
            **{"simulation": {"preset": "severe"}, "prompts": ["mask"], "epochs": 1},
        },
    },
}


def dump(**changes):
    """Return the configuration of the study as its provenance has it."""
    values = {
        "run": "main",
        "datasets": {"busi": {"root": "a"}, "stu": {"root": "b", "role": "unseen"}},
        "splits": {"folds": 5, "run": [0, 1], "holdout": 0.2},
        "coarse": {"transunet": {"model": "transunet"}},
        "prompts": {"box": {"kind": "box"}, "both": {"kind": "both"}, "mask": {"kind": "mask"}},
        "refiners": REFINERS,
        "compare": {
            "coarse": ["transunet"],
            "refine": {"tuned": ["box", "both"], "joint": ["box"]},
        },
    }
    config = load_config(values | changes)
    return json.loads(json.dumps(config.model_dump(mode="json"), sort_keys=True))


def cases(rng, count, shape):
    """Yield cases whose finetuned masks are better than the coarse ones, and empty with them."""
    for label, image, truth, masks in make_cases(rng, count, shape):
        coarse = masks["transunet"]
        kept = (coarse & truth) | (masks["sam-both"] & truth)
        yield label, image, truth, {**masks, "tuned-box": kept, "joint-box": coarse & truth}


def shelve_finetuned(writer):
    """Write what the finetuned refiners make of a dataset."""
    names = list(writer.cases)
    for fold in (0, 1):
        if writer.dataset == "stu":
            part, move = f"unseen-fold{fold}", 3 + fold
            writer.shelve(part, "tuned-box", "@busi", names, fold, trained_on="busi", move=move)
            continue
        mine = [case for i, case in enumerate(names[:10]) if i % 2 == fold]
        writer.shelve(f"fold{fold}", "tuned-box", "", mine, fold)
        writer.shelve(f"holdout-fold{fold}", "tuned-box", "", names[10:], fold, move=1 + fold)
    if writer.dataset == "stu":
        for name in ("tuned-box", "joint-box"):
            writer.shelve("unseen-mean", name, "@busi", names, None, "mean", "busi", 2)
    else:
        writer.shelve("holdout-mean", "tuned-box", "", names[10:], None, "mean")


def write_history(path, fold, epochs=12):
    """Write the history of a refiner."""
    rows = []
    for epoch in range(1, epochs + 1):
        dice = 0.9 - 0.2 * np.exp(-epoch / 4) + 0.01 * np.sin(3 * epoch + (fold or 0))
        row = {"epoch": epoch, "train_loss": 0.1 + np.exp(-epoch / 5), "train_dice": dice - 0.01}
        row |= {"train_coarse_dice": 0.71, "lr": 1e-4, "val_loss": 0.3}
        rows.append(row | {"val_dice": dice, "val_coarse_dice": 0.8 + 0.01 * (fold or 0)})
    path.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).to_csv(path, index=False)


def write_model(root, name, fold, config, metrics, **changes):
    """Write the card and the history of a finetuned model; return what the jobs say of it."""
    folder = root / "busi/models" / name / ("all" if fold is None else f"fold{fold}")
    write_history(folder / "history.csv", fold)
    write_card(
        folder / "card.json",
        {
            "architecture": {"model": "sam", "options": {}, "image_size": 1024},
            "phase": "refiner",
            "name": name,
            "dataset": "busi",
            "fold": fold,
            "protocol": "nested",
            "config": config["refiners"][name]["finetune"],
            "metrics": {"epoch": 9, **metrics},
            "selection": "validation",
            "trained_on": [f"busi__{i}" for i in range(30)],
            "selected_on": [f"busi__{i}" for i in range(30, 36)],
            "parents": {} if name == "joint" else {"medsam_vit_b.pth": "9" * 64},
            "weights_sha256": f"{fold}ef" + "f" * 61,
            "licence": "Apache-2.0",
            "versions": {"git_revision": REVISION},
            "fingerprint": "a" * 64,
            **changes,
        },
    )
    entry = {"dataset": "busi", "model": name, "fold": fold, "path": folder / "history.csv"}
    return folder / "card.json", entry


def behind(root, fold):
    """Return what a card keeps of the three inner models of a fold."""
    outer = read_json(root / f"busi/models/transunet/fold{fold}/card.json")
    made = []
    for inner in range(3):
        sha = f"{fold}{inner}" + "1" * 62
        seen = {"trained_on": [f"busi__{i}" for i in range(20)], "fold": inner}
        made += upstream({**outer, **seen, "weights_sha256": sha}, [f"busi__{30 + inner}"])
    return {"models": made}


def make_finetuned(root):
    """Write a study of two datasets with finetuned refiners, and all that its report is made from."""
    study = write_study(root, datasets=("busi", "stu"), cases=cases, more=shelve_finetuned)
    config = dump()
    dice = {0: (0.81, 0.89), 1: (0.84, 0.83)}
    made = [
        write_model(
            root,
            "tuned",
            fold,
            config,
            {"dice": after, "coarse_dice": 0.8012, "dice_before": before},
            sources=behind(root, fold),
        )
        for fold, (before, after) in dice.items()
    ]
    metrics = {"dice": 0.77, "coarse_dice": 0.65, "dice_before": 0.02}
    made.append(write_model(root, "joint", None, config, metrics))
    sheets = []
    rng = np.random.default_rng(1)
    for name in ("joint", "tuned"):
        sheets.append(root / "report" / f"failures-{name}.png")
        write_png(sheets[-1], rng.integers(0, 256, (900, 700, 3), np.uint8))
    study["cards"] += [card for card, _ in made]
    study["histories"] += [entry for _, entry in made]
    study["provenance"]["config"] = config
    return write_parts(study, root / "report") | {"failures": sheets}
