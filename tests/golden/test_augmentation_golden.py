"""Guards: soft masks equal the reference's, and kinds spread as its own where those are no defects."""

import json
from pathlib import Path

import numpy as np
import pytest

from ultrarefiner.config import SimulationConfig
from ultrarefiner.training.corrupt import (
    CORRUPTIONS,
    PRESETS,
    corrupt_mask,
    measure_shape,
    signed_distance,
    simulate_failure,
    soften,
)

FOLDER = Path(__file__).parent / "augmentation"
STATS = json.loads((FOLDER / "stats.json").read_text())


@pytest.fixture(scope="module")
def lesions():
    with np.load(FOLDER / "masks.npz") as stored:
        masks = np.unpackbits(stored["masks"]).reshape(-1, 512, 512).astype(bool)
        assert masks.sum(axis=(1, 2)).tolist() == stored["areas"].tolist()
    return masks


def test_soft_masks_and_distances_are_the_references(lesions):
    with np.load(FOLDER / "soft.npz") as stored:
        for mask, temperature, soft, sdf in zip(
            lesions, stored["temperature"], stored["soft"], stored["sdf"], strict=False
        ):
            assert np.abs(soften(mask, temperature)[::16, ::16] - soft).max() < 1e-5
            # Its distances are negative inside.
            assert np.abs(-signed_distance(mask)[::16, ::16] - sdf).max() < 1e-5


@pytest.mark.parametrize("index", range(len(STATS["props"])))
def test_shapes_are_the_references(lesions, index):
    shape, expected = measure_shape(lesions[index]), STATS["props"][index]
    assert shape.area == expected["area"]
    assert shape.diameter == pytest.approx(expected["diameter"])
    assert shape.circularity == pytest.approx(expected["circularity"], abs=1e-6)
    # The reference's hull runs through the pixels' centres, and is too small.
    assert expected["solidity"] > 1 >= shape.solidity > 0.8


# Its giant kernels end at half the lesion's box, and its erosion to nothing often stops too early.
@pytest.mark.parametrize(
    "kind", sorted(set(STATS["kinds"]) - {"giant_over_segmentation", "empty_prediction"})
)
def test_kinds_spread_as_the_references(lesions, kind):
    made = [
        corrupt_mask(mask, np.random.default_rng([copy, index]), kind, soft=0.0)
        for index, mask in enumerate(lesions)
        for copy in range(2)
    ]
    ours = np.array([[mask.dice, mask.area_ratio] for mask in made])
    expected = STATS["kinds"][kind]
    # Ours are stronger on small lesions, of which there are many here.
    assert ours[:, 0].mean() == pytest.approx(expected["dice"]["mean"], abs=0.12)
    for column, (name, slack) in enumerate((("dice", 0.12), ("area_ratio", 0.5))):
        low, middle, high = np.quantile(ours[:, column], (0.05, 0.5, 0.95))
        assert expected[name]["p5"] - slack <= middle <= expected[name]["p95"] + slack
        assert low <= expected[name]["p50"] + slack and high >= expected[name]["p50"] - slack


def test_giants_are_as_large_as_asked_where_the_references_were_not(lesions):
    asked = [
        corrupt_mask(mask, np.random.default_rng(0), "giant_over_segmentation", 0.8, soft=0.0)
        for mask in lesions
    ]
    assert STATS["kinds"]["giant_over_segmentation"]["area_ratio"]["p95"] < 11
    for mask, made in zip(lesions, asked, strict=True):
        room = mask.size / mask.sum()
        assert made.area_ratio == pytest.approx(min(16.6, room), rel=0.01)
        assert made.reached == (room > 0.9 * 16.6)


def test_the_mixture_has_its_bands_and_the_references_centre(lesions):
    made = [
        simulate_failure(mask, SimulationConfig(), 0, f"case{index}", copy)
        for index, mask in enumerate(lesions)
        for copy in range(15)
    ]
    dice = np.array([mask.dice for mask in made])
    for band, share in PRESETS["default"].bands.items():
        assert np.mean([mask.band == band for mask in made]) == pytest.approx(share, abs=0.04)
    assert dice.mean() == pytest.approx(STATS["default_dice"]["mean"], abs=0.07)
    assert np.median(dice) == pytest.approx(STATS["default_dice"]["p50"], abs=0.04)
    assert {mask.kind for mask in made} == set(CORRUPTIONS)
    assert all(mask.reached for mask in made)
