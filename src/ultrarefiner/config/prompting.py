"""Sections about prompts and refiners."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from ultrarefiner.config.base import Section
from ultrarefiner.config.crop import CropConfig, WindowRecipe
from ultrarefiner.config.finetuning import FinetuneConfig

NEGATIVE_REACH = 0.1
"""How far outside the lesion's box a negative corner point lies, as a share of the box's side."""


class NoiseConfig(Section):
    """Errors put into prompts on purpose, for robustness studies; drawn once for each case."""

    box: float = Field(
        0.0,
        ge=0.0,
        le=0.45,
        description="Each edge of the box moves by at most this share of the box's side.",
    )
    point: float = Field(
        0.0,
        ge=0.0,
        le=1.0,
        description="Each point moves by at most this share of the lesion's box side.",
    )
    seed: int = Field(0, ge=0, description="Seed of the errors.")

    @model_validator(mode="after")
    def _moves_something(self) -> NoiseConfig:
        if self.box == 0.0 and self.point == 0.0:
            raise ValueError("noise: box and point are both 0; set one, or remove `noise`")
        return self


class PromptConfig(Section):
    """A prompt mode: what a refiner is told about the lesion."""

    kind: Literal["box", "point", "both", "mask", "box+point", "mask+point", "mask+box"] = Field(
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
    points: int = Field(
        1, ge=1, le=16, description="Positive points, spread over the lesion, deepest first."
    )
    negative: bool = Field(
        False, description="Add a negative point: the corner outside the lesion farthest from it."
    )
    components: bool = Field(
        False,
        description="One prompt for each connected component of the mask, their masks OR-ed; "
        "specks under 5 % of the largest are left out.",
    )
    largest: bool = Field(
        False,
        description="The box is that of the largest connected component, not of all together.",
    )
    noise: NoiseConfig | None = Field(None, description="Errors put into the prompts.")
    crop: CropConfig | None = Field(
        None, description="Refine in a crop around the lesion instead of the full image."
    )
    on_empty: Literal["empty", "full_image"] = Field(
        "empty",
        description="When the coarse mask is empty: an empty refined mask, or the whole image as "
        "prompt, as the originals do.",
    )

    @field_validator("expand")
    @classmethod
    def _none_at_all(cls, value: float | None) -> float | None:
        return value or None  # 0 is what the default does

    @model_validator(mode="after")
    def _keys_have_an_effect(self) -> PromptConfig:
        boxes = "box" in self.kind or self.kind == "both"
        points = "point" in self.kind or self.kind == "both"
        if self.expand is not None and not boxes:
            raise ValueError(f"expand has no effect on kind '{self.kind}': it has no box")
        if (self.points != 1 or self.negative) and not points:
            key = "negative" if self.points == 1 else "points"
            raise ValueError(f"{key} has no effect on kind '{self.kind}': it has no point")
        if self.noise and ((self.noise.box and not boxes) or (self.noise.point and not points)):
            key = "noise.box" if self.noise.box and not boxes else "noise.point"
            raise ValueError(f"{key} has no effect on kind '{self.kind}'")
        if self.largest and not boxes:
            raise ValueError(f"largest has no effect on kind '{self.kind}': it has no box")
        if self.largest and self.components:
            raise ValueError("largest and components contradict each other; remove one of them")
        if self.on_empty == "full_image" and "mask" in self.kind:
            raise ValueError(
                f"on_empty: full_image has no effect on kind '{self.kind}': an empty mask says "
                "nothing about the whole image"
            )
        return self

    def recipe(self) -> dict[str, Any]:
        """Return what prompts depend on, as plain values.

        `largest` is left out where it is not set: prompts of before that key stay.
        """
        return self.model_dump(exclude=set() if self.largest else {"largest"})

    @property
    def oracle(self) -> bool:
        """Whether the prompt is made from the truth."""
        return self.source == "ground_truth"

    @property
    def window(self) -> WindowRecipe | None:
        """What the crop windows depend on; None: the refiner sees the full image."""
        if self.crop is None:
            return None
        noise = self.noise or NoiseConfig.model_construct(box=0.0, point=0.0, seed=0)
        expand = max(self.expand or 0.0, 0.0)
        corner = NEGATIVE_REACH if self.negative else 0.0
        reach = max(expand + noise.box * (1 + 2 * expand), corner + noise.point)
        return WindowRecipe(crop=self.crop, reach=0.0 if reach <= self.crop.expand else reach)


class RefinerConfig(BaseModel):
    """A refiner; what other keys its row takes depends on the family."""

    model_config = ConfigDict(extra="allow", frozen=True)

    family: str = Field(description="Family of the registry: grabcut, sam, mobile_sam, ultrasam.")
    weights: str | None = Field(
        None,
        min_length=1,
        description="File, or name in the weights table, for families that need weights.",
    )

    seen: list[str] | None = Field(
        None,
        description="Dataset layouts that weights of your own were trained on; [] for none. "
        "Published weights have theirs on record.",
    )

    finetune: FinetuneConfig | None = Field(
        None, description="Train it on each fold before it is applied there."
    )

    @field_validator("weights")
    @classmethod
    def _one_spelling(cls, value: str | None) -> str | None:
        return value if value is None else Path(value).expanduser().as_posix()

    @property
    def options(self) -> dict[str, Any]:
        """The keys of the family."""
        return dict(self.model_extra or {})


class EmbeddingsConfig(Section):
    """The shelf of image embeddings, shared by prompt modes, folds and runs."""

    folder: str = Field(
        "resources/embeddings", min_length=1, description="Where embeddings are kept."
    )
    limit_gb: float = Field(
        100.0, gt=0.0, description="Size of the shelf; the longest unused embeddings go first."
    )

    @field_validator("folder")
    @classmethod
    def _home(cls, value: str) -> str:
        return Path(value).expanduser().as_posix()


class WeightsConfig(Section):
    """Published weights: whose terms are accepted, and where else to look for the files."""

    accept: list[str] = Field(
        default_factory=list,
        description="Names of weights whose terms you accept, where the licence restricts the use.",
    )
    mirrors: list[str] = Field(
        default_factory=list,
        description="Addresses of folders that hold copies, tried before the authors' own.",
    )
