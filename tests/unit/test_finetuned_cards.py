"""Guards that no finetuned refiner is applied to what it, or a model behind it, has seen."""

import pytest
from test_refine_jobs import SIZES, contents, refine, study, write_prompts  # noqa: F401

from ultrarefiner.errors import LeakError, SplitError, WeightsError
from ultrarefiner.io import file_sha256, read_json, write_json
from ultrarefiner.models.cards import check_leak, read_card, upstream, write_card

CARD = {
    "architecture": {"model": "sam"},
    "phase": "refiner",
    "name": "tuned",
    "dataset": "busi",
    "fold": 0,
    "protocol": "nested",
    "config": {},
    "metrics": {},
    "selection": "validation",
    "trained_on": ["demo__t1", "demo__t2"],
    "selected_on": ["demo__v"],
    "parents": {"sam.pth": "f" * 64},
    "weights_sha256": "a" * 64,
    "licence": "",
    "versions": {},
    "fingerprint": "",
}
INNER = CARD | {"name": "transunet", "phase": "coarse", "fold": 2, "trained_on": ["demo__i"]}
TESTED = ["demo__a", "demo__b", "demo__empty"]


def behind(kind, **changes):
    """Return a card whose model was made with another one."""
    return CARD | {"sources": {kind: upstream(INNER | changes, ["demo__t1"])}}


@pytest.mark.parametrize("kind", ["models", "parents"])
@pytest.mark.parametrize("key", ["trained_on", "selected_on"])
def test_what_a_model_behind_it_has_seen_it_has_seen(kind, key):
    check_leak(behind(kind), TESTED, allow_selected=False)
    card = behind(kind, **{key: ["demo__x", "demo__b"]})
    with pytest.raises(LeakError) as error:
        check_leak(card, TESTED, allow_selected=False)
    how = {"models": "learned from inner predictions of", "parents": "comes from"}[kind]
    word = key.partition("_")[0]
    for part in ("busi/tuned of fold 0", f"{how} the model busi/transunet of fold 2", "demo__b"):
        assert part in str(error.value)
    assert f"was {word} on 1 of the 3 cases" in str(error.value)
    if key == "selected_on":
        check_leak(card, TESTED, allow_selected=True)


def test_models_behind_models_are_kept():
    parent = INNER | {"sources": {"models": upstream(INNER | {"name": "first"}, ["demo__z"])}}
    entries = upstream(parent, ["demo__b", "demo__a"])
    assert [entry["name"] for entry in entries] == ["transunet", "first"]
    assert entries[0]["predicted"] == ["demo__a", "demo__b"]
    late = CARD | {"sources": {"parents": upstream(parent | {"trained_on": []})}}
    check_leak(late, ["demo__z"], allow_selected=False)
    with pytest.raises(LeakError, match="first of fold 2"):
        check_leak(late, ["demo__i"], allow_selected=False)


def test_a_model_of_all_folds_is_called_that():
    for fold in (None, "all"):
        with pytest.raises(LeakError, match=r"busi/tuned of all folds.*other datasets only"):
            check_leak(CARD | {"fold": fold}, ["demo__t1"], allow_selected=True)


def test_cards_without_sources_stay_as_they_were(tmp_path):
    path = tmp_path / "card.json"
    write_card(path, CARD)
    assert "sources" not in read_json(path) and read_card(path) == {"format": 1, **CARD}
    write_card(path, behind("models"))
    assert read_card(path)["sources"]["models"][0]["trained_on"] == ["demo__i"]
    with pytest.raises(ValueError, match="source"):
        write_card(path, CARD | {"source": {}})
    with pytest.raises(ValueError, match="fingerprint"):
        write_card(path, {key: CARD[key] for key in CARD if key != "fingerprint"})


@pytest.fixture
def card(study, tmp_path):  # noqa: F811
    """Return a function that writes a card of the study's tiny SAM."""

    def write(**changes):
        path = tmp_path / "card.json"
        own = {"weights_sha256": file_sha256(study / "tiny.pth")}
        write_card(path, CARD | own | changes)
        return path

    return write


def prompts_of(study, folder, part):  # noqa: F811
    """Return a prompts file of the tested cases that is filed under another part."""
    path = write_prompts(study, folder / "box.json")
    write_json(path, {**read_json(path), "part": part})
    return path


def test_a_finetuned_refiner_refines_the_part_of_its_fold(study, tmp_path, card):  # noqa: F811
    plain = refine(study, tmp_path / "plain")
    tuned = refine(study, tmp_path / "tuned", card=card())
    assert contents(plain) == contents(tuned) and len(contents(tuned)) == len(SIZES)
    holdout = prompts_of(study, tmp_path, "holdout-fold0")
    refine(study, tmp_path / "holdout", card=card(), prompts=holdout)


@pytest.mark.parametrize("part", ["fold1", "holdout-fold1", "unseen-fold3", "unseen-mean"])
def test_a_part_of_another_fold_is_refused(study, tmp_path, card, part):  # noqa: F811
    prompts = prompts_of(study, tmp_path, part)
    with pytest.raises(SplitError, match="of fold 0"):
        refine(study, tmp_path / "masks", card=card(), prompts=prompts)
    assert not (tmp_path / "masks").exists()


def test_a_model_of_all_folds_refines_only_what_it_has_not_seen(study, tmp_path, card):  # noqa: F811
    prompts = prompts_of(study, tmp_path, "unseen-mean")
    refine(study, tmp_path / "masks", card=card(fold=None), prompts=prompts)
    with pytest.raises(LeakError, match=r"all folds was trained on 1 of the 3 .*demo__b"):
        refine(study, tmp_path / "own", card=card(fold=None, trained_on=["demo__b"]))
    assert not (tmp_path / "own").exists()


@pytest.mark.parametrize(
    ("changes", "protocol", "words"),
    [
        ({"trained_on": ["demo__a"]}, "seed", "trained on 1"),
        ({"selected_on": ["demo__a"]}, "nested", "selected on 1"),
        ({"sources": {"models": upstream(INNER | {"trained_on": ["demo__a"]})}}, "nested", "inner"),
    ],
)
def test_a_leak_stops_the_job(study, tmp_path, card, changes, protocol, words):  # noqa: F811
    with pytest.raises(LeakError, match=words):
        refine(study, tmp_path / "masks", card=card(**changes), protocol=protocol)


def test_under_protocol_seed_the_folds_alone_may_have_selected(study, tmp_path, card):  # noqa: F811
    path = card(selected_on=["demo__a"])
    refine(study, tmp_path / "masks", card=path, protocol="seed")
    for part in ("holdout-fold0", "unseen-fold0"):
        with pytest.raises(LeakError, match="selected"):
            prompts = prompts_of(study, tmp_path, part)
            refine(study, tmp_path / "no", card=path, protocol="seed", prompts=prompts)


def test_weights_of_another_card_are_refused(study, tmp_path, card):  # noqa: F811
    with pytest.raises(WeightsError, match=r"tiny\.pth is not the file that .*card\.json"):
        refine(study, tmp_path / "masks", card=card(weights_sha256="b" * 64))


def test_weights_of_an_earlier_study_are_known_by_the_card_beside_them(study, tmp_path):  # noqa: F811
    """No card is given: to this study they are a file of the user's own."""
    weights = tmp_path / "earlier" / "tiny.pth"
    weights.parent.mkdir()
    weights.write_bytes((study / "tiny.pth").read_bytes())
    facts = CARD | {"weights_sha256": file_sha256(weights), "fold": 3}
    write_card(weights.with_name("card.json"), facts)
    refine(study, tmp_path / "unseen", weights=str(weights))
    write_card(weights.with_name("card.json"), facts | {"trained_on": ["demo__b"]})
    with pytest.raises(LeakError, match="demo__b"):
        refine(study, tmp_path / "seen", weights=str(weights))
    # Another file's card says nothing.
    write_card(weights.with_name("card.json"), CARD | {"trained_on": ["demo__b"]})
    refine(study, tmp_path / "other", weights=str(weights))
