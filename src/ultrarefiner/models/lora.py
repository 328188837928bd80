"""LoRA layers in checkpoints: low-rank additions to linear layers, merged into their weights.

Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, 2021, arXiv 2106.09685.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ultrarefiner.errors import WeightsError

# A wrapped linear layer holds itself under `original` and its addition under `lora`.
_PART = re.compile(
    r"(?P<layer>.+)\.(?P<part>original\.(?:weight|bias)|lora\.lora_[AB])(?:(?<=_[AB])\.weight)?"
)
_OTHER_RULES = ("use_rslora", "use_dora")
_NEEDED = ("original.weight", "lora.lora_A", "lora.lora_B")


def merge_lora_layers(
    path: Path, state: Mapping[str, torch.Tensor], config: Any
) -> dict[str, torch.Tensor]:
    """Return a state dict without LoRA layers: W + alpha / rank * B A in the place of W.

    Args:
        path: The file, for the error message.
        state: Tensors; a wrapped layer holds ``original.weight`` (out, in), ``lora.lora_A`` and
            ``lora.lora_B``. Which of them is (rank, in) or (in, rank) is told by the shapes.
        config: Mapping with ``rank`` and ``alpha``, as finetuning saved it beside the state dict.

    Raises:
        WeightsError: There are LoRA layers and no config, or one that contradicts them, or they
            have names that are not known here.
    """
    layers: dict[str, dict[str, torch.Tensor]] = {}
    merged: dict[str, torch.Tensor] = {}
    for key, value in state.items():
        if match := _PART.fullmatch(key):
            layer, part = match["layer"], match["part"]
            parts = layers.setdefault(layer, {})
            plain = f"{layer}.{part.removeprefix('original.')}"
            if part in parts or (part.startswith("original.") and plain in state):
                raise _given_twice(path, key)
            if not value.is_floating_point():
                raise WeightsError(
                    f"{path}: {key} is of type {value.dtype}, not of a float type. Save the "
                    "layers as floats."
                )
            parts[part] = value
        else:
            merged[key] = value
    others = [key for key in merged if "lora_" in key]
    if others:
        raise WeightsError(
            f"{path} has {len(others)} LoRA tensors under names that are not known, such as "
            f"{others[0]}. Merge the layers into the weights with the program that made them, and "
            "save the model again."
        )
    if not layers:
        return merged
    if not isinstance(config, Mapping) or not {"rank", "alpha"} <= config.keys():
        raise WeightsError(
            f"{path} has LoRA layers ({len(layers)}, such as {next(iter(layers))}) but no "
            "`lora_config` with their rank and alpha beside the state dict, so nobody can say how "
            "strongly they count. Save the file again with {'model_state_dict': ..., "
            "'lora_config': {'rank': ..., 'alpha': ...}}, or merge the layers before saving."
        )
    other = [name for name in _OTHER_RULES if config.get(name)]
    if other:
        raise WeightsError(
            f"{path}: lora_config says {', '.join(other)}, whose layers merge by another rule than "
            "W + alpha / rank * B A. Merge them with the program that made them, and save again."
        )
    rank, alpha = config["rank"], config["alpha"]
    if not _is_number(alpha) or not isinstance(rank, int) or rank < 1:
        raise WeightsError(
            f"{path}: lora_config has rank {rank!r} and alpha {alpha!r}, but the rank is a whole "
            "number from 1 and alpha a number. Correct it and save the file again."
        )
    for name, parts in layers.items():
        if "original.bias" in parts:
            merged[f"{name}.bias"] = parts["original.bias"]
        merged[f"{name}.weight"] = _merged(path, name, parts, rank, alpha / rank)
    return merged


def _given_twice(path: Path, key: str) -> WeightsError:
    return WeightsError(
        f"{path} has the tensor of {key} twice, under two names; nobody can say which one counts. "
        "Save the whole model again."
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _merged(
    path: Path, name: str, parts: Mapping[str, torch.Tensor], rank: int, scale: float
) -> torch.Tensor:
    absent = [part for part in _NEEDED if part not in parts]
    if absent:
        raise WeightsError(
            f"{path}: LoRA layer {name} lacks {', '.join(absent)}. Save the whole model again."
        )
    weight, a, b = (parts[part] for part in _NEEDED)
    shapes = ", ".join(f"{part} {tuple(parts[part].shape)}" for part in _NEEDED)
    if {weight.ndim, a.ndim, b.ndim} != {2}:
        raise WeightsError(f"{path}: LoRA layer {name} is not of a linear layer: {shapes}.")
    outputs, inputs = weight.shape
    # Rows of the narrow matrices first or last: finetuning programs have both.
    a = a.T if a.shape == (inputs, rank) and inputs != rank else a
    b = b.T if b.shape == (rank, outputs) and outputs != rank else b
    if a.shape != (rank, inputs) or b.shape != (outputs, rank):
        raise WeightsError(
            f"{path}: lora_config's rank {rank} does not fit LoRA layer {name}: {shapes}. Save the "
            "config that the layers were trained with."
        )
    # In double precision, and not back to half: the merged weight is rounded once.
    return (weight.double() + scale * (b.double() @ a.double())).float()
