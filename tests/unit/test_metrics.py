"""Guards: metrics have the values one gets by hand, by brute force and by MedPy, dense or thin."""

import math

import numpy as np
import pytest
from medpy.metric.binary import assd as medpy_assd
from medpy.metric.binary import hd95 as medpy_hd95

from tests.lesions import drawn
from ultrarefiner.evaluation import metrics
from ultrarefiner.evaluation.metrics import (
    assd,
    dice,
    hd95,
    hd95_share,
    iou,
    nsd,
    precision,
    recall,
    score_case,
    surface_distances,
)

PREDICTION = drawn(
    "......",
    ".###..",
    ".###..",
    ".###..",
    "......",
)
TRUTH = drawn(
    "......",
    "..###.",
    "..###.",
    "..###.",
    "..###.",
)


def test_overlaps_by_hand():
    # 9 and 12 pixels, 6 in common, 15 together.
    assert dice(PREDICTION, TRUTH) == pytest.approx(12 / 21)
    assert iou(PREDICTION, TRUTH) == pytest.approx(6 / 15)
    assert precision(PREDICTION, TRUTH) == pytest.approx(6 / 9)
    assert recall(PREDICTION, TRUTH) == pytest.approx(6 / 12)


def test_distances_by_hand():
    # The 3 x 3 square has 8 border pixels, all but its middle one (row 2, column 2), on which the
    # truth's border lies. Its left column and the middle of its top and bottom row:
    to_truth, to_prediction = surface_distances(PREDICTION, TRUTH)
    # Prediction's border in reading order: (1,1) (1,2) (1,3) (2,1) (2,3) (3,1) (3,2) (3,3).
    assert to_truth.tolist() == [1, 0, 0, 1, 1, 1, 0, 1]
    # Truth's border: (1,2) (1,3) (1,4) (2,2) (2,4) (3,2) (3,4) (4,2) (4,3) (4,4); not (2,3) (3,3).
    root = math.sqrt(2)
    assert to_prediction == pytest.approx([0, 0, 1, 1, 1, 0, 1, 1, 1, root])
    pooled = [*to_truth, *to_prediction]
    assert assd(PREDICTION, TRUTH) == pytest.approx((5 + 6 + root) / 18)
    # 18 values: the 95th percentile lies at place 0.95 * 17 = 16.15, between 1 and sqrt(2).
    assert hd95(PREDICTION, TRUTH) == pytest.approx(1 + 0.15 * (root - 1))
    assert nsd(PREDICTION, TRUTH, tolerance=1.0) == pytest.approx(17 / 18)
    assert nsd(PREDICTION, TRUTH, tolerance=0.0) == pytest.approx(pooled.count(0) / 18)
    assert nsd(PREDICTION, TRUTH) == 1.0


def test_percentile_is_of_both_directions_pooled():
    truth = np.zeros((40, 100), dtype=bool)
    truth[5:35, 5:35] = True
    prediction = truth.copy()
    prediction[20, 95] = True
    # One far pixel among more than 200 border pixels is beyond the 95th percentile.
    assert hd95(prediction, truth) == 0.0
    assert max(surface_distances(prediction, truth)[0]) == 61.0


def test_share_of_the_diagonal_does_not_depend_on_the_size_of_a_pixel():
    assert hd95_share(PREDICTION, TRUTH) == hd95(PREDICTION, TRUTH) / math.hypot(5, 6)
    anisotropic = hd95(PREDICTION, TRUTH, (0.5, 2.0)) / math.hypot(2.5, 12.0)
    assert hd95_share(PREDICTION, TRUTH, (0.5, 2.0)) == pytest.approx(anisotropic)
    twice = [np.kron(mask, np.ones((2, 2), dtype=bool)) for mask in (PREDICTION, TRUTH)]
    assert hd95_share(*twice, (0.5, 0.5)) == pytest.approx(hd95(*twice) / math.hypot(10, 12))
    # In the score of a case it is that of the pixels, whatever their size in mm.
    assert score_case(PREDICTION, TRUTH, (0.5, 2.0))["hd95_share"] == hd95_share(PREDICTION, TRUTH)


def test_image_border_is_a_border():
    whole = np.ones((20, 20), dtype=bool)
    inside = np.zeros((20, 20), dtype=bool)
    inside[2:18, 2:18] = True
    # Every pixel of the inner outline is 2 from the outer one.
    assert surface_distances(inside, whole)[0].tolist() == [2.0] * 60


def test_empty_masks():
    empty = np.zeros_like(TRUTH)
    for metric in (hd95, hd95_share, assd):
        assert metric(empty, TRUTH) == metric(TRUTH, empty) == math.inf
        assert metric(empty, empty) == 0.0
    for metric in (dice, iou, nsd, precision, recall):
        assert metric(empty, TRUTH) == metric(TRUTH, empty) == 0.0
        assert metric(empty, empty) == 1.0
    with pytest.raises(ValueError, match="empty"):
        surface_distances(empty, TRUTH)


def test_score_case_puts_the_diagonal_for_a_miss():
    truth = np.zeros((30, 40), dtype=bool)
    truth[3:9, 4:12] = True
    miss = score_case(~np.ones_like(truth), truth, spacing_mm=(0.2, 0.1))
    assert miss["hd95_px"] == miss["assd_px"] == 50.0
    assert miss["hd95_mm"] == pytest.approx(math.hypot(6.0, 4.0))
    assert miss["hd95_share"] == 1.0
    assert miss["dice"] == miss["iou"] == miss["nsd"] == miss["recall"] == miss["precision"] == 0.0
    assert (miss["empty_prediction"], miss["empty_truth"]) == (True, False)
    alarm = score_case(truth, ~np.ones_like(truth))
    assert (alarm["empty_prediction"], alarm["empty_truth"]) == (False, True)
    assert alarm["hd95_px"] == 50.0
    assert alarm["hd95_mm"] is None
    agreement = score_case(~np.ones_like(truth), ~np.ones_like(truth), spacing_mm=(0.2, 0.1))
    assert agreement["dice"] == agreement["nsd"] == 1.0
    assert agreement["hd95_px"] == agreement["hd95_mm"] == 0.0
    assert agreement["empty_prediction"] is agreement["empty_truth"] is True


def random_mask(rng, shape):
    """Return noise of random density, or a box: dense and thin borders."""
    if rng.random() < 0.5:
        found = rng.random(shape) < rng.choice([0.02, 0.3, 0.6, 0.97])
    else:
        found = np.zeros(shape, dtype=bool)
        start = [rng.integers(0, side) for side in shape]
        found[
            tuple(
                slice(a, a + rng.integers(1, side + 1))
                for a, side in zip(start, shape, strict=True)
            )
        ] = True
    found[tuple(rng.integers(0, side) for side in shape)] = True
    return found


def brute_force(prediction, truth, spacing):
    """Return both sets of surface distances by the definition, one element after another."""

    def border(found):
        places = {tuple(int(i) for i in place) for place in np.argwhere(found)}
        steps = np.vstack([np.eye(found.ndim, dtype=int), -np.eye(found.ndim, dtype=int)])
        return sorted(
            place
            for place in places
            if any(tuple(int(i) for i in np.add(place, step)) not in places for step in steps)
        )

    one, two = (np.array(border(found)) * spacing for found in (prediction, truth))
    distances = np.sqrt(((one[:, None] - two[None]) ** 2).sum(-1))
    return distances.min(1), distances.min(0)


@pytest.mark.parametrize("dense", [0.0, 1.0], ids=["distance transform", "tree"])
@pytest.mark.parametrize("seed", range(12))
def test_brute_force_agrees_on_both_ways(seed, dense, monkeypatch):
    monkeypatch.setattr(metrics, "_DENSE", dense)
    rng = np.random.default_rng(seed)
    shape = (rng.integers(1, 25), rng.integers(1, 25)) if seed % 2 else (5, 7, 6)
    spacing = tuple(rng.uniform(0.3, 3.0, len(shape)))
    prediction, truth = random_mask(rng, shape), random_mask(rng, shape)
    expected = brute_force(prediction, truth, spacing)
    for found, wanted in zip(surface_distances(prediction, truth, spacing), expected, strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-9)
    pooled = np.concatenate(expected)
    assert hd95(prediction, truth, spacing) == pytest.approx(np.percentile(pooled, 95))
    assert nsd(prediction, truth, spacing, tolerance=1.3) == pytest.approx((pooled <= 1.3).mean())


@pytest.mark.parametrize("seed", range(20))
def test_medpy_agrees_and_order_does_not_matter(seed):
    rng = np.random.default_rng(100 + seed)
    shape = (60, 80) if seed % 2 else (8, 20, 15)
    spacing = (1.0,) * len(shape) if seed % 4 < 2 else tuple(rng.uniform(0.3, 3.0, len(shape)))
    one, two = random_mask(rng, shape), random_mask(rng, shape)
    assert hd95(one, two, spacing) == pytest.approx(medpy_hd95(one, two, spacing), abs=1e-6)
    assert assd(one, two, spacing) == pytest.approx(medpy_assd(one, two, spacing), abs=1e-6)
    for metric in (dice, iou, hd95, nsd):
        assert metric(one, two, spacing) == metric(two, one, spacing)
    assert precision(one, two) == recall(two, one)


def test_place_and_memory_layout_do_not_matter():
    rng = np.random.default_rng(5)
    one, two = random_mask(rng, (30, 30)), random_mask(rng, (30, 30))
    value = hd95(one, two)
    framed = [np.pad(found, ((7, 90), (40, 3))) for found in (one, two)]
    assert hd95(*framed) == value
    assert hd95(np.asfortranarray(one), two[::1]) == value
    assert hd95(one.astype(np.uint8), two.astype(np.int64)) == value


def test_default_spacing_is_one_along_each_axis_of_a_volume():
    rng = np.random.default_rng(6)
    one, two = random_mask(rng, (5, 9, 8)), random_mask(rng, (5, 9, 8))
    assert hd95(one, two) == hd95(one, two, (1.0, 1.0, 1.0)) == hd95(one, two, 1.0)


def test_arguments_are_not_changed():
    one, two = PREDICTION.copy(), TRUTH.copy()
    score_case(one, two, spacing_mm=(0.1, 0.1))
    assert (one == PREDICTION).all()
    assert (two == TRUTH).all()


def test_negative_tolerance_is_refused():
    with pytest.raises(ValueError, match="tolerance"):
        nsd(PREDICTION, TRUTH, tolerance=-1.0)
