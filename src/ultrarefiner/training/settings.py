"""How the engine trains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from ultrarefiner.config import Section


@dataclass(frozen=True)
class EngineSettings:
    """How to train; fields of the same name in ``CoarseConfig`` or ``FinetuneConfig`` say more.

    Attributes:
        selection: The validation metric whose highest value chooses the model; of equal ones the
            earliest epoch wins.
        keep_start: Validate before training too; the model stays as it was if no epoch is better.
        drop_limit: A validation metric and how far it may fall below its value before training;
            when it has fallen further, that epoch is not chosen and training ends. Needs
            ``keep_start``.
        tensorboard: Folder for TensorBoard events; ``None``: none are written.
    """

    epochs: int
    lr: float
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 1e-4
    power: float = 0.9
    schedule: Literal["poly", "cosine", "multistep"] = "poly"
    milestones: Sequence[int] = ()
    gamma: float = 0.5
    warmup: float = 0.0
    grad_clip: float | None = None
    accumulate: int = 1
    precision: Literal["32-true", "16-mixed", "bf16-mixed"] = "32-true"
    validate_every: int = 1
    seed: int = 42
    device: str = "auto"
    selection: str = "dice"
    keep_start: bool = False
    drop_limit: tuple[str, float] | None = None
    tensorboard: Path | None = None


def settings_of(config: Section, folder: Path, device: str, **own: Any) -> EngineSettings:
    """Return the settings that a config asks for by fields of the same names.

    Args:
        config: A section with ``epochs``, ``tensorboard`` and others of ``EngineSettings``.
        folder: Where the model will be; events go to ``tensorboard/`` in it.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        own: Settings that are no fields of the config.
    """
    names = {field.name for field in fields(EngineSettings)} & set(type(config).model_fields)
    shared = {name: getattr(config, name) for name in names - {"tensorboard"}}
    events = folder / "tensorboard" if config.tensorboard else None
    return EngineSettings(**shared, **own, device=device, tensorboard=events)
