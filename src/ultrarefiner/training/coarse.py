"""Training of coarse segmentation models, on one fold of a dataset or of several together."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ultrarefiner.config import CoarseConfig
from ultrarefiner.datasets.splits import read_split
from ultrarefiner.errors import ConfigError, SplitError, WeightsError
from ultrarefiner.io import file_sha256
from ultrarefiner.models import (
    MODELS,
    build_model,
    height_width,
    plan_model,
    starting_weights,
    unusable_keys,
)
from ultrarefiner.models.cards import write_card
from ultrarefiner.models.weights import locate_weights
from ultrarefiner.models.weights_record import checked_sha256
from ultrarefiner.registry import resolve
from ultrarefiner.runtime import seed_everything
from ultrarefiner.training import console
from ultrarefiner.training.checkpoint import licences, save_weights, versions
from ultrarefiner.training.coarse_segmenter import predict
from ultrarefiner.training.counts import confusion_counts, mean_measures, pooled
from ultrarefiner.training.data import (
    CoarseData,
    Prepared,
    PreparedCases,
    TrainingBatches,
    as_input,
)
from ultrarefiner.training.engine import fit
from ultrarefiner.training.history import FitResult
from ultrarefiner.training.launch import on_gpus
from ultrarefiner.training.losses import coarse_loss, deep_supervision_loss, list_outputs
from ultrarefiner.training.resume import ResumeFolder
from ultrarefiner.training.settings import EngineSettings, settings_of
from ultrarefiner.training.signals import Check
from ultrarefiner.training.team import ALONE, Team

log = logging.getLogger(__name__)


class CoarseTask:
    """Training of a coarse model, as the engine sees it.

    Args:
        model: The model.
        train: Training cases.
        validation: Validation cases.
        config: Its configuration.
        team: Who trains.
        volumes: The volume of each validation case, which is measured as a whole; None: each case
            is one by itself.
    """

    def __init__(
        self,
        model: nn.Module,
        train: CoarseData,
        validation: CoarseData,
        config: CoarseConfig,
        team: Team = ALONE,
        volumes: Sequence[str] | None = None,
    ) -> None:
        self.volumes = validation.cases if volumes is None else volumes
        self.model, self.validation, self.config, self.team = model, validation, config, team
        self._batches = TrainingBatches(
            train, config.augment, config.batch_size, config.seed, config.workers, team
        )

    def batch_sizes(self, epoch: int) -> list[int]:
        """Return the samples of each batch; every epoch has the same."""
        return self._batches.sizes

    def batches(self, epoch: int, first: int = 0) -> Iterator[list[torch.Tensor]]:
        """Return the augmented batches of an epoch from a first one on."""
        return self._batches.epoch(epoch, first)

    def losses(self, model: nn.Module, batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Return each sample's loss, (B,), and confusion counts at the model's size, (B, 4)."""
        pixels, labels = batch[0], batch[1].long()
        outputs = list_outputs(model(as_input(pixels)))
        with torch.no_grad():
            counts = confusion_counts(outputs[0].argmax(1) == 1, labels == 1)
        return deep_supervision_loss(outputs, lambda one: self._loss(one, labels)), counts

    def _loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        weights = self.config.loss
        return coarse_loss(
            logits,
            labels,
            weights.ce,
            weights.dice,
            focal=weights.focal,
            focal_alpha=weights.focal_alpha,
        )

    def measure(self, observed: torch.Tensor) -> dict[str, float]:
        """Return the mean Dice and IoU of the training samples, as they were augmented."""
        means = mean_measures(observed)
        return {name: means[name] for name in ("dice", "iou")}

    def validate(self, check: Check) -> dict[str, float]:
        """Return means over the validation cases, or their volumes, compared at original size."""
        team, size = self.team, self.config.batch_size
        share = team.share(len(self.validation))
        data, counts, losses = self.validation.part(share.start, share.stop), [], []
        for one in predict(self.model, data, size, check):
            truth = torch.from_numpy(data.truths[one.index])
            counts.append(confusion_counts(torch.from_numpy(one.mask), truth))
            label = torch.from_numpy(data.labels[one.index]).long().to(one.logits.device)
            losses.append(self._loss(one.logits[None], label[None])[0])
        for _ in range(team.spare_rounds(len(self.validation), size)):
            check()
        index = range(share.start, share.stop)
        loss = float(team.gather(index, losses).double().mean())
        wholes = pooled(team.gather(index, counts), self.volumes)
        return mean_measures(wholes) | {"loss": loss}


def _starting_files(config: CoarseConfig) -> list[Path]:
    try:
        return [locate_weights(name) for name in starting_weights(config)]
    except WeightsError as error:
        raise WeightsError(
            f"{error} To train from random weights, which is much worse on small datasets, set "
            "`init: random` in the model's config."
        ) from error


def _fold_cases(splits: Path, fold: int) -> dict[str, list[str]]:
    roles = read_split(splits, fold)
    for role in ("train", "validation"):
        if not roles[role]:
            raise SplitError(
                f"{splits}: fold {fold} has no {role} cases. Use fewer `splits.folds` or another "
                "`splits.validation`, delete the file, and run again."
            )
    return roles


@on_gpus
def train_coarse(
    config: CoarseConfig,
    name: str,
    trainset: str,
    prepared: Prepared,
    splits: str | Path,
    fold: int,
    protocol: str,
    model: str | Path,
    card: str | Path,
    history: str | Path,
    device: str = "auto",
    *,
    team: Team,
) -> None:
    """Train a coarse model on one fold and write the weights of its best epoch.

    The best epoch has the highest mean Dice of the validation cases at original size; under the
    protocol ``seed`` these are the test cases, and the card says "reported fold". State between
    runs lies in ``resume/`` beside the model.

    Args:
        config: The model and its training.
        name: Name of the model in the study.
        trainset: Name of the dataset, or of the union of datasets, that it trains on.
        prepared: Folder ``{dataset}/prepared``, or those of all datasets of the union.
        splits: ``splits.csv`` of the trainset.
        fold: Outer fold.
        protocol: ``nested`` or ``seed``.
        model: Weights to write.
        card: Card to write.
        history: CSV to write, one row an epoch.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        team: Who trains; the first member alone writes.

    Raises:
        ConfigError: The model or the device is unknown, or the model has no such start or key.
        WeightsError: The starting weights are absent or another model's.
        SplitError: The fold has no training or validation cases.
        DatasetError: A case is in none of the folders.
        SystemExit: A signal to stop came (status 143 or 130); the next run goes on from there.
    """
    model, splits = Path(model), Path(splits)
    if problems := list(unusable_keys(config)):
        raise ConfigError("; ".join(problems))
    roles = _fold_cases(splits, fold)
    starts = _starting_files(config)
    parents = {path.name: checked_sha256(path) for path in starts}
    source = PreparedCases(prepared)
    # Planned from what is trained on, and from nothing else.
    architecture = plan_model(config, lambda: source.sizes(roles["train"]))
    seed_everything(config.seed)
    net = build_model(**architecture)
    if starts:
        resolve(MODELS[config.model].starter)(net, starts)
    train, validation = (
        CoarseData.read(
            source, roles[role], architecture["image_size"], with_truths=role != "train"
        )
        for role in ("train", "validation")
    )
    resume = ResumeFolder(
        model.parent / "resume",
        {
            # Where the starting weights lie does not matter; what they are stands under parents.
            "config": {key: v for key, v in config.recipe().items() if key != "pretrained"},
            "splits": {role: roles[role] for role in ("train", "validation")},
            "cases": train.digests | validation.digests,
            "parents": parents,
            # How a model is planned may change with the version; weights of another plan do not fit.
            **({"architecture": architecture} if "options" in architecture else {}),
        },
        team,
    )
    settings = settings_of(config, model.parent, device)
    if team.is_first and resume.is_empty:
        shutil.rmtree(model.parent / "tensorboard", ignore_errors=True)
    log.info(
        "%s",
        _header(config, name, trainset, fold, protocol, roles, architecture, net, settings, team),
    )
    volumes = source.volumes(validation.cases)
    task = CoarseTask(net, train, validation, config, team, volumes)
    result = fit(task, settings, resume, history, team=team)
    if not team.is_first:
        return
    save_weights(model, net.state_dict())
    selection = "reported fold" if protocol == "seed" else "validation"
    write_card(
        card,
        {
            "architecture": architecture,
            "phase": "coarse",
            "name": name,
            "dataset": trainset,
            "fold": fold,
            "protocol": protocol,
            "config": config.model_dump(mode="json"),
            "metrics": {"epoch": result.best_epoch, **result.metrics},
            "selection": selection,
            # What was read, not what was asked for: the leak guard relies on it.
            "trained_on": list(train.cases),
            "selected_on": list(validation.cases),
            "parents": parents,
            "weights_sha256": file_sha256(model),
            "licence": licences(source, trainset, parents),
            "versions": versions(),
            "fingerprint": resume.fingerprint,
        },
    )
    resume.finish(result.state(), result.best_epoch, model)
    _say_best(result, selection, len(roles["validation"]), model)


def _header(
    config: CoarseConfig,
    name: str,
    trainset: str,
    fold: int,
    protocol: str,
    roles: dict[str, list[str]],
    architecture: dict[str, Any],
    net: nn.Module,
    settings: EngineSettings,
    team: Team,
) -> str:
    sizes = [parameter.numel() for parameter in net.parameters()]
    trained = sum(p.numel() for p in net.parameters() if p.requires_grad)
    role = (
        "test (protocol seed: selected on the reported fold)"
        if protocol == "seed"
        else "validation"
    )
    samples = f"{len(roles['train'])} train, {len(roles['validation'])} {role}"
    height, width = height_width(architecture["image_size"])
    start = ", ".join(starting_weights(config)) or "random weights"
    return console.header(
        f"{name}  |  {trainset}, fold {fold}",
        {
            "samples": samples,
            "model": f"{config.model} at {height} x {width} px, "
            + console.parameter_count(trained, sum(sizes)),
            "start": start,
            "schedule": f"{config.epochs} epochs, batches of {config.batch_size} x "
            f"{config.accumulate}, {config.optimizer}, lr {config.lr:g}",
            "device": f"{team.devices(settings.device)}, {config.precision}, seed {config.seed}",
        },
    )


def _say_best(result: FitResult, selection: str, cases: int, model: Path) -> None:
    log.info(
        "best epoch %s: Dice %.4f, IoU %.4f (%s, %d cases); weights in %s",
        result.best_epoch,
        result.metrics["dice"],
        result.metrics["iou"],
        selection,
        cases,
        model,
    )
