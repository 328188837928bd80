"""Methods of a finished run: what they are made of, and where that lies."""

from __future__ import annotations

from pathlib import Path

from ultrarefiner.config import StudyConfig, load_config
from ultrarefiner.deploy.contents import Bundle, File, Member, RefinerPart
from ultrarefiner.deploy.volume_inputs import readings_of
from ultrarefiner.errors import ConfigError, WeightsError, first_names
from ultrarefiner.io import file_sha256, read_json, read_rows
from ultrarefiner.models import starting_weights
from ultrarefiner.models.cards import CARD, card_beside, check_fold, read_card, read_threshold
from ultrarefiner.models.weights import (
    FOLDER,
    WEIGHTS,
    locate_weights,
    name_of_file,
    registered,
)
from ultrarefiner.models.weights_record import checked_sha256
from ultrarefiner.refine.guard_jobs import read_rule
from ultrarefiner.registry import unknown_name
from ultrarefiner.study.methods import Method, base_methods, trainsets
from ultrarefiner.study.naming import refiner_options, trained_options
from ultrarefiner.training.segmented import END_TO_END, REFINER

STUDY = "study.json"
"""What a finished run says of itself, in its folder."""
WEIGHTS_NAME, THRESHOLD_NAME = "model.safetensors", "threshold.json"
_REPORTED = ("dataset", "metric", "n", "mean", "ci_low", "ci_high", "seen", "selection")


def read_study(results: str | Path, run: str) -> StudyConfig:
    """Return the configuration of a finished run.

    Args:
        results: Folder of results.
        run: Name of the run.

    Raises:
        ConfigError: There is no such run, or it is not finished, or not of this version.
        UltraRefinerError: Its record cannot be read.
    """
    results = Path(results)
    path = results / run / STUDY
    if not path.is_file():
        known = sorted(there.parent.name for there in results.glob(f"*/{STUDY}"))
        if (results / run).is_dir():
            raise ConfigError(
                f"{path} is not there: the run is not finished, or of an earlier version. Run "
                "`snakemake` with its study again; what is made already stays."
            )
        raise ConfigError(f"{unknown_name('run', run, known)} Runs are looked for in {results}.")
    content = read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get("config"), dict):
        raise ConfigError(f"{path} holds no study. Delete it and run `snakemake` again.")
    return load_config(content["config"])


def bundle_of_run(
    results: str | Path,
    run: str,
    method: str,
    trainset: str | None = None,
    fold: int | None = None,
    config: StudyConfig | None = None,
) -> Bundle:
    """Return a method of a finished run, all of its files found.

    Args:
        results: Folder of results; relative paths of the study's weights begin beside it.
        run: Name of the run.
        method: Name of the method, without ``@``.
        trainset: What the models were trained on; None: the only one that the run has.
        fold: Take the models of this fold alone; None: of all folds.
        config: The study; None: that of the finished run.

    Raises:
        ConfigError: There is no such run, method, trainset or fold; or the method needs the truth.
        WeightsError: A model is not there, or is another one than its card says.
        SplitError: A model is another fold's.
        UltraRefinerError: Another file of the method is not there.
    """
    results = Path(results)
    config = config or read_study(results, run)
    found = _method(config, method)
    name = _trainset(config, run, trainset)
    folds = config.splits.run_folds
    if fold is not None and fold not in folds:
        raise ConfigError(
            f"run '{run}' has no fold {fold}; it has {', '.join(map(str, folds))}. Name one of "
            "them."
        )
    wanted = folds if fold is None else [fold]
    place = _Place(results.parent, results / run / name, f"run '{run}', {name}")
    fallback = config.end_to_end[found.coarse].coarse if found.joint and found.guarded else None
    own = found.refiner if found.refiner and _on(config, found.refiner) == "fold" else None
    place.require(
        [place.fold(model, k) for model in (found.coarse, own, fallback) if model for k in wanted]
    )
    predicting = config.end_to_end if found.joint else config.coarse
    return Bundle(
        method=method,
        run=run,
        trainset=name,
        model=found.coarse,
        flips=predicting[found.coarse].flips,
        tuned=found.tuned,
        inner=found.inner,
        members=tuple(_member(place, found, own, fallback, k) for k in wanted),
        refiner=None if found.refiner is None else _refiner(config, found, place),
        fallback=fallback,
        fallback_flips=fallback is not None and config.coarse[fallback].flips,
        published=_published(config, found),
        datasets={one: config.datasets[one].layout or one for one in trainsets(config)[name]},
        volumes=readings_of(config, trainsets(config)[name]),
        reported=_reported(results / run / "report" / "summary.csv", method, name),
        root=place.root,
    )


def method_names(results: str | Path, run: str) -> list[str]:
    """Return the methods of a finished run that need no truth.

    Raises:
        ConfigError: As ``read_study``.
    """
    return [one.base for one in base_methods(read_study(results, run)) if not one.oracle]


def _method(config: StudyConfig, name: str) -> Method:
    methods = {one.base: one for one in base_methods(config)}
    usable = {base: one for base, one in methods.items() if not one.oracle}
    if name not in methods:
        plain, at, trainset = name.partition("@")
        if at and plain in usable:
            raise ConfigError(
                f"method '{name}': give the training set apart, `--method {plain} --trainset "
                f"{trainset}`"
            )
        raise ConfigError(unknown_name("method", name, usable))
    if name not in usable:
        raise ConfigError(
            f"method '{name}' is an oracle: it prompts from the truth, which a new image does not "
            f"come with. Take one of {', '.join(sorted(usable))}."
        )
    return methods[name]


def _trainset(config: StudyConfig, run: str, name: str | None) -> str:
    known = trainsets(config)
    if name is None and len(known) == 1:
        return next(iter(known))
    if name is None:
        raise ConfigError(
            f"run '{run}' has models of several training sets; say which with --trainset: "
            f"{', '.join(known)}"
        )
    if name not in known:
        raise ConfigError(unknown_name("training set", name, known))
    return name


def _on(config: StudyConfig, refiner: str) -> str | None:
    finetune = config.refiners[refiner].finetune
    return None if finetune is None else finetune.on


class _Place:
    """Where the files of a run's models of one training set are."""

    def __init__(self, root: Path, folder: Path, what: str) -> None:
        self.root, self._folder, self._what = root, folder, what

    def fold(self, model: str, fold: int | str) -> Path:
        """Return the folder of a model of a fold, or of ``all``."""
        return self._folder / "models" / model / (fold if isinstance(fold, str) else f"fold{fold}")

    def guard(self, method: str, fold: int) -> File:
        """Return the rule of a guard.

        Raises:
            UltraRefinerError: It is not there or holds none.
        """
        path = self._folder / "guards" / method / f"fold{fold}.json"
        read_rule(path)
        return self.file(path)

    def require(self, folders: list[Path]) -> None:
        """Refuse models that are not there, all at once."""
        absent = [path for folder in folders if not (path := folder / WEIGHTS_NAME).is_file()]
        if absent:
            raise WeightsError(
                f"{self._what}: {len(absent)} of {len(folders)} models are not there: "
                f"{first_names(absent)}. Run `snakemake` to finish the study."
            )

    def file(self, path: Path, sha256: str | None = None) -> File:
        """Return a file with its SHA-256."""
        inside = path.is_relative_to(self.root)
        name = path.relative_to(self.root) if inside else path.absolute()
        return File(path=name.as_posix(), sha256=sha256 or file_sha256(path))

    def trained(self, folder: Path, fold: int | None) -> tuple[File, File, File | None]:
        """Return weights and card of a model of the study, and its SAM if it was trained with one.

        Raises:
            WeightsError: They are not those of the card.
            SplitError: The model is another fold's.
        """
        card = read_card(folder / CARD)
        check_fold(card, fold)
        digests = {WEIGHTS_NAME: card["weights_sha256"]}
        if card["phase"] == END_TO_END:
            digests[REFINER] = card["architecture"]["refiner"]["weights_sha256"]
        files = {name: self.file(folder / name) for name in digests}
        for name, digest in digests.items():
            if files[name].sha256 != digest:
                raise WeightsError(
                    f"{folder / name} is not the file that {folder / CARD} describes. Put the "
                    "files of one training together, or delete them and run `snakemake` again."
                )
        return files[WEIGHTS_NAME], self.file(folder / CARD), files.get(REFINER)


def _member(
    place: _Place, method: Method, refiner: str | None, fallback: str | None, fold: int
) -> Member:
    """Return what predicts for a fold.

    Args:
        place: Where files are.
        method: The method.
        refiner: Its refiner, if that was finetuned on each fold.
        fallback: The coarse model that it gives way to, if that is another one.
        fold: The fold.
    """
    folder = place.fold(method.coarse, fold)
    model, card, sam = place.trained(folder, fold)
    chosen = folder / THRESHOLD_NAME
    there = chosen.is_file()
    own = place.trained(place.fold(refiner, fold), fold) if refiner else (None, None)
    last = place.trained(place.fold(fallback, fold), fold) if fallback else (None, None)
    return Member(
        fold=fold,
        model=model,
        card=card,
        threshold_file=place.file(chosen) if there else None,
        threshold=read_threshold(chosen) if there else None,
        sam=sam,
        refiner=own[0],
        refiner_card=own[1],
        guard=place.guard(method.unguarded, fold) if method.guarded else None,
        fallback=last[0],
        fallback_card=last[1],
    )


def _refiner(config: StudyConfig, method: Method, place: _Place) -> RefinerPart:
    row = config.refiners[method.refiner]
    weights = card = None
    if _on(config, method.refiner) == "all":
        folder = place.fold(method.refiner, "all")
        place.require([folder])
        weights, card, _ = place.trained(folder, None)
    elif row.finetune is None and row.weights is not None:
        path = _weights_file(place.root, row.weights)
        weights = place.file(path, checked_sha256(path))
        if card_beside(path) is not None:
            card = place.file(path.with_name(CARD))
    return RefinerPart(
        name=method.refiner,
        family=row.family,
        # Moved copies of prompts tell how sure a refiner is; they and compiling change no mask.
        options=trained_options(refiner_options(config, method.refiner)),
        weights=weights,
        card=card,
        prompt_name=method.prompt,
        prompt=config.prompts[method.prompt],
    )


def _published(config: StudyConfig, method: Method) -> list[str]:
    """Return the rows of the weights table that models of a method are, or began from."""
    refiner, models = method.refiner, [method.coarse]
    if method.joint:
        row = config.end_to_end[method.coarse]
        refiner, models = row.refiner, [row.coarse]
    files = [config.refiners[refiner].weights] if refiner else []
    starts = [config.coarse[name] for name in models]
    files += [weights for row in starts for weights in starting_weights(row)]
    # A copy of a published file has its terms.
    names = {registered(file) or name_of_file(Path(file).name) for file in files if file}
    return sorted(name for name in names if name)


def _weights_file(root: Path, weights: str) -> Path:
    """Return a weights file of a study that ran in the folder ``root``."""
    name = registered(weights)
    if name is None:
        return locate_weights(root / weights)
    folders = [root / FOLDER, Path(FOLDER)]
    there = [folder for folder in folders if (folder / WEIGHTS[name].file).is_file()]
    return locate_weights(name, (there or folders)[0])


def _reported(summary: Path, method: str, trainset: str) -> list[dict[str, str]]:
    """Return the rows of the summary about a method on its own folds; none where there is none."""
    if not summary.is_file():
        return []
    whole = {"evaluation": "folds", "trained_on": trainset, "fold": "all", "subgroup": "all"}
    return [
        {key: row[key] for key in _REPORTED}
        for row in read_rows(summary)
        if row["method"] in (method, f"{method}@{trainset}")
        and all(row[key] == value for key, value in whole.items())
    ]
