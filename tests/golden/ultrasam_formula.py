"""UltraSAM's weights by formula, under its own names, with the two adjustments of the golden run.

The pure formula gives masks that are lesion nearly everywhere, so the upscaling kernels are
smoothed (each becomes 2 x its mean over the kernel + 0.1 x itself) and four biases are shifted.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from tests.golden.formula import formula_tensor

FOLDER = Path(__file__).parent / "ultrasam"


def ultrasam_shapes() -> dict[str, tuple[int, ...]]:
    """Return the shapes of the released model's 293 tensors by name."""
    return {name: tuple(shape) for name, shape in keys()["state_dict"]}


def keys() -> dict:
    """Return the golden table of names."""
    return json.loads((FOLDER / "keys.json").read_text())


def ultrasam_formula_state() -> dict[str, np.ndarray]:
    """Return float32 values for all tensors of the released model."""
    shifts = json.loads((FOLDER / "weight_adjustments.json").read_text())["add"]
    state = {}
    for name, shape in ultrasam_shapes().items():
        value = formula_tensor(name, shape).astype(np.float64)
        if "output_upscaling" in name and value.ndim == 4:
            value = 2 * value.mean(axis=(-2, -1), keepdims=True) + 0.1 * value
        value = value + np.array(shifts.get(name, 0.0))
        state[name] = value.astype(np.float32)
    return state
