"""Parts: which cases of a dataset, and which of the folds' models predict them.

A part is a folder name on the shelf, so that every rule works on any of them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from ultrarefiner.datasets.splits import ROLES, read_split
from ultrarefiner.errors import SplitError
from ultrarefiner.io import read_rows

HELD_BACK = ("holdout", "unseen")
"""Sets of cases that belong to no fold, which the models of all folds predict."""

_PART = re.compile(
    r"fold(?P<fold>\d+)|(?P<cases>holdout|unseen)(-(fold(?P<model>\d+)|(?P<joint>mean|vote)))?"
)


@dataclass(frozen=True)
class Part:
    """A part of a dataset's predictions.

    Attributes:
        name: `fold2`; `holdout-fold2`, `holdout-mean`, `holdout-vote`; the same with `unseen`;
            `holdout` and `unseen` alone mean the cases, whoever predicts them.
        evaluation: What is evaluated: "folds", "holdout" or "unseen".
        member: Who predicts: "single" (the model of a fold), or the ensemble "mean" or "vote".
        fold: Fold of the model; None for an ensemble.
    """

    name: str
    evaluation: str
    member: str = "single"
    fold: int | None = None

    @property
    def cases(self) -> str:
        """The part that stands for the same cases, whoever predicts them."""
        return self.name if self.evaluation == "folds" else self.evaluation


def parse_part(name: str) -> Part:
    """Return the part that a name on the shelf stands for.

    Raises:
        SplitError: The name is none of a part.
    """
    match = _PART.fullmatch(name)
    if match is None:
        raise SplitError(
            f"'{name}' is no part of a dataset; parts are fold0, holdout-fold0, holdout-mean, "
            "holdout-vote, and the same with unseen"
        )
    if match["fold"]:
        return Part(name, "folds", fold=int(match["fold"]))
    fold = None if match["model"] is None else int(match["model"])
    return Part(name, match["cases"], match["joint"] or "single", fold)


def read_part(path: str | Path, part: str) -> list[str]:
    """Return the cases of a part.

    Args:
        path: ``splits.csv`` for the parts of folds and the hold-out, ``unseen.csv`` for the others.
        part: Name of the part.

    Returns:
        Case ids, sorted.

    Raises:
        SplitError: The table has no such fold, or no case of the part.
    """
    wanted = parse_part(part)
    if wanted.evaluation == "folds":
        return read_split(path, wanted.fold)["test"]
    cases = sorted({row["case"] for row in read_rows(path) if row["role"] == wanted.evaluation})
    if not cases:
        raise SplitError(
            f"{path} has no case of role '{wanted.evaluation}'. Delete it and run again, or "
            + (
                "set `splits.holdout`."
                if wanted.evaluation == "holdout"
                else "leave the dataset out of the cross tests: all its images are in the others."
            )
        )
    return cases


def exported_roles(table: str | Path, part: str) -> dict[str, str]:
    """Return the role of each case of a part that can be exported; of two the one that is scored.

    Args:
        table: Table of the part, as ``read_part`` takes it.
        part: ``fold0`` and so on, or ``unseen``.

    Raises:
        SplitError: The part is another one, or the table does not have it.
    """
    wanted = parse_part(part)
    if part == "unseen":
        return dict.fromkeys(read_part(table, part), "unseen")
    if wanted.evaluation != "folds":
        raise SplitError(f"'{part}' cannot be exported; parts to export are fold0, ... and unseen")
    split = read_split(table, wanted.fold)
    return {case: role for role in ROLES for case in split[role]}
