"""The report's findings in words, computed from the tables."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import pandas as pd

from ultrarefiner.report.book import Data
from ultrarefiner.report.failures import coarse_of
from ultrarefiner.report.results import quoted_p
from ultrarefiner.report.tables import (
    FOOTNOTES,
    GUARDED,
    MARKS,
    REFINING,
    Method,
    at_of,
    evaluations_of,
    fixed,
    main_rows,
    p_value,
    signed,
    with_lesion,
)

_ALPHA = 0.05


@dataclass(frozen=True)
class Finding:
    """What refinement did on one dataset.

    Attributes:
        dataset: The dataset.
        evaluation: ``folds``, ``holdout`` or ``unseen``.
        verdict: ``better``, ``worse``, ``unclear`` or ``none`` (nothing was refined).
        before: Mean Dice of the reference, as text.
        after: Mean Dice of the leading refined method, as text.
        reference: The coarse method that it starts from, or is compared with.
        method: That refined method, with the mark of weights that saw the dataset.
        difference: The paired difference, as text.
        sentence: All of it as one sentence.
    """

    dataset: str
    evaluation: str
    verdict: str
    before: str
    after: str
    reference: str
    method: str
    difference: str
    sentence: str


def find(data: Data) -> list[Finding]:
    """Return one finding for each dataset: from its folds, or from all its cases if unseen.

    The method named is the one that refines, never an oracle, with the highest mean Dice among
    those with models of one training set: the dataset's own or, where no model was
    trained on it, the first by name. One whose weights were trained on the dataset is named only
    where there is no other. Where a coarse model of that training set is better, that is said too.
    """
    return [_find_on(data, name) for name in data.datasets]


def _find_on(data: Data, name: str) -> Finding:
    evaluation = evaluations_of(data.scores, name)[0]
    rows = main_rows(data.scores, name)
    reference = coarse_of(rows, data.reference)
    at = at_of(reference)
    kinds = dict(rows[["method", "kind"]].drop_duplicates().itertuples(index=False))
    compared = data.comparisons
    compared = compared[
        compared["dataset"].eq(name)
        & compared["evaluation"].eq(evaluation)
        & compared["metric"].eq("dice")
        & compared["reference"].eq(reference)
        & ~compared["oracle"]
        & compared["method"].map(at_of).eq(at)
    ]
    refined = compared[compared["method"].map(kinds).isin(REFINING)]
    coarse = _best(compared[compared["method"].map(kinds).isin(["coarse", "inner"])])
    if len(refined):
        fresh = refined[refined["seen"].ne("yes")]
        chosen = fresh if len(fresh) else refined
        best = _best(chosen)
        finding = _finding(name, evaluation, best, kinds[best["method"]])
        more = _choice(chosen, kinds, left_out=len(chosen) < len(refined))
        finding = replace(finding, sentence=finding.sentence + more)
        most = max(best["mean_method"], best["mean_reference"])
        return _with_coarse(finding, coarse, kinds, most)
    mine = with_lesion(rows[rows["method"].eq(reference)])
    mean = fixed(mine["dice"].mean())
    if mine.empty:
        sentence = f"No image of {name} has a lesion, so there is no Dice: see the specificity."
        return Finding(name, evaluation, "none", mean, "", reference, reference, "", sentence)
    sentence = (
        f"{reference} reaches a mean Dice of {mean} on {name} ({len(mine)} cases); no refined "
        "method without oracle prompts was compared with it."
    )
    finding = Finding(name, evaluation, "none", mean, "", reference, reference, "", sentence)
    return _with_coarse(finding, coarse, kinds, mine["dice"].mean())


def _best(compared: pd.DataFrame) -> pd.Series | None:
    """Return the comparison of the highest mean Dice, the first by name of equal ones."""
    # Without the training set: a guard that left all masks as they are comes after its method.
    named = compared.assign(base=[name.partition("@")[0] for name in compared["method"]])
    order = named.sort_values(["mean_method", "base", "method"], ascending=[False, True, True])
    return order.iloc[0] if len(order) else None


def _with_coarse(
    finding: Finding, coarse: pd.Series | None, kinds: Mapping[str, str], mean: float
) -> Finding:
    """Add that a coarse method is better than all that, where one is."""
    if coarse is None or not coarse["mean_method"] > mean:
        return finding
    p, _ = quoted_p(coarse)
    inner = kinds[coarse["method"]] == "inner"
    inside = f" (the coarse model inside {coarse['method'].partition('-')[0]})" if inner else ""
    more = (
        f" Higher than that, without refining: {coarse['method']}{inside} with "
        f"{fixed(coarse['mean_method'])} (against {coarse['reference']} "
        f"{signed(coarse['mean_difference'])}, 95 % CI {fixed(coarse['ci_low'])} to "
        f"{fixed(coarse['ci_high'])}, Holm p {_equals(p)})."
    )
    return replace(finding, sentence=finding.sentence + more)


def _choice(chosen: pd.DataFrame, kinds: Mapping[str, str], left_out: bool) -> str:
    """Return what the method named was chosen from.

    Args:
        chosen: The comparisons of all methods that it was chosen from.
        kinds: Kind of each method.
        left_out: Whether others were not, for their weights saw the dataset.
    """
    text = ""
    if len(chosen) > 1:
        methods = [Method(name, kinds[name]) for name in chosen["method"]]
        joint = [method for method in methods if method.kind == "end_to_end"]
        # The highest of many is a little too high, whatever the many differ in.
        variants = {
            "a tuned threshold": any(method.base.endswith("-tuned") for method in joint),
            "a guard": any(method.base.endswith(GUARDED) for method in methods),
        }
        varied = " or ".join(words for words, there in variants.items() if there)
        among = f" (those with {varied} counted)" if varied else ""
        reference = chosen["reference"].iloc[0]
        text = f" It is the best of {len(chosen)} refined methods{among} that "
        if joint:
            text = f" It is the best of {len(chosen)} refined and end-to-end methods{among} that "
        text += (
            f"{'are compared with' if joint else 'start from'} {reference}, on these same cases."
        )
    if left_out:
        text += " Weights that were trained on this dataset (†) were left out of the choice."
    return text


def _finding(name: str, evaluation: str, row: pd.Series, kind: str) -> Finding:
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
    method = f"{row['method']} {MARKS.get(row['seen'], '')}".strip()
    joint = kind == "end_to_end"
    subject = f"Refining {row['reference']} with {method}"
    if excludes and rejects:
        verb = "raised" if up else "lowered"
        sentence = f"{subject} {verb} mean Dice on {name} from {before} to {after} ({numbers})."
        if joint:
            sentence = (
                f"{method}, trained end to end, has a {'higher' if up else 'lower'} mean Dice on "
                f"{name} than {row['reference']}: {after} against {before} ({numbers})."
            )
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
        if joint:
            sentence = (
                f"{method}, trained end to end, is not clearly better or worse on {name} than "
                f"{row['reference']}: mean Dice {after} against {before} ({numbers}); {why}."
            )
    if row["seen"] in MARKS:
        sentence += f" {FOOTNOTES[MARKS[row['seen']]]}"
    return Finding(
        name,
        evaluation,
        verdict,
        before,
        after,
        str(row["reference"]),
        method,
        f"{signed(row['mean_difference'])} [{fixed(low)}, {fixed(high)}]",
        sentence,
    )


def _equals(p: float) -> str:
    text = p_value(p)
    return text if text.startswith(("<", "–")) else f"= {text}"
