"""Weights by formula: the golden numbers need no weights file, only the names and shapes.

A floating tensor called ``name`` with shape ``s`` is drawn from its own generator,
``numpy.random.default_rng(crc32(name) + seed)``, as standard normals N in float32, then:

* ``...running_var``: 1 + 0.1 |N|; ``...running_mean``: 0.1 N;
* ``...pos_embed`` or ``...position_embeddings``: 0.2 N;
* two or more dimensions: N / sqrt(product of s[1:]);
* one dimension and ``...weight``: 1 + 0.1 N;
* anything else: 0.1 N.

The square root is taken in float64 and rounded to float32; all other arithmetic is float32.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any
from zlib import crc32

import numpy as np

if TYPE_CHECKING:
    import torch

_TENTH = np.float32(0.1)
_ONE = np.float32(1.0)


def standard_normal(name: str, shape: Iterable[int], seed: int = 0) -> np.ndarray:
    """Return the normals that belong to ``name``, float32 of shape ``shape``."""
    generator = np.random.default_rng(crc32(name.encode("utf-8")) + seed)
    return generator.standard_normal(tuple(shape), dtype=np.float32)


def over_root(normal: np.ndarray, fan: int) -> np.ndarray:
    """Return ``normal / sqrt(fan)`` in float32, the root rounded from float64."""
    return normal / np.float32(math.sqrt(fan))


def formula_tensor(name: str, shape: Iterable[int], seed: int = 0) -> np.ndarray:
    """Return the float32 values of the state-dict entry ``name`` with shape ``shape``."""
    shape = tuple(int(size) for size in shape)
    normal = standard_normal(name, shape, seed)
    if name.endswith("running_var"):
        return _ONE + _TENTH * np.abs(normal)
    if name.endswith("running_mean"):
        return _TENTH * normal
    if name.endswith(("pos_embed", "position_embeddings")):
        return np.float32(0.2) * normal
    if len(shape) >= 2:
        return over_root(normal, math.prod(shape[1:]))
    if len(shape) == 1 and name.endswith("weight"):
        return _ONE + _TENTH * normal
    return np.asarray(_TENTH * normal, dtype=np.float32)


def formula_state_dict(
    shapes: Mapping[str, Iterable[int]] | Iterable[tuple[str, Iterable[int]]], seed: int = 0
) -> dict[str, np.ndarray]:
    """Return ``{name: formula_tensor(name, shape)}`` for a mapping or pairs of names and shapes.

    Give only floating entries: the formula leaves integer buffers alone.
    """
    pairs = shapes.items() if isinstance(shapes, Mapping) else shapes
    return {name: formula_tensor(name, shape, seed) for name, shape in pairs}


def fill_with_formula(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Overwrite every floating state-dict entry of ``module`` in place and return the module.

    Names are the module's own; values are the float32 formula converted to each entry's dtype.
    """
    import torch

    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if tensor.is_floating_point():
                values = np.asarray(formula_tensor(name, tensor.shape, seed))
                tensor.copy_(torch.from_numpy(values))
    return module


def imagenet21k_array(name: str, shape: Iterable[int], seed: int = 0) -> np.ndarray:
    """Return the float32 values of an array of a synthetic ``R50+ViT-B_16.npz``.

    ``.../scale``: 1 + 0.1 N; ``.../bias``: 0.1 N; the position embedding: 0.5 N; kernels:
    N / sqrt(fan), the fan being s[0] for query, key and value, else the product of s[:-1].
    """
    shape = tuple(int(size) for size in shape)
    normal = standard_normal(name, shape, seed)
    if name.endswith("/scale"):
        return _ONE + _TENTH * normal
    if name.endswith("/bias"):
        return _TENTH * normal
    if name.endswith("/pos_embedding"):
        return np.float32(0.5) * normal
    heads_last = name.endswith(("query/kernel", "key/kernel", "value/kernel"))
    return over_root(normal, shape[0] if heads_last else math.prod(shape[:-1]))


def sums(values: Any) -> tuple[float, float]:
    """Return the sum and the sum of absolute values, in float64."""
    values = np.asarray(values, dtype=np.float64)
    return float(values.sum()), float(np.abs(values).sum())
