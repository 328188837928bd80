"""New images predicted by a method: read, segmented, refined, written, one after the other."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from ultrarefiner.datasets.ahead import read_ahead
from ultrarefiner.deploy.contents import Bundle
from ultrarefiner.deploy.inputs import Found, Item, Pixels, find_images, read_pixels
from ultrarefiner.deploy.outputs import Output, error_row, table_row
from ultrarefiner.errors import ConfigError, DatasetError, UltraRefinerError
from ultrarefiner.io import file_sha256
from ultrarefiner.models.weights import WEIGHTS
from ultrarefiner.provenance import git_revision, package_versions

if TYPE_CHECKING:
    from ultrarefiner.deploy.pipeline import Predictor

log = logging.getLogger(__name__)

_NAMED = 10
_AT_ONCE = 64
"""Images between two steps of the progress bar where all of them are finished already."""


@dataclass(frozen=True)
class Counts:
    """What came of a set of images, or of volumes.

    Attributes:
        images: How many there were.
        predicted: Predicted now.
        kept: Predicted before, and kept.
        failed: Not predicted; the table says why.
        warnings: How many have each warning.
        others: Files in the folders that are no images.
    """

    images: int
    predicted: int
    kept: int
    failed: int
    warnings: dict[str, int]
    others: int


@dataclass(frozen=True, eq=False)
class _Read:
    """An image as a reader hands it on: its pixels, or its finished row, or what is wrong."""

    item: Item
    digest: str = ""
    pixels: Pixels | None = None
    row: dict[str, Any] | None = None
    error: DatasetError | None = None


def predict_images(
    bundle: Bundle,
    given: Sequence[str | Path] | Found,
    output: str | Path,
    device: str = "auto",
    threshold: float | None = None,
    batch_size: int = 8,
    overlays: bool = True,
    tell: Callable[[str], None] = log.warning,
) -> Counts:
    """Predict image files and all images in folders.

    An image that cannot be read or prompted is told of and has a row in the table; the others are
    predicted all the same. What an interrupted run has finished in the same folder is kept.

    Args:
        bundle: The method.
        given: Image files and folders, or what ``find_images`` has found in them.
        output: Folder to fill: ``masks/``, ``probabilities/``, ``overlays/`` with {name}.png,
            ``predictions.csv`` and ``predict.json``.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        threshold: Of the (joint) probability, in place of the method's own.
        batch_size: Images that the coarse models see together.
        overlays: Draw outlines.
        tell: Takes each message for the user.

    Raises:
        ConfigError: The device, the threshold or the batch size cannot be used.
        DatasetError: There is no image.
        OutputError: The folder holds something else, or cannot be written.
        WeightsError: A model is damaged.
    """
    if batch_size < 1:
        raise ConfigError(f"batch size {batch_size} is not a number of images; take 1 or more")
    found = given if isinstance(given, Found) else find_images(given, without=output)
    # The network library is loaded only now: a wrong name is answered at once.
    from ultrarefiner.deploy.pipeline import check_threshold, open_method

    check_threshold(bundle, threshold)
    if bundle.propagates:
        raise ConfigError(
            f"{bundle.method} follows lesions through volumes, and these are images; take a method "
            "that refines slice by slice"
        )
    into = Output(output, bundle.fingerprint(threshold), found.items, overlays)
    tell_others(found, tell)
    predictor = open_method(bundle, device, threshold=threshold)
    options = {
        "threshold": predictor.threshold,
        "device": device,
        "batch_size": batch_size,
        "overlays": overlays,
    }
    facts = about(bundle, found, options)
    into.start(facts)
    rows, kept = _rows(predictor, into, found.items, batch_size, tell)
    counts = count(rows, kept, found)
    into.finish(rows, facts | {"counts": vars(counts)})
    return counts


def tell_others(found: Found, tell: Callable[[str], None]) -> None:
    """Say which files in the folders are left out."""
    if found.others:
        names = ", ".join(path.name for path in found.others[:_NAMED])
        more = len(found.others) - _NAMED
        rest = f" and {more} more" if more > 0 else ""
        tell(f"not {'volumes' if found.volumes else 'images'}, left out: {names}{rest}")


def count(rows: Sequence[dict[str, Any]], kept: int, found: Found) -> Counts:
    """Return what came of a table, of which some rows were kept from before."""
    said = [words for row in rows if row["warnings"] for words in row["warnings"].split("; ")]
    failed = sum(bool(row["error"]) for row in rows)
    return Counts(
        images=len(rows),
        predicted=len(rows) - kept - failed,
        kept=kept,
        failed=failed,
        warnings=dict(Counter(said)),
        others=len(found.others),
    )


def _rows(
    predictor: Predictor,
    into: Output,
    items: Sequence[Item],
    batch_size: int,
    tell: Callable[[str], None],
) -> tuple[list[dict[str, Any]], int]:
    """Predict what is not finished; return the row of each image, and how many were finished."""
    rows: dict[str, dict[str, Any]] = {}
    kept = 0

    def read(item: Item) -> _Read:
        try:
            digest = file_sha256(item.path)
        except OSError as error:
            why = f"{item.file}: {error.strerror}. Name a file that you may read."
            return _Read(item, error=DatasetError(why))
        if (row := into.finished(item, digest)) is not None:
            return _Read(item, digest, row=row)
        try:
            return _Read(item, digest, pixels=read_pixels(item))
        except DatasetError as error:
            return _Read(item, digest, error=error)

    def fail(one: _Read, error: UltraRefinerError) -> None:
        rows[one.item.name] = error_row(one.item, error)
        with tqdm.external_write_mode():
            tell(f"error: {error}")

    # disable=None: no bar when stderr is no terminal.
    with tqdm(total=len(items), desc="predict", unit="image", disable=None) as bar:
        for batch in _batches(read_ahead(read, items), batch_size):
            for one in batch:
                if one.row is not None:
                    rows[one.item.name] = one.row
                    kept += 1
                elif one.error is not None:
                    if one.digest:
                        into.forget(one.item)
                    fail(one, one.error)
            waiting = [one for one in batch if one.pixels is not None]
            for one, row, error in _predicted(predictor, into, waiting):
                if error is not None:
                    fail(one, error)
                else:
                    rows[one.item.name] = row
            bar.update(len(batch))
    return [rows[item.name] for item in items], kept


def _batches(reads: Iterable[_Read], size: int) -> Iterator[list[_Read]]:
    """Yield what was read, with at most ``size`` images to predict at a time."""
    batch: list[_Read] = []
    for one in reads:
        batch.append(one)
        waiting = sum(other.pixels is not None for other in batch)
        if waiting == size or len(batch) == max(size, _AT_ONCE):
            yield batch
            batch = []
    if batch:
        yield batch


def _predicted(
    predictor: Predictor, into: Output, batch: Sequence[_Read]
) -> Iterator[tuple[_Read, dict[str, Any], UltraRefinerError | None]]:
    """Predict a batch and write it; yield each image with its row, or with what is wrong."""
    if not batch:
        return
    labels = predictor.bundle.coarse_name, predictor.bundle.method
    try:
        said = predictor.predict_batch(
            [one.pixels.image for one in batch], [one.item.name for one in batch]
        )
    except UltraRefinerError as error:
        if len(batch) == 1:
            yield batch[0], {}, error
            return
        # One image must not cost the others their masks.
        for one in batch:
            yield from _predicted(predictor, into, [one])
        return
    for one, predicted in zip(batch, said, strict=True):
        row = table_row(one.item, predicted, one.pixels.spacing, one.pixels.note)
        into.write(one.item, one.digest, one.pixels.image, predicted, row, labels)
        yield one, row, None


def about(bundle: Bundle, found: Found, options: dict[str, Any]) -> dict[str, Any]:
    """Return what made the predictions."""
    return {
        "method": bundle.method,
        "run": bundle.run,
        "trainset": bundle.trainset,
        "folds": bundle.folds,
        "models": [
            {"what": what, "file": str(bundle.path(file)), "sha256": file.sha256}
            for what, file in bundle.files()
        ],
        "licences": {name: WEIGHTS[name].licence for name in bundle.published},
        "options": options,
        "images": len(found.items),
        "not_images": [path.as_posix() for path in found.others],
        "git_revision": git_revision(),
        "versions": package_versions(),
    }
