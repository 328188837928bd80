"""The training engine: one loop for every phase, resumable to the bit on a CPU.

What is trained is a ``Task``; how, an ``EngineSettings``. Devices, mixed precision and gradient
scaling are lightning-fabric's.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments import LightningEnvironment
from torch import nn
from tqdm import tqdm

from ultrarefiner.errors import ConfigError, UltraRefinerError
from ultrarefiner.io import item_seed
from ultrarefiner.runtime import choose_device, seed_everything
from ultrarefiner.training import console
from ultrarefiner.training.history import FitResult, add_scalars, open_events, write_history
from ultrarefiner.training.plan import Stage, one_stage, open_stages, stage_rates
from ultrarefiner.training.resume import ResumeFolder
from ultrarefiner.training.settings import EngineSettings
from ultrarefiner.training.signals import Check, stop_on_signal

log = logging.getLogger(__name__)


class Task(Protocol):
    """What is trained: a model, batches, a loss, a validation.

    Attributes:
        model: The model; parameters that do not require a gradient are frozen.
    """

    model: nn.Module

    def batch_sizes(self, epoch: int) -> list[int]:
        """Return the number of samples of each batch of an epoch, which counts from 0."""

    def batches(self, epoch: int) -> Iterable[Any]:
        """Return the batches of an epoch; they depend on the epoch and on nothing drawn before."""

    def losses(self, model: nn.Module, batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the loss of each sample, (B,), and what to observe of each, (B, M) integers."""

    def measure(self, observed: torch.Tensor) -> dict[str, float]:
        """Return means over an epoch's (N, M) observations, for the history."""

    def validate(self, check: Check) -> dict[str, float]:
        """Return the validation metrics of the model; call ``check`` between batches."""


def set_train_mode(model: nn.Module) -> None:
    """Put a model in train mode, but its frozen parts in eval mode.

    A part is frozen when it has parameters and none requires a gradient. Its dropout must not drop
    and its BatchNorm statistics must not drift, which ``requires_grad`` alone does not prevent.
    """
    model.train()
    for module in model.modules():
        parameters = list(module.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            module.eval()


def make_optimizer(stages: Sequence[Stage], settings: EngineSettings) -> torch.optim.Optimizer:
    """Return the optimizer of the parts of a model, one parameter group for each."""
    groups = [{"params": list(stage.parameters), "lr": stage.lr} for stage in stages]
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(groups, settings.lr, weight_decay=settings.weight_decay)
    return torch.optim.SGD(
        groups,
        settings.lr,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        nesterov=settings.nesterov,
    )


def make_fabric(settings: EngineSettings) -> Fabric:
    """Return lightning-fabric on the one device of the settings.

    Raises:
        ConfigError: The device is not on this machine, or cannot compute so.
    """
    device = choose_device(settings.device)
    if settings.precision == "16-mixed" and device.type != "cuda":
        raise ConfigError(
            f"precision: 16-mixed needs a CUDA GPU and this job runs on {device.type}; use "
            "bf16-mixed or 32-true"
        )
    devices: Any = 1 if device.index is None else [device.index]
    # A Slurm job is one process here; without this, fabric takes srun's variables as orders.
    plugins = [LightningEnvironment()]
    return Fabric(
        accelerator=device.type, devices=devices, precision=settings.precision, plugins=plugins
    )


def _groups(sizes: list[int], accumulate: int) -> list[tuple[int, bool]]:
    """Return for each batch the samples of its optimizer step, and whether it ends the step."""
    groups = []
    for start in range(0, len(sizes), accumulate):
        members = sizes[start : start + accumulate]
        groups += [(sum(members), i == len(members) - 1) for i in range(len(members))]
    return groups


def _rng_state() -> dict[str, Any]:
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"torch": torch.get_rng_state(), "cuda": cuda}


def _set_rng_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    if state["cuda"] and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])


class _Run:
    """One call of ``fit``: the model, the optimizer and where they are in the schedule."""

    def __init__(
        self,
        task: Task,
        settings: EngineSettings,
        resume: ResumeFolder,
        stages: Sequence[Stage] | None,
    ) -> None:
        self.task, self.settings, self.resume = task, settings, resume
        self.stages = stages or one_stage(task.model, settings.lr)
        self.fabric = make_fabric(settings)
        self.model, self.optimizer = self.fabric.setup(
            task.model, make_optimizer(self.stages, settings)
        )
        self.steps = [
            math.ceil(len(task.batch_sizes(epoch)) / settings.accumulate)
            for epoch in range(settings.epochs)
        ]
        self.step = 0
        self.result = FitResult()
        saved = resume.load()
        if saved is not None:
            self._restore(saved)

    def _restore(self, saved: dict[str, Any]) -> None:
        # States of before there was a start to keep have no more than three of these.
        names = ("rows", "best_epoch", "metrics", "before", "stopped")
        self.result = FitResult(**{name: saved[name] for name in names if name in saved})
        if saved.get("finished"):
            return
        self.task.model.load_state_dict(saved["model"])
        self.optimizer.load_state_dict(saved["optimizer"])
        if saved["precision"]:
            self.fabric.strategy.precision.load_state_dict(saved["precision"])
        _set_rng_state(saved["rng"])
        self.step = saved["step"]
        log.info("resuming after epoch %d of %d", len(saved["rows"]), self.settings.epochs)

    def save(self) -> None:
        """Save everything that the next epoch starts from."""
        state = {
            "model": self.task.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "precision": self.fabric.strategy.precision.state_dict(),
            "rng": _rng_state(),
            "step": self.step,
            **self.result.state(),
        }
        self.resume.save(state, self.result.best_epoch)

    def train_epoch(self, epoch: int, check: Check) -> dict[str, Any]:
        """Train one epoch and return its row of the history, without validation."""
        settings, started = self.settings, time.perf_counter()
        # Seeded anew, so that an epoch's dropout does not depend on how training got here.
        seed_everything(item_seed(settings.seed, "epoch", epoch))
        open_stages(self.stages, epoch)
        set_train_mode(self.task.model)
        groups = _groups(self.task.batch_sizes(epoch), settings.accumulate)
        rates = self._rates()
        losses, observed = [], []
        title = f"epoch {epoch + 1}/{settings.epochs}"
        with tqdm(total=len(groups), desc=title, disable=None, leave=False) as bar:
            for batch, (samples, ends_step) in zip(self.task.batches(epoch), groups, strict=True):
                check()
                loss, seen = self.task.losses(self.model, self.fabric.to_device(batch))
                # The mean over the samples of the step, however they are spread over its batches.
                self.fabric.backward(loss.sum() / samples)
                losses.append(loss.detach())
                observed.append(seen)
                if ends_step:
                    self._take_step()
                bar.update()
        loss = float(torch.cat(losses).mean())
        if not math.isfinite(loss):
            raise UltraRefinerError(
                f"the training loss is {loss} in epoch {epoch + 1}; lower `lr`, set `grad_clip`, or "
                "use `precision: 32-true`"
            )
        measured = self.task.measure(torch.cat(observed).cpu())
        row: dict[str, Any] = {"epoch": epoch + 1, "train_loss": loss}
        row |= {f"train_{name}": value for name, value in measured.items()}
        row["lr"] = max(rates)
        if len(rates) > 1:
            row |= {f"lr_{of.name}": rate for of, rate in zip(self.stages, rates, strict=True)}
        return row | {"seconds": time.perf_counter() - started}

    def _rates(self) -> list[float]:
        return stage_rates(self.stages, self.settings, self.step, self.steps)

    def _take_step(self) -> None:
        settings = self.settings
        for group, rate in zip(self.optimizer.param_groups, self._rates(), strict=True):
            group["lr"] = rate
        if settings.grad_clip is not None:
            # With a gradient scaler an infinite gradient is normal: the scaler skips the step.
            self.fabric.clip_gradients(
                self.model,
                self.optimizer,
                max_norm=settings.grad_clip,
                error_if_nonfinite=False,
            )
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1

    def validate(self, row: dict[str, Any], check: Check) -> dict[str, float]:
        """Validate, add the metrics to the row, and keep the model if it is the best."""
        started = time.perf_counter()
        self.task.model.eval()
        metrics = self.task.validate(check)
        row |= {f"val_{name}": value for name, value in metrics.items()}
        row["seconds"] += time.perf_counter() - started
        result = self.result
        result.stopped = self._why_stop(metrics)
        chosen = self.settings.selection
        better = not result.metrics or metrics[chosen] > result.metrics[chosen]
        if better and not result.stopped:
            self._keep(row["epoch"], metrics)
        return metrics

    def _why_stop(self, metrics: dict[str, float]) -> str:
        if self.settings.drop_limit is None:
            return ""
        name, most = self.settings.drop_limit
        before, now = self.result.before[name], metrics[name]
        if before - now <= most:
            return ""
        return f"{name} fell from {before:.4f} before training to {now:.4f}, by more than {most:g}"

    def _keep(self, epoch: int, metrics: dict[str, float]) -> None:
        self.result.best_epoch, self.result.metrics = epoch, metrics
        self.resume.save_best(epoch, self.task.model.state_dict())

    def start(self, check: Check) -> None:
        """Validate the model as it comes, and keep it until an epoch is better."""
        self.task.model.eval()
        self.result.before = self.task.validate(check)
        self._keep(0, self.result.before)
        self.save()
        log.info("before training: %s", console.metrics_line(self.result.before))


def fit(
    task: Task,
    settings: EngineSettings,
    resume: ResumeFolder,
    history: str | Path,
    stages: Sequence[Stage] | None = None,
) -> FitResult:
    """Train a task's model, from the last finished epoch if ``resume`` holds one.

    On return the model has the weights of the best epoch, in eval mode; the resume folder still
    holds the state, to be finished once the model is safely written.

    Args:
        task: What to train.
        settings: How.
        resume: Folder of the state between runs.
        history: CSV to rewrite after each epoch: epoch, train_*, lr, val_*, seconds.
        stages: Which parts train when; None: what requires a gradient, in all epochs.

    Raises:
        UltraRefinerError: The loss is not finite, or nothing can be trained.
        SystemExit: SIGTERM came (status 143); the last finished epoch is saved.
    """
    run = _Run(task, settings, resume, stages)
    result, history = run.result, Path(history)
    events = open_events(settings.tensorboard, len(result.rows))
    with stop_on_signal() as check:
        if settings.keep_start and not result.before:
            run.start(check)
        for epoch in range(len(result.rows), settings.epochs):
            if result.stopped:
                break
            row = run.train_epoch(epoch, check)
            last = epoch + 1 == settings.epochs
            metrics = None
            if last or (epoch + 1) % settings.validate_every == 0:
                metrics = run.validate(row, check)
            result.rows.append(row)
            run.save()
            write_history(history, result.history)
            _tell(row, metrics, result, settings)
            if events is not None:
                add_scalars(events, row)
    if events is not None:
        events.close()
    if result.stopped:
        log.warning("training ended after epoch %d: %s", len(result.rows), result.stopped)
    write_history(history, result.history)
    task.model.load_state_dict(resume.load_best(result.best_epoch))
    task.model.eval()
    return result


def _tell(
    row: dict[str, Any],
    metrics: dict[str, float] | None,
    result: FitResult,
    settings: EngineSettings,
) -> None:
    log.info("%s", console.epoch_line(row, settings.epochs))
    if metrics is not None:
        best, is_best = result.metrics[settings.selection], result.best_epoch == row["epoch"]
        table = console.validation_table(
            metrics, settings.selection, best, result.best_epoch, is_best
        )
        log.info("%s", table)
