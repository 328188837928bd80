"""Guards what the viewer does with an image, before any page shows it."""

import re
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from typer import Typer
from typer.testing import CliRunner

from tests.deploy_fixture import CASES, image_of, make_run
from ultrarefiner.datasets.phantoms.manifest import write_dicom
from ultrarefiner.deploy.bundle import bundle_of_run
from ultrarefiner.deploy.pipeline import open_method
from ultrarefiner.deploy.predicted import find_warnings
from ultrarefiner.errors import ConfigError, DatasetError, PromptError
from ultrarefiner.images import write_png
from ultrarefiner.prompts.base import Prompt
from ultrarefiner.refine.sam import SamRefiner
from ultrarefiner.viewer.commands import viewer as viewer_command
from ultrarefiner.viewer.drawing import drawing, facts, outline_path
from ultrarefiner.viewer.session import Viewer

GRAY = np.tile(np.arange(60, dtype=np.uint8) * 4, (50, 1))


@pytest.fixture(scope="module")
def run(one_thread, tmp_path_factory):
    """Return the folder of a finished study."""
    return make_run(tmp_path_factory.getbasetemp())


def opened(run, method, fold=None):
    return Viewer(open_method(bundle_of_run(run / "results", "tiny", method), "cpu", fold))


@pytest.fixture(scope="module")
def sam_viewer(run):
    return opened(run, "small-box")


@pytest.fixture
def picture(run, tmp_path):
    """Return a prepared image as a file, and its pixels."""
    image = image_of(run, CASES[0])
    write_png(tmp_path / "case.png", image)
    return tmp_path / "case.png", image


@pytest.fixture
def embeds(monkeypatch):
    """Return the list of images that SAMs encode."""
    calls, embed = [], SamRefiner.embed

    def counted(refiner, image):
        calls.append(image)
        return embed(refiner, image)

    monkeypatch.setattr(SamRefiner, "embed", counted)
    return calls


def test_the_mask_is_the_method_s_until_something_is_drawn(sam_viewer, picture, embeds):
    path, image = picture
    looked = sam_viewer.open(path)
    said = sam_viewer.predictor.predict(image, path.name)
    assert np.array_equal(looked.mask, said.mask)
    assert (looked.score, looked.warnings) == (said.score, said.warnings)
    assert (looked.name, looked.frames) == ("case.png", 1)
    assert np.array_equal(looked.pixels.image, image)


def test_an_image_is_encoded_once_for_all_prompts(sam_viewer, picture, embeds):
    looked = sam_viewer.open(picture[0])
    looked = sam_viewer.draw_box(looked, (20.0, 20.0, 70.0, 60.0))
    looked = sam_viewer.click(looked, 40.0, 40.0, True)
    sam_viewer.click(looked, 5.0, 5.0, False)
    assert len(embeds) == 1
    sam_viewer.open(picture[0])
    assert len(embeds) == 2


def test_each_encoder_of_the_folds_encodes_once(run, picture, embeds):
    viewer = opened(run, "tuned-box")
    looked = viewer.open(picture[0])
    viewer.click(looked, 40.0, 40.0, True)
    assert len(embeds) == len(viewer.predictor.refiners) == 2


def test_box_and_points_are_one_prompt(sam_viewer, picture):
    path, image = picture
    refiner = open_method(sam_viewer.predictor.bundle, "cpu").interactive()
    embedding = refiner.embed(image)
    looked = sam_viewer.open(path)
    boxed = sam_viewer.draw_box(looked, (20.0, 20.0, 70.5, 60.0))
    wanted = refiner.refine(embedding, Prompt(box=(20.0, 20.0, 70.5, 60.0)))
    assert np.array_equal(boxed.mask, wanted.mask) and boxed.score == wanted.score
    assert not np.array_equal(boxed.mask, looked.mask)
    assert boxed.warnings == find_warnings(wanted.mask, looked.predicted.coarse, None)
    both = sam_viewer.click(sam_viewer.click(boxed, 40.0, 41.0, True), 3.0, 4.0, False)
    prompt = Prompt(
        box=(20.0, 20.0, 70.5, 60.0),
        points=np.array([[40.0, 41.0], [3.0, 4.0]]),
        labels=np.array([1, 0]),
    )
    assert np.array_equal(both.mask, refiner.refine(embedding, prompt).mask)
    moved = sam_viewer.draw_box(both, (10.0, 10.0, 60.0, 50.0))
    assert moved.points == both.points and moved.box == (10.0, 10.0, 60.0, 50.0)


def test_prompts_are_taken_back_one_by_one_or_all(sam_viewer, picture):
    looked = sam_viewer.open(picture[0])
    one = sam_viewer.click(looked, 40.0, 41.0, True)
    two = sam_viewer.click(one, 3.0, 4.0, False)
    boxed = sam_viewer.draw_box(two, (20.0, 20.0, 70.0, 60.0))
    assert np.array_equal(
        sam_viewer.undo(sam_viewer.undo(sam_viewer.undo(boxed))).mask, looked.mask
    )
    back = sam_viewer.undo(two)
    assert back.points == one.points and np.array_equal(back.mask, one.mask)
    assert sam_viewer.undo(looked).answer is None
    cleared = sam_viewer.clear(boxed)
    assert (cleared.box, cleared.points, cleared.answer) == (None, (), None)
    assert np.array_equal(cleared.mask, looked.mask)
    # What a point of background was added to goes first, and it says nothing alone.
    alone = replace(looked, points=((3.0, 4.0, 0), (40.0, 41.0, 1)), answer=two.answer)
    assert sam_viewer.undo(alone).points == ()


def test_prompts_that_say_nothing_are_refused(sam_viewer, picture):
    looked = sam_viewer.open(picture[0])
    with pytest.raises(PromptError, match="mark the lesion first"):
        sam_viewer.click(looked, 4.0, 4.0, False)
    with pytest.raises(PromptError, match="outside the image"):
        sam_viewer.click(looked, 4000.0, 4.0, True)


@pytest.mark.parametrize(
    ("method", "why"),
    [("tiny", "tiny has no refiner"), ("grabcut-mask", "grabcut refines masks, not boxes")],
)
def test_where_nothing_can_be_drawn_the_page_says_so(run, picture, method, why):
    viewer = opened(run, method)
    assert viewer.closed.startswith(why)
    looked = viewer.open(picture[0])
    with pytest.raises(PromptError, match=why):
        viewer.draw_box(looked, (20.0, 20.0, 70.0, 60.0))
    assert why[1:] in facts(looked, closed=viewer.closed)
    assert looked.mask.any() and outline_path(looked.mask) in drawing(looked)


def test_a_model_trained_end_to_end_is_prompted_too(run, picture):
    viewer = opened(run, "joint", fold=0)
    looked = viewer.open(picture[0])
    assert looked.predicted.coarse is not None
    boxed = viewer.draw_box(looked, (20.0, 20.0, 70.0, 60.0))
    assert not np.array_equal(boxed.mask, looked.mask)


def test_deep_and_dicom_files_are_read(run, sam_viewer, tmp_path):
    Image.fromarray(GRAY.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    looked = sam_viewer.open(tmp_path / "deep.png")
    assert np.array_equal(looked.pixels.image[..., 0], GRAY)
    assert "16-bit image reduced to 8 bits" in facts(looked)
    gray = image_of(run, CASES[0])[..., 0]
    write_dicom(tmp_path / "scan", gray, spacing=0.5)
    looked = sam_viewer.open(tmp_path / "scan")
    assert np.array_equal(looked.pixels.image[..., 2], gray)
    area = int(looked.predicted.coarse.sum())
    assert area > 1000
    assert f"{area // 1000} {area % 1000:03} px, {area * 0.25:.1f} mm²" in facts(looked)


def test_every_image_of_a_loop_can_be_seen(sam_viewer, tmp_path):
    frames = np.stack([GRAY, GRAY[::-1], 255 - GRAY])
    write_dicom(tmp_path / "loop.dcm", frames, None)
    for number, pixels in enumerate(frames):
        looked = sam_viewer.open(tmp_path / "loop.dcm", number)
        assert looked.frames == 3
        assert np.array_equal(looked.pixels.image[..., 0], pixels)


def test_a_bad_file_is_named_without_its_place(sam_viewer, tmp_path):
    (tmp_path / "notes.png").write_text("no image")
    with pytest.raises(DatasetError, match=r"^notes\.png: .*not an image") as caught:
        sam_viewer.open(tmp_path / "notes.png")
    assert str(tmp_path) not in str(caught.value)


def inside(path, height, width):
    """Return which pixel centres lie in an SVG path, by the even-odd rule."""
    rows, columns = np.mgrid[:height, :width].astype(float)
    found = np.zeros((height, width), bool)
    for ring in re.findall(r"M([^MZ]*)Z", path):
        points = np.array([one.split() for one in ring.split("L")], float)
        for (x0, y0), (x1, y1) in zip(points, np.roll(points, -1, axis=0), strict=True):
            if y0 != y1:
                across = (y0 > rows) != (y1 > rows)
                found ^= across & (columns < (x1 - x0) * (rows - y0) / (y1 - y0) + x0)
    return found


@given(mask=arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9))))
def test_an_outline_holds_the_pixels_of_its_mask(mask):
    assert np.array_equal(inside(outline_path(mask), *mask.shape), mask)


def test_names_and_messages_are_text_not_markup(sam_viewer, picture):
    looked = replace(sam_viewer.open(picture[0]), name="<img src=x>.png")
    page = facts(looked, "a <b> problem", "none & closed")
    assert "<img" not in page and "&lt;img src=x&gt;.png" in page
    assert "a &lt;b&gt; problem" in page and "None &amp; closed." in page


def call(*arguments):
    app = Typer()
    app.command()(viewer_command)
    return CliRunner().invoke(app, list(arguments))


def test_the_command_says_how_to_get_gradio(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    result = call("--run", "main", "--method", "transunet")
    assert isinstance(result.exception, ConfigError)
    assert "pip install 'ultrarefiner[viewer]'" in str(result.exception)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ([], "--run RUN --method METHOD, or --model FOLDER"),
        (["--model", "m", "--run", "main"], "--model and --run exclude each other"),
        (["--run", "tiny"], "--method is missing; run 'tiny' has .*small-box"),
        (["--run", "tiny", "--method", "smal-box"], "small-box"),
    ],
)
def test_the_command_asks_for_a_method(run, arguments, problem):
    pytest.importorskip("gradio")
    result = call(*arguments, "--results", str(run / "results"))
    assert isinstance(result.exception, ConfigError)
    assert re.search(problem, str(result.exception))
