"""Every case with a lesion gets all its points, each scored on what the refiner made of it alone."""

import logging
import math

import numpy as np
import pytest

from tests.sam_fixture import write_tiny_sam
from ultrarefiner.datasets.loader import COLUMNS
from ultrarefiner.errors import ConfigError, UltraRefinerError
from ultrarefiner.evaluation.metrics import dice
from ultrarefiner.evaluation.points import read_points
from ultrarefiner.images import read_mask, read_rgb, write_mask, write_png
from ultrarefiner.io import read_rows, write_rows
from ultrarefiner.prompts.base import Prompt
from ultrarefiner.prompts.geometry import prompt_from_mask
from ultrarefiner.refine import load_refiner
from ultrarefiner.refine.jobs import embed_images
from ultrarefiner.refine.points import POINT_COLUMNS, analyse_points, moved_points

# Centre (column, row) and radius of the truth's disc; "missed" has no coarse mask, "far" one that
# lies beside the lesion, "healthy" no lesion.
SIZE = (70, 90)
TRUTH = {"near": (40, 30, 12), "far": (30, 40, 10), "missed": (60, 35, 14), "healthy": None}
COARSE = {"near": (43, 34, 11), "far": (60, 40, 8), "missed": None, "healthy": (20, 20, 5)}
CASES = [f"demo__{name}" for name in TRUTH]


def disc(place):
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
    if place is None:
        return np.zeros(SIZE, bool)
    return np.hypot(columns - place[0], rows - place[1]) <= place[2]


@pytest.fixture(scope="module")
def study(tmp_path_factory, one_thread):
    """Write images, masks, tables and the embeddings of a tiny SAM; return the folder."""
    folder = tmp_path_factory.mktemp("study")
    for name in TRUTH:
        noise = np.random.default_rng(len(name)).normal(0, 15, (*SIZE, 3))
        gray = np.where(disc(TRUTH[name]), 60, 150)[..., None] + noise
        pixels = np.clip(gray, 0, 255).astype(np.uint8)
        write_png(folder / f"images/demo__{name}.png", pixels)
        write_mask(folder / f"truth/demo__{name}.png", disc(TRUTH[name]))
        write_mask(folder / f"coarse/demo__{name}.png", disc(COARSE[name]))
    columns = ["case", "group", "fold", "role"]
    rows = [dict(zip(columns, (case, case, 0, "test"), strict=True)) for case in CASES]
    rows += [dict(zip(columns, ("other", "other", 0, "train"), strict=True))]
    write_rows(folder / "splits.csv", columns, rows)
    blank = dict.fromkeys(COLUMNS, "")
    facts = {"height": 70, "width": 90, "border": "no", "look_alikes": 0, "appearance": "0f"}
    write_rows(
        folder / "cases.csv",
        COLUMNS,
        [
            blank | facts | {"case": case, "group": f"patient{i // 2}", "label": "benign"}
            for i, case in enumerate(CASES)
        ],
    )
    write_tiny_sam(folder / "tiny.pth", side=256)
    embed_images(
        "sam", str(folder / "tiny.pth"), {}, folder / "images", folder / "splits.csv", "fold0",
        None, None, folder / "shelf", 1.0, folder / "full.csv", "cpu",
    )  # fmt: skip
    return folder


def analyse(study, output, **changes):
    arguments = {
        "refiner": "tiny",
        "family": "sam",
        "weights": str(study / "tiny.pth"),
        "options": {},
        "images": study / "images",
        "truth": study / "truth",
        "masks": study / "coarse",
        "cases": study / "cases.csv",
        "splits": study / "splits.csv",
        "part": "fold0",
        "dataset": "demo",
        "embeddings": study / "full.csv",
        "shelf": study / "shelf",
        "limit_gb": 1.0,
        "sigmas": [2.0, 15.0],
        "draws": 3,
        "seed": 0,
        "seen": "no",
        "output": output,
        "device": "cpu",
    }
    analyse_points(**arguments | changes)
    return output


@pytest.fixture(scope="module")
def table(study, tmp_path_factory):
    return analyse(study, tmp_path_factory.mktemp("points") / "fold0.csv")


def rows_of(table, case, source):
    return [
        row
        for row in read_points(table)
        if (row["case"], row["source"]) == (f"demo__{case}", source)
    ]


def test_every_lesion_has_every_point_and_no_other_image_has_any(table):
    rows = read_points(table)
    assert list(read_rows(table)[0]) == POINT_COLUMNS
    assert len(rows) == 3 * (1 + 1 + 2 * 3)
    for case in ("near", "far", "missed"):
        assert len(rows_of(table, case, "coarse")) == len(rows_of(table, case, "oracle")) == 1
        noise = [(row["sigma"], row["draw"]) for row in rows_of(table, case, "noise")]
        assert noise == [(sigma, draw) for sigma in (2.0, 15.0) for draw in range(3)]
    for row in rows:
        assert row["oracle"] is (row["source"] != "coarse")
        assert (row["dataset"], row["fold"], row["refiner"]) == ("demo", 0, "tiny")
        assert (row["label"], row["seen"]) == ("benign", "no")
        assert row["group"] == ("patient1" if row["case"] == "demo__missed" else "patient0")


def test_points_lie_where_the_masks_say(table):
    diagonal = math.hypot(*SIZE)
    [oracle] = rows_of(table, "near", "oracle")
    assert (oracle["x"], oracle["y"], oracle["distance_px"], oracle["inside"]) == (40, 30, 0, True)
    [near] = rows_of(table, "near", "coarse")
    # Discs of whole pixels are deepest in their centres: 3 columns and 4 rows apart.
    assert (near["x"], near["y"], near["distance_px"], near["inside"]) == (43, 34, 5.0, True)
    assert near["distance_share"] == pytest.approx(5 / diagonal)
    [far] = rows_of(table, "far", "coarse")
    assert (far["distance_px"], far["inside"]) == (30.0, False)


def test_an_empty_coarse_mask_is_a_row_that_counts_against_the_refiner(table):
    [miss] = rows_of(table, "missed", "coarse")
    assert (miss["x"], miss["y"], miss["inside"], miss["dice"]) == (None, None, False, 0.0)
    assert miss["distance_px"] == pytest.approx(math.hypot(*SIZE))
    assert miss["distance_share"] == 1.0


def test_the_score_of_a_point_is_that_of_its_own_prompt(study, table):
    refiner = load_refiner("sam", weights=str(study / "tiny.pth"))
    for case in ("near", "far"):
        image = read_rgb(study / f"images/demo__{case}.png")
        truth = read_mask(study / f"truth/demo__{case}.png")
        embedding = refiner.embed(image).rounded()
        for source, mask in (("coarse", disc(COARSE[case])), ("oracle", truth)):
            wanted = refiner.refine(embedding, prompt_from_mask(mask, "point"))
            [row] = rows_of(table, case, source)
            assert row["dice"] == dice(wanted.mask, truth)
        for row in rows_of(table, case, "noise"):
            prompt = Prompt(points=np.array([[row["x"], row["y"]]]))
            wanted = dice(refiner.refine(embedding, prompt).mask, truth)
            # Decoded beside others, the last digits of the logits may differ.
            assert row["dice"] == pytest.approx(wanted, abs=0.01)
    assert len({row["dice"] for row in read_points(table)}) > 6


def test_a_pixel_reaches_half_a_pixel_to_each_side_of_its_index(table):
    for row in read_points(table):
        if row["x"] is not None:
            truth = disc(TRUTH[row["case"].removeprefix("demo__")])
            columns, rows = np.arange(SIZE[1]), np.arange(SIZE[0])
            column = int(np.argmin(np.abs(columns - row["x"])))
            line = int(np.argmin(np.abs(rows - row["y"])))
            assert row["inside"] == truth[line, column]


def test_errors_depend_on_seed_case_sigma_and_draw_alone(study, table, tmp_path):
    other = analyse(study, tmp_path / "other.csv", sigmas=[15.0, 40.0])
    for case in ("near", "far", "missed"):
        mine = [row for row in rows_of(table, case, "noise") if row["sigma"] == 15.0]
        assert mine == [row for row in rows_of(other, case, "noise") if row["sigma"] == 15.0]
    few, many = (moved_points(np.array([9.0, 9]), 4, n, 7, "a", (40, 40)) for n in (2, 5))
    assert np.array_equal(few, many[:2])
    assert not np.array_equal(many, moved_points(np.array([9.0, 9]), 4, 5, 8, "a", (40, 40)))
    assert not np.array_equal(many, moved_points(np.array([9.0, 9]), 4, 5, 7, "b", (40, 40)))
    assert len(np.unique(many, axis=0)) == 5


def test_errors_are_gaussian_and_stay_in_the_image():
    moved = moved_points(np.array([500.0, 400.0]), 20.0, 3000, 0, "case", (1000, 1000))
    assert np.allclose(moved.mean(axis=0), (500, 400), atol=1.5)
    assert np.allclose(moved.std(axis=0), 20.0, rtol=0.05)
    assert abs(np.corrcoef(moved.T)[0, 1]) < 0.06
    # Of a circular Gaussian 1 - exp(-1/2) = 39.3 % lies within one sigma.
    within = np.hypot(*(moved - (500, 400)).T) < 20.0
    assert within.mean() == pytest.approx(1 - math.exp(-0.5), abs=0.03)
    clipped = moved_points(np.array([0.0, 69.0]), 50.0, 200, 0, "case", SIZE)
    assert (clipped >= 0).all() and (clipped <= (89, 69)).all()


def test_the_shelf_changes_nothing_and_each_image_is_encoded_once(study, table, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    again = analyse(study, tmp_path / "again.csv")
    assert again.read_bytes() == table.read_bytes()
    assert "is not on the shelf" not in caplog.text
    empty = analyse(study, tmp_path / "empty.csv", shelf=tmp_path / "shelf")
    assert empty.read_bytes() == table.read_bytes()
    assert caplog.text.count("is not on the shelf") == 3
    assert "3 coarse points: 1 inside the lesion, 1 missing" in caplog.text
    assert "1 images have no lesion" in caplog.text
    plain = read_points(analyse(study, tmp_path / "plain.csv", embeddings=None, shelf=None))
    assert len(plain) == len(read_points(table))


def test_moved_copies_are_not_decoded_for_an_agreement_nobody_reads(study, table, tmp_path):
    jitter = analyse(study, tmp_path / "jitter.csv", options={"jitter": {"copies": 64}})
    assert jitter.read_bytes() == table.read_bytes()
    single = analyse(study, tmp_path / "single.csv", options={"mask_choice": "single"})
    assert single.read_bytes() != table.read_bytes()


def test_what_cannot_be_analysed_is_named(study, tmp_path):
    output = tmp_path / "points.csv"
    with pytest.raises(ConfigError, match=r"refiner 'cut' .* Remove it from `points.refiners`"):
        analyse(study, output, refiner="cut", family="grabcut", weights=None)
    (tmp_path / "none").mkdir()
    with pytest.raises(UltraRefinerError, match="no mask of demo__far"):
        analyse(study, output, masks=tmp_path / "none")
    with pytest.raises(UltraRefinerError, match="no true mask of demo__far"):
        analyse(study, output, truth=tmp_path / "none")
    for case in CASES:
        write_mask(tmp_path / f"small/{case}.png", np.ones((9, 9), bool))
    with pytest.raises(UltraRefinerError, match=r"mask of demo__far in .*small is \(9, 9\)"):
        analyse(study, output, masks=tmp_path / "small")
    other = write_tiny_sam(tmp_path / "other.pth", seed=1, side=256)
    with pytest.raises(
        UltraRefinerError, match=r"full\.csv was made from another image .* weights"
    ):
        analyse(study, output, weights=str(other))
    rows = read_rows(study / "cases.csv")[1:]
    write_rows(tmp_path / "cases.csv", COLUMNS, rows)
    with pytest.raises(UltraRefinerError, match=r"1 cases of fold0 .* are not in .*: demo__near"):
        analyse(study, output, cases=tmp_path / "cases.csv")
    assert not output.exists()
