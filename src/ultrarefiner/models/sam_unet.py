"""SAM-UNet from files: its own checkpoints, or a SAM and a ResNet that its training begins with.

A file loads whole or not at all. The encoder rests in training, so one of random numbers would stay
so: it has to be asked for by name (``init: random``).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from ultrarefiner.errors import WeightsError
from ultrarefiner.io import item_seed
from ultrarefiner.models.sam import (
    SAM_LAYOUT,
    SamArchitecture,
    infer_architecture,
    set_pixel_constants,
    without_pixel_constants,
)
from ultrarefiner.models.sam_unet_model import BRANCHES, TINY, VIT_B, SamUNet
from ultrarefiner.models.state_dict import (
    Layout,
    State,
    read_state_dict,
    refuse_foreign,
    refuse_misfits,
)
from ultrarefiner.registry import Registry

__all__ = [
    "NO_SAM",
    "SIZES",
    "TINY",
    "VIT_B",
    "SamUNet",
    "TakenSam",
    "begin_sam_unet",
    "holds_sam_unet",
    "load_sam_unet",
    "sam_architecture",
    "take_resnet",
    "take_sam",
]

log = logging.getLogger(__name__)

_LAYOUT = Layout("SAM-UNet", "Use a whole checkpoint of SAM-UNet", "sam_unet")
_RESNET = Layout("a ResNet", "Use torchvision's own file, such as resnet50-0676ba61.pth")
# Where the parts of SAM lie in SAM-UNet's names.
_INSIDE = (
    "image_encoder.sam_img_encoder.",
    "prompt_encoder.sam_prompt_encoder.",
    "mask_decoder.sam_mask_decoder.",
)
# What of a SAM has no place in a SAM-UNet: it makes masks of four tokens and predicts their IoU.
_LEFT = re.compile(
    r"mask_decoder\.(iou_token|mask_tokens|output_hypernetworks_mlps|iou_prediction_head)\."
)
_STEM = {"conv1": "stage0.0", "bn1": "stage0.1"} | {f"layer{i}": f"stage{i}" for i in range(1, 5)}
_COUNTER = "num_batches_tracked"

NO_SAM = (
    "a SAM-UNet trains around a frozen encoder, which without a SAM would stay random; give "
    "`weights: sam_vit_b`, or say `init: random` if that is meant"
)
"""Why a training without a SAM is refused."""

SIZES: Registry[SamArchitecture] = Registry("size of SAM-UNet", {"random": VIT_B, "tiny": TINY})
"""Sizes for beginning without a SAM."""


@dataclass(frozen=True)
class TakenSam:
    """What became of the tensors of a SAM, by SAM's names.

    Attributes:
        copied: Taken as they are.
        interpolated: Brought to another frame: positions, and relative positions of global blocks.
        left: Without a place in a SAM-UNet.
    """

    copied: tuple[str, ...]
    interpolated: tuple[str, ...]
    left: tuple[str, ...]


def load_sam_unet(path: str | Path) -> SamUNet:
    """Load a trained SAM-UNet, one of ours or its authors'; sizes are read off the tensors.

    Args:
        path: A ``.safetensors`` file, or one that ``torch.save`` wrote: a state dict, or one under
            ``model``.

    Returns:
        The model, float32, in eval mode, on the CPU.

    Raises:
        WeightsError: The file is absent, damaged or another model's, or any key is missing,
            unexpected or of another shape; the message lists them.
    """
    path = Path(path)
    state = read_state_dict(path)
    if not _is_sam_unet(state):
        refuse_foreign(path, state, _LAYOUT)
        if any(map(_LEFT.match, state)):
            raise WeightsError(
                f"{path} is a SAM, from which a SAM-UNet can be trained (give the refiner a "
                "section `finetune`); by itself it is none, its branch would be random. "
                f"{_LAYOUT.cure}."
            )
    state = without_pixel_constants(path, state, _LAYOUT)
    architecture, layers = _read_off(path, state)
    with torch.device("meta"):
        model = SamUNet(layers, architecture)
    set_pixel_constants(model)  # in no file
    _fill(path, model, state, model.state_dict(), _LAYOUT)
    return model.eval()


def begin_sam_unet(
    sam: str | Path | None,
    branch: str | Path | None,
    resnet: int | str = 50,
    seed: int = 0,
    image_size: int = VIT_B.image_size,
    random: str | None = None,
) -> SamUNet:
    """Return a SAM-UNet to be trained: what comes from files, and the rest random.

    Args:
        sam: Checkpoint of a SAM for encoder, prompt encoder and transformer, in any frame; SAM
            ViT-B, or another one with four global blocks.
        branch: ImageNet weights of the ResNet, as torchvision publishes them; None: random.
        resnet: Layers of the branch.
        seed: Seed of what is random; equal seeds give equal weights in any process.
        image_size: Side of the frame in pixels, with a SAM.
        random: Begin without a SAM, in a size of ``SIZES``. Its encoder does not train, so it
            stays random.

    Returns:
        The model, float32, in eval mode, on the CPU.

    Raises:
        WeightsError: Neither or both of ``sam`` and ``random`` are given; or a file is absent,
            damaged or another model's.
    """
    if sam is None and random is None:
        raise WeightsError(NO_SAM)
    if sam is not None and random is not None:
        raise WeightsError(
            f"init: random begins without a SAM, and {sam} is given too; remove one of them"
        )
    state = None if sam is None else _read_sam(Path(sam))
    if state is None:
        architecture = SIZES[str(random)]
    else:
        architecture = _architecture(Path(str(sam)), state, image_size)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(item_seed("sam_unet", str(resnet), seed))
        model = SamUNet(resnet, architecture)
    if state is not None:
        taken = _take(model, Path(str(sam)), state)
        log.info(
            "%s: %d tensors copied, %d interpolated, %d left out",
            Path(str(sam)).name,
            len(taken.copied),
            len(taken.interpolated),
            len(taken.left),
        )
    if branch is not None:
        take_resnet(model, branch)
    return model.eval()


def sam_architecture(path: str | Path, image_size: int) -> SamArchitecture:
    """Return the sizes of a SAM-UNet that begins as a SAM, in a frame of ``image_size`` pixels.

    Raises:
        WeightsError: The file is absent, damaged or another model's.
    """
    return _architecture(Path(path), _read_sam(Path(path)), image_size)


def _architecture(path: Path, state: State, image_size: int) -> SamArchitecture:
    a = infer_architecture(path, state)
    if len(a.global_blocks) != 4 or a.global_blocks[-1] != a.depth - 1:
        raise WeightsError(
            f"{path}: its encoder has global blocks {list(a.global_blocks)} of {a.depth}, and a "
            "SAM-UNet needs four, the last block among them. Use sam_vit_b_01ec64.pth."
        )
    return replace(a, image_size=image_size)


def take_sam(model: SamUNet, path: str | Path) -> TakenSam:
    """Fill the parts of a SAM-UNet that are SAM's from a checkpoint of a SAM, in place.

    Positions of another frame are interpolated bilinearly, as the authors' loader does: those of
    the grid as an image, the relative ones of global blocks as an image of one row a distance.

    Raises:
        WeightsError: The file is absent, damaged or another model's, or does not fill them all.
    """
    return _take(model, Path(path), _read_sam(Path(path)))


def _read_sam(path: Path) -> dict[str, torch.Tensor]:
    state = read_state_dict(path)
    refuse_foreign(path, state, SAM_LAYOUT)
    return without_pixel_constants(path, state, SAM_LAYOUT)


def _take(model: SamUNet, path: Path, state: State) -> TakenSam:
    own = {name: key for key in model.state_dict() if (name := _sam_name(key))}
    wanted = {name: model.state_dict()[key] for name, key in own.items()}
    left = tuple(key for key in state if _LEFT.match(key))
    kept = {key: value.float() for key, value in state.items() if key not in left}
    changed = {
        key: _resized(key, kept[key], value.shape)
        for key, value in wanted.items()
        if key in kept and kept[key].shape != value.shape
    }
    changed = {key: value for key, value in changed.items() if value is not None}
    refuse_misfits(path, kept | changed, wanted, SAM_LAYOUT)
    filled = {own[key]: value for key, value in (kept | changed).items()}
    model.load_state_dict(filled, strict=False)
    copied = tuple(key for key in wanted if key not in changed)
    return TakenSam(copied, tuple(changed), left)


def take_resnet(model: SamUNet, path: str | Path) -> None:
    """Fill the branch of a SAM-UNet from a file of torchvision, in place.

    Raises:
        WeightsError: The file is absent, damaged or of another ResNet.
    """
    path = Path(path)
    state = {key: v for key, v in read_state_dict(path).items() if not key.startswith("fc.")}
    renamed = {}
    for key, value in state.items():
        first, _, rest = key.partition(".")
        renamed[f"{_STEM.get(first, first)}.{rest}"] = value
    cure = f"{_RESNET.cure} for a ResNet-{model.resnet_layers}"
    _fill(path, model.resnet, renamed, model.resnet.state_dict(), Layout(_RESNET.what, cure))


def holds_sam_unet(path: str | Path) -> bool:
    """Return whether a weights file is a SAM-UNet's, by its names.

    Raises:
        WeightsError: The file is absent, damaged, or holds something else than one state dict.
    """
    return _is_sam_unet(read_state_dict(Path(path)))


def _is_sam_unet(state: State) -> bool:
    return any(key.startswith(("adapters_in.", *_INSIDE)) for key in state)


def _fill(path: Path, module: nn.Module, state: State, wanted: State, layout: Layout) -> None:
    """Load tensors into a module; counters of BatchNorm, of which older files have none, are free."""

    def floats(values: State) -> dict[str, torch.Tensor]:
        return {key: value for key, value in values.items() if not key.endswith(_COUNTER)}

    refuse_misfits(path, floats(state), floats(wanted), layout)
    counters = {
        key: state.get(key, torch.tensor(0)).long() for key in wanted if key.endswith(_COUNTER)
    }
    filled = {key: value.float() for key, value in floats(state).items()}
    module.load_state_dict(filled | counters, assign=True)
    for name, parameter in module.named_parameters():
        # Assigned tensors would take the flags of those that they replace, and of frozen ones.
        parameter.requires_grad_(not name.startswith(_INSIDE[0]))


def _sam_name(key: str) -> str | None:
    """Return SAM's name of a tensor; None: it is none of SAM's."""
    for prefix in _INSIDE:
        if key.startswith(prefix):
            return prefix.partition(".")[0] + "." + key.removeprefix(prefix)
    return None


def _resized(key: str, value: torch.Tensor, shape: torch.Size) -> torch.Tensor | None:
    """Return positions at another size; None: this tensor cannot be resized so."""
    if key.endswith("pos_embed") and value.ndim == 4 and value.shape[-1] == shape[-1]:
        image = functional.interpolate(value.permute(0, 3, 1, 2), shape[1:3], mode="bilinear")
        return image.permute(0, 2, 3, 1)
    if ".rel_pos_" in key and value.ndim == 2 and value.shape[1] == shape[1]:
        return functional.interpolate(value[None, None], tuple(shape), mode="bilinear")[0, 0]
    return None


def _read_off(path: Path, state: State) -> tuple[SamArchitecture, str]:
    """Return the sizes of a SAM-UNet and the layers of its branch, as its tensors tell them."""
    inside: dict[str, torch.Tensor] = {
        name: value for key, value in state.items() if (name := _sam_name(key))
    }
    token = state.get("mask_decoder.med_token.weight")
    if token is not None and token.ndim == 2:
        # A SAM's own tokens are gone; what they would tell is the same in every SAM.
        width = token.shape[1]
        inside["mask_decoder.mask_tokens.weight"] = torch.empty(4, width, device="meta")
        inside["mask_decoder.iou_prediction_head.layers.0.weight"] = torch.empty(
            width, width, device="meta"
        )
    architecture = infer_architecture(path, inside, _LAYOUT)
    return architecture, _resnet_layers(path, state)


def _resnet_layers(path: Path, state: Mapping[str, torch.Tensor]) -> str:
    stages = [
        {key.split(".")[2] for key in state if key.startswith(f"resnet.stage{stage}.")}
        for stage in range(1, 5)
    ]
    deep = any(".conv3." in key for key in state if key.startswith("resnet."))
    for name, branch in BRANCHES.items():
        same = tuple(map(len, stages)) == branch.layers
        if same and deep == (branch.block.expansion == 4):
            return name
    raise WeightsError(
        f"{path}: its branch has {', '.join(str(len(stage)) for stage in stages)} blocks, which is "
        f"none of ResNet-{', ResNet-'.join(BRANCHES)}. {_LAYOUT.cure}."
    )
