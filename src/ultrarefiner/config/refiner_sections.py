"""What a finetuning says of its data, its noise, its additions and its loss: sections of one key."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from ultrarefiner.config.base import Section
from ultrarefiner.config.training import check_focal


class BandsConfig(Section):
    """How good simulated masks are: shares of three bands of Dice, which sum to 1."""

    perfect: float = Field(0.10, ge=0.0, le=1.0, description="Share of masks without an error.")
    mild: float = Field(0.55, ge=0.0, le=1.0, description="Share of Dice 0.80 to 0.99.")
    heavy: float = Field(0.35, ge=0.0, le=1.0, description="Share of Dice below 0.80.")

    @model_validator(mode="after")
    def _sum_to_one(self) -> BandsConfig:
        return _sums_to_one(self, "bands")


class SimulationConfig(Section):
    """Coarse masks with the errors that networks make, drawn from the truth."""

    preset: Literal["default", "mild", "severe", "boundary_focus", "structural"] = Field(
        "default", description="How often each kind of error is drawn; see docs."
    )
    bands: BandsConfig | None = Field(
        None, description="Shares of quality; none: those of the preset."
    )
    soft: float = Field(
        0.8, ge=0.0, le=1.0, description="Probability that a mask is soft, as predictions are."
    )
    temperature: tuple[float, float] = Field(
        (2.0, 8.0),
        description="Range of T in pixels of a 512-pixel image: soft = sigmoid(distance / T).",
    )

    @field_validator("temperature")
    @classmethod
    def _a_range(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0 < value[0] <= value[1] <= 100:
            raise ValueError(f"temperature {list(value)} is no range within 0 to 100 pixels")
        return value


class BoxNoiseConfig(Section):
    """How training boxes differ from the masks' own: shares of five bands, which sum to 1."""

    exact: float = Field(0.10, ge=0.0, le=1.0, description="As they are.")
    slight_enlarge: float = Field(0.40, ge=0.0, le=1.0, description="Edges 5 to 20 % out.")
    slight_shrink: float = Field(0.40, ge=0.0, le=1.0, description="Edges 5 to 15 % in.")
    heavy_enlarge: float = Field(0.05, ge=0.0, le=1.0, description="Edges 30 to 60 % out.")
    heavy_shrink: float = Field(0.05, ge=0.0, le=1.0, description="Edges 15 to 30 % in.")

    @model_validator(mode="after")
    def _sum_to_one(self) -> BoxNoiseConfig:
        return _sums_to_one(self, "box_noise")


class RefinerAugmentConfig(Section):
    """Random changes of training pictures, with truth and coarse mask alike."""

    rotate: float = Field(15.0, ge=0.0, le=180.0, description="Largest rotation in degrees.")
    scale: tuple[float, float] = Field((0.8, 1.2), description="Range of the change of size.")
    brightness: float = Field(
        0.2, ge=0.0, le=1.0, description="Largest change of all values, as a share of white."
    )
    contrast: float = Field(
        0.2, ge=0.0, lt=1.0, description="Largest change of distances from middle grey, a share."
    )
    noise: float = Field(
        0.05, ge=0.0, le=1.0, description="Largest deviation of normal noise, as a share of white."
    )
    probability: float = Field(
        0.5, gt=0.0, le=1.0, description="Probability of each of these, drawn by itself."
    )

    @field_validator("scale")
    @classmethod
    def _a_range(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0.1 <= value[0] <= value[1] <= 10:
            raise ValueError(f"scale {list(value)} is no range within 0.1 to 10")
        return value

    @model_validator(mode="after")
    def _changes_something(self) -> RefinerAugmentConfig:
        changes = self.rotate or self.brightness or self.contrast or self.noise
        if not changes and self.scale == (1.0, 1.0):
            raise ValueError("augment: every change is 0, so nothing changes; remove the section")
        return self


class LoraConfig(Section):
    """Low-rank additions to frozen linear layers, merged into them at the end."""

    rank: int = Field(4, ge=1, le=256, description="Rank of the additions.")
    alpha: float | None = Field(
        None, gt=0.0, description="Scale: additions count alpha / rank; none: the rank."
    )
    dropout: float = Field(0.0, ge=0.0, lt=1.0, description="Dropout before the additions.")
    targets: list[Literal["qkv", "proj", "mlp"]] = Field(
        default_factory=lambda: ["qkv"], min_length=1, description="Which layers get them."
    )
    parts: list[Literal["encoder", "decoder"]] = Field(
        default_factory=lambda: ["encoder"], min_length=1, description="Where; these are frozen."
    )
    last: int | None = Field(
        None, ge=1, description="Only in the last blocks of the encoder, so many; none: in all."
    )

    @model_validator(mode="after")
    def _keys_have_an_effect(self) -> LoraConfig:
        if self.last is not None and "encoder" not in self.parts:
            raise ValueError("lora.last: has no effect without `encoder` in `parts`")
        return self


class RefinerLossConfig(Section):
    """Weights of the terms of a refiner's loss."""

    bce: float = Field(1.0, ge=0.0, description="Binary cross entropy.")
    dice: float = Field(1.0, ge=0.0, description="Soft Dice loss.")
    focal: float = Field(0.5, ge=0.0, description="Focal loss, gamma 2.")
    focal_alpha: float | None = Field(
        None, gt=0.0, lt=1.0, description="Its balance, as in the loss of coarse models."
    )
    iou: float = Field(0.1, ge=0.0, description="Error of the predicted IoU, squared.")
    change_penalty: float = Field(
        0.5, ge=0.0, description="Cost of changing a coarse mask that was good."
    )
    change: Literal["quality", "correct_pixels"] = Field(
        "quality",
        description="What the penalty is weighted by: the coarse mask's Dice, or whether each of "
        "its pixels was right.",
    )

    @model_validator(mode="after")
    def _teaches_something(self) -> RefinerLossConfig:
        if self.bce + self.dice + self.focal == 0.0:
            raise ValueError("loss: bce, dice and focal cannot all be 0")
        check_focal(self)
        return self


class CrossFitConfig(Section):
    """Inner folds, whose models predict the training cases that none of them has seen."""

    folds: int = Field(3, ge=2, le=10, description="Inner folds within each outer fold.")


def _sums_to_one(section: Any, name: str) -> Any:
    total = sum(section.model_dump().values())
    if abs(total - 1) > 1e-6:
        raise ValueError(f"{name}: the shares sum to {total:g}, not to 1")
    return section
