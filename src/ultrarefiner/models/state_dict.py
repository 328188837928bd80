"""State dicts from files: one reader, one comparison, errors that say what the file really is."""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from ultrarefiner.errors import WeightsError

WRAPPERS = ("model", "state_dict", "model_state_dict")
PREFIXES = ("module.", "sam.", "model.")

_LISTED = 10
_AGAIN = "Delete it and download it again"
_WEB_PAGE = re.compile(rb"\s*<(!doctype|html|head|\?xml)", re.IGNORECASE)


def read_state_dict(path: Path) -> dict[str, torch.Tensor]:
    """Read the tensors of a weights file, on the CPU, under their plain names.

    Args:
        path: A ``.safetensors`` file, else one that ``torch.save`` wrote. The state dict may lie
            under one of ``WRAPPERS``; a prefix of ``PREFIXES`` that every key has is taken off.

    Raises:
        WeightsError: The file is absent, damaged, or holds something else than one state dict.
    """
    state = _read_file(path)
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
        state = state[wrappers[0]]
    others = [str(key) for key, value in state.items() if not isinstance(value, torch.Tensor)]
    if others or not state:
        raise WeightsError(
            f"{path} is not a state dict: {listing('entries that are not tensors', others)}. Save "
            f"the state dict alone, or under one of the names {', '.join(WRAPPERS)}."
        )
    state = {str(key): value for key, value in state.items()}
    while prefix := next((p for p in PREFIXES if all(key.startswith(p) for key in state)), None):
        state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def misfits(state: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor]) -> list[str]:
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


def listing(what: str, items: list[str]) -> str:
    """Return ``"12 what: a, b, ..., and 2 more"`` with the first ten items."""
    more = f", and {len(items) - _LISTED} more" if len(items) > _LISTED else ""
    return f"{len(items)} {what}{': ' if items else ''}{', '.join(items[:_LISTED])}{more}"


def _read_file(path: Path) -> Any:
    try:
        with open(path, "rb") as handle:
            start = handle.read(512)
    except OSError as error:
        raise WeightsError(
            f"cannot read weights {path}: {error.strerror}. Put the file there, or correct `weights`."
        ) from None
    if not start:
        raise WeightsError(f"{path} is empty (0 bytes). {_AGAIN}.")
    if _WEB_PAGE.match(start):
        raise WeightsError(
            f"{path} is a web page, not weights: the server answered with a log-in or error page. "
            f"{_AGAIN}, in a browser if it must be."
        )
    if start.startswith(b"version https://git-lfs"):
        raise WeightsError(
            f"{path} is a Git LFS pointer, not the weights. Run `git lfs pull` there."
        )
    if start.startswith(b"PK") and b".npy" in start:
        raise WeightsError(
            f"{path} is a NumPy archive (npz), not a PyTorch or safetensors checkpoint. Name the "
            "model's .pth, .pt or .safetensors file instead."
        )
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise WeightsError(
                f"{path} is a damaged safetensors file ({error}). {_AGAIN}."
            ) from None
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if not re.search(r"Unsupported (global|class)|was not an allowed global", str(error)):
            raise WeightsError(f"{path} is not a PyTorch checkpoint. {_AGAIN}.") from None
        raise WeightsError(
            f"{path} holds Python objects besides tensors; loading them could run any code, so it "
            "is refused. If you trust its source, save its state dict alone, once: "
            "torch.save(torch.load(PATH, weights_only=False)['model'], NEW_PATH)."
        ) from None
    except (RuntimeError, OSError, EOFError, ValueError, LookupError, AttributeError) as error:
        detail = " ".join(str(error).split())[:120]
        raise WeightsError(
            f"{path} is damaged, cut short or not a PyTorch checkpoint ({detail}). {_AGAIN}."
        ) from None
