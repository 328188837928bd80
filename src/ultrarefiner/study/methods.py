"""What a study puts on the shelf: for each dataset, which methods on which parts of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from ultrarefiner.config import StudyConfig
from ultrarefiner.datasets import DATASETS
from ultrarefiner.datasets.parts import Part, parse_part


@dataclass(frozen=True)
class Method:
    """A named folder of masks on the shelf.

    Attributes:
        base: `transunet`; `transunet-tuned`, at the threshold that validation chose;
            `{refiner}-{prompt}`; `end_to_end`, also `-tuned` and, for the masks of the coarse model
            inside it, `-coarse`; any refined or end-to-end one with a guard, `-guarded`.
        coarse: The coarse or end-to-end model that it is, or whose masks prompt it.
        refiner: Name of the refiner row; None for a coarse model.
        prompt: Name of the prompt mode; None for a coarse model.
        source: What its prompts are made from: "none", "coarse" or "ground_truth".
        tuned: Whether it is a model at its chosen threshold.
        joint: Whether it is a model that was trained end to end.
        inner: Whether it is the coarse model inside such a one.
        guarded: Whether its masks give way to the reference's where a guard says so.
        at: What its models were trained on: "" for the dataset that it is applied to, else `@` and
            the name of a training set.
    """

    base: str
    coarse: str
    refiner: str | None = None
    prompt: str | None = None
    source: str = "none"
    tuned: bool = False
    joint: bool = False
    inner: bool = False
    guarded: bool = False
    at: str = ""

    @property
    def plain(self) -> bool:
        """Whether it is what a model says by itself, at one half."""
        return self.refiner is None and not (self.tuned or self.inner or self.guarded)

    @property
    def unguarded(self) -> str:
        """The base without its guard."""
        return self.base.removesuffix("-guarded")

    @property
    def name(self) -> str:
        """The folder's name: `ultrasam-box@all`."""
        return self.base + self.at

    @property
    def oracle(self) -> bool:
        """Whether the truth went into it."""
        return self.source == "ground_truth"

    def trainset(self, dataset: str) -> str:
        """Return what its models were trained on when it is applied to a dataset."""
        return self.at[1:] or dataset


@dataclass(frozen=True)
class Shelved:
    """A folder of masks: a method on a part of a dataset."""

    dataset: str
    method: Method
    part: Part


def base_methods(config: StudyConfig) -> Iterator[Method]:
    """Yield the methods of a study, as they are applied to the dataset that models trained on."""
    reference = config.compare.coarse[0]
    for name in dict.fromkeys(config.compare.coarse):
        yield Method(name, coarse=name)
        yield Method(f"{name}-tuned", coarse=name, tuned=True)
    for refiner, prompts in config.compare.refine.items():
        for prompt in dict.fromkeys(prompts):
            source = config.prompts[prompt].source
            method = Method(f"{refiner}-{prompt}", reference, refiner, prompt, source)
            yield method
            if method.base in config.compare.guarded:
                yield replace(method, base=f"{method.base}-guarded", guarded=True)
    for name in dict.fromkeys(config.compare.end_to_end):
        method = Method(name, coarse=name, source="coarse", joint=True)
        yield method
        yield replace(method, base=f"{name}-tuned", tuned=True)
        yield replace(method, base=f"{name}-coarse", source="none", inner=True)
        if name in config.compare.guarded:
            yield replace(method, base=f"{name}-guarded", guarded=True)


def trainsets(config: StudyConfig) -> dict[str, list[str]]:
    """Return the datasets of each training set; a dataset alone is one too."""
    alone = {name: [name] for name, row in config.datasets.items() if row.role == "train"}
    return alone | {name: sorted(set(names)) for name, names in config.trainsets.items()}


def official_test(config: StudyConfig, dataset: str) -> bool:
    """Return whether a dataset's own test part is its hold-out."""
    row = config.datasets[dataset]
    if row.official_test is not None:
        return row.official_test
    return DATASETS[row.layout or dataset].official_test


def has_holdout(config: StudyConfig, dataset: str) -> bool:
    """Return whether cases of a dataset are kept out of every fold."""
    return config.datasets[dataset].role == "train" and (
        config.splits.holdout > 0 or official_test(config, dataset)
    )


def sources(config: StudyConfig, dataset: str) -> Iterator[tuple[str, bool]]:
    """Yield which models segment a dataset.

    Yields:
        How a method's name ends, and whether the models' folds are folds of the dataset too.
    """
    here = config.datasets[dataset].role == "train"
    for name, members in trainsets(config).items():
        if dataset in members:
            yield "" if name == dataset else f"@{name}", True
        elif config.compare.cross or not here:
            yield f"@{name}", False


def parts(config: StudyConfig, dataset: str, method: Method, own_folds: bool) -> list[Part]:
    """Return the parts of a dataset that a method is applied to.

    A refiner that is finetuned on all folds is applied to other datasets only.

    Args:
        config: The study.
        dataset: The dataset.
        method: The method.
        own_folds: Whether the folds of its models are folds of the dataset too.
    """
    folds = config.splits.run_folds
    single = [f"fold{fold}" for fold in folds]
    # The ensemble of one model is that model.
    joint = list(dict.fromkeys(config.compare.ensembles)) if len(folds) > 1 else []
    finetune = config.refiners[method.refiner].finetune if method.refiner else None
    mean = [name for name in joint if name == "mean"]
    if own_folds and finetune is not None and finetune.on == "all":
        return []
    if method.inner:
        # To see what the training made of it; nobody would use it beside the whole.
        return [parse_part(name) for name in single] if own_folds else []
    # Ensembles of a refiner that is finetuned on each fold are made of its models' masks.
    each = finetune is not None and finetune.on == "fold"
    if not own_folds:
        if method.plain or each:
            return _held_back("unseen", single + (joint if method.plain else mean))
        return _held_back("unseen", mean or single)
    names = [parse_part(name) for name in single]
    if has_holdout(config, dataset):
        members = single + (joint if method.plain else mean)
        names += _held_back("holdout", mean or single if method.tuned else members)
    return names


def _held_back(cases: str, members: list[str]) -> list[Part]:
    return [parse_part(f"{cases}-{member}") for member in members]


def shelved(config: StudyConfig, methods: list[Method]) -> Iterator[Shelved]:
    """Yield every folder of masks that the study is about."""
    for dataset in config.datasets:
        for at, own_folds in sources(config, dataset):
            for method in methods:
                for part in parts(config, dataset, method, own_folds):
                    yield Shelved(dataset, replace(method, at=at), part)


def standing(shelf: list[Shelved]) -> set[str]:
    """Return the methods for which some evaluation has one predictor, or the mean of all.

    Elsewhere the models of several folds predict the same cases, each for itself.
    """
    found: dict[tuple[str, str, str], list[Part]] = {}
    for one in shelf:
        key = one.method.name, one.dataset, one.part.evaluation
        found.setdefault(key, []).append(one.part)
    return {
        method
        for (method, _, evaluation), mine in found.items()
        if evaluation == "folds" or len(mine) == 1 or any(part.member == "mean" for part in mine)
    }


def calibrated(shelf: list[Shelved], dataset: str, coarse: str) -> list[Part]:
    """Return the parts on which a coarse model's probabilities are compared with the truth.

    The folds; of the hold-out and of an unseen dataset the ensemble, or the single models where
    there is none.
    """
    mine = [one.part for one in shelf if (one.dataset, one.method.name) == (dataset, coarse)]
    joint = {part.evaluation for part in mine if part.member == "mean"}
    return [
        part for part in mine if part.member == ("mean" if part.evaluation in joint else "single")
    ]


def pictured(shelf: list[Shelved], dataset: str) -> list[Shelved]:
    """Return the folders of masks that the gallery of a dataset shows.

    Those of its own folds; of a dataset without folds those of the first training set, by the
    ensemble or by the first model.
    """
    mine = [one for one in shelf if one.dataset == dataset]
    own = [one for one in mine if not one.method.at and one.part.evaluation == "folds"]
    if own:
        return own
    at = mine[0].method.at
    names = [one.part.name for one in mine if one.method.at == at]
    part = "unseen-mean" if "unseen-mean" in names else names[0]
    return [one for one in mine if (one.method.at, one.part.name) == (at, part)]
