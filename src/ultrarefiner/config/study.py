"""The whole study, and the words in which its errors are told."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from ultrarefiner.config.base import NAME, Section
from ultrarefiner.config.data import DatasetConfig, SplitsConfig
from ultrarefiner.config.end_to_end import EndToEndConfig
from ultrarefiner.config.guard import GuardConfig
from ultrarefiner.config.prompting import (
    EmbeddingsConfig,
    PromptConfig,
    RefinerConfig,
    WeightsConfig,
)
from ultrarefiner.config.training import CoarseConfig
from ultrarefiner.errors import ConfigError


class CompareConfig(Section):
    """The methods of the study: what is computed, scored and reported."""

    coarse: list[str] = Field(
        min_length=1, description="Coarse models; the first one gives the prompts."
    )
    refine: dict[str, list[str]] = Field(
        default_factory=dict, description="Refiner: the prompt modes it runs with."
    )
    end_to_end: list[str] = Field(
        default_factory=list, description="Coarse model and refiner, trained on as one."
    )
    guarded: list[str] = Field(
        default_factory=list,
        description="Refined or end-to-end methods that are shown with a guard too, as "
        "`repaired-mask-guarded`.",
    )
    cross: bool = Field(
        False,
        description="Test the models of each dataset and training set on every other dataset; "
        "datasets of role `unseen` are always tested.",
    )
    ensembles: list[Literal["mean", "vote"]] = Field(
        default_factory=lambda: ["mean", "vote"],
        description="How the folds' models decide together on cases that none of them has seen: "
        "`mean` of the probabilities, strict majority `vote` of the masks. [] for none; refined "
        "masks are made from `mean`.",
    )


class PointsConfig(Section):
    """Analysis of point prompts: where they fall, and what an error of some pixels costs."""

    refiners: list[str] = Field(min_length=1, description="Refiners to analyse.")
    sigmas: list[float] = Field(
        default_factory=lambda: [5.0, 10.0, 20.0, 30.0, 50.0],
        min_length=1,
        description="Standard deviations of the Gaussian errors, in pixels of the image.",
    )
    draws: int = Field(5, ge=1, le=100, description="Errors drawn for each case and sigma.")
    seed: int = Field(0, ge=0, description="Seed of the errors.")

    @field_validator("sigmas")
    @classmethod
    def _ascending(cls, value: list[float]) -> list[float]:
        if value != sorted(set(value)) or value[0] <= 0:
            raise ValueError(f"sigmas: {value} must be positive and ascending")
        return value


class ReportConfig(Section):
    """What the report shows and how sure it says it is."""

    title: str = Field("UltraRefiner study", description="Title of the report.")
    gallery: int = Field(3, ge=1, le=20, description="Best, median and worst cases, each so many.")
    failures: int = Field(
        24, ge=0, le=200, description="Worst cases of each dataset in the gallery of failures."
    )
    bootstrap: int = Field(2000, ge=200, description="Resamples of the confidence intervals.")
    seed: int = Field(0, ge=0, description="Seed of the resampling.")


class StudyConfig(Section):
    """One study."""

    run: str = Field("main", description="Name of the run; results go to results/{run}/.")
    device: Literal["auto", "cpu", "cuda", "mps"] = Field(
        "auto", description="Where models run; `auto` takes a GPU when there is one."
    )
    rerun_on_code_change: bool | Literal["warn"] = Field(
        "warn",
        description="What becomes of results whose code has changed since: `true` makes them "
        "again, `warn` keeps them and says so in the report, `false` keeps them.",
    )
    datasets: dict[str, DatasetConfig] = Field(min_length=1, description="Datasets by name.")
    trainsets: dict[str, list[str]] = Field(
        default_factory=dict,
        description="Unions of datasets that models train on too, beside each dataset alone: "
        "`{all: [busi, busbra]}`. Fold k of a union is fold k of its members; its rows are called "
        "`transunet@all`.",
    )
    splits: SplitsConfig = Field(SplitsConfig(), description="Folds.")
    coarse: dict[str, CoarseConfig] = Field(min_length=1, description="Coarse models by name.")
    prompts: dict[str, PromptConfig] = Field(default_factory=dict, description="Prompt modes.")
    refiners: dict[str, RefinerConfig] = Field(default_factory=dict, description="Refiners.")
    end_to_end: dict[str, EndToEndConfig] = Field(
        default_factory=dict,
        description="End-to-end models by name: a coarse model and a refiner, trained on as one.",
    )
    guard: GuardConfig = Field(
        GuardConfig(), description="When a refined mask gives way to the coarse one."
    )
    compare: CompareConfig = Field(description="Methods to compare.")
    points: PointsConfig | None = Field(None, description="Analysis of point prompts.")
    embeddings: EmbeddingsConfig = Field(EmbeddingsConfig(), description="Shelf of embeddings.")
    weights: WeightsConfig = Field(WeightsConfig(), description="Published weights.")
    report: ReportConfig = Field(ReportConfig(), description="Report.")

    @field_validator("run")
    @classmethod
    def _run_is_a_folder_name(cls, value: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", value):
            raise ValueError(f"'{value}' is not a plain folder name (letters, digits, _ . -)")
        return value

    @model_validator(mode="after")
    def _names_are_plain(self) -> StudyConfig:
        for section in ("datasets", "trainsets", "coarse", "prompts", "refiners", "end_to_end"):
            for name in getattr(self, section):
                if not NAME.fullmatch(name):
                    raise ValueError(
                        f"{section}: '{name}' must be lower-case letters and digits, words joined "
                        "by single underscores (it becomes a folder name)"
                    )
        for name in ("report", "logs", "benchmarks"):
            for section in ("datasets", "trainsets"):
                if name in getattr(self, section):
                    raise ValueError(
                        f"{section}: '{name}' is a folder of every run; choose another name"
                    )
        return self


def _nearest(word: str, words: list[str]) -> str:
    parts = sorted(word.split("+"))  # point+box is box+point
    near = [other for other in words if sorted(other.split("+")) == parts]
    near = near or difflib.get_close_matches(word, words, n=1, cutoff=0.5)
    return f" Did you mean '{near[0]}'?" if near else ""


def _known_keys(model: Any, location: tuple[Any, ...]) -> list[str]:
    """Return the keys that the section at ``location`` of a model takes."""
    for part in location:
        field = getattr(model, "model_fields", {}).get(part)
        if field is not None:
            model = field.annotation
        args = [a for a in getattr(model, "__args__", ()) if isinstance(a, type)]
        sections = [a for a in args if issubclass(a, BaseModel)]
        model = sections[0] if sections else model
    return list(getattr(model, "model_fields", {}))


def explain(error: Any, model: type[BaseModel]) -> str:
    """Return one of pydantic's errors about a model in words: where, what, and what is known."""
    location = error["loc"]
    where = ".".join(str(part) for part in location) or "config"
    if error["type"] == "extra_forbidden":
        known = _known_keys(model, location[:-1])
        return f"{where}: unknown key; known here: {', '.join(known)}.{_nearest(str(location[-1]), known)}"
    if error["type"] == "literal_error":
        expected = re.findall(r"'([^']*)'", error["ctx"]["expected"])
        return f"{where}: '{error['input']}' is not one of {', '.join(expected)}.{_nearest(str(error['input']), expected)}"
    if error["type"] == "missing":
        return f"{where}: missing; add it."
    message = error["msg"].removeprefix("Value error, ")
    given = (
        ""
        if isinstance(error["input"], Mapping) or error["type"] == "value_error"
        else f" (got {error['input']!r})"
    )
    return f"{where}: {message}{given}"


def parse_section(model: type[Section] | None, values: Mapping[str, Any]) -> Section | None:
    """Check the keys that a row of a registry takes.

    Args:
        model: The section that lists them; None: the row takes none.
        values: The keys given.

    Raises:
        ConfigError: A key is unknown, missing or out of range; the message lists them all.
    """
    if model is None:
        if values:
            raise ConfigError(f"takes no options; remove {', '.join(values)}")
        return None
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        lines = [explain(item, model).removeprefix("config: ") for item in error.errors()]
        raise ConfigError("; ".join(lines)) from None


def load_config(values: Mapping[str, Any]) -> StudyConfig:
    """Check a study's configuration.

    Args:
        values: The YAML file as nested dicts.

    Raises:
        ConfigError: A key is unknown, missing or out of range; the message lists them all.
    """
    try:
        return StudyConfig.model_validate(dict(values))
    except ValidationError as error:
        lines = [explain(item, StudyConfig) for item in error.errors()]
        raise ConfigError("\n  - ".join(["the configuration has errors:", *lines])) from None
