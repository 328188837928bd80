"""What a study makes of datasets that hold whole volumes; of one without them, nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ultrarefiner.datasets.volume_records import holds_volumes
from ultrarefiner.study.entries import overlay_entries
from ultrarefiner.study.methods import Method, Shelved
from ultrarefiner.study.propagation import propagation_of
from ultrarefiner.study.study import Study


def volume_datasets(study: Study) -> list[str]:
    """Return the datasets that hold whole volumes."""
    rows = study.config.datasets.items()
    return [name for name, row in rows if holds_volumes(study.layout(name), row.options)]


def volume_shelf(study: Study) -> list[Shelved]:
    """Return every folder of masks that is scored in 3D."""
    mine = set(volume_datasets(study))
    return [one for one in study.shelf if one.dataset in mine]


def shelf_paths(study: Study, pattern: str) -> list[str]:
    """Return one path for each folder of masks that is scored in 3D.

    Args:
        study: The study.
        pattern: Path with ``{run}``, ``{dataset}``, ``{method}`` and ``{part}``.
    """
    return [
        pattern.format(
            run=study.config.run, dataset=one.dataset, method=one.method.name, part=one.part.name
        )
        for one in volume_shelf(study)
    ]


def mask_volumes(study: Study) -> list[str]:
    """Return the folders of masks as volumes."""
    return shelf_paths(study, "results/{run}/{dataset}/volumes/{method}/{part}")


def score_tables(study: Study) -> list[str]:
    """Return the tables of volume scores."""
    return shelf_paths(study, "results/{run}/{dataset}/volume_scores/{method}/{part}.csv")


def report_tables(study: Study) -> list[str]:
    """Return the two tables of the report; none where no dataset holds volumes."""
    base = f"results/{study.config.run}/report"
    names = ("volumes", "volume_comparisons") if volume_datasets(study) else ()
    return [f"{base}/{name}.csv" for name in names]


def report_pictures(study: Study) -> list[str]:
    """Return the folder of the report's pictures of volumes, in the same way."""
    return [f"results/{study.config.run}/report/volumes"] if volume_datasets(study) else []


def report_parts(study: Study) -> dict[str, list[str]]:
    """Return what the report is told of volumes; nothing where no dataset holds any."""
    tables = report_tables(study)
    return {"volumes": tables, "montages": report_pictures(study)} if tables else {}


def mode_of(study: Study, method: Method) -> str:
    """Return how a method goes through a volume: ``slices``, ``memory`` or ``masks``."""
    row = study.config.refiners.get(method.refiner or "")
    way = "none" if row is None else propagation_of(row)
    return "slices" if way == "none" else way


def volume_entries(study: Study) -> list[dict[str, Any]]:
    """Return what each table of volume scores is of, and which jobs made its masks."""
    return [
        {
            "dataset": one.dataset,
            "method": one.method.name,
            "part": one.part.name,
            "refiner": one.method.refiner or "",
            "prompt": one.method.prompt or "",
            "prompt_kind": study.config.prompts[one.method.prompt].kind
            if one.method.prompt
            else "",
            "mode": mode_of(study, one.method),
            "benchmarks": _benchmarks(study, one),
        }
        for one in volume_shelf(study)
    ]


def _benchmarks(study: Study, one: Shelved) -> list[str]:
    """Return the files that tell how long masks took; none where it took further jobs."""
    method, part = one.method, one.part
    if method.guarded or method.inner:
        return []
    base = f"results/{study.config.run}/benchmarks"
    if method.refiner is None:
        rule = "predict_end_to_end" if method.joint else "predict_coarse"
        return [f"{base}/{rule}/{one.dataset}/{method.coarse}{method.at}/{part.name}.tsv"]
    found = [f"{base}/refine_masks/{one.dataset}/{method.name}/{part.name}.tsv"]
    view = study.view_of(method.prompt)
    index = study.index(method.refiner, view, one.dataset, method.at, part)
    if index is not None:
        below = Path(index).relative_to(f"results/{study.config.run}/{one.dataset}/embeddings")
        found.append(f"{base}/embed_images/{one.dataset}/{below.with_suffix('.tsv')}")
    return found


def mode_pairs(study: Study) -> list[dict[str, str]]:
    """Return each propagated method with those that differ from it in nothing but the mode.

    The same family, weights and finetuning, prompted alike, each slice by itself.
    """
    mine = list({one.method.name: one.method for one in volume_shelf(study)}.values())
    modes = {method.name: mode_of(study, method) for method in mine}

    def alike(method: Method) -> tuple[Any, ...]:
        row = study.config.refiners[method.refiner]
        return row.family, row.weights, row.finetune, method.prompt, method.at, method.guarded

    refined = [method for method in mine if method.refiner]
    return [
        {"method": one.name, "reference": other.name}
        for one in refined
        for other in refined
        if modes[one.name] != "slices"
        and modes[other.name] == "slices"
        and alike(one) == alike(other)
    ]


def montage_entries(study: Study) -> list[dict[str, Any]]:
    """Return where the pictures of the volumes of each dataset, method and part lie."""
    mine = set(volume_datasets(study))
    tables = {
        name: {
            table: f"results/{study.config.run}/{name}/volumes/{table}.csv"
            for table in ("volumes", "slices")
        }
        for name in mine
    }
    return [
        {key: value for key, value in entry.items() if key != "prompts"} | tables[entry["dataset"]]
        for entry in overlay_entries(study)
        if entry["dataset"] in mine
    ]


def montage_inputs(study: Study) -> list[str]:
    """Return every folder and file that the pictures of volumes are drawn from."""
    keys = ("images", "truth", "coarse", "masks", "volumes", "slices")
    return sorted({entry[key] for entry in montage_entries(study) for key in keys})
