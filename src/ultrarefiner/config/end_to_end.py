"""Sections about training a coarse model and a refiner as one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from ultrarefiner.config.base import Section
from ultrarefiner.config.training import of_job

SoftPart = Literal["mask", "box", "point", "negative"]
"""What a soft prompt is made of."""

Trainee = Literal[
    "coarse",
    "coarse_encoder",
    "coarse_decoder",
    "image_encoder",
    "prompt_encoder",
    "decoder",
    "head",
    "gate",
]
"""Parts of an end-to-end model that train at their own rate, in their own epochs."""


class RoiConfig(Section):
    """Refine in a window around the coarse mask that moves with it while both are trained."""

    expand: float = Field(
        0.2, ge=0.0, le=2.0, description="Growth of the window on each side, as a share of it."
    )
    min_size: int = Field(
        64, ge=8, le=1024, description="Shortest side of the window, in pixels of the SAM's frame."
    )
    outside: Literal["background", "coarse"] = Field(
        "background",
        description="What is outside the window: sure background, or what the coarse mask says.",
    )


class FusionConfig(Section):
    """How far the refined mask replaces the coarse one, pixel by pixel."""

    gate: Literal["uncertainty", "learned", "hybrid"] = Field(
        "uncertainty",
        description="`uncertainty`: most where the coarse probability is near one half; `learned`: by "
        "a small network; `hybrid`: the product of both.",
    )
    gamma: float = Field(1.0, gt=0.0, le=10.0, description="Of the uncertainty: its exponent.")
    minimum: float = Field(
        0.0, ge=0.0, le=1.0, description="Weight of the refined mask where the coarse one is sure."
    )
    maximum: float = Field(
        0.8, gt=0.0, le=1.0, description="Its weight where the coarse probability is one half."
    )

    @model_validator(mode="after")
    def _a_range(self) -> FusionConfig:
        if not self.minimum < self.maximum:
            raise ValueError(f"minimum {self.minimum:g} is not below maximum {self.maximum:g}")
        # Not by `model_fields_set`: a configuration with its defaults written out is the same one.
        fields = type(self).model_fields
        idle = [k for k in ("gamma", "minimum", "maximum") if getattr(self, k) != fields[k].default]
        if self.gate == "learned" and idle:
            raise ValueError(f"{', '.join(idle)}: no effect on gate: learned; remove it")
        return self


class EndToEndLossConfig(Section):
    """Weights of the terms, and the grid on which refined masks are compared with the truth."""

    coarse: float = Field(0.5, ge=0.0, description="Cross entropy and Dice of the coarse mask.")
    refined: float = Field(0.5, gt=0.0, description="Cross entropy and Dice of the refined mask.")
    size: int | Literal["original"] = Field(
        224,
        description="Side of the grid in pixels, such as 224 or 1024; or `original`: each image's own "
        "size.",
    )

    @field_validator("size", mode="before")
    @classmethod
    def _a_size(cls, value: Any) -> Any:
        if value == "original":
            return value
        if isinstance(value, bool) or not isinstance(value, int) or not 32 <= value <= 2048:
            raise ValueError(f"size {value!r} is neither 32 to 2048 pixels nor `original`")
        return value


class TraineeConfig(Section):
    """When and how fast a part trains."""

    lr: float = Field(1e-5, gt=0.0, description="Highest learning rate.")
    from_epoch: int = Field(0, ge=0, description="Frozen in so many epochs at the beginning.")
    until_epoch: int | None = Field(
        None, ge=1, description="Frozen again after so many epochs; none: trains to the end."
    )

    @model_validator(mode="after")
    def _some_time(self) -> TraineeConfig:
        if self.until_epoch is not None and self.until_epoch <= self.from_epoch:
            raise ValueError(
                f"until_epoch {self.until_epoch} is not after from_epoch {self.from_epoch}: the "
                "part would never train; remove it from `train` instead"
            )
        return self


def _usual_trainees() -> dict[Any, TraineeConfig]:
    return {part: TraineeConfig() for part in ("coarse", "prompt_encoder", "decoder", "head")}


class EndToEndConfig(Section):
    """A coarse model and a refiner, trained as one from where their own trainings ended."""

    coarse: str = Field(description="Coarse model, of `compare.coarse`: its model of the fold.")
    refiner: str = Field(
        description="Refiner, of `compare.refine`: its model of the fold if it is finetuned, else "
        "its weights."
    )
    prompts: list[SoftPart] = Field(
        default_factory=lambda: ["mask", "box", "point", "negative"],
        min_length=1,
        description="What the refiner is told of the coarse mask, in one joint prompt.",
    )
    style: Literal["direct", "gaussian", "distance"] = Field(
        "direct", description="How a mask prompt is made of probabilities; see docs."
    )
    formula: Literal["geometry", "moments"] = Field(
        "geometry",
        description="Boxes and points: `geometry`, those that masks are prompted with everywhere "
        "else; `moments`, the first UltraRefiner's centroid, mean and 2.5 standard deviations.",
    )
    sharpen: float | None = Field(
        None,
        gt=0.0,
        le=100.0,
        description="Sharpen probabilities before they become prompts: sigmoid((p - 0.5) * T).",
    )
    roi: RoiConfig | None = Field(None, description="Refine in a window; none: the whole image.")
    fusion: FusionConfig | None = Field(
        None, description="Mix coarse and refined mask; none: the refined mask stands."
    )
    loss: EndToEndLossConfig = Field(EndToEndLossConfig(), description="Loss.")
    train: dict[Trainee, TraineeConfig] = Field(
        default_factory=_usual_trainees,
        min_length=1,
        description="Parts that train; others keep the weights that they come with. `coarse` is the "
        "whole coarse model; of TransUNet also `coarse_encoder` and `coarse_decoder` apart.",
    )
    gradient_scale: float = Field(
        1.0,
        ge=0.0,
        le=10.0,
        description="How much of the refined mask's gradient reaches the coarse model.",
    )
    anchor: float = Field(
        0.0,
        ge=0.0,
        description="Cost of leaving the coarse model's first weights: times the squared distance.",
    )
    largest_drop: float | None = Field(
        0.02,
        gt=0.0,
        le=1.0,
        description="Stop when the coarse Dice on validation falls by more than this below that "
        "before training; none: never.",
    )
    hflip: float = Field(0.5, ge=0.0, le=1.0, description="Probability of a left-right flip.")
    flips: bool = Field(
        False, description="Predict the mean over the image and its three flips; costs 4 times."
    )
    epochs: int = Field(50, ge=1, description="Passes over the training cases.")
    batch_size: int = Field(4, ge=1, description="Cases in a step.")
    optimizer: Literal["adamw", "sgd"] = Field("adamw", description="Optimizer.")
    weight_decay: float = Field(0.01, ge=0.0, description="Weight decay.")
    schedule: Literal["cosine", "poly"] = Field(
        "cosine", description="Down to 1 % along a cosine; or (1 - step / steps) ** 0.9."
    )
    warmup: float = Field(
        0.05,
        ge=0.0,
        le=0.5,
        description="Share of a part's steps in which its rate rises from 0.",
    )
    grad_clip: float | None = Field(1.0, gt=0.0, description="Largest gradient norm.")
    accumulate: int = Field(1, ge=1, description="Batches whose gradients make one step.")
    precision: Literal["32-true", "16-mixed", "bf16-mixed"] = Field(
        "32-true", description="Arithmetic; the mixed ones need a GPU to be faster."
    )
    validate_every: int = Field(1, ge=1, description="Epochs between validations.")
    cache: Literal["float16", "float32", "none"] = Field(
        "float16",
        description="How what the frozen part of the image encoder gives is kept on the shelf; "
        "`none`: it is computed in every step, as it is in windows.",
    )
    threads: int = Field(4, ge=1, description="CPU threads of a training job.")
    gpu: int = Field(
        1,
        ge=1,
        description="GPUs of a training job on each of its nodes; they share each batch and give "
        "the numbers of one.",
    )
    nodes: int = Field(1, ge=1, description="Machines of a training job, of a Slurm cluster.")
    seed: int = Field(42, ge=0, description="Seed of order and flips.")
    tensorboard: bool = Field(False, description="Also write TensorBoard events.")

    @property
    def trains_coarse(self) -> bool:
        """Whether the coarse model is trained, or a half of it."""
        return bool({"coarse", "coarse_encoder", "coarse_decoder"} & set(self.train))

    @property
    def encoder_changes(self) -> bool:
        """Whether the image encoder is trained."""
        return "image_encoder" in self.train

    def recipe(self) -> dict[str, Any]:
        """Return what the trained weights depend on; how fast and how loudly it runs is left out."""
        return self.model_dump(
            mode="json", exclude={"threads", "gpu", "nodes", "tensorboard", "flips"}
        )

    @classmethod
    def from_recipe(cls, recipe: Mapping[str, Any], threads: int, resources: Any) -> EndToEndConfig:
        """Return a training of a recipe.

        Args:
            recipe: As ``recipe`` gives it.
            threads: CPU threads.
            resources: What the job has: `processes`, `nodes`, and whether to write `tensorboard`.
        """
        return cls(threads=threads, **of_job(resources), **recipe)

    @model_validator(mode="after")
    def _keys_fit_each_other(self) -> EndToEndConfig:
        for part, row in self.train.items():
            if row.from_epoch >= self.epochs:
                raise ValueError(
                    f"train.{part}.from_epoch: {row.from_epoch} is not before the last of "
                    f"{self.epochs} epochs, so it would never train; remove it or lower it"
                )
        halves = {"coarse_encoder", "coarse_decoder"} & set(self.train)
        if "coarse" in self.train and halves:
            raise ValueError(
                f"train: `coarse` has {' and '.join(sorted(halves))} in it; name the whole or the "
                "halves"
            )
        learns = self.fusion is not None and self.fusion.gate != "uncertainty"
        if learns != ("gate" in self.train):
            raise ValueError(
                "fusion.gate: a learned gate has to train; add `gate: {lr: 0.001}` to `train`"
                if learns
                else "train.gate: there is no network to train; set fusion.gate: learned"
            )
        if not self.trains_coarse:
            for key, idle in (("anchor", 0.0), ("gradient_scale", 1.0)):
                if getattr(self, key) != idle:
                    raise ValueError(f"{key}: has no effect, the coarse model does not train")
        idle = [
            epoch
            for epoch in range(self.epochs)
            if not any(
                row.from_epoch <= epoch < (row.until_epoch or self.epochs)
                for row in self.train.values()
            )
        ]
        if idle:
            raise ValueError(f"train: nothing trains in epoch {idle[0] + 1}; let a part do")
        if self.gpu * self.nodes > self.batch_size:
            raise ValueError(
                f"gpu: {self.gpu * self.nodes} GPUs cannot share a batch of {self.batch_size}; "
                "each needs a sample"
            )
        if "negative" in self.prompts and "point" not in self.prompts:
            raise ValueError("prompts: `negative` is a second point; add `point`")
        if self.style != "direct" and "mask" not in self.prompts:
            raise ValueError(f"style: {self.style} has no effect without `mask` in `prompts`")
        if self.formula != "geometry" and self.prompts == ["mask"]:
            raise ValueError("formula: has no effect, no prompt has a box or a point")
        if len(set(self.prompts)) < len(self.prompts):
            raise ValueError("prompts: a part is named twice")
        return self
