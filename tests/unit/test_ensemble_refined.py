"""Guards ensembles of refined masks: half of the members decide, and none has seen a case."""

from __future__ import annotations

from itertools import count

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tests.training_fixture import write_splits
from ultrarefiner.errors import LeakError, SplitError, UltraRefinerError
from ultrarefiner.images import read_gray, read_mask, write_mask
from ultrarefiner.io import read_rows
from ultrarefiner.models.cards import upstream, write_card
from ultrarefiner.refine.jobs import TABLE_COLUMNS
from ultrarefiner.training.ensemble import ensemble_refined

CARD = {
    "architecture": {"family": "sam"},
    "phase": "refiner",
    "name": "tuned",
    "dataset": "toy",
    "protocol": "nested",
    "config": {},
    "metrics": {},
    "selection": "validation",
    "trained_on": [],
    "selected_on": [],
    "parents": {},
    "weights_sha256": "0",
    "licence": "-",
    "versions": {},
    "fingerprint": "0",
}


def write_member(folder, fold, masks, **card):
    """Write one member's masks, {case}.png, and its card."""
    folder = folder / f"fold{fold}"
    for case, mask in masks.items():
        write_mask(folder / "masks" / f"{case}.png", np.array(mask, bool))
    write_card(folder / "card.json", {**CARD, "fold": fold, **card})
    return folder


def join(folder, members, splits, cases="holdout"):
    """Make the ensemble of members; return its folder and the rows of its table."""
    ensemble_refined(
        member_masks=[member / "masks" for member in members],
        cards=[member / "card.json" for member in members],
        splits=splits,
        cases=cases,
        output=folder / "joint",
        table=folder / "joint.csv",
    )
    return folder / "joint", read_rows(folder / "joint.csv")


def untouched(folder):
    return not (folder / "joint").exists() and not (folder / "joint.csv").exists()


@pytest.fixture
def splits(tmp_path):
    write_splits(tmp_path / "splits.csv", {"train": ["toy__t"], "holdout": ["toy__a"]})
    return tmp_path / "splits.csv"


def test_four_members_by_hand(tmp_path, splits):
    masks = [[[1, 1, 1, 1, 0]], [[1, 1, 1, 0, 0]], [[1, 1, 0, 0, 0]], [[1, 0, 0, 0, 0]]]
    members = [write_member(tmp_path, fold, {"toy__a": mask}) for fold, mask in enumerate(masks)]
    made, rows = join(tmp_path, members, splits)
    assert [path.name for path in made.iterdir()] == ["toy__a.png"]
    # Two of four is half.
    assert read_gray(made / "toy__a.png").tolist() == [[255, 255, 255, 0, 0]]
    agreement = (3 / 4 + 3 / 3 + 2 / 3 + 1 / 3) / 4
    assert list(rows[0]) == TABLE_COLUMNS
    assert float(rows[0].pop("agreement")) == pytest.approx(agreement)
    assert rows == [{"case": "toy__a", "score": "", "prompts": "", "window": ""}]


def test_three_members_by_hand(tmp_path, splits):
    masks = [[[1, 1, 1]], [[1, 1, 0]], [[1, 0, 0]]]
    members = [write_member(tmp_path, fold, {"toy__a": mask}) for fold, mask in enumerate(masks)]
    made, rows = join(tmp_path, members, splits)
    assert read_gray(made / "toy__a.png").tolist() == [[255, 255, 0]]
    assert float(rows[0]["agreement"]) == pytest.approx((2 / 3 + 1 + 1 / 2) / 3)


def test_members_that_find_nothing_agree(tmp_path, splits):
    members = [write_member(tmp_path, fold, {"toy__a": [[0, 0]]}) for fold in (0, 1)]
    made, rows = join(tmp_path, members, splits)
    assert not read_mask(made / "toy__a.png").any()
    assert float(rows[0]["agreement"]) == 1


NUMBERS = count()


@settings(max_examples=40)
@given(
    arrays(bool, st.tuples(st.integers(1, 6), st.integers(1, 4), st.integers(1, 4))),
    st.randoms(use_true_random=False),
)
def test_the_joint_mask_is_the_mean_cut_at_one_half_whatever_the_order(
    tmp_path_factory, masks, random
):
    folder = tmp_path_factory.getbasetemp() / f"joint{next(NUMBERS)}"
    write_splits(folder / "splits.csv", {"unseen": ["toy__a"]})
    members = [write_member(folder, fold, {"toy__a": mask}) for fold, mask in enumerate(masks)]
    made, rows = join(folder, members, folder / "splits.csv", "unseen")
    found = read_mask(made / "toy__a.png")
    assert np.array_equal(found, masks.mean(axis=0) >= 0.5)
    if len(masks) == 1 or (masks == masks[0]).all():
        assert float(rows[0]["agreement"]) == 1
        assert np.array_equal(found, masks[0])
    random.shuffle(members)
    again, turned = join(folder, members, folder / "splits.csv", "unseen")
    assert np.array_equal(read_mask(again / "toy__a.png"), found)
    assert float(turned[0]["agreement"]) == pytest.approx(float(rows[0]["agreement"]))


@settings(max_examples=40)
@given(
    roles=st.lists(
        st.lists(
            st.sampled_from(["none", "train", "validation", "upstream"]), min_size=4, max_size=4
        ),
        min_size=1,
        max_size=3,
    ),
    held=st.sets(st.integers(0, 3), min_size=1),
)
def test_an_ensemble_never_holds_a_case_that_a_member_has_seen(tmp_path_factory, roles, held):
    folder = tmp_path_factory.getbasetemp() / f"refined_leak{next(NUMBERS)}"
    cases = [f"toy__{number}" for number in range(4)]
    wanted = {cases[number] for number in held}
    members = []
    for fold, mine in enumerate(roles):

        def of(name, mine=mine):
            return [case for case, role in zip(cases, mine, strict=True) if role == name]

        # A model whose predictions the refiner learned from has seen cases, too.
        coarse = {**CARD, "name": "tiny", "fold": fold, "trained_on": of("upstream")}
        members.append(
            write_member(
                folder,
                fold,
                {case: [[True, False]] for case in cases},
                trained_on=of("train"),
                selected_on=of("validation"),
                sources={"models": upstream(coarse)},
            )
        )
    write_splits(folder / "splits.csv", {"unseen": sorted(wanted)})
    seen = {
        case
        for mine in roles
        for case, role in zip(cases, mine, strict=True)
        if role != "none" and case in wanted
    }
    if seen:
        with pytest.raises(LeakError) as caught:
            join(folder, members, folder / "splits.csv", "unseen")
        assert any(case in str(caught.value) for case in seen)
        assert untouched(folder)
    else:
        made, rows = join(folder, members, folder / "splits.csv", "unseen")
        assert {path.name for path in made.iterdir()} == {f"{case}.png" for case in wanted}
        assert [row["case"] for row in rows] == sorted(wanted)


def test_absent_masks_are_named_with_their_number(tmp_path, splits):
    members = [write_member(tmp_path, fold, {"toy__a": [[1, 0]]}) for fold in (0, 1)]
    (members[1] / "masks" / "toy__a.png").unlink()
    with pytest.raises(UltraRefinerError, match=r"1 pictures .*fold1/masks/toy__a\.png"):
        join(tmp_path, members, splits)
    assert untouched(tmp_path)


def test_masks_of_other_sizes_are_refused(tmp_path, splits):
    # One that numpy would stretch over the other.
    members = [
        write_member(tmp_path, 0, {"toy__a": [[1, 0, 1]]}),
        write_member(tmp_path, 1, {"toy__a": [[1]]}),
    ]
    with pytest.raises(UltraRefinerError, match=r"fold1/masks.* has 1 x 1 pixels .* 1 x 3"):
        join(tmp_path, members, splits)
    assert untouched(tmp_path)


@pytest.mark.parametrize("other", [{"name": "huge"}, {"dataset": "all"}, {"fold": 0}])
def test_only_the_folds_of_one_model_make_an_ensemble(tmp_path, splits, other):
    one = write_member(tmp_path / "one", 0, {"toy__a": [[1, 0]]})
    two = write_member(tmp_path / "two", **{"fold": 1, "masks": {"toy__a": [[1, 0]]}, **other})
    with pytest.raises(SplitError, match="folds of one model, each once"):
        join(tmp_path, [one, two], splits)


def test_a_member_without_a_card_is_refused(tmp_path, splits):
    one, two = (write_member(tmp_path, fold, {"toy__a": [[1, 0]]}) for fold in (0, 1))
    with pytest.raises(ValueError, match=r"shorter|longer"):
        ensemble_refined(
            [one / "masks", two / "masks"],
            [one / "card.json"],
            splits,
            "holdout",
            tmp_path / "joint",
            tmp_path / "joint.csv",
        )
    assert untouched(tmp_path)


def test_there_must_be_cases(tmp_path, splits):
    one = write_member(tmp_path, 0, {"toy__a": [[1, 0]]})
    with pytest.raises(SplitError, match="no case of role 'unseen'"):
        join(tmp_path, [one], splits, "unseen")
