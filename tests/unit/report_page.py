"""Make the whole report of a small study, for the tests of what stands on it."""

import pandas as pd
from report_inputs import write_study

from ultrarefiner.report.export import write_tables
from ultrarefiner.report.figures import plot_scores
from ultrarefiner.report.overlays import draw_overlays
from ultrarefiner.report.page import write_report

TABLES = ("scores", "summary", "comparisons", "oracle_gap", "calibration", "overlaps", "points")
DRAWN = ("scores", "summary", "calibration", "overlaps", "points")


def tables_of(study, *names):
    """Return the tables of the evaluation that a study has; only those named, if any are."""
    return {name: study[name] for name in names or TABLES if study.get(name)}


def change(study, tmp_path, name, edit):
    """Return the arguments with one table edited."""
    table = pd.read_csv(study[name], dtype=str, keep_default_na=False)
    edit(table).to_csv(tmp_path / f"{name}.csv", index=False)
    return {name: tmp_path / f"{name}.csv"}


def write_parts(study, folder, gallery=1, failures=4):
    """Draw the figures and pictures and write the tables; return the study with their places."""
    places = {name: folder / name for name in ("figures", "overlays", "tables")}
    plot_scores(
        **tables_of(study, *DRAWN),
        histories=study["histories"],
        reference="transunet",
        point_tables=study["point_tables"],
        output=places["figures"],
    )
    draw_overlays(
        study["scores"], study["entries"], "transunet", gallery, failures, places["overlays"]
    )
    write_tables(**tables_of(study), reference="transunet", output=places["tables"])
    return study | places


def make_study(root, **options):
    """Write a study and all that its report is made from."""
    return write_parts(write_study(root, **options), root / "report")


def write_page(study, folder, **changes):
    """Write the report and return its text."""
    arguments = {
        **tables_of(study),
        **{name: study[name] for name in ("figures", "overlays", "tables", "checks", "cards")},
        "provenance": study["provenance"],
        "title": "A <study> & more",
        "reference": "transunet",
        "output": folder / "report.html",
        **changes,
    }
    write_report(**arguments)
    return arguments["output"].read_text(encoding="utf-8")
