"""Guards: the page of zero-shot results shows what was measured, and says what it is."""

import re

import pytest
from page_reader import Page, numbers
from report_page import tables_of, write_page
from zero_shot_tables import case_table

from ultrarefiner.evaluation.zero_shot import summarise_zero_shot
from ultrarefiner.io import read_rows
from ultrarefiner.report.export import write_tables

FAMILIES = {
    "transunet": "transunet",
    "transunet-tuned": "transunet-tuned",
    "grabcut-mask": "grabcut-mask",
    "sam-both": "sam-both",
    "sam-oracle_box": "sam-oracle_box",
}
MODALITIES = {"busbra": "ultrasound", "busi": "ct", "stu": "ultrasound"}


def image_of(case):
    """Return the image of a case: the two of a patient of busbra are masks of one."""
    head, _, number = case.rpartition("_")
    return f"{int(number) // 2}.png" if head.startswith("busbra") else f"{case}.png"


@pytest.fixture(scope="module")
def shown(report_study, tmp_path_factory):
    """Return the zero-shot table of the small study, its page, and the folder of its tables."""
    folder = tmp_path_factory.mktemp("zero_shot")
    cases = {row["case"]: row["dataset"] for row in read_rows(report_study["scores"])}
    datasets = [
        {
            "dataset": dataset,
            "modality": modality,
            "cases": case_table(
                folder, dataset, {case: image_of(case) for case in cases if cases[case] == dataset}
            ),
        }
        for dataset, modality in MODALITIES.items()
    ]
    table = folder / "zero_shot.csv"
    summarise_zero_shot(report_study["scores"], datasets, FAMILIES, table, bootstrap=200)
    write_tables(
        **tables_of(report_study),
        reference="transunet",
        zero_shot=[table],
        output=folder / "tables",
    )
    html = write_page(report_study, folder, zero_shot=[table], tables=folder / "tables")
    return read_rows(table), html, folder


@pytest.fixture(scope="module")
def page(shown):
    return Page(shown[1])


def text_of(html):
    """Return the words of the page's zero-shot part."""
    part = re.search(r'<section class="view" id="zero-shot".*?</section>', html, re.S)[0]
    return " ".join(re.sub("<[^>]+>", " ", part).split())


def test_each_dataset_has_its_table_below_its_modality(shown, page):
    names = {name for name in page.tables if name and "zero_shot" in name}
    assert names == {*(f"zero_shot_{name}" for name in MODALITIES), "all_zero_shot_ultrasound"}
    assert names <= {path.stem for path in (shown[2] / "tables").glob("*.csv")}
    headings = re.findall(r"<h([34])>(.*?)</h", shown[1].partition('id="zero-shot"')[2])[:6]
    assert headings == [
        *(("3", "CT"), ("4", "Zero-shot on busi"), ("3", "Ultrasound")),
        *(("4", f"Zero-shot on {name}") for name in ("busbra", "stu")),
        ("4", "Zero-shot over datasets: Ultrasound"),
    ]
    assert '<a href="#zero-shot">Zero-shot</a>' in shown[1]


def test_the_numbers_are_those_of_the_table(shown, page):
    wanted = [row for row in shown[0] if row["dataset"] == "busbra"]
    found = page.records("zero_shot_busbra")
    assert {row["unit"] for row in wanted} == {"mask", "image"}
    assert len(found) == len(wanted) > 8
    told = {(row["Method"][0].split()[0], row["Per"][1].strip()): row for row in found}
    for row in wanted:
        mine = told[row["method"], row["unit"]]
        assert numbers(mine["n"][1])[0] == float(row["n"])
        assert numbers(mine["Images"][1])[0] == float(row["images"])
        for column, metric, digits in (("Dice", "dice", 3), ("HD95 (px)", "hd95_px", 1)):
            ends = [float(row[f"{metric}_{end}"]) for end in ("mean", "low", "high")]
            assert numbers(mine[column][1]) == pytest.approx(ends, abs=0.51 * 10**-digits)


def test_units_are_explained_and_not_doubled(shown, page):
    captions = {name: caption(shown[1], name) for name in page.tables if name}
    assert "Per image: the mean over the masks of an image first" in captions["zero_shot_busbra"]
    for name in ("zero_shot_busi", "zero_shot_stu"):
        assert "Each image has one mask here" in captions[name]
        assert not {"Per", "Images"} & set(page.records(name)[0])
    joint = page.records("all_zero_shot_ultrasound")
    assert {row["Datasets"][1].strip() for row in joint} == {"busbra, stu"}
    assert {row["Over"][1].strip() for row in joint} == {"masks", "datasets' means"}
    assert {row["Per"][1].strip() for row in joint} == {"mask", "image"}
    assert "each dataset counts once" in captions["all_zero_shot_ultrasound"]


def caption(html, name):
    return (
        html.partition(f'data-table="{name}"')[2].partition('<p class="note">')[2].split("</p>")[0]
    )


def test_what_saw_the_dataset_is_named_and_not_shown(shown, page):
    assert all("sam" not in row["Method"][0] for row in page.records("zero_shot_busi"))
    told = text_of(shown[1])
    assert "Left out, because published weights were trained on the dataset" in told
    assert re.search(r"sam-both@busbra, sam-oracle_box@busbra on busi\.", told)
    assert re.search(r"‡: nobody says what these weights were trained on", told)


def test_oracles_stand_apart_and_say_so(shown, page):
    rows = page.records("zero_shot_stu")
    oracle = ["oracle" in row["Method"][0] for row in rows]
    assert any(oracle) and oracle == sorted(oracle)
    assert "Oracle: the prompt is made from the truth" in text_of(shown[1])


def test_a_page_without_the_table_has_no_such_part(report_page_html):
    assert 'id="zero-shot"' not in report_page_html
    assert "#zero-shot" not in report_page_html
