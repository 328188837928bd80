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


def idle_schedule_keys(training: Any) -> set[str]:
    """Return the keys of a training's other schedules, which have no effect on its own."""
    return {"power"} if training.schedule == "multistep" else {"milestones", "gamma"}


def check_schedule(training: Any) -> None:
    """Refuse a schedule that its keys do not fit.

    Args:
        training: A section with ``schedule``, ``epochs``, ``milestones`` and ``gamma``.

    Raises:
        ValueError: A key has no effect, or a milestone is none of the training's epochs.
    """
    fields = type(training).model_fields
    for key in sorted(idle_schedule_keys(training) & set(fields)):
        if getattr(training, key) != fields[key].get_default(call_default_factory=True):
            raise ValueError(f"{key}: has no effect on schedule: {training.schedule}; remove it")
    if training.schedule != "multistep":
        return
    milestones = training.milestones
    if not milestones:
        raise ValueError(
            "milestones: schedule: multistep needs the epochs after which the rate falls, such as "
            "[5, 10]"
        )
    if milestones[0] < 1 or milestones != sorted(set(milestones)):
        raise ValueError(f"milestones: {milestones} are no ascending numbers of epochs from 1 on")
    if milestones[-1] >= training.epochs:
        raise ValueError(
            f"milestones: {milestones[-1]} would never be reached, there are {training.epochs} "
            "epochs; each has to be fewer than `epochs`"
        )


def check_focal(loss: Any) -> None:
    """Refuse a balancing factor of no focal loss.

    Args:
        loss: A section with ``focal`` and ``focal_alpha``.

    Raises:
        ValueError: It has no effect.
    """
    if loss.focal_alpha is not None and loss.focal == 0.0:
        raise ValueError("focal_alpha: has no effect while `focal` is 0; set its weight")


class LossConfig(Section):
    """Weights of the coarse model's loss terms."""

    ce: float = Field(0.5, ge=0.0, description="Weight of the cross entropy.")
    dice: float = Field(0.5, ge=0.0, description="Weight of the soft Dice loss.")
    focal: float = Field(0.0, ge=0.0, description="Weight of the focal loss, gamma 2.")
    focal_alpha: float | None = Field(
        None,
        gt=0.0,
        lt=1.0,
        description="Balance of the focal loss: the lesion's pixels count so much, the others the "
        "rest to 1; none: all alike.",
    )

    @model_validator(mode="after")
    def _teaches_something(self) -> LossConfig:
        if self.ce + self.dice + self.focal == 0.0:
            raise ValueError("loss: ce, dice and focal cannot all be 0")
        check_focal(self)
        return self


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


_MODELS_OWN = ("width", "deep_supervision", "resnet", "branch")


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
    init: Literal["imagenet21k", "sam", "random"] = Field(
        "imagenet21k",
        description="Starting weights: `imagenet21k` (transunet), `sam` (sam_unet); `random` only "
        "if you mean it.",
    )
    pretrained: str = Field(
        "resources/weights/R50+ViT-B_16.npz",
        description="File for `init: imagenet21k`; for `init: sam` "
        "the SAM, sam_vit_b if this is not set.",
    )
    resnet: Literal[10, 34, 50] | None = Field(
        None, description="sam_unet: layers of the ResNet beside the encoder; default 50."
    )
    branch: str | None = Field(
        None,
        min_length=1,
        description="sam_unet: weights that the ResNet starts from, by name or as a file of "
        "torchvision; default: ImageNet's. `random`: random ones.",
    )
    epochs: int = Field(150, ge=1, description="Passes over the training cases.")
    flips: bool = Field(
        False, description="Predict the mean over the image and its three flips; costs 4 times."
    )
    batch_size: int = Field(24, ge=1, description="Images in a step.")
    optimizer: Literal["sgd", "adam", "adamw"] = Field("sgd", description="Optimizer.")
    lr: float = Field(0.01, gt=0.0, description="First learning rate.")
    momentum: float = Field(0.9, ge=0.0, lt=1.0, description="Momentum (sgd).")
    nesterov: bool = Field(False, description="Nesterov's momentum (sgd).")
    weight_decay: float = Field(1e-4, ge=0.0, description="Weight decay (adam: as L2).")
    schedule: Literal["poly", "multistep"] = Field(
        "poly", description="Falls in every step; or after the epochs of `milestones`."
    )
    power: float = Field(0.9, ge=0.0, description="poly: lr * (1 - step / steps) ** power.")
    milestones: list[int] = Field(
        default_factory=list,
        description="multistep: after so many epochs each the rate is multiplied by `gamma`.",
    )
    gamma: float = Field(0.5, gt=0.0, lt=1.0, description="multistep: that factor.")
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
        idle |= {key: True for key in _MODELS_OWN if getattr(self, key) is None}
        # Left out likewise: keys of other schedules, and a focal loss of no weight.
        idle |= dict.fromkeys(idle_schedule_keys(self), True)
        if self.schedule == "poly":
            idle["schedule"] = True
        if self.loss.focal == 0.0:
            idle["loss"] = {"focal", "focal_alpha"}
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
        check_schedule(self)
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
