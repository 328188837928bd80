"""Guards the viewer's page as a user has it: in a real browser, with a real mouse."""

import re
import socket

import numpy as np
import pytest
import requests
from report_browser import CHROMIUM
from typer import Typer
from typer.testing import CliRunner

from tests.deploy_fixture import CASES, image_of, make_run
from ultrarefiner.datasets.phantom import draw_phantom
from ultrarefiner.datasets.phantoms.manifest import write_dicom
from ultrarefiner.deploy.bundle import bundle_of_run, write_bundle
from ultrarefiner.deploy.pipeline import open_method
from ultrarefiner.images import write_png
from ultrarefiner.refine.sam import SamRefiner
from ultrarefiner.viewer.commands import viewer
from ultrarefiner.viewer.session import Viewer

GRAY = np.tile(np.arange(60, dtype=np.uint8) * 4, (50, 1))


@pytest.fixture(scope="module")
def run(one_thread, tmp_path_factory):
    """Return the folder of a finished study."""
    return make_run(tmp_path_factory.getbasetemp())


@pytest.fixture
def embeds(monkeypatch):
    """Return the list of images that SAMs encode."""
    calls, embed = [], SamRefiner.embed

    def counted(refiner, image):
        calls.append(image)
        return embed(refiner, image)

    monkeypatch.setattr(SamRefiner, "embed", counted)
    return calls


class Page:
    """The page in a browser, as a user has it."""

    def __init__(self, tab):
        self.tab = tab

    def open(self, path):
        """Open a file of another name than the last one."""
        self.tab.set_input_files("#side input[type=file]", path)
        self.tab.get_by_text(f"{path.name}:").first.wait_for()

    def at(self, x, y):
        """Return whole screen pixels near a place of the image, and that place in image pixels."""
        corner = self.tab.locator("#canvas image").bounding_box()
        width = float(self.tab.get_attribute("#canvas image", "width"))
        scale = corner["width"] / width
        screen = round(corner["x"] + (x + 0.5) * scale), round(corner["y"] + (y + 0.5) * scale)
        place = [(one - corner[axis]) / scale - 0.5 for one, axis in zip(screen, "xy", strict=True)]
        return screen, place

    def area(self):
        return int(re.sub(r"\D", "", self.tab.inner_text("#facts .refined-area").split("px")[0]))

    def wait_for(self, selector):
        self.tab.wait_for_selector(selector, state="attached")


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    pytest.importorskip("gradio")
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed")
    with playwright.sync_playwright() as engine:
        running = engine.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture(scope="module")
def site(browser, run):
    """Give the viewer and the address of its page; nothing connects to another machine."""
    from ultrarefiner.viewer.app import build_page, serve_page

    reached, connect = [], socket.socket.connect

    def watched(own, address):
        reached.append(address)
        return connect(own, address)

    looking = Viewer(open_method(bundle_of_run(run / "results", "tiny", "small-box"), "cpu"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", watched)
        page = build_page(looking)
        yield looking, serve_page(page)
        page.close()
    away = {address[0] for address in reached if isinstance(address, tuple)}
    assert all(host == "::1" or host.startswith("127.") for host in away), away


@pytest.fixture
def page(browser, site):
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    tab, asked, problems = context.new_page(), [], []
    tab.on("request", lambda request: asked.append(request.url))
    tab.on("pageerror", lambda error: problems.append(str(error)))
    tab.goto(site[1])
    tab.wait_for_selector("#canvas .empty")
    yield Page(tab)
    context.close()
    assert problems == []
    assert {one.split(":")[0] for one in asked if not one.startswith(site[1])} <= {"data"}


@pytest.fixture
def phantom(tmp_path):
    image = draw_phantom(3, 160, False)[0]
    write_png(tmp_path / "phantom.png", np.repeat(image[..., None], 3, axis=2))
    return tmp_path / "phantom.png"


def test_a_box_that_is_dragged_and_a_click_change_the_mask(page, site, phantom, tmp_path, embeds):
    looking = site[0]
    page.open(phantom)
    assert len(embeds) == 1
    looked = looking.open(phantom)
    assert page.area() == looked.mask.sum()
    assert page.tab.locator("#canvas path.coarse").count() == 1
    before = page.tab.get_attribute("#canvas path.refined", "d")
    (start, one), (end, other) = page.at(40, 30), page.at(150, 120)
    page.tab.mouse.move(*start)
    page.tab.mouse.down()
    page.tab.mouse.move(*end, steps=6)
    assert page.tab.locator("#canvas rect.band").count() == 1
    page.tab.mouse.up()
    page.tab.get_by_text("by your prompt").wait_for()
    boxed = looking.draw_box(looked, tuple(value + 0.5 for value in (*one, *other)))
    assert abs(page.area() - boxed.mask.sum()) <= 2
    assert page.tab.get_attribute("#canvas path.refined", "d") != before
    assert page.tab.locator("#canvas rect.band").count() == 0
    place, point = page.at(90, 70)
    page.tab.mouse.click(*place)
    page.wait_for("#canvas .point.lesion")
    clicked = looking.click(boxed, *point, True)
    assert abs(page.area() - clicked.mask.sum()) <= 2
    place, point = page.at(10, 10)
    page.tab.keyboard.down("Shift")
    page.tab.mouse.click(*place)
    page.tab.keyboard.up("Shift")
    page.wait_for("#canvas .point.background")
    assert abs(page.area() - looking.click(clicked, *point, False).mask.sum()) <= 2
    page.tab.screenshot(path=tmp_path / "viewer.png")
    # Once there and once here, and not for any prompt.
    assert len(embeds) == 2
    page.tab.click("#undo")
    page.tab.wait_for_selector("#canvas .point.background", state="detached")
    page.tab.click("#clear")
    page.tab.get_by_text("by your prompt").wait_for(state="detached")
    assert page.area() == looked.mask.sum()


def test_a_box_ends_at_the_image_and_escape_gives_it_up(page, phantom):
    page.open(phantom)
    page.tab.mouse.move(*page.at(100, 80)[0])
    page.tab.mouse.down()
    page.tab.mouse.move(1270, 890, steps=4)
    page.tab.keyboard.press("Escape")
    assert page.tab.locator("#canvas rect").count() == 0
    page.tab.mouse.up()
    page.tab.mouse.down()
    page.tab.mouse.move(*page.at(100, 80)[0], steps=4)
    page.tab.mouse.up()
    assert page.tab.locator("#canvas rect").count() == 0  # begun beside the image
    page.tab.mouse.down()
    page.tab.mouse.move(1270, 890, steps=4)
    page.tab.mouse.up()
    page.tab.get_by_text("by your prompt").wait_for()
    x, y, width, height = (
        float(page.tab.get_attribute("#canvas rect.box", name))
        for name in ("x", "y", "width", "height")
    )
    whole = [float(page.tab.get_attribute("#canvas image", name)) for name in ("width", "height")]
    assert [x + width, y + height] == pytest.approx([side - 0.5 for side in whole], abs=0.01)


def test_clicks_mark_background_where_that_is_chosen(page, phantom):
    page.open(phantom)
    page.tab.get_by_label("background").check()
    page.tab.mouse.click(*page.at(90, 70)[0])
    page.tab.get_by_text("mark the lesion first").wait_for()
    assert page.tab.locator("#canvas .point").count() == 0
    page.tab.keyboard.down("Shift")
    page.tab.mouse.click(*page.at(90, 70)[0])
    page.tab.keyboard.up("Shift")
    page.wait_for("#canvas .point.lesion")
    assert page.tab.locator(".problem").count() == 0


def test_a_bad_file_gives_a_sentence_not_a_trace(page, phantom, tmp_path):
    page.open(phantom)
    (tmp_path / "notes.png").write_text("no image")
    page.open(tmp_path / "notes.png")
    said = page.tab.inner_text("[role=alert]")
    assert said.startswith("notes.png:") and "not an image" in said and "Traceback" not in said
    assert page.tab.locator("#canvas svg").count() == 0
    page.open(phantom)
    assert page.tab.locator("[role=alert]").count() == 0


def test_a_file_can_be_dropped_on_the_image(page, phantom):
    script = """([name, bytes]) => {
      const data = new DataTransfer();
      data.items.add(new File([new Uint8Array(bytes)], name));
      const options = {dataTransfer: data, bubbles: true, cancelable: true};
      document.querySelector("#canvas .empty").dispatchEvent(new DragEvent("drop", options));
    }"""
    page.tab.evaluate(script, [phantom.name, list(phantom.read_bytes())])
    page.tab.get_by_text("phantom.png:").wait_for()
    assert page.tab.locator("#canvas svg").count() == 1


def test_a_loop_has_a_slider_and_a_single_image_none(page, phantom, tmp_path):
    frames = np.stack([GRAY, 255 - GRAY, GRAY[::-1] // 2])
    write_dicom(tmp_path / "loop.dcm", frames, None)
    page.open(tmp_path / "loop.dcm")
    shown = [page.tab.get_attribute("#canvas image", "href")]
    field = page.tab.locator("#frame input[type=range]")
    assert field.get_attribute("max") == "3"
    field.focus()
    for key in ("ArrowRight", "ArrowRight", "ArrowLeft"):
        page.tab.keyboard.press(key)
        page.tab.wait_for_function(
            "last => document.querySelector('#canvas image').getAttribute('href') !== last",
            arg=shown[-1],
        )
        shown.append(page.tab.get_attribute("#canvas image", "href"))
    assert shown[1] == shown[3] and len(set(shown)) == 3
    for key in ("ArrowLeft", "ArrowRight", "ArrowRight"):
        page.tab.keyboard.press(key)
    page.tab.wait_for_function(
        "last => document.querySelector('#canvas image').getAttribute('href') === last",
        arg=shown[2],
    )
    page.open(phantom)
    field.wait_for(state="hidden")


def test_two_users_do_not_disturb_each_other(page, browser, site, phantom, run, tmp_path):
    write_png(tmp_path / "other.png", image_of(run, CASES[1]))
    context = browser.new_context()
    second = Page(context.new_page())
    second.tab.goto(site[1])
    second.tab.wait_for_selector("#canvas .empty")
    page.open(phantom)
    second.open(tmp_path / "other.png")
    page.tab.mouse.click(*page.at(90, 70)[0])
    page.wait_for("#canvas .point.lesion")
    looked = site[0].open(phantom)
    assert abs(page.area() - site[0].click(looked, *page.at(90, 70)[1], True).mask.sum()) <= 2
    assert second.area() == site[0].open(tmp_path / "other.png").mask.sum()
    context.close()


def test_the_page_stays_on_this_machine(site):
    port = int(re.search(r":(\d+)", site[1])[1])
    policy = requests.get(site[1], timeout=5).headers["content-security-policy"]
    assert "default-src 'self'" in policy and "://" not in policy
    # A server for the whole network would answer here too.
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.2", port), 5)


def test_the_command_serves_a_method_or_a_folder(run, tmp_path, monkeypatch):
    gradio = pytest.importorskip("gradio")
    monkeypatch.setattr(gradio.Blocks, "block_thread", lambda page: page.close())
    write_bundle(bundle_of_run(run / "results", "tiny", "small-box"), tmp_path / "method")
    app = Typer()
    app.command()(viewer)
    of_run = ["--run", "tiny", "--method", "tiny", "--results", str(run / "results")]
    for given, name in ((of_run, "tiny"), (["--model", str(tmp_path / "method")], "small-box")):
        result = CliRunner().invoke(app, [*given, "--no-browser", "--device", "cpu"])
        assert result.exit_code == 0, result.output
        assert re.search(rf"^{name} at http://127\.0\.0\.1:\d+/ \(this machine", result.output)
