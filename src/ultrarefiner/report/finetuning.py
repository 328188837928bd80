"""What the report says of finetuned refiners, from the study's configuration and from their cards."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ultrarefiner.config import FinetuneConfig
from ultrarefiner.config.finetuning import PARTS
from ultrarefiner.report.tables import fixed
from ultrarefiner.training.corrupt import BANDS, PRESETS

_PART_WORDS = {
    "encoder": "the image encoder",
    "prompt_encoder": "the prompt encoder",
    "decoder": "the decoder",
    "head": "the heads",
}


def finetuned(config: Mapping[str, Any]) -> dict[str, FinetuneConfig]:
    """Return how the refiners of a study are finetuned, of those that are and are compared.

    Args:
        config: The study's configuration as plain values, defaults included; may be empty.
    """
    rows = config.get("refiners") or {}
    compared = (config.get("compare") or {}).get("refine") or {}
    found = {name: (rows.get(name) or {}).get("finetune") for name in compared}
    return {
        name: FinetuneConfig.model_validate(row) for name, row in found.items() if row is not None
    }


def finetuning_statements(config: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return how refiners were finetuned, as pairs of a term and some sentences; none: nothing.

    Args:
        config: The study's configuration as plain values; may be empty.
    """
    rows = finetuned(config)
    if not rows:
        return []
    text = (
        f"{', '.join(rows)}. The epoch kept has the highest validation Dice: the mean over the "
        "validation cases at original size, on masks that stay the same in all epochs. "
    )
    by_fold = any(row.on == "fold" for row in rows.values())
    if by_fold:
        text += "A model of a fold refines what that fold tests, and cases that are in no fold. "
    if by_fold and (config.get("splits") or {}).get("protocol") == "seed":
        text += (
            "Protocol: seed. The epoch was chosen on the cases that the model refines and that are "
            "reported, as the original did."
        )
    else:
        text += "No model was trained or selected on a case that it refines."
    described = [(f"Finetuned: {name}", _describe(name, row, config)) for name, row in rows.items()]
    return [("Refiners finetuned", text), *described]


def _describe(name: str, row: FinetuneConfig, config: Mapping[str, Any]) -> str:
    start = random_start(config["refiners"][name])
    weights = config["refiners"][name].get("weights")
    begins = f"random numbers ({start})" if start else Path(str(weights)).name
    frozen = [_PART_WORDS[part].removeprefix("the ") for part in row.frozen]
    models = (
        "One model for each fold."
        if row.on == "fold"
        else "One model, trained on all folds, for other datasets only."
    )
    return " ".join(
        [
            f"Learns from {_data(row, config)}.",
            f"Prompts in training: {', '.join(row.kinds)}{_noise(row)}.",
            f"Trains {listed(_trained(row, config['refiners'][name]['family']))}; frozen: {', '.join(frozen) or 'nothing'}.",
            f"Begins from {begins}; {count(row.epochs, 'epoch')}.",
            models,
        ]
    )


def random_start(row: Mapping[str, Any]) -> str:
    """Return the key with which a refiner's training begins from random numbers; empty: it does not.

    Args:
        row: The refiner as plain values.
    """
    scratch = (row.get("finetune") or {}).get("scratch")
    if scratch:
        return f"scratch: {scratch}"
    init = row.get("init", "pretrained")
    return "" if init == "pretrained" else f"init: {init}"


def _data(row: FinetuneConfig, config: Mapping[str, Any]) -> str:
    coarse = ((config.get("compare") or {}).get("coarse") or ["the coarse model"])[0]
    simulated = f"failures simulated from the truth (preset {row.simulation.preset}), " + (
        "new ones in every epoch" if row.copies is None else f"{row.copies} of each case"
    )
    predicted = (
        f"predictions of {coarse} by models of {row.cross_fit.folds} inner folds that had not seen "
        "the case"
    )
    words = {
        "simulated": simulated,
        "predictions": predicted,
        "hybrid": f"{predicted} ({100 * row.ratio:g} %), and {simulated}",
        "truth": "the truth",
        "crops": f"crops around the truth, {row.copies or 1} of each case, moved as boxes of "
        f"{coarse} err",
    }[row.data]
    if row.crop is not None:
        words += "; in crops around the mask"
    if row.curriculum:
        words += "; good masks first"
    return words


def _noise(row: FinetuneConfig) -> str:
    moved = ", boxes moved by chance" if row.box_noise or row.box_shift else ""
    several = f", {row.masks_per_image} of an image in each step"
    return moved + (several if row.masks_per_image > 1 else "")


def _trained(row: FinetuneConfig, family: str) -> list[str]:
    parts = [_PART_WORDS[part] for part in PARTS if part not in row.frozen]
    if family == "sam_unet":
        parts.append("the branch beside the encoder")
    if row.unfreeze_last:
        blocks = "block" if row.unfreeze_last == 1 else f"{row.unfreeze_last} blocks"
        parts.append(f"the last {blocks} of the image encoder and its neck")
    if row.lora is not None:
        where = listed([_PART_WORDS[part] for part in row.lora.parts])
        last = f", last {count(row.lora.last, 'block')}" if row.lora.last else ""
        parts.append(
            f"LoRA additions of rank {row.lora.rank} to {where} ({', '.join(row.lora.targets)}"
            f"{last})"
        )
    return parts


def listed(words: Sequence[str], last: str = "and") -> str:
    """Return words in a row: commas between them, ``last`` before the last one."""
    return f" {last} ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def count(number: int, word: str) -> str:
    """Return a number with its noun, in the plural where it has to be."""
    return f"{number} {word}{'' if number == 1 else 's'}"


def untrained_prompts(config: Mapping[str, Any]) -> list[str]:
    """Return the methods whose refiner never trained with such prompts, each with what it knows.

    Args:
        config: The study's configuration as plain values; may be empty.
    """
    return [
        f"{name}-{prompt} (trained {' and '.join(only)} only)"
        for name, row in finetuned(config).items()
        for prompt in dict.fromkeys(config["compare"]["refine"][name])
        if (only := _only(row, (config.get("prompts") or {}).get(prompt) or {}))
    ]


def _only(row: FinetuneConfig, prompt: Mapping[str, Any]) -> list[str]:
    kind = str(prompt.get("kind", ""))
    # Its two prompts are given one after the other.
    wanted = {"both": ["box", "point"], "": []}.get(kind, [kind])
    known = [set(one.split("+")) for one in row.kinds]
    only = []
    if any(set(one.split("+")) not in known for one in wanted):
        only.append(f"with {listed(row.kinds)} prompts")
    in_crops = row.crop is not None or row.data == "crops"
    if prompt and in_crops != (prompt.get("crop") is not None):
        only.append("in crops" if in_crops else "on whole images")
    return only


def not_improved(cards: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the finetuned models whose best validation Dice is not above that before training."""
    lines = []
    for card in cards:
        if card["phase"] == "refiner":
            after, before = card["metrics"]["dice"], card["metrics"]["dice_before"]
            if not after > before:
                fold = "all folds" if card["fold"] is None else f"fold {card['fold']}"
                lines.append(
                    f"{card['name']} on {card['dataset']}, {fold} ({fixed(before)} before, "
                    f"{fixed(after)} after)"
                )
    return sorted(lines)


def describe_sheet(names: Iterable[str], config: Mapping[str, Any]) -> str:
    """Return the caption of a sheet of simulated failures.

    Args:
        names: The refiners that learn from such failures.
        config: The study's configuration as plain values; may be empty.
    """
    text = (
        "Kinds of error, drawn from the truth of a few images of a training set: a row for each "
        "kind, a column for each case. A mask is tinted by its probability; the number is its "
        "Dice. The sheet has every kind; in training they are drawn by chance."
    )
    rows = finetuned(config)
    return " ".join([text, *(_mixture(name, rows[name]) for name in names if name in rows)])


def _mixture(name: str, row: FinetuneConfig) -> str:
    some = row.simulation
    bands = some.bands.model_dump() if some.bands else PRESETS[some.preset].bands
    low = {band: f"{BANDS[band][0]:.2f}" for band in BANDS}
    dice = {
        "perfect": f"Dice {low['perfect']} or more",
        "mild": f"{low['mild']} to {low['perfect']}",
        "heavy": f"below {low['mild']}",
    }
    told = ", ".join(f"{100 * bands[band]:g} % {band} ({dice[band]})" for band in dice)
    return f"{name}: preset {some.preset}; {told}; {100 * some.soft:g} % of the masks are soft."
