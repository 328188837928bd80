"""Volumes predicted by a method: read whole, segmented slice by slice, written on their own grids."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from ultrarefiner.deploy.contents import Bundle
from ultrarefiner.deploy.inputs import Found, Item
from ultrarefiner.deploy.outputs import error_row
from ultrarefiner.deploy.predict import Counts, about, count, tell_others
from ultrarefiner.deploy.volume_inputs import Slices, choose_reading, open_volume
from ultrarefiner.deploy.volume_outputs import PredictedVolume, VolumeOutput
from ultrarefiner.errors import ConfigError, DatasetError, OutputError, UltraRefinerError
from ultrarefiner.io import file_sha256, json_sha256

if TYPE_CHECKING:
    from ultrarefiner.deploy.pipeline import Predictor

log = logging.getLogger(__name__)


def predict_volumes(
    bundle: Bundle,
    found: Found,
    output: str | Path,
    device: str = "auto",
    threshold: float | None = None,
    batch_size: int = 8,
    overlays: bool = True,
    axis: str | None = None,
    axis_check: bool = True,
    tell: Callable[[str], None] = log.warning,
) -> Counts:
    """Predict volumes, one after the other.

    A volume that cannot be read or prompted is told of and has a row in the table; the others are
    predicted all the same. What an interrupted run has finished in the same folder is kept. Memory
    holds one volume and its masks, whatever the number of slices that are at work.

    Args:
        bundle: The method.
        found: The volumes, as ``find_inputs`` gives them.
        output: Folder to fill: ``masks/{name}.nii.gz`` with the affine of the volume,
            ``slices/{name}.csv``, ``overlays/{name}.png`` of the slice with the largest lesion,
            ``predictions.csv`` with a row for each volume, and ``predict.json``.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        threshold: Of the (joint) probability, in place of the method's own.
        batch_size: Slices that the coarse models see together.
        overlays: Draw outlines.
        axis: Order of the volumes' axes, ``HWD`` or ``DHW``; None: as in training.
        axis_check: Refuse a volume whose spacing or sizes speak against it.
        tell: Takes each message for the user.

    Raises:
        ConfigError: The device, the threshold, the batch size or the axis cannot be used.
        OutputError: The folder holds something else, or cannot be written.
        WeightsError: A model is damaged.
    """
    if batch_size < 1:
        raise ConfigError(f"batch size {batch_size} is not a number of slices; take 1 or more")
    reading = choose_reading(bundle, axis, axis_check)
    # The network library is loaded only now: a wrong name is answered at once.
    from ultrarefiner.deploy.pipeline import check_threshold, open_method

    check_threshold(bundle, threshold)
    read = reading.model_dump(mode="json")
    fingerprint = json_sha256({"method": bundle.fingerprint(threshold), "volumes": read})
    into = VolumeOutput(output, fingerprint, found.items, overlays)
    tell_others(found, tell)
    predictor = open_method(bundle, device, threshold=threshold)
    options = {
        "threshold": predictor.threshold,
        "device": device,
        "batch_size": batch_size,
        "overlays": overlays,
        "volumes": read,
    }
    facts = about(bundle, found, options)
    into.start(facts)
    rows, kept = [], 0
    for item in found.items:
        try:
            digest = _digest(item)
            row = into.finished(item, digest)
            kept += row is not None
            if row is None:
                slices = open_volume(item.path, reading)
                said = _predict(predictor, item, slices, batch_size)
                labels = bundle.coarse_name, bundle.method
                row = into.write_volume(item, digest, slices, said, labels)
        except OutputError:
            raise  # it is about the folder, not about this volume
        except UltraRefinerError as error:
            into.forget(item)
            tell(f"error: {error}")
            row = error_row(item, error, into.columns)
        rows.append(row)
    counts = count(rows, kept, found)
    into.finish(rows, facts | {"counts": vars(counts)})
    return counts


def _digest(item: Item) -> str:
    try:
        return file_sha256(item.path)
    except OSError as error:
        raise DatasetError(
            f"{item.file}: {error.strerror}. Name a file that you may read."
        ) from error


def _predict(predictor: Predictor, item: Item, slices: Slices, batch_size: int) -> PredictedVolume:
    # Loads the network library, which is there by now.
    from ultrarefiner.deploy.volume_pipeline import predicted_slices

    said = PredictedVolume(slices.shape)
    # disable=None: no bar when stderr is no terminal.
    with tqdm(total=slices.shape[0], desc=item.name, unit="slice", disable=None) as bar:
        for index, one in predicted_slices(predictor, item.name, slices, batch_size):
            said.add(item, slices, index, one)
            bar.update()
    return said
