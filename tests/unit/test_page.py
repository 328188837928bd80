"""Guards the report: one offline file whose numbers are the tables' and whose words are honest."""

import re
import shutil
from html.parser import HTMLParser

import pandas as pd
import pytest
from report_inputs import write_study

from ultrarefiner.errors import UltraRefinerError
from ultrarefiner.io import read_json, write_json
from ultrarefiner.report.overlays import draw_overlays
from ultrarefiner.report.page import write_report
from ultrarefiner.report.plots import plot_scores
from ultrarefiner.report.tables import fixed


class Page(HTMLParser):
    """Collects what a reader and a browser see of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.loads, self.ids, self.rows, self.captions = [], [], [], [], []
        self.open = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append((tag, attributes))
        self.open.append(tag)
        if attributes.get("id"):
            self.ids.append(attributes["id"])
        self.loads += [
            attributes[k] for k in ("src", "href", "xlink:href", "data") if k in attributes
        ]
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th") and self.rows:
            self.rows[-1].append([attributes.get("data-sort"), ""])
        if tag == "figcaption":
            self.captions.append("")

    def handle_endtag(self, tag):
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data):
        if "script" in self.open or "style" in self.open:
            return
        self.text += data
        if self.rows and {"td", "th"} & set(self.open):
            self.rows[-1][-1][1] += data
        if "figcaption" in self.open:
            self.captions[-1] += data


def write(study, folder, **changes):
    arguments = {
        **{key: study[key] for key in ("scores", "summary", "comparisons", "checks", "cards")},
        "figures": study["figures"],
        "overlays": study["overlays"],
        "provenance": study["provenance"],
        "title": "A <study> & more",
        "reference": "transunet",
        "output": folder / "report.html",
        **changes,
    }
    write_report(**arguments)
    return arguments["output"].read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    root = tmp_path_factory.mktemp("study")
    study = write_study(root)
    study |= {"figures": root / "report/figures", "overlays": root / "report/overlays"}
    plot_scores(study["scores"], study["histories"], "transunet", study["figures"])
    draw_overlays(study["scores"], study["entries"], "transunet", 1, study["overlays"])
    return study


@pytest.fixture(scope="module")
def html(study, tmp_path_factory):
    return write(study, tmp_path_factory.mktemp("page"))


@pytest.fixture(scope="module")
def page(html):
    return Page(html)


def change(study, tmp_path, name, edit):
    """Return the arguments with one table edited."""
    table = pd.read_csv(study[name], dtype=str, keep_default_na=False)
    edit(table).to_csv(tmp_path / f"{name}.csv", index=False)
    return {name: tmp_path / f"{name}.csv"}


def test_page_loads_nothing_from_elsewhere(html, page):
    assert not re.findall(r"(?i)(?:https?:|ftp:|file:|\s)//[a-z]", html.replace("// ", ""))
    assert "http://" not in html and "https://" not in html
    assert page.loads
    assert all(target.startswith(("#", "data:image/")) for target in page.loads)
    assert "@import" not in html
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", html))
    policy = [a["content"] for tag, a in page.tags if tag == "meta" and "http-equiv" in a]
    assert policy and policy[0].startswith("default-src 'none'")
    assert not [tag for tag, _ in page.tags if tag in ("link", "iframe", "object", "base")]


def test_page_is_small_and_its_ids_are_unique(html, page):
    assert len(html) < 8_000_000
    assert len(page.ids) == len(set(page.ids))
    anchors = {target[1:] for target in page.loads if target.startswith("#")}
    assert anchors <= set(page.ids)


def test_title_is_escaped(html, page):
    assert "<title>A &lt;study&gt; &amp; more</title>" in html
    assert "A <study> & more" in page.text


def method_rows(page, dataset_number):
    """Return the rows of the leading table of the n-th result."""
    heads = [i for i, row in enumerate(page.rows) if row and "Missed" in [c[1] for c in row]]
    start = heads[dataset_number]
    rows = page.rows[start + 1 : start + 6]
    titles = [cell[1] for cell in page.rows[start]]
    return titles, [row for row in rows if len(row) == len(titles)]


@pytest.mark.parametrize(("number", "dataset"), enumerate(["busbra", "busi", "pooled", "macro"]))
def test_numbers_equal_those_of_the_summary(study, page, number, dataset):
    summary = pd.read_csv(study["summary"], dtype={"fold": str})
    summary = summary[summary["subgroup"].eq("all") & summary["fold"].eq("all")]
    summary = summary.set_index(["dataset", "method", "metric"])
    titles, rows = method_rows(page, number)
    assert len(rows) == 4
    assert ("HD95 (mm)" in titles) == (dataset == "busbra")
    names = {"Dice": "dice", "IoU": "iou", "HD95 (px)": "hd95_px", "HD95 (mm)": "hd95_mm"}
    for row in rows:
        cells = dict(zip(titles, row, strict=True))
        method = cells["Method"][0]
        for title in set(titles) & set(names):
            truth = summary.loc[dataset, method, names[title]]
            digits = {"Dice": 3, "IoU": 3, "HD95 (px)": 1, "HD95 (mm)": 2}[title]
            value, text = cells[title]
            assert float(value) == truth["mean"]
            assert text.split()[0] == fixed(truth["mean"], digits)
            assert f"[{fixed(truth['ci_low'], digits)}, {fixed(truth['ci_high'], digits)}]" in text
        dice = summary.loc[dataset, method, "dice"]
        assert f"± {fixed(dice['std'])}" in cells["Dice"][1]
        assert float(cells["n"][0]) == dice["n"]
        assert float(cells["Missed"][0]) == dice["misses"]


def test_differences_equal_those_of_the_comparisons(study, page):
    table = pd.read_csv(study["comparisons"])
    table = table[table["metric"].eq("dice")].set_index(["dataset", "method"])
    for number, dataset in enumerate(["busbra", "busi"]):
        titles, rows = method_rows(page, number)
        for row in rows:
            cells = dict(zip(titles, row, strict=True))
            method = cells["Method"][0]
            if method == "transunet":
                assert cells["Δ Dice"][1].strip() == "reference"
                continue
            truth = table.loc[dataset, method]
            assert float(cells["Δ Dice"][0]) == truth["mean_difference"]
            # busbra has two images a patient: there the test over groups is the one to quote.
            quoted = "group_holm_p" if dataset == "busbra" else "holm_p"
            assert float(cells["Holm p"][0]) == truth[quoted]
            assert f"[{fixed(truth['ci_low'])}, {fixed(truth['ci_high'])}]" in cells["Δ Dice"][1]
            assert ("over groups" in cells["Holm p"][1]) == (dataset == "busbra")


def test_oracles_stand_apart_and_are_never_best(html, page):
    assert page.text.count("Oracle – upper bound: prompted from the truth. Not a result.") >= 4
    for body in re.findall(r"<tbody>.*?</tbody>", html, re.S):
        assert "sam-oracle_box" not in body
    for body in re.findall(r'<tbody class="oracles">.*?</tbody>', html, re.S):
        assert "sam-oracle_box" in body and '<span class="tag">oracle</span>' in body
        assert '"num best"' not in body
    assert "Oracle rows use the truth: sam-oracle_box." in page.text


def test_first_lines_say_what_refining_did(study, page):
    table = pd.read_csv(study["comparisons"])
    rows = table[table["dataset"].eq("busi") & table["metric"].eq("dice") & ~table["oracle"]]
    best = rows.loc[rows["mean_method"].idxmax()]
    assert best["ci_low"] > 0 and best["holm_p"] < 0.05
    said = (
        f"Refining transunet with {best['method']} raised mean Dice on busi from "
        f"{best['mean_reference']:.3f} to {best['mean_method']:.3f} (paired difference "
        f"+{best['mean_difference']:.3f}, 95 % CI {best['ci_low']:.3f} to {best['ci_high']:.3f}, "
    )
    assert said in page.text
    assert "best of 2 refined methods on these same cases" in page.text


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ((-0.05, -0.08, -0.02, 0.001), "lowered mean Dice on busi"),
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

    html = write(study, tmp_path, **change(study, tmp_path, "comparisons", edit))
    assert words in Page(html).text
    assert "raised mean Dice on busi " not in html


def test_cautions_name_what_limits_the_numbers(study, page, tmp_path):
    assert "Only 2 of 5 folds were run (fold 0, 1)" in page.text
    assert "busi: transunet missed 1 of 12" in page.text
    assert "busbra: 6; busi: 12" in page.text
    assert "The check of busi gave 2 warnings." in page.text
    assert "busi (3).png has no mask" in page.text
    assert "optimistic (" not in page.text and "Synthetic" not in page.text
    provenance = {
        "config": {
            "datasets": {"busi": {"phantom": {"cases": 4}}},
            "splits": {"group": "auto", "protocol": "seed"},
        }
    }
    edited = change(study, tmp_path, "scores", lambda t: t.assign(selection="reported fold"))
    other = Page(write(study, tmp_path, provenance=provenance, checks=[], **edited))
    assert "Synthetic images: busi." in other.text
    assert "Selected on the reported fold: grabcut-mask" in other.text
    assert "Folds were made by image (splits.protocol: seed)" in other.text
    assert "Folds were made by image" not in page.text
    assert "folds were run" not in other.text and "The check of" not in other.text


def test_unequal_cases_are_told(study, tmp_path):
    def edit(table):
        return table.drop(table[table["method"].eq("sam-both")].index[0])

    html = write(study, tmp_path, **change(study, tmp_path, "scores", edit))
    assert "not scored on the same cases" in html


def test_every_picture_and_figure_has_a_caption(study, page):
    pictures = read_json(study["overlays"] / "index.json")["pictures"]
    images = [a for tag, a in page.tags if tag == "img"]
    assert len(images) == len(pictures) == 6
    for image, item in zip(images, pictures, strict=True):
        assert item["caption"] in image["alt"]
        assert item["caption"] in page.captions
    figures = [a for tag, a in page.tags if tag == "svg" and a.get("role") == "img"]
    assert len(figures) == 6 and all(a["aria-label"] for a in figures)
    assert len(page.captions) == len(pictures) + len(figures)


def test_folds_and_subgroups_are_there(page):
    heads = [[cell[1] for cell in row] for row in page.rows]
    assert ["Method", "Fold 0", "Fold 1"] in heads
    assert any(row[:3] == ["Method", "benign", "malignant"] for row in heads)


def test_provenance_tells_what_made_the_numbers(page):
    text = re.sub(r"\s+", " ", page.text)
    assert "Revision0123abc" in text.replace(" ", "")
    assert "run: main" in page.text and "gallery: 2" in page.text
    assert "0ab" + "d" * 61 in page.text
    assert "transunet at 224 px" in page.text and "Apache-2.0" in page.text
    assert "benign: 8, malignant: 4" in page.text


def test_same_input_gives_the_same_page(study, html, tmp_path):
    assert write(study, tmp_path) == html


def test_a_study_without_refined_methods_has_a_report(study, tmp_path):
    def keep(table):
        return table[table["method"].eq("transunet")]

    edits = {}
    for name in ("scores", "summary", "comparisons"):
        edits |= change(study, tmp_path, name, keep)
    figures, overlays = tmp_path / "figures", tmp_path / "overlays"
    plot_scores(edits["scores"], [], "transunet", figures)
    draw_overlays(edits["scores"], study["entries"], "transunet", 1, overlays)
    html = write(study, tmp_path, figures=figures, overlays=overlays, cards=[], **edits)
    page = Page(html)
    assert "no refined method without oracle prompts was compared" in page.text
    assert "Δ Dice" not in [cell[1] for row in page.rows for cell in row]


@pytest.mark.parametrize(
    "name",
    ["scores", "summary", "comparisons", "figures", "scatter", "overlays", "checks", "cards"],
)
def test_refuses_missing_inputs_by_name(study, tmp_path, name):
    absent = tmp_path / "absent"
    changes = {name: [absent] if name in ("checks", "cards") else absent}
    expected = str(absent)
    if name == "scatter":
        shutil.copytree(study["figures"], tmp_path / "figures")
        (tmp_path / "figures/scatter_busi.svg").unlink()
        changes, expected = {"figures": tmp_path / "figures"}, "scatter_busi.svg is missing"
    with pytest.raises(UltraRefinerError, match=re.escape(expected)):
        write(study, tmp_path, **changes)
    assert not (tmp_path / "report.html").exists()


def test_refuses_a_summary_that_lacks_a_method(study, tmp_path):
    edited = change(study, tmp_path, "summary", lambda t: t[t["method"].ne("sam-both")])
    with pytest.raises(UltraRefinerError, match="no Dice of sam-both on busbra"):
        write(study, tmp_path, **edited)


def test_a_large_gallery_is_made_smaller_not_left_out(study, tmp_path):
    pictures = read_json(study["overlays"] / "index.json")["pictures"]
    shutil.copytree(study["overlays"], tmp_path / "overlays")
    write_json(tmp_path / "overlays/index.json", {"pictures": pictures * 12})
    html = write(study, tmp_path, overlays=tmp_path / "overlays")
    assert html.count("<img ") == 72
    assert len(html) < 8_000_000


@pytest.mark.parametrize("count", [2, 3])
def test_a_study_of_few_cases_has_a_report_that_says_so(tmp_path, count):
    study = write_study(tmp_path, ("busi",), count)
    figures, overlays = tmp_path / "figures", tmp_path / "overlays"
    plot_scores(study["scores"], study["histories"], "transunet", figures)
    draw_overlays(study["scores"], study["entries"], "transunet", 3, overlays)
    text = Page(write(study | {"figures": figures, "overlays": overlays}, tmp_path)).text
    assert f"Few independent groups (patients or duplicate clusters) – busi: {count}." in text
    assert "did not clearly change mean Dice on busi" in text
    assert "there are too few cases for a test" in text
    assert not re.search(r"\bnan\b", text, re.IGNORECASE)
