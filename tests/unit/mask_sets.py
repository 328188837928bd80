"""Masks of one shape, drawn for hypothesis, and discs: what the guard's tests try it on."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays


@st.composite
def mask_sets(draw, count=2):
    """Draw masks of one shape: noise, rectangles and nothing, often alike."""
    height, width = draw(st.integers(1, 12)), draw(st.integers(1, 12))
    rectangle = np.zeros((height, width), bool)
    top, left = draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))
    rectangle[top : draw(st.integers(top, height)), left : draw(st.integers(left, width))] = True
    noise = arrays(bool, (height, width))
    kinds = st.one_of(
        noise, st.just(rectangle), st.just(np.zeros_like(rectangle)), noise.map(rectangle.__xor__)
    )
    return tuple(draw(kinds) for _ in range(count))


def disc(shape, centre, radius):
    """Return a disc, bool of the shape; centre is (row, column)."""
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    return np.hypot(rows - centre[0], columns - centre[1]) <= radius
