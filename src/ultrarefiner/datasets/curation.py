"""Curation: a file that leaves cases out or corrects their class, with a reason for each."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from pydantic import Field, ValidationError, field_validator

from ultrarefiner.config import Section, explain
from ultrarefiner.datasets.base import (
    NO_LESION,
    Case,
    Listing,
    missing_mask,
    shorten,
    slug,
)
from ultrarefiner.errors import ConfigError

_CLASSES = {"benign", "malignant"}


class Exclusion(Section):
    """A case to leave out."""

    case: str = Field(description="Name of the image file without its suffix, or the case id.")
    reason: str = Field(description="Why.")

    @field_validator("case", "reason")
    @classmethod
    def _says_something(cls, value: str) -> str:
        if not slug(value):
            raise ValueError("a case needs a name, and a decision a reason, in words")
        return value.strip()


class Relabel(Exclusion):
    """A case of another class than the dataset says."""

    label: str = Field(description="Its class.")


class Curation(Section):
    """What a curation file holds."""

    exclude: list[Exclusion] = Field(default_factory=list, description="Cases to leave out.")
    relabel: list[Relabel] = Field(default_factory=list, description="Cases of another class.")


@dataclass(frozen=True)
class Decisions:
    """A curation file applied to the cases of a dataset.

    Attributes:
        excluded: Why, for each case id that is left out.
        labels: The new class of each case id that gets another one.
        notes: What to note with each of these: the old class, and why.
        problems: Lines for the user: what in the file does not fit the dataset.
    """

    excluded: dict[str, str] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def read_curation(path: str | Path) -> Curation:
    """Read a curation file.

    Raises:
        ConfigError: The file is absent, is no YAML, or has wrong or missing keys; lists them all.
    """
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(
            f"cannot read the curation file {path}: {error}. Check the path, and that the file is "
            "YAML."
        ) from None
    if values is None:
        values = {}
    if not isinstance(values, Mapping):
        raise ConfigError(
            f"{path}: a curation file has the keys `exclude` and `relabel`, each with a list of "
            "{case, reason}; see docs/how-to/curation.md."
        )
    try:
        return Curation.model_validate(dict(values))
    except ValidationError as error:
        lines = [explain(item, Curation).removeprefix("config: ") for item in error.errors()]
        raise ConfigError(
            f"{path}: {'; '.join(lines)}. Each decision is {{case: ..., reason: ...}}, and `label` "
            "with `relabel`; names that are numbers need quotes."
        ) from None


def decide(path: str | Path | None, cases: Sequence[Case]) -> Decisions:
    """Apply a curation file to the cases of a dataset.

    A relabel changes the class alone: whether an image counts as one without a lesion stays what
    its mask and the dataset say.

    Args:
        path: The file; None: nothing is decided.
        cases: Cases as `list_cases` gives them. A decision names one by the raw name of its image
            or by its id; case, blanks and brackets do not matter.

    Raises:
        ConfigError: The file cannot be read.
    """
    decisions = Decisions()
    if path is None:
        return decisions
    curation = read_curation(path)
    by_id = {case.id: case for case in cases}
    names = {slug(case.id): case.id for case in cases}
    # The raw name comes second, so that it wins where it reads like the id of another case.
    names |= {case.id.split("__", 1)[1]: case.id for case in cases}
    where: dict[str, list[str]] = {}
    for key, rows in (("exclude", curation.exclude), ("relabel", curation.relabel)):
        for row in rows:
            case = names.get(slug(row.case))
            if case is None:
                decisions.problems.append(f"{path}: {key}: {_unknown(row.case, by_id)}")
                continue
            where.setdefault(case, []).append(key)
            if key == "exclude":
                decisions.excluded[case] = row.reason
            else:
                _relabel(decisions, by_id[case], row, path, cases)
    for case, keys in where.items():
        if len(keys) > 1:
            decisions.problems.append(
                f"{path}: {case} is listed {len(keys)} times ({', '.join(keys)}); keep one decision"
            )
    return decisions


def open_problems(listing: Listing, decisions: Decisions) -> list[str]:
    """Return what remains to be mended: a case that is left out needs no mask."""
    settled = tuple(
        missing_mask(case.image, "").split(" is missing")[0]
        for case in listing.cases
        if case.id in decisions.excluded
    )
    lines = [line for line in listing.problems if not line.startswith(settled)]
    return lines + decisions.problems


def _unknown(name: str, cases: Mapping[str, Case]) -> str:
    known = {case.split("__", 1)[1]: case for case in cases}
    known |= {slug(case): case for case in cases}
    near = difflib.get_close_matches(slug(name), known, n=8, cutoff=0.6)
    found = list(dict.fromkeys(known[match] for match in near))[:3]
    hint = f"nearest: {', '.join(found)}" if found else f"cases are {shorten(list(cases), 3)}"
    return f"the dataset has no case '{name}'; {hint}: correct the name or remove the line"


def _relabel(
    decisions: Decisions, case: Case, row: Relabel, path: str | Path, cases: Sequence[Case]
) -> None:
    known = sorted(_CLASSES | {other.label for other in cases if other.label} - {NO_LESION})
    if row.label not in known:
        decisions.problems.append(
            f"{path}: relabel: '{row.label}' of {row.case} is no class of the dataset; classes are "
            f"{', '.join(known)}. An image that shows no lesion has a blank mask, or is excluded"
        )
    elif case.label == NO_LESION:
        decisions.problems.append(
            f"{path}: relabel: {row.case} is {NO_LESION}, without a lesion that could be "
            f"{row.label}; give it a mask in a folder of its class, or exclude it"
        )
    elif case.label == row.label:
        decisions.problems.append(
            f"{path}: relabel: {row.case} is {row.label} already; remove the line"
        )
    else:
        decisions.labels[case.id] = row.label
        decisions.notes[case.id] = f"relabelled from {case.label or 'unknown'}: {row.reason}"
