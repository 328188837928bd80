"""The configuration of a study: pydantic models, early and named errors."""

from ultrarefiner.config.base import NAME, Section
from ultrarefiner.config.data import DatasetConfig, PhantomConfig, SplitsConfig
from ultrarefiner.config.prompting import PromptConfig, RefinerConfig
from ultrarefiner.config.study import CompareConfig, ReportConfig, StudyConfig, load_config
from ultrarefiner.config.training import AugmentConfig, CoarseConfig, LossConfig

__all__ = [
    "NAME",
    "AugmentConfig",
    "CoarseConfig",
    "CompareConfig",
    "DatasetConfig",
    "LossConfig",
    "PhantomConfig",
    "PromptConfig",
    "RefinerConfig",
    "ReportConfig",
    "Section",
    "SplitsConfig",
    "StudyConfig",
    "load_config",
]
