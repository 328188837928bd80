"""Small real studies for the workflow tests, and one way to run Snakemake on them."""

from __future__ import annotations

import copy
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]

TINY = {
    "run": "tiny",
    "device": "cpu",
    "datasets": {"busi": {"phantom": {"cases": 14, "size": 64, "seed": 3}}},
    "splits": {"folds": 2, "validation": 0.25},
    "coarse": {
        "transunet": {
            "model": "transunet_tiny",
            "init": "random",
            "image_size": 32,
            "epochs": 2,
            "batch_size": 4,
            "optimizer": "adamw",
            "lr": 0.002,
            "threads": 1,
            "tensorboard": True,
        }
    },
    "prompts": {
        "mask": {"kind": "mask"},
        "box_loose": {"kind": "box", "expand": 0.2},
        "oracle_mask": {"kind": "mask", "source": "ground_truth"},
    },
    "refiners": {
        "grabcut": {"family": "grabcut"},
        "tiny_sam": {"family": "sam", "weights": "tiny_sam.pth"},
    },
    "compare": {
        "coarse": ["transunet"],
        "refine": {"grabcut": ["mask", "oracle_mask"], "tiny_sam": ["box_loose"]},
    },
    "report": {"bootstrap": 200, "gallery": 1},
}


def changed(study: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """Return a copy with values replaced; keys are dotted paths with `__` for the dot."""
    study = copy.deepcopy(study)
    for path, value in changes.items():
        *parents, last = path.split("__")
        section = study
        for key in parents:
            section = section.setdefault(key, {})
        if value is None:
            section.pop(last)
        else:
            section[last] = value
    return study


def write_study(folder: Path, study: dict[str, Any], comment: str = "") -> Path:
    """Write a study file into the folder that it runs in."""
    path = folder / "study.yaml"
    path.write_text(f"# {comment}\n{yaml.safe_dump(study, sort_keys=False)}")
    return path


def snakemake_command(
    folder: Path, *arguments: str, targets: tuple[str, ...] = ("all",)
) -> list[str]:
    """Return the command that runs the workflow in a folder of its own."""
    return [
        sys.executable, "-m", "snakemake",
        "--snakefile", str(ROOT / "Snakefile"),
        "--directory", str(folder),
        "--configfile", str(folder / "study.yaml"),
        "--cores", "2",
        *arguments,
        "--",
        *targets,
    ]  # fmt: skip


def run_snakemake(
    folder: Path,
    *arguments: str,
    targets: tuple[str, ...] = ("all",),
    ok: bool = True,
    timeout: int = 580,
) -> str:
    """Run the workflow and return all that it printed.

    Raises:
        AssertionError: It did not end as `ok` says.
    """
    result = subprocess.run(
        snakemake_command(folder, *arguments, targets=targets),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=timeout,
    )
    assert (result.returncode == 0) == ok, result.stdout[-6000:]
    return result.stdout


def planned(output: str) -> dict[str, int]:
    """Return how many jobs of each rule a dry run plans."""
    if "Nothing to be done" in output:
        return {}
    table = re.search(r"Job stats:\njob +count\n-+ +-+\n(.*?)\n\n", output, re.S)
    assert table, output[-3000:]
    rows = dict(re.findall(r"^(\w+) +(\d+)$", table[1], re.M))
    return {rule: int(count) for rule, count in rows.items() if rule not in ("all", "total")}
