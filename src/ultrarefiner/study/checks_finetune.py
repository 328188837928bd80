"""What in the finetuning of a study's refiners cannot work, or would leak."""

from __future__ import annotations

from collections.abc import Iterator

from ultrarefiner.config import FinetuneConfig, RefinerConfig, StudyConfig
from ultrarefiner.errors import ConfigError
from ultrarefiner.refine import REFINERS, parse_options
from ultrarefiner.study.finetuning import leak
from ultrarefiner.study.methods import sources, trainsets
from ultrarefiner.study.naming import changes_embeddings, embeddings_name


def finetune_problems(config: StudyConfig) -> Iterator[str]:
    """Yield what is wrong with the finetuning of refiners, each with its key and its cure."""
    for name, row in config.refiners.items():
        if row.finetune is not None and row.family in REFINERS:
            yield from _check_row(f"refiners.{name}", row, row.finetune, config)
            yield from _check_name(name, row, config)
    for name in config.compare.refine:
        row = config.refiners.get(name)
        if row is not None and row.finetune is not None and row.finetune.on == "all":
            yield from _check_applied(name, config)
    yield from _check_inner_folds(config)
    for name in config.points.refiners if config.points else []:
        row = config.refiners.get(name)
        if row is not None and row.finetune is not None:
            yield (
                f"points.refiners: {name} is finetuned, and points are analysed with weights as they "
                "are; name the refiner that it began as, or remove it"
            )


def _check_row(
    key: str, row: RefinerConfig, finetune: FinetuneConfig, config: StudyConfig
) -> Iterator[str]:
    family, names = REFINERS[row.family], ", ".join(n for n, f in REFINERS.items() if f.trainable)
    if not family.trainable:
        yield (
            f"{key}.finetune: family {row.family} has nothing to train (these do: {names}); remove "
            "the section"
        )
        return
    if finetune.scratch is not None and not family.scratch and not family.adapts_encoder:
        able = ", ".join(name for name, other in REFINERS.items() if other.scratch)
        yield f"{key}.finetune.scratch: is of family {able}, not {row.family}; set `family: {able}`"
    if finetune.scratch is not None and row.weights is not None:
        yield (
            f"{key}.finetune.scratch: begins from random weights, and `weights: {row.weights}` is "
            "given too; remove one of them"
        )
    if finetune.checkpointing and not (finetune.encoder_changes or family.adapts_encoder):
        yield (
            f"{key}.finetune.checkpointing: has no effect, nothing in the encoder trains; remove it"
        )
    if finetune.predicts and config.splits.protocol != "nested":
        yield (
            f"{key}.finetune.data: {finetune.data} needs predictions of models that saw nothing "
            "of the reported fold, which splits.protocol: seed cannot keep apart; use `protocol: "
            "nested`, or `data: simulated`"
        )
    if family.adapts_encoder:
        yield from _check_resting_encoder(key, row.family, finetune)
    elif not family.encoder_blocks:
        yield from _check_blocks(key, row.family, finetune)


def _check_resting_encoder(key: str, family: str, finetune: FinetuneConfig) -> Iterator[str]:
    """Check that a training leaves the encoder, and nothing else, as it is."""
    if finetune.frozen != ("encoder",):
        named = "train" if finetune.train is not None else "freeze"
        yield (
            f"{key}.finetune.{named}: {family} trains all but its encoder, which rests; remove the key"
        )
    for name in ("unfreeze_last", "lora"):
        if getattr(finetune, name):
            yield f"{key}.finetune.{name}: the encoder of {family} rests; remove the key"
    if finetune.scratch is not None:
        yield f"{key}.finetune.scratch: for {family} set `init: tiny` beside `family` instead"
    if finetune.loss.iou not in (0.0, type(finetune.loss).model_fields["iou"].default):
        yield f"{key}.finetune.loss.iou: {family} predicts no IoU; remove the key"


def _check_blocks(key: str, family: str, finetune: FinetuneConfig) -> Iterator[str]:
    why = f"the encoder of {family} is no row of equal blocks"
    if finetune.unfreeze_last:
        yield (
            f"{key}.finetune.unfreeze_last: {why}, of which the last ones could train; freeze the "
            "encoder, or train it as a whole (`train: full`)"
        )
    takes = REFINERS[family].encoder_additions
    if finetune.lora is not None and "encoder" in finetune.lora.parts and not takes:
        yield (
            f"{key}.finetune.lora.parts: {why} that take additions; use `parts: [decoder]`, or train "
            "it as a whole (`train: full`)"
        )


def _check_name(name: str, row: RefinerConfig, config: StudyConfig) -> Iterator[str]:
    if name in config.coarse:
        yield (
            f"refiners.{name}: is the name of a coarse model too, and the models of both would lie "
            "in one folder; give the refiner another name"
        )
    if not changes_embeddings(row) or not REFINERS[row.family].trainable:
        return
    for other in config.compare.refine:
        if other != name and _embeddings_of(config, other) == name:
            yield (
                f"refiners.{name}: is the name of the embeddings of refiner '{other}' too, and its "
                "finetuned encoder makes others; give it another name"
            )


def _embeddings_of(config: StudyConfig, refiner: str) -> str | None:
    """Return the name of a refiner's embeddings; None where its row is wrong, which is told."""
    row = config.refiners.get(refiner)
    if row is None or row.family not in REFINERS:
        return None
    try:
        parse_options(row.family, row.options)
    except ConfigError:
        return None
    return embeddings_name(config, refiner)


def _check_applied(name: str, config: StudyConfig) -> Iterator[str]:
    """Check that a model of all folds is applied to a dataset that it did not train on."""
    there = [own_folds for dataset in config.datasets for _, own_folds in sources(config, dataset)]
    if there and all(there):
        alone = [trainset for trainset in trainsets(config) if trainset in config.datasets]
        yield leak(name, " and ".join(alone), alone)


def _check_inner_folds(config: StudyConfig) -> Iterator[str]:
    folds: dict[int, str] = {}
    for name in config.compare.refine:
        row = config.refiners.get(name)
        if row is not None and row.finetune is not None and row.finetune.predicts:
            folds.setdefault(row.finetune.cross_fit.folds, name)
    if len(folds) > 1:
        given = ", ".join(f"{count} of {name}" for count, name in folds.items())
        yield (
            f"refiners.*.finetune.cross_fit.folds: differ ({given}), and refiners share the models "
            "of inner folds; set one number"
        )
