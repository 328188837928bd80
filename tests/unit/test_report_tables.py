"""Guards the report's tables: page, CSV and LaTeX agree, and all say what the evaluation says."""

import base64
import csv
import io
import re

import numpy as np
import pandas as pd
import pytest
from page_reader import Page, numbers
from report_inputs import make_cases, write_study
from report_page import tables_of

from ultrarefiner.report.book import make_book, read_data
from ultrarefiner.report.export import escape_latex, to_csv, to_latex
from ultrarefiner.report.plots import describe_boxes
from ultrarefiner.report.results import Cell, Row, Table
from ultrarefiner.report.tables import fixed, list_methods, main_rows, with_lesion


@pytest.fixture(scope="module")
def page(report_page_html):
    return Page(report_page_html)


@pytest.fixture(scope="module")
def book(report_study):
    return make_book(read_data(**tables_of(report_study), reference="transunet"))


def csv_rows(text):
    """Return the rows of a CSV: the head, and the numbers of the other cells."""
    titles, *rows = csv.reader(io.StringIO(text))
    facts = {"Oracle", "Weights saw the dataset"}
    kept = [i for i, title in enumerate(titles) if i and title not in facts]
    return [(row[0], [n for i in kept for n in numbers(row[i])]) for row in rows]


def latex_rows(text):
    """Return the rows of a LaTeX table, as `csv_rows` does."""
    body = text.split(r"\hline")[2:]
    rows = []
    for line in "".join(body).splitlines():
        cells = re.split(r"(?<!\\)&", line.replace(r"\_", "_").removesuffix(r"\\").strip())
        if len(cells) > 1:
            plain = [re.sub(r"\$([-<>])\$", r"\1", cell) for cell in cells]
            plain = [re.sub(r"\$[^$]*\$|\\textbf|\\emph|[{}\\]", " ", cell) for cell in plain]
            rows.append((plain[0].split()[0], [n for cell in plain[1:] for n in numbers(cell)]))
    return rows


def page_rows(rows):
    titles = rows[0]
    return [
        (row[0][0], [n for cell in row[1:] for n in numbers(cell[1])])
        for row in rows[1:]
        if len(row) == len(titles)
    ]


def test_page_csv_and_latex_have_the_same_numbers_in_every_table(report_study, page, book):
    names = {table.name for table in book.tables}
    written = {path.stem for path in report_study["tables"].iterdir()}
    assert names == written == set(page.tables) - {None}
    wanted = ("overview", "leading_pooled", "leading_busi", "details_busi", "folds_busi")
    wanted += ("holdout_busi", "unseen_busi", "subgroups_busi_size", "subgroups_busi_overlay")
    wanted += ("comparisons_stu", "gap_busi", "calibration_stu", "points_busi", "threshold_stu")
    assert {*wanted, "cross_transunet", "members_sam-both"} <= names
    compared = 0
    for name in sorted(names):
        shown = page_rows(page.tables[name])
        comma = csv_rows((report_study["tables"] / f"{name}.csv").read_text())
        latex = latex_rows((report_study["tables"] / f"{name}.tex").read_text())
        assert len(shown) == len(comma) == len(latex) > 0, name
        for (head, one), (csv_head, two), (tex_head, three) in zip(
            shown, comma, latex, strict=True
        ):
            assert csv_head.split()[0] == head == tex_head.replace(" ", ""), name
            assert one == two == three, (name, head)
            compared += len(one)
    assert compared > 3000


def test_files_on_the_page_are_those_of_the_folder(report_study, page):
    for path in report_study["tables"].iterdir():
        data = page.files[path.name].partition("base64,")[2]
        assert base64.b64decode(data) == path.read_bytes()


def test_leading_numbers_are_those_of_the_summary(report_study, page):
    summary = pd.read_csv(report_study["summary"], dtype={"fold": str})
    summary = summary[summary["subgroup"].eq("all") & summary["fold"].eq("all")]
    tables = {"busbra": "folds", "busi": "folds", "pooled": "folds", "macro": "folds"}
    titles = {"Dice": ("dice", 3), "IoU": ("iou", 3), "HD95 (px)": ("hd95_px", 1)}
    titles["HD95 (mm)"] = ("hd95_mm", 2)
    for name, evaluation in (tables | {"stu": "unseen"}).items():
        member = "single" if evaluation == "folds" else "mean"
        mine = summary[summary["dataset"].eq(name) & summary["evaluation"].eq(evaluation)]
        mine = mine[mine["member"].eq(member)].set_index(["method", "metric"])
        records = page.records(f"leading_{name}")
        assert {row["Method"][0] for row in records} == set(mine.index.get_level_values(0))
        assert ("HD95 (mm)" in records[0]) == (name == "busbra")
        for row in records:
            method = row["Method"][0]
            for title in set(titles) & set(row):
                metric, digits = titles[title]
                truth, (value, text) = mine.loc[(method, metric)], row[title]
                assert float(value) == truth["mean"]
                assert text.split()[0] == fixed(truth["mean"], digits)
                ends = fixed(truth["ci_low"], digits), fixed(truth["ci_high"], digits)
                assert f"[{', '.join(ends)}]" in text
            dice = mine.loc[(method, "dice")]
            assert f"± {fixed(dice['std'])}" in row["Dice"][1]
            assert float(row["n"][0]) == dice["n"]
            assert float(row["Missed"][0]) == dice["misses"]


def test_differences_are_those_of_the_comparisons(report_study, page):
    table = pd.read_csv(report_study["comparisons"])
    table = table[table["metric"].eq("dice")]
    for name, evaluation in (("busbra", "folds"), ("busi", "folds"), ("stu", "unseen")):
        mine = table[table["dataset"].eq(name) & table["evaluation"].eq(evaluation)]
        mine = mine.set_index("method")
        for row in page.records(f"leading_{name}"):
            method = row["Method"][0]
            if method not in mine.index:
                assert method.partition("@")[0] == "transunet"
                assert row["Δ Dice"][1].strip() == "reference"
                continue
            truth = mine.loc[method]
            assert float(row["Δ Dice"][0]) == truth["mean_difference"]
            assert float(row["Effect (dz)"][0]) == truth["cohens_dz"]
            # busbra has two images a patient: there the test over groups is the one to quote,
            # and five patients are too few for one.
            if name == "busbra":
                assert row["Holm p"][0] == ""
                assert "over groups" in row["Holm p"][1]
            else:
                assert float(row["Holm p"][0]) == truth["holm_p"]
            assert f"[{fixed(truth['ci_low'])}, {fixed(truth['ci_high'])}]" in row["Δ Dice"][1]


def test_hold_out_stands_beside_the_folds(report_study, page):
    summary = pd.read_csv(report_study["summary"], dtype={"fold": str})
    rows = summary[summary["subgroup"].eq("all") & summary["metric"].eq("dice")]
    rows = rows[rows["dataset"].eq("busi")]
    mean = rows.set_index(["evaluation", "member", "fold", "method"])["mean"]
    found = {row["Method"][0]: row for row in page.records("holdout_busi")}
    row = found["transunet"]
    assert float(row["Folds"][0]) == mean["folds", "single", "all", "transunet"]
    for fold in ("0", "1"):
        truth = mean["holdout", "single", fold, "transunet"]
        assert float(row[f"Model of fold {fold}"][0]) == truth
    for member in ("mean", "vote"):
        assert float(row[f"Ensemble: {member}"][0]) == mean["holdout", member, "all", "transunet"]
    assert "n = 2" in row["Ensemble: mean"][1] and "n = 10" in row["Folds"][1]
    assert found["sam-both"]["Ensemble: vote"][1].strip() == "–"


def test_gap_and_threshold_are_those_of_their_tables(report_study, page):
    gap = pd.read_csv(report_study["oracle_gap"])
    mine = gap[gap["dataset"].eq("busi") & gap["evaluation"].eq("folds")].set_index("method")
    shown = [r for r in page.records("gap_busi") if "cross-validation" in r["Evaluation"][1]]
    assert {row["Method"][0] for row in shown} == set(mine.index)
    for row in shown:
        truth = mine.loc[row["Method"][0]]
        assert float(row["Closed (%)"][0]) == pytest.approx(100 * truth["closed"])
        assert float(row["Left"][0]) == truth["gap"]
        assert fixed(100 * truth["closed_low"], 0) in row["Closed (%)"][1]
    summary = pd.read_csv(report_study["summary"], dtype={"fold": str})
    dice = summary[
        summary["dataset"].eq("busi")
        & summary["evaluation"].eq("folds")
        & summary["subgroup"].eq("all")
        & summary["fold"].eq("all")
        & summary["metric"].eq("dice")
    ].set_index("method")["mean"]
    row = next(r for r in page.records("threshold_busi") if r["Method"][0] == "transunet")
    assert float(row["Dice at 0.5"][0]) == dice["transunet"]
    assert float(row["Dice tuned"][0]) == dice["transunet-tuned"]


def test_marks_of_seen_weights_are_in_page_csv_and_latex(report_study, page):
    for name, mark, command, word in (
        ("busi", "†", r"$\dagger$", "yes"),
        ("stu", "‡", r"$\ddagger$", "unknown"),
    ):
        at = "@busi" if name == "stu" else ""
        cell = next(
            row["Method"][1]
            for row in page.records(f"leading_{name}")
            if row["Method"][0] == f"sam-both{at}"
        )
        assert f"sam-both{at} {mark}" in cell
        latex = (report_study["tables"] / f"leading_{name}.tex").read_text()
        assert f"sam-both{at} {command}" in latex
        rows = list(csv.DictReader((report_study["tables"] / f"leading_{name}.csv").open()))
        row = next(row for row in rows if row["Method"] == f"sam-both{at} {mark}")
        assert row["Weights saw the dataset"] == word
    latex = (report_study["tables"] / "leading_busi.tex").read_text()
    assert "not zero-shot" in latex
    # One of the two pooled datasets is enough for the mark.
    pooled = {row["Method"][0]: row["Method"][1] for row in page.records("leading_pooled")}
    assert "†" in pooled["sam-both"] and "†" not in pooled["grabcut-mask"]
    overview = {row["Method"][0]: row for row in page.records("overview")}
    assert "†" in overview["sam-both"]["busi"][1] and "†" not in overview["sam-both"]["busbra"][1]


def test_the_best_of_a_column_is_bold_in_the_joint_ones_too(page, book):
    for column in ("busi", "pooled", "macro"):
        place = book.overview.columns.index(column)
        bold = [row.head for row in book.overview.rows if row.cells[place].best]
        # SAM's weights saw busi, which is one of the joint datasets.
        assert len(bold) == 1 and bold[0].startswith("grabcut-mask"), column
        means = {row.head: row.cells[place].value for row in book.overview.plain}
        assert max(means, key=means.get).startswith("sam-both"), column


def test_captions_say_what_their_table_shows(report_study, page, book):
    for table in book.tables:
        assert "Click" not in to_latex(table) and "drawn" not in to_latex(table), table.name
    assert "Click a heading to sort." in page.text
    refined, coarse = (
        next(pair[0] for pair in book.cross if pair[0].name == f"cross_{name}").caption
        for name in ("sam-both", "transunet")
    )
    assert "single: the mean" in coarse and "the mean probability of all folds' models" in coarse
    assert "single:" not in refined and "refined from the mean probability" in refined
    # The figure explains the marks that it has.
    assert page.text.count("‡ not known whether the weights were trained on this dataset.") > 3
    figures = [text for text in page.captions if "Cross" in text and "refined from" in text]
    assert [all(mark in text for mark in "†‡§") for text in figures] == [False, True]
    figure = next(text for text in page.captions if "Cross" in text and "refined" not in text)
    assert "§" in figure and "†" not in figure


def with_normal_images(rng, count, shape):
    """Yield cases of which 2 and 5 have no lesion; the coarse model sees one in case 2."""
    for number, (label, image, truth, masks) in enumerate(make_cases(rng, count, shape)):
        if number in (2, 5):
            label, truth = "normal", np.zeros(shape, bool)
            seen = ("transunet", "transunet-tuned") if number == 2 else ()
            masks = {name: mask & (name in seen) for name, mask in masks.items()}
        yield label, image, truth, masks


def test_images_without_a_lesion_are_in_the_specificity_and_in_no_mean(tmp_path):
    study = write_study(tmp_path, datasets=("busi",), cases=with_normal_images)
    data = read_data(**tables_of(study), reference="transunet")
    table = next(t for t in make_book(data).tables if t.name == "leading_busi")
    found = {row.head: dict(zip(table.columns, row.cells, strict=True)) for row in table.rows}
    for name, alarms, specificity in (("transunet", "1", "0.500"), ("sam-both", "0", "1.000")):
        cells = found[name]
        assert (cells["n"].text, cells["False alarms"].text) == ("8", alarms)
        assert (cells["Specificity"].text, cells["Specificity"].count) == (specificity, "2")
        scores = main_rows(data.scores, "busi")
        mine = scores[scores["method"].eq(name) & ~scores["empty_truth"]]
        assert cells["Dice"].value == pytest.approx(mine["dice"].mean())
    words = describe_boxes(with_lesion(scores), list_methods(scores, "transunet"))
    assert f"transunet mean {found['transunet']['Dice'].text};" in words


def test_special_characters_reach_latex_unharmed():
    assert escape_latex("50 % of a_b & #1 {x} $y ~^\\") == (
        r"50 \% of a\_b \& \#1 \{x\} \$y \textasciitilde{}\textasciicircum{}\textbackslash{}"
    )
    assert escape_latex("−0.1 ± 2 < 3 †") == r"$-$0.1 $\pm$ 2 $<$ 3 $\dagger$"
    row = Row("sam_b@all", [Cell("< 0.001", 0.0), Cell("−0.100", -0.1, low="−0.200", high="0.000")])
    table = Table("a_b", "A & B", "Method", ["p", "Δ"], [row])
    latex = to_latex(table)
    assert r"sam\_b@all & $<$ 0.001 & $-$0.100 [$-$0.200, 0.000] \\" in latex
    assert r"\label{tab:a-b}" in latex and r"\begin{tabular}{lrr}" in latex
    assert latex.count("{") == latex.count("}")
    lines = to_csv(table).splitlines()
    assert lines == ["Method,p,Δ,Δ CI low,Δ CI high", "sam_b@all,< 0.001,-0.100,-0.200,0.000"]
