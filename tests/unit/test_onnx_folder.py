"""Guards that an exported folder can be used without torch, as its page says."""

import logging

import cv2
import numpy as np
import onnxruntime
import pytest
from PIL import Image

from tests.deploy_fixture import CASES, image_of, make_run
from tests.refiner_fixture import finetune, quick, write_weights
from tests.training_fixture import make_study
from ultrarefiner.deploy import onnx
from ultrarefiner.deploy.bundle import bundle_of_run, read_bundle, write_bundle
from ultrarefiner.deploy.contents import File
from ultrarefiner.deploy.onnx import export_coarse_onnx, export_folder_onnx
from ultrarefiner.deploy.pipeline import open_method
from ultrarefiner.errors import UltraRefinerError
from ultrarefiner.io import file_sha256
from ultrarefiner.models.sam import PIXEL_MEAN, PIXEL_STD
from ultrarefiner.prompts import prompt_from_mask
from ultrarefiner.training.segmenter import open_segmenter

ENCODER, DECODER = "ImageEncoderViT", "_Decoder"


@pytest.fixture(scope="module", autouse=True)
def no_traces():
    """Keep torch's own trace of each export out of pytest's log: it takes as long as the export."""
    logging.disable(logging.INFO)
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture(scope="module")
def run(one_thread, tmp_path_factory):
    """Return the folder of a finished study."""
    return make_run(tmp_path_factory.getbasetemp())


@pytest.fixture
def untranslated(monkeypatch):
    """Let a network's file, but for those in the list, say no more than which network it is of.

    torch takes seconds for each; that what it writes is right, test_onnx.py guards.
    """
    real, translate = [], onnx.write_onnx

    def write_onnx(net, inputs, outputs, shapes, cases, output):
        if output.stem in real:
            translate(net, inputs, outputs, shapes, cases, output)
        else:
            output.write_text(type(net).__name__)

    monkeypatch.setattr(onnx, "write_onnx", write_onnx)
    return real


def kinds(folder):
    """Return the class of the network in each file of a folder."""
    return {path.stem: path.read_text() for path in folder.glob("*.onnx")}


class Networks:
    """The ONNX files of a folder, all or some, called by name."""

    def __init__(self, folder, names=("*",)):
        self.sessions = {
            path.stem: onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
            for name in names
            for path in folder.glob(f"{name}.onnx")
        }

    def __call__(self, name, **inputs):
        inputs = {key: np.asarray(value, np.float32) for key, value in inputs.items()}
        return self.sessions[name].run(None, inputs)

    def side(self, name):
        return self.sessions[name].get_inputs()[0].shape[-1]


def lesion_probability(networks, name, image):
    """Return the probability (H, W) by one model, without flips."""
    side = networks.side(name)
    resized = cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA)
    logits = networks(name, image=resized.transpose(2, 0, 1)[None] / 255)[0][0]
    share = np.exp(logits - logits.max(0))
    return cv2.resize((share / share.sum(0))[1], image.shape[1::-1])


def refine_by_box(networks, image, box, encoder="small-encoder", decoder="small-decoder"):
    """Return bool (H, W), the best of the masks for a box."""
    side, (height, width) = networks.side(encoder), image.shape[:2]
    high, wide = (int(length * side / max(height, width) + 0.5) for length in (height, width))
    resized = Image.fromarray(image).resize((wide, high), Image.Resampling.BILINEAR)
    pixels = np.zeros((1, 3, side, side))
    pixels[0, :, :high, :wide] = (
        (np.asarray(resized, np.float64) - PIXEL_MEAN) / PIXEL_STD
    ).transpose(2, 0, 1)
    (embedding,) = networks(encoder, pixels=pixels)
    corners = np.reshape(box, (1, 2, 2)) * [wide / width, high / height]
    logits, ious = networks(
        decoder,
        embedding=embedding,
        point_coords=corners,
        point_labels=[[2, 3]],
        mask_input=np.zeros((1, 1, *[4 * embedding.shape[-1]] * 2)),
        has_mask_input=[0],
    )
    best = logits[0, 1:][ious[0, 1:].argmax()]
    framed = cv2.resize(best, (side, side))[:high, :wide]
    return cv2.resize(framed, (width, height)) > 0


def test_a_program_without_torch_gets_the_masks_of_the_method(run, tmp_path):
    bundle = bundle_of_run(run / "results", "tiny", "small-box", fold=0)
    bundle = bundle.model_copy(update={"flips": False})
    write_bundle(bundle, tmp_path / "method")
    made = export_folder_onnx(tmp_path / "method")
    assert made == tmp_path / "method" / "onnx"
    names = {"tiny-fold0.onnx", "small-encoder.onnx", "small-decoder.onnx"}
    assert {path.name for path in made.iterdir()} == {*names, "README.md"}
    page = (made / "README.md").read_text()
    assert all(f"| `{name}` |" in page for name in names)
    assert "the highest value in `iou_predictions` is the result" in page
    networks, predictor = Networks(made), open_method(bundle, "cpu")
    for case in CASES[:3]:
        image = image_of(run, case)
        probability = lesion_probability(networks, "tiny-fold0", image)
        coarse = probability >= bundle.threshold
        said = predictor.predict(image)
        assert 0 < said.mask.mean() < 1
        assert np.count_nonzero(coarse != said.coarse) <= 2
        box = prompt_from_mask(said.coarse, "box", expand=0.1).box
        mask = refine_by_box(networks, image, box)
        assert np.count_nonzero(mask != said.mask) <= 0.001 * mask.size + 2
    read_bundle(tmp_path / "method")


def test_every_fold_has_its_networks_and_an_older_export_goes(run, tmp_path, untranslated):
    write_bundle(bundle_of_run(run / "results", "tiny", "tuned-box"), tmp_path / "method")
    (tmp_path / "method" / "onnx").mkdir()
    (tmp_path / "method" / "onnx" / "old.onnx").touch()
    made = export_folder_onnx(tmp_path / "method")
    coarse = kinds(made)["tiny-fold0"]
    assert coarse not in (ENCODER, DECODER)
    assert kinds(made) == {
        **{f"tiny-fold{fold}": coarse for fold in (0, 1)},
        **{f"tuned-fold{fold}-encoder": ENCODER for fold in (0, 1)},
        **{f"tuned-fold{fold}-decoder": DECODER for fold in (0, 1)},
    }
    page = (made / "README.md").read_text()
    assert "mask 0 is the single one; it is the result" in page
    assert "three flips" in page and "mean over the folds" in page


def test_equal_encoders_are_one_file(run, tmp_path, untranslated):
    bundle = bundle_of_run(run / "results", "tiny", "tuned-box")
    study = make_study(tmp_path / "study")
    weights = write_weights(tmp_path)
    members = []
    for one in bundle.members:
        folder = tmp_path / f"fold{one.fold}"
        finetune(quick(epochs=1, seed=one.fold), study, weights, folder)
        paths = [folder / "model.safetensors", folder / "card.json"]
        refiner, card = (File(path=str(path), sha256=file_sha256(path)) for path in paths)
        members.append(one.model_copy(update={"refiner": refiner, "refiner_card": card}))
    write_bundle(bundle.model_copy(update={"members": tuple(members)}), tmp_path / "method")
    made = export_folder_onnx(tmp_path / "method")
    names = {path.stem for path in made.glob("*.onnx")}
    assert names == {
        "tiny-fold0",
        "tiny-fold1",
        "tuned-encoder",
        "tuned-fold0-decoder",
        "tuned-fold1-decoder",
    }
    assert "| tuned, fold 0; tuned, fold 1 |" in (made / "README.md").read_text()


def test_a_refiner_without_network_is_said_to_have_none(run, tmp_path, untranslated):
    bundle = bundle_of_run(run / "results", "tiny", "grabcut-mask", fold=1)
    write_bundle(bundle, tmp_path / "method")
    made = export_folder_onnx(tmp_path / "method")
    assert [path.name for path in made.glob("*.onnx")] == ["tiny-fold1.onnx"]
    assert "`grabcut` has no network" in (made / "README.md").read_text()


def test_a_damaged_folder_is_refused_and_keeps_its_export(run, tmp_path, untranslated):
    bundle = bundle_of_run(run / "results", "tiny", "tiny", fold=0)
    write_bundle(bundle, tmp_path / "method")
    made = export_folder_onnx(tmp_path / "method")
    before = {path: path.read_bytes() for path in made.iterdir()}
    weights = next((tmp_path / "method").rglob("model.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(UltraRefinerError, match="is damaged or another file"):
        export_folder_onnx(tmp_path / "method")
    assert {path: path.read_bytes() for path in made.iterdir()} == before


@pytest.mark.slow
def test_of_a_model_trained_end_to_end_both_parts_are_exported(run, tmp_path, untranslated):
    untranslated += ["joint-fold0", "tiny-fold0"]
    bundle = bundle_of_run(run / "results", "tiny", "joint-guarded", fold=0)
    write_bundle(bundle, tmp_path / "method", export_folder_onnx)
    made = tmp_path / "method" / "onnx"
    networks = Networks(made, untranslated)
    refiner = {"joint-encoder": ENCODER, "joint-fold0-decoder": DECODER}
    assert {path.stem for path in made.glob("*.onnx")} == {*untranslated, *refiner}
    assert {name: (made / f"{name}.onnx").read_text() for name in refiner} == refiner
    page = (made / "README.md").read_text()
    assert "trained end to end" in page and "A guard may put the coarse mask, of `tiny`" in page
    image, member = image_of(run, CASES[0]), bundle.members[0]
    for name, model, card in (
        ("joint-fold0", member.model, member.card),
        ("tiny-fold0", member.fallback, member.fallback_card),
    ):
        (said,) = open_segmenter(bundle.path(model), bundle.path(card), "cpu").segment([image])
        wanted = said.probability if said.coarse is None else said.coarse
        assert np.abs(lesion_probability(networks, name, image) - wanted).max() < 1e-4


def test_a_model_trained_end_to_end_that_is_damaged_is_refused(run, tmp_path):
    member = bundle_of_run(run / "results", "tiny", "joint", fold=0).members[0]
    model, card = tmp_path / "model.safetensors", tmp_path / "card.json"
    bundle = bundle_of_run(run / "results", "tiny", "joint", fold=0)
    model.write_bytes(bundle.path(member.model).read_bytes()[:-8])
    card.write_bytes(bundle.path(member.card).read_bytes())
    with pytest.raises(UltraRefinerError, match="not the file that"):
        export_coarse_onnx(model, card, tmp_path / "coarse.onnx")
