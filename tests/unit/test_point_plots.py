"""Figures of points show the tables' numbers, mark what used the truth, and never change by chance."""

import re
from xml.etree import ElementTree

import pytest
from point_tables import SIGMAS, point_rows, write_points, write_study

from ultrarefiner.errors import UltraRefinerError
from ultrarefiner.evaluation.points import read_point_summary, summarise_points
from ultrarefiner.report.point_plots import describe_points, plot_points
from ultrarefiner.report.tables import fixed


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    tables = write_study(folder)
    summarise_points(tables, folder / "points.csv", bootstrap=300)
    plot_points(tables, folder / "points.csv", folder / "figures")
    return {"folder": folder, "tables": tables, "lines": read_point_summary(folder / "points.csv")}


def texts(path):
    tree = ElementTree.parse(path)
    return [element.text for element in tree.iter("{http://www.w3.org/2000/svg}text")]


def markers(path, colour):
    return len(re.findall(rf'<use [^>]*style="fill: {colour}', path.read_text()))


def test_every_dataset_has_both_figures_as_valid_svg(study):
    files = sorted((study["folder"] / "figures").iterdir())
    assert [path.name for path in files] == [
        f"points_{kind}_{dataset}.svg"
        for kind in ("curve", "distance")
        for dataset in ("busi", "stu")
    ]
    for path in files:
        assert ElementTree.parse(path).getroot().tag == "{http://www.w3.org/2000/svg}svg"


def test_the_curve_shows_the_numbers_and_marks_the_oracle(study):
    for dataset in ("busi", "stu"):
        shown = texts(study["folder"] / f"figures/points_curve_{dataset}.svg")
        mine = [line for line in study["lines"] if line["dataset"] == dataset]
        assert len(mine) == 2 * (2 + len(SIGMAS))
        for line in mine:
            number = fixed(line["dice_mean"])
            assert (f"coarse point: {number}" if line["source"] == "coarse" else number) in shown
        assert [text for text in shown if "oracle – upper bound" in text]
        assert "sam" in shown
        assert ("ultrasam †" if dataset == "busi" else "ultrasam ‡") in shown
        assert ("† trained on this dataset" in shown) is (dataset == "busi")
        unknown = "‡ not known whether trained on this dataset"
        assert (unknown in shown) is (dataset == "stu")


def test_the_scatter_has_every_case_and_counts_the_misses(study):
    figure = study["folder"] / "figures/points_distance_busi.svg"
    shown = texts(figure)
    # Two panels of 5 cases inside and 6 outside, and the entries of the legend.
    assert markers(figure, "#0072b2") == 2 * 5 + 1
    assert markers(figure, "#d55e00") == 2 * 6 + 1
    line = study["lines"][0]
    ends = [f"{fixed(100 * line[f'inside_{end}'], 1)} %" for end in ("low", "high")]
    assert f"inside: 41.7 % [{ends[0]}, {ends[1]}]" in shown
    assert "no coarse mask: 1 of 12" in shown
    assert "no coarse mask: Dice 0" in shown
    assert [text for text in shown if text.startswith("rank correlation: −0.")]
    whole = texts(study["folder"] / "figures/points_distance_stu.svg")
    assert not [text for text in whole if "no coarse mask" in text]


def test_same_tables_give_the_same_bytes(study, tmp_path):
    (tmp_path / "kept.svg").write_text("another figure")
    plot_points(study["tables"][::-1], study["folder"] / "points.csv", tmp_path)
    assert (tmp_path / "kept.svg").read_text() == "another figure"
    for path in (study["folder"] / "figures").iterdir():
        assert (tmp_path / path.name).read_bytes() == path.read_bytes()


def test_the_words_for_readers_who_cannot_see_it_have_the_numbers(study):
    curve = describe_points(study["lines"], "busi")
    assert "on busi. sam: coarse point " in curve and "truth's point (oracle) " in curve
    assert "ultrasam †" in curve
    for line in study["lines"]:
        assert (fixed(line["dice_mean"]) in curve) or line["dataset"] == "stu"
    distance = describe_points(study["lines"], "busi", "distance")
    assert "inside: 41.7 %" in distance and "no coarse mask: 1 of 12" in distance


def test_one_refiner_of_one_group_is_drawn_without_bands(tmp_path):
    rows = [row | {"group": "one"} for row in point_rows(miss=())]
    table = write_points(tmp_path / "fold0.csv", rows)
    summarise_points([table], tmp_path / "points.csv", bootstrap=300)
    plot_points([table], tmp_path / "points.csv", tmp_path)
    assert "fill-opacity: 0.18" not in (tmp_path / "points_curve_busi.svg").read_text()
    shown = texts(tmp_path / "points_distance_busi.svg")
    assert "inside: 50.0 %" in shown


def test_a_summary_of_other_tables_is_refused(study, tmp_path):
    with pytest.raises(UltraRefinerError, match=r"counts 12 coarse points of sam on busi.* have 6"):
        plot_points(study["tables"][1:], study["folder"] / "points.csv", tmp_path)


def test_a_coarse_model_that_finds_nothing_is_drawn_too(tmp_path):
    table = write_points(tmp_path / "fold0.csv", point_rows(miss=range(12)))
    summarise_points([table], tmp_path / "points.csv", bootstrap=300)
    plot_points([table], tmp_path / "points.csv", tmp_path)
    assert "coarse point: 0.000" in texts(tmp_path / "points_curve_busi.svg")
    shown = texts(tmp_path / "points_distance_busi.svg")
    assert "no coarse mask: 6 of 6" in shown
    assert not [text for text in shown if "rank correlation" in text]
