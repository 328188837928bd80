"""The report: one HTML file that needs no network, no server and no other file."""

from __future__ import annotations

import base64
import logging
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

from ultrarefiner.code import made_by_other_code
from ultrarefiner.errors import UltraRefinerError
from ultrarefiner.evaluation.subgroups import SIZES
from ultrarefiner.io import read_json, write_text
from ultrarefiner.models.cards import read_card
from ultrarefiner.report.book import Data, make_book, read_data
from ultrarefiner.report.cautions import by_image, caution
from ultrarefiner.report.end_to_end import guard_tables
from ultrarefiner.report.findings import find
from ultrarefiner.report.finetuning import describe_sheet
from ultrarefiner.report.making import (
    commands,
    config_yaml,
    describe_provenance,
    statements,
)
from ultrarefiner.report.model_cards import sorted_cards, source_tables
from ultrarefiner.report.overlays import RANKS
from ultrarefiner.report.pictures import embed_pictures, embed_sheets
from ultrarefiner.report.results import ORACLE_NOTE, Table
from ultrarefiner.report.tables import EVALUATIONS, FOOTNOTES, MARKS, at_of, fixed, signed
from ultrarefiner.report.views import anchor, cross_figures, curves, dataset_view

log = logging.getLogger(__name__)

_HERE = Path(__file__).parent


def write_report(
    scores: str | Path,
    summary: str | Path,
    comparisons: str | Path,
    oracle_gap: str | Path,
    figures: str | Path,
    overlays: str | Path,
    tables: str | Path,
    provenance: Mapping[str, Any],
    title: str,
    checks: Sequence[str | Path],
    cards: Sequence[str | Path],
    reference: str,
    output: str | Path,
    calibration: str | Path | None = None,
    overlaps: str | Path | None = None,
    points: Sequence[str | Path] | str | Path | None = None,
    failures: Sequence[str | Path] = (),
    guards: Sequence[str | Path] = (),
    zero_shot: Sequence[str | Path] | str | Path | None = None,
    volumes: Sequence[str | Path] | None = None,
    montages: Sequence[str | Path] = (),
) -> None:
    """Write the report of a study as one HTML file.

    Args:
        scores: ``scores.csv``.
        summary: ``summary.csv``.
        comparisons: ``comparisons.csv``.
        oracle_gap: ``oracle_gap.csv``.
        figures: Folder that `ultrarefiner.report.figures.plot_scores` wrote.
        overlays: Folder that `ultrarefiner.report.overlays.draw_overlays` wrote.
        tables: Folder that `ultrarefiner.report.export.write_tables` wrote; its files can be
            saved from the page.
        provenance: What made the numbers; ``config`` is shown as YAML, dicts and lists of dicts as
            tables, all else as lines.
        title: Title of the report.
        checks: Reports of the dataset check (JSON).
        cards: Model cards (JSON); a ``threshold.json`` beside one is told with it.
        reference: The coarse method that others are compared with.
        output: The HTML file.
        calibration: ``calibration.csv``, if there is one.
        overlaps: ``overlaps.csv``, if there is one.
        points: ``points.csv``, if points were analysed.
        failures: Sheets of simulated failures that `ultrarefiner.report.contact_sheet` drew, each
            called ``failures-{refiner}.png``.
        guards: Rules that guards go by (JSON).
        zero_shot: ``zero_shot.csv``, if models were tested on datasets of others.
        volumes: ``volumes.csv`` and ``volume_comparisons.csv``, if a dataset holds volumes.
        montages: The folder that `ultrarefiner.report.volume_pictures.draw_volumes` wrote, if one
            does.

    Raises:
        UltraRefinerError: An input is absent or damaged; the message names it.
    """
    data = read_data(
        scores,
        summary,
        comparisons,
        oracle_gap,
        reference,
        calibration,
        overlaps,
        points,
        zero_shot,
        volumes,
    )
    book = make_book(data)
    examined = [_read_object(path, "check_dataset") for path in checks]
    models = [_read_model(Path(path)) for path in cards]
    drawn = _read_object(Path(overlays) / "index.json", "draw_overlays")
    pictures, reduced = embed_pictures(Path(overlays), drawn.get("pictures", []), "gallery")
    failed, failed_reduced = embed_pictures(Path(overlays), drawn.get("failures", []), "failures")
    config = provenance.get("config") or {}
    folder = Path(figures)
    phases: dict[str, set[str]] = {}
    for card in models:
        phases.setdefault(card["dataset"], set()).add(card["phase"])
    page = (
        _environment()
        .get_template("page.html.j2")
        .render(
            title=title,
            style=Markup((_HERE / "page.css").read_text(encoding="utf-8")),
            script=Markup((_HERE / "page.js").read_text(encoding="utf-8")),
            reference=reference,
            findings=find(data),
            cautions=caution(
                data.scores,
                data.summary,
                data.overlaps,
                examined,
                models,
                provenance,
                # The page stands in the folder `report` of its run.
                made_by_other_code(Path(output).parents[1])
                if config.get("rerun_on_code_change")
                else None,
            ),
            book=book,
            datasets=[
                dataset_view(data, mine, folder, examined, config, phases) for mine in book.datasets
            ],
            gallery={name: _gallery(name, pictures) for name in data.datasets},
            reduced=reduced,
            cross=cross_figures(book, folder),
            joint_curves=[
                curves(folder, name, phases.get(name, ())) for name in _unions(data, folder)
            ],
            montages=_montages(montages),
            failures=_failures(failed),
            failed_reduced=failed_reduced,
            statements=statements(data, provenance),
            sheets=_sheets(failures, config),
            commands=commands(provenance),
            cards=sorted_cards(models),
            behind=source_tables(models) + guard_tables(guards),
            provenance=describe_provenance(provenance),
            config=config_yaml(config),
            by_image=by_image(provenance),
            sizes={name: f"{100.0 * least:g} %" for name, least in SIZES.items()},
            files=_files(Path(tables), book.tables),
        )
    )
    write_text(output, page)
    log.info("wrote %s (%.1f MB)", output, len(page) / 1e6)


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([_HERE, _HERE / "parts"]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"anchor": anchor, "data_uri": _data_uri, "breakable": _breakable}
    environment.globals |= {
        "oracle_note": ORACLE_NOTE,
        "evaluations": EVALUATIONS,
        "footnotes": FOOTNOTES,
    }
    return environment


def _read_model(path: Path) -> dict[str, Any]:
    tuned, threshold = path.with_name("threshold.json"), None
    if tuned.is_file():
        threshold = _read_object(tuned, "choose_threshold")["threshold"]
    return read_card(path) | {"threshold": threshold}


def _read_object(path: str | Path, maker: str) -> dict[str, Any]:
    value = read_json(path)
    if not isinstance(value, dict):
        raise UltraRefinerError(f"{path} is not a JSON object; delete it and run {maker} again.")
    return value


def _breakable(name: str) -> Markup:
    """Return a name that a narrow window may break after @, - and _."""
    return Markup(re.sub("(?<=[@_-])", "<wbr>", str(escape(name))))


def _data_uri(text: str, kind: str) -> str:
    return f"data:{kind};charset=utf-8;base64,{base64.b64encode(text.encode()).decode()}"


def _files(folder: Path, tables: list[Table]) -> dict[str, dict[str, str]]:
    """Return the files of each table as data URIs, by table and suffix."""
    kinds = {"csv": "text/csv", "tex": "text/x-tex"}
    files: dict[str, dict[str, str]] = {}
    for table in tables:
        for suffix, kind in kinds.items():
            path = folder / f"{table.name}.{suffix}"
            if not path.is_file():
                raise UltraRefinerError(f"{path} is missing; run write_tables again.")
            text = path.read_text(encoding="utf-8")
            files.setdefault(table.name, {})[suffix] = _data_uri(text, kind)
    return files


def _montages(folders: Sequence[str | Path]) -> tuple[list[dict[str, Any]], str]:
    """Return the pictures of volumes, and what was reduced, in words."""
    shown: list[dict[str, Any]] = []
    told = ""
    for folder in map(Path, folders):
        drawn = _read_object(folder / "index.json", "draw_volumes")
        shown, told = embed_pictures(folder, drawn["pictures"], "volumes")
    return shown, told


def _unions(data: Data, folder: Path) -> list[str]:
    """Return the training sets that are no dataset and have training curves."""
    names = {path.stem.removeprefix("curves_") for path in folder.glob("curves_*.svg")}
    return sorted(names - set(data.datasets))


def _gallery(name: str, pictures: list[dict[str, Any]]) -> dict[str, Any]:
    mine = [item for item in pictures if item["dataset"] == name]
    ranks = [(rank, [item for item in mine if item["rank"] == rank]) for rank in RANKS]
    return {
        "method": mine[0]["method"] if mine else "",
        "ranks": [(rank, items) for rank, items in ranks if items],
    }


def _sheets(failures: Sequence[str | Path], config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the sheets of simulated failures with their captions."""
    return [
        {**sheet, "caption": f"{describe_sheet(sheet['names'], config)} {sheet['reduced']}".strip()}
        for sheet in embed_sheets([Path(path) for path in failures])
    ]


def _failures(failed: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the cards of the gallery of failures and what they can be filtered by."""
    cards = []
    for item in failed:
        shown = item["scores"][str(item["method"]).removesuffix(at_of(item["method"]))]
        coarse = item["scores"].get(str(item["reference"]).removesuffix(at_of(item["reference"])))
        dice, hd95 = (math.nan if shown[key] is None else shown[key] for key in ("dice", "hd95"))
        difference = dice - coarse["dice"] if coarse and shown["dice"] is not None else math.nan
        cards.append(
            {
                **item,
                "dice": fixed(dice),
                "hd95": fixed(hd95, 1),
                "difference": signed(difference),
                "mark": MARKS.get(shown["seen"], ""),
                "area": fixed(100.0 * item["area_share"], 1),
            }
        )
    choices = {
        key: sorted({str(item[key]) for item in failed})
        for key in ("dataset", "label", "size", "overlay", "border")
    }
    methods = sorted(
        {(row["oracle"], name) for item in failed for name, row in item["scores"].items()}
    )
    return {
        "cards": cards,
        "choices": choices,
        "methods": [(name, oracle) for oracle, name in methods],
    }
