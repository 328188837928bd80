"""How long, and in how much memory, `snakemake -n` plans studies of 1,000 and of 10,000 jobs.

    python benchmarks/planning.py          # all studies
    python benchmarks/planning.py 1000     # those of up to so many jobs

Nothing is run and no data is needed: the datasets are phantoms that are never drawn. A study is
planned twice: with nothing done, and with every output there (as empty files, under the records
that Snakemake keeps of finished jobs). Budgets: 10 s and 500 MB up to 2,000 jobs, 30 s beyond.

Planning is one thread's work, so they hold for its processor time: what a user waits for on a
machine that has a core to spare, and what a busy machine leaves alone. Both are printed.
"""

from __future__ import annotations

import copy
import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
DATASETS = ["busi", "busbra", "bus", "bus_uc", "bus_uclm"]
STUDY = {
    "run": "planning",
    "device": "cpu",
    "datasets": {name: {"phantom": {"cases": 40}} for name in DATASETS},
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
# Every output is made, and recorded as Snakemake records it, without the wait of a tenth of a
# second that its `--touch` takes for each job.
FINISH = """
import sys
from pathlib import Path
from snakemake.cli import main
from snakemake.executors.touch import Executor

def made(self, job, run_job=Executor.run_job):
    for path in job.output:
        folder = Path(path) if path.is_directory else Path(path).parent
        folder.mkdir(parents=True, exist_ok=True)
        if not path.is_directory:
            Path(path).touch()
    run_job(self, job)

Executor.SLEEPING_TIME, Executor.run_job = 0, made
main(sys.argv[1:])
"""


@dataclass(frozen=True)
class Planned:
    """What a dry run said, and what it took: of a processor, by the clock, and of memory."""

    jobs: int
    seconds: float
    waited: float
    megabytes: float

    @property
    def within_budget(self) -> bool:
        """Whether a study of so many jobs may take so much."""
        if self.jobs > SMALL:
            return self.seconds < 30
        return self.seconds < 10 and self.megabytes < 500


def with_cross_tests() -> dict:
    """Return the study with the models of each dataset tested on all others."""
    study = copy.deepcopy(STUDY)
    study["compare"]["cross"] = True
    return study


def with_union() -> dict:
    """Return the same with a hold-out, and models of all datasets together."""
    study = with_cross_tests()
    study["trainsets"] = {"all": DATASETS}
    study["splits"]["holdout"] = 0.2
    return study


def with_everything() -> dict:
    """Return the same with two unions, and three refiners in seven prompt modes each."""
    study = with_union()
    study["trainsets"]["three"] = DATASETS[:3]
    study["prompts"]["box_loose"] = {"kind": "box", "expand": 0.2}
    study["prompts"]["box_point"] = {"kind": "box+point"}
    study["weights"] = {"accept": ["ultrasam"]}
    study["refiners"]["ultrasam"] = {"family": "ultrasam", "weights": "ultrasam"}
    modes = [name for name in study["prompts"] if name != "mask"]
    study["compare"]["refine"] |= dict.fromkeys(("sam", "medsam", "ultrasam"), modes)
    return study


SMALL = 2000  # jobs
STUDIES = {
    "5 datasets x 5 folds x 8 methods": STUDY,
    "the same with every cross test": with_cross_tests(),
    "the same with a hold-out and a union": with_union(),
    "the same with two unions and 24 methods": with_everything(),
}


def run(command: list[str], folder: Path) -> tuple[str, float, float, float]:
    """Return what a command prints, its processor time and time in seconds, its peak in MB."""
    with open(folder / "printed.txt", "w+") as printed:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=printed, stderr=subprocess.STDOUT, cwd=folder)
        # Of this process alone: RUSAGE_CHILDREN is the highest of all that ran so far.
        _, status, used = os.wait4(process.pid, 0)
        waited = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        printed.seek(0)
        text = printed.read()
    if process.returncode:
        sys.exit(text)
    unit = 1 if sys.platform == "darwin" else 1024  # Linux counts in kilobytes
    return text, used.ru_utime + used.ru_stime, waited, used.ru_maxrss * unit / 1e6


def arguments(folder: Path, cores: int = 2) -> list[str]:
    """Return what every call of Snakemake is given."""
    return [
        *("--quiet", "rules", "--snakefile", str(ROOT / "Snakefile"), "--directory", str(folder)),
        *("--configfile", str(folder / "study.yaml"), "--cores", str(cores)),
    ]


def plan(study: dict, folder: Path) -> Planned:
    """Return what a dry run of a study takes."""
    (folder / "study.yaml").write_text(yaml.safe_dump(study))
    command = [sys.executable, "-m", "snakemake", "-n", *arguments(folder)]
    text, *took = run(command, folder)
    jobs = re.search(r"^total\s+(\d+)", text, re.M)
    if jobs is None and "Nothing to be done" not in text:
        sys.exit(text)
    return Planned(int(jobs[1]) if jobs else 0, *took)


def best(study: dict, folder: Path) -> Planned:
    """Return the fastest of three dry runs, after one that fills the caches of the system."""
    return min((plan(study, folder) for _ in range(4)), key=lambda one: one.seconds)


def finish(folder: Path) -> None:
    """Make the outputs of all jobs of the study that was planned last."""
    # With a core for each job the scheduler has little to choose, which is what takes its time.
    command = [sys.executable, "-c", FINISH, "--touch", *arguments(folder, cores=100_000)]
    run(command, folder)


def main() -> None:
    limit = int(sys.argv[1]) if len(sys.argv) > 1 else sys.maxsize
    kept = True
    for name, study in STUDIES.items():
        with tempfile.TemporaryDirectory() as text:
            folder = Path(text)
            if plan(study, folder).jobs > limit:
                continue
            nothing = best(study, folder)
            finish(folder)
            done = best(study, folder)
        if done.jobs:
            sys.exit(f"{name}: {done.jobs} jobs are planned again when all are done")
        print(f"{name}: {nothing.jobs} jobs")
        for what, one in (("nothing", nothing), ("all", replace(done, jobs=nothing.jobs))):
            took = f"{one.seconds:5.1f} s of a processor, {one.waited:5.1f} s by the clock"
            print(f"  {what:>7} done: {took}, {one.megabytes:4.0f} MB", flush=True)
            kept &= one.within_budget
    print(f"budgets {'kept' if kept else 'exceeded'}")
    sys.exit(0 if kept else 1)


if __name__ == "__main__":
    main()
