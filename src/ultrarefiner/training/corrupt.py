"""Coarse masks with the errors that networks make, drawn from true masks. No torch.

Everything follows from the generator that is passed, or from ``simulate_failure``'s seed, case and
copy. The kinds are rows of ``CORRUPTIONS``; docs/reference/corruptions.md has the tables.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import cv2
import numpy as np

from ultrarefiner.config import SimulationConfig
from ultrarefiner.errors import ConfigError
from ultrarefiner.io import item_seed
from ultrarefiner.registry import unknown_name
from ultrarefiner.training.corruptions.fields import bounding_slices, signed_distance, soften
from ultrarefiner.training.corruptions.fitting import Fit, Goal, fit
from ultrarefiner.training.corruptions.kinds import (
    BANDS,
    CORRUPTIONS,
    PRESETS,
    band_of,
    draw_name,
    kind_weights,
)
from ultrarefiner.training.corruptions.lesion import (
    REFERENCE_SIDE,
    Lesion,
    LesionShape,
    measure_shape,
)

__all__ = [
    "BANDS",
    "CORRUPTIONS",
    "PRESETS",
    "CorruptedMask",
    "LesionShape",
    "band_of",
    "corrupt_mask",
    "kind_weights",
    "measure_shape",
    "signed_distance",
    "simulate_failure",
    "soften",
]

# Kinds that are tried, where none is asked for, until one meets the band.
_KINDS = 3
# Area of a lesion of an image without any, as a share of the image, by which false positives go.
_ASSUMED = (0.002, 0.02)
_FALSE_POSITIVES = ("false_positive_islands", "noise_only_scatter")


@dataclass(frozen=True)
class CorruptedMask:
    """A simulated coarse mask.

    Attributes:
        mask: bool (H, W).
        soft: float32 (H, W) in [0, 1], at least 0.5 exactly where the mask is.
        kind: A name of ``CORRUPTIONS``.
        dice: Dice of the mask against the truth; 1 if both are empty.
        band: Band of quality of that Dice: perfect, mild or heavy.
        severity: How much of the kind, from 0 to 1.
        area_ratio: Area over the truth's; inf for a false alarm, 1 if both are empty.
        temperature: T in pixels of a 512-pixel image; None for a hard mask, whose soft is 0 and 1.
        jittered: Whether the outline was jittered on top of the kind's error.
        reached: Whether the band or severity that was asked for and what the kind declares were
            reached.
        reason: Why not; empty if they were.
    """

    mask: np.ndarray = field(repr=False)
    soft: np.ndarray = field(repr=False)
    kind: str
    dice: float
    band: str
    severity: float
    area_ratio: float
    temperature: float | None
    jittered: bool
    reached: bool
    reason: str


def simulate_failure(
    label: np.ndarray, config: SimulationConfig, seed: int, case: str, copy: int
) -> CorruptedMask:
    """Return the simulated mask that belongs to a case and a copy's number.

    Args:
        label: The true mask, bool or uint8 (H, W); above 0 is lesion.
        config: Preset, bands, share and temperatures of soft masks.
        seed: Seed of the simulation.
        case: Case id.
        copy: Number of the copy, or of the epoch.
    """
    rng = np.random.default_rng(item_seed("failure", seed, case, copy))
    return corrupt_mask(
        label,
        rng,
        preset=config.preset,
        bands=None if config.bands is None else config.bands.model_dump(),
        soft=config.soft,
        temperature=config.temperature,
    )


def corrupt_mask(
    mask: np.ndarray,
    rng: np.random.Generator,
    kind: str | None = None,
    severity: float | str | None = None,
    *,
    preset: str = "default",
    bands: Mapping[str, float] | None = None,
    soft: float = 0.8,
    temperature: tuple[float, float] = (2.0, 8.0),
) -> CorruptedMask:
    """Return a mask with an error of the kind that coarse networks make.

    Without kind and severity, first the band of quality is drawn, then a kind that can be of that
    band, then how strong it is. Small and irregular lesions get other kinds, stronger errors and
    more often a jittered outline on top.

    Args:
        mask: The true mask, bool or uint8 (H, W); above 0 is lesion.
        rng: Source of all chance.
        kind: A name of ``CORRUPTIONS``; None draws one by the preset.
        severity: A number from 0 to 1; the band that the Dice has to fall in: "perfect", "mild"
            or "heavy"; or None: the band is drawn, or for a given kind its own range is drawn from.
        preset: A name of ``PRESETS``.
        bands: Shares of the bands; None: those of the preset.
        soft: Probability that ``soft`` has soft edges.
        temperature: Range of T in pixels of a 512-pixel image; it grows with the root of the
            image's area.

    Returns:
        The mask and what it is. An empty mask stays empty as kind "identity", unless kind asks for
        false positives.

    Raises:
        ConfigError: An unknown kind, preset or band.
        ValueError: The mask is not of two dimensions, or the severity is outside of 0 to 1.
    """
    truth = np.asarray(mask)
    if truth.ndim != 2 or not truth.size:
        raise ValueError(f"a mask has two dimensions and some pixels, not shape {truth.shape}")
    truth = np.ascontiguousarray(truth > 0)
    shares = bands or PRESETS[preset].bands
    goal = _goal(kind, severity, shares, rng)
    shape = measure_shape(truth)
    if shape.area:
        lesion = Lesion(truth, shape)
        weights = kind_weights(preset, shape, goal.band, shares) if kind is None else {kind: 1.0}
        made = _fit(lesion, weights, goal, rng)
        result = np.zeros_like(truth)
        result[made.window] = made.mask
    else:
        result, made = _without_lesion(truth, kind, goal, rng)
    edges, chosen = result.astype(np.float32), None
    # Drawn in any case, so that what follows does not depend on it.
    draws, drawn = rng.random(), float(rng.uniform(*temperature))
    if draws < soft:
        chosen = drawn
        edges = soften(result, chosen * math.sqrt(truth.size) / REFERENCE_SIDE)
    return CorruptedMask(
        mask=result,
        soft=edges,
        kind=made.kind,
        dice=made.dice,
        band=band_of(made.dice),
        severity=made.severity,
        area_ratio=made.area_ratio,
        temperature=chosen,
        jittered=made.jittered,
        reached=not made.misses,
        reason="; ".join(made.misses),
    )


def _goal(
    kind: str | None,
    severity: float | str | None,
    bands: Mapping[str, float],
    rng: np.random.Generator,
) -> Goal:
    if isinstance(severity, str):
        if severity not in BANDS:
            raise ConfigError(unknown_name("band of quality", severity, BANDS))
        return Goal(band=severity)
    if severity is not None:
        if not 0 <= severity <= 1:
            raise ValueError(f"severity {severity} is not from 0 to 1")
        return Goal(severity=float(severity))
    return Goal(band=draw_name(bands, rng)) if kind is None else Goal()


def _fit(lesion: Lesion, weights: Mapping[str, float], goal: Goal, rng: np.random.Generator) -> Fit:
    """Fit kinds that are drawn by weight, until one meets the goal, and return the best."""
    best: Fit | None = None
    for _ in range(_KINDS):
        name = draw_name(weights, rng)
        made = fit(lesion, name, goal, rng)
        if best is None or made.penalty < best.penalty:
            best = made
        weights = {other: weight for other, weight in weights.items() if other != name}
        if not best.misses or not sum(weights.values()):
            break
    assert best is not None
    return best


def _without_lesion(
    truth: np.ndarray, kind: str | None, goal: Goal, rng: np.random.Generator
) -> tuple[np.ndarray, Fit]:
    """Return what is made of an empty mask: nothing, or false positives if they are asked for."""
    everything = bounding_slices(np.ones_like(truth))
    nothing = Fit(
        kind="identity",
        window=everything,
        mask=truth,
        dice=1.0,
        area_ratio=1.0,
        severity=0.0,
        jittered=False,
        misses=("the mask is empty: there is nothing to corrupt",),
        gap=0.0,
    )
    if kind not in _FALSE_POSITIVES:
        return truth, nothing
    # A lesion that is not there says how large and where the false positives are.
    height, width = truth.shape
    radius = math.sqrt(rng.uniform(*_ASSUMED) * truth.size / math.pi)
    centre = (int(rng.uniform(0.2, 0.8) * width), int(rng.uniform(0.2, 0.8) * height))
    disc = np.zeros(truth.shape, np.uint8)
    cv2.circle(disc, centre, int(radius), 1, -1)
    made = fit(Lesion(disc.view(bool)), kind, Goal(severity=goal.severity), rng)
    result = np.zeros_like(truth)
    result[made.window] = made.mask
    result &= ~disc.view(bool)
    if not result.any():
        return truth, nothing
    misses = (f"Dice 0.00 is not {goal.band}",) if goal.band not in (None, "heavy") else ()
    return result, Fit(kind, everything, result, 0.0, math.inf, made.severity, False, misses, 0.0)
