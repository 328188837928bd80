"""The guard's files and its job: rules as JSON, guarded masks of a part. No torch."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ultrarefiner.datasets.parts import parse_part, read_part
from ultrarefiner.errors import LeakError, SplitError, UltraRefinerError, first_names
from ultrarefiner.images import read_mask, write_mask
from ultrarefiner.io import atomic_directory, read_json, write_json, write_rows
from ultrarefiner.prompts.records import require_files
from ultrarefiner.refine.guard import Choice, Guarded, GuardRule, guard_mask, joint_rule

logger = logging.getLogger(__name__)

GUARD_COLUMNS = ["case", "verdict", "iou", "area_ratio", "components"]
"""Columns of the table beside guarded masks; an empty area ratio: the coarse mask is empty."""

_CURE = "Run the job that writes this folder again."


@dataclass(frozen=True)
class RuleFile:
    """What a rule file holds.

    Attributes:
        rule: The rule.
        dice: Mean Dice with it over the cases with a lesion; None without such a case, as the next.
        dice_off: Mean Dice of the refined masks as they are.
        cases: Cases with a lesion.
        selection: What it was chosen on, in words: ``validation`` or ``reported fold``.
        candidates: Among how many rules it was chosen.
        chosen_on: Ids of all cases that it was chosen on, sorted.
    """

    rule: GuardRule
    dice: float | None
    dice_off: float | None
    cases: int
    selection: str
    candidates: int
    chosen_on: list[str]


def write_rule(path: str | Path, choice: Choice, chosen_on: Iterable[str], selection: str) -> None:
    """Write the rule that was chosen.

    Args:
        path: JSON to write, keys as ``RuleFile`` has them.
        choice: What ``choose_rule`` gave.
        chosen_on: Ids of all cases that it was given, those without a lesion too.
        selection: ``validation``, or ``reported fold`` under the protocol ``seed``.
    """
    if not choice.cases:
        logger.warning("no case with a lesion to choose by; the gentlest rule is taken")
    content = RuleFile(
        rule=choice.rule,
        dice=choice.dice,
        dice_off=choice.dice_off,
        cases=choice.cases,
        selection=selection,
        candidates=len(choice.table),
        chosen_on=sorted(chosen_on),
    )
    write_json(path, asdict(content))
    if choice.cases:
        logger.info(
            "%s: Dice %.4f, %.4f without, over %d cases",
            _words(choice.rule),
            choice.dice,
            choice.dice_off,
            choice.cases,
        )


def read_rule(path: str | Path) -> RuleFile:
    """Read a rule that ``write_rule`` wrote.

    Raises:
        UltraRefinerError: The file is absent, damaged, or holds no such rule.
    """
    content = read_json(path)
    try:
        return _rule_file(content)
    except (TypeError, ValueError) as error:
        raise UltraRefinerError(
            f"{path} holds no rule of a guard: {error}. Delete it and run again."
        ) from error


def _rule_file(content: Any) -> RuleFile:
    keys = {field.name for field in fields(RuleFile)}
    if not isinstance(content, dict) or set(content) != keys:
        raise ValueError(f"its keys have to be {', '.join(sorted(keys))}")
    rule, chosen_on = content["rule"], content["chosen_on"]
    limits = {field.name for field in fields(GuardRule)}
    if not isinstance(rule, dict) or set(rule) != limits:
        raise ValueError(f"the keys of `rule` have to be {', '.join(sorted(limits))}")
    if not isinstance(chosen_on, list) or not all(isinstance(case, str) for case in chosen_on):
        raise ValueError("`chosen_on` is no list of case ids")
    ratio = rule["area_ratio"]
    rule = rule | {"area_ratio": tuple(ratio) if isinstance(ratio, list) else ratio}
    return RuleFile(**content | {"rule": GuardRule(**rule)})


def guard_masks(
    rules: Sequence[str | Path],
    coarse_masks: str | Path,
    refined_masks: str | Path,
    splits: str | Path,
    part: str,
    output: str | Path,
    table: str | Path,
    protocol: str = "nested",
) -> None:
    """Write the guarded masks of a part; see ``guard_mask``.

    Args:
        rules: Rule file of the part's fold; for a part of an ensemble those of all folds, which
            ``joint_rule`` joins.
        coarse_masks: Folder of the masks {case}.png that the refined ones were made from.
        refined_masks: Folder of refined masks {case}.png.
        splits: Table that ``read_part`` takes for the part.
        part: Part of the dataset, such as ``fold0`` or ``holdout-mean``.
        output: Folder to write, {case}.png of 0 and 255; whole or absent.
        table: CSV to write, columns ``GUARD_COLUMNS``.
        protocol: ``nested`` or ``seed``; under ``seed`` the rule of a fold may have been chosen on
            the test cases of that fold.

    Raises:
        LeakError: A rule was chosen on cases of the part.
        SplitError: The part is not in the table, or is of one fold and has several rules.
        UltraRefinerError: A rule or a mask is absent or damaged, or two masks of a case differ in
            size.
        OutputError: The outputs cannot be written.
    """
    wanted = parse_part(part)
    if wanted.fold is not None and len(rules) != 1:
        raise SplitError(
            f"{part} is of one fold, and {len(rules)} rules were given for it: "
            f"{', '.join(map(str, rules))}. Give the rule of fold {wanted.fold}."
        )
    names = read_part(splits, part)
    files = [read_rule(path) for path in rules]
    if not (protocol == "seed" and wanted.evaluation == "folds"):
        for path, file in zip(rules, files, strict=True):
            _refuse_chosen(path, file, part, names)
    for folder, what in ((coarse_masks, "coarse mask"), (refined_masks, "refined mask")):
        require_files(folder, names, what, _CURE)
    rule = joint_rule([file.rule for file in files])
    rows = []
    with atomic_directory(output) as folder:
        for case in names:
            one = _guard(rule, coarse_masks, refined_masks, case)
            write_mask(folder / f"{case}.png", one.mask)
            rows.append(_row(case, one))
    write_rows(table, GUARD_COLUMNS, rows)
    counts = Counter(row["verdict"] for row in rows)
    found = ", ".join(f"{count} {verdict}" for verdict, count in sorted(counts.items()))
    logger.info("%s, %d cases of %s: %s", _words(rule), len(names), part, found)


def _refuse_chosen(path: str | Path, file: RuleFile, part: str, names: Sequence[str]) -> None:
    met = sorted(set(names) & set(file.chosen_on))
    if met:
        raise LeakError(
            f"the rule {path} was chosen on {len(met)} of the {len(names)} cases of {part}: "
            f"{first_names(met)}. Use the rule of the fold whose test cases these are, or choose "
            "it again with the present splits.csv."
        )


def _guard(
    rule: GuardRule, coarse_masks: str | Path, refined_masks: str | Path, case: str
) -> Guarded:
    paths = [Path(folder) / f"{case}.png" for folder in (coarse_masks, refined_masks)]
    coarse, refined = map(read_mask, paths)
    if coarse.shape != refined.shape:
        raise UltraRefinerError(
            f"{paths[1]} has {refined.shape[0]} x {refined.shape[1]} pixels and {paths[0]} has "
            f"{coarse.shape[0]} x {coarse.shape[1]}. Delete both folders and run again."
        )
    return guard_mask(coarse, refined, rule)


def _row(case: str, one: Guarded) -> dict[str, Any]:
    ratio = one.compared.area_ratio
    return {
        "case": case,
        "verdict": one.verdict,
        "iou": one.compared.iou,
        "area_ratio": "" if ratio is None else ratio,
        "components": one.compared.components,
    }


def _words(rule: GuardRule) -> str:
    on = {key: value for key, value in asdict(rule).items() if value is not None}
    return "guard " + (", ".join(f"{key} {value}" for key, value in on.items()) or "off")
