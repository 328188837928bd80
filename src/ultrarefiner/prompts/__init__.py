"""Prompts: what a refiner is told about the lesion, and how a mask becomes one."""

from ultrarefiner.prompts.base import Prompt
from ultrarefiner.prompts.geometry import PROMPTS, PromptKind, prompt_from_mask

__all__ = ["PROMPTS", "Prompt", "PromptKind", "prompt_from_mask"]
