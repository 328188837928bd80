"""Guards: the surface metrics equal MedPy's on 60 stored mask pairs, and empty masks follow the policy."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from ultrarefiner.evaluation.metrics import assd, dice, hd95, iou, nsd, score_case

FOLDER = Path(__file__).parent / "metrics"
ROWS = json.loads((FOLDER / "metrics.json").read_text())["rows"]
EMPTY = {"both_empty", "vol_both_empty", "pred_empty", "gt_empty", "vol_one_empty"}


def masks(row):
    with np.load(FOLDER / "masks.npz") as stored:
        shape = tuple(stored[f"{row['i']:02d}.shape"])
        size = int(np.prod(shape))
        return [
            np.unpackbits(stored[f"{row['i']:02d}.{side}"], count=size).astype(bool).reshape(shape)
            for side in "ab"
        ]


def test_all_pairs_are_stored():
    assert len(ROWS) == 60
    assert {row["name"] for row in ROWS} > EMPTY
    assert sum(len(row["shape"]) == 3 for row in ROWS) > 10


@pytest.mark.parametrize("row", ROWS, ids=[row["name"] for row in ROWS])
def test_pair(row):
    prediction, truth = masks(row)
    assert (int(prediction.sum()), int(truth.sum())) == (row["na"], row["nb"])
    spacing = row["spacing"] or (1.0, 1.0)
    if row["name"] in EMPTY:
        both = row["na"] == row["nb"] == 0
        assert hd95(prediction, truth, spacing) == (0.0 if both else math.inf)
        assert assd(prediction, truth, spacing) == (0.0 if both else math.inf)
        assert dice(prediction, truth) == iou(prediction, truth) == float(both)
        assert nsd(prediction, truth, spacing) == float(both)
        return
    assert hd95(prediction, truth, spacing) == pytest.approx(row["medpy_hd95"], abs=1e-6)
    assert assd(prediction, truth, spacing) == pytest.approx(row["medpy_assd"], abs=1e-6)
    assert dice(prediction, truth) == pytest.approx(row["medpy_dc"], abs=1e-12)
    assert iou(prediction, truth) == pytest.approx(row["medpy_jc"], abs=1e-12)


def test_no_score_is_infinite():
    for row in ROWS:
        scores = score_case(*masks(row), spacing_mm=row["spacing"])
        finite = {name: value for name, value in scores.items() if isinstance(value, float)}
        assert all(math.isfinite(value) for value in finite.values()), row["name"]
        assert ("hd95_mm" in finite) == (row["spacing"] is not None)
