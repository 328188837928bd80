"""Guards ensembles: mean and vote are what they say, and no member has seen a case that is scored."""

import subprocess
import sys
from fractions import Fraction
from itertools import count

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tests.training_fixture import make_study, outputs, tiny_config, train, write_splits
from ultrarefiner.errors import LeakError, SplitError, UltraRefinerError
from ultrarefiner.images import read_gray, read_mask, write_mask, write_png, write_probability
from ultrarefiner.io import write_json
from ultrarefiner.models.cards import read_card, write_card
from ultrarefiner.training.ensemble import ensemble_masks, mean_mask

CARD = {
    "architecture": {"model": "transunet_tiny", "image_size": 32, "num_classes": 2},
    "phase": "coarse",
    "name": "tiny",
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


def write_member(folder, fold, levels, threshold=0.5, **card):
    """Write one member's files: levels is {case: uint8 (H, W) of probability x 255}."""
    folder = folder / f"fold{fold}"
    for case, level in levels.items():
        write_png(folder / "soft" / f"{case}.png", np.array(level, np.uint8))
        write_mask(folder / "masks" / f"{case}.png", np.array(level) >= 127.5)
    card = {**CARD, "fold": fold, **card}
    write_card(folder / "card.json", {key: value for key, value in card.items() if key != "format"})
    write_json(folder / "threshold.json", {"threshold": threshold})
    return folder


def join(folder, members, splits, cases="holdout"):
    """Make the ensemble of members; return its four folders by name."""
    names = ("mean", "tuned", "probabilities", "vote")
    made = {name: folder / "ensemble" / name for name in names}
    ensemble_masks(
        members=[member / "soft" for member in members],
        member_masks=[member / "masks" for member in members],
        cards=[member / "card.json" for member in members],
        thresholds=[member / "threshold.json" for member in members],
        splits=splits,
        cases=cases,
        **made,
    )
    return made


@pytest.fixture
def splits(tmp_path):
    write_splits(tmp_path / "splits.csv", {"train": ["toy__t"], "holdout": ["toy__a"]})
    return tmp_path / "splits.csv"


def test_four_members_by_hand(tmp_path, splits):
    levels = [[[255, 255, 200, 0, 130]], [[255, 255, 200, 0, 130]], [[255, 0, 100, 0, 125]], [[255, 0, 100, 10, 125]]]  # fmt: skip
    thresholds = (0.6, 0.6, 0.6, 0.62)
    members = [
        write_member(tmp_path, fold, {"toy__a": level}, threshold)
        for fold, (level, threshold) in enumerate(zip(levels, thresholds, strict=True))
    ]
    made = join(tmp_path, members, splits)
    found = {name: read_gray(path / "toy__a.png")[0].tolist() for name, path in made.items()}
    # Sums are 1020, 510, 600, 10 and 510 of 1020; one half is in the mean, two of four no majority.
    assert found["mean"] == [255, 255, 255, 0, 255]
    assert found["vote"] == [255, 0, 0, 0, 0]
    assert found["probabilities"] == [255, 128, 150, 2, 128]
    # The mean threshold is 0.605: 617.1 of 1020.
    assert found["tuned"] == [255, 0, 0, 0, 0]
    assert all([p.name for p in path.iterdir()] == ["toy__a.png"] for path in made.values())


def test_three_members_by_hand(tmp_path, splits):
    levels = [[[255, 128, 90]], [[255, 128, 90]], [[0, 126, 255]]]
    members = [write_member(tmp_path, k, {"toy__a": v}, 0.3) for k, v in enumerate(levels)]
    made = join(tmp_path, members, splits)
    found = {name: read_gray(path / "toy__a.png")[0].tolist() for name, path in made.items()}
    assert found["vote"] == [255, 255, 0]
    assert found["mean"] == [255, 0, 255]  # 510, 382 and 435 of 765, half is 382.5
    assert found["tuned"] == [255, 255, 255]


@settings(max_examples=40)
@given(
    arrays(np.uint8, st.tuples(st.integers(1, 9), st.just(2), st.just(3))),
    st.sampled_from([0.05, 0.3, 0.32, 0.5, 0.64, 0.95]),
)
def test_the_mean_is_cut_exactly(levels, threshold):
    found = mean_mask(levels.astype(np.int32).sum(0), len(levels), threshold)
    exact = Fraction(str(threshold))
    for place in np.ndindex(2, 3):
        mean = Fraction(sum(int(level[place]) for level in levels), 255 * len(levels))
        assert found[place] == (mean >= exact)


NUMBERS = count()


@settings(max_examples=40)
@given(
    roles=st.lists(
        st.lists(st.sampled_from(["none", "train", "validation"]), min_size=4, max_size=4),
        min_size=1,
        max_size=3,
    ),
    held=st.sets(st.integers(0, 3), min_size=1),
)
def test_an_ensemble_never_scores_a_case_that_a_member_has_seen(tmp_path_factory, roles, held):
    folder = tmp_path_factory.getbasetemp() / f"leak{next(NUMBERS)}"
    cases = [f"toy__{number}" for number in range(4)]
    wanted = {cases[number] for number in held}
    members = []
    for fold, mine in enumerate(roles):
        known = {
            key: [case for case, role in zip(cases, mine, strict=True) if role == name]
            for key, name in (("trained_on", "train"), ("selected_on", "validation"))
        }
        level = {case: [[200, 10]] for case in cases}
        members.append(write_member(folder, fold, level, **known))
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
        assert not (folder / "ensemble").exists()
    else:
        made = join(folder, members, folder / "splits.csv", "unseen")
        names = {f"{case}.png" for case in wanted}
        assert all({path.name for path in out.iterdir()} == names for out in made.values())


def test_real_models_of_which_one_has_trained_on_a_held_out_case(tmp_path, one_thread):
    prepared, splits, roles = make_study(tmp_path)
    held = roles["test"]
    rows = splits.read_text().replace(",test\n", ",holdout\n")
    splits.write_text(rows + rows.replace("fold,role\n", "").replace("case,group,", "").replace(",0,", ",1,"))  # fmt: skip
    config = tiny_config(epochs=1)
    levels = {case: [[200, 10]] for case in held}
    members = []
    for fold in (0, 1):
        model = train(config, (prepared, splits), tmp_path / f"model{fold}", fold=fold)
        card = read_card(outputs(model)["card"])
        assert card["trained_on"] == roles["train"]
        members.append(write_member(tmp_path, **{**card, "levels": levels, "fold": fold}))
    join(tmp_path, members, splits)
    # A fold's splits change and its model is trained anew, now on a case that is held out.
    moved = {**roles, "train": [*roles["train"], held[1]], "test": []}
    write_splits(tmp_path / "other.csv", moved, fold=1)
    model = train(config, (prepared, tmp_path / "other.csv"), tmp_path / "leaky", fold=1)
    card = read_card(outputs(model)["card"])
    members[1] = write_member(tmp_path / "leaky", **{**card, "levels": levels, "fold": 1})
    with pytest.raises(LeakError, match=rf"toy/tiny of fold 1 was trained on 1 of .*{held[1]}"):
        join(tmp_path, members, splits)


def test_absent_pictures_are_named_with_their_number(tmp_path, splits):
    members = [write_member(tmp_path, k, {"toy__a": [[0, 255]]}) for k in (0, 1)]
    (members[1] / "masks" / "toy__a.png").unlink()
    with pytest.raises(UltraRefinerError, match=r"1 pictures .*fold1/masks/toy__a\.png"):
        join(tmp_path, members, splits)
    assert not (tmp_path / "ensemble").exists()


def test_pictures_of_other_sizes_are_refused(tmp_path, splits):
    members = [
        write_member(tmp_path, 0, {"toy__a": [[0, 255]]}),
        write_member(tmp_path, 1, {"toy__a": [[0, 255, 0]]}),
    ]
    with pytest.raises(UltraRefinerError, match=r"fold1/soft.* has 1 x 3 pixels .* 1 x 2"):
        join(tmp_path, members, splits)
    write_probability(members[1] / "soft" / "toy__a.png", np.zeros((1, 2)))
    with pytest.raises(UltraRefinerError, match=r"fold1/masks.* has 1 x 3 pixels"):
        join(tmp_path, members, splits)
    assert not list((tmp_path / "ensemble").iterdir())


@pytest.mark.parametrize("other", [{"name": "huge"}, {"dataset": "all"}, {"fold": 0}])
def test_only_the_folds_of_one_model_make_an_ensemble(tmp_path, splits, other):
    one = write_member(tmp_path / "one", 0, {"toy__a": [[0, 255]]})
    two = write_member(tmp_path / "two", **{"fold": 1, "levels": {"toy__a": [[0, 255]]}, **other})
    with pytest.raises(SplitError, match="folds of one model, each once"):
        join(tmp_path, [one, two], splits)


def test_there_must_be_cases(tmp_path, splits):
    one = write_member(tmp_path, 0, {"toy__a": [[0, 255]]})
    with pytest.raises(SplitError, match="no case of role 'unseen'"):
        join(tmp_path, [one], splits, "unseen")


def test_an_ensemble_of_one_is_that_one(tmp_path, splits):
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    one = write_member(tmp_path, 0, {"toy__a": levels})
    made = join(tmp_path, [one], splits)
    truth = read_mask(one / "masks" / "toy__a.png")
    for name in ("mean", "tuned", "vote"):
        assert np.array_equal(read_mask(made[name] / "toy__a.png"), truth), name
    assert np.array_equal(read_gray(made["probabilities"] / "toy__a.png"), levels)


def test_the_job_does_not_import_torch():
    code = "import sys, ultrarefiner.training.ensemble; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
