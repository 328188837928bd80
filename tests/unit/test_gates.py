"""Gates open where the coarse mask is unsure; what they mix are logits, in every mode."""

import pytest
import torch

from ultrarefiner.errors import ConfigError
from ultrarefiner.models.gates import GATES, LearnedGate, build_gate, fuse, uncertainty_gate
from ultrarefiner.training.refiner_losses import bce


def probabilities(*shape, dtype=torch.float32):
    generator = torch.Generator().manual_seed(len(shape))
    return torch.rand(*shape, generator=generator, dtype=dtype)


@pytest.mark.parametrize("gamma", [0.3, 1.0, 2.0])
def test_a_gate_by_uncertainty_opens_at_one_half(gamma):
    p = torch.linspace(0, 1, 101)
    gate = uncertainty_gate(p, gamma, 0.1, 0.7)
    assert gate[50].item() == pytest.approx(0.7)
    assert gate[[0, 100]].tolist() == pytest.approx([0.1, 0.1])
    assert (gate[:51].diff() > 0).all()
    assert torch.allclose(gate, gate.flip(0), atol=1e-5)


@pytest.mark.parametrize("gamma", [0.3, 1.0, 2.0])
def test_its_gradient_is_finite_everywhere(gamma):
    """The reference's is not a number at one half for gamma below 1."""
    nearly = torch.nextafter(torch.tensor(0.5), torch.tensor(1.0)).item()
    p = torch.tensor([0.0, 0.3, 0.5, nearly, 1.0], requires_grad=True)
    (slope,) = torch.autograd.grad(uncertainty_gate(p, gamma).sum(), p)
    assert slope.isfinite().all()
    assert slope[2] == 0
    assert slope[1] > 0 > slope[4]


@pytest.mark.parametrize("kind", sorted(GATES))
def test_built_gates_stay_in_range_and_flow(kind):
    torch.manual_seed(0)
    gate = build_gate(kind, gamma=1.5, minimum=0.05, maximum=0.6)
    p, q = probabilities(2, 9, 11).requires_grad_(), probabilities(9, 11).expand(2, -1, -1)
    found = gate(p, q)
    assert found.shape == p.shape
    assert found.dtype == torch.float32
    assert found.min() >= 0
    assert found.max() <= (1 if kind == "learned" else 0.6)
    flows = torch.autograd.grad(found.sum(), [p, *gate.parameters()])
    assert all(flow.isfinite().all() and flow.any() for flow in flows)
    # Half precision inside, full outside.
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = gate(p, q)
    assert half.dtype == torch.float32
    assert (half - found).abs().max() < 0.01


def test_the_hybrid_gate_is_the_product_of_the_others():
    learned, hybrid = build_gate("learned"), build_gate("hybrid", 2.0, 0.1, 0.9)
    hybrid.load_state_dict(learned.state_dict())
    p, q = probabilities(2, 9, 11), probabilities(2, 9, 11).flip(2)
    product = learned(p, q) * build_gate("uncertainty", 2.0, 0.1, 0.9)(p, q)
    assert torch.equal(hybrid(p, q), product)
    assert not build_gate("uncertainty").state_dict()


def test_a_learned_gate_begins_nearly_shut():
    torch.manual_seed(0)
    gate = LearnedGate()(probabilities(2, 9, 11), probabilities(2, 9, 11))
    assert gate.mean().item() == pytest.approx(torch.tensor(-2.0).sigmoid().item(), abs=0.05)


def test_an_unknown_gate_is_refused():
    with pytest.raises(ConfigError, match="Did you mean 'hybrid'"):
        build_gate("hybird")


def test_fusing_mixes_probabilities():
    z, y = torch.randn(2, 9, 11) * 4, torch.randn(2, 9, 11) * 4
    g = probabilities(2, 9, 11)
    p, q = z.sigmoid(), y.sigmoid()
    assert (fuse(z, y, g).sigmoid() - (p + g * (q - p))).abs().max() < 1e-6
    # A shut gate leaves the coarse logits, an open one gives the refined.
    assert (fuse(z, y, torch.zeros_like(g)) - z).abs().max() < 0.2
    moderate = z.abs() < 6
    assert (fuse(z, y, torch.zeros_like(g)) - z)[moderate].abs().max() < 1e-4
    assert (fuse(z, y, torch.ones_like(g)) - y)[y.abs() < 6].abs().max() < 1e-4


def test_fusing_is_even():
    """Lesion and background are treated alike, however sure the masks are."""
    z, y = torch.linspace(-40, 40, 81)[None, None], torch.linspace(30, -30, 81)[None, None]
    g = probabilities(1, 1, 81)
    assert torch.allclose(fuse(-z, -y, g), -fuse(z, y, g), atol=1e-5)
    assert fuse(z, y, g).abs().max() < 16.2


def test_fusing_flows_as_small_steps_say():
    generator = torch.Generator().manual_seed(0)
    z, y = (torch.randn(2, 3, 4, generator=generator, dtype=torch.float64) * 5 for _ in "zy")
    g = probabilities(2, 3, 4, dtype=torch.float64) * 0.8 + 0.1
    assert torch.autograd.gradcheck(fuse, [part.requires_grad_() for part in (z, y, g)])
    p = probabilities(2, 3, 4, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda p: uncertainty_gate(p, 0.7), p)


@pytest.mark.parametrize("sure", [20.0, 100.0, 1e4])
@pytest.mark.parametrize("truth", [0.0, 1.0])
def test_a_loss_of_fused_logits_has_finite_gradients(sure, truth):
    z, y = (torch.tensor([[[sure, -sure, sure, -sure]]]) * sign for sign in (1, -1))
    y[..., 2:] = z[..., 2:]
    g = torch.tensor([[[0.0, 1.0, 0.5, 0.5]]])
    inputs = [part.requires_grad_() for part in (z, y, g)]
    flows = torch.autograd.grad(bce(fuse(*inputs), torch.full_like(z, truth)).sum(), inputs)
    assert all(flow.isfinite().all() for flow in flows)


def test_masks_that_are_sure_and_wrong_still_learn():
    z = torch.full((1, 1, 1), -12.0, requires_grad=True)
    fused = fuse(z, z.detach(), torch.full((1, 1, 1), 0.3))
    (slope,) = torch.autograd.grad(bce(fused, torch.ones(1, 1, 1)).sum(), z)
    assert -0.8 < slope.item() < -0.5
