"""The report: one HTML file that needs no network, no server and no other file."""

from __future__ import annotations

import base64
import json
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import jinja2
import pandas as pd
import yaml
from markupsafe import Markup

from ultrarefiner.errors import UltraRefinerError
from ultrarefiner.evaluation.summary import SIZES
from ultrarefiner.images import read_rgb
from ultrarefiner.io import read_json, write_text
from ultrarefiner.report.overlays import RANKS
from ultrarefiner.report.plots import COLOURS, INK, describe_boxes
from ultrarefiner.report.results import Numbers, fold_table, leading_table, subgroup_table
from ultrarefiner.report.tables import (
    COMPARISON_COLUMNS,
    JOINT,
    SUMMARY_COLUMNS,
    list_methods,
    read_scores,
    read_table,
)
from ultrarefiner.report.words import by_image, caution, find

log = logging.getLogger(__name__)

# Characters of base64 that the gallery may take; wider pictures are tried first.
_GALLERY_BUDGET = 4_500_000
_GALLERY_WIDTHS = (1640, 1200, 900, 660, 420, 300)
_QUALITY = 86
# Colours of the figures that follow the page from light to dark.
_THEMED = {INK: "currentColor", COLOURS["coarse"]: "var(--accent)"}
_HERE = Path(__file__).parent


def write_report(
    scores: str | Path,
    summary: str | Path,
    comparisons: str | Path,
    figures: str | Path,
    overlays: str | Path,
    provenance: Mapping[str, Any],
    title: str,
    checks: Sequence[str | Path],
    cards: Sequence[str | Path],
    reference: str,
    output: str | Path,
) -> None:
    """Write the report of a study as one HTML file.

    Args:
        scores: ``scores.csv``.
        summary: ``summary.csv``.
        comparisons: ``comparisons.csv``.
        figures: Folder that `ultrarefiner.report.plots.plot_scores` wrote.
        overlays: Folder that `ultrarefiner.report.overlays.draw_overlays` wrote.
        provenance: What made the numbers; ``config`` is shown as YAML, dicts and lists of dicts as
            tables, all else as lines.
        title: Title of the report.
        checks: Reports of the dataset check (JSON).
        cards: Model cards (JSON).
        reference: The coarse method that others are compared with.
        output: The HTML file.

    Raises:
        UltraRefinerError: An input is absent or damaged; the message names it.
    """
    table = read_scores(scores, reference)
    means = read_table(summary, SUMMARY_COLUMNS, "summarise_scores")
    differences = read_table(comparisons, COMPARISON_COLUMNS, "compare_methods")
    examined = [_read_object(path, "check_dataset") for path in checks]
    pictures = read_json(Path(overlays) / "index.json").get("pictures", [])
    drawn = _embed_pictures(Path(overlays), pictures)
    datasets = sorted(set(table["dataset"]))
    joint = [name for name in JOINT if name in set(means["dataset"])]
    results = [
        _result(name, table, means, differences, reference, Path(summary))
        for name in [*datasets, *joint]
    ]
    findings = find(table, differences, reference)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["plain"] = _plain
    page = environment.get_template("page.html.j2").render(
        title=title,
        style=Markup((_HERE / "page.css").read_text(encoding="utf-8")),
        reference=reference,
        findings=findings,
        cautions=caution(table, means, examined, provenance),
        results=results,
        figures=[_figures(name, table, reference, Path(figures)) for name in datasets],
        gallery=[_gallery(name, drawn) for name in datasets],
        facts=[_facts(name, table) for name in datasets],
        checks=examined,
        cards=[_card(path) for path in cards],
        provenance=_provenance(provenance),
        config=_yaml(provenance.get("config")),
        by_image=by_image(provenance),
        sizes={name: f"{100.0 * least:g} %" for name, least in SIZES.items()},
    )
    write_text(output, page)
    log.info("wrote %s (%.1f MB)", output, len(page) / 1e6)


def _read_object(path: str | Path, maker: str) -> dict[str, Any]:
    value = read_json(path)
    if not isinstance(value, dict):
        raise UltraRefinerError(f"{path} is not a JSON object; delete it and run {maker} again.")
    return value


def _result(
    name: str,
    scores: pd.DataFrame,
    summary: pd.DataFrame,
    comparisons: pd.DataFrame,
    reference: str,
    source: Path,
) -> dict[str, Any]:
    methods = list_methods(scores, reference, None if name in JOINT else name)
    numbers = Numbers(summary, comparisons, name, reference)
    for method in methods:
        if name not in JOINT and numbers.get(method.name, "dice") is None:
            raise UltraRefinerError(
                f"{source} has no Dice of {method.name} on {name}, although it was scored; run "
                "summarise_scores again."
            )
    return {
        "key": name,
        "title": JOINT.get(name, name),
        "table": leading_table(numbers, methods, reference),
        "folds": fold_table(numbers, methods) if numbers.folds else None,
        "subgroups": subgroup_table(numbers, methods) if numbers.subgroups else None,
    }


def _figures(name: str, scores: pd.DataFrame, reference: str, folder: Path) -> dict[str, Any]:
    rows = scores[scores["dataset"].eq(name)]
    methods = list_methods(rows, reference)
    boxes = _inline_svg(folder / f"boxplot_{name}.svg", describe_boxes(rows, methods))
    scatter = curves = None
    if any(method.kind == "refined" for method in methods):
        words = f"Dice of {reference} against Dice after refining, a point for each case of {name}."
        scatter = _inline_svg(folder / f"scatter_{name}.svg", words)
    # A study may score masks of models that were trained elsewhere; then there are no curves.
    if (folder / f"curves_{name}.svg").is_file():
        words = f"Training loss and validation Dice by epoch for each fold of {name}."
        curves = _inline_svg(folder / f"curves_{name}.svg", words)
    return {"title": name, "boxes": boxes, "scatter": scatter, "curves": curves}


def _inline_svg(path: Path, words: str) -> Markup:
    """Return a figure as an element of the page: own ids, the page's text colour, no header."""
    if not path.is_file():
        raise UltraRefinerError(f"{path} is missing; run plot_scores again.")
    text = path.read_text(encoding="utf-8")
    text = text[text.index("<svg") :]
    text = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>|<style.*?</style>", "", text, flags=re.S)
    text = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", text).replace("xlink:href", "href")
    text = re.sub(r'(\sid="|href="#|url\(#)', rf"\g<1>{path.stem}-", text)
    for printed, themed in _THEMED.items():
        text = text.replace(printed, themed)
    label = jinja2.filters.escape(words)
    return Markup(text.replace("<svg", f'<svg role="img" aria-label="{label}"', 1))


def _embed_pictures(folder: Path, pictures: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the pictures with their pixels as data URIs, as wide as the budget allows."""
    pixels = [read_rgb(folder / item["file"]) for item in pictures]
    data: list[str] = []
    for width in _GALLERY_WIDTHS:
        data = [_jpeg(image, width) for image in pixels]
        if sum(map(len, data)) <= _GALLERY_BUDGET:
            break
    else:
        log.warning("the gallery takes %.1f MB; lower report.gallery", sum(map(len, data)) / 1e6)
    return [
        {**item, "data": uri, "width": image.shape[1], "height": image.shape[0]}
        for item, uri, image in zip(pictures, data, pixels, strict=True)
    ]


def _jpeg(image: cv2.typing.MatLike, width: int) -> str:
    if image.shape[1] > width:
        size = (width, round(image.shape[0] * width / image.shape[1]))
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    # Full colour resolution: thin coloured outlines smear with the usual halved one.
    options = [cv2.IMWRITE_JPEG_QUALITY, _QUALITY]
    options += [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
    data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), options)[1]
    return f"data:image/jpeg;base64,{base64.b64encode(data.tobytes()).decode()}"


def _gallery(name: str, pictures: list[dict[str, Any]]) -> dict[str, Any]:
    mine = [item for item in pictures if item["dataset"] == name]
    ranks = [(rank, [item for item in mine if item["rank"] == rank]) for rank in RANKS]
    return {
        "title": name,
        "method": mine[0]["method"] if mine else "",
        "ranks": [(rank, items) for rank, items in ranks if items],
    }


def _facts(name: str, scores: pd.DataFrame) -> dict[str, Any]:
    cases = scores[scores["dataset"].eq(name)].drop_duplicates("case")
    labels = cases.loc[cases["label"].ne(""), "label"].value_counts().sort_index()
    return {
        "dataset": name,
        "cases": len(cases),
        "groups": int(cases["group"].nunique()),
        "folds": ", ".join(map(str, sorted(set(cases["fold"])))),
        "labels": ", ".join(f"{label} {count}" for label, count in labels.items()) or "–",
        "empty": int(cases["empty_truth"].sum()),
    }


def _card(path: str | Path) -> dict[str, str]:
    card = _read_object(path, "train_coarse")
    architecture = card.get("architecture") or {}
    config, metrics = card.get("config") or {}, card.get("metrics") or {}
    size = architecture.get("image_size")
    best = metrics.get("best_epoch", metrics.get("epoch"))
    kept = metrics.get("val_dice", metrics.get("best_val_dice", metrics.get("dice")))
    values = {
        "Dataset": card.get("dataset"),
        "Model": card.get("name"),
        "Fold": card.get("fold"),
        "Architecture": f"{architecture.get('model', '–')}{f' at {size} px' if size else ''}",
        "Epochs": config.get("epochs"),
        "Epoch kept": best,
        "Val. Dice": f"{kept:.3f}" if isinstance(kept, float) else kept,
        "Chosen on": card.get("selection"),
        "Trained on": f"{len(card.get('trained_on') or [])} cases",
        "Parents": ", ".join(
            f"{name} ({str(digest)[:12]})" for name, digest in (card.get("parents") or {}).items()
        ),
        "Licence": card.get("licence"),
        "SHA-256 of weights": card.get("weights_sha256"),
    }
    return {key: "–" if value in (None, "") else str(value) for key, value in values.items()}


def _provenance(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Return provenance as ``lines`` (name, value) and ``tables`` (title, columns, rows)."""
    lines, tables = [], []
    for name, value in provenance.items():
        title = name.replace("_", " ").capitalize()
        if name == "config":
            continue
        if isinstance(value, Mapping) and value:
            rows = [[str(key), _plain(item)] for key, item in value.items()]
            tables.append((title, ["", ""], rows))
        elif isinstance(value, list) and value and all(isinstance(v, Mapping) for v in value):
            columns = list(dict.fromkeys(str(key) for item in value for key in item))
            rows = [[_plain(item.get(key)) for key in columns] for item in value]
            tables.append((title, columns, rows))
        else:
            lines.append((title, _plain(value)))
    return {"lines": lines, "tables": tables}


def _plain(value: Any) -> str:
    if value is None or value == "":
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {_plain(item)}" for key, item in value.items()) or "–"
    if isinstance(value, list | tuple):
        return ", ".join(map(_plain, value)) or "–"
    return str(value)


def _yaml(config: Any) -> str:
    if not config:
        return ""
    # By way of JSON: paths and tuples become what YAML can say.
    plain = json.loads(json.dumps(config, default=str))
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=100)
