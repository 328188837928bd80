"""A study with a model that was trained end to end, and guards, for the tests of its report.

`as_one` goes on from `transunet` and the finetuned refiner `tuned`. Fold 0 got better; fold 1 was
stopped after an epoch that raised the refined Dice and harmed the coarse model.
"""

import report_finetuned
from report_inputs import REVISION, write_study
from report_page import write_parts

from ultrarefiner.io import read_json
from ultrarefiner.models.cards import upstream, write_card
from ultrarefiner.training.history import FitResult, write_history

AS_ONE = {"coarse": "transunet", "refiner": "tuned", "prompts": ["mask", "box"], "epochs": 3}
COMPARE = {
    "coarse": ["transunet"],
    "refine": {"tuned": ["box"]},
    "end_to_end": ["as_one"],
    "guarded": ["as_one", "tuned-box"],
}
STOPPED = "coarse_dice fell from 0.8300 before training to 0.7400, by more than 0.02"
# Refined and coarse Dice on validation before training and after each epoch, and the epoch kept.
FOLDS = {
    0: ([(0.81, 0.8), (0.82, 0.79), (0.85, 0.81), (0.84, 0.82)], 2, ""),
    1: ([(0.86, 0.83), (0.88, 0.74)], 0, STOPPED),
}


def dump(row=AS_ONE, **changes):
    """Return the configuration of the study as its provenance has it."""
    return report_finetuned.dump(end_to_end={"as_one": row}, **{"compare": COMPARE, **changes})


def cases(rng, count, shape):
    """Yield cases that are segmented better end to end than by the finetuned refiner."""
    for label, image, truth, masks in report_finetuned.cases(rng, count, shape):
        whole = truth & masks["transunet"].any()
        joint = {
            "as_one": whole,
            "as_one-tuned": whole & masks["sam-both"],
            "as_one-coarse": masks["transunet"] | masks["transunet-tuned"] & truth,
            # Of this one no mask was rejected.
            "as_one-guarded": whole,
            "tuned-box-guarded": masks["tuned-box"] & masks["sam-both"],
        }
        yield label, image, truth, {**masks, **joint}


def shelve(writer):
    """Write the parts that a study has of the methods."""
    report_finetuned.shelve_finetuned(writer)
    names, unseen = list(writer.cases), writer.dataset == "stu"
    at, trained_on = ("@busi", "busi") if unseen else ("", None)
    base, held = ("unseen", names) if unseen else ("holdout", names[10:])
    several, joined = ("as_one", "tuned-box-guarded"), ("as_one-tuned", "as_one-guarded")
    for fold in (0, 1):
        mine = [case for i, case in enumerate(names[:10]) if i % 2 == fold]
        for name in (*several, *joined, "as_one-coarse") if not unseen else ():
            writer.shelve(f"fold{fold}", name, "", mine, fold)
        for name in several:
            part = f"{base}-fold{fold}"
            writer.shelve(part, name, at, held, fold, trained_on=trained_on, move=2 + fold)
    for name in (*several, *joined):
        writer.shelve(f"{base}-mean", name, at, held, None, "mean", trained_on, 1)
    writer.shelve(f"{base}-vote", "as_one", at, held, None, "vote", trained_on, 1)


def history_of(fold):
    """Return what a training came to, as the engine leaves it."""
    values, best, stopped = FOLDS[fold]
    dicts = [{"dice": dice, "coarse_dice": coarse} for dice, coarse in values]
    rows = [
        {"epoch": epoch, "train_loss": 0.2 / epoch, "lr": 1e-5, "lr_coarse": 1e-5, "seconds": 1.0}
        | {f"val_{name}": value for name, value in metrics.items()}
        for epoch, metrics in enumerate(dicts[1:], 1)
    ]
    return FitResult(rows, best, dicts[best], dicts[0], stopped)


def write_model(root, fold, config):
    """Write the card and the history of an end-to-end model; return what the jobs say of it."""
    folder = root / "busi/models/as_one" / f"fold{fold}"
    folder.mkdir(parents=True)
    result = history_of(fold)
    write_history(folder / "history.csv", result.history)
    before = [read_json(root / f"busi/models/{name}/fold{fold}/card.json") for name in PARENTS]
    write_card(
        folder / "card.json",
        {
            "architecture": {
                "model": "end_to_end",
                "image_size": 224,
                "coarse": {"model": "transunet", "image_size": [192, 224], "num_classes": 2},
                "refiner": {"model": "sam", "options": {}, "image_size": 1024},
            },
            "phase": "end_to_end",
            "name": "as_one",
            "dataset": "busi",
            "fold": fold,
            "protocol": "nested",
            "config": config["end_to_end"]["as_one"],
            "metrics": {
                "epoch": result.best_epoch,
                **result.metrics,
                "dice_before": result.before["dice"],
                "coarse_dice_before": result.before["coarse_dice"],
                "stopped": result.stopped,
            },
            "selection": "validation",
            "trained_on": [f"busi__{i}" for i in range(30)],
            "selected_on": [f"busi__{i}" for i in range(30, 36)],
            "parents": {card["name"]: card["weights_sha256"] for card in before},
            "weights_sha256": f"{fold}1" + "a" * 62,
            "licence": "Apache-2.0",
            "versions": {"git_revision": REVISION},
            "fingerprint": "b" * 64,
            "sources": {"parents": [one for card in before for one in upstream(card)]},
        },
    )
    entry = {"dataset": "busi", "model": "as_one", "fold": fold, "path": folder / "history.csv"}
    return folder / "card.json", entry


PARENTS = ("transunet", "tuned")


def make_joint(root):
    """Write a study of two datasets with an end-to-end model, and what its report is made from."""
    study = write_study(root, datasets=("busi", "stu"), cases=cases, more=shelve)
    config = dump()
    metrics = {"dice": 0.89, "coarse_dice": 0.8, "dice_before": 0.81}
    made = [
        report_finetuned.write_model(root, "tuned", fold, config, metrics) for fold in (0, 1)
    ] + [write_model(root, fold, config) for fold in (0, 1)]
    study["cards"] += [card for card, _ in made]
    study["histories"] += [entry for _, entry in made]
    study["provenance"]["config"] = config
    return write_parts(study, root / "report")
