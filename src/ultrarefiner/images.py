"""The project's own PNG files: RGB images, masks of 0/255, probabilities of 0..255."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from ultrarefiner.errors import UltraRefinerError
from ultrarefiner.io import atomic_path


def write_png(path: str | Path, pixels: np.ndarray) -> None:
    """Write uint8 pixels, (H, W) gray or (H, W, 3) RGB, as a PNG, atomically."""
    if pixels.dtype != np.uint8:
        raise TypeError(f"PNG pixels must be uint8, got {pixels.dtype}")
    if pixels.ndim == 3:
        pixels = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
    data = cv2.imencode(".png", pixels)[1]
    with atomic_path(path) as temporary:
        temporary.write_bytes(data.tobytes())


def _decode(path: str | Path, flag: int) -> np.ndarray:
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise UltraRefinerError(
            f"cannot read {path}: {error.strerror}. The job that makes it has to run again."
        ) from error
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flag) if data else None
    if pixels is None:
        raise UltraRefinerError(f"{path} is not a readable PNG. Delete it and run again.")
    return pixels


def read_rgb(path: str | Path) -> np.ndarray:
    """Read a PNG of this project as uint8 (H, W, 3) RGB."""
    return cv2.cvtColor(_decode(path, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)


def read_gray(path: str | Path) -> np.ndarray:
    """Read a PNG of this project as uint8 (H, W)."""
    return _decode(path, cv2.IMREAD_GRAYSCALE)


def read_mask(path: str | Path) -> np.ndarray:
    """Read a mask of this project as bool (H, W)."""
    return read_gray(path) >= 128


def write_mask(path: str | Path, mask: np.ndarray) -> None:
    """Write a bool (H, W) mask as a PNG of 0 and 255."""
    write_png(path, np.where(mask, 255, 0).astype(np.uint8))


def read_probability(path: str | Path) -> np.ndarray:
    """Read a probability map as float32 (H, W) in [0, 1]; a mask PNG gives 0 and 1."""
    return read_gray(path).astype(np.float32) / 255.0


def write_probability(path: str | Path, probability: np.ndarray) -> None:
    """Write probabilities (H, W) in [0, 1], rounded to steps of 1/255."""
    write_png(path, np.rint(np.clip(probability, 0.0, 1.0) * 255.0).astype(np.uint8))
