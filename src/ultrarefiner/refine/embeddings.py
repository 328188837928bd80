"""Image embeddings as files, the key under which the shelf keeps them, and a view's index of keys."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, JsonValue, PositiveInt, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from ultrarefiner.config import Section
from ultrarefiner.errors import UltraRefinerError, WeightsError
from ultrarefiner.io import atomic_path, json_sha256, read_rows, write_rows
from ultrarefiner.refine.base import Embedding

SUFFIX = ".safetensors"
"""End of the names of embedding files."""

INDEX_COLUMNS = ["case", "key", "x0", "y0", "x1", "y1"]
"""Columns of an index; the window's are empty where the whole image was encoded."""

_FORMAT = "ultrarefiner.sam_embedding.3"
_ABOUT = "about"  # one metadata entry: safetensors writes several in an order that changes
_TENSOR = "features"

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _About(Section):
    """What an embedding's file says of it; ``crc32`` covers all else, and the numbers."""

    format: Literal["ultrarefiner.sam_embedding.3"] = _FORMAT
    image_size: tuple[PositiveInt, PositiveInt]
    input_size: tuple[PositiveInt, PositiveInt]
    image_sha256: Sha256
    weights_sha256: Sha256
    family: str
    recipe: dict[str, JsonValue]
    crc32: int = 0

    def sum_with(self, features: np.ndarray) -> int:
        """Return the check sum of everything but ``crc32``, and of the numbers."""
        text = self.model_dump_json(exclude={"crc32"})
        shape = repr((features.shape, str(features.dtype)))
        return zlib.crc32(features, zlib.crc32(f"{text} {shape}".encode()))


@dataclass(frozen=True, eq=False)
class SamEmbedding(Embedding):
    """What a SAM-like image encoder made of one image.

    Attributes:
        features: float32 (channels, grid, grid), (256, 64, 64) for SAM at 1024.
        image_size: Original (height, width) in pixels.
        input_size: (height, width) of the image inside the model's square frame.
        image_sha256: ``image_sha256`` of the pixels.
        weights_sha256: SHA-256 of the weights file.
        family: Family of the refiner that made it.
        recipe: Its options that change an embedding; ``SamRefiner.recipe``.
    """

    features: np.ndarray
    image_size: tuple[int, int]
    input_size: tuple[int, int]
    image_sha256: str
    weights_sha256: str
    family: str
    recipe: Mapping[str, Any]

    @property
    def key(self) -> str:
        """Name on the shelf; see ``embedding_key``."""
        return embedding_key(self.image_sha256, self.weights_sha256, self.family, self.recipe)

    @property
    def image_hw(self) -> tuple[int, int]:
        """Original (height, width) in pixels."""
        return self.image_size

    def require(self, weights_sha256: str, family: str, recipe: Mapping[str, Any]) -> None:
        """Check that a refiner of these weights, family and options made it.

        Raises:
            WeightsError: It was made with other weights.
            UltraRefinerError: It was made by another family or with other options.
        """
        if self.weights_sha256 != weights_sha256:
            raise WeightsError(
                f"the embedding was made with weights {self.weights_sha256[:12]}..., this refiner "
                f"has {weights_sha256[:12]}.... Run embed_images with these weights, or refine with "
                "those."
            )
        if (self.family, self.recipe) != (family, recipe):
            raise UltraRefinerError(
                f"the embedding was made by family '{self.family}' with {self.recipe}, this "
                f"refiner is of family '{family}' with {recipe}. Embed the image with this very "
                "refiner."
            )

    def save(self, path: str | Path, dtype: Literal["float32", "float16"] = "float32") -> None:
        """Write the embedding to a safetensors file, atomically.

        Args:
            path: File to write.
            dtype: ``float32`` gives back the same masks; ``float16`` halves the file and rounds.

        Raises:
            OutputError: The file cannot be written.
        """
        features = np.ascontiguousarray(self.features, dtype=np.dtype(dtype))
        about = _About(**{name: getattr(self, name) for name in _FIELDS})
        about = about.model_copy(update={"crc32": about.sum_with(features)})
        # Not save_file: it makes files that only their owner can read, whatever the umask.
        data = save({_TENSOR: features}, metadata={_ABOUT: about.model_dump_json()})
        with atomic_path(path) as temporary:
            temporary.write_bytes(data)

    @classmethod
    def load(cls, path: str | Path) -> SamEmbedding:
        """Read an embedding that ``save`` wrote; the features come back as float32.

        Raises:
            UltraRefinerError: The file is absent, damaged or something else.
        """
        try:
            with safe_open(path, framework="numpy") as stored:  # maps the file into memory
                text = (stored.metadata() or {}).get(_ABOUT, "{}")
                features = stored.get_tensor(_TENSOR) if _TENSOR in stored.keys() else None  # noqa: SIM118
        except (OSError, SafetensorError, ValueError, TypeError) as error:
            raise UltraRefinerError(
                f"cannot read embedding {path}: {error}. Delete it and run embed_images again."
            ) from None
        try:
            about = _About.model_validate_json(text)
        except ValidationError:
            about = None
        if about is None or features is None:
            raise UltraRefinerError(
                f"{path} is not an image embedding of this version ({_FORMAT}), or is damaged. "
                "Delete it and run embed_images again."
            )
        if about.crc32 != about.sum_with(features):
            raise UltraRefinerError(
                f"cannot read embedding {path}: its numbers are not the ones that were written. "
                "Delete it and run embed_images again."
            )
        facts = {name: getattr(about, name) for name in _FIELDS}
        return cls(features=features.astype(np.float32), **facts)

    def rounded(self) -> SamEmbedding:
        """Return what ``load`` gives back after ``save`` in float16.

        A mask must not depend on whether its embedding came from the shelf.
        """
        return replace(self, features=self.features.astype(np.float16).astype(np.float32))


_FIELDS = [field.name for field in fields(SamEmbedding) if field.name != _TENSOR]


@dataclass(frozen=True)
class IndexRow:
    """Where a case's embedding is on the shelf.

    Attributes:
        key: ``embedding_key`` of what was encoded.
        window: The part of the image that was encoded, half-open (x0, y0, x1, y1) in original
            pixels; None for the whole image.
    """

    key: str
    window: tuple[int, int, int, int] | None


def write_index(path: str | Path, rows: Mapping[str, IndexRow]) -> None:
    """Write the index of a view: one row a case, in the order given."""
    write_rows(
        path,
        INDEX_COLUMNS,
        (
            {
                "case": case,
                "key": row.key,
                **dict(zip(INDEX_COLUMNS[2:], row.window or [""] * 4, strict=True)),
            }
            for case, row in rows.items()
        ),
    )


def read_index(path: str | Path) -> dict[str, IndexRow]:
    """Read an index that ``write_index`` wrote.

    Raises:
        UltraRefinerError: The file is absent or holds something else.
    """
    index = {}
    try:
        for row in read_rows(path):
            corners = [row[name] for name in INDEX_COLUMNS[2:]]
            window = tuple(map(int, corners)) if any(corners) else None
            index[row["case"]] = IndexRow(row["key"], window)
    except (OSError, ValueError, KeyError) as error:
        raise UltraRefinerError(
            f"{path} is not an index of embeddings: {error!r}. Delete it and run embed_images again."
        ) from None
    return index


def image_sha256(image: np.ndarray) -> str:
    """Return the SHA-256 of an image's shape and pixels (not of any file's bytes)."""
    digest = hashlib.sha256(repr((image.shape, str(image.dtype))).encode())
    digest.update(np.ascontiguousarray(image))
    return digest.hexdigest()


def embedding_key(
    pixels_sha256: str, weights_sha256: str, family: str, recipe: Mapping[str, Any]
) -> str:
    """Return the name of an embedding on the shelf: a SHA-256 of everything it depends on.

    Args:
        pixels_sha256: ``image_sha256`` of the pixels that are encoded: the image, or a cut of it.
        weights_sha256: SHA-256 of the weights file.
        family: Family of the refiner: it decides how pixels come to the model's frame.
        recipe: What else an embedding depends on; ``SamRefiner.recipe``.
    """
    return json_sha256(
        {
            "format": _FORMAT,
            "image": pixels_sha256,
            "weights": weights_sha256,
            "family": family,
            "recipe": dict(recipe),
        }
    )
