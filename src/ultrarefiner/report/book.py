"""Every table of a study, made once: the page, the CSV files and the LaTeX files show these."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from ultrarefiner.errors import UltraRefinerError
from ultrarefiner.evaluation.points import read_point_summary
from ultrarefiner.evaluation.volume_summary import (
    VOLUME_COMPARISON_COLUMNS,
    VOLUME_SUMMARY_COLUMNS,
)
from ultrarefiner.evaluation.zero_shot import ZERO_SHOT_COLUMNS
from ultrarefiner.report.cross import Matrix, cross_matrices, matrix_table, member_table
from ultrarefiner.report.result_tables import (
    detail_table,
    fold_table,
    holdout_table,
    leading_table,
    subgroup_table,
    threshold_table,
)
from ultrarefiner.report.results import Numbers, Table
from ultrarefiner.report.study_tables import (
    calibration_table,
    comparison_table,
    gap_table,
    overview_table,
    point_table,
)
from ultrarefiner.report.tables import (
    CALIBRATION_COLUMNS,
    COMPARISON_COLUMNS,
    GAP_COLUMNS,
    JOINT,
    OVERLAP_COLUMNS,
    REFINING,
    SUMMARY_COLUMNS,
    evaluations_of,
    leading_method,
    list_methods,
    main_rows,
    read_scores,
    read_table,
)
from ultrarefiner.report.volumes import VolumePage, volume_page
from ultrarefiner.report.zero_shot import ZeroShot, zero_shot_page


@dataclass(frozen=True)
class Data:
    """The tables of the evaluation.

    Attributes:
        scores: ``scores.csv``, as `ultrarefiner.report.tables.read_scores` gives it.
        summary: ``summary.csv``.
        comparisons: ``comparisons.csv``.
        gap: ``oracle_gap.csv``.
        calibration: ``calibration.csv``; no rows where it was not given.
        overlaps: ``overlaps.csv``, each pair both ways; no rows where it was not given.
        points: Lines of ``points.csv``; none where points were not analysed.
        zero_shot: ``zero_shot.csv``; None where it was not given.
        volumes: ``volumes.csv`` and ``volume_comparisons.csv``; None where they were not given.
        reference: The coarse method that others are compared with.
        source: Path of ``summary.csv``, for messages.
    """

    scores: pd.DataFrame
    summary: pd.DataFrame
    comparisons: pd.DataFrame
    gap: pd.DataFrame
    calibration: pd.DataFrame
    overlaps: pd.DataFrame
    points: list[dict[str, Any]]
    zero_shot: pd.DataFrame | None
    volumes: tuple[pd.DataFrame, pd.DataFrame] | None
    reference: str
    source: Path

    @property
    def datasets(self) -> list[str]:
        """The datasets: those that models were trained on first."""
        names = sorted(set(self.scores["dataset"]))
        return sorted(names, key=lambda name: evaluations_of(self.scores, name)[0] != "folds")

    def numbers(self, dataset: str, evaluation: str) -> Numbers:
        """Return the look-up of a dataset's numbers."""
        return Numbers(self.summary, self.comparisons, dataset, evaluation)


@dataclass
class DatasetTables:
    """The tables of one dataset.

    Attributes:
        dataset: Its name.
        leading: The main results.
        further: Tables that stand below it, folded: details, folds, subgroups, comparisons.
        holdout: The hold-out beside the folds.
        unseen: Results of models that were trained on other datasets, where ``leading`` has folds.
        threshold: Models that need no prompts at 0.5 and at the tuned threshold.
        gap: The gap to the oracle.
        calibration: Of models that need no prompts.
        points: The point prompt analysis.
    """

    dataset: str
    leading: Table
    further: list[Table] = field(default_factory=list)
    holdout: Table | None = None
    unseen: Table | None = None
    threshold: Table | None = None
    gap: Table | None = None
    calibration: Table | None = None
    points: Table | None = None

    @property
    def all(self) -> list[Table]:
        """All of them."""
        others = [
            self.holdout,
            self.unseen,
            self.threshold,
            self.gap,
            self.calibration,
            self.points,
        ]
        return [self.leading, *self.further, *(table for table in others if table is not None)]


@dataclass
class Book:
    """All tables of a study.

    Attributes:
        overview: Every method on every dataset.
        joint: Pooled and macro means, where there are several datasets.
        datasets: The tables of each dataset.
        matrices: The cross-dataset matrices.
        cross: Two tables for each of them.
        zero_shot: What nothing of a method has seen; None where it is not told.
        volumes: Results in 3D; None where no dataset holds volumes.
    """

    overview: Table
    joint: list[Table]
    datasets: list[DatasetTables]
    matrices: list[Matrix]
    cross: list[tuple[Table, Table]]
    zero_shot: ZeroShot | None = None
    volumes: VolumePage | None = None

    @property
    def tables(self) -> list[Table]:
        """All tables; their names are unique."""
        mine = [table for dataset in self.datasets for table in dataset.all]
        cross = [table for pair in self.cross for table in pair]
        unseen = self.zero_shot.tables if self.zero_shot else []
        volumes = self.volumes.tables if self.volumes else []
        return [self.overview, *self.joint, *mine, *cross, *unseen, *volumes]


def read_data(
    scores: str | Path,
    summary: str | Path,
    comparisons: str | Path,
    oracle_gap: str | Path,
    reference: str,
    calibration: str | Path | None = None,
    overlaps: str | Path | None = None,
    points: Sequence[str | Path] | str | Path | None = None,
    zero_shot: Sequence[str | Path] | str | Path | None = None,
    volumes: Sequence[str | Path] | None = None,
) -> Data:
    """Read the evaluation's tables.

    Args:
        scores: ``scores.csv``.
        summary: ``summary.csv``.
        comparisons: ``comparisons.csv``.
        oracle_gap: ``oracle_gap.csv``.
        reference: The coarse method that others are compared with.
        calibration: ``calibration.csv``, if there is one.
        overlaps: ``overlaps.csv``, if there is one.
        points: ``points.csv``, or a list of it; None or an empty list for none.
        zero_shot: ``zero_shot.csv``, in the same way.
        volumes: ``volumes.csv`` and ``volume_comparisons.csv``; None or an empty list for none.

    Raises:
        UltraRefinerError: A table is absent or damaged; the message names it.
    """
    unseen = _listed(zero_shot)
    return Data(
        scores=read_scores(scores, reference),
        summary=read_table(summary, SUMMARY_COLUMNS, "summarise_scores"),
        comparisons=read_table(comparisons, COMPARISON_COLUMNS, "compare_methods"),
        gap=read_table(oracle_gap, GAP_COLUMNS, "measure_gap"),
        calibration=read_calibration(calibration),
        overlaps=read_overlaps(overlaps),
        points=[line for path in _listed(points) for line in read_point_summary(path)],
        zero_shot=read_table(unseen[0], ZERO_SHOT_COLUMNS, "summarise_zero_shot")
        if unseen
        else None,
        volumes=_read_volumes(volumes) if volumes else None,
        reference=reference,
        source=Path(summary),
    )


def _listed(paths: Sequence[str | Path] | str | Path | None) -> list[str | Path]:
    return [paths] if isinstance(paths, str | Path) else list(paths or [])


def _read_volumes(paths: Sequence[str | Path]) -> tuple[pd.DataFrame, pd.DataFrame]:
    summary, comparisons = paths
    return (
        read_table(summary, VOLUME_SUMMARY_COLUMNS, "summarise_volumes"),
        read_table(comparisons, VOLUME_COMPARISON_COLUMNS, "summarise_volumes"),
    )


def read_calibration(path: str | Path | None) -> pd.DataFrame:
    """Read ``calibration.csv``; without a path, a table without rows."""
    return _optional(path, CALIBRATION_COLUMNS, "collect_calibration")


def read_overlaps(path: str | Path | None) -> pd.DataFrame:
    """Read ``overlaps.csv`` with each pair both ways; without a path, a table without rows."""
    table = _optional(path, OVERLAP_COLUMNS, "find_overlaps")
    turned = {"case": "other_case", "dataset": "other_dataset"}
    turned |= {other: one for one, other in turned.items()}
    both = pd.concat([table, table.rename(columns=turned)], ignore_index=True)
    return both.drop_duplicates(list(OVERLAP_COLUMNS), ignore_index=True)


def _optional(path: str | Path | None, columns: Sequence[str], maker: str) -> pd.DataFrame:
    if path is None:
        return pd.DataFrame(columns=list(columns))
    return read_table(path, columns, maker)


def make_book(data: Data) -> Book:
    """Return all tables of a study.

    Raises:
        UltraRefinerError: A method that was scored on a dataset is not in the summary.
    """
    main = {name: evaluations_of(data.scores, name)[0] for name in data.datasets}
    numbers = {name: data.numbers(name, evaluation) for name, evaluation in main.items()}
    methods = {
        name: list_methods(main_rows(data.scores, name), data.reference) for name in data.datasets
    }
    for name, mine in methods.items():
        for method in mine:
            # A dataset without any lesion has its specificity alone.
            found = [numbers[name].get(method.name, key) for key in ("dice", "specificity")]
            if not any(found):
                raise UltraRefinerError(
                    f"{data.source} has no Dice of {method.name} on {name}, although it was "
                    "scored; run summarise_scores again."
                )
    joint = {
        name: data.numbers(name, "folds") for name in JOINT if name in set(data.summary["dataset"])
    }
    folds = data.scores[data.scores["evaluation"].eq("folds")]
    everywhere = list_methods(folds, data.reference)
    matrices = cross_matrices(
        data.scores,
        data.summary,
        data.overlaps,
        data.reference,
        leaders(data.scores, data.reference),
    )
    return Book(
        overview=overview_table(numbers, methods, joint, everywhere, data.reference),
        joint=[
            leading_table(found, everywhere, data.reference, f"leading_{name}", JOINT[name])
            for name, found in joint.items()
        ],
        datasets=[_dataset(data, name, numbers[name], methods) for name in data.datasets],
        matrices=matrices,
        cross=[(matrix_table(matrix), member_table(matrix)) for matrix in matrices],
        zero_shot=None if data.zero_shot is None else zero_shot_page(data.zero_shot, data.scores),
        volumes=None if data.volumes is None else volume_page(*data.volumes, data.reference),
    )


def leaders(scores: pd.DataFrame, reference: str) -> list[str]:
    """Return the methods that refine and lead on a dataset, without training sets, sorted."""
    names = set()
    for dataset in set(scores["dataset"]):
        rows = main_rows(scores, dataset)
        if rows["kind"].isin(REFINING).any():
            names.add(leading_method(rows, reference).partition("@")[0])
    return sorted(names)


def _dataset(data: Data, name: str, numbers: Numbers, methods: dict[str, list]) -> DatasetTables:
    mine, reference = methods[name], data.reference
    tables = DatasetTables(
        name, leading_table(numbers, mine, reference, f"leading_{name}", f"Results on {name}")
    )
    tables.further.append(detail_table(numbers, mine, reference, f"details_{name}"))
    if numbers.evaluation == "folds" and numbers.folds:
        tables.further.append(fold_table(numbers, mine, reference, f"folds_{name}"))
    for dimension in numbers.dimensions:
        tables.further.append(
            subgroup_table(numbers, mine, reference, f"subgroups_{name}", dimension)
        )
    there = evaluations_of(data.scores, name)
    everyone = list_methods(data.scores[data.scores["dataset"].eq(name)], reference)
    if compared := comparison_table(data.comparisons, name, everyone, reference):
        tables.further.append(compared)
    if "holdout" in there:
        rows = data.scores[data.scores["dataset"].eq(name)]
        held = list_methods(rows[rows["evaluation"].eq("holdout")], reference)
        tables.holdout = holdout_table(
            data.numbers(name, "holdout"), numbers, held, reference, f"holdout_{name}"
        )
    if "unseen" in there and numbers.evaluation == "folds":
        others = list_methods(main_rows(data.scores, name, "unseen"), reference)
        title = f"Models of other training sets on {name}"
        tables.unseen = leading_table(
            data.numbers(name, "unseen"), others, reference, f"unseen_{name}", title
        )
    tables.threshold = threshold_table(numbers, mine, reference, f"threshold_{name}")
    tables.gap = gap_table(data.gap, name)
    tables.calibration = calibration_table(data.calibration, name, everyone)
    tables.points = point_table(data.points, name)
    return tables
