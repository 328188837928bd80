"""Which parameters of a promptable model train: parts, last blocks of the encoder, additions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from segment_anything.modeling import ImageEncoderViT, Sam

from ultrarefiner.config.finetuning import PARTS, FinetuneConfig
from ultrarefiner.errors import ConfigError
from ultrarefiner.models.lora import add_lora, lora_layers
from ultrarefiner.models.parts import part_of, vit_encoder


@dataclass(frozen=True)
class TrainableSummary:
    """How many numbers of a model train.

    Attributes:
        parts: Of each part the numbers that train and all its numbers, additions included.
        lora_layers: Linear layers with an addition.
    """

    parts: Mapping[str, tuple[int, int]]
    lora_layers: int = 0

    @property
    def trained(self) -> int:
        """Numbers that train."""
        return sum(trained for trained, _ in self.parts.values())

    @property
    def total(self) -> int:
        """Numbers of the whole model, additions included."""
        return sum(total for _, total in self.parts.values())

    @property
    def text(self) -> str:
        """One phrase for each part, such as "encoder 147,456 of 89,818,368"."""
        counts = [
            f"{part.replace('_', ' ')} {trained:,} of {total:,}"
            for part, (trained, total) in self.parts.items()
        ]
        added = [f"LoRA in {self.lora_layers} layers"] if self.lora_layers else []
        return "; ".join(counts + added)


def set_trainable(sam: Sam, config: FinetuneConfig) -> TrainableSummary:
    """Let those parameters require a gradient that a config trains, in place.

    Whole parts first (``config.frozen``; a memory trains with ``config.clip``); then the last
    blocks of a frozen encoder with its neck; then additions to frozen layers, which ``config.seed``
    draws. What does not require a gradient afterwards gets no optimizer entry, and
    ``engine.set_train_mode`` keeps it in eval mode.

    Args:
        sam: The model, without additions.
        config: The finetuning.

    Returns:
        How much trains.

    Raises:
        ConfigError: More blocks are asked for than the encoder has, or it has no such blocks; or
            the model has additions already.
    """
    resting = {*config.frozen, *(() if config.clip > 1 else ("memory",))}
    for name, parameter in sam.named_parameters():
        parameter.requires_grad_(part_of(name) not in resting)
    if config.unfreeze_last:
        _unfreeze_last(sam, config.unfreeze_last)
    lora = config.lora
    if lora is not None:
        add_lora(
            sam,
            rank=lora.rank,
            alpha=lora.alpha,
            dropout=lora.dropout,
            targets=lora.targets,
            parts=lora.parts,
            last=lora.last,
            seed=config.seed,
        )
    return summarise(sam)


def summarise(sam: Sam) -> TrainableSummary:
    """Count the parameters of a model that require a gradient, and all."""
    counts = {part: [0, 0] for part in PARTS}
    for name, parameter in sam.named_parameters():
        count = counts.setdefault(part_of(name), [0, 0])
        count[0] += parameter.numel() * parameter.requires_grad
        count[1] += parameter.numel()
    return TrainableSummary(
        {part: (trained, total) for part, (trained, total) in counts.items()},
        sum(1 for _ in lora_layers(sam)),
    )


def first_trainable_block(sam: Sam) -> int | None:
    """Return the index of the first block of the encoder through which a gradient has to flow.

    Returns:
        0 as well where what comes before the blocks trains, or where the encoder has no row of
        blocks: then nothing of it can be computed once. The number of blocks if only the neck
        trains. None if nothing in the encoder does.
    """
    encoder = sam.image_encoder
    trained = {name for name, parameter in encoder.named_parameters() if parameter.requires_grad}
    if not trained:
        return None
    if not isinstance(encoder, ImageEncoderViT):
        return 0
    depth = len(encoder.blocks)
    if not all(name.startswith(("blocks.", "neck.")) for name in trained):
        return 0
    return min(int(name.split(".")[1]) if name.startswith("blocks.") else depth for name in trained)


def _unfreeze_last(sam: Sam, count: int) -> None:
    instead = "Freeze the encoder (without `unfreeze_last`), or train it as a whole (`train: full`)"
    encoder = vit_encoder(sam, "unfreeze_last", instead)
    depth = len(encoder.blocks)
    if count > depth:
        raise ConfigError(
            f"unfreeze_last: {count}, but the encoder has {depth} blocks; give 1 to {depth}, or "
            "train the encoder as a whole (`train: full`)"
        )
    for module in [*encoder.blocks[depth - count :], encoder.neck]:
        module.requires_grad_(True)
