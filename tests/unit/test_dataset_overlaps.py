"""Guards that no case counts as unseen while a model of another dataset has trained on its copy."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.prepared_data import prepare
from ultrarefiner.datasets.loader import COLUMNS as CASE_COLUMNS
from ultrarefiner.datasets.loader import read_cases
from ultrarefiner.datasets.overlaps import COLUMNS, find_overlaps
from ultrarefiner.datasets.parts import read_part
from ultrarefiner.datasets.phantom import draw_phantom, write_phantom
from ultrarefiner.errors import DatasetError
from ultrarefiner.io import read_rows, write_rows


def write_cases(path, name, rows):
    """Write a table of cases of {number: (pixels, appearance, group)}."""
    table = [
        dict.fromkeys(CASE_COLUMNS, "")
        | {
            "case": f"{name}__{number}",
            "height": 10,
            "width": 10,
            "group": f"{name}__{group}",
            "sha256": pixels,
            "overlay": "none",
            "border": "no",
            "look_alikes": 0,
            "appearance": f"{appearance:016x}",
        }
        for number, (pixels, appearance, group) in rows.items()
    ]
    write_rows(path, CASE_COLUMNS, table)
    return path


def find(folder, tables, acknowledged=None, trained=None, tested=None):
    cases = {
        name: write_cases(folder / name / "cases.csv", name, rows) for name, rows in tables.items()
    }
    unseen = {name: folder / name / "unseen.csv" for name in tables}
    everyone = {name: [other for other in tables if other != name] for name in tables}
    trained = list(tables) if trained is None else trained
    find_overlaps(
        cases,
        everyone if acknowledged is None else acknowledged,
        trained,
        [name for name in tables if name not in trained] if tested is None else tested,
        folder / "overlaps.csv",
        unseen,
    )
    kept = {
        name: {row["case"].split("__")[1] for row in read_rows(path)}
        for name, path in unseen.items()
    }
    return read_rows(folder / "overlaps.csv"), kept


A, B, C, D = 0x0F0F0F0F0F0F0F0F, 0xF0F0F0F00F0F0F0F, 0x00FF00FF00FF00FF, 0x3333CCCC3333CCCC


def test_nothing_shared_is_a_header_and_all_cases(tmp_path):
    tables = {"a": {"1": ("p", A, "1")}, "b": {"1": ("q", B, "1"), "2": ("r", C, "2")}}
    overlaps, kept = find(tmp_path, tables, acknowledged={})
    assert overlaps == [] and kept == {"a": {"1"}, "b": {"1", "2"}}
    assert (tmp_path / "overlaps.csv").read_text() == ",".join(COLUMNS) + "\n"
    assert (tmp_path / "b" / "unseen.csv").read_text() == (
        "case,group,fold,role\nb__1,b__1,,unseen\nb__2,b__2,,unseen\n"
    )
    assert read_part(tmp_path / "b" / "unseen.csv", "unseen-mean") == ["b__1", "b__2"]


def test_equal_pixels_are_refused_unless_acknowledged_by_either(tmp_path):
    one = {str(number): (f"p{number}", 0, str(number)) for number in range(12)}
    tables = {"bus": one, "udiat": one | {"x": ("own", 0, "x")}, "free": {"1": ("f", A, "1")}}
    with pytest.raises(DatasetError) as error:
        find(tmp_path, tables, acknowledged={"bus": ["free"]})
    message = str(error.value)
    assert "`datasets.udiat.shares_images_with: [bus]`" in message and "12 images" in message
    assert "bus__0 = udiat__0" in message and "and 4 more" in message
    assert not (tmp_path / "overlaps.csv").exists()
    for acknowledged in ({"udiat": ["bus"]}, {"bus": ["udiat"]}):
        overlaps, kept = find(tmp_path, tables, acknowledged)
        assert len(overlaps) == 12 and {row["kind"] for row in overlaps} == {"equal"}
        assert kept == {"bus": set(), "udiat": {"x"}, "free": {"1"}}


def test_look_alikes_never_stop_but_are_told_and_kept_apart(tmp_path, caplog):
    tables = {"a": {"1": ("p", A, "1"), "2": ("q", C, "2")}, "b": {"1": ("r", A ^ 0b111, "1")}}
    overlaps, kept = find(tmp_path, tables, acknowledged={}, trained=["b"])
    assert overlaps == [
        {
            "case": "a__1",
            "dataset": "a",
            "group": "a__1",
            "other_case": "b__1",
            "other_dataset": "b",
            "other_group": "b__1",
            "kind": "alike",
        }
    ]
    assert kept == {"a": {"2"}, "b": {"1"}}
    assert "1 pairs of images that look alike: a__1 ~ b__1" in caplog.text


def test_the_group_of_a_shared_image_goes_with_it(tmp_path):
    tables = {
        "a": {"1": ("p", A, "g"), "2": ("q", B, "g"), "3": ("r", C, "3")},
        "b": {"1": ("p", A, "g"), "2": ("s", D, "2")},
    }
    _, kept = find(tmp_path, tables, trained=["a"])
    # Groups of one name in two datasets are two groups.
    assert kept == {"a": {"1", "2", "3"}, "b": {"2"}}
    _, kept = find(tmp_path, tables, trained=["b"])
    assert kept == {"a": {"3"}, "b": {"1", "2"}}


def test_copies_of_a_third_dataset_are_copies_of_each_other(tmp_path):
    tables = {
        "a": {"1": ("p", A, "1")},
        "b": {"1": ("q", A ^ 0b1111, "1"), "2": ("x", C, "2")},
        "c": {"1": ("r", A ^ 0b11111111, "1"), "2": ("y", D, "2")},
    }
    overlaps, kept = find(tmp_path, tables, trained=["a"])
    assert {(row["dataset"], row["other_dataset"]) for row in overlaps} == {("a", "b"), ("b", "c")}
    assert kept == {"a": {"1"}, "b": {"2"}, "c": {"2"}}


def test_a_dataset_of_role_unseen_that_others_hold_whole_is_refused(tmp_path, caplog):
    tables = {"bus": {"1": ("p", A, "1"), "2": ("q", B, "2")}, "udiat": {"1": ("p", A, "1")}}
    with pytest.raises(DatasetError, match="udiat holds no image that is not in bus") as error:
        find(tmp_path, tables, trained=["bus"])
    assert "remove udiat" in str(error.value)
    _, kept = find(tmp_path, tables, trained=["bus", "udiat"])
    assert kept == {"bus": {"2"}, "udiat": set()}
    assert "no model of another dataset can be tested on it" in caplog.text
    with pytest.raises(DatasetError, match=r"train on none of bus, or set compare.cross: false"):
        find(tmp_path, tables, trained=["bus", "udiat"], tested=["bus", "udiat"])
    _, kept = find(tmp_path, tables, trained=["udiat"])
    assert kept == {"bus": {"2"}, "udiat": {"1"}}


@st.composite
def studies(draw):
    names = ["a", "b", "c", "d"][: draw(st.integers(2, 4))]
    marks = [A, A ^ 0b11, A ^ 0b111100, B, C, D, 0]
    case = st.tuples(
        st.sampled_from(["p", "q", "r", "s", *map(str, range(20))]),
        st.sampled_from(marks) | st.integers(1, 2**64 - 1),
        st.sampled_from("vwxyz"),
    )
    tables = {
        name: {str(n): row for n, row in enumerate(draw(st.lists(case, min_size=1, max_size=6)))}
        for name in names
    }
    trained = draw(st.lists(st.sampled_from(names), min_size=1, unique=True))
    return tables, trained


@settings(max_examples=120)
@given(studies())
def test_no_unseen_case_is_linked_to_a_case_that_another_dataset_trains_on(tmp_path_factory, study):
    tables, trained = study
    folder = tmp_path_factory.mktemp("study")
    nodes = {(name, number): row for name, rows in tables.items() for number, row in rows.items()}

    def linked(one, other):
        (name, _), (other_name, _) = one, other
        (pixels, appearance, group), (others, looks, other_group) = nodes[one], nodes[other]
        if name == other_name:
            return group == other_group
        alike = appearance and looks and (appearance ^ looks).bit_count() <= 4
        return pixels == others or bool(alike)

    def reached(start):
        """Return all that is linked with a case, by a plain search."""
        seen, ahead = {start}, [start]
        while ahead:
            node = ahead.pop()
            fresh = {other for other in nodes if other not in seen and linked(node, other)}
            seen |= fresh
            ahead += fresh
        return seen

    clear = {
        name: {
            number
            for number in rows
            if not any(other in trained and other != name for other, _ in reached((name, number)))
        }
        for name, rows in tables.items()
    }
    if any(not clear[name] for name in tables if name not in trained):
        with pytest.raises(DatasetError, match="are to be unseen"):
            find(folder, tables, trained=trained)
    else:
        assert find(folder, tables, trained=trained)[1] == clear


def test_one_pair_among_ten_thousand_cases_is_found(tmp_path):
    rng = np.random.default_rng(0)
    hashes = [int(value) for value in rng.integers(1, 2**63, 10000)]
    hashes[9999] = hashes[0] ^ 0b101
    tables = {
        name: {str(i): (f"{name}{i}", hashes[i], str(i)) for i in part}
        for name, part in (("a", range(5000)), ("b", range(5000, 10000)))
    }
    overlaps, _ = find(tmp_path, tables)
    assert [(row["case"], row["other_case"]) for row in overlaps] == [("a__0", "b__9999")]


def test_two_names_of_one_dataset_are_found_from_their_files(tmp_path):
    cases = {}
    for layout in ("bus", "udiat"):
        write_phantom(layout, tmp_path / layout, cases=6, size=64, seed=0, odd_cases=True)
        prepare(layout, layout, tmp_path / layout, tmp_path / "out" / layout)
        cases[layout] = tmp_path / "out" / layout / "cases.csv"
    unseen = {name: tmp_path / f"{name}.csv" for name in cases}
    with pytest.raises(DatasetError, match="bus and udiat: 2 images"):
        find_overlaps(cases, {}, ["bus"], ["udiat"], tmp_path / "overlaps.csv", unseen)
    find_overlaps(cases, {"udiat": ["bus"]}, ["bus"], ["udiat"], tmp_path / "overlaps.csv", unseen)
    overlaps = read_rows(tmp_path / "overlaps.csv")
    assert [row["kind"] for row in overlaps] == ["equal", "equal"]
    shared = {row["other_case"] for row in overlaps}
    everything = {row.case for row in read_cases(cases["udiat"])}
    assert set(read_part(unseen["udiat"], "unseen")) == everything - shared


def test_a_recompressed_and_scaled_copy_in_another_dataset_is_found(tmp_path):
    image, mask = draw_phantom(3, 128, False)
    for name, number, copy in (
        ("one", 1, image),
        ("two", 8, cv2.resize(cv2.GaussianBlur(image, (0, 0), 0.8), None, fx=1.5, fy=1.5)),
        ("two", 9, draw_phantom(4, 128, True)[0]),
    ):
        folder = tmp_path / name / "Hospital"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(copy).save(folder / f"Test_Image_{number}.png")
        Image.fromarray(mask.astype(np.uint8) * 255).resize(copy.shape[::-1]).save(
            folder / f"mask_{number}.png"
        )
    cases = {}
    for name in ("one", "two"):
        output = tmp_path / "out" / name
        prepare(name, "stu", tmp_path / name, output)
        cases[name] = output / "cases.csv"
    unseen = {name: tmp_path / f"{name}.csv" for name in cases}
    find_overlaps(cases, {}, ["one"], ["two"], tmp_path / "overlaps.csv", unseen)
    (row,) = read_rows(tmp_path / "overlaps.csv")
    assert (row["case"], row["other_case"]) == ("one__test_image_1", "two__test_image_8")
    assert row["kind"] == "alike"
    assert read_part(unseen["two"], "unseen") == ["two__test_image_9"]
