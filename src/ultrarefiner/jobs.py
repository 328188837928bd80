"""The bridge between a Snakemake job and the library: log, threads, seeds, provenance."""

from __future__ import annotations

import logging
import os
import random
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from ultrarefiner.errors import UltraRefinerError
from ultrarefiner.io import item_seed, write_json
from ultrarefiner.provenance import git_revision, package_versions

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


def _start_log(path: Path) -> logging.Handler:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Appended: a retry or a resumed job must not erase why the attempt before it ended.
    handler = logging.FileHandler(path, mode="a", encoding="utf-8")
    handler.setFormatter(logging.Formatter(FORMAT))
    console = logging.StreamHandler(sys.stderr)
    console.setFormatter(logging.Formatter("%(message)s"))
    root = logging.getLogger()
    root.setLevel(logging.INFO)
    root.handlers = [handler, console]
    logging.captureWarnings(True)
    return handler


@contextmanager
def job(snakemake: Any) -> Iterator[None]:
    """Run the body as a job: everything it logs, and any traceback, goes to the rule's log.

    Beside the log stands ``<log>.json`` with wildcards, params, inputs, outputs, seed, versions
    and git revision; ``finished`` is null until the job has succeeded. An error that the user can
    mend is shown on the console as its message alone; the traceback is in the log.

    Args:
        snakemake: The object that Snakemake gives to a script.

    Raises:
        SystemExit: The job failed; status 1.
    """
    log = Path(snakemake.log[0])
    file_log = _start_log(log)
    seed = item_seed(snakemake.rule, *sorted(snakemake.wildcards.items()))
    _use_threads(snakemake.threads)
    _seed(seed)
    record = {
        "rule": snakemake.rule,
        "wildcards": _named(snakemake.wildcards),
        "params": _named(snakemake.params),
        "input": _named(snakemake.input),
        "output": _named(snakemake.output),
        "threads": snakemake.threads,
        "seed": seed,
        "git_revision": git_revision(),
        "versions": package_versions(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "finished": None,
    }
    write_json(log.with_suffix(".json"), record)
    try:
        yield
    except UltraRefinerError as error:
        logging.getLogger(__name__).error("%s: %s", snakemake.rule, error)
        file_log.stream.write(traceback.format_exc())
        sys.exit(1)
    except Exception:  # whatever it is goes to the log, whole, and fails the job
        logging.getLogger(__name__).exception("%s failed", snakemake.rule)
        sys.exit(1)
    finally:
        file_log.flush()
    record["finished"] = datetime.now(UTC).isoformat(timespec="seconds")
    write_json(log.with_suffix(".json"), record)
