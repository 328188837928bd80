"""Image embeddings on the shelf: one safetensors file for each case, made once, used ever after."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from ultrarefiner.errors import UltraRefinerError
from ultrarefiner.io import atomic_path
from ultrarefiner.refine.base import Embedding

SUFFIX = ".safetensors"
"""End of the names of embedding files."""

_FORMAT = "ultrarefiner.sam_embedding.1"
_ABOUT = "about"  # one metadata entry: safetensors writes several in an order that changes
_TENSOR = "features"


@dataclass(frozen=True, eq=False)
class SamEmbedding(Embedding):
    """What a SAM-like image encoder made of one image.

    Attributes:
        features: float32 (channels, grid, grid), (256, 64, 64) for SAM at 1024.
        image_size: Original (height, width) in pixels.
        input_size: (height, width) of the image inside the model's square frame.
        image_sha256: ``image_sha256`` of the pixels.
        weights_sha256: SHA-256 of the weights file.
    """

    features: np.ndarray
    image_size: tuple[int, int]
    input_size: tuple[int, int]
    image_sha256: str
    weights_sha256: str

    @property
    def image_hw(self) -> tuple[int, int]:
        """Original (height, width) in pixels."""
        return self.image_size

    def save(self, path: str | Path, dtype: Literal["float32", "float16"] = "float32") -> None:
        """Write the embedding to a safetensors file, atomically.

        Args:
            path: File to write.
            dtype: ``float32`` gives back the same masks; ``float16`` halves the file and rounds.

        Raises:
            OutputError: The file cannot be written.
        """
        about = {
            "format": _FORMAT,
            "image_size": self.image_size,
            "input_size": self.input_size,
            "image_sha256": self.image_sha256,
            "weights_sha256": self.weights_sha256,
        }
        features = np.ascontiguousarray(self.features, dtype=np.dtype(dtype))
        # Not save_file: it makes files that only their owner can read, whatever the umask.
        data = save({_TENSOR: features}, metadata={_ABOUT: json.dumps(about)})
        with atomic_path(path) as temporary:
            temporary.write_bytes(data)

    @classmethod
    def load(cls, path: str | Path) -> SamEmbedding:
        """Read an embedding that ``save`` wrote; the features come back as float32.

        Raises:
            UltraRefinerError: The file is absent, damaged or something else.
        """
        try:
            with safe_open(path, framework="numpy") as stored:
                about: dict[str, Any] = json.loads((stored.metadata() or {}).get(_ABOUT, "{}"))
                features = stored.get_tensor(_TENSOR) if _TENSOR in stored.keys() else None  # noqa: SIM118
        except (OSError, SafetensorError, ValueError) as error:
            raise UltraRefinerError(
                f"cannot read embedding {path}: {error}. Delete it and run embed_images again."
            ) from None
        if about.pop("format", None) != _FORMAT or features is None:
            raise UltraRefinerError(
                f"{path} is not an image embedding of this version ({_FORMAT}). Delete it and run "
                "embed_images again."
            )
        about["image_size"] = tuple(about["image_size"])
        about["input_size"] = tuple(about["input_size"])
        return cls(features=features.astype(np.float32), **about)


def image_sha256(image: np.ndarray) -> str:
    """Return the SHA-256 of an image's shape and pixels (not of any file's bytes)."""
    digest = hashlib.sha256(repr((image.shape, str(image.dtype))).encode())
    digest.update(np.ascontiguousarray(image))
    return digest.hexdigest()


def embedding_path(folder: str | Path, case: str) -> Path:
    """Return the file of a case's embedding in an embeddings folder."""
    return Path(folder) / f"{case}{SUFFIX}"
