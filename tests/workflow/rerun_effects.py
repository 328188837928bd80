"""What a row of the rerun table is, and the sets of rules that its rows are written with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

NOTHING: frozenset[str] = frozenset()

SHOWN = frozenset({"record_study", "write_report"})
"""Where the whole configuration stands: they follow every key."""

PICTURES = {"draw_overlays", *SHOWN}
VOLUMES = {"write_volumes", "score_volumes", "summarise_volumes", "draw_volumes"}
"""Of a dataset that holds whole volumes."""
SUMMARY = {
    *("summarise_scores", "compare_methods", "measure_gap", "plot_scores", "write_tables"),
    *("summarise_zero_shot", "summarise_volumes", "draw_volumes"),
    *PICTURES,
}
SCORES = {"score_masks", *VOLUMES, *SUMMARY}
CALIBRATION = {"measure_calibration", "collect_calibration"}
POINTS = {"analyse_points", "summarise_points", "plot_scores", "write_tables", *SHOWN}
REFINED = {"refine_masks", *SCORES}
PROMPTED = {"make_prompts", *REFINED}
GUARDED = {"choose_guard", "guard_masks", *SCORES}

FINETUNED = {"train_refiner", "ensemble_refined", *REFINED}
SIMULATED = {"simulate_failures", *FINETUNED}
SEEDED = {"draw_failures", *SIMULATED}

JOINT_PREDICTED = {"choose_threshold", "predict_end_to_end", *GUARDED, *CALIBRATION}
JOINT = {"train_end_to_end", *JOINT_PREDICTED}

COARSE_ALONE = {
    *("train_coarse", "choose_threshold", "predict_coarse", "ensemble_masks"),
    *CALIBRATION,
    *SCORES,
}
"""Of a coarse model that prompts nobody."""
COARSE_PREDICTED = {
    *("choose_threshold", "predict_coarse", "ensemble_masks"),
    *("predict_inner", "measure_boxes", "crop_dataset", "embed_images"),
    *FINETUNED,
    *CALIBRATION,
    *POINTS,
    *PROMPTED,
    *GUARDED,
}
COARSE = {"train_coarse", "train_inner", *COARSE_PREDICTED, *JOINT}
"""Of the coarse model that prompts: the first of `compare.coarse`."""

SPLITS = {"split_folds", "join_splits", "split_inner", "export_samed2d", *COARSE}
PREPARED = {
    *("check_dataset", "prepare_dataset", "find_overlaps"),
    *("simulate_failures", "draw_failures", "export_medsam2"),
    *SPLITS,
}
PHANTOM = {"write_phantom", *PREPARED}

APPLIED = {
    *("predict_coarse", "ensemble_masks", "ensemble_refined"),
    *("embed_images", "make_prompts", "refine_masks", "score_masks"),
    *("write_volumes", "score_volumes"),
}
"""What further cases or models of other data are new jobs of."""
TRAINED = {"train_coarse", "train_refiner", "choose_threshold", "measure_calibration", *APPLIED}


@dataclass(frozen=True)
class Change:
    """A row: a key, another value for it, and what then runs.

    Attributes:
        key: The key as `config/README.md` has it; ` (sam)` follows one of a refiner family.
        study: Which of the studies it is changed in: "deep", "wide" or "whole".
        values: The new values by their dotted paths; None: the key is left out.
        reruns: Rules of which a job runs that has run before.
        makes: Rules of which a new job runs.
        within: Words of which one stands in the path of whatever runs again, but for the report;
            so the jobs of other rows of a section stay.
    """

    key: str
    study: str
    values: Mapping[str, Any]
    reruns: frozenset[str]
    makes: frozenset[str]
    within: tuple[str, ...]


def changes(
    place: str,
    reruns: set[str] | frozenset[str],
    values: Mapping[str, Any],
    *,
    makes: set[str] | frozenset[str] = NOTHING,
    within: tuple[str, ...] = (),
    study: str = "deep",
    family: str = "",
    beside: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[Change]:
    """Return rows of keys that have the same effect.

    Args:
        place: How their paths in the study begin: `coarse.unet.`
        reruns: As in `Change`.
        values: Another value for each of them, by the rest of its path.
        makes: As in `Change`.
        within: As in `Change`.
        study: As in `Change`.
        family: Refiner family whose own keys they are.
        beside: By the rest of its path what has to change with a key for the study to be valid, by
            whole paths.
    """
    return [
        Change(
            _key(place + name) + (f" ({family})" if family else ""),
            study,
            {place + name: value, **(beside or {}).get(name, {})},
            frozenset(reruns),
            frozenset(makes),
            within,
        )
        for name, value in values.items()
    ]


def _key(path: str) -> str:
    """Return the key that stands for a path of a study: `coarse.*.lr` for `coarse.unet.lr`."""
    parts = path.split(".")
    if parts[0] in ("datasets", "coarse", "prompts", "refiners", "end_to_end"):
        parts[1] = "*"
    if parts[0] == "end_to_end" and parts[2] == "train":
        parts[3] = "*"
    return ".".join(parts[:2] if parts[:2] == ["compare", "refine"] else parts)
