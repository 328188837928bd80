"""Guards, on random studies, that no model is scored on what it or its ensemble trained on.

Random datasets with random groups share random images; the tables are made as the rules make them,
and every folder of masks of the study is then asked who made it.
"""

from hashlib import sha256
from itertools import combinations
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from tests.workflow.study import TINY, changed
from ultrarefiner.config import SplitsConfig
from ultrarefiner.datasets.groups import join
from ultrarefiner.datasets.loader import COLUMNS
from ultrarefiner.datasets.overlaps import find_overlaps
from ultrarefiner.datasets.parts import read_part
from ultrarefiner.datasets.splits import read_split, split_folds
from ultrarefiner.datasets.trainsets import join_splits
from ultrarefiner.errors import DatasetError, LeakError, SplitError
from ultrarefiner.io import read_rows, write_rows
from ultrarefiner.models.cards import check_leak
from ultrarefiner.study import load_study

NAMES = ("busi", "busbra", "stu")
STOCK = 4  # pictures that any dataset may show


@st.composite
def studies(draw):
    """Draw a configuration, and for each dataset its cases as (group, picture shown)."""
    names = NAMES[: draw(st.sampled_from([3, 2, 1]))]
    roles = dict.fromkeys(names, "train")
    if len(names) > 1 and draw(st.booleans()):
        roles[names[-1]] = "unseen"
    trained = [name for name in names if roles[name] == "train"]
    trainsets = {"all": trained} if len(trained) > 1 else {}
    if len(trained) == 3:
        trainsets["some"] = trained[:2]
    cases = {}
    for number, name in enumerate(names):
        groups = draw(st.lists(st.integers(1, 3), min_size=7, max_size=12))
        total = sum(groups)
        own = [(number + 1) * 1000 + i for i in range(total)]
        # Some pictures come from a stock that all datasets share.
        shared = draw(st.lists(st.integers(0, total - 1), min_size=1, max_size=3, unique=True))
        for place in shared:
            own[place] = draw(st.integers(1, STOCK))
        owners = [group for group, count in enumerate(groups) for _ in range(count)]
        # As prepare_dataset groups them: equal pixels go together.
        links = [(f"{i:03d}", ("group", owner)) for i, owner in enumerate(owners)]
        links += [(f"{i:03d}", ("picture", picture)) for i, picture in enumerate(own)]
        cases[name] = [(group, own[int(i)]) for i, group in sorted(join(links).items())]
    return SimpleNamespace(
        names=names,
        cases=cases,
        config={
            "datasets": {
                name: {
                    "phantom": {"cases": 20},
                    "role": roles[name],
                    "shares_images_with": [other for other in names if other != name],
                }
                for name in names
            },
            "trainsets": trainsets,
            "splits": {
                "folds": draw(st.integers(2, 3)),
                "holdout": draw(st.sampled_from([0.0, 0.2])),
                "validation": 0.2,
                "seed": draw(st.integers(0, 5)),
            },
            "compare__cross": len(names) > 1 and draw(st.booleans()),
        },
    )


def write_cases(path, name, cases, alike):
    """Write cases.csv; equal pictures have equal pixels, or only look the same."""
    rows = []
    for index, (group, picture) in enumerate(cases):
        row = dict.fromkeys(COLUMNS, "")
        row |= {"case": f"{name}__{index:03d}", "image": "a.png", "mask": "b.png", "height": 9,
                "width": 9, "group": f"g{group}", "label": "benign", "overlay": "none",
                "border": "no", "look_alikes": 0, "appearance": f"{_pattern(picture):016x}",
                "sha256": f"{name if alike else ''}{picture}"}  # fmt: skip
        rows.append(row)
    write_rows(path, COLUMNS, rows)


def _pattern(picture):
    """Return 64 bits that differ widely between pictures."""
    return int.from_bytes(sha256(str(picture).encode()).digest()[:8], "big")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("leaks")


def make_tables(drawn, folder, alike):
    """Make every table as the rules do; return the study and the tables of a dataset or union."""
    study = load_study(changed(TINY, **drawn.config))
    config = SplitsConfig(**drawn.config["splits"])
    cases, splits, unseen = {}, {}, {}
    for name in drawn.names:
        (folder / name).mkdir(parents=True, exist_ok=True)
        cases[name], unseen[name] = folder / name / "cases.csv", folder / name / "unseen.csv"
        write_cases(cases[name], name, drawn.cases[name], alike)
        if study.config.datasets[name].role == "train":
            splits[name] = folder / name / "splits.csv"
            split_folds(cases[name], None, splits[name], config)
    find_overlaps(
        cases=cases,
        acknowledged={name: row.shares_images_with for name, row in study.config.datasets.items()},
        trained=list(splits),
        tested=study.tested_unseen,
        output=folder / "overlaps.csv",
        unseen=unseen,
    )
    for name, members in study.config.trainsets.items():
        splits[name] = folder / f"{name}.csv"
        join_splits({m: splits[m] for m in members}, folder / "overlaps.csv", splits[name])
    return study, splits, unseen


def images_of(drawn):
    """Return for each case the cluster of cases that show its picture or its group's pictures."""
    links = []
    for name, cases in drawn.cases.items():
        for index, (group, picture) in enumerate(cases):
            links += [(f"{name}__{index:03d}", ("group", name, group))]
            links += [(f"{name}__{index:03d}", ("picture", picture))]
    return join(links)


@settings(
    max_examples=120,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(drawn=studies(), alike=st.booleans())
def test_nothing_is_scored_by_a_model_that_saw_it(root, drawn, alike):
    try:
        study, splits, unseen = make_tables(drawn, root, alike)
    except (SplitError, DatasetError):
        assume(False)
    cluster = images_of(drawn)
    scored = 0
    for one in study.shelf:
        trainset = one.method.trainset(one.dataset)
        table = unseen if one.part.evaluation == "unseen" else splits
        try:
            cases = read_part(table[one.dataset], one.part.name)
        except SplitError:  # a dataset all of whose images are in others is told when it is asked
            assert one.part.evaluation == "unseen" and not read_rows(table[one.dataset])
            continue
        models = study.folds if one.part.fold is None else [one.part.fold]
        for fold in models:
            roles = read_split(splits[trainset], fold)
            card = {"trained_on": roles["train"], "selected_on": roles["validation"]}
            card |= {"dataset": trainset, "name": one.method.coarse, "fold": fold}
            check_leak(card, cases, allow_selected=False)
            if trainset == one.dataset and one.part.evaluation == "folds":
                continue  # within a dataset its own grouping decides; see below
            others = {cluster[case] for case in cases}
            seen = [
                case
                for case in roles["train"] + roles["validation"]
                if cluster[case] in others and not case.startswith(f"{one.dataset}__")
            ]
            assert not seen, f"{one}: {seen[:3]} show what is scored"
        scored += len(cases)
    assert scored


@settings(
    max_examples=80,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(drawn=studies())
def test_groups_never_cross_and_unions_keep_the_folds_of_their_members(root, drawn):
    try:
        study, splits, _ = make_tables(drawn, root, alike=False)
    except (SplitError, DatasetError):
        assume(False)
    for trainset, members in study.trainsets.items():
        for fold in range(study.config.splits.folds):
            rows = [row for row in read_rows(splits[trainset]) if row["fold"] == str(fold)]
            roles = {}
            for row in rows:
                owner = row["case"].split("__")[0]
                assert roles.setdefault((owner, row["group"]), row["role"]) == row["role"]
            mine = {row["case"]: row["role"] for row in rows}
            for member in members:
                theirs = {
                    case: role
                    for role, cases in read_split(splits[member], fold).items()
                    for case in cases
                }
                kept = {case: role for case, role in mine.items() if case in theirs}
                assert kept.items() <= theirs.items()
                gone = set(theirs) - set(kept)
                assert {theirs[case] for case in gone} <= {"train", "validation"}
                if len(members) == 1:
                    assert not gone
    for name in study.config.trainsets.get("all", []):
        tested = [
            c for f in range(study.config.splits.folds) for c in read_split(splits[name], f)["test"]
        ]
        assert len(tested) == len(set(tested))


@settings(max_examples=60)
@given(
    members=st.lists(
        st.tuples(st.sets(st.integers(0, 9)), st.sets(st.integers(0, 9))), min_size=1, max_size=4
    ),
    scored=st.sets(st.integers(0, 9), min_size=1),
)
def test_one_member_that_saw_a_case_stops_the_ensemble(members, scored):
    """The guard of every prediction and every ensemble, on any sets of cases."""
    names = {i: f"d__{i}" for i in range(10)}
    cards = [
        {"trained_on": [names[i] for i in trained], "selected_on": [names[i] for i in selected],
         "dataset": "d", "name": "m", "fold": fold}
        for fold, (trained, selected) in enumerate(members)
    ]  # fmt: skip
    leaks = any((trained | selected) & scored for trained, selected in members)
    cases = [names[i] for i in scored]
    if leaks:
        with pytest.raises(LeakError):
            for card in cards:
                check_leak(card, cases, allow_selected=False)
    else:
        for card in cards:
            check_leak(card, cases, allow_selected=False)


def test_the_drawn_studies_hold_what_is_asked_of_them():
    """A property over studies without overlaps, unions or cross tests would say nothing."""
    found = set()

    @settings(max_examples=200, database=None, derandomize=True)
    @given(drawn=studies())
    def look(drawn):
        for one, other in combinations(drawn.names, 2):
            pictures = [{picture for _, picture in drawn.cases[name]} for name in (one, other)]
            if pictures[0] & pictures[1]:
                found.add("overlap")
        found.add(f"{len(drawn.config['trainsets'])} unions")
        found.add("cross" if drawn.config["compare__cross"] else "plain")
        found.add("unseen" if "unseen" in str(drawn.config["datasets"]) else "all trained")

    look()
    assert {"overlap", "cross", "unseen", "0 unions", "1 unions", "2 unions"} <= found
