"""Make a small study's files, as the evaluation and the jobs before it leave them."""

from pathlib import Path

import numpy as np
import pandas as pd

from ultrarefiner.evaluation.metrics import score_case
from ultrarefiner.evaluation.scores import SCORE_COLUMNS, plain
from ultrarefiner.evaluation.summary import compare_methods, summarise_scores
from ultrarefiner.images import write_mask, write_png
from ultrarefiner.io import write_json, write_rows

METHODS = {
    "transunet": ("none", False),
    "grabcut-mask": ("coarse", False),
    "sam-both": ("coarse", False),
    "sam-oracle_box": ("ground_truth", True),
}


def ellipse(shape, centre, radii):
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    return ((columns - centre[0]) / radii[0]) ** 2 + ((rows - centre[1]) / radii[1]) ** 2 <= 1


def write_case(root, dataset, case, image, truth, masks, fold):
    """Write one case's image and masks; return a prompt record from the coarse mask."""
    write_png(root / dataset / "prepared/images" / f"{case}.png", image)
    write_mask(root / dataset / "prepared/masks" / f"{case}.png", truth)
    for method, mask in masks.items():
        write_mask(root / dataset / "masks" / method / f"fold{fold}" / f"{case}.png", mask)
    rows, columns = np.nonzero(masks["transunet"])
    size = list(truth.shape)
    if not len(rows):
        empty = {"box": None, "points": None, "labels": None, "mask": None, "source": "coarse"}
        return {**empty, "empty": True, "image_size": size}
    box = [int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1]
    points = [[int(columns.mean()), int(rows.mean())]]
    record = {"box": box, "points": points, "labels": [1], "mask": None, "source": "coarse"}
    return {**record, "empty": False, "image_size": size}


def score_row(dataset, fold, case, label, method, prediction, truth):
    """Return a row of the score table; busbra has a pixel spacing and two images a patient."""
    prompt, oracle = METHODS[method]
    spacing = (0.1, 0.1) if dataset == "busbra" else None
    scores = score_case(prediction, truth, spacing)
    patient = f"patient_{int(case.rsplit('_', 1)[1]) // 2}"
    row = {
        "dataset": dataset,
        "fold": fold,
        "case": case,
        "group": patient if dataset == "busbra" else case,
        "label": label,
        "method": method,
        "prompt_source": prompt,
        **scores,
        "oracle": oracle,
        "selection": "validation",
        "area_share": float(truth.mean()),
    }
    return {name: plain(row[name]) for name in SCORE_COLUMNS}


def write_history(path, fold, epochs=12):
    rows = []
    for epoch in range(1, epochs + 1):
        dice = 0.85 - 0.7 * np.exp(-epoch / 4) + 0.02 * np.sin(3 * epoch + fold)
        loss = 0.1 + np.exp(-epoch / 5)
        rows.append({"epoch": epoch, "train_loss": loss, "lr": 0.01, "val_dice": dice})
    path.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).to_csv(path, index=False)


def write_card(path, dataset, fold):
    write_json(
        path,
        {
            "format": 1,
            "architecture": {"model": "transunet", "image_size": 224, "num_classes": 2},
            "name": "transunet",
            "dataset": dataset,
            "fold": fold,
            "config": {"epochs": 12},
            "metrics": {"epoch": 11, "dice": 0.8312},
            "selection": "validation",
            "trained_on": [f"{dataset}__{i}" for i in range(30)],
            "parents": {"R50+ViT-B_16.npz": "c" * 64},
            "weights_sha256": f"{fold}ab" + "d" * 61,
            "licence": "Apache-2.0",
        },
    )


def make_cases(rng, count, shape):
    """Yield (label, image, truth, masks of each method); the fourth coarse mask is empty."""
    for number in range(count):
        centre = rng.uniform(0.35, 0.65, 2) * shape[::-1]
        radii = rng.uniform(0.12, 0.25, 2) * min(shape)
        truth = ellipse(shape, centre, radii)
        image = rng.normal(110, 25, shape) - 55 * truth
        image = np.repeat(np.clip(image, 0, 255).astype(np.uint8)[..., None], 3, 2)
        far, near = rng.normal(0, 5.0, 2), rng.normal(0, 2.0, 2)
        masks = {
            "transunet": ellipse(shape, centre + far, radii * 0.9) & (number != 3),
            "grabcut-mask": ellipse(shape, centre + far * 0.7, radii * 0.97) & (number != 3),
            "sam-both": ellipse(shape, centre + near, radii * 1.04) & (number != 3),
            "sam-oracle_box": ellipse(shape, centre + near * 0.2, radii),
        }
        yield ("benign", "malignant")[number % 3 == 0], image, truth, masks


def write_study(root: Path, datasets=("busi", "busbra"), count=12, cases=make_cases):
    """Write a study of two folds below ``root``; return the arguments of the report's functions."""
    rng = np.random.default_rng(7)
    rows, entries, histories, cards, checks = [], [], [], [], []
    for dataset in datasets:
        prompts = ({}, {})
        for number, item in enumerate(cases(rng, count, (96, 128))):
            label, image, truth, masks = item
            case, fold = f"{dataset}__{label}_{number}", number % 2
            prompts[fold][case] = write_case(root, dataset, case, image, truth, masks, fold)
            for method, mask in masks.items():
                rows.append(score_row(dataset, fold, case, label, method, mask, truth))
        for fold in (0, 1):
            record = root / dataset / "prompts/transunet/both" / f"fold{fold}.json"
            write_json(record, {"prompt": "both", "kind": "both", "cases": prompts[fold]})
            masks = root / dataset / "masks"
            for method, (_, oracle) in METHODS.items():
                entries.append(
                    {
                        "dataset": dataset,
                        "method": method,
                        "fold": fold,
                        "images": root / dataset / "prepared/images",
                        "truth": root / dataset / "prepared/masks",
                        "coarse": masks / "transunet" / f"fold{fold}",
                        "masks": masks / method / f"fold{fold}",
                        "prompts": None if method == "transunet" else record,
                        "oracle": oracle,
                    }
                )
            model = root / dataset / "models/transunet" / f"fold{fold}"
            write_history(model / "history.csv", fold)
            write_card(model / "card.json", dataset, fold)
            path = model / "history.csv"
            histories.append({"dataset": dataset, "model": "transunet", "fold": fold, "path": path})
            cards.append(model / "card.json")
        checks.append(root / dataset / "check/report.json")
        facts = {"images": count, "labels": {"benign": 8, "malignant": 4}}
        warnings = [f"{dataset} (3).png has no mask", "two files hold the same image"]
        report = {"dataset": dataset, "layout": dataset, "root": "data", "errors": []}
        write_json(checks[-1], {**report, "warnings": warnings, "facts": facts})
    table = root / "report/table.csv"
    write_rows(table, SCORE_COLUMNS, rows)
    paths = {name: root / "report" / f"{name}.csv" for name in ("scores", "summary", "comparisons")}
    summarise_scores([table], paths["scores"], paths["summary"], bootstrap=200)
    compare_methods(paths["scores"], "transunet", paths["comparisons"], bootstrap=200)
    provenance = {
        "revision": "0123abc",
        "device": "cpu",
        "seeds": {"splits": 123, "transunet": 42},
        "versions": {"python": "3.11", "torch": "2.8"},
        "config": {"run": "main", "splits": {"folds": 5, "run": [0, 1]}, "report": {"gallery": 2}},
    }
    return {
        **paths,
        "entries": entries,
        "histories": histories,
        "cards": cards,
        "checks": checks,
        "provenance": provenance,
    }
