"""The job that draws every figure of a study."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from ultrarefiner.io import atomic_directory
from ultrarefiner.models.cards import CARD, read_card
from ultrarefiner.report.book import leaders, read_calibration, read_overlaps
from ultrarefiner.report.calibration_plots import draw_reliability
from ultrarefiner.report.cross import cross_matrices
from ultrarefiner.report.cross_plots import draw_matrix
from ultrarefiner.report.plots import draw_boxes, draw_curves, draw_scatters, save_figure
from ultrarefiner.report.point_plots import plot_points
from ultrarefiner.report.tables import (
    HISTORY_COLUMNS,
    SUMMARY_COLUMNS,
    at_of,
    list_methods,
    main_rows,
    read_scores,
    read_table,
    with_lesion,
)

log = logging.getLogger(__name__)


def plot_scores(
    scores: str | Path,
    summary: str | Path,
    histories: Sequence[Mapping[str, Any]],
    reference: str,
    output: str | Path,
    calibration: str | Path | None = None,
    overlaps: str | Path | None = None,
    points: Sequence[str | Path] | str | Path | None = None,
    point_tables: Sequence[str | Path] = (),
) -> None:
    """Draw the figures of a study into the folder ``output``, as SVG.

    For each dataset: ``boxplot_{dataset}.svg`` (Dice of every method),
    ``scatter_{dataset}{at}.svg`` (Dice of the reference against each method that refines) and
    ``reliability_{dataset}.svg`` (where there is a calibration). For each training set:
    ``curves_{trainset}.svg`` (where histories are given). For each method of the cross-dataset
    matrix: ``cross_{method}.svg``. Then those of `plot_points`.

    Args:
        scores: ``scores.csv``, one row a case, method and member.
        summary: ``summary.csv``.
        histories: A dict for each trained model: ``dataset`` (its training set), ``model``,
            ``fold`` (None: trained on all of them), ``path`` (CSV with the columns epoch,
            train_loss, val_dice; of a refiner or an end-to-end model also val_coarse_dice). The
            model's card beside it, where there is one, tells which epoch was kept.
        reference: The coarse method that refined ones start from.
        output: The folder; what it held before goes away.
        calibration: ``calibration.csv``, if there is one.
        overlaps: ``overlaps.csv``, if there is one.
        points: ``points.csv``, or a list of it, if points were analysed.
        point_tables: The tables that it was made of.

    Raises:
        UltraRefinerError: A table is absent or damaged, or lacks the reference.
    """
    table = read_scores(scores, reference)
    means = read_table(summary, SUMMARY_COLUMNS, "summarise_scores")
    bins, shared = read_calibration(calibration), read_overlaps(overlaps)
    curves = [
        {**item, "table": _read_history(item["path"]), "kept": _kept(item["path"])}
        for item in histories
    ]
    with atomic_directory(output) as folder:
        for dataset in sorted(set(table["dataset"])):
            _draw_dataset(folder, dataset, with_lesion(main_rows(table, dataset)), reference)
            mine = bins[bins["dataset"].eq(dataset)]
            if len(mine):
                save_figure(folder / f"reliability_{dataset}.svg", partial(draw_reliability, mine))
        for trainset in sorted({str(item["dataset"]) for item in curves}):
            mine = [item for item in curves if item["dataset"] == trainset]
            save_figure(folder / f"curves_{trainset}.svg", partial(draw_curves, mine))
        leading = leaders(table, reference)
        for matrix in cross_matrices(table, means, shared, reference, leading):
            save_figure(folder / f"cross_{matrix.method}.svg", partial(draw_matrix, matrix))
        for path in [points] if isinstance(points, str | Path) else points or []:
            plot_points(point_tables, path, folder)
        log.info("drew %d figures", len(list(folder.iterdir())))


def _draw_dataset(folder: Path, dataset: str, rows: pd.DataFrame, reference: str) -> None:
    methods = list_methods(rows, reference)
    save_figure(folder / f"boxplot_{dataset}.svg", partial(draw_boxes, rows, methods))
    for at, mine in by_trainset(rows).items():
        refined = [method for method in list_methods(mine, reference) if method.refines]
        coarse = f"{reference}{at}"
        if refined and coarse in set(mine["method"]):
            path = folder / f"scatter_{dataset}{at}.svg"
            save_figure(path, partial(draw_scatters, mine, refined, coarse))


def by_trainset(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return the rows of methods with models of the same training set, by ``@`` and that set."""
    return {str(at): mine for at, mine in rows.groupby(rows["method"].map(at_of))}


def _kept(path: str | Path) -> int | None:
    """Return the epoch that a model's card names; None without a card."""
    card = Path(path).with_name(CARD)
    return read_card(card)["metrics"]["epoch"] if card.is_file() else None


def _read_history(path: str | Path) -> pd.DataFrame:
    table = read_table(path, HISTORY_COLUMNS, "train_coarse, train_refiner or train_end_to_end")
    return table.sort_values("epoch", ignore_index=True)
