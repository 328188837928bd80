"""A method with its models loaded: images in, masks out, computed as the study computed them."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ultrarefiner.deploy.contents import Bundle, File, RefinerPart
from ultrarefiner.deploy.predicted import REJECTED, Predicted, find_warnings, mean_agreement
from ultrarefiner.errors import ConfigError
from ultrarefiner.prompts import PROMPTS
from ultrarefiner.prompts.entries import prompt_record
from ultrarefiner.prompts.records import PromptFile, PromptRecord
from ultrarefiner.refine import REFINERS, Embedding, Refiner, load_refiner
from ultrarefiner.refine.base import require_image
from ultrarefiner.refine.crop import cut_window, refine_in_window
from ultrarefiner.refine.guard import REJECTED as GUARD_REJECTED
from ultrarefiner.refine.guard import GuardRule, guard_mask, joint_rule
from ultrarefiner.refine.guard_jobs import read_rule
from ultrarefiner.training.segmented import THRESHOLD, Segmented, Segmenter, mask_of
from ultrarefiner.training.segmenter import open_segmenter

log = logging.getLogger(__name__)

_PART = "new"


def open_method(
    bundle: Bundle, device: str = "auto", fold: int | None = None, threshold: float | None = None
) -> Predictor:
    """Load the models of a method.

    Args:
        bundle: The method.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        fold: Take the models of this fold alone; None: all that the bundle has.
        threshold: Cut the (joint) probability of the coarse model here, in place of the method's
            own threshold.

    Raises:
        ConfigError: The device is not on this machine, there is no such fold, or the threshold has
            no meaning for the method.
        WeightsError: A file is absent, damaged, or another model's.
    """
    return Predictor(bundle.of_fold(fold), device, threshold)


def check_threshold(bundle: Bundle, threshold: float | None) -> None:
    """Refuse a threshold that a method cannot be given.

    Raises:
        ConfigError: It is not between 0 and 1, or the method's prompts carry the probability
            itself.
    """
    if threshold is None:
        return
    if not 0.0 < threshold < 1.0:
        raise ConfigError(f"threshold {threshold:g} is not between 0 and 1")
    if bundle.guarded:
        raise ConfigError(
            f"threshold: the guard of {bundle.method} was chosen for masks cut at {THRESHOLD:g}; "
            "leave the threshold out, or take the method without its guard"
        )
    if bundle.refiner is not None and "mask" in PROMPTS[bundle.refiner.prompt.kind].parts:
        raise ConfigError(
            f"threshold: {bundle.method} prompts with the probabilities themselves, of which "
            "lesion is 0.5 and more; leave the threshold out, or take a method that prompts by box "
            "or point"
        )


@dataclass(frozen=True, eq=False)
class _Refined:
    """A refined mask, and the IoU that its refiner expects of it, if any."""

    mask: np.ndarray
    score: float | None


@dataclass(frozen=True, eq=False)
class Answer:
    """What a method says of an image, or of a slice, before its guard.

    Attributes:
        mask: bool (H, W).
        probability: float32 (H, W).
        scores: Of its parts; None where there is none.
        agreement: As ``Predicted`` has it.
        coarse: bool (H, W), the mask before refining; None where nothing was refined.
        before: float32 (H, W), the probability of that.
    """

    mask: np.ndarray
    probability: np.ndarray
    scores: Sequence[float | None]
    agreement: float | None
    coarse: np.ndarray | None = None
    before: np.ndarray | None = None


class Predictor:
    """A method with its models in memory.

    Attributes:
        bundle: The method.
        threshold: Of the (joint) probability of the coarse model.
        refiners: One for each fold, or one for all; none where no refiner is prompted.
    """

    def __init__(self, bundle: Bundle, device: str, threshold: float | None = None) -> None:
        check_threshold(bundle, threshold)
        self.bundle = bundle
        self.threshold = bundle.threshold if threshold is None else threshold
        members = bundle.members
        self._models = _open_models(bundle, [(one.model, one.card) for one in members], device)
        self._last = _open_models(
            bundle, [(one.fallback, one.fallback_card) for one in members if one.fallback], device
        )
        self._rule = _joint_rule(bundle)
        self.refiners = _load_refiners(bundle, device)

    def predict(self, image: np.ndarray, name: str = "image") -> Predicted:
        """Predict an image, uint8 (H, W, 3) RGB of any size; see ``predict_batch``."""
        return self.predict_batch([image], [name])[0]

    def predict_batch(self, images: Sequence[np.ndarray], names: Sequence[str]) -> list[Predicted]:
        """Predict images; the coarse models see them together.

        Args:
            images: uint8 (H, W, 3) RGB, of any sizes.
            names: What each is called; prompt modes with ``noise`` draw by it, nothing else does.

        Raises:
            ConfigError: The method follows lesions through volumes.
            UltraRefinerError: An image has another type, or a prompt made from its coarse mask
                cannot be used.
        """
        if self.bundle.propagates:
            raise ConfigError(
                f"{self.bundle.method} follows lesions through volumes and says nothing of single "
                "images; give volumes, or take a method that refines slice by slice"
            )
        said, last_flips = self.segment(images), self.bundle.fallback_flips
        last = [model.segment(images, last_flips) for model in self._last]
        found = []
        for index, (image, name) in enumerate(zip(images, names, strict=True)):
            mine = said[index]
            answer = self._refined(image, name, mine) if self.refiners else self._segmented(mine)
            if last:
                before = mean_map([answers[index].probability for answers in last])
                coarse = mask_of(before, THRESHOLD)
                answer = replace(answer, coarse=coarse, before=before)
            found.append(self.finish(answer))
        return found

    def segment(self, images: Sequence[np.ndarray]) -> list[list[Segmented]]:
        """Return for each image what the model of each fold says before any refiner."""
        for image in images:
            require_image(image)
        said = [model.segment(images, self.bundle.flips) for model in self._models]
        return [list(one) for one in zip(*said, strict=True)]

    def finish(self, answer: Answer) -> Predicted:
        """Return the prediction, the guard having had its say."""
        return _predicted(answer, self._rule)

    def interactive(self) -> Refiner | None:
        """Return a refiner to prompt by hand, that of the first fold; None: the method has none."""
        if self.bundle.joint:
            return self._models[0].refiner
        return self.refiners[0] if self.refiners else None

    def _segmented(self, said: Sequence[Segmented]) -> Answer:
        """Return what the models say by themselves."""
        if self.bundle.inner:
            said = [Segmented(one.coarse) for one in said]
        probability = mean_map([one.probability for one in said])
        mask = mask_of(probability, self.threshold)
        members = [mask_of(one.probability, self.threshold) for one in said]
        before = None
        if said[0].coarse is not None:
            before = mean_map([one.coarse for one in said])
        return Answer(
            mask=mask,
            probability=probability,
            scores=[one.score for one in said],
            agreement=mean_agreement(members, mask),
            coarse=None if before is None else mask_of(before, THRESHOLD),
            before=before,
        )

    def _refined(self, image: np.ndarray, name: str, said: Sequence[Segmented]) -> Answer:
        """Return what the refiners make of what the models say."""
        before = mean_map([one.probability for one in said])
        coarse = mask_of(before, self.threshold)
        members = [mask_of(one.probability, self.threshold) for one in said]
        seen = _Seen(image, name, self.bundle.refiner)
        if not self.bundle.refines_each:
            one = seen.refine(self.refiners[0], coarse, before)
            share = one.mask.astype(np.float32)
            agreement = mean_agreement(members, coarse)
            return Answer(one.mask, share, [one.score], agreement, coarse, before)
        refined = [
            seen.refine(*each)
            for each in zip(self.refiners, members, [one.probability for one in said], strict=True)
        ]
        masks = [one.mask for one in refined]
        # Counted, not compared as rounded numbers.
        joint = 2 * np.sum(masks, axis=0) >= len(masks)
        return Answer(
            mask=joint,
            probability=mean_map([one.astype(np.float32) for one in masks]),
            scores=[one.score for one in refined],
            agreement=mean_agreement(masks, joint),
            coarse=coarse,
            before=before,
        )


def _open_models(
    bundle: Bundle, files: Sequence[tuple[File, File]], device: str
) -> list[Segmenter]:
    return [open_segmenter(bundle.path(model), bundle.path(card), device) for model, card in files]


def _load_refiners(bundle: Bundle, device: str) -> list[Refiner]:
    part = bundle.refiner
    if part is None:
        return []
    own = [one.refiner for one in bundle.members]
    files = own if bundle.refines_each else [part.weights]
    return [
        load_refiner(
            part.family, None if file is None else str(bundle.path(file)), device, **part.options
        )
        for file in files
    ]


def _joint_rule(bundle: Bundle) -> GuardRule | None:
    """Return the rule of a fold's guard, or that of all folds; None: there is no guard."""
    rules = [read_rule(bundle.path(one.guard)).rule for one in bundle.members if one.guard]
    return joint_rule(rules) if len(rules) > 1 else next(iter(rules), None)


def mean_map(maps: Sequence[np.ndarray]) -> np.ndarray:
    """Return the mean of maps, float32."""
    return np.mean(maps, axis=0, dtype=np.float64).astype(np.float32)


def _predicted(answer: Answer, rule: GuardRule | None) -> Predicted:
    """Return the prediction, the guard having had its say."""
    mask, probability, why = answer.mask, answer.probability, ()
    known = [score for score in answer.scores if score is not None]
    if rule is not None:
        guarded = guard_mask(answer.coarse, mask, rule)
        probability = np.where(guarded.mask == mask, probability, answer.before)
        mask = guarded.mask
        if guarded.verdict.startswith(GUARD_REJECTED):
            # Nothing of the refined mask is left for which a score could be expected.
            probability, known, why = answer.before, [], (REJECTED,)
    return Predicted(
        mask=mask,
        probability=probability,
        coarse=answer.coarse,
        score=float(np.mean(known)) if known else None,
        agreement=answer.agreement,
        warnings=(*find_warnings(mask, answer.coarse, answer.agreement), *why),
    )


class _Seen:
    """An image as the refiners of a method see it: each part of it is encoded once."""

    def __init__(self, image: np.ndarray, name: str, part: RefinerPart) -> None:
        self._image, self._name, self._part = image, name, part
        self._shelved = REFINERS[part.family].shelves_embeddings
        self._embeddings: dict[object, Embedding] = {}

    def refine(self, refiner: Refiner, mask: np.ndarray, probability: np.ndarray) -> _Refined:
        """Make a prompt of a coarse mask and its probability, and refine by it."""
        name = self._name
        file = prompt_file(self._part, {name: prompt_record(self._part.prompt, name, mask)})
        prompt, window = file.prompts(name, as_written(probability)), file.window(name)
        if prompt is None:
            return _Refined(np.zeros(mask.shape, dtype=bool), None)
        embedding = self._embedding(refiner, window)
        refined = refine_in_window(refiner, embedding, prompt, window, mask.shape)
        return _Refined(refined.mask, None if math.isnan(refined.score) else refined.score)

    def _embedding(self, refiner: Refiner, window: tuple[int, int, int, int] | None) -> Embedding:
        # Refiners whose encoders are the same share what these make.
        key = (refiner.weights_sha256 if self._shelved else None, window)
        if key not in self._embeddings:
            pixels = self._image if window is None else cut_window(self._image, window)
            embedding = refiner.embed(pixels)
            # Rounded as on the shelf, from where the study has them.
            self._embeddings[key] = embedding.rounded() if self._shelved else embedding
        return self._embeddings[key]


def prompt_file(part: RefinerPart, records: Mapping[str, PromptRecord]) -> PromptFile:
    """Return prompts as the study has them in a file, by names of images."""
    config = part.prompt
    return PromptFile(
        prompt=part.prompt_name,
        kind=config.kind,
        source=config.source,
        oracle=config.oracle,
        part=_PART,
        on_empty=config.on_empty,
        cases=dict(records),
    )


def as_written(probability: np.ndarray) -> np.ndarray:
    """Return probabilities as the study reads them from its 8-bit pictures."""
    levels = np.rint(np.clip(probability, 0.0, 1.0) * 255.0)
    return levels.astype(np.float32) / 255.0
