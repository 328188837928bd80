"""The prompts file: for each case of a part what the refiner is told, as strict JSON."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, Self

import numpy as np
from pydantic import StrictBool, ValidationError, model_validator

from ultrarefiner.config import PromptConfig, Section
from ultrarefiner.datasets.parts import read_part
from ultrarefiner.errors import PromptError, UltraRefinerError, first_names
from ultrarefiner.images import read_mask
from ultrarefiner.io import read_json, write_json
from ultrarefiner.prompts.base import Prompt
from ultrarefiner.prompts.crop import Window
from ultrarefiner.prompts.entries import PromptRecord, parts_held, prompt_record
from ultrarefiner.prompts.geometry import PROMPTS

_log = logging.getLogger(__name__)


class PromptFile(Section):
    """The prompts of one part; see ``load_prompts``.

    Attributes:
        prompt: Name of the prompt mode.
        kind: Row of ``PROMPTS``.
        source: What the prompts were made from.
        oracle: Whether that was the truth.
        part: Part of the dataset.
        on_empty: What an empty mask means: "empty", no prompt and so an empty refined mask, or
            "full_image", box and centre of the whole image as the original systems do. A mask
            prompt has no such stand-in: kinds with a mask stay empty either way.
        cases: Record of each case.
    """

    prompt: str
    kind: str
    source: Literal["coarse", "ground_truth"]
    oracle: StrictBool
    part: str
    on_empty: Literal["empty", "full_image"]
    cases: dict[str, PromptRecord]

    @model_validator(mode="after")
    def _records_fit_the_kind(self) -> Self:
        if self.kind not in PROMPTS:
            raise ValueError(f"kind '{self.kind}' is unknown")
        if self.oracle != (self.source == "ground_truth"):
            raise ValueError(f"oracle is {self.oracle}, but the source is {self.source}")
        for case, record in self.cases.items():
            wanted = parts_held(PROMPTS[self.kind], record.empty, self.on_empty)
            if record.parts != wanted:
                raise ValueError(f"{case} holds {_words(record.parts)}, not {_words(wanted)}")
            if any(one.held() != wanted - {"mask"} for one in record.others):
                raise ValueError(f"{case} has a component that does not hold {_words(wanted)}")
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
            A prompt; a list for kind "both" and where there are several components; None when the
            refined mask is to be empty.

        Raises:
            PromptError: No such case, or a mask is needed and absent or of another size.
        """
        record = self._record(case)
        if record.mask is not None and mask is None:
            raise PromptError(f"prompt '{self.prompt}' of {case} needs the mask {record.mask}")
        if record.mask is not None and mask.shape != record.image_size:
            raise PromptError(
                f"the mask of {case} is {mask.shape} and its image {record.image_size} (height, "
                "width); make the mask again from the prepared images"
            )
        separate = PROMPTS[self.kind].separate
        prompts = record.prompts(separate, mask)
        if len(prompts) > 1 or separate:
            return prompts or None
        return prompts[0] if prompts else None

    def window(self, case: str) -> Window | None:
        """Return the crop window of a case; None for the full image.

        Raises:
            PromptError: No such case.
        """
        return self._record(case).window

    def _record(self, case: str) -> PromptRecord:
        if case not in self.cases:
            raise PromptError(
                f"there is no prompt '{self.prompt}' for {case} in {self.part}: it is not a case "
                "of that part, or the file is stale; run make_prompts again"
            )
        return self.cases[case]


def make_prompts(
    prompt: PromptConfig,
    name: str,
    splits: str | Path,
    part: str,
    masks: str | Path,
    output: str | Path,
) -> None:
    """Write the prompts of every case of a part.

    Args:
        prompt: The prompt mode.
        name: Its name.
        splits: Table that ``read_part`` takes for the part.
        part: Part of the dataset, such as ``fold0``.
        masks: Folder of masks ``{case}.png``: a coarse model's, or the truth for an oracle.
        output: The JSON file.

    Raises:
        PromptError: A case has no mask; the message names them.
        UltraRefinerError: A mask is damaged.
        SplitError: The part is not in the table.
    """
    cases = read_part(splits, part)
    cure = "Every case needs one: run the job that writes this folder again."
    require_files(masks, cases, "mask", cure, error=PromptError)
    records = {
        case: prompt_record(prompt, case, read_mask(Path(masks) / f"{case}.png")) for case in cases
    }
    file = PromptFile(
        prompt=name,
        kind=prompt.kind,
        source=prompt.source,
        oracle=prompt.oracle,
        part=part,
        on_empty=prompt.on_empty,
        cases=records,
    )
    write_json(output, file.model_dump(mode="json"))
    empty = sum(record.empty for record in records.values())
    _log.info("%s: prompts of %d cases, %d from an empty mask", name, len(records), empty)
    if prompt.components:
        several = sum(bool(record.others) for record in records.values())
        _log.info("%s: %d cases have several components", name, several)
    if prompt.crop is not None:
        cropped = sum(record.window is not None for record in records.values())
        _log.info("%s: %d cases are cropped, the others seen whole", name, cropped)


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


def _words(parts: Iterable[str]) -> str:
    return " and ".join(sorted(parts)) or "nothing"


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
        raise error(f"{folder} has no {what} of {first_names(absent)}. {cure}")
