"""Training of a promptable model, as the engine sees it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits

from ultrarefiner.config import FinetuneConfig
from ultrarefiner.datasets.ahead import read_ahead
from ultrarefiner.io import item_seed
from ultrarefiner.prompts.geometry import lesion_pixels
from ultrarefiner.refine.crop import paste_window
from ultrarefiner.refine.sam import Answer, SamRefiner
from ultrarefiner.refine.sam_prompts import LiveFeatures
from ultrarefiner.training.changing import PartlyTrained
from ultrarefiner.training.clips import Clips
from ultrarefiner.training.counts import confusion_counts, mean_measures
from ultrarefiner.training.data import batch_sizes
from ultrarefiner.training.features import Features
from ultrarefiner.training.refiner_augment import Augmentation, draw_for
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


class Answers(NamedTuple):
    """What the model makes of a sample.

    Attributes:
        logits: (M, h, w).
        ious: Predicted IoU (M,).
        presence: Logits (M,) of whether there is an object; None where nothing is followed.
    """

    logits: torch.Tensor
    ious: torch.Tensor
    presence: torch.Tensor | None = None


class PromptedModel(PartlyTrained):
    """A promptable model in training: samples in, one mask each out."""

    def __init__(self, refiner: SamRefiner, features: Features) -> None:
        super().__init__()
        self.sam = refiner.sam
        self._refiner, self._features = refiner, features
        self.keep_state_of(one for one in self.parameters() if one.requires_grad)

    def forward(self, samples: list[Sample]) -> list[Answers]:
        """Refine each prompt, as at inference: the same passes, the same choice among masks.

        With ``mask_choice: best`` the mask of the highest predicted IoU learns, and its prediction;
        ``softmax`` lets all three learn.

        Returns:
            For each sample logits on the part of the grid of ``loss_side`` that the picture fills;
            M prompts of a sample share its picture, or M slices its prompt.
        """
        pictures = torch.stack([stage.features for one in samples for stage in one.stages])
        features = self._features.finish(pictures)
        if any(one.following for one in samples):
            parts = features.split([len(one.stages) for one in samples])
            return [self._followed(*pair) for pair in zip(samples, parts, strict=True)]
        answers, results = iter(self._answers(samples, features)), []
        for sample in samples:
            chosen = [self._refiner.choose(*next(answers)) for _ in sample.queries]
            logits = torch.stack([one for one, _ in chosen])
            ious = torch.stack([iou for _, iou in chosen])
            results.append(Answers(self._within(sample, logits), ious))
        return results

    def _within(self, sample: Sample, logits: torch.Tensor) -> torch.Tensor:
        frame, side = self.sam.image_encoder.img_size, self._refiner.loss_side
        rows, columns = used(sample.stage.input_size, frame, side)
        return self._refiner.for_loss(logits)[:, rows, columns]

    def _followed(self, sample: Sample, features: torch.Tensor) -> Answers:
        logits, ious, presence = self._refiner.follow_clip(features, sample.queries[0])
        return Answers(self._within(sample, logits), ious, presence)

    def _answers(self, samples: list[Sample], features: torch.Tensor) -> list[Answer]:
        """Decode all prompts together, or by pictures where passes depend on the picture's size."""
        refiner, stages = self._refiner, [one.stage for one in samples]
        if not refiner.passes_know_the_image:
            each = [number for number, one in enumerate(samples) for _ in one.queries]
            shown = features if len(each) == len(features) else features[each]
            live = LiveFeatures(shown, stages[0].image_hw, stages[0].input_size)
            return refiner.run_passes(live, [query for one in samples for query in one.queries])
        return [
            answer
            for one, of, sample in zip(features, stages, samples, strict=True)
            for answer in refiner.run_passes(
                LiveFeatures(one[None], of.image_hw, of.input_size), list(sample.queries)
            )
        ]


class RefinerTask:
    """Finetuning of a refiner.

    Args:
        config: The finetuning.
        refiner: The refiner, its trainable parts set.
        features: How pictures come to it.
        items: What it is trained and selected on.
        team: Who trains.
        clips: Which slices follow which, where the memory trains.
    """

    def __init__(
        self,
        config: FinetuneConfig,
        refiner: SamRefiner,
        features: Features,
        items: Items,
        team: Team = ALONE,
        clips: Clips | None = None,
    ) -> None:
        self.clips = clips
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

    def _views(self, item: Item, epoch: int) -> tuple[list[View], Augmentation | None]:
        """Return how an item, and those that share its picture, are seen; and how they changed."""
        flips, together = self._flips(item, epoch), self.items.together(item, epoch)
        if self.config.augment is None:
            return [self.view(one, flips) for one in together], None
        examples = [self.items.read(one) for one in together]
        seed = (self.config.seed, "augment", epoch, item.case, item.copy)
        draw = draw_for(self.config.augment, examples, seed)
        changed = [draw.apply(one) for one in examples]
        return [
            view_of(self.config, one, lambda example=example: example, flips)
            for one, example in zip(together, changed, strict=True)
        ], draw

    def _sample(self, item: Item, epoch: int) -> Sample:
        """Return what an item teaches in an epoch."""
        views, draw = self._views(item, epoch)
        sample = make_sample(self.config, self.refiner, self.features, views, epoch)
        if self.clips is None:
            return sample
        after, flipped = self.clips.drawn(item, epoch), views[0].flipped
        return self.clips.extend(sample, after, self.refiner, self.features, flipped, draw)

    def batches(self, epoch: int, first: int = 0) -> Iterator[list[Sample]]:
        """Return the batches of an epoch from a first one on, made ahead by threads.

        Chance is each item's own.
        """

        def make(item: Item) -> Sample:
            return self._sample(item, epoch)

        items, size = self.items.epoch(epoch), self.config.batch_size
        mine = self.team.batches(items, batch_sizes(len(items), size), first)
        samples = read_ahead(make, (item for batch in mine for item in batch), ahead=size + 4)
        for batch in mine:
            yield [next(samples) for _ in batch]

    def losses(self, model: nn.Module, batch: list[Sample]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return each sample's loss, (B,), and what is observed of it, (B, 8).

        Observed are the confusion counts on the grid of the loss, of the refined masks and of the
        coarse ones.
        """
        losses, observed = [], []
        predicts = self.refiner.predicts_iou
        for sample, made in zip(batch, model(batch), strict=True):
            logits, target, coarse = made.logits, sample.target, sample.coarse
            loss = refiner_loss(
                logits, target, coarse, made.ious if predicts else None, self.config.loss
            ).mean()
            if made.presence is not None:
                there = target.flatten(1).amax(dim=1)
                loss = loss + binary_cross_entropy_with_logits(made.presence.float(), there)
            losses.append(loss)
            with torch.no_grad():
                counts = [
                    confusion_counts(mask, target > 0.5).sum(0)
                    for mask in (logits > 0, coarse >= 0.5)
                ]
            observed.append(torch.cat(counts))
        return torch.stack(losses), torch.stack(observed)

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
            if self.clips is not None:
                refined[-1] = refined[-1] + self._followed(number, item, whole)
            before = torch.from_numpy(lesion_pixels(whole.coarse))
            coarse.append(confusion_counts(before, truth))
        for _ in range(self.team.spare_rounds(len(items))):
            check()
        after, before = (mean_measures(self.team.gather(index, one)) for one in (refined, coarse))
        return after | {"coarse_dice": before["dice"]}

    def _followed(self, number: int, item: Item, whole: Example) -> torch.Tensor:
        """Return the confusion counts of the slices after a validation item's own."""
        first = self.features.of(item.picture, False, lambda: whole.image)
        stages, labels = [first], []
        for case in self.clips.after(item.case) or self.clips.after(item.case, -1):
            image, label = self.items.source.read(case)
            stages.append(self.features.of(case, False, lambda image=image: image))
            labels.append(torch.from_numpy(label) > 0)
        if not lesion_pixels(whole.coarse).any():
            masks = [torch.zeros_like(label) for label in labels]
        else:
            kinds = self.config.kinds
            prompt = example_prompt(self.config, whole, kinds[number % len(kinds)], None)
            masks = self.refiner.follow_stages(
                [self.features.embedding(stage) for stage in stages], prompt
            )
        return sum(
            (confusion_counts(*pair) for pair in zip(masks, labels, strict=True)),
            torch.zeros_like(confusion_counts(labels[0], labels[0])) if labels else 0,
        )

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
