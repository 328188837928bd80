"""Guards the page of volumes: the table's numbers, oracles apart, pictures that show the masks."""

import re
from html import unescape

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from page_reader import Page, numbers
from report_page import tables_of, write_page
from volume_studies import METHODS, SHAPE, SPACING, VolumeData, summarise

from ultrarefiner.errors import UltraRefinerError
from ultrarefiner.images import read_rgb
from ultrarefiner.io import read_json, read_rows
from ultrarefiner.report.export import write_tables
from ultrarefiner.report.montage import CUT_SIDE, SLICE_SIDE, Tile, draw_montage
from ultrarefiner.report.panels import COARSE_COLOUR, REFINED_COLOUR, TRUTH_COLOUR, Outline
from ultrarefiner.report.volume_pictures import SLICES, draw_volumes
from ultrarefiner.report.volumes import MODE_WORDS


@pytest.fixture(scope="module")
def shown(report_study, tmp_path_factory):
    """Return (folder, datasets, tables, html) of a report with two datasets of volumes."""
    folder = tmp_path_factory.mktemp("volume_page")
    data = [VolumeData(folder, count=4), VolumeData(folder, "chest", count=4, spacing=None)]
    scores, *tables = summarise(data, folder)
    entries = [entry for one in data for entry in one.pictures()]
    draw_volumes(scores, entries, "unet", folder / "volumes")
    # The rest of the page is that of another study, whose reference the volumes share here.
    for path in tables:
        path.write_text(path.read_text().replace("unet", "transunet"))
    parts = {"volumes": tables, "tables": folder / "tables"}
    write_tables(
        **tables_of(report_study), reference="transunet", volumes=tables, output=folder / "tables"
    )
    html = write_page(report_study, folder, montages=[folder / "volumes"], **parts)
    return folder, data, tables, html


@pytest.fixture(scope="module")
def page(shown):
    return Page(shown[3])


def text_of(html):
    part = re.search(r'<section class="view" id="volumes".*?</section>', html, re.S)[0]
    return " ".join(unescape(re.sub("<[^>]+>", " ", part)).split())


def test_strategies_and_modes_stand_in_one_table_and_oracles_in_another(shown, page):
    names = {name for name in page.tables if name and "volume_" in name}
    kinds = ("volume_scores", "volume_oracles", "volume_modes")
    assert names == {f"{kind}_{data}" for kind in kinds for data in ("breast", "chest")}
    assert names <= {path.stem for path in (shown[0] / "tables").glob("*.csv")}
    rows = page.records("volume_scores_breast")
    assert [row["Method"][0].split()[0] for row in rows] == ["transunet", "plain-box", "memory-box"]
    assert [row["Mode"][1].strip() for row in rows] == [
        MODE_WORDS[mode] for mode in ("slices", "slices", "memory")
    ]
    assert {row["From"][1].strip() for row in rows[1:]} == {"coarse mask"}
    oracles = page.records("volume_oracles_breast")
    assert all("truth" in row["Method"][0] and "oracle" in row["Method"][1] for row in oracles)
    assert '<a href="#volumes">Volumes</a>' in shown[3]


def test_the_numbers_are_those_of_the_table(shown, page):
    wanted = {(r["dataset"], r["method"]): r for r in read_rows(shown[2][0])}
    columns = {"Dice": ("dice", 3), "HD95 (mm)": ("hd95_mm", 2), "NSD (2 mm)": ("nsd_mm", 3)}
    for row in page.records("volume_scores_breast"):
        mine = wanted["breast", row["Method"][0].split()[0]]
        for column, (key, digits) in columns.items():
            ends = [float(mine[f"{key}_{end}"]) for end in ("mean", "low", "high")]
            assert numbers(row[column][1]) == pytest.approx(ends, abs=0.51 * 10**-digits)
        assert numbers(row["Slices/s"][1])[0] == float(mine["slices_per_second"])
        assert numbers(row["n"][1])[0] == float(mine["n"])


def test_voxels_are_shown_only_where_mm_are_not_known(page):
    known, unknown = (page.records(f"volume_scores_{name}")[0] for name in ("breast", "chest"))
    assert "HD95 (mm)" in known and "HD95 (voxels)" not in known
    assert "HD95 (voxels)" in unknown and not any("mm" in column for column in unknown)


def test_an_oracle_is_never_the_bold_one(shown):
    folder = shown[0] / "tables"
    table = pd.read_csv(folder / "volume_scores_breast.csv")
    assert table.loc[table["Dice"].idxmax(), "Method"] == "memory-box"
    assert r"\textbf" in (folder / "volume_scores_breast.tex").read_text()
    oracles = (folder / "volume_oracles_breast.tex").read_text()
    assert r"\textbf" not in oracles and "Oracle" in oracles


def test_modes_are_compared_for_each_prompt(shown, page):
    rows = page.records("volume_modes_breast")
    told = {(row["Method"][0].split()[0], row["Against"][1].strip()) for row in rows}
    assert told == {("memory-box", "plain-box"), ("memory-truth", "plain-truth")}
    wanted = {(r["dataset"], r["method"], r["metric"]): r for r in read_rows(shown[2][1])}
    for row in rows:
        method = row["Method"][0].split()[0]
        for column, metric, digits in (("Δ Dice", "dice", 3), ("Δ HD95 (mm)", "hd95_mm", 2)):
            mean = float(wanted["breast", method, metric]["mean_difference"])
            assert numbers(row[column][1])[0] == pytest.approx(mean, abs=0.51 * 10**-digits)


def test_the_page_says_what_it_shows(shown):
    told = text_of(shown[3])
    assert "the coarse model that prompts not" in told
    assert "missed in all slices counts with Dice 0 and the volume's diagonal" in told
    assert "The spacing is not known, so distances are in voxels" in told
    assert "Volumes of breast, chest are scored whole" in shown[3]


def test_a_page_without_volumes_has_no_such_part(report_page_html):
    assert 'id="volumes"' not in report_page_html
    assert "#volumes" not in report_page_html


def test_each_dataset_has_its_best_median_and_worst_volume(shown):
    folder, _, _, html = shown
    pictures = read_json(folder / "volumes/index.json")["pictures"]
    assert [(p["dataset"], p["rank"]) for p in pictures] == [
        (name, rank) for name in ("breast", "chest") for rank in ("best", "median", "worst")
    ]
    scores = [
        row for row in read_rows(folder / "volume_scores.csv") if row["method"] == "memory-box"
    ]
    for name in ("breast", "chest"):
        dice = {row["volume"]: float(row["dice"]) for row in scores if row["dataset"] == name}
        best, _, worst = [p for p in pictures if p["dataset"] == name]
        assert best["dice"] == max(dice.values()) and worst["dice"] == min(dice.values())
        assert best["dice"] == dice[best["volume"]]
    assert {p["method"] for p in pictures} == {"memory-box"}  # no oracle
    for picture in pictures:
        assert picture["slices"] == [1, 2, 3, 4]  # those with a lesion
        assert picture["caption"] in unescape(html)
    assert "mm" in pictures[0]["caption"] and "spacing not known" in pictures[3]["caption"]


def close(picture, colour, near=70):
    wanted = np.array(to_rgb(colour)) * 255
    return np.abs(picture.astype(int) - wanted).max(axis=2) < near


def test_a_picture_shows_the_image_and_the_outlines_in_their_colours(shown):
    picture = read_rgb(shown[0] / "volumes/breast_worst.png")
    for colour in (TRUTH_COLOUR, COARSE_COLOUR, REFINED_COLOUR):
        assert close(picture, colour).sum() > 100
    gray = (picture.max(axis=2).astype(int) - picture.min(axis=2)) < 6
    assert picture[gray].std() > 20


def test_cuts_have_the_proportions_of_space(tmp_path):
    depth, height, width = SHAPE
    deep, high, wide = SPACING
    truth = np.zeros((depth, width), bool)
    truth[2:4, 10:20] = True
    tiles = [
        Tile("slice", np.full((height, width), 90, np.uint8), (), (height * high, width * wide)),
        Tile(
            "cut",
            np.full((depth, width), 90, np.uint8),
            (Outline(truth, TRUTH_COLOUR),),
            (depth * deep, width * wide),
        ),
    ]
    draw_montage(tmp_path / "a.png", [(tiles[:1], SLICE_SIDE), (tiles[1:], CUT_SIDE)])
    picture = read_rgb(tmp_path / "a.png")
    gray = np.abs(picture.astype(int) - 90).max(axis=2) < 3
    (first, *_, last), columns = np.flatnonzero(gray[:, 5]), np.flatnonzero(gray[40])
    assert columns[-1] + 1 == SLICE_SIDE  # the longer side: 32 columns of 0.8 mm
    rows = np.flatnonzero(gray[: SLICE_SIDE // 2 + 200, 5])
    slices = np.flatnonzero(np.diff(rows) > 1)[0] + 1
    assert slices == round(SLICE_SIDE * height * high / (width * wide))
    cut = gray[first : last + 1][slices + 20 :]
    assert np.any(cut[:, 300:450])
    # The lesion of the cut: two slices of 2 mm, ten columns of 0.8 mm.
    ys, xs = np.nonzero(close(picture, TRUTH_COLOUR))
    scale = CUT_SIDE / (width * wide)
    assert np.ptp(ys) == pytest.approx(2 * deep * scale, abs=5)
    assert np.ptp(xs) == pytest.approx(10 * wide * scale, abs=5)


def test_a_volume_of_many_slices_shows_few_of_them_and_all_of_the_masks(tmp_path):
    data = VolumeData(tmp_path, count=3)
    scores = summarise([data], tmp_path, pairs=[], methods=["unet"])[0]
    draw_volumes(scores, data.pictures(["unet"]), "unet", tmp_path / "out")
    for picture in read_json(tmp_path / "out/index.json")["pictures"]:
        assert len(picture["slices"]) <= SLICES
        assert picture["method"] == picture["reference"] == "unet"
    assert len(list((tmp_path / "out").glob("*.png"))) == 3


def test_masks_that_nobody_scored_are_refused(tmp_path):
    data = VolumeData(tmp_path, count=3)
    scores = summarise([data], tmp_path, pairs=[], methods=["unet"])[0]
    entries = [entry | {"dataset": "other"} for entry in data.pictures(METHODS)]
    with pytest.raises(UltraRefinerError, match="no score of a volume of other"):
        draw_volumes(scores, entries, "unet", tmp_path / "out")
    assert not (tmp_path / "out").exists()
