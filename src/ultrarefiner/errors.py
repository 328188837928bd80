"""Errors that a user can act on: each message names the file or key and the cure."""

from __future__ import annotations

from collections.abc import Iterable

_NAMED = 10


def first_names(names: Iterable[object]) -> str:
    """Return the first ten of some names for a message, and how many more there are."""
    listed = [str(name) for name in names]
    rest = f" and {len(listed) - _NAMED} more" if len(listed) > _NAMED else ""
    return ", ".join(listed[:_NAMED]) + rest


class UltraRefinerError(Exception):
    """Base of every error that is the user's to mend; shown without a traceback on the console."""


class ConfigError(UltraRefinerError):
    """The study's configuration is wrong: unknown key, bad value, impossible combination."""


class DatasetError(UltraRefinerError):
    """A raw dataset cannot be used as it is.

    Attributes:
        problems: One line for each problem, every one naming its file.
    """

    def __init__(self, message: str, problems: list[str] | None = None) -> None:
        self.problems = list(problems or [])
        super().__init__("\n  - ".join([message, *self.problems]))


class SplitError(UltraRefinerError):
    """Folds cannot be made from these cases."""


class WeightsError(UltraRefinerError):
    """A weights file is absent, damaged, or belongs to another model."""


class LeakError(UltraRefinerError):
    """A model has seen cases that it is about to be scored on."""


class PromptError(UltraRefinerError):
    """A prompt that the refiner cannot use."""


class OutputError(UltraRefinerError):
    """A result cannot be written: full disk, missing permission."""
