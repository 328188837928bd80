"""Guards the gallery: contours lie on the masks' borders, the right cases are shown, in words too."""

import cv2
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb

from ultrarefiner.errors import UltraRefinerError
from ultrarefiner.evaluation.subgroups import size_of
from ultrarefiner.images import read_rgb
from ultrarefiner.io import read_json, write_json
from ultrarefiner.report.failures import describe_failure, failed_cases, outcome_of
from ultrarefiner.report.overlays import describe_prompt, draw_overlays, rank_cases
from ultrarefiner.report.panels import (
    BOX_COLOUR,
    COARSE_COLOUR,
    REFINED_COLOUR,
    TRUTH_COLOUR,
    WINDOW_COLOUR,
    Outline,
    Panel,
    draw_panels,
)
from ultrarefiner.report.tables import main_rows, read_scores


@pytest.fixture(scope="module")
def study(report_study):
    return report_study


@pytest.fixture(scope="module")
def gallery(study, tmp_path_factory):
    folder = tmp_path_factory.mktemp("out") / "overlays"
    draw_overlays(study["scores"], study["entries"], "transunet", 2, 3, folder)
    return folder


def coloured(picture, place, colour, near=60):
    """Return (x, y) of the pixels of a panel whose colour is close to ``colour``, from its corner."""
    left, top, width, height = place
    panel = picture[top : top + height, left : left + width].astype(int)
    wanted = np.array(to_rgb(colour)) * 255
    rows, columns = np.nonzero(np.abs(panel - wanted).max(axis=2) < near)
    return np.stack([columns, rows], axis=1)


def border_distance(mask, points, scale):
    """Return how far picture pixels are from the edges of a mask's pixels, in picture pixels."""
    # Pixel x of the image covers [x - 0.5, x + 0.5]: blown up it is a block, whose rim is the edge.
    # The image ends at the mask's rim, too, where the mask meets it.
    large = np.kron(np.pad(mask, 1), np.ones((scale, scale))) > 0
    inside = cv2.distanceTransform(large.astype(np.uint8), cv2.DIST_L2, 5)
    outside = cv2.distanceTransform((~large).astype(np.uint8), cv2.DIST_L2, 5)
    return np.maximum(inside, outside)[points[:, 1] + scale, points[:, 0] + scale]


@pytest.mark.parametrize(
    "box", [(20, 10, 60, 30), (0, 0, 25, 40), (70, 30, 90, 60)], ids=["middle", "corner", "end"]
)
def test_outline_runs_along_the_border_of_the_mask(tmp_path, box):
    x0, y0, x1, y1 = box
    mask = np.zeros((60, 90), bool)
    mask[y0:y1, x0:x1] = True
    image = np.full((60, 90, 3), 90, np.uint8)
    panels = [Panel("one", "white"), Panel("two", "white", (Outline(mask, TRUTH_COLOUR),))]
    place = draw_panels(tmp_path / "a.png", image, panels)["panels"][1]
    assert place[2:] == [540, 360]  # six times the image
    points = coloured(read_rgb(tmp_path / "a.png"), place, TRUTH_COLOUR)
    distance = border_distance(mask, points, 6)
    # Half the line's width, its soft rim, and corners cut by up to half a pixel of the image.
    assert distance.max() <= 6 / 2 + 2
    # Half of the line that runs along the image's edge is outside; the rest is still seen.
    low, high = points.min(axis=0), points.max(axis=0)
    assert np.abs(low - [6 * x0, 6 * y0]).max() <= 2
    assert np.abs(high - [6 * x1 - 1, 6 * y1 - 1]).max() <= 2


def test_box_prompt_ends_where_half_open_boxes_end(tmp_path):
    mask = np.zeros((60, 90), bool)
    mask[10:30, 20:60] = True
    record = {"box": [20, 10, 60, 30], "points": None, "labels": None, "empty": False}
    panels = [Panel("box", "white", (), record)]
    image = np.full((60, 90, 3), 90, np.uint8)
    place = draw_panels(tmp_path / "a.png", image, panels)["panels"][0]
    points = coloured(read_rgb(tmp_path / "a.png"), place, BOX_COLOUR)
    distance = border_distance(mask, points, 6)
    assert distance.max() <= 3  # corners reach further than sides
    assert np.abs(points.max(axis=0) - [6 * 60 - 1, 6 * 30 - 1]).max() <= 2


def test_point_prompt_is_centred_on_its_pixel(tmp_path):
    record = {"box": None, "points": [[40, 20]], "labels": [1], "empty": False}
    image = np.full((60, 90, 3), 90, np.uint8)
    place = draw_panels(tmp_path / "a.png", image, [Panel("p", "white", (), record)])["panels"][0]
    points = coloured(read_rgb(tmp_path / "a.png"), place, "#ff3b30", near=80)
    middle = points[:, 0].mean()
    assert abs(middle - (40.5 * 6 - 0.5)) <= 1


def test_window_components_and_negative_points_are_drawn_where_they_are(tmp_path):
    record = {
        "box": [20, 20, 30, 30],
        "points": [[25, 25], [31, 18]],
        "labels": [1, 0],
        "image_size": [60, 90],
        "window": [10, -8, 70, 52],
        "others": [{"box": [50, 40, 60, 46], "points": [[55, 43]], "labels": [1]}],
    }
    image = np.full((60, 90, 3), 90, np.uint8)
    place = draw_panels(tmp_path / "a.png", image, [Panel("p", "white", (), record)])["panels"][0]
    picture = read_rgb(tmp_path / "a.png")
    boxes = coloured(picture, place, BOX_COLOUR)
    for x0, y0, x1, y1 in ([20, 20, 30, 30], [50, 40, 60, 46]):
        for x, y in ([x0, y0], [x1, y0], [x0, y1], [x1, y1]):
            assert np.abs(boxes - [6 * x, 6 * y]).max(axis=1).min() <= 3
    window = coloured(picture, place, WINDOW_COLOUR, near=40)
    sides = window[(window[:, 1] > 60) & (window[:, 1] < 90)]  # above the prompts
    assert sides[:, 0].min() == pytest.approx(6 * 10, abs=2)
    assert sides[:, 0].max() == pytest.approx(6 * 70, abs=2)
    assert window[:, 1].max() == pytest.approx(6 * 52, abs=2)
    assert window[:, 1].min() <= 2, "what lies beyond the image is cut at its border"
    middle = {
        label: picture[place[1] + round(6 * (y + 0.5)), place[0] + round(6 * (x + 0.5))]
        for label, x, y in (("lesion", 25, 25), ("beside", 31, 18), ("other", 55, 43))
    }
    assert np.array_equal(middle["lesion"], middle["other"])
    assert middle["lesion"][0] > 200 > 100 > middle["lesion"][2], "red"
    assert middle["beside"].min() > 200, "white"


def test_each_panel_shows_its_own_mask(study, gallery):
    pictures = read_json(gallery / "index.json")["pictures"]
    best = next(p for p in pictures if p["dataset"] == "busi" and p["rank"] == "best")
    picture = read_rgb(gallery / best["file"])
    entry = next(
        e
        for e in study["entries"]
        if (e["dataset"], e["method"], e["fold"]) == ("busi", best["method"], best["fold"])
    )
    scale = best["panels"][0][2] / 128
    for number, (colour, key) in enumerate(
        [(TRUTH_COLOUR, "truth"), (COARSE_COLOUR, "coarse"), (REFINED_COLOUR, "masks")]
    ):
        mask = read_rgb(entry[key] / f"{best['case']}.png")[..., 0] > 0
        points = coloured(picture, best["panels"][number], colour)
        rows, columns = np.nonzero(mask)
        low = (np.array([columns.min(), rows.min()])) * scale
        high = (np.array([columns.max(), rows.max()]) + 1) * scale
        assert np.abs(points.min(axis=0) - low).max() <= 0.5 * scale + 2, key
        assert np.abs(points.max(axis=0) - high).max() <= 0.5 * scale + 2, key


def test_index_lists_ranked_cases_with_captions(study, gallery):
    pictures = read_json(gallery / "index.json")["pictures"]
    assert [p["rank"] for p in pictures if p["dataset"] == "busi"] == [
        *("best", "best", "median", "median", "worst", "worst")
    ]
    table = pd.read_csv(study["scores"])
    table = table[table["evaluation"].eq("folds") | table["member"].eq("mean")]
    table = table[table["evaluation"].ne("holdout")]
    scores = table.set_index(["dataset", "method", "case"])["dice"]
    for item in pictures:
        at = "@busi" if item["dataset"] == "stu" else ""
        coarse = f"transunet{at}"
        assert item["method"] in {f"sam-both{at}", f"grabcut-mask{at}"}
        assert (gallery / item["file"]).is_file()
        before = scores[item["dataset"], coarse, item["case"]]
        after = scores[item["dataset"], item["method"], item["case"]]
        assert item["dice"] == after
        told = f"Dice {before:.3f} ({coarse}) → {after:.3f} ({item['method']})"
        assert told in item["caption"] and item["case"] in item["caption"]
        who = "ensemble mean" if item["dataset"] == "stu" else f"fold {item['fold']}"
        assert who in item["caption"]
        # SAM's weights saw busi, so it does not lead there; of stu it is not known.
        assert item["dataset"] != "busi" or item["method"] == "grabcut-mask"
        assert ("not known" in item["caption"]) == (item["dataset"] == "stu")
    worst = next(p for p in pictures if p["dataset"] == "busi" and p["rank"] == "worst")
    assert worst["dice"] == 0.0
    assert "no prompt, for the coarse mask is empty" in worst["caption"]


def test_same_input_gives_the_same_pictures(study, gallery, tmp_path):
    draw_overlays(study["scores"], study["entries"][::-1], "transunet", 2, 3, tmp_path / "again")
    for path in gallery.iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes()


def test_without_refined_methods_the_coarse_one_is_shown(study, tmp_path):
    table = pd.read_csv(study["scores"], dtype=str, keep_default_na=False)
    kept = table["method"].str.partition("@")[0].isin(["transunet", "sam-oracle_box"])
    table[kept].to_csv(tmp_path / "scores.csv", index=False)
    draw_overlays(tmp_path / "scores.csv", study["entries"], "transunet", 1, 0, tmp_path / "out")
    pictures = read_json(tmp_path / "out/index.json")["pictures"]
    assert len(pictures) == 9
    assert {item["method"] for item in pictures} == {"transunet", "transunet@busi"}
    assert all(len(item["panels"]) == 2 for item in pictures)


@pytest.mark.parametrize(
    ("total", "expected"),
    [
        (1, ["best 1.0"]),
        (2, ["best 1.0", "worst 0.5"]),
        (3, ["best 1.0", "median 0.6", "worst 0.3"]),
        (7, ["best 1.0", "best 0.8", "median 0.7", "median 0.5", "worst 0.1", "worst 0.2"]),
    ],
)
def test_no_case_is_shown_twice(total, expected):
    dice = [1 - i / total for i in range(total)]
    cases = [f"case{i}" for i in range(total)]
    # An image without a lesion scores 1 for an empty mask; it is no case to look at.
    rows = pd.DataFrame({"case": [*cases, "normal"], "dice": [*dice, 1.0]})
    rows["empty_truth"] = rows["case"].eq("normal")
    rows = rows.sample(frac=1.0, random_state=0)
    picked = rank_cases(rows, 5)
    assert len({row["case"] for _, _, row in picked}) == len(picked)
    shown = [f"{rank} {int(10 * row['dice'] + 1e-9) / 10}" for rank, _, row in picked]
    assert shown == expected
    assert "normal" not in {row["case"] for _, _, row in picked}


def test_prompts_are_told_in_words():
    record = {"box": [1, 2, 3, 4], "points": [[1, 2]], "labels": [1], "mask": None, "empty": False}
    assert describe_prompt(record) == "prompt: box and point"
    mask = {"box": None, "points": None, "labels": None, "mask": "a.png", "empty": False}
    assert describe_prompt(mask) == "prompt: the coarse mask itself"
    assert "the full image" in describe_prompt({**record, "empty": True})
    several = {**record, "points": [[1, 2]] * 3, "labels": [1, 1, 0], "others": [{}, {}]}
    several |= {"window": [-2, 0, 98, 64]}
    assert describe_prompt(several) == (
        "prompt: box, 2 points and a negative point for each of 3 components, in a crop of "
        "100 × 64 pixels"
    )
    assert describe_prompt(None) == ""


def test_failures_are_the_worst_cases_and_every_miss(study, gallery):
    index = read_json(gallery / "index.json")
    scores = read_scores(study["scores"], "transunet")
    for dataset in ("busi", "busbra", "stu"):
        mine = [item for item in index["failures"] if item["dataset"] == dataset]
        method = next(p["method"] for p in index["pictures"] if p["dataset"] == dataset)
        rows = main_rows(scores, dataset)
        rows = rows[rows["method"].eq(method)].sort_values(["dice", "case"])
        assert [item["case"] for item in mine] == list(rows["case"][:3])
        assert mine[0]["outcome"] == "missed" and mine[1]["outcome"] == ""
        for item, (_, row) in zip(mine, rows.iterrows(), strict=False):
            assert item["scores"][method.partition("@")[0]]["dice"] == row["dice"]
            assert item["scores"]["sam-oracle_box"]["oracle"] is True
            assert item["size"] == size_of(item["area_share"])
            assert (gallery / item["file"]).is_file()


def test_misses_and_false_alarms_are_shown_beyond_the_count():
    rows = pd.DataFrame(
        {
            "case": ["a", "b", "c", "d", "e", "f"],
            "dice": [0.0, 0.0, 0.2, 0.9, 0.0, 1.0],
            "empty_truth": [False, False, False, False, True, True],
            "empty_prediction": [True, True, False, False, False, True],
        }
    )
    assert [row["case"] for row in failed_cases(rows, 1)] == ["a", "b", "e"]
    assert [outcome_of(row) for row in failed_cases(rows, 1)] == ["missed"] * 2 + ["false alarm"]
    assert [row["case"] for row in failed_cases(rows, 3)] == ["a", "b", "e", "c"]
    assert list(failed_cases(rows, 0)) == []


def test_a_false_alarm_has_no_dice():
    row = {"dataset": "busi", "case": "a", "label": "normal", "method": "sam", "member": "single"}
    row |= {"fold": 0, "dice": 0.0, "hd95_px": 160.0, "empty_truth": True, "area_share": 0.0}
    row |= {"empty_prediction": False, "overlay": "none", "border": "no", "oracle": False}
    rows = pd.DataFrame([row | {"seen": "no"}])
    told = describe_failure(rows.iloc[0], rows, "transunet")
    assert (told["outcome"], told["caption"]) == ("false alarm", "a · normal · (sam) · false alarm")
    assert told["scores"]["sam"]["dice"] is None and told["scores"]["sam"]["hd95"] is None


def test_a_failure_shows_truth_coarse_and_refined_outlines(study, gallery):
    failures = read_json(gallery / "index.json")["failures"]
    item = next(f for f in failures if f["dataset"] == "busi" and not f["outcome"])
    picture = read_rgb(gallery / item["file"])
    entry = next(
        e
        for e in study["entries"]
        if (e["dataset"], e["method"]) == ("busi", item["method"])
        and (e["masks"] / f"{item['case']}.png").is_file()
    )
    scale = item["panels"][0][2] / 128
    for colour, key in ((TRUTH_COLOUR, "truth"), (REFINED_COLOUR, "masks")):
        rows, _ = np.nonzero(read_rgb(entry[key] / f"{item['case']}.png")[..., 0] > 0)
        points = coloured(picture, item["panels"][0], colour)
        assert abs(points[:, 1].min() - rows.min() * scale) <= 0.5 * scale + 2, key
        assert abs(points[:, 1].max() - (rows.max() + 1) * scale) <= 0.5 * scale + 2, key


@pytest.mark.parametrize("missing", ["entry", "dataset", "mask", "prompt", "size"])
def test_refuses_what_is_missing_by_name(study, tmp_path, missing):
    entries = [dict(entry) for entry in study["entries"]]
    words = {"mask": "cannot read .*busbra__", "prompt": "has no prompt for", "size": "its image"}
    if missing == "entry":
        entries = [e for e in entries if (e["method"], e["fold"]) != ("sam-both", 1)]
        words["entry"] = r"no folder is known for the masks of sam-both \(fold 1\) on busbra"
    if missing == "dataset":
        entries = [entry for entry in entries if entry["dataset"] != "stu"]
        words["dataset"] = "no folder is known for the masks of any method on stu"
    for entry in entries:
        if missing == "mask":
            entry["masks"] = tmp_path / "nowhere"
        elif missing == "prompt" and entry["prompts"]:
            write_json(tmp_path / "prompts.json", {"cases": {}})
            entry["prompts"] = tmp_path / "prompts.json"
        elif missing == "size":
            entry["masks"] = tmp_path / "small"
    if missing == "size":
        (tmp_path / "small").mkdir()
        table = pd.read_csv(study["scores"])
        for case in table["case"]:
            cv2.imwrite(str(tmp_path / "small" / f"{case}.png"), np.zeros((5, 5), np.uint8))
    with pytest.raises(UltraRefinerError, match=words[missing]):
        draw_overlays(study["scores"], entries, "transunet", 1, 1, tmp_path / "out")
    assert not (tmp_path / "out").exists()
