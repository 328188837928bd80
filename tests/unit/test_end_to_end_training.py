"""End-to-end training of a fold: from its parents to files that predict, and through interruptions."""

import re
import shutil

import numpy as np
import pytest
import torch

from tests.end_to_end_fixture import TRAIN, joint, train_joint
from tests.refiner_fixture import finetune, quick, write_weights
from tests.sam_fixture import write_mobile_sam, write_tiny_ultrasam
from tests.training_fixture import outputs, write_splits
from ultrarefiner.datasets.loader import read_prepared
from ultrarefiner.errors import ConfigError, LeakError, SplitError, WeightsError
from ultrarefiner.io import file_sha256, read_json, read_rows, write_json
from ultrarefiner.models.cards import read_card
from ultrarefiner.refine import load_refiner
from ultrarefiner.refine.shelf import Shelf
from ultrarefiner.training.checkpoint import load_weights
from ultrarefiner.training.prediction import choose_threshold, predict_coarse
from ultrarefiner.training.segmenter import open_segmenter

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return write_weights(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def trained(toy_study, toy_model, weights, tmp_path_factory):
    """Return the folder of a model that trained for two epochs."""
    folder = tmp_path_factory.mktemp("joint") / "model"
    return train_joint(joint(), toy_study, toy_model, weights, folder)


def test_the_card_says_what_it_was_made_of(trained, toy_study, toy_model, weights):
    card = read_card(trained / "card.json")
    parent = read_card(outputs(toy_model)["card"])
    assert card["phase"] == "end_to_end"
    assert card["parents"] == {"tiny": parent["weights_sha256"], "tuned": file_sha256(weights)}
    assert card["trained_on"] == toy_study[2]["train"]
    assert card["selected_on"] == toy_study[2]["validation"]
    assert card["config"]["prompts"] == ["mask", "box", "point", "negative"]
    assert card["weights_sha256"] == file_sha256(trained / "model.safetensors")
    refiner = card["architecture"]["refiner"]
    assert refiner["weights_sha256"] == file_sha256(trained / "refiner.safetensors")
    assert [entry["weights_sha256"] for entry in card["sources"]["parents"]] == [
        parent["weights_sha256"]
    ]


def test_the_history_begins_before_training_and_has_both_curves(trained):
    rows = read_rows(trained / "history.csv")
    assert [row["epoch"] for row in rows] == ["0", "1", "2"]
    for row in rows:
        assert 0 <= float(row["val_dice"]) <= 1 and 0 <= float(row["val_coarse_dice"]) <= 1
    assert rows[0]["train_loss"] == "" and float(rows[1]["train_loss"]) > 0
    metrics = read_card(trained / "card.json")["metrics"]
    assert metrics["dice_before"] == float(rows[0]["val_dice"])
    assert metrics["dice"] == max(float(row["val_dice"]) for row in rows)


def test_the_refiner_alone_is_a_plain_checkpoint_with_the_encoder_it_came_with(trained, weights):
    before, after = (
        load_refiner("sam", str(path)) for path in (weights, trained / "refiner.safetensors")
    )
    assert after.weights_sha256 == before.weights_sha256
    moved = []
    for (name, old), new in zip(
        before.sam.state_dict().items(), after.sam.state_dict().values(), strict=True
    ):
        if name.startswith("image_encoder."):
            assert torch.equal(old, new), name
        moved.append(not torch.equal(old, new))
    best = read_card(trained / "card.json")["metrics"]["epoch"]
    assert any(moved) == (best > 0)


@pytest.mark.parametrize("cache", ["float16", "float32"])
def test_it_predicts_as_a_coarse_model_does(
    trained, toy_study, toy_model, weights, tmp_path, cache
):
    """To the byte the same, wherever the embeddings come from."""
    prepared, splits, roles = toy_study
    if cache == "float16":
        config = joint(cache=cache, epochs=1)
        trained = train_joint(config, toy_study, toy_model, weights, tmp_path / "model")
    files = {
        key: trained / f"{key}.{'json' if key == 'card' else 'safetensors'}"
        for key in ("model", "card")
    }
    threshold = tmp_path / "threshold.json"
    choose_threshold(
        **files,
        prepared=[prepared],
        splits=splits,
        fold=0,
        flips=False,
        output=threshold,
        device="cpu",
    )
    shelf = Shelf(tmp_path / "shelf", 10**9)
    for where, given in (("shelved", shelf), ("again", shelf), ("fresh", None)):
        folder = tmp_path / where
        predict_coarse(
            **files,
            threshold=threshold,
            prepared=prepared,
            splits=splits,
            part="fold0",
            protocol="nested",
            flips=False,
            masks=folder / "masks",
            tuned=folder / "tuned",
            probabilities=folder / "probabilities",
            coarse=folder / "coarse",
            device="cpu",
            shelf=given,
        )
    for case in roles["test"]:
        for kind in ("masks", "tuned", "probabilities", "coarse"):
            name = f"{kind}/{case}.png"
            one = (tmp_path / "shelved" / name).read_bytes()
            assert one == (tmp_path / "again" / name).read_bytes()
            assert one == (tmp_path / "fresh" / name).read_bytes()


def test_predictions_are_those_of_validation(trained, toy_study):
    """What chose the epoch is what the saved files say."""
    prepared, _, roles = toy_study
    model = open_segmenter(trained / "model.safetensors", trained / "card.json", "cpu")
    dice, coarse = [], []
    for case in roles["validation"]:
        image, label = read_prepared(prepared, case)
        one = model.segment([image])[0]
        truth = label > 0
        for mask, found in ((one.mask, dice), (one.coarse >= 0.5, coarse)):
            total = mask.sum() + truth.sum()
            found.append(2 * (mask & truth).sum() / total)
    metrics = read_card(trained / "card.json")["metrics"]
    assert np.mean(dice) == pytest.approx(metrics["dice"], abs=1e-9)
    assert np.mean(coarse) == pytest.approx(metrics["coarse_dice"], abs=1e-9)


def test_flips_are_averaged(trained, toy_study):
    model = open_segmenter(trained / "model.safetensors", trained / "card.json", "cpu")
    image, _ = read_prepared(toy_study[0], "toy__0")
    plain, flipped = model.segment([image])[0], model.segment([image], flips=True)[0]
    assert flipped.probability.shape == plain.probability.shape
    assert not np.allclose(plain.probability, flipped.probability)
    mirrored = model.segment([np.ascontiguousarray(image[:, ::-1])], flips=True)[0]
    np.testing.assert_allclose(mirrored.probability[:, ::-1], flipped.probability, atol=1e-5)


STAGED = {
    "coarse_encoder": {"lr": 1e-3, "from_epoch": 2},
    "coarse_decoder": {"lr": 2e-3, "until_epoch": 3},
    "decoder": {"lr": 1e-3, "from_epoch": 1},
    "gate": {"lr": 1e-2},
}


@pytest.mark.parametrize("stop_after", [1, 2, 3])
def test_resumed_across_an_unfreezing_it_equals_the_unbroken_run(
    toy_study, toy_model, weights, tmp_path, monkeypatch, stop_after
):
    config = joint(
        train=STAGED,
        epochs=4,
        fusion={"gate": "learned"},
        warmup=0.3,
        gradient_scale=0.5,
        anchor=1e-3,
    )
    whole = train_joint(config, toy_study, toy_model, weights, tmp_path / "whole")

    from ultrarefiner.training import engine

    keep = engine._Run.save

    def save(self):
        keep(self)
        if len(self.result.rows) == stop_after:
            raise KeyboardInterrupt

    monkeypatch.setattr(engine._Run, "save", save)
    with pytest.raises(KeyboardInterrupt):
        train_joint(config, toy_study, toy_model, weights, tmp_path / "broken")
    monkeypatch.undo()
    broken = train_joint(config, toy_study, toy_model, weights, tmp_path / "broken")
    for name in ("model.safetensors", "refiner.safetensors"):
        one, other = load_weights(whole / name), load_weights(broken / name)
        for key, value in one.items():
            torch.testing.assert_close(value, other[key], atol=1e-6, rtol=0, msg=key)
    rows = [read_rows(folder / "history.csv") for folder in (whole, broken)]
    for row in (*rows[0], *rows[1]):
        row.pop("seconds")
    assert rows[0] == rows[1]
    rates = [float(row["lr_coarse_encoder"]) for row in rows[0][1:]]
    assert rates[:2] == [0, 0] and rates[2] > 0
    assert [float(row["lr_coarse_decoder"]) > 0 for row in rows[0][1:]] == [True] * 3 + [False]


def test_a_frozen_coarse_model_stays_as_it_was_to_the_bit(toy_study, toy_model, weights, tmp_path):
    config = joint(train={"decoder": {"lr": 1e-2}}, epochs=2)
    folder = train_joint(config, toy_study, toy_model, weights, tmp_path / "model")
    before = load_weights(outputs(toy_model)["model"])
    after = load_weights(folder / "model.safetensors")
    assert {f"coarse.{key}" for key in before} == set(after)
    for key, value in before.items():
        assert torch.equal(value, after[f"coarse.{key}"]), key


def test_a_falling_coarse_model_ends_the_training_with_a_warning(
    toy_study, toy_model, weights, tmp_path, caplog
):
    train = {"coarse": {"lr": 10.0}, "decoder": {"lr": 1e-3}}
    config = joint(train=train, epochs=5, largest_drop=0.02, grad_clip=None, warmup=0.0)
    folder = train_joint(config, toy_study, toy_model, weights, tmp_path / "model")
    found = re.search(r"training ended after epoch (\d): coarse_dice fell from", caplog.text)
    rows = read_rows(folder / "history.csv")
    assert int(found[1]) == int(rows[-1]["epoch"]) < 5
    dice = [float(row["val_coarse_dice"]) for row in rows]
    assert dice[-1] < dice[0] - 0.02 <= min(dice[:-1])
    metrics = read_card(folder / "card.json")["metrics"]
    # However good its refined masks are, the last epoch is not the chosen one.
    assert metrics["epoch"] < int(rows[-1]["epoch"])
    assert "coarse_dice fell" in metrics["stopped"]


def test_models_that_no_epoch_improves_are_kept_as_they_were(
    toy_study, toy_model, weights, tmp_path, caplog
):
    train = {"coarse": {"lr": 10.0}, "decoder": {"lr": 10.0}}
    config = joint(train=train, epochs=1, optimizer="sgd", grad_clip=1.0, warmup=0.0)
    folder = train_joint(config, toy_study, toy_model, weights, tmp_path / "model")
    assert read_card(folder / "card.json")["metrics"]["epoch"] == 0
    assert "no epoch was better than the models before training" in caplog.text
    before = load_weights(outputs(toy_model)["model"])
    after = load_weights(folder / "model.safetensors")
    for key, value in before.items():
        assert torch.equal(value, after[f"coarse.{key}"]), key


def test_in_windows_and_with_an_encoder_that_trains(toy_study, toy_model, weights, tmp_path):
    train = {**TRAIN, "image_encoder": {"lr": 1e-4, "from_epoch": 1}}
    config = joint(train=train, roi={"min_size": 16}, epochs=2)
    folder = train_joint(config, toy_study, toy_model, weights, tmp_path / "model")
    model = open_segmenter(folder / "model.safetensors", folder / "card.json", "cpu")
    image, _ = read_prepared(toy_study[0], "toy__0")
    assert model.segment([image])[0].probability.shape == image.shape[:2]


def test_parents_that_saw_the_test_cases_are_refused(toy_study, toy_model, weights, tmp_path):
    prepared, _, roles = toy_study
    swapped = {
        "train": roles["test"] + roles["train"][:2],
        "validation": roles["validation"],
        "test": roles["train"][2:],
    }
    write_splits(tmp_path / "splits.csv", swapped)
    with pytest.raises(LeakError, match="was trained on 3 of the 3 cases"):
        train_joint(
            joint(), (prepared, tmp_path / "splits.csv"), toy_model, weights, tmp_path / "a"
        )
    tuned = finetune(quick(epochs=1), toy_study, weights, tmp_path / "tuned")
    other = {**roles, "train": roles["train"], "test": roles["test"]}
    write_splits(tmp_path / "other.csv", other, fold=1)
    with pytest.raises(SplitError, match="is of fold 0, and fold 1 was asked for"):
        train_joint(
            joint(),
            (prepared, tmp_path / "other.csv"),
            toy_model,
            tuned / "model.safetensors",
            tmp_path / "b",
            refiner_card=tuned / "card.json",
            fold=1,
        )


def test_a_finetuned_refiner_is_a_parent_with_its_card(toy_study, toy_model, weights, tmp_path):
    tuned = finetune(quick(epochs=1), toy_study, weights, tmp_path / "tuned")
    folder = train_joint(
        joint(epochs=1),
        toy_study,
        toy_model,
        tuned / "model.safetensors",
        tmp_path / "joint",
        refiner_card=tuned / "card.json",
    )
    card = read_card(folder / "card.json")
    names = [entry["name"] for entry in card["sources"]["parents"]]
    assert names == ["tiny", "tuned"]
    assert card["parents"]["tuned"] == file_sha256(tuned / "model.safetensors")
    write_json(tuned / "card.json", {**read_json(tuned / "card.json"), "weights_sha256": "0" * 64})
    with pytest.raises(WeightsError, match="is not the file that"):
        train_joint(
            joint(),
            toy_study,
            toy_model,
            tuned / "model.safetensors",
            tmp_path / "other",
            refiner_card=tuned / "card.json",
        )


def test_files_of_two_trainings_are_not_mixed(trained, tmp_path):
    folder = shutil.copytree(trained, tmp_path / "copy")
    weights = write_weights(tmp_path / "other", seed=9)
    shutil.copy(weights, folder / "refiner.safetensors")
    with pytest.raises(WeightsError, match=r"refiner\.safetensors is absent or not the file"):
        open_segmenter(folder / "model.safetensors", folder / "card.json", "cpu")


def test_halves_of_a_model_that_has_none_are_refused(toy_study, toy_model, weights, tmp_path):
    from tests.training_fixture import tiny_config, train

    unet = train(tiny_config(model="unet", width=4, epochs=1), toy_study, tmp_path / "unet")
    with pytest.raises(ConfigError, match="unet is not divided into encoder and decoder"):
        train_joint(
            joint(train={"coarse_decoder": {}}), toy_study, unet, weights, tmp_path / "joint"
        )
    folder = train_joint(joint(epochs=1), toy_study, unet, weights, tmp_path / "joint")
    assert read_card(folder / "card.json")["architecture"]["coarse"]["model"] == "unet"


@pytest.mark.parametrize(
    ("family", "write"),
    [
        ("ultrasam", write_tiny_ultrasam),
        pytest.param("mobile_sam", write_mobile_sam, marks=pytest.mark.slow),
    ],
)
def test_every_family_that_can_be_finetuned_trains_end_to_end(
    toy_study, toy_model, tmp_path, family, write
):
    path = write(tmp_path / "weights.pth")
    config = joint(epochs=1, train={"coarse": {"lr": 1e-4}, "decoder": {"lr": 1e-4}}, batch_size=5)
    folder = train_joint(
        config, toy_study, toy_model, path, tmp_path / "joint", family=family, options={}
    )
    rows = read_rows(folder / "history.csv")
    assert float(rows[1]["train_loss"]) > 0
    model = open_segmenter(folder / "model.safetensors", folder / "card.json", "cpu")
    image, _ = read_prepared(toy_study[0], "toy__0")
    assert model.segment([image])[0].probability.shape == image.shape[:2]


def test_mixed_precision_learns_what_single_precision_does(toy_study, toy_model, weights, tmp_path):
    losses = {}
    for precision in ("32-true", "bf16-mixed"):
        config = joint(epochs=1, precision=precision, fusion={"gate": "uncertainty"})
        folder = train_joint(config, toy_study, toy_model, weights, tmp_path / precision)
        losses[precision] = float(read_rows(folder / "history.csv")[1]["train_loss"])
    assert losses["bf16-mixed"] != losses["32-true"]
    assert losses["bf16-mixed"] == pytest.approx(losses["32-true"], rel=0.03)
