"""Lists of files that several rules hand to their jobs. Paths are relative to where the study runs."""

from __future__ import annotations

from typing import Any

from ultrarefiner.datasets import DATASETS
from ultrarefiner.datasets.parts import parse_part
from ultrarefiner.models import starting_weights
from ultrarefiner.study.files import own_weights
from ultrarefiner.study.naming import branch_weights
from ultrarefiner.study.study import Study


def table_name(part: str) -> str:
    """Return which table tells the cases of a part."""
    return "unseen" if parse_part(part).evaluation == "unseen" else "splits"


def exported(study: Study) -> list[str]:
    """Return the folders in which datasets are written for other tools."""
    folds = [f"fold{fold}" for fold in study.folds]
    return [
        f"results/{study.config.run}/{name}/{row.export}/{part}"
        for name, row in study.config.datasets.items()
        if row.export
        for part in (["unseen"] if row.role == "unseen" else folds)
    ]


def calibrated_parts(study: Study, dataset: str, name: str) -> list[dict[str, Any]]:
    """Return the parts on which the probabilities of a model are judged, and their files.

    Args:
        study: The study.
        dataset: The dataset.
        name: Name of the method on the shelf.
    """
    base = f"results/{study.config.run}/{dataset}"
    return [
        {
            "part": part.name,
            "evaluation": part.evaluation,
            "member": part.member,
            "table": f"{base}/{table_name(part.name)}.csv",
            "probabilities": f"{base}/probabilities/{name}/{part.name}",
        }
        for part in study.calibrated(dataset, name)
    ]


def calibration_tables(study: Study) -> list[str]:
    """Return the calibration of every model on every dataset."""
    return sorted(
        {
            f"results/{study.config.run}/{one.dataset}/calibration/{one.method.name}.csv"
            for one in study.shelf
            if one.method.plain
        }
    )


def overlay_entries(study: Study) -> list[dict[str, Any]]:
    """Return where the pictures of each dataset, method and part lie."""
    entries = []
    for one in [one for dataset in study.config.datasets for one in study.pictured(dataset)]:
        base = f"results/{study.config.run}/{one.dataset}"
        method, part = one.method, one.part
        prompts = f"{base}/prompts/{method.coarse}{method.at}/{method.prompt}/{part.name}.json"
        entries.append(
            {
                "dataset": one.dataset,
                "method": method.name,
                "evaluation": part.evaluation,
                "member": part.member,
                "fold": part.fold,
                "images": f"{base}/prepared/images",
                "truth": f"{base}/prepared/masks",
                "coarse": f"{base}/masks/{study.reference}{method.at}/{part.name}",
                "masks": f"{base}/masks/{method.name}/{part.name}",
                "prompts": prompts if method.prompt else None,
                "oracle": method.oracle,
            }
        )
    return entries


def overlay_inputs(study: Study) -> list[str]:
    """Return every folder and file that the overlays read."""
    keys = ("images", "truth", "coarse", "masks", "prompts")
    paths = {entry[key] for entry in overlay_entries(study) for key in keys}
    return sorted(paths - {None})


def model_files(study: Study, file: str, predicting: bool = False) -> list[str]:
    """Return one file of every trained model, or of those that need no prompts."""
    alone = {*study.coarse, *study.end_to_end.names}
    mine = [one for one in study.models if not predicting or one.name in alone]
    return [study.finetuning.file(one, file) for one in mine]


def history_entries(study: Study) -> list[dict[str, Any]]:
    """Return the training curves with what they belong to; no fold: trained on all of them."""
    return [
        {"dataset": one.trainset, "model": one.name, "fold": one.fold, "path": path}
        for one, path in zip(study.models, model_files(study, "history.csv"), strict=True)
    ]


def guard_rules(study: Study) -> list[str]:
    """Return the rules by which the methods of a study are guarded."""
    rules = set()
    for one in study.shelf:
        if one.method.guarded:
            method, at = one.method, one.method.at
            rules |= set(study.end_to_end.guards(one.dataset, method.unguarded, at, one.part))
    return sorted(rules)


def modality_of(study: Study, dataset: str) -> str:
    """Return what the images of a dataset are; "unknown" where nobody says it of files of one's own."""
    published = bool(DATASETS[study.layout(dataset)].counts)
    default = "ultrasound" if published else "unknown"
    return study.config.datasets[dataset].modality or default


def zero_shot_datasets(study: Study) -> list[dict[str, str]]:
    """Return the datasets that models of other datasets are tested on, and what they are."""
    return [
        {
            "dataset": dataset,
            "modality": modality_of(study, dataset),
            "cases": f"results/{study.config.run}/{dataset}/prepared/cases.csv",
        }
        for dataset in study.tested_unseen
    ]


def zero_shot_tables(study: Study) -> list[str]:
    """Return the zero-shot table, if there is a dataset that models of others are tested on."""
    return [f"results/{study.config.run}/report/zero_shot.csv"] if study.tested_unseen else []


def checkpoint_families(study: Study) -> dict[str, str]:
    """Return for each method, without training sets, what checkpoints of its kind are called.

    Those of one architecture that are asked in the same way are of one family, so
    `sam_unet-box` for each row of that refiner family that is prompted with boxes.
    """
    coarse, refiners, families = study.config.coarse, study.config.refiners, {}
    for base, method in sorted(study.methods.items()):
        if method.joint:
            families[base] = base
        elif method.refiner is None:
            families[base] = coarse[method.coarse].model + base.removeprefix(method.coarse)
        else:
            families[base] = refiners[method.refiner].family + base.removeprefix(method.refiner)
    return families


def own_starts(study: Study, coarse: str) -> str | list[str | None] | None:
    """Return the digests of files of the user's own that a coarse model's training starts from.

    One where there is one file, so that studies of before there were two train nothing again.
    """
    found = [own_weights(name) for name in starting_weights(study.config.coarse[coarse])]
    return found[0] if len(found) == 1 else (found or None)


def own_refiner_starts(study: Study, refiner: str) -> str | list[str | None] | None:
    """Return the same of a refiner's training."""
    row = study.config.refiners[refiner]
    branch, first = branch_weights(row), own_weights(row.weights)
    return first if branch is None else [first, own_weights(branch)]
