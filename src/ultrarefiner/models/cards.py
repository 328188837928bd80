"""What lies beside a model's weights: its card, the guard that relies on it, its threshold.

No torch: jobs that only read pictures need these too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ultrarefiner.errors import LeakError, SplitError, UltraRefinerError, WeightsError, first_names
from ultrarefiner.io import file_sha256, read_json, write_json

FORMAT = 1
CARD = "card.json"
"""Name of a card, beside the weights."""
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
_SOURCES = "sources"
_UPSTREAM = ("name", "dataset", "fold", "weights_sha256", "trained_on", "selected_on")


def write_card(path: str | Path, card: dict[str, Any]) -> None:
    """Write a checkpoint's card.

    Args:
        path: Where to, usually ``card.json`` beside the weights.
        card: Every key of the format but ``format`` itself. ``sources`` may be left out; its lists
            ``models`` (who predicted what the model learned from) and ``parents`` (the models that
            it began as) have entries as ``upstream`` makes them.

    Raises:
        ValueError: A key is missing or unknown.
    """
    card = {"format": FORMAT, **card}
    if wrong := (set(card) ^ set(_KEYS)) - {_SOURCES}:
        raise ValueError(f"the card differs from its format in {sorted(wrong)}")
    write_json(path, {key: card[key] for key in (*_KEYS, _SOURCES) if key in card})


def upstream(card: dict[str, Any], predicted: Iterable[str] = ()) -> list[dict[str, Any]]:
    """Return what the card of a later model keeps of a model that had a part in its making.

    Args:
        card: Card of the earlier model.
        predicted: Cases whose predictions by it the later model learned from.

    Returns:
        An entry for the model, then those of the models behind it.
    """
    entry = {key: card[key] for key in _UPSTREAM} | {"predicted": sorted(predicted)}
    return [entry, *(one for _, one in _behind(card))]


def _behind(card: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the models behind a model, each led by how it came to be so."""
    sources = card.get(_SOURCES) or {}
    for kind, words in (("models", "learned from inner predictions of"), ("parents", "comes from")):
        for entry in sources.get(kind) or []:
            yield words, entry


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


def card_beside(weights: str | Path | None) -> dict[str, Any] | None:
    """Return the card of a weights file that this project trained; None for any other file.

    A card counts if it lies beside the file and names its bytes.

    Args:
        weights: Path of the file; a name of published weights has no card.
    """
    if weights is None:
        return None
    path = Path(weights)
    beside = path.with_name(CARD)
    if not path.is_file() or not beside.is_file():
        return None
    card = read_card(beside)
    return card if card["weights_sha256"] == file_sha256(path) else None


def check_leak(card: dict[str, Any], test_cases: Iterable[str], allow_selected: bool) -> None:
    """Refuse to apply a model to cases that it has seen, or a model that it was made with.

    Args:
        card: Card of the model.
        test_cases: Case ids that the model is about to be scored on.
        allow_selected: Whether models may have been selected on them: only under the protocol
            ``seed``, whose results are labelled "selected on the reported fold".

    Raises:
        LeakError: The model, or one whose predictions or weights it was made of, was trained or
            selected on some of the cases; it names the first ten.
    """
    test = set(test_cases)
    model = f"the model {_name(card)}"
    _refuse_seen(card, model, test, allow_selected)
    for how, entry in _behind(card):
        _refuse_seen(entry, f"{model} {how} the model {_name(entry)}, which", test, allow_selected)


def _refuse_seen(card: dict[str, Any], model: str, test: set[str], allow_selected: bool) -> None:
    seen = {"trained": sorted(test & set(card["trained_on"]))}
    if not allow_selected:
        seen["selected"] = sorted(test & set(card["selected_on"]))
    cure = (
        "Use the model of the fold whose test cases these are, or train it again with the present "
        "splits.csv."
        if is_of_a_fold(card)
        else "A model of all folds may be applied to other datasets only."
    )
    for how, cases in seen.items():
        if cases:
            raise LeakError(
                f"{model} was {how} on {len(cases)} of the {len(test)} cases that it is to be "
                f"scored on: {first_names(cases)}. {cure}"
            )


def _name(card: dict[str, Any]) -> str:
    fold = f"fold {card['fold']}" if is_of_a_fold(card) else "all folds"
    return f"{card['dataset']}/{card['name']} of {fold}"


def is_of_a_fold(card: dict[str, Any]) -> bool:
    """Return whether a model belongs to one fold; one that trained on all folds does not."""
    return card["fold"] not in (None, "all")


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
