"""Sections about finetuning a promptable model: on which failures, which parts of it, how."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from ultrarefiner.config.base import Section
from ultrarefiner.config.crop import CropConfig
from ultrarefiner.config.refiner_sections import (
    BoxNoiseConfig,
    CrossFitConfig,
    LoraConfig,
    RefinerAugmentConfig,
    RefinerLossConfig,
    SimulationConfig,
)
from ultrarefiner.config.training import check_schedule, idle_schedule_keys, of_job

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
    box_shift: float | None = Field(
        None,
        gt=0.0,
        le=64.0,
        description="Move training boxes as a whole by at most so many pixels of a 256-pixel image "
        "along each axis, and at most by half of their shorter side.",
    )
    masks_per_image: int = Field(
        1,
        ge=1,
        le=20,
        description="Masks of an image in each step, which share the encoder's pass: different ones "
        "where cases are masks of one image (samed2d, `masks: each`), else one with as many prompts.",
    )
    clip: int = Field(
        1,
        ge=1,
        le=16,
        description="Slices of a sample: the first is prompted, and the memory, which trains then, "
        "has to follow the lesion through the others, up or down. Family medsam2, volumes.",
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
    augment: RefinerAugmentConfig | None = Field(
        None, description="Further changes of training pictures; needs `cache: none`."
    )
    epochs: int = Field(50, ge=1, description="Passes over the training cases.")
    batch_size: int = Field(4, ge=1, description="Cases in a step.")
    optimizer: Literal["adamw", "adam", "sgd"] = Field("adamw", description="Optimizer.")
    lr: float = Field(1e-4, gt=0.0, description="Highest learning rate.")
    weight_decay: float = Field(0.01, ge=0.0, description="Weight decay (adam: as L2).")
    schedule: Literal["cosine", "poly", "multistep"] = Field(
        "cosine",
        description="Down to 1 % along a cosine; (1 - step / steps) ** 0.9; or by `milestones`.",
    )
    milestones: list[int] = Field(
        default_factory=list,
        description="multistep: after so many epochs each the rate is multiplied by `gamma`.",
    )
    gamma: float = Field(0.5, gt=0.0, lt=1.0, description="multistep: that factor.")
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
    checkpointing: bool = Field(
        False,
        description="Compute the encoder's blocks again in the backward pass: less memory, more "
        "time, the same numbers.",
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
        idle = {"threads", "gpu", "nodes", "tensorboard", "checkpointing", "train", "freeze"}
        idle |= idle_schedule_keys(self)
        if not self.simulates:
            idle |= {"simulation", "validation_copies"}
        if self.data != "hybrid":
            idle.add("ratio")
        if not self.predicts:
            idle.add("cross_fit")
        kept = self.model_dump(mode="json", exclude=idle)
        if self.loss.focal_alpha is None:
            del kept["loss"]["focal_alpha"]  # so that models of before this key stay
        if self.box_shift is None:
            del kept["box_shift"]
        if self.masks_per_image == 1:
            del kept["masks_per_image"]
        if self.clip == 1:
            del kept["clip"]
        if self.augment is None:
            del kept["augment"]
        return kept | {"prompts": self.kinds, "frozen": list(self.frozen)}

    @classmethod
    def from_recipe(cls, recipe: Mapping[str, Any], threads: int, resources: Any) -> FinetuneConfig:
        """Return a finetuning of a recipe; what the recipe leaves out has its default.

        Args:
            recipe: As ``recipe`` gives it.
            threads: CPU threads.
            resources: What the job has: `processes`, `nodes`, and whether to write `tensorboard`
                and to save memory by `checkpointing`.
        """
        values = dict(recipe)
        frozen, saves = values.pop("frozen"), bool(resources.checkpointing)
        job = of_job(resources) | {"checkpointing": saves, "threads": threads}
        return cls(freeze=frozen, **job, **values)

    @model_validator(mode="after")
    def _keys_fit_each_other(self) -> FinetuneConfig:
        check_schedule(self)
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
        if self.box_shift and not any("box" in kind for kind in self.kinds):
            raise ValueError("box_shift: has no effect, no prompt has a box")
        if self.box_shift and self.box_noise:
            raise ValueError("box_shift and box_noise both move boxes; remove one of them")
        alone = self.data not in ("truth", "simulated") or self.copies is not None
        if self.masks_per_image > 1 and (alone or self.crop):
            raise ValueError(
                "masks_per_image: several masks can share a picture of data truth, or simulated "
                "without `copies`, and without `crop`; set that, or masks_per_image: 1"
            )
        if self.augment and self.cache != "none":
            raise ValueError(
                f"augment: changes pictures in every epoch, so that cache: {self.cache} could keep "
                "nothing of them; set `cache: none`"
            )
        if self.augment and self.data == "crops":
            raise ValueError(
                "augment: crops come with boxes, which cannot be turned; remove it, or train on "
                "other data with `crop`"
            )
        if self.clip > 1 and (self.crop or self.masks_per_image > 1 or self.data == "crops"):
            raise ValueError(
                "clip: slices are followed as a whole, with one prompt; remove `crop` and "
                "`masks_per_image`, and take other data than crops"
            )
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
