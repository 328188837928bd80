"""Sections about coarse models and their training."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from ultrarefiner.config.base import Section


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
