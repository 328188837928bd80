"""What a reader must know before trusting a number, computed from the tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from ultrarefiner.code import OtherCode
from ultrarefiner.report.end_to_end import ended_early, kept_as_they_were
from ultrarefiner.report.finetuning import (
    finetuned,
    not_improved,
    random_start,
    untrained_prompts,
)
from ultrarefiner.report.results import Numbers
from ultrarefiner.report.tables import EVALUATIONS, JOINT, MARKS, with_lesion

# Below so many groups a bootstrap over groups is known to give too narrow intervals.
FEW_GROUPS = 20


@dataclass(frozen=True)
class Caution:
    """Something a reader must know before trusting a number.

    Attributes:
        text: The caution.
        details: Lines behind it, shown on demand.
    """

    text: str
    details: list[str] = field(default_factory=list)


def caution(
    scores: pd.DataFrame,
    summary: pd.DataFrame,
    overlaps: pd.DataFrame,
    checks: Sequence[Mapping[str, Any]],
    cards: Sequence[Mapping[str, Any]],
    provenance: Mapping[str, Any],
    other_code: OtherCode | None = None,
) -> list[Caution]:
    """Return what to know before trusting the numbers, the gravest first."""
    return [
        *_phantoms(provenance),
        *_unequal(scores),
        *_seen(scores),
        *_oracles(scores),
        *_selection(scores),
        *_by_image(provenance),
        *_finetuning(cards, provenance.get("config") or {}),
        *_end_to_end(cards),
        *_overlaps(overlaps),
        *_folds(scores, provenance),
        *_single(scores),
        *_groups(scores),
        *_misses(summary),
        *_other_code(other_code),
        *_revisions(cards, provenance),
        *_doctor(checks),
    ]


def _phantoms(provenance: Mapping[str, Any]) -> list[Caution]:
    datasets = (provenance.get("config") or {}).get("datasets") or {}
    made = sorted(name for name, row in datasets.items() if (row or {}).get("phantom"))
    if not made:
        return []
    return [
        Caution(
            f"Synthetic images: {', '.join(made)}. These numbers show that the workflow runs; they "
            "say nothing about patients."
        )
    ]


def _unequal(scores: pd.DataFrame) -> list[Caution]:
    lines = []
    for (dataset, evaluation), rows in scores.groupby(["dataset", "evaluation"]):
        everything = set(rows["case"])
        where = _where(dataset, evaluation)
        for method, mine in rows.groupby("method"):
            if absent := sorted(everything - set(mine["case"])):
                lines.append(f"{where}: {method} lacks {len(absent)}, first {absent[0]}")
    if not lines:
        return []
    return [Caution("The methods were not scored on the same cases; do not compare means.", lines)]


def _seen(scores: pd.DataFrame) -> list[Caution]:
    words = {
        "yes": "Weights that were trained on the dataset they are tested on are marked {mark}: "
        "these rows are not zero-shot, and their numbers may be too high.",
        "unknown": "It is not known whether the weights marked {mark} were trained on the dataset "
        "they are tested on (refiners.*.seen in the config can tell).",
    }
    cautions = []
    for seen, text in words.items():
        rows = scores.loc[scores["seen"].eq(seen), ["dataset", "method"]].drop_duplicates()
        lines = [
            f"{dataset}: {', '.join(sorted({name.partition('@')[0] for name in mine['method']}))}"
            for dataset, mine in rows.groupby("dataset")
        ]
        if lines:
            cautions.append(Caution(text.format(mark=MARKS[seen]), lines))
    return cautions


def _overlaps(overlaps: pd.DataFrame) -> list[Caution]:
    pairs: dict[tuple[str, str], dict[str, set[str]]] = {}
    for row in overlaps.itertuples():
        if row.dataset != row.other_dataset:
            names = tuple(sorted((row.dataset, row.other_dataset)))
            images = tuple(sorted((row.case, row.other_case)))
            pairs.setdefault(names, {}).setdefault(row.kind, set()).add(images)
    lines = [
        f"{one} and {other}: "
        + ", ".join(
            f"{len(found)} {'equal' if kind == 'equal' else 'look-alike'} "
            f"pair{'' if len(found) == 1 else 's'} of images"
            for kind, found in sorted(kinds.items(), key=lambda item: item[0] != "equal")
        )
        for (one, other), kinds in sorted(pairs.items())
    ]
    if not lines:
        return []
    return [
        Caution(
            "Datasets of this study share images. None is tested by a model that trained on its "
            "copy, but their results are not independent of each other.",
            lines,
        )
    ]


def _single(scores: pd.DataFrame) -> list[Caution]:
    held = scores[scores["evaluation"].ne("folds")]
    lonely = [
        f"{dataset}, {EVALUATIONS[evaluation]}"
        for (dataset, evaluation), rows in held.groupby(["dataset", "evaluation"])
        if not rows["member"].isin(["mean", "vote"]).any()
    ]
    if not lonely:
        return []
    return [
        Caution(
            "No ensemble predicted what no fold holds: the numbers are those of a single model.",
            lonely,
        )
    ]


def _other_code(found: OtherCode | None) -> list[Caution]:
    if found is None or not (found.changed or found.unknown):
        return []
    lines = [f"{rule}: {count} by older code" for rule, count in found.changed.items()]
    lines += [f"{rule}: {count}, code not recorded" for rule, count in found.unknown.items()]
    total = sum(found.changed.values()) + sum(found.unknown.values())
    return [
        Caution(
            f"Not all results were made by the present code: {total} by older code, or nobody knows "
            "by which. `rerun_on_code_change: true` makes them again.",
            lines,
        )
    ]


def _revisions(cards: Sequence[Mapping[str, Any]], provenance: Mapping[str, Any]) -> list[Caution]:
    found: dict[str, int] = {}
    for card in cards:
        revision = card["versions"]["git_revision"]
        found[revision] = found.get(revision, 0) + 1
    here = str(provenance.get("git_revision") or "not recorded")
    changed = sorted(revision for revision in {*found, here} if revision.endswith("+changes"))
    cautions = []
    if set(found) - {here}:
        cautions.append(
            Caution(
                f"Not all models were trained by the code of this report (revision {here}).",
                [f"{count} trained by {revision}" for revision, count in sorted(found.items())],
            )
        )
    if changed:
        cautions.append(
            Caution(
                f"Made with code that differs from its revision ({', '.join(changed)}): nobody can "
                "check it out. Commit, and run again, before publishing."
            )
        )
    return cautions


def _oracles(scores: pd.DataFrame) -> list[Caution]:
    methods = scores.loc[scores["kind"].eq("oracle"), "method"]
    names = sorted({name.partition("@")[0] for name in methods})
    if not names:
        return []
    return [
        Caution(
            f"Oracle rows use the truth: {', '.join(names)}. Their prompts are made from the "
            "expert's mask, so they are upper bounds for a perfect prompt, not results."
        )
    ]


def _selection(scores: pd.DataFrame) -> list[Caution]:
    rows = scores[scores["selection"].str.replace("_", " ").str.lower().eq("reported fold")]
    names = sorted({name.partition("@")[0] for name in rows["method"]})
    if not names:
        return []
    return [
        Caution(
            f"Selected on the reported fold: {', '.join(names)}. The epoch was chosen on the same "
            "cases that are reported (protocol: seed), so these numbers are optimistic."
        )
    ]


def _finetuning(cards: Sequence[Mapping[str, Any]], config: Mapping[str, Any]) -> Iterator[Caution]:
    scratch = [name for name in finetuned(config) if random_start(config["refiners"][name])]
    if scratch:
        yield Caution(
            f"Weights that began as random numbers: {', '.join(scratch)}. What they know is from "
            "the training cases of this study alone."
        )
    if lines := not_improved(cards):
        yield Caution(
            f"Finetuning did not raise the validation Dice of {'; '.join(lines)}. The weights of "
            "the best epoch were used all the same."
        )
    if names := untrained_prompts(config):
        yield Caution(
            f"Refiners compared with prompts that they never trained with: {'; '.join(names)}."
        )


def _end_to_end(cards: Sequence[Mapping[str, Any]]) -> Iterator[Caution]:
    if lines := kept_as_they_were(cards):
        yield Caution(
            "Training end to end was better in no epoch: these models are as they came from their "
            "own trainings.",
            lines,
        )
    if lines := ended_early(cards):
        yield Caution(
            "Training end to end was ended early, as it harmed the coarse model inside.", lines
        )


def by_image(provenance: Mapping[str, Any]) -> list[str]:
    """Return the keys of the configuration for which folds were made by image; none: by group."""
    splits = (provenance.get("config") or {}).get("splits") or {}
    asked = {"splits.group": "image", "splits.protocol": "seed"}
    return [f"{key}: {value}" for key, value in asked.items() if splits.get(key[7:]) == value]


def _by_image(provenance: Mapping[str, Any]) -> list[Caution]:
    keys = by_image(provenance)
    if not keys:
        return []
    return [
        Caution(
            f"Folds were made by image ({', '.join(keys)}): images of one patient, or copies of one "
            "image, may be in training and in test, so these numbers may be too high."
        )
    ]


def _folds(scores: pd.DataFrame, provenance: Mapping[str, Any]) -> list[Caution]:
    splits = (provenance.get("config") or {}).get("splits") or {}
    total = splits.get("folds")
    run = sorted({int(fold) for fold in scores["fold"].dropna()})
    if not isinstance(total, int) or len(run) >= total:
        return []
    folds = ", ".join(map(str, run))
    return [
        Caution(
            f"Only {len(run)} of {total} folds were run (fold {folds}); the cases of the other "
            "folds are not in these numbers. Set splits.run: all for the whole study."
        )
    ]


def _groups(scores: pd.DataFrame) -> list[Caution]:
    counts = with_lesion(scores).groupby(["dataset", "evaluation"])["group"].nunique()
    few = [
        f"{_where(dataset, evaluation)}: {count}"
        for (dataset, evaluation), count in counts.items()
        if count < FEW_GROUPS
    ]
    if not few:
        return []
    return [
        Caution(
            f"Few independent groups (patients or duplicate clusters) – {'; '.join(few)}. "
            f"With fewer than {FEW_GROUPS} the confidence intervals are too narrow."
        )
    ]


def _misses(summary: pd.DataFrame) -> list[Caution]:
    missed, found = [], []
    for (dataset, evaluation), rows in summary.groupby(["dataset", "evaluation"]):
        if dataset in JOINT:
            continue
        where = _where(dataset, evaluation)
        # Who stands for a method; the comparisons are not looked at.
        numbers = Numbers(rows, rows.iloc[:0], dataset, evaluation)
        for method in sorted(set(rows["method"])):
            row = numbers.get(method, "dice") or numbers.get(method, "specificity")
            if row is None:
                continue
            if row["misses"]:
                missed.append(f"{where}: {method} missed {row['misses']:g} of {row['n']:g}")
            if row["false_positives"]:
                count = f"{row['false_positives']:g}"
                plural = "" if count == "1" else "s"
                found.append(f"{where}: {method} in {count} image{plural}")
    cautions = []
    if missed:
        cautions.append(
            Caution(
                "Some lesions were missed altogether (empty mask). A miss counts with Dice 0 and "
                "the image diagonal as HD95; none is left out of a mean.",
                missed,
            )
        )
    if found:
        cautions.append(
            Caution(
                "Some images without a lesion were given one (false alarms). They lower the "
                "specificity; Dice is of images with a lesion only.",
                found,
            )
        )
    return cautions


def _where(dataset: str, evaluation: str) -> str:
    return dataset if evaluation == "folds" else f"{dataset} ({EVALUATIONS[evaluation]})"


def _doctor(checks: Sequence[Mapping[str, Any]]) -> list[Caution]:
    cautions = []
    for check in sorted(checks, key=lambda item: str(item.get("dataset"))):
        errors = [str(line) for line in check.get("errors") or []]
        warnings = [str(line) for line in check.get("warnings") or []]
        if errors or warnings:
            counts = [
                f"{len(lines)} {word}{'' if len(lines) == 1 else 's'}"
                for lines, word in ((errors, "error"), (warnings, "warning"))
                if lines
            ]
            cautions.append(
                Caution(
                    f"The check of {check.get('dataset')} gave {' and '.join(counts)}.",
                    [*errors, *warnings],
                )
            )
    return cautions
