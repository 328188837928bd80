"""Training of a promptable model, as the engine sees it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import nn

from ultrarefiner.config import FinetuneConfig
from ultrarefiner.datasets.ahead import read_ahead
from ultrarefiner.io import item_seed
from ultrarefiner.prompts.geometry import lesion_pixels
from ultrarefiner.refine.crop import paste_window
from ultrarefiner.refine.sam import Answer, LiveFeatures, SamRefiner
from ultrarefiner.training.changing import PartlyTrained
from ultrarefiner.training.counts import confusion_counts, mean_measures
from ultrarefiner.training.data import batch_sizes
from ultrarefiner.training.features import Features
from ultrarefiner.training.refiner_items import Example, Item, Items
from ultrarefiner.training.refiner_losses import refiner_loss
from ultrarefiner.training.refiner_samples import (
    Sample,
    View,
    example_prompt,
    make_sample,
    used,
    view_of,
)
from ultrarefiner.training.signals import Check
from ultrarefiner.training.team import ALONE, Team


class PromptedModel(PartlyTrained):
    """A promptable model in training: samples in, one mask each out."""

    def __init__(self, refiner: SamRefiner, features: Features) -> None:
        super().__init__()
        self.sam = refiner.sam
        self._refiner, self._features = refiner, features
        self.keep_state_of(one for one in self.parameters() if one.requires_grad)

    def forward(self, samples: list[Sample]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Refine each sample, as at inference: the same passes, the same choice among masks.

        With ``mask_choice: best`` the mask of the highest predicted IoU learns, and its prediction;
        ``softmax`` lets all three learn.

        Returns:
            For each sample logits (h, w) on the part of the low-resolution grid that the picture
            fills, and the predicted IoU, a scalar.
        """
        refiner = self._refiner
        side = self.sam.prompt_encoder.mask_input_size[0]
        frame = self.sam.image_encoder.img_size
        features = self._features.finish(torch.stack([one.stage.features for one in samples]))
        results = []
        for sample, answer in zip(samples, self._answers(samples, features), strict=True):
            logits, iou = refiner.choose(*answer)
            results.append((logits[used(sample.stage.input_size, frame, side)], iou))
        return results

    def _answers(self, samples: list[Sample], features: torch.Tensor) -> list[Answer]:
        """Decode all samples together, or one by one where passes depend on the image's size."""
        refiner, queries = self._refiner, [one.query for one in samples]
        stages = [one.stage for one in samples]
        if not refiner.passes_know_the_image:
            live = LiveFeatures(features, stages[0].image_hw, stages[0].input_size)
            return refiner.run_passes(live, queries)
        return [
            refiner.run_passes(LiveFeatures(one[None], of.image_hw, of.input_size), [query])[0]
            for one, of, query in zip(features, stages, queries, strict=True)
        ]


class RefinerTask:
    """Finetuning of a refiner.

    Args:
        config: The finetuning.
        refiner: The refiner, its trainable parts set.
        features: How pictures come to it.
        items: What it is trained and selected on.
        team: Who trains.
    """

    def __init__(
        self,
        config: FinetuneConfig,
        refiner: SamRefiner,
        features: Features,
        items: Items,
        team: Team = ALONE,
    ) -> None:
        self.config, self.refiner, self.features, self.items = config, refiner, features, items
        self.team = team
        self.model = PromptedModel(refiner, features)

    def batch_sizes(self, epoch: int) -> list[int]:
        """Return the samples of each batch of an epoch; a curriculum grows."""
        return batch_sizes(self.items.count(epoch), self.config.batch_size)

    def view(self, item: Item, flipped: bool = False) -> View:
        """Return how an item is seen."""
        return view_of(self.config, item, lambda: self.items.read(item), flipped)

    def _flips(self, item: Item, epoch: int) -> bool:
        rng = np.random.default_rng(
            item_seed(self.config.seed, "flip", epoch, item.case, item.copy)
        )
        return bool(rng.random() < self.config.hflip)

    def batches(self, epoch: int, first: int = 0) -> Iterator[list[Sample]]:
        """Return the batches of an epoch from a first one on, made ahead by threads.

        Chance is each item's own.
        """

        def make(item: Item) -> Sample:
            view = self.view(item, self._flips(item, epoch))
            return make_sample(self.config, self.refiner, self.features, view, epoch)

        items, size = self.items.epoch(epoch), self.config.batch_size
        mine = self.team.batches(items, batch_sizes(len(items), size), first)
        samples = read_ahead(make, (item for batch in mine for item in batch), ahead=size + 4)
        for batch in mine:
            yield [next(samples) for _ in batch]

    def losses(self, model: nn.Module, batch: list[Sample]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return each sample's loss, (B,), and what is observed of it, (B, 8).

        Observed are the confusion counts on the low-resolution grid, of the refined mask and of the
        coarse one.
        """
        losses, observed = [], []
        for sample, (logits, iou) in zip(batch, model(batch), strict=True):
            target, coarse = sample.target, sample.coarse
            losses.append(
                refiner_loss(
                    logits[None], target[None], coarse[None], iou.reshape(1), self.config.loss
                )
            )
            with torch.no_grad():
                counts = [
                    confusion_counts(mask, target > 0.5) for mask in (logits > 0, coarse >= 0.5)
                ]
            observed.append(torch.cat(counts))
        return torch.cat(losses), torch.stack(observed)

    def measure(self, observed: torch.Tensor) -> dict[str, float]:
        """Return the mean Dice of the training samples, refined and coarse."""
        refined, coarse = mean_measures(observed[:, :4]), mean_measures(observed[:, 4:])
        return {"dice": refined["dice"], "coarse_dice": coarse["dice"]}

    def validate(self, check: Check) -> dict[str, float]:
        """Return means over the validation items, masks compared at original size.

        An item whose coarse mask is empty has an empty refined mask, as in the study.
        """
        refined, coarse, items = [], [], self.items.fixed()
        share = self.team.share(len(items))
        index = range(share.start, share.stop)
        for number in index:
            check()
            item = items[number]
            whole = self.items.read(item)
            truth = torch.from_numpy(whole.label)
            mask = self._refined(number, item, whole)
            refined.append(confusion_counts(torch.from_numpy(mask), truth))
            before = torch.from_numpy(lesion_pixels(whole.coarse))
            coarse.append(confusion_counts(before, truth))
        for _ in range(self.team.spare_rounds(len(items))):
            check()
        after, before = (mean_measures(self.team.gather(index, one)) for one in (refined, coarse))
        return after | {"coarse_dice": before["dice"]}

    def _refined(self, number: int, item: Item, whole: Example) -> np.ndarray:
        view = view_of(self.config, item, lambda: whole, flipped=False)
        example, image_hw = view.example, whole.label.shape
        if not lesion_pixels(example.coarse).any():
            return np.zeros(image_hw, dtype=bool)
        kinds = self.config.kinds
        prompt = example_prompt(self.config, example, kinds[number % len(kinds)], None)
        embedding = self.features.embedding(self.features.of(view.name, False, view.pixels))
        refined = self.refiner.refine(embedding, prompt)
        if view.window is None:
            return refined.mask
        return paste_window(refined, view.window, image_hw).mask
