"""Guards: the sheet of failures shows every kind on real cases, says what could not be, and is reproducible."""

import cv2
import numpy as np
import pytest

from tests.prepared_data import prepare
from ultrarefiner.datasets.loader import read_cases, read_prepared
from ultrarefiner.datasets.phantom import write_phantom
from ultrarefiner.errors import DatasetError
from ultrarefiner.report import contact_sheet
from ultrarefiner.report.contact_sheet import draw_failures
from ultrarefiner.training.corrupt import CORRUPTIONS


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    root = tmp_path_factory.mktemp("study")
    write_phantom("busi", root / "raw", cases=7, size=72, seed=2, odd_cases=False)
    prepare("busi", "busi", root / "raw", root / "busi/prepared", include_empty=True)
    return root / "busi/prepared"


@pytest.fixture
def drawn(monkeypatch):
    """Record every panel that is drawn: its title, kind and truth."""
    panels = []
    original = contact_sheet._draw_panel

    def record(axes, image, truth, made):
        original(axes, image, truth, made)
        panels.append((axes.get_title(loc="left"), truth, made))

    monkeypatch.setattr(contact_sheet, "_draw_panel", record)
    return panels


def test_every_kind_is_on_every_case(prepared, tmp_path, drawn):
    draw_failures(prepared, {}, 1, tmp_path / "sheet.png", columns=3)
    assert len(drawn) == 3 * len(CORRUPTIONS)
    kinds = [made.kind for _, _, made in drawn]
    assert kinds == 3 * list(CORRUPTIONS)
    areas = [int(truth.sum()) for _, truth, _ in drawn[:: len(CORRUPTIONS)]]
    lesions = [
        int(read_prepared(prepared, row.case)[1].sum())
        for row in read_cases(prepared / "cases.csv")
    ]
    assert 0 < areas[0] < areas[1] < areas[2] == max(lesions)
    assert areas[0] == min(area for area in lesions if area)
    for title, _, made in drawn:
        assert title.startswith(f"Dice {made.dice:.2f}")
        assert ("could not" in title) == (not made.reached)
    pixels = cv2.imread(str(tmp_path / "sheet.png"))
    assert pixels.shape[0] > 2000 and 500 < pixels.shape[1] < 900


def test_a_sheet_is_the_same_each_time_and_another_for_another_seed(prepared, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        draw_failures(prepared, {"soft": 1.0}, seed, tmp_path / f"{name}.png", columns=1)
    first, again, other = ((tmp_path / f"{name}.png").read_bytes() for name in "abc")
    assert first == again != other


def test_cases_may_be_chosen_and_few_are_not_repeated(prepared, tmp_path, drawn):
    cases = [
        row.case
        for row in read_cases(prepared / "cases.csv")
        if read_prepared(prepared, row.case)[1].any()
    ][:2]
    draw_failures([prepared], {}, 1, tmp_path / "sheet.png", cases=cases)
    assert len(drawn) == 2 * len(CORRUPTIONS)
    shown = {truth.tobytes() for _, truth, _ in drawn}
    assert shown == {(read_prepared(prepared, case)[1] > 0).tobytes() for case in cases}


def test_what_could_not_be_is_marked(prepared, tmp_path, drawn, monkeypatch):
    image = np.full((40, 60, 3), 90, np.uint8)
    everything = np.ones((40, 60), bool)
    monkeypatch.setattr(contact_sheet, "_choose", lambda *_: [("x__full", image, everything)])
    draw_failures(prepared, {}, 1, tmp_path / "sheet.png")
    titles = {made.kind: title for title, _, made in drawn}
    assert "could not" in titles["giant_over_segmentation"]
    assert "could not" not in titles["under_segmentation"]


def test_without_a_lesion_there_is_nothing_to_show(prepared, tmp_path):
    normal = [
        row.case
        for row in read_cases(prepared / "cases.csv")
        if not read_prepared(prepared, row.case)[1].any()
    ]
    with pytest.raises(DatasetError, match="has a lesion"):
        draw_failures(prepared, {}, 1, tmp_path / "sheet.png", cases=normal)
    assert not list(tmp_path.iterdir())
