"""Gradient checkpointing: what is inside a block of the encoder is computed again, not kept.

Chen et al., Training Deep Nets with Sublinear Memory Cost, 2016, arXiv 1604.06174.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from ultrarefiner.errors import ConfigError


def checkpoint_blocks(sam: nn.Module) -> int:
    """Let the blocks of a model's image encoder keep their input only, in place.

    Losses and gradients are the same: a block runs once more in the backward pass, with the same
    random numbers. Where no gradient is wanted nothing changes. Parameters and their names stay.

    Args:
        sam: A promptable model; the blocks are those of every list ``blocks`` in its
            ``image_encoder``, whatever the encoder's kind.

    Returns:
        How many blocks there are.

    Raises:
        ConfigError: The encoder has no blocks, or they have BatchNorm, whose statistics a second
            run would change.
    """
    encoder = sam.image_encoder
    blocks = [
        block
        for name, module in encoder.named_modules()
        if name.split(".")[-1] == "blocks" and isinstance(module, nn.ModuleList | nn.Sequential)
        for block in module
    ]
    kind = type(encoder).__name__
    if not blocks:
        raise ConfigError(f"checkpointing: the image encoder, a {kind}, has no blocks; remove it")
    if any(isinstance(part, _BatchNorm) for block in blocks for part in block.modules()):
        raise ConfigError(
            f"checkpointing: blocks of the image encoder, a {kind}, have BatchNorm, whose "
            "statistics would change twice in a step; remove it, or make `batch_size` smaller and "
            "`accumulate` larger"
        )
    for block in blocks:
        # A method of this block alone, so that a copy of the model has its own.
        block.forward = MethodType(_checkpointed, block)
    return len(blocks)


def _checkpointed(block: nn.Module, *args: Any, **kwargs: Any) -> Any:
    run = MethodType(type(block).forward, block)
    inputs = [one for one in (*args, *kwargs.values()) if isinstance(one, torch.Tensor)]
    wanted = any(one.requires_grad for one in (*inputs, *block.parameters()))
    if not (wanted and torch.is_grad_enabled()):
        return run(*args, **kwargs)
    return checkpoint(run, *args, use_reentrant=False, **kwargs)
