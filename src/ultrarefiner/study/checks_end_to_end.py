"""What in a study's end-to-end models and guards cannot work."""

from __future__ import annotations

from collections.abc import Iterator

from ultrarefiner.config import EndToEndConfig, StudyConfig
from ultrarefiner.models import MODELS
from ultrarefiner.refine import REFINERS
from ultrarefiner.registry import unknown_name


def end_to_end_problems(config: StudyConfig) -> Iterator[str]:
    """Yield what is wrong with end-to-end models and guards, each with its key and its cure."""
    for name, row in config.end_to_end.items():
        yield from _check_row(f"end_to_end.{name}", row, config)
        for section in ("coarse", "refiners"):
            if name in getattr(config, section):
                yield (
                    f"end_to_end.{name}: is a name in `{section}` too, and the models of both would "
                    "lie in one folder; give it another name"
                )
    for name in config.compare.end_to_end:
        if name not in config.end_to_end:
            yield f"compare.end_to_end: {unknown_name('end-to-end model', name, config.end_to_end)}"
    yield from _check_names(config)
    yield from _check_guarded(config)


def _check_row(key: str, row: EndToEndConfig, config: StudyConfig) -> Iterator[str]:
    if row.coarse not in config.compare.coarse:
        known = unknown_name("coarse model", row.coarse, config.compare.coarse)
        yield f"{key}.coarse: {known} It has to be in compare.coarse."
    elif row.coarse in config.coarse and (model := config.coarse[row.coarse].model) in MODELS:
        halves = {"coarse_encoder", "coarse_decoder"} & set(row.train)
        if halves and not MODELS[model].decoder:
            able = ", ".join(name for name, other in MODELS.items() if other.decoder)
            yield (
                f"{key}.train.{min(halves)}: {model} is not divided into encoder and decoder (these "
                f"are: {able}); train `coarse` as a whole"
            )
    if row.refiner not in config.compare.refine or row.refiner not in config.refiners:
        known = unknown_name("refiner", row.refiner, config.compare.refine)
        yield f"{key}.refiner: {known} It has to be in compare.refine."
        return
    refiner = config.refiners[row.refiner]
    if refiner.family not in REFINERS:
        return
    if not REFINERS[refiner.family].joint:
        able = ", ".join(name for name, other in REFINERS.items() if other.joint)
        yield (
            f"{key}.refiner: family {refiner.family} cannot be trained end to end (these can: {able}); "
            "name a refiner of one of them"
        )
    if refiner.finetune is not None and refiner.finetune.on == "all":
        yield (
            f"{key}.refiner: {row.refiner} is finetuned on all folds, so it has seen what each fold "
            "reports; set `on: fold` there"
        )


def _check_names(config: StudyConfig) -> Iterator[str]:
    for name in ("guarded", "coarse"):
        if name in config.prompts:
            yield (
                f"prompts.{name}: methods are called so that end with it; give the prompt mode "
                "another name"
            )


def _check_guarded(config: StudyConfig) -> Iterator[str]:
    plain = {
        f"{refiner}-{prompt}": prompt
        for refiner, prompts in config.compare.refine.items()
        for prompt in prompts
    }
    known = [*plain, *config.compare.end_to_end]
    for name in config.compare.guarded:
        if name not in known:
            yield f"compare.guarded: {unknown_name('refined or end-to-end method', name, known)}"
        elif (prompt := plain.get(name)) in config.prompts and config.prompts[prompt].oracle:
            yield (
                f"compare.guarded: {name} prompts from the truth, which no guard should see; remove "
                "it"
            )
        elif _on_all(config, name.partition("-")[0]):
            yield (
                f"compare.guarded: the refiner of {name} is finetuned on all folds, so no validation "
                "case is left to choose a guard on; remove it, or set `on: fold`"
            )


def _on_all(config: StudyConfig, refiner: str) -> bool:
    row = config.refiners.get(refiner)
    return row is not None and row.finetune is not None and row.finetune.on == "all"
