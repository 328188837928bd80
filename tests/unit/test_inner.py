"""Guards inner folds and their predictions: made by seed alone, at original size, one for each case."""

import json
from collections import Counter, defaultdict

import numpy as np
import pytest

from tests.training_fixture import make_study, tiny_config, train, write_case
from ultrarefiner import images
from ultrarefiner.config import SplitsConfig
from ultrarefiner.datasets.inner import read_groups, split_inner
from ultrarefiner.datasets.loader import read_prepared
from ultrarefiner.datasets.splits import read_split, split_folds
from ultrarefiner.errors import LeakError, SplitError, UltraRefinerError
from ultrarefiner.io import read_rows, write_rows
from ultrarefiner.training.checkpoint import load_model
from ultrarefiner.training.coarse_segmenter import predict
from ultrarefiner.training.data import CoarseData
from ultrarefiner.training.inner import PredictionSource, predict_inner, read_inner_predictions

pytestmark = pytest.mark.usefixtures("one_thread")
COLUMNS = ["case", "group", "fold", "role"]


def outer(tmp_path, sizes, **options):
    """Write cases in groups of these sizes, and their folds; return the table."""
    rows = [
        {"case": f"set__{number:02d}_{i}", "group": f"g{number:02d}", "label": ""}
        for number, size in enumerate(sizes)
        for i in range(size)
    ]
    write_rows(tmp_path / "cases.csv", ["case", "group", "label"], rows)
    options = {"folds": 3, "seed": 1} | options
    split_folds(tmp_path / "cases.csv", None, tmp_path / "splits.csv", SplitsConfig(**options))
    return tmp_path / "splits.csv"


def inner(splits, fold=0, name="inner.csv", **options):
    output = splits.parent / name
    values = {"folds": 3, "seed": 1, "validation": 0.2} | options
    split_inner(splits, fold, **values, output=output)
    return output


def test_each_case_that_the_fold_trains_or_validates_on_is_tested_once(tmp_path):
    splits = outer(tmp_path, [1, 2, 3] * 8, holdout=0.2)
    for fold in range(3):
        roles = read_split(splits, fold)
        table = inner(splits, fold)
        tested = Counter()
        for number in range(3):
            parts = read_split(table, number)
            assert parts["train"] and parts["validation"] and not parts["holdout"]
            assert sorted(case for part in parts.values() for case in part) == sorted(
                roles["train"] + roles["validation"]
            )
            tested.update(parts["test"])
        assert set(tested.values()) == {1}
        assert sorted(tested) == sorted(roles["train"] + roles["validation"])
        sizes = [len(read_split(table, number)["test"]) for number in range(3)]
        assert max(sizes) - min(sizes) <= 2
        by_fold = defaultdict(set)
        for row in read_rows(table):
            by_fold[row["fold"], row["group"]].add(row["role"])
        assert all(len(found) == 1 for found in by_fold.values())
        with pytest.raises(SplitError, match="no fold 3"):
            read_split(table, 3)


def test_the_table_has_the_form_of_outer_splits_and_follows_from_seed_and_sets(tmp_path):
    splits = outer(tmp_path, [1, 2] * 10)
    table = inner(splits)
    first = table.read_bytes()
    assert table.read_text().splitlines()[0] == ",".join(COLUMNS)
    groups = {row["case"]: row["group"] for row in read_rows(splits)}
    assert all(row["group"] == groups[row["case"]] for row in read_rows(table))
    write_rows(splits, COLUMNS, read_rows(splits)[::-1])
    assert inner(splits).read_bytes() == first
    assert inner(splits, seed=2).read_bytes() != first
    # What the fold tests has no say in how the others are shared.
    kept = [row for row in read_rows(splits) if row["role"] != "test" or row["fold"] != "0"]
    write_rows(splits, COLUMNS, kept)
    assert inner(splits).read_bytes() == first


def test_datasets_of_a_union_keep_their_groups_apart_and_are_in_every_inner_fold(tmp_path):
    rows = [
        {"case": f"{name}__{i:02d}", "group": f"g{i // 2}", "fold": 0, "role": "train"}
        for name in ("busi", "stu")
        for i in range(12)
    ]
    rows += [{**row, "case": f"{row['case']}x", "role": "test"} for row in rows]
    write_rows(tmp_path / "splits.csv", COLUMNS, rows)
    table = inner(tmp_path / "splits.csv")
    for fold in range(3):
        tested = read_split(table, fold)["test"]
        assert Counter(case.split("__")[0] for case in tested) == {"busi": 4, "stu": 4}
    assert read_groups(tmp_path / "splits.csv")["stu__03"] == "stu/g1"
    overlap = {"case": "busi__03", "group": "g1", "dataset": "busi", "other_case": "stu__10",
               "other_group": "g5", "other_dataset": "stu"}  # fmt: skip
    write_rows(tmp_path / "overlaps.csv", list(overlap), [overlap])
    joined = read_groups(tmp_path / "splits.csv", tmp_path / "overlaps.csv")
    same = {"busi__02", "busi__03", "stu__10", "stu__11"}
    assert {joined[case] for case in same} == {"busi/g1"}
    assert {case for case in joined if joined[case] == "busi/g1"} == same | {c + "x" for c in same}


def test_too_few_groups_name_the_key_and_a_number_that_works(tmp_path):
    splits = outer(tmp_path, [1] * 6)  # 4 groups outside the test set of each of 3 folds
    with pytest.raises(SplitError, match=r"4 group\(s\).*5 inner.*cross_fit\.folds to at most 4"):
        inner(splits, folds=5)
    inner(splits, folds=4)
    splits = outer(tmp_path, [1] * 3)
    with pytest.raises(SplitError, match=r"cross_fit\.folds\) need 3.*simulated"):
        inner(splits, folds=2)
    rows = [
        {"case": f"c{i}", "group": f"g{min(i, 3)}", "fold": 0, "role": "train"} for i in range(9)
    ]
    write_rows(splits, COLUMNS, rows)  # one large group against three small ones
    with pytest.raises(SplitError, match=r"1 group\(s\) outside.*cross_fit\.folds to 3"):
        inner(splits, folds=2)
    inner(splits, folds=3)


def test_a_table_that_selects_on_its_test_cases_is_refused(tmp_path):
    splits = outer(tmp_path, [1] * 12, protocol="seed")
    with pytest.raises(SplitError, match=r"protocol: seed.*protocol: nested"):
        inner(splits)
    assert not (tmp_path / "inner.csv").exists()
    with pytest.raises(SplitError, match="no fold 7"):
        inner(outer(tmp_path, [1] * 12), fold=7)


@pytest.fixture(scope="module")
def models(tmp_path_factory, one_thread):
    """Return a study, its inner splits and the folders of the two inner models, trained for real."""
    folder = tmp_path_factory.mktemp("inner_models")
    study = make_study(folder)
    table = inner(folder / "splits.csv", folds=2, validation=0.3)
    for fold in (0, 1):
        train(tiny_config(epochs=1), (study[0], table), folder / f"fold{fold}", fold=fold)
        predict_inner(
            model=folder / f"fold{fold}" / "model.safetensors",
            card=folder / f"fold{fold}" / "card.json",
            prepared=study[0],
            splits=table,
            fold=fold,
            flips=False,
            output=folder / f"fold{fold}" / "probabilities",
            device="cpu",
        )
    sources = [
        PredictionSource(folder / f"fold{i}" / "card.json", folder / f"fold{i}" / "probabilities")
        for i in (0, 1)
    ]
    return study, table, sources


def test_inner_models_predict_their_own_test_cases_at_original_size(models):
    (prepared, splits, roles), table, sources = models
    found = read_inner_predictions(
        sources, roles["train"] + roles["validation"], roles["test"], read_groups(splits)
    )
    assert sorted(found.files) == sorted(roles["train"] + roles["validation"])
    for fold, (source, entry) in enumerate(zip(sources, found.provenance, strict=True)):
        parts = read_split(table, fold)
        assert sorted(path.stem for path in source.probabilities.iterdir()) == parts["test"]
        assert entry["predicted"] == parts["test"] and entry["fold"] == fold
        assert entry["trained_on"] == parts["train"]
        assert entry["selected_on"] == parts["validation"]
        card = json.loads(source.card.read_text())
        assert entry["weights_sha256"] == card["weights_sha256"]
        net, _ = load_model(source.card.parent / "model.safetensors", source.card)
        data = CoarseData.read(prepared, parts["test"], 32)
        for one in predict(net, data, 2):
            case = data.cases[one.index]
            assert found.cards[case] == source.card
            stored = images.read_probability(found.files[case])
            assert stored.shape == read_prepared(prepared, case)[1].shape
            assert np.abs(stored - one.probability).max() <= 0.5 / 255 + 1e-6
            assert len(np.unique(stored)) > 2, "probabilities, not a mask"
    assert json.loads(json.dumps(found.provenance)) == found.provenance


def test_a_model_of_another_inner_or_outer_fold_predicts_nothing(models, tmp_path):
    (prepared, _, _), table, sources = models
    folder = sources[0].card.parent
    given = {"model": folder / "model.safetensors", "card": folder / "card.json",
             "prepared": prepared, "flips": False, "output": tmp_path / "p",
             "device": "cpu"}  # fmt: skip
    with pytest.raises(SplitError, match="is of fold 0, and fold 1"):
        predict_inner(splits=table, fold=1, **given)
    rows = read_rows(table)
    trained = read_split(table, 0)["train"][0]
    for row in rows:
        if row["case"] == trained and row["fold"] == "0":
            row["role"] = "test"
    write_rows(tmp_path / "moved.csv", COLUMNS, rows)
    with pytest.raises(LeakError, match=f"trained on 1 of .*{trained}"):
        predict_inner(splits=tmp_path / "moved.csv", fold=0, **given)
    # The table of another outer fold, which tests what this model trained on.
    other = [row for row in rows if row["case"] != trained]
    write_rows(tmp_path / "other.csv", COLUMNS, other)
    with pytest.raises(LeakError, match=f"in no inner fold of .*{trained}"):
        predict_inner(splits=tmp_path / "other.csv", fold=0, **given)
    assert not (tmp_path / "p").exists()


def test_predictions_are_asked_for_once_and_by_nobody_who_knows_them(models, tmp_path):
    (_, _, roles), table, sources = models
    wanted = roles["train"] + roles["validation"]
    with pytest.raises(UltraRefinerError, match=r"have no prediction in .*toy__7"):
        read_inner_predictions(sources, [*wanted, "toy__7"], [])
    with pytest.raises(UltraRefinerError, match="no folder"):
        read_inner_predictions([], wanted, [])
    with pytest.raises(UltraRefinerError, match="predicted twice"):
        read_inner_predictions([*sources, sources[0]], wanted, [])
    one = read_split(table, 0)["train"][0]
    with pytest.raises(LeakError, match=f"that the outer fold reports on.*{one}"):
        read_inner_predictions(sources, wanted, [one])
    selected = read_split(table, 1)["validation"][0]
    crossed = [
        PredictionSource(sources[1].card, sources[0].probabilities),
        PredictionSource(sources[0].card, sources[1].probabilities),
    ]
    with pytest.raises(LeakError, match=r"selected on .*that it predicts|trained on .*it predicts"):
        read_inner_predictions(crossed, [selected], [])
    mates = dict.fromkeys((read_split(table, 0)["test"][0], one), "together")
    with pytest.raises(LeakError, match="others of their groups"):
        read_inner_predictions(sources, wanted, [], mates)
    assert read_inner_predictions(sources, [one], []).provenance[0]["predicted"] == []


def test_flips_change_inner_predictions(models, tmp_path):
    (prepared, _, _), table, sources = models
    folder = sources[0].card.parent
    predict_inner(
        folder / "model.safetensors", folder / "card.json", prepared, table, 0, True,
        tmp_path / "flipped", "cpu",
    )  # fmt: skip
    for path in sources[0].probabilities.iterdir():
        assert not np.array_equal(
            images.read_gray(path), images.read_gray(tmp_path / "flipped" / path.name)
        )


def test_what_the_outer_fold_tests_changes_no_inner_prediction(models, tmp_path):
    """The images and labels of the reported cases may be anything."""
    _, table, sources = models
    prepared, splits, roles = make_study(tmp_path)
    for seed, case in enumerate(roles["test"]):
        write_case(prepared, case, seed=500 + seed)
    again = inner(splits, folds=2, validation=0.3)
    assert again.read_bytes() == table.read_bytes()
    model = train(tiny_config(epochs=1), (prepared, again), tmp_path / "model", fold=0)
    card = json.loads((model / "card.json").read_text())
    assert card["weights_sha256"] == json.loads(sources[0].card.read_text())["weights_sha256"]
