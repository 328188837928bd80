"""What training says: a header, one line an epoch, a table a validation. Plain text, for logging."""

from __future__ import annotations

from collections.abc import Mapping

_WIDTH = 78
_NAMES = {"dice": "Dice", "iou": "IoU"}


def header(title: str, facts: Mapping[str, str]) -> str:
    """Return the block that opens a training.

    Args:
        title: Name of the experiment.
        facts: What to know about it, in order.
    """
    rule = "=" * _WIDTH
    width = max(map(len, facts), default=0)
    lines = [f"  {key:<{width}}  {value}" for key, value in facts.items()]
    return "\n".join(["", rule, f"ULTRAREFINER TRAINING  {title}", rule, *lines, rule])


def parameter_count(trained: int, total: int) -> str:
    """Return the number of parameters in words, and how many of them are trained."""
    text = f"{total / 1e6:.2f} M parameters"
    return text if trained == total else f"{text}, {trained / 1e6:.2f} M of them trained"


def epoch_line(row: Mapping[str, float | int], epochs: int) -> str:
    """Return the line of an epoch from its row of the history."""
    measures = [
        f"{_NAMES.get(name, name)} {row[f'train_{name}']:.4f}"
        for name in (key.removeprefix("train_") for key in row if key.startswith("train_"))
        if name != "loss"
    ]
    parts = [
        f"EPOCH {row['epoch']:>{len(str(epochs))}}/{epochs}",
        f"loss {row['train_loss']:.4f}",
        *measures,
        f"lr {row['lr']:.3g}",
        f"{row['seconds']:.1f} s",
    ]
    return "  ".join(parts)


def metrics_line(metrics: Mapping[str, float]) -> str:
    """Return validation metrics in one line."""
    return ", ".join(f"{_NAMES.get(name, name)} {value:.4f}" for name, value in metrics.items())


def validation_table(
    metrics: Mapping[str, float], selection: str, best: float, best_epoch: int, is_best: bool
) -> str:
    """Return the table of one validation, with a mark when it is the best so far.

    Args:
        metrics: Name and mean over the validation cases.
        selection: The metric that chooses the best epoch.
        best: Its best value so far.
        best_epoch: Epoch of that value, from 1; 0: before training.
        is_best: Whether this validation is it.
    """
    names = [_NAMES.get(name, name) for name in metrics]
    widths = [max(len(name), 6) for name in names]
    top = "  ".join(f"{name:>{width}}" for name, width in zip(names, widths, strict=True))
    values = "  ".join(
        f"{value:>{width}.4f}" for value, width in zip(metrics.values(), widths, strict=True)
    )
    chosen = _NAMES.get(selection, selection)
    mark = "★ BEST" if is_best else f"(best {chosen} {best:.4f}, epoch {best_epoch})"
    return f"  validation  {top}\n              {values}  {mark}"
