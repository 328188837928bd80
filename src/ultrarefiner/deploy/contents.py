"""What a method of a study is made of, once its models are trained: files and how to use them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from ultrarefiner.config import PromptConfig, Section
from ultrarefiner.errors import ConfigError
from ultrarefiner.io import json_sha256
from ultrarefiner.training.segmented import THRESHOLD

FORMAT = 1

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Share = Annotated[float, Field(gt=0.0, lt=1.0)]


class File(Section):
    """A file of a method.

    Attributes:
        path: Below the root of the bundle, or absolute.
        sha256: Of its bytes.
    """

    path: str
    sha256: Sha256


class Member(Section):
    """What predicts for one fold.

    Attributes:
        fold: The outer fold.
        model: Weights of the coarse model, or of the one that was trained end to end.
        card: Their card.
        threshold_file: ``threshold.json``, where there is one.
        threshold: What it says.
        sam: Weights of the SAM of a model that was trained end to end; beside ``model``.
        refiner: Weights of the refiner that was finetuned on this fold; None: all folds share one,
            or none is needed.
        refiner_card: Their card.
        guard: The rule by which the fold's refined masks give way to its coarse ones.
        fallback: Weights of the coarse model that they give way to, where that is another one.
        fallback_card: Their card.
    """

    fold: int = Field(ge=0)
    model: File
    card: File
    threshold_file: File | None = None
    threshold: Share | None = None
    sam: File | None = None
    refiner: File | None = None
    refiner_card: File | None = None
    guard: File | None = None
    fallback: File | None = None
    fallback_card: File | None = None


class RefinerPart(Section):
    """The refiner of a method, and what it is told.

    Attributes:
        name: Its name in the study.
        family: Row of ``REFINERS``.
        options: The family's own keys.
        weights: Weights that all folds share; None: each has its own, or the family has none.
        card: Their card, where this project trained them.
        prompt_name: Name of the prompt mode in the study.
        prompt: The prompt mode.
    """

    name: str
    family: str
    options: dict[str, Any]
    weights: File | None = None
    card: File | None = None
    prompt_name: str
    prompt: PromptConfig


class VolumeReading(Section):
    """How slices are cut out of a volume and become grays.

    Attributes:
        layout: Row of ``DATASETS``: ``volumes``, ``abus`` or ``nifti``.
        options: Those of its own keys that say so.
    """

    layout: str
    options: dict[str, Any]


class Bundle(Section):
    """A method ready to be applied to new images; JSON-ready.

    Attributes:
        format: Of this description.
        method: Its name in the study.
        run: The study's run.
        trainset: What its models were trained on.
        model: Name of the coarse model, or of the one that was trained end to end.
        flips: Whether probabilities are means over an image and its three flips.
        tuned: Whether masks are cut at the thresholds that validation chose.
        inner: Whether the mask of the coarse model inside one that was trained end to end is the
            result.
        members: What predicts, one for each fold; several decide together.
        refiner: The refiner; None: the model's own mask is the result.
        fallback: Name of the coarse model that guarded masks give way to, if it is not ``model``.
        fallback_flips: As ``flips``, of that model.
        published: Rows of ``WEIGHTS`` that models are, or began from.
        datasets: Layout of each dataset of the trainset, by name.
        volumes: How the volumes of the trainset are read, each way once; none: it has none.
        reported: Rows of the study's summary about the method on its own folds.
        preprocessing: In words and numbers, for programs of others.
        root: Where relative paths begin.
    """

    format: Literal[1] = FORMAT
    method: str
    run: str
    trainset: str
    model: str
    flips: bool
    tuned: bool = False
    inner: bool = False
    members: tuple[Member, ...] = Field(min_length=1)
    refiner: RefinerPart | None = None
    fallback: str | None = None
    fallback_flips: bool = False
    published: list[str] = Field(default_factory=list)
    datasets: dict[str, str] = Field(default_factory=dict)
    volumes: list[VolumeReading] = Field(default_factory=list)
    reported: list[dict[str, str]] = Field(default_factory=list)
    preprocessing: dict[str, Any] = Field(default_factory=dict)
    root: Path = Field(Path(), exclude=True)

    @property
    def folds(self) -> list[int]:
        """The folds of the members."""
        return [member.fold for member in self.members]

    @property
    def threshold(self) -> float:
        """The threshold of the (joint) probability: 0.5, or the mean of those of the members."""
        if not self.tuned:
            return THRESHOLD
        return sum(self._chosen(member) for member in self.members) / len(self.members)

    def _chosen(self, member: Member) -> float:
        if member.threshold is None:
            raise ConfigError(
                f"{self.method}: the model of fold {member.fold} has no threshold of its own; run "
                "`snakemake`, or export the method again"
            )
        return member.threshold

    @property
    def refines_each(self) -> bool:
        """Whether each member has a refiner of its own."""
        return any(member.refiner is not None for member in self.members)

    @property
    def propagates(self) -> bool:
        """Whether its refiner follows lesions through volumes."""
        return self.refiner is not None and self.refiner.options.get("propagate", "none") != "none"

    @property
    def joint(self) -> bool:
        """Whether the models were trained end to end."""
        return any(member.sam is not None for member in self.members)

    @property
    def guarded(self) -> bool:
        """Whether refined masks give way to coarse ones where a guard says so."""
        return any(member.guard is not None for member in self.members)

    @property
    def coarse_name(self) -> str:
        """What the mask before refining is called, or that a guard would take."""
        return self.fallback or (f"{self.model}-coarse" if self.joint else self.model)

    def path(self, file: File) -> Path:
        """Return where a file is."""
        return self.root / file.path

    def files(self) -> Iterator[tuple[str, File]]:
        """Yield what each file is, in words, and the file."""
        refiner = self.refiner.name if self.refiner else ""
        for one in self.members:
            named = {
                self.model: one.model,
                f"card of {self.model}": one.card,
                f"threshold of {self.model}": one.threshold_file,
                f"SAM of {self.model}": one.sam,
                refiner: one.refiner,
                f"card of {refiner}": one.refiner_card,
                f"guard of {self.method}": one.guard,
                self.fallback: one.fallback,
                f"card of {self.fallback}": one.fallback_card,
            }
            yield from ((f"{what}, fold {one.fold}", file) for what, file in named.items() if file)
        if self.refiner is not None:
            named = {refiner: self.refiner.weights, f"card of {refiner}": self.refiner.card}
            yield from ((what, file) for what, file in named.items() if file)

    def of_fold(self, fold: int | None) -> Bundle:
        """Return the same method by the models of one fold; None: by all it has.

        Raises:
            ConfigError: It has no such fold.
        """
        if fold is None:
            return self
        mine = tuple(member for member in self.members if member.fold == fold)
        if not mine:
            there = ", ".join(map(str, self.folds))
            raise ConfigError(f"{self.method} has no model of fold {fold}; it has folds {there}")
        return self.model_copy(update={"members": mine})

    def fingerprint(self, threshold: float | None = None) -> str:
        """Return a SHA-256 of all that its masks depend on: not of names and places.

        Args:
            threshold: Of the (joint) probability, in place of the method's own.
        """
        refiner, cards = self.refiner, {"card", "threshold_file", "refiner_card", "fallback_card"}
        return json_sha256(
            {
                "format": self.format,
                "members": [
                    {key: file["sha256"] for key, file in made.items() if isinstance(file, dict)}
                    for made in (one.model_dump(exclude=cards) for one in self.members)
                ],
                "flips": self.flips,
                "inner": self.inner,
                "fallback_flips": self.fallback_flips,
                "threshold": self.threshold if threshold is None else threshold,
                "refiner": refiner
                and {
                    "family": refiner.family,
                    "options": refiner.options,
                    "weights": refiner.weights.sha256 if refiner.weights else None,
                    "prompt": refiner.prompt.model_dump(mode="json"),
                },
            }
        )
