"""The names under which embeddings are shelved: equal names, equal embeddings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ultrarefiner.config import RefinerConfig, StudyConfig
from ultrarefiner.io import json_sha256
from ultrarefiner.models.weights import registered, weights_name
from ultrarefiner.refine import REFINERS, parse_options

_APPLIED = (
    "jitter",
    "compile",
    "propagate",
    "key",
    "objects",
    "reprompt",
    "largest_component",
    "fill_holes",
)
"""Options of refiners that matter when they are applied, and not when they are trained."""


def embeddings_name(config: StudyConfig, refiner: str) -> str | None:
    """Return the name under which a refiner's embeddings are shelved; None: it has none.

    The weights' name; the family follows where a file of the user's own is not plain SAM's, and
    digits where an option that changes embeddings is not the default. Where finetuning changes the
    encoder it is the refiner's own name: each of its models has embeddings of its own.
    """
    row = config.refiners[refiner]
    if not REFINERS[row.family].shelves_embeddings:
        return None
    if changes_embeddings(row):
        return refiner
    if row.weights is None:
        return None
    options = embedding_options(row)
    # One file may be read as two families, and their frames differ.
    suffix = "" if registered(row.weights) or row.family == "sam" else f"_{row.family}"
    suffix += f"_{json_sha256(options)[:8]}" if options else ""
    return weights_name(row.weights) + suffix


def changes_embeddings(row: RefinerConfig) -> bool:
    """Return whether the finetuned models of a row give other embeddings than its weights."""
    if row.finetune is None:
        return False
    return row.finetune.encoder_changes or REFINERS[row.family].adapts_encoder


def begins_without_weights(row: RefinerConfig) -> bool:
    """Return whether a refiner that needs weights is trained from random ones."""
    if row.finetune is None:
        return False
    if not REFINERS[row.family].begin:
        return row.finetune.scratch is not None
    return parse_options(row.family, row.options).init != "pretrained"


def branch_weights(row: RefinerConfig) -> str | None:
    """Return the weights that a refiner's second encoder begins with in a training, if any."""
    if row.finetune is None or not REFINERS[row.family].begin:
        return None
    return parse_options(row.family, row.options).branch_weights


def embedding_options(row: RefinerConfig) -> dict[str, Any]:
    """Return the options that change an embedding, presets resolved, where they are no defaults."""
    family = REFINERS[row.family]
    options, default = parse_options(row.family, row.options), family.options()
    names = sorted(family.embedding_options)
    return {
        name: value for name in names if (value := getattr(options, name)) != getattr(default, name)
    }


def trained_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that have a part in training.

    Not moved copies, a compiled encoder, and how volumes are followed.
    """
    return {key: value for key, value in options.items() if key not in _APPLIED}


def refiner_options(config: StudyConfig, refiner: str) -> dict[str, Any]:
    """Return a refiner's own keys, presets resolved, without those that say the default."""
    row = config.refiners[refiner]
    default = REFINERS[row.family].options().model_dump(mode="json")
    given = parse_options(row.family, row.options).model_dump(mode="json")
    return {key: value for key, value in sorted(given.items()) if value != default[key]}
