"""State dicts from files: one reader, one comparison, errors that say whose tensors they are."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ultrarefiner.errors import WeightsError
from ultrarefiner.models.checkpoint_file import read_checkpoint
from ultrarefiner.models.lora import merge_lora_layers

WRAPPERS = ("model", "state_dict", "model_state_dict")
PREFIXES = ("module.", "sam.", "model.")

State = Mapping[str, torch.Tensor]

_LISTED = 10
# What stands at the beginning of a name in SAM's and in UltraSAM's files.
_PARTS = re.compile(
    r"(?:^|(?<=\.))(?:image_encoder|prompt_encoder|mask_decoder|backbone|bbox_head)\."
)


@dataclass(frozen=True)
class Layout:
    """What a kind of checkpoint is called, and how it names SAM's tensors.

    Attributes:
        what: The model's name, for error messages.
        cure: What to use instead of a wrong file, for error messages.
        family: The row of ``SAM_FAMILIES`` that loads it.
        to_sam: Brings tensors from the file's names to SAM's; unknown names stay.
        from_sam: Brings a whole model's tensors from SAM's names to the file's.
        name_of: The file's name of the tensor that holds SAM's tensor of a name.
    """

    what: str
    cure: str
    family: str = "sam"
    to_sam: Callable[[State], dict[str, torch.Tensor]] = dict
    from_sam: Callable[[State], dict[str, torch.Tensor]] = dict
    name_of: Callable[[str], str] = str


@dataclass(frozen=True)
class _Foreign:
    """A layout that is easily taken for SAM's: what it is, and how one of its keys begins."""

    what: str
    key: re.Pattern[str]
    cure: str = ""
    family: str = ""


_FOREIGN = (
    _Foreign(
        "a SAM 2 model (MedSAM2 is one), which is built otherwise",
        re.compile(r"image_encoder\.trunk\.|memory_(attention|encoder)\.|sam_mask_decoder\."),
        "Load it with `family: medsam2`",
        "medsam2",
    ),
    _Foreign(
        "SAM-Med2D, whose encoder has adapters that SAM's has not; there is no family for it",
        re.compile(r"image_encoder\.blocks\.\d+\.Adapter\."),
    ),
    _Foreign(
        "UltraSAM",
        re.compile(r"backbone\.(layers|channel_reduction)\.|prompt_encoder\.label_encoder\."),
        "Load it with `family: ultrasam`",
        "ultrasam",
    ),
    _Foreign(
        "a SAM with a TinyViT encoder (MobileSAM)",
        re.compile(r"image_encoder\.((layers|stages)\.\d+\.|patch_embed\.seq\.)"),
        "Load it with `family: mobile_sam`",
        "mobile_sam",
    ),
    _Foreign(
        "SAM-UNet",
        re.compile(r"image_encoder\.sam_img_encoder\.|adapters_(in|bridge)\.\d+\."),
        "Load it with `family: sam_unet`",
        "sam_unet",
    ),
    _Foreign(
        "a SAM under the names of the transformers package",
        re.compile(r"vision_encoder\."),
    ),
    _Foreign("TransUNet", re.compile(r"transformer\.(embeddings|encoder)\.|decoder\.conv_more\.")),
    _Foreign("a ResNet", re.compile(r"layer[1-4]\.\d+\.conv1\.")),
)


def read_state_dict(path: Path) -> dict[str, torch.Tensor]:
    """Read the tensors of a weights file, on the CPU, under their plain names.

    Args:
        path: A ``.safetensors`` file, else one that ``torch.save`` wrote. The state dict may lie
            under one of ``WRAPPERS``; a prefix of ``PREFIXES`` that every key has is taken off;
            LoRA layers are merged, with the ``lora_config`` that lies beside the state dict.

    Raises:
        WeightsError: The file is absent, damaged, or holds something else than one state dict.
    """
    state = read_checkpoint(path)
    beside: Mapping[str, Any] = {}
    if not isinstance(state, Mapping):
        raise WeightsError(
            f"{path} holds a {type(state).__name__}, not a state dict. Save `model.state_dict()`."
        )
    wrappers = [name for name in WRAPPERS if isinstance(state.get(name), Mapping)]
    if len(wrappers) > 1:
        raise WeightsError(
            f"{path} holds several state dicts ({', '.join(wrappers)}). Save the one you mean alone."
        )
    if wrappers:
        beside, state = state, state[wrappers[0]]
    others = [str(key) for key, value in state.items() if not isinstance(value, torch.Tensor)]
    if others or not state:
        raise WeightsError(
            f"{path} is not a state dict: {listing('entries that are not tensors', others)}. Save "
            f"the state dict alone, or under one of the names {', '.join(WRAPPERS)}."
        )
    hollow = [
        str(key)
        for key, value in state.items()
        if value.is_meta or value.layout is not torch.strided
    ]
    if hollow:
        raise WeightsError(
            f"{path}: {listing('tensors without numbers, or sparse', hollow)}. Save them dense, "
            "from a model on a real device."
        )
    state = {str(key): value.detach() for key, value in state.items()}
    while prefix := next((p for p in PREFIXES if all(key.startswith(p) for key in state)), None):
        state = {key.removeprefix(prefix): value for key, value in state.items()}
    merged = merge_lora_layers(path, state, beside.get("lora_config"))
    _refuse_additions(path, merged)
    return merged


def _refuse_additions(path: Path, state: State) -> None:
    """Refuse low-rank additions under names that are not known, as peft saves them."""
    additions = [key for key in state if "lora_" in key]
    if not additions:
        return
    layers = dict.fromkeys(key[: key.index("lora_")] for key in additions)
    missing = [f"{layer}weight" for layer in layers if f"{layer}weight" not in state]
    unexpected = [key for key in state if key in additions or "base_layer." in key]
    raise WeightsError(
        f"{path} has {len(additions)} LoRA tensors under names that are not known, such as "
        f"{additions[0]} ({_differences(missing, unexpected)}). Merge the layers into the weights "
        "with the program that made them, and save the model again."
    )


def refuse_foreign(path: Path, state: State, layout: Layout, wanted: Iterable[str] = ()) -> None:
    """Refuse a state dict whose names are known to be another model's, or have another prefix.

    Args:
        path: The file it comes from, for the error message.
        state: Tensors under the file's own names.
        layout: What it should be.
        wanted: Names that such a file has whatever its size, for the error message.

    Raises:
        WeightsError: The message says whose names they are, and what to do.
    """
    for foreign in _FOREIGN:
        signs = [key for key in state if foreign.key.match(key)]
        if signs and foreign.family != layout.family:
            missing = [key for key in wanted if key not in state]
            raise WeightsError(
                f"{path} is not a checkpoint of {layout.what}: names such as {signs[0]} are those "
                f"of {foreign.what}. {foreign.cure or layout.cure}. As {layout.what}: "
                f"{_differences(missing, list(state))}."
            )
    prefixes = Counter(key[: match.start()] for key in state if (match := _PARTS.search(key)))
    prefix = max(prefixes, key=lambda name: prefixes[name], default="")
    if not prefix:
        return
    known = ", ".join(f"'{name}'" for name in PREFIXES)
    without = [key for key in state if not key.startswith(prefix)]
    begun = [key for key in state if key.startswith(prefix)]
    plain = [key.removeprefix(prefix) for key in begun]
    differences = _differences([key for key in plain if key not in state], begun)
    if without:
        raise WeightsError(
            f"{path}: {len(begun)} of {len(state)} names begin with '{prefix}' and "
            f"{listing('do not', without)} ({differences}). A prefix ({known}) is taken off only "
            f"when every name has it. Save the state dict of the {layout.what} alone."
        )
    raise WeightsError(
        f"{path}: every name begins with '{prefix}', which is not one of the prefixes that are "
        f"taken off ({known}; {differences}). Rename them and save the file again: "
        f"{{name.removeprefix('{prefix}'): value for name, value in state.items()}}."
    )


def refuse_misfits(path: Path, state: State, wanted: State, layout: Layout) -> None:
    """Refuse a state dict that does not fill a model exactly.

    Args:
        path: The file it comes from, for the error message.
        state: Tensors under the file's own names.
        wanted: The model's tensors under the same names; only their shapes count.
        layout: What it should be.

    Raises:
        WeightsError: Keys are missing, unexpected, of another shape or type, or hold NaN; the
            message lists them.
    """
    problems = misfits(state, wanted)
    if not problems:
        return
    mixed = any(key in state and state[key].shape != wanted[key].shape for key in wanted)
    advice = "Tensors of models of different sizes are mixed in it. " if mixed else ""
    raise WeightsError(
        f"{path} is not a whole checkpoint of {layout.what}; nothing was loaded: "
        f"{'; '.join(problems)}. {advice}{layout.cure}."
    )


def misfits(state: State, wanted: State) -> list[str]:
    """Return what keeps ``state`` from filling a model with state dict ``wanted``.

    Returns:
        One phrase for each kind of problem, with the first keys and their number; none if it fits.
    """
    reshaped, not_float, not_finite = [], [], []
    for key in wanted:
        if key not in state:
            continue
        found = state[key]
        if found.shape != wanted[key].shape:
            reshaped.append(f"{key} {tuple(found.shape)} instead of {tuple(wanted[key].shape)}")
        elif not found.is_floating_point():
            not_float.append(f"{key} ({found.dtype})")
        elif not bool(torch.isfinite(found).all()):
            not_finite.append(key)
    kinds = {
        "missing": [key for key in wanted if key not in state],
        "unexpected": [key for key in state if key not in wanted],
        "of another shape": reshaped,
        "not of a float type": not_float,
        "with NaN or infinity": not_finite,
    }
    return [listing(what, items) for what, items in kinds.items() if items]


def _differences(missing: list[str], unexpected: list[str]) -> str:
    return f"{listing('missing', missing)}; {listing('unexpected', unexpected)}"


def listing(what: str, items: list[str]) -> str:
    """Return ``"12 what: a, b, ..., and 2 more"`` with the first ten items."""
    more = f", and {len(items) - _LISTED} more" if len(items) > _LISTED else ""
    return f"{len(items)} {what}{': ' if items else ''}{', '.join(items[:_LISTED])}{more}"
