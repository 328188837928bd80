"""Fits: the cases that a finetuned model trains and selects on.

A fit is a folder name on the shelf: ``fold0`` and so on, or ``all`` for the one model that may be
applied to other datasets only.
"""

from __future__ import annotations

import re
from pathlib import Path

from ultrarefiner.datasets.splits import read_split
from ultrarefiner.errors import SplitError

ALL = "all"
"""Name of the fit that trains on every fold."""


def read_fit(splits: str | Path, fit: str) -> dict[str, list[str]]:
    """Return the cases of a fit.

    ``fold2`` trains and validates on what fold 2 does. ``all`` trains on the training and test
    cases of fold 0 and validates on its validation cases: together every case but the holdout,
    and in a union but for what fold 0 leaves out because it shares an image with another case.

    Args:
        splits: ``splits.csv`` of the trainset.
        fit: ``fold0`` and so on, or ``all``.

    Returns:
        Sorted case ids of "train", "validation" and "reported": those on which results of the fit
        will be reported and that nobody who has a part in its making may have seen. With
        ``protocol: seed``, test cases that the fold validates on are "validation" only.

    Raises:
        SplitError: The name is none of a fit, the table has no such fold, or the fold has no
            training or validation cases.
    """
    match = re.fullmatch(r"fold(\d+)|all", fit)
    if match is None:
        raise SplitError(f"'{fit}' is no fit; fits are fold0, fold1, ... and all")
    roles = {role: set(cases) for role, cases in read_split(splits, int(match[1] or 0)).items()}
    parts = {"train": roles["train"], "validation": roles["validation"]}
    tested = roles["test"] - roles["validation"]
    if fit == ALL:
        parts |= {"train": roles["train"] | tested, "reported": roles["holdout"]}
    else:
        parts["reported"] = tested | roles["holdout"]
    for role in ("train", "validation"):
        if not parts[role]:
            raise SplitError(
                f"{splits}: the fit {fit} has no {role} cases. Use fewer `splits.folds` or another "
                "`splits.validation`, delete the file, and run again."
            )
    return {role: sorted(cases) for role, cases in parts.items()}
