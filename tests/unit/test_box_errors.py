"""Guards that errors of boxes are measured on validation cases and put on other boxes unchanged."""

import logging
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.training_fixture import make_study, write_splits
from ultrarefiner.datasets.loader import read_prepared
from ultrarefiner.errors import LeakError, SplitError, UltraRefinerError
from ultrarefiner.io import read_json, write_json
from ultrarefiner.prompts.geometry import tight_box
from ultrarefiner.training import box_errors
from ultrarefiner.training.box_errors import (
    LEAST_SIDE,
    BoxErrors,
    box_error,
    jittered,
    measure_boxes,
    read_box_errors,
)
from ultrarefiner.training.checkpoint import load_model
from ultrarefiner.training.coarse_segmenter import predict
from ultrarefiner.training.data import CoarseData

pytestmark = pytest.mark.usefixtures("one_thread")


def measure(study, model, output, splits=None, fold=0):
    measure_boxes(
        model=model / "model.safetensors",
        card=model / "card.json",
        prepared=study[0],
        splits=splits or study[1],
        fold=fold,
        flips=False,
        output=output,
        device="cpu",
    )
    return read_json(output)


def content(errors, **more):
    """Return what a file of measured errors holds."""
    about = {"model": "m", "dataset": "d", "fold": 0, "selection": "validation"}
    about |= {"weights_sha256": "0" * 64, "trained_on": ["t"], "selected_on": list(errors)}
    about |= {"cases": list(errors), "errors": errors, "misses": [], "without_lesion": []}
    return about | more


def draw_box(draw, height, width):
    def edges(limit):
        low = draw(st.integers(0, limit - 1))
        return low, draw(st.integers(low + 1, limit))

    (x0, x1), (y0, y1) = edges(width), edges(height)
    return x0, y0, x1, y1


def test_signs_and_shares_are_what_the_documentation_says():
    true = (10, 20, 50, 40)  # 40 wide, 20 high
    assert box_error(true, true) == (0, 0, 0, 0)
    assert box_error((6, 18, 54, 42), true) == (-0.1, -0.1, 0.1, 0.1), "too large all round"
    assert box_error((14, 22, 46, 38), true) == (0.1, 0.1, -0.1, -0.1), "too small all round"
    assert box_error((18, 20, 58, 40), true) == (0.2, 0, 0.2, 0), "shifted right"
    assert jittered((0, 0, 10, 100), (0.5, 0.1, 0.5, -0.2), (200, 200)) == (5, 10, 15, 80)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_the_error_of_a_predicted_box_on_its_true_box_gives_the_predicted_box(data):
    height, width = data.draw(st.integers(1, 900)), data.draw(st.integers(1, 900))
    true, predicted = (draw_box(data.draw, height, width) for _ in range(2))
    made = jittered(true, box_error(predicted, true), (height, width))
    assert all(type(edge) is int for edge in made)
    if min(predicted[2] - predicted[0], predicted[3] - predicted[1]) >= LEAST_SIDE:
        assert made == predicted


@settings(max_examples=300, deadline=None)
@given(data=st.data(), errors=st.tuples(*[st.floats(-30, 30)] * 4))
def test_a_jittered_box_lies_in_the_image_and_has_two_pixels(data, errors):
    height, width = data.draw(st.integers(1, 300)), data.draw(st.integers(1, 300))
    x0, y0, x1, y1 = jittered(draw_box(data.draw, height, width), errors, (height, width))
    assert x0 >= 0 and x1 <= width and x1 - x0 >= min(LEAST_SIDE, width)
    assert y0 >= 0 and y1 <= height and y1 - y0 >= min(LEAST_SIDE, height)


def test_boxes_are_measured_on_the_validation_cases_alone(toy_study, toy_model, tmp_path):
    found = measure(toy_study, toy_model, tmp_path / "box_errors.json")
    card = read_json(toy_model / "card.json")
    assert found["cases"] == toy_study[2]["validation"] == found["selected_on"]
    assert found["weights_sha256"] == card["weights_sha256"]
    assert (found["model"], found["fold"], found["selection"]) == ("tiny", 0, "validation")
    net, _ = load_model(toy_model / "model.safetensors", toy_model / "card.json")
    data = CoarseData.read(toy_study[0], found["cases"], 32)
    expected = {
        data.cases[one.index]: list(
            box_error(tight_box(one.mask), tight_box(data.truths[one.index]))
        )
        for one in predict(net, data, 2)
        if one.mask.any()
    }
    assert found["errors"] == expected
    assert set(found["misses"]) == set(found["cases"]) - set(expected)
    read = read_box_errors([tmp_path / "box_errors.json"])
    assert read.errors.tolist() == [expected[case] for case in sorted(expected)]
    assert read.seen == set(toy_study[2]["train"]) | set(toy_study[2]["validation"])
    assert read.sources[0]["weights_sha256"] == card["weights_sha256"]


def test_what_the_fold_tests_changes_nothing(toy_study, toy_model, tmp_path):
    prepared, splits, roles = make_study(tmp_path)
    for case in roles["test"]:
        (prepared / "npz" / f"{case}.npz").unlink()
    first = measure(toy_study, toy_model, tmp_path / "a.json")
    assert measure((prepared, splits), toy_model, tmp_path / "b.json") == first


def test_misses_and_cases_without_a_lesion_are_counted_not_measured(
    toy_study, toy_model, tmp_path, monkeypatch
):
    """The model's answers are set by hand, since a trained one misses when it likes."""
    roles = {"train": toy_study[2]["train"], "validation": ["toy__5", "toy__6", "toy__7"]}
    write_splits(tmp_path / "splits.csv", roles)
    label = read_prepared(toy_study[0], "toy__6")[1].astype(bool)
    answers = {
        "toy__5": (np.zeros((9, 9), bool), np.ones((9, 9), bool)),
        "toy__6": (label, label),
        "toy__7": (np.ones((9, 9), bool), np.zeros((9, 9), bool)),
    }

    def segment_cases(segmenter, prepared, cases, flips):
        for case in cases:
            yield case, SimpleNamespace(mask=answers[case][0]), answers[case][1]

    monkeypatch.setattr(box_errors, "segment_cases", segment_cases)
    found = measure(toy_study, toy_model, tmp_path / "out.json", tmp_path / "splits.csv")
    assert found["misses"] == ["toy__5"] and found["without_lesion"] == ["toy__7"]
    assert found["errors"] == {"toy__6": [0.0, 0.0, 0.0, 0.0]}
    assert read_box_errors([tmp_path / "out.json"]).misses == 1


def test_models_that_trained_on_the_cases_or_are_of_another_fold_are_refused(
    toy_study, toy_model, tmp_path
):
    roles = toy_study[2]
    write_splits(tmp_path / "leak.csv", {"train": roles["test"], "validation": roles["train"]})
    with pytest.raises(LeakError, match=roles["train"][0]):
        measure(toy_study, toy_model, tmp_path / "x.json", tmp_path / "leak.csv")
    with pytest.raises(SplitError, match="is of fold 0, and fold 1"):
        measure(toy_study, toy_model, tmp_path / "x.json", fold=1)
    assert not (tmp_path / "x.json").exists()


def test_whole_rows_are_drawn_each_as_often(tmp_path):
    rng = np.random.default_rng(0)
    rows = {f"c{i}": rng.normal(0, 0.2, 4).tolist() for i in range(8)}
    write_json(tmp_path / "a.json", content({k: rows[k] for k in list(rows)[:5]}, misses=["x"]))
    # Cases in another order draw the same.
    write_json(tmp_path / "b.json", content({k: rows[k] for k in list(rows)[:4:-1]}, fold=1))
    read = read_box_errors([tmp_path / "a.json", tmp_path / "b.json"])
    assert read.errors.tolist() == list(rows.values()) and read.misses == 1
    assert [source["boxes"] for source in read.sources] == [5, 3]
    draws = [read.draw(np.random.default_rng(i)) for i in range(4000)]
    counts = [draws.count(tuple(row)) for row in rows.values()]
    assert sum(counts) == 4000, "no mixture of rows"
    assert min(counts) > 400 and max(counts) < 600
    assert np.allclose(np.mean(draws, axis=0), read.errors.mean(axis=0), atol=0.02)


def test_nothing_measured_means_true_boxes_and_a_warning(tmp_path, caplog):
    write_json(tmp_path / "a.json", content({}, misses=["c1", "c2"], cases=["c1", "c2"]))
    with caplog.at_level(logging.WARNING):
        read = read_box_errors([tmp_path / "a.json"])
    assert "2 misses" in caplog.text and "true ones" in caplog.text
    assert read.draw(np.random.default_rng(0)) == (0, 0, 0, 0)
    assert jittered((3, 4, 9, 8), read.draw(np.random.default_rng(0)), (20, 20)) == (3, 4, 9, 8)
    assert BoxErrors(np.empty((0, 4))).draw(np.random.default_rng(0)) == (0, 0, 0, 0)


@pytest.mark.parametrize(
    "value",
    [
        [],
        {"errors": {"a": [0, 0, 0, 0]}},
        content({"a": [0, 0, 0]}),
        content({"a": [0, 0, 0, "1"]}),
        content({}, misses=None),
        {key: value for key, value in content({}).items() if key != "trained_on"},
    ],
)
def test_a_file_of_something_else_is_refused(tmp_path, value):
    write_json(tmp_path / "a.json", value)
    with pytest.raises(UltraRefinerError, match=r"a\.json holds no errors of boxes"):
        read_box_errors([tmp_path / "a.json"])
    with pytest.raises(UltraRefinerError, match=r"cannot read .*absent\.json"):
        read_box_errors([tmp_path / "absent.json"])
