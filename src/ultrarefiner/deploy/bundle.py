"""Bundles: taken from a finished run, or packed as one folder that needs no run."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import ValidationError

from ultrarefiner.deploy.contents import Bundle, File
from ultrarefiner.deploy.papers import licence_text, preprocessing, readme_text
from ultrarefiner.deploy.runs import (
    THRESHOLD_NAME,
    WEIGHTS_NAME,
    bundle_of_run,
    method_names,
    read_study,
)
from ultrarefiner.errors import UltraRefinerError
from ultrarefiner.io import atomic_directory, file_sha256, read_json, write_json, write_text
from ultrarefiner.models.cards import CARD
from ultrarefiner.training.segmented import REFINER

__all__ = [
    "Bundle",
    "bundle_of_run",
    "method_names",
    "read_bundle",
    "read_study",
    "write_bundle",
]

METHOD = "method.json"
"""What an exported folder says of itself."""


def read_bundle(folder: str | Path) -> Bundle:
    """Read a folder that ``write_bundle`` wrote; every file is compared with its SHA-256.

    Raises:
        UltraRefinerError: The folder is no bundle, is damaged or incomplete; the message names the
            files.
    """
    folder = Path(folder)
    path = folder / METHOD
    if not path.is_file():
        what = "holds no method.json" if folder.is_dir() else "is no folder"
        raise UltraRefinerError(
            f"{folder} {what}: name a folder that `ultrarefiner export --run RUN --method METHOD "
            "-o FOLDER` made"
        )
    cure = "Copy the whole folder again, or export it again with this version."
    try:
        bundle = Bundle.model_validate(read_json(path))
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()[:5]]
        raise UltraRefinerError(
            f"{path} is not what this version writes: {'; '.join(lines)}. {cure}"
        ) from None
    except UltraRefinerError as error:
        raise UltraRefinerError(f"{path} cannot be read: {error.__cause__}. {cure}") from None
    bundle = bundle.model_copy(update={"root": folder})
    problems = []
    for what, file in bundle.files():
        place = PurePosixPath(file.path)
        if place.is_absolute() or ".." in place.parts:
            raise UltraRefinerError(f"{path} names {file.path}, which is outside of the folder")
        if not bundle.path(file).is_file():
            problems.append(f"{file.path} ({what}) is not there")
        elif (digest := file_sha256(bundle.path(file))) != file.sha256:
            problems.append(
                f"{file.path} ({what}) is damaged or another file: its sha256 is {digest[:12]}..., "
                f"it was {file.sha256[:12]}..."
            )
    if problems:
        raise UltraRefinerError("\n  - ".join([f"{folder} cannot be used. {cure}", *problems]))
    return bundle


def write_bundle(
    bundle: Bundle, folder: str | Path, networks: Callable[[Path], object] | None = None
) -> Bundle:
    """Pack a method as one folder: its files, how to use them, and on whose terms.

    Args:
        bundle: The method.
        folder: Folder to make; whole or not at all.
        networks: Writes the networks into the folder in other forms, as
            ``onnx.export_folder_onnx`` does; None: they are packed as they are.

    Returns:
        The bundle that the folder holds.

    Raises:
        OutputError: The folder cannot be written.
        UltraRefinerError: It exists, or a file of the method has gone or cannot be written as ONNX.
    """
    folder = Path(folder)
    if folder.exists():
        raise UltraRefinerError(f"{folder} exists; name a folder that does not")
    with atomic_directory(folder) as made:
        packed = bundle.model_copy(update={"root": made, **_packed(bundle, made)})
        packed = packed.model_copy(update={"preprocessing": preprocessing(packed)})
        write_json(made / METHOD, packed.model_dump(mode="json"))
        write_text(made / "LICENCE.md", licence_text(packed))
        write_text(made / "README.md", readme_text(packed, networks is not None))
        if networks is not None:
            networks(made)
    return packed.model_copy(update={"root": folder})


def _packed(bundle: Bundle, made: Path) -> dict[str, Any]:
    """Copy the files of a bundle; return its members and refiner with the paths of the copies."""

    def copy(file: File | None, name: str) -> File | None:
        if file is None:
            return None
        target = made / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(bundle.path(file), target)
        if file_sha256(target) != file.sha256:
            raise UltraRefinerError(
                f"{bundle.path(file)} has changed while it was copied. Export again when nothing "
                "writes to the run."
            )
        return File(path=name, sha256=file.sha256)

    refiner, members = bundle.refiner, []
    for one in bundle.members:
        base = f"models/{bundle.model}/fold{one.fold}"
        own = f"refiners/{refiner.name}/fold{one.fold}" if refiner else ""
        last = f"models/{bundle.fallback}/fold{one.fold}"
        copies = {
            "model": copy(one.model, f"{base}/{WEIGHTS_NAME}"),
            "card": copy(one.card, f"{base}/{CARD}"),
            "threshold_file": copy(one.threshold_file, f"{base}/{THRESHOLD_NAME}"),
            "sam": copy(one.sam, f"{base}/{REFINER}"),
            "refiner": copy(one.refiner, f"{own}/{WEIGHTS_NAME}"),
            "refiner_card": copy(one.refiner_card, f"{own}/{CARD}"),
            "guard": copy(one.guard, f"guards/fold{one.fold}.json"),
            "fallback": copy(one.fallback, f"{last}/{WEIGHTS_NAME}"),
            "fallback_card": copy(one.fallback_card, f"{last}/{CARD}"),
        }
        members.append(one.model_copy(update=copies))
    if refiner is not None and refiner.weights is not None:
        # Under its own name: by that a copy of published weights keeps its terms.
        name = Path(refiner.weights.path).name
        copies = {
            "weights": copy(refiner.weights, f"refiners/{refiner.name}/{name}"),
            "card": copy(refiner.card, f"refiners/{refiner.name}/{CARD}"),
        }
        refiner = refiner.model_copy(update=copies)
    return {"members": tuple(members), "refiner": refiner}
