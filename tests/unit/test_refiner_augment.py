"""Guards changes of a refiner's training pictures: the same everywhere, alike for all masks."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
from pydantic import ValidationError

from tests.refiner_fixture import finetune, quick, write_weights
from tests.training_fixture import make_study
from ultrarefiner.config import FinetuneConfig
from ultrarefiner.config.refiner_sections import RefinerAugmentConfig
from ultrarefiner.io import read_rows
from ultrarefiner.prompts.geometry import lesion_pixels
from ultrarefiner.refine import load_refiner
from ultrarefiner.training.data import PreparedCases
from ultrarefiner.training.features import features_of
from ultrarefiner.training.refiner_augment import Augmentation, draw_for
from ultrarefiner.training.refiner_items import Example, Items
from ultrarefiner.training.refiner_task import RefinerTask
from ultrarefiner.training.team import Team

pytestmark = pytest.mark.usefixtures("one_thread")

STILL = {"rotate": 0, "scale": (1, 1), "brightness": 0, "contrast": 0, "noise": 0}
TURNED = {"data": "truth", "masks_per_image": 2, "cache": "none", "augment": {"probability": 1}}


def config(**changes):
    return RefinerAugmentConfig(**{**STILL, "probability": 1, **changes})


def example(height=60, width=90, x=50, y=20, radius=10):
    label = np.zeros((height, width), np.uint8)
    cv2.circle(label, (x, y), radius, 1, -1)
    image = np.repeat((40 + 160 * label)[..., None], 3, axis=2).astype(np.uint8)
    return Example(image, label.astype(bool), label.astype(np.float32) * 0.9)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return make_study(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return write_weights(tmp_path_factory.mktemp("weights"))


def task_of(study, weights, team=None, **changes):
    training = quick(**{**TURNED, **changes})
    refiner = load_refiner("sam", str(weights), "cpu", mask_choice="single")
    items = Items(training, PreparedCases(study[0]), study[2]["train"], study[2]["validation"])
    more = {} if team is None else {"team": team}
    return RefinerTask(training, refiner, features_of(refiner, None), items, **more)


@pytest.mark.parametrize("changes", [{"rotate": 15}, {"scale": (0.8, 1.2)}])
def test_image_truth_and_mask_move_together(changes):
    before = example()
    after = Augmentation.draw(config(**changes), 1).apply(before)
    assert not np.array_equal(after.label, before.label)
    for moved in (after.image[..., 0] > 120, lesion_pixels(after.coarse)):
        assert (moved != after.label).sum() < 0.1 * after.label.sum()  # rounding of the rim
    assert after.image.shape == before.image.shape and after.image.dtype == np.uint8
    assert after.label.dtype == bool and after.coarse.dtype == np.float32


def test_a_turn_is_by_the_degrees_drawn_and_black_outside():
    draw = Augmentation(degrees=90.0)
    square = example(61, 61, x=45, y=20)
    turned = draw.apply(square)
    assert np.array_equal(turned.label, np.rot90(square.label))
    assert np.array_equal(turned.image, np.rot90(square.image))
    half = Augmentation(scale=0.5).apply(square)
    assert half.label.sum() == pytest.approx(square.label.sum() / 4, rel=0.1)
    assert not half.image[:14].any() and not half.coarse[:14].any() and half.image[30, 20].all()


def test_draws_stay_within_what_is_asked_and_reach_it():
    asked = RefinerAugmentConfig(probability=1)
    draws = [Augmentation.draw(asked, 3, number) for number in range(300)]
    for name, low, high in [
        ("degrees", -15, 15),
        ("scale", 0.8, 1.2),
        ("brightness", -0.2, 0.2),
        ("contrast", 0.8, 1.2),
        ("noise", 0, 0.05),
    ]:
        values = [getattr(draw, name) for draw in draws]
        room = 0.03 * (high - low)
        assert low <= min(values) < low + room and high - room < max(values) <= high
    halves = [Augmentation.draw(RefinerAugmentConfig(), 3, number) for number in range(300)]
    assert 110 < sum(draw.degrees == 0 for draw in halves) < 190
    assert 110 < sum(draw.noise == 0 for draw in halves) < 190


def test_light_and_noise_change_the_image_alone():
    before = example()
    for changes in ({"brightness": 0.2}, {"contrast": 0.2}, {"noise": 0.05}):
        after = Augmentation.draw(config(**changes), 1).apply(before)
        assert not np.array_equal(after.image, before.image)
        assert np.array_equal(after.label, before.label)
        assert np.array_equal(after.coarse, before.coarse)
    brighter = Augmentation(brightness=0.1).apply(before).image
    assert np.array_equal(np.unique(brighter), [66, 226])  # 25.5 more
    flatter = Augmentation(contrast=0.8).apply(before).image
    assert np.array_equal(np.unique(flatter), [58, 186])  # 127.5 stays
    noisy = Augmentation(noise=0.05).apply(before).image.astype(float)
    assert (noisy - before.image).std() == pytest.approx(0.05 * 255, rel=0.05)
    assert np.array_equal(noisy[..., 0], noisy[..., 2])  # grey stays grey


def test_pictures_of_one_volume_can_share_a_draw():
    draw = Augmentation.draw(RefinerAugmentConfig(probability=1), "volume")
    one, other = draw.apply(example()), replace(draw, noise_seed=5).apply(example())
    assert np.array_equal(one.label, other.label)
    assert not np.array_equal(one.image, other.image)


def test_a_lesion_does_not_leave_the_picture():
    near = example(x=88, y=2, radius=1)  # in a corner, out of which nearly every turn takes it
    asked = config(rotate=180.0)
    lost = [not Augmentation.draw(asked, 7, n, 0).apply(near).label.any() for n in range(20)]
    assert any(lost)
    for number in range(20):
        assert draw_for(asked, [near, example()], (7, number)).apply(near).label.any()
    gone = config(scale=(10, 10))
    assert draw_for(gone, [near], (7,)) == Augmentation()  # no draw leaves it in


def test_the_box_of_a_crop_is_not_left_behind():
    with pytest.raises(ValueError, match="box"):
        Augmentation(degrees=5).apply(replace(example(), box=(1, 2, 3, 4)))


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"augment": {}}, "augment: changes pictures.*cache: float16.*set `cache: none`"),
        ({"augment": {}, "cache": "none", "data": "crops"}, "augment: crops come with boxes"),
        ({"augment": STILL, "cache": "none"}, "nothing changes; remove"),
        ({"augment": {"scale": [1.2, 0.8]}}, "no range within 0.1 to 10"),
    ],
)
def test_what_cannot_work_is_told(keys, words):
    with pytest.raises(ValidationError, match=words):
        FinetuneConfig(**keys)


def test_a_recipe_of_before_knows_no_augmentation():
    assert "augment" not in FinetuneConfig().recipe()
    assert FinetuneConfig(augment={}, cache="none").recipe()["augment"]["rotate"] == 15


def _told(batches):
    return [
        (sample.stage.features, sample.target, sample.coarse, sample.queries[0].box)
        for batch in batches
        for sample in batch
    ]


def _same(one, other):
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_sample_is_the_same_whoever_makes_it(study, weights):
    alone = task_of(study, weights, batch_size=3)  # batches of 3 and 2
    whole = _told(alone.batches(0))
    assert all(_same(*pair) for pair in zip(whole, _told(alone.batches(0)), strict=True))
    halves = [task_of(study, weights, Team(rank, 2), batch_size=3) for rank in range(2)]
    each = [[_told([batch]) for batch in task.batches(0)] for task in halves]
    shared = [sample for pair in zip(*each, strict=True) for part in pair for sample in part]
    assert all(_same(*pair) for pair in zip(whole, shared, strict=True))
    later = _told(alone.batches(1))
    pictures = {one[0].numpy().tobytes() for one in (*whole, *later)}
    assert len(pictures) == len(whole) + len(later)


def test_views_of_one_picture_share_its_draw_and_validation_has_none(study, weights):
    task = task_of(study, weights)
    item = task.items.epoch(0)[0]
    (one, other), _ = task._views(item, 0)
    assert np.array_equal(one.pixels(), other.pixels())
    assert np.array_equal(one.example.label, other.example.label)
    plain = task.items.read(item)
    assert not np.array_equal(one.example.label, plain.label)
    bare = task_of(study, weights, augment=None)
    assert task.validate(lambda: None) == bare.validate(lambda: None)


def test_training_on_changed_pictures_runs_and_is_another_training(study, weights, tmp_path):
    changes = [{}, {"augment": None}]
    losses = []
    for number, change in enumerate(changes):
        training = quick(**{**TURNED, "crop": {}, "masks_per_image": 1, "epochs": 1, **change})
        folder = finetune(training, study, weights, tmp_path / str(number) / "model")
        (row,) = read_rows(folder / "history.csv")
        losses.append(row["train_loss"])
    assert losses[0] != losses[1]
