"""Every refiner family answers the same questions in the same way, so any of them can take any place in a study."""

import os

import numpy as np
import pytest

from tests.sam_fixture import (
    write_mobile_sam,
    write_tiny_medsam2,
    write_tiny_sam,
    write_tiny_sam_unet,
    write_tiny_ultrasam,
)
from ultrarefiner.errors import ConfigError, PromptError, UltraRefinerError
from ultrarefiner.prompts import PROMPTS, Prompt, prompt_from_mask
from ultrarefiner.refine import REFINERS, load_refiner, parse_options
from ultrarefiner.refine.base import Embedding, Refiner
from ultrarefiner.registry import resolve

# How to load each family for a test; a new family needs a line here.
WEIGHTS = {
    "grabcut": lambda folder: None,
    "sam": lambda folder: write_tiny_sam(folder / "sam.safetensors"),
    "medsam2": lambda folder: write_tiny_medsam2(folder / "medsam2.pt"),
    "mobile_sam": lambda folder: write_mobile_sam(folder / "mobile_sam.pt"),
    "sam_unet": lambda folder: write_tiny_sam_unet(folder / "sam_unet.pth"),
    "ultrasam": lambda folder: write_tiny_ultrasam(folder / "ultrasam.pth", seed=1),
}
HEIGHT, WIDTH = 50, 70


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    return {family: make(folder) for family, make in WEIGHTS.items()}


@pytest.fixture(scope="module", params=sorted(REFINERS))
def refiner(request, weights):
    return load_refiner(request.param, weights[request.param], "cpu")


@pytest.fixture(scope="module")
def lesion():
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    return ((columns - 30) / 14) ** 2 + ((rows - 25) / 9) ** 2 <= 1


@pytest.fixture(scope="module")
def image(lesion):
    gray = np.where(lesion, 50.0, 140.0) * np.random.default_rng(0).rayleigh(0.8, lesion.shape)
    return np.dstack([np.clip(gray, 0, 255).astype(np.uint8)] * 3)


@pytest.fixture(scope="module")
def embedding(refiner, image):
    return refiner.embed(image)


@pytest.fixture(scope="module")
def turned(refiner, image):
    """Return the embedding of the image upside down."""
    return refiner.embed(image[::-1])


@pytest.fixture(scope="module")
def of_every_family(weights, image):
    """Return the embedding of the image by every family."""
    return {family: load_refiner(family, weights[family], "cpu").embed(image) for family in WEIGHTS}


def usable(refiner):
    """Return the prompt kinds that the family takes."""
    needs_mask = REFINERS[refiner.family].needs_mask
    return [kind for kind, row in PROMPTS.items() if not needs_mask or "mask" in row.parts]


def test_every_family_is_asked():
    assert set(WEIGHTS) == set(REFINERS)


def test_the_row_describes_the_class(refiner):
    row = REFINERS[refiner.family]
    assert type(refiner) is resolve(row.target)
    assert isinstance(refiner, Refiner)
    assert isinstance(refiner.options, row.options)
    assert issubclass(refiner.embedding_type, Embedding)


def test_a_refinement_has_the_promised_shapes_and_types(refiner, embedding, lesion):
    kinds = usable(refiner)
    assert "mask" in kinds
    for kind in kinds:
        out = refiner.refine(embedding, prompt_from_mask(lesion, kind))
        assert out.mask.dtype == np.bool_, kind
        assert out.mask.shape == (HEIGHT, WIDTH), kind
        assert out.low_res_logits.dtype == np.float32, kind
        assert out.low_res_logits.ndim == 2, kind
        assert np.isfinite(out.low_res_logits).all(), kind
        assert type(out.score) is float, kind


def test_kinds_that_the_row_excludes_are_refused_with_the_rows_reason(refiner, embedding, lesion):
    refused = sorted(set(PROMPTS) - set(usable(refiner)))
    assert bool(refused) == bool(REFINERS[refiner.family].needs_mask)
    for kind in refused:
        with pytest.raises(PromptError) as error:
            refiner.refine(embedding, prompt_from_mask(lesion, kind))
        assert REFINERS[refiner.family].needs_mask in str(error.value)


@pytest.mark.parametrize("spot", [(0, 0), (25, 35), (HEIGHT - 1, WIDTH - 1)])
def test_a_lesion_of_one_pixel_is_refined_with_a_background_point_beside_it(
    refiner, embedding, spot
):
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[spot] = True
    for kind in usable(refiner):
        negative = int("point" in PROMPTS[kind].parts)
        refined = refiner.refine(embedding, prompt_from_mask(mask, kind, negative=negative))
        assert refined.mask.shape == mask.shape
        if refiner.family == "grabcut":
            assert refined.mask[spot]


def test_several_prompts_are_united(refiner, embedding, lesion):
    halves = [lesion.copy(), lesion.copy()]
    halves[0][:, 30:] = False
    halves[1][:, :30] = False
    prompts = [Prompt(mask=half) for half in halves]
    alone = [refiner.refine(embedding, prompt) for prompt in prompts]
    together = refiner.refine(embedding, prompts)
    np.testing.assert_array_equal(together.mask, alone[0].mask | alone[1].mask)
    np.testing.assert_allclose(
        together.low_res_logits,
        np.maximum(alone[0].low_res_logits, alone[1].low_res_logits),
        atol=1e-5,  # prompts decoded together are rounded otherwise
    )
    mean = (alone[0].score + alone[1].score) / 2
    assert together.score == pytest.approx(mean, abs=1e-6, nan_ok=True)


def test_each_of_several_prompts_gives_what_it_gives_alone(refiner, embedding, lesion):
    prompts = [Prompt(mask=np.roll(lesion, shift, axis=1)) for shift in (0, 5, 24)]
    together = refiner.refine_each(embedding, prompts)
    for found, prompt in zip(together, prompts, strict=True):
        alone = refiner.refine_one(embedding, prompt)
        np.testing.assert_allclose(found.low_res_logits, alone.low_res_logits, atol=2e-5)
        assert np.count_nonzero(found.mask != alone.mask) <= 2


def test_a_batch_of_images_gives_what_each_gives_alone(refiner, image, embedding, turned, lesion):
    images = [image, image[::-1], image[:40, :60]]
    each = [embedding, turned, refiner.embed(images[2])]
    assert refiner.batch_size >= 1 and refiner.embed_batch([]) == []
    for found, one, known in zip(refiner.embed_batch(images), images, each, strict=True):
        assert isinstance(found, refiner.embedding_type) and found.image_hw == one.shape[:2]
        prompt = Prompt(mask=lesion[: one.shape[0], : one.shape[1]])
        alone = refiner.refine(known, prompt)
        logits = refiner.refine(found, prompt).low_res_logits
        np.testing.assert_allclose(logits, alone.low_res_logits, atol=1e-4)


def test_the_row_names_the_options_that_change_an_embedding(refiner):
    row = REFINERS[refiner.family]
    if row.shelves_embeddings:
        assert set(row.embedding_options) == set(refiner.recipe)
    else:
        assert not row.embedding_options
    assert set(row.embedding_options) <= set(row.options.model_fields)


def test_no_prompt_at_all_is_refused(refiner, embedding):
    with pytest.raises(PromptError, match="empty list"):
        refiner.refine(embedding, [])


def test_a_mask_of_another_size_is_refused_with_both_sizes(refiner, embedding, lesion):
    with pytest.raises(PromptError, match=rf"\({WIDTH}, {HEIGHT}\).*\({HEIGHT}, {WIDTH}\)"):
        refiner.refine(embedding, Prompt(mask=lesion.T))


@pytest.mark.parametrize(
    ("parts", "complaint"),
    [
        ({"points": [[WIDTH - 0.5, 9]]}, r"point \(69.5, 9\) .* image of 70 x 50"),
        ({"points": [[30, 25], [9, -0.6]]}, r"point \(9, -0.6\) .* image of 70 x 50"),
        ({"points": [[500, 500]]}, r"point \(500, 500\)"),
        ({"box": (WIDTH, 0, 90, 9)}, r"box \(70, 0, 90, 9\) .* image of 70 x 50"),
        ({"box": (0, -9, 9, 0)}, r"box \(0, -9, 9, 0\)"),
        ({"mask": np.zeros((HEIGHT, WIDTH), bool)}, "mask is empty .*70 x 50"),
        ({"mask": np.full((HEIGHT, WIDTH), 0.4)}, "mask is empty"),
    ],
)
def test_what_says_nothing_about_the_image_is_refused(refiner, embedding, lesion, parts, complaint):
    prompt = Prompt(**{"mask": lesion, **parts})
    with pytest.raises(PromptError, match=complaint):
        refiner.refine(embedding, prompt)
    with pytest.raises(PromptError, match=complaint):
        refiner.refine(embedding, [Prompt(mask=lesion), prompt])


def test_half_a_pixel_and_part_of_a_box_may_reach_beyond_the_image(refiner, embedding, lesion):
    points = [[-0.5, -0.5], [WIDTH - 0.51, HEIGHT - 0.51]]
    prompt = Prompt(mask=lesion, box=(-9, -9, 90, 90), points=points, labels=[0, 0])
    assert refiner.refine(embedding, prompt).mask.shape == (HEIGHT, WIDTH)


def test_an_embedding_of_another_family_is_refused(refiner, of_every_family, lesion):
    for family in sorted(set(REFINERS) - {refiner.family}):
        other = of_every_family[family]
        alike = type(other) is refiner.embedding_type  # then the weights tell them apart
        why = "made with weights" if alike else f"'{refiner.family}'.*{type(other).__name__}"
        with pytest.raises(UltraRefinerError, match=why):
            refiner.refine(other, Prompt(mask=lesion))


def test_an_embedding_file_follows_the_umask(embedding, tmp_path):
    before = os.umask(0o027)
    try:
        embedding.save(tmp_path / "case.safetensors")
    finally:
        os.umask(before)
    assert (tmp_path / "case.safetensors").stat().st_mode & 0o777 == 0o640


def test_a_mask_that_is_no_probability_is_refused(refiner, embedding, lesion):
    with pytest.raises(PromptError, match=r"\[0, 1\]"):
        refiner.refine(embedding, Prompt(mask=lesion * 255.0))


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((HEIGHT, WIDTH), np.uint8),
        np.zeros((HEIGHT, WIDTH, 1), np.uint8),
        np.zeros((HEIGHT, WIDTH, 4), np.uint8),
        np.zeros((3, HEIGHT, WIDTH), np.uint8),
        np.zeros((0, WIDTH, 3), np.uint8),
        np.zeros((HEIGHT, WIDTH, 3), np.float32),
    ],
)
def test_what_is_no_rgb_image_is_refused(refiner, wrong):
    with pytest.raises(UltraRefinerError, match="uint8"):
        refiner.embed(wrong)


def test_the_prompt_decides(refiner, embedding, lesion):
    other = np.roll(lesion, 24, axis=1)
    first, second = (
        refiner.refine(embedding, Prompt(mask=mask)).low_res_logits for mask in (lesion, other)
    )
    assert not np.array_equal(first, second)


def test_the_image_decides(refiner, embedding, turned, lesion):
    first = refiner.refine(embedding, Prompt(mask=lesion)).low_res_logits
    second = refiner.refine(turned, Prompt(mask=lesion)).low_res_logits
    assert not np.array_equal(first, second)


def test_the_same_image_and_prompt_give_the_same_answer(refiner, embedding, image, lesion):
    prompt = Prompt(mask=lesion)
    first = refiner.refine(embedding, prompt)
    refiner.refine(embedding, Prompt(mask=np.roll(lesion, 9, axis=0)))
    again = refiner.refine(refiner.embed(image.copy()), prompt)
    np.testing.assert_array_equal(first.low_res_logits, again.low_res_logits)
    np.testing.assert_array_equal(first.mask, again.mask)


def test_an_embedding_read_from_its_file_gives_the_same_answer(
    refiner, embedding, lesion, tmp_path
):
    assert embedding.image_hw == (HEIGHT, WIDTH)
    path = tmp_path / "new" / "case.safetensors"
    embedding.save(path)
    loaded = Embedding.load(path)
    assert type(loaded) is refiner.embedding_type
    assert loaded.image_hw == (HEIGHT, WIDTH)
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
    prompt = Prompt(mask=lesion)
    np.testing.assert_array_equal(
        refiner.refine(loaded, prompt).low_res_logits,
        refiner.refine(embedding, prompt).low_res_logits,
    )
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(UltraRefinerError, match=str(path)):
        refiner.embedding_type.load(path)
    with pytest.raises(UltraRefinerError, match="no embedding") as caught:
        Embedding.load(path)
    reasons = str(caught.value).splitlines()
    assert len(reasons) == len(set(reasons)), "a reason is given twice"


def test_what_is_given_is_not_changed(refiner, image, lesion):
    pixels, mask = image.copy(), lesion.astype(np.float32)
    given = mask.copy()
    points = np.array([[30.0, 25.0]])
    refiner.refine(refiner.embed(pixels), Prompt(mask=given, points=points, box=(10, 10, 60, 40)))
    np.testing.assert_array_equal(pixels, image)
    np.testing.assert_array_equal(given, mask)
    np.testing.assert_array_equal(points, [[30.0, 25.0]])


@pytest.mark.parametrize("family", sorted(REFINERS))
def test_an_unknown_option_is_refused_by_name(family):
    with pytest.raises(ConfigError, match="sharpness"):
        parse_options(family, {"sharpness": 3})


@pytest.mark.parametrize(
    ("family", "given", "complaint"),
    [
        ("grabcut", {"median": 4}, "median"),
        ("sam", {"temperature": 0.5}, "temperature has no effect"),
        ("sam", {"compat": "reference"}, "compat"),
        ("ultrasam", {"compat": "reference", "half_pixel": True}, "half_pixel: False.*True"),
        ("ultrasam", {"jitter": {"copy": 8}}, "jitter.copy"),
    ],
)
def test_options_that_contradict_each_other_are_refused(family, given, complaint):
    with pytest.raises(ConfigError, match=complaint):
        parse_options(family, given)


@pytest.mark.parametrize("family", sorted(REFINERS))
def test_weights_are_asked_for_exactly_where_they_are_needed(family):
    wrong = None if REFINERS[family].needs_weights else "some.pth"
    with pytest.raises(ConfigError, match="weights"):
        load_refiner(family, wrong)


def test_what_is_no_image_or_no_prompt_is_refused(refiner, embedding, image):
    with pytest.raises(UltraRefinerError, match="got a list"):
        refiner.embed(image.tolist())
    for prompt in (None, 3, [None]):
        with pytest.raises(PromptError, match="must be a Prompt or a list of them"):
            refiner.refine(embedding, prompt)


def test_an_unknown_family_names_the_known_ones():
    with pytest.raises(ConfigError, match="grabcut, medsam2, mobile_sam, sam"):
        load_refiner("grab")
