"""Lists of files that several rules hand to their jobs. Paths are relative to where the study runs."""

from __future__ import annotations

from typing import Any

from ultrarefiner.datasets.parts import parse_part
from ultrarefiner.study.study import Study


def table_name(part: str) -> str:
    """Return which table tells the cases of a part."""
    return "unseen" if parse_part(part).evaluation == "unseen" else "splits"


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
