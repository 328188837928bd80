"""Guards gradient checkpointing: the same numbers with fewer activations kept."""

import copy

import pytest
import torch
from torch import nn

from tests.refiner_fixture import SAM_UNET, finetune, quick, write_weights
from tests.training_fixture import make_study
from ultrarefiner.config import FinetuneConfig
from ultrarefiner.errors import ConfigError
from ultrarefiner.io import read_rows
from ultrarefiner.models.checkpointing import checkpoint_blocks
from ultrarefiner.models.medsam2_model import TINY, MedSam2
from ultrarefiner.models.mobile_sam import TinyViTEncoder
from ultrarefiner.models.sam_unet import SamUNet
from ultrarefiner.models.scratch import build_scratch
from ultrarefiner.models.trainable import set_trainable

pytestmark = pytest.mark.usefixtures("one_thread")

LORA = {"lora": {"rank": 2, "dropout": 0.5}}


def step(model, encode):
    """Return the loss, each gradient and the bytes that autograd keeps for the backward pass."""
    kept, model = {}, model.train()

    def keep(tensor):
        kept[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    torch.manual_seed(5)
    pixels = torch.randn(2, 3, 128, 128)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = encode(model, pixels).square().mean()
    loss.backward()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return loss, gradients, sum(kept.values()), torch.rand(1)


def encoded(model, pixels):
    return model.image_encoder(pixels)


def tuned(**keys):
    model = build_scratch("tiny", 0)
    set_trainable(model, FinetuneConfig(**keys))
    return model


@pytest.mark.parametrize(
    ("model", "encode", "depth"),
    [
        (lambda: tuned(train="full"), encoded, 3),
        (lambda: tuned(unfreeze_last=1), encoded, 3),
        (lambda: tuned(**LORA), encoded, 3),
        # Its encoder rests, but gradients flow through the blocks.
        (SamUNet.tiny, SamUNet.encode, 8),
        (lambda: MedSam2(TINY), encoded, 5),
    ],
    ids=["full", "last", "lora", "sam_unet", "medsam2"],
)
def test_the_numbers_are_the_same_and_less_is_kept(model, encode, depth):
    torch.manual_seed(0)
    plain = model()
    saving = copy.deepcopy(plain)
    names = list(saving.state_dict())
    assert checkpoint_blocks(saving) == depth
    assert list(saving.state_dict()) == names
    (loss, gradients, much, after), (same, equal, little, also) = (
        step(one, encode) for one in (plain, saving)
    )
    assert torch.equal(loss, same) and torch.equal(after, also)
    assert gradients.keys() == equal.keys() and len(gradients) > 2
    assert all(torch.equal(gradients[name], equal[name]) for name in gradients)
    assert little < much


def test_a_whole_encoder_keeps_a_fraction():
    plain = tuned(train="full")
    saving = copy.deepcopy(plain)
    checkpoint_blocks(saving)
    much, little = (step(one, encoded)[2] for one in (plain, saving))
    assert little < much / 3


def test_a_copy_runs_its_own_blocks():
    one = tuned(train="full")
    checkpoint_blocks(one)
    other = copy.deepcopy(one)
    with torch.no_grad():
        for weight in other.image_encoder.parameters():
            weight.zero_()
        pixels = torch.ones(1, 3, 128, 128)
        assert one.image_encoder(pixels).any() and not other.image_encoder(pixels).any()


def test_encoders_that_cannot_are_told_so():
    other = nn.Module()
    with torch.device("meta"):
        other.image_encoder = TinyViTEncoder()
    with pytest.raises(ConfigError, match=r"TinyViTEncoder.*BatchNorm.*accumulate"):
        checkpoint_blocks(other)
    other.image_encoder = nn.Conv2d(3, 4, 1)
    with pytest.raises(ConfigError, match="Conv2d, has no blocks"):
        checkpoint_blocks(other)


def test_a_finetuning_learns_the_same_and_its_recipe_is_the_same(tmp_path):
    study, weights = make_study(tmp_path / "study"), write_weights(tmp_path)
    configs = [quick(epochs=1, unfreeze_last=1, checkpointing=c) for c in (False, True)]
    assert configs[0].recipe() == configs[1].recipe()
    losses = []
    for config in configs:
        folder = finetune(config, study, weights, tmp_path / str(config.checkpointing) / "model")
        losses.append(read_rows(folder / "history.csv")[0]["train_loss"])
    assert losses[0] == losses[1]


@pytest.mark.slow
def test_so_does_a_sam_unet(tmp_path):
    study, losses = make_study(tmp_path / "study"), []
    for saves in (False, True):
        config = quick(epochs=1, data="truth", cache="none", checkpointing=saves)
        folder = finetune(config, study, None, tmp_path / str(saves) / "model", **SAM_UNET)
        losses.append(read_rows(folder / "history.csv")[0]["train_loss"])
    assert losses[0] == losses[1]
