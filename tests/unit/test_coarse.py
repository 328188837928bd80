"""Guards the training of coarse models: cards say all, the same numbers however they are made."""

import dataclasses
import json

import cv2
import numpy as np
import pytest
import torch

from tests.training_fixture import make_study, tiny_config, train, write_case, write_splits
from ultrarefiner.config import AugmentConfig, CoarseConfig
from ultrarefiner.errors import ConfigError, SplitError, WeightsError
from ultrarefiner.io import file_sha256, read_rows
from ultrarefiner.training.checkpoint import load_model
from ultrarefiner.training.coarse import CoarseTask
from ultrarefiner.training.counts import mean_measures, pooled
from ultrarefiner.training.data import (
    CoarseData,
    TrainingBatches,
    augment,
    batch_sizes,
    resize_image,
)
from ultrarefiner.training.settings import settings_of

pytestmark = pytest.mark.usefixtures("one_thread")


def rows_without_time(folder):
    rows = read_rows(folder / "history.csv")
    for row in rows:
        del row["seconds"]
    return rows


def test_card_says_what_made_the_model_and_what_it_has_seen(toy_study, toy_model):
    card = json.loads((toy_model / "card.json").read_text())
    roles = toy_study[2]
    assert card["trained_on"] == roles["train"]
    assert card["selected_on"] == roles["validation"]
    assert card["selection"] == "validation"
    assert card["weights_sha256"] == file_sha256(toy_model / "model.safetensors")
    assert card["config"]["lr"] == 0.05
    best = max(float(row["val_dice"]) for row in read_rows(toy_model / "history.csv"))
    assert card["metrics"]["dice"] == best
    kept = toy_model / "resume" / f"best-{card['metrics']['epoch']:05d}.safetensors"
    assert kept.samefile(toy_model / "model.safetensors")
    assert (toy_model / "resume" / "state.pt").stat().st_size < 10_000


def test_every_key_of_the_config_reaches_the_engine(tmp_path):
    config = CoarseConfig(
        epochs=7, lr=0.3, optimizer="adamw", momentum=0.1, weight_decay=0.2, power=0.4,
        grad_clip=0.5, accumulate=3, precision="bf16-mixed", validate_every=2, seed=5,
        tensorboard=True,
    )  # fmt: skip
    given = dataclasses.asdict(settings_of(config, tmp_path, "cpu"))
    shared = set(given) & set(CoarseConfig.model_fields) - {"tensorboard"}
    assert len(shared) >= 12
    assert {key: given[key] for key in shared} == {key: getattr(config, key) for key in shared}
    assert given["tensorboard"] == tmp_path / "tensorboard"
    assert settings_of(CoarseConfig(), tmp_path, "cpu").tensorboard is None
    for nesterov in (False, True):
        assert settings_of(CoarseConfig(nesterov=nesterov), tmp_path, "cpu").nesterov is nesterov


def test_the_written_model_has_the_metrics_of_its_card(toy_study, toy_model):
    net, card = load_model(toy_model / "model.safetensors", toy_model / "card.json")
    validation = CoarseData.read(toy_study[0], card["selected_on"], 32)
    task = CoarseTask(net, validation, validation, tiny_config())
    found = task.validate(lambda: None)
    assert found == {name: card["metrics"][name] for name in found}


def test_test_labels_do_not_change_the_chosen_model(toy_study, toy_model, tmp_path):
    prepared, splits, roles = make_study(tmp_path)
    for case in roles["test"]:
        path = prepared / "npz" / f"{case}.npz"
        arrays = dict(np.load(path))
        np.savez_compressed(path, **{**arrays, "label": 1 - arrays["label"]})
    again = train(tiny_config(), (prepared, splits), tmp_path / "model")
    assert file_sha256(again / "model.safetensors") == file_sha256(toy_model / "model.safetensors")
    assert rows_without_time(again) == rows_without_time(toy_model)


def test_validation_labels_do_change_the_numbers(toy_model, tmp_path):
    prepared, splits, roles = make_study(tmp_path)
    write_case(prepared, roles["validation"][0], seed=99)
    again = train(tiny_config(), (prepared, splits), tmp_path / "model")
    assert rows_without_time(again) != rows_without_time(toy_model)


def test_workers_and_file_order_do_not_change_the_numbers(toy_model, tmp_path):
    prepared, splits, roles = make_study(tmp_path)
    backwards = {role: cases[::-1] for role, cases in reversed(roles.items())}
    write_splits(splits, backwards)
    again = train(tiny_config(workers=2), (prepared, splits), tmp_path / "model")
    assert file_sha256(again / "model.safetensors") == file_sha256(toy_model / "model.safetensors")


def test_validation_does_not_depend_on_batches_or_order(toy_study, toy_model):
    net, _ = load_model(toy_model / "model.safetensors", toy_model / "card.json")
    cases = [case for role in toy_study[2].values() for case in role]
    found = []
    for size, order in ((1, cases), (4, cases), (3, cases[::-1])):
        data = CoarseData.read(toy_study[0], order, 32)
        task = CoarseTask(net, data, data, tiny_config(batch_size=size))
        found.append(task.validate(lambda: None))
    assert 0.05 < found[0]["dice"] < 0.95
    # Float rounding may flip a pixel at the threshold, nothing more.
    assert found[1] == pytest.approx(found[0], abs=1e-4)
    assert found[2] == pytest.approx(found[0], abs=1e-4)


def test_protocol_seed_selects_on_the_reported_fold_and_says_so(tmp_path):
    study = make_study(tmp_path, protocol="seed")
    folder = train(tiny_config(epochs=1), study, tmp_path / "model", protocol="seed")
    card = json.loads((folder / "card.json").read_text())
    assert card["selection"] == "reported fold"
    assert card["selected_on"] == study[2]["test"]


def test_absent_starting_weights_stop_with_the_cure(toy_study, tmp_path):
    absent = tmp_path / "R50+ViT-B_16.npz"
    config = tiny_config(model="transunet", init="imagenet21k", pretrained=str(absent))
    with pytest.raises(WeightsError) as caught:
        train(config, toy_study, tmp_path / "model")
    for part in (str(absent), "https://", "`init: random`"):
        assert part in str(caught.value)
    with pytest.raises(ConfigError, match="transunet_tiny has no ImageNet weights"):
        train(tiny_config(init="imagenet21k"), toy_study, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_fold_without_training_cases_is_refused(toy_study, tmp_path):
    write_splits(tmp_path / "splits.csv", {"validation": ["toy__5"], "test": ["toy__7"]})
    with pytest.raises(SplitError, match=r"splits\.csv: fold 0 has no train cases"):
        train(tiny_config(), (toy_study[0], tmp_path / "splits.csv"), tmp_path / "model")


@pytest.mark.parametrize("count, size", [(25, 24), (1, 24), (3, 1), (49, 24), (7, 3), (24, 24)])
def test_no_sample_is_dropped_and_no_batch_is_tiny(count, size):
    sizes = batch_sizes(count, size)
    assert sum(sizes) == count
    assert max(sizes) <= size
    assert max(sizes) - min(sizes) <= 1
    assert len(sizes) == -(-count // size)


def test_batches_are_drawn_from_seed_and_epoch_alone(toy_study):
    data = CoarseData.read(toy_study[0], toy_study[2]["train"], 32)
    batches = TrainingBatches(data, AugmentConfig(rotate=0.5), batch_size=2, seed=1)
    later = [images.clone() for images, _ in batches.epoch(3)]
    list(batches.epoch(0))
    torch.rand(5)
    again = [images for images, _ in batches.epoch(3)]
    first = [images for images, _ in batches.epoch(0)]
    assert all(torch.equal(a, b) for a, b in zip(later, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(later, first, strict=True))
    assert [len(images) for images in later] == batches.sizes == [2, 2, 1]


def test_every_epoch_has_an_order_of_its_own(toy_study):
    data = CoarseData.read(toy_study[0], toy_study[2]["train"], 32)
    never = AugmentConfig(hflip=0, vflip=0, rot90=0, rotate=0)
    batches = TrainingBatches(data, never, batch_size=5, seed=1)
    first, second = (next(batches.epoch(epoch))[0].numpy() for epoch in (0, 1))
    assert not np.array_equal(first, second)
    assert np.array_equal(np.sort(first, axis=0), np.sort(second, axis=0))


def test_images_are_averaged_when_they_shrink_and_interpolated_when_they_grow():
    stripes = np.tile(np.array([0, 200], np.uint8), (64, 32))
    assert (resize_image(stripes, 32) == 100).all()
    ramp = np.tile(np.array([0, 200], np.uint8), (2, 1))
    assert resize_image(ramp, 4)[0].tolist() == [0, 50, 150, 200]


def test_augmentation_moves_image_and_label_together():
    label = np.zeros((32, 32), np.uint8)
    label[4:10, 6:20] = 1
    image = np.repeat(label[..., None] * np.uint8(200), 3, axis=2)
    config = AugmentConfig(hflip=0.5, vflip=0.5, rot90=0.5, rotate=0.5)
    seen = set()
    for seed in range(40):
        moved, target = augment(image, label, config, np.random.default_rng(seed))
        seen.add(target.tobytes())
        assert set(np.unique(target)) <= {0, 1}
        # A bilinear edge lies within a pixel of the nearest one.
        inner = cv2.erode(target, np.ones((3, 3), np.uint8)).astype(bool)
        outer = cv2.dilate(target, np.ones((3, 3), np.uint8)).astype(bool)
        assert (moved[inner] >= 180).all()
        assert (moved[~outer] <= 20).all()
    assert len(seen) > 20
    never = AugmentConfig(hflip=0, vflip=0, rot90=0, rotate=0)
    same, kept = augment(image, label, never, np.random.default_rng(0))
    assert np.array_equal(same, image)
    assert np.array_equal(kept, label)


@pytest.mark.parametrize("key", ["hflip", "vflip", "rot90", "rotate"])
def test_every_augmentation_key_has_an_effect(key):
    label = np.arange(256, dtype=np.uint8).reshape(16, 16)
    image = np.repeat(label[..., None], 3, axis=2)
    off = {"hflip": 0, "vflip": 0, "rot90": 0, "rotate": 0}
    config = AugmentConfig(**{**off, key: 1})
    moved, target = augment(image, label, config, np.random.default_rng(0))
    assert not np.array_equal(target, label)
    if key != "rotate":
        assert np.array_equal(moved[..., 0], target)


def test_slices_are_measured_as_volumes():
    """A model that finds nothing is no better for a volume's empty slices."""
    empty, missed = [0, 0, 0, 10], [0, 0, 4, 6]
    counts = torch.tensor([empty, empty, missed, [3, 1, 1, 5]])
    assert mean_measures(counts)["dice"] == pytest.approx((1 + 1 + 0 + 0.75) / 4)
    wholes = pooled(counts, ["a", "b", "a", "b"])
    assert wholes.tolist() == [[0, 0, 4, 16], [3, 1, 1, 15]]
    assert mean_measures(wholes)["dice"] == pytest.approx(0.75 / 2)
