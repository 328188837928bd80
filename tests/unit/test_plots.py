"""Guards the figures: all drawn, the same bytes each time, oracles marked, bad input refused."""

import re

import pandas as pd
import pytest
from report_inputs import write_study

from ultrarefiner.errors import UltraRefinerError
from ultrarefiner.report.plots import plot_scores
from ultrarefiner.report.tables import fixed, leading_method, p_value, read_scores, signed


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return write_study(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="module")
def figures(study, tmp_path_factory):
    folder = tmp_path_factory.mktemp("out") / "figures"
    plot_scores(study["scores"], study["histories"], "transunet", folder)
    return folder


def texts(path):
    return re.findall(r"<text[^>]*>([^<]*)</text>", path.read_text())


def dots(path, colour):
    """Return the number of drawn markers of a colour."""
    pattern = rf'<use [^>]*style="fill: {colour}'
    return len(re.findall(pattern, path.read_text()))


def test_draws_every_figure_of_every_dataset(figures):
    kinds, names = ("boxplot", "scatter", "curves"), ("busi", "busbra")
    expected = {f"{kind}_{name}.svg" for kind in kinds for name in names}
    assert {path.name for path in figures.iterdir()} == expected


def test_oracles_are_marked_in_boxes_and_absent_from_scatters(figures):
    labels = texts(figures / "boxplot_busi.svg")
    assert "sam-oracle_box (oracle – upper bound)" in labels
    assert labels.index("transunet") < labels.index("grabcut-mask")
    assert labels.index("sam-both") < labels.index("sam-oracle_box (oracle – upper bound)")
    scatter = texts(figures / "scatter_busi.svg")
    assert "sam-both" in scatter
    assert not [text for text in scatter if "oracle" in text]


def test_scatter_has_a_point_for_each_case_and_counts_them(study, figures):
    scores = read_scores(study["scores"], "transunet")
    busi = scores[scores["dataset"].eq("busi")].pivot(index="case", columns="method", values="dice")
    better = int((busi["sam-both"] > busi["transunet"]).sum())
    assert 0 < better < 12
    assert f"better: {better}" in texts(figures / "scatter_busi.svg")
    # Two panels with twelve cases, and a legend entry for each of the two labels.
    blue = dots(figures / "scatter_busi.svg", "#0072b2")
    orange = dots(figures / "scatter_busi.svg", "#d55e00")
    assert blue + orange == 2 * 12 + 2


def test_curves_name_model_and_folds_and_star_the_best_epoch(figures):
    labels = texts(figures / "curves_busi.svg")
    assert "transunet: validation Dice (star: epoch kept)" in labels
    assert {"fold 0", "fold 1"} <= set(labels)


def test_same_input_gives_the_same_bytes_whatever_the_row_order(study, figures, tmp_path):
    shuffled = pd.read_csv(study["scores"], dtype=str, keep_default_na=False)
    shuffled.sample(frac=1.0, random_state=3).to_csv(tmp_path / "scores.csv", index=False)
    plot_scores(tmp_path / "scores.csv", study["histories"][::-1], "transunet", tmp_path / "again")
    for path in figures.iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes()


def test_without_refined_methods_and_histories_only_boxes_are_drawn(study, tmp_path):
    table = pd.read_csv(study["scores"], dtype=str, keep_default_na=False)
    table[table["method"].eq("transunet")].to_csv(tmp_path / "scores.csv", index=False)
    stale = tmp_path / "figures" / "scatter_busi.svg"
    stale.parent.mkdir()
    stale.write_text("of an earlier run")
    plot_scores(tmp_path / "scores.csv", [], "transunet", tmp_path / "figures")
    names = {path.name for path in (tmp_path / "figures").iterdir()}
    assert names == {"boxplot_busi.svg", "boxplot_busbra.svg"}


def test_many_points_become_pixels(study, tmp_path):
    table = pd.read_csv(study["scores"], dtype=str, keep_default_na=False)
    copies = [table.assign(case=table["case"] + f"_{i}") for i in range(60)]
    pd.concat(copies).to_csv(tmp_path / "scores.csv", index=False)
    plot_scores(tmp_path / "scores.csv", [], "transunet", tmp_path / "figures")
    box = tmp_path / "figures" / "boxplot_busi.svg"
    assert "data:image/png;base64" in box.read_text()
    assert box.stat().st_size < 600_000


def test_the_lead_never_goes_to_an_oracle(study):
    scores = read_scores(study["scores"], "transunet")
    means = scores[scores["dataset"].eq("busi")].groupby("method")["dice"].mean()
    assert means.idxmax() == "sam-oracle_box"
    assert leading_method(scores, "busi", "transunet") == means.drop("sam-oracle_box").idxmax()
    coarse = scores[scores["method"].eq("transunet")]
    assert leading_method(coarse, "busi", "transunet") == "transunet"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda table: table.drop(columns="dice"), "lacks the column.*dice"),
        (lambda table: table.iloc[:0], "no rows"),
        (lambda table: table.assign(oracle="maybe"), "oracle is 'maybe'"),
        (lambda table: table.assign(dice="high"), "dice is 'high', not a number"),
        (lambda table: pd.concat([table, table.iloc[:1]]), "scored twice"),
        (lambda table: table[table["method"].ne("transunet")], "reference method 'transunet'"),
    ],
)
def test_refuses_a_wrong_table_by_name(study, tmp_path, change, words):
    table = pd.read_csv(study["scores"], dtype=str, keep_default_na=False)
    change(table).to_csv(tmp_path / "scores.csv", index=False)
    with pytest.raises(UltraRefinerError, match=words) as error:
        plot_scores(tmp_path / "scores.csv", [], "transunet", tmp_path / "figures")
    assert "scores.csv" in str(error.value)
    assert not (tmp_path / "figures").exists()


def test_refuses_a_missing_history(study, tmp_path):
    absent = [{**study["histories"][0], "path": tmp_path / "history.csv"}]
    with pytest.raises(UltraRefinerError, match=r"history\.csv is missing; run .*train_coarse"):
        plot_scores(study["scores"], absent, "transunet", tmp_path / "figures")


def test_numbers_are_written_for_readers():
    assert fixed(0.98765) == "0.988"
    assert fixed(-0.0004) == "0.000"
    assert fixed(float("nan")) == "–"
    assert signed(0.0341) == "+0.034"
    assert signed(-0.0341) == "−0.034"
    assert signed(0.0) == "0.000"
    assert [p_value(p) for p in (0.0004, 0.012, float("nan"))] == ["< 0.001", "0.012", "–"]
