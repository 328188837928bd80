"""GrabCut makes coarse masks better, on real ultrasound too, and answers any mask, tiny or huge, the same each time."""

import cv2
import numpy as np
import pytest

from ultrarefiner.datasets import find_cases, read_case
from ultrarefiner.datasets.phantoms.drawing import draw_phantom
from ultrarefiner.errors import ConfigError, PromptError, UltraRefinerError
from ultrarefiner.evaluation.metrics import dice
from ultrarefiner.io import item_seed
from ultrarefiner.prompts import Prompt, prompt_from_mask
from ultrarefiner.refine import load_refiner
from ultrarefiner.refine.grabcut import GrabCutEmbedding, GrabCutRefiner, trimap

SURE, OPEN, OPEN_OUT, OUT = cv2.GC_FGD, cv2.GC_PR_FGD, cv2.GC_PR_BGD, cv2.GC_BGD


@pytest.fixture(scope="module")
def refiner():
    return load_refiner("grabcut")


def disc(hw, center, radius):
    rows, columns = np.mgrid[: hw[0], : hw[1]]
    return (columns - center[0]) ** 2 + (rows - center[1]) ** 2 <= radius**2


def picture(lesion, seed=0):
    """Return a dark lesion in speckle, uint8 (H, W, 3)."""
    rng = np.random.default_rng(seed)
    gray = np.where(lesion, 40.0, 130.0) * rng.rayleigh(0.8, lesion.shape)
    return np.dstack([np.clip(gray, 0, 255).astype(np.uint8)] * 3)


def perturbed(truth, level, *key):
    """Return a coarse mask: the outline moved by smooth noise, growth and a shift, ~ level * radius."""
    rng = np.random.default_rng(item_seed("grabcut", level, *key))
    radius = float(np.sqrt(truth.sum() / np.pi))
    inside, outside = (
        cv2.distanceTransform(part.astype(np.uint8), cv2.DIST_L2, 5) for part in (truth, ~truth)
    )
    field = cv2.GaussianBlur(rng.standard_normal(truth.shape), (0, 0), 0.35 * radius + 2)
    distance = inside - outside + level * radius * (0.7 * field / field.std() + 0.5 * rng.normal())
    shift = np.float64([[1, 0, 0], [0, 1, 0]])
    shift[:, 2] = rng.normal(0, 0.5 * level * radius, 2)
    moved = cv2.warpAffine(distance, shift, truth.shape[::-1], borderMode=cv2.BORDER_REPLICATE) > 0
    return moved if moved.sum() > 20 else truth


def low_resolution(truth, level, *key):
    """Return a probability as a network at 64 x 64 gives it, upsampled to the image."""
    rng = np.random.default_rng(item_seed("low", level, *key))
    small = cv2.resize(truth.astype(np.float32), (64, 64), interpolation=cv2.INTER_AREA) >= 0.25
    inside, outside = (
        cv2.distanceTransform(part.astype(np.uint8), cv2.DIST_L2, 5) for part in (small, ~small)
    )
    field = cv2.GaussianBlur(rng.standard_normal((64, 64)), (0, 0), 2.5)
    noise = level * np.sqrt(small.sum() / np.pi) * (0.8 * field / field.std() + 0.3 * rng.normal())
    logits = inside - outside + np.minimum(noise, 0.8 * inside.max() + outside)
    probability = (1 / (1 + np.exp(-logits))).astype(np.float32)
    return cv2.resize(probability, truth.shape[::-1], interpolation=cv2.INTER_LINEAR)


def mean_dice(refiner, cases):
    """Return mean Dice of coarse and of refined masks, and the share of cases made worse by 0.02."""
    scores = []
    for image, truth, coarse in cases:
        refined = refiner.refine(refiner.embed(image), Prompt(mask=coarse)).mask
        scores.append((dice(coarse >= 0.5, truth), dice(refined, truth)))
    before, after = np.array(scores).T
    return before.mean(), after.mean(), (after < before - 0.02).mean()


# Measured with these very masks: 0.84 -> 0.90 and 0.71 -> 0.81. The bounds leave room for other
# versions of OpenCV, not for another method.
@pytest.mark.parametrize(("level", "coarse", "gain"), [(0.185, 0.84, 0.04), (0.35, 0.70, 0.07)])
def test_masks_of_real_ultrasound_become_better(refiner, stu_root, level, coarse, gain):
    cases = []
    for case in find_cases("stu", stu_root):
        image, label = read_case(case)
        cases.append((image, label > 0, perturbed(label > 0, level, case.id)))
    assert len(cases) == 42
    before, after, worse = mean_dice(refiner, cases)
    assert before == pytest.approx(coarse, abs=0.03)
    assert after - before >= gain
    assert worse <= 0.25


def reflected(pixels, hw):
    """Return pixels in the middle of an image of a size, their mirror images around them."""
    top, left = (hw[0] - pixels.shape[0]) // 2, (hw[1] - pixels.shape[1]) // 2
    rest = hw[0] - pixels.shape[0] - top, hw[1] - pixels.shape[1] - left
    border = cv2.BORDER_REFLECT if pixels.ndim == 3 else cv2.BORDER_CONSTANT
    return cv2.copyMakeBorder(pixels, top, rest[0], left, rest[1], border)


# Measured: 0.79 -> 0.88, 0.80 -> 0.87 and 0.82 -> 0.82; on a grid over the whole image it was
# 0.54, 0.82 and 0.66.
@pytest.mark.parametrize(
    ("scale", "hw", "gain"),
    [(1.0, (200, 3000), 0.06), (0.5, (500, 500), 0.04), (0.25, (500, 500), -0.02)],
)
def test_the_image_around_a_real_lesion_costs_it_nothing(refiner, stu_root, scale, hw, gain):
    cases = []
    for case in find_cases("stu", stu_root):
        image, label = read_case(case)
        side = tuple(round(scale * length) for length in (label.shape[1], label.shape[0]))
        image = cv2.resize(image, side, interpolation=cv2.INTER_AREA)
        truth = (
            cv2.resize((label > 0).astype(np.float32), side, interpolation=cv2.INTER_AREA) >= 0.5
        )
        coarse = perturbed(truth, 0.25, case.id, scale)
        masks = [reflected(mask.astype(np.uint8), hw) > 0 for mask in (truth, coarse)]
        cases.append((reflected(image, hw), *masks))
    before, after, _ = mean_dice(refiner, cases)
    assert after - before >= gain


@pytest.mark.parametrize("radius", [6, 15, 40])
def test_a_lesion_fares_alike_in_a_wide_image_and_cut_out_of_it(refiner, radius):
    truth, coarse = (disc((200, 3000), (1500 + x, 100 + y), radius) for x, y in ((0, 0), (1, 1)))
    image = picture(truth)
    wide, cut = (
        refiner.refine(refiner.embed(image[:, part]), Prompt(mask=coarse[:, part])).mask
        for part in (slice(None), slice(1350, 1650))
    )
    np.testing.assert_array_equal(wide[:, 1350:1650], cut)
    assert dice(wide, truth) > dice(coarse, truth) - 0.02


def test_what_is_far_from_the_lesion_changes_nothing(refiner):
    truth = disc((300, 400), (100, 150), 20)
    image = picture(truth)
    prompt = Prompt(mask=truth)
    near = refiner.refine(refiner.embed(image), prompt)
    image[:, 200:] = 255 - image[:, 200:]
    far = refiner.refine(refiner.embed(image), prompt)
    np.testing.assert_array_equal(near.mask, far.mask)
    np.testing.assert_array_equal(near.low_res_logits, far.low_res_logits)


def test_a_lesion_point_far_from_the_mask_is_obeyed(refiner):
    truth = disc((300, 700), (100, 150), 20)
    far = Prompt(mask=truth, points=[[650, 20]])
    assert refiner.refine(refiner.embed(picture(truth)), far).mask[20, 650]


def test_a_rectangle_alone_finds_next_to_nothing_in_real_ultrasound(stu_root):
    """The reason why prompts without a mask are refused, by OpenCV's own rectangle start."""
    scores = []
    for case in find_cases("stu", stu_root):
        image, label = read_case(case)
        x0, y0, x1, y1 = prompt_from_mask(label, "box").box.astype(int).tolist()
        codes = np.zeros(label.shape, np.uint8)
        models = np.zeros((1, 65)), np.zeros((1, 65))
        cv2.setRNGSeed(0)
        rectangle = (x0, y0, x1 - x0, y1 - y0)
        cv2.grabCut(cv2.medianBlur(image, 5), codes, rectangle, *models, 3, cv2.GC_INIT_WITH_RECT)
        scores.append(dice((codes == SURE) | (codes == OPEN), label > 0))
    assert np.mean(scores) < 0.12


@pytest.mark.parametrize(("level", "gain"), [(0.0, 0.0), (0.25, 0.05), (0.5, 0.07)])
def test_masks_of_phantoms_from_64_pixels_become_better(refiner, level, gain):
    cases = []
    for seed in range(16):
        gray, truth = draw_phantom(500 + seed, 192, malignant=seed % 2 == 1)
        cases.append((np.dstack([gray] * 3), truth, low_resolution(truth, level, seed)))
    before, after, _ = mean_dice(refiner, cases)
    assert before < 0.99
    assert after - before > gain


def test_trimap_counted_by_hand():
    lesion = disc((41, 41), (20, 20), 10)
    codes = trimap(lesion, inner=0.3, outer=0.5)
    # r = sqrt(317 / pi) = 10.05. In the middle row the lesion is columns 10 to 30. The nearest
    # background of column 13 is (10, 21), sqrt(10) away: 2.66 deep; column 14 is 3.62 deep, and
    # 3.01 is asked. Column 5 is 4.5 outside, column 4 is 5.5 outside, and 5.02 is asked.
    assert lesion.sum() == 317
    row = codes[20]
    assert row[:21].tolist() == [OUT] * 5 + [OPEN_OUT] * 5 + [OPEN] * 4 + [SURE] * 7
    assert row[20:].tolist() == row[:21][::-1].tolist()


def test_each_component_has_its_own_widths_and_keeps_a_core():
    large, small = disc((60, 80), (25, 30), 20), disc((60, 80), (70, 30), 2)
    codes = trimap(large | small, inner=0.5, outer=0.5)
    assert (codes[small] == SURE).any()
    assert codes[30, 25] == SURE
    assert codes[30, 70 + 6] == OUT
    assert codes[30, 25 - 20 - 4] == OPEN_OUT


def test_thin_and_tiny_lesions_keep_a_core_and_a_band():
    stripe = np.zeros((30, 200), bool)
    stripe[14:16, 10:190] = True
    assert (trimap(stripe, inner=0.3, outer=0.5)[stripe] == SURE).all()
    row = trimap(disc((9, 9), (4, 4), 0), inner=0.3, outer=0.5)[4].tolist()
    assert row == [OUT, OUT, OUT, OPEN_OUT, SURE, OPEN_OUT, OUT, OUT, OUT]


def test_the_border_of_the_image_is_no_outline():
    lesion = disc((40, 40), (0, 20), 12)
    codes = trimap(lesion, inner=0.3, outer=0.5)
    assert codes[20, 0] == SURE
    assert codes[20, 11] == OPEN


@pytest.mark.parametrize("hw", [(64, 80), (300, 700)])
@pytest.mark.parametrize("radius", [0, 1, 2, 5, 25])
def test_any_size_gives_a_mask_around_the_lesion(refiner, hw, radius):
    center = hw[1] // 2 + 3, hw[0] // 2 - 4
    lesion = disc(hw, center, radius)
    out = refiner.refine(refiner.embed(picture(lesion)), Prompt(mask=lesion))
    assert out.mask.shape == hw
    assert out.mask[center[1], center[0]]
    assert dice(out.mask, lesion) > (0.8 if radius == 25 else 0.1)


def test_extreme_masks_and_images_get_an_answer(refiner):
    truth = disc((48, 64), (30, 20), 10)
    embedding = refiner.embed(picture(truth))
    everything = np.ones((48, 64), bool)
    out = refiner.refine(embedding, Prompt(mask=everything))
    assert out.mask.all()
    assert (out.low_res_logits > 0).all()
    nearly = everything.copy()
    nearly[0, 0] = False
    assert refiner.refine(embedding, Prompt(mask=nearly)).mask.any()
    # The point decides the last open pixel: nothing is left for GrabCut to learn from.
    closed = Prompt(mask=nearly, points=[[0, 0]])
    assert refiner.refine(embedding, closed).mask.all()
    stripe = np.zeros((48, 64), bool)
    stripe[10] = True
    assert refiner.refine(embedding, Prompt(mask=stripe)).mask[10].any()
    checkered = np.indices((48, 64)).sum(axis=0) % 2 == 0
    assert refiner.refine(embedding, Prompt(mask=checkered)).mask.any()
    flat = refiner.embed(np.full((48, 64, 3), 77, np.uint8))
    assert refiner.refine(flat, Prompt(mask=truth)).mask[20, 30]
    pixel = refiner.embed(np.full((1, 1, 3), 77, np.uint8))
    assert refiner.refine(pixel, Prompt(mask=np.ones((1, 1), bool))).mask.tolist() == [[True]]


def test_two_lesions_stay_two_and_a_far_object_is_not_taken(refiner):
    lesions = disc((120, 200), (45, 60), 22) | disc((120, 200), (150, 60), 9)
    image = picture(lesions | disc((120, 200), (100, 20), 12))
    coarse = disc((120, 200), (48, 58), 20) | disc((120, 200), (151, 61), 7)
    mask = refiner.refine(refiner.embed(image), Prompt(mask=coarse)).mask
    assert dice(mask, lesions) > 0.93
    assert not mask[20, 100]


def test_holes_are_filled_unless_the_prompt_says_background(refiner):
    truth = disc((100, 100), (50, 50), 30)
    bright_spot = disc((100, 100), (50, 74), 3)
    image = np.where(truth & ~bright_spot, 40, 160).astype(np.uint8)
    embedding = load_refiner("grabcut", median=1).embed(np.dstack([image] * 3))
    assert refiner.refine(embedding, Prompt(mask=truth)).mask[74, 50]
    told = Prompt(mask=truth, points=[[50, 74]], labels=[0])
    mask = refiner.refine(embedding, told).mask
    assert not mask[74, 50]
    assert mask[50, 50]


def test_a_dark_spot_beside_the_lesion_is_not_taken(refiner):
    truth, spot = disc((100, 140), (60, 50), 20), disc((100, 140), (87, 50), 3)
    image = np.where(truth | spot, 40, 160).astype(np.uint8)
    out = refiner.refine(refiner.embed(np.dstack([image] * 3)), Prompt(mask=truth))
    assert trimap(truth, 0.3, 0.5)[50, 87] == OPEN_OUT
    assert not out.mask[50, 87]
    assert dice(out.mask, truth) > 0.97


def test_points_and_box_are_obeyed(refiner):
    truth = disc((90, 120), (60, 45), 20)
    embedding = refiner.embed(picture(truth))
    free = refiner.refine(embedding, Prompt(mask=truth)).mask
    assert not free[45, 85]
    added = refiner.refine(embedding, Prompt(mask=truth, points=[[85, 45]])).mask
    assert added[45, 85]
    boxed = refiner.refine(embedding, Prompt(mask=truth, box=(50, 0, 70.5, 90))).mask
    columns = np.flatnonzero(boxed.any(axis=0))
    assert (columns[0], columns[-1]) == (50, 69)


def test_a_box_thinner_than_a_working_pixel_is_obeyed():
    refiner = load_refiner("grabcut", size=32)
    truth = disc((256, 256), (128, 128), 60)
    embedding = refiner.embed(picture(truth))
    mask = refiner.refine(embedding, Prompt(mask=truth, box=(120, 100, 122, 160))).mask
    assert mask.any()
    assert not np.delete(mask, [120, 121], axis=1).any()
    pixel = disc((256, 256), (128, 128), 0)
    mask = refiner.refine(embedding, Prompt(mask=pixel, box=(128, 128, 129, 129))).mask
    np.testing.assert_array_equal(mask, pixel)


def test_logits_are_the_distance_to_the_outline_on_the_shrunk_image():
    refiner = load_refiner("grabcut", size=128)
    truth = disc((300, 400), (210, 140), 60)
    embedding = refiner.embed(picture(truth))
    out = refiner.refine(embedding, Prompt(mask=truth))
    assert out.low_res_logits.shape == (96, 128)
    assert out.low_res_logits.dtype == np.float32
    assert out.low_res_logits.min() == -10
    assert out.low_res_logits.max() == 10
    upsampled = cv2.resize(out.low_res_logits, (400, 300), interpolation=cv2.INTER_LINEAR)
    assert dice(out.mask, upsampled > 0) > 0.98
    assert dice(out.mask, truth) > 0.97
    small = disc((60, 80), (40, 30), 15)
    refined = refiner.refine(refiner.embed(picture(small)), Prompt(mask=small))
    np.testing.assert_array_equal(refined.mask, refined.low_res_logits > 0)
    assert np.isnan(refined.score)


def test_probabilities_count_from_one_half(refiner):
    truth = disc((90, 120), (60, 45), 20)
    embedding = refiner.embed(picture(truth))
    hard = refiner.refine(embedding, Prompt(mask=truth))
    soft = refiner.refine(embedding, Prompt(mask=np.where(truth, 0.6, 0.4).astype(np.float32)))
    np.testing.assert_array_equal(hard.mask, soft.mask)
    np.testing.assert_array_equal(hard.low_res_logits, soft.low_res_logits)


@pytest.mark.parametrize("seed", [4, 8])
def test_the_same_prompt_gives_the_same_mask_whatever_ran_before(refiner, seed):
    # On these phantoms the colour clusters do end elsewhere from other random starts.
    gray, truth = draw_phantom(seed, 128, malignant=True)
    embedding = refiner.embed(np.dstack([gray] * 3))
    prompt = Prompt(mask=perturbed(truth, 0.35, seed))
    first = refiner.refine(embedding, prompt)
    for state in (1, 99, 4711):
        cv2.setRNGSeed(state)
        again = load_refiner("grabcut").refine(embedding, prompt)
        np.testing.assert_array_equal(first.low_res_logits, again.low_res_logits)


def test_an_embedding_comes_back_from_its_file(refiner, tmp_path):
    truth = disc((300, 420), (200, 150), 50)
    embedding = refiner.embed(picture(truth))
    path = tmp_path / "deep" / "case.embedding"
    embedding.save(path)
    loaded = GrabCutEmbedding.load(path)
    assert loaded.image_hw == (300, 420)
    prompt = Prompt(mask=truth)
    np.testing.assert_array_equal(
        refiner.refine(loaded, prompt).mask, refiner.refine(embedding, prompt).mask
    )
    assert [entry.name for entry in path.parent.iterdir()] == ["case.embedding"]
    whole = path.read_bytes()
    flipped = [
        bytes([*whole[:at], whole[at] ^ 255, *whole[at + 1 :]]) for at in (60, 90, len(whole) // 2)
    ]
    for damaged in (b"", b"nothing", whole[: len(whole) // 2], *flipped):
        path.write_bytes(damaged)
        with pytest.raises(UltraRefinerError, match="embed the image again"):
            GrabCutEmbedding.load(path)
    np.savez(tmp_path / "other.npz", pixels=np.zeros(3))
    np.savez(tmp_path / "another.npz", image=np.zeros((3, 3, 3), np.uint8))
    for other in ("other.npz", "another.npz", "absent.npz"):
        with pytest.raises(UltraRefinerError, match=other):
            GrabCutEmbedding.load(tmp_path / other)


LESION = disc((90, 120), (60, 45), 20)


@pytest.mark.parametrize(
    ("prompt", "complaint"),
    [
        (Prompt(box=(40, 25, 81, 66)), "the prompt has box: .*next to nothing.*kind 'mask'"),
        (Prompt(points=[[60, 45]]), "the prompt has point: "),
        (Prompt(box=(40, 25, 81, 66), points=[[60, 45]]), "the prompt has box and point: "),
        (Prompt(mask_logits=np.ones((64, 64))), "the prompt has mask_logits"),
        (Prompt(mask=LESION, box=(0, 0, 10, 10)), "one lesion"),
        (Prompt(mask=disc((90, 120), (60, 45), 1), points=[[60, 45]], labels=[0]), "cover"),
    ],
)
def test_prompts_that_cannot_work_are_refused_with_the_reason(refiner, prompt, complaint):
    embedding = refiner.embed(picture(LESION))
    with pytest.raises(PromptError, match=complaint):
        refiner.refine(embedding, prompt)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [({"median": 4}, "even"), ({"outer": 0}, "outer"), ({"media": 5}, "Did you mean 'median'")],
)
def test_options_that_make_no_sense_are_refused(options, complaint):
    with pytest.raises(ConfigError, match=complaint):
        load_refiner("grabcut", **options)


def test_the_family_loads_its_class_on_any_device():
    for device in ("cpu", "auto", "cuda"):
        assert isinstance(load_refiner("grabcut", device=device), GrabCutRefiner)
