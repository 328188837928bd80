"""Sections about prompts and refiners."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ultrarefiner.config.base import Section


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
