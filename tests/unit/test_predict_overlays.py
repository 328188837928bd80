"""Guards the pictures of predictions, and that the page about them names what is written."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ultrarefiner.deploy import predicted as words
from ultrarefiner.deploy.outputs import ABOUT, COLUMNS, MASKS, OVERLAYS, PROBABILITIES, TABLE
from ultrarefiner.deploy.overlays import COARSE_COLOUR, REFINED_COLOUR, Outlined, draw_overlay

COARSE, REFINED = (tuple(bytes.fromhex(text[1:])) for text in (COARSE_COLOUR, REFINED_COLOUR))


def where(picture, colour):
    return (picture == colour).all(axis=2)


def disc(height, width, y, x, radius):
    rows, columns = np.mgrid[:height, :width]
    return np.hypot(rows - y, columns - x) <= radius


@pytest.mark.parametrize("size", [(300, 400), (1200, 900)])
def test_outlines_run_along_the_masks_and_nothing_else_changes(size):
    image = np.full((*size, 3), 90, np.uint8)
    kept = image.copy()
    coarse = disc(*size, size[0] * 0.4, size[1] * 0.5, size[0] * 0.2)
    refined = disc(*size, size[0] * 0.4, size[1] * 0.6, size[0] * 0.2)
    outlines = [
        Outlined("before", COARSE_COLOUR, coarse),
        Outlined("after", REFINED_COLOUR, refined),
    ]
    picture = draw_overlay(image, outlines)
    assert np.array_equal(image, kept)
    assert picture.shape == image.shape and picture.dtype == np.uint8
    legend = np.zeros(size, bool)
    legend[int(0.7 * size[0]) :] = True
    for colour, x in ((COARSE, 0.5), (REFINED, 0.6)):
        drawn = where(picture, colour)
        assert (drawn & legend).any(), "the legend shows the colour"
        rows, columns = np.nonzero(drawn & ~legend)
        away = np.hypot(rows - size[0] * 0.4, columns - size[1] * x) - size[0] * 0.2
        assert len(rows) > 2 * size[0] * 0.2 and np.abs(away).max() <= 4
    assert set(map(tuple, picture[~legend].tolist())) == {(90, 90, 90), COARSE, REFINED}


def test_the_legend_keeps_off_the_lesion():
    image = np.zeros((200, 300, 3), np.uint8)
    low = disc(200, 300, 180, 40, 15)
    picture = draw_overlay(image, [Outlined("a", COARSE_COLOUR, low)])
    assert where(picture, COARSE)[150:].any()
    assert picture[:30].any() and not picture[190:, 150:].any()
    picture = draw_overlay(image, [Outlined("a", COARSE_COLOUR, low[::-1])])
    assert not picture[:10, 150:].any() and picture[170:].any()


def test_an_empty_mask_is_called_so():
    image = np.zeros((200, 300, 3), np.uint8)
    full, none = disc(200, 300, 80, 150, 30), np.zeros((200, 300), bool)
    first, second = (draw_overlay(image, [Outlined("a", COARSE_COLOUR, m)]) for m in (full, none))
    assert np.count_nonzero(second[150:]) > np.count_nonzero(first[150:])


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_images_of_any_size_can_be_drawn(height, width, seed):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (height, width, 3)).astype(np.uint8)
    mask = rng.random((height, width)) < 0.5
    outlines = [Outlined("coarse", COARSE_COLOUR, mask), Outlined("x" * 40, REFINED_COLOUR, ~mask)]
    assert draw_overlay(image, outlines).shape == image.shape


def test_the_page_names_every_column_file_and_warning(checkout):
    page = (checkout / "docs" / "how-to" / "predict.md").read_text()
    for column in COLUMNS:
        assert column in page.split("Columns of the table")[1], column
    for name in (TABLE, ABOUT, f"{MASKS}/", f"{PROBABILITIES}/", f"{OVERLAYS}/"):
        assert f"`{name}" in page
    found = [
        *(words.EMPTY, words.SEVERAL, words.AT_BORDER),
        *(words.LITTLE_AGREEMENT, words.CHANGED, words.REJECTED),
    ]
    for text in found:
        assert f"| `{text}` |" in page
    assert f"below {words.LOW_AGREEMENT} |" in page and f"below {words.LARGE_CHANGE} |" in page
