"""Guards the report: one offline file, with honest words, that tells what made its numbers."""

import re
import shutil

import pytest
from page_reader import Page
from report_inputs import REVISION, make_cases
from report_page import change, make_study, tables_of, write_page

from ultrarefiner.errors import UltraRefinerError
from ultrarefiner.io import read_json, write_json
from ultrarefiner.report.book import read_data
from ultrarefiner.report.cautions import caution
from ultrarefiner.report.export import write_tables
from ultrarefiner.report.figures import plot_scores
from ultrarefiner.report.overlays import draw_overlays
from ultrarefiner.report.views import anchor


@pytest.fixture(scope="module")
def study(report_study):
    return report_study


@pytest.fixture(scope="module")
def html(report_page_html):
    return report_page_html


@pytest.fixture(scope="module")
def page(html):
    return Page(html)


def test_page_loads_nothing_from_elsewhere(html, page):
    assert not re.findall(r"(?i)(?:https?:|ftp:|file:|\s)//[a-z]", html.replace("// ", ""))
    assert "http://" not in html and "https://" not in html
    assert page.loads
    assert all(target.startswith(("#", "data:image/", "data:text/")) for target in page.loads)
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


def test_oracles_stand_apart_and_are_never_best(html, page):
    assert page.text.count("Oracle – upper bound: prompted from the truth. Not a result.") > 20
    for body in re.findall(r"<tbody>.*?</tbody>", html, re.S):
        assert not re.search(r'<th scope="row" data-sort="sam-oracle_box', body)
    for body in re.findall(r'<tbody class="oracles">.*?</tbody>', html, re.S):
        assert '<span class="tag">oracle</span>' in body
        assert '"num best"' not in body
    assert "Oracle rows use the truth: sam-oracle_box." in page.text


def test_misses_of_a_single_model_are_told_too(study, tmp_path):
    def edit(table):
        single = table["member"].eq("single")
        return table[single & (table["evaluation"].eq("folds") | table["fold"].eq("0"))]

    edited = change(study, tmp_path, "summary", edit)
    data = read_data(**{**tables_of(study), **edited}, reference="transunet")
    told = caution(data.scores, data.summary, data.overlaps, [], [], {})
    lines = [line for item in told for line in item.details]
    assert "stu (trained elsewhere): transunet@all missed 1 of 12" in lines


def test_cautions_name_what_limits_the_numbers(study, page, tmp_path):
    text = " ".join(page.text.split())
    assert "Only 2 of 5 folds were run (fold 0, 1)" in text
    assert "busi: transunet missed 1 of 10" in text
    assert "stu (trained elsewhere): transunet@all missed 1 of 12" in text
    assert "– busbra: 5; busbra (hold-out): 1; busbra (trained elsewhere): 6; busi: 10;" in text
    assert "The check of busi gave 2 warnings." in text
    assert "busi (3).png has no mask" in text
    assert "busbra and busi: 1 equal pair of images" in text
    assert "are marked †: these rows are not zero-shot" in text
    assert "busi: sam-both, sam-oracle_box" in text and "stu: sam-both, sam-oracle_box" in text
    for absent in ("Synthetic", "Not all models were trained", "differs from its revision"):
        assert absent not in text
    assert "numbers are those of a single model" not in text
    provenance = {
        "git_revision": "9999999+changes",
        "config": {
            "datasets": {"busi": {"phantom": {"cases": 4}}},
            "splits": {"group": "auto", "protocol": "seed"},
        },
    }

    def edit(table):
        return table[~table["member"].isin(["mean", "vote"])].assign(selection="reported fold")

    edited = change(study, tmp_path, "scores", edit)
    other = Page(write_page(study, tmp_path, provenance=provenance, checks=[], **edited))
    assert "Synthetic images: busi." in other.text
    assert "Selected on the reported fold: grabcut-mask" in other.text
    assert "Folds were made by image (splits.protocol: seed)" in other.text
    assert "trained by the code of this report (revision 9999999+changes)" in other.text
    assert f"6 trained by {REVISION}" in other.text
    assert "differs from its revision (9999999+changes)" in other.text
    assert "numbers are those of a single model" in other.text
    assert "Folds were made by image" not in page.text
    assert "folds were run" not in other.text and "The check of" not in other.text


def test_nothing_that_saw_its_dataset_is_called_zero_shot(html):
    words = re.sub(r"<[^>]*>", " ", html[html.index("<body>") :])
    for found in re.finditer("zero-shot", words):
        assert words[: found.start()].rstrip().endswith("not")


def test_each_dataset_has_a_page_with_its_parts(study, page):
    assert page.views == ["overview", "busbra", "busi", "stu", "cross", "failures", "methods"]
    html = write_page(study, study["figures"].parent)
    parts = dict(
        re.findall(
            r'<section class="view" id="(\w+)".*?>(.*?)(?=<section class="view"|</main>)',
            html,
            re.S,
        )
    )
    titles = {name: re.findall(r"<h3>(.*?)</h3>", part) for name, part in parts.items()}
    common = ["Results", "How much of the oracle&#39;s lead is reached", "Threshold", "Calibration"]
    assert set(titles["stu"]) == {*common, "Cases", "The dataset"} - {common[1]} | {
        title for title in titles["stu"] if title.startswith("How much")
    }
    trained = {"Hold-out", "Tested by models of other training sets", "Point prompts", "Training"}
    assert trained <= set(titles["busi"]) and trained <= set(titles["busbra"])
    assert "12 cases of 12 groups" in parts["stu"]
    assert "10 cases of 10 groups; models of fold 0, 1" in parts["busi"]
    assert "1 images equal to some of busbra" in parts["busi"]
    assert "Calipers or text burned in</dt><dd>3 of 12" in parts["busi"]


def test_unequal_cases_are_told(study, tmp_path):
    def edit(table):
        return table.drop(table[table["method"].eq("sam-both")].index[3])

    html = write_page(study, tmp_path, **change(study, tmp_path, "scores", edit))
    assert "not scored on the same cases" in html


def test_every_picture_and_figure_has_a_caption(study, page):
    index = read_json(study["overlays"] / "index.json")
    images = [a for tag, a in page.tags if tag == "img"]
    assert len(images) == len(index["pictures"]) + len(index["failures"]) == 9 + 12
    for item in index["pictures"]:
        assert any(item["caption"] in image["alt"] for image in images)
        assert item["caption"] in page.captions
    for item in index["failures"]:
        assert any(item["caption"] == image["alt"] for image in images)
    figures = [a for tag, a in page.tags if tag == "svg" and a.get("role") == "img"]
    drawn = len(list(study["figures"].iterdir()))
    assert len(figures) == drawn == 23 and all(a["aria-label"] for a in figures)
    assert len(page.captions) == len(images) + len(figures)
    assert all(len(caption.strip()) > 20 for caption in page.captions)


def test_folds_and_subgroups_are_there(page):
    assert [cell[1] for cell in page.tables["folds_busi"][0]] == ["Method", "Fold 0", "Fold 1"]
    titles = [cell[1] for cell in page.tables["subgroups_busi_label"][0]]
    assert titles == ["Method", "benign", "malignant"]
    for name in ("overlay", "border", "look_alike", "elsewhere", "tertile"):
        assert len(page.tables[f"subgroups_busi_{name}"][0]) > 2
    assert "HD95 (share of the diagonal)" in [c[1] for c in page.tables["details_busi"][0]]


def test_methods_page_tells_what_made_the_numbers(study, page, tmp_path):
    text = re.sub(r"\s+", " ", page.text)
    assert f"git checkout {REVISION} " in text and "--configfile study.yaml" in text
    assert "run: main" in page.text and "gallery: 2" in page.text
    assert "study.yaml" in page.files
    assert "0ab" + "d" * 61 in page.text and "e" * 64 in page.text
    assert "dynunet at 192 × 224 px" in page.text and "Apache-2.0" in page.text
    assert text.count(REVISION[:12]) - text.count(REVISION) == 6, "a revision for each model"
    assert page.text.count("0.3719") == 6, "a threshold for each model"
    assert "benign: 8, malignant: 4" in page.text
    assert "5 outer folds (run: 0, 1), seed 123. Protocol: nested." in text
    assert "all = busbra, busi" in text
    assert "20 % of the groups of each dataset kept out of every fold" in text
    assert "busbra 2 cases, busi 2 cases" in text
    assert "bootstrap, 200 samples of whole groups" in text
    assert "Holm's correction over all comparisons of a metric in the study" in text
    assert "Prompts of sam-oracle_box are made from the truth" in text
    assert "† trained on the dataset: busi (sam-both, sam-oracle_box)" in text
    changed = study["provenance"] | {"git_revision": f"{REVISION}+changes"}
    other = Page(write_page(study, tmp_path, provenance=changed)).text
    assert f"git checkout {REVISION}\n" in other
    assert "the code had changes that this revision does not have" in other


def test_without_finetuned_refiners_nothing_is_said_of_them(page):
    text = re.sub(r"\s+", " ", page.text)
    for words in ("inetuned", "Simulated failures", "Val. Dice before", "inner model", "Dashed:"):
        assert words not in text
    assert "transunet (coarse): validation Dice" in text


def test_same_input_gives_the_same_page(study, html, tmp_path):
    assert write_page(study, tmp_path) == html


def test_a_study_without_refined_methods_has_a_report(study, tmp_path):
    def keep(table):
        return table[table["method"].eq("transunet") & table["evaluation"].eq("folds")]

    edits = {}
    for name in ("scores", "summary", "comparisons", "oracle_gap"):
        edits |= change(study, tmp_path, name, keep)
    tables = {name: edits[name] for name in edits} | {"reference": "transunet"}
    places = {name: tmp_path / name for name in ("figures", "overlays", "tables")}
    plot_scores(edits["scores"], edits["summary"], [], "transunet", places["figures"])
    write_tables(**tables, output=places["tables"])
    trained = [entry for entry in study["entries"] if entry["dataset"] != "stu"]
    draw_overlays(edits["scores"], trained, "transunet", 1, 0, places["overlays"])
    none = {"calibration": None, "overlaps": None, "points": None, "cards": []}
    page = Page(write_page(study, tmp_path, **places, **none, **edits))
    assert "no refined method without oracle prompts was compared" in page.text
    assert "Δ Dice" not in [cell[1] for row in page.tables["leading_busi"] for cell in row]
    assert page.views == ["overview", "busbra", "busi", "methods"]


@pytest.mark.parametrize(
    "name",
    [
        *("scores", "summary", "comparisons", "oracle_gap", "calibration", "overlaps", "points"),
        *("figures", "scatter", "overlays", "tables", "checks", "cards"),
    ],
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
        write_page(study, tmp_path, **changes)
    assert not (tmp_path / "report.html").exists()


def test_refuses_a_summary_that_lacks_a_method(study, tmp_path):
    edited = change(study, tmp_path, "summary", lambda t: t[t["method"].ne("sam-both")])
    with pytest.raises(UltraRefinerError, match="no Dice of sam-both on busbra"):
        write_page(study, tmp_path, **edited)


def test_a_large_gallery_is_made_smaller_and_says_so(study, page, tmp_path):
    index = read_json(study["overlays"] / "index.json")
    shutil.copytree(study["overlays"], tmp_path / "overlays")
    many = {"pictures": index["pictures"] * 12, "failures": index["failures"] * 12}
    write_json(tmp_path / "overlays/index.json", many)
    html = write_page(study, tmp_path, overlays=tmp_path / "overlays")
    assert html.count("<img ") == 12 * 9 + 12 * 12
    pictures = sum(map(len, re.findall(r'src="data:image/jpeg[^"]*"', html)))
    assert pictures < 6_000_000
    assert "pictures are at most" in html and "pictures are at most" not in page.text


def test_more_failures_than_fit_are_counted(study, tmp_path):
    index = read_json(study["overlays"] / "index.json")
    shutil.copytree(study["overlays"], tmp_path / "overlays")
    failures = [dict(item) for item in index["failures"] for _ in range(40)]
    write_json(tmp_path / "overlays/index.json", index | {"failures": failures})
    html = write_page(study, tmp_path, overlays=tmp_path / "overlays")
    told = re.search(r"(\d+) of 480 are here", html)
    assert told and int(told[1]) == html.count("<li data-dataset")
    # Each dataset has its turn, so none crowds out the others.
    shown = [html.count(f'<li data-dataset="{name}"') for name in ("busi", "busbra", "stu")]
    assert max(shown) - min(shown) <= 1 and min(shown) > 20


def test_one_failure_without_a_lesion_is_one_case_without_dice(study, tmp_path):
    shutil.copytree(study["overlays"], tmp_path / "overlays")
    index = read_json(study["overlays"] / "index.json")
    item = dict(index["failures"][0], label="unknown")
    item["scores"] = {k: v | {"dice": None, "hd95": None} for k, v in item["scores"].items()}
    write_json(tmp_path / "overlays/index.json", index | {"failures": [item]})
    html = write_page(study, tmp_path, overlays=tmp_path / "overlays")
    assert 'aria-live="polite">1 case</p>' in html
    assert '<span class="dice">–</span> <span class="delta"></span>' in html
    assert "class unknown, " in html


def test_a_dataset_may_be_called_like_a_page():
    assert anchor("failures") == "dataset-failures" and anchor("busi") == "busi"


@pytest.mark.parametrize("count", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_a_study_of_few_cases_has_a_report_that_says_so(tmp_path, count):
    study = make_study(tmp_path, datasets=("busi",), count=count)
    text = Page(write_page(study, tmp_path)).text
    assert f"Few independent groups (patients or duplicate clusters) – busi: {count}." in text
    assert "did not clearly change mean Dice on busi" in text
    assert "there are too few cases for a test" in text
    assert not re.search(r"\bnan\b", text, re.IGNORECASE)


def test_a_dataset_without_any_lesion_has_its_specificity_alone(tmp_path):
    def cases(rng, count, shape, turns=iter((False, True))):  # noqa: B008 - one pair of datasets
        healthy = next(turns)
        for number, (label, image, truth, masks) in enumerate(make_cases(rng, count, shape)):
            if healthy:
                label, truth = "normal", truth & False
                masks = {name: mask & (number == 1) for name, mask in masks.items()}
            yield label, image, truth, masks

    study = make_study(tmp_path, datasets=("busi", "stu"), count=4, cases=cases)
    page = Page(write_page(study, tmp_path))
    assert "No image of stu has a lesion, so there is no Dice: see the specificity." in page.text
    row = next(r for r in page.records("leading_stu") if r["Method"][0] == "transunet@busi")
    assert (row["n"][1].strip(), row["False alarms"][1].strip()) == ("0", "1")
    assert row["Specificity"][1].split()[0] == "0.750"
    assert "stu (trained elsewhere): transunet@busi in 1 image" in page.text
    assert not re.search(r"\bnan\b", page.text, re.IGNORECASE)
