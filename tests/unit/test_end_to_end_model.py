"""The end-to-end model: where its gradients go, and what its options change."""

from itertools import product

import numpy as np
import pytest
import torch

from tests.end_to_end_fixture import joint
from tests.training_fixture import write_case
from ultrarefiner.datasets.loader import read_prepared
from ultrarefiner.models import build_model
from ultrarefiner.models.scratch import build_scratch
from ultrarefiner.refine.options import SamOptions
from ultrarefiner.refine.sam import SamRefiner
from ultrarefiner.runtime import seed_everything
from ultrarefiner.training.end_to_end_model import EndToEnd, scale_gradient
from ultrarefiner.training.end_to_end_task import EndToEndTask, conclude, make_sample
from ultrarefiner.training.features import Features

pytestmark = pytest.mark.usefixtures("one_thread")

CASES = ["toy__0", "toy__1", "toy__2"]


class Source:
    """Prepared cases in a folder."""

    def __init__(self, folder):
        self.folder = folder

    def read(self, case):
        return read_prepared(self.folder, case)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "prepared"
    for seed, case in enumerate(CASES):
        write_case(folder, case, seed)
    return Source(folder)


def make_task(source, **changes):
    """Return a task around models of fixed random weights, all of which require a gradient."""
    config = joint(**changes)
    seed_everything(0)
    coarse = build_model("transunet_tiny", 32)
    options = SamOptions(mask_choice="softmax")
    refiner = SamRefiner.of_model(build_scratch("tiny", 1), "0" * 64, "cpu", options)
    encoder = "image_encoder" in config.train
    refiner.sam.image_encoder.requires_grad_(encoder)
    features = Features(refiner, None)
    model = EndToEnd(coarse, refiner, features, config).eval()
    return EndToEndTask(config, model, features, source, CASES[:2], CASES[2:], 32)


def batch_of(task):
    return [task._sample(case, False, task.config.loss.size) for case in CASES[:2]]


def gradients(task, **loss):
    task.model.zero_grad()
    weights = task.config.loss.model_copy(update=loss)
    task.config = task.config.model_copy(update={"loss": weights})
    task.losses(task.model, batch_of(task))[0].sum().backward()
    return {
        name: None if one.grad is None else one.grad.clone()
        for name, one in task.model.coarse.named_parameters()
    }


VIEWS = {
    "whole": {},
    "window": {"roi": {"expand": 0.2, "min_size": 16}},
    "window, coarse outside": {"roi": {"min_size": 16, "outside": "coarse"}},
    "gated": {"fusion": {"gate": "uncertainty"}},
    "box and points": {"prompts": ["box", "point", "negative"]},
    "mask": {"prompts": ["mask"], "style": "gaussian"},
    "sharpened": {"sharpen": 10.0, "style": "distance"},
}


@pytest.mark.parametrize("view", VIEWS)
def test_the_refined_loss_reaches_every_coarse_parameter(source, view):
    found = gradients(make_task(source, **VIEWS[view]), coarse=0.0, refined=1.0)
    for name, gradient in found.items():
        assert gradient is not None and gradient.isfinite().all(), name
        # A bias before a BatchNorm of batch statistics would have none; in eval mode all have.
        assert gradient.abs().max() > 0, name


@pytest.mark.parametrize("view", VIEWS)
def test_no_gradient_reaches_a_frozen_coarse_model_or_encoder(source, view):
    task = make_task(source, **VIEWS[view])
    task.model.coarse.requires_grad_(False)
    task.losses(task.model, batch_of(task))[0].sum().backward()
    frozen = [*task.model.coarse.parameters(), *task.model.sam.image_encoder.parameters()]
    assert all(one.grad is None for one in frozen)
    assert any(one.grad is not None for one in task.model.sam.mask_decoder.parameters())


@pytest.mark.parametrize("view", ["whole", "window, coarse outside", "gated"])
def test_the_gradient_scale_acts_on_the_refined_path_alone_and_is_linear(source, view):
    def of(scale, **loss):
        return gradients(make_task(source, gradient_scale=scale, **VIEWS[view]), **loss)

    alone, none = of(1.0, refined=0.0), of(0.0)
    for name, gradient in none.items():
        torch.testing.assert_close(gradient, alone[name], rtol=1e-6, atol=1e-9, msg=name)
    full, part = of(1.0), of(0.3)
    for name, gradient in part.items():
        expected = alone[name] + 0.3 * (full[name] - alone[name])
        torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-6, msg=name)
    assert any((full[name] - alone[name]).abs().max() > 1e-6 for name in full)


def test_scaling_a_gradient_changes_no_value_and_scaling_twice_multiplies():
    values = torch.randn(5, requires_grad=True)
    scaled = scale_gradient(scale_gradient(values, 0.5), 0.5)
    assert torch.equal(scaled, values)
    scaled.sum().backward()
    assert torch.equal(values.grad, torch.full((5,), 0.25))


@pytest.mark.parametrize("view", ["whole", "window"])
def test_no_graph_is_kept_of_a_frozen_encoder(source, view):
    """What autograd keeps for a backward pass, in bytes, with the encoder frozen and trained."""

    def kept(train):
        task = make_task(source, train=train, **VIEWS[view])
        sizes = []

        def note(tensor):
            sizes.append(tensor.numel() * tensor.element_size())
            return tensor

        batch = batch_of(task)
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            task.model(batch)
        return sum(sizes)

    parts = {"coarse": {"lr": 1e-3}, "decoder": {"lr": 1e-3}}
    assert kept(parts) < 0.5 * kept({**parts, "image_encoder": {"lr": 1e-3}})


def test_memory_for_the_backward_pass_hardly_depends_on_windows(source):
    sizes = {}
    for view in ("whole", "window"):
        task, kept = make_task(source, **VIEWS[view]), []

        def note(tensor, kept=kept):
            kept.append(tensor.untyped_storage())
            return tensor

        batch = batch_of(task)
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            task.model(batch)
        sizes[view] = sum({one.data_ptr(): one.nbytes() for one in kept}.values())
    assert sizes["window"] < 1.25 * sizes["whole"]


def test_the_encoder_of_a_frozen_part_runs_without_autograd_even_in_train_mode(source):
    task = make_task(source, **VIEWS["window"])
    task.model.train()
    seen = []
    handle = task.model.sam.image_encoder.register_forward_hook(
        lambda module, args, output: seen.append((torch.is_grad_enabled(), output.requires_grad))
    )
    with torch.no_grad():
        task.model(batch_of(task))
    task.model(batch_of(task))
    handle.remove()
    assert seen and not any(needs for _, needs in seen)


@pytest.mark.parametrize(("size", "roi"), product((64, 128, "original"), (None, {"min_size": 16})))
def test_refined_logits_have_the_size_that_the_loss_asks_for(source, size, roi):
    task = make_task(source, loss={"size": size}, roi=roi)
    batch = batch_of(task)
    output = task.model(batch)
    assert output.coarse_logits.shape == (2, 2, 32, 32)
    for logits, sample in zip(output.refined_logits, batch, strict=True):
        assert logits.shape == (sample.image_hw if size == "original" else (size, size))
        assert sample.label.shape == logits.shape


def test_the_size_of_the_loss_has_an_effect(source):
    losses = {
        size: float(task.losses(task.model, batch_of(task))[0].sum())
        for size in (32, 224, "original")
        for task in [make_task(source, loss={"size": size, "coarse": 0.0})]
    }
    assert len(set(losses.values())) == 3


def test_an_image_is_refined_alike_alone_and_among_others(source):
    task = make_task(source, loss={"size": "original"})
    batch = batch_of(task)
    with torch.no_grad():
        together = task.model(batch).refined_logits
        for one, sample in zip(together, batch, strict=True):
            torch.testing.assert_close(
                task.model([sample]).refined_logits[0], one, atol=1e-4, rtol=0
            )


def test_a_gate_gives_logits_between_those_of_both_masks(source):
    for gate in ("uncertainty", "learned", "hybrid"):
        train = {"coarse": {}, **({} if gate == "uncertainty" else {"gate": {}})}
        plain, gated = (
            make_task(source, loss={"size": "original"}, **change)
            for change in ({}, {"fusion": {"gate": gate}, "train": train})
        )
        with torch.no_grad():
            batch = batch_of(plain)
            refined = [one.sigmoid() for one in plain.model(batch).refined_logits]
            output = gated.model(batch)
            for q, fused, z, sample in zip(
                refined, output.refined_logits, output.coarse_logits, batch, strict=True
            ):
                p = torch.nn.functional.interpolate(
                    (z[1] - z[0])[None, None], sample.size, mode="bilinear", antialias=True
                )[0, 0].sigmoid()
                low, high = torch.minimum(p, q) - 1e-4, torch.maximum(p, q) + 1e-4
                assert ((low <= fused.sigmoid()) & (fused.sigmoid() <= high)).all(), gate


def test_outside_a_window_there_is_sure_background_or_the_coarse_mask(source):
    image, _ = source.read(CASES[0])
    for outside in ("background", "coarse"):
        task = make_task(source, roi={"min_size": 16, "expand": 0.0, "outside": outside})
        # A coarse model that finds a small square in the middle of everything.
        z = torch.full((1, 2, 32, 32), 0.0)
        z[:, 1] = -6.0
        z[:, 1, 12:20, 12:20] = 6.0
        task.model.coarse = _Constant(z)
        sample = make_sample(image, None, (32, 32), "original", task.features, "x", False, True)
        with torch.no_grad():
            logits = task.model([sample]).refined_logits[0]
        corner = logits[0, 0]
        assert corner == -20.0 if outside == "background" else -6.5 < corner < -5.5


class _Constant(torch.nn.Module):
    def __init__(self, logits):
        super().__init__()
        self.logits = torch.nn.Parameter(logits)

    def forward(self, images):
        return self.logits.expand(len(images), -1, -1, -1)


def test_an_empty_coarse_mask_has_an_empty_refined_one(source):
    image, _ = source.read(CASES[0])
    task = make_task(source)
    z = torch.zeros(1, 2, 32, 32)
    z[:, 0] = 8.0
    task.model.coarse = _Constant(z)
    sample = make_sample(image, None, (32, 32), "original", task.features, "x", False, False)
    with torch.no_grad():
        one = conclude(task.model([sample]), [sample])[0]
    assert np.array_equal(one.probability, one.coarse)
    assert not one.mask.any()


def test_the_anchor_pulls_towards_the_first_weights(source):
    task = make_task(source, anchor=2.0)
    batch = batch_of(task)
    before = task.losses(task.model, batch)[0]
    plain = make_task(source)
    torch.testing.assert_close(before, plain.losses(plain.model, batch_of(plain))[0])
    with torch.no_grad():
        moved = next(task.model.coarse.parameters())
        moved += 0.1
    distance = 2.0 * moved.numel() * 0.01
    anchored = task.losses(task.model, batch)[0]
    task.config = task.config.model_copy(update={"anchor": 0.0})
    difference = anchored - task.losses(task.model, batch)[0]
    torch.testing.assert_close(difference, torch.full((2,), distance), rtol=1e-3, atol=1e-4)
