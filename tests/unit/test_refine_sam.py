"""The SAM refiner passes on image, prompt and mask exactly as segment-anything's predictor does."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from segment_anything import SamPredictor

from tests.sam_fixture import tiny_sam, write_tiny_sam
from ultrarefiner.errors import ConfigError, PromptError, UltraRefinerError, WeightsError
from ultrarefiner.models.sam import frame_size, input_tensor, scale_coordinates
from ultrarefiner.prompts.base import Prompt
from ultrarefiner.refine import load_refiner
from ultrarefiner.refine.embeddings import SamEmbedding, image_sha256
from ultrarefiner.refine.options import SamOptions
from ultrarefiner.refine.sam import mask_prompt_logits

SIZES = [(150, 200), (201, 133), (1300, 700)]


def speckle(height, width, seed=0):
    """Return a bright field with a dark ellipse, as uint8 RGB."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    inside = ellipse(height, width)
    gray = np.where(inside, 50, 150) + rng.normal(0, 20, (height, width)) + rows / height * 30
    gray = gray[..., None] + columns[..., None] / width * np.array([0, 20, 40])
    return np.clip(gray, 0, 255).astype(np.uint8)


def ellipse(height, width, centre=(0.55, 0.4), radii=(0.2, 0.15)):
    rows, columns = (np.mgrid[:height, :width] + 0.5) / np.array([height, width])[:, None, None]
    return np.hypot((rows - centre[0]) / radii[0], (columns - centre[1]) / radii[1]) <= 1


def dice(a, b):
    return 2 * np.count_nonzero(a & b) / (np.count_nonzero(a) + np.count_nonzero(b))


@pytest.fixture(scope="module")
def official_frame(tmp_path_factory):
    """Return the refiner of a tiny SAM with the frame of 1024 that every published one has."""
    weights = write_tiny_sam(tmp_path_factory.mktemp("weights") / "tiny.pth")
    return load_refiner("sam", weights=str(weights), device="cpu")


@pytest.fixture(scope="module")
def refiner(tmp_path_factory):
    """Return the refiner of a tiny SAM with a frame of 256, low-resolution masks of 64."""
    weights = write_tiny_sam(tmp_path_factory.mktemp("weights") / "small.pth", side=256)
    return load_refiner("sam", weights=str(weights), device="cpu")


@pytest.fixture(scope="module")
def image():
    return speckle(*SIZES[0])


@pytest.fixture(scope="module")
def embedding(refiner, image):
    return refiner.embed(image)


@pytest.fixture(scope="module")
def prompts():
    """One prompt of each kind, for an image of 150 x 200."""
    mask = ellipse(150, 200)
    logits = np.random.default_rng(1).normal(0, 4, (64, 64)).astype(np.float32)
    return {
        "box": Prompt(box=(50, 52, 110, 113)),
        "point": Prompt(points=np.array([[80, 82]])),
        "points": Prompt(points=np.array([[80, 82], [5, 5.5]]), labels=np.array([1, 0])),
        "box+point": Prompt(box=(50, 52, 110, 113), points=np.array([[80, 82]])),
        "mask": Prompt(mask=mask),
        "mask+point": Prompt(mask=mask * 0.9, points=np.array([[80, 82]])),
        "mask_logits": Prompt(mask_logits=logits, box=(50, 52, 110, 113)),
        "both": [Prompt(box=(50, 52, 110, 113)), Prompt(points=np.array([[80, 82]]))],
    }


KINDS = ["box", "point", "points", "box+point", "mask", "mask+point", "mask_logits", "both"]


@pytest.mark.parametrize("size", SIZES)
def test_every_prompt_gives_the_predictors_masks(official_frame, size, monkeypatch):
    refiner = official_frame
    height, width = size
    image = speckle(height, width)
    embedding = refiner.embed(image)
    predictor = SamPredictor(tiny_sam())
    predictor.set_image(image)
    # The encoder is ours, so sums are in another order; all else is the predictor's.
    features = predictor.get_image_embedding()[0].numpy()
    np.testing.assert_allclose(embedding.features, features, atol=1e-4, rtol=0)
    assert (embedding.image_hw, embedding.input_size) == (size, predictor.input_size)
    box = np.array([0.2 * width, 0.3 * height, 0.7 * width, 0.8 * height]).round()
    points = np.array([[0.4 * width, 0.55 * height], [3, 2]]).round()
    labels = np.array([1, 0])
    logits = np.random.default_rng(1).normal(0, 4, (1, 256, 256)).astype(np.float32)
    calls = [
        ({"box": box}, Prompt(box=box)),
        (
            {"point_coords": points, "point_labels": labels},
            Prompt(points=points, labels=labels),
        ),
        (
            {"box": box, "point_coords": points, "point_labels": labels, "mask_input": logits},
            Prompt(box=box, points=points, labels=labels, mask_logits=logits[0]),
        ),
        ({"mask_input": logits}, Prompt(mask_logits=logits)),
    ]
    for arguments, prompt in calls:
        masks, ious, low = predictor.predict(**arguments, multimask_output=True)
        found, best = refiner.refine(embedding, prompt), int(ious.argmax())
        assert found.mask.shape == size and found.mask.dtype == bool
        assert np.count_nonzero(found.mask != masks[best]) <= 2
        np.testing.assert_allclose(found.low_res_logits, low[best], atol=1e-4, rtol=0)
        assert found.low_res_logits.dtype == np.float32
        assert found.score == pytest.approx(float(ious[best]), abs=1e-5)
        masks, ious, low = predictor.predict(**arguments, multimask_output=False)
        with monkeypatch.context() as context:
            context.setattr(refiner, "options", SamOptions(mask_choice="single"))
            found = refiner.refine(embedding, prompt)
        assert np.count_nonzero(found.mask != masks[0]) <= 2
        assert found.score == pytest.approx(float(ious[0]), abs=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_float32_embedding_from_the_shelf_gives_the_same_mask(
    refiner, embedding, prompts, tmp_path, kind
):
    embedding.save(tmp_path / "case.safetensors")
    again = SamEmbedding.load(tmp_path / "case.safetensors")
    direct, shelf = (refiner.refine(one, prompts[kind]) for one in (embedding, again))
    assert np.array_equal(direct.mask, shelf.mask)
    assert np.array_equal(direct.low_res_logits, shelf.low_res_logits)
    assert direct.score == shelf.score
    assert direct.mask.any() and not direct.mask.all()


def test_an_embedding_keeps_what_it_was_made_of(refiner, embedding, image, tmp_path):
    for name in ("a", "b"):
        embedding.save(tmp_path / f"{name}.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    again = SamEmbedding.load(tmp_path / "a.safetensors")
    assert np.array_equal(again.features, embedding.features)
    assert again.image_hw == image.shape[:2] and again.input_size == (192, 256)
    assert again.image_sha256 == image_sha256(image) != image_sha256(image[::-1])
    assert again.weights_sha256 == refiner.weights_sha256


def test_a_float16_embedding_takes_half_the_room_and_rounds_little(
    refiner, embedding, prompts, tmp_path
):
    embedding.save(tmp_path / "full.safetensors")
    embedding.save(tmp_path / "half.safetensors", dtype="float16")
    sizes = [(tmp_path / f"{name}.safetensors").stat().st_size for name in ("full", "half")]
    assert sizes[1] < 0.51 * sizes[0]
    half = SamEmbedding.load(tmp_path / "half.safetensors")
    assert half.features.dtype == np.float32
    np.testing.assert_allclose(half.features, embedding.features, rtol=1e-3, atol=1e-4)
    masks = [refiner.refine(one, prompts["box"]).mask for one in (embedding, half)]
    assert np.mean(masks[0] != masks[1]) < 0.005


def test_both_is_the_union_of_two_prompts(refiner, embedding, prompts):
    box, point = (refiner.refine(embedding, one) for one in prompts["both"])
    both = refiner.refine(embedding, prompts["both"])
    assert np.array_equal(both.mask, box.mask | point.mask)
    assert not np.array_equal(both.mask, box.mask) and not np.array_equal(both.mask, point.mask)
    assert both.score == pytest.approx((box.score + point.score) / 2)


def test_refining_leaves_nothing_behind(refiner, embedding, prompts):
    first = [refiner.refine(embedding, prompts[kind]).mask for kind in KINDS]
    again = [refiner.refine(embedding, prompts[kind]).mask for kind in reversed(KINDS)]
    assert all(np.array_equal(a, b) for a, b in zip(first, reversed(again), strict=True))


def test_a_bool_mask_and_its_probabilities_are_the_same_prompt(refiner, embedding):
    mask = ellipse(150, 200)
    as_bool = refiner.refine(embedding, Prompt(mask=mask))
    as_float = refiner.refine(embedding, Prompt(mask=mask.astype(np.float64)))
    assert np.array_equal(as_bool.low_res_logits, as_float.low_res_logits)
    elsewhere = refiner.refine(embedding, Prompt(mask=mask[:, ::-1]))
    assert not np.array_equal(as_bool.low_res_logits, elsewhere.low_res_logits)


@pytest.mark.parametrize("size", [(500, 600), (600, 500), (421, 600), (128, 128), (1500, 2000)])
@pytest.mark.parametrize("radius", [0.05, 0.2])
def test_a_mask_prompt_lies_on_the_image(size, radius):
    mask = ellipse(*size, radii=(radius, radius))
    input_hw = frame_size(*size, 1024)
    logits = mask_prompt_logits(mask, input_hw, 1024, 256)
    assert logits.shape == (1, 1, 256, 256) and logits.dtype == torch.float32
    assert logits.min() == -10 and logits.max() == 10
    # The way back is segment-anything's own; a shift of one pixel would cost more than this.
    back = tiny_sam(side=1024, depth=1).postprocess_masks(logits, input_hw, size)[0, 0] > 0
    coarse = radius * min(size) / max(size) * 256  # radius in low-resolution pixels
    assert dice(back.numpy(), mask) >= (0.995 if coarse > 10 else 0.98)
    rows, columns = np.nonzero(back.numpy()), np.nonzero(mask)
    assert np.abs(np.mean(rows, axis=1) - np.mean(columns, axis=1)).max() < 0.1


def test_mask_prompt_logits_are_linear_in_the_probability_and_padding_is_background():
    logits = mask_prompt_logits(np.full((100, 201), 0.75), (509, 1024), 1024, 256)[0, 0]
    assert torch.allclose(logits[:127], torch.tensor(5.0))
    assert torch.allclose(logits[128:], torch.tensor(-10.0))
    assert torch.allclose(logits[127], torch.tensor(5.0 / 4 - 10.0 * 3 / 4))  # 509 = 127 * 4 + 1
    half = mask_prompt_logits(np.full((64, 64), 0.5), (1024, 1024), 1024, 256)
    assert torch.allclose(half, torch.zeros(()))


@pytest.mark.parametrize(
    ("size", "wanted"),
    [
        ((500, 600), (853, 1024)),
        ((600, 500), (1024, 853)),
        ((1024, 1024), (1024, 1024)),
        ((3000, 1499), (1024, 512)),
        ((1, 4000), (1, 1024)),
        ((498, 1122), (455, 1024)),
    ],
)
def test_the_longest_side_fills_the_frame_and_the_other_is_rounded_half_up(size, wanted):
    assert frame_size(*size, 1024) == wanted


def test_coordinates_are_scaled_for_each_axis_and_not_shifted():
    scaled = scale_coordinates(np.array([[0, 0], [600, 500]]), (500, 600), (853, 1024))
    np.testing.assert_allclose(scaled, [[0, 0], [1024, 853]])
    assert scaled.dtype == np.float64


@pytest.mark.parametrize("size", SIZES)
def test_the_model_sees_contrast_and_zero_padding(official_frame, size):
    pixels, (height, width) = input_tensor(speckle(*size), official_frame.sam)
    assert pixels.shape == (1, 3, 1024, 1024) and pixels.dtype == torch.float32
    seen = pixels[..., :height, :width]
    assert seen.std() > 0.1 and seen.min() < -1 and seen.max() > 0.5
    assert not pixels[..., height:, :].any() and not pixels[..., width:].any()


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((20, 30, 3), np.float32),
        np.zeros((20, 30), np.uint8),
        np.zeros((3, 20, 30), np.uint8),
        np.zeros((0, 30, 3), np.uint8),
    ],
)
def test_an_image_of_another_type_or_shape_is_refused(refiner, wrong):
    with pytest.raises(UltraRefinerError, match=r"uint8 \(H, W, 3\) RGB"):
        refiner.embed(wrong)


@pytest.mark.parametrize(
    ("prompt", "reason"),
    [
        (
            Prompt(mask=np.zeros((200, 150), bool)),
            r"mask is \(200, 150\) and the image \(150, 200\)",
        ),
        (Prompt(mask=np.full((150, 200), 255, np.uint8)), "from 255 to 255"),
        (Prompt(mask=np.full((150, 200), np.nan)), "must be bool or a probability"),
        (Prompt(mask_logits=np.zeros((256, 256))), r"shape \(256, 256\).*\(64, 64\)"),
        (Prompt(mask_logits=np.full((64, 64), np.inf)), "finite"),
    ],
)
def test_a_prompt_that_does_not_fit_is_refused(refiner, embedding, prompt, reason):
    with pytest.raises(PromptError, match=reason):
        refiner.refine(embedding, prompt)


def test_an_embedding_of_other_weights_is_refused(embedding, tmp_path):
    other = load_refiner("sam", weights=str(write_tiny_sam(tmp_path / "other.pth", 1, side=256)))
    with pytest.raises(WeightsError, match="made with weights"):
        other.refine(embedding, Prompt(box=(1, 1, 9, 9)))


def test_a_file_that_is_no_embedding_is_refused(embedding, tmp_path):
    path = tmp_path / "case.safetensors"
    with pytest.raises(UltraRefinerError, match=r"cannot read embedding .*case.safetensors"):
        SamEmbedding.load(path)
    embedding.save(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UltraRefinerError, match=r"cannot read embedding .*run embed_images again"):
        SamEmbedding.load(path)
    save_file({"features": embedding.features}, path)
    with pytest.raises(UltraRefinerError, match="is not an image embedding"):
        SamEmbedding.load(path)


def test_weights_that_are_absent_or_another_models_are_refused(tmp_path):
    with pytest.raises(WeightsError, match=r"absent.pth"):
        load_refiner("sam", weights=str(tmp_path / "absent.pth"))
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(WeightsError, match=r"other.pth .*checkpoint of SAM"):
        load_refiner("sam", weights=str(tmp_path / "other.pth"))
    with pytest.raises(ConfigError, match="needs `weights`"):
        load_refiner("sam")
    with pytest.raises(ConfigError, match=r"unknown option .*'mask_choise'.*mask_choice"):
        load_refiner("sam", weights="x", mask_choise="best")
