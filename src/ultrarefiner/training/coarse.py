"""Coarse segmentation models: trained on one fold, applied to its test cases."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import nn

from ultrarefiner import images
from ultrarefiner.config import CoarseConfig
from ultrarefiner.datasets.splits import read_split
from ultrarefiner.errors import ConfigError, SplitError, WeightsError
from ultrarefiner.io import atomic_directory, file_sha256
from ultrarefiner.models import MODELS, build_model
from ultrarefiner.models.transunet import load_imagenet21k
from ultrarefiner.models.weights import WEIGHTS, locate_weights
from ultrarefiner.models.weights_record import checked_sha256
from ultrarefiner.runtime import choose_device, seed_everything
from ultrarefiner.training import console
from ultrarefiner.training.checkpoint import (
    check_leak,
    load_model,
    save_weights,
    versions,
    write_card,
)
from ultrarefiner.training.counts import confusion_counts, mean_measures
from ultrarefiner.training.data import CoarseData, TrainingBatches, as_input
from ultrarefiner.training.engine import EngineSettings, FitResult, fit
from ultrarefiner.training.losses import coarse_loss
from ultrarefiner.training.resume import ResumeFolder
from ultrarefiner.training.signals import Check

log = logging.getLogger(__name__)

NUM_CLASSES = 2
THRESHOLD = 0.5


@dataclass(frozen=True)
class Prediction:
    """A coarse model's answer for one case.

    Attributes:
        index: Place of the case in its ``CoarseData``.
        logits: float32 (K, S, S), at the model's size, on the model's device.
        probability: float32 (H, W), of the lesion, at original size.
    """

    index: int
    logits: torch.Tensor
    probability: np.ndarray

    @property
    def mask(self) -> np.ndarray:
        """Bool (H, W): probability of at least one half."""
        return self.probability >= THRESHOLD


def enlarge(probability: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resample probabilities bilinearly to an image's size; threshold only afterwards.

    Args:
        probability: float32 (S, S).
        height: Original height in pixels.
        width: Original width in pixels.

    Returns:
        float32 (height, width).
    """
    return cv2.resize(probability, (width, height), interpolation=cv2.INTER_LINEAR)


def predict(
    model: nn.Module,
    data: CoarseData,
    batch_size: int,
    check: Callable[[], None] = lambda: None,
) -> Iterator[Prediction]:
    """Apply a coarse model; validation and prediction both go through here, in float32.

    Args:
        model: The model, on its device; put in eval mode.
        data: The cases.
        batch_size: Images in a forward pass.
        check: Called before each pass.
    """
    device = next(model.parameters()).device
    model.eval()
    for start in range(0, len(data), batch_size):
        check()
        batch = torch.from_numpy(data.images[start : start + batch_size]).to(device)
        with torch.inference_mode():
            logits = model(as_input(batch)).float()
            probabilities = logits.softmax(1)[:, 1].cpu().numpy()
        for offset, probability in enumerate(probabilities):
            shape = data.truths[start + offset].shape
            yield Prediction(start + offset, logits[offset], enlarge(probability, *shape))


class CoarseTask:
    """Training of a coarse model, as the engine sees it."""

    def __init__(
        self, model: nn.Module, train: CoarseData, validation: CoarseData, config: CoarseConfig
    ) -> None:
        self.model, self.validation, self.config = model, validation, config
        self._batches = TrainingBatches(
            train, config.augment, config.batch_size, config.seed, config.workers
        )

    def batch_sizes(self, epoch: int) -> list[int]:
        """Return the samples of each batch; every epoch has the same."""
        return self._batches.sizes

    def batches(self, epoch: int) -> Iterator[list[torch.Tensor]]:
        """Return the augmented batches of an epoch."""
        return self._batches.epoch(epoch)

    def losses(self, model: nn.Module, batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Return each sample's loss, (B,), and confusion counts at the model's size, (B, 4)."""
        pixels, labels = batch[0], batch[1].long()
        logits = model(as_input(pixels))
        with torch.no_grad():
            counts = confusion_counts(logits.argmax(1) == 1, labels == 1)
        return self._loss(logits, labels), counts

    def _loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return coarse_loss(logits, labels, self.config.loss.ce, self.config.loss.dice)

    def measure(self, observed: torch.Tensor) -> dict[str, float]:
        """Return the mean Dice and IoU of the training samples, as they were augmented."""
        means = mean_measures(observed)
        return {name: means[name] for name in ("dice", "iou")}

    def validate(self, check: Check) -> dict[str, float]:
        """Return means over the validation cases, masks compared at original size."""
        data, counts, losses = self.validation, [], []
        for one in predict(self.model, data, self.config.batch_size, check):
            truth = torch.from_numpy(data.truths[one.index])
            counts.append(confusion_counts(torch.from_numpy(one.mask), truth))
            label = torch.from_numpy(data.labels[one.index]).long().to(one.logits.device)
            losses.append(self._loss(one.logits[None], label[None]))
        loss = float(torch.cat(losses).cpu().double().mean())
        return mean_measures(torch.stack(counts)) | {"loss": loss}


def _starting_weights(config: CoarseConfig) -> Path | None:
    if config.init == "random":
        return None
    if not MODELS[config.model].imagenet21k:
        raise ConfigError(f"init: {config.model} has no ImageNet weights; use `init: random`")
    try:
        return locate_weights(config.pretrained)
    except WeightsError as error:
        raise WeightsError(
            f"{error} To train from random weights, which is much worse on small datasets, set "
            "`init: random` in the model's config."
        ) from error


def _settings(config: CoarseConfig, device: str, tensorboard: Path) -> EngineSettings:
    return EngineSettings(
        epochs=config.epochs,
        lr=config.lr,
        optimizer=config.optimizer,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        power=config.power,
        grad_clip=config.grad_clip,
        accumulate=config.accumulate,
        precision=config.precision,
        validate_every=config.validate_every,
        seed=config.seed,
        device=device,
        tensorboard=tensorboard if config.tensorboard else None,
    )


def _fold_cases(splits: Path, fold: int) -> dict[str, list[str]]:
    roles = read_split(splits, fold)
    for role in ("train", "validation"):
        if not roles[role]:
            raise SplitError(
                f"{splits}: fold {fold} has no {role} cases. Use fewer `splits.folds` or another "
                "`splits.validation`, delete the file, and run again."
            )
    return roles


def train_coarse(
    config: CoarseConfig,
    name: str,
    dataset: str,
    prepared: str | Path,
    splits: str | Path,
    fold: int,
    protocol: str,
    model: str | Path,
    card: str | Path,
    history: str | Path,
    device: str = "auto",
) -> None:
    """Train a coarse model on one fold and write the weights of its best epoch.

    The best epoch has the highest mean Dice of the validation cases at original size; under the
    protocol ``seed`` these are the test cases, and the card says "reported fold". State between
    runs lies in ``resume/`` beside the model.

    Args:
        config: The model and its training.
        name: Name of the model in the study.
        dataset: Name of the dataset.
        prepared: Folder of the prepared cases.
        splits: ``splits.csv``.
        fold: Outer fold.
        protocol: ``nested`` or ``seed``.
        model: Weights to write.
        card: Card to write.
        history: CSV to write, one row an epoch.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.

    Raises:
        ConfigError: The model or the device is unknown, or the model has no such start.
        WeightsError: The starting weights are absent or another model's.
        SplitError: The fold has no training or validation cases.
        SystemExit: SIGTERM came (status 143); the next run goes on from the last finished epoch.
    """
    model, splits = Path(model), Path(splits)
    roles = _fold_cases(splits, fold)
    pretrained = _starting_weights(config)
    parents = {} if pretrained is None else {pretrained.name: checked_sha256(pretrained)}
    seed_everything(config.seed)
    net = build_model(config.model, config.image_size, NUM_CLASSES)
    if pretrained is not None:
        load_imagenet21k(net, pretrained)
    train, validation = (
        CoarseData.read(prepared, roles[role], config.image_size, with_truths=role != "train")
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
        },
    )
    settings = _settings(config, device, model.parent / "tensorboard")
    if resume.is_empty:
        shutil.rmtree(model.parent / "tensorboard", ignore_errors=True)
    log.info("%s", _header(config, name, dataset, fold, protocol, roles, net, settings))
    result = fit(CoarseTask(net, train, validation, config), settings, resume, history)
    save_weights(model, net.state_dict())
    selection = "reported fold" if protocol == "seed" else "validation"
    write_card(
        card,
        {
            "architecture": {
                "model": config.model,
                "image_size": config.image_size,
                "num_classes": NUM_CLASSES,
            },
            "phase": "coarse",
            "name": name,
            "dataset": dataset,
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
            "licence": _licence(dataset, parents),
            "versions": versions(),
            "fingerprint": resume.fingerprint,
        },
    )
    best = {"rows": result.rows, "best_epoch": result.best_epoch, "metrics": result.metrics}
    resume.finish(best, result.best_epoch, model)
    _say_best(result, selection, len(roles["validation"]), model)


def _licence(dataset: str, parents: dict[str, str]) -> str:
    known = {row.file: row.licence for row in WEIGHTS.values()}
    terms = [f"{file}: {known.get(file, 'see its source')}" for file in parents]
    return "; ".join([f"dataset {dataset}: see its terms", *terms])


def _header(
    config: CoarseConfig,
    name: str,
    dataset: str,
    fold: int,
    protocol: str,
    roles: dict[str, list[str]],
    net: nn.Module,
    settings: EngineSettings,
) -> str:
    sizes = [parameter.numel() for parameter in net.parameters()]
    trained = sum(p.numel() for p in net.parameters() if p.requires_grad)
    role = (
        "test (protocol seed: selected on the reported fold)"
        if protocol == "seed"
        else "validation"
    )
    samples = f"{len(roles['train'])} train, {len(roles['validation'])} {role}"
    start = config.pretrained if config.init == "imagenet21k" else "random weights"
    return console.header(
        f"{name}  |  {dataset}, fold {fold}",
        {
            "samples": samples,
            "model": f"{config.model} at {config.image_size} px, "
            + console.parameter_count(trained, sum(sizes)),
            "start": start,
            "schedule": f"{config.epochs} epochs, batches of {config.batch_size} x "
            f"{config.accumulate}, {config.optimizer}, lr {config.lr:g}",
            "device": f"{choose_device(settings.device)}, {config.precision}, seed {config.seed}",
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


def predict_coarse(
    model: str | Path,
    card: str | Path,
    prepared: str | Path,
    splits: str | Path,
    fold: int,
    protocol: str,
    masks: str | Path,
    probabilities: str | Path,
    device: str = "auto",
) -> None:
    """Write masks and probabilities of a fold's test cases, at original size.

    Args:
        model: Weights that ``train_coarse`` wrote.
        card: Their card.
        prepared: Folder of the prepared cases.
        splits: ``splits.csv``.
        fold: Outer fold.
        protocol: ``nested`` or ``seed``; only ``seed`` allows a model selected on the test cases.
        masks: Folder to write, {case}.png of 0 and 255.
        probabilities: Folder to write, {case}.png of probability x 255.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.

    Raises:
        LeakError: The model has seen cases of the fold's test set.
        WeightsError: The model is absent, damaged, or another's.
    """
    net, facts = load_model(model, card)
    cases = read_split(splits, fold)["test"]
    check_leak(facts, cases, allow_selected=protocol == "seed")
    data = CoarseData.read(prepared, cases, facts["architecture"]["image_size"])
    net.to(choose_device(device))
    with atomic_directory(masks) as mask_folder, atomic_directory(probabilities) as soft_folder:
        for one in predict(net, data, facts["config"]["batch_size"]):
            case = data.cases[one.index]
            # The mask comes of the float probability, not of its rounded picture.
            images.write_mask(mask_folder / f"{case}.png", one.mask)
            images.write_probability(soft_folder / f"{case}.png", one.probability)
    log.info("%s fold %d: %d masks in %s", facts["name"], fold, len(data), masks)
