"""The configuration of a study: pydantic models, early and named errors."""

from ultrarefiner.config.base import NAME, Section
from ultrarefiner.config.data import DatasetConfig, PhantomConfig, SplitsConfig
from ultrarefiner.config.prompting import (
    NEGATIVE_REACH,
    CropConfig,
    EmbeddingsConfig,
    NoiseConfig,
    PromptConfig,
    RefinerConfig,
    WeightsConfig,
    WindowRecipe,
)
from ultrarefiner.config.study import (
    CompareConfig,
    PointsConfig,
    ReportConfig,
    StudyConfig,
    explain,
    load_config,
    parse_section,
)
from ultrarefiner.config.training import AugmentConfig, CoarseConfig, LossConfig

__all__ = [
    "NAME",
    "NEGATIVE_REACH",
    "AugmentConfig",
    "CoarseConfig",
    "CompareConfig",
    "CropConfig",
    "DatasetConfig",
    "EmbeddingsConfig",
    "LossConfig",
    "NoiseConfig",
    "PhantomConfig",
    "PointsConfig",
    "PromptConfig",
    "RefinerConfig",
    "ReportConfig",
    "Section",
    "SplitsConfig",
    "StudyConfig",
    "WeightsConfig",
    "WindowRecipe",
    "explain",
    "load_config",
    "parse_section",
]
