"""Every prompt kind answers the same questions, in memory and through the prompts file."""

import re

import numpy as np
import pytest
import yaml
from pydantic import ValidationError

from ultrarefiner.config import CropConfig, NoiseConfig, PromptConfig
from ultrarefiner.errors import PromptError
from ultrarefiner.images import write_mask
from ultrarefiner.io import write_rows
from ultrarefiner.prompts import PROMPTS, Prompt, prompt_from_mask
from ultrarefiner.prompts.records import load_prompts, make_prompts
from ultrarefiner.refine.crop import prompt_in_window

KINDS = sorted(PROMPTS)
HEIGHT, WIDTH = 24, 36


def listed(prompt):
    return prompt if isinstance(prompt, list) else [prompt]


def assert_equal(prompts, others):
    for one, other in zip(prompts, others, strict=True):
        for part in ("box", "points", "labels", "mask"):
            np.testing.assert_equal(getattr(one, part), getattr(other, part))


def crescent():
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    outer = (columns - 16) ** 2 + (rows - 12) ** 2 <= 90
    return outer & ~((columns - 20) ** 2 + (rows - 12) ** 2 <= 60)


def test_the_config_knows_exactly_these_kinds():
    annotation = PromptConfig.model_fields["kind"].annotation
    assert set(annotation.__args__) == set(PROMPTS)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("soft", [False, True])
def test_a_kind_holds_the_parts_that_its_row_says(kind, soft):
    lesion = crescent()
    mask = np.where(lesion, 0.75, 0.25).astype(np.float32) if soft else lesion
    prompts = listed(prompt_from_mask(mask, kind))
    row = PROMPTS[kind]
    assert all(isinstance(prompt, Prompt) for prompt in prompts)
    assert frozenset().union(*(prompt.parts for prompt in prompts)) == row.parts
    assert len(prompts) == (len(row.parts) if row.separate else 1)
    for prompt in prompts:
        if prompt.box is not None:
            x0, y0, x1, y1 = prompt.box
            columns, rows = np.flatnonzero(lesion.any(0)), np.flatnonzero(lesion.any(1))
            assert (x0, y0) == (columns[0], rows[0])
            assert (x1, y1) == (columns[-1] + 1, rows[-1] + 1)
        if prompt.points is not None:
            column, row_index = prompt.points[0].astype(int)
            assert lesion[row_index, column]
            assert prompt.labels.tolist() == [1]
        if prompt.mask is not None:
            np.testing.assert_array_equal(prompt.mask, mask)


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_mask_is_refused(kind):
    with pytest.raises(PromptError, match="empty"):
        prompt_from_mask(np.zeros((HEIGHT, WIDTH), bool), kind)


@pytest.mark.parametrize("kind", KINDS)
def test_expand_moves_a_box_or_is_refused(kind):
    if "box" in PROMPTS[kind].parts:
        assert listed(prompt_from_mask(crescent(), kind, expand=0.5))[0].box[0] == 0
    else:
        with pytest.raises(
            PromptError, match=f"expand 0.5 has no effect on kind '{re.escape(kind)}'"
        ):
            prompt_from_mask(crescent(), kind, expand=0.5)


def test_the_kind_is_box_where_none_is_named():
    made, wanted = prompt_from_mask(crescent()), prompt_from_mask(crescent(), "box")
    assert made.parts == {"box"}
    np.testing.assert_array_equal(made.box, wanted.box)


OPTIONS = {
    "points": ({"points": 3}, {"points": 3}),
    "negative": ({"negative": True}, {"negative": True}),
    "components": ({"components": True}, {"components": True}),
    "expand": ({"expand": 0.25}, {"expand": 0.25}),
}
"""Option: keys of the config, arguments of ``prompt_from_mask``."""


def has_effect(option, kind):
    """Whether an option can do something to a kind: what the parts of its row say."""
    parts = PROMPTS[kind].parts
    if option == "components":
        return True
    return ("box" if option == "expand" else "point") in parts


def two_lesions():
    mask = crescent()
    mask[2:6, 28:34] = True
    return mask


def written(config, mask, folder):
    """Return the prompts file of one case."""
    write_mask(folder / "a__x.png", mask)
    write_rows(
        folder / "splits.csv",
        ["case", "fold", "role"],
        [{"case": "a__x", "fold": 0, "role": "test"}],
    )
    make_prompts(config, "mine", folder / "splits.csv", "fold0", folder, folder / "fold0.json")
    return load_prompts(folder / "fold0.json")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("option", OPTIONS)
def test_an_option_changes_the_prompt_or_is_refused_both_in_config_and_in_memory(
    kind, option, tmp_path
):
    keys, arguments = OPTIONS[option]
    lesion = two_lesions()
    if not has_effect(option, kind):
        with pytest.raises(ValidationError, match=f"{option} has no effect on kind"):
            PromptConfig(kind=kind, **keys)
        with pytest.raises(PromptError, match=f"{option}.* no effect on kind"):
            prompt_from_mask(lesion, kind, **arguments)
        return
    made = listed(prompt_from_mask(lesion, kind, **arguments))
    read = listed(
        written(PromptConfig(kind=kind, **keys), lesion, tmp_path).prompts("a__x", lesion)
    )
    plain = listed(prompt_from_mask(lesion, kind))
    assert_equal(read, made)
    assert len(made) != len(plain) or any(
        not np.array_equal(getattr(one, part), getattr(other, part))
        for one, other in zip(made, plain, strict=True)
        for part in ("box", "points")
        if getattr(one, part) is not None
    )


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_cropped_and_blurred_by_noise_where_it_has_something_to_move(kind, tmp_path):
    parts = PROMPTS[kind].parts
    noise = {"box": 0.1} if "box" in parts else {}
    noise |= {"point": 0.1} if "point" in parts else {}
    keys = {"noise": noise} if noise else {}
    lesion = crescent()
    config = PromptConfig(kind=kind, crop={"expand": 0.1, "min_size": 8}, **keys)
    file = written(config, lesion, tmp_path)
    window = file.window("a__x")
    x0, y0, x1, y1 = window
    assert lesion[max(y0, 0) : y1, max(x0, 0) : x1].sum() == lesion.sum()
    read, plain = listed(file.prompts("a__x", lesion)), listed(prompt_from_mask(lesion, kind))
    for one, other in zip(read, plain, strict=True):
        assert one.parts == other.parts
        for part in ("box", "points"):
            if getattr(one, part) is not None:
                assert not np.array_equal(getattr(one, part), getattr(other, part))
        prompt_in_window(one, window, lesion.shape)  # refuses what lies outside
    for part in {"box", "point"} - parts:
        with pytest.raises(ValidationError, match=f"noise.{part} has no effect"):
            PromptConfig(kind=kind, noise={part: 0.1})


def test_the_page_about_prompts_explains_every_kind_and_key(checkout):
    page = (checkout / "docs/reference/prompts.md").read_text()
    rows = set(re.findall(r"^\| `([^`]+)`", page, re.M))
    keys = set(PromptConfig.model_fields)
    keys |= {f"crop.{key}" for key in CropConfig.model_fields}
    keys |= {f"noise.{key}" for key in NoiseConfig.model_fields}
    assert rows == set(PROMPTS) | keys - {"crop", "noise"}
    blocks = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", page, re.S)]
    modes = {name: keys for block in blocks for name, keys in block["prompts"].items()}
    used = {key for keys in modes.values() for key in PromptConfig(**keys).model_fields_set}
    assert used == set(PromptConfig.model_fields), "each key is shown once"


@pytest.mark.parametrize(
    ("kind", "on_empty"),
    [(kind, "empty") for kind in KINDS]
    + [(kind, "full_image") for kind in KINDS if "mask" not in PROMPTS[kind].parts],
)
def test_a_kind_goes_through_the_prompts_file_unchanged(kind, on_empty, tmp_path):
    lesion = crescent()
    write_mask(tmp_path / "a__x.png", lesion)
    write_mask(tmp_path / "a__none.png", np.zeros((HEIGHT, WIDTH), bool))
    rows = [{"case": case, "fold": 0, "role": "test"} for case in ("a__x", "a__none")]
    write_rows(tmp_path / "splits.csv", ["case", "fold", "role"], rows)
    config = PromptConfig(kind=kind, on_empty=on_empty)
    make_prompts(
        config, "mine", tmp_path / "splits.csv", "fold0", tmp_path, tmp_path / "fold0.json"
    )
    file = load_prompts(tmp_path / "fold0.json")
    wanted, read = listed(prompt_from_mask(lesion, kind)), listed(file.prompts("a__x", lesion))
    assert [prompt.parts for prompt in read] == [prompt.parts for prompt in wanted]
    assert_equal(read, wanted)
    stand_in = file.prompts("a__none", np.zeros((HEIGHT, WIDTH), bool))
    assert file.cases["a__none"].empty
    if on_empty == "empty":
        assert stand_in is None
    else:
        assert [prompt.parts for prompt in listed(stand_in)] == [p.parts for p in wanted]
