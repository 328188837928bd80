"""Guards the export of crops: any COCO tool reads it, nothing is cut off, and no fold leaks."""

import json
import logging
import shutil

import numpy as np
import pytest
from pycocotools import mask as coco
from pycocotools.coco import COCO

from tests.training_fixture import make_study, write_splits
from ultrarefiner import images
from ultrarefiner.config import CropConfig
from ultrarefiner.datasets import find_cases, read_case
from ultrarefiner.datasets.fits import read_fit
from ultrarefiner.datasets.layouts import list_cases
from ultrarefiner.datasets.loader import read_prepared
from ultrarefiner.errors import DatasetError, LeakError, SplitError
from ultrarefiner.io import read_json, read_rows, write_json, write_rows
from ultrarefiner.prompts.crop import crop_window
from ultrarefiner.prompts.geometry import tight_box
from ultrarefiner.training.box_errors import jittered
from ultrarefiner.training.crop_items import read_crops
from ultrarefiner.training.crops import COLUMNS, crop_dataset

ROWS = [
    [-0.1, -0.1, 0.1, 0.1],
    [0.25, 0.0, 0.25, 0.0],
    [0.1, 0.2, -0.3, -0.1],
    [-0.6, -0.5, 0.4, 0.7],
    [-0.05, 0.3, 0.15, 0.35],
]
"""Errors of boxes: larger, shifted, smaller, much larger, mixed."""

SMALL = CropConfig(expand=0.2, min_size=8)
COCO_KEYS = {"id", "file_name", "width", "height", "license"}


def write_errors(path, rows=ROWS, fold=0, **more):
    errors = {f"toy__v{i}": row for i, row in enumerate(rows)}
    about = {"model": "tiny", "dataset": "toy", "fold": fold, "selection": "validation",
             "weights_sha256": "0" * 64, "trained_on": ["toy__0"], "selected_on": ["toy__5"],
             "cases": list(errors), "errors": errors, "misses": [], "without_lesion": []}  # fmt: skip
    write_json(path, about | more)
    return path


def export(study, folder, name="crops", fit="fold0", crop=SMALL, copies=3, seed=1, errors=None):
    """Export the crops of a study; return their folder."""
    if errors is None:
        errors = [write_errors(folder / "box_errors.json")]
    output = folder / name
    crop_dataset([study[0]], study[1], fit, errors, crop, copies, seed, output)
    return output


def put_label(prepared, case, label):
    path = prepared / "npz" / f"{case}.npz"
    arrays = dict(np.load(path))
    np.savez_compressed(path, **{**arrays, "label": label.astype(np.uint8)})


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Return a study with a lesion one pixel wide, one of two parts, one at the border, a huge one."""
    folder = tmp_path_factory.mktemp("crop_study")
    prepared, splits, roles = make_study(folder)
    thin, parts, border, huge = (
        np.zeros(read_prepared(prepared, f"toy__{i}")[1].shape, bool) for i in range(4)
    )
    thin[10:31, 22] = True
    parts[8:14, 10:20] = parts[30:41, 33:38] = True
    border[-9:, -12:] = True
    huge[1:, 1:-1] = True
    for number, label in enumerate((thin, parts, border, huge)):
        put_label(prepared, f"toy__{number}", label)
    return prepared, splits, roles


@pytest.fixture(scope="module")
def folder(study, tmp_path_factory):
    """Return a folder of crops. Nobody changes it."""
    return export(study, tmp_path_factory.mktemp("crops"))


def rows_of(folder):
    """Return crops.csv with numbers as numbers, the four of a box together."""
    table = []
    for row in read_rows(folder / "crops.csv"):
        assert list(row) == COLUMNS
        four = {
            name: tuple(kind(row[f"{name}_{edge}"]) for edge in ("x0", "y0", "x1", "y1"))
            for name, kind in (("window", int), ("box", int), ("error", float))
        }
        table.append({"case": row["case"], "copy": int(row["copy"]), "role": row["role"],
                      "share": float(row["lesion_share"]), **four})  # fmt: skip
    return table


@pytest.mark.parametrize("role", ["train", "validation"])
def test_pycocotools_reads_our_masks(study, folder, role):
    api = COCO(str(folder / "annotations" / f"{role}.json"))
    assert api.loadCats(api.getCatIds())[0]["name"] == "lesion"
    items = {(item.case, item.copy): item for item in read_crops(folder, role)}
    assert len(items) == len(api.getImgIds()) == 3 * len(study[2][role])
    for image in api.loadImgs(api.getImgIds()):
        assert set(image) >= COCO_KEYS
        (annotation,) = api.loadAnns(api.getAnnIds(imgIds=image["id"]))
        x0, y0, x1, y1 = image["crop_window"]
        height, width = y1 - y0, x1 - x0
        assert (image["height"], image["width"]) == (height, width)
        whole, label = read_prepared(study[0], image["case"])
        # Cut by hand: padding is black and no lesion.
        wide = np.pad(label.astype(bool), 300)[300 + y0 : 300 + y1, 300 + x0 : 300 + x1]
        shown = np.pad(whole, ((300, 300), (300, 300), (0, 0)))
        shown = shown[300 + y0 : 300 + y1, 300 + x0 : 300 + x1]
        assert np.array_equal(api.annToMask(annotation), wide)
        assert np.array_equal(images.read_rgb(folder / "images" / image["file_name"]), shown)
        item = items[image["case"], image["copy"]]
        assert item.mask.dtype == bool and np.array_equal(item.mask, wide)
        assert np.array_equal(item.read_image(), shown)
        left, top, right, bottom = tight_box(wide)
        assert annotation["bbox"] == [left, top, right - left, bottom - top]
        runs = api.annToRLE(annotation)
        assert coco.toBbox(runs).tolist() == annotation["bbox"]
        assert coco.area(runs) == annotation["area"] == wide.sum()
        assert type(annotation["area"]) is int
        assert annotation["category_id"] == 1 and annotation["iscrowd"] == 0
        assert isinstance(annotation["segmentation"]["counts"], str)
    results = [
        {"image_id": a["image_id"], "category_id": 1, "segmentation": a["segmentation"], "score": 1}
        for a in api.anns.values()
    ]
    again = api.loadRes(results)
    assert {a["area"] for a in again.anns.values()} == {a["area"] for a in api.anns.values()}


def test_files_are_strict_coco_with_ids_unique_across_both(folder):
    found = {"images": [], "annotations": []}
    for role in ("train", "validation"):
        content = json.loads((folder / "annotations" / f"{role}.json").read_text())
        assert set(content) == {"info", "licenses", "images", "annotations", "categories"}
        assert content["info"]["box_errors"][0]["weights_sha256"] == "0" * 64
        assert content["info"]["crop"] == SMALL.model_dump(mode="json")
        for name, rows in found.items():
            rows += content[name]
        assert {a["image_id"] for a in content["annotations"]} <= {
            i["id"] for i in content["images"]
        }
    for rows in found.values():
        assert sorted(row["id"] for row in rows) == list(range(1, len(rows) + 1))
    names = {image["file_name"] for image in found["images"]}
    assert names == {path.name for path in (folder / "images").iterdir()}
    assert len(names) == len(found["images"])
    # No path of the machine, so that the folder may be moved.
    assert str(folder) not in (folder / "annotations" / "train.json").read_text()


def test_the_export_is_a_dataset_that_this_project_reads(study, folder):
    options = {
        "annotations": {"train": "annotations/train.json", "val": "annotations/validation.json"},
        "images": "images",
        "patient": r"(.+)-\d+\.png",
    }
    listing = list_cases("coco", folder, options=options)
    assert not listing.problems and not listing.unexpected
    cases = find_cases("coco", folder, options=options)
    assert len(cases) == 3 * (len(study[2]["train"]) + len(study[2]["validation"]))
    assert {case.patient for case in cases} == {*study[2]["train"], *study[2]["validation"]}
    assert {case.split for case in cases} == {"train", "validation"}
    by_file = {item.path.name: item for role in ("train", "validation")
               for item in read_crops(folder, role)}  # fmt: skip
    for case in cases[:4]:
        assert np.array_equal(read_case(case)[1] > 0, by_file[case.image.name].mask)


def test_roles_are_the_folds_and_nothing_reported_is_exported(study, folder):
    for role in ("train", "validation"):
        assert sorted({item.case for item in read_crops(folder, role)}) == study[2][role]
    assert not {row["case"] for row in rows_of(folder)} & set(study[2]["test"])


def test_crops_are_cut_around_the_jittered_box_and_prompted_with_it(study, folder):
    items = {(i.case, i.copy): i for role in ("train", "validation")
             for i in read_crops(folder, role)}  # fmt: skip
    table = rows_of(folder)
    assert [(row["case"], row["copy"]) for row in table] == list(items)
    for row in table:
        label = read_prepared(study[0], row["case"])[1].astype(bool)
        height, width = label.shape
        assert list(row["error"]) in ROWS
        assert row["box"] == jittered(tight_box(label), row["error"], label.shape)
        window = crop_window(row["box"], label.shape, SMALL)
        assert row["window"] == (window or (0, 0, width, height))
        x0, y0, x1, y1 = row["window"]
        assert x0 <= row["box"][0] and y0 <= row["box"][1]
        assert row["box"][2] <= x1 and row["box"][3] <= y1
        item = items[row["case"], row["copy"]]
        assert item.window == row["window"]
        assert item.box == tuple(np.subtract(row["box"], (x0, y0, x0, y0)))
        assert row["share"] == pytest.approx(item.mask.sum() / label.sum(), abs=1e-6)
    assert any(row["share"] < 1 for row in table), "as when the model is applied"
    assert any(row["share"] == 1 for row in table)


def test_thin_lesions_stay_and_windows_as_large_as_the_image_are_not_dropped(study, folder):
    items = read_crops(folder, "train")
    thin = [item for item in items if item.case == "toy__0"]
    assert len(thin) == 3 and all(item.mask.any(axis=0).sum() == 1 for item in thin)
    content = read_json(folder / "annotations" / "train.json")
    ids = {image["id"] for image in content["images"] if image["case"] == "toy__0"}
    assert {a["bbox"][2] for a in content["annotations"] if a["image_id"] in ids} == {1}
    height, width = read_prepared(study[0], "toy__3")[1].shape
    huge = [item for item in items if item.case == "toy__3"]
    assert len(huge) == 3 and any(item.window == (0, 0, width, height) for item in huge)
    # Two lesions of one image are one annotation.
    parts = [item for item in items if item.case == "toy__1" and item.mask.sum() == 115]
    assert parts


def test_padding_beyond_the_image_holds_no_lesion(study, tmp_path):
    crop = CropConfig(expand=0.0, min_size=8, aspect=6.0)
    for item in read_crops(export(study, tmp_path, crop=crop), "train"):
        height, width = read_prepared(study[0], item.case)[1].shape
        x0, y0, x1, y1 = item.window
        inside = np.zeros(item.image_hw, bool)
        inside[max(-y0, 0) : height - y0, max(-x0, 0) : width - x0] = True
        assert not item.mask[~inside].any() and not item.read_image()[~inside].any()
        if item.window != (0, 0, width, height):
            assert abs((x1 - x0) / (y1 - y0) - 6) < 0.1


def test_measured_errors_come_back_in_distribution(study, tmp_path):
    table = rows_of(export(study, tmp_path, copies=60))
    found = [list(row["error"]) for row in table]
    counts = [found.count(row) for row in ROWS]
    assert sum(counts) == len(table) == 60 * 7, "whole rows only"
    assert min(counts) > 0.12 * len(table) and max(counts) < 0.28 * len(table)
    # Validation and training crops err alike, and no case has errors of its own.
    for case in {row["case"] for row in table}:
        mine = [list(row["error"]) for row in table if row["case"] == case]
        assert {ROWS.index(row) for row in mine} == set(range(len(ROWS)))


def test_the_seed_the_case_and_the_copy_decide_alone(study, folder, tmp_path):
    def files(place):
        return {str(path.relative_to(place)): path.read_bytes()
                for path in place.rglob("*") if path.is_file()}  # fmt: skip

    assert files(export(study, tmp_path, "again")) == files(folder)
    other = rows_of(export(study, tmp_path, "other", seed=2))
    assert other != rows_of(folder)
    fewer = export(study, tmp_path, "fewer", copies=1)
    assert rows_of(fewer) == [row for row in rows_of(folder) if row["copy"] == 0]
    # A case that changes its role keeps its crops.
    roles = {"train": study[2]["train"][1:], "validation": study[2]["train"][:1]}
    write_splits(tmp_path / "moved.csv", roles | {"test": study[2]["test"]})
    moved = rows_of(export((study[0], tmp_path / "moved.csv"), tmp_path, "moved"))
    first = {(row["case"], row["copy"]): row["box"] for row in rows_of(folder)}
    assert all(row["box"] == first[row["case"], row["copy"]] for row in moved)


def test_a_box_that_misses_the_lesion_gives_an_image_without_annotation(study, tmp_path, caplog):
    far = write_errors(tmp_path / "far.json", [[-9.0, -9.0, -9.0, -9.0]])
    with caplog.at_level(logging.INFO):
        made = export(study, tmp_path, errors=[far], copies=2)
    content = read_json(made / "annotations" / "train.json")
    missed = {i["id"] for i in content["images"]} - {a["image_id"] for a in content["annotations"]}
    items = read_crops(made, "train")
    assert len(missed) == sum(not item.mask.any() for item in items) >= 4
    assert len(items) == 10
    total = sum(row["share"] == 0 for row in rows_of(made))
    assert f"14 crops, {total} of them miss the lesion" in caplog.text
    COCO(str(made / "annotations" / "train.json"))


def test_cases_without_a_lesion_are_left_out_and_counted(tmp_path, caplog):
    prepared, splits, roles = make_study(tmp_path)
    put_label(prepared, "toy__1", np.zeros(read_prepared(prepared, "toy__1")[1].shape))
    with caplog.at_level(logging.INFO):
        made = export((prepared, splits), tmp_path)
    assert "1 cases without a lesion are left out" in caplog.text
    assert {item.case for item in read_crops(made, "train")} == set(roles["train"]) - {"toy__1"}
    for case in roles["validation"]:
        put_label(prepared, case, np.zeros(read_prepared(prepared, case)[1].shape))
    with pytest.raises(DatasetError, match="no validation case of fold0 has a lesion"):
        export((prepared, splits), tmp_path, "none")
    assert not (tmp_path / "none").exists()


def three_folds(study, tmp_path):
    """Write splits of three folds over the study's cases, two of them held out."""
    cases, rows = [f"toy__{i}" for i in range(10)], []
    for fold in range(3):
        for i, case in enumerate(cases):
            place = (i - 2 * fold) % 8
            role = "test" if place < 2 else "validation" if place < 4 else "train"
            role = "holdout" if i >= 8 else role
            rows.append({"case": case, "group": case, "fold": fold, "role": role})
    write_rows(tmp_path / "splits.csv", ["case", "group", "fold", "role"], rows)
    return study[0], tmp_path / "splits.csv"


def test_all_folds_together_train_on_all_but_the_first_folds_validation(study, tmp_path):
    many = three_folds(study, tmp_path)
    made = export(many, tmp_path, fit="all")
    assert sorted({i.case for i in read_crops(made, "validation")}) == ["toy__2", "toy__3"]
    trained = sorted({item.case for item in read_crops(made, "train")})
    assert trained == [f"toy__{i}" for i in (0, 1, 4, 5, 6, 7)]
    one = export(many, tmp_path, "one", fit="fold1", errors=[write_errors(tmp_path / "e.json")])
    assert {item.case for item in read_crops(one, "validation")} == {"toy__4", "toy__5"}
    with pytest.raises(SplitError, match="no fold 3"):
        read_fit(many[1], "fold3")
    with pytest.raises(SplitError, match="no fit"):
        read_fit(many[1], "fold")


@pytest.mark.parametrize("key", ["cases", "trained_on", "selected_on"])
def test_errors_that_depend_on_what_is_reported_are_refused(study, tmp_path, key):
    good = write_errors(tmp_path / "good.json")
    leak = write_errors(tmp_path / "leak.json", **{key: ["toy__4", study[2]["test"][0]]})
    with pytest.raises(LeakError, match=f"1 cases.*{study[2]['test'][0]}.*fold0 only"):
        export(study, tmp_path, errors=[good, leak])
    # The one model of all folds reports on none of them, but on what is held out.
    many = three_folds(study, tmp_path)
    export(many, tmp_path, fit="all", errors=[write_errors(leak, **{key: ["toy__4"]})])
    with pytest.raises(LeakError, match="toy__9"):
        export(many, tmp_path, fit="all", errors=[write_errors(leak, **{key: ["toy__9"]})])


def test_protocol_seed_may_measure_where_it_selects(study, tmp_path):
    write_splits(tmp_path / "splits.csv", study[2], protocol="seed")
    case = study[2]["test"][0]
    errors = write_errors(tmp_path / "e.json", cases=[case], selection="reported fold")
    made = export((study[0], tmp_path / "splits.csv"), tmp_path, errors=[errors])
    assert {item.case for item in read_crops(made, "validation")} == set(study[2]["test"])


def _twice(rows):
    rows.append(dict(rows[0]))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda content: _twice(content["images"]), "the id 1 is in images twice"),
        (lambda content: _twice(content["annotations"]), "the id 1 is in annotations twice"),
        (lambda content: content["annotations"][1].update(image_id=1), "image_id 1 is in anno"),
        (lambda content: content["annotations"][0].update(image_id=99), "has no image 99"),
        (lambda content: content["images"][0].update(width=7), "run lengths are for size"),
        (lambda content: content["images"][0].pop("prompt_box"), r"images\[0\] lacks prompt_box"),
        (lambda content: content["annotations"][0]["segmentation"].update(counts="0"), "add up"),
        (lambda content: content.pop("annotations"), "no list of annotations"),
        (lambda content: content["images"][0].update(file_name="gone.png"), "crop is missing"),
    ],
)
def test_a_damaged_export_is_told_apart(folder, tmp_path, change, told):
    shutil.copytree(folder, tmp_path / "crops")
    path = tmp_path / "crops" / "annotations" / "train.json"
    content = read_json(path)
    change(content)
    write_json(path, content)
    with pytest.raises(DatasetError, match=told):
        read_crops(tmp_path / "crops", "train")
    assert read_crops(tmp_path / "crops", "validation")


def test_an_absent_export_or_a_picture_of_another_size_is_told(folder, tmp_path):
    with pytest.raises(DatasetError, match=r"no train crops: .*train\.json"):
        read_crops(tmp_path, "train")
    shutil.copytree(folder, tmp_path / "crops")
    item = read_crops(tmp_path / "crops", "train")[0]
    images.write_png(item.path, np.zeros((5, 6, 3), np.uint8))
    with pytest.raises(DatasetError, match=r"has \(5, 6\) pixels"):
        item.read_image()
