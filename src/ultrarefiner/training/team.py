"""Processes that train one model together, one on each GPU: who does what, and what they exchange.

The model is not wrapped. Parts of it are frozen and unfrozen by epoch, batches are lists, and the
last one may be uneven, so each member computes the gradient of its samples and the gradients are
summed before the optimizer's step. A team of one exchanges nothing.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from itertools import islice
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import nn

from ultrarefiner.errors import ConfigError
from ultrarefiner.runtime import choose_device

T = TypeVar("T")

# The first member may work alone for hours, on the shelf of embeddings say; that a member has died
# is told by its closed connection and by the launcher, not by the clock.
_PATIENCE = timedelta(days=7)
_BUCKET = 2**24
"""Numbers that are summed in one message."""


@dataclass(frozen=True)
class Share:
    """A member's samples of a batch.

    Attributes:
        start: The first of them.
        stop: The one after the last.
        of: Samples of the batch.
        copies: How many members compute these very samples.
    """

    start: int
    stop: int
    of: int
    copies: int = 1

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def is_whole(self) -> bool:
        """Whether these are all samples of the batch."""
        return len(self) == self.of


class Team:
    """The members of a training, as one of them sees it.

    Args:
        rank: Number of this member, from 0.
        size: Number of members.
        on_node: Members on this machine.
    """

    def __init__(self, rank: int = 0, size: int = 1, on_node: int = 1) -> None:
        self.rank, self.size, self.on_node = rank, size, on_node

    @property
    def is_first(self) -> bool:
        """Whether this is the member that writes files."""
        return self.rank == 0

    def devices(self, device: str) -> str:
        """Return on what the team trains, in words."""
        found = choose_device(device)
        return str(found) if self.size == 1 else f"{self.size} x {found.type}"

    def share(self, count: int) -> Share:
        """Return this member's part of some items, perhaps none; parts differ by at most one."""
        start, stop = (count * rank // self.size for rank in (self.rank, self.rank + 1))
        return Share(start, stop, count)

    def batch_share(self, count: int) -> Share:
        """Return this member's part of a batch; of one too small for all, each computes all."""
        return Share(0, count, count, self.size) if count < self.size else self.share(count)

    def batches(self, items: Sequence[T], sizes: Sequence[int], first: int = 0) -> list[list[T]]:
        """Return this member's items of each batch from a first one on.

        Args:
            items: Those of all batches, in order.
            sizes: Items of each batch.
            first: The first batch to return.
        """
        parts, offset = [], sum(sizes[:first])
        for size in sizes[first:]:
            share = self.batch_share(size)
            parts.append(list(items[offset + share.start : offset + share.stop]))
            offset += size
        return parts

    def dealt(self, items: Iterable[T], hand: int) -> Iterator[T]:
        """Yield this member's items of those dealt out ``hand`` at a time."""
        waiting, turn = iter(items), 0
        while taken := list(islice(waiting, hand)):
            if turn % self.size == self.rank:
                yield from taken
            turn += 1

    def spare_rounds(self, count: int, batch: int = 1) -> int:
        """Return how many batches fewer than others this member has of shared items."""
        most = math.ceil(count / self.size)
        return math.ceil(most / batch) - math.ceil(len(self.share(count)) / batch)

    def gather(
        self, index: Sequence[int], rows: torch.Tensor | Sequence[torch.Tensor]
    ) -> torch.Tensor:
        """Return the rows of all members by rising index, on the CPU.

        Args:
            index: Of each of this member's rows, its place among all.
            rows: This member's rows, of one shape and type; perhaps none. A tensor will do.
        """
        if not isinstance(rows, torch.Tensor):
            rows = torch.stack(list(rows)) if rows else torch.empty(0)
        mine = (list(index), rows.detach().cpu())
        all_of: list[tuple[list[int], torch.Tensor]] = [mine] * self.size
        if self.size > 1:
            dist.all_gather_object(all_of, mine)
        filled = [(places, values) for places, values in all_of if places]
        places = torch.tensor([place for places, _ in filled for place in places])
        return torch.cat([values for _, values in filled])[places.argsort()]

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Sum a tensor over the members, in place; return it."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Give every member the sum of all members' gradients.

        A parameter without a gradient on some members counts as zero there; without one on any it
        keeps none, so that the optimizer leaves it alone as it would in one process.
        """
        if self.size == 1:
            return
        trained = [one for one in parameters if one.requires_grad]
        known = torch.tensor([one.grad is not None for one in trained], dtype=torch.uint8)
        dist.all_reduce(known, dist.ReduceOp.MAX)
        for bucket in _buckets([one for one, has in zip(trained, known, strict=True) if has]):
            flat = torch.cat(
                [
                    (torch.zeros_like(one) if one.grad is None else one.grad).flatten()
                    for one in bucket
                ]
            )
            self.sum(flat)
            for one, part in zip(bucket, flat.split([one.numel() for one in bucket]), strict=True):
                one.grad = part.view_as(one)

    def largest(self, number: int) -> int:
        """Return the largest of the members' numbers."""
        if self.size == 1:
            return number
        found = torch.tensor(number)
        dist.all_reduce(found, dist.ReduceOp.MAX)
        return int(found)

    def tell(self, value: T) -> T:
        """Return what the first member has; what others hand over is ignored."""
        if self.size == 1:
            return value
        told = [value if self.is_first else None]
        dist.broadcast_object_list(told, src=0, device=torch.device("cpu"))
        return told[0]

    def wait(self) -> None:
        """Wait until all members are here."""
        self.largest(0)


ALONE = Team()
"""The team of a training in one process."""


def _buckets(parameters: Sequence[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Yield parameters of one type and device together, not too many at a time."""
    bucket: list[nn.Parameter] = []
    for one in parameters:
        full = sum(other.numel() for other in bucket) + one.numel() > _BUCKET
        if bucket and (full or (one.dtype, one.device) != (bucket[0].dtype, bucket[0].device)):
            yield bucket
            bucket = []
        bucket.append(one)
    if bucket:
        yield bucket


@contextmanager
def join_team(device: str) -> Iterator[tuple[Team, str]]:
    """Join the team that ``torch.distributed.run`` started this process for.

    Args:
        device: ``auto``, ``cpu`` or ``cuda``.

    Yields:
        The team, and this member's device.

    Raises:
        ConfigError: There are fewer GPUs than processes on this machine, or none that can work
            together.
    """
    rank, size, local, on_node = (
        int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    )
    kind, backend = choose_device(device).type, "gloo"
    if kind == "mps":
        raise ConfigError(
            "gpu: several processes cannot share this machine's GPU; set `gpu: 1`, or `device: cpu`"
        )
    if kind == "cuda":
        if torch.cuda.device_count() < on_node:
            raise ConfigError(
                f"gpu: {on_node} GPUs are asked for and this job has {torch.cuda.device_count()}; "
                "lower `gpu`, or run where there are more"
            )
        kind, backend = f"cuda:{local}", "cpu:gloo,cuda:nccl"
        torch.cuda.set_device(local)
    dist.init_process_group(backend, timeout=_PATIENCE)
    yield Team(rank, size, on_node), kind
    # Not after an error: it would wait for the others.
    dist.destroy_process_group()
