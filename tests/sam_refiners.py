"""What tests of SAM refiners share: a scene, options for a while, and a look at the decoder's calls."""

from __future__ import annotations

from contextlib import contextmanager
from typing import NamedTuple

import numpy as np


class Call(NamedTuple):
    """One call of the mask decoder."""

    prompts: int
    tokens: int
    multimask: bool


def scene(height, width, seed=0):
    """Return a bright speckled field with a dark ellipse, as uint8 RGB, and the ellipse."""
    rng = np.random.default_rng(seed)
    rows, columns = (np.mgrid[:height, :width] + 0.5) / np.array([height, width])[:, None, None]
    lesion = np.hypot((rows - 0.55) / 0.2, (columns - 0.4) / 0.15) <= 1
    gray = np.where(lesion, 50, 150) * rng.gamma(6.0, 1 / 6, (height, width)) + rows * 30
    channels = np.clip(gray[..., None] * (1.0, 0.9, 0.7), 0, 255)
    return channels.astype(np.uint8), lesion


@contextmanager
def options(refiner, **values):
    """Let a refiner run with other options of its family."""
    before, refiner.options = refiner.options, type(refiner.options)(**values)
    try:
        yield refiner
    finally:
        refiner.options = before


@contextmanager
def decoder_calls(refiner):
    """Collect the calls of the decoder."""
    calls = []

    def note(module, args, kwargs):
        prompts, tokens = kwargs["sparse_prompt_embeddings"].shape[:2]
        calls.append(Call(prompts, tokens, kwargs["multimask_output"]))

    handle = refiner.sam.mask_decoder.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield calls
    finally:
        handle.remove()
