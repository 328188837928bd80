"""The cards of trained models as tables: the models, and those behind others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ultrarefiner.models.cards import is_of_a_fold

_REFINING = {"refiner", "end_to_end"}
_BEHIND = {"models": "learned from its predictions", "parents": "began from its weights"}


def sorted_cards(cards: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Return the rows of the table of models, by training set, model and fold.

    Where refiners or end-to-end models are among them, there are columns for what only these have.

    Args:
        cards: The models' cards, each with its ``threshold`` (None where it has none).
    """
    keys = ("dataset", "name", "fold")
    ordered = sorted(cards, key=lambda card: [str(card.get(key)) for key in keys])
    phases = {card["phase"] for card in cards}
    shown = {"Val. Dice": "dice"}
    shown |= {"Val. Dice before": "dice_before"} if phases & _REFINING else {}
    shown |= {"Coarse": "coarse_dice"} if phases & _REFINING else {}
    shown |= {"Coarse before": "coarse_dice_before"} if "end_to_end" in phases else {}
    sourced = any(_behind(card) for card in cards)
    return [_describe(card, shown, sourced) for card in ordered]


def _describe(card: Mapping[str, Any], dice: Mapping[str, str], sourced: bool) -> dict[str, str]:
    architecture, config, metrics = card["architecture"], card["config"], card["metrics"]
    models = [architecture]
    if card["phase"] == "end_to_end":
        models = [architecture[part] for part in ("coarse", "refiner")]
    parents = ", ".join(f"{name} ({digest[:12]})" for name, digest in card["parents"].items())
    values = {
        "Trained on": card["dataset"],
        "Model": card["name"],
        "Fold": card["fold"] if is_of_a_fold(card) else "all",
        "Architecture": " and ".join(f"{one['model']} at {_sides(one)} px" for one in models),
        "Seed": config["seed"],
        "Epochs": config["epochs"],
        "Epoch kept": metrics["epoch"],
        **{title: _dice(metrics, name) for title, name in dice.items()},
        "Threshold": card["threshold"],
        "Chosen on": card["selection"],
        "Cases": len(card["trained_on"]),
        "Parents": parents or ("random numbers" if config.get("scratch") else ""),
        **({"Behind it": _behind(card)} if sourced else {}),
        "Licence": card["licence"],
        "Revision": _short(card["versions"]["git_revision"]),
        "SHA-256 of weights": card["weights_sha256"],
    }
    return {key: "–" if value in (None, "") else str(value) for key, value in values.items()}


def _sides(architecture: Mapping[str, Any]) -> str:
    size = architecture["image_size"]
    return " × ".join(map(str, size)) if isinstance(size, list) else str(size)


def _dice(metrics: Mapping[str, Any], name: str) -> str:
    return f"{metrics[name]:.3f}" if metrics.get(name) is not None else ""


def _behind(card: Mapping[str, Any]) -> str:
    count = len((card.get("sources") or {}).get("models") or [])
    return f"{count} inner model{'' if count == 1 else 's'}" if count else ""


def _short(revision: str) -> str:
    commit, plus, changes = revision.partition("+")
    return (commit if " " in commit else commit[:12]) + plus + changes


def source_tables(
    cards: Sequence[Mapping[str, Any]],
) -> list[tuple[str, list[str], list[list[str]]]]:
    """Return the table of the models behind others, if there are any.

    Args:
        cards: The models' cards.

    Returns:
        At most one tuple of title, columns and rows; the title counts each model once.
    """
    rows = []
    for card in cards:
        fit = f"fold {card['fold']}" if is_of_a_fold(card) else "all folds"
        for kind, words in _BEHIND.items():
            for entry in (card.get("sources") or {}).get(kind) or []:
                rows.append(
                    [
                        f"{card['dataset']}/{card['name']}, {fit}",
                        words,
                        f"{entry['dataset']}/{entry['name']}",
                        str(entry["fold"]) if is_of_a_fold(entry) else "all",
                        *(str(len(entry[key])) for key in ("trained_on", "selected_on")),
                        str(len(entry.get("predicted") or [])),
                        entry["weights_sha256"],
                    ]
                )
    if not rows:
        return []
    columns = ["Model", "How", "Model behind it", "Fold"]
    columns += ["Cases trained on", "Selected on", "Predicted", "SHA-256 of weights"]
    count = len({row[-1] for row in rows})
    return [(f"Models behind others ({count})", columns, sorted(rows))]
