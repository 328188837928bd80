"""Every dataset layout answers the same questions, so a new row is safe to use everywhere."""

import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from tests.prepared_data import prepare
from ultrarefiner.datasets import DATASETS, Case, find_cases, read_case
from ultrarefiner.datasets.base import Listing
from ultrarefiner.datasets.doctor import check_dataset, examine_dataset
from ultrarefiner.datasets.layouts import list_cases
from ultrarefiner.datasets.loader import read_prepared
from ultrarefiner.datasets.phantom import LAYOUTS, MARKER, write_phantom
from ultrarefiner.datasets.reading import load_case
from ultrarefiner.errors import ConfigError, DatasetError
from ultrarefiner.io import file_sha256, read_rows

ROOT = Path(__file__).resolve().parents[2]
# Phantoms to write, and the cases they are: of volumes all slices, with a lesion or without.
PHANTOMS = {"volumes": 5}
SLICES = {"volumes": 12}
# What lies beside images and masks and describes them; no case has it as its file.
TABLES = {".csv", ".json", ".xlsx", ".yaml"}


@pytest.fixture(scope="module", params=sorted(DATASETS))
def layout(request):
    return request.param


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "odd"])
def root(layout, request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(layout) / "raw"
    count = PHANTOMS.get(layout, 16)
    write_phantom(layout, folder, cases=count, size=56, seed=3, odd_cases=request.param)
    return folder


@pytest.fixture(scope="module")
def count(layout):
    return PHANTOMS.get(layout, 16) * SLICES.get(layout, 1)


def test_the_row_is_complete(layout):
    row = DATASETS[layout]
    assert row.title and row.expects and row.citation and row.terms and row.source
    known = {"images", "patients", "lesions", "volumes", "normal", "benign", "malignant"}
    assert set(row.counts) <= known and all(number > 0 for number in row.counts.values())
    if row.counts:
        # Published numbers, so there is a place to get it.
        assert re.match(r"https?://", row.source)
    assert layout in LAYOUTS, "a layout without phantoms cannot be tried without its data"


def test_options_have_defaults_and_a_line_each_and_refuse_unknown_keys(layout, tmp_path):
    row = DATASETS[layout]
    options = row.parse_options({})
    assert (options is None) == (row.options is None)
    if row.options is not None:
        assert all(field.description for field in row.options.model_fields.values())
    with pytest.raises(ConfigError, match=rf"options of layout {layout}: .*colour"):
        list_cases(layout, tmp_path, options={"colour": "red"})


def test_the_layout_and_its_options_are_on_their_page(layout):
    page = (ROOT / "docs" / "reference" / "datasets.md").read_text()
    headings = [set(re.split(r"[ ,]+|and", line)) for line in re.findall(r"^## (.+)$", page, re.M)]
    assert any(layout in words for words in headings)
    assert f"`{layout}`" in page or f"[`{layout}`]" in page
    row = DATASETS[layout]
    for option in row.options.model_fields if row.options else ():
        assert f"`{option}`" in page, option
    for number in row.counts.values():
        assert f"{number:,}" in page, number


def test_cases_have_ids_files_and_sorted_order(layout, root, count):
    cases = find_cases(layout, root)
    assert len(cases) == count
    ids = [case.id for case in cases]
    assert ids == sorted(set(ids))
    assert all(re.fullmatch(rf"{layout}__[a-z0-9]+(_[a-z0-9]+)*", case_id) for case_id in ids)
    for case in cases:
        assert isinstance(case, Case)
        assert case.image.is_file() and case.image.is_relative_to(root)
        assert case.masks and all(path.is_file() for path in case.masks)
        assert case.label is None or case.label == case.label.lower()
        assert case.split in (None, "train", "validation", "test")
    # One file may hold several images; each part of it is one case.
    assert len({(case.image, case.part) for case in cases}) == count
    files = Counter(case.image for case in cases)
    assert all(case.part for case in cases if files[case.image] > 1)
    assert all(hash(case) == hash(case) for case in cases)


def test_pixels_and_labels(layout, root):
    for case in find_cases(layout, root):
        image, label = read_case(case)
        assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3
        assert label.dtype == np.uint8 and label.shape == image.shape[:2]
        assert set(np.unique(label)) == {0, 1} or (case.whole and not label.any())
        assert image.std() > 5


def test_what_is_known_of_the_pixels_is_in_words(layout, root):
    for case in find_cases(layout, root):
        pixels = load_case(case)
        assert len(pixels.modes) >= 2 and all(pixels.modes)
        assert all(isinstance(note, str) and note for note in pixels.notes)
        assert len(pixels.notes) == len(set(pixels.notes))
        assert pixels.spacing is None or (
            len(pixels.spacing) == 2 and all(0.001 < side < 10 for side in pixels.spacing)
        )


def test_every_file_is_accounted_for(layout, root):
    listing = list_cases(layout, root)
    assert isinstance(listing, Listing)
    assert listing.problems == [] and listing.unexpected == []
    used = {path for case in listing.cases for path in (case.image, *case.masks)}
    on_disk = {path for path in root.rglob("*") if path.is_file() and path.name != MARKER}
    assert used <= on_disk
    contents = {file_sha256(path) for path in used}
    for path in sorted(on_disk - used):
        # A table, or a copy of a file that is used.
        assert path.suffix.lower() in TABLES or file_sha256(path) in contents, path


def test_empty_images_come_only_when_wanted(layout, root):
    with_lesion = {case.id for case in find_cases(layout, root)}
    everything = find_cases(layout, root, include_empty=True)
    assert with_lesion <= {case.id for case in everything}
    for case in everything:
        if case.id not in with_lesion:
            assert not read_case(case)[1].any()


def test_the_name_in_the_study_begins_the_ids_and_changes_nothing_else(layout, root):
    own = list_cases(layout, root).cases
    named = list_cases(layout, root, name="clinic").cases
    assert [case.id.replace(layout, "clinic", 1) for case in own] == [case.id for case in named]
    assert [(c.image, c.masks, c.patient, c.label) for c in own] == [
        (c.image, c.masks, c.patient, c.label) for c in named
    ]


def test_folds_are_whole_and_keep_patients(layout, root):
    listing = list_cases(layout, root)
    cases = {case.id: case for case in listing.cases}
    fold_of = {}
    for case, count, fold in listing.folds:
        assert 0 <= fold < count
        patient = cases[case].patient or case
        assert fold_of.setdefault((count, patient), fold) == fold
    assert {count for _, count, _ in listing.folds} <= set(DATASETS[layout].published_folds)
    for count in {count for _, count, _ in listing.folds}:
        assert {case for case, n, _ in listing.folds if n == count} == set(cases)


def test_official_splits_are_whole_and_keep_patients(layout, root):
    cases = list_cases(layout, root).cases
    assert len({case.split is None for case in cases}) == 1
    part_of = {}
    for case in cases:
        if case.split and case.patient:
            assert part_of.setdefault(case.patient, case.split) == case.split


def test_the_doctor_finds_no_errors(layout, root, count, tmp_path):
    report = tmp_path / "report.json"
    check_dataset("study", layout, root, report)
    found = json.loads(report.read_text())
    assert found["errors"] == [] and found["facts"]["cases"] == count
    for what, number in DATASETS[layout].counts.items():
        words = "images with a lesion" if what == "lesions" else what
        assert any(f"{number} {words} expected, " in line for line in found["warnings"]), what


def test_prepared_pixels_are_the_raw_ones(layout, root, tmp_path):
    table = prepare("study", layout, root, tmp_path)
    cases = find_cases(layout, root, name="study")
    rows = list(table.values())
    assert list(table) == [case.id for case in cases]
    assert [(row.patient, row.label, row.split) for row in rows] == [
        (case.patient, case.label, case.split) for case in cases
    ]
    for case in cases:
        for stored, raw in zip(read_prepared(tmp_path, case.id), read_case(case), strict=True):
            assert np.array_equal(stored, raw)
    assert len(read_rows(tmp_path / "published_folds.csv")) == len(list_cases(layout, root).folds)


def test_a_truncated_image_is_an_error_in_every_layout(layout, root):
    case = find_cases(layout, root)[-1]
    data = case.image.read_bytes()
    case.image.write_bytes(data[: len(data) * 3 // 4])
    try:
        with pytest.raises(DatasetError, match=re.escape(case.image.name)):
            find_cases(layout, root)
    finally:
        case.image.write_bytes(data)


@pytest.mark.parametrize("kind", ["image", "mask"])
def test_a_missing_file_is_an_error_in_every_layout(layout, root, kind):
    """The error may name the file that is gone, or the one that is left without it."""
    case = find_cases(layout, root)[0]
    path, partner = case.image, case.masks[0]
    if kind == "mask":
        path, partner = partner, path
    hidden = path.with_name(f".hidden-{path.name}")
    path.rename(hidden)
    try:
        with pytest.raises(DatasetError) as error:
            find_cases(layout, root)
        assert path.name in str(error.value) or partner.name in str(error.value)
        assert examine_dataset(layout, root).errors
    finally:
        hidden.rename(path)


def test_the_order_of_the_folder_changes_nothing(layout, root, tmp_path):
    """File systems list in any order; copies made backwards have another one."""
    files = sorted((p for p in root.rglob("*") if p.is_file()), reverse=True)
    for path in files:
        target = tmp_path / "again" / path.relative_to(root)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    first, again = list_cases(layout, root), list_cases(layout, tmp_path / "again")
    for one, other in zip(first.cases, again.cases, strict=True):
        assert one.id == other.id and one.label == other.label and one.patient == other.patient
        assert one.image.relative_to(root) == other.image.relative_to(tmp_path / "again")
        assert one.part == other.part and one.split == other.split
    assert first.folds == again.folds
