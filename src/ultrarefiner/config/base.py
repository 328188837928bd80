"""What every section of the configuration is."""

from __future__ import annotations

import re

from pydantic import BaseModel, ConfigDict

NAME = re.compile(r"[a-z0-9]+(_[a-z0-9]+)*")
"""Names of datasets, models, prompt modes and refiners: they become folder names."""


class Section(BaseModel):
    """A part of the configuration; unknown keys are errors, values cannot change later."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
