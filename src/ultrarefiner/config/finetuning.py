"""Sections about finetuning a promptable model: on which failures, which parts of it, how."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from ultrarefiner.config.base import Section
from ultrarefiner.config.crop import CropConfig
from ultrarefiner.config.training import of_job

Part = Literal["encoder", "prompt_encoder", "decoder", "head"]
"""Parts of a promptable model that train or rest as a whole."""

PARTS: tuple[Part, ...] = ("encoder", "prompt_encoder", "decoder", "head")

FROZEN: dict[str, tuple[Part, ...]] = {
    "full": (),
    "freeze_encoder": ("encoder",),
    "decoder_and_head": ("encoder", "prompt_encoder"),
    "head": ("encoder", "prompt_encoder", "decoder"),
}
"""What each preset of ``train`` leaves as it is."""


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
        return self


class CrossFitConfig(Section):
    """Inner folds, whose models predict the training cases that none of them has seen."""

    folds: int = Field(3, ge=2, le=10, description="Inner folds within each outer fold.")


class FinetuneConfig(Section):
    """Finetuning of a refiner on each fold, before it is applied to that fold's test cases."""

    data: Literal["simulated", "predictions", "hybrid", "truth", "crops"] = Field(
        "simulated",
        description="What prompts are made from in training: failures simulated from the truth; a "
        "coarse model's predictions of cases that it has not seen; both; the truth; or crops "
        "around the truth, jittered as predicted boxes err.",
    )
    simulation: SimulationConfig = Field(SimulationConfig(), description="Simulated failures.")
    copies: int | None = Field(
        None,
        ge=1,
        le=100,
        description="simulated, hybrid: masks of each case, written once and used in every epoch; "
        "none: new ones in every epoch, made on the fly. crops: crops of each case; none: one.",
    )
    ratio: float = Field(
        0.5, gt=0.0, lt=1.0, description="hybrid: share of predictions; the rest is simulated."
    )
    cross_fit: CrossFitConfig = Field(
        CrossFitConfig(), description="predictions, hybrid: who predicts the training cases."
    )
    on: Literal["fold", "all"] = Field(
        "fold",
        description="`fold`: a model for each fold, trained on its training cases. `all`: one "
        "model, trained on all folds, which may be applied to other datasets only.",
    )
    prompts: list[Literal["box", "point", "mask", "box+point", "mask+point", "mask+box"]] | None = (
        Field(
            None,
            min_length=1,
            description="Kinds of prompts in training, each as often; none: box and mask, or box alone "
            "where masks are the truth.",
        )
    )
    box_noise: BoxNoiseConfig | None = Field(
        None, description="Errors of training boxes; none: boxes as the masks have them."
    )
    crop: CropConfig | None = Field(
        None, description="Train in crops around the coarse mask, as prompt modes with `crop`."
    )
    scratch: Literal["tiny"] | None = Field(
        None, description="Start from random weights of a small model, not from a weights file."
    )
    train: Literal["full", "freeze_encoder", "decoder_and_head", "head"] | None = Field(
        None, description="Which parts train; none: what `freeze` leaves."
    )
    freeze: list[Part] | None = Field(
        None, description="Parts that do not train, one or several; default: encoder."
    )
    unfreeze_last: int = Field(
        0, ge=0, description="Train the last blocks of a frozen encoder, so many, and its neck."
    )
    lora: LoraConfig | None = Field(None, description="Low-rank additions to frozen parts.")
    curriculum: bool = Field(
        False, description="Begin with good coarse masks, and reach all of them halfway."
    )
    loss: RefinerLossConfig = Field(RefinerLossConfig(), description="Loss weights.")
    hflip: float = Field(
        0.5, ge=0.0, le=1.0, description="Probability of a left-right flip of image and mask."
    )
    epochs: int = Field(50, ge=1, description="Passes over the training cases.")
    batch_size: int = Field(4, ge=1, description="Cases in a step.")
    optimizer: Literal["adamw", "sgd"] = Field("adamw", description="Optimizer.")
    lr: float = Field(1e-4, gt=0.0, description="Highest learning rate.")
    weight_decay: float = Field(0.01, ge=0.0, description="Weight decay.")
    schedule: Literal["cosine", "poly"] = Field(
        "cosine", description="Down to 1 % along a cosine; or (1 - step / steps) ** 0.9."
    )
    warmup: float = Field(
        0.05, ge=0.0, le=0.5, description="Share of all steps in which the rate rises from 0."
    )
    grad_clip: float | None = Field(1.0, gt=0.0, description="Largest gradient norm.")
    accumulate: int = Field(1, ge=1, description="Batches whose gradients make one step.")
    precision: Literal["32-true", "16-mixed", "bf16-mixed"] = Field(
        "32-true", description="Arithmetic; the mixed ones need a GPU to be faster."
    )
    validate_every: int = Field(1, ge=1, description="Epochs between validations.")
    validation_copies: int = Field(
        2, ge=1, le=20, description="Fixed simulated masks of each validation case."
    )
    cache: Literal["float16", "float32", "none"] = Field(
        "float16",
        description="How what the frozen part of the encoder gives is kept on the shelf; `none`: "
        "it is computed in every step.",
    )
    threads: int = Field(4, ge=1, description="CPU threads of a training job.")
    gpu: int = Field(
        1,
        ge=1,
        description="GPUs of a training job on each of its nodes; they share each batch and give "
        "the numbers of one.",
    )
    nodes: int = Field(1, ge=1, description="Machines of a training job, of a Slurm cluster.")
    seed: int = Field(42, ge=0, description="Seed of failures, order and additions.")
    tensorboard: bool = Field(False, description="Also write TensorBoard events.")

    @field_validator("freeze", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @property
    def frozen(self) -> tuple[Part, ...]:
        """The parts whose own weights do not train, but for the last blocks of the encoder."""
        if self.train is not None:
            return FROZEN[self.train]
        return ("encoder",) if self.freeze is None else tuple(p for p in PARTS if p in self.freeze)

    @property
    def kinds(self) -> list[str]:
        """The kinds of prompts in training."""
        if self.prompts is not None:
            return list(self.prompts)
        return ["box"] if self.data in ("truth", "crops") else ["box", "mask"]

    @property
    def simulates(self) -> bool:
        """Whether failures are simulated."""
        return self.data in ("simulated", "hybrid")

    @property
    def predicts(self) -> bool:
        """Whether predictions of inner folds are needed."""
        return self.data in ("predictions", "hybrid")

    @property
    def encoder_changes(self) -> bool:
        """Whether embeddings of the finetuned model differ from those of the one it began as."""
        adapted = self.lora is not None and "encoder" in self.lora.parts
        return "encoder" not in self.frozen or self.unfreeze_last > 0 or adapted

    def recipe(self) -> dict[str, Any]:
        """Return what the trained weights depend on.

        Left out: how fast and how loudly it runs, and sections without effect on this kind of data.
        """
        idle = {"threads", "gpu", "nodes", "tensorboard", "train", "freeze"}
        if not self.simulates:
            idle |= {"simulation", "validation_copies"}
        if self.data != "hybrid":
            idle.add("ratio")
        if not self.predicts:
            idle.add("cross_fit")
        kept = self.model_dump(mode="json", exclude=idle)
        return kept | {"prompts": self.kinds, "frozen": list(self.frozen)}

    @classmethod
    def from_recipe(cls, recipe: Mapping[str, Any], threads: int, resources: Any) -> FinetuneConfig:
        """Return a finetuning of a recipe; what the recipe leaves out has its default.

        Args:
            recipe: As ``recipe`` gives it.
            threads: CPU threads.
            resources: What the job has: `processes`, `nodes`, and whether to write `tensorboard`.
        """
        values = dict(recipe)
        frozen = values.pop("frozen")
        return cls(freeze=frozen, threads=threads, **of_job(resources), **values)

    @model_validator(mode="after")
    def _keys_fit_each_other(self) -> FinetuneConfig:
        if self.train is not None and self.freeze is not None:
            raise ValueError("train and freeze say the same in two ways; remove one of them")
        if set(self.frozen) == set(PARTS) and not self.unfreeze_last and self.lora is None:
            raise ValueError("freeze: every part is frozen; leave one to train, or add `lora`")
        if self.unfreeze_last and "encoder" not in self.frozen:
            raise ValueError("unfreeze_last: has no effect, the whole encoder trains already")
        for part in self.lora.parts if self.lora else []:
            if part not in self.frozen:
                raise ValueError(
                    f"lora.parts: the {part} trains as a whole, so additions to it are pointless; "
                    f"freeze it, or take it out of `lora.parts`"
                )
        if self.lora and self.unfreeze_last and "encoder" in self.lora.parts:
            raise ValueError("unfreeze_last and lora both change the encoder; remove one of them")
        if self.gpu * self.nodes > self.batch_size:
            raise ValueError(
                f"gpu: {self.gpu * self.nodes} GPUs cannot share a batch of {self.batch_size}; "
                "each needs a sample"
            )
        added = self.lora is not None and self.lora.dropout > 0 and "decoder" in self.lora.parts
        if added and self.gpu * self.nodes > 1:
            # It decodes prompts of a kind together, so what one process draws cannot be told.
            raise ValueError(
                "gpu: additions to the decoder have dropout, which several GPUs cannot share; set "
                "gpu: 1 or lora.dropout: 0"
            )
        if self.scratch and "encoder" in self.frozen and not self.unfreeze_last:
            raise ValueError(
                "scratch: an encoder of random weights has to train; set `train: full`"
            )
        if self.box_noise and not any("box" in kind for kind in self.kinds):
            raise ValueError("box_noise: has no effect, no prompt has a box")
        if self.crop and self.simulates and self.copies is None:
            raise ValueError(
                "crop: around masks made anew in every epoch each crop would be encoded in every "
                "step; set `copies`"
            )
        if self.copies and not self.simulates and self.data != "crops":
            raise ValueError(f"copies: has no effect on data '{self.data}'; remove it")
        if self.predicts and self.on == "all":
            raise ValueError(
                "on: all has no fold whose models left a case out; use `on: fold`, or data "
                "simulated, truth or crops"
            )
        if self.data in ("truth", "crops") and any("mask" in kind for kind in self.kinds):
            raise ValueError(
                f"prompts: a mask prompt of data '{self.data}' is the truth, and copying it would be "
                "learned; use box and point"
            )
        if self.curriculum and self.simulates and self.copies is None:
            raise ValueError(
                "curriculum: masks made anew in every epoch cannot be ordered; set `copies`"
            )
        if self.curriculum and self.data in ("truth", "crops"):
            raise ValueError(f"curriculum: has no effect, every mask of data '{self.data}' is true")
        return self


def _sums_to_one(section: Any, name: str) -> Any:
    total = sum(section.model_dump().values())
    if abs(total - 1) > 1e-6:
        raise ValueError(f"{name}: the shares sum to {total:g}, not to 1")
    return section
