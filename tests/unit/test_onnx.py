import copy
import logging
import shutil
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import ROOT
from tests.sam_fixture import (
    write_mobile_sam,
    write_tiny_sam,
    write_tiny_sam_unet,
    write_tiny_ultrasam,
)
from tests.training_fixture import make_study, tiny_config, train
from ultrarefiner.deploy import onnx_graph
from ultrarefiner.deploy.onnx import (
    coarse_to_onnx,
    decoder_to_onnx,
    encoder_to_onnx,
    export_coarse_onnx,
    export_decoder_onnx,
    export_encoder_onnx,
)
from ultrarefiner.errors import ConfigError, UltraRefinerError
from ultrarefiner.models import build_model
from ultrarefiner.models.attention import fuse_attention
from ultrarefiner.models.lora import add_lora, lora_layers, merge_lora
from ultrarefiner.models.scratch import build_scratch
from ultrarefiner.prompts import Prompt
from ultrarefiner.refine import load_refiner
from ultrarefiner.training.checkpoint import load_model

WRITERS = {"sam": write_tiny_sam, "ultrasam": write_tiny_ultrasam}
POINTS = np.array([[40.0, 30.0], [20.0, 50.0], [60.0, 12.0]])
PROMPTS = {
    "point": Prompt(points=POINTS[:1], labels=np.array([1])),
    "points": Prompt(points=POINTS, labels=np.array([1, 0, 1])),
    "box": Prompt(box=np.array([10.0, 8.0, 70.0, 50.0])),
    "box+point": Prompt(
        box=np.array([10.0, 8.0, 70.0, 50.0]), points=POINTS[:2], labels=np.array([1, 0])
    ),
    "mask": Prompt(mask=np.pad(np.ones((20, 30)), ((10, 30), (25, 35)))),
    "mask+box": Prompt(
        mask=np.pad(np.ones((20, 30)), ((10, 30), (25, 35))), box=np.array([20.0, 8.0, 60.0, 33.0])
    ),
    "mask+point": Prompt(
        mask=np.pad(np.ones((20, 30)), ((10, 30), (25, 35))),
        points=POINTS[:1],
        labels=np.array([1]),
    ),
}


@pytest.fixture(scope="module", autouse=True)
def no_traces():
    """Keep torch's own trace of each export out of pytest's log: it takes as long as the export."""
    logging.disable(logging.INFO)
    yield
    logging.disable(logging.NOTSET)


def opened(path):
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def run(session, *arguments):
    session = session if isinstance(session, onnxruntime.InferenceSession) else opened(session)
    names = [one.name for one in session.get_inputs()]
    return session.run(None, dict(zip(names, arguments, strict=True)))


def assert_equal(found, wanted):
    wanted = np.asarray(wanted)
    assert found.shape == wanted.shape
    assert found.dtype == wanted.dtype == np.float32
    assert np.abs(found - wanted).max() <= 1e-4 * np.abs(wanted).max()


def pixels(*shape, seed=1):
    return np.random.default_rng(seed).random(shape, np.float32)


def image(seed=0):
    return np.random.default_rng(seed).integers(0, 256, (60, 90, 3), np.uint8)


def coarse_net(name, size, **options):
    """Return a model whose norms have seen images, in train mode."""
    torch.manual_seed(3)
    net = build_model(name, size, options=options or None).train()
    side = (size, size) if isinstance(size, int) else size
    with torch.no_grad():
        for _ in range(3):
            net(torch.rand(2, 3, *side))
    return net


@pytest.mark.parametrize(
    ("name", "size", "options"),
    [
        ("unet", 48, {"width": 4}),
        ("dynunet", (32, 64), {}),
        pytest.param("sam_unet_tiny", 64, {}, marks=pytest.mark.slow),
    ],
    ids=["unet", "dynunet", "sam_unet"],
)
def test_a_coarse_model_gives_the_logits_of_torch_for_any_batch(tmp_path, name, size, options):
    net = coarse_net(name, size, **options)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    coarse_to_onnx(net, size, tmp_path / "net.onnx")
    assert net.training
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    height, width = (size, size) if isinstance(size, int) else size
    for batch in (1, 3, 4):
        given_image = pixels(batch, 3, height, width)
        with torch.no_grad():
            wanted = net.eval()(torch.from_numpy(given_image))
        assert_equal(run(tmp_path / "net.onnx", given_image)[0], wanted)
    (source,) = onnx.load(tmp_path / "net.onnx").graph.input
    assert source.name == "image"
    assert source.type.tensor_type.shape.dim[0].dim_param == "batch"


def test_a_trained_model_is_exported_from_its_files(tmp_path):
    folder = train(tiny_config(), make_study(tmp_path / "study"), tmp_path / "model")
    files = folder / "model.safetensors", folder / "card.json"
    export_coarse_onnx(*files, tmp_path / "a.onnx")
    export_coarse_onnx(*files, tmp_path / "b.onnx")
    net, _ = load_model(*files)
    session = opened(tmp_path / "a.onnx")
    for batch in (1, 3, 4):
        given_image = pixels(batch, 3, 32, 32)
        with torch.no_grad():
            assert_equal(run(session, given_image)[0], net(torch.from_numpy(given_image)))
    data = (tmp_path / "a.onnx").read_bytes()
    assert data == (tmp_path / "b.onnx").read_bytes()
    # The exporter notes where each operation is written in the source.
    assert b"site-packages" not in data
    assert str(ROOT).encode() not in data


@pytest.fixture(scope="module")
def sams(tmp_path_factory):
    """Give, by family: weights of a tiny SAM, its refiner, an embedding, a session of its decoder."""
    made = {}
    for family, write in WRITERS.items():
        folder = tmp_path_factory.mktemp(family)
        weights = write(folder / "tiny.pth", side=256)
        export_decoder_onnx(weights, family, folder / "decoder.onnx")
        refiner = load_refiner(family, weights, "cpu")
        embedding = refiner.embed(image())
        made[family] = weights, refiner, embedding, opened(folder / "decoder.onnx")
    return made


@pytest.mark.parametrize("family", WRITERS)
def test_an_encoder_gives_the_embedding_of_the_refiner(tmp_path, sams, family):
    weights, refiner, embedding, _ = sams[family]
    export_encoder_onnx(weights, family, tmp_path / "encoder.onnx")
    tensor, _ = refiner.input_tensor(image())
    (found,) = run(tmp_path / "encoder.onnx", tensor.numpy())
    assert_equal(found[0], embedding.features)


@pytest.mark.slow
def test_a_mobile_sam_encoder_gives_the_embedding_of_the_refiner(tmp_path):
    weights = write_mobile_sam(tmp_path / "mobile.pt")
    export_encoder_onnx(weights, "mobile_sam", tmp_path / "encoder.onnx")
    refiner = load_refiner("mobile_sam", weights, "cpu")
    tensor, _ = refiner.input_tensor(image())
    (found,) = run(tmp_path / "encoder.onnx", tensor.numpy())
    assert_equal(found[0], refiner.embed(image()).features)


def decoder_inputs(refiner, embedding, prompt):
    """Return a prompt as the documentation tells a program without torch to write it."""
    query = refiner.query(embedding, prompt)
    coords, labels = np.zeros((0, 2)), np.zeros(0)
    if query.points is not None:
        coords, labels = query.points, query.labels
    if query.box is not None:
        coords = np.concatenate([coords, query.box.reshape(2, 2)])
        labels = np.concatenate([labels, [2, 3]])
    elif len(coords):
        coords, labels = np.concatenate([coords, [[0, 0]]]), np.concatenate([labels, [-1]])
    side = 4 * embedding.features.shape[-1]
    mask = np.zeros((1, side, side)) if query.mask is None else query.mask.numpy()
    given_mask = [query.mask is not None]
    return [
        np.asarray(value, np.float32)
        for value in (embedding.features[None], coords[None], labels[None], mask[None], given_mask)
    ]


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("family", WRITERS)
def test_a_decoder_gives_the_logits_of_the_refiner(sams, family, prompt):
    _, refiner, embedding, decoder = sams[family]
    logits, ious = run(decoder, *decoder_inputs(refiner, embedding, PROMPTS[prompt]))
    assert logits.shape == (1, 4, 64, 64)
    for part, multimask in ((slice(0, 1), False), (slice(1, 4), True)):
        wanted = refiner.decode(embedding, PROMPTS[prompt], multimask)
        assert_equal(logits[0, part], wanted[0])
        assert_equal(ious[0, part], wanted[1])


@settings(max_examples=25)
@given(labels=st.lists(st.sampled_from([0, 1]), min_size=1, max_size=9), seed=st.integers(0, 99))
def test_a_decoder_takes_any_number_of_points(sams, labels, seed):
    _, refiner, embedding, decoder = sams["sam"]
    points = np.random.default_rng(seed).uniform(0, (89, 59), (len(labels), 2))
    prompt = Prompt(points=points, labels=np.array(labels))
    logits, _ = run(decoder, *decoder_inputs(refiner, embedding, prompt))
    assert_equal(logits[0, :1], refiner.decode(embedding, prompt, False)[0])


def test_the_families_decode_in_their_own_ways(sams, tmp_path):
    """The tiny UltraSAM has the weights of the tiny SAM: only what is computed differs."""
    _, refiner, embedding, decoder = sams["sam"]
    inputs = decoder_inputs(refiner, embedding, PROMPTS["box"])
    one, other = run(decoder, *inputs)[0], run(sams["ultrasam"][-1], *inputs)[0]
    assert np.abs(one - other).max() > 1e-2 * np.abs(one).max()


@pytest.fixture(scope="module")
def tuned():
    """Give a SAM in training, of other sizes than the published ones, with layers for LoRA."""
    sam = add_lora(build_scratch("tiny", 5), parts=("encoder", "decoder"), seed=1)
    for _, layer in lora_layers(sam):
        torch.nn.init.normal_(layer.lora_B["default"].weight, std=0.1)
    return sam.train()


@pytest.fixture(scope="module")
def exported(tuned, tmp_path_factory):
    """Give the folder of its ONNX files, and the graphs that torch made, by the module's name."""
    folder, graphs, export = tmp_path_factory.mktemp("exported"), {}, onnx_graph._graph

    def recorded(net, *arguments):
        model, size = export(net, *arguments)
        graphs[type(net).__name__] = model.SerializeToString(), size
        return model, size

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx_graph, "_graph", recorded)
        before = copy.deepcopy(tuned.state_dict())
        encoder_to_onnx(tuned, folder / "encoder.onnx")
        decoder_to_onnx(tuned, folder / "decoder.onnx")
    # A model in memory stays as it is.
    assert tuned.training
    assert tuned.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[key]) for key, value in tuned.state_dict().items())
    assert len(graphs) == 2
    return folder, graphs


@pytest.fixture
def made_before(exported, monkeypatch):
    """Let torch's part of an export, which takes seconds, be the graph that it made before."""

    def graph(net, *_):
        data, size = exported[1][type(net).__name__]
        return onnx.load_from_string(data), size

    monkeypatch.setattr(onnx_graph, "_graph", graph)
    return graph


@pytest.fixture(scope="module")
def encodings(tuned):
    """Give pixels, and what the encoder makes of them with LoRA merged and without LoRA."""
    given_pixels = 2 * pixels(1, 3, 128, 128) - 1
    merged, plain = merge_lora(copy.deepcopy(tuned)).eval(), build_scratch("tiny", 5)
    with torch.no_grad():
        made = [sam.image_encoder(torch.from_numpy(given_pixels)) for sam in (merged, plain)]
    return given_pixels, *made


@pytest.mark.slow
def test_lora_is_part_of_the_file(exported, encodings):
    given_pixels, wanted, plain = encodings
    assert_equal(run(exported[0] / "encoder.onnx", given_pixels)[0], wanted)
    assert (wanted - plain).abs().max() > 1e-2 * wanted.abs().max()


def test_a_file_that_computes_something_else_is_refused(tmp_path, monkeypatch, made_before, tuned):
    def spoilt(*arguments):
        model, size = made_before(*arguments)
        for weight in model.graph.initializer:
            if weight.data_type == onnx.TensorProto.FLOAT:
                values = np.frombuffer(weight.raw_data, np.float32) * np.float32(1.01)
                weight.raw_data = values.tobytes()
        return model, size

    for write in (encoder_to_onnx, decoder_to_onnx):
        write(tuned, tmp_path / "sam.onnx")
        (tmp_path / "sam.onnx").unlink()
    monkeypatch.setattr(onnx_graph, "_graph", spoilt)
    for write in (encoder_to_onnx, decoder_to_onnx):
        with pytest.raises(UltraRefinerError, match=r"sam\.onnx was not written.*something else"):
            write(tuned, tmp_path / "sam.onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("export", [export_encoder_onnx, export_decoder_onnx])
def test_a_family_that_is_not_written_so_is_refused(tmp_path, export):
    weights = write_tiny_sam_unet(tmp_path / "sam_unet.pth")
    with pytest.raises(ConfigError, match="family sam_unet, whose networks are not written"):
        export(weights, "sam_unet", tmp_path / "net.onnx")
    assert not (tmp_path / "net.onnx").exists()


def test_a_model_that_gives_no_numbers_is_refused(tmp_path):
    net = torch.nn.Conv2d(3, 2, 1)
    coarse_to_onnx(net, 8, tmp_path / "net.onnx")
    (tmp_path / "net.onnx").unlink()
    torch.nn.init.constant_(net.bias, float("nan"))
    with pytest.raises(UltraRefinerError, match="was not written"):
        coarse_to_onnx(net, 8, tmp_path / "net.onnx")
    assert list(tmp_path.iterdir()) == []


class Untranslatable(torch.nn.Module):
    def forward(self, image):
        return torch.linalg.eigvals(image[:, 0]).real


def test_a_model_that_cannot_be_translated_is_refused(tmp_path):
    with pytest.raises(UltraRefinerError, match=r"cannot write Untranslatable.*Update onnxscript"):
        coarse_to_onnx(Untranslatable(), 8, tmp_path / "net.onnx")
    assert list(tmp_path.iterdir()) == []


def test_large_weights_lie_beside_the_file(tmp_path, monkeypatch, made_before, tuned, encodings):
    monkeypatch.setattr(onnx_graph, "_ONE_FILE", 1000)
    encoder_to_onnx(tuned, tmp_path / "first" / "encoder.onnx")
    assert {path.name for path in (tmp_path / "first").iterdir()} == {
        "encoder.onnx",
        "encoder.onnx.data",
    }
    assert len({path.stat().st_mode for path in (tmp_path / "first").iterdir()}) == 1
    shutil.move(tmp_path / "first", tmp_path / "second")
    given_pixels, wanted, _ = encodings
    assert_equal(run(tmp_path / "second" / "encoder.onnx", given_pixels)[0], wanted)


@pytest.mark.parametrize("package", ["onnx", "onnxruntime", "onnxscript"])
def test_a_missing_package_is_said_before_anything_is_read(tmp_path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    absent = tmp_path / "absent"
    for export in (export_coarse_onnx, export_encoder_onnx, export_decoder_onnx):
        with pytest.raises(ConfigError, match=rf"\({package}\).*'ultrarefiner\[onnx\]'"):
            export(absent, "sam", tmp_path / "out.onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_models_of_full_size(tmp_path):
    from segment_anything import sam_model_registry

    net = coarse_net("transunet", 224)
    coarse_to_onnx(net, 224, tmp_path / "transunet.onnx")
    given_image = pixels(2, 3, 224, 224)
    with torch.no_grad():
        wanted = net.eval()(torch.from_numpy(given_image))
    assert_equal(run(tmp_path / "transunet.onnx", given_image)[0], wanted)
    torch.manual_seed(0)
    sam = sam_model_registry["vit_b"]().eval()
    for block in sam.image_encoder.blocks:
        torch.nn.init.normal_(block.attn.rel_pos_h, std=0.02)
        torch.nn.init.normal_(block.attn.rel_pos_w, std=0.02)
    fuse_attention(sam.image_encoder)
    encoder_to_onnx(sam, tmp_path / "encoder.onnx")
    given_pixels = 2 * pixels(1, 3, 1024, 1024) - 1
    with torch.no_grad():
        wanted = sam.image_encoder(torch.from_numpy(given_pixels))
    assert_equal(run(tmp_path / "encoder.onnx", given_pixels)[0], wanted)
