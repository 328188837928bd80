"""The study's configuration: typed, ranged, documented; unknown keys are refused by name.

The models here are the single source: ``workflow/schemas/config.schema.yaml`` and the table in
``config/README.md`` are generated from them.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from ultrarefiner.errors import ConfigError

NAME = re.compile(r"[a-z0-9]+(_[a-z0-9]+)*")


class Section(BaseModel):
    """A part of the configuration; unknown keys are errors, values cannot change later."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class PhantomConfig(Section):
    """Synthetic ultrasound, written in the layout of the dataset, instead of real files."""

    cases: int = Field(48, ge=4, description="Images with a lesion.")
    size: int = Field(
        192, ge=48, le=1024, description="Typical image height in pixels (stu: always 128)."
    )
    seed: int = Field(0, ge=0, description="Seed of the generator.")
    odd_cases: bool = Field(
        True, description="Include the odd files of the real dataset (modes, sizes, several masks)."
    )


class DatasetConfig(Section):
    """One dataset: a folder of files as downloaded, or phantoms."""

    root: str | None = Field(
        None, min_length=1, description="Folder of the dataset as downloaded; only read."
    )
    phantom: PhantomConfig | None = Field(None, description="Make phantoms instead of `root`.")
    layout: str | None = Field(
        None, description="Layout of the folder; the dataset's own name when absent."
    )
    folds: Literal["made", "published"] = Field(
        "made", description="`published` takes the dataset's own folds (busbra: 5 or 10)."
    )
    include_empty: bool = Field(
        False, description="Keep images without a lesion (BUSI normal/, blank masks)."
    )

    @model_validator(mode="after")
    def _one_source(self) -> DatasetConfig:
        if (self.root is None) == (self.phantom is None):
            raise ValueError("give either `root` (a folder) or `phantom` (synthetic images)")
        return self


class SplitsConfig(Section):
    """Who is in which fold; decided once, for every method."""

    folds: int = Field(5, ge=2, le=20, description="Outer folds.")
    run: Literal["all"] | list[int] = Field(
        "all", description="Folds to run; `[0]` for a quick look."
    )
    group: Literal["auto", "patient", "duplicates", "image"] = Field(
        "auto",
        description="What never crosses a fold. `auto`: the patient where the dataset tells it, "
        "else the near-duplicate cluster, else the image; equal pixels stay together. `patient`: "
        "patients, joined where they share equal pixels. `duplicates`: equal pixels, and "
        "near-duplicates where the patient is unknown; patients may cross. `image`: nothing.",
    )
    validation: float = Field(
        0.15, gt=0.0, lt=0.5, description="Share of the training groups kept for model selection."
    )
    holdout: float = Field(
        0.0, ge=0.0, lt=0.5, description="Share of groups kept out of every fold; not scored."
    )
    seed: int = Field(123, ge=0, description="Seed of the folds.")
    protocol: Literal["nested", "seed"] = Field(
        "nested",
        description="`nested` selects on validation and reports on test; `seed` is the original "
        "KFold with validation = test, and its rows say so.",
    )

    @model_validator(mode="after")
    def _folds_exist(self) -> SplitsConfig:
        if self.run != "all":
            wrong = [fold for fold in self.run if not 0 <= fold < self.folds]
            if wrong or not self.run:
                raise ValueError(f"run: {self.run} must name folds from 0 to {self.folds - 1}")
        return self

    def recipe(self) -> dict[str, Any]:
        """Return what the folds depend on: not which of them run, nor keys without effect."""
        return self.model_dump(
            exclude={"run", "validation"} if self.protocol == "seed" else {"run"}
        )

    @property
    def run_folds(self) -> list[int]:
        """The folds to run, ascending."""
        return list(range(self.folds)) if self.run == "all" else sorted(set(self.run))


class LossConfig(Section):
    """Weights of the coarse model's loss terms."""

    ce: float = Field(0.5, ge=0.0, description="Weight of the cross entropy.")
    dice: float = Field(0.5, ge=0.0, description="Weight of the soft Dice loss.")


class AugmentConfig(Section):
    """Random changes of training images; each is drawn for each image and epoch."""

    hflip: float = Field(0.5, ge=0.0, le=1.0, description="Probability of a left-right flip.")
    vflip: float = Field(0.5, ge=0.0, le=1.0, description="Probability of an up-down flip.")
    rot90: float = Field(0.5, ge=0.0, le=1.0, description="Probability of a quarter turn (1 to 3).")
    rotate: float = Field(
        0.0, ge=0.0, le=1.0, description="Probability of a rotation by a small angle."
    )
    rotate_degrees: float = Field(20.0, ge=0.0, le=180.0, description="Largest small angle.")


class CoarseConfig(Section):
    """A coarse segmentation model and its training."""

    model: str = Field("transunet", description="Model of the registry.")
    image_size: int = Field(224, ge=32, le=1024, description="Input side in pixels; 16 divides it.")
    init: Literal["imagenet21k", "random"] = Field(
        "imagenet21k", description="Starting weights; `random` only if you mean it."
    )
    pretrained: str = Field(
        "resources/weights/R50+ViT-B_16.npz", description="File for `init: imagenet21k`."
    )
    epochs: int = Field(150, ge=1, description="Passes over the training cases.")
    batch_size: int = Field(24, ge=1, description="Images in a step.")
    optimizer: Literal["sgd", "adamw"] = Field("sgd", description="Optimizer.")
    lr: float = Field(0.01, gt=0.0, description="First learning rate.")
    momentum: float = Field(0.9, ge=0.0, lt=1.0, description="Momentum (sgd).")
    weight_decay: float = Field(1e-4, ge=0.0, description="Weight decay.")
    power: float = Field(0.9, ge=0.0, description="lr * (1 - step / steps) ** power.")
    loss: LossConfig = Field(LossConfig(), description="Loss weights.")
    augment: AugmentConfig = Field(AugmentConfig(), description="Augmentation.")
    grad_clip: float | None = Field(None, gt=0.0, description="Largest gradient norm.")
    accumulate: int = Field(1, ge=1, description="Batches whose gradients make one step.")
    precision: Literal["32-true", "16-mixed", "bf16-mixed"] = Field(
        "32-true", description="Arithmetic; the mixed ones need a GPU to be faster."
    )
    validate_every: int = Field(1, ge=1, description="Epochs between validations.")
    workers: int = Field(0, ge=0, description="Processes that load images.")
    threads: int = Field(4, ge=1, description="CPU threads of a training job.")
    seed: int = Field(42, ge=0, description="Seed of weights, order and augmentation.")
    tensorboard: bool = Field(False, description="Also write TensorBoard events.")

    @field_validator("image_size")
    @classmethod
    def _divisible(cls, value: int) -> int:
        if value % 16:
            raise ValueError(
                f"image_size {value} is not divisible by 16; try {round(value / 16) * 16}"
            )
        return value

    def recipe(self) -> dict[str, Any]:
        """Return what the trained weights depend on.

        Left out: how fast and how loudly it runs, and keys that have no effect beside others.
        """
        idle: dict[str, Any] = {"workers": True, "threads": True, "tensorboard": True}
        if self.optimizer != "sgd":
            idle["momentum"] = True
        if self.init == "random":
            idle["pretrained"] = True
        if self.augment.rotate == 0.0:
            idle["augment"] = {"rotate_degrees"}
        return self.model_dump(mode="json", exclude=idle)

    @model_validator(mode="after")
    def _loss_has_a_term(self) -> CoarseConfig:
        if self.loss.ce + self.loss.dice == 0.0:
            raise ValueError("loss: ce and dice cannot both be 0")
        return self


class PromptConfig(Section):
    """A prompt mode: what a refiner is told about the lesion."""

    kind: Literal["box", "point", "both", "mask", "box+point", "mask+point"] = Field(
        description="`both`: a box and a point prompt, their masks OR-ed; `box+point`: one joint."
    )
    source: Literal["coarse", "ground_truth"] = Field(
        "coarse", description="`ground_truth` is an upper bound and labelled oracle everywhere."
    )
    expand: float | None = Field(
        None,
        ge=-0.45,
        le=5.0,
        description="Growth of the box on each side, as a share of its side.",
    )
    on_empty: Literal["empty", "full_image"] = Field(
        "empty",
        description="When the coarse mask is empty: an empty refined mask, or the whole image as "
        "prompt, as the originals do.",
    )

    @model_validator(mode="after")
    def _keys_have_an_effect(self) -> PromptConfig:
        if self.expand is not None and "box" not in self.kind and self.kind != "both":
            raise ValueError(f"expand has no effect on kind '{self.kind}': it has no box")
        if self.on_empty == "full_image" and "mask" in self.kind:
            raise ValueError(
                f"on_empty: full_image has no effect on kind '{self.kind}': an empty mask says "
                "nothing about the whole image"
            )
        return self

    @property
    def oracle(self) -> bool:
        """Whether the prompt is made from the truth."""
        return self.source == "ground_truth"


class RefinerConfig(BaseModel):
    """A refiner; what other keys its row takes depends on the family."""

    model_config = ConfigDict(extra="allow", frozen=True)

    family: str = Field(description="Family of the registry: grabcut, sam.")
    weights: str | None = Field(
        None, description="File, or name in the weights table, for families that need weights."
    )

    @property
    def options(self) -> dict[str, Any]:
        """The keys beyond `family` and `weights`."""
        return dict(self.model_extra or {})


class CompareConfig(Section):
    """The methods of the study: what is computed, scored and reported."""

    coarse: list[str] = Field(
        min_length=1, description="Coarse models; the first one gives the prompts."
    )
    refine: dict[str, list[str]] = Field(
        default_factory=dict, description="Refiner: the prompt modes it runs with."
    )


class ReportConfig(Section):
    """What the report shows and how sure it says it is."""

    title: str = Field("UltraRefiner study", description="Title of the report.")
    gallery: int = Field(3, ge=1, le=20, description="Best, median and worst cases, each so many.")
    bootstrap: int = Field(2000, ge=200, description="Resamples of the confidence intervals.")
    seed: int = Field(0, ge=0, description="Seed of the resampling.")


class StudyConfig(Section):
    """One study."""

    run: str = Field("main", description="Name of the run; results go to results/{run}/.")
    device: Literal["auto", "cpu", "cuda", "mps"] = Field(
        "auto", description="Where models run; `auto` takes a GPU when there is one."
    )
    datasets: dict[str, DatasetConfig] = Field(min_length=1, description="Datasets by name.")
    splits: SplitsConfig = Field(SplitsConfig(), description="Folds.")
    coarse: dict[str, CoarseConfig] = Field(min_length=1, description="Coarse models by name.")
    prompts: dict[str, PromptConfig] = Field(default_factory=dict, description="Prompt modes.")
    refiners: dict[str, RefinerConfig] = Field(default_factory=dict, description="Refiners.")
    compare: CompareConfig = Field(description="Methods to compare.")
    report: ReportConfig = Field(ReportConfig(), description="Report.")

    @field_validator("run")
    @classmethod
    def _run_is_a_folder_name(cls, value: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", value):
            raise ValueError(f"'{value}' is not a plain folder name (letters, digits, _ . -)")
        return value

    @model_validator(mode="after")
    def _names_are_plain(self) -> StudyConfig:
        for section in ("datasets", "coarse", "prompts", "refiners"):
            for name in getattr(self, section):
                if not NAME.fullmatch(name):
                    raise ValueError(
                        f"{section}: '{name}' must be lower-case letters and digits, words joined "
                        "by single underscores (it becomes a folder name)"
                    )
        for name in ("report", "logs", "benchmarks"):
            if name in self.datasets:
                raise ValueError(
                    f"datasets: '{name}' is a folder of every run; choose another name"
                )
        return self


def _nearest(word: str, words: list[str]) -> str:
    near = difflib.get_close_matches(word, words, n=1, cutoff=0.5)
    return f" Did you mean '{near[0]}'?" if near else ""


def _known_keys(location: tuple[Any, ...]) -> list[str]:
    """Return the keys that the section at ``location`` of a study takes."""
    model: Any = StudyConfig
    for part in location:
        field = getattr(model, "model_fields", {}).get(part)
        if field is not None:
            model = field.annotation
        args = [a for a in getattr(model, "__args__", ()) if isinstance(a, type)]
        sections = [a for a in args if issubclass(a, BaseModel)]
        model = sections[0] if sections else model
    return list(getattr(model, "model_fields", {}))


def _explain(error: Any) -> str:
    location = error["loc"]
    where = ".".join(str(part) for part in location) or "config"
    if error["type"] == "extra_forbidden":
        known = _known_keys(location[:-1])
        return f"{where}: unknown key; known here: {', '.join(known)}.{_nearest(str(location[-1]), known)}"
    if error["type"] == "literal_error":
        expected = re.findall(r"'([^']*)'", error["ctx"]["expected"])
        return f"{where}: '{error['input']}' is not one of {', '.join(expected)}.{_nearest(str(error['input']), expected)}"
    if error["type"] == "missing":
        return f"{where}: missing; add it."
    message = error["msg"].removeprefix("Value error, ")
    given = (
        ""
        if isinstance(error["input"], Mapping) or error["type"] == "value_error"
        else f" (got {error['input']!r})"
    )
    return f"{where}: {message}{given}"


def load_config(values: Mapping[str, Any]) -> StudyConfig:
    """Check a study's configuration.

    Args:
        values: The YAML file as nested dicts.

    Raises:
        ConfigError: A key is unknown, missing or out of range; the message lists them all.
    """
    try:
        return StudyConfig.model_validate(dict(values))
    except ValidationError as error:
        lines = [_explain(item) for item in error.errors()]
        raise ConfigError("\n  - ".join(["the configuration has errors:", *lines])) from None
