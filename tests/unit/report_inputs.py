"""Make a study's files, as the evaluation and the jobs before it leave them.

`busbra` and `busi` are trained on, alone and as the union `all`; `stu` is never trained on. Cases
10 and 11 of a trained dataset are its hold-out.
"""

import numpy as np
import pandas as pd

from ultrarefiner.evaluation.calibration import collect_calibration, measure_calibration
from ultrarefiner.evaluation.comparisons import compare_methods
from ultrarefiner.evaluation.metrics import score_case
from ultrarefiner.evaluation.oracle_gap import measure_oracle_gap
from ultrarefiner.evaluation.points import summarise_points
from ultrarefiner.evaluation.scores import SCORE_COLUMNS, plain
from ultrarefiner.evaluation.summary import summarise_scores
from ultrarefiner.images import write_mask, write_png, write_probability
from ultrarefiner.io import write_json, write_rows
from ultrarefiner.models.cards import write_card
from ultrarefiner.refine.points import POINT_COLUMNS

METHODS = {
    "transunet": ("none", False),
    "transunet-tuned": ("none", False),
    "grabcut-mask": ("coarse", False),
    "sam-both": ("coarse", False),
    "sam-oracle_box": ("ground_truth", True),
}
# In the studies of report_finetuned and report_end_to_end alone.
JOINT = ("as_one", "as_one-tuned", "as_one-guarded")
REFINED = ("tuned-box", "joint-box", "tuned-box-guarded", *JOINT)
SOURCES = METHODS | dict.fromkeys(REFINED, ("coarse", False)) | {"as_one-coarse": ("none", False)}
REVISION = "0123abc" + "4" * 33
SHAPE = (96, 128)
SPLIT_COLUMNS = ["case", "group", "fold", "role"]


def ellipse(shape, centre, radii):
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    return ((columns - centre[0]) / radii[0]) ** 2 + ((rows - centre[1]) / radii[1]) ** 2 <= 1


def make_cases(rng, count, shape):
    """Yield (label, image, truth, masks of each method); the fourth coarse mask is empty."""
    for number in range(count):
        centre = rng.uniform(0.35, 0.65, 2) * shape[::-1]
        radii = rng.uniform(0.12, 0.25, 2) * min(shape)
        truth = ellipse(shape, centre, radii)
        image = rng.normal(110, 25, shape) - 55 * truth
        image = np.repeat(np.clip(image, 0, 255).astype(np.uint8)[..., None], 3, 2)
        far, near = rng.normal(0, 5.0, 2), rng.normal(0, 2.0, 2)
        found = number != 3
        masks = {
            "transunet": ellipse(shape, centre + far, radii * 0.9) & found,
            "transunet-tuned": ellipse(shape, centre + far, radii * 0.96) & found,
            "grabcut-mask": ellipse(shape, centre + far * 0.7, radii * 0.97) & found,
            "sam-both": ellipse(shape, centre + near, radii * 1.04) & found,
            "sam-oracle_box": ellipse(shape, centre + near * 0.2, radii),
        }
        yield ("benign", "malignant")[number % 3 == 0], image, truth, masks


def make_prompt(mask):
    """Return the prompt record that a coarse mask gives."""
    rows, columns = np.nonzero(mask)
    size = list(mask.shape)
    if not len(rows):
        empty = {"box": None, "points": None, "labels": None, "mask": None, "source": "coarse"}
        return {**empty, "empty": True, "image_size": size}
    box = [int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1]
    points = [[int(columns.mean()), int(rows.mean())]]
    record = {"box": box, "points": points, "labels": [1], "mask": None, "source": "coarse"}
    return {**record, "empty": False, "image_size": size}


class Writer:
    """Writes masks, prompts and scores of one dataset, and remembers what was scored."""

    def __init__(self, root, dataset, cases, shift):
        self.root, self.dataset, self.shift = root, dataset, shift
        self.cases = dict(cases)
        self.rows, self.entries = [], []
        for case, (_, image, truth, _) in self.cases.items():
            write_png(root / dataset / "prepared/images" / f"{case}.png", image)
            write_mask(root / dataset / "prepared/masks" / f"{case}.png", truth)

    def group(self, case):
        """Return the group of a case; busbra has two images a patient."""
        patient = f"patient_{int(case.rsplit('_', 1)[1]) // 2}"
        return patient if self.dataset == "busbra" else case

    def shelve(self, part, method, at, cases, fold, member="single", trained_on=None, move=0):
        """Write and score the masks of a method on a part; `move` makes them worse."""
        evaluation = part.partition("-")[0] if "-" in part else "folds"
        name = f"{method}{at}"
        base = self.root / self.dataset
        prompts = base / "prompts" / f"transunet{at}" / "both" / f"{part}.json"
        if method == "transunet":
            records = {c: make_prompt(self.mask(c, "transunet", move)) for c in cases}
            write_json(prompts, {"prompt": "both", "kind": "both", "cases": records})
        for case in cases:
            mask = self.mask(case, method, move)
            # Only masks that the gallery may show are looked at again.
            if evaluation == "unseen" if at else evaluation == "folds":
                write_mask(base / "masks" / name / part / f"{case}.png", mask)
            self.rows.append(self.score(case, name, mask, evaluation, member, fold, trained_on))
        prompt = SOURCES[method][0] != "none" and method not in JOINT
        self.entries.append(
            {
                "dataset": self.dataset,
                "method": name,
                "evaluation": evaluation,
                "member": member,
                "fold": fold,
                "images": base / "prepared/images",
                "truth": base / "prepared/masks",
                "coarse": base / "masks" / f"transunet{at}" / part,
                "masks": base / "masks" / name / part,
                "prompts": prompts if prompt else None,
                "oracle": SOURCES[method][1],
            }
        )

    def mask(self, case, method, move):
        mask = self.cases[case][3][method]
        return mask if SOURCES[method][1] else np.roll(mask, move, axis=1)

    def score(self, case, name, mask, evaluation, member, fold, trained_on):
        label, _, truth, _ = self.cases[case]
        method = name.partition("@")[0]
        prompt, oracle = SOURCES[method]
        number = int(case.rsplit("_", 1)[1])
        # SAM's weights are said to have seen busi, and nothing is known of stu.
        seen = {"busi": "yes", "stu": "unknown"}.get(self.dataset, "no")
        row = {
            "dataset": self.dataset,
            "evaluation": evaluation,
            "member": member,
            "fold": fold,
            "case": case,
            "group": self.group(case),
            "label": label,
            "method": name,
            "trained_on": trained_on or self.dataset,
            "prompt_source": prompt,
            **score_case(mask, truth, (0.1, 0.1) if self.dataset == "busbra" else None),
            "oracle": oracle,
            "selection": "validation",
            "seen": seen if method.startswith("sam") else "no",
            "area_share": float(truth.mean()),
            "overlay": "calipers" if number % 4 == 0 else "none",
            "border": "yes" if number % 5 == 0 else "no",
            "look_alike": "yes" if number in (1, 2) else "no",
            "spacing": "known" if self.dataset == "busbra" else "unknown",
        }
        return {column: plain(row[column]) for column in SCORE_COLUMNS}


def shelve_trained(writer, union):
    """Write folds and hold-out of a dataset that models are trained on."""
    names = list(writer.cases)
    held = names[10:]
    for fold in (0, 1):
        mine = [case for i, case in enumerate(names[:10]) if i % 2 == fold]
        for method in METHODS:
            writer.shelve(f"fold{fold}", method, "", mine, fold)
            if union:
                writer.shelve(f"fold{fold}", method, "@all", mine, fold, trained_on="all", move=1)
            if held and method != "transunet-tuned":
                writer.shelve(f"holdout-fold{fold}", method, "", held, fold, move=1 + fold)
    for method in METHODS if held else []:
        writer.shelve("holdout-mean", method, "", held, None, "mean")
        if method == "transunet":
            writer.shelve("holdout-vote", method, "", held, None, "vote", move=1)


def shelve_unseen(writer, trained_on, move):
    """Write what the models of a training set make of a dataset that is not in it."""
    names, at = list(writer.cases), f"@{trained_on}"
    for fold in (0, 1):
        part = f"unseen-fold{fold}"
        writer.shelve(
            part, "transunet", at, names, fold, trained_on=trained_on, move=move + 1 + fold
        )
    for method in METHODS:
        writer.shelve("unseen-mean", method, at, names, None, "mean", trained_on, move)
    writer.shelve("unseen-vote", "transunet", at, names, None, "vote", trained_on, move + 1)


def write_history(path, fold, epochs=12):
    rows = []
    for epoch in range(1, epochs + 1):
        dice = 0.85 - 0.7 * np.exp(-epoch / 4) + 0.02 * np.sin(3 * epoch + fold)
        loss = 0.1 + np.exp(-epoch / 5)
        rows.append({"epoch": epoch, "train_loss": loss, "lr": 0.01, "val_dice": dice})
    path.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).to_csv(path, index=False)


def write_model_card(path, trainset, fold):
    write_card(
        path,
        {
            "architecture": {"model": "dynunet", "image_size": [192, 224], "num_classes": 2},
            "phase": "coarse",
            "name": "transunet",
            "dataset": trainset,
            "fold": fold,
            "protocol": "nested",
            "config": {"epochs": 12, "seed": 42},
            "metrics": {"epoch": 11, "dice": 0.8312},
            "selection": "validation",
            "trained_on": [f"{trainset}__{i}" for i in range(30)],
            "selected_on": [f"{trainset}__{i}" for i in range(30, 36)],
            "parents": {"R50+ViT-B_16.npz": "c" * 64},
            "weights_sha256": f"{fold}ab" + "d" * 61,
            "licence": "Apache-2.0",
            "versions": {"git_revision": REVISION},
            "fingerprint": "e" * 64,
        },
    )


def write_calibration(root, writer, name="transunet"):
    """Write the probabilities of a coarse model and measure how true they are."""
    base = root / writer.dataset
    rng = np.random.default_rng(3)
    cases = [row["case"] for row in writer.rows if row["method"] == name]
    cases = sorted(set(cases))
    for case in cases:
        mask = writer.mask(case, name.partition("@")[0], 0).astype(float)
        soft = np.clip(0.08 + 0.75 * mask + rng.normal(0, 0.1, mask.shape), 0, 1)
        write_probability(base / "probabilities" / name / f"{case}.png", soft)
    unseen = "@" in name
    rows = [
        {"case": c, "group": c, "fold": 0, "role": "unseen" if unseen else "test"} for c in cases
    ]
    table = base / f"parts_{name}.csv"
    write_rows(table, SPLIT_COLUMNS, rows)
    part = {"part": "unseen-mean" if unseen else "fold0", "table": table}
    part["probabilities"] = base / "probabilities" / name
    output = base / "calibration" / f"{name}.csv"
    trained_on = name.partition("@")[2] or writer.dataset
    truth = base / "prepared/masks"
    measure_calibration(name, writer.dataset, trained_on, [part], truth, output)
    return output


def write_points(root, writer):
    """Write the table of a point analysis."""
    rng = np.random.default_rng(5)
    rows = []
    folds = [r for r in writer.rows if r["evaluation"] == "folds" and r["method"] == "transunet"]
    for row in folds:
        shared = {key: row[key] for key in ("dataset", "fold", "case", "group", "label")}
        for source, sigma in (("coarse", None), ("oracle", None), ("noise", 5.0), ("noise", 20.0)):
            far = {"oracle": 0.0, "coarse": 4.0}.get(source, sigma) * rng.uniform(0.5, 1.5)
            rows.append(
                {
                    **shared,
                    "refiner": "sam",
                    "source": source,
                    "sigma": sigma,
                    "draw": 0 if sigma else None,
                    "x": 50,
                    "y": 40,
                    "inside": far < 9.0,
                    "distance_px": far,
                    "distance_share": far / 160.0,
                    "dice": float(max(0.0, 0.9 - far / 40.0)),
                    "oracle": source != "coarse",
                    "seen": "yes" if writer.dataset == "busi" else "no",
                }
            )
    path = root / writer.dataset / "points/sam/fold0.csv"
    write_rows(
        path, POINT_COLUMNS, [{key: plain(row[key]) for key in POINT_COLUMNS} for row in rows]
    )
    return path


def write_study(root, datasets=("busi", "busbra", "stu"), count=12, cases=make_cases, more=None):
    """Write a study of two folds below ``root``; return the arguments of the report's functions.

    ``more`` may shelve further masks of a dataset: it is given its writer.
    """
    rng = np.random.default_rng(7)
    trained = [name for name in datasets if name != "stu"]
    union = len(trained) > 1
    trainsets = [*trained, *(["all"] if union else [])]
    writers = []
    for place, dataset in enumerate(datasets):
        made = cases(rng, count, SHAPE)
        named = ((f"{dataset}__{item[0]}_{i}", item) for i, item in enumerate(made))
        writer = Writer(root, dataset, named, place)
        if dataset in trained:
            shelve_trained(writer, union)
        others = [name for name in trained if name != dataset]
        others += ["all"] if union and dataset not in trained else []
        for step, name in enumerate(others):
            shelve_unseen(writer, name, 2 + step)
        if more:
            more(writer)
        writers.append(writer)
    report = root / "report"
    table = report / "table.csv"
    write_rows(table, SCORE_COLUMNS, [row for writer in writers for row in writer.rows])
    study = finish(root, writers, table, trained)
    histories, cards = [], []
    for trainset in trainsets:
        for fold in (0, 1):
            model = root / trainset / "models/transunet" / f"fold{fold}"
            write_history(model / "history.csv", fold)
            write_model_card(model / "card.json", trainset, fold)
            write_json(model / "threshold.json", {"threshold": 0.3719, "dice": 0.84})
            path = model / "history.csv"
            histories.append(
                {"dataset": trainset, "model": "transunet", "fold": fold, "path": path}
            )
            cards.append(model / "card.json")
    return study | {"histories": histories, "cards": cards}


def finish(root, writers, table, trained):
    """Evaluate the scores as the study's rules do; return the paths and what else jobs are told."""
    report = root / "report"
    names = ("scores", "summary", "comparisons", "oracle_gap", "calibration", "overlaps", "points")
    paths = {name: report / f"{name}.csv" for name in names}
    shared = []
    if {"busi", "busbra"} <= set(trained):
        one, other = "busi__malignant_0", "busbra__malignant_0"
        shared = [(other, "busbra", one, "busi")]
    columns = ["case", "dataset", "other_case", "other_dataset", "kind"]
    write_rows(
        paths["overlaps"],
        columns,
        [dict(zip(columns, (*row, "equal"), strict=True)) for row in shared],
    )
    options = {"bootstrap": 200}
    summarise_scores([table], paths["scores"], paths["summary"], paths["overlaps"], **options)
    compare_methods(paths["scores"], "transunet", paths["comparisons"], **options)
    methods = {row["method"] for writer in writers for row in writer.rows}
    pairs = [
        {"method": name, "oracle_method": name.replace("both", "oracle_box")}
        for name in sorted(methods)
        if name.startswith("sam-both")
    ]
    measure_oracle_gap(paths["scores"], pairs, "transunet", paths["oracle_gap"], **options)
    tables = [write_calibration(root, w) for w in writers if w.dataset in trained]
    tables += [
        write_calibration(root, w, f"transunet@{trained[0]}")
        for w in writers
        if w.dataset not in trained
    ]
    collect_calibration(tables, paths["calibration"])
    point_tables = [write_points(root, w) for w in writers if w.dataset in trained]
    summarise_points(point_tables, paths["points"], **options)
    checks = []
    for writer in writers:
        checks.append(root / writer.dataset / "check/report.json")
        facts = {"images": len(writer.cases), "labels": {"benign": 8, "malignant": 4}}
        warnings = [f"{writer.dataset} (3).png has no mask", "two files hold the same image"]
        head = {"dataset": writer.dataset, "layout": writer.dataset, "root": "data", "errors": []}
        write_json(checks[-1], {**head, "warnings": warnings, "facts": facts})
    return {
        **paths,
        "entries": shown_entries(writers, trained),
        "checks": checks,
        "point_tables": point_tables,
        "provenance": {
            "git_revision": REVISION,
            "device": "cpu",
            "seeds": {"splits": 123, "transunet": 42},
            "versions": {"python": "3.11", "torch": "2.8"},
            "weights": [{"file": "sam_vit_b.pth", "sha256": "e" * 64}],
            "config": {
                "run": "main",
                "trainsets": {"all": sorted(trained)} if len(trained) > 1 else {},
                "splits": {"folds": 5, "run": [0, 1], "holdout": 0.2, "seed": 123},
                "report": {"gallery": 2, "bootstrap": 200, "seed": 0},
            },
        },
    }


def shown_entries(writers, trained):
    """Return the entries of the overlays, as the workflow chooses them."""
    first = f"@{trained[0]}"
    return [
        entry
        for writer in writers
        for entry in writer.entries
        if (entry["evaluation"] == "folds" and "@" not in entry["method"])
        or (
            writer.dataset not in trained
            and entry["member"] == "mean"
            and entry["method"].endswith(first)
        )
    ]
