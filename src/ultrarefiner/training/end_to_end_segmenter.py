"""A model that was trained end to end, applied to images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from ultrarefiner.config import EndToEndConfig
from ultrarefiner.errors import WeightsError
from ultrarefiner.io import file_sha256
from ultrarefiner.models import build_model, height_width
from ultrarefiner.models.cards import read_card
from ultrarefiner.refine import load_refiner
from ultrarefiner.refine.embeddings import image_sha256
from ultrarefiner.refine.shelf import Shelf
from ultrarefiner.training.checkpoint import load_strictly, load_weights
from ultrarefiner.training.end_to_end_model import EndToEnd
from ultrarefiner.training.end_to_end_task import conclude, make_sample
from ultrarefiner.training.features import Features
from ultrarefiner.training.segmented import REFINER, Segmented


class EndToEndSegmenter:
    """A model that was trained end to end, ready for any image; see ``segmenter.Segmenter``.

    Args:
        model: Weights that ``train_end_to_end`` wrote; those of its SAM lie beside them.
        card: Their card.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        shelf: Where embeddings are kept; None: every image is encoded.

    Raises:
        WeightsError: A file is absent or damaged, or they do not belong together.
    """

    def __init__(
        self, model: str | Path, card: str | Path, device: str, shelf: Shelf | None = None
    ) -> None:
        self.card = read_card(card)
        config = EndToEndConfig.model_validate(self.card["config"])
        architecture = self.card["architecture"]
        row = architecture["refiner"]
        file = Path(model).with_name(REFINER)
        for path, digest in (
            (Path(model), self.card["weights_sha256"]),
            (file, row["weights_sha256"]),
        ):
            if not path.is_file() or file_sha256(path) != digest:
                raise WeightsError(
                    f"{path} is absent or not the file that {card} describes. Put the files of one "
                    "training together, or delete them and train the model again."
                )
        self.refiner = load_refiner(row["model"], str(file), device, **row["options"])
        net = build_model(**architecture["coarse"])
        self._size = height_width(architecture["image_size"])
        self._config = config
        self.refiner.sam.requires_grad_(False)
        # Images are encoded as in training: rounded where they came from the shelf, as they still do.
        rounded = config.cache == "float16" and config.roi is None and not config.encoder_changes
        self._features = Features(self.refiner, shelf if rounded else None, rounded)
        self._model = EndToEnd(net, self.refiner, self._features, config)
        self._load(load_weights(model), model)
        self._model.to(self.refiner.device).eval()

    def _load(self, state: dict[str, torch.Tensor], path: str | Path) -> None:
        parts = {"coarse": self._model.coarse}
        if self._model.gate is not None:
            parts["gate"] = self._model.gate
        load_strictly(torch.nn.ModuleDict(parts), state, path)

    @torch.inference_mode()
    def segment(self, images: Sequence[np.ndarray], flips: bool = False) -> list[Segmented]:
        """Segment uint8 (H, W, 3) RGB images of any sizes together."""
        said = self._segment(images)
        if not flips:
            return said
        several = [said]
        for axes in ((1,), (0,), (0, 1)):
            turned = self._segment([np.ascontiguousarray(np.flip(one, axes)) for one in images])
            several.append([_turned(one, axes) for one in turned])
        return [_mean(some) for some in zip(*several, strict=True)]

    def _segment(self, images: Sequence[np.ndarray]) -> list[Segmented]:
        windows = self._config.roi is not None
        samples = [
            make_sample(
                image,
                None,
                self._size,
                "original",
                self._features,
                image_sha256(image),
                False,
                windows,
            ).to(self.refiner.device)
            for image in images
        ]
        return conclude(self._model(samples), samples)


def _turned(one: Segmented, axes: tuple[int, ...]) -> Segmented:
    return Segmented(np.flip(one.probability, axes), np.flip(one.coarse, axes), one.score)


def _mean(several: Sequence[Segmented]) -> Segmented:
    return Segmented(
        np.mean([one.probability for one in several], axis=0),
        np.mean([one.coarse for one in several], axis=0),
        float(np.mean([one.score for one in several])),
    )
