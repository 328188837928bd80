"""Guards the planned and plain U-Nets: plans from training images alone, models that come back."""

import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.training_fixture import make_study, outputs, tiny_config, train
from ultrarefiner.config import AugmentConfig, CoarseConfig
from ultrarefiner.errors import ConfigError
from ultrarefiner.images import read_mask
from ultrarefiner.io import file_sha256, read_json, read_rows, write_json
from ultrarefiner.models import MODELS, build_model, height_width, plan_model, unusable_keys
from ultrarefiner.models.dynunet import plan_dynunet, plan_network
from ultrarefiner.training.checkpoint import load_model
from ultrarefiner.training.coarse import CoarseTask
from ultrarefiner.training.data import CoarseData, augment, resize_image, resize_label
from ultrarefiner.training.prediction import choose_threshold, predict_coarse

pytestmark = pytest.mark.usefixtures("one_thread")

SIDES = st.integers(16, 2000)


def config_of(model, **changes):
    values = {"model": model, "init": "random", "image_size": 64, "width": 4}
    return CoarseConfig.model_validate({**values, **changes})


@pytest.mark.parametrize(
    "sizes, cap, patch, depths",
    [
        # 128 halves five times to 4.
        ([(128, 128)] * 3, 512, (128, 128), (5, 5)),
        # 469 x 575: clipped to 469 x 512, seven halvings each, so multiples of 128.
        ([(469, 575)], 512, (512, 512), (7, 7)),
        # The median, each axis for itself: 100 x 200; 100 halves to 7 in four, 200 in five.
        ([(90, 100), (100, 200), (700, 900)], 512, (96, 192), (4, 5)),
        # The median of two lies between them; 375 halves to 6 in six, 250 to 4 in six.
        ([(350, 200), (400, 300)], 512, (384, 256), (6, 6)),
        ([(600, 800)], 256, (256, 256), (6, 6)),
        # A lone axis is halved from 12 on only: 64 -> 4 in four, 128 -> 8 in four and stays.
        ([(64, 128)], 512, (64, 128), (4, 4)),
        ([(64, 192)], 512, (64, 192), (4, 5)),
        ([(20, 40)], 512, (32, 40), (3, 3)),
    ],
)  # fmt: skip
def test_plans_by_hand(sizes, cap, patch, depths):
    plan = plan_dynunet(sizes, cap)
    assert plan.size == patch
    assert plan.divisors == (2 ** depths[0], 2 ** depths[1])
    assert len(plan.strides) == 1 + max(depths)
    assert plan.filters == tuple(min(32 * 2**i, 512) for i in range(len(plan.strides)))
    assert plan.kernels == ((3, 3),) * len(plan.strides)
    # nnU-Net supervises all outputs of the decoder but the lowest.
    assert plan.supervised == max(len(plan.strides) - 2, 1)


@given(st.lists(st.tuples(SIDES, SIDES), min_size=1, max_size=9), st.sampled_from([64, 256, 512]))
def test_every_plan_fits_its_images(sizes, cap):
    plan = plan_dynunet(sizes, cap)
    median = np.median(np.array(sizes), axis=0).clip(32, cap)
    for side, middle, unit in zip(plan.size, median, plan.divisors, strict=True):
        assert side % unit == 0
        assert 4 <= side // unit <= 11
        assert 32 <= side <= cap
        assert abs(side - middle) <= unit / 2 + 0.5
    assert plan.strides[0] == (1, 1)
    assert all((2, 2) >= stride > (1, 1) for stride in plan.strides[1:])
    assert plan_dynunet(sizes[::-1], cap) == plan
    assert plan_network(plan.size) == plan


@given(st.integers(2, 64))
def test_every_side_that_the_config_allows_can_be_planned(sixteenths):
    side = 16 * sixteenths
    plan = plan_network((side, side))
    assert side % plan.divisors[0] == 0
    assert plan.divisors[0] == plan.divisors[1] >= 8


def test_what_cannot_be_planned_is_refused():
    with pytest.raises(ValueError, match="no training images"):
        plan_dynunet([])
    with pytest.raises(ValueError, match="cap: 500 is no power of two"):
        plan_dynunet([(128, 128)], cap=500)
    with pytest.raises(ValueError, match="from 32 pixels on that 4 divides, not 33 x 65"):
        plan_network((33, 65))
    with pytest.raises(ValueError, match="transunet takes square inputs, not 64 x 96"):
        build_model("transunet", (64, 96))


def planned(model, size, **changes):
    return build_model(**plan_model(config_of(model, **changes), lambda: [size]))


def test_forward_shapes_of_squares_rectangles_and_gray():
    for model, sizes in (
        ("unet", [(64, 64), (48, 80), (33, 75)]),
        ("dynunet", [(64, 64), (64, 192), (256, 64)]),
    ):
        for height, width in sizes:
            auto = {"image_size": "auto"} if model == "dynunet" else {}
            net = planned(model, (height, width), **auto).eval()
            for channels in (1, 3):
                out = net(torch.rand(2, channels, height, width))
                assert out.shape == (2, 2, height, width), (model, height, width)
            with torch.no_grad():
                gray = torch.rand(1, 1, height, width)
                assert torch.equal(net(gray), net(gray.repeat(1, 3, 1, 1)))


@pytest.mark.parametrize("model", ["unet", "dynunet"])
def test_wrong_images_are_refused_in_words(model):
    net = planned(model, (64, 64)).eval()
    for image, words in (
        (torch.rand(3, 64, 64), "channels second"),
        (torch.rand(1, 2, 64, 64), "channels second"),
        (torch.rand(1, 3, 16, 64), "resize the image"),
        (torch.zeros(1, 3, 64, 64, dtype=torch.uint8), "divide 8-bit"),
    ):
        with pytest.raises(ValueError, match=words):
            net(image)
    if model == "dynunet":
        with pytest.raises(ValueError, match="heights that 16 divides"):
            net(torch.rand(1, 3, 72, 64))


def test_deep_supervision_gives_several_outputs_in_train_mode_only():
    net = planned("dynunet", (64, 64))
    image = torch.rand(2, 3, 64, 64)
    outputs = net.train()(image)
    assert isinstance(outputs, list)
    assert [tuple(out.shape) for out in outputs] == [(2, 2, 64, 64)] * net.plan.supervised
    assert net.plan.supervised == 3
    # Instance norm is the same in both modes: the finest output is the one that predicts.
    assert torch.allclose(outputs[0], net.eval()(image), atol=1e-6)
    # The next one is of half the resolution, its pixels repeated.
    assert torch.equal(outputs[1][..., ::2, ::2], outputs[1][..., 1::2, 1::2])
    plain = planned("dynunet", (64, 64), deep_supervision=False).train()
    assert plain(image).shape == (2, 2, 64, 64)


def test_sizes_and_widths_are_as_documented():
    assert sum(p.numel() for p in build_model("unet", 64).parameters()) == 31_107_394
    dynunet = build_model("dynunet", 128)
    parameters = sum(p.numel() for p in dynunet.parameters())
    assert parameters == 20_612_648
    # MONAI registers its layers twice; a checkpoint holds each weight once.
    assert sum(value.numel() for value in dynunet.state_dict().values()) == parameters
    assert MODELS["unet"].width == 64
    assert MODELS["dynunet"].width == plan_network((128, 128)).filters[0] == 32


@pytest.mark.parametrize(
    "model, changes, words",
    [
        ("unet", {"image_size": "auto"}, "image_size: auto is for models .*dynunet"),
        ("transunet", {"width": None, "image_size": "auto"}, "transunet takes a side in pixels"),
        ("transunet_tiny", {"width": 8}, r"width: transunet_tiny has fixed .*unet, dynunet\)"),
        ("unet", {"deep_supervision": True}, r"deep_supervision: unet has one output .*dynunet"),
        ("unet", {}, None),
        ("dynunet", {"image_size": "auto", "deep_supervision": False}, None),
        ("transunet", {"width": None}, None),
    ],
)
def test_keys_that_a_model_cannot_use_are_named(model, changes, words, tmp_path):
    config = config_of(model, **changes)
    found = "; ".join(unusable_keys(config))
    if words is None:
        assert found == ""
        return
    assert re.search(words, found)
    with pytest.raises(ConfigError, match=words):
        train(config, make_study(tmp_path), tmp_path / "model")


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return make_study(tmp_path_factory.mktemp("study"))


TRAININGS = {
    "unet": {"image_size": 32},
    "dynunet": {"image_size": "auto", "size_cap": 64, "momentum": 0.99, "nesterov": True},
    "dynunet_square": {"model": "dynunet", "image_size": 32, "deep_supervision": False},
}


@pytest.mark.parametrize("name", TRAININGS)
def test_a_model_trains_and_comes_back_from_its_files(study, tmp_path, name):
    prepared, splits, roles = study
    config = tiny_config(**{"model": name, "width": 4, "epochs": 2, "lr": 0.02, **TRAININGS[name]})
    folder = train(config, study, tmp_path / "model")
    paths = outputs(folder)
    rows = read_rows(paths["history"])
    assert len(rows) == 2
    assert all(math.isfinite(float(row["train_loss"])) for row in rows)
    net, card = load_model(paths["model"], paths["card"])
    architecture = card["architecture"]
    if name == "dynunet":
        sizes = [
            np.load(prepared / "npz" / f"{case}.npz")["label"].shape for case in roles["train"]
        ]
        plan = plan_dynunet(sizes, 64, width=4)
        assert architecture["image_size"] == list(plan.size)
        assert architecture["options"] == plan.options()
        assert net.plan == plan
    # The weights that came back are those that were validated.
    validation = CoarseData.read(prepared, card["selected_on"], architecture["image_size"])
    assert validation.images.shape[1:3] == height_width(architecture["image_size"])
    found = CoarseTask(net, validation, validation, config).validate(lambda: None)
    assert found == {key: card["metrics"][key] for key in found}
    # Their files go through the jobs that follow.
    files = {"model": paths["model"], "card": paths["card"], "prepared": prepared, "splits": splits}
    choose_threshold(**files, fold=0, flips=True, output=tmp_path / "t.json", device="cpu")
    predict_coarse(
        **files,
        threshold=tmp_path / "t.json",
        part="fold0",
        protocol="nested",
        flips=True,
        masks=tmp_path / "masks",
        tuned=tmp_path / "tuned",
        probabilities=tmp_path / "soft",
        device="cpu",
    )
    for case in roles["test"]:
        truth = np.load(prepared / "npz" / f"{case}.npz")["label"]
        assert read_mask(tmp_path / "tuned" / f"{case}.png").shape == truth.shape


def test_a_plan_comes_of_training_images_alone(tmp_path):
    config = tiny_config(model="dynunet", image_size="auto", width=4, epochs=1)
    plain = train(config, make_study(tmp_path / "plain"), tmp_path / "plain_model")
    study = make_study(tmp_path / "other")
    for case in study[2]["test"] + study[2]["validation"]:
        image, label = np.zeros((500, 600, 3), np.uint8), np.zeros((500, 600), np.uint8)
        np.savez(study[0] / "npz" / f"{case}.npz", image=image, label=label)
    other = train(config, study, tmp_path / "other_model")
    one, two = (read_json(folder / "card.json")["architecture"] for folder in (plain, other))
    assert one == two
    assert file_sha256(plain / "model.safetensors") == file_sha256(other / "model.safetensors")


def test_an_old_plan_is_rebuilt_from_the_card_whatever_the_rules_are_now(study, tmp_path):
    config = tiny_config(model="dynunet", image_size=32, width=4, epochs=1)
    folder = train(config, study, tmp_path / "model")
    paths = outputs(folder)
    card = read_json(paths["card"])
    options = card["architecture"]["options"]
    assert options["filters"] == [4, 8, 16, 32]
    # The same weights at another input size: no plan for 64 would have four levels.
    card["architecture"]["image_size"] = [64, 64]
    write_json(paths["card"], card)
    net, _ = load_model(paths["model"], paths["card"])
    assert net.plan.filters == (4, 8, 16, 32)
    assert len(plan_network((64, 64)).filters) == 5


def test_rectangles_are_resized_and_augmented_alike():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (90, 70, 3)).astype(np.uint8)
    label = np.zeros((90, 70), np.uint8)
    label[20:60, 10:40] = 1
    small, target = resize_image(image, (32, 64)), resize_label(label, (32, 64))
    assert small.shape == (32, 64, 3)
    assert target.shape == (32, 64)
    ys, xs = np.nonzero(target)
    assert (ys.mean() + 0.5) / 32 == pytest.approx(40 / 90, abs=0.02)
    assert (xs.mean() + 0.5) / 64 == pytest.approx(25 / 70, abs=0.02)
    picture = np.repeat(target[..., None] * np.uint8(200), 3, axis=2)
    always = AugmentConfig(hflip=0, vflip=0, rot90=1, rotate=0)
    for seed in range(4):
        moved, turned = augment(picture, target, always, np.random.default_rng(seed))
        # A quarter turn would change the shape; a half turn does not.
        assert np.array_equal(turned, target[::-1, ::-1])
        assert np.array_equal(moved[..., 0] > 0, turned > 0)
    always = AugmentConfig(hflip=0, vflip=0, rot90=0, rotate=1, rotate_degrees=10)
    moved, turned = augment(picture, target, always, np.random.default_rng(1))
    assert turned.shape == (32, 64)
    assert not np.array_equal(turned, target)
    ys, xs = np.nonzero(turned)
    there_y, there_x = np.nonzero(target)
    # Turned about the middle of the image, (15.5, 31.5), a centroid keeps its distance.
    before = math.hypot(there_y.mean() - 15.5, there_x.mean() - 31.5)
    assert math.hypot(ys.mean() - 15.5, xs.mean() - 31.5) == pytest.approx(before, abs=0.3)
