"""The bridge between a Snakemake job and the library: log, threads, seeds, provenance."""

from __future__ import annotations

import logging
import os
import random
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from ultrarefiner.artefacts import begin_outputs, end_outputs, run_folder
from ultrarefiner.damage import check_inputs
from ultrarefiner.errors import UltraRefinerError
from ultrarefiner.gpus import installed_gpus, take_gpus
from ultrarefiner.io import item_seed, read_json, write_json
from ultrarefiner.provenance import git_revision, host_kind, package_versions, peak_memory

_CODE = ("code", "all_code")
"""Inputs that stand for the code of a job and are no data."""
FORMAT = "%(asctime)s %(levelname)s %(message)s"


def _plain(value: Any) -> Any:
    """Return a JSON-ready copy of what Snakemake hands to a script."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return [_plain(item) for item in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def _named(items: Any) -> dict[str, Any] | list[Any]:
    named = dict(items.items())
    return _plain(named) if named else _plain(list(items))


def _use_threads(threads: int) -> None:
    # Read by torch when it is imported later, which jobs do only if they need it.
    os.environ["OMP_NUM_THREADS"] = str(threads)
    if "cv2" in sys.modules:
        sys.modules["cv2"].setNumThreads(threads)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)


def _seed(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(seed)


class _LogFile(logging.FileHandler):
    """A log that cannot be written, as on a full disk, is told of once and hides no other message."""

    _told = False

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self._told:
            self._told = True
            sys.stderr.write(f"{self.baseFilename} cannot be written: {error.strerror}\n")

    def add(self, text: str) -> None:
        """Write lines that the console does not show."""
        try:
            self.stream.write(text)
            self.stream.flush()
        except OSError:
            self.handleError(logging.makeLogRecord({}))


def _start_log(path: Path) -> _LogFile:
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = _LogFile(path, mode="a", encoding="utf-8")
    handler.setFormatter(logging.Formatter(FORMAT))
    console = logging.StreamHandler(sys.stderr)
    console.setFormatter(logging.Formatter("%(message)s"))
    root = logging.getLogger()
    root.setLevel(logging.INFO)
    root.handlers = [handler, console]
    logging.captureWarnings(True)
    return handler


def _paths(items: Any, but: tuple[str, ...] = ()) -> list[str]:
    """Return the files and folders among a job's inputs or outputs, but for those of some names."""
    paths: list[str] = []
    named = dict(items.items())
    for key, value in named.items() if named else enumerate(items):
        if key not in but:
            paths += [str(value)] if isinstance(value, str | os.PathLike) else map(str, value)
    return paths


def _code(inputs: Any) -> str | None:
    """Return the fingerprint of the code that the rule runs, where the workflow made one."""
    path = dict(inputs.items()).get("code")
    if not path or not Path(path).is_file():
        return None
    return Path(path).read_text(encoding="utf-8").strip()


def _attempt(path: Path) -> int:
    """Return which attempt this is, counted since the job last succeeded."""
    try:
        last = read_json(path)
        return 1 if last["finished"] else last.get("attempt", 1) + 1
    except (UltraRefinerError, KeyError, TypeError, AttributeError):
        return 1


@contextmanager
def job(snakemake: Any) -> Iterator[None]:
    """Run the body as a job: everything it logs, and any traceback, goes to the rule's log.

    Beside the log stands ``<log>.json`` with wildcards, params, inputs and their checksums, outputs,
    seed, versions, git revision, kind of machine, duration and memory; ``finished`` is null until
    the job has succeeded. Each output then gets a card (``ultrarefiner.artefacts``). An input that
    is not what its own card says ends the job before it begins. An error that the user can mend is
    shown on the console as its message alone; the traceback is in the log.

    Args:
        snakemake: The object that Snakemake gives to a script.

    Raises:
        SystemExit: The job failed; status 1.
    """
    log = Path(snakemake.log[0])
    file_log = _start_log(log)
    begun = time.monotonic()
    seed = item_seed(snakemake.rule, *sorted(snakemake.wildcards.items()))
    _use_threads(snakemake.threads)
    _seed(seed)
    about, run = log.with_suffix(".json"), run_folder(log, snakemake.rule)
    record = {
        "rule": snakemake.rule,
        "log": str(log),
        "wildcards": _named(snakemake.wildcards),
        "params": _named(snakemake.params),
        "input": _named(snakemake.input),
        "inputs": {},
        "output": _named(snakemake.output),
        "threads": snakemake.threads,
        "seed": seed,
        "code": _code(snakemake.input),
        "git_revision": git_revision(),
        "versions": package_versions(),
        "host": host_kind(),
        "attempt": _attempt(about),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "finished": None,
    }
    try:
        write_json(about, record)
        outputs = _paths(snakemake.output)
        if run is not None:
            begin_outputs(run, log, outputs)
        found = check_inputs(run, _paths(snakemake.input, but=_CODE))
        record["inputs"] = {path: digest.facts() for path, digest in found.items()}
        write_json(about, record)
        with take_gpus(wanted := int(snakemake.resources.get("gpu", 0))):
            record["gpus"] = installed_gpus(os.environ) if wanted else []
            yield
        record["finished"] = datetime.now(UTC).isoformat(timespec="seconds")
        record["duration_s"] = round(time.monotonic() - begun, 2)
        record |= {"host": host_kind(), **peak_memory()}
        if run is not None:
            end_outputs(run, log, outputs, record)
        write_json(about, record)
    except UltraRefinerError as error:
        logging.getLogger(__name__).error("%s: %s", snakemake.rule, error)
        file_log.add(traceback.format_exc())
        sys.exit(1)
    except Exception:  # whatever it is goes to the log, whole, and fails the job
        logging.getLogger(__name__).exception("%s failed", snakemake.rule)
        sys.exit(1)
