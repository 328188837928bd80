"""The report's findings and cautions in words, computed from the tables."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from ultrarefiner.report.tables import JOINT, fixed, p_value, signed

# Below so many groups a bootstrap over groups is known to give too narrow intervals.
FEW_GROUPS = 20
_ALPHA = 0.05


@dataclass(frozen=True)
class Finding:
    """What refinement did on one dataset.

    Attributes:
        dataset: The dataset.
        verdict: ``better``, ``worse``, ``unclear`` or ``none`` (nothing was refined).
        before: Mean Dice of the reference, as text.
        after: Mean Dice of the leading refined method, as text.
        method: That method.
        difference: The paired difference, as text.
        sentence: All of it as one sentence.
    """

    dataset: str
    verdict: str
    before: str
    after: str
    method: str
    difference: str
    sentence: str


@dataclass(frozen=True)
class Caution:
    """Something a reader must know before trusting a number.

    Attributes:
        text: The caution.
        details: Lines behind it, shown on demand.
    """

    text: str
    details: list[str] = field(default_factory=list)


def find(scores: pd.DataFrame, comparisons: pd.DataFrame, reference: str) -> list[Finding]:
    """Return one finding for each dataset.

    The method named is the refined one, never an oracle, with the highest mean Dice.
    """
    kinds = dict(scores[["method", "kind"]].drop_duplicates().itertuples(index=False))
    findings = []
    for name in sorted(set(scores["dataset"])):
        rows = comparisons[
            comparisons["dataset"].eq(name)
            & comparisons["metric"].eq("dice")
            & comparisons["reference"].eq(reference)
            & ~comparisons["oracle"]
            & comparisons["method"].map(kinds).eq("refined")
        ]
        if len(rows):
            best = rows.sort_values(["mean_method", "method"], ascending=[False, True]).iloc[0]
            findings.append(_finding(name, best, len(rows)))
        else:
            mine = scores[scores["dataset"].eq(name) & scores["method"].eq(reference)]
            mean = fixed(mine["dice"].mean())
            sentence = (
                f"{reference} reaches a mean Dice of {mean} on {name} ({len(mine)} cases); "
                "no refined method without oracle prompts was compared with it."
            )
            findings.append(Finding(name, "none", mean, "", reference, "", sentence))
    return findings


def _finding(name: str, row: pd.Series, tried: int) -> Finding:
    low, high = float(row["ci_low"]), float(row["ci_high"])
    p, tested = quoted_p(row)
    excludes = low > 0.0 or high < 0.0
    rejects = p < _ALPHA
    up = float(row["mean_difference"]) > 0.0
    before, after = fixed(row["mean_reference"]), fixed(row["mean_method"])
    numbers = (
        f"paired difference {signed(row['mean_difference'])}, 95 % CI {fixed(low)} to "
        f"{fixed(high)}, Holm p {_equals(p)}, {tested}"
    )
    subject = f"Refining {row['reference']} with {row['method']}"
    if excludes and rejects:
        verb = "raised" if up else "lowered"
        sentence = f"{subject} {verb} mean Dice on {name} from {before} to {after} ({numbers})."
        verdict = "better" if up else "worse"
    else:
        verdict = "unclear"
        why = (
            "the interval includes zero"
            if not excludes
            else "there are too few cases for a test"
            if math.isnan(p)
            else "the interval excludes zero but the rank test does not reject"
        )
        if math.isnan(low):
            why = "there are too few groups for an interval"
        elif not excludes and rejects:
            why = "the interval of the mean includes zero although the rank test rejects"
        sentence = (
            f"{subject} did not clearly change mean Dice on {name}: {before} before, {after} "
            f"after ({numbers}); {why}."
        )
    if tried > 1:
        sentence += f" It is the best of {tried} refined methods on these same cases."
    return Finding(
        name,
        verdict,
        before,
        after,
        str(row["method"]),
        f"{signed(row['mean_difference'])} [{fixed(low)}, {fixed(high)}]",
        sentence,
    )


def quoted_p(row: Mapping[str, Any]) -> tuple[float, str]:
    """Return the corrected p to quote for a comparison, and what it was tested over.

    Where groups hold several images these are not independent, and the test over groups counts.
    """
    groups, cases = float(row.get("groups", math.inf)), float(row["n"])
    if groups < cases:
        return float(row["group_holm_p"]), f"{groups:g} groups of {cases:g} cases"
    return float(row["holm_p"]), f"{cases:g} cases"


def _equals(p: float) -> str:
    text = p_value(p)
    return text if text.startswith(("<", "–")) else f"= {text}"


def caution(
    scores: pd.DataFrame,
    summary: pd.DataFrame,
    checks: list[dict[str, Any]],
    provenance: Mapping[str, Any],
) -> list[Caution]:
    """Return what to know before trusting the numbers, the gravest first."""
    return [
        *_phantoms(provenance),
        *_unequal(scores),
        *_oracles(scores),
        *_selection(scores),
        *_by_image(provenance),
        *_folds(scores, provenance),
        *_groups(scores),
        *_misses(summary),
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
    for dataset, rows in scores.groupby("dataset"):
        everything = set(rows["case"])
        for method, mine in rows.groupby("method"):
            if absent := sorted(everything - set(mine["case"])):
                lines.append(f"{dataset}: {method} lacks {len(absent)}, first {absent[0]}")
    if not lines:
        return []
    return [Caution("The methods were not scored on the same cases; do not compare means.", lines)]


def _oracles(scores: pd.DataFrame) -> list[Caution]:
    names = sorted(set(scores.loc[scores["kind"].eq("oracle"), "method"]))
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
    names = sorted(set(rows["method"]))
    if not names:
        return []
    return [
        Caution(
            f"Selected on the reported fold: {', '.join(names)}. The epoch was chosen on the same "
            "cases that are reported (protocol: seed), so these numbers are optimistic."
        )
    ]


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
    run = sorted({int(fold) for fold in scores["fold"]})
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
    counts = scores.groupby("dataset")["group"].nunique()
    few = [f"{name}: {count}" for name, count in counts.items() if count < FEW_GROUPS]
    if not few:
        return []
    return [
        Caution(
            f"Few independent groups (patients or duplicate clusters) – {'; '.join(few)}. "
            f"With fewer than {FEW_GROUPS} the confidence intervals are too narrow."
        )
    ]


def _misses(summary: pd.DataFrame) -> list[Caution]:
    rows = summary[
        summary["metric"].eq("dice")
        & summary["subgroup"].eq("all")
        & summary["fold"].astype(str).eq("all")
        & ~summary["dataset"].isin(list(JOINT))
    ].sort_values(["dataset", "method"])
    missed = rows[rows["misses"].gt(0)]
    found = rows[rows["false_positives"].gt(0)]
    cautions = []
    if len(missed):
        cautions.append(
            Caution(
                "Some lesions were missed altogether (empty mask). A miss counts with Dice 0 and "
                "the image diagonal as HD95; none is left out of a mean.",
                [
                    f"{row.dataset}: {row.method} missed {row.misses:g} of {row.n:g}"
                    for row in missed.itertuples()
                ],
            )
        )
    if len(found):
        cautions.append(
            Caution(
                "Some images without a lesion were given one (false positives, Dice 0).",
                [
                    f"{row.dataset}: {row.method} in {row.false_positives:g} image(s)"
                    for row in found.itertuples()
                ],
            )
        )
    return cautions


def _doctor(checks: list[dict[str, Any]]) -> list[Caution]:
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
