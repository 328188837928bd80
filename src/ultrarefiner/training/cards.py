"""What lies beside a model's weights: its card, the guard that relies on it, its threshold.

No torch: jobs that only read pictures need these too.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ultrarefiner.errors import LeakError, SplitError, UltraRefinerError, WeightsError
from ultrarefiner.io import read_json, write_json

FORMAT = 1
_KEYS = (
    "format",
    "architecture",
    "phase",
    "name",
    "dataset",
    "fold",
    "protocol",
    "config",
    "metrics",
    "selection",
    "trained_on",
    "selected_on",
    "parents",
    "weights_sha256",
    "licence",
    "versions",
    "fingerprint",
)


def write_card(path: str | Path, card: dict[str, Any]) -> None:
    """Write a checkpoint's card.

    Args:
        path: Where to, usually ``card.json`` beside the weights.
        card: Every key of the format but ``format`` itself.

    Raises:
        ValueError: A key is missing or unknown.
    """
    card = {"format": FORMAT, **card}
    if set(card) != set(_KEYS):
        raise ValueError(f"the card differs from its format in {sorted(set(card) ^ set(_KEYS))}")
    write_json(path, {key: card[key] for key in _KEYS})


def read_card(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint's card.

    Raises:
        WeightsError: The card is absent, damaged, or of another format.
    """
    cure = "Train the model again with this version."
    try:
        card = read_json(path)
    except UltraRefinerError as error:
        raise WeightsError(f"the model has no usable card: {error}") from error
    if not isinstance(card, dict) or card.get("format") != FORMAT:
        raise WeightsError(f"{path} is not a model card of format {FORMAT}. {cure}")
    missing = [key for key in _KEYS if key not in card]
    if missing:
        raise WeightsError(f"the model card {path} lacks {', '.join(missing)}. {cure}")
    return card


def _some(cases: list[str]) -> str:
    rest = f" and {len(cases) - 10} more" if len(cases) > 10 else ""
    return ", ".join(cases[:10]) + rest


def check_leak(card: dict[str, Any], test_cases: Iterable[str], allow_selected: bool) -> None:
    """Refuse to apply a model to cases that it has seen.

    Args:
        card: Card of the model.
        test_cases: Case ids that the model is about to be scored on.
        allow_selected: Whether the model may have been selected on them: only under the protocol
            ``seed``, whose results are labelled "selected on the reported fold".

    Raises:
        LeakError: The model was trained, or selected, on some of the cases; it names the first ten.
    """
    test = set(test_cases)
    seen = {"trained": sorted(test & set(card["trained_on"]))}
    if not allow_selected:
        seen["selected"] = sorted(test & set(card["selected_on"]))
    model = f"the model {card['dataset']}/{card['name']} of fold {card['fold']}"
    for how, cases in seen.items():
        if cases:
            raise LeakError(
                f"{model} was {how} on {len(cases)} of the {len(test)} cases that it is to be "
                f"scored on: {_some(cases)}. Use the model of the fold whose test cases these are, "
                "or train it again with the present splits.csv."
            )


def check_fold(card: dict[str, Any], fold: int | None) -> None:
    """Refuse a model of another fold than the one that it is taken for.

    Args:
        card: Card of the model.
        fold: Fold that its results will be filed under; None: under no fold.

    Raises:
        SplitError: The card is of another fold.
    """
    if fold is not None and card["fold"] != fold:
        raise SplitError(
            f"the model {card['dataset']}/{card['name']} is of fold {card['fold']}, and fold {fold} "
            "was asked for. Give the model of that fold."
        )


def read_threshold(path: str | Path) -> float:
    """Return the threshold that ``choose_threshold`` wrote.

    Raises:
        UltraRefinerError: The file is absent or holds none.
    """
    content = read_json(path)
    value = content.get("threshold") if isinstance(content, dict) else None
    if not isinstance(value, float | int) or not 0 < value < 1:
        raise UltraRefinerError(f"{path} holds no threshold. Delete it and run again.")
    return float(value)
