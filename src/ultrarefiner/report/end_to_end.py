"""What the report says of end-to-end models and guards, from the configuration and from cards."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ultrarefiner.refine.guard import MARGIN
from ultrarefiner.refine.guard_jobs import read_rule
from ultrarefiner.report.finetuning import count, listed
from ultrarefiner.report.tables import fixed

_PART_WORDS = {
    "coarse": "the coarse model",
    "coarse_encoder": "the encoder of the coarse model",
    "coarse_decoder": "the decoder of the coarse model",
    "image_encoder": "the image encoder",
    "prompt_encoder": "the prompt encoder",
    "decoder": "the mask decoder",
    "head": "the heads",
    "gate": "the gate",
}
_GATES = {
    "uncertainty": "most where the coarse probability is near one half",
    "learned": "as a small network says",
    "hybrid": "most where the coarse probability is near one half, and as a small network says",
}
# The checks of a guard in words: with a limit that is chosen, and with one that is given.
_CHECKS = {
    "min_iou": ("its IoU with it is too low", "its IoU with it is below {:g}"),
    "area_ratio": (
        "its area is too small or too large beside it",
        "its area is not {:g} to {:g} times the coarse one's",
    ),
    "max_components": ("it has too many components", "it has more than {:g} components"),
}
_BAND = (
    "within a band around the coarse outline",
    "within {:g} radii (of a disc of the coarse area) around the coarse outline",
)


def joint_rows(config: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return how the end-to-end models of a study are trained, of those that are compared.

    Args:
        config: The study's configuration as plain values, defaults included; may be empty.
    """
    rows = config.get("end_to_end") or {}
    names = (config.get("compare") or {}).get("end_to_end") or []
    return {name: rows[name] for name in dict.fromkeys(names) if name in rows}


def end_to_end_statements(config: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return how models were trained end to end, as pairs of a term and sentences; none: nothing.

    Args:
        config: The study's configuration as plain values, defaults included; may be empty.
    """
    rows = joint_rows(config)
    if not rows:
        return []
    if _by_seed(config):
        seen = (
            "Protocol: seed. The epoch was chosen on the cases that the model segments and that "
            "are reported."
        )
    else:
        seen = "No model was trained or selected on a case that it segments."
    text = (
        f"{', '.join(rows)}. A coarse model and a refiner, where their own trainings ended, go on "
        "as one: coarse mask, prompts, refined mask. The epoch kept has the highest validation "
        "Dice of the refined masks at original size; epoch 0, both as they came, is one of those "
        f"to choose from. What ends in -coarse is the coarse model inside. {seen}"
    )
    described = [(f"End to end: {name}", _describe(row, config)) for name, row in rows.items()]
    return [("Trained end to end", text), *described]


def _by_seed(config: Mapping[str, Any]) -> bool:
    return (config.get("splits") or {}).get("protocol") == "seed"


def _describe(row: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    sentences = [
        _start(row, config),
        _prompts(row),
        _window(row["roi"]),
        _fusion(row["fusion"]),
        _trains(row),
        _pull(row),
        _loss(row),
        f"{count(row['epochs'], 'epoch')}{_limit(row['largest_drop'])}.",
        "Predicts the mean over the image and its three flips." if row["flips"] else "",
    ]
    return " ".join(sentence for sentence in sentences if sentence)


def _start(row: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    refiner = (config.get("refiners") or {}).get(row["refiner"]) or {}
    if refiner.get("finetune"):
        words = f"{row['refiner']}, as finetuned on the same fold"
    else:
        words = f"{row['refiner']} ({Path(str(refiner.get('weights'))).name})"
    return f"Begins as {row['coarse']} of the same fold and {words}."


def _prompts(row: Mapping[str, Any]) -> str:
    how = {"mask": row["style"]}
    told = [f"{part} ({how.get(part, row['formula'])})" for part in row["prompts"]]
    words = f"Prompt of the refiner: {listed(told)}{' in one' if len(told) > 1 else ''}"
    if row["sharpen"] is not None:
        words += f", of probabilities sharpened by {row['sharpen']:g}"
    return f"{words}."


def _window(roi: Mapping[str, Any] | None) -> str:
    if roi is None:
        return "Refines on the whole image."
    outside = {"background": "sure background", "coarse": "the coarse mask"}[roi["outside"]]
    return (
        f"Refines in a window around the coarse mask, {100 * roi['expand']:g} % larger on each "
        f"side and at least {roi['min_size']} pixels of the refiner's frame; outside of it: "
        f"{outside}."
    )


def _fusion(fusion: Mapping[str, Any] | None) -> str:
    if fusion is None:
        return "The refined mask stands."
    share = ""
    if fusion["gate"] != "learned":
        share = f" ({fusion['minimum']:g} to {fusion['maximum']:g} of it)"
    return f"The refined mask is mixed into the coarse one{share}: {_GATES[fusion['gate']]}."


def _trains(row: Mapping[str, Any]) -> str:
    parts = []
    for name in (part for part in _PART_WORDS if part in row["train"]):
        part = row["train"][name]
        told = [f"rate {part['lr']:g}"]
        if part["from_epoch"]:
            told.append(f"from epoch {part['from_epoch'] + 1}")
        if part["until_epoch"]:
            told.append(f"until epoch {part['until_epoch']}")
        parts.append(f"{_PART_WORDS[name]} ({', '.join(told)})")
    return f"Trains {listed(parts)}; all else is frozen."


def _pull(row: Mapping[str, Any]) -> str:
    """Return what keeps the coarse model from following the refined mask alone."""
    words = []
    if row["gradient_scale"] != 1:
        words.append(
            f"the refined mask's gradient reaches the coarse model times {row['gradient_scale']:g}"
        )
    if row["anchor"]:
        words.append(f"leaving the coarse model's first weights costs {row['anchor']:g}")
    text = listed(words) if words else ""
    return f"{text[0].upper()}{text[1:]}." if text else ""


def _loss(row: Mapping[str, Any]) -> str:
    loss = row["loss"]
    size = loss["size"]
    grid = "at each image's own size" if size == "original" else f"on a grid of {size} × {size}"
    return (
        f"Loss: {loss['refined']:g} of the refined mask, {grid}, and {loss['coarse']:g} of the "
        "coarse one."
    )


def _limit(drop: float | None) -> str:
    if drop is None:
        return "; however far the coarse model's validation Dice falls, training goes on"
    return f"; training ends where the coarse model's validation Dice falls by more than {drop:g}"


def guard_statements(config: Mapping[str, Any], ensembles: bool) -> list[tuple[str, str]]:
    """Return what guards do, as pairs of a term and sentences; none: nothing is guarded.

    Args:
        config: The study's configuration as plain values, defaults included; may be empty.
        ensembles: Whether masks of all folds' models together are guarded too.
    """
    names = list(dict.fromkeys((config.get("compare") or {}).get("guarded") or []))
    guard = config.get("guard") or {}
    if not names or not guard:
        return []
    joint = joint_rows(config)
    reference = config["compare"]["coarse"][0]
    coarse = dict.fromkeys(joint[name]["coarse"] if name in joint else reference for name in names)
    checks = [_limited(guard[key], *words) for key, words in _CHECKS.items()]
    checks = [words for words in checks if words]
    band = _limited(guard["band"], *_BAND)
    text = f"{', '.join(f'{name}-guarded' for name in names)}."
    if checks:
        text += (
            f" A refined mask gives way to that of {listed(list(coarse), 'or')} where "
            f"{listed(checks, 'or')}."
        )
    if band:
        text += f" {'Otherwise, refined' if checks else 'Refined'} pixels count {band} only."
    if "auto" in guard.values():
        where = (
            "the cases that are reported (protocol: seed)"
            if _by_seed(config)
            else "its validation cases, which are not among the reported ones"
        )
        text += (
            " Whether what has no number here is checked, and at which limit, is chosen for each "
            f"fold by mean Dice over {where}: the gentlest rule, unless another gains {MARGIN:g}."
        )
        if all(limit in (None, "auto") for limit in guard.values()):
            text += " To leave masks as they are is one of the rules."
        if ensembles:
            text += (
                " For all folds' models together a check is on where more than half of the folds "
                "have it on, at their median."
            )
    return [("Guard", text)]


def _limited(limit: Any, chosen: str, given: str) -> str:
    """Return a check in words; empty where it is off."""
    if limit is None:
        return ""
    if limit == "auto":
        return chosen
    return given.format(*(limit if isinstance(limit, list | tuple) else [limit]))


def kept_as_they_were(cards: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the end-to-end models of which no epoch was better than before training."""
    return sorted(
        f"{_model(card)}: validation Dice {fixed(card['metrics']['dice_before'])}, of the coarse "
        f"model inside {fixed(card['metrics']['coarse_dice_before'])}"
        for card in cards
        if card["phase"] == "end_to_end" and card["metrics"]["epoch"] == 0
    )


def ended_early(cards: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the end-to-end trainings that ended because the coarse model got worse."""
    return sorted(
        f"{_model(card)}: {card['metrics']['stopped']}; epoch {card['metrics']['epoch']} was kept"
        for card in cards
        if card["phase"] == "end_to_end" and card["metrics"]["stopped"]
    )


def _model(card: Mapping[str, Any]) -> str:
    return f"{card['name']} on {card['dataset']}, fold {card['fold']}"


def guard_tables(rules: Iterable[str | Path]) -> list[tuple[str, list[str], list[list[str]]]]:
    """Return the table of the rules that guards go by, if there are any.

    Args:
        rules: Rule files, each called ``{trainset}/guards/{method}/fold{fold}.json``.

    Returns:
        At most one tuple of title, columns and rows.
    """
    rows = []
    for path in map(Path, rules):
        found = read_rule(path)
        limits, ratio = found.rule, found.rule.area_ratio
        values = [
            limits.min_iou,
            None if ratio is None else f"{ratio[0]:g} to {ratio[1]:g}",
            limits.max_components,
            limits.band,
        ]
        rows.append(
            [
                path.parents[2].name,
                path.parent.name,
                path.stem.removeprefix("fold"),
                *("off" if value is None else str(value) for value in values),
                *("–" if dice is None else fixed(dice, 3) for dice in (found.dice_off, found.dice)),
                str(found.cases),
            ]
        )
    if not rows:
        return []
    columns = ["Trained on", "Method", "Fold", "Least IoU", "Area ratio", "Components", "Band"]
    columns += ["Val. Dice without", "With", "Cases"]
    return [("What guards go by, chosen on validation", columns, sorted(rows))]
