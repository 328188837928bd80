"""Where and how models run: device and seeds. Imports torch."""

from __future__ import annotations

import logging
import os
import random
from pathlib import Path

import numpy as np
import torch

from ultrarefiner.errors import ConfigError

logger = logging.getLogger(__name__)

_NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")


def choose_device(device: str = "auto") -> torch.device:
    """Return the device called ``device``; ``auto`` is CUDA, else MPS, else the CPU.

    Raises:
        ConfigError: The device is not on this machine.
    """
    here = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if device == "auto":
        if not here["cuda"] and _NVIDIA_DRIVER.exists():
            logger.warning(
                "this machine has an NVIDIA driver, but this torch (%s) cannot use it, so models run "
                "on the CPU; install a torch build for the driver's CUDA version",
                torch.__version__,
            )
        return torch.device(next(name for name, found in here.items() if found))
    if not here.get(device.split(":")[0], False):
        found = ", ".join(name for name, there in here.items() if there)
        raise ConfigError(f"device: {device} is not on this machine (it has {found}); use 'auto'")
    return torch.device(device)


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch (CPU and GPU) and ask torch for deterministic kernels."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(True, warn_only=True)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
