"""Every dataset layout answers the same questions, so a new row is safe to use everywhere."""

import json
import re

import numpy as np
import pytest

from ultrarefiner.datasets import DATASETS, Case, find_cases, read_case
from ultrarefiner.datasets.base import Listing
from ultrarefiner.datasets.doctor import check_dataset, examine_dataset
from ultrarefiner.datasets.layouts import list_cases
from ultrarefiner.datasets.loader import read_cases, read_prepared
from ultrarefiner.datasets.phantom import write_phantom
from ultrarefiner.datasets.prepare import prepare_dataset
from ultrarefiner.errors import DatasetError
from ultrarefiner.io import read_rows

CASES = 16


@pytest.fixture(scope="module", params=sorted(DATASETS))
def layout(request):
    return request.param


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "odd"])
def root(layout, request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(layout) / "raw"
    write_phantom(layout, folder, cases=CASES, size=56, seed=3, odd_cases=request.param)
    return folder


def test_the_row_is_complete(layout):
    row = DATASETS[layout]
    assert row.title and row.expects and row.citation and row.terms
    assert re.match(r"https?://", row.source)
    assert row.counts["images"] > 0 and all(number > 0 for number in row.counts.values())


def test_cases_have_ids_files_and_sorted_order(layout, root):
    cases = find_cases(layout, root)
    assert len(cases) == CASES
    ids = [case.id for case in cases]
    assert ids == sorted(set(ids))
    assert all(re.fullmatch(rf"{layout}__[a-z0-9]+(_[a-z0-9]+)*", case_id) for case_id in ids)
    for case in cases:
        assert isinstance(case, Case)
        assert case.image.is_file() and case.image.is_relative_to(root)
        assert case.masks and all(path.is_file() for path in case.masks)
        assert case.label is None or case.label == case.label.lower()
    files = [path for case in cases for path in (case.image, *case.masks)]
    assert len(files) == len(set(files))
    assert all(hash(case) == hash(case) for case in cases)


def test_pixels_and_labels(layout, root):
    for case in find_cases(layout, root):
        image, label = read_case(case)
        assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3
        assert label.dtype == np.uint8 and label.shape == image.shape[:2]
        assert set(np.unique(label)) == {0, 1}
        assert image.std() > 5


def test_every_file_is_accounted_for(layout, root):
    listing = list_cases(layout, root)
    assert isinstance(listing, Listing)
    assert listing.problems == [] and listing.unexpected == []
    used = {path for case in listing.cases for path in (case.image, *case.masks)}
    on_disk = {path for path in root.rglob("*.*") if path.suffix.lower() == ".png"}
    assert used == on_disk


def test_empty_images_come_only_when_wanted(layout, root):
    with_lesion = {case.id for case in find_cases(layout, root)}
    everything = find_cases(layout, root, include_empty=True)
    assert with_lesion <= {case.id for case in everything}
    for case in everything:
        if case.id not in with_lesion:
            assert not read_case(case)[1].any()


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


def test_the_doctor_finds_no_errors(layout, root, tmp_path):
    report = tmp_path / "report.json"
    check_dataset("study", layout, root, report)
    found = json.loads(report.read_text())
    assert found["errors"] == [] and found["facts"]["cases"] == CASES
    expected = DATASETS[layout].counts["images"]
    assert any(f"{expected} images expected, " in line for line in found["warnings"])


def test_prepared_pixels_are_the_raw_ones(layout, root, tmp_path):
    prepare_dataset(
        name="study",
        layout=layout,
        root=str(root),
        include_empty=False,
        cases=str(tmp_path / "cases.csv"),
        published_folds=str(tmp_path / "published_folds.csv"),
        excluded=str(tmp_path / "excluded.csv"),
        npz=str(tmp_path / "npz"),
        images=str(tmp_path / "images"),
        masks=str(tmp_path / "masks"),
    )
    cases = find_cases(layout, root, name="study")
    assert [row.case for row in read_cases(tmp_path / "cases.csv")] == [case.id for case in cases]
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


def test_a_missing_mask_is_an_error_in_every_layout(layout, root):
    case = find_cases(layout, root)[0]
    hidden = case.masks[0].with_name(f".hidden-{case.masks[0].name}")
    case.masks[0].rename(hidden)
    try:
        with pytest.raises(DatasetError, match=re.escape(case.image.name)):
            find_cases(layout, root)
        assert examine_dataset(layout, root).errors
    finally:
        hidden.rename(case.masks[0])
