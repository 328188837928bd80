"""MobileSAM: the embedding that an independent implementation gives for weights by formula.

The numbers were made by kornia 0.7.4's TinyViT, which reads MobileSAM's published file under its own
names; ours is timm's.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.golden.formula import formula_tensor
from tests.sam_fixture import write_mobile_sam
from ultrarefiner.errors import WeightsError
from ultrarefiner.models.sam import load_sam

FOLDER = Path(__file__).parent / "mobile_sam"
SHAPES = json.loads((FOLDER / "keys.json").read_text())


@pytest.fixture(scope="module")
def published():
    """The tensors of a file like the published one, under its names."""
    return {
        key: torch.tensor(3)
        if key.endswith("num_batches_tracked")
        else torch.from_numpy(formula_tensor(key, shape))
        for key, shape in SHAPES.items()
    }


@pytest.fixture(scope="module")
def sam(published, tmp_path_factory):
    path = tmp_path_factory.mktemp("mobile") / "mobile_sam.pt"
    torch.save(published, path)
    return load_sam(path, "mobile_sam")


def test_the_embedding(sam):
    pixels = np.random.default_rng(0).standard_normal((1, 3, 1024, 1024), dtype=np.float32)
    with torch.inference_mode():
        found = sam.image_encoder(torch.from_numpy(pixels)).numpy()[0]
    golden = np.load(FOLDER / "embedding.npz")
    np.testing.assert_allclose(found[::8, ::8, ::8], golden["embedding"], atol=2e-5, rtol=0)
    wide = found.astype(np.float64)
    np.testing.assert_allclose([wide.sum(), np.abs(wide).sum()], golden["total"], rtol=1e-5)


def test_every_tensor_has_its_place(sam, published):
    """Each value of the file that a mask depends on is found in the model, and none is made up."""
    unused = (".norm_head.", ".head.", "num_batches_tracked")
    wanted = sorted(float(v.sum()) for k, v in published.items() if not any(u in k for u in unused))
    found = sorted(
        float(v.sum()) for k, v in sam.state_dict().items() if "num_batches_tracked" not in k
    )
    assert len(wanted) == len(found)
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


def test_the_fixture_has_the_names_of_the_published_file(published, tmp_path):
    written = torch.load(write_mobile_sam(tmp_path / "mobile_sam.pt"), weights_only=True)
    assert {key: list(value.shape) for key, value in written.items()} == {
        key: shape
        for key, shape in SHAPES.items()
        if ".norm_head." not in key and ".head." not in key and "num_batches" not in key
    }
    key = "image_encoder.layers.2.blocks.3.attn.attention_biases"
    assert torch.equal(written[key], published[key])


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda state: state.pop("image_encoder.layers.1.downsample.conv2.c.weight"), "1 missing: "
         r"image_encoder\.layers\.1\.downsample\.conv2\.c\.weight"),
        (lambda state: state.update({"image_encoder.layers.9.x": torch.zeros(2)}), "1 unexpected: "
         r"image_encoder\.layers\.9\.x"),
        (lambda state: state.update({"image_encoder.neck.1.bias": torch.zeros(2)}),
         r"image_encoder\.neck\.1\.bias \(2,\) instead of \(256,\)"),
    ],
)  # fmt: skip
def test_a_file_that_does_not_fit_is_refused(published, tmp_path, spoil, reason):
    state = dict(published)
    spoil(state)
    torch.save(state, tmp_path / "spoilt.pt")
    with pytest.raises(WeightsError, match=reason):
        load_sam(tmp_path / "spoilt.pt", "mobile_sam")


def test_a_model_that_was_saved_again_loads_as_it_was(sam, tmp_path):
    torch.save(sam.state_dict(), tmp_path / "again.pth")
    again = load_sam(tmp_path / "again.pth", "mobile_sam").state_dict()
    assert all(torch.equal(value, again[key]) for key, value in sam.state_dict().items())
    with pytest.raises(WeightsError, match="family: mobile_sam"):
        load_sam(tmp_path / "again.pth")
