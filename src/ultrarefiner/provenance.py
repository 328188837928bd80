"""What made a result: versions, git revision, machine, seeds, configuration."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from ultrarefiner.io import file_sha256

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

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


def host_kind() -> dict[str, object]:
    """Return what kind of machine this is: never its name, nor its user's.

    The GPU is told only if this process has used one: to ask would load torch and start CUDA.
    """
    kind: dict[str, object] = {
        "system": platform.system(),
        "machine": platform.machine(),
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
    }
    if (cuda := _used_cuda()) is not None:
        kind["gpu"] = cuda.get_device_name()
    return kind


def _cpu_model() -> str:
    facts = Path("/proc/cpuinfo")
    if facts.is_file():
        found = re.search(r"^model name\s*:\s*(.+)$", facts.read_text(errors="replace"), re.M)
        if found:
            return found[1].strip()
    return platform.processor() or "unknown"


def _used_cuda() -> Any:
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return None
    return torch.cuda


def peak_memory() -> dict[str, float]:
    """Return in MB (10^6 bytes) the most memory that this process held, under ``peak_memory_mb``.

    ``peak_child_memory_mb`` is the most of any one process that it started and that has ended, if
    that is more; ``peak_gpu_memory_mb`` what torch held on the GPU. Where the system does not tell,
    a key is left out.
    """
    peaks: dict[str, float] = {}
    status = Path("/proc/self/status")
    if status.is_file():
        # Linux counts in ru_maxrss what the parent held before it started this program.
        found = re.search(r"^VmHWM:\s*(\d+) kB$", status.read_text(), re.M)
        if found:
            peaks["peak_memory_mb"] = int(found[1]) * 1024 / 1e6
    if resource is not None:
        unit = (1 if sys.platform == "darwin" else 1024) / 1e6
        own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        child = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit
        peaks.setdefault("peak_memory_mb", own)
        # A small child, git for one, is told with the memory of the parent that it came from.
        if child > peaks["peak_memory_mb"]:
            peaks["peak_child_memory_mb"] = child
    if (cuda := _used_cuda()) is not None:
        peaks["peak_gpu_memory_mb"] = cuda.max_memory_allocated() / 1e6
    return {name: round(value, 1) for name, value in peaks.items()}


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
