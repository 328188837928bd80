"""Guards prediction: no leak, masks at original size, flips and thresholds that are what they say."""

import json
import math

import cv2
import numpy as np
import pytest
import torch

from tests.training_fixture import make_study, outputs, tiny_config, train, write_splits
from ultrarefiner.errors import LeakError, SplitError, UltraRefinerError
from ultrarefiner.images import read_gray, read_mask
from ultrarefiner.io import file_sha256, read_json, write_json
from ultrarefiner.models import build_model
from ultrarefiner.models.cards import read_card, read_threshold
from ultrarefiner.training.checkpoint import load_model, save_weights
from ultrarefiner.training.coarse_segmenter import predict
from ultrarefiner.training.data import CoarseData, enlarge, resize_label
from ultrarefiner.training.prediction import GRID, choose_threshold, predict_coarse

pytestmark = pytest.mark.usefixtures("one_thread")


def model_files(folder):
    paths = outputs(folder)
    return {"model": paths["model"], "card": paths["card"]}


def predict_into(folder, trained, study, protocol="nested", part="fold0", flips=False, at=0.3):
    """Predict into masks/, tuned/ and probabilities/ of a folder; return it."""
    write_json(folder / "threshold.json", {"threshold": at})
    predict_coarse(
        **model_files(trained),
        threshold=folder / "threshold.json",
        prepared=study[0],
        splits=study[1],
        part=part,
        protocol=protocol,
        flips=flips,
        masks=folder / "masks",
        tuned=folder / "tuned",
        probabilities=folder / "probabilities",
        device="cpu",
    )
    return folder


def choose(trained, study, output, prepared=None, flips=False, fold=0):
    choose_threshold(
        **model_files(trained),
        prepared=study[0] if prepared is None else prepared,
        splits=study[1],
        fold=fold,
        flips=flips,
        output=output,
        device="cpu",
    )
    return read_json(output)


def load(trained):
    return load_model(**{f"{key}_path": path for key, path in model_files(trained).items()})


def test_probabilities_are_enlarged_and_only_then_thresholded(toy_study, toy_model):
    net, card = load(toy_model)
    data = CoarseData.read(toy_study[0], card["trained_on"], 32)
    for one in predict(net, data, 4):
        soft = one.logits.softmax(0)[1].numpy()
        np.testing.assert_allclose(one.probability, enlarge(soft, *one.mask.shape), atol=1e-6)
        assert np.array_equal(one.mask, one.probability >= 0.5)
        assert len(np.unique(one.probability)) > 2


def test_prediction_is_complete_at_original_size_and_of_float_probabilities(
    toy_study, toy_model, tmp_path
):
    folder = predict_into(tmp_path, toy_model, toy_study)
    roles = toy_study[2]
    names = sorted(f"{case}.png" for case in roles["test"])
    for kind in ("masks", "tuned", "probabilities"):
        assert sorted(path.name for path in (folder / kind).iterdir()) == names
    net, _ = load(toy_model)
    data = CoarseData.read(toy_study[0], roles["test"], 32)
    for one in predict(net, data, batch_size=2):
        name = f"{data.cases[one.index]}.png"
        assert one.probability.shape == data.truths[one.index].shape
        assert np.array_equal(read_mask(folder / "masks" / name), one.probability >= 0.5)
        assert np.array_equal(read_mask(folder / "tuned" / name), one.probability >= 0.3)
        soft = read_gray(folder / "probabilities" / name)
        assert np.abs(soft / 255 - one.probability).max() <= 0.5 / 255 + 1e-6


def test_a_model_is_not_applied_to_cases_that_it_has_seen(toy_study, toy_model, tmp_path):
    prepared, _, roles = toy_study
    splits = tmp_path / "splits.csv"
    write_splits(splits, {"train": roles["test"], "validation": [], "test": roles["train"]})
    with pytest.raises(LeakError, match=r"trained on 5 of the 5 cases.*toy__0"):
        predict_into(tmp_path, toy_model, (prepared, splits, roles))
    write_splits(splits, {"train": roles["train"], "test": roles["validation"]})
    with pytest.raises(LeakError, match="selected on 2 of the 2 cases"):
        predict_into(tmp_path, toy_model, (prepared, splits, roles))
    assert not (tmp_path / "masks").exists()


@pytest.mark.parametrize("cases", ["holdout", "unseen"])
def test_cases_of_no_fold_are_predicted_by_the_model_of_a_fold(
    toy_study, toy_model, tmp_path, cases
):
    prepared, _, roles = toy_study
    splits = tmp_path / "table.csv"
    write_splits(splits, {cases: roles["test"]})
    folder = predict_into(tmp_path, toy_model, (prepared, splits), part=f"{cases}-fold0")
    same = predict_into(tmp_path / "again", toy_model, toy_study)
    for case in roles["test"]:
        name = f"masks/{case}.png"
        assert (folder / name).read_bytes() == (same / name).read_bytes()
    with pytest.raises(SplitError, match="is of fold 0, and fold 1 was asked for"):
        predict_into(tmp_path, toy_model, (prepared, splits), part=f"{cases}-fold1")
    # Under no protocol is a model selected on cases outside the folds.
    write_splits(splits, {cases: roles["validation"]})
    for protocol in ("nested", "seed"):
        with pytest.raises(LeakError, match="selected on 2 of the 2"):
            predict_into(tmp_path, toy_model, (prepared, splits), protocol, f"{cases}-fold0")


def test_protocol_seed_predicts_the_cases_that_it_selected_on_and_says_so(tmp_path):
    study = make_study(tmp_path, protocol="seed")
    folder = train(tiny_config(epochs=1), study, tmp_path / "model", protocol="seed")
    predict_into(tmp_path, folder, study, protocol="seed")
    assert len(list((tmp_path / "masks").iterdir())) == len(study[2]["test"])
    with pytest.raises(LeakError, match="selected on"):
        predict_into(tmp_path, folder, study, protocol="nested")
    assert choose(folder, study, tmp_path / "t.json")["selection"] == "reported fold"


def test_flips_give_the_mean_over_the_image_and_its_three_flips(toy_study, toy_model, tmp_path):
    net, _ = load(toy_model)
    data = CoarseData.read(toy_study[0], toy_study[2]["test"], 32)
    by_hand = [np.zeros(truth.shape) for truth in data.truths]
    for axes in ((), (1,), (2,), (1, 2)):
        turned = CoarseData(
            data.cases,
            np.ascontiguousarray(np.flip(data.images, axes)),
            data.labels,
            data.truths,
            {},
        )
        for one in predict(net, turned, 2):
            by_hand[one.index] += np.flip(one.probability, [axis - 1 for axis in axes]) / 4
    plain = list(predict(net, data, 2))
    for one in predict(net, data, 2, flips=True):
        assert one.probability == pytest.approx(by_hand[one.index], abs=1e-5)
        assert np.abs(one.probability - plain[one.index].probability).max() > 1e-3
        assert torch.allclose(one.logits, plain[one.index].logits, atol=1e-6)
    folder = predict_into(tmp_path, toy_model, toy_study, flips=True)
    for case, soft in zip(data.cases, by_hand, strict=True):
        written = read_gray(folder / "probabilities" / f"{case}.png") / 255
        assert np.abs(written - soft).max() <= 0.5 / 255 + 1e-4


def brightness_model(folder, card):
    """Write a U-Net that gives each pixel the probability sigmoid(10 x value / 255 - 5)."""
    net = build_model("unet", 32, 2, {"width": 4}).eval()
    state = {key: torch.zeros_like(value) for key, value in net.state_dict().items()}
    for key, value in state.items():
        if key.endswith(("running_var", "adn.N.weight")):
            value.fill_(1)
        elif key.endswith("conv.weight") and value.shape[2:] == (3, 3):
            # The first channel goes through the top level unchanged: 4 skipped, 4 from below.
            value[0, 0, 1, 1] = 1
    state["net.final_conv.weight"][1, 0] = 10
    state["net.final_conv.bias"][1] = -5
    save_weights(folder / "model.safetensors", state)
    write_json(
        folder / "card.json",
        {
            **card,
            "architecture": {
                "model": "unet", "image_size": 32, "num_classes": 2, "options": {"width": 4}
            },
            "weights_sha256": file_sha256(folder / "model.safetensors"),
        },
    )  # fmt: skip
    return folder


def write_zones(prepared, case, zones, lesion):
    """Write a 32 x 32 case: rows of 10 pixels, each zone (rows, probability) below the other."""
    image, label = np.zeros((32, 32, 3), np.uint8), np.zeros((32, 32), np.uint8)
    row = 0
    for rows, probability in zones:
        value = (math.log(probability / (1 - probability)) + 5) / 10 * 255
        image[row : row + rows, :10] = round(value)
        row += rows
    label[:lesion, :10] = 1
    (prepared / "npz").mkdir(parents=True, exist_ok=True)
    np.savez(prepared / "npz" / f"{case}.npz", image=image, label=label)


def test_the_threshold_is_the_best_on_validation_cases_with_a_lesion(
    toy_study, toy_model, tmp_path
):
    model = brightness_model(tmp_path, read_card(toy_model / "card.json"))
    prepared, cases = tmp_path / "toy" / "prepared", toy_study[2]["validation"]
    # Lesion: 6 rows of 0.9 and 4 of 0.42; 5 rows of 0.3 beside it are no lesion.
    write_zones(prepared, cases[0], [(6, 0.9), (4, 0.42), (5, 0.3)], lesion=10)
    write_zones(prepared, cases[1], [(9, 0.8)], lesion=0)
    found = choose(model, toy_study, tmp_path / "threshold.json", prepared=prepared)
    assert found["threshold"] == 0.4  # 0.35 is as good, but farther from 0.5
    assert (found["cases"], found["selection"]) == (1, "validation")
    assert found["dice"] == 1
    assert found["dice_at_half"] == pytest.approx(2 * 60 / (60 + 100))
    curve = dict(map(tuple, found["curve"]))
    assert tuple(curve) == GRID
    assert curve[0.35] == curve[0.4] == 1
    assert curve[0.25] == pytest.approx(2 * 100 / (150 + 100))
    assert curve[0.95] == 0
    assert read_threshold(tmp_path / "threshold.json") == 0.4
    # A second case that is better cut high: the mean over cases decides.
    write_zones(prepared, cases[1], [(10, 0.9), (10, 0.47)], lesion=10)
    found = choose(model, toy_study, tmp_path / "threshold.json", prepared=prepared)
    assert found["cases"] == 2
    assert found["threshold"] == 0.5
    assert found["dice"] == pytest.approx((0.75 + 1) / 2)
    assert dict(map(tuple, found["curve"]))[0.4] == pytest.approx((1 + 2 / 3) / 2)


def test_without_a_lesion_to_choose_by_the_threshold_stays_one_half(toy_study, toy_model, tmp_path):
    prepared = tmp_path / "toy" / "prepared"
    for case in toy_study[2]["validation"]:
        write_zones(prepared, case, [(9, 0.8)], lesion=0)
    found = choose(toy_model, toy_study, tmp_path / "threshold.json", prepared=prepared)
    assert found["threshold"] == 0.5
    assert found["dice"] is found["dice_at_half"] is None
    assert (found["cases"], found["curve"]) == (0, [])


def test_a_threshold_never_sees_test_cases_nor_those_trained_on(toy_study, toy_model, tmp_path):
    _, splits, roles = toy_study
    plain = choose(toy_model, toy_study, tmp_path / "plain.json")
    other = make_study(tmp_path / "other")
    for case in roles["test"]:
        (other[0] / "npz" / f"{case}.npz").unlink()
    assert choose(toy_model, (other[0], splits), tmp_path / "other.json") == plain
    crossed = tmp_path / "splits.csv"
    write_splits(crossed, {"train": ["toy__9"], "validation": roles["train"][:2]})
    with pytest.raises(LeakError, match="trained on 2 of the 2"):
        choose(toy_model, (toy_study[0], crossed), tmp_path / "t.json")
    with pytest.raises(SplitError, match="fold 1 was asked for"):
        choose(toy_model, toy_study, tmp_path / "t.json", fold=1)
    assert not (tmp_path / "t.json").exists()


def test_flips_count_for_the_threshold_too(toy_study, toy_model, tmp_path):
    plain, flipped = (
        choose(toy_model, toy_study, tmp_path / "t.json", flips=flips) for flips in (False, True)
    )
    assert plain["curve"] != flipped["curve"]


@pytest.mark.parametrize("content", ["{}", "[]", '{"threshold": null}', '{"threshold": 1}', "no"])
def test_a_file_without_a_threshold_is_named(tmp_path, content):
    path = tmp_path / "threshold.json"
    path.write_text(content)
    with pytest.raises(UltraRefinerError, match=r"threshold\.json.* Delete it and run again"):
        read_threshold(path)


def test_the_card_of_a_square_model_has_the_keys_that_it_always_had(toy_study, toy_model):
    card = json.loads((toy_model / "card.json").read_text())
    assert card["architecture"] == {"model": "transunet_tiny", "image_size": 32, "num_classes": 2}


def test_labels_and_probabilities_survive_the_trip_through_the_models_size():
    y, x = np.mgrid[:500, :600]
    truth = ((y - 240) / 60) ** 2 + ((x - 310) / 80) ** 2 <= 1
    small = resize_label(truth.astype(np.uint8), 224)
    ys, xs = np.nonzero(small)
    centre = ((ys.mean() + 0.5) * 500 / 224 - 0.5, (xs.mean() + 0.5) * 600 / 224 - 0.5)
    assert centre == pytest.approx((240, 310), abs=0.1)
    soft = cv2.resize(truth.astype(np.float32), (224, 224), interpolation=cv2.INTER_AREA)
    mask = enlarge(soft, 500, 600) >= 0.5
    dice = 2 * (mask & truth).sum() / (mask.sum() + truth.sum())
    assert dice > 0.995
    early = cv2.resize(small, (600, 500), interpolation=cv2.INTER_NEAREST).astype(bool)
    assert 2 * (early & truth).sum() / (early.sum() + truth.sum()) < dice
