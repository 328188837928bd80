"""UltraSAM's two passes are run for every prompt as its authors run them for a box and a point."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.sam_fixture import write_tiny_ultrasam
from tests.sam_refiners import decoder_calls, options, scene
from ultrarefiner.errors import ConfigError, PromptError, UltraRefinerError
from ultrarefiner.prompts.base import Prompt
from ultrarefiner.prompts.geometry import tight_box
from ultrarefiner.refine import load_refiner, parse_options
from ultrarefiner.refine.embeddings import SamEmbedding

pytestmark = pytest.mark.usefixtures("one_thread")

HEIGHT, WIDTH = 150, 200
BOX = (50, 52, 110, 113)
POINT = np.array([[80.0, 82]])


@pytest.fixture(scope="module")
def refiner(tmp_path_factory):
    weights = write_tiny_ultrasam(tmp_path_factory.mktemp("weights") / "small.pth", seed=1)
    return load_refiner("ultrasam", weights=str(weights))


@pytest.fixture(scope="module")
def full_frame(tmp_path_factory):
    """Return the refiner of a tiny UltraSAM with the published frame of 1024."""
    weights = write_tiny_ultrasam(tmp_path_factory.mktemp("weights") / "full.pth", side=1024)
    return load_refiner("ultrasam", weights=str(weights))


@pytest.fixture(scope="module")
def embedding(refiner):
    return refiner.embed(scene(HEIGHT, WIDTH)[0])


@pytest.fixture(scope="module")
def prompts():
    lesion = scene(HEIGHT, WIDTH)[1]
    logits = torch.nn.functional.interpolate(
        torch.from_numpy(np.where(lesion, 4.0, -4.0))[None, None], (48, 64), mode="area"
    )
    logits = np.pad(logits[0, 0].float().numpy(), ((0, 16), (0, 0)), constant_values=-4)
    return {
        "box": Prompt(box=BOX),
        "point": Prompt(points=POINT),
        "points": Prompt(points=[[80, 82], [70, 85], [5, 5.5]], labels=[1, 1, 0]),
        "box+point": Prompt(box=BOX, points=POINT),
        "mask": Prompt(mask=lesion),
        "mask+point": Prompt(mask=lesion, points=POINT),
        "mask+box": Prompt(mask=lesion, box=BOX),
        "logits": Prompt(mask_logits=logits),
    }


@pytest.mark.parametrize(
    ("size", "wanted"),
    [
        ((430, 560), (786, 1024)),
        ((498, 300), (1023, 616)),
        ((300, 561), (547, 1023)),
        ((1122, 1122), (1023, 1023)),
        ((100, 201), (509, 1024)),
        ((1, 3000), (1, 1024)),
    ],
)
@pytest.mark.parametrize("padding", ["after", "before"])
def test_sizes_are_cut_off_and_the_padding_is_as_asked(full_frame, size, wanted, padding):
    image, _ = scene(*size)
    with options(full_frame, padding=padding):
        pixels, (height, width) = full_frame.input_tensor(image)
    assert (height, width) == wanted
    assert pixels.shape == (1, 3, 1024, 1024) and pixels.dtype == torch.float32
    beyond = torch.ones(1024, 1024, dtype=torch.bool)
    beyond[:height, :width] = False
    mean, std = full_frame.sam.pixel_mean.flatten(), full_frame.sam.pixel_std.flatten()
    black = -mean / std if padding == "before" else torch.zeros(3)
    for channel in range(3):
        assert torch.allclose(pixels[0, channel][beyond], black[channel])
        # Red stays red: resizing keeps the mean of each channel.
        seen = pixels[0, channel, :height, :width].mean() * std[channel] + mean[channel]
        if min(size) > 1:
            assert float(seen) == pytest.approx(image[..., channel].mean(), abs=1.5)


def test_coordinates_are_scaled_as_asked(refiner):
    features = np.zeros((256, 16, 16), np.float32)
    embedding = SamEmbedding(
        features, (100, 201), (127, 256), "", refiner.weights_sha256, refiner.family, refiner.recipe
    )
    prompt = Prompt(box=(10, 20, 110, 90), points=[[40, 50]])
    per_axis, longest = np.array([256 / 201, 1.27]), np.array([256 / 201] * 2)
    for scale, factors in (("per_axis", per_axis), ("longest", longest)):
        for half_pixel in (True, False):
            with options(refiner, scale=scale, half_pixel=half_pixel):
                query = refiner.query(embedding, prompt)
            added = 0.5 * half_pixel - 0.5  # segment-anything's prompt encoder adds the 0.5 itself
            np.testing.assert_allclose(query.points, [[40, 50] * factors + added])
            np.testing.assert_allclose(
                query.box.reshape(2, 2), [[10, 20], [110, 90]] * factors + added
            )


def test_a_boxs_second_pass_has_the_first_logits_and_the_same_box(refiner, embedding, prompts):
    single, iou = refiner.decode(embedding, prompts["box"], multimask=False)
    logits, ious = refiner.decode(
        embedding, Prompt(box=BOX, mask_logits=single.numpy()), multimask=True
    )
    assert single.shape == (1, 64, 64) and ious.shape == (3,)
    with decoder_calls(refiner) as calls:
        found = refiner.refine(embedding, prompts["box"])
    assert calls == [(1, 2, False), (1, 2, True)]
    np.testing.assert_array_equal(found.low_res_logits, logits[ious.argmax()].numpy())
    assert found.score == float(ious.max())
    with options(refiner, passes=1):
        first = refiner.refine(embedding, prompts["box"])
    assert np.array_equal(first.low_res_logits, single[0].numpy()) and first.score == float(iou)
    with options(refiner, passes=3):
        third = refiner.refine(embedding, prompts["box"])
    again = Prompt(box=BOX, mask_logits=logits[ious.argmax()].numpy())
    logits, ious = refiner.decode(embedding, again, multimask=True)
    np.testing.assert_array_equal(third.low_res_logits, logits[ious.argmax()].numpy())


@pytest.mark.parametrize("threshold", ["after", "before"])
@pytest.mark.parametrize("kind", ["point", "points"])
def test_points_become_the_box_of_their_first_mask(refiner, embedding, prompts, kind, threshold):
    with options(refiner, threshold=threshold):
        single, _ = refiner.decode(embedding, prompts[kind], multimask=False)
        mask = refiner.full_masks(embedding, single)[0].numpy()
        found = refiner.refine(embedding, prompts[kind])
    with options(refiner, passes=1, threshold=threshold):
        assert np.array_equal(refiner.refine(embedding, prompts[kind]).mask, mask)
    # No half pixel is added to this box, whatever the options say.
    with options(refiner, half_pixel=False):
        second = Prompt(box=tight_box(mask), mask_logits=single.numpy())
        logits, ious = refiner.decode(embedding, second, multimask=True)
    np.testing.assert_allclose(found.low_res_logits, logits[ious.argmax()].numpy(), atol=1e-5)


@pytest.mark.parametrize(
    ("threshold", "wanted"),
    [
        # Cells 20 to 29 of 64 across and 8 to 11 down: 3.125 original pixels each.
        ("after", (20 * 3.125, 8 * 3.125, 30 * 3.125, 12 * 3.125)),
        # Interpolated, they touch up to half a cell more on each side.
        ("before", (19.5 * 3.125, 7.5 * 3.125, 30.5 * 3.125, 12.5 * 3.125)),
    ],
)
@pytest.mark.parametrize("values", [{}, {"scale": "longest"}, {"half_pixel": False}])
def test_the_box_of_a_first_mask_by_hand(refiner, embedding, prompts, threshold, wanted, values):
    logits = torch.full((1, 64, 64), -1.0)
    logits[:, 8:12, 20:30] = 1
    with options(refiner, threshold=threshold, **values):
        query = refiner.query(embedding, prompts["point"])
        second = refiner._second(embedding, query, logits)
    assert second.points is None and torch.equal(second.mask, logits)
    # Whole original pixels, scaled by 1.28 on each axis, no half pixel.
    box = (second.box + 0.5) / 1.28
    np.testing.assert_allclose(box, box.round(), atol=1e-9)
    np.testing.assert_allclose(box, wanted, atol=1)


def test_the_box_of_an_empty_first_mask_is_the_origin(refiner, embedding, prompts):
    query = refiner.query(embedding, prompts["point"])
    second = refiner._second(embedding, query, torch.full((1, 64, 64), -3.0))
    assert second.points is None and np.array_equal(second.box + 0.5, np.zeros(4))
    assert torch.equal(second.mask, torch.full((1, 64, 64), -3.0))


@pytest.mark.parametrize(
    ("kind", "calls"),
    [
        ("box+point", [(1, 3, False), (1, 3, True)]),
        ("mask", [(1, 2, True)]),
        ("mask+point", [(1, 3, True)]),
        ("mask+box", [(1, 2, True)]),
        ("logits", [(1, 2, True)]),
        ("points", [(1, 4, False), (1, 2, True)]),
    ],
)
@pytest.mark.parametrize("passes", [1, 2, 3])
def test_other_prompts_run_the_passes_that_are_left_to_them(
    refiner, embedding, prompts, kind, calls, passes
):
    with options(refiner, passes=passes), decoder_calls(refiner) as found:
        refined = refiner.refine(embedding, prompts[kind])
    given = kind.startswith(("mask", "logits"))
    wanted = calls[:1] if passes == 1 else calls[:-1] + calls[-1:] * (passes - 1)
    assert found == (calls * max(1, passes - 1) if given else wanted)
    assert refined.mask.any() and not refined.mask.all()


def test_a_mask_without_a_box_gives_its_own(refiner, embedding, prompts):
    lesion = scene(HEIGHT, WIDTH)[1]
    corners = np.array(tight_box(lesion)).reshape(2, 2) * [256 / WIDTH, 192 / HEIGHT] - 0.5
    for kind in ("mask", "mask+point"):
        query = refiner.query(embedding, prompts[kind])
        np.testing.assert_allclose(query.box, corners.ravel())
        assert (query.points is None) == (kind == "mask")
    near = refiner.query(embedding, prompts["logits"])
    np.testing.assert_allclose(near.box, corners.ravel(), atol=3)  # logits are 3 pixels wide
    given = refiner.query(embedding, prompts["mask+box"])
    np.testing.assert_allclose(given.box, np.array(BOX) * 1.28)
    assert not np.allclose(given.box, corners.ravel(), atol=1)


@pytest.mark.parametrize("passes", [1, 2, 3])
@pytest.mark.parametrize("choice", ["best", "single", "union", "softmax"])
def test_prompts_decoded_together_give_what_each_gives_alone(
    refiner, embedding, prompts, passes, choice
):
    with options(refiner, passes=passes, mask_choice=choice):
        together = refiner.refine_each(embedding, list(prompts.values()))
        alone = [refiner.refine_one(embedding, prompt) for prompt in prompts.values()]
    for found, wanted in zip(together, alone, strict=True):
        # Each pass adds its rounding.
        atol = 1e-5 * passes
        np.testing.assert_allclose(found.low_res_logits, wanted.low_res_logits, atol=atol, rtol=0)
        assert found.score == pytest.approx(wanted.score, abs=1e-5)
        assert np.count_nonzero(found.mask != wanted.mask) <= 2
    with decoder_calls(refiner) as calls:
        refiner.refine_each(embedding, [prompts["box"], prompts["point"], prompts["mask"]])
    assert calls == [(2, 2, False), (3, 2, True)]


def test_jitter_moves_prompts_of_both_passes(refiner, embedding, prompts):
    with options(refiner, jitter={"copies": 4}):
        moved = [refiner.refine(embedding, prompts[kind]) for kind in ("box", "point", "mask")]
    plain = [refiner.refine(embedding, prompts[kind]) for kind in ("box", "point", "mask")]
    assert all(0 < one.agreement <= 1 for one in moved)
    assert all(np.array_equal(a.mask, b.mask) for a, b in zip(moved, plain, strict=True))


@pytest.mark.parametrize(("radius", "least", "most"), [(20, 1.06, 1.10), (8, 1.17, 1.23)])
def test_the_threshold_before_fattens_lesions(full_frame, radius, least, most):
    """A disc of this radius in the 256 pixels of the logits, as distance to its border."""
    rows, columns = np.mgrid[:256, :256] + 0.5
    logits = radius - np.hypot(rows - 96.3, columns - 130.2)
    logits = torch.from_numpy(logits.astype(np.float32))[None]
    features = np.zeros((256, 64, 64), np.float32)
    embedding = SamEmbedding(
        features,
        (430, 560),
        (786, 1024),
        "",
        full_frame.weights_sha256,
        full_frame.family,
        full_frame.recipe,
    )
    true = np.pi * (radius * 4 * 560 / 1024) ** 2
    areas = {}
    for threshold in ("after", "before"):
        with options(full_frame, threshold=threshold):
            areas[threshold] = int(full_frame.full_masks(embedding, logits).sum()) / true
    assert areas["after"] == pytest.approx(1, abs=0.01)
    assert least < areas["before"] < most


def test_the_recipe_and_the_presets(refiner):
    assert refiner.recipe == {"precision": "float32", "padding": "after"}
    four = ("padding", "half_pixel", "scale", "threshold")

    def values(**given):
        parsed = parse_options("ultrasam", given)
        return tuple(getattr(parsed, key) for key in four)

    assert values() == values(compat=None) == ("after", True, "per_axis", "after")
    assert values(compat="official") == ("after", True, "per_axis", "before")
    assert values(compat="reference") == ("before", False, "longest", "before")
    with options(refiner, compat="reference"):
        assert refiner.recipe["padding"] == "before"
    assert values(compat="reference", padding="before") == values(compat="reference")


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        (
            {"compat": "reference", "padding": "after"},
            "compat: reference is padding: before.*after",
        ),
        ({"compat": "official", "threshold": "after"}, "threshold: before.*remove one"),
        ({"compat": "original"}, "compat"),
        ({"compat": ["reference"]}, "compat"),
        ({"padding": "none"}, "padding"),
        ({"passes": 0}, "passes"),
    ],
)
def test_contradictions_are_refused_by_name(given, complaint):
    with pytest.raises(ConfigError, match=complaint):
        parse_options("ultrasam", given)


def test_logits_of_another_size_are_refused(refiner, embedding):
    with pytest.raises(PromptError, match=r"\(256, 256\).*\(64, 64\)"):
        refiner.refine(embedding, Prompt(mask_logits=np.zeros((256, 256))))


def test_an_embedding_of_another_family_or_other_options_is_refused(refiner, prompts):
    image, _ = scene(HEIGHT, WIDTH)
    embedding = refiner.embed(image)
    with options(refiner, padding="before"):
        with pytest.raises(UltraRefinerError, match=r"'padding': 'after'.* this refiner is of"):
            refiner.refine(embedding, prompts["box"])
        refiner.refine(refiner.embed(image), prompts["box"])
    with pytest.raises(UltraRefinerError, match="made by family 'sam'"):
        refiner.refine(replace(embedding, family="sam"), prompts["box"])
