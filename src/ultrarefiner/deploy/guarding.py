"""The choice of a guard: when a fold's refined masks give way to its coarse ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ultrarefiner.config import GuardConfig, load_config
from ultrarefiner.datasets.splits import read_split
from ultrarefiner.deploy.bundle import bundle_of_run
from ultrarefiner.deploy.pipeline import open_method
from ultrarefiner.models.cards import check_leak, read_card
from ultrarefiner.refine.guard import candidate_rules, choose_rule
from ultrarefiner.refine.guard_jobs import write_rule
from ultrarefiner.training.data import Prepared, PreparedCases


def choose_guard(
    run: str | Path,
    study: Mapping[str, Any],
    method: str,
    reference: str,
    trainset: str,
    fold: int,
    guard: Mapping[str, Any],
    prepared: Prepared,
    splits: str | Path,
    output: str | Path,
    device: str = "auto",
) -> None:
    """Write the rule of the highest mean Dice over a fold's validation cases.

    Args:
        run: Folder of the run.
        study: The whole configuration of the study as a dict.
        method: The refined or end-to-end method.
        reference: The coarse model that it gives way to.
        trainset: What the models were trained on.
        fold: Outer fold.
        guard: The ``GuardConfig`` as a dict.
        prepared: Folder ``{dataset}/prepared``, or those of all datasets of the trainset.
        splits: ``splits.csv`` of the trainset.
        output: JSON to write; see ``write_rule``.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.

    Raises:
        LeakError: A model was trained on validation cases, which would say nothing.
        WeightsError: A model is absent, damaged, or another's.
    """
    run, config = Path(run), load_config(study)
    cases = read_split(splits, fold)["validation"]
    coarse, refined = (
        bundle_of_run(run.parent, run.name, name, trainset, fold, config)
        for name in (reference, method)
    )
    cards = [read_card(one.path(of.card)) for one in (coarse, refined) for of in one.members]
    for card in cards:
        check_leak(card, cases, allow_selected=True)
    before, after = open_method(coarse, device), open_method(refined, device)
    source = PreparedCases(prepared)

    def masks() -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        for case in cases:
            image, label = source.read(case)
            yield before.predict(image, case).mask, after.predict(image, case).mask, label == 1

    choice = choose_rule(masks(), candidate_rules(GuardConfig.model_validate(dict(guard))))
    write_rule(output, choice, cases, cards[-1]["selection"])
