"""The training engine: one loop for every phase, resumable to the bit on a CPU.

What is trained is a ``Task``; how, an ``EngineSettings``. Devices, mixed precision and gradient
scaling are lightning-fabric's. Several processes train as one, see ``team``.
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
from ultrarefiner.training.progress import Progress
from ultrarefiner.training.resume import ResumeFolder
from ultrarefiner.training.settings import EngineSettings
from ultrarefiner.training.shared_modules import sharing
from ultrarefiner.training.signals import Check, stop_on_signal
from ultrarefiner.training.team import ALONE, Team

log = logging.getLogger(__name__)


class Task(Protocol):
    """What is trained: a model, batches, a loss, a validation.

    Attributes:
        model: The model; parameters that do not require a gradient are frozen.
    """

    model: nn.Module

    def batch_sizes(self, epoch: int) -> list[int]:
        """Return the number of samples of each batch of an epoch, which counts from 0."""

    def batches(self, epoch: int, first: int = 0) -> Iterable[Any]:
        """Return the batches of an epoch from a first one on, of a team this member's part of each.

        They depend on the epoch and on nothing drawn before.
        """

    def losses(self, model: nn.Module, batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the loss of each sample, (B,), and what to observe of each, (B, M) integers."""

    def measure(self, observed: torch.Tensor) -> dict[str, float]:
        """Return means over an epoch's (N, M) observations, for the history."""

    def validate(self, check: Check) -> dict[str, float]:
        """Return the validation metrics of the model; call ``check`` between batches.

        Members of a team share the cases and call ``check`` equally often.
        """


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
    if settings.optimizer == "adam":
        return torch.optim.Adam(groups, settings.lr, weight_decay=settings.weight_decay)
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


def _rng_state(device: torch.device) -> dict[str, Any]:
    """Return the state of the random numbers, which is that of every member of a team."""
    cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    return {"torch": torch.get_rng_state(), "cuda": cuda}


def _set_rng_state(state: dict[str, Any], device: torch.device) -> None:
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)


class _Run:
    """One call of ``fit``: the model, the optimizer and where they are in the schedule."""

    def __init__(
        self,
        task: Task,
        settings: EngineSettings,
        resume: ResumeFolder,
        stages: Sequence[Stage] | None,
        team: Team,
    ) -> None:
        self.task, self.settings, self.resume, self.team = task, settings, resume, team
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
        self.progress: Progress | None = None
        self._stopped: dict[str, Any] | None = None
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
        self.step, self._stopped = saved["step"], saved.get("progress")
        log.info(
            "resuming after epoch %d of %d%s",
            len(saved["rows"]),
            self.settings.epochs,
            f" and {self._stopped['batches']} batches" if self._stopped else "",
        )

    def save(self) -> None:
        """Save everything that training goes on from, in the middle of an epoch too."""
        progress = None
        if self.progress is not None and self.progress.batches:
            progress = self.progress.state(_rng_state(self.fabric.device))
        state = {
            "model": self.task.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "precision": self.fabric.strategy.precision.state_dict(),
            "step": self.step,
            "progress": progress,
            **self.result.state(),
        }
        self.resume.save(state, self.result.best_epoch)
        # Who leaves early is taken for one that failed, and the first would be killed as it writes.
        self.team.wait()

    def train_epoch(self, epoch: int, check: Check) -> dict[str, Any]:
        """Train one epoch and return its row of the history, without validation."""
        settings, team = self.settings, self.team
        # Seeded anew, so that an epoch's dropout does not depend on how training got here.
        seed_everything(item_seed(settings.seed, "epoch", epoch))
        open_stages(self.stages, epoch)
        set_train_mode(self.task.model)
        sizes = self.task.batch_sizes(epoch)
        progress = self.progress = Progress(team, sizes, self._stopped)
        self._stopped = None
        if progress.rng is not None:
            _set_rng_state(progress.rng, self.fabric.device)
        done = progress.batches
        groups = _groups(sizes, settings.accumulate)[done:]
        batches = zip(self.task.batches(epoch, done), groups, sizes[done:], strict=True)
        title = f"epoch {epoch + 1}/{settings.epochs}"
        with (
            tqdm(batches, title, len(sizes), initial=done, disable=None, leave=False) as bar,
            sharing(self.task.model, team) as current,
        ):
            for batch, (samples, ends_step), size in bar:
                share = current.share = team.batch_share(size)
                loss, seen = self.task.losses(self.model, self.fabric.to_device(batch))
                # The mean over the samples of the step, however they are spread over its batches.
                self.fabric.backward(loss.sum() / (samples * share.copies))
                progress.add(share, loss, seen)
                if ends_step:
                    self._take_step()
                    check()
        losses, observed = progress.rows()
        loss = float(losses.mean())
        if not math.isfinite(loss):
            raise UltraRefinerError(
                f"the training loss is {loss} in epoch {epoch + 1}; lower `lr`, set `grad_clip`, or "
                "use `precision: 32-true`"
            )
        measured = self.task.measure(observed)
        row: dict[str, Any] = {"epoch": epoch + 1, "train_loss": loss}
        row |= {f"train_{name}": value for name, value in measured.items()}
        rates = self._rates(sum(self.steps[:epoch]))
        row["lr"] = max(rates)
        if len(rates) > 1:
            row |= {f"lr_{of.name}": rate for of, rate in zip(self.stages, rates, strict=True)}
        return row | {"seconds": progress.seconds}

    def _rates(self, step: int) -> list[float]:
        return stage_rates(self.stages, self.settings, step, self.steps)

    def _take_step(self) -> None:
        settings = self.settings
        # Before they are unscaled: an infinite gradient on one GPU is one on all of them.
        self.team.sum_gradients(one for stage in self.stages for one in stage.parameters)
        for group, rate in zip(self.optimizer.param_groups, self._rates(self.step), strict=True):
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

    def next_epoch(self, check: Check) -> tuple[dict[str, Any], dict[str, float] | None]:
        """Train an epoch and validate where it is due; return its row, and what validation gave.

        Raises:
            SystemExit: A signal came; what is done is saved.
        """
        check()
        epoch, settings, metrics = len(self.result.rows), self.settings, None
        try:
            row = self.train_epoch(epoch, check)
            if epoch + 1 == settings.epochs or (epoch + 1) % settings.validate_every == 0:
                metrics = self.validate(row, check)
        except SystemExit:
            self.save()
            raise
        self.progress = None
        self.result.rows.append(row)
        self.save()
        return row, metrics

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
    team: Team = ALONE,
) -> FitResult:
    """Train a task's model, from the state that ``resume`` holds if there is one.

    On return the first member's model has the weights of the best epoch, in eval mode; the resume
    folder still holds the state, to be finished once the model is safely written.

    Args:
        task: What to train.
        settings: How.
        resume: Folder of the state between runs.
        history: CSV to rewrite after each epoch: epoch, train_*, lr, val_*, seconds.
        stages: Which parts train when; None: what requires a gradient, in all epochs.
        team: Who trains; the first member alone writes.

    Raises:
        UltraRefinerError: The loss is not finite, or nothing can be trained.
        SystemExit: A signal to stop came (status 143 or 130); what is done is saved.
    """
    run = _Run(task, settings, resume, stages, team)
    result, history = run.result, Path(history)
    events = None
    if team.is_first:
        events = open_events(settings.tensorboard, len(result.rows))
    with stop_on_signal(team) as check:
        if settings.keep_start and not result.before:
            run.start(check)
        while len(result.rows) < settings.epochs and not result.stopped:
            row, metrics = run.next_epoch(check)
            if not team.is_first:
                continue
            write_history(history, result.history)
            _tell(row, metrics, result, settings)
            if events is not None:
                add_scalars(events, row)
    if events is not None:
        events.close()
    if not team.is_first:
        return result
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
