"""Training of a coarse model and a refiner as one, as the engine sees it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import nn

from ultrarefiner.config import EndToEndConfig
from ultrarefiner.datasets.ahead import read_ahead
from ultrarefiner.errors import ConfigError
from ultrarefiner.io import item_seed
from ultrarefiner.models import MODELS, height_width
from ultrarefiner.models.parts import part_of
from ultrarefiner.training.counts import confusion_counts, mean_measures
from ultrarefiner.training.data import (
    PreparedCases,
    batch_sizes,
    enlarge,
    resize_image,
    resize_label,
)
from ultrarefiner.training.end_to_end_model import (
    EndToEnd,
    EndToEndOutput,
    EndToEndSample,
    Size,
)
from ultrarefiner.training.features import Features, Pixels
from ultrarefiner.training.losses import end_to_end_loss
from ultrarefiner.training.plan import Stage
from ultrarefiner.training.segmented import Segmented
from ultrarefiner.training.signals import Check
from ultrarefiner.training.team import ALONE, Team

_SAM_PARTS = {
    "image_encoder": "encoder",
    "prompt_encoder": "prompt_encoder",
    "decoder": "decoder",
    "head": "head",
}


def plan_stages(model: EndToEnd, config: EndToEndConfig, coarse: str) -> list[Stage]:
    """Return which parts of a model train when, in the order of the config.

    Args:
        model: The model.
        config: Its ``train``.
        coarse: Row of ``MODELS`` of the coarse model.

    Raises:
        ConfigError: The coarse model is not made of encoder and decoder.
    """
    stages = []
    for part, row in config.train.items():
        named = [one for name, one in model.named_parameters() if _is_of(name, part, coarse)]
        stages.append(Stage(part, tuple(named), row.lr, row.from_epoch, row.until_epoch))
    return stages


def _is_of(name: str, part: str, coarse: str) -> bool:
    """Return whether a parameter of an ``EndToEnd`` is of a part."""
    owner, _, own = name.partition(".")
    if owner == "sam":
        return part_of(own) == _SAM_PARTS.get(part)
    if owner == "gate":
        return part == "gate"
    if part == "coarse":
        return True
    if part not in ("coarse_encoder", "coarse_decoder"):
        return False
    decoder = MODELS[coarse].decoder
    if not decoder:
        able = ", ".join(model for model, row in MODELS.items() if row.decoder)
        raise ConfigError(
            f"train.{part}: {coarse} is not divided into encoder and decoder (these are: {able}); "
            "train `coarse` as a whole"
        )
    return own.startswith(decoder) == (part == "coarse_decoder")


def make_sample(
    image: np.ndarray,
    label: np.ndarray | None,
    coarse_size: Size,
    grid: int | str,
    features: Features,
    name: str,
    flipped: bool,
    windows: bool,
) -> EndToEndSample:
    """Return an image as the model sees it.

    Args:
        image: uint8 (H, W, 3) RGB, flipped already where ``flipped`` says so.
        label: uint8 (H, W) in {0, 1}; None: not needed.
        coarse_size: Input size of the coarse model.
        grid: Side of the refined mask in pixels, or "original".
        features: How images come to the SAM.
        name: What the image is called on the shelf.
        flipped: Whether it is flipped.
        windows: Whether the SAM sees windows of the image, not all of it.
    """
    image_hw = (image.shape[0], image.shape[1])
    size = image_hw if grid == "original" else (int(grid), int(grid))
    target = None
    if label is not None:
        target = torch.from_numpy(label if size == image_hw else resize_label(label, size))
    return EndToEndSample(
        torch.from_numpy(resize_image(image, coarse_size)),
        size,
        image_hw,
        None if windows else features.of(name, flipped, lambda: image),
        torch.from_numpy(image) if windows else None,
        target,
    )


def conclude(output: EndToEndOutput, samples: Sequence[EndToEndSample]) -> list[Segmented]:
    """Return what the model says about images whose refined masks have the original size.

    Where nothing reaches a coarse probability of one half there is no lesion to refine, and the
    coarse probability stands.
    """
    coarse = output.coarse_logits.softmax(1)[:, 1].cpu().numpy()
    said = []
    for soft, refined, iou, sample in zip(
        coarse, output.refined_logits, output.predicted_iou.tolist(), samples, strict=True
    ):
        before = enlarge(soft, *sample.image_hw)
        after = refined.sigmoid().cpu().numpy()
        said.append(Segmented(after if (before >= 0.5).any() else before, before, iou))
    return said


class EndToEndTask:
    """End-to-end training.

    Args:
        config: The training.
        model: The model.
        features: How images come to its SAM.
        source: The prepared cases.
        train: Cases to train on.
        validation: Cases to select on.
        coarse_size: Input size of the coarse model, or the side of a square.
        team: Who trains.
    """

    def __init__(
        self,
        config: EndToEndConfig,
        model: EndToEnd,
        features: Features,
        source: PreparedCases,
        train: Sequence[str],
        validation: Sequence[str],
        coarse_size: int | Sequence[int],
        team: Team = ALONE,
    ) -> None:
        self.config, self.model, self.features, self.source = config, model, features, source
        self.train, self.validation = list(train), list(validation)
        self.coarse_size, self.team = height_width(coarse_size), team
        self._start = {
            name: one.detach().clone()
            for name, one in model.coarse.named_parameters()
            if config.anchor and one.requires_grad
        }

    def batch_sizes(self, epoch: int) -> list[int]:
        """Return the samples of each batch; every epoch has the same."""
        return batch_sizes(len(self.train), self.config.batch_size)

    def _sample(self, case: str, flipped: bool, grid: int | str) -> EndToEndSample:
        image, label = self.source.read(case)
        if flipped:
            image, label = (np.ascontiguousarray(array[:, ::-1]) for array in (image, label))
        windows = self.config.roi is not None
        return make_sample(
            image, label, self.coarse_size, grid, self.features, case, flipped, windows
        )

    def pictures(self) -> Iterator[tuple[str, bool, Pixels]]:
        """Yield every image that training and validation show, for the shelf."""
        chance = self.config.hflip
        flips = [flip for flip, used in ((False, chance < 1), (True, chance > 0)) if used]
        for cases, wanted in ((self.train, flips), (self.validation, [False])):
            for case in cases:
                image = self.source.read(case)[0]
                for flip in wanted:
                    shown = np.ascontiguousarray(image[:, ::-1]) if flip else image
                    yield case, flip, lambda shown=shown: shown

    def batches(self, epoch: int, first: int = 0) -> Iterator[list[EndToEndSample]]:
        """Return the batches of an epoch from a first one on, made ahead by threads.

        Chance is each case's own.
        """
        seed, size = self.config.seed, self.config.batch_size
        rng = np.random.default_rng(item_seed(seed, "order", epoch))
        order = [self.train[index] for index in rng.permutation(len(self.train))]

        def make(case: str) -> EndToEndSample:
            chance = np.random.default_rng(item_seed(seed, "flip", epoch, case)).random()
            return self._sample(case, bool(chance < self.config.hflip), self.config.loss.size)

        mine = self.team.batches(order, batch_sizes(len(order), size), first)
        samples = read_ahead(make, (case for batch in mine for case in batch), ahead=size + 4)
        for batch in mine:
            yield [next(samples) for _ in batch]

    def losses(
        self, model: nn.Module, batch: list[EndToEndSample]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return each sample's loss, (B,), and confusion counts refined and coarse, (B, 8)."""
        output, weights = model(batch), self.config.loss
        losses, observed = [], []
        for logits, refined, sample in zip(
            output.coarse_logits, output.refined_logits, batch, strict=True
        ):
            losses.append(
                end_to_end_loss(
                    logits[None], refined[None], sample.label[None], weights.coarse, weights.refined
                )
            )
            with torch.no_grad():
                truth = sample.label > 0
                lesion = nn.functional.interpolate(
                    (logits[1] - logits[0])[None, None], sample.size, mode="bilinear"
                )[0, 0]
                counts = [confusion_counts(one > 0, truth) for one in (refined, lesion)]
            observed.append(torch.cat(counts))
        return torch.stack(losses) + self._distance(), torch.stack(observed)

    def _distance(self) -> torch.Tensor | float:
        """Return the cost of the coarse model's squared distance from its first weights."""
        if not self._start:
            return 0.0
        now = dict(self.model.coarse.named_parameters())
        squares = [
            (now[name] - start.to(now[name])).square().sum() for name, start in self._start.items()
        ]
        return self.config.anchor * torch.stack(squares).sum()

    def measure(self, observed: torch.Tensor) -> dict[str, float]:
        """Return the mean Dice of the training samples, refined and coarse."""
        refined, coarse = mean_measures(observed[:, :4]), mean_measures(observed[:, 4:])
        return {"dice": refined["dice"], "coarse_dice": coarse["dice"]}

    @torch.no_grad()
    def validate(self, check: Check) -> dict[str, float]:
        """Return means over the validation cases, masks compared at original size."""
        device, team = self.model.sam.device, self.team
        counts: list[torch.Tensor] = []
        share, size = team.share(len(self.validation)), self.config.batch_size
        cases = self.validation[share.start : share.stop]
        for start in range(0, len(cases), size):
            check()
            batch = [
                self._sample(case, False, "original").to(device)
                for case in cases[start : start + size]
            ]
            for one, sample in zip(conclude(self.model(batch), batch), batch, strict=True):
                truth = sample.label.cpu() > 0
                masks = (one.probability >= 0.5, one.coarse >= 0.5)
                both = [confusion_counts(torch.from_numpy(mask), truth) for mask in masks]
                counts.append(torch.cat(both))
        for _ in range(team.spare_rounds(len(self.validation), size)):
            check()
        found = team.gather(range(share.start, share.stop), counts)
        refined, coarse = mean_measures(found[:, :4]), mean_measures(found[:, 4:])
        return refined | {"coarse_dice": coarse["dice"]}
