"""Guards that a curation file does what it says, to the cases it names, and nothing unnoticed."""

import numpy as np
import pytest
from PIL import Image

from ultrarefiner.datasets.curation import decide, read_curation
from ultrarefiner.datasets.doctor import check_dataset, examine_dataset
from ultrarefiner.datasets.layouts import list_cases
from ultrarefiner.datasets.loader import read_cases
from ultrarefiner.datasets.prepare import prepare_dataset
from ultrarefiner.errors import ConfigError, DatasetError
from ultrarefiner.io import read_rows


@pytest.fixture
def root(tmp_path):
    """A BUSI folder of three benign, two malignant and one normal image."""
    root = tmp_path / "busi"
    mask = np.zeros((48, 64), np.uint8)
    mask[10:30, 10:30] = 255
    for label, count in (("benign", 3), ("malignant", 2), ("normal", 1)):
        (root / label).mkdir(parents=True)
        for number in range(1, count + 1):
            seed = number + 10 * len(label)
            noise = np.random.default_rng(seed).integers(0, 256, (48, 64), np.uint8)
            Image.fromarray(noise).save(root / label / f"{label} ({number}).png")
            blank = mask * (label != "normal")
            Image.fromarray(blank).save(root / label / f"{label} ({number})_mask.png")
    return root


@pytest.fixture
def write(tmp_path):
    def write_curation(text):
        path = tmp_path / "curation.yaml"
        path.write_text(text)
        return path

    return write_curation


def prepare(root, output, curation):
    folders = [output / part for part in ("npz", "images", "masks")]
    tables = [output / part for part in ("cases.csv", "folds.csv", "excluded.csv")]
    prepare_dataset("clinic", "busi", root, False, *tables, *folders, curation=curation)
    return {row.case: row for row in read_cases(tables[0])}


GOOD = """
exclude:
  - {case: benign (2), reason: the same lesion as benign (1)}
relabel:
  - {case: clinic__malignant_1, label: benign, reason: biopsy}
"""


def test_what_is_excluded_needs_no_mask(root, write, tmp_path):
    for number in (2, 3):
        (root / "benign" / f"benign ({number})_mask.png").unlink()
    curation = write("exclude: [{case: benign (2), reason: no mask}]")
    (line,) = examine_dataset("busi", root, curation=curation).errors
    assert "benign (3).png: its mask" in line
    with pytest.raises(DatasetError, match="1 to mend"):
        prepare(root, tmp_path / "out", curation)
    curation = write(
        "exclude: [{case: benign (2), reason: no mask}, {case: benign (3), reason: x}]"
    )
    assert examine_dataset("busi", root, curation=curation).errors == []
    assert len(prepare(root, tmp_path / "out", curation)) == 3


def test_decisions_come_through_to_the_prepared_dataset(root, write, tmp_path):
    before = prepare(root, tmp_path / "whole", None)
    after = prepare(root, tmp_path / "curated", write(GOOD))
    assert set(before) - set(after) == {"clinic__benign_2"}
    assert read_rows(tmp_path / "curated" / "excluded.csv") == [
        {
            "case": "clinic__benign_2",
            "image": "benign/benign (2).png",
            "reason": "curation: the same lesion as benign (1)",
        },
        {"case": "clinic__normal_1", "image": "normal/normal (1).png", "reason": "normal"},
    ]
    changed = {case: row for case, row in after.items() if row != before[case]}
    assert set(changed) == {"clinic__malignant_1"}
    row = changed["clinic__malignant_1"]
    assert row.label == "benign" and row.note == "relabelled from malignant: biopsy"
    old = before["clinic__malignant_1"]
    assert {**vars(row), "label": old.label, "note": old.note} == vars(old)
    for part in ("npz", "images", "masks"):
        left = {path.stem for path in (tmp_path / "curated" / part).iterdir()}
        assert left == set(after)


def test_an_excluded_image_may_be_unreadable(root, write, tmp_path):
    (root / "benign" / "benign (2).png").write_bytes(b"broken")
    with pytest.raises(DatasetError, match=r"benign \(2\)"):
        prepare(root, tmp_path / "out", None)
    assert "clinic__benign_2" not in prepare(root, tmp_path / "out", write(GOOD))
    found = examine_dataset("busi", root, name="clinic", curation=write(GOOD))
    assert found.errors == [] and found.facts["unusable"] == 0


def test_the_doctor_tells_what_a_curation_changes(root, write):
    found = examine_dataset("busi", root, name="clinic", curation=write(GOOD))
    assert found.facts["curation"] == {
        "excluded": {"clinic__benign_2": "the same lesion as benign (1)"},
        "relabelled": {"clinic__malignant_1": "relabelled from malignant: biopsy"},
    }
    (line,) = [line for line in found.warnings if "curation.yaml" in line]
    assert "leaves out 1: clinic__benign_2" in line
    assert "relabels 1: clinic__malignant_1" in line
    assert found.facts["cases"] == 4
    # Published numbers are of the whole dataset.
    assert found.facts["counts"]["images"] == 6 and found.facts["counts"]["lesions"] == 5
    plain = examine_dataset("busi", root, name="clinic")
    assert plain.facts["curation"] == {"excluded": {}, "relabelled": {}}
    assert not [line for line in plain.warnings if "curation" in line]


@pytest.mark.parametrize("name", ["benign (2)", "BENIGN 2", "benign_2", "clinic__benign_2"])
def test_a_case_goes_by_its_raw_name_or_its_id(root, write, name):
    path = write(f"exclude: [{{case: '{name}', reason: twice}}]")
    cases = list_cases("busi", root, "clinic").cases
    assert decide(path, cases).excluded == {"clinic__benign_2": "twice"}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("exclude: [{case: benign (9), reason: x}]", ["no case 'benign (9)'", "clinic__benign_"]),
        ("exclude: [{case: something, reason: x}]", ["no case 'something'", "clinic__benign_1"]),
        (
            "exclude: [{case: benign (1), reason: x}]\n"
            "relabel: [{case: clinic__benign_1, label: malignant, reason: y}]",
            ["clinic__benign_1 is listed 2 times (exclude, relabel)"],
        ),
        (
            "exclude: [{case: benign (1), reason: x}, {case: benign 1, reason: y}]",
            ["clinic__benign_1 is listed 2 times (exclude, exclude)"],
        ),
        ("relabel: [{case: benign (1), label: benin, reason: x}]", ["'benin'", "benign, malig"]),
        ("relabel: [{case: benign (1), label: benign, reason: x}]", ["is benign already"]),
        ("relabel: [{case: benign (1), label: normal, reason: x}]", ["blank mask"]),
        ("relabel: [{case: normal (1), label: benign, reason: x}]", ["without a lesion"]),
    ],
)
def test_decisions_that_do_not_fit_the_dataset_are_errors(root, write, tmp_path, text, says):
    path = write(text)
    with pytest.raises(DatasetError) as error:
        prepare(root, tmp_path / "out", path)
    (line,) = error.value.problems
    assert all(words in line for words in [*says, str(path)]), line
    assert examine_dataset("busi", root, name="clinic", curation=path).errors == [line]
    with pytest.raises(DatasetError):
        check_dataset("clinic", "busi", root, tmp_path / "report.json", curation=path)


def test_all_unknown_cases_are_listed_at_once(root, write):
    path = write("exclude: [{case: benign (8), reason: x}, {case: malignant (9), reason: y}]")
    problems = decide(path, list_cases("busi", root, "clinic").cases).problems
    assert len(problems) == 2 and "malignant_" in problems[1]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("exclud: []", "exclud"),
        ("exclude: [{case: a, reason: ''}]", "a reason"),
        ("exclude: [{case: a, reason: '  - '}]", "a reason"),
        ("exclude: [{case: a}]", "reason"),
        ("exclude: [{reason: a}]", "case"),
        ("exclude: [{case: 12, reason: a}]", "quotes"),
        ("exclude: [{case: a, reason: b, label: c}]", "label"),
        ("relabel: [{case: a, reason: b}]", "label"),
        ("- benign (1)", "keys `exclude` and `relabel`"),
        ("exclude: [", "YAML"),
    ],
)
def test_a_malformed_file_is_refused_by_name(write, text, says):
    path = write(text)
    with pytest.raises(ConfigError, match=r"curation\.yaml") as error:
        read_curation(path)
    assert says in str(error.value)


def test_an_absent_file_is_named_and_an_empty_one_decides_nothing(root, write, tmp_path):
    with pytest.raises(ConfigError, match=r"absent\.yaml"):
        read_curation(tmp_path / "absent.yaml")
    decisions = decide(write("# nothing yet\n"), list_cases("busi", root, "clinic").cases)
    assert (decisions.excluded, decisions.labels, decisions.problems) == ({}, {}, [])
