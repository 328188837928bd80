"""Finetuning of promptable models, on one fold of a dataset or of several together."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ultrarefiner.config import FinetuneConfig
from ultrarefiner.datasets.fits import ALL, read_fit
from ultrarefiner.datasets.inner import read_groups
from ultrarefiner.errors import LeakError, UltraRefinerError
from ultrarefiner.io import file_sha256
from ultrarefiner.models.cards import card_beside, check_leak, upstream, write_card
from ultrarefiner.models.checkpointing import checkpoint_blocks
from ultrarefiner.models.digests import module_sha256
from ultrarefiner.models.export import save_sam
from ultrarefiner.models.finetuned import ENCODER_OF
from ultrarefiner.models.lora import merge_lora
from ultrarefiner.models.trainable import TrainableSummary, set_trainable
from ultrarefiner.refine import REFINERS
from ultrarefiner.refine.begin import begin_refiner
from ultrarefiner.refine.shelf import Shelf
from ultrarefiner.runtime import seed_everything
from ultrarefiner.training import console, engine
from ultrarefiner.training.checkpoint import licences, versions
from ultrarefiner.training.clips import Clips
from ultrarefiner.training.crop_items import ROLES as CROP_ROLES
from ultrarefiner.training.crop_items import CropItem, read_crops
from ultrarefiner.training.data import Prepared, PreparedCases
from ultrarefiner.training.failures import read_failures
from ultrarefiner.training.features import Pixels, features_of
from ultrarefiner.training.history import FitResult
from ultrarefiner.training.inner import PredictionSource, read_inner_predictions
from ultrarefiner.training.launch import on_gpus
from ultrarefiner.training.refiner_items import Items
from ultrarefiner.training.refiner_task import RefinerTask
from ultrarefiner.training.resume import ResumeFolder
from ultrarefiner.training.settings import EngineSettings, settings_of
from ultrarefiner.training.team import Team

log = logging.getLogger(__name__)


@on_gpus
def train_refiner(
    config: FinetuneConfig,
    family: str,
    weights: str | None,
    options: Mapping[str, Any],
    name: str,
    trainset: str,
    prepared: Prepared,
    splits: str | Path,
    fit: str,
    protocol: str,
    failures: Sequence[str | Path],
    predictions: Sequence[str | Path],
    cards: Sequence[str | Path],
    crops: str | Path | None,
    shelf: str | Path,
    limit_gb: float,
    model: str | Path,
    card: str | Path,
    history: str | Path,
    device: str = "auto",
    overlaps: str | Path | None = None,
    *,
    team: Team,
) -> None:
    """Finetune a promptable model on one fold and write the weights of its best epoch.

    The best epoch has the highest mean Dice of the validation items at original size; what they are
    is fixed. State between runs lies in ``resume/`` beside the model. LoRA layers are merged, so
    that the file is a plain checkpoint of its family.

    Args:
        config: The finetuning.
        family: Row of ``REFINERS``.
        weights: File or name of the weights to begin from; None with ``config.scratch``.
        options: The refiner row's own keys.
        name: Name of the refiner in the study.
        trainset: Name of the dataset, or of the union of datasets, that it trains on.
        prepared: Folder ``{dataset}/prepared``, or those of all datasets of the union.
        splits: ``splits.csv`` of the trainset.
        fit: ``fold0`` and so on, or ``all``; see ``read_fit``.
        protocol: ``nested`` or ``seed``.
        failures: Tables of written failures, for data that have ``copies`` of them; each beside
            the folder of its masks, ``x.csv`` beside ``x/``.
        predictions: Folders of out-of-fold predictions, of all inner folds, for data that need
            them.
        cards: Cards of the models that made them, in the same order.
        crops: Folder of exported crops, for ``data: crops``.
        shelf: Folder of the shelf of embeddings.
        limit_gb: Its limit in 10^9 bytes.
        model: Weights to write.
        card: Card to write.
        history: CSV to write, one row an epoch.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        overlaps: Table of images that datasets of a union share, for groups across datasets.
        team: Who trains; the first member alone writes, but for the shelf.

    Raises:
        ConfigError: Unknown family or option, or parts that this model does not have.
        WeightsError: The starting weights are absent, damaged or another model's.
        SplitError: The fit has no training or validation cases.
        LeakError: A model that predicts for the training, or that the training begins as, has seen
            cases that it must not.
        UltraRefinerError: A mask or a crop is absent or damaged.
        SystemExit: A signal to stop came (status 143 or 130); the next run goes on from there.
    """
    model, splits = Path(model), Path(splits)
    roles = read_fit(splits, fit)
    seed_everything(config.seed)
    known = None if weights is None else card_beside(weights)
    if known is not None:
        # Found out now, and not when days of training are to be applied.
        check_leak(known, roles["reported"], allow_selected=False)
    refiner, parents = begin_refiner(family, weights, device, options, config.scratch, config.seed)
    encoder = "" if config.encoder_changes else module_sha256(refiner.sam.image_encoder)
    summary = set_trainable(refiner.sam, config)
    if config.checkpointing:
        checkpoint_blocks(refiner.sam)
    source = PreparedCases(prepared)
    made = [PredictionSource(Path(a), Path(b)) for a, b in zip(cards, predictions, strict=True)]
    inputs = _read_inputs(config, roles, read_groups(splits, overlaps), failures, made, crops)
    items = Items(
        config,
        source,
        inputs.cases(roles["train"]),
        inputs.cases(roles["validation"]),
        inputs.failures,
        inputs.predictions,
        inputs.crops,
        source.images() if config.masks_per_image > 1 else None,
    )
    store = None
    if config.cache != "none":
        store = Shelf(shelf, round(limit_gb * 1e9), len(items.train), config.cache)
    features = features_of(refiner, store)
    clips = None
    if config.clip > 1:
        clips = Clips(config, source, [items.train, items.validation])
    task = RefinerTask(config, refiner, features, items, team, clips)
    resume = ResumeFolder(
        model.parent / "resume",
        {
            "config": config.recipe(),
            "refiner": {"family": family, "options": dict(options)},
            "splits": {"train": list(items.train), "validation": list(items.validation)},
            "cases": source.digests([*items.train, *items.validation]),
            "inputs": inputs.digests,
            "parents": parents,
        },
        team,
    )
    settings = settings_of(config, model.parent, device)
    if team.is_first and resume.is_empty:
        shutil.rmtree(model.parent / "tensorboard", ignore_errors=True)
    log.info("%s", _header(config, name, trainset, fit, task, summary, parents, settings))
    # Dealt out in whole batches of the encoder, so that each holds what it holds for one process.
    features.prepare(team.dealt(_pictures(task), refiner.batch_size))
    team.wait()
    task.model.eval()
    before = task.validate(lambda: None)
    log.info("before training: Dice %.4f, coarse %.4f", before["dice"], before["coarse_dice"])
    result = engine.fit(task, settings, resume, history, team=team)
    if not team.is_first:
        return
    merge_lora(refiner.sam)
    about = {"family": family}
    if not config.encoder_changes:
        if module_sha256(refiner.sam.image_encoder) != encoder:
            raise UltraRefinerError(
                f"the frozen encoder of {name} changed in training; its embeddings would be wrong. "
                "Please report this with the log."
            )
        if not REFINERS[family].adapts_encoder:
            about[ENCODER_OF] = refiner.weights_sha256
    save_sam(model, refiner.sam, family, about)
    write_card(
        card,
        {
            "architecture": {
                "model": family,
                "options": dict(options),
                "image_size": refiner.sam.image_encoder.img_size,
            },
            "phase": "refiner",
            "name": name,
            "dataset": trainset,
            "fold": None if fit == ALL else int(fit.removeprefix("fold")),
            "protocol": protocol,
            "config": config.model_dump(mode="json"),
            "metrics": {
                "epoch": result.best_epoch,
                **result.metrics,
                "dice_before": before["dice"],
            },
            "selection": "reported fold" if protocol == "seed" else "validation",
            # What was read, not what was asked for: the leak guard relies on it.
            "trained_on": list(items.train),
            "selected_on": list(items.validation),
            "parents": parents,
            "weights_sha256": file_sha256(model),
            "licence": licences(source, trainset, parents),
            "versions": versions(),
            "fingerprint": resume.fingerprint,
            **_sources(inputs, known),
        },
    )
    resume.finish(result.state(), result.best_epoch, None)
    _say_best(result, before, model)


@dataclass(frozen=True)
class _Inputs:
    """What is read beside the prepared cases, by case; None where the data need none."""

    failures: dict[str, list[Path]] | None = None
    predictions: dict[str, Path] | None = None
    crops: dict[str, list[CropItem]] | None = None
    models: list[dict[str, Any]] = field(default_factory=list)
    digests: dict[str, str] = field(default_factory=dict)

    def cases(self, cases: Sequence[str]) -> list[str]:
        """Return those of the cases that can train or validate: of crops, those that have one."""
        return [case for case in cases if self.crops is None or case in self.crops]


def _read_inputs(
    config: FinetuneConfig,
    roles: Mapping[str, Sequence[str]],
    groups: Mapping[str, str],
    failures: Sequence[str | Path],
    predictions: Sequence[PredictionSource],
    crops: str | Path | None,
) -> _Inputs:
    mine = [*roles["train"], *roles["validation"]]
    written = found = cut = None
    models: list[dict[str, Any]] = []
    digests = {}
    if config.simulates and config.copies is not None:
        written = {
            case: [Path(table).with_suffix("") / one.file for one in rows]
            for table in failures
            for case, rows in read_failures(table).items()
        }
        digests = {f"failures {i}": file_sha256(table) for i, table in enumerate(failures)}
    if config.predicts:
        made = read_inner_predictions(predictions, mine, roles["reported"], groups)
        found, models = made.files, made.provenance
        digests |= {f"prediction of {case}": file_sha256(path) for case, path in found.items()}
    if config.data == "crops":
        cut = _crops_by_case(Path(str(crops)), roles)
        files = [one.path for items in cut.values() for one in items]
        # The annotations too: a whole image may be the crop of several boxes.
        files += [Path(str(crops)) / "annotations" / f"{role}.json" for role in CROP_ROLES]
        digests |= {f"crop {path.name}": file_sha256(path) for path in files}
    return _Inputs(written, found, cut, models, digests)


def _crops_by_case(folder: Path, roles: Mapping[str, Sequence[str]]) -> dict[str, list[CropItem]]:
    by_case: dict[str, list[CropItem]] = {}
    for role in CROP_ROLES:
        for one in read_crops(folder, role):
            if one.case not in roles[role]:
                raise LeakError(
                    f"{folder} has {one.case} for {role}, which it is not for in splits.csv. Delete "
                    "the folder and run crop_dataset again."
                )
            by_case.setdefault(one.case, []).append(one)
    return by_case


def _sources(inputs: _Inputs, known: dict[str, Any] | None) -> dict[str, Any]:
    """Return which models had a part in the making: who predicted, and what training began as."""
    sources = {"models": inputs.models, "parents": upstream(known) if known else []}
    found = {name: entries for name, entries in sources.items() if entries}
    return {"sources": found} if found else {}


def _pictures(task: RefinerTask) -> Iterator[tuple[str, bool, Pixels]]:
    """Yield every picture that training and validation show, once each, one in memory at a time."""
    trained = [item for choices in task.items.slots for item in choices]
    flips = [
        flip
        for flip, used in ((False, task.config.hflip < 1), (True, task.config.hflip > 0))
        if used
    ]
    known = set()
    for items, flipped in [(trained, flips), (task.items.fixed(), [False])]:
        for item in items:
            for flip in flipped:
                view = task.view(item, flip)
                if (view.name, flip) not in known:
                    known.add((view.name, flip))
                    yield view.name, flip, view.pixels


def _header(
    config: FinetuneConfig,
    name: str,
    trainset: str,
    fit: str,
    task: RefinerTask,
    summary: TrainableSummary,
    parents: Mapping[str, str],
    settings: EngineSettings,
) -> str:
    items, encoder = task.items, task.refiner.sam.image_encoder
    kept = "kept on the shelf" if task.features.kept else "computed in every step"
    return console.header(
        f"{name}  |  {trainset}, {fit}",
        {
            "samples": f"{len(items.slots)} masks of {len(items.train)} cases train, "
            f"{len(items.fixed())} of {len(items.validation)} validate",
            "data": f"{config.data}; prompts {', '.join(config.kinds)}",
            "model": f"{task.refiner.family} at {encoder.img_size} px, "
            + console.parameter_count(summary.trained, summary.total),
            "start": ", ".join(parents) or f"random weights ({config.scratch})",
            "frozen": f"{', '.join(config.frozen) or 'nothing'}; its outputs are {kept}",
            "schedule": f"{config.epochs} epochs, batches of {config.batch_size} x "
            f"{config.accumulate}, {config.optimizer}, lr {config.lr:g}, {config.schedule}",
            "device": f"{task.team.devices(settings.device)}, {config.precision}, "
            f"seed {config.seed}",
        },
    )


def _say_best(result: FitResult, before: Mapping[str, float], model: Path) -> None:
    best = result.metrics
    log.info(
        "best epoch %s: Dice %.4f (before training %.4f, coarse %.4f); weights in %s",
        result.best_epoch,
        best["dice"],
        before["dice"],
        best["coarse_dice"],
        model,
    )
    if best["dice"] <= before["dice"]:
        log.warning("training did not improve the validation Dice over that of the weights before")
