"""Predictions of cases by models that have not seen them, for refiners to learn from.

The models are trained by ``train_coarse`` on the inner folds that ``split_inner`` made.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ultrarefiner import images
from ultrarefiner.datasets.splits import read_split
from ultrarefiner.errors import LeakError, UltraRefinerError, first_names
from ultrarefiner.io import atomic_directory
from ultrarefiner.models.cards import check_fold, check_leak, read_card, upstream
from ultrarefiner.training.data import Prepared
from ultrarefiner.training.prediction import segment_cases
from ultrarefiner.training.segmenter import open_segmenter

log = logging.getLogger(__name__)


def predict_inner(
    model: str | Path,
    card: str | Path,
    prepared: Prepared,
    splits: str | Path,
    fold: int,
    flips: bool,
    output: str | Path,
    device: str = "auto",
) -> None:
    """Write probabilities of an inner fold's test cases, at original size.

    Args:
        model: Weights that ``train_coarse`` wrote for the inner fold.
        card: Their card.
        prepared: Folder ``{dataset}/prepared``, or those of all datasets of the trainset.
        splits: Table that ``split_inner`` wrote.
        fold: Inner fold.
        flips: Take the mean of the probabilities of the image and its three flips.
        output: Folder to write, {case}.png of probability x 255.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.

    Raises:
        LeakError: The model has seen some of the cases, or cases that are in no inner fold.
        SplitError: The fold is not in the table, or the model is another fold's.
        WeightsError: The model is absent, damaged, or another's.
    """
    segmenter = open_segmenter(model, card, device)
    facts = segmenter.card
    check_fold(facts, fold)
    roles = read_split(splits, fold)
    check_leak(facts, roles["test"], allow_selected=False)
    inside = {case for cases in roles.values() for case in cases}
    outside = sorted({*facts["trained_on"], *facts["selected_on"]} - inside)
    if outside:
        # A model of another outer fold would have the same name and number.
        raise LeakError(
            f"{card}: the model has seen {len(outside)} cases that are in no inner fold of "
            f"{splits}: {first_names(outside)}. Train it again with that table."
        )
    with atomic_directory(output) as folder:
        for case, one, _ in segment_cases(segmenter, prepared, roles["test"], flips):
            images.write_probability(folder / f"{case}.png", one.probability)
    log.info("%s, inner fold %d: %d predictions", facts["name"], fold, len(roles["test"]))


@dataclass(frozen=True)
class PredictionSource:
    """Predictions of one model.

    Attributes:
        card: Card of the model.
        probabilities: Folder that ``predict_inner`` wrote with it.
    """

    card: Path
    probabilities: Path


@dataclass(frozen=True)
class InnerPredictions:
    """Where the predictions of cases are, and who made them.

    Attributes:
        files: For each case its probability, a PNG that ``images.read_probability`` reads.
        cards: For each case the card of the model that made it.
        provenance: One entry for each model, ready for the list ``models`` of a card's
            ``sources``: see ``upstream``. Its fold is the inner one, and ``predicted`` the wanted
            cases that it predicted.
    """

    files: dict[str, Path]
    cards: dict[str, Path]
    provenance: list[dict[str, Any]]


def read_inner_predictions(
    sources: Sequence[PredictionSource],
    cases: Iterable[str],
    forbidden: Iterable[str],
    groups: Mapping[str, str] | None = None,
) -> InnerPredictions:
    """Find the one prediction of each case, and make sure that its model had not seen the case.

    Args:
        sources: Predictions of the models of all inner folds.
        cases: The wanted cases.
        forbidden: Cases that no model may have seen: the outer fold's test and holdout cases.
        groups: Group of each case (``read_groups``): then no model may have seen others of the
            groups of the cases that it predicts, nor of the forbidden ones.

    Raises:
        LeakError: A model was trained or selected on what it predicts, or on forbidden cases.
        UltraRefinerError: A case has no prediction, or several.
        WeightsError: A card is absent or damaged.
    """
    wanted, closed = sorted(set(cases)), sorted(set(forbidden))
    files: dict[str, Path] = {}
    cards: dict[str, Path] = {}
    provenance: list[dict[str, Any]] = []
    for source in sources:
        facts = read_card(source.card)
        made = {path.stem: path for path in Path(source.probabilities).glob("*.png")}
        predicted = [case for case in wanted if case in made]
        _check_unseen(facts, predicted, "it predicts", source, groups)
        _check_unseen(facts, closed, "the outer fold reports on", source, groups)
        twice = [case for case in predicted if case in files]
        if twice:
            raise UltraRefinerError(
                f"{len(twice)} cases are predicted twice, in {files[twice[0]].parent} and in "
                f"{source.probabilities}: {first_names(twice)}. Delete both folders and run again."
            )
        files |= {case: made[case] for case in predicted}
        cards |= {case: Path(source.card) for case in predicted}
        provenance += upstream(facts, predicted)
    missing = [case for case in wanted if case not in files]
    if missing:
        folders = ", ".join(str(source.probabilities) for source in sources) or "no folder"
        raise UltraRefinerError(
            f"{len(missing)} of {len(wanted)} cases have no prediction in {folders}: "
            f"{first_names(missing)}. Delete the folders of inner folds and run again."
        )
    return InnerPredictions(files, cards, provenance)


def _check_unseen(
    facts: Mapping[str, Any],
    cases: Sequence[str],
    whose: str,
    source: PredictionSource,
    groups: Mapping[str, str] | None,
) -> None:
    def key(case: str) -> tuple[str, str]:
        return ("case", case) if groups is None or case not in groups else ("group", groups[case])

    for verb, seen in (("trained", "trained_on"), ("selected", "selected_on")):
        known = {key(case) for case in facts[seen]}
        leaked = [case for case in cases if key(case) in known]
        if leaked:
            raise LeakError(
                f"{source.card}: the model {facts['dataset']}/{facts['name']} of inner fold "
                f"{facts['fold']} was {verb} on {len(leaked)} of the cases that {whose}, or on others "
                f"of their groups: {first_names(leaked)}. Delete the inner folds' splits.csv and models, "
                "and run again."
            )
