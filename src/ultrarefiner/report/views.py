"""What stands on the page of a dataset, and on that of all datasets together."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from ultrarefiner.report.book import Book, Data, DatasetTables
from ultrarefiner.report.calibration_plots import describe_reliability
from ultrarefiner.report.cross import explain
from ultrarefiner.report.cross_plots import describe_matrix
from ultrarefiner.report.figures import by_trainset
from ultrarefiner.report.making import plain
from ultrarefiner.report.pictures import Figure, inline_svg
from ultrarefiner.report.plots import describe_boxes
from ultrarefiner.report.point_plots import describe_points
from ultrarefiner.report.results import Table
from ultrarefiner.report.tables import (
    EVALUATIONS,
    evaluations_of,
    list_methods,
    main_rows,
    with_lesion,
)

# Names of pages that are not those of datasets.
PAGES = ("overview", "cross", "zero-shot", "volumes", "failures", "methods", "main", "top")
_JOINT = "What was trained end to end refines the masks of the coarse model inside it. "
_MARKED = "† marks weights trained on this dataset, ‡ weights of which that is not known."


@dataclass
class Section:
    """A part of a page: a heading, tables, figures, and tables that are folded away."""

    title: str
    tables: list[Table] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    folded: list[Table] = field(default_factory=list)


@dataclass(frozen=True)
class DatasetView:
    """The page of a dataset.

    Attributes:
        key: The dataset.
        id: Its anchor.
        role: How it was evaluated, in words.
        sections: Its parts.
        facts: Pairs of a name and a value.
    """

    key: str
    id: str
    role: str
    sections: list[Section]
    facts: list[tuple[str, str]]


def anchor(dataset: str) -> str:
    """Return the anchor of a dataset's page."""
    return f"dataset-{dataset}" if dataset in PAGES else dataset


def dataset_view(
    data: Data,
    tables: DatasetTables,
    folder: Path,
    checks: Sequence[Mapping[str, Any]],
    config: Mapping[str, Any],
    phases: Mapping[str, Collection[str]],
) -> DatasetView:
    """Return the page of a dataset.

    Args:
        data: The evaluation's tables.
        tables: The dataset's own.
        folder: The figures.
        checks: Reports of the dataset check.
        config: The study's configuration; may be empty.
        phases: How models were trained on each training set: ``coarse``, ``refiner``,
            ``end_to_end``.

    Raises:
        UltraRefinerError: A figure is not there.
    """
    name = tables.dataset
    there = evaluations_of(data.scores, name)
    role = ", ".join(EVALUATIONS[evaluation] for evaluation in there)
    return DatasetView(
        key=name,
        id=anchor(name),
        role=role,
        sections=list(_sections(data, tables, folder, phases.get(name, ()))),
        facts=list(_facts(data, name, checks, config)),
    )


def _sections(
    data: Data, tables: DatasetTables, folder: Path, phases: Collection[str]
) -> Iterator[Section]:
    name = tables.dataset
    rows = with_lesion(main_rows(data.scores, name))
    methods = list_methods(rows, data.reference)
    joint = any(method.kind == "end_to_end" for method in methods)
    dots = Figure(
        inline_svg(folder / f"boxplot_{name}.svg", describe_boxes(rows, methods)),
        "Dice of every case.",
        "A row for each method, a dot for each case; box: quartiles, line: median, diamond: mean. "
        f"Blue: coarse models. Pink: refined methods. {'Green: trained end to end. ' * joint}"
        f"Gray, dashed: oracles (upper bounds). {_MARKED}",
    )
    scatters = list(_scatters(rows, name, data.reference, folder))
    yield Section("Results", [tables.leading], [dots, *scatters], tables.further)
    if tables.holdout:
        yield Section("Hold-out", [tables.holdout])
    if tables.unseen:
        yield Section("Tested by models of other training sets", [tables.unseen])
    if tables.gap:
        yield Section("How much of the oracle's lead is reached", [tables.gap])
    if tables.threshold:
        yield Section("Threshold", [tables.threshold])
    if tables.calibration:
        bins = data.calibration[data.calibration["dataset"].eq(name)]
        svg = inline_svg(folder / f"reliability_{name}.svg", describe_reliability(bins, name))
        words = (
            "Pixels in bins of the predicted probability: the share of them that is lesion. On the "
            "dashed line the probability is true; below it the model is too sure. Below each "
            "panel: how many pixels a bin has, on a logarithmic scale."
        )
        yield Section("Calibration", [tables.calibration], [Figure(svg, "Reliability.", words)])
    if tables.points:
        yield Section("Point prompts", [tables.points], list(_points(data, name, folder)))
    # A study may score masks of models that were trained elsewhere; then there are no curves.
    if (folder / f"curves_{name}.svg").is_file():
        yield Section("Training", figures=[curves(folder, name, phases)])


def curves(folder: Path, trainset: str, phases: Collection[str] = ()) -> Figure:
    """Return the training curves of all models of a training set.

    Args:
        folder: The figures.
        trainset: The training set.
        phases: How models were trained on it: ``coarse``, ``refiner``, ``end_to_end``.

    Raises:
        UltraRefinerError: The figure is not there.
    """
    dashed = {
        "refiner": "of the coarse masks that a refiner is validated on",
        "end_to_end": "of the coarse model inside one that is trained end to end",
    }
    told = " and ".join(text for phase, text in dashed.items() if phase in phases)
    words = f"Training loss and validation Dice by epoch for each fold of {trainset}."
    return Figure(
        inline_svg(folder / f"curves_{trainset}.svg", words),
        f"Training on {trainset}.",
        "Left: training loss, right: Dice on the validation cases. One line for each fold; the star "
        "marks the epoch whose weights were kept."
        + (f" Dashed: the Dice {told}." if told else "")
        + (" Epoch 0 is before training end to end." if "end_to_end" in phases else ""),
    )


def _scatters(rows: pd.DataFrame, name: str, reference: str, folder: Path) -> Iterator[Figure]:
    for at, mine in by_trainset(rows).items():
        kinds = {method.kind for method in list_methods(mine, reference) if method.refines}
        coarse = f"{reference}{at}"
        if kinds and coarse in set(mine["method"]):
            words = (
                f"Dice of {coarse} against Dice after refining, a point for each case of {name}."
            )
            yield Figure(
                inline_svg(folder / f"scatter_{name}{at}.svg", words),
                f"Before and after refining {coarse}.",
                f"One point for each case of {name}; above the line refining helped, below it "
                f"harmed. {_JOINT * ('end_to_end' in kinds)}{_MARKED}",
            )


def _points(data: Data, name: str, folder: Path) -> Iterator[Figure]:
    curve = inline_svg(
        folder / f"points_curve_{name}.svg", describe_points(data.points, name, "curve")
    )
    yield Figure(
        curve,
        "What an error of a point costs.",
        "Mean Dice of the refiner when the truth's own point is moved by a Gaussian error of that "
        "many pixels; bands are 95 % intervals over groups. The horizontal line is the point of "
        "the coarse mask: where the curve crosses it, the coarse model points that well.",
    )
    distance = inline_svg(
        folder / f"points_distance_{name}.svg", describe_points(data.points, name, "distance")
    )
    yield Figure(
        distance,
        "Dice against distance.",
        "One mark for each case: how far the coarse mask's point is from the truth's, and the Dice "
        "of the mask that it gives. Points outside the lesion have another shape.",
    )


def _facts(
    data: Data, name: str, checks: Sequence[Mapping[str, Any]], config: Mapping[str, Any]
) -> Iterator[tuple[str, str]]:
    rows = data.scores[data.scores["dataset"].eq(name)]
    for evaluation in evaluations_of(data.scores, name):
        mine = rows[rows["evaluation"].eq(evaluation)]
        cases = mine.drop_duplicates("case")
        groups = cases["group"].nunique()
        folds = ", ".join(map(str, sorted(set(mine["fold"].dropna()))))
        told = f"{len(cases)} cases of {groups} groups"
        if empty := int(cases["empty_truth"].sum()):
            told += f", {empty} without a lesion"
        yield f"Scored, {EVALUATIONS[evaluation]}", f"{told}; models of fold {folds or '–'}"
    cases = rows.drop_duplicates("case")
    labels = cases.loc[cases["label"].ne(""), "label"].value_counts().sort_index()
    yield "Classes", ", ".join(f"{label} {count}" for label, count in labels.items()) or "–"
    marked = int((~cases["overlay"].isin(["", "none"])).sum())
    yield "Calipers or text burned in", f"{marked} of {len(cases)}"
    yield "Black borders", f"{int(cases['border'].eq('yes').sum())} of {len(cases)}"
    for column, title, value in (
        ("look_alike", "With look-alikes in the dataset", "yes"),
        ("spacing", "Pixel spacing known", "known"),
    ):
        if column in cases:
            yield title, f"{int(cases[column].eq(value).sum())} of {len(cases)}"
    shared = data.overlaps[
        data.overlaps["dataset"].eq(name) & data.overlaps["other_dataset"].ne(name)
    ]
    told = [
        f"{len(set(found['case']))} images {'equal to' if kind == 'equal' else 'like'} some of {other}"
        for (other, kind), found in shared.groupby(["other_dataset", "kind"])
    ]
    yield "Images shared with other datasets", "; ".join(told) or "none found"
    row = (config.get("datasets") or {}).get(name) or {}
    if row.get("modality"):
        yield "Modality", str(row["modality"])
    yield "Curation", str(row.get("curation") or "none: every usable image is in")
    for check in checks:
        if check.get("dataset") == name:
            yield "Layout", plain(check.get("layout"))
            for key, value in (check.get("facts") or {}).items():
                yield key.replace("_", " ").capitalize(), plain(value)


def cross_figures(book: Book, folder: Path) -> list[tuple[Figure, Table, Table]]:
    """Return the matrices as figures, each with its two tables.

    Raises:
        UltraRefinerError: A figure is not there.
    """
    return [
        (
            Figure(
                inline_svg(folder / f"cross_{matrix.method}.svg", describe_matrix(matrix)),
                "Cross-dataset matrix.",
                "Mean Dice, its 95 % confidence interval in brackets, and a colour from dark (low) "
                "to bright (high). A frame marks the training set's own folds (in-domain); other "
                f"cells: {explain(matrix)}. {' '.join(tables[0].footnotes)}".rstrip(),
            ),
            tables[0],
            tables[1],
        )
        for matrix, tables in zip(book.matrices, book.cross, strict=True)
    ]
