"""Guards that a method applied to an image gives the very mask that the study shelved for it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tests.deploy_fixture import CASES, FOLDS, image_of, make_run, shelved
from ultrarefiner.config import PromptConfig
from ultrarefiner.deploy import predicted as words
from ultrarefiner.deploy.bundle import bundle_of_run
from ultrarefiner.deploy.pipeline import open_method
from ultrarefiner.deploy.predicted import count_components, find_warnings, mean_agreement
from ultrarefiner.errors import ConfigError, UltraRefinerError
from ultrarefiner.evaluation.metrics import iou
from ultrarefiner.images import read_mask, read_probability
from ultrarefiner.models.cards import read_threshold
from ultrarefiner.prompts.base import Prompt

SHELVED = [
    "tiny",
    "tiny-tuned",
    "grabcut-mask",
    "small-mask",
    "small-box",
    "small-crop",
    "small-noisy",
    "tuned-box",
    "tuned-crop",
]


@pytest.fixture(scope="module")
def run(one_thread, tmp_path_factory):
    """Return the folder of a finished study."""
    return make_run(tmp_path_factory.getbasetemp())


def opened(run, method, fold=None, **options):
    return open_method(bundle_of_run(run / "results", "tiny", method), "cpu", fold, **options)


@pytest.mark.parametrize("fold", FOLDS)
@pytest.mark.parametrize("method", SHELVED)
def test_a_prepared_case_gets_the_mask_of_the_study(run, method, fold):
    folder, predictor = shelved(run, method, fold), opened(run, method, fold)
    cases = FOLDS[fold]["test"]
    wanted = {case: read_mask(folder / f"{case}.png") for case in cases}
    assert all(0 < mask.mean() < 1 for mask in wanted.values())
    for case in cases:
        said = predictor.predict(image_of(run, case), case)
        assert np.array_equal(said.mask, wanted[case])
        assert said.agreement is None
        if method.startswith("tiny"):
            assert said.coarse is None and said.coarse_iou is None
            shelf = read_probability(folder.parent / "tiny-probabilities" / f"{case}.png")
            assert np.abs(said.probability - shelf).max() <= 0.5 / 255 + 1e-6
        else:
            coarse = read_mask(shelved(run, "tiny", fold) / f"{case}.png")
            assert np.array_equal(said.coarse, coarse)
            assert said.coarse_iou == iou(coarse, wanted[case])
            assert np.array_equal(said.probability, wanted[case].astype(np.float32))
        assert (said.score is None) == (method.startswith("tiny") or "grabcut" in method)


def test_images_of_all_sizes_together_are_what_they_are_alone(run):
    predictor = opened(run, "small-crop")
    images = [image_of(run, case) for case in CASES[:3]]
    images.append(np.ascontiguousarray(images[0][:41, :33]))
    together = predictor.predict_batch(images, ["a", "b", "c", "d"])
    for image, name, said in zip(images, "abcd", together, strict=True):
        alone = predictor.predict(image, name)
        assert said.mask.shape == said.probability.shape == image.shape[:2]
        assert said.probability.dtype == np.float32 and said.mask.dtype == bool
        assert np.array_equal(said.mask, alone.mask)
        assert (said.score, said.agreement) == (alone.score, alone.agreement)


@pytest.mark.parametrize("method", ["tiny", "tiny-tuned"])
def test_folds_together_cut_the_mean_of_their_probabilities(run, method):
    image = image_of(run, CASES[0])
    members = [opened(run, method, fold).predict(image) for fold in FOLDS]
    bundle = bundle_of_run(run / "results", "tiny", method)
    # Thresholds as far apart as those of two folds may be.
    own = [one.model_copy(update={"threshold": 0.2 + 0.5 * one.fold}) for one in bundle.members]
    said = open_method(bundle.model_copy(update={"members": tuple(own)}), "cpu").predict(image)
    mean = np.mean([one.probability for one in members], axis=0, dtype=np.float64)
    assert np.array_equal(said.probability, mean.astype(np.float32))
    threshold = 0.45 if method == "tiny-tuned" else 0.5
    assert np.array_equal(said.mask, said.probability >= np.float32(threshold))
    cut = [one.probability >= np.float32(threshold) for one in members]
    assert said.agreement == pytest.approx(np.mean([iou(mask, said.mask) for mask in cut]))
    assert 0 < said.agreement < 1
    models = run / "results" / "tiny" / "toy" / "models" / "tiny"
    for one in bundle.members:
        assert one.threshold == read_threshold(models / f"fold{one.fold}" / "threshold.json")


def test_one_refiner_is_prompted_by_the_folds_together(run):
    image = image_of(run, CASES[0])
    coarse, said = opened(run, "tiny").predict(image), opened(run, "whole-box").predict(image)
    assert np.array_equal(said.coarse, coarse.mask)
    assert said.agreement == coarse.agreement
    predictor = opened(run, "whole-box")
    refiner = predictor.interactive()
    box = predictor.bundle.refiner.prompt
    assert predictor.refiners == [refiner]
    assert (box.kind, box.expand) == ("box", 0.1)
    columns, rows = np.flatnonzero(coarse.mask.any(0)), np.flatnonzero(coarse.mask.any(1))
    x0, y0, x1, y1 = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
    corners = np.array([[x0, y0], [x1, y1]], float)
    corners += 0.1 * np.outer([-1, 1], corners[1] - corners[0])
    wide = np.clip(corners, 0, image.shape[1::-1]).ravel()
    refined = refiner.refine(refiner.embed(image).rounded(), Prompt(box=wide))
    assert np.array_equal(said.mask, refined.mask)
    assert said.score == refined.score


def test_refiners_of_each_fold_vote(run):
    image = image_of(run, CASES[0])
    members = [opened(run, "tuned-crop", fold).predict(image) for fold in FOLDS]
    predictor = opened(run, "tuned-crop")
    said = predictor.predict(image)
    assert len(predictor.refiners) == 2 and predictor.interactive() is predictor.refiners[0]
    assert not np.array_equal(members[0].mask, members[1].mask)
    share = np.mean([one.mask for one in members], axis=0)
    assert set(np.unique(share)) == {0.0, 0.5, 1.0}
    assert np.array_equal(said.probability, share.astype(np.float32))
    assert np.array_equal(said.mask, share >= 0.5), "half of the folds are enough"
    assert said.score == pytest.approx(np.mean([one.score for one in members]))
    wanted = np.mean([iou(one.mask, said.mask) for one in members])
    assert said.agreement == pytest.approx(wanted)
    assert np.array_equal(said.coarse, opened(run, "tiny").predict(image).mask)


@pytest.mark.parametrize(
    ("method", "times"), [("small-box", 1), ("small-crop", 1), ("tuned-box", 2)]
)
def test_an_image_is_encoded_once_for_each_encoder(run, monkeypatch, method, times):
    predictor = opened(run, method)
    seen = []
    kind = type(predictor.refiners[0])
    plain = kind.embed
    monkeypatch.setattr(kind, "embed", lambda self, image: seen.append(1) or plain(self, image))
    predictor.predict(image_of(run, CASES[0]))
    assert len(seen) == times


def test_refiners_that_share_an_encoder_share_its_embedding(run, monkeypatch):
    predictor = opened(run, "tuned-box")
    first, second = predictor.refiners
    monkeypatch.setattr(second, "weights_sha256", first.weights_sha256)
    seen = []
    plain = type(first).embed
    monkeypatch.setattr(
        type(first), "embed", lambda self, image: seen.append(1) or plain(self, image)
    )
    predictor.predict(image_of(run, CASES[0]))
    assert len(seen) == 1


def test_an_empty_coarse_mask_is_refined_as_the_prompt_mode_says(run):
    image = np.full((60, 90, 3), 160, np.uint8)
    box = opened(run, "small-box").predict(image)
    assert not box.coarse.any() and not box.mask.any() and box.score is None
    assert box.warnings == (words.EMPTY,)
    whole = opened(run, "small-crop").predict(image)
    assert not whole.coarse.any() and whole.mask.any() and whole.score is not None
    assert words.CHANGED in whole.warnings and words.EMPTY not in whole.warnings


def test_a_threshold_of_ones_own_cuts_the_coarse_probability(run):
    image = image_of(run, CASES[0])
    plain = opened(run, "tiny").predict(image)
    for method in ("tiny", "tiny-tuned"):
        said = opened(run, method, threshold=0.2).predict(image)
        assert np.array_equal(said.mask, plain.probability >= np.float32(0.2))
        assert said.mask.sum() > plain.mask.sum()
    said = opened(run, "small-box", threshold=0.2).predict(image)
    assert np.array_equal(said.coarse, plain.probability >= np.float32(0.2))
    for threshold in (0.0, 1.0, -1.0, float("nan")):
        with pytest.raises(ConfigError, match="not between 0 and 1"):
            opened(run, "tiny", threshold=threshold)
    with pytest.raises(ConfigError, match="prompts with the probabilities themselves"):
        opened(run, "small-mask", threshold=0.2)


def test_noise_of_a_prompt_mode_is_drawn_by_name_and_of_others_nothing_is(run):
    image = image_of(run, CASES[0])
    noisy, calm = opened(run, "small-noisy"), opened(run, "small-box")
    assert not np.array_equal(noisy.predict(image, "a").mask, noisy.predict(image, "b").mask)
    assert np.array_equal(noisy.predict(image, "a").mask, noisy.predict(image, "a").mask)
    assert np.array_equal(calm.predict(image, "a").mask, calm.predict(image, "b").mask)


def test_what_is_no_image_is_refused(run):
    predictor = opened(run, "tiny")
    for wrong in (np.zeros((5, 5), np.uint8), np.zeros((5, 5, 3)), "x.png"):
        with pytest.raises(UltraRefinerError, match="an image must be"):
            predictor.predict(wrong)


def test_a_fold_that_is_not_there_is_named(run):
    bundle = bundle_of_run(run / "results", "tiny", "tiny", fold=1)
    with pytest.raises(ConfigError, match="no model of fold 0; it has folds 1"):
        open_method(bundle, "cpu", fold=0)


def test_a_coarse_model_has_no_refiner_to_prompt(run):
    assert opened(run, "tiny").interactive() is None


def test_fingerprints_differ_where_masks_may(run):
    def of(name, fold=None, **changes):
        bundle = bundle_of_run(run / "results", "tiny", name, fold=fold)
        return bundle.model_copy(update=changes).fingerprint()

    prints = [of(method, fold) for method in [*SHELVED, "whole-box"] for fold in (None, 0, 1)]
    assert len(set(prints)) == len(prints)
    bundle = bundle_of_run(run / "results", "tiny", "small-box")
    assert bundle.fingerprint(0.4) != bundle.fingerprint() == bundle.fingerprint(0.5)
    assert of("tiny", flips=False) != of("tiny")
    assert of("tiny", method="other", run="x", trainset="y", reported=[]) == of("tiny")
    wider = bundle.refiner.model_copy(update={"prompt": PromptConfig(kind="box", expand=0.3)})
    assert of("small-box", refiner=wider) != of("small-box")


def blob(*boxes, shape=(20, 30)):
    mask = np.zeros(shape, bool)
    for y0, x0, y1, x1 in boxes:
        mask[y0:y1, x0:x1] = True
    return mask


SOUND = blob((5, 5, 10, 12))


@pytest.mark.parametrize(
    ("mask", "coarse", "agreement", "wanted"),
    [
        (SOUND, None, None, ()),
        (SOUND, SOUND, 0.7, ()),
        (SOUND, SOUND, 0.69, (words.LITTLE_AGREEMENT,)),
        (blob(), None, None, (words.EMPTY,)),
        (blob(), blob(), 1.0, (words.EMPTY,)),
        (blob(), SOUND, None, (words.EMPTY, words.CHANGED)),
        (SOUND, blob((5, 5, 15, 12)), None, ()),
        (SOUND, blob((5, 5, 16, 12)), None, (words.CHANGED,)),
        (blob((5, 5, 9, 9), (12, 5, 15, 9)), None, None, (words.SEVERAL,)),
        (blob((5, 5, 9, 9), (9, 9, 12, 12)), None, None, ()),
        (blob((0, 5, 9, 9)), None, None, (words.AT_BORDER,)),
        (blob((11, 5, 20, 9)), None, None, (words.AT_BORDER,)),
        (blob((5, 0, 9, 9)), None, None, (words.AT_BORDER,)),
        (blob((5, 20, 9, 30)), None, None, (words.AT_BORDER,)),
        (blob((1, 1, 19, 29)), None, None, ()),
    ],
)
def test_warnings_say_what_to_look_at(mask, coarse, agreement, wanted):
    assert find_warnings(mask, coarse, agreement) == wanted


@given(arrays(bool, st.tuples(st.integers(1, 6), st.integers(1, 6))))
def test_agreement_and_components_hold_for_any_mask(mask):
    assert mean_agreement([mask], mask) is None
    assert mean_agreement([mask, mask], mask) == 1.0
    assert mean_agreement([mask, ~mask], mask) == 0.5
    assert (count_components(mask) == 0) == (not mask.any())
    assert find_warnings(mask, mask, None).count(words.CHANGED) == 0
