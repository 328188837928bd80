"""Guards where models trained end to end, and guarded masks, stand among the results."""

import re

import numpy as np
import pandas as pd
import pytest
from page_reader import Page
from report_end_to_end import make_joint
from report_page import change, tables_of, write_page

from ultrarefiner.io import read_json
from ultrarefiner.refine.guard import GuardRule, choose_rule
from ultrarefiner.refine.guard_jobs import write_rule
from ultrarefiner.report.book import make_book, read_data
from ultrarefiner.report.end_to_end import guard_tables
from ultrarefiner.report.findings import find
from ultrarefiner.report.overlays import draw_overlays
from ultrarefiner.report.study_tables import calibration_table
from ultrarefiner.report.tables import (
    Method,
    explain_names,
    leading_method,
    list_methods,
    main_rows,
    with_kinds,
)
from ultrarefiner.report.terminal import summary_tables


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return make_joint(tmp_path_factory.mktemp("joint"))


@pytest.fixture(scope="module")
def html(study, tmp_path_factory):
    return write_page(study, tmp_path_factory.mktemp("page"))


@pytest.fixture(scope="module")
def page(html):
    return Page(html)


@pytest.fixture(scope="module")
def data(study):
    return read_data(**tables_of(study), reference="transunet")


@pytest.fixture(scope="module")
def book(data):
    return make_book(data)


def cards_of(study):
    return [{**read_json(path), "threshold": None} for path in study["cards"]]


def test_kinds_follow_names_and_prompt_sources():
    rows = {
        "transunet": ("none", "coarse"),
        "transunet-tuned": ("none", "coarse"),
        # A prompt mode may be called so.
        "sam-tuned@all": ("coarse", "refined"),
        "sam-box-guarded": ("coarse", "refined"),
        "sam-oracle": ("ground_truth", "oracle"),
        "one@all": ("coarse", "end_to_end"),
        "one-tuned": ("coarse", "end_to_end"),
        "one-guarded@all": ("coarse", "end_to_end"),
        "one-coarse": ("none", "inner"),
    }
    table = pd.DataFrame(
        {
            "method": list(rows),
            "prompt_source": [source for source, _ in rows.values()],
            "oracle": [source == "ground_truth" for source, _ in rows.values()],
        }
    )
    assert list(with_kinds(table, "transunet")["kind"]) == [kind for _, kind in rows.values()]
    # As studies were scored in which such a model was taken for a coarse one.
    old = with_kinds(table.assign(prompt_source="none", oracle=False), "transunet")
    assert set(old["kind"]) == {"coarse"}


def test_rows_stand_in_groups_with_their_variants_beside_them(data, html, page):
    names = [method.name for method in list_methods(data.scores, "transunet") if not method.at]
    assert names == [
        *("transunet", "transunet-tuned"),
        *("grabcut-mask", "sam-both", "tuned-box", "tuned-box-guarded"),
        *("as_one", "as_one-coarse", "as_one-guarded", "as_one-tuned", "sam-oracle_box"),
    ]
    for table in ("overview", "leading_busi"):
        shown = [row["Method"][0] for row in page.records(table)]
        assert [name for name in shown if "@" not in name] == names
    rows = re.findall(r'<tr class="(\w+)[^>]*>\s*<th scope="row" data-sort="([^"]*)".*?</th>', html)
    assert {kind for kind, name in rows if name.startswith("as_one")} == {"end_to_end", "inner"}
    heads = dict(re.findall(r'<th scope="row" data-sort="([^"]*)">(.*?)</th>', html, re.S))
    assert '<span class="tag">end to end</span>' in heads["as_one-guarded"]
    assert '<span class="tag">coarse model inside</span>' in heads["as_one-coarse"]
    assert '<span class="tag">' not in heads["tuned-box-guarded"]
    row = next(row for row in page.records("leading_busi") if row["Method"][0] == "as_one")
    assert "[" in row["Dice"][1] and "[" in row["Δ Dice"][1]


def test_captions_explain_the_names_of_what_is_there(book, page):
    words = (
        "Trained end to end: as_one; -coarse: the coarse model inside, by itself; -guarded: the "
        "coarse mask where the refined one is not trusted."
    )
    for name in ("leading_busi", "overview"):
        assert next(t for t in book.tables if t.name == name).caption.endswith(words)
    assert "Green: trained end to end." in page.text
    assert explain_names([Method("sam-box", "refined"), Method("net", "coarse")]) == ""


def test_boxes_are_green_and_scatters_have_a_panel_for_each_that_refines(study):
    text = (study["figures"] / "boxplot_busi.svg").read_text()
    assert "stroke: #009e73" in text
    titles = re.findall(
        r"<text[^>]*>([^<]*)</text>", (study["figures"] / "scatter_busi.svg").read_text()
    )
    panels = [title for title in titles if "-" in title or title == "as_one"]
    assert panels == [
        *("grabcut-mask", "sam-both †", "tuned-box", "tuned-box-guarded"),
        *("as_one", "as_one-guarded", "as_one-tuned"),
    ]


def test_first_lines_count_variants_and_do_not_call_it_refining(study, data, tmp_path):
    busi, stu = find(data)
    assert busi.method == "as_one" and busi.reference == "transunet"
    assert busi.sentence.startswith("as_one, trained end to end, ")
    assert " on busi than transunet: " in busi.sentence and "Refining" not in busi.sentence
    counted = "refined and end-to-end methods (those with a tuned threshold or a guard counted)"
    assert f"It is the best of 6 {counted} that are compared with transunet, on" in busi.sentence
    assert "(†) were left out" in busi.sentence
    assert f"best of 8 {counted} that are compared with transunet@busi" in stu.sentence
    # Its guard left all masks as they are, so both are equal.
    assert stu.method == "as_one@busi"
    assert leading_method(main_rows(data.scores, "stu"), "transunet") == "as_one@busi"

    def without(table):
        return table[~table["method"].str.contains("as_one|guarded")]

    edited = change(study, tmp_path, "comparisons", without)
    busi, _ = find(read_data(**{**tables_of(study), **edited}, reference="transunet"))
    assert "best of 2 refined methods that start from transunet, on" in busi.sentence


@pytest.mark.parametrize(
    ("values", "words", "verdict"),
    [
        ((0.05, 0.02, 0.08, 0.001), "has a higher mean Dice on busi than transunet: ", "better"),
        ((-0.05, -0.08, -0.02, 0.001), "has a lower mean Dice on busi than transunet: ", "worse"),
        (
            (0.01, -0.01, 0.03, 0.3),
            "is not clearly better or worse on busi than transunet: mean Dice ",
            "unclear",
        ),
    ],
)
def test_words_are_honest_when_it_did_not_help(study, tmp_path, values, words, verdict):
    def edit(table):
        mine = table["dataset"].eq("busi") & table["metric"].eq("dice")
        columns = ["mean_difference", "ci_low", "ci_high", "holm_p"]
        table.loc[mine, columns] = [str(value) for value in values]
        return table

    edited = change(study, tmp_path, "comparisons", edit)
    busi, _ = find(read_data(**{**tables_of(study), **edited}, reference="transunet"))
    assert busi.verdict == verdict and f"trained end to end, {words}" in busi.sentence
    assert f"{busi.after} against {busi.before} (paired" in busi.sentence


def test_the_coarse_model_inside_is_told_where_it_is_better_than_the_whole(study, tmp_path):
    def edit(table):
        mine = table["method"].eq("as_one-coarse") & table["metric"].eq("dice")
        table.loc[mine, "mean_method"] = "0.999"
        return table

    edited = change(study, tmp_path, "comparisons", edit)
    busi, _ = find(read_data(**{**tables_of(study), **edited}, reference="transunet"))
    words = "without refining: as_one-coarse (the coarse model inside as_one) with 0.999 (against"
    assert words in busi.sentence


def test_a_picture_says_whose_prompts_it_had(study, tmp_path):
    assert {entry["prompts"] for entry in study["entries"] if "as_one" in entry["method"]} == {None}
    shown = read_json(study["overlays"] / "index.json")["pictures"]
    mine = [item for item in shown if item["dataset"] == "busi"]
    assert mine and {item["method"] for item in mine} == {"as_one"}
    for item in mine:
        assert f"fold {item['fold']} · prompted by the coarse model inside it" in item["caption"]

    def without(table):
        return table[~table["method"].str.startswith("as_one")]

    edited = change(study, tmp_path, "scores", without)
    output = tmp_path / "overlays"
    draw_overlays(edited["scores"], study["entries"], "transunet", 1, 0, output)
    mine = [one for one in read_json(output / "index.json")["pictures"] if one["dataset"] == "busi"]
    assert mine and not [one for one in mine if "inside" in one["caption"]]
    assert {one["method"] for one in mine} == {"tuned-box"}


def test_the_matrix_is_of_the_model_and_not_of_what_is_inside(book, page):
    names = [matrix.method for matrix in book.matrices]
    assert names[0] == "transunet" and "as_one" in names
    assert not {"as_one-coarse", "as_one-tuned", "transunet-tuned"} & set(names)
    matrix = next(pair[0] for pair in book.cross if pair[0].name == "cross_as_one")
    assert "the mean probability of all folds' models" in matrix.caption
    assert "single: the mean ± standard deviation over these models" in matrix.caption


def test_its_calibration_stands_below_that_of_the_coarse_models(study, data):
    bins = data.calibration[data.calibration["dataset"].eq("busi")]
    both = pd.concat([bins.assign(method="as_one"), bins])
    methods = list_methods(data.scores, "transunet")
    rows = calibration_table(both, "busi", methods).rows
    assert [(row.head, row.kind) for row in rows] == [
        ("transunet", "coarse"),
        ("as_one", "end_to_end"),
    ]


def test_thresholds_are_compared_for_it_too(book, page):
    heads = [row["Method"][0] for row in page.records("threshold_busi")]
    assert heads == ["transunet", "as_one"]
    caption = next(table for table in book.tables if table.name == "threshold_busi").caption
    assert caption.startswith("Coarse models and those trained end to end cut at")


def test_the_terminal_says_what_was_trained_end_to_end(study):
    for table in summary_tables(study["summary"], study["comparisons"]):
        folds = str(table.title).startswith("cross")
        names = [re.split("[ @]", str(name))[0] for name in list(table.columns)[1].cells]
        assert "as_one" in names and ("as_one-coarse" in names) == folds
        assert "Trained end to end: as_one; " in str(table.caption)
        assert ("-coarse: the coarse model inside" in str(table.caption)) == folds


def test_the_rules_of_guards_are_told(study, tmp_path):
    """As `choose_guard` writes them, by fold; a check that is off is called off."""
    square, dot = np.zeros((2, 20, 20), dtype=bool)
    square[5:15, 5:15], dot[0, 0] = True, True
    masks = [(square, dot, square)] * 2
    paths = []
    for fold, candidates in enumerate(([GuardRule(min_iou=0.5)], [GuardRule()])):
        paths.append(tmp_path / f"busi/guards/end_to_end/fold{fold}.json")
        write_rule(paths[-1], choose_rule(masks, candidates), ["busi__1", "busi__2"], "validation")
    page = Page(write_page(study, tmp_path / "page", guards=paths))
    title = "What guards go by, chosen on validation"
    assert title in page.text
    rows = guard_tables(paths)[0][2]
    assert rows[0] == ["busi", "end_to_end", "0", "0.5", "off", "off", "off", "0.000", "1.000", "2"]
    assert rows[1] == ["busi", "end_to_end", "1", "off", "off", "off", "off", "0.000", "0.000", "2"]
    assert guard_tables([]) == []
