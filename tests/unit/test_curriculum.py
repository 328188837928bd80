"""Guards the curriculum: the best inputs come first, in one order, and all of them by halftime.

The reference's numbers are in tests/golden.
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ultrarefiner.training.curriculum import curriculum_order, curriculum_size, difficulty

COUNTS = st.integers(1, 400), st.integers(1, 60), st.integers(1, 120)


@given(*COUNTS)
@settings(max_examples=200, deadline=None)
def test_sizes_rise_to_all_samples_at_half_of_the_epochs(samples, epochs, least):
    sizes = [curriculum_size(samples, epoch, epochs, least=least) for epoch in range(epochs)]
    assert sizes == sorted(sizes)
    assert all(min(samples, least) <= size <= samples for size in sizes)
    assert all(size == samples for size in sizes[epochs // 2 :])
    shares = [difficulty(epoch, epochs) for epoch in range(epochs)]
    assert shares[0] == (0.2 if epochs > 1 else 1.0)
    for size, share in zip(sizes, shares, strict=True):
        assert size in (least, samples) or abs(size - samples * share) < 1


@given(
    st.lists(st.sampled_from([0.1, 0.5, 0.5001, 0.9, 1.0]), min_size=1, max_size=60), *COUNTS[1:]
)
@settings(max_examples=200, deadline=None)
def test_what_is_kept_is_easier_than_what_is_left_out(dices, epochs, least):
    previous = []
    for epoch in range(epochs):
        order = curriculum_order(dices, epoch, epochs, least=least)
        assert order[: len(previous)] == previous, "an epoch forgets samples of the one before"
        previous = order
        kept = [dices[i] for i in order]
        left = [dices[i] for i in set(range(len(dices))) - set(order)]
        assert kept == sorted(kept, reverse=True)
        assert not left or max(left) <= min(kept)
    assert sorted(previous) == list(range(len(dices)))


def test_equal_samples_keep_their_order():
    assert curriculum_order([0.5, 0.9, 0.5, 0.9, 0.5], 9, 10, least=1) == [1, 3, 0, 2, 4]
    order = curriculum_order([0.7] * 1000, 0, 10, least=1)
    assert order == list(range(200))


def test_the_least_decides_whether_a_small_set_has_a_curriculum():
    def sizes(least):
        return [curriculum_size(42, epoch, 10, least=least) for epoch in range(6)]

    assert sizes(least=100) == [42] * 6
    assert sizes(least=4) == [8, 15, 21, 28, 35, 42]
    assert sizes(least=20) == [20, 20, 21, 28, 35, 42]


def test_the_least_has_to_be_chosen():
    with pytest.raises(TypeError):
        curriculum_size(42, 0, 10)


def test_arrays_are_sequences_too():
    dices = np.array([0.2, 0.8, 0.4])
    assert curriculum_order(dices, 0, 4, least=2) == [1, 2]
