"""What an exported folder tells its readers: how to use it, what made it, on whose terms."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ultrarefiner.datasets import DATASETS
from ultrarefiner.deploy.contents import Bundle
from ultrarefiner.models import height_width
from ultrarefiner.models.cards import read_card
from ultrarefiner.models.weights import WEIGHTS, name_of_file
from ultrarefiner.refine import REFINERS

_USE = (
    "For research. Not a medical device: nobody has approved it for diagnosis or treatment, and "
    "its masks have to be looked at by somebody who can judge them. Scores hold for images like "
    "those that it was trained and tested on; of other scanners, organs and patients they say "
    "nothing."
)


def preprocessing(bundle: Bundle) -> dict[str, Any]:
    """Return how an image comes to the models and back, for programs of others."""
    cards = [card for _, card in _cards(bundle, coarse=True)]
    sizes = {height_width(card["architecture"]["image_size"]) for card in cards}
    said: dict[str, Any] = {
        "image": {
            "type": "uint8",
            "channels": 3,
            "colour_order": "RGB",
            "gray": "repeated in all channels",
            "deeper_than_8_bits": "16-bit files: value / 257, rounded; DICOM: by its window",
        },
        "model": {
            "input_height_width": [list(size) for size in sorted(sizes)],
            "channels_first": True,
            "normalisation": "value / 255",
            "shrinking": "area mean (OpenCV INTER_AREA), where both sides shrink",
            "enlarging": "bilinear (OpenCV INTER_LINEAR), else",
            "aspect_ratio": "not kept",
            "classes": ["background", "lesion"],
            "probability": "softmax, class 1",
            "flips": bundle.flips,
            "probability_to_original_size": "bilinear (OpenCV INTER_LINEAR)",
            "several_folds": "mean of the probabilities at original size",
            "threshold": bundle.threshold,
            "thresholding": "at original size; lesion from the threshold on",
        },
    }
    if bundle.joint:
        said["refiner"] = _refiner_frame(cards[0]["architecture"]["refiner"]["model"])
    elif bundle.refiner is not None and REFINERS[bundle.refiner.family].needs_weights:
        said["refiner"] = _refiner_frame(bundle.refiner.family)
    return said


def _refiner_frame(family: str) -> dict[str, Any]:
    from ultrarefiner.models.sam import PIXEL_MEAN, PIXEL_STD

    padded = "a square; the longest side fills it, the rest is padding right and below"
    return {
        "family": family,
        "frame": "a square; the image is stretched to it" if family == "medsam2" else padded,
        "colour_order": "RGB",
        "mean": list(PIXEL_MEAN),
        "standard_deviation": list(PIXEL_STD),
        "prompts": "in pixels of the original image; boxes half-open, points pixel indices",
        "mask": "logits at original size, then lesion above 0",
    }


def _cards(bundle: Bundle, coarse: bool = False) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the name and the card of each trained model, or of those that see the image first."""
    for one in bundle.members:
        yield f"{bundle.model}, fold {one.fold}", read_card(bundle.path(one.card))
    others = (
        []
        if coarse
        else [
            (what.removeprefix("card of "), file)
            for what, file in bundle.files()
            if what.startswith("card of ") and not what.startswith(f"card of {bundle.model},")
        ]
    )
    for name, file in others:
        yield name, read_card(bundle.path(file))


def licence_text(bundle: Bundle) -> str:
    """Return the page on licences and terms of a bundle."""
    published = bundle.published
    lines = [
        "# Licences and terms",
        "",
        "The models in this folder were made from data and weights of others. Whoever uses them,",
        "or passes them on, is bound by the terms of all of these.",
        "",
    ]
    restricted = [name for name in published if WEIGHTS[name].accept]
    if restricted:
        names = ", ".join(f"{name} ({WEIGHTS[name].licence})" for name in restricted)
        lines += [f"**Restricted use**: made with {names}. {WEIGHTS[restricted[0]].terms}", ""]
    lines += ["## Datasets", ""]
    for name, layout in bundle.datasets.items():
        row = DATASETS[layout]
        lines += [f"- {name} ({row.title}): {row.terms} Source: {row.source}. {row.citation}"]
    lines += ["", "## Published weights", ""]
    for name in published:
        row = WEIGHTS[name]
        lines += [f"- {name} ({row.file}): {row.licence}. {row.terms} Cite: {row.citation}."]
    lines += [] if published else ["None."]
    lines += ["", "## What each model says", ""]
    lines += [f"- {name}: {card['licence']}" for name, card in _cards(bundle)]
    refiner = bundle.refiner
    own = refiner is not None and refiner.card is None and refiner.weights is not None
    if own and name_of_file(Path(refiner.weights.path).name) is None:
        lines += [f"- {refiner.name}: weights of the user's own; ask who made them"]
    lines += ["", "The program that applies them, UltraRefiner, is under Apache-2.0.", ""]
    return "\n".join([*lines, "## Use", "", _USE, ""])


def readme_text(bundle: Bundle, onnx: bool) -> str:
    """Return the page that tells what a bundle is and how to use it.

    Args:
        bundle: The bundle.
        onnx: Whether it holds ONNX files too.
    """
    several = len(bundle.members) > 1
    folds = ", ".join(map(str, bundle.folds))
    lines = [
        f"# {bundle.method}, trained on {bundle.trainset}",
        "",
        "Segments lesions in breast ultrasound images. Predict with UltraRefiner:",
        "",
        "```",
        "ultrarefiner predict IMAGE_OR_FOLDER --model THIS_FOLDER -o OUT",
        "```",
        "",
        f"Made by the run `{bundle.run}`. "
        + (f"The models of folds {folds} decide together." if several else f"Fold {folds} alone."),
        *_parts(bundle),
        "",
        "## Files",
        "",
        "| file | what | sha256 |",
        "|---|---|---|",
        *(f"| `{file.path}` | {what} | `{file.sha256}` |" for what, file in bundle.files()),
        "",
        "`method.json` says how they work together, sizes and normalisation included. The cards",
        "name the cases that the models were trained and selected on: see that you may pass them",
        "on.",
        *(["", "`onnx/` holds the networks for programs without torch."] if onnx else []),
        "",
        "## What it was trained on",
        "",
        *(f"- {name}: {DATASETS[layout].title}" for name, layout in bundle.datasets.items()),
        "",
        "| model | trained on | selected on | Dice there | at epoch |",
        "|---|---|---|---|---|",
        *(_trained_row(name, card) for name, card in _cards(bundle)),
        *_published_lines(bundle),
        *_reported_lines(bundle),
        "",
        "Images that it was trained on say nothing about how good it is.",
        "",
        "## Intended use",
        "",
        _USE,
        "",
        "Licences and terms: LICENCE.md",
        "",
    ]
    return "\n".join(lines)


def _parts(bundle: Bundle) -> list[str]:
    cut, refiner = f"probabilities are cut at {bundle.threshold:g}", bundle.refiner
    if bundle.inner:
        said = [f"`{bundle.model}` was trained end to end; this is the mask before its refiner."]
    elif bundle.joint:
        said = [f"`{bundle.model}`, a coarse model and a refiner trained as one; {cut}."]
    elif refiner is None:
        said = [f"`{bundle.model}` segments the image; {cut}."]
    else:
        who = "a refiner of its own for each fold" if bundle.refines_each else "one refiner for all"
        said = [
            f"`{bundle.model}` segments the image ({cut}), and its mask becomes a prompt of kind "
            f"`{refiner.prompt.kind}` for `{refiner.name}`, family `{refiner.family}`: {who}."
        ]
    if bundle.guarded:
        said.append(
            f"Where the guard does not trust the result, the mask of `{bundle.coarse_name}` stands."
        )
    return said


def _trained_row(name: str, card: dict[str, Any]) -> str:
    metrics = card["metrics"]
    dice = f"{metrics['dice']:.3f}" if metrics.get("dice") is not None else "–"
    trained, selected = len(card["trained_on"]), len(card["selected_on"])
    epoch = metrics.get("epoch", "–")
    return f"| {name} | {trained} cases | {selected} cases | {dice} | {epoch} |"


def _published_lines(bundle: Bundle) -> list[str]:
    rows = [(name, WEIGHTS[name].trained_on) for name in bundle.published]
    return ["", *(f"- weights {name}: {seen}" for name, seen in rows)] if rows else []


def _reported_lines(bundle: Bundle) -> list[str]:
    if not bundle.reported:
        return []
    head = [
        "| dataset | metric | cases | mean | 95 % interval | selected on |",
        "|---|---|---|---|---|---|",
    ]
    rows = [
        f"| {row['dataset']} | {row['metric']} | {row['n']} | {_number(row['mean'])} | "
        f"{_number(row['ci_low'])} to {_number(row['ci_high'])} | {row['selection']} |"
        for row in bundle.reported
    ]
    said = "Measured by cross-validation: each case by the model of the fold that left it out."
    return ["", said, "", *head, *rows]


def _number(text: str) -> str:
    return f"{float(text):.3f}" if text else "–"
