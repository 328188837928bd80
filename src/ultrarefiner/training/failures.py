"""The job that writes simulated coarse masks, and their table read back. No torch."""

from __future__ import annotations

import logging
import multiprocessing
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import cv2

from ultrarefiner.config import SimulationConfig
from ultrarefiner.datasets.loader import read_cases, read_prepared
from ultrarefiner.errors import DatasetError, UltraRefinerError
from ultrarefiner.images import write_probability
from ultrarefiner.io import atomic_directory, read_rows, write_rows
from ultrarefiner.training.corrupt import CORRUPTIONS, CorruptedMask, simulate_failure

log = logging.getLogger(__name__)

_YES_OR_NO = {"yes": True, "no": False}


@dataclass(frozen=True)
class Failure:
    """One simulated mask, as a row of failures.csv.

    Attributes:
        case: Case id, by which splits know it: a copy is of its source's fold.
        copy: Number of the copy, from 0.
        source: Case whose truth it was made from; the same as ``case``.
        kind: Kind of error.
        band: Band of quality of its Dice.
        severity: How much of the kind, from 0 to 1.
        dice: Against the truth.
        area_ratio: Area over the truth's; inf for a false alarm.
        soft: Whether its edges are soft.
        temperature: T in pixels of a 512-pixel image; None for a hard mask.
        reached: Whether it is as strong as was asked for.
        reason: Why not.
    """

    case: str
    copy: int
    source: str
    kind: str
    band: str
    severity: float
    dice: float
    area_ratio: float
    soft: bool
    temperature: float | None
    reached: bool
    reason: str

    @property
    def file(self) -> str:
        """Name of its file in the folder of failures."""
        return failure_file(self.case, self.copy)


COLUMNS = [field.name for field in fields(Failure)]


def failure_file(case: str, copy: int) -> str:
    """Return the name of a simulated mask's file."""
    return f"{case}-{copy}.png"


def simulate_failures(
    simulation: SimulationConfig | Mapping[str, Any],
    seed: int,
    copies: int,
    prepared: str | Path | Sequence[str | Path],
    output: str | Path,
    table: str | Path,
    workers: int = 1,
) -> None:
    """Write simulated coarse masks of every prepared case, and a table of what they are.

    The masks depend on seed, case and copy alone, not on the number of workers.

    Args:
        simulation: Which errors, how often soft.
        seed: Seed of the simulation.
        copies: Masks of each case.
        prepared: The folder of prepared cases, with cases.csv and npz/ in it, or several.
        output: Folder of ``{case}-{copy}.png``, uint8 probabilities; what it held goes away.
        table: CSV with the columns of ``Failure``, sorted by case and copy.
        workers: Processes that make them; on systems without fork, threads.

    Raises:
        DatasetError: A case cannot be read, or two folders hold a case of the same id.
        OutputError: The disk is full or the folder cannot be written.
    """
    config = SimulationConfig.model_validate(simulation)
    places = sorted(_places(prepared).items())
    rows: list[dict[str, Any]] = []
    with atomic_directory(output) as folder, _pool(workers) as pool:
        make = partial(_make_case, config, seed, copies, folder)
        for done in pool.map(make, places, chunksize=4) if pool else map(make, places):
            rows += [_as_text(failure) for failure in done]
    write_rows(table, COLUMNS, rows)
    missed = sum(row["reached"] == "no" for row in rows)
    log.info("wrote %d masks of %d cases; %d could not be as asked", len(rows), len(places), missed)


def _places(prepared: str | Path | Sequence[str | Path]) -> dict[str, Path]:
    """Return the folder of each case."""
    places: dict[str, Path] = {}
    for folder in [prepared] if isinstance(prepared, str | Path) else prepared:
        for row in read_cases(Path(folder) / "cases.csv"):
            if row.case in places:
                raise DatasetError(
                    f"case {row.case} is in {places[row.case]} and in {folder}; name each dataset "
                    "once."
                )
            places[row.case] = Path(folder)
    return places


@contextmanager
def _pool(workers: int) -> Iterator[Executor | None]:
    """Give worker processes, or None for none."""
    if workers <= 1:
        yield None
        return
    # Fresh interpreters would run the job's script again, so workers are forks, where the system
    # has safe ones. OpenCV's threads do not survive a fork: there must be none by then.
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    forks = sys.platform == "linux"
    try:
        if forks:
            context = multiprocessing.get_context("fork")
            with ProcessPoolExecutor(workers, mp_context=context) as pool:
                yield pool
        else:
            with ThreadPoolExecutor(workers) as pool:
                yield pool
    finally:
        cv2.setNumThreads(threads)


def _make_case(
    config: SimulationConfig, seed: int, copies: int, folder: Path, place: tuple[str, Path]
) -> list[Failure]:
    case, prepared = place
    label = read_prepared(prepared, case)[1]
    made = []
    for copy in range(copies):
        result = simulate_failure(label, config, seed, case, copy)
        write_probability(folder / failure_file(case, copy), result.soft)
        made.append(_failure(case, copy, result))
    return made


def _failure(case: str, copy: int, result: CorruptedMask) -> Failure:
    return Failure(
        case=case,
        copy=copy,
        source=case,
        kind=result.kind,
        band=result.band,
        severity=result.severity,
        dice=result.dice,
        area_ratio=result.area_ratio,
        soft=result.temperature is not None,
        temperature=result.temperature,
        reached=result.reached,
        reason=result.reason,
    )


def _as_text(failure: Failure) -> dict[str, Any]:
    row = asdict(failure)
    for column, value in row.items():
        if isinstance(value, bool):
            row[column] = "yes" if value else "no"
        elif isinstance(value, float):
            row[column] = f"{value:.6f}"
    return row


def read_failures(table: str | Path) -> dict[str, list[Failure]]:
    """Read a failures.csv.

    Returns:
        The simulated masks of each case, sorted by copy.

    Raises:
        UltraRefinerError: The file is absent, lacks a column, or a row cannot be read.
    """
    again = "delete it and run simulate_failures again"
    try:
        rows = read_rows(table)
    except (OSError, UnicodeDecodeError) as error:
        raise UltraRefinerError(f"cannot read {table}: {error}; run simulate_failures") from error
    if not rows:
        raise UltraRefinerError(f"{table} lists no masks; {again}")
    if missing := [column for column in COLUMNS if rows[0].get(column) is None]:
        raise UltraRefinerError(f"{table} lacks the columns {', '.join(missing)}; {again}")
    failures: dict[str, dict[int, Failure]] = {}
    for number, row in enumerate(rows, 2):
        try:
            failure = _as_failure(row)
            if failure.copy in failures.setdefault(failure.case, {}):
                raise ValueError(f"copy {failure.copy} of {failure.case} is there twice")
        except (KeyError, TypeError, ValueError) as error:
            raise UltraRefinerError(f"{table}, line {number}: {error}; {again}") from error
        failures[failure.case][failure.copy] = failure
    return {case: [mine[copy] for copy in sorted(mine)] for case, mine in failures.items()}


def _as_failure(row: Mapping[str, str]) -> Failure:
    if row["kind"] not in CORRUPTIONS:
        raise ValueError(f"'{row['kind']}' is no kind of error")
    if row["source"] != row["case"]:
        raise ValueError(f"{row['case']} is not made from itself but from {row['source']}")
    return Failure(
        case=row["case"],
        copy=int(row["copy"]),
        source=row["source"],
        kind=row["kind"],
        band=row["band"],
        severity=float(row["severity"]),
        dice=float(row["dice"]),
        area_ratio=float(row["area_ratio"]),
        soft=_YES_OR_NO[row["soft"]],
        temperature=float(row["temperature"]) if row["temperature"] else None,
        reached=_YES_OR_NO[row["reached"]],
        reason=row["reason"],
    )
