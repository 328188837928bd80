"""What a weights file is: its bytes become Python objects without running code, or a reason.

Everything is read with ``weights_only=True``. The training logs that some released checkpoints hold
beside the weights are passed over: their types are replaced by one that keeps nothing.
"""

from __future__ import annotations

import pickle
import re
import struct
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from ultrarefiner.errors import WeightsError
from ultrarefiner.models.weights_record import is_web_page

_CHUNK = 1 << 20
_AGAIN = "Delete it and download it again"
_SAFETENSORS = re.compile(rb".{8}\{", re.DOTALL)  # the length of the header, then JSON
_REFUSED_TYPE = re.compile(r"(?:Unsupported global|unsupported GLOBAL)(?:: GLOBAL)? (\S+)")


class _Ignored:
    """Stands for an object of a training log: takes any arguments and state, and keeps none."""

    def __init__(self, *arguments: Any) -> None:
        """Forget the arguments."""

    def __setstate__(self, state: Any) -> None:
        """Forget the contents."""

    def __repr__(self) -> str:
        """Return what an error message says of it."""
        return "an unread object"


# What mmengine's checkpoints, and finetuned ones with a NumPy score, hold beside tensors. None of
# the named functions is ever called: a crafted file could make NumPy's read outside its memory.
_INERT = [
    (_Ignored, name)
    for name in (
        "mmengine.logging.history_buffer.HistoryBuffer",
        "builtins.getattr",  # how a HistoryBuffer names its own methods
        "numpy.core.multiarray._reconstruct",
        "numpy._core.multiarray._reconstruct",
        "numpy.core.multiarray.scalar",
        "numpy._core.multiarray.scalar",
        "numpy.ndarray",
        "numpy.dtype",
    )
]


def read_checkpoint(path: Path) -> Any:
    """Read a weights file: safetensors, or what ``torch.save`` wrote; tensors on the CPU.

    Raises:
        WeightsError: The file is absent, cut short, damaged, or no checkpoint; the message says
            what it is and what to do.
    """
    try:
        size = path.stat().st_size
        with open(path, "rb") as handle:
            start = handle.read(512)
    except OSError as error:
        raise WeightsError(
            f"cannot read weights {path}: {error.strerror}. Put the file there, or correct `weights`."
        ) from None
    if not start:
        raise WeightsError(f"{path} is empty (0 bytes). {_AGAIN}.")
    if is_web_page(start):
        raise WeightsError(
            f"{path} is a web page, not weights: the server answered with a log-in or error page. "
            f"{_AGAIN}, in a browser if it must be."
        )
    if start.startswith(b"version https://git-lfs"):
        raise WeightsError(
            f"{path} is a Git LFS pointer, not the weights. Run `git lfs pull` there."
        )
    if start.startswith(b"PK"):
        _check_archive(path, size)
    elif path.suffix == ".safetensors" or _SAFETENSORS.match(start):
        return _read_safetensors(path)
    return _read_torch(path)


def _check_archive(path: Path, size: int) -> None:
    """Refuse a zip file that ``torch.save`` did not write."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            spoilt = _first_spoilt(archive)
    except (zipfile.BadZipFile, OSError, ValueError, struct.error):
        raise WeightsError(
            f"{path} is cut short: its table of contents, which comes last, is missing after "
            f"{size} bytes. {_AGAIN}."
        ) from None
    if spoilt is not None:
        # torch.load itself does not compare the check sums.
        raise WeightsError(
            f"{path} is damaged: {spoilt} inside it is not what was saved. {_AGAIN}."
        )
    if any(re.fullmatch(r"[^/]+/(code/.*|constants\.pkl)", name) for name in names):
        raise WeightsError(
            f"{path} is a TorchScript archive: a compiled program, not weights alone. Save the "
            "state dict of the model it was made from: torch.save(model.state_dict(), NEW_PATH)."
        )
    if any(name.endswith(".npy") for name in names):
        raise WeightsError(
            f"{path} is a NumPy archive (npz), not a PyTorch or safetensors checkpoint. Name the "
            "model's .pth, .pt or .safetensors file instead."
        )
    if not any(name.endswith("data.pkl") for name in names):
        inside = ", ".join(names[:3]) or "nothing"
        raise WeightsError(
            f"{path} is a zip archive that holds {inside}, not a checkpoint. Unpack it, and name "
            "the weights file inside."
        )


def _first_spoilt(archive: zipfile.ZipFile) -> str | None:
    """Return the first member whose bytes do not fit their check sum."""
    # Each of these is what zipfile makes of damage; the caller turns the name into a message.
    for member in archive.infolist():
        try:
            with archive.open(member) as handle:
                while handle.read(_CHUNK):
                    pass
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError):
            return member.filename
    return None


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path} is a damaged safetensors file ({error}). {_AGAIN}.") from None


def _read_torch(path: Path) -> Any:
    try:
        with torch.serialization.safe_globals(_INERT), warnings.catch_warnings():
            # A file of another pickle protocol: what cannot be read is refused below.
            warnings.filterwarnings("ignore", "Detected pickle protocol", UserWarning)
            # Opened here: by the suffix of a path torch chooses another reader.
            with open(path, "rb") as handle:
                return torch.load(handle, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        refused = _REFUSED_TYPE.search(str(error))
        if refused is None and not re.search(r"[Cc]an only|Trying to call", str(error)):
            raise WeightsError(
                f"{path} is not a PyTorch checkpoint, or one of another pickle protocol than "
                f"torch.save's own. {_AGAIN}, or save it again with torch.save."
            ) from None
        name = f" ({refused[1]!r})" if refused else ""
        raise WeightsError(
            f"{path} holds a Python object{name} besides tensors; making it could run any code, so "
            "nothing was loaded. If you trust its source, save the tensors alone, once: content = "
            "torch.load(PATH, weights_only=False); torch.save(content['state_dict'], NEW_PATH). (In "
            "some files it is content['model']; of a whole model, content.state_dict().)"
        ) from None
    except (
        RuntimeError,
        OSError,
        EOFError,
        ValueError,
        TypeError,
        LookupError,
        AttributeError,
        AssertionError,
        struct.error,
    ) as error:
        detail = " ".join(str(error).split())[:120] or type(error).__name__
        raise WeightsError(
            f"{path} is damaged, cut short or not a PyTorch checkpoint ({detail}). {_AGAIN}."
        ) from None
