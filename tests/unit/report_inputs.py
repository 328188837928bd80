"""Make a small study's files, as the evaluation and the jobs before it leave them."""

from pathlib import Path

import numpy as np
import pandas as pd

from ultrarefiner.images import write_mask, write_png
from ultrarefiner.io import write_json

METHODS = {
    "transunet": ("none", False),
    "grabcut-mask": ("coarse", False),
    "sam-both": ("coarse", False),
    "sam-oracle_box": ("ground_truth", True),
}
METRICS = ("dice", "iou", "hd95_px", "hd95_mm", "assd_px", "nsd", "precision", "recall")


def ellipse(shape, centre, radii):
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    return ((columns - centre[0]) / radii[0]) ** 2 + ((rows - centre[1]) / radii[1]) ** 2 <= 1


def overlap(prediction, truth):
    total = prediction.sum() + truth.sum()
    return 2.0 * (prediction & truth).sum() / total if total else 1.0


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
    prompt, oracle = METHODS[method]
    dice = overlap(prediction, truth)
    missed = not prediction.any()
    return {
        "dataset": dataset,
        "fold": fold,
        "case": case,
        "group": case,
        "label": label,
        "method": method,
        "prompt_source": prompt,
        "dice": dice,
        "iou": dice / (2.0 - dice),
        "hd95_px": float(np.hypot(*truth.shape)) if missed else 40.0 * (1.0 - dice) + 1.0,
        "hd95_mm": None,
        "assd_px": 10.0 * (1.0 - dice),
        "nsd": dice**2,
        "precision": dice,
        "recall": dice,
        "empty_prediction": "true" if missed else "false",
        "empty_truth": "false",
        "oracle": "true" if oracle else "false",
        "selection": "validation",
        "area_share": truth.mean(),
    }


def interval(values):
    half = 1.96 * values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.nan
    return values.mean() - half, values.mean() + half


def summary_rows(scores):
    areas = scores.drop_duplicates(["dataset", "case"])["area_share"]
    bounds = areas.quantile([1 / 3, 2 / 3]).tolist()
    sizes = np.array(["small", "medium", "large"])[np.searchsorted(bounds, scores["area_share"])]
    views = [("all", "all", scores)]
    views += [(f"label={k}", "all", v) for k, v in scores.groupby("label")]
    views += [(f"size={k}", "all", v) for k, v in scores.groupby(sizes)]
    views += [("all", k, v) for k, v in scores.groupby("fold")]
    views += [("all", "all", scores.assign(dataset="pooled"))]
    for subgroup, fold, view in views:
        for (dataset, method), rows in view.groupby(["dataset", "method"]):
            for metric in METRICS:
                values = rows[metric].astype(float)
                low, high = interval(values)
                yield {
                    "dataset": dataset,
                    "method": method,
                    "oracle": rows["oracle"].iloc[0],
                    "selection": "validation",
                    "prompt_source": rows["prompt_source"].iloc[0],
                    "subgroup": subgroup,
                    "fold": fold,
                    "metric": metric,
                    "n": len(rows),
                    "mean": values.mean(),
                    "std": values.std(ddof=1),
                    "median": values.median(),
                    "ci_low": low,
                    "ci_high": high,
                    "misses": rows["empty_prediction"].eq("true").sum(),
                    "false_positives": 0,
                }


def comparison_rows(scores):
    for name in [*sorted(set(scores["dataset"])), "pooled"]:
        mine = scores if name == "pooled" else scores[scores["dataset"].eq(name)]
        wide = mine.pivot(index="case", columns="method", values="dice")
        for method in wide.columns.drop("transunet"):
            difference = wide[method] - wide["transunet"]
            low, high = interval(difference)
            yield {
                "dataset": name,
                "method": method,
                "reference": "transunet",
                "oracle": "true" if METHODS[method][1] else "false",
                "metric": "dice",
                "n": len(difference),
                "mean_method": wide[method].mean(),
                "mean_reference": wide["transunet"].mean(),
                "mean_difference": difference.mean(),
                "ci_low": low,
                "ci_high": high,
                "wilcoxon_p": 0.0002,
                "holm_p": 0.0004,
                "better": int((difference > 0).sum()),
                "worse": int((difference < 0).sum()),
                "equal": int((difference == 0).sum()),
                "effect_size": 0.7,
            }


def write_history(path, fold, epochs=12):
    best, rows = 0.0, []
    for epoch in range(1, epochs + 1):
        dice = 0.85 - 0.7 * np.exp(-epoch / 4) + 0.02 * np.sin(3 * epoch + fold)
        loss = 0.1 + np.exp(-epoch / 5)
        mark = "true" if dice > best else "false"
        rows.append({"epoch": epoch, "train_loss": loss, "lr": 0.01, "val_dice": dice, "best": mark})
        best = max(best, dice)
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
            "metrics": {"val_dice": 0.8312, "best_epoch": 11},
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
    scores = pd.DataFrame(rows)
    (root / "report").mkdir(parents=True, exist_ok=True)
    paths = {name: root / "report" / f"{name}.csv" for name in ("scores", "summary", "comparisons")}
    scores.to_csv(paths["scores"], index=False)
    pd.DataFrame(summary_rows(scores)).to_csv(paths["summary"], index=False)
    pd.DataFrame(comparison_rows(scores)).to_csv(paths["comparisons"], index=False)
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
