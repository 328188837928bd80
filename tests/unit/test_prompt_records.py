"""The prompts file holds every test case of the fold, comes back as it was, and is refused when damaged."""

import json

import numpy as np
import pytest
from pydantic import ValidationError

from ultrarefiner.config import PromptConfig
from ultrarefiner.errors import PromptError, UltraRefinerError
from ultrarefiner.images import read_mask, write_mask
from ultrarefiner.io import write_rows
from ultrarefiner.prompts import PROMPTS, prompt_from_mask
from ultrarefiner.prompts.records import load_prompts, make_prompts

BOX_CASE, EMPTY_CASE, OTHER_CASE = "busi__benign_2", "busi__benign_10", "busi__malignant_1"


@pytest.fixture
def fold(tmp_path):
    """Write a fold of three test cases, one of them with an empty mask, and one training case."""
    lesion = np.zeros((20, 30), bool)
    lesion[5:12, 10:25] = True
    write_mask(tmp_path / "masks" / f"{BOX_CASE}.png", lesion)
    write_mask(tmp_path / "masks" / f"{EMPTY_CASE}.png", np.zeros((40, 51), bool))
    write_mask(tmp_path / "masks" / f"{OTHER_CASE}.png", lesion.T)
    write_mask(tmp_path / "masks" / "busi__stale.png", lesion)
    roles = {BOX_CASE: "test", EMPTY_CASE: "test", OTHER_CASE: "test", "busi__train": "train"}
    rows = [{"case": case, "group": case, "fold": 1, "role": role} for case, role in roles.items()]
    write_rows(tmp_path / "splits.csv", ["case", "group", "fold", "role"], rows)
    return tmp_path


def made(folder, **keys):
    output = folder / "prompts" / "fold1.json"
    make_prompts(
        prompt=PromptConfig(**keys),
        name="mine",
        splits=folder / "splits.csv",
        part="fold1",
        masks=folder / "masks",
        output=output,
    )
    return output


def test_the_file_as_it_is_read_by_others(fold):
    text = made(fold, kind="both", expand=0.1).read_text()
    assert json.loads(text) == {
        "prompt": "mine",
        "kind": "both",
        "source": "coarse",
        "oracle": False,
        "part": "fold1",
        "on_empty": "empty",
        "cases": {
            EMPTY_CASE: {
                "box": None,
                "points": None,
                "labels": None,
                "mask": None,
                "source": "coarse",
                "empty": True,
                "image_size": [40, 51],
                "window": None,
                "others": [],
            },
            BOX_CASE: {
                "box": [8.5, pytest.approx(4.3), 26.5, pytest.approx(12.7)],
                "points": [[13, 8]],
                "labels": [1],
                "mask": None,
                "source": "coarse",
                "empty": False,
                "image_size": [20, 30],
                "window": None,
                "others": [],
            },
            OTHER_CASE: {
                "box": [pytest.approx(4.3), 8.5, pytest.approx(12.7), 26.5],
                "points": [[8, 13]],
                "labels": [1],
                "mask": None,
                "source": "coarse",
                "empty": False,
                "image_size": [30, 20],
                "window": None,
                "others": [],
            },
        },
    }
    assert list(json.loads(text)["cases"]) == sorted([BOX_CASE, EMPTY_CASE, OTHER_CASE])
    assert "13.0" not in text
    assert not list((fold / "prompts").glob(".partial*"))


def test_the_same_masks_give_the_same_bytes_in_any_order_of_the_splits(fold):
    first = made(fold, kind="box+point").read_bytes()
    lines = (fold / "splits.csv").read_text().splitlines()
    (fold / "splits.csv").write_text("\n".join([lines[0], *reversed(lines[1:])]) + "\n")
    assert made(fold, kind="box+point").read_bytes() == first


def test_box_and_point_come_back_as_prompts(fold):
    file = load_prompts(made(fold, kind="both"))
    box, point = file.prompts(BOX_CASE)
    assert (box.parts, point.parts) == ({"box"}, {"point"})
    assert box.box.tolist() == [10, 5, 25, 12]
    assert point.points.tolist() == [[13, 8]]
    joint = load_prompts(made(fold, kind="box+point")).prompts(BOX_CASE)
    assert joint.parts == {"box", "point"}
    assert joint.box.tolist() == [10, 5, 25, 12]


@pytest.mark.parametrize(
    ("kind", "parts"),
    [
        ("mask", {"mask"}),
        ("mask+point", {"mask", "point"}),
        ("mask+box", {"mask", "box"}),
    ],
)
def test_mask_prompts_take_the_soft_mask_and_insist_on_its_size(fold, kind, parts):
    file = load_prompts(made(fold, kind=kind))
    assert file.cases[BOX_CASE].mask == f"{BOX_CASE}.png"
    soft = np.linspace(0, 1, 600, dtype=np.float32).reshape(20, 30)
    prompt = file.prompts(BOX_CASE, soft)
    assert prompt.parts == parts
    np.testing.assert_array_equal(prompt.mask, soft)
    with pytest.raises(PromptError, match=f"{BOX_CASE} needs the mask"):
        file.prompts(BOX_CASE)
    with pytest.raises(PromptError, match=r"\(30, 20\).*\(20, 30\)"):
        file.prompts(BOX_CASE, soft.T)


@pytest.mark.parametrize("kind", sorted(PROMPTS))
def test_an_empty_mask_gives_no_prompt_by_default(fold, kind):
    file = load_prompts(made(fold, kind=kind))
    assert file.cases[EMPTY_CASE].empty
    assert file.prompts(EMPTY_CASE, np.zeros((40, 51))) is None


@pytest.mark.parametrize("kind", ["box", "point", "both", "box+point"])
def test_full_image_stands_in_for_an_empty_mask_and_stays_marked(fold, kind):
    file = load_prompts(made(fold, kind=kind, on_empty="full_image"))
    assert file.cases[EMPTY_CASE].empty
    prompts = file.prompts(EMPTY_CASE)
    for prompt in prompts if kind == "both" else [prompts]:
        if "box" in prompt.parts:
            assert prompt.box.tolist() == [0, 0, 51, 40]
        if "point" in prompt.parts:
            assert prompt.points.tolist() == [[25, 20]]
    assert not file.cases[BOX_CASE].empty
    assert file.cases[BOX_CASE].box in (None, (10, 5, 25, 12))


@pytest.mark.parametrize("kind", ["mask", "mask+point", "mask+box"])
def test_an_empty_mask_prompt_has_no_stand_in(fold, kind):
    file = load_prompts(made(fold, kind=kind))
    assert file.prompts(EMPTY_CASE, np.zeros((40, 51))) is None
    with pytest.raises(ValidationError, match="on_empty"):
        PromptConfig(kind=kind, on_empty="full_image")


CROP = {"expand": 0.5, "min_size": 8}


def test_components_windows_and_points_as_they_are_read_by_others(fold):
    mask = np.zeros((60, 80), bool)
    mask[10:20, 10:30] = mask[30:36, 40:50] = True
    mask[50, 70:72] = True  # a speck: no prompt of its own, but in the box that is cropped around
    write_mask(fold / "masks" / f"{BOX_CASE}.png", mask)
    keys = {"kind": "both", "components": True, "points": 2, "negative": True}
    path = made(fold, **keys, crop={"expand": 0, "min_size": 8})
    assert json.loads(path.read_text())["cases"][BOX_CASE] == {
        "box": [10, 10, 30, 20],
        "points": [[14, 14], [25, 15], [8, 9]],
        "labels": [1, 1, 0],
        "mask": None,
        "source": "coarse",
        "empty": False,
        "image_size": [60, 80],
        "window": [3, 5, 79, 56],
        "others": [
            {"box": [40, 30, 50, 36], "points": [[42, 32], [47, 33], [39, 29]], "labels": [1, 1, 0]}
        ],
    }
    file = load_prompts(path)
    assert file.window(BOX_CASE) == (3, 5, 79, 56)
    read = file.prompts(BOX_CASE)
    wanted = prompt_from_mask(mask, "both", points=2, negative=True, components=True)
    assert len(read) == len(wanted) == 4
    for one, other in zip(read, wanted, strict=True):
        np.testing.assert_equal((one.box, one.points), (other.box, other.points))
        np.testing.assert_equal(one.labels, other.labels)


def test_the_largest_component_alone_may_have_the_box(fold):
    mask = np.zeros((40, 51), bool)
    mask[5:12, 10:25] = mask[30:34, 40:44] = True
    write_mask(fold / "masks" / f"{BOX_CASE}.png", mask)
    keys = {"kind": "box+point"}
    whole, alone = (
        load_prompts(made(fold, **keys, **more)).prompts(BOX_CASE)
        for more in ({}, {"largest": True})
    )
    assert whole.box.tolist() == [10, 5, 44, 34] and alone.box.tolist() == [10, 5, 25, 12]
    assert whole.points.tolist() == alone.points.tolist()
    assert "largest" not in PromptConfig(**keys).recipe()
    for wrong in ({"kind": "point"}, {"kind": "box", "components": True}):
        with pytest.raises(ValidationError, match="largest"):
            PromptConfig(**wrong, largest=True)


def test_one_component_is_one_prompt(fold):
    file = load_prompts(made(fold, kind="box", components=True))
    assert file.prompts(BOX_CASE).box.tolist() == [10, 5, 25, 12]
    assert file.cases[BOX_CASE].others == []


@pytest.mark.parametrize("on_empty", ["empty", "full_image"])
def test_an_empty_mask_has_no_window(fold, on_empty):
    file = load_prompts(made(fold, kind="box+point", crop=CROP, on_empty=on_empty, negative=True))
    assert file.window(EMPTY_CASE) is None
    assert file.window(BOX_CASE) == (2, 1, 30, 16)
    if on_empty == "full_image":
        stand_in = file.prompts(EMPTY_CASE)
        assert stand_in.box.tolist() == [0, 0, 51, 40]
        assert stand_in.points.tolist() == [[25, 20]] and stand_in.labels.tolist() == [1]


def test_noise_is_the_same_for_a_case_in_any_company(fold):
    keys = {"kind": "both", "noise": {"box": 0.2, "point": 0.2, "seed": 3}}
    first = load_prompts(made(fold, **keys)).cases
    rows = [{"case": c, "group": c, "fold": 1, "role": "test"} for c in (BOX_CASE, EMPTY_CASE)]
    write_rows(fold / "splits.csv", ["case", "group", "fold", "role"], rows)
    again = load_prompts(made(fold, **keys)).cases
    assert again[BOX_CASE] == first[BOX_CASE]
    plain = load_prompts(made(fold, kind="both")).cases[BOX_CASE]
    assert again[BOX_CASE].box != plain.box and again[BOX_CASE].points != plain.points
    # Another case of the same mask gets moves of its own.
    write_mask(fold / "masks" / f"{EMPTY_CASE}.png", read_mask(fold / "masks" / f"{BOX_CASE}.png"))
    other = load_prompts(made(fold, **keys)).cases[EMPTY_CASE]
    assert other.box != again[BOX_CASE].box and other.points != again[BOX_CASE].points
    # The mode with a box alone shows the same wrong box: modes can be compared.
    alone = load_prompts(made(fold, kind="box", noise={"box": 0.2, "seed": 3})).cases
    assert alone[BOX_CASE].box == again[BOX_CASE].box


def test_prompts_from_the_truth_are_marked_as_oracle(fold):
    file = load_prompts(made(fold, kind="box", source="ground_truth"))
    assert file.oracle
    assert {record.source for record in file.cases.values()} == {"ground_truth"}


def test_a_missing_mask_is_named_before_anything_is_written(fold):
    (fold / "masks" / f"{OTHER_CASE}.png").unlink()
    with pytest.raises(PromptError, match=OTHER_CASE):
        made(fold, kind="box")
    assert not (fold / "prompts").exists()


def test_a_case_of_another_fold_is_refused_by_name(fold):
    file = load_prompts(made(fold, kind="box"))
    for ask in (file.prompts, file.window):
        with pytest.raises(PromptError, match="busi__train"):
            ask("busi__train")


POINT = {"box": [1, 1, 4, 4], "points": [[2, 2]], "labels": [1]}
TAMPERED = {
    "box outside": (lambda c: c[BOX_CASE].update(box=[10, 5, 31, 12]), "not within 30 x 20"),
    "box turned": (lambda c: c[BOX_CASE].update(box=[25, 5, 10, 12]), "not within"),
    "box short": (lambda c: c[BOX_CASE].update(box=[25, 5, 10]), "box"),
    "box nan": (lambda c: c[BOX_CASE].update(box=[float("nan"), 5, 25, 12]), "finite"),
    "point outside": (lambda c: c[BOX_CASE].update(points=[[30, 3]]), "not within 30 x 20"),
    "no lesion label": (lambda c: c[BOX_CASE].update(labels=[0]), "no label is 1"),
    "window small": (
        lambda c: c[BOX_CASE].update(window=[11, 0, 30, 20]),
        r"box .* is not within the window \[11, 0, 30, 20\]",
    ),
    "point beyond": (
        lambda c: c[BOX_CASE].update(points=[[9, 8]], window=[10, 0, 30, 20]),
        "point .* is not within the window",
    ),
    "window beyond": (lambda c: c[BOX_CASE].update(window=[40, 0, 60, 20]), "shows nothing"),
    "window turned": (lambda c: c[BOX_CASE].update(window=[30, 0, 0, 20]), "shows nothing"),
    "window torn": (lambda c: c[BOX_CASE].update(window=[0.5, 0, 30, 20]), "window"),
    "window of nothing": (
        lambda c: c[EMPTY_CASE].update(window=[0, 0, 9, 9]),
        "no window and no component",
    ),
    "component outside": (
        lambda c: c[BOX_CASE].update(others=[{**POINT, "box": [0, 0, 4, 21]}]),
        "not within 30 x 20",
    ),
    "component short": (
        lambda c: c[BOX_CASE].update(others=[{**POINT, "box": None}]),
        "component that does not hold box and point",
    ),
    "component more": (lambda c: c[BOX_CASE].update(others=[{**POINT, "mask": None}]), "mask"),
    "label unknown": (lambda c: c[BOX_CASE].update(labels=[2]), "labels"),
    "labels many": (lambda c: c[BOX_CASE].update(labels=[1, 1]), "equally many"),
    "part gone": (
        lambda c: c[BOX_CASE].update(box=None),
        f"{BOX_CASE} holds point, not box and point",
    ),
    "part more": (
        lambda c: c[BOX_CASE].update(mask=f"{BOX_CASE}.png"),
        "holds box and mask and point",
    ),
    "not empty": (lambda c: c[EMPTY_CASE].update(empty=False), f"{EMPTY_CASE} holds nothing"),
    "truth": (lambda c: c[BOX_CASE].update(source="ground_truth"), "source"),
    "key more": (lambda c: c[BOX_CASE].update(boxes=[]), "boxes"),
    "key gone": (lambda c: c[BOX_CASE].pop("image_size"), "image_size"),
}


@pytest.mark.parametrize("case", TAMPERED)
def test_a_tampered_file_is_refused_with_its_path_and_the_reason(fold, case):
    change, complaint = TAMPERED[case]
    path = made(fold, kind="box+point")
    values = json.loads(path.read_text())
    change(values["cases"])
    path.write_text(json.dumps(values))
    with pytest.raises(PromptError, match=complaint) as error:
        load_prompts(path)
    assert str(path) in str(error.value)
    assert "run make_prompts again" in str(error.value)


@pytest.mark.parametrize(
    "change", [{"kind": "circle"}, {"oracle": True}, {"part": None}, {"extra": 1}]
)
def test_a_wrong_head_is_refused(fold, change):
    path = made(fold, kind="box")
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(PromptError, match=next(iter(change))):
        load_prompts(path)


def test_the_mask_of_another_case_is_refused(fold):
    path = made(fold, kind="mask")
    path.write_text(path.read_text().replace(f'"{BOX_CASE}.png"', f'"{OTHER_CASE}.png"'))
    with pytest.raises(PromptError, match="another case"):
        load_prompts(path)


def test_half_a_file_or_none_is_refused_with_its_path(fold):
    path = made(fold, kind="box")
    path.write_text(path.read_text()[:-40])
    with pytest.raises(UltraRefinerError, match=f"{path}.*run again"):
        load_prompts(path)
    path.write_text("[]")
    with pytest.raises(PromptError, match="not a prompts file"):
        load_prompts(path)
    with pytest.raises(UltraRefinerError, match="absent"):
        load_prompts(path.with_name("absent.json"))
