"""LoRA: low-rank additions to linear layers, added to a model, merged, or met in a checkpoint.

Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, 2021, arXiv 2106.09685.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from segment_anything.modeling import Sam
from torch import nn

from ultrarefiner.errors import ConfigError, WeightsError
from ultrarefiner.io import item_seed
from ultrarefiner.models.medsam2_model import MedSam2
from ultrarefiner.models.parts import part_of, row_of_blocks
from ultrarefiner.registry import unknown_name

# A wrapped linear layer holds itself under `original` and its addition under `lora`.
_PART = re.compile(
    r"(?P<layer>.+)\.(?P<part>original\.(?:weight|bias)|lora\.lora_[AB])(?:(?<=_[AB])\.weight)?"
)
_OTHER_RULES = ("use_rslora", "use_dora")
_NEEDED = ("original.weight", "lora.lora_A", "lora.lora_B")
_ADAPTER = "default"

# What a target stands for, in the blocks of the encoder and in the decoder's transformer.
_ENCODER = {
    "qkv": r"attn\.qkv",
    "proj": r"attn\.proj",
    "mlp": r"mlp\.(?:lin[12]|proj_in|proj_out)",
}
_DECODER = {
    "qkv": r"(?:layers\.\d+\.)?\w*attn\w*\.[qkv]_proj",
    "proj": r"(?:layers\.\d+\.)?\w*attn\w*\.o(?:ut)?_proj",
    "mlp": r"layers\.\d+\.mlp\.(?:lin[12]|proj_in|proj_out)",
}
_LAYERS = {
    "encoder": (r"image_encoder\.(?:vision\.backbone\.)?blocks\.(?P<block>\d+)\.", _ENCODER),
    "decoder": (r"mask_decoder\.transformer\.", _DECODER),
}


def add_lora(
    model: nn.Module,
    rank: int = 4,
    alpha: float | None = None,
    dropout: float = 0.0,
    targets: Sequence[str] = ("qkv",),
    parts: Sequence[str] = ("encoder",),
    last: int | None = None,
    seed: int | None = None,
) -> nn.Module:
    """Give linear layers W x + b an addition alpha / rank * B A x, in place, and freeze the rest.

    A (rank, in) is Kaiming-uniform with a = sqrt 5, B (out, rank) is zero, so that the model's
    outputs do not change at first. Additions are peft's, on the device and of the type of their
    layers. Of the parts that get them nothing but A and B trains afterwards; other parts stay as
    they are.

    Args:
        model: A segment-anything model or a SAM 2; or any module, which is then one part as a whole.
        rank: Rank of the additions.
        alpha: Their scale; None: ``rank``.
        dropout: Probability of dropping a layer's input before its addition, in training only.
        targets: Which layers: "qkv", "proj" (of the attention) or "mlp". In a module that is no
            SAM, every linear layer whose last name is a target.
        parts: Of a SAM: "encoder", "decoder" (its transformer).
        last: Only in the last blocks of the encoder, so many; None: in all.
        seed: Seed of A; None: torch's global generator draws it.

    Returns:
        ``model``.

    Raises:
        ConfigError: A number is out of range, a name is unknown, no layer is meant, the encoder has
            no such blocks, or there are additions already.
    """
    alpha = float(rank if alpha is None else alpha)
    _check_sizes(rank, alpha, dropout)
    if any(True for _ in lora_layers(model)):
        raise ConfigError("the model has LoRA layers already; merge them first (`merge_lora`)")
    names = _meant_layers(model, targets, parts, last)
    adapted = {
        id(parameter)
        for name, parameter in model.named_parameters()
        if not isinstance(model, (Sam, MedSam2)) or part_of(name) in parts
    }
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    # Imported here: it takes longer than all other imports of a job together.
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules="|".join(map(re.escape, names)),
    )
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.default_generator.manual_seed(item_seed("lora", seed))
        inject_adapter_in_model(config, model, _ADAPTER)
    for parameter in trained:  # peft freezes the whole model
        parameter.requires_grad_(id(parameter) not in adapted)
    for _, layer in lora_layers(model):
        weight = layer.base_layer.weight
        layer.to(weight.device, weight.dtype).train(layer.base_layer.training)
    return model


def merge_lora(model: nn.Module) -> nn.Module:
    """Put W + alpha / rank * B A in the place of each W that has an addition, in place.

    The sum is taken in double precision and rounded once. Afterwards the model has its layers, the
    names of its parameters and its outputs (but for rounding) without any addition; what was frozen
    stays frozen. A model without additions stays as it is.

    Returns:
        ``model``.
    """
    for name, layer in list(lora_layers(model)):
        base = layer.base_layer
        a, b = layer.lora_A[_ADAPTER].weight, layer.lora_B[_ADAPTER].weight
        with torch.no_grad():
            base.weight.copy_(_sum(base.weight, a, b, layer.scaling[_ADAPTER]))
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, base.train(layer.training))
    if hasattr(model, "peft_config"):
        del model.peft_config
    return model


def lora_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Give name and module of each linear layer that has a low-rank addition."""
    for name, module in model.named_modules():
        # Told by what they hold: asking peft for its class would import it for every model.
        if hasattr(module, "base_layer") and hasattr(module, "lora_A"):
            yield name, module


def _check_sizes(rank: int, alpha: float, dropout: float) -> None:
    if not isinstance(rank, int) or rank < 1:
        raise ConfigError(f"lora.rank is {rank!r}; it is a whole number from 1")
    if not (math.isfinite(alpha) and alpha > 0):
        raise ConfigError(f"lora.alpha is {alpha}; it is a number above 0")
    if not 0 <= dropout < 1:
        raise ConfigError(f"lora.dropout is {dropout}; it is a number from 0 to below 1")


def _meant_layers(
    model: nn.Module, targets: Sequence[str], parts: Sequence[str], last: int | None
) -> list[str]:
    """Return the names of the linear layers that targets, parts and last stand for."""
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not isinstance(model, (Sam, MedSam2)):
        meant = [name for name in linear if name.rpartition(".")[2] in targets]
        if last is not None:
            raise ConfigError("lora.last: is for the encoder of a SAM; this module is no SAM")
        if not meant:
            raise ConfigError(f"lora.targets: no linear layer is called {' or '.join(targets)}")
        return meant
    first_block = 0
    if "encoder" in parts:
        instead = (
            "Leave `encoder` out of `lora.parts`: its additions can be in the decoder, and the "
            "encoder can rest (`freeze`) or train as a whole"
        )
        depth = len(row_of_blocks(model, "lora in the encoder", instead))
        if last is not None and not 1 <= last <= depth:
            raise ConfigError(
                f"lora.last: {last}, but the encoder has {depth} blocks; give 1 to {depth}, or "
                "leave it out for all"
            )
        first_block = depth - (last or depth)
    patterns = []
    for part in parts:
        if part not in _LAYERS:
            raise ConfigError(unknown_name("lora part", part, _LAYERS))
        beginning, layers = _LAYERS[part]
        for target in targets:
            if target not in layers:
                raise ConfigError(unknown_name("lora target", target, layers))
            patterns.append(re.compile(beginning + layers[target]))
    found = ((name, p.fullmatch(name)) for name in linear for p in patterns)
    meant = [
        name
        for name, match in found
        if match and int(match.groupdict().get("block") or first_block) >= first_block
    ]
    if not meant:
        raise ConfigError("lora.targets and lora.parts: no layer is meant; name at least one each")
    return meant


def merge_lora_layers(
    path: Path, state: Mapping[str, torch.Tensor], config: Any
) -> dict[str, torch.Tensor]:
    """Return a state dict without LoRA layers: W + alpha / rank * B A in the place of W.

    Args:
        path: The file, for the error message.
        state: Tensors; a wrapped layer holds ``original.weight`` (out, in), ``lora.lora_A`` and
            ``lora.lora_B``. Which of them is (rank, in) or (in, rank) is told by the shapes. Other
            tensors stay as they are.
        config: Mapping with ``rank`` and ``alpha``, as finetuning saved it beside the state dict.

    Raises:
        WeightsError: There are LoRA layers and no config, or one that contradicts them.
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
    return _sum(weight, a, b, scale).float()  # not back to half


def _sum(weight: torch.Tensor, a: torch.Tensor, b: torch.Tensor, scale: float) -> torch.Tensor:
    """Return W + scale * B A in double precision, so that the merged weight is rounded once."""
    return weight.double() + scale * (b.double() @ a.double())
