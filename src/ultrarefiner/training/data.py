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
from ultrarefiner.datasets.volumes import is_slice
from ultrarefiner.errors import DatasetError
from ultrarefiner.io import item_seed, read_rows
from ultrarefiner.models import height_width
from ultrarefiner.training.signals import STOPPING
from ultrarefiner.training.team import ALONE, Team

Prepared = str | Path | Sequence[str | Path]
"""One folder of prepared cases, or those of several datasets."""


class PreparedCases:
    """Prepared cases of one dataset or of several, found by their ids.

    Args:
        prepared: Folders ``{dataset}/prepared``. With several of them a case ``busi__benign_1``
            is looked for in the folder of ``busi``; a single one is taken to hold all cases.

    Attributes:
        folders: Folder of each dataset, by its name.
    """

    def __init__(self, prepared: Prepared) -> None:
        several = [prepared] if isinstance(prepared, str | Path) else list(prepared)
        self.folders = {Path(folder).absolute().parent.name: Path(folder) for folder in several}
        if len(self.folders) < len(several):
            raise DatasetError(
                "two folders of prepared cases are of one dataset: "
                f"{', '.join(map(str, several))}. Name each dataset once."
            )

    def folder(self, case: str) -> Path:
        """Return the folder that holds a case.

        Raises:
            DatasetError: The case is of none of the datasets.
        """
        if len(self.folders) == 1:
            return next(iter(self.folders.values()))
        dataset = case.partition("__")[0]
        if dataset not in self.folders:
            raise DatasetError(
                f"case {case} is of dataset '{dataset}', and the prepared ones are "
                f"{', '.join(self.folders)}. Delete the splits.csv of the training set and run "
                "again."
            )
        return self.folders[dataset]

    def read(self, case: str) -> tuple[np.ndarray, np.ndarray]:
        """Return uint8 (H, W, 3) RGB and uint8 (H, W) in {0, 1}; see ``read_prepared``."""
        return read_prepared(self.folder(case), case)

    def digests(self, cases: Sequence[str]) -> dict[str, str]:
        """Return for each case the SHA-256 of its image and label."""
        return {case: pixels_sha256(*self.read(case)) for case in cases}

    def images(self) -> dict[str, str]:
        """Return the image file of each prepared case: cases of one file are masks of one image.

        Raises:
            DatasetError: A folder has no table of cases.
        """
        found = {}
        for name, folder in self.folders.items():
            table = folder / "cases.csv"
            if not table.is_file():
                raise DatasetError(f"{table} is not there; run prepare_dataset again")
            found |= {row["case"]: f"{name}/{row['image']}" for row in read_rows(table)}
        return found

    def volumes(self, cases: Sequence[str]) -> list[str]:
        """Return the volume that each case is a slice of, as the tables of cases say.

        A case that no table says to be a slice is a volume of its own.
        """
        tables = [folder / "cases.csv" for folder in self.folders.values()]
        images = {
            row["case"]: row["image"]
            for table in tables
            if table.is_file()
            for row in read_rows(table)
        }
        found = []
        for case in cases:
            volume, _, part = images.get(case, "").rpartition("#")
            found.append(volume if is_slice(part) else case)
        return found

    def sizes(self, cases: Sequence[str]) -> list[tuple[int, int]]:
        """Return height and width of each case."""
        return [self.read(case)[1].shape for case in cases]


def pixels_sha256(image: np.ndarray, label: np.ndarray) -> str:
    """Return the SHA-256 of an image and its label."""
    digest = hashlib.sha256(repr(image.shape).encode())
    digest.update(np.ascontiguousarray(image))
    digest.update(np.ascontiguousarray(label))
    return digest.hexdigest()


def resize_image(image: np.ndarray, size: int | tuple[int, int]) -> np.ndarray:
    """Resize, whatever the aspect ratio.

    Args:
        image: (H, W) or (H, W, 3), uint8 or float32.
        size: Height and width in pixels, or the side of a square.

    Returns:
        The same type, of that height and width: averaged over areas when both sides shrink, else
        bilinear.
    """
    height, width = height_width(size)
    shrinks = image.shape[0] >= height and image.shape[1] >= width
    return cv2.resize(
        image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    )


def resize_label(label: np.ndarray, size: int | tuple[int, int]) -> np.ndarray:
    """Resize a label as its image is, then threshold at one half.

    Nearest neighbour would shift the outline by up to half an original pixel against the image;
    the share of lesion in each new pixel keeps both aligned and the area unbiased.

    Args:
        label: (H, W) in {0, 1}.
        size: Height and width in pixels, or the side of a square.

    Returns:
        uint8 of that height and width, in {0, 1}.
    """
    return (resize_image(label.astype(np.float32), size) >= 0.5).astype(np.uint8)


def enlarge(probability: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resample probabilities bilinearly to an image's size; threshold only afterwards.

    Args:
        probability: float32 (h, w), at the model's size.
        height: Original height in pixels.
        width: Original width in pixels.

    Returns:
        float32 (height, width).
    """
    return cv2.resize(probability, (width, height), interpolation=cv2.INTER_LINEAR)


@dataclass(frozen=True)
class CoarseData:
    """Cases as a coarse model sees them.

    Attributes:
        cases: Case ids.
        images: uint8 (N, H, W, 3) RGB, at the model's size.
        labels: uint8 (N, H, W) in {0, 1}, at the model's size.
        truths: bool each, the labels at original size; none for data only trained on.
        digests: For each case the SHA-256 of its image and label at original size.
    """

    cases: tuple[str, ...]
    images: np.ndarray
    labels: np.ndarray
    truths: tuple[np.ndarray, ...]
    digests: dict[str, str]

    @classmethod
    def read(
        cls,
        prepared: Prepared | PreparedCases,
        cases: Sequence[str],
        image_size: int | Sequence[int],
        with_truths: bool = True,
    ) -> CoarseData:
        """Read prepared cases, resized to ``image_size``.

        Args:
            prepared: The folder of prepared cases, or those of all datasets they are of.
            cases: Case ids.
            image_size: Height and width of a model's input, or the side of a square.
            with_truths: Keep the labels at original size too, which evaluation needs; they are
                the larger part of the memory.
        """
        source = prepared if isinstance(prepared, PreparedCases) else PreparedCases(prepared)
        size = height_width(image_size)
        images = np.empty((len(cases), *size, 3), np.uint8)
        labels = np.empty((len(cases), *size), np.uint8)
        truths, digests = [], {}
        for index, case in enumerate(cases):
            image, label = source.read(case)
            digests[case] = pixels_sha256(image, label)
            images[index] = resize_image(image, size)
            labels[index] = resize_label(label, size)
            if with_truths:
                truths.append(label.astype(bool))
        return cls(tuple(cases), images, labels, tuple(truths), digests)

    def __len__(self) -> int:
        return len(self.cases)

    def part(self, start: int, stop: int) -> CoarseData:
        """Return some of the cases that follow each other."""
        some = slice(start, stop)
        return CoarseData(
            self.cases[some], self.images[some], self.labels[some], self.truths[some], self.digests
        )


def as_input(images: torch.Tensor) -> torch.Tensor:
    """Turn uint8 (B, H, W, 3) RGB into the models' input: float32 (B, 3, H, W), value / 255."""
    return images.permute(0, 3, 1, 2).float() / 255


def turn_about_centre(shape: tuple[int, ...], degrees: float, scale: float = 1.0) -> np.ndarray:
    """Return the affine map (2, 3) of OpenCV that turns and scales (H, W) about its centre."""
    height, width = shape[:2]
    return cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), degrees, scale)


def augment(
    image: np.ndarray, label: np.ndarray, config: AugmentConfig, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Flip and turn an image and its label alike.

    Args:
        image: uint8 (H, W, 3).
        label: uint8 (H, W).
        config: Probabilities of each change.
        rng: Source of chance; the same draws are made whatever the probabilities are.

    Returns:
        Image and label of the same shapes and types. A small rotation is bilinear for the image,
        nearest for the label, and black outside. A quarter turn of an image that is not square
        becomes a half turn, which keeps its shape.
    """
    hflip, vflip, rot90, rotate = rng.random(4)
    turns, angle = int(rng.integers(1, 4)), float(rng.uniform(-1, 1)) * config.rotate_degrees
    if hflip < config.hflip:
        image, label = image[:, ::-1], label[:, ::-1]
    if vflip < config.vflip:
        image, label = image[::-1], label[::-1]
    if rot90 < config.rot90:
        turns = turns if label.shape[0] == label.shape[1] else 2
        image, label = np.rot90(image, turns), np.rot90(label, turns)
    if rotate < config.rotate:
        image, label = np.ascontiguousarray(image), np.ascontiguousarray(label)
        size, turn = label.shape[::-1], turn_about_centre(label.shape, angle)
        image = cv2.warpAffine(image, turn, size, flags=cv2.INTER_LINEAR)
        label = cv2.warpAffine(label, turn, size, flags=cv2.INTER_NEAREST)
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

    def __init__(self, cases: Sequence[str], batch_size: int, seed: int, team: Team) -> None:
        self.count, self.seed, self.team = len(cases), seed, team
        self.epoch = self.first = 0
        self.sizes = batch_sizes(len(cases), batch_size)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        rng = np.random.default_rng(item_seed(self.seed, "order", self.epoch))
        order = rng.permutation(self.count).tolist()
        for number, size in enumerate(self.sizes):
            batch, order = order[:size], order[size:]
            if number >= self.first:
                share = self.team.batch_share(size)
                yield [(self.epoch, index) for index in batch[share.start : share.stop]]

    def __len__(self) -> int:
        return len(self.sizes) - self.first


def _ignore_signals(_worker: int) -> None:
    # The scheduler signals every process of a job; the main one stops the workers in its own time.
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)


class TrainingBatches:
    """Augmented training batches, the same for every number of workers.

    Args:
        data: The training cases.
        augment: What may change in an image.
        batch_size: The most samples of a batch.
        seed: Seed of order and augmentation.
        workers: Processes that make the samples; 0: this one.
        team: Who trains; each member gets its part of each batch, by its part of the workers.
    """

    def __init__(
        self,
        data: CoarseData,
        augment: AugmentConfig,
        batch_size: int,
        seed: int,
        workers: int = 0,
        team: Team = ALONE,
    ) -> None:
        self._batches = _EpochBatches(data.cases, batch_size, seed, team)
        workers = math.ceil(workers / team.on_node)
        self._loader = DataLoader(
            _AugmentedCases(data, augment, seed),
            batch_sampler=self._batches,
            num_workers=workers,
            persistent_workers=workers > 0,
            worker_init_fn=_ignore_signals,
            pin_memory=torch.cuda.is_available(),
            # Its own generator: the loader must not take from the numbers that dropout uses.
            generator=torch.Generator(),
        )

    @property
    def sizes(self) -> list[int]:
        """Samples of each batch, over all members of a team."""
        return self._batches.sizes

    def epoch(self, epoch: int, first: int = 0) -> Iterator[list[torch.Tensor]]:
        """Give the batches of an epoch: uint8 images (B, H, W, 3) and labels (B, H, W).

        Args:
            epoch: The epoch, from 0.
            first: The first batch to give.
        """
        self._batches.epoch, self._batches.first = epoch, first
        return iter(self._loader)
