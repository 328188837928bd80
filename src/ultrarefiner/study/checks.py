"""What in a study's configuration cannot work, beyond what its types already refuse."""

from __future__ import annotations

from collections.abc import Iterator

from ultrarefiner.config import CoarseConfig, RefinerConfig, StudyConfig
from ultrarefiner.datasets import DATASETS
from ultrarefiner.errors import ConfigError
from ultrarefiner.models import MODELS, starting_weights, unusable_keys
from ultrarefiner.models.weights import WEIGHTS, mistaken, registered, unaccepted_terms
from ultrarefiner.prompts import PROMPTS
from ultrarefiner.refine import REFINERS, parse_options
from ultrarefiner.registry import unknown_name
from ultrarefiner.study.checks_data import data_problems
from ultrarefiner.study.checks_end_to_end import end_to_end_problems
from ultrarefiner.study.checks_finetune import finetune_problems
from ultrarefiner.study.checks_sam_unet import sam_unet_problems
from ultrarefiner.study.checks_volumes import volume_problems
from ultrarefiner.study.naming import begins_without_weights
from ultrarefiner.study.propagation import propagation_problems


def problems(config: StudyConfig) -> list[str]:
    """Return what is wrong with a configuration, each with its key and its cure."""
    return [
        *_check_names(config),
        *data_problems(config),
        *(p for name, row in config.coarse.items() for p in _check_coarse(name, row, config)),
        *(p for name, row in config.refiners.items() for p in _check_refiner(name, row)),
        *_check_weights(config),
        *_check_prompt_fits(config),
        *_check_points(config),
        *finetune_problems(config),
        *end_to_end_problems(config),
        *sam_unet_problems(config),
        *propagation_problems(config),
        *volume_problems(config),
    ]


def _check_names(config: StudyConfig) -> Iterator[str]:
    for name in config.compare.coarse:
        if name not in config.coarse:
            yield f"compare.coarse: {unknown_name('coarse model', name, config.coarse)}"
    for refiner, prompts in config.compare.refine.items():
        if refiner not in config.refiners:
            yield f"compare.refine: {unknown_name('refiner', refiner, config.refiners)}"
        if not prompts:
            yield f"compare.refine.{refiner}: no prompt mode is listed; add one or remove the line"
        for prompt in prompts:
            if prompt not in config.prompts:
                yield (
                    f"compare.refine.{refiner}: {unknown_name('prompt mode', prompt, config.prompts)}"
                )
    for name in sorted(set(config.refiners) & set(config.coarse)):
        if "tuned" in config.prompts:
            yield (
                f"refiners.{name}: '{name}-tuned' is the coarse model at its chosen threshold; give "
                "the refiner or the prompt mode `tuned` another name"
            )


def _check_coarse(name: str, row: CoarseConfig, config: StudyConfig) -> Iterator[str]:
    if row.model not in MODELS:
        yield f"coarse.{name}.model: {unknown_name('model', row.model, MODELS)}"
        return
    yield from (f"coarse.{name}.{problem}" for problem in unusable_keys(row))
    if row.init != MODELS[row.model].init:
        return
    owns = {
        "pretrained": str(MODELS[row.model].pretrained),
        "branch": f"resnet{row.resnet or 50}",
    }
    for (key, own), given in zip(owns.items(), starting_weights(row), strict=False):
        known = registered(given)
        problem = mistaken(given) or unaccepted_terms(given, config.weights.accept)
        if problem:
            yield f"coarse.{name}.{key}: {problem}"
        elif known is not None and WEIGHTS[known].family != WEIGHTS[own].family:
            yield (
                f"coarse.{name}.{key}: weights '{known}' are for family "
                f"'{WEIGHTS[known].family}'; {row.model} starts from '{own}'"
            )
        elif known is not None and key == "branch" and known != own:
            yield f"coarse.{name}.branch: '{known}' is not a ResNet-{row.resnet or 50}; set `resnet`"


def _check_refiner(name: str, row: RefinerConfig) -> Iterator[str]:
    try:
        parse_options(row.family, row.options)
    except ConfigError as error:
        yield f"refiners.{name}: {error}"
        return
    family = REFINERS[row.family]
    if family.needs_weights and row.weights is None and not begins_without_weights(row):
        random = (
            ". Without one its frozen encoder would stay random: say `init: random` if you mean it"
            if family.begin and row.finetune
            else ""
        )
        yield (
            f"refiners.{name}.weights: missing; family {row.family} needs a file or a known name"
            f"{random}"
        )
    if not family.needs_weights and row.weights is not None:
        yield f"refiners.{name}.weights: family {row.family} takes none; remove the key"


def _check_weights(config: StudyConfig) -> Iterator[str]:
    for name, row in config.refiners.items():
        if row.seen is not None and row.weights is not None and registered(row.weights):
            yield (
                f"refiners.{name}.seen: what published weights were trained on is on record; "
                "remove the key"
            )
        if row.seen is not None and row.weights is None:
            yield f"refiners.{name}.seen: has no effect without weights; remove the key"
        for layout in row.seen or []:
            if layout not in DATASETS:
                yield f"refiners.{name}.seen: {unknown_name('dataset layout', layout, DATASETS)}"
    for name in config.weights.accept:
        if name not in WEIGHTS:
            yield f"weights.accept: {unknown_name('weights', name, WEIGHTS)}"
    for mirror in config.weights.mirrors:
        if not mirror.startswith(("http://", "https://")):
            yield f"weights.mirrors: '{mirror}' is no address; it begins with https:// or http://"
    for refiner in config.compare.refine:
        row = config.refiners.get(refiner)
        if row is None or row.weights is None:
            continue
        problem = mistaken(row.weights) or unaccepted_terms(row.weights, config.weights.accept)
        if problem:
            yield f"refiners.{refiner}.weights: {problem}"
        family = WEIGHTS[known].family if (known := registered(row.weights)) else row.family
        if row.family in REFINERS and family in REFINERS[row.family].begins_as:
            continue
        if family not in REFINERS:
            yield (
                f"refiners.{refiner}.weights: '{known}' are a coarse model's; name weights of family "
                f"'{row.family}'"
            )
        elif family != row.family:
            yield f"refiners.{refiner}: weights '{known}' are for family '{family}'; set that"


def _check_prompt_fits(config: StudyConfig) -> Iterator[str]:
    for refiner, prompts in config.compare.refine.items():
        row = config.refiners.get(refiner)
        if row is None or row.family not in REFINERS:
            continue
        reason = REFINERS[row.family].needs_mask
        for prompt in prompts:
            kind = config.prompts[prompt].kind if prompt in config.prompts else "mask"
            if reason and "mask" not in PROMPTS[kind].parts:
                yield f"compare.refine.{refiner}: prompt '{prompt}' is of kind '{kind}': {reason}"


def _check_points(config: StudyConfig) -> Iterator[str]:
    for name in config.points.refiners if config.points else []:
        if name not in config.refiners:
            yield f"points.refiners: {unknown_name('refiner', name, config.refiners)}"
            continue
        row = config.refiners[name]
        if row.family in REFINERS and REFINERS[row.family].needs_mask:
            yield f"points.refiners: {name} takes no points: {REFINERS[row.family].needs_mask}"
        elif name not in config.compare.refine:
            yield (
                f"points.refiners: {name} is not in compare.refine; add it there, with a point "
                "prompt for example"
            )
