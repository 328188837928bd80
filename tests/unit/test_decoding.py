"""Prompts decoded together, in several passes, chosen or moved at random give what each alone gives."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from segment_anything import SamPredictor

from tests.sam_fixture import write_tiny_sam
from tests.sam_refiners import decoder_calls, options, scene
from ultrarefiner.errors import ConfigError, UltraRefinerError
from ultrarefiner.prompts.base import Prompt
from ultrarefiner.refine import load_refiner, parse_options
from ultrarefiner.refine.options import JitterOptions
from ultrarefiner.refine.sam_prompts import mean_iou, moved_copies

pytestmark = pytest.mark.usefixtures("one_thread")

SIZE = (150, 200)


@pytest.fixture(scope="module")
def refiner(tmp_path_factory):
    weights = write_tiny_sam(tmp_path_factory.mktemp("weights") / "small.pth", side=256)
    return load_refiner("sam", weights=str(weights))


@pytest.fixture(scope="module")
def embedding(refiner):
    return refiner.embed(scene(*SIZE)[0])


@pytest.fixture(scope="module")
def prompts():
    """Prompts of 2, 2, 3, 3, 0, 2, 2 and 4 tokens."""
    lesion, point = scene(*SIZE)[1], np.array([[80.0, 82]])
    logits = np.random.default_rng(1).normal(0, 4, (64, 64)).astype(np.float32)
    return {
        "box": Prompt(box=(50, 52, 110, 113)),
        "point": Prompt(points=point),
        "points": Prompt(points=[[80, 82], [5, 5.5]], labels=[1, 0]),
        "box+point": Prompt(box=(50, 52, 110, 113), points=point),
        "mask": Prompt(mask=lesion),
        "mask+point": Prompt(mask=lesion * 0.9, points=point),
        "logits+box": Prompt(box=(50, 52, 110, 113), mask_logits=logits),
        "box+points": Prompt(box=(50, 52, 110, 113), points=[[80, 82], [5, 5.5]], labels=[1, 0]),
    }


def assert_same(found, wanted, passes=1):
    """Check that two refinements differ by rounding only, which each pass adds to."""
    atol = 1e-5 * passes
    np.testing.assert_allclose(found.low_res_logits, wanted.low_res_logits, atol=atol, rtol=0)
    assert found.score == pytest.approx(wanted.score, abs=1e-5)
    assert np.count_nonzero(found.mask != wanted.mask) <= 2  # a logit within rounding of 0


@pytest.mark.parametrize("passes", [1, 2])
@pytest.mark.parametrize("choice", ["best", "single", "union", "softmax"])
def test_prompts_of_equal_length_share_a_call_and_give_what_each_gives_alone(
    refiner, embedding, prompts, passes, choice
):
    with options(refiner, passes=passes, mask_choice=choice):
        with decoder_calls(refiner) as calls:
            together = refiner.refine_each(embedding, list(prompts.values()))
        assert sorted(call[:2] for call in calls) == sorted(
            [(1, 0), (1, 4), (2, 3), (4, 2)] * passes
        )
        with decoder_calls(refiner) as calls:
            alone = [refiner.refine_one(embedding, prompt) for prompt in prompts.values()]
        assert len(calls) == len(prompts) * passes
    for found, wanted in zip(together, alone, strict=True):
        assert_same(found, wanted, passes)
    logits = [one.low_res_logits for one in together]
    assert all(not np.allclose(a, b, atol=1e-3) for a, b in pairwise(logits))


def test_box_and_point_of_both_and_all_components_are_one_call(refiner, embedding, prompts):
    boxes = [Prompt(box=(10 * i, 9, 10 * i + 30, 60)) for i in range(12)]
    with decoder_calls(refiner) as calls:
        refiner.refine(embedding, [prompts["box"], prompts["point"], *boxes])
    assert [call[:2] for call in calls] == [(14, 2)]


def test_a_call_of_the_decoder_is_bounded(refiner, embedding):
    boxes = [Prompt(box=(2 * i, 9, 2 * i + 30, 60)) for i in range(70)]
    with decoder_calls(refiner) as calls:
        refined = refiner.refine_each(embedding, boxes)
    assert len(refined) == 70 == sum(call.prompts for call in calls)
    assert max(call.prompts for call in calls) <= 64 and len(calls) <= 3
    assert_same(refined[-1], refiner.refine_one(embedding, boxes[-1]))


def test_each_further_pass_gets_the_best_logits_as_the_predictor_would_be_given_them(
    refiner, embedding, prompts
):
    predictor = SamPredictor(refiner.sam)
    predictor.set_image(scene(*SIZE)[0])
    start = prompts["logits+box"]
    for multimask in (True, False):
        given = start.mask_logits[None]
        for passes in (1, 2, 3):
            masks, ious, low = predictor.predict(
                box=start.box, mask_input=given, multimask_output=multimask
            )
            best = int(ious.argmax())
            given = low[best][None]
            with options(refiner, passes=passes, mask_choice="best" if multimask else "single"):
                found = refiner.refine(embedding, start)
            np.testing.assert_allclose(found.low_res_logits, low[best], atol=2e-5, rtol=0)
            assert found.score == pytest.approx(float(ious[best]), abs=1e-5)
            assert np.count_nonzero(found.mask != masks[best]) <= 2


LOGITS = torch.tensor([[[2.0, -1], [-3, 4]], [[-2, 5], [-3, -4]], [[1, -1], [1, -8]]])


@pytest.mark.parametrize(
    ("values", "wanted", "score"),
    [
        ({"mask_choice": "best"}, [[-2, 5], [-3, -4]], 0.7),
        ({"mask_choice": "union"}, [[2, 5], [1, 4]], 0.7),
        # exp(iou / temperature) is 1 : 2 : 1, so the weights are 1/4, 1/2, 1/4.
        ({"mask_choice": "softmax", "temperature": 0.2}, [[-0.25, 2], [-2, -3]], None),
    ],
)
def test_the_choice_among_three_masks_by_hand(refiner, values, wanted, score):
    ious = torch.tensor([0.7 - 0.2 * math.log(2), 0.7, 0.7 - 0.2 * math.log(2)])
    with options(refiner, **values):
        logits, found = refiner.choose(LOGITS, ious)
        alone, its_score = refiner.choose(LOGITS[:1], ious[:1])
    torch.testing.assert_close(logits, torch.tensor(wanted, dtype=torch.float32))
    wanted_score = 0.7 - 0.1 * math.log(2) if score is None else score
    assert float(found) == pytest.approx(wanted_score, abs=1e-6)
    assert torch.equal(alone, LOGITS[0]) and its_score == ious[0]


def test_the_choice_keeps_its_digits_in_mixed_precision(refiner):
    logits, ious = LOGITS * 1.2345, torch.tensor([0.61, 0.7, 0.66])
    with options(refiner, mask_choice="softmax"):
        wanted = refiner.choose(logits, ious)
        with torch.autocast("cpu", torch.bfloat16):
            found = refiner.choose(logits, ious)
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize("values", [{"mask_choice": "union"}, {"mask_choice": "softmax"}])
def test_the_choice_reaches_the_refined_mask(refiner, embedding, prompts, values):
    decoded = refiner.decode(embedding, prompts["point"], multimask=True)
    best = refiner.refine(embedding, prompts["point"])
    with options(refiner, **values):
        wanted, score = refiner.choose(*decoded)
        found = refiner.refine(embedding, prompts["point"])
    assert np.array_equal(found.low_res_logits, wanted.numpy()) and found.score == float(score)
    assert not np.array_equal(found.mask, best.mask)
    if values["mask_choice"] == "union":
        assert not (best.mask & ~found.mask).any() and found.score == best.score


def test_jitter_adds_an_agreement_and_leaves_the_mask_as_it_is(refiner, embedding, prompts):
    for name in ("box", "point", "box+point", "mask", "logits+box"):
        plain = refiner.refine(embedding, prompts[name])
        with options(refiner, jitter={"copies": 4}):
            moved = refiner.refine(embedding, prompts[name])
        assert math.isnan(plain.agreement)
        assert 0 < moved.agreement < 1, name
        assert np.array_equal(moved.mask, plain.mask) and moved.score == plain.score
        assert np.array_equal(moved.low_res_logits, plain.low_res_logits)


def test_the_agreement_is_the_mean_iou_with_the_copies_masks(refiner, embedding, prompts):
    jitter = JitterOptions(copies=3, seed=5)
    plain = refiner.refine(embedding, prompts["box"])
    copies = moved_copies(prompts["box"], plain.mask, jitter, embedding.image_sha256)
    masks = [refiner.refine(embedding, copy).mask for copy in copies]
    ious = [(plain.mask & mask).sum() / (plain.mask | mask).sum() for mask in masks]
    with options(refiner, jitter=jitter.model_dump()):
        agreement = refiner.refine(embedding, prompts["box"]).agreement
    assert agreement == pytest.approx(np.mean(ious), abs=1e-4)


def test_jitter_is_seeded_and_does_not_depend_on_the_order(refiner, embedding, prompts):
    chosen = [prompts[name] for name in ("box", "point", "points", "mask")]
    with options(refiner, jitter={"copies": 3, "box": 0.4, "point": 0.4}):
        forward = [one.agreement for one in refiner.refine_each(embedding, chosen)]
        again = [one.agreement for one in refiner.refine_each(embedding, chosen[::-1])][::-1]
        alone = [refiner.refine(embedding, prompt).agreement for prompt in chosen]
        united = refiner.refine(embedding, chosen).agreement
    with options(refiner, jitter={"copies": 3, "box": 0.4, "point": 0.4, "seed": 1}):
        other = refiner.refine_each(embedding, chosen)
    np.testing.assert_allclose(again, forward, atol=2e-4)  # batches are rounded otherwise
    np.testing.assert_allclose(alone, forward, atol=2e-4)
    assert united == pytest.approx(np.mean(forward))
    assert all(abs(a - b.agreement) > 1e-6 for a, b in zip(forward, other, strict=True))


def test_copies_of_all_prompts_share_the_decoders_calls(refiner, embedding, prompts):
    with options(refiner, jitter={"copies": 8}), decoder_calls(refiner) as calls:
        refiner.refine(embedding, [prompts["box"], prompts["point"]])
    assert [call[:2] for call in calls] == [(2, 2), (16, 2)]


def test_moves_are_uniform_shares_of_the_box_and_stay_in_the_image(prompts):
    refined = np.zeros(SIZE, bool)
    refined[40:90, 60:100] = True
    jitter = JitterOptions(copies=64, box=0.1, point=0.2)
    box = prompts["box"].box
    copies = moved_copies(prompts["box"], refined, jitter, "image")
    moves = np.array([copy.box - box for copy in copies]) / [60, 61, 60, 61]
    assert 0.09 < np.abs(moves).max() <= 0.1 and np.abs(moves.mean(axis=0)).max() < 0.03
    assert len(np.unique(moves)) == moves.size
    points = np.array([c.points for c in moved_copies(prompts["points"], refined, jitter, "image")])
    moves = (points[:, 0] - [80, 82]) / [40, 50]  # without a box or mask the refined mask measures
    assert 0.17 < np.abs(moves).max() <= 0.2
    assert points.min() >= 0 and all(c.labels.tolist() == [1, 0] for c in [prompts["points"]])
    corner = Prompt(box=(-5, 0, 3, 150))
    for copy in moved_copies(corner, refined, jitter, "image"):
        assert (copy.box[:2] >= 0).all() and (copy.box[2:] <= (200, 150)).all()


def test_a_mask_moves_as_a_whole_by_shares_of_its_own_box():
    mask = np.zeros(SIZE, np.float32)
    mask[0:40, 100:140] = np.random.default_rng(0).uniform(0.6, 1, (40, 40))
    everything = np.ones(SIZE, bool)  # its sides would move the mask farther
    copies = moved_copies(Prompt(mask=mask), everything, JitterOptions(box=0.45), "image")
    moves = set()
    for copy in copies:
        rows, columns = np.nonzero(copy.mask)
        dy, dx = rows.max() - 39, columns.min() - 100
        assert copy.mask.dtype == np.float32 and abs(dy) <= 18 and abs(dx) <= 18
        wanted = np.zeros_like(mask)
        wanted[max(dy, 0) : 40 + dy, 100 + dx : 140 + dx] = mask[max(-dy, 0) : 40, 100:140]
        assert np.array_equal(copy.mask, wanted)
        moves.add((dy, dx))
    assert len(moves) == 8 and {dy > 0 for dy, _ in moves} == {True, False}


def test_other_images_and_seeds_have_other_moves_and_the_same_have_the_same(prompts):
    refined = np.ones(SIZE, bool)

    def boxes(seed=0, image="a", copies=4):
        moved = moved_copies(
            prompts["box"], refined, JitterOptions(seed=seed, copies=copies), image
        )
        return np.array([copy.box for copy in moved])

    assert np.array_equal(boxes(), boxes()) and np.array_equal(boxes(copies=9)[:4], boxes())
    assert not np.array_equal(boxes(), boxes(seed=1))
    assert not np.array_equal(boxes(), boxes(image="b"))


def test_without_moves_the_copies_agree_and_logits_alone_cannot_be_moved(
    refiner, embedding, prompts
):
    with options(refiner, jitter={"copies": 2, "box": 1e-6, "point": 0}):
        assert refiner.refine(embedding, prompts["box+point"]).agreement > 0.999
        logits = Prompt(mask_logits=prompts["logits+box"].mask_logits)
        assert math.isnan(refiner.refine(embedding, logits).agreement)


def test_mean_iou_by_hand():
    mask = np.zeros((4, 4), bool)
    mask[:2] = True
    others = np.stack([mask, ~mask, np.ones((4, 4), bool)])
    assert mean_iou(mask, others) == pytest.approx((1 + 0 + 0.5) / 3)
    nothing = np.zeros((4, 4), bool)
    assert mean_iou(nothing, np.stack([nothing, nothing])) == 1
    assert mean_iou(nothing, np.stack([nothing, mask])) == 0.5


def test_a_batch_of_images_is_one_call_and_gives_what_each_gives_alone(refiner):
    images = [scene(*size, seed)[0] for seed, size in enumerate([(150, 200), (90, 40), (256, 256)])]
    sizes = []
    handle = refiner.sam.image_encoder.register_forward_pre_hook(
        lambda module, args: sizes.append(len(args[0]))
    )
    try:
        together = refiner.embed_batch(images)
    finally:
        handle.remove()
    assert sizes == [3] and refiner.batch_size >= 1
    for found, image in zip(together, images, strict=True):
        alone = refiner.embed(image)
        np.testing.assert_allclose(found.features, alone.features, atol=1e-5, rtol=0)
        assert replace(found, features=None).__dict__ == replace(alone, features=None).__dict__
    with pytest.raises(UltraRefinerError, match="uint8"):
        refiner.embed_batch([images[0], images[1].astype(float)])


def test_the_recipe_names_what_changes_an_embedding(refiner):
    assert refiner.recipe == {"precision": "float32"}
    with options(refiner, precision="bfloat16", passes=2, mask_choice="union"):
        assert refiner.recipe == {"precision": "bfloat16"}
        image = scene(*SIZE)[0]
        rounded = refiner.embed(image).features
    exact = refiner.embed(image).features
    assert rounded.dtype == np.float32 and not np.array_equal(rounded, exact)
    assert np.abs(rounded - exact).mean() < 0.05 * np.abs(exact).mean()


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"passes": 0}, "passes"),
        ({"mask_choice": "worst"}, "mask_choice"),
        ({"temperature": 0.2}, "temperature has no effect on mask_choice: best"),
        ({"jitter": {"copies": 1}}, "jitter.copies"),
        ({"jitter": {"shift": 0.1}}, "jitter.shift"),
        ({"precision": "float16"}, "precision"),
    ],
)
def test_options_that_make_no_sense_are_refused_by_name(values, complaint):
    with pytest.raises(ConfigError, match=complaint):
        parse_options("sam", values)
