"""The kinds of error, with what each declares, and the presets that mix them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ultrarefiner.registry import Registry
from ultrarefiner.training.corruptions.lesion import LesionShape
from ultrarefiner.training.corruptions.outlines import (
    PERFECT,
    boundary_jitter,
    empty_prediction,
    giant_over_segmentation,
    identity,
    over_segmentation,
    shift_wrong_location,
    under_segmentation,
)
from ultrarefiner.training.corruptions.sketch import Corruption
from ultrarefiner.training.corruptions.structures import (
    bridge_adhesion,
    false_positive_islands,
    fragmentation,
    internal_holes,
    missing_chunk,
    noise_only_scatter,
)

BANDS: Mapping[str, tuple[float, float]] = {
    "perfect": (PERFECT, 1.0),
    "mild": (0.80, PERFECT),
    "heavy": (0.0, 0.80),
}
"""Dice of each band of quality: from, and below; a perfect mask may have 1."""

CORRUPTIONS: Registry[Corruption] = Registry(
    "kind of corruption",
    {
        "identity": Corruption(
            identity,
            "no error, or one of a few pixels",
            measure="dice",
            mildest=1.0,
            worst=PERFECT,
            area_ratio=(0.98, 1.02),
            dice=(PERFECT, 1.0),
            probability=0.15,
            wobbles=False,
            tolerance=0.0,
        ),
        "over_segmentation": Corruption(
            over_segmentation,
            "grown on all sides, or mostly to one",
            measure="area",
            mildest=1.2,
            worst=3.0,
            area_ratio=(1.2, 3.0),
            dice=(0.48, 0.91),
            probability=0.17,
        ),
        "under_segmentation": Corruption(
            under_segmentation,
            "shrunk unevenly",
            measure="area",
            mildest=0.9,
            worst=0.4,
            area_ratio=(0.4, 0.9),
            dice=(0.55, 0.95),
            probability=0.17,
            with_smallness=1.0,
        ),
        "giant_over_segmentation": Corruption(
            giant_over_segmentation,
            "many times too large, with or without lumps",
            measure="area",
            mildest=3.0,
            worst=20.0,
            area_ratio=(3.0, 20.0),
            dice=(0.09, 0.50),
            probability=0.10,
            with_smallness=1.0,
        ),
        "missing_chunk": Corruption(
            missing_chunk,
            "a wedge, a bite or a side is cut off",
            measure="area",
            mildest=0.95,
            worst=0.70,
            area_ratio=(0.70, 0.95),
            dice=(0.78, 0.98),
            probability=0.12,
            with_irregularity=1.0,
        ),
        "internal_holes": Corruption(
            internal_holes,
            "1 to 3 holes at any depth",
            measure="area",
            mildest=0.98,
            worst=0.55,
            area_ratio=(0.55, 0.98),
            dice=(0.66, 0.99),
            probability=0.10,
            topology="holes added",
            with_smallness=-0.75,
        ),
        "bridge_adhesion": Corruption(
            bridge_adhesion,
            "a band leaves the lesion, with or without a blob at its end",
            measure="area",
            mildest=1.02,
            worst=1.6,
            area_ratio=(1.02, 1.6),
            dice=(0.74, 0.99),
            probability=0.10,
            topology="components kept",
        ),
        "false_positive_islands": Corruption(
            false_positive_islands,
            "1 to 29 islands beside the lesion",
            measure="area",
            mildest=1.02,
            worst=1.9,
            area_ratio=(1.02, 1.9),
            dice=(0.66, 0.99),
            probability=0.17,
            topology="components added",
        ),
        "fragmentation": Corruption(
            fragmentation,
            "1 to 5 wavy cuts take it apart",
            measure="area",
            mildest=0.95,
            worst=0.40,
            area_ratio=(0.40, 0.95),
            dice=(0.54, 0.98),
            probability=0.10,
            topology="components added",
            with_irregularity=1.0,
        ),
        "shift_wrong_location": Corruption(
            shift_wrong_location,
            "moved, half of them turned by 5 to 20 degrees",
            measure="dice",
            mildest=0.95,
            worst=0.35,
            area_ratio=(0.95, 1.05),
            dice=(0.35, 0.95),
            probability=0.10,
        ),
        "empty_prediction": Corruption(
            empty_prediction,
            "nothing (half of them), or at most a twentieth of the lesion",
            measure="area",
            mildest=0.05,
            worst=-0.05,
            area_ratio=(0.0, 0.05),
            dice=(0.0, 0.096),
            probability=0.04,
            with_smallness=2.0,
            wobbles=False,
        ),
        "noise_only_scatter": Corruption(
            noise_only_scatter,
            "10 to 49 specks around the lesion, and not the lesion",
            measure="area",
            mildest=0.04,
            worst=1.0,
            area_ratio=(0.04, 1.0),
            dice=(0.0, 0.0),
            probability=0.03,
            topology="no overlap",
            with_smallness=2.0,
            wobbles=False,
        ),
        "boundary_jitter": Corruption(
            boundary_jitter,
            "the outline wanders in and out",
            measure="dice",
            mildest=0.97,
            worst=0.75,
            area_ratio=(0.93, 1.07),
            dice=(0.75, 0.97),
            probability=0.10,
            with_irregularity=1.0,
            wobbles=False,
        ),
    },
)
"""The kinds by name, in the order of the tables. Probabilities are weights: they need no sum."""


@dataclass(frozen=True)
class Preset:
    """How kinds are mixed.

    Attributes:
        perfect: Share of masks in each band, unless the study sets ``bands``.
        mild: The same.
        heavy: The same.
        factors: By how much the probability of a kind is multiplied; 1 where it is not named.
    """

    perfect: float
    mild: float
    heavy: float
    factors: Mapping[str, float]

    @property
    def bands(self) -> dict[str, float]:
        """The shares by band."""
        return {"perfect": self.perfect, "mild": self.mild, "heavy": self.heavy}


_OUTLINES = ("over_segmentation", "under_segmentation", "boundary_jitter")
_STRUCTURES = (
    "missing_chunk",
    "internal_holes",
    "bridge_adhesion",
    "false_positive_islands",
    "fragmentation",
)
_DISASTERS = (
    "giant_over_segmentation",
    "shift_wrong_location",
    "empty_prediction",
    "noise_only_scatter",
)

PRESETS: Registry[Preset] = Registry(
    "preset of simulated failures",
    {
        "default": Preset(0.10, 0.55, 0.35, {}),
        "mild": Preset(0.20, 0.70, 0.10, dict.fromkeys(_DISASTERS, 0.25)),
        "severe": Preset(0.05, 0.30, 0.65, dict.fromkeys(_DISASTERS, 2.0)),
        "boundary_focus": Preset(
            0.10,
            0.65,
            0.25,
            dict.fromkeys(_OUTLINES, 3.0) | dict.fromkeys((*_STRUCTURES, *_DISASTERS), 0.3),
        ),
        "structural": Preset(
            0.10,
            0.50,
            0.40,
            dict.fromkeys(_STRUCTURES, 3.0) | dict.fromkeys((*_OUTLINES, *_DISASTERS), 0.3),
        ),
    },
)
"""Mixtures of kinds by name."""

# A kind belongs to a band if this much of its Dice range lies in it.
_SHARED = 0.02


def band_of(dice: float) -> str:
    """Return the band of quality of a Dice."""
    return next(name for name, (low, _) in BANDS.items() if dice >= low)


def reaches(kind: str, band: str) -> bool:
    """Return whether a kind can have a Dice of a band."""
    row = CORRUPTIONS[kind]
    low, high = sorted((row.dice_for(row.mildest), row.dice_for(row.worst)))
    start, end = BANDS[band]
    if band == "perfect" or kind == "identity":
        return band == "perfect" and kind == "identity"
    return min(high, end) - max(low, start) >= _SHARED or (low == high and start <= low < end)


def kind_weights(
    preset: str,
    shape: LesionShape,
    band: str | None = None,
    bands: Mapping[str, float] | None = None,
) -> dict[str, float]:
    """Return how likely each kind is for a lesion; the weights sum to 1.

    The probability of the kind, times the factor of the preset, times what smallness and
    irregularity of the lesion make of it. Within a band it is 0 for kinds that cannot have such a
    Dice, and the others are divided by the shares of the bands that they can be of: so a kind that
    is of one band only is not rarer, over all bands, than its probability.

    Args:
        preset: A name of ``PRESETS``.
        shape: Size and shape of the lesion.
        band: The band that the Dice has to fall in; none: any.
        bands: Shares of the bands; none: those of the preset.
    """
    factors, shares = PRESETS[preset].factors, bands or PRESETS[preset].bands
    weights = {}
    for name, row in CORRUPTIONS.items():
        weight = row.probability * factors.get(name, 1.0)
        weight *= row.weight(shape.smallness, shape.irregularity)
        if band is not None:
            weight *= reaches(name, band)
            weight /= sum(share for other, share in shares.items() if reaches(name, other)) or 1.0
        weights[name] = weight
    total = sum(weights.values())
    return {name: weight / total for name, weight in weights.items()}


def draw_name(weights: Mapping[str, float], rng: np.random.Generator) -> str:
    """Draw one of the names by its weight; the weights need no sum."""
    names = list(weights)
    ends = np.cumsum([weights[name] for name in names])
    place = int(np.searchsorted(ends, rng.random() * ends[-1], side="right"))
    return names[min(place, len(names) - 1)]
