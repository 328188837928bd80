"""End-to-end training: a fold's coarse model and refiner go on together as one model."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ultrarefiner.config import EndToEndConfig
from ultrarefiner.datasets.fits import read_fit
from ultrarefiner.errors import WeightsError
from ultrarefiner.io import file_sha256
from ultrarefiner.models.cards import (
    card_beside,
    check_fold,
    check_leak,
    is_of_a_fold,
    read_card,
    upstream,
    write_card,
)
from ultrarefiner.models.export import save_sam
from ultrarefiner.models.finetuned import ENCODER_OF
from ultrarefiner.models.weights import locate_weights
from ultrarefiner.models.weights_record import checked_sha256
from ultrarefiner.refine import load_refiner
from ultrarefiner.refine.sam import SamRefiner
from ultrarefiner.refine.shelf import Shelf
from ultrarefiner.runtime import seed_everything
from ultrarefiner.training import console
from ultrarefiner.training.checkpoint import (
    licences,
    load_model,
    save_weights,
    versions,
)
from ultrarefiner.training.data import Prepared, PreparedCases
from ultrarefiner.training.end_to_end_model import EndToEnd
from ultrarefiner.training.end_to_end_task import (
    EndToEndTask,
    plan_stages,
)
from ultrarefiner.training.engine import fit
from ultrarefiner.training.features import Features
from ultrarefiner.training.history import FitResult
from ultrarefiner.training.launch import on_gpus
from ultrarefiner.training.plan import Stage
from ultrarefiner.training.resume import ResumeFolder
from ultrarefiner.training.segmented import END_TO_END
from ultrarefiner.training.settings import EngineSettings, settings_of
from ultrarefiner.training.team import Team

log = logging.getLogger(__name__)


@on_gpus
def train_end_to_end(
    config: EndToEndConfig,
    name: str,
    trainset: str,
    prepared: Prepared,
    splits: str | Path,
    fold: int,
    protocol: str,
    coarse_model: str | Path,
    coarse_card: str | Path,
    family: str,
    weights: str,
    refiner_card: str | Path | None,
    options: Mapping[str, Any],
    shelf: str | Path,
    limit_gb: float,
    model: str | Path,
    refiner: str | Path,
    card: str | Path,
    history: str | Path,
    device: str = "auto",
    *,
    team: Team,
) -> None:
    """Train a coarse model and a refiner as one on a fold, and write the weights of its best epoch.

    The best epoch has the highest mean Dice of the refined masks of the validation cases at
    original size; epoch 0, before training, is one of them. State between runs lies in ``resume/``
    beside the model.

    Args:
        config: The training.
        name: Name of the method in the study.
        trainset: Name of the dataset, or of the union of datasets, that it trains on.
        prepared: Folder ``{dataset}/prepared``, or those of all datasets of the union.
        splits: ``splits.csv`` of the trainset.
        fold: Outer fold.
        protocol: ``nested`` or ``seed``.
        coarse_model: Weights that ``train_coarse`` wrote for the fold.
        coarse_card: Their card.
        family: Row of ``REFINERS``.
        weights: File or name of the refiner's weights.
        refiner_card: Their card where the study finetuned them.
        options: The refiner row's own keys.
        shelf: Folder of the shelf of embeddings.
        limit_gb: Its limit in 10^9 bytes.
        model: Weights to write: the coarse model's, and the gate's if there is one.
        refiner: Weights to write: the SAM's, a plain checkpoint of its family.
        card: Card to write.
        history: CSV to write, one row an epoch, led by one of epoch 0.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        team: Who trains; the first member alone writes, but for the shelf.

    Raises:
        ConfigError: Unknown family or option, or a part that the models do not have.
        WeightsError: Weights are absent, damaged, or not those of their card.
        SplitError: The fold has no training or validation cases, or a model is another fold's.
        LeakError: One of the models has seen cases that the fold reports on.
        SystemExit: A signal to stop came (status 143 or 130); the next run goes on from there.
    """
    model, splits = Path(model), Path(splits)
    roles = read_fit(splits, f"fold{fold}")
    seed_everything(config.seed)
    net, facts = load_model(coarse_model, coarse_card)
    known = _refiner_facts(weights, refiner_card)
    _check_parents([facts, *([known] if known else [])], roles["reported"], fold, protocol)
    sam = load_refiner(family, weights, device, **options)
    source = PreparedCases(prepared)
    store = None
    if config.cache != "none" and config.roi is None:
        store = Shelf(shelf, round(limit_gb * 1e9), len(roles["train"]), config.cache)
    whole, features, stages = _assemble(config, net, sam, store, facts["architecture"]["model"])
    task = EndToEndTask(
        config,
        whole,
        features,
        source,
        roles["train"],
        roles["validation"],
        facts["architecture"]["image_size"],
        team,
    )
    file = locate_weights(weights)
    parents = {
        config.coarse: facts["weights_sha256"],
        config.refiner: known["weights_sha256"] if known else checked_sha256(file),
    }
    resume = ResumeFolder(
        model.parent / "resume",
        {
            "config": config.recipe(),
            "refiner": {"family": family, "options": dict(options)},
            "splits": {role: roles[role] for role in ("train", "validation")},
            "cases": source.digests([*roles["train"], *roles["validation"]]),
            "parents": parents,
        },
        team,
    )
    settings = _settings(config, model.parent, device)
    if team.is_first and resume.is_empty:
        shutil.rmtree(model.parent / "tensorboard", ignore_errors=True)
    log.info("%s", _header(config, name, trainset, fold, task, stages, settings))
    if config.roi is None:
        # As in train_refiner.
        features.prepare(team.dealt(task.pictures(), sam.batch_size))
        team.wait()
    result = fit(task, settings, resume, history, stages, team)
    if not team.is_first:
        return
    about = {"family": family}
    if not config.encoder_changes:
        about[ENCODER_OF] = sam.weights_sha256
    save_sam(refiner, sam.sam, family, about)
    save_weights(model, _own_state(whole))
    write_card(
        card,
        {
            "architecture": {
                "model": END_TO_END,
                "image_size": facts["architecture"]["image_size"],
                "coarse": facts["architecture"],
                "refiner": {
                    "model": family,
                    "options": dict(options),
                    "image_size": sam.sam.image_encoder.img_size,
                    "weights_sha256": file_sha256(refiner),
                },
            },
            "phase": END_TO_END,
            "name": name,
            "dataset": trainset,
            "fold": fold,
            "protocol": protocol,
            "config": config.model_dump(mode="json"),
            "metrics": {
                "epoch": result.best_epoch,
                **result.metrics,
                "dice_before": result.before["dice"],
                "coarse_dice_before": result.before["coarse_dice"],
                "stopped": result.stopped,
            },
            "selection": "reported fold" if protocol == "seed" else "validation",
            "trained_on": task.train,
            "selected_on": task.validation,
            "parents": parents,
            "weights_sha256": file_sha256(model),
            "licence": _licence(source, trainset, facts, known, file),
            "versions": versions(),
            "fingerprint": resume.fingerprint,
            "sources": {
                "parents": [one for card in (facts, known) if card for one in upstream(card)]
            },
        },
    )
    resume.finish(result.state(), result.best_epoch, None)
    _say_best(result, model)


def _refiner_facts(weights: str, card: str | Path | None) -> dict[str, Any] | None:
    """Return the card of a refiner's weights; None: nobody here trained them.

    Raises:
        WeightsError: The weights are not those of the card.
    """
    if card is None:
        return card_beside(weights)
    facts = read_card(card)
    if file_sha256(weights) != facts["weights_sha256"]:
        raise WeightsError(
            f"{weights} is not the file that {card} describes. Delete both and train the refiner "
            "again."
        )
    return facts


def _check_parents(
    cards: Sequence[dict[str, Any]], reported: Sequence[str], fold: int, protocol: str
) -> None:
    for facts in cards:
        if is_of_a_fold(facts):
            check_fold(facts, fold)
        check_leak(facts, reported, allow_selected=protocol == "seed")


def _assemble(
    config: EndToEndConfig,
    net: torch.nn.Module,
    sam: SamRefiner,
    store: Shelf | None,
    coarse: str,
) -> tuple[EndToEnd, Features, list[Stage]]:
    """Return the model on its device, how images come to it, and which of its parts train when."""
    for module in (net, sam.sam):
        module.requires_grad_(False)
    if config.encoder_changes:
        # What trains later must not be taken from the shelf now.
        sam.sam.image_encoder.requires_grad_(True)
    features = Features(sam, store)
    whole = EndToEnd(net.to(sam.device), sam, features, config).to(sam.device)
    stages = plan_stages(whole, config, coarse)
    trained = [one for stage in stages for one in stage.parameters]
    for one in trained:
        one.requires_grad_(True)
    whole.keep_state_of(trained)
    return whole, features, stages


def _own_state(whole: EndToEnd) -> dict[str, torch.Tensor]:
    """Return the tensors that are not the SAM's."""
    state = {f"coarse.{name}": value for name, value in whole.coarse.state_dict().items()}
    if whole.gate is not None:
        state |= {f"gate.{name}": value for name, value in whole.gate.state_dict().items()}
    return state


def _licence(
    source: PreparedCases,
    trainset: str,
    facts: Mapping[str, Any],
    known: Mapping[str, Any] | None,
    file: Path,
) -> str:
    behind = [
        facts["licence"],
        known["licence"] if known else licences(source, trainset, {file.name: ""}),
    ]
    terms = [term for text in behind for term in text.split("; ")]
    return "; ".join(dict.fromkeys(terms))


def _settings(config: EndToEndConfig, folder: Path, device: str) -> EngineSettings:
    drop = config.largest_drop
    return settings_of(
        config,
        folder,
        device,
        lr=max(row.lr for row in config.train.values()),
        keep_start=True,
        drop_limit=None if drop is None else ("coarse_dice", drop),
    )


def _header(
    config: EndToEndConfig,
    name: str,
    trainset: str,
    fold: int,
    task: EndToEndTask,
    stages: Sequence[Stage],
    settings: EngineSettings,
) -> str:
    model = task.model
    counts = [sum(one.numel() for one in stage.parameters) for stage in stages]
    total = sum(one.numel() for one in model.parameters())
    trained = [
        f"{stage.name} (lr {stage.lr:g}"
        + (f", from epoch {stage.first + 1}" if stage.first else "")
        + (f", until epoch {stage.last}" if stage.last else "")
        + ")"
        for stage in stages
    ]
    height, width = task.coarse_size
    return console.header(
        f"{name}  |  {trainset}, fold {fold}",
        {
            "samples": f"{len(task.train)} train, {len(task.validation)} validate",
            "model": f"{config.coarse} at {height} x {width} px and {config.refiner} at "
            f"{model.frame} px, {console.parameter_count(sum(counts), total)}",
            "prompts": ", ".join(config.prompts)
            + ("" if config.roi is None else ", in windows around the coarse mask"),
            "trained": "; ".join(trained),
            "schedule": f"{config.epochs} epochs, batches of {config.batch_size} x "
            f"{config.accumulate}, {config.optimizer}, {config.schedule}",
            "device": f"{task.team.devices(settings.device)}, {config.precision}, "
            f"seed {config.seed}",
        },
    )


def _say_best(result: FitResult, model: Path) -> None:
    log.info(
        "best epoch %s: %s; weights in %s",
        result.best_epoch,
        console.metrics_line(result.metrics),
        model,
    )
    if result.best_epoch == 0:
        log.warning(
            "no epoch was better than the models before training; they are kept as they were"
        )
