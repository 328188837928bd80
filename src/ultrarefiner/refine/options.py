"""Options of each refiner family: the keys its config row takes. Imports no model code."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from ultrarefiner.config import Section
from ultrarefiner.models.weights import resnet_weights


class GrabCutOptions(Section):
    """GrabCut on a despeckled image, started from the coarse mask as a trimap.

    The defaults were measured on real breast ultrasound and on phantoms, see
    ``tests/unit/test_grabcut.py``.
    """

    median: int = Field(
        5, ge=1, le=31, description="Side of the median filter in working pixels, odd; 1: none."
    )
    inner: float = Field(
        0.3,
        ge=0.0,
        le=1.0,
        description="Sure lesion: deeper inside than this share of the lesion's radius.",
    )
    outer: float = Field(
        0.5,
        gt=0.0,
        le=3.0,
        description="Sure background: farther outside than this share of the radius.",
    )
    iterations: int = Field(3, ge=1, le=50, description="GrabCut iterations.")
    size: int = Field(
        160,
        ge=32,
        le=4096,
        description="Longest side of the working grid in pixels; it lies over the window around the "
        "lesion.",
    )

    @field_validator("median")
    @classmethod
    def _odd(cls, value: int) -> int:
        if value % 2 == 0:
            raise ValueError(f"median {value} is even; a filter has a middle only if it is odd")
        return value


class JitterOptions(Section):
    """Moved copies of each prompt, whose agreement tells how sure the refined mask is."""

    copies: int = Field(8, ge=2, le=64, description="Moved copies of the prompt.")
    box: float = Field(
        0.05, ge=0.0, le=0.45, description="Largest move of a box edge, as a share of its side."
    )
    point: float = Field(
        0.05, ge=0.0, le=0.45, description="Largest move of a point, as a share of the box's side."
    )
    seed: int = Field(0, ge=0, description="Seed of the moves.")

    @model_validator(mode="after")
    def _moves_something(self) -> JitterOptions:
        if self.box == 0.0 and self.point == 0.0:
            raise ValueError("box and point are both 0; set one, or remove `jitter`")
        return self


class SamOptions(Section):
    """A segment-anything model."""

    mask_choice: Literal["best", "single", "union", "softmax"] = Field(
        "best",
        description="`best`: of the three masks the one with the highest predicted IoU; `single`: "
        "the one-mask output; `union`: the pixelwise highest of the three logits; `softmax`: "
        "the mean of the three logits, weighted by softmax(predicted IoU / temperature).",
    )
    temperature: float = Field(0.1, gt=0.0, le=10.0, description="Of `mask_choice: softmax`.")
    passes: int = Field(
        1,
        ge=1,
        le=10,
        description="Decoder passes; each further one gets as mask prompt the logits of the one "
        "before that have the highest predicted IoU.",
    )
    jitter: JitterOptions | None = Field(
        None, description="Refine moved copies of the prompt too; their agreement is recorded."
    )
    precision: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="Arithmetic of the image encoder; bfloat16 is faster where the "
        "device has it, and rounds: see docs/reference/refiners.md.",
    )
    compile: bool = Field(
        False, description="Compile the image encoder; pays off from some hundred images on."
    )

    @model_validator(mode="after")
    def _keys_have_an_effect(self) -> SamOptions:
        if self.mask_choice != "softmax" and "temperature" in self.model_fields_set:
            raise ValueError(f"temperature has no effect on mask_choice: {self.mask_choice}")
        return self


class SamUNetOptions(Section):
    """A SAM-UNet: what it is made of when it is trained here, and how sure it is."""

    resnet: Literal[10, 34, 50] | None = Field(
        None,
        description="Layers of the ResNet beside the encoder; none: what a trained file has, 50 in "
        "a training. 10 is for trials without a GPU.",
    )
    image_size: int | None = Field(
        None,
        ge=64,
        le=1024,
        description="Side of the frame in pixels, a multiple of 32; none: what a trained file has, "
        "256 in a training.",
    )
    branch: str | None = Field(
        None,
        min_length=1,
        description="Weights that the ResNet begins with in a training, by name or as a file of "
        "torchvision; none: ImageNet's. `random`: random ones.",
    )
    init: Literal["pretrained", "random", "tiny"] = Field(
        "pretrained",
        description="`pretrained`: the frozen encoder is that of the SAM in `weights`. `random`: it "
        "is random and stays so. `tiny`: so, and small, for trials without a GPU.",
    )
    jitter: JitterOptions | None = Field(
        None, description="Refine moved copies of the prompt too; their agreement is recorded."
    )

    @property
    def layers(self) -> int:
        """Layers of the ResNet of a training."""
        return self.resnet or 50

    @property
    def branch_weights(self) -> str | None:
        """Weights that the ResNet begins with in a training; None: random ones."""
        if self.init != "pretrained" and self.branch is None:
            return None
        return resnet_weights(self.layers, self.branch)

    @field_validator("image_size")
    @classmethod
    def _divisible(cls, value: int | None) -> int | None:
        if value is not None and value % 32:
            raise ValueError(
                f"image_size {value} is not divisible by 32; try {round(value / 32) * 32}"
            )
        return value


class MedSam2Options(SamOptions):
    """A SAM 2.1: how a slice comes to it, and how a volume is followed through."""

    image_size: int = Field(
        512,
        ge=64,
        le=2048,
        multiple_of=32,
        description="Side of the frame in pixels; MedSAM2's is 512, SAM 2.1's own 1024.",
    )
    propagate: Literal["none", "memory", "masks"] = Field(
        "none",
        description="`none`: slice by slice, each with its own prompt. `memory`: from key slices "
        "through the volume by the model's memory. `masks`: from key slices, each next prompt made "
        "from the mask before.",
    )
    resize: Literal["bilinear", "bicubic"] | None = Field(
        None,
        description="How a slice is brought to the frame; none: bilinear (as SAM 2 takes images), "
        "and bicubic with `propagate` (as MedSAM2 takes volumes). One value for both lets both "
        "share embeddings.",
    )
    key: Literal["largest", "confident", "middle"] = Field(
        "largest",
        description="Key slice of each lesion: most pixels, highest mean probability, or the middle "
        "one.",
    )
    objects: int = Field(
        5, ge=1, le=20, description="Lesions of a volume that are followed, the largest ones."
    )
    reprompt: float | None = Field(
        None,
        gt=0.0,
        lt=1.0,
        description="memory: prompt a slice anew where the Dice of what was followed with the mask "
        "that prompts are made from falls below this.",
    )
    largest_component: bool = Field(
        False, description="With `propagate`: keep the largest component of the volume's mask only."
    )
    fill_holes: bool = Field(
        False, description="With `propagate`: fill holes of the mask in each slice."
    )

    @model_validator(mode="before")
    @classmethod
    def _resized(cls, values: Any) -> Any:
        if not isinstance(values, dict) or values.get("resize") is not None:
            return values
        through = values.get("propagate", "none") != "none"
        return values | {"resize": "bicubic" if through else "bilinear"}

    @model_validator(mode="after")
    def _following_has_an_effect(self) -> MedSam2Options:
        idle = {"key": "largest", "objects": 5, "largest_component": False, "fill_holes": False}
        set_all_the_same = [name for name, value in idle.items() if getattr(self, name) != value]
        if self.propagate == "none" and set_all_the_same:
            raise ValueError(f"{set_all_the_same[0]} has no effect with propagate: none")
        own = {"mask_choice": "best", "passes": 1, "jitter": None}
        ignored = [name for name, value in own.items() if getattr(self, name) != value]
        if self.propagate == "memory" and ignored:
            raise ValueError(f"{ignored[0]} has no effect with propagate: memory")
        if self.propagate != "memory" and self.reprompt is not None:
            raise ValueError(f"reprompt has no effect with propagate: {self.propagate}")
        return self


_COMPAT = {
    "reference": {
        "padding": "before",
        "half_pixel": False,
        "scale": "longest",
        "threshold": "before",
    },
    "official": {
        "padding": "after",
        "half_pixel": True,
        "scale": "per_axis",
        "threshold": "before",
    },
}


class UltraSamOptions(SamOptions):
    """UltraSAM: its two passes, and the choices that its authors' pipelines make around it."""

    passes: int = Field(
        2,
        ge=1,
        le=10,
        description="Decoder passes; UltraSAM's own are 2: a single mask, then the best of three. "
        "With 1 the single mask is the result, with more the second is repeated.",
    )
    compat: Literal["reference", "official"] | None = Field(
        None,
        description="Preset of the four keys below: `reference`, the pipeline this project began "
        "with; `official`, UltraSAM's own test pipeline. None: our choices.",
    )
    padding: Literal["after", "before"] = Field(
        "after", description="Pad after the normalisation, with 0; or before it, with black."
    )
    half_pixel: bool = Field(True, description="Add 0.5 to scaled coordinates: pixel centres.")
    scale: Literal["per_axis", "longest"] = Field(
        "per_axis",
        description="Scale of coordinates: new / old size of each axis, or 1024 / longest side.",
    )
    threshold: Literal["after", "before"] = Field(
        "after",
        description="Threshold logits after bringing them to the image's size; or before, at 256, "
        "and count every pixel the interpolated mask touches.",
    )

    @model_validator(mode="before")
    @classmethod
    def _preset(cls, values: Any) -> Any:
        name = values.get("compat") if isinstance(values, dict) else None
        preset = _COMPAT.get(name) if isinstance(name, str) else None
        if preset is None:
            return values
        for key, value in preset.items():
            if values.get(key, value) != value:
                raise ValueError(
                    f"compat: {name} is {key}: {value}, and {key}: {values[key]} is given too; "
                    "remove one of them"
                )
        return values | preset
