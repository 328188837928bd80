"""Checkpoints: a weights file, and a card that says what made it and what it has seen."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
from safetensors.torch import load_file, save
from torch import nn

from ultrarefiner import __version__
from ultrarefiner.errors import WeightsError
from ultrarefiner.io import atomic_path, file_sha256
from ultrarefiner.models import MODELS, build_model
from ultrarefiner.models.cards import check_leak, read_card, write_card
from ultrarefiner.models.weights import WEIGHTS
from ultrarefiner.provenance import git_revision
from ultrarefiner.training.data import PreparedCases

__all__ = [
    "check_leak",
    "licences",
    "load_model",
    "load_strictly",
    "load_weights",
    "read_card",
    "save_weights",
    "versions",
    "write_card",
]


def versions() -> dict[str, str]:
    """Return the versions of the software whose numbers end up in a checkpoint."""
    return {
        "ultrarefiner": __version__,
        "git_revision": git_revision(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        # Not imported for it: that takes a second, which prediction jobs have no other use for.
        "lightning_fabric": metadata.version("lightning-fabric"),
        "numpy": np.__version__,
    }


def licences(source: PreparedCases, trainset: str, parents: Mapping[str, str]) -> str:
    """Return on whose terms a trained model stands: those of its data and of its starting weights.

    Args:
        source: The prepared cases.
        trainset: Name of what it trained on.
        parents: SHA-256 of the starting weights by file name.
    """
    known = {row.file: row.licence for row in WEIGHTS.values()}
    terms = [f"{file}: {known.get(file, 'see its source')}" for file in parents]
    datasets = source.folders if len(source.folders) > 1 else [trainset]
    return "; ".join([*(f"dataset {name}: see its terms" for name in datasets), *terms])


def save_weights(path: str | Path, state: dict[str, torch.Tensor]) -> None:
    """Write a state dict as safetensors, atomically; tensors that share memory are written apart."""
    whole = {key: value.detach().cpu().contiguous().clone() for key, value in state.items()}
    # Not save_file: it makes files that only their owner can read, whatever the umask.
    data = save(whole)
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def load_weights(path: str | Path) -> dict[str, torch.Tensor]:
    """Read a state dict from a safetensors file, to the CPU.

    Raises:
        WeightsError: The file is absent or damaged.
    """
    try:
        return load_file(path, device="cpu")
    except (OSError, safetensors.SafetensorError) as error:
        raise WeightsError(
            f"cannot read the weights {path}: {error}. Delete the file and train the model again."
        ) from error


def load_strictly(model: nn.Module, state: dict[str, torch.Tensor], path: str | Path) -> None:
    """Fill a model with exactly its own tensors.

    Raises:
        WeightsError: One is missing, unexpected or of another shape; the message lists them.
    """
    own = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    found = {key: tuple(value.shape) for key, value in state.items()}
    problems = [f"missing: {key}" for key in sorted(own.keys() - found.keys())]
    problems += [f"not of this model: {key}" for key in sorted(found.keys() - own.keys())]
    problems += [
        f"{key}: shape {found[key]}, the model has {own[key]}"
        for key in sorted(own.keys() & found.keys())
        if own[key] != found[key]
    ]
    if problems:
        rest = f"\n  - and {len(problems) - 10} more" if len(problems) > 10 else ""
        lines = "\n  - ".join([f"{path} does not fit the model of its card:", *problems[:10]])
        raise WeightsError(f"{lines}{rest}\nTrain the model again, or restore the right file.")
    model.load_state_dict(state)


def load_model(model_path: str | Path, card_path: str | Path) -> tuple[nn.Module, dict[str, Any]]:
    """Build the model of a card and load its weights, every one of them.

    Args:
        model_path: ``model.safetensors``.
        card_path: ``card.json``.

    Returns:
        The model on the CPU in eval mode, and its card.

    Raises:
        WeightsError: A file is absent or damaged, the weights are not those of the card, or they
            do not fit the card's architecture.
    """
    card = read_card(card_path)
    if not Path(model_path).is_file():
        raise WeightsError(f"there are no weights at {model_path}. Train the model first.")
    digest = file_sha256(model_path)
    if digest != card["weights_sha256"]:
        raise WeightsError(
            f"{model_path} is not the file that {card_path} describes: its sha256 is "
            f"{digest[:12]}..., the card says {card['weights_sha256'][:12]}.... Put the two files of "
            "one training together, or delete both and train the model again."
        )
    architecture = card["architecture"]
    if architecture["model"] not in MODELS:
        raise WeightsError(
            f"{card_path} describes a model '{architecture['model']}' that this version does not "
            f"have (it has {', '.join(sorted(MODELS))}). Train the model again."
        )
    model = build_model(**architecture)
    load_strictly(model, load_weights(model_path), model_path)
    return model.eval(), card
