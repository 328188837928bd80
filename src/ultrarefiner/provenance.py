"""What made a result: versions, git revision, machine, seeds, configuration."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from ultrarefiner.io import file_sha256

PACKAGES = (
    "ultrarefiner",
    "snakemake",
    "torch",
    "torchvision",
    "numpy",
    "scipy",
    "scikit-learn",
    "opencv-python-headless",
    "segment-anything",
    "lightning-fabric",
    "pandas",
)


def package_versions() -> dict[str, str]:
    """Return the installed version of each package that numbers depend on."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return versions


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        result = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        return None
    return result.stdout.strip() if result.returncode == 0 else None


def git_revision() -> str:
    """Return the revision of the checkout that this package runs from.

    "+changes" is added when files differ from the revision; a package that does not run from a
    checkout of its own has none.
    """
    here = Path(__file__).resolve()
    if _git(here.parent, "ls-files", "--error-unmatch", here.name) is None:
        return "not a git checkout"
    revision = _git(here.parent, "rev-parse", "HEAD") or "no commit yet"
    return f"{revision}+changes" if _git(here.parent, "status", "--porcelain") else revision


def run_provenance(config: dict[str, object], weights: Iterable[str]) -> dict[str, object]:
    """Return what a reader needs to make the same numbers again.

    Args:
        config: The study's configuration, defaults included.
        weights: Files of published weights that the study used.
    """
    return {
        "git_revision": git_revision(),
        "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "platform": platform.platform(),
        "processor": platform.machine(),
        "versions": package_versions(),
        "weights": [{"file": str(path), "sha256": file_sha256(path)} for path in weights],
        "config": config,
    }
