"""What the viewer does with an image: read it, predict it, encode it once, prompt it by hand."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ultrarefiner.deploy.inputs import Pixels, find_images, read_pixels
from ultrarefiner.deploy.pipeline import Predictor
from ultrarefiner.deploy.predicted import Predicted, find_warnings
from ultrarefiner.errors import DatasetError, PromptError
from ultrarefiner.prompts.base import Prompt
from ultrarefiner.refine import REFINERS, Embedding, Refinement, Refiner

Point = tuple[float, float, int]
"""Column, row, and 1 for lesion or 0 for background."""


@dataclass(frozen=True, eq=False)
class Looked:
    """An image in the viewer; every prompt gives a new one.

    Attributes:
        name: What the file is called.
        frames: How many images the file holds.
        pixels: The image, the size of its pixels, and what was done to read it.
        predicted: What the method says of it.
        embedding: The image as the refiner holds it; None where nothing can be prompted.
        box: (x0, y0, x1, y1) drawn by hand, half-open, in pixels of the image.
        points: Clicked, in the order of the clicks.
        answer: What the refiner makes of box and points; None while there are none.
    """

    name: str
    frames: int
    pixels: Pixels
    predicted: Predicted
    embedding: Embedding | None
    box: tuple[float, float, float, float] | None = None
    points: tuple[Point, ...] = ()
    answer: Refinement | None = None

    @property
    def mask(self) -> np.ndarray:
        """Bool (H, W): the mask of the prompts, or that of the method."""
        return self.predicted.mask if self.answer is None else self.answer.mask

    @property
    def score(self) -> float | None:
        """IoU that the refiner expects of the mask; None where it expects none."""
        if self.answer is None:
            return self.predicted.score
        return None if np.isnan(self.answer.score) else self.answer.score

    @property
    def warnings(self) -> tuple[str, ...]:
        """Why the mask is worth a look, in words."""
        if self.answer is None:
            return self.predicted.warnings
        return find_warnings(self.mask, self.predicted.coarse, None)


class _Remembering:
    """A refiner that keeps what it made of the last image.

    So the method's own prompt and those drawn by hand share one pass of the encoder.
    """

    def __init__(self, refiner: Refiner) -> None:
        self._refiner = refiner
        self._last: tuple[np.ndarray, Embedding] | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._refiner, name)

    def embed(self, image: np.ndarray) -> Embedding:
        """Encode an image, unless it is the very array of the last call."""
        if self._last is None or self._last[0] is not image:
            self._last = image, self._refiner.embed(image)
        return self._last[1]


class Viewer:
    """A method, and images looked at with it.

    Args:
        predictor: The method; its refiners are wrapped.

    Attributes:
        closed: Why nothing can be drawn, in words; empty where boxes and clicks work.
    """

    def __init__(self, predictor: Predictor) -> None:
        predictor.refiners = [_Remembering(one) for one in predictor.refiners]
        self.predictor, self.refiner = predictor, predictor.interactive()
        self.closed = ""
        if self.refiner is None:
            self.closed = f"{predictor.bundle.method} has no refiner to draw for"
        elif REFINERS[self.refiner.family].needs_mask:
            self.closed = f"{self.refiner.family} refines masks, not boxes and clicks"

    def open(self, path: str | Path, frame: int = 0) -> Looked:
        """Read an image file and predict it.

        Args:
            path: PNG, JPEG, BMP, TIFF or DICOM.
            frame: Which image of a file with several, from 0.

        Raises:
            UltraRefinerError: It cannot be read or predicted; the message names the file.
        """
        path = Path(path)
        try:
            items = find_images([path]).items
            pixels = read_pixels(items[min(frame, len(items) - 1)])
        except DatasetError as error:
            # The page knows the file by its name; where it lies meanwhile is nobody's concern.
            raise DatasetError(str(error).replace(str(path), path.name)) from None
        predicted = self.predictor.predict(pixels.image, path.name)
        embedding = None if self.closed else self.refiner.embed(pixels.image)
        return Looked(path.name, len(items), pixels, predicted, embedding)

    def draw_box(self, looked: Looked, box: tuple[float, float, float, float]) -> Looked:
        """Prompt with a box in place of the box before; points stay.

        Raises:
            PromptError: Nothing can be drawn, or the box does not fit the image.
        """
        return self._ask(replace(looked, box=box))

    def click(self, looked: Looked, x: float, y: float, lesion: bool) -> Looked:
        """Prompt with one more point.

        Raises:
            PromptError: Nothing can be drawn, the point is outside the image, or it is the first
                prompt and says only where the lesion is not.
        """
        return self._ask(replace(looked, points=(*looked.points, (x, y, int(lesion)))))

    def undo(self, looked: Looked) -> Looked:
        """Take the last point back, or the box where there is no point."""
        points = looked.points[:-1]
        box = looked.box if looked.points else None
        # What would be left says only where the lesion is not.
        if box is None and not any(label for _, _, label in points):
            points = ()
        return self._ask(replace(looked, box=box, points=points))

    def clear(self, looked: Looked) -> Looked:
        """Take all prompts back: the mask is the method's again."""
        return replace(looked, box=None, points=(), answer=None)

    def _ask(self, looked: Looked) -> Looked:
        if self.closed:
            raise PromptError(self.closed)
        if looked.box is None and not looked.points:
            return self.clear(looked)
        if looked.box is None and not any(label for _, _, label in looked.points):
            raise PromptError(
                "mark the lesion first: drag a box around it, or click inside it; a click on the "
                "background only takes something away"
            )
        prompt = Prompt(
            box=looked.box,
            points=[point[:2] for point in looked.points] or None,
            labels=[point[2] for point in looked.points] or None,
        )
        return replace(looked, answer=self.refiner.refine(looked.embedding, prompt))
