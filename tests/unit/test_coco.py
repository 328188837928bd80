"""COCO files give the masks that pycocotools gives, and every fault in them is named."""

import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco
from pycocotools.coco import COCO

from ultrarefiner.datasets import find_cases, read_case
from ultrarefiner.datasets.layouts import list_cases
from ultrarefiner.datasets.phantom import write_phantom
from ultrarefiner.datasets.phantoms.coco import encode
from ultrarefiner.datasets.run_lengths import decode_segmentation, segmentation_problem
from ultrarefiner.errors import ConfigError, DatasetError

HEIGHT, WIDTH = 40, 60
CATEGORIES = [
    {"id": 1, "name": "Benign"},
    {"id": 7, "name": "malignant"},
    {"id": 3, "name": "cyst"},
]


def box(left, top, right, bottom):
    """Return the polygon whose pixels are [top, bottom) x [left, right)."""
    return [left, top, right, top, right, bottom, left, bottom]


def pixels(*boxes):
    mask = np.zeros((HEIGHT, WIDTH), bool)
    for left, top, right, bottom in boxes:
        mask[top:bottom, left:right] = True
    return mask


class Folder:
    """An annotation file under way."""

    def __init__(self, root):
        self.root = root
        self.content = {"images": [], "annotations": [], "categories": CATEGORIES}

    def image(self, name, folder="images", **cells):
        path = self.root / folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        number = len(self.content["images"]) + 1
        values = np.random.default_rng(number).integers(0, 256, (HEIGHT, WIDTH)).astype(np.uint8)
        Image.fromarray(values).save(path)
        row = {"id": number, "file_name": name, "height": HEIGHT, "width": WIDTH, **cells}
        self.content["images"].append(row)
        return number

    def annotate(self, image, segmentation, category=1, **cells):
        row = {"image_id": image, "category_id": category, "segmentation": segmentation, **cells}
        self.content["annotations"].append({"id": len(self.content["annotations"]) + 1, **row})

    def save(self, name="annotations.json"):
        (self.root / name).write_text(json.dumps(self.content))

    def cases(self, **options):
        self.save()
        return list_cases("coco", self.root, options=options)

    def problems(self, **options):
        return "\n".join(self.cases(**options).problems)


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path / "mine")


def test_byte_order_marks_and_sizes_with_a_point_are_nothing(folder):
    number = folder.image("a.png", height=float(HEIGHT), width=float(WIDTH))
    folder.annotate(number, [box(10, 5, 30, 20)])
    folder.save()
    table = folder.root / "annotations.json"
    table.write_text(table.read_text(), encoding="utf-8-sig")
    (case,) = find_cases("coco", folder.root)
    assert np.array_equal(read_case(case)[1] > 0, pixels((10, 5, 30, 20)))


@pytest.mark.parametrize("form", ["polygon", "compressed", "runs"])
@pytest.mark.parametrize("boxes", [[(5, 6, 30, 20)], [(0, 0, 9, 9), (40, 30, 60, 40)]])
def test_all_forms_of_a_mask_give_its_pixels(folder, form, boxes):
    number = folder.image("a.png")
    expected = pixels(*boxes)
    segmentation = [box(*one) for one in boxes] if form == "polygon" else encode(expected, form)
    folder.annotate(number, segmentation)
    (case,) = folder.cases().cases
    assert np.array_equal(read_case(case)[1] > 0, expected)


def test_masks_areas_and_boxes_are_those_of_pycocotools(tmp_path):
    write_phantom("coco", tmp_path / "raw", cases=12, size=56, seed=2, odd_cases=True)
    api = COCO(str(tmp_path / "raw" / "annotations.json"))
    forms = set()
    for item in api.anns.values():
        image = api.imgs[item["image_id"]]
        mask = decode_segmentation(item["segmentation"], image["height"], image["width"])
        assert np.array_equal(mask, api.annToMask(item))
        runs = api.annToRLE(item)
        assert coco.area(runs) == mask.sum()
        rows, columns = np.nonzero(mask)
        ends = [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
        assert coco.toBbox(runs).tolist() == ends
        form = item["segmentation"]
        forms.add("polygon" if isinstance(form, list) else type(form["counts"]).__name__)
        if not isinstance(form, list):
            assert item["area"] == mask.sum() and item["bbox"] == ends
    assert forms == {"polygon", "str", "list"}


def test_annotations_of_an_image_are_joined(folder):
    number = folder.image("a.png")
    folder.annotate(number, [box(5, 5, 15, 15)])
    folder.annotate(number, encode(pixels((10, 10, 25, 20)), "runs"), category=7, iscrowd=1)
    listing = folder.cases()
    (case,) = listing.cases
    assert np.array_equal(read_case(case)[1] > 0, pixels((5, 5, 15, 15), (10, 10, 25, 20)))
    assert any("1 annotations have iscrowd: 1; they are lesions" in x for x in listing.warnings)


def test_categories_choose_and_images_without_one_have_no_lesion(folder):
    first, second, third = (folder.image(f"{name}.png") for name in "abc")
    folder.annotate(first, [box(5, 5, 15, 15)])
    folder.annotate(second, [box(5, 5, 15, 15)], category=3)
    folder.annotate(first, [box(30, 5, 40, 15)], category=3)
    folder.save()
    lesions = {"categories": ["Benign", "malignant"]}
    (case,) = find_cases("coco", folder.root, options=lesions)
    assert case.id == "coco__a" and np.array_equal(read_case(case)[1] > 0, pixels((5, 5, 15, 15)))
    kept = find_cases("coco", folder.root, include_empty=True, options=lesions)
    assert [(case.id, case.label) for case in kept] == [
        *(("coco__a", None), ("coco__b", "normal")),
        ("coco__c", "normal"),
    ]
    assert len(find_cases("coco", folder.root)) == 2 and third == 3
    with pytest.raises(
        DatasetError, match=r"no category cancer; options\.categories may name Benign"
    ):
        folder.cases(categories=["cancer"])


def test_labels_and_patients_come_from_categories_and_names(folder):
    for name, category in (("p01_a.png", 1), ("p01_b.png", 7), ("p02_a.png", 7)):
        folder.annotate(folder.image(name), [box(5, 5, 15, 15)], category=category)
    folder.annotate(3, [box(30, 5, 40, 15)], category=1)
    folder.image("p03_a.png")
    options = {"label": "category", "patient": r"^(p\d+)_"}
    listing = folder.cases(**options)
    assert [(case.label, case.patient) for case in listing.cases] == [
        *(("benign", "p01"), ("malignant", "p01"), (None, "p02")),
        ("normal", "p03"),
    ]
    assert any("several categories (benign, malignant)" in line for line in listing.warnings)
    assert "finds no patient in p01_a.png" in folder.problems(patient=r"^(x\d+)_")
    for wrong in (r"p\d+", r"(p)(\d+)", "(p"):
        with pytest.raises(ConfigError, match="patient"):
            folder.cases(patient=wrong)


def test_several_files_are_an_official_division(folder):
    folder.annotate(folder.image("a.png", "left"), [box(5, 5, 15, 15)])
    folder.save("one.json")
    other = Folder(folder.root)
    other.annotate(other.image("a.png", "right"), [box(5, 5, 15, 15)])
    other.save("two.json")
    tables = {"train": "one.json", "val": "two.json"}
    options = {"annotations": tables, "images": {"train": "left", "val": "right"}}
    cases = list_cases("coco", folder.root, options=options).cases
    assert [case.split for case in cases] == ["train", "validation"]
    assert len(find_cases("coco", folder.root, options=options)) == 2


def test_an_image_in_two_parts_is_refused(folder):
    folder.annotate(folder.image("a.png"), [box(5, 5, 15, 15)])
    folder.save("one.json")
    folder.save("two.json")
    options = {"annotations": {"train": "one.json", "test": "two.json"}}
    said = "\n".join(list_cases("coco", folder.root, options=options).problems)
    assert "two.json, images[0]: a.png is listed already as" in said


def test_files_of_one_name_in_two_folders_are_two_cases(folder):
    for name in ("left/a.png", "right/a.png", "right/b.png"):
        folder.annotate(folder.image(name), [box(5, 5, 15, 15)])
    assert [case.id for case in folder.cases().cases] == [
        *("coco__b", "coco__left_a"),
        "coco__right_a",
    ]


@pytest.mark.parametrize(
    ("segmentation", "says"),
    [
        ([], "has no segmentation"),
        (None, "has no segmentation"),
        ([[1, 2, 3, 4]], "at least 3 corners"),
        ([[1, 2, 3, 4, 5]], "at least 3 corners"),
        ([[1, 2, 3, 4, 5, 6, 7]], "at least 3 corners"),
        ([[1, 2, 3, 4, 5, None]], "at least 3 corners"),
        ([[1, 2, 3, 4, 5, float("inf")]], "at least 3 corners"),
        ([1, 2, 3, 4, 5, 6], "at least 3 corners"),
        ({"size": [WIDTH, HEIGHT], "counts": [WIDTH * HEIGHT]}, r"are for size \[60, 40\]"),
        ({"size": [HEIGHT, WIDTH], "counts": [10, 20]}, "do not add up to 40 x 60"),
        ({"size": [HEIGHT, WIDTH], "counts": [-10, 2410]}, "do not add up"),
        ({"size": [HEIGHT, WIDTH], "counts": "PPP"}, "do not add up"),
        ({"size": [HEIGHT, WIDTH], "counts": "\x01"}, "do not add up"),
        ({"size": [HEIGHT, WIDTH], "counts": 7}, "neither a list of polygons nor run lengths"),
        ("polygon", "neither"),
    ],
)
def test_broken_segmentations_are_refused(folder, segmentation, says):
    folder.annotate(folder.image("a.png"), segmentation)
    with pytest.raises(DatasetError, match=rf"annotations\[0\] \(of a\.png\): .*{says}"):
        folder.save()
        find_cases("coco", folder.root)


def test_any_compressed_mask_is_accepted_and_any_cut_one_refused():
    random = np.random.default_rng(0)
    for share in (0.0, 0.02, 0.5, 0.98, 1.0):
        mask = random.random((HEIGHT, WIDTH)) < share
        for source in (mask, np.sort(mask, axis=0), np.sort(mask, axis=None).reshape(mask.shape)):
            packed = encode(source, "compressed")
            assert segmentation_problem(packed, HEIGHT, WIDTH) is None
            assert np.array_equal(decode_segmentation(packed, HEIGHT, WIDTH) > 0, source)
            cut = {**packed, "counts": packed["counts"][:-1]}
            assert segmentation_problem(cut, HEIGHT, WIDTH)


def test_annotations_that_cover_nothing_are_named(folder):
    number = folder.image("a.png")
    folder.annotate(number, [[5, 5, 5, 5, 5, 5]])
    folder.annotate(number, [box(10, 10, 20, 20)])
    listing = folder.cases()
    assert any("1 annotations cover no pixel, in a.png" in line for line in listing.warnings)
    assert np.array_equal(read_case(listing.cases[0])[1] > 0, pixels((10, 10, 20, 20)))


def test_the_image_must_have_the_size_that_was_annotated(folder):
    folder.annotate(folder.image("a.png", height=WIDTH, width=HEIGHT), [box(5, 5, 15, 15)])
    folder.save()
    with pytest.raises(DatasetError, match=r"a\.png: has 40x60 .*images\[0\] says 60x40"):
        find_cases("coco", folder.root)


def test_every_fault_is_listed_at_once(folder):
    folder.annotate(folder.image("good.png"), [box(5, 5, 15, 15)])
    folder.image("gone.png")
    (folder.root / "images" / "gone.png").unlink()
    folder.image("sizeless.png", height=None)
    folder.image("twice.png", id=1)
    folder.image("out.png", file_name="../images/out.png")
    folder.annotate(99, [box(5, 5, 15, 15)])
    folder.annotate([1], [box(5, 5, 15, 15)])
    folder.annotate(1, [box(5, 5, 15, 15)], category=55)
    problems = folder.cases(label="category").problems
    for words in (
        *("gone.png: the image is missing", "images[2]: must have id, file_name, width and height"),
        *("images[3]: the id 1 is there twice", "out.png is not in"),
        *("annotations[1]: no image has the id 99", "annotations[2]: no image has the id None"),
        "annotations[3]: no category has the id 55",
    ):
        assert sum(words in line for line in problems) == 1, words
    assert len(problems) == 7


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"images": {}}', '{"images": [1], "annotations": []}']
)
def test_other_files_are_refused(folder, text):
    folder.image("a.png")
    (folder.root / "annotations.json").write_text(text)
    with pytest.raises(DatasetError, match=r"annotations\.json"):
        list_cases("coco", folder.root)


def test_what_is_not_there_is_named(folder, tmp_path):
    folder.image("a.png")
    with pytest.raises(DatasetError, match=r"annotations\.json does not exist; set options"):
        list_cases("coco", folder.root)
    with pytest.raises(DatasetError, match=r"is no folder; set options\.images"):
        folder.cases(images="pictures")
    with pytest.raises(DatasetError, match="Set the dataset's root"):
        list_cases("coco", tmp_path / "gone")
    with pytest.raises(DatasetError, match="names no folder for 'val'"):
        folder.cases(annotations={"val": "annotations.json"}, images={"train": "images"})
    with pytest.raises(ConfigError, match="annotations"):
        folder.cases(annotations={"fold1": "annotations.json"})


def test_images_that_are_not_listed_are_named(folder):
    folder.annotate(folder.image("a.png"), [box(5, 5, 15, 15)])
    folder.image("b.png")
    folder.content["images"].pop()
    assert [path.name for path in folder.cases().unexpected] == ["b.png"]
