"""Which cases failed, and what the gallery of failures says of each."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd

from ultrarefiner.evaluation.subgroups import size_of
from ultrarefiner.report.tables import at_of, fixed

MISSED, FALSE_ALARM = "missed", "false alarm"


def coarse_of(rows: pd.DataFrame, reference: str) -> str:
    """Return the reference as it was applied in these rows: with its training set, if any."""
    names = sorted({name for name in rows["method"] if name.partition("@")[0] == reference})
    return names[0] if names else reference


def member_of(row: pd.Series) -> str:
    """Return who predicted a case, in words."""
    if row["member"] != "single":
        return f"ensemble {row['member']}"
    return f"fold {row['fold']}"


def outcome_of(row: pd.Series) -> str:
    """Return ``missed`` (no mask for a lesion), ``false alarm`` (the reverse), or nothing."""
    if row["empty_prediction"] and not row["empty_truth"]:
        return MISSED
    return FALSE_ALARM if row["empty_truth"] and not row["empty_prediction"] else ""


def failed_cases(rows: pd.DataFrame, count: int) -> Iterator[pd.Series]:
    """Yield the cases to show as failures, worst first, equal ones by name.

    All missed lesions and false alarms, and the ``count`` lesions of the lowest Dice. With a count
    of 0 there is none: the gallery is switched off.

    Args:
        rows: Scores of one method on one dataset.
        count: Lesions of the lowest Dice.
    """
    if not count:
        return
    outcome = rows.apply(outcome_of, axis=1)
    lesions = rows[~rows["empty_truth"]].sort_values(["dice", "case"])
    names = {*rows.loc[outcome.ne(""), "case"], *lesions["case"].head(count)}
    for _, row in rows[rows["case"].isin(names)].sort_values(["dice", "case"]).iterrows():
        yield row


def describe_failure(row: pd.Series, rows: pd.DataFrame, coarse: str) -> dict[str, Any]:
    """Return what the gallery shows, sorts and filters by.

    Args:
        row: The scores of the method by which the case was chosen.
        rows: Those of all methods on the dataset.
        coarse: The coarse method that the others start from.
    """
    at = at_of(str(row["method"]))
    mine = rows[rows["case"].eq(row["case"])]
    scores = {
        str(other["method"]).removesuffix(at): {
            "method": str(other["method"]),
            # An image without a lesion has no Dice: it is left empty, or it is a false alarm.
            "dice": None if other["empty_truth"] else float(other["dice"]),
            "hd95": None if other["empty_truth"] else float(other["hd95_px"]),
            "outcome": outcome_of(other),
            "oracle": bool(other["oracle"]),
            "seen": str(other["seen"]),
        }
        for _, other in mine.sort_values("method").iterrows()
    }
    empty = bool(row["empty_truth"])
    outcome = outcome_of(row)
    words = [str(row["case"]), *([str(row["label"])] if row["label"] else [])]
    dice = "" if empty else f"Dice {fixed(row['dice'])} "
    words += [f"{dice}({row['method']})", *([outcome] if outcome else [])]
    return {
        "dataset": str(row["dataset"]),
        "case": str(row["case"]),
        "label": str(row["label"]) or "unknown",
        "method": str(row["method"]),
        "reference": coarse,
        "member": member_of(row),
        "outcome": outcome,
        "area_share": float(row["area_share"]),
        "size": "no lesion" if empty else size_of(float(row["area_share"])),
        "overlay": "no" if row["overlay"] in ("", "none") else "yes",
        "border": str(row["border"]) or "unknown",
        "scores": scores,
        "caption": " · ".join(words),
    }
