"""Guards: each row of METRICS is a column of the scores that behaves as its row says."""

import math

import numpy as np
import pytest

from ultrarefiner.evaluation.metrics import METRICS, score_case
from ultrarefiner.evaluation.scores import SCORE_COLUMNS

EMPTY = np.zeros((30, 40), dtype=bool)
FULL = ~EMPTY


def square(top, left, side):
    mask = EMPTY.copy()
    mask[top : top + side, left : left + side] = True
    return mask


TRUTH = square(8, 10, 12)
every_metric = pytest.mark.parametrize("name", list(METRICS))


def best(metric):
    return 1.0 if metric.better == "higher" else 0.0


@every_metric
def test_row_is_described(name):
    metric = METRICS[name]
    assert metric.better in ("higher", "lower")
    assert metric.unit in ("", "px", "mm")
    assert metric.label
    assert name in SCORE_COLUMNS
    assert name.endswith(metric.unit)


@every_metric
def test_perfect_is_best_and_two_empty_masks_agree(name):
    metric = METRICS[name]
    for shape in ((30, 40), (7, 90), (1, 5), (4, 6, 5)):
        whole = np.ones(shape, dtype=bool)
        assert metric.function(whole, whole, (1.0,) * len(shape)) == best(metric)
        assert metric.function(~whole, ~whole, (1.0,) * len(shape)) == best(metric)
    assert metric.function(TRUTH, TRUTH, (1.0, 1.0)) == best(metric)


@every_metric
@pytest.mark.parametrize("masks", [(EMPTY, TRUTH), (TRUTH, EMPTY)], ids=["miss", "false alarm"])
def test_one_empty_mask_is_never_better_than_a_bad_one(name, masks):
    metric = METRICS[name]
    assert metric.function(*masks, (1.0, 1.0)) == (0.0 if metric.better == "higher" else math.inf)
    score = score_case(*masks, spacing_mm=(0.1, 0.2))[name]
    bad = score_case(square(0, 0, 1), square(29, 39, 1), spacing_mm=(0.1, 0.2))[name]
    assert math.isfinite(score)
    assert score <= bad if metric.better == "higher" else score >= bad


@every_metric
def test_worse_mask_scores_worse(name):
    metric = METRICS[name]
    near = metric.function(square(9, 11, 12), TRUTH, (1.0, 1.0))
    far = metric.function(square(16, 22, 12), TRUTH, (1.0, 1.0))
    assert near > far if metric.better == "higher" else near < far


@every_metric
def test_only_units_of_length_follow_the_spacing(name):
    metric = METRICS[name]
    masks = square(16, 22, 12), TRUTH
    one = metric.function(*masks, (1.0, 1.0))
    assert metric.function(*masks) == metric.function(*masks, None) == one
    if metric.unit:
        assert metric.function(*masks, (0.5, 0.5)) == pytest.approx(one / 2)
    known, unknown = score_case(*masks, spacing_mm=(0.5, 0.5)), score_case(*masks)
    assert known[name] == pytest.approx(one / 2 if metric.unit == "mm" else one)
    assert unknown[name] == (None if metric.unit == "mm" else one)


@every_metric
@pytest.mark.parametrize(
    ("prediction", "spacing"),
    [
        (TRUTH[:, :-1], (1.0, 1.0)),
        (TRUTH.astype(np.float32), (1.0, 1.0)),
        (TRUTH.astype(np.uint8) * 255, (1.0, 1.0)),
        (TRUTH[0], (1.0, 1.0)),
        (TRUTH, (1.0, 0.0)),
        (TRUTH, (1.0, -1.0)),
        (TRUTH, (math.nan, 1.0)),
        (TRUTH, (0.5, 0.5, 0.5)),
        (TRUTH, "mm"),
    ],
    ids=["size", "float", "0/255", "1-D", "zero", "negative", "nan", "3 axes", "text"],
)
def test_bad_arguments_are_refused(name, prediction, spacing):
    with pytest.raises(ValueError, match=r"shape|threshold|spacing|bool"):
        METRICS[name].function(prediction, TRUTH, spacing)
