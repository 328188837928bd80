"""How far an epoch is: kept when a training stops in the middle of it, and taken up again."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch

from ultrarefiner.training.team import Share, Team


class Progress:
    """The samples of an epoch that were trained on, over all members of a team.

    Args:
        team: Who trains.
        sizes: Samples of each batch of the epoch.
        saved: ``state`` of a training that stopped in this epoch; its team may have been another.

    Attributes:
        batches: Batches that are done.
        rng: State of the random numbers after them; None at the beginning.
    """

    def __init__(
        self, team: Team, sizes: Sequence[int], saved: dict[str, Any] | None = None
    ) -> None:
        self._team, self._sizes = team, list(sizes)
        saved = saved or {}
        self.batches: int = saved.get("batches", 0)
        self.rng: dict[str, Any] | None = saved.get("rng")
        self._loaded = self.batches
        self._before: list[tuple[torch.Tensor, torch.Tensor]] = (
            [(saved["losses"], saved["observed"])] if self.batches else []
        )
        self._index: list[int] = []
        self._rows: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._first = sum(self._sizes[: self.batches])
        self._started = time.perf_counter() - saved.get("seconds", 0.0)

    @property
    def seconds(self) -> float:
        """Seconds that the epoch took so far, without the time between stop and restart."""
        return time.perf_counter() - self._started

    def add(self, share: Share, losses: torch.Tensor, observed: torch.Tensor) -> None:
        """Note this member's samples of the next batch: losses (B,) and observations (B, M)."""
        if share.copies == 1 or self._team.is_first:
            self._index += range(self._first + share.start, self._first + share.stop)
            self._rows.append((losses.detach(), observed))
        self._first += share.of
        self.batches += 1

    def rows(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return losses (N,) and observations (N, M) of all members so far, each sample once."""
        done = list(self._before)
        if self.batches > self._loaded:
            losses, observed = zip(*self._rows, strict=True) if self._rows else ((), ())
            done.append((self._gathered(losses), self._gathered(observed)))
        losses, observed = zip(*done, strict=True)
        return torch.cat(losses), torch.cat(observed)

    def _gathered(self, rows: Sequence[torch.Tensor]) -> torch.Tensor:
        return self._team.gather(self._index, torch.cat(list(rows)) if rows else ())

    def state(self, rng: dict[str, Any]) -> dict[str, Any]:
        """Return what has to be kept to go on from here."""
        losses, observed = self.rows()
        return {
            "batches": self.batches,
            "losses": losses,
            "observed": observed,
            "rng": rng,
            "seconds": self.seconds,
        }
