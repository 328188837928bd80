"""The prompts file: for each test case of a fold what the refiner is told, as strict JSON."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import Field, PlainSerializer, StrictBool, ValidationError, model_validator

from ultrarefiner.config import PromptConfig, Section
from ultrarefiner.datasets.splits import read_split
from ultrarefiner.errors import PromptError, UltraRefinerError
from ultrarefiner.images import read_mask
from ultrarefiner.io import read_json, write_json
from ultrarefiner.prompts.base import Prompt
from ultrarefiner.prompts.geometry import PROMPTS, PromptKind, prompt_from_mask

_log = logging.getLogger(__name__)


def _plain(value: float) -> int | float:
    return int(value) if value.is_integer() else value


Number = Annotated[float, Field(allow_inf_nan=False), PlainSerializer(_plain)]
Side = Annotated[int, Field(ge=1)]


class PromptRecord(Section):
    """What a refiner is told about one case, in original pixels.

    Attributes:
        box: Half-open ``[x0, y0, x1, y1]``.
        points: Pixel indices ``[column, row]``.
        labels: 1 for lesion, 0 for background, one for each point.
        mask: Name of the case's file in the folder of (soft) masks.
        source: What the prompt was made from.
        empty: Whether that mask was empty; parts that are there all the same mean the full image.
        image_size: [height, width].
    """

    box: tuple[Number, Number, Number, Number] | None
    points: list[tuple[Number, Number]] | None
    labels: list[Literal[0, 1]] | None
    mask: str | None
    source: Literal["coarse", "ground_truth"]
    empty: StrictBool
    image_size: tuple[Side, Side]

    @model_validator(mode="after")
    def _within_the_image(self) -> Self:
        height, width = self.image_size
        if self.box is not None:
            x0, y0, x1, y1 = self.box
            if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
                raise ValueError(f"box {list(self.box)} is not within {width} x {height} pixels")
        for x, y in self.points or []:
            if not (0 <= x <= width - 1 and 0 <= y <= height - 1):
                raise ValueError(f"point {[x, y]} is not within {width} x {height} pixels")
        if len(self.points or []) != len(self.labels or []):
            raise ValueError("points and labels are not equally many")
        return self

    @property
    def parts(self) -> frozenset[str]:
        """Which of "box", "point", "mask" are there."""
        held = {"box": self.box, "point": self.points, "mask": self.mask}
        return frozenset(name for name, part in held.items() if part)


class PromptFile(Section):
    """The prompts of one fold; see ``load_prompts``.

    Attributes:
        prompt: Name of the prompt mode.
        kind: Row of ``PROMPTS``.
        source: What the prompts were made from.
        oracle: Whether that was the truth.
        fold: Outer fold.
        on_empty: What an empty mask means: "empty", no prompt and so an empty refined mask, or
            "full_image", box and centre of the whole image as the original systems do. A mask
            prompt has no such stand-in: kinds with a mask stay empty either way.
        cases: Record of each test case.
    """

    prompt: str
    kind: str
    source: Literal["coarse", "ground_truth"]
    oracle: StrictBool
    fold: int
    on_empty: Literal["empty", "full_image"]
    cases: dict[str, PromptRecord]

    @model_validator(mode="after")
    def _records_fit_the_kind(self) -> Self:
        if self.kind not in PROMPTS:
            raise ValueError(f"kind '{self.kind}' is unknown")
        if self.oracle != (self.source == "ground_truth"):
            raise ValueError(f"oracle is {self.oracle}, but the source is {self.source}")
        for case, record in self.cases.items():
            wanted = _parts(PROMPTS[self.kind], record.empty, self.on_empty)
            if record.parts != wanted:
                raise ValueError(f"{case} holds {_words(record.parts)}, not {_words(wanted)}")
            if record.mask not in (None, f"{case}.png"):
                raise ValueError(f"{case} has the mask of another case, {record.mask}")
            if record.source != self.source:
                raise ValueError(f"{case} has source {record.source}, the file {self.source}")
        return self

    def prompts(self, case: str, mask: np.ndarray | None = None) -> Prompt | list[Prompt] | None:
        """Return the prompt of a case as ``Refiner.refine`` takes it.

        Args:
            case: Case id.
            mask: (H, W) bool or probability, the case's soft mask; used by kinds with a mask.

        Returns:
            A prompt; a list of two for kind "both"; None when the refined mask is to be empty.

        Raises:
            PromptError: No such case, or a mask is needed and absent or of another size.
        """
        if case not in self.cases:
            raise PromptError(
                f"there is no prompt '{self.prompt}' for {case} in fold {self.fold}: it is not a "
                "test case of the fold, or the file is stale; run make_prompts again"
            )
        record = self.cases[case]
        if not record.parts:
            return None
        parts = {
            "box": {"box": record.box},
            "point": {"points": record.points, "labels": record.labels},
            "mask": {"mask": self._mask(case, record, mask)},
        }
        held = [parts[name] for name in sorted(record.parts)]
        if PROMPTS[self.kind].separate:
            return [Prompt(**part) for part in held]
        return Prompt(**{key: value for part in held for key, value in part.items()})

    def _mask(self, case: str, record: PromptRecord, mask: np.ndarray | None) -> np.ndarray | None:
        if record.mask is None:
            return None
        if mask is None:
            raise PromptError(f"prompt '{self.prompt}' of {case} needs the mask {record.mask}")
        if mask.shape != record.image_size:
            raise PromptError(
                f"the mask of {case} is {mask.shape} and its image {record.image_size} (height, "
                "width); make the mask again from the prepared images"
            )
        return mask


def make_prompts(
    prompt: PromptConfig,
    name: str,
    splits: str | Path,
    fold: int,
    masks: str | Path,
    output: str | Path,
) -> None:
    """Write the prompts of every test case of a fold.

    Args:
        prompt: The prompt mode.
        name: Its name.
        splits: ``splits.csv``.
        fold: Outer fold, from 0.
        masks: Folder of masks ``{case}.png``: a coarse model's, or the truth for an oracle.
        output: The JSON file.

    Raises:
        PromptError: A test case has no mask; the message names them.
        UltraRefinerError: A mask is damaged.
        SplitError: The fold is not in the splits.
    """
    cases = read_split(splits, fold)["test"]
    cure = "Every test case needs one: run the job that writes this folder again."
    require_files(masks, cases, "mask", cure, error=PromptError)
    records = {
        case: _record(prompt, case, read_mask(Path(masks) / f"{case}.png")) for case in cases
    }
    file = PromptFile(
        prompt=name,
        kind=prompt.kind,
        source=prompt.source,
        oracle=prompt.oracle,
        fold=fold,
        on_empty=prompt.on_empty,
        cases=records,
    )
    write_json(output, file.model_dump(mode="json"))
    empty = sum(record.empty for record in records.values())
    _log.info("%s: %d prompts, %d from an empty mask", name, len(records), empty)


def load_prompts(path: str | Path) -> PromptFile:
    """Read a prompts file.

    Raises:
        PromptError: The file does not hold what ``make_prompts`` writes.
        UltraRefinerError: The file is absent, cut off, or no JSON.
    """
    try:
        return PromptFile.model_validate(read_json(path))
    except ValidationError as error:
        lines = [
            f"{'.'.join(map(str, e['loc'])) or 'file'}: {e['msg']}" for e in error.errors()[:5]
        ]
        raise PromptError(
            f"{path} is not a prompts file of this version: {'; '.join(lines)}. Delete it and run "
            "make_prompts again."
        ) from None


def _parts(kind: PromptKind, empty: bool, on_empty: str) -> frozenset[str]:
    """Return the parts that a record of a kind holds."""
    if empty and (on_empty == "empty" or "mask" in kind.parts):
        return frozenset()
    return kind.parts


def _words(parts: Iterable[str]) -> str:
    return " and ".join(sorted(parts)) or "nothing"


def _record(config: PromptConfig, case: str, mask: np.ndarray) -> PromptRecord:
    """Return the record of one case from its bool (H, W) mask."""
    empty = not mask.any()
    parts = _parts(PROMPTS[config.kind], empty, config.on_empty)
    height, width = mask.shape
    box = point = None
    if parts and empty:
        box, point = (0, 0, width, height), (width // 2, height // 2)
    elif parts:
        made = prompt_from_mask(mask, config.kind, config.expand or 0.0)
        for one in made if isinstance(made, list) else [made]:
            box = box if one.box is None else tuple(one.box.tolist())
            point = point if one.points is None else tuple(one.points[0].tolist())
    return PromptRecord(
        box=box if "box" in parts else None,
        points=[point] if "point" in parts else None,
        labels=[1] if "point" in parts else None,
        mask=f"{case}.png" if "mask" in parts else None,
        source=config.source,
        empty=empty,
        image_size=(height, width),
    )


def require_files(
    folder: str | Path,
    cases: Iterable[str],
    what: str,
    cure: str,
    suffix: str = ".png",
    error: type[UltraRefinerError] = UltraRefinerError,
) -> None:
    """Refuse a folder that lacks the file ``{case}{suffix}`` of a case.

    Args:
        folder: The folder.
        cases: Case ids.
        what: What the files hold, for the message.
        cure: What to do about it, for the message.
        suffix: End of the files' names.
        error: What to raise.

    Raises:
        UltraRefinerError: Cases have no file; the message names the first ten.
    """
    absent = [case for case in cases if not (Path(folder) / f"{case}{suffix}").is_file()]
    if absent:
        more = f" and {len(absent) - 10} more" if len(absent) > 10 else ""
        raise error(f"{folder} has no {what} of {', '.join(absent[:10])}{more}. {cure}")
