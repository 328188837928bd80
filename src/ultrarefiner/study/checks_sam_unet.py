"""What in the SAM-UNet rows of a study cannot work."""

from __future__ import annotations

from collections.abc import Iterator

from ultrarefiner.config import RefinerConfig, StudyConfig
from ultrarefiner.models.weights import WEIGHTS, mistaken, registered, unaccepted_terms
from ultrarefiner.refine import REFINERS, parse_options

_TRAINING = ("init", "branch")


def sam_unet_problems(config: StudyConfig) -> Iterator[str]:
    """Yield what is wrong with SAM-UNet rows whose options can be read, with key and cure."""
    for name, row in config.refiners.items():
        if row.family in REFINERS and REFINERS[row.family].begin:
            known = REFINERS[row.family].options.model_fields
            if set(row.options) <= set(known):
                yield from _check_row(f"refiners.{name}", row, config)


def _check_row(key: str, row: RefinerConfig, config: StudyConfig) -> Iterator[str]:
    options = parse_options(row.family, row.options)
    if row.finetune is None:
        for name in _TRAINING:
            if getattr(options, name) != type(options).model_fields[name].default:
                yield f"{key}.{name}: has no effect without a section `finetune`; remove the key"
        known = registered(row.weights) if row.weights else None
        if known is not None and WEIGHTS[known].family in REFINERS[row.family].begins_as:
            yield (
                f"{key}.weights: '{known}' is a SAM, which a SAM-UNet can begin as; add a section "
                "`finetune`, or give the file of a trained SAM-UNet"
            )
        return
    if options.init != "pretrained" and row.weights is not None:
        yield (
            f"{key}.init: {options.init} begins with random weights, and `weights: {row.weights}` "
            "is given too; remove one of them"
        )
    branch = options.branch_weights
    if branch is None:
        return
    problem = mistaken(branch) or unaccepted_terms(branch, config.weights.accept)
    known = registered(branch)
    if problem:
        yield f"{key}.branch: {problem}"
    elif known is not None and known != f"resnet{options.layers}":
        yield f"{key}.branch: '{known}' does not fit a ResNet-{options.layers}; set resnet or branch"
