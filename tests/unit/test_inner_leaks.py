"""Guards, on random splits, that a refiner learns from no prediction by a model that saw too much."""

import json
import shutil

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from ultrarefiner.config import SplitsConfig
from ultrarefiner.datasets.fits import read_fit
from ultrarefiner.datasets.inner import read_groups, split_inner
from ultrarefiner.datasets.splits import read_split, split_folds
from ultrarefiner.datasets.trainsets import join_splits
from ultrarefiner.errors import LeakError, SplitError
from ultrarefiner.io import read_rows, write_rows
from ultrarefiner.models.cards import write_card
from ultrarefiner.training.inner import PredictionSource, read_inner_predictions

FAST = settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
OVERLAPS = ["case", "group", "dataset", "other_case", "other_group", "other_dataset"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("inner")


@st.composite
def divisions(draw):
    """Draw the sizes of the groups of one or two datasets, pairs of equal images, and options."""
    sizes = st.lists(st.integers(1, 3), min_size=8, max_size=14)
    datasets = {name: draw(sizes) for name in ("busi", "stu")[: draw(st.integers(1, 2))]}
    last = {name: sum(groups) - 1 for name, groups in datasets.items()}
    alike = []
    if len(datasets) == 2:
        place = st.tuples(st.integers(0, last["busi"]), st.integers(0, last["stu"]))
        alike = draw(st.lists(place, max_size=4))
    options = {
        "folds": draw(st.integers(2, 4)),
        "holdout": draw(st.sampled_from([0.0, 0.2])),
        "seed": draw(st.integers(0, 9)),
    }
    inner = {"folds": draw(st.integers(2, 4)), "seed": draw(st.integers(0, 9))}
    return datasets, alike, options, inner | {"validation": 0.2}


def make_outer(folder, datasets, alike, options):
    """Write the outer splits; return them and the table of overlaps, None for a single dataset."""
    owner = {}
    for name, sizes in datasets.items():
        # Both datasets use the same names of groups, which must not be confused.
        rows = [f"g{number}" for number, size in enumerate(sizes) for _ in range(size)]
        cases = [{"case": f"{name}__{i:03d}", "group": g, "label": ""} for i, g in enumerate(rows)]
        owner |= {row["case"]: row["group"] for row in cases}
        write_rows(folder / f"{name}.csv", ["case", "group", "label"], cases)
        config = SplitsConfig(**options)
        split_folds(folder / f"{name}.csv", None, folder / f"{name}_splits.csv", config)
    if len(datasets) == 1:
        return folder / "busi_splits.csv", None
    pairs = [(f"busi__{one:03d}", f"stu__{other:03d}") for one, other in alike]
    overlaps = [
        dict(zip(OVERLAPS, (one, owner[one], "busi", two, owner[two], "stu"), strict=True))
        for one, two in pairs
    ]
    write_rows(folder / "overlaps.csv", OVERLAPS, overlaps)
    members = {name: folder / f"{name}_splits.csv" for name in datasets}
    join_splits(members, folder / "overlaps.csv", folder / "splits.csv")
    return folder / "splits.csv", folder / "overlaps.csv"


def write_predictions(folder, inner):
    """Write what the models of a table of inner folds would leave; return the sources."""
    shutil.rmtree(folder, ignore_errors=True)
    sources = []
    for fold in sorted({int(row["fold"]) for row in read_rows(inner)}):
        rows = [row for row in read_rows(inner) if row["fold"] == str(fold)]
        role = {name: [row["case"] for row in rows if row["role"] == name]
                for name in ("train", "validation", "test")}  # fmt: skip
        place = folder / f"fold{fold}"
        (place / "probabilities").mkdir(parents=True)
        for case in role["test"]:
            (place / "probabilities" / f"{case}.png").touch()
        write_card(place / "card.json", card(fold, role["train"], role["validation"]))
        sources.append(PredictionSource(place / "card.json", place / "probabilities"))
    return sources


def card(fold, trained, selected):
    empty = dict.fromkeys(
        ("architecture", "phase", "protocol", "config", "metrics", "selection", "parents",
         "licence", "versions", "fingerprint"), ""
    )  # fmt: skip
    return empty | {"name": "tiny", "dataset": "toy", "fold": fold, "trained_on": trained,
                    "selected_on": selected, "weights_sha256": f"{fold:064d}"}  # fmt: skip


def make_inner(root, drawn):
    """Make the outer splits and those of each fold; give fold, roles, groups and inner table."""
    datasets, alike, options, inner = drawn
    try:
        splits, overlaps = make_outer(root, datasets, alike, options)
        for fold in range(options["folds"]):
            table = root / f"inner{fold}.csv"
            split_inner(splits, fold, **inner, output=table, overlaps=overlaps)
    except SplitError:
        assume(False)
    for fold in range(options["folds"]):
        groups = read_groups(splits, overlaps)
        yield fold, read_split(splits, fold), groups, root / f"inner{fold}.csv"


@FAST
@given(drawn=divisions())
def test_who_predicts_a_case_saw_neither_it_nor_its_group_nor_what_is_reported(root, drawn):
    alike = {f"busi__{one:03d}": [] for one, _ in drawn[1]}
    for one, other in drawn[1]:
        alike[f"busi__{one:03d}"].append(f"stu__{other:03d}")
    mates = {}  # by the sizes drawn, not by any table
    for name, sizes in drawn[0].items():
        numbers = [number for number, size in enumerate(sizes) for _ in range(size)]
        mates |= {f"{name}__{i:03d}": (name, number) for i, number in enumerate(numbers)}
    for _, roles, groups, inner in make_inner(root, drawn):
        wanted = roles["train"] + roles["validation"]
        reported = {*roles["test"], *roles["holdout"]}
        sources = write_predictions(root / "models", inner)
        found = read_inner_predictions(sources, wanted, reported, groups)
        assert sorted(found.files) == sorted(wanted)
        assert {row["case"] for row in read_rows(inner)} == set(wanted)
        for case in wanted:
            facts = json.loads(found.cards[case].read_text())
            seen = {*facts["trained_on"], *facts["selected_on"]}
            assert seen and case not in seen
            assert mates[case] not in {mates[other] for other in seen}
            assert not seen & reported
            assert not seen & set(alike.get(case, [])), "the same image under another name"
            assert {mates[other] for other in seen}.isdisjoint(mates[c] for c in reported)
        predicted = [case for entry in found.provenance for case in entry["predicted"]]
        assert sorted(predicted) == sorted(wanted)
        assert json.loads(json.dumps(found.provenance)) == found.provenance


@FAST
@given(drawn=divisions(), data=st.data())
def test_a_changed_split_is_caught(root, drawn, data):
    fold, roles, groups, inner = data.draw(st.sampled_from(list(make_inner(root, drawn))))
    rows = read_rows(inner)
    kind = data.draw(st.sampled_from(["own", "group", "reported", "absent", "twice"]))
    role = data.draw(st.sampled_from(["train", "validation"]))
    one = data.draw(st.sampled_from([row for row in rows if row["role"] == "test"]))
    if kind == "own":  # also trains or selects its own model
        rows.append(one | {"role": role})
    elif kind == "group":  # one of its group does
        others = [row for row in rows if row["group"] == one["group"] != row["case"]
                  and row["case"] != one["case"] and row["fold"] == one["fold"]]  # fmt: skip
        assume(others)
        rows.remove(others[0])
        rows.append(others[0] | {"role": role})
    elif kind == "reported":
        case = data.draw(st.sampled_from(roles["test"] + roles["holdout"]))
        rows.append({"case": case, "group": "g", "fold": one["fold"], "role": role})
    elif kind == "absent":
        rows.remove(one)
    else:
        fold = next(row["fold"] for row in rows if row["fold"] != one["fold"])
        # The other model has not seen it, so that only the count is wrong.
        same = [row for row in rows if row["group"] == one["group"]]
        rows = [row for row in rows if row["fold"] != fold or row not in same]
        rows.append(one | {"fold": fold})
    write_rows(root / "changed.csv", ["case", "group", "fold", "role"], rows)
    sources = write_predictions(root / "changed", root / "changed.csv")
    wanted = roles["train"] + roles["validation"]
    arguments = (sources, wanted, roles["test"] + roles["holdout"], groups)
    if kind in ("absent", "twice"):
        with pytest.raises(Exception, match="no prediction" if kind == "absent" else "twice"):
            read_inner_predictions(*arguments)
    else:
        with pytest.raises(LeakError, match=one["case"] if kind == "own" else "was "):
            read_inner_predictions(*arguments)


@FAST
@given(drawn=divisions())
def test_a_fit_trains_on_nothing_that_it_validates_or_reports_on(root, drawn):
    datasets, alike, options, _ = drawn
    try:
        splits, overlaps = make_outer(root, datasets, alike, options)
    except SplitError:
        assume(False)
    every = {row["case"] for row in read_rows(splits)}
    holdout = set(read_split(splits, 0)["holdout"])
    for fit in [*(f"fold{fold}" for fold in range(options["folds"])), "all"]:
        parts = {role: set(cases) for role, cases in read_fit(splits, fit).items()}
        fold = int(fit.removeprefix("fold")) if fit != "all" else 0
        groups = read_groups(splits, overlaps)
        named = [{groups[case] for case in parts[role]} for role in ("train", "validation")]
        assert not named[0] & named[1], "not even another image of one group"
        assert not parts["reported"] & (parts["train"] | parts["validation"])
        assert holdout <= parts["reported"]
        if fit == "all" and len(datasets) == 1:
            assert parts["train"] | parts["validation"] == every - holdout
        if fit != "all":
            assert set(read_split(splits, fold)["test"]) <= parts["reported"]
