"""The configuration of a study: pydantic models, early and named errors."""

from ultrarefiner.config.base import NAME, Section
from ultrarefiner.config.crop import CropConfig, WindowRecipe
from ultrarefiner.config.data import DatasetConfig, PhantomConfig, SplitsConfig
from ultrarefiner.config.end_to_end import EndToEndConfig, FusionConfig, RoiConfig
from ultrarefiner.config.finetuning import PARTS, FinetuneConfig
from ultrarefiner.config.guard import GuardConfig
from ultrarefiner.config.prompting import (
    NEGATIVE_REACH,
    EmbeddingsConfig,
    NoiseConfig,
    PromptConfig,
    RefinerConfig,
    WeightsConfig,
)
from ultrarefiner.config.refiner_sections import (
    BandsConfig,
    BoxNoiseConfig,
    CrossFitConfig,
    LoraConfig,
    RefinerLossConfig,
    SimulationConfig,
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
    "PARTS",
    "AugmentConfig",
    "BandsConfig",
    "BoxNoiseConfig",
    "CoarseConfig",
    "CompareConfig",
    "CropConfig",
    "CrossFitConfig",
    "DatasetConfig",
    "EmbeddingsConfig",
    "EndToEndConfig",
    "FinetuneConfig",
    "FusionConfig",
    "GuardConfig",
    "LoraConfig",
    "LossConfig",
    "NoiseConfig",
    "PhantomConfig",
    "PointsConfig",
    "PromptConfig",
    "RefinerConfig",
    "RefinerLossConfig",
    "ReportConfig",
    "RoiConfig",
    "Section",
    "SimulationConfig",
    "SplitsConfig",
    "StudyConfig",
    "WeightsConfig",
    "WindowRecipe",
    "explain",
    "load_config",
    "parse_section",
]
