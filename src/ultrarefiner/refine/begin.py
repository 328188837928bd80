"""A refiner that is going to be trained, and what it begins as."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ultrarefiner.models.digests import module_sha256
from ultrarefiner.models.scratch import build_scratch
from ultrarefiner.models.weights import locate_weights
from ultrarefiner.models.weights_record import checked_sha256
from ultrarefiner.refine import REFINERS, load_refiner, parse_options
from ultrarefiner.refine.sam import SamRefiner
from ultrarefiner.registry import resolve


def begin_refiner(
    family: str,
    weights: str | None,
    device: str,
    options: Mapping[str, Any],
    scratch: str | None = None,
    seed: int = 0,
) -> tuple[SamRefiner, dict[str, str]]:
    """Return a refiner to train, and the SHA-256 of each file that it begins as, by its name.

    Args:
        family: Row of ``REFINERS``.
        weights: File or name of the weights; None with ``scratch``, or where the family's options
            say that it begins without.
        device: "cpu", "cuda", "mps" or "auto".
        options: The refiner row's own keys.
        scratch: Begin as a small model with random weights, a row of ``SCRATCH``.
        seed: Seed of what is random.

    Raises:
        ConfigError: Unknown family or option.
        WeightsError: A file is absent, damaged or another model's, or the weights are missing.
    """
    row, given = REFINERS[family], dict(options)
    if row.begin:
        return resolve(row.begin)(weights, device, parse_options(family, given), seed)
    if scratch is None:
        refiner = load_refiner(family, weights, device, **given)
        path = locate_weights(weights)
        return refiner, {path.name: checked_sha256(path)}
    sam = build_scratch(scratch, seed)
    kind = resolve(row.target)
    return kind.of_model(sam, module_sha256(sam), device, parse_options(family, given)), {}
