"""How long `snakemake -n` takes to plan a large study: 5 datasets x 5 folds x 8 methods.

    python benchmarks/planning.py

Nothing is run and no data is needed: the datasets are phantoms that are never drawn. The budget is
10 seconds for the study itself; the cross-dataset tests of the second line are asked for apart.
"""

from __future__ import annotations

import copy
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
BUDGET = 10.0
STUDY = {
    "run": "planning",
    "device": "cpu",
    "datasets": {
        name: {"phantom": {"cases": 40}} for name in ("busi", "busbra", "bus", "bus_uc", "bus_uclm")
    },
    "splits": {"folds": 5},
    "coarse": {"transunet": {"model": "transunet"}},
    "prompts": {
        "box": {"kind": "box"},
        "point": {"kind": "point"},
        "both": {"kind": "both"},
        "box_crop": {"kind": "box", "crop": {"expand": 0.5}},
        "mask": {"kind": "mask"},
        "oracle_box": {"kind": "box", "source": "ground_truth"},
    },
    "refiners": {
        "grabcut": {"family": "grabcut"},
        "sam": {"family": "sam", "weights": "sam_vit_b"},
        "medsam": {"family": "sam", "weights": "medsam_vit_b"},
    },
    "compare": {
        "coarse": ["transunet"],
        "refine": {
            "grabcut": ["mask"],
            "sam": ["box", "point", "both"],
            "medsam": ["box", "box_crop", "oracle_box"],
        },
    },
}


def plan(study: dict, folder: Path) -> tuple[float, int]:
    """Return how many seconds a dry run takes, and how many jobs it plans."""
    (folder / "study.yaml").write_text(yaml.safe_dump(study))
    command = [
        *(sys.executable, "-m", "snakemake", "-n", "--quiet", "rules"),
        *("--snakefile", str(ROOT / "Snakefile"), "--directory", str(folder)),
        *("--configfile", str(folder / "study.yaml"), "--cores", "2"),
    ]
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - start
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    jobs = re.search(r"^total\s+(\d+)", done.stdout, re.M)
    return seconds, int(jobs[1])


def main() -> None:
    studies = {"5 datasets x 5 folds x 8 methods": STUDY}
    cross = copy.deepcopy(STUDY)
    cross["compare"]["cross"] = True
    cross["trainsets"] = {"all": list(STUDY["datasets"])}
    cross["splits"]["holdout"] = 0.2
    studies["the same with hold-out, a union and every cross test"] = cross
    times = {}
    for name, study in studies.items():
        with tempfile.TemporaryDirectory() as folder:
            plan(study, Path(folder))  # the first call also fills the caches of the system
            times[name], jobs = min(plan(study, Path(folder)) for _ in range(3))
        print(f"{name}: {jobs} jobs planned in {times[name]:.1f} s")
    kept = next(iter(times.values())) < BUDGET
    print(f"budget of the first: {BUDGET:.0f} s, {'kept' if kept else 'exceeded'}")
    sys.exit(0 if kept else 1)


if __name__ == "__main__":
    main()
