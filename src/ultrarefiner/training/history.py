"""What a training came to, epoch by epoch: in memory, as CSV, as TensorBoard events."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ultrarefiner.errors import ConfigError
from ultrarefiner.io import write_rows


@dataclass
class FitResult:
    """What a training came to; also its progress while it runs.

    Attributes:
        rows: The history, one row an epoch.
        best_epoch: Epoch of the chosen model, from 1; 0: as it was before training.
        metrics: Validation metrics of that epoch.
        before: Validation metrics before training, where they were asked for.
        stopped: Why training ended before its last epoch; empty if it did not.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    best_epoch: int | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    before: dict[str, float] = field(default_factory=dict)
    stopped: str = ""

    def state(self) -> dict[str, Any]:
        """Return what a resume folder keeps of it."""
        return {
            "rows": self.rows,
            "best_epoch": self.best_epoch,
            "metrics": self.metrics,
            "before": self.before,
            "stopped": self.stopped,
        }

    @property
    def history(self) -> list[dict[str, Any]]:
        """The rows, led by epoch 0 where the model was validated before training."""
        start = {f"val_{name}": value for name, value in self.before.items()}
        return [{"epoch": 0, **start}, *self.rows] if start else self.rows


def open_events(folder: Path | None, done: int) -> Any:
    """Return a writer of TensorBoard events, or None without a folder.

    Args:
        folder: Where to write.
        done: Epochs that are done; events after them are of a run that was lost.

    Raises:
        ConfigError: TensorBoard is not installed.
    """
    if folder is None:
        return None
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ConfigError(
            "tensorboard: true needs the package tensorboard, which is not installed; install "
            "'ultrarefiner[tensorboard]' or set tensorboard: false"
        ) from None
    return SummaryWriter(str(folder), purge_step=done + 1)


def add_scalars(events: Any, row: dict[str, Any]) -> None:
    """Write the numbers of an epoch's row as TensorBoard events."""
    for name, value in row.items():
        if name != "epoch":
            events.add_scalar(name.replace("_", "/", 1), value, row["epoch"])
    events.flush()


def write_history(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write the rows of a training as CSV; seconds come last."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    columns.sort(key=lambda name: name == "seconds")
    write_rows(path, columns, rows)
