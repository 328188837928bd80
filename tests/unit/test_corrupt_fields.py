"""Guards: distances are exact, soft masks agree with hard ones at 0.5, random fields are as smooth as they say."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from tests.lesions import CRESCENT, DIAGONAL, EVERYTHING, drawn, random_lesion
from ultrarefiner.images import read_probability, write_probability
from ultrarefiner.training.corruptions.fields import (
    count_holes,
    count_parts,
    lowest,
    random_field,
    signed_distance,
    soften,
)
from ultrarefiner.training.corruptions.lesion import measure_shape

GOLDEN = Path(__file__).parents[1] / "golden/augmentation/stats.json"


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_signed_distances_are_scipys(seed):
    mask = random_lesion(seed)
    got = signed_distance(mask)
    assert got.dtype == np.float32
    if mask.all():
        assert (got == np.float32(np.hypot(*mask.shape))).all()
        return
    inside = ndimage.distance_transform_edt(mask)
    outside = ndimage.distance_transform_edt(~mask)
    assert np.array_equal(got, (inside - outside).astype(np.float32))


def test_an_empty_mask_has_no_outline_to_be_near_of():
    empty = np.zeros((5, 12), bool)
    assert (signed_distance(empty) == -13).all()
    assert not soften(empty, 3.0).any()


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 10_000), temperature=st.floats(0.01, 300))
def test_soft_masks_are_the_sigmoid_of_the_distance_and_agree_at_one_half(seed, temperature):
    mask = random_lesion(seed)
    soft = soften(mask, temperature)
    assert soft.dtype == np.float32
    assert soft.min() >= 0 and soft.max() <= 1
    assert np.array_equal(soft >= 0.5, mask)
    if not mask.all():
        away = np.clip(signed_distance(mask).astype(float) / temperature, -700, 700)
        assert np.abs(soft - 1 / (1 + np.exp(-away))).max() < 1e-5


@pytest.mark.parametrize("temperature", [0.05, 2.0, 8.0, 200.0])
def test_a_soft_mask_on_disk_still_agrees(tmp_path, temperature):
    mask = np.kron(CRESCENT, np.ones((20, 20))) > 0
    write_probability(tmp_path / "soft.png", soften(mask, temperature))
    assert np.array_equal(read_probability(tmp_path / "soft.png") >= 0.5, mask)


@pytest.mark.parametrize("length", [1.5, 5.0, 20.0])
def test_random_fields_are_of_low_frequency(length):
    expected = [np.exp(-(lag**2) / (4 * length**2)) for lag in range(round(4 * length))]
    products, variances = [], []
    for seed in range(12):
        field = random_field((600, 600), length, np.random.default_rng(seed)).astype(float)
        assert field.shape == (600, 600)
        variances.append(np.mean(field**2))
        products.append(
            [
                (
                    np.mean(field[:, lag:] * field[:, : 600 - lag])
                    + np.mean(field[lag:] * field[: 600 - lag])
                )
                / 2
                for lag in range(len(expected))
            ]
        )
    assert np.mean(variances) == pytest.approx(1, abs=0.15)
    measured = np.mean(products, axis=0) / np.mean(variances)
    assert np.abs(measured - expected).max() < 0.12
    reach = int(np.argmax(measured < 1 / np.e))
    assert reach == pytest.approx(2 * length, abs=1 + 0.2 * length)
    # The reference's "low-frequency" field falls to 1/e within one pixel, whatever its length.
    stored = json.loads(GOLDEN.read_text())["fields"]
    assert stored["20"]["lag_1_over_e_px"] == 1 < reach


def test_a_random_field_is_stationary_up_to_its_borders():
    fields = np.stack(
        [random_field((40, 60), 12.0, np.random.default_rng(seed)) for seed in range(1500)]
    )
    assert np.abs(fields.mean(axis=0)).max() < 0.15
    assert np.abs(fields.std(axis=0) - 1).max() < 0.15


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), count=st.integers(-2, 5000))
def test_lowest_takes_exactly_so_many(seed, count):
    rng = np.random.default_rng(seed)
    allowed = random_lesion(seed)
    score = rng.integers(0, 5, allowed.shape).astype(np.float32)
    chosen = lowest(score, allowed, count)
    assert chosen.sum() == min(max(count, 0), allowed.sum())
    assert not (chosen & ~allowed).any()
    if chosen.any() and (allowed & ~chosen).any():
        assert score[chosen].max() <= score[allowed & ~chosen].min()
    assert lowest(score, None, count).sum() == min(max(count, 0), score.size)


def test_parts_and_holes():
    ring = drawn("####", "#..#", "#.##", "####")
    assert (count_parts(ring), count_holes(ring)) == (1, 1)
    # Lesion pixels touch at corners, so these enclose the middle; background does not.
    diamond = drawn(".#.", "#.#", ".#.")
    assert (count_parts(diamond), count_holes(diamond)) == (1, 1)
    assert (count_parts(DIAGONAL), count_holes(DIAGONAL)) == (2, 0)
    assert (count_parts(EVERYTHING), count_holes(EVERYTHING)) == (1, 0)
    assert count_parts(~EVERYTHING) == count_holes(~EVERYTHING) == 0


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_shapes_of_any_mask(seed):
    shape = measure_shape(random_lesion(seed))
    assert 0 <= shape.circularity <= 1 and 0 < shape.solidity <= 1
    assert 0 <= shape.complexity <= 1 and 0 <= shape.difficulty <= 1
    assert 0 <= shape.smallness <= 1 and 0 <= shape.irregularity <= 1


def test_shapes_of_known_masks():
    y, x = np.mgrid[:512, :512]
    disc = measure_shape((y - 250) ** 2 + (x - 250) ** 2 <= 60**2)
    assert disc.diameter == pytest.approx(120, rel=0.01)
    assert disc.circularity > 0.88 and disc.solidity > 0.97
    assert disc.smallness == 0 and disc.difficulty < 0.2
    square = np.zeros((512, 512), bool)
    square[:10, :20] = True
    assert measure_shape(square).solidity == 1
    assert measure_shape(square).tiny and measure_shape(square).smallness == 1
    # Sizes go by the image's: the same pixels in a small image are no small lesion.
    large = measure_shape(square[:32, :32])
    assert large.scaled_area == 200 * 256 and not large.small
    star = (y - 250) ** 2 + (x - 250) ** 2 <= (
        60 + 40 * np.cos(9 * np.arctan2(y - 250, x - 250))
    ) ** 2
    assert measure_shape(star).irregular and measure_shape(star).difficulty > 0.6
    assert measure_shape(np.zeros((4, 4), bool)).area == 0
