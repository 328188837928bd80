"""Guards what a refiner is trained on: copies stay with their case, validation stays as it is."""

from collections import Counter

import numpy as np
import pytest

from tests.training_fixture import make_study
from ultrarefiner.config import FinetuneConfig, SimulationConfig
from ultrarefiner.errors import UltraRefinerError
from ultrarefiner.images import write_probability
from ultrarefiner.training.data import PreparedCases
from ultrarefiner.training.failures import read_failures, simulate_failures
from ultrarefiner.training.refiner_items import Items


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return make_study(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="module")
def written(study, tmp_path_factory):
    """Three failures of every case of the dataset, of whichever role."""
    folder = tmp_path_factory.mktemp("failures")
    prepared, _, roles = study
    write_cases_table(prepared, [case for cases in roles.values() for case in cases])
    masks = folder / "failures"
    simulate_failures(SimulationConfig(), 0, 3, prepared, masks, folder / "failures.csv")
    table = read_failures(folder / "failures.csv")
    return {case: [masks / one.file for one in rows] for case, rows in table.items()}


@pytest.fixture(scope="module")
def predictions(study, tmp_path_factory):
    """A prediction of each case: its truth moved by a few pixels; that of one case is empty."""
    folder, (prepared, _, roles) = tmp_path_factory.mktemp("predictions"), study
    source, files = PreparedCases(prepared), {}
    for case in [*roles["train"], *roles["validation"]]:
        label = source.read(case)[1].astype(np.float32)
        soft = np.roll(label, 3, axis=1) * 0.8
        files[case] = folder / f"{case}.png"
        write_probability(files[case], soft * 0 if case == roles["train"][0] else soft)
    return files


def write_cases_table(prepared, cases):
    from ultrarefiner.datasets.loader import COLUMNS
    from ultrarefiner.io import write_rows

    blank = dict.fromkeys(COLUMNS, "") | {"height": 1, "width": 1, "sha256": "0", "overlay": "no"}
    blank |= {"border": "no", "look_alikes": 0, "appearance": "0"}
    rows = [{**blank, "case": case, "group": case} for case in cases]
    write_rows(prepared / "cases.csv", COLUMNS, rows)


def make(study, values, **inputs):
    prepared, _, roles = study
    config = FinetuneConfig.model_validate({"seed": 5, **values})
    source = PreparedCases(prepared)
    return Items(config, source, roles["train"], roles["validation"], **inputs)


def keys(items):
    return [(item.case, item.copy, item.origin) for item in items]


def test_an_epoch_shows_every_case_and_depends_on_nothing_but_its_number(study):
    one, other = make(study, {}), make(study, {})
    later = keys(other.epoch(4))
    assert keys(one.epoch(0)) == keys(other.epoch(0))
    assert keys(one.epoch(4)) == later
    assert sorted(item.case for item in one.epoch(0)) == study[2]["train"]
    assert {copy for _, copy, _ in later}.isdisjoint(copy for _, copy, _ in keys(one.epoch(0)))


def test_masks_made_on_the_fly_differ_by_epoch_and_not_by_process(study):
    items = make(study, {})
    case = study[2]["train"][0]
    (first,) = [item for item in items.epoch(0) if item.case == case]
    (second,) = [item for item in items.epoch(1) if item.case == case]
    again = make(study, {}).read(first).coarse
    assert np.array_equal(items.read(first).coarse, again)
    assert not np.array_equal(items.read(first).coarse, items.read(second).coarse)


def test_copies_inherit_the_role_of_their_case(study, written):
    """The table holds copies of validation and test cases too; none of them may train."""
    items = make(study, {"copies": 3}, failures=written)
    roles = study[2]
    trained = [item for epoch in range(5) for item in items.epoch(epoch)]
    assert {item.case for item in trained} == set(roles["train"])
    assert {item.case for item in items.fixed()} == set(roles["validation"])
    assert set(written) == {case for cases in roles.values() for case in cases}


def test_validation_is_the_same_in_every_epoch(study, written, predictions):
    for values, inputs in [
        ({}, {}),
        ({"copies": 3, "curriculum": True}, {"failures": written}),
        ({"data": "predictions"}, {"predictions": predictions}),
        ({"data": "hybrid"}, {"predictions": predictions}),
    ]:
        items = make(study, values, **inputs)
        before = [(key, items.read(item).coarse) for key, item in zip_items(items)]
        items.epoch(3)
        after = [(key, items.read(item).coarse) for key, item in zip_items(items)]
        assert [key for key, _ in before] == [key for key, _ in after]
        for (_, one), (_, other) in zip(before, after, strict=True):
            assert np.array_equal(one, other)


def zip_items(items):
    return [((item.case, item.copy, item.origin), item) for item in items.fixed()]


def test_a_curriculum_begins_with_good_masks_and_reaches_all(study, written):
    values = {"copies": 3, "curriculum": True, "epochs": 10, "batch_size": 2}
    items = make(study, values, failures=written)
    roles, sizes = study[2], []
    means = []
    for epoch in range(10):
        drawn = items.epoch(epoch)
        assert items.count(epoch) == len(drawn)
        assert {item.case for item in drawn} <= set(roles["train"])
        sizes.append(len(drawn))
        means.append(np.mean([items.read(item).dice() for item in drawn]))
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[-1] == len(items.slots)
    assert means[0] > means[-1]


def test_hybrid_mixes_by_its_ratio(study, predictions):
    items = make(study, {"data": "hybrid", "ratio": 0.7}, predictions=predictions)
    drawn = Counter(item.origin for epoch in range(200) for item in items.epoch(epoch))
    # The case whose prediction is empty is always simulated.
    share = drawn["prediction"] / sum(drawn.values())
    assert share == pytest.approx(0.7 * 4 / 5, abs=0.04)


def test_empty_predictions_do_not_train_and_are_counted(study, predictions, caplog):
    items = make(study, {"data": "predictions"}, predictions=predictions)
    empty = study[2]["train"][0]
    assert empty not in {item.case for item in items.epoch(0)}
    assert "1 training masks are empty" in caplog.text


def test_a_case_without_its_mask_stops_the_training(study, predictions):
    missing = {case: path for case, path in predictions.items() if case != study[2]["train"][1]}
    with pytest.raises(UltraRefinerError, match=study[2]["train"][1]):
        make(study, {"data": "predictions"}, predictions=missing)


def test_a_case_of_both_roles_is_refused(study):
    prepared, _, roles = study
    both = [*roles["validation"], roles["train"][0]]
    with pytest.raises(UltraRefinerError, match=roles["train"][0]):
        Items(FinetuneConfig(), PreparedCases(prepared), roles["train"], both)
