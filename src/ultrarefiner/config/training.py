"""Sections about coarse models and their training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from ultrarefiner.config.base import Section


def of_job(resources: Any) -> dict[str, Any]:
    """Return the keys of a training that its job's resources say."""
    return {
        "gpu": resources.processes,
        "nodes": resources.nodes,
        "tensorboard": bool(resources.tensorboard),
    }


class LossConfig(Section):
    """Weights of the coarse model's loss terms."""

    ce: float = Field(0.5, ge=0.0, description="Weight of the cross entropy.")
    dice: float = Field(0.5, ge=0.0, description="Weight of the soft Dice loss.")


class AugmentConfig(Section):
    """Random changes of training images; each is drawn for each image and epoch."""

    hflip: float = Field(0.5, ge=0.0, le=1.0, description="Probability of a left-right flip.")
    vflip: float = Field(0.5, ge=0.0, le=1.0, description="Probability of an up-down flip.")
    rot90: float = Field(
        0.5,
        ge=0.0,
        le=1.0,
        description="Probability of a quarter turn (1 to 3; a half turn where inputs are no square).",
    )
    rotate: float = Field(
        0.0, ge=0.0, le=1.0, description="Probability of a rotation by a small angle."
    )
    rotate_degrees: float = Field(20.0, ge=0.0, le=180.0, description="Largest small angle.")


class CoarseConfig(Section):
    """A coarse segmentation model and its training."""

    model: str = Field("transunet", description="Model of the registry.")
    image_size: int | Literal["auto"] = Field(
        224,
        description="Input side in pixels, 32 to 1024; 16 divides it. `auto`: height and width of "
        "the median training image, as near as the network can take them (dynunet).",
    )
    size_cap: int = Field(
        512, ge=64, le=1024, description="Largest side for `auto`; a power of two."
    )
    width: int | None = Field(
        None,
        ge=4,
        le=128,
        description="Channels of the first level, doubled at the next ones; default: unet 64, "
        "dynunet 32. Fewer are faster.",
    )
    deep_supervision: bool | None = Field(
        None, description="Supervise coarser outputs too (dynunet: yes by default)."
    )
    init: Literal["imagenet21k", "random"] = Field(
        "imagenet21k", description="Starting weights; `random` only if you mean it."
    )
    pretrained: str = Field(
        "resources/weights/R50+ViT-B_16.npz", description="File for `init: imagenet21k`."
    )
    epochs: int = Field(150, ge=1, description="Passes over the training cases.")
    flips: bool = Field(
        False, description="Predict the mean over the image and its three flips; costs 4 times."
    )
    batch_size: int = Field(24, ge=1, description="Images in a step.")
    optimizer: Literal["sgd", "adamw"] = Field("sgd", description="Optimizer.")
    lr: float = Field(0.01, gt=0.0, description="First learning rate.")
    momentum: float = Field(0.9, ge=0.0, lt=1.0, description="Momentum (sgd).")
    nesterov: bool = Field(False, description="Nesterov's momentum (sgd).")
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
    gpu: int = Field(
        1,
        ge=1,
        description="GPUs of a training job on each of its nodes; they share each batch and give "
        "the numbers of one.",
    )
    nodes: int = Field(1, ge=1, description="Machines of a training job, of a Slurm cluster.")
    seed: int = Field(42, ge=0, description="Seed of weights, order and augmentation.")
    tensorboard: bool = Field(False, description="Also write TensorBoard events.")

    @field_validator("image_size", mode="before")
    @classmethod
    def _a_size(cls, value: Any) -> Any:
        if value == "auto":
            return value
        if isinstance(value, bool) or not isinstance(value, int) or not 32 <= value <= 1024:
            raise ValueError(
                f"image_size {value!r} is neither a side from 32 to 1024 pixels nor `auto`"
            )
        if value % 16:
            raise ValueError(
                f"image_size {value} is not divisible by 16; try {round(value / 16) * 16}"
            )
        return value

    @field_validator("size_cap")
    @classmethod
    def _a_power_of_two(cls, value: int) -> int:
        if value & (value - 1):
            raise ValueError(f"size_cap {value} is not a power of two; try 256 or 512")
        return value

    def recipe(self) -> dict[str, Any]:
        """Return what the trained weights depend on.

        Left out: how fast and how loudly it runs, and keys that have no effect beside others.
        """
        idle: dict[str, Any] = {
            "workers": True,
            "threads": True,
            "gpu": True,
            "nodes": True,
            "tensorboard": True,
            "flips": True,  # of predictions, not of the training
        }
        if self.optimizer != "sgd":
            idle["momentum"] = True
        if not self.nesterov:
            idle["nesterov"] = True
        if self.image_size != "auto":
            idle["size_cap"] = True
        # The models' own; left out, a study of before these keys keeps its trained models.
        idle |= {key: True for key in ("width", "deep_supervision") if getattr(self, key) is None}
        if self.init == "random":
            idle["pretrained"] = True
        if self.augment.rotate == 0.0:
            idle["augment"] = {"rotate_degrees"}
        return self.model_dump(mode="json", exclude=idle)

    @classmethod
    def from_recipe(cls, recipe: Mapping[str, Any], threads: int, resources: Any) -> CoarseConfig:
        """Return a training of a recipe; what the recipe leaves out has its default.

        Args:
            recipe: As ``recipe`` gives it.
            threads: CPU threads.
            resources: What the job has: `processes`, `nodes`, `workers`, and whether to write
                `tensorboard`.
        """
        return cls(threads=threads, workers=resources.workers, **of_job(resources), **recipe)

    @model_validator(mode="after")
    def _keys_fit_each_other(self) -> CoarseConfig:
        if self.loss.ce + self.loss.dice == 0.0:
            raise ValueError("loss: ce and dice cannot both be 0")
        if self.gpu * self.nodes > self.batch_size:
            raise ValueError(
                f"gpu: {self.gpu * self.nodes} GPUs cannot share a batch of {self.batch_size}; "
                "each needs a sample"
            )
        if self.nesterov and self.optimizer != "sgd":
            raise ValueError(f"nesterov: has no effect on {self.optimizer}; remove it")
        if self.nesterov and self.momentum == 0.0:
            raise ValueError("nesterov: needs a momentum above 0")
        # Not by `model_fields_set`: a configuration with its defaults written out is the same one.
        capped = self.size_cap != type(self).model_fields["size_cap"].default
        if capped and self.image_size != "auto":
            raise ValueError(
                "size_cap: has no effect beside an image_size in pixels; remove one of them"
            )
        return self
