"""Guards the report's first lines: what refining did, and no more than the numbers say."""

import re

import pandas as pd
import pytest
from page_reader import Page
from report_page import change, tables_of

from ultrarefiner.report.book import read_data
from ultrarefiner.report.findings import find


@pytest.fixture(scope="module")
def study(report_study):
    return report_study


def test_first_lines_say_what_refining_did(study, report_page_html):
    page = Page(report_page_html)
    table = pd.read_csv(study["comparisons"])
    table = table[table["metric"].eq("dice") & ~table["oracle"]]
    for name, evaluation, at, method, mark in (
        # SAM is the better one on busi, too, but its weights were trained on it.
        ("busi", "folds", "", "grabcut-mask", ""),
        ("stu", "unseen", "@all", "sam-both", " ‡"),
    ):
        rows = table[table["dataset"].eq(name) & table["evaluation"].eq(evaluation)]
        best = rows[rows["method"].eq(f"{method}{at}")].iloc[0]
        said = (
            f"Refining transunet{at} with {method}{at}{mark} did not clearly change mean Dice on "
            f"{name}: {best['mean_reference']:.3f} before, {best['mean_method']:.3f} after (paired "
            f"difference +{best['mean_difference']:.3f}, 95 % CI "
        )
        assert said in page.text
    assert "best of 2 refined methods that start from transunet@all, on these same" in page.text
    assert page.text.count("(†) were left out of the choice") == 2, "overview and the page of busi"


@pytest.mark.parametrize(
    ("refined", "coarse", "named"),
    [(0.8, 0.99, True), (0.8, 0.7, False), (0.3, 0.4, False), (0.3, 0.6, True)],
)
def test_a_coarse_model_is_named_where_it_is_above_all(study, tmp_path, refined, coarse, named):
    def edit(table):
        mine = table["dataset"].eq("busi") & table["evaluation"].eq("folds")
        mine &= table["metric"].eq("dice")
        assert (mine & table["method"].eq("transunet-tuned")).sum() == 1
        for method, mean in (
            *(("grabcut-mask", refined), ("sam-both", refined)),
            # What another training set does is another sentence's.
            *(("transunet-tuned", coarse), ("transunet-tuned@all", 0.998)),
        ):
            rows = mine & table["method"].eq(method)
            table.loc[rows, ["mean_method", "mean_reference"]] = [str(mean), "0.5"]
        return table

    edited = change(study, tmp_path, "comparisons", edit)
    found = find(read_data(**{**tables_of(study), **edited}, reference="transunet"))
    busi = next(finding for finding in found if finding.dataset == "busi")
    assert busi.method == "grabcut-mask"
    words = f" Higher than that, without refining: transunet-tuned with {coarse:.3f} (against "
    assert (words in busi.sentence) == named
    assert ("Higher than that" in busi.sentence) == named


def test_weights_that_saw_the_dataset_lead_only_where_all_did(study, report_page_html, tmp_path):
    rows = re.findall(r'<tr class="refined.*?</tr>', report_page_html, re.S)
    saw = [row for row in rows if ">†<" in row[: row.index("</th>")]]
    assert saw and not any(' best"' in row for row in saw)
    edited = change(
        study, tmp_path, "comparisons", lambda t: t[~t["method"].str.startswith("grabcut")]
    )
    found = find(read_data(**{**tables_of(study), **edited}, reference="transunet"))
    busi = next(finding for finding in found if finding.dataset == "busi")
    assert busi.method == "sam-both †" and "not zero-shot" in busi.sentence
    assert "left out of the choice" not in busi.sentence


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ((-0.05, -0.08, -0.02, 0.001), "lowered mean Dice on busi"),
        ((0.05, 0.02, 0.08, 0.001), "raised mean Dice on busi"),
        ((0.01, -0.01, 0.03, 0.3), "the interval includes zero"),
        ((0.01, 0.001, 0.03, 0.2), "the interval excludes zero but the rank test does not reject"),
        ((0.01, -0.01, 0.03, 0.01), "the interval of the mean includes zero although the rank"),
        ((0.01, 0.001, 0.03, ""), "there are too few cases for a test"),
    ],
)
def test_words_are_honest_when_it_did_not_help(study, tmp_path, values, words):
    def edit(table):
        mine = table["dataset"].eq("busi") & table["metric"].eq("dice")
        columns = ["mean_difference", "ci_low", "ci_high", "holm_p"]
        table.loc[mine, columns] = [str(value) for value in values]
        return table

    edited = change(study, tmp_path, "comparisons", edit)
    found = find(read_data(**{**tables_of(study), **edited}, reference="transunet"))
    said = " ".join(finding.sentence for finding in found)
    assert words in said
    assert ("raised mean Dice on busi " in said) == words.startswith("raised")
