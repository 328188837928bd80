"""Guards: TransUNet takes every promised size, refuses the rest by name, and learns."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from ultrarefiner.errors import ConfigError, WeightsError
from ultrarefiner.models import MODELS, build_model
from ultrarefiner.models.transunet import TransUNet, load_imagenet21k
from ultrarefiner.models.weights import WEIGHTS

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def full_size():
    """The full-size network without memory for its weights."""
    with torch.device("meta"):
        return TransUNet()


@pytest.mark.parametrize("size", [32, 64, 96, 160, 224, 256, 512])
@torch.no_grad()
def test_every_multiple_of_16_gives_logits_of_its_own_size(size):
    model = TransUNet.tiny(size, num_classes=3).eval()
    image = torch.rand(1, 3, size, size)
    assert model(image).shape == (1, 3, size, size)
    tokens, skips = model.encode(image)
    assert tokens.shape[1] == (size // 16) ** 2
    assert [skip.shape[-1] for skip in skips] == [size // 8, size // 4, size // 2]
    quarter = skips[1]
    assert not quarter[..., -1, :].any(), "the last row of the 1/4 skip is padding"
    assert not quarter[..., :, -1].any(), "the last column of the 1/4 skip is padding"
    assert quarter[..., -2, :-1].any(), "only one row is padding"
    assert quarter[..., :-1, -2].any(), "only one column is padding"


@torch.no_grad()
def test_one_channel_is_the_same_as_three_equal_ones():
    model = TransUNet.tiny().eval()
    grey = torch.rand(2, 1, 64, 64)
    torch.testing.assert_close(model(grey), model(grey.repeat(1, 3, 1, 1)), rtol=0, atol=0)


@torch.no_grad()
def test_an_image_is_segmented_alike_alone_and_in_a_batch():
    model = TransUNet.tiny().eval()
    images = torch.rand(4, 3, 64, 64)
    torch.testing.assert_close(model(images)[2:3], model(images[2:3]), rtol=0, atol=1e-5)


def test_a_batch_of_one_trains_at_the_smallest_size():
    model = TransUNet.tiny(32).train()
    model(torch.rand(1, 1, 32, 32)).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (torch.rand(3, 64, 64), r"\(3, 64, 64\).*\(B, 1 or 3, 64, 64\)"),
        (torch.rand(1, 4, 64, 64), "1 or 3"),
        (torch.rand(1, 64, 64, 3), "channels second"),
        (torch.rand(1, 3, 80, 80), "resize the image"),
        (torch.rand(1, 3, 64, 48), "resize the image"),
        (torch.zeros(1, 3, 64, 64, dtype=torch.uint8), "divide 8-bit pixels by 255"),
    ],
)
def test_a_wrong_image_is_refused_by_name(image, words):
    with pytest.raises(ValueError, match=words):
        TransUNet.tiny()(image)


@pytest.mark.parametrize(("size", "nearest"), [(100, 96), (16, 32), (0, 32), (225, 224)])
def test_an_impossible_size_is_refused_with_the_nearest(size, nearest):
    with pytest.raises(ValueError, match=f"image_size: {size} .* nearest is {nearest}"):
        TransUNet.tiny(size)


def test_no_classes_are_refused():
    with pytest.raises(ValueError, match="num_classes: 0"):
        TransUNet.tiny(num_classes=0)


def test_dropout_and_initial_weights_follow_the_seed_and_only_training_drops():
    def outputs(seed: int, train: bool) -> torch.Tensor:
        torch.manual_seed(0)
        model = TransUNet.tiny().train(train)
        image = torch.rand(2, 1, 64, 64)
        torch.manual_seed(seed)
        return model(image)

    assert torch.equal(outputs(1, True), outputs(1, True))
    assert not torch.equal(outputs(1, True), outputs(2, True))
    assert torch.equal(outputs(1, False), outputs(2, False))


def test_bfloat16_autocast_stays_near_float32():
    torch.manual_seed(0)
    model = TransUNet.tiny().eval()
    image = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        exact = model(image)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            fast = model(image)
    assert fast.dtype == torch.bfloat16
    assert (fast.float() - exact).abs().mean() < 0.05 * exact.std()


def lesions(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Dark ellipses in speckle, and their masks."""
    rng = np.random.default_rng(seed)
    row, column = np.mgrid[0:64, 0:64] / 64
    images, masks = [], []
    for _ in range(count):
        x, y = rng.uniform(0.3, 0.7, 2)
        a, b = rng.uniform(0.1, 0.28, 2)
        mask = ((column - x) / a) ** 2 + ((row - y) / b) ** 2 < 1
        speckle = 1 + 0.3 * rng.standard_normal((64, 64))
        images.append(np.clip((0.6 - 0.2 * row) * (1 - 0.45 * mask) * speckle, 0, 1))
        masks.append(mask)
    return torch.tensor(np.stack(images)[:, None]).float(), torch.tensor(np.stack(masks)).long()


def test_tiny_learns_lesions_from_random_weights():
    torch.manual_seed(0)
    model = TransUNet.tiny().train()
    images, masks = lesions(32, seed=0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for step in range(40):
        part = slice(step % 4 * 8, step % 4 * 8 + 8)
        logits = model(images[part])
        foreground = logits.softmax(1)[:, 1]
        overlap = 2 * (foreground * masks[part]).sum() / (foreground.sum() + masks[part].sum())
        loss = F.cross_entropy(logits, masks[part]) + 1 - overlap
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    images, masks = lesions(16, seed=1)
    with torch.no_grad():
        found = model.eval()(images).argmax(1)
    dice = 2 * (found * masks).sum((1, 2)) / (found.sum((1, 2)) + masks.sum((1, 2)))
    assert dice.mean() > 0.8


def test_models_are_built_by_name_and_say_which_weights_they_start_from():
    assert isinstance(build_model("transunet_tiny", 96), TransUNet)
    assert build_model("transunet_tiny", 96, num_classes=4)(torch.rand(1, 1, 96, 96)).shape[1] == 4
    assert MODELS["transunet"].init == "imagenet21k"
    assert MODELS["transunet"].pretrained in WEIGHTS
    assert MODELS["transunet_tiny"].init is None
    with torch.device("meta"):
        assert build_model("transunet", 224).config.hidden_size == 768
    with pytest.raises(ConfigError, match="Did you mean 'transunet_tiny'"):
        build_model("transunet_tny", 64)


def test_naming_models_and_weights_does_not_import_torch():
    code = (
        "import sys, ultrarefiner.models, ultrarefiner.models.weights; "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_imagenet21k_weights_refuse_the_tiny_model(tmp_path):
    with pytest.raises(WeightsError, match="full-size TransUNet only"):
        load_imagenet21k(TransUNet.tiny(), tmp_path / "any.npz")


def test_an_absent_imagenet21k_file_names_its_address(full_size, tmp_path):
    with pytest.raises(WeightsError, match=r"no such file.*storage\.googleapis\.com"):
        load_imagenet21k(full_size, tmp_path / "R50+ViT-B_16.npz")


def test_every_missing_and_wrong_array_is_listed(full_size, tmp_path):
    path = tmp_path / "other.npz"
    np.savez(
        path,
        **{
            "conv_root/kernel": np.zeros((3, 3, 3, 64), np.float32),
            "gn_root/scale": np.full(64, np.nan, np.float32),
            "gn_root/bias": np.zeros(64, np.float32),
            "Transformer/posembed_input/pos_embedding": np.zeros((1, 190, 768), np.float32),
        },
    )
    with pytest.raises(WeightsError) as caught:
        load_imagenet21k(full_size, path)
    text = str(caught.value)
    assert "conv_root/kernel has shape (3, 3, 3, 64), not (7, 7, 3, 64)" in text
    assert "pos_embedding has shape (1, 190, 768)" in text
    assert "gn_root/scale holds" in text
    assert "gn_root/bias" not in text
    assert "embedding/kernel is missing" in text
    assert text.count(" is missing") == 353 - 4
    assert "Download" in text


def good_file(tmp_path):
    path = tmp_path / "cut.npz"
    np.savez(path, **{"conv_root/kernel": np.random.default_rng(0).random((7, 7, 3, 64))})
    return path


@pytest.mark.parametrize("damage", ["cut", "page", "empty", "flipped", "npy"])
def test_a_damaged_file_is_refused_with_the_cure(damage, full_size, tmp_path):
    path = good_file(tmp_path)
    whole = path.read_bytes()
    if damage == "npy":
        with open(path, "wb") as handle:
            np.save(handle, np.zeros(3))
    else:
        middle = len(whole) // 2
        path.write_bytes(
            {
                "cut": whole[:middle],
                "page": b"<!DOCTYPE html><html>404</html>",
                "empty": b"",
                "flipped": whole[:middle] + bytes([whole[middle] ^ 0xFF]) + whole[middle + 1 :],
            }[damage]
        )
    with pytest.raises(WeightsError, match=r"cut\.npz.*(damaged|not a whole npz).*Download"):
        load_imagenet21k(full_size, path)
