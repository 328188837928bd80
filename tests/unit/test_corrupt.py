"""Guards: a simulated mask of any kind, size and lesion keeps its kind's promise, or says that it could not."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from tests.lesions import EVERYTHING, ONE_PIXEL, random_lesion
from ultrarefiner.errors import ConfigError
from ultrarefiner.training.corrupt import BANDS, CORRUPTIONS, band_of, corrupt_mask

KINDS = list(CORRUPTIONS)
EIGHT = np.ones((3, 3))


def parts(mask):
    return ndimage.label(mask, EIGHT)[1]


def holes(mask):
    return ndimage.label(np.pad(~mask, 1, constant_values=True))[1] - 1


def ordinary(seed, side=256):
    """Return a lesion of one part that no kind finds too small: a wavy blob off the border."""
    rng = np.random.default_rng(seed)
    height, width = side, int(side * rng.uniform(0.8, 1.5))
    y, x = np.mgrid[:height, :width].astype(float)
    y, x = y - height * rng.uniform(0.35, 0.65), x - width * rng.uniform(0.35, 0.65)
    angle = np.arctan2(y, x)
    waves = sum(
        rng.uniform(-0.15, 0.15) * np.cos(order * angle + rng.uniform(0, 7))
        for order in range(2, 6)
    )
    return np.hypot(y, x * rng.uniform(0.6, 1.6)) <= side * rng.uniform(0.05, 0.13) * (1 + waves)


def check(truth, made):
    """Assert what holds for every result, and for one that says it reached its range."""
    row = CORRUPTIONS[made.kind]
    assert made.mask.dtype == bool and made.mask.shape == truth.shape
    assert made.soft.dtype == np.float32 and made.soft.shape == truth.shape
    assert np.array_equal(made.soft >= 0.5, made.mask)
    assert made.soft.min() >= 0 and made.soft.max() <= 1
    assert set(np.unique(made.soft)) <= {0, 1} or made.temperature is not None
    both = truth.sum() + made.mask.sum()
    assert made.dice == pytest.approx(2 * (truth & made.mask).sum() / both if both else 1.0)
    assert made.band == band_of(made.dice)
    assert 0 <= made.severity <= 1
    assert made.reached == (made.reason == "")
    if not truth.any():
        return
    assert made.area_ratio == pytest.approx(made.mask.sum() / truth.sum())
    if made.reached:
        slack = row.tolerance
        low, high = row.area_ratio
        assert low * (1 - slack) <= made.area_ratio <= high * (1 + slack)
        low, high = row.dice
        assert low * (1 - slack) <= made.dice <= high * (1 + slack)
        assert made.dice < 1 or made.kind == "identity"


def check_topology(truth, made):
    topology = CORRUPTIONS[made.kind].topology
    if topology == "holes added":
        assert holes(made.mask) > holes(truth)
    elif topology == "components added":
        assert parts(made.mask) > parts(truth)
    elif topology == "components kept":
        assert parts(made.mask) <= parts(truth)
    elif topology == "no overlap":
        assert made.mask.any() and not (truth & made.mask).any()


def test_all_kinds_are_there():
    assert len(KINDS) == 13
    assert KINDS[0] == "identity" and KINDS[-1] == "boundary_jitter"
    for row in CORRUPTIONS.values():
        ends = (row.amount(0.0), row.amount(1.0))
        declared = row.area_ratio if row.measure == "area" else row.dice
        assert {max(0.0, end) for end in ends} == set(declared)
        assert row.severity(row.amount(0.25)) == pytest.approx(0.25)


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 100_000), kind=st.sampled_from(KINDS))
def test_any_mask_any_kind(seed, kind):
    truth = random_lesion(seed)
    before = truth.copy()
    for severity in (None, 0.0, 0.5, 1.0, *BANDS):
        made = corrupt_mask(truth, np.random.default_rng(seed), kind, severity)
        assert made.kind == kind
        check(truth, made)
        if made.reached:
            check_topology(truth, made)
            assert severity not in BANDS or made.band == severity
    assert np.array_equal(truth, before)


@pytest.mark.parametrize("kind", KINDS)
def test_ordinary_lesions_get_what_is_declared(kind):
    for seed in range(12):
        truth = ordinary(seed)
        made = corrupt_mask(truth, np.random.default_rng(seed), kind)
        check(truth, made)
        check_topology(truth, made)
        assert made.reached, (seed, made)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("severity", [0.0, 0.35, 0.7, 1.0])
def test_severity_is_the_amount(kind, severity):
    row = CORRUPTIONS[kind]
    for seed in range(4):
        truth = ordinary(seed, side=320)
        made = corrupt_mask(truth, np.random.default_rng(seed), kind, severity, soft=0.0)
        asked = max(0.0, row.amount(severity))
        got = made.area_ratio if row.measure == "area" else made.dice
        if made.reached:
            assert got == pytest.approx(asked, rel=0.1, abs=1 / truth.sum())
            # The recorded severity is the one that was asked for.
            assert made.severity == pytest.approx(severity)
        else:
            assert kind in ("giant_over_segmentation", "fragmentation", "internal_holes")


@pytest.mark.parametrize("band", ["mild", "heavy"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_meets_a_band_or_says_that_it_cannot(kind, band):
    cannot = {
        "mild": {"identity", "giant_over_segmentation", "empty_prediction", "noise_only_scatter"},
        "heavy": {"identity", "missing_chunk"},
    }
    for seed in range(5):
        truth = ordinary(seed)
        made = corrupt_mask(truth, np.random.default_rng(seed), kind, band)
        check(truth, made)
        if kind in cannot[band]:
            assert not made.reached and f"is not {band}" in made.reason
        else:
            assert made.band == band and made.reached, made


def test_perfect_masks_are_the_truth_or_nearly():
    made = [
        corrupt_mask(ordinary(0), np.random.default_rng(seed), severity="perfect")
        for seed in range(40)
    ]
    assert {mask.kind for mask in made} == {"identity"}
    assert min(mask.dice for mask in made) >= 0.99
    assert 5 < sum(mask.dice == 1 for mask in made) < 35


@pytest.mark.parametrize("depth", [8, 30, 60])
def test_holes_are_made_at_any_depth(depth):
    y, x = np.mgrid[:200, :200]
    truth = (y - 100) ** 2 + (x - 100) ** 2 <= 80**2
    inside = ndimage.distance_transform_edt(truth)
    made = [
        corrupt_mask(truth, np.random.default_rng(seed), "internal_holes", 0.1)
        for seed in range(60)
    ]
    gone = [inside[truth & ~mask.mask] for mask in made if not mask.jittered]
    assert len(gone) > 10
    assert any(hole.min() <= depth <= hole.max() for hole in gone)
    assert min(hole.min() for hole in gone) >= 2


def test_bridges_reach_far_and_islands_stay_apart():
    y, x = np.mgrid[:300, :300]
    truth = (y - 150) ** 2 + (x - 150) ** 2 <= 40**2
    outside = ndimage.distance_transform_edt(~truth)
    lengths = [
        outside[corrupt_mask(truth, np.random.default_rng(seed), "bridge_adhesion").mask].max()
        for seed in range(30)
    ]
    # Up to 1.2 diameters, at up to 45 degrees from straight outwards.
    assert max(lengths) > 50 and min(lengths) > 5
    for kind in ("false_positive_islands", "noise_only_scatter"):
        made = corrupt_mask(truth, np.random.default_rng(1), kind)
        assert outside[made.mask & (outside > 0)].min() >= 1
        assert parts(made.mask) > 1


@pytest.mark.parametrize("kind", KINDS)
def test_errors_scale_with_the_image(kind):
    """A lesion in an image of twice the side gets errors of twice the length."""
    small = ordinary(3, side=160)
    large = np.kron(small, np.ones((2, 2))) > 0
    for severity in (0.2, 0.8):
        results = [
            np.mean(
                [
                    corrupt_mask(mask, np.random.default_rng(seed), kind, severity).dice
                    for seed in range(6)
                ]
            )
            for mask in (small, large)
        ]
        assert results[0] == pytest.approx(results[1], abs=0.05)


def test_temperature_scales_with_the_image():
    truth = np.zeros((64, 64), bool)
    truth[20:40, 20:40] = True
    soft = {}
    for times in (1, 4):
        mask = np.kron(truth, np.ones((times, times))) > 0
        made = corrupt_mask(
            mask, np.random.default_rng(0), "identity", 0.0, soft=1.0, temperature=(8.0, 8.0)
        )
        assert made.temperature == 8.0
        soft[times] = made.soft[30 * times, 12 * times]
    assert soft[1] == pytest.approx(soft[4], abs=0.03)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_the_share_of_soft_masks(share):
    made = [
        corrupt_mask(ordinary(0), np.random.default_rng(seed), soft=share).temperature
        for seed in range(60)
    ]
    soft = [value for value in made if value is not None]
    assert len(soft) / len(made) == pytest.approx(share, abs=0.2)
    assert all(2 <= value <= 8 for value in soft)


@pytest.mark.parametrize("shape", [(8, 8), (1, 1), (100, 60)])
def test_an_empty_mask_stays_empty_but_for_false_positives(shape):
    truth = np.zeros(shape, np.uint8)
    for kind in (None, *KINDS):
        made = corrupt_mask(truth, np.random.default_rng(3), kind)
        check(truth > 0, made)
        if kind in ("false_positive_islands", "noise_only_scatter") and shape != (1, 1):
            assert made.kind == kind and made.mask.any()
            assert (made.dice, made.area_ratio) == (0.0, math.inf)
        else:
            assert made.kind == "identity" and not made.mask.any()
            assert made.dice == 1 and "empty" in made.reason


@pytest.mark.parametrize(
    ("truth", "kind", "severity"),
    [
        (EVERYTHING, "giant_over_segmentation", None),
        (EVERYTHING, "false_positive_islands", None),
        (EVERYTHING, "noise_only_scatter", None),
        (ONE_PIXEL, "internal_holes", None),
        (ONE_PIXEL, "fragmentation", 0.5),
        (ordinary(0), "giant_over_segmentation", "mild"),
        (np.kron(EVERYTHING, np.ones((9, 9))) > 0, "shift_wrong_location", 1.0),
    ],
)
def test_what_cannot_be_is_said(truth, kind, severity):
    made = corrupt_mask(truth, np.random.default_rng(0), kind, severity)
    check(truth, made)
    assert not made.reached and made.reason


def test_a_giant_without_room_takes_what_there_is():
    truth = np.zeros((60, 60), bool)
    truth[5:35, 5:35] = True
    asked = corrupt_mask(truth, np.random.default_rng(0), "giant_over_segmentation", 1.0)
    assert asked.mask.all() and not asked.reached
    assert "instead of 20" in asked.reason
    drawn = corrupt_mask(truth, np.random.default_rng(0), "giant_over_segmentation")
    assert drawn.reached and 3 <= drawn.area_ratio <= 3.6


def test_uint8_and_bool_masks_are_the_same():
    truth = ordinary(1)
    results = [
        corrupt_mask(mask, np.random.default_rng(5)).soft
        for mask in (truth, truth.astype(np.uint8), truth * np.uint8(255), np.asfortranarray(truth))
    ]
    assert all(np.array_equal(results[0], other) for other in results[1:])


def test_wrong_arguments_are_refused():
    truth, rng = ordinary(0), np.random.default_rng(0)
    with pytest.raises(ConfigError, match="over_segmentation"):
        corrupt_mask(truth, rng, "over_segmentaton")
    with pytest.raises(ConfigError, match="heavy"):
        corrupt_mask(truth, rng, severity="heavi")
    with pytest.raises(ConfigError, match="default"):
        corrupt_mask(truth, rng, preset="defualt")
    with pytest.raises(ValueError, match="from 0 to 1"):
        corrupt_mask(truth, rng, "identity", 1.5)
    with pytest.raises(ValueError, match="two dimensions"):
        corrupt_mask(truth[None], rng)
