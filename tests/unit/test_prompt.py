"""A prompt that cannot mean anything is refused when it is made, not when a model meets it."""

import numpy as np
import pytest

from ultrarefiner.errors import PromptError
from ultrarefiner.prompts import Prompt

MASK = np.eye(4, dtype=bool)


@pytest.mark.parametrize(
    ("parts", "complaint"),
    [
        ({}, "none was given"),
        ({"mask": MASK, "mask_logits": np.zeros((4, 4))}, "not both"),
        ({"box": (5, 2, 5, 7)}, "x0 < x1"),
        ({"box": (5, 7, 6, 2)}, "y0 < y1"),
        ({"box": (0, 0, np.nan, 3)}, "x0 < x1"),
        ({"box": (1, 2, 3)}, "x0 < x1"),
        ({"points": [3, 4]}, r"not \(N, 2\)"),
        ({"points": np.zeros((0, 2))}, r"not \(N, 2\)"),
        ({"points": [[3, 4], [np.nan, 2]]}, r"\[nan, 2.0\].* finite"),
        ({"points": [[3, np.inf]]}, "finite"),
        ({"points": [[3, 4]], "labels": [1, 0]}, "one 0 or 1"),
        ({"points": [[3, 4]], "labels": [2]}, "one 0 or 1"),
        ({"box": (0, 0, 2, 2), "labels": [1]}, "without points"),
        ({"mask": np.zeros((1, 4, 4))}, r"not \(H, W\)"),
        ({"mask": np.full((4, 4), "a")}, r"not \(H, W\) of numbers"),
        ({"box": ["a", 0, 1, 1]}, "are not numbers"),
        ({"points": [(3, 4), (1,)]}, "are not numbers"),
        ({"mask_logits": "x"}, "are not numbers"),
    ],
)
def test_nonsense_is_refused_with_its_reason(parts, complaint):
    with pytest.raises(PromptError, match=complaint):
        Prompt(**parts)


def test_parts_say_what_is_held():
    assert Prompt(box=(0, 0, 2, 2)).parts == {"box"}
    assert Prompt(points=[[1, 2]], mask=MASK).parts == {"point", "mask"}
    assert Prompt(mask_logits=np.zeros((8, 8)), box=(0, 0, 1, 1)).parts == {"box", "mask"}


def test_values_become_arrays_and_points_without_labels_are_lesion():
    prompt = Prompt(box=[1, 2, 3.5, 4], points=[(5, 6), (7, 8)])
    assert prompt.box.tolist() == [1.0, 2.0, 3.5, 4.0]
    assert prompt.points.tolist() == [[5.0, 6.0], [7.0, 8.0]]
    assert prompt.labels.tolist() == [1, 1]
    assert Prompt(points=[[5, 6], [7, 8]], labels=[0, 1]).labels.tolist() == [0, 1]


def test_prompts_can_be_compared_and_kept_in_sets():
    one, other = Prompt(box=(0, 0, 2, 2), mask=MASK), Prompt(box=(0, 0, 2, 2), mask=MASK)
    assert one in [other, one]
    assert one not in [other]
    assert len({one, other, one}) == 2
