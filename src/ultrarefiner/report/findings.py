"""The report's findings in words, computed from the tables."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import pandas as pd

from ultrarefiner.report.book import Data
from ultrarefiner.report.failures import coarse_of
from ultrarefiner.report.results import quoted_p
from ultrarefiner.report.tables import (
    FOOTNOTES,
    MARKS,
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
        reference: The coarse method that it starts from.
        method: The refined method, with the mark of weights that saw the dataset.
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

    The method named is the refined one, never an oracle, with the highest mean Dice among those
    that start from the models of one training set: the dataset's own or, where no model was
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
    refined = compared[compared["method"].map(kinds).eq("refined")]
    coarse = _best(compared[compared["method"].map(kinds).eq("coarse")])
    alone = _alone(data, name, evaluation, at)
    if len(refined):
        fresh = refined[refined["seen"].ne("yes")]
        chosen = fresh if len(fresh) else refined
        best = _best(chosen)
        finding = _finding(name, evaluation, best, len(chosen), len(refined))
        finding = replace(finding, sentence=finding.sentence + alone)
        return _with_coarse(finding, coarse, max(best["mean_method"], best["mean_reference"]))
    mine = with_lesion(rows[rows["method"].eq(reference)])
    mean = fixed(mine["dice"].mean())
    if mine.empty:
        sentence = f"No image of {name} has a lesion, so there is no Dice: see the specificity."
        return Finding(name, evaluation, "none", mean, "", reference, reference, "", sentence)
    sentence = (
        f"{reference} reaches a mean Dice of {mean} on {name} ({len(mine)} cases); no refined "
        f"method without oracle prompts was compared with it.{alone}"
    )
    finding = Finding(name, evaluation, "none", mean, "", reference, reference, "", sentence)
    return _with_coarse(finding, coarse, mine["dice"].mean())


def _alone(data: Data, name: str, evaluation: str, at: str) -> str:
    """Return which refined methods are not among those compared, as no ensemble stands for them."""
    numbers = data.numbers(name, evaluation)
    rows = data.scores[data.scores["dataset"].eq(name) & data.scores["evaluation"].eq(evaluation)]
    names = sorted(
        method
        for method in set(rows.loc[rows["kind"].eq("refined"), "method"])
        if at_of(method) == at and numbers.only_singles(method)
    )
    if not names:
        return ""
    return (
        f" Not compared here: {', '.join(names)}, with a model for each fold and none for all "
        f"together; see “Model by model” on the page of {name}."
    )


def _best(compared: pd.DataFrame) -> pd.Series | None:
    """Return the comparison of the highest mean Dice, the first by name of equal ones."""
    order = compared.sort_values(["mean_method", "method"], ascending=[False, True])
    return order.iloc[0] if len(order) else None


def _with_coarse(finding: Finding, coarse: pd.Series | None, mean: float) -> Finding:
    """Add that a coarse method is better than all that, where one is."""
    if coarse is None or not coarse["mean_method"] > mean:
        return finding
    p, _ = quoted_p(coarse)
    more = (
        f" Higher than that, without refining: {coarse['method']} with "
        f"{fixed(coarse['mean_method'])} (against {coarse['reference']} "
        f"{signed(coarse['mean_difference'])}, 95 % CI {fixed(coarse['ci_low'])} to "
        f"{fixed(coarse['ci_high'])}, Holm p {_equals(p)})."
    )
    return replace(finding, sentence=finding.sentence + more)


def _finding(name: str, evaluation: str, row: pd.Series, tried: int, known: int) -> Finding:
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
    subject = f"Refining {row['reference']} with {method}"
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
    if row["seen"] in MARKS:
        sentence += f" {FOOTNOTES[MARKS[row['seen']]]}"
    if tried > 1:
        sentence += (
            f" It is the best of {tried} refined methods that start from {row['reference']}, on "
            "these same cases."
        )
    if tried < known:
        sentence += " Weights that were trained on this dataset (†) were left out of the choice."
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
