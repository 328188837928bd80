"""Images for the coarse models: read once, kept small in memory, augmented by seed."""

from __future__ import annotations

import hashlib
import math
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from ultrarefiner.config import AugmentConfig
from ultrarefiner.datasets.loader import read_prepared
from ultrarefiner.io import item_seed


def resize_image(image: np.ndarray, size: int) -> np.ndarray:
    """Resize to a square, whatever the aspect ratio.

    Args:
        image: (H, W) or (H, W, 3), uint8 or float32.
        size: Side in pixels.

    Returns:
        The same type, (size, size) or (size, size, 3): averaged over areas when both sides shrink,
        else bilinear.
    """
    shrinks = image.shape[0] >= size and image.shape[1] >= size
    return cv2.resize(
        image, (size, size), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    )


def resize_label(label: np.ndarray, size: int) -> np.ndarray:
    """Resize a label as its image is, then threshold at one half.

    Nearest neighbour would shift the outline by up to half an original pixel against the image;
    the share of lesion in each new pixel keeps both aligned and the area unbiased.

    Args:
        label: (H, W) in {0, 1}.
        size: Side in pixels.

    Returns:
        uint8 (size, size) in {0, 1}.
    """
    return (resize_image(label.astype(np.float32), size) >= 0.5).astype(np.uint8)


@dataclass(frozen=True)
class CoarseData:
    """Cases as a coarse model sees them.

    Attributes:
        cases: Case ids.
        images: uint8 (N, S, S, 3) RGB.
        labels: uint8 (N, S, S) in {0, 1}.
        truths: bool (H, W) each, the labels at original size; none for data only trained on.
        digests: For each case the SHA-256 of its image and label at original size.
    """

    cases: tuple[str, ...]
    images: np.ndarray
    labels: np.ndarray
    truths: tuple[np.ndarray, ...]
    digests: dict[str, str]

    @classmethod
    def read(
        cls, prepared: str | Path, cases: Sequence[str], image_size: int, with_truths: bool = True
    ) -> CoarseData:
        """Read prepared cases, resized to ``image_size``.

        Args:
            prepared: The dataset's folder of prepared cases.
            cases: Case ids.
            image_size: Side S in pixels.
            with_truths: Keep the labels at original size too, which evaluation needs; they are
                the larger part of the memory.
        """
        images = np.empty((len(cases), image_size, image_size, 3), np.uint8)
        labels = np.empty((len(cases), image_size, image_size), np.uint8)
        truths, digests = [], {}
        for index, case in enumerate(cases):
            image, label = read_prepared(prepared, case)
            digest = hashlib.sha256(repr(image.shape).encode())
            digest.update(np.ascontiguousarray(image))
            digest.update(np.ascontiguousarray(label))
            digests[case] = digest.hexdigest()
            images[index] = resize_image(image, image_size)
            labels[index] = resize_label(label, image_size)
            if with_truths:
                truths.append(label.astype(bool))
        return cls(tuple(cases), images, labels, tuple(truths), digests)

    def __len__(self) -> int:
        return len(self.cases)


def as_input(images: torch.Tensor) -> torch.Tensor:
    """Turn uint8 (B, S, S, 3) RGB into the models' input: float32 (B, 3, S, S), value / 255."""
    return images.permute(0, 3, 1, 2).float() / 255


def augment(
    image: np.ndarray, label: np.ndarray, config: AugmentConfig, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Flip and turn an image and its label alike.

    Args:
        image: uint8 (S, S, 3).
        label: uint8 (S, S).
        config: Probabilities of each change.
        rng: Source of chance; the same draws are made whatever the probabilities are.

    Returns:
        Image and label of the same shapes and types. A small rotation is bilinear for the image,
        nearest for the label, and black outside.
    """
    hflip, vflip, rot90, rotate = rng.random(4)
    turns, angle = int(rng.integers(1, 4)), float(rng.uniform(-1, 1)) * config.rotate_degrees
    if hflip < config.hflip:
        image, label = image[:, ::-1], label[:, ::-1]
    if vflip < config.vflip:
        image, label = image[::-1], label[::-1]
    if rot90 < config.rot90:
        image, label = np.rot90(image, turns), np.rot90(label, turns)
    if rotate < config.rotate:
        image, label = np.ascontiguousarray(image), np.ascontiguousarray(label)
        centre = (len(label) - 1) / 2
        turn = cv2.getRotationMatrix2D((centre, centre), angle, 1.0)
        image = cv2.warpAffine(image, turn, label.shape, flags=cv2.INTER_LINEAR)
        label = cv2.warpAffine(label, turn, label.shape, flags=cv2.INTER_NEAREST)
    return np.ascontiguousarray(image), np.ascontiguousarray(label)


class _AugmentedCases(Dataset):
    """Samples by (epoch, index): an item holds its own seed, so that any worker may make it."""

    def __init__(self, data: CoarseData, config: AugmentConfig, seed: int) -> None:
        self.data, self.config, self.seed = data, config, seed

    def __getitem__(self, key: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
        epoch, index = key
        seed = item_seed(self.seed, "augment", epoch, self.data.cases[index])
        image, label = augment(
            self.data.images[index],
            self.data.labels[index],
            self.config,
            np.random.default_rng(seed),
        )
        return torch.from_numpy(image), torch.from_numpy(label)


def batch_sizes(count: int, batch_size: int) -> list[int]:
    """Spread samples over as few batches as hold them, evenly: none is dropped, none is tiny.

    A last batch of one sample would upset BatchNorm; sizes here differ by at most one.

    Args:
        count: Samples.
        batch_size: The most that a batch may hold.
    """
    batches = math.ceil(count / batch_size)
    return [count // batches + (index < count % batches) for index in range(batches)]


class _EpochBatches(Sampler):
    """Lists of (epoch, index) in an order drawn from the seed and the epoch alone."""

    def __init__(self, cases: Sequence[str], batch_size: int, seed: int) -> None:
        self.count, self.seed, self.epoch = len(cases), seed, 0
        self.sizes = batch_sizes(len(cases), batch_size)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        rng = np.random.default_rng(item_seed(self.seed, "order", self.epoch))
        order = rng.permutation(self.count).tolist()
        for size in self.sizes:
            batch, order = order[:size], order[size:]
            yield [(self.epoch, index) for index in batch]

    def __len__(self) -> int:
        return len(self.sizes)


def _ignore_sigterm(_worker: int) -> None:
    # The scheduler signals every process of a job; the main one stops the workers in its own time.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


class TrainingBatches:
    """Augmented training batches, the same for every number of workers.

    Args:
        data: The training cases.
        augment: What may change in an image.
        batch_size: The most samples of a batch.
        seed: Seed of order and augmentation.
        workers: Processes that make the samples; 0: this one.
    """

    def __init__(
        self,
        data: CoarseData,
        augment: AugmentConfig,
        batch_size: int,
        seed: int,
        workers: int = 0,
    ) -> None:
        self._batches = _EpochBatches(data.cases, batch_size, seed)
        self._loader = DataLoader(
            _AugmentedCases(data, augment, seed),
            batch_sampler=self._batches,
            num_workers=workers,
            persistent_workers=workers > 0,
            worker_init_fn=_ignore_sigterm,
            pin_memory=torch.cuda.is_available(),
            # Its own generator: the loader must not take from the numbers that dropout uses.
            generator=torch.Generator(),
        )

    @property
    def sizes(self) -> list[int]:
        """Samples of each batch."""
        return self._batches.sizes

    def epoch(self, epoch: int) -> Iterator[list[torch.Tensor]]:
        """Give the batches of an epoch: uint8 images (B, S, S, 3) and labels (B, S, S)."""
        self._batches.epoch = epoch
        return iter(self._loader)
