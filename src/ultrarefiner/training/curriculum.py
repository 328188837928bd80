"""The curriculum: training begins with good coarse masks and reaches all of them halfway.

It sees training samples alone: which ones an epoch trains on never depends on validation cases,
and validation never on the curriculum.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_FIRST = 0.2


def difficulty(epoch: int, epochs: int) -> float:
    """Return the share of the samples that an epoch may use, by the reference's schedule.

    It rises evenly from 0.2 in the first epoch and is 1 from epoch ``epochs // 2`` on.

    Args:
        epoch: Epoch, from 0.
        epochs: Epochs of the whole training.
    """
    rising = epochs // 2
    return _FIRST + (1 - _FIRST) * (epoch / rising) if epoch < rising else 1.0


def curriculum_size(samples: int, epoch: int, epochs: int, *, least: int) -> int:
    """Return how many samples an epoch uses: ``samples x difficulty``, rounded down.

    Args:
        samples: Training samples in all.
        epoch: Epoch, from 0.
        epochs: Epochs of the whole training.
        least: Samples that an epoch has in any case, as far as there are so many. The reference
            has 100, with which a set of that size has no curriculum at all; the size of a batch is
            enough for an epoch to be one.
    """
    return min(samples, max(least, int(samples * difficulty(epoch, epochs))))


def curriculum_order(dices: Sequence[float], epoch: int, epochs: int, *, least: int) -> list[int]:
    """Return the samples that an epoch uses, the easiest first.

    The easiest are those whose input is best already; of equal ones the first in the sequence.

    Args:
        dices: Dice of each training sample's coarse mask, in an order that does not change from
            run to run.
        epoch: Epoch, from 0.
        epochs: Epochs of the whole training.
        least: See ``curriculum_size``.

    Returns:
        Indexes into ``dices``.
    """
    order = np.argsort(-np.asarray(dices, dtype=np.float64), kind="stable")
    return order[: curriculum_size(len(dices), epoch, epochs, least=least)].tolist()
