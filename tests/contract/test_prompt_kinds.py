"""Every prompt kind answers the same questions, in memory and through the prompts file."""

import re

import numpy as np
import pytest

from ultrarefiner.config import PromptConfig
from ultrarefiner.errors import PromptError
from ultrarefiner.images import write_mask
from ultrarefiner.io import write_rows
from ultrarefiner.prompts import PROMPTS, Prompt, prompt_from_mask
from ultrarefiner.prompts.records import load_prompts, make_prompts

KINDS = sorted(PROMPTS)
HEIGHT, WIDTH = 24, 36


def listed(prompt):
    return prompt if isinstance(prompt, list) else [prompt]


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
    make_prompts(config, "mine", tmp_path / "splits.csv", 0, tmp_path, tmp_path / "fold0.json")
    file = load_prompts(tmp_path / "fold0.json")
    wanted, read = listed(prompt_from_mask(lesion, kind)), listed(file.prompts("a__x", lesion))
    assert [prompt.parts for prompt in read] == [prompt.parts for prompt in wanted]
    for one, other in zip(read, wanted, strict=True):
        for part in ("box", "points", "labels", "mask"):
            np.testing.assert_equal(getattr(one, part), getattr(other, part))
    stand_in = file.prompts("a__none", np.zeros((HEIGHT, WIDTH), bool))
    assert file.cases["a__none"].empty
    if on_empty == "empty":
        assert stand_in is None
    else:
        assert [prompt.parts for prompt in listed(stand_in)] == [p.parts for p in wanted]
