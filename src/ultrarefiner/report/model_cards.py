"""The cards of trained models as tables: the models, and those behind finetuned ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ultrarefiner.models.cards import is_of_a_fold

_BEHIND = {"models": "learned from its predictions", "parents": "began from its weights"}


def sorted_cards(cards: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Return the rows of the table of models, by training set, model and fold.

    Where refiners are among them, there are columns for what only these have.

    Args:
        cards: The models' cards, each with its ``threshold`` (None where it has none).
    """
    keys = ("dataset", "name", "fold")
    ordered = sorted(cards, key=lambda card: [str(card.get(key)) for key in keys])
    refined = any(card["phase"] == "refiner" for card in cards)
    sourced = any(card.get("sources") for card in cards)
    return [_describe(card, refined, sourced) for card in ordered]


def _describe(card: Mapping[str, Any], refined: bool, sourced: bool) -> dict[str, str]:
    architecture, config, metrics = card["architecture"], card["config"], card["metrics"]
    size = architecture["image_size"]
    sides = " × ".join(map(str, size)) if isinstance(size, list) else str(size)
    parents = ", ".join(f"{name} ({digest[:12]})" for name, digest in card["parents"].items())
    values = {
        "Trained on": card["dataset"],
        "Model": card["name"],
        "Fold": card["fold"] if is_of_a_fold(card) else "all",
        "Architecture": f"{architecture['model']} at {sides} px",
        "Seed": config["seed"],
        "Epochs": config["epochs"],
        "Epoch kept": metrics["epoch"],
        "Val. Dice": _dice(metrics, "dice"),
        **({"Val. Dice before": _dice(metrics, "dice_before")} if refined else {}),
        **({"Coarse": _dice(metrics, "coarse_dice")} if refined else {}),
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
    """Return the table of the models behind finetuned ones, if there are any.

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
    columns = ["Finetuned model", "How", "Model behind it", "Fold"]
    columns += ["Cases trained on", "Selected on", "Predicted", "SHA-256 of weights"]
    count = len({row[-1] for row in rows})
    return [(f"Models behind finetuned ones ({count})", columns, sorted(rows))]
