"""The doctor finds every planted fault and oddity, names the file, and says what to do."""

import json

import cv2
import numpy as np
import pytest
from PIL import Image

from tests.prepared_data import texture
from ultrarefiner.datasets.doctor import check_dataset, examine_dataset
from ultrarefiner.datasets.findings import count_cases, count_warnings
from ultrarefiner.datasets.layouts import DATASETS, list_cases
from ultrarefiner.datasets.phantom import write_phantom
from ultrarefiner.errors import ConfigError, DatasetError


def lesion(box=(10, 10, 30, 30), shape=(48, 64), value=255):
    pixels = np.zeros(shape, np.uint8)
    pixels[box[1] : box[3], box[0] : box[2]] = value
    return pixels


def write(folder, stem, image, *masks):
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(folder / f"{stem}.png")
    for index, mask in enumerate(masks):
        tail = f"_{index}" if index else ""
        Image.fromarray(mask).save(folder / f"{stem}_mask{tail}.png")


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "busi"
    for number in range(1, 4):
        write(root / "benign", f"benign ({number})", texture(number), lesion())
        write(root / "malignant", f"malignant ({number})", texture(10 + number), lesion())
    write(root / "normal", "normal (1)", texture(20), np.zeros((48, 64), np.uint8))
    return root


def one(lines, *words):
    """Return the only line that has all words."""
    found = [line for line in lines if all(word in line for word in words)]
    assert len(found) == 1, (words, lines)
    return found[0]


def test_a_sound_folder_has_no_errors_and_only_the_count_to_warn_of(root):
    found = examine_dataset("busi", root)
    assert found.errors == []
    (line,) = found.warnings
    assert "780 images expected, 7 found" in line and "437 benign expected, 3 found" in line
    assert "647 images with a lesion expected, 6 found" in line
    assert found.facts["counts"] == {
        "images": 7,
        "lesions": 6,
        "benign": 3,
        "malignant": 3,
        "normal": 1,
    }
    assert found.facts["cases"] == 6 and found.facts["left_out"] == {"normal": 1}
    assert found.facts["height"] == [48, 48] and found.facts["width"] == [64, 64]
    assert "cite" in found.facts["terms"] and "2020" in found.facts["citation"]


def test_include_empty_is_counted(root):
    found = examine_dataset("busi", root, include_empty=True)
    assert found.facts["cases"] == 7 and found.facts["left_out"] == {}


def test_every_error_is_found_and_named(root):
    benign, malignant = root / "benign", root / "malignant"
    (benign / "benign (1)_mask.png").unlink()
    broken = benign / "benign (2).png"
    broken.write_bytes(broken.read_bytes()[:-200])
    (malignant / "malignant (1)_mask.png").write_bytes(b"nothing")
    Image.fromarray(lesion(shape=(64, 48))).save(malignant / "malignant (2)_mask.png")
    Image.fromarray(lesion(value=1)).save(malignant / "malignant (3)_mask.png")
    Image.fromarray(lesion()).save(benign / "benign (8)_mask.png")
    found = examine_dataset("busi", root)
    one(found.errors, "benign (1).png", "missing", "unpack")
    one(found.errors, "benign (2).png", "cannot be decoded", "download")
    one(found.errors, "malignant (1)_mask.png", "cannot be decoded", "download")
    one(found.errors, "malignant (2)_mask.png", "64x48", "restore")
    one(
        found.errors, "malignant (3)_mask.png", "largest gray value is 1,", "save the lesion as 255"
    )
    one(found.errors, "benign (8)_mask.png", "its image benign (8).png is missing")
    assert len(found.errors) == 6
    assert not [line for line in found.warnings if "blank" in line]
    assert found.facts["left_out"] == {"missing mask": 1, "normal": 1}
    assert found.facts["unusable"] == 4


def test_oddities_are_warnings(root):
    benign, malignant = root / "benign", root / "malignant"
    write(benign, "benign (4)", texture(4), np.zeros((48, 64), np.uint8))
    write(benign, "benign (5)", texture(5), lesion(), lesion((40, 5, 50, 15)))
    write(benign, "benign (6)", texture(1), lesion())
    write(malignant, "malignant (4)", texture(2), lesion())
    write(benign, "benign (7)", cv2.add(texture(3), 3), lesion())
    write(malignant, "malignant (5)", texture(15), lesion(shape=(96, 128)))
    write(malignant, "malignant (6)", texture(16), lesion((0, 0, 64, 47)))
    write(root / "normal", "normal (2)", texture(21), lesion())
    Image.fromarray(texture(17).astype(np.uint16) * 257).save(benign / "benign (3).png")
    (root / "benign" / "notes.txt").write_text("")
    (root / "extra").mkdir()
    found = examine_dataset("busi", root)
    assert found.errors == []
    one(found.warnings, "benign (4).png", "blank", "include_empty")
    one(found.warnings, "malignant (6).png", "inverted")
    one(found.warnings, "normal (2).png", "has a lesion")
    one(found.warnings, "1 masks have another size", "malignant (5).png")
    one(found.warnings, "16 bits", "benign (3).png")
    one(found.warnings, "benign/notes.txt", "extra", "not used")
    one(found.warnings, "benign (2).png = malignant (4).png", "classes benign and malignant")
    one(found.warnings, "1 sets of images have equal pixels", "benign (1).png = benign (6).png")
    facts = found.facts
    assert facts["exact_duplicates"] == [
        ["busi__benign_1", "busi__benign_6"],
        ["busi__benign_2", "busi__malignant_4"],
    ]
    assert facts["several_masks"] == 1 and facts["masks_resized"] == 1
    assert facts["image_modes"] == {"I;16": 1, "L": 14} and facts["mask_modes"] == {"L": 16}
    assert facts["left_out"] == {"blank mask": 1, "normal": 2} and facts["unexpected_files"] == 2


def test_shallow_16_bit_images_are_named_with_their_largest_value(root):
    benign = root / "benign"
    twelve = texture(1).astype(np.uint16) * 16
    twelve[0, 0] = 4095
    Image.fromarray(twelve).save(benign / "benign (1).png")
    Image.fromarray(texture(2).astype(np.uint16) * 257).save(benign / "benign (2).png")
    Image.fromarray(texture(3).astype(np.uint16)).save(benign / "benign (3).png")
    warnings = examine_dataset("busi", root).warnings
    one(warnings, "2 images have 16 bits", "divided by 257", "benign (1).png, benign (2).png")
    line = one(warnings, "become dark", "benign (1).png (largest value 4095)", "scale", "65535")
    assert line.startswith("1 of") and "(2)" not in line and "(3)" not in line


def test_lesions_smaller_than_a_pixel_are_told_not_called_blank(root):
    pixels = np.zeros((144, 192), np.uint8)
    pixels[70, 70] = 255
    Image.fromarray(pixels).save(root / "benign" / "benign (1)_mask.png")
    found = examine_dataset("busi", root)
    one(found.warnings, "1 masks have lesions smaller than a pixel", "benign (1).png", "stray")
    assert not [line for line in found.warnings if "blank" in line]
    assert found.facts["cases"] == 6


def test_equal_pixels_with_other_masks_are_told(root):
    write(root / "benign", "benign (6)", texture(1), lesion((5, 5, 20, 20)))
    found = examine_dataset("busi", root)
    one(found.warnings, "benign (1).png = benign (6).png", "different masks", "decide")
    assert found.facts["near_duplicates"] == {"sets": 0, "images": 0}


def test_near_duplicates_are_counted(root):
    brighter = cv2.add(texture(3), 2)
    write(root / "benign", "benign (7)", brighter, lesion())
    found = examine_dataset("busi", root)
    assert found.facts["near_duplicates"] == {"sets": 1, "images": 2}
    one(found.warnings, "look alike", "benign (3).png", "benign (7).png")


def test_folds_that_part_a_patient_are_told(tmp_path):
    write_phantom("busbra", tmp_path / "b", cases=12, size=48, seed=0, odd_cases=False)
    before = examine_dataset("busbra", tmp_path / "b").warnings
    assert not [line for line in before if "published folds part" in line]
    path = tmp_path / "b" / "5-fold-cv.csv"
    rows = path.read_text().splitlines()
    ids = [row.split(",")[0] for row in rows]
    moved = ids.index("bus_0002-r")
    fold = int(rows[moved][-1])
    rows[moved] = rows[moved][:-1] + str(fold % 5 + 1)
    path.write_text("\n".join(rows) + "\n")
    one(examine_dataset("busbra", tmp_path / "b").warnings, "0002 (5 folds)", "folds: made")


def test_a_wrong_root_is_the_one_error(tmp_path):
    found = examine_dataset("busbra", tmp_path)
    assert len(found.errors) == 1 and "Images/ and Masks/" in found.errors[0]


def test_nothing_with_a_lesion_is_an_error(tmp_path):
    write(tmp_path / "benign", "benign (1)", texture(1), np.zeros((48, 64), np.uint8))
    one(examine_dataset("busi", tmp_path).errors, "no image with a lesion", "include_empty")
    assert examine_dataset("busi", tmp_path, include_empty=True).errors == []


def test_the_report_and_the_error_list_all_errors_and_warnings_are_logged(root, tmp_path, caplog):
    report = tmp_path / "check" / "report.json"
    check_dataset("clinic", "busi", root, report)
    text = json.loads(report.read_text(), parse_constant=pytest.fail)
    assert list(text) == ["dataset", "layout", "root", "errors", "warnings", "facts"]
    assert (text["dataset"], text["layout"], text["root"]) == ("clinic", "busi", str(root))
    assert text["errors"] == []
    assert [record.getMessage() for record in caplog.records] == text["warnings"] != []
    (root / "benign" / "benign (1)_mask.png").unlink()
    (root / "benign" / "benign (2)_mask.png").unlink()
    with pytest.raises(DatasetError) as error:
        check_dataset("clinic", "busi", root, report)
    again = json.loads(report.read_text())
    assert again["errors"] == error.value.problems and len(again["errors"]) == 2
    # The message is what a job logs; Snakemake deletes the report of a job that fails.
    assert all(line in str(error.value) for line in again["errors"])


def test_burned_in_marks_and_borders_are_facts_with_one_line_each(root):
    clean = examine_dataset("busi", root)
    assert clean.facts["overlays"] == {"none": 7} and clean.facts["borders"] == 0
    marked = cv2.resize(texture(30) // 2, (320, 240))
    cv2.drawMarker(marked, (150, 120), 255, cv2.MARKER_CROSS, 15, 1)
    bordered = cv2.resize(texture(31) // 2 + 40, (320, 240))
    bordered[:, :32] = 0
    mask = lesion(shape=(240, 320))
    write(root / "benign", "benign (8)", marked, mask)
    write(root / "benign", "benign (9)", bordered, mask)
    found = examine_dataset("busi", root)
    assert found.facts["overlays"] == {"none": 8, "calipers": 1}
    assert found.facts["borders"] == 1 and found.facts["largest_border"] == 0.1
    one(found.warnings, "1 images have calipers or text", "benign (8).png (calipers)")
    one(found.warnings, "1 images have black borders", "benign (9).png")


def test_known_and_unknown_spacing_are_counted(tmp_path, root):
    assert examine_dataset("busi", root).facts["spacing"] == {"known": 0, "unknown": 7}
    assert examine_dataset("busi", root).facts["spacing_mm"] is None
    write_phantom("manifest", tmp_path / "m", cases=8, size=64, seed=0, odd_cases=True)
    facts = examine_dataset("manifest", tmp_path / "m").facts
    known, unknown = facts["spacing"]["known"], facts["spacing"]["unknown"]
    assert known > 0 and known + unknown == facts["counts"]["images"]
    assert 0 < facts["spacing_mm"][0] <= facts["spacing_mm"][1] < 1
    lines = examine_dataset("manifest", tmp_path / "m").warnings
    assert bool(unknown) == any("do not tell the size of their pixels" in line for line in lines)


def test_the_official_division_and_options_come_through(tmp_path):
    write_phantom("abus", tmp_path / "a", cases=6, size=64, seed=0, odd_cases=False)
    facts = examine_dataset("abus", tmp_path / "a").facts
    assert set(facts["official_splits"]) == {"train", "validation", "test"}
    more = examine_dataset("abus", tmp_path / "a", options={"neighbors": 1}).facts
    assert more["counts"]["images"] > facts["counts"]["images"]
    with pytest.raises(ConfigError, match="takes no options"):
        examine_dataset("stu", tmp_path / "a", options={"neighbors": 1})


def test_neighbouring_slices_are_not_counted_as_further_volumes(tmp_path):
    write_phantom("abus", tmp_path / "a", cases=6, size=64, seed=0, odd_cases=False)
    few, many = (list_cases("abus", tmp_path / "a", None, {"neighbors": n}) for n in (0, 1))
    assert len(many.cases) > len(few.cases)
    counts = count_cases(few, len(few.cases))
    published = {name: counts[name] for name in ("images", "benign", "malignant")}
    for listing in (few, many):
        here = count_cases(listing, len(listing.cases))
        assert count_warnings(listing, here, published) == []
        assert "1 images expected, 6 found" in count_warnings(listing, here, {"images": 1})[0]


@pytest.mark.parametrize(
    ("layout", "published"),
    [
        ("busi", {"images": 780, "lesions": 647}),
        ("busbra", {"images": 1875, "patients": 1064}),
        ("bus", {"images": 163}),
        ("udiat", {"images": 163}),
        ("bus_uclm", {"images": 683, "lesions": 264}),
    ],
)
def test_published_numbers_are_checked(tmp_path, layout, published):
    assert published.items() <= DATASETS[layout].counts.items()
    write_phantom(layout, tmp_path / "d", cases=5, size=64, seed=0, odd_cases=False)
    line = one(examine_dataset(layout, tmp_path / "d").warnings, "expected")
    assert f"{published['images']} images expected" in line


def test_a_layout_of_own_files_has_no_numbers_to_keep_to(tmp_path):
    write_phantom("pairs", tmp_path / "p", cases=5, size=64, seed=0, odd_cases=False)
    found = examine_dataset("pairs", tmp_path / "p")
    assert not [line for line in found.warnings if "expected" in line]
    assert found.facts["published_counts"] == {}


def test_real_stu_has_no_errors(stu_root):
    found = examine_dataset("stu", stu_root)
    assert found.errors == []
    assert found.facts["masks_resized"] == 36
    assert found.facts["counts"] == {"images": 42, "lesions": 42}
    assert found.facts["overlays"] == {"none": 42}
    one(found.warnings, "36 masks have another size")
    # Its scan ends in pure black over the whole width.
    one(found.warnings, "black borders: Test_Image_25.png")
    assert len(found.warnings) == 2
