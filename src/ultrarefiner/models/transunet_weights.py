"""ImageNet-21k weights of R50-ViT-B/16: the published ``R50+ViT-B_16.npz`` into a TransUNet.

The arrays are named and laid out as JAX wrote them: convolutions (height, width, in, out), dense
kernels (in, out), attention kernels with the heads as an axis of their own, position embedding
(1, 1 + rows * columns, width) with the class token first. The class token and the classifier of
the file have no place in a TransUNet.
"""

from __future__ import annotations

import logging
import math
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional as F

from ultrarefiner.errors import WeightsError

if TYPE_CHECKING:
    from ultrarefiner.models.transunet import TransUNet

logger = logging.getLogger(__name__)

POSITION_ARRAY = "Transformer/posembed_input/pos_embedding"
_CURE = (
    "Download R50+ViT-B_16.npz (461 MB) again from "
    "https://storage.googleapis.com/vit_models/imagenet21k/R50%2BViT-B_16.npz"
)


@dataclass(frozen=True)
class ArraySource:
    """Where one state-dict entry comes from.

    Attributes:
        array: Name in the file.
        shapes: Shapes that the array may have.
        convert: Array to tensor values.
    """

    array: str
    shapes: tuple[tuple[int, ...], ...]
    convert: Callable[[np.ndarray], np.ndarray]


def _vector(array: str, *shapes: tuple[int, ...]) -> ArraySource:
    return ArraySource(array, shapes, np.ravel)


def _convolution(array: str, shape: torch.Size) -> ArraySource:
    outputs, inputs, height, width = shape
    return ArraySource(
        array, ((height, width, inputs, outputs),), lambda values: values.transpose(3, 2, 0, 1)
    )


def _dense(array: str, shape: torch.Size, heads: int = 0) -> ArraySource:
    outputs, inputs = shape
    split = (inputs, outputs)
    if heads:
        split = (
            (heads, inputs // heads, outputs)
            if array.endswith("out/kernel")
            else (inputs, heads, outputs // heads)
        )
    return ArraySource(array, (split,), lambda values: values.reshape(inputs, outputs).T)


def _resnet_source(parts: list[str], shape: torch.Size) -> ArraySource:
    renamed = {"conv": "conv_root", "gn": "gn_root", "downsample": "conv_proj"}
    *path, kind = parts
    path = [renamed.get(part, part) for part in path if part not in ("root", "body")]
    stem = "/".join(path)
    if kind == "weight" and "conv" in path[-1]:
        return _convolution(f"{stem}/kernel", shape)
    name = f"{stem}/{'scale' if kind == 'weight' else 'bias'}"
    return _vector(name, (1, 1, 1, *shape), tuple(shape))


def _layer_source(parts: list[str], shape: torch.Size, heads: int) -> ArraySource:
    number, module, *rest = parts
    stem = f"Transformer/encoderblock_{number}"
    if module in ("attention_norm", "ffn_norm"):
        norm = "LayerNorm_0" if module == "attention_norm" else "LayerNorm_2"
        kind = "scale" if rest[0] == "weight" else "bias"
        return _vector(f"{stem}/{norm}/{kind}", tuple(shape))
    dense, kind = rest
    if module == "ffn":
        name = f"{stem}/MlpBlock_3/{'Dense_0' if dense == 'fc1' else 'Dense_1'}"
        heads = 0
    else:
        name = f"{stem}/MultiHeadDotProductAttention_1/{dense}"
    if kind == "weight":
        return _dense(f"{name}/kernel", shape, heads)
    if heads and dense != "out":
        return _vector(f"{name}/bias", (heads, shape[0] // heads))
    return _vector(f"{name}/bias", tuple(shape))


def array_sources(model: TransUNet) -> dict[str, ArraySource]:
    """Return the array of each entry of ``model.transformer``'s state dict but the positions."""
    heads = model.config.heads
    sources: dict[str, ArraySource] = {}
    for name, tensor in model.transformer.state_dict().items():
        part, *parts = name.split(".")
        shape = tensor.shape
        if parts[0] == "hybrid_model":
            sources[name] = _resnet_source(parts[1:], shape)
        elif parts[0] == "layer":
            sources[name] = _layer_source(parts[1:], shape, heads)
        elif name == "embeddings.patch_embeddings.weight":
            sources[name] = _convolution("embedding/kernel", shape)
        elif name == "embeddings.patch_embeddings.bias":
            sources[name] = _vector("embedding/bias", tuple(shape))
        elif part == "encoder":
            kind = "scale" if parts[1] == "weight" else "bias"
            sources[name] = _vector(f"Transformer/encoder_norm/{kind}", tuple(shape))
    return sources


def resize_positions(positions: np.ndarray, grid: int) -> torch.Tensor:
    """Return a square grid of position embeddings at another size.

    Args:
        positions: (1, 1 + n * n, width), class token first.
        grid: Rows and columns wanted.

    Returns:
        (1, grid * grid, width), float32, without the class token: the same values when n is
        ``grid``, else interpolated bilinearly with the end points aligned.
    """
    old = math.isqrt(positions.shape[1] - 1)
    tokens = torch.from_numpy(np.ascontiguousarray(positions[:, 1:], dtype=np.float32))
    if old == grid:
        return tokens
    image = tokens.double().reshape(1, old, old, -1).permute(0, 3, 1, 2)
    resized = F.interpolate(image, size=(grid, grid), mode="bilinear", align_corners=True)
    return resized.permute(0, 2, 3, 1).reshape(1, grid * grid, -1).float()


def _position_problem(values: np.ndarray, width: int) -> str | None:
    tokens = values.shape[1] - 1 if values.ndim == 3 else -1
    if tokens > 0 and math.isqrt(tokens) ** 2 == tokens and values.shape == (1, tokens + 1, width):
        return None
    return f"{POSITION_ARRAY} has shape {values.shape}, not (1, 1 + n * n, {width})"


def _read_arrays(path: Path, names: list[str]) -> tuple[dict[str, np.ndarray], list[str]]:
    """Return the named arrays of an npz file and the names that it lacks."""
    if not path.is_file():
        raise WeightsError(f"{path}: no such file. {_CURE} and put it there.")
    if not zipfile.is_zipfile(path):
        raise WeightsError(
            f"{path} ({path.stat().st_size} bytes) is not a whole npz file: cut off while it was "
            f"downloaded, or another kind of file. {_CURE}."
        )
    try:
        with np.load(path, allow_pickle=False) as archive:
            here = set(archive.files)
            return {n: archive[n] for n in names if n in here}, [n for n in names if n not in here]
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, RuntimeError, OSError) as error:
        raise WeightsError(f"{path}: damaged npz file ({error}). {_CURE}.") from None


def _is_full_size(model: TransUNet) -> bool:
    published = type(model.config)()
    return replace(model.config, dropout=published.dropout) == published


def begin(model: torch.nn.Module, paths: Sequence[Path]) -> None:
    """Fill a TransUNet's encoder with the one file that its training starts from."""
    load_imagenet21k(model, paths[0])


def load_imagenet21k(model: TransUNet, path: str | Path) -> None:
    """Fill the encoder of ``model`` from the published R50-ViT-B/16 file; the decoder is left.

    The position embedding is resized when the model's image size is not 224. Nothing is changed
    unless every array is there and fits.

    Args:
        model: A TransUNet of the published widths, any image size.
        path: ``R50+ViT-B_16.npz``.

    Raises:
        WeightsError: The file is absent, damaged or another model's, with every array that is
            missing or has a wrong shape; or the model is not of the published widths.
    """
    path = Path(path)
    if not _is_full_size(model):
        raise WeightsError(
            f"{path}: R50+ViT-B_16 weights fit the full-size TransUNet only, and this model has "
            f"other widths (token width {model.config.hidden_size}, not 768). Use model "
            "`transunet`, or train this one from random weights."
        )
    sources = array_sources(model)
    arrays, missing = _read_arrays(path, [POSITION_ARRAY, *(s.array for s in sources.values())])
    problems = [f"{name} is missing" for name in missing]
    if POSITION_ARRAY in arrays:
        problems += filter(
            None, [_position_problem(arrays[POSITION_ARRAY], model.config.hidden_size)]
        )
    for source in sources.values():
        values = arrays.get(source.array)
        if values is not None and values.shape not in source.shapes:
            wanted = " or ".join(map(str, source.shapes))
            problems.append(f"{source.array} has shape {values.shape}, not {wanted}")
    for name, values in arrays.items():
        if values.dtype.kind != "f" or not np.isfinite(values).all():
            problems.append(f"{name} holds {values.dtype} values that are not finite numbers")
    if problems:
        lines = "\n  - ".join(problems)
        raise WeightsError(
            f"{path} does not fit R50-ViT-B/16, nothing was loaded ({len(problems)} of "
            f"{len(sources) + 1} arrays). {_CURE}.\n  - {lines}"
        )
    state = {
        name: torch.from_numpy(np.ascontiguousarray(source.convert(arrays[source.array])))
        for name, source in sources.items()
    }
    state["embeddings.position_embeddings"] = resize_positions(arrays[POSITION_ARRAY], model.grid)
    model.transformer.load_state_dict(state, strict=True)
    logger.info("%s: %d tensors loaded; the decoder keeps its random values", path, len(state))
