"""Models to files: our own, and the layouts that other programs load."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from segment_anything.modeling import Sam

from ultrarefiner.errors import ConfigError, WeightsError
from ultrarefiner.io import atomic_path
from ultrarefiner.models.lora import lora_layers
from ultrarefiner.models.medsam2_model import MedSam2
from ultrarefiner.models.medsam2_names import to_theirs
from ultrarefiner.models.mobile_sam import TinyViTEncoder, mobile_sam_name
from ultrarefiner.models.sam import SAM_FAMILIES, load_sam
from ultrarefiner.models.sam_unet_model import SamUNet
from ultrarefiner.models.state_dict import State
from ultrarefiner.models.ultrasam import ResidualMLP, to_ultrasam
from ultrarefiner.registry import Registry

log = logging.getLogger(__name__)

_ABOUT = "about"  # one metadata entry: safetensors writes several in an order that changes


@dataclass(frozen=True)
class ExportLayout:
    """A layout that other programs load.

    Attributes:
        family: The one family whose models it can hold.
        readers: Who reads it, for messages.
        content: Makes what ``torch.save`` writes of tensors under the family's own names and of
            what the file says of itself.
    """

    family: str
    readers: str
    content: Callable[[State, Mapping[str, str]], dict]


LAYOUTS: Registry[ExportLayout] = Registry(
    "layout",
    {
        "sam": ExportLayout(
            "sam", "segment_anything.sam_model_registry", lambda state, about: dict(state)
        ),
        "ultrasam": ExportLayout(
            "ultrasam",
            "UltraSAM's own code",
            lambda state, about: {"meta": dict(about), "state_dict": dict(state)},
        ),
        "medsam2": ExportLayout(
            "medsam2",
            "MedSAM2's and SAM 2's own code",
            lambda state, about: {"model": dict(state)},
        ),
        "sam_unet": ExportLayout(
            "sam_unet", "SAM-UNet's own code", lambda state, about: {"model": dict(state)}
        ),
    },
)
"""What ``export_sam`` can write."""


def save_sam(
    path: str | Path, sam: Sam, family: str, about: Mapping[str, str] | None = None
) -> None:
    """Write a model to a safetensors file under its family's own names, atomically.

    Equal weights and ``about`` give equal bytes. ``load_sam`` reads the file.

    Args:
        path: File to write.
        sam: The model, LoRA layers merged.
        family: Row of ``SAM_FAMILIES``; the file says it too.
        about: What else the file is to say of itself; ``read_about`` gives it back.

    Raises:
        ConfigError: Unknown family, or the model or ``about`` is of another one.
        WeightsError: LoRA layers are not merged, or a weight is NaN or infinite.
        OutputError: The file cannot be written.
    """
    SAM_FAMILIES[family]  # an unknown family has its own message
    facts = {"family": family, **(about or {})}
    if facts["family"] != family:
        raise ConfigError(f"a model of family '{family}' cannot be said to be '{facts['family']}'")
    state = _own_names(path, sam, family)
    # Not save_file: it makes files that only their owner can read, whatever the umask.
    data = save(state, metadata={_ABOUT: json.dumps(facts, sort_keys=True)})
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def read_about(path: str | Path) -> dict[str, str]:
    """Return what a weights file says of itself: what ``save_sam`` was given, and ``family``.

    Returns:
        Nothing (``{}``) where the file is not one of ``save_sam``.

    Raises:
        WeightsError: The file is absent or may not be read.
    """
    try:
        with open(path, "rb"):
            pass
        with safe_open(path, framework="pt") as stored:
            about = json.loads((stored.metadata() or {}).get(_ABOUT, "{}"))
    except OSError as error:
        raise WeightsError(
            f"cannot read weights {path}: {error.strerror or error}. Put the file there, or "
            "correct the path."
        ) from None
    except (SafetensorError, ValueError):
        return {}
    return about if isinstance(about, dict) and "family" in about else {}


def export_sam(
    model: str | Path, family: str | None, output: str | Path, layout: str | None = None
) -> str:
    """Write a checkpoint that other programs load, with ``torch.save``, atomically.

    Layout ``sam``: a flat state dict, float32, which ``sam_model_registry[...](checkpoint=...)`` and
    ``load_state_dict(strict=True)`` take. Layout ``ultrasam``: ``{"meta": ..., "state_dict": ...}``
    under UltraSAM's names; ``medsam2``, ``sam_unet``: ``{"model": ...}``. The decoders of both compute differently (``ResidualMLP``), so neither
    family is written in the other's layout: the masks would be others. Equal weights give equal
    bytes.

    Args:
        model: Any file that ``load_sam`` loads; it is loaded whole or refused.
        family: Its family; None: what the file says of itself, else "sam".
        output: File to write.
        layout: Row of ``LAYOUTS``; None: that of the family.

    Returns:
        The layout.

    Raises:
        ConfigError: Unknown family or layout, the file says it is of another family, or the layout
            cannot hold the family.
        WeightsError: The model is absent, damaged or another family's.
        OutputError: The file cannot be written.
    """
    about = read_about(model)
    said = about.get("family")
    if family is not None and said is not None and family != said:
        raise ConfigError(
            f"{model} says that it is of family '{said}', not '{family}'; leave out `family`"
        )
    family = family or said or "sam"
    layout = layout or _layout_of(model, family)
    row = LAYOUTS[layout]
    if row.family != family:
        raise ConfigError(
            f"{model} is of family '{family}', and {row.readers} would compute other masks from "
            f"its weights: layout '{layout}' holds models of family '{row.family}' only. "
            f"{_instead(family)}"
        )
    sam = load_sam(model, family)
    state = _own_names(model, sam, family)
    with atomic_path(output) as temporary, open(temporary, "wb") as handle:
        # To a handle: given a path, torch writes the temporary name into the file.
        torch.save(row.content(state, {"family": family, **about}), handle)
    log.info("%s: for %s", output, row.readers)
    return layout


def _layout_of(model: str | Path, family: str) -> str:
    SAM_FAMILIES[family]  # an unknown family has its own message
    for name, row in LAYOUTS.items():
        if row.family == family:
            return name
    raise ConfigError(f"{model}: there is no layout for family '{family}'. {_instead(family)}")


def _instead(family: str) -> str:
    same = [name for name, row in LAYOUTS.items() if row.family == family]
    if same:
        return f"Use layout '{same[0]}'."
    return "The file has its published names already: use it as it is."


def _own_names(path: str | Path, sam: Sam, family: str) -> dict[str, torch.Tensor]:
    """Return a model's tensors under its family's names: dense, on the CPU, floats as float32."""
    if family != (built := _built_as(sam)):
        raise ConfigError(
            f"{path}: the model computes as one of family '{built}' does; called '{family}' it would "
            "be loaded as another model"
        )
    if any(True for _ in lora_layers(sam)):
        raise WeightsError(
            f"{path}: the model has LoRA layers, under names that nobody could load. Merge them "
            "first (`merge_lora`)."
        )
    # Copies: a part of a larger tensor would be written with all of it.
    state = {
        key: value.to("cpu", torch.float32 if value.is_floating_point() else value.dtype, copy=True)
        for key, value in sam.state_dict().items()
    }
    broken = [key for key, value in state.items() if not bool(value.isfinite().all())]
    if broken:
        raise WeightsError(
            f"{path}: {len(broken)} tensors of the model hold NaN or infinity, such as {broken[0]}. "
            "Train again with a lower `lr` or a `grad_clip`."
        )
    if family == "ultrasam":
        return to_ultrasam(state)
    if family == "medsam2":
        return to_theirs(state)
    if family == "mobile_sam":
        return {mobile_sam_name(key): value for key, value in state.items()}
    return state


def _built_as(sam: Sam) -> str:
    """Return the family whose loader would build a model that computes like this one."""
    if isinstance(sam, SamUNet):
        return "sam_unet"
    if isinstance(sam, MedSam2):
        return "medsam2"
    if isinstance(sam.image_encoder, TinyViTEncoder):
        return "mobile_sam"
    blocks = sam.mask_decoder.transformer.layers
    return "ultrasam" if any(isinstance(block.mlp, ResidualMLP) for block in blocks) else "sam"
