"""What a module in memory is known by."""

from __future__ import annotations

import hashlib

import numpy as np
from torch import nn


def module_sha256(module: nn.Module) -> str:
    """Return a SHA-256 of a module's tensors, whatever LoRA layers are called."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(value.cpu().numpy()))
    return digest.hexdigest()
