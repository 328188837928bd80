"""Guards the figures: all drawn, the same bytes each time, oracles marked, bad input refused."""

import re

import pandas as pd
import pytest
from report_page import DRAWN, tables_of

from ultrarefiner.errors import UltraRefinerError
from ultrarefiner.report.figures import plot_scores
from ultrarefiner.report.tables import (
    fixed,
    leading_method,
    main_rows,
    p_value,
    read_scores,
    signed,
)


@pytest.fixture(scope="module")
def study(report_study):
    return report_study


@pytest.fixture(scope="module")
def figures(study):
    return study["figures"]


def draw(study, output, **changes):
    plot_scores(
        **tables_of(study, *DRAWN) | changes.pop("tables", {}),
        **{"histories": study["histories"], "reference": "transunet", "output": output}
        | {"point_tables": study["point_tables"]}
        | changes,
    )


def scores_of(study, folder, keep=lambda table: table):
    """Write a changed copy of the scores; return it as a table of the study, points left out."""
    table = pd.read_csv(study["scores"], dtype=str, keep_default_na=False)
    keep(table).to_csv(folder / "scores.csv", index=False)
    return {"scores": folder / "scores.csv", "points": None}


def texts(path):
    return re.findall(r"<text[^>]*>([^<]*)</text>", path.read_text())


def dots(path, colour):
    """Return the number of drawn markers of a colour."""
    pattern = rf'<use [^>]*style="fill: {colour}'
    return len(re.findall(pattern, path.read_text()))


def test_draws_every_figure_of_every_dataset(figures):
    both, every = ("busi", "busbra"), ("busi", "busbra", "stu")
    expected = {f"{kind}_{name}.svg" for kind in ("boxplot", "reliability") for name in every}
    expected |= {f"curves_{name}.svg" for name in (*both, "all")}
    expected |= {f"scatter_{name}{at}.svg" for name in both for at in ("", "@all")}
    expected |= {f"scatter_stu@{at}.svg" for at in (*both, "all")}
    expected |= {f"points_{kind}_{name}.svg" for kind in ("curve", "distance") for name in both}
    expected |= {f"cross_{name}.svg" for name in ("transunet", "sam-both", "grabcut-mask")}
    assert {path.name for path in figures.iterdir()} == expected


def test_weights_that_saw_the_dataset_are_marked_in_every_figure(figures):
    for name, mark in (("busi", " †"), ("stu", " ‡"), ("busbra", "")):
        at = "@busi" if name == "stu" else ""
        assert f"sam-both{at}{mark}" in texts(figures / f"boxplot_{name}.svg")
        assert f"sam-both{at}{mark}" in texts(figures / f"scatter_{name}{at}.svg")
    cells = [text for text in texts(figures / "cross_sam-both.svg") if re.match(r"0\.\d", text)]
    # Three training sets on three datasets; those on busi saw it, of those on stu it is not known.
    assert len(cells) == 9
    assert sum("†" in text for text in cells) == 3 and sum("‡" in text for text in cells) == 3
    assert sum("§" in text for text in cells) == 2, "busi and busbra share an image"


def test_matrix_has_the_numbers_of_the_summary(study, figures):
    summary = pd.read_csv(study["summary"], dtype=str)
    rows = summary[
        summary["subgroup"].eq("all") & summary["fold"].eq("all") & summary["metric"].eq("dice")
    ].set_index(["dataset", "evaluation", "member", "method"])["mean"]
    cells = texts(figures / "cross_transunet.svg")
    shown = [text.split()[0] for text in cells if re.fullmatch(r"0\.\d{3}( §)?", text)]
    order = [("busbra", "busbra"), ("busbra", "busi"), ("busbra", "stu")]
    order += [("busi", "busbra"), ("busi", "busi"), ("busi", "stu")]
    order += [("all", "busbra"), ("all", "busi"), ("all", "stu")]
    expected = []
    for trained, tested in order:
        name = "transunet" if trained == tested else f"transunet@{trained}"
        own = trained == tested or (trained == "all" and tested != "stu")
        key = (tested, "folds", "single", name) if own else (tested, "unseen", "mean", name)
        expected.append(fixed(float(rows[key])))
    assert shown == expected
    assert sum(text.startswith("single ") for text in cells) == 5


def test_reliability_curve_tells_the_error_of_the_table(study, figures):
    table = pd.read_csv(study["calibration"])
    for name in ("busi", "stu"):
        error = table.loc[table["dataset"].eq(name), "ece"].iloc[0]
        legend = " ".join(texts(figures / f"reliability_{name}.svg"))
        assert f"ECE {error:.4f}" in legend


def test_oracles_are_marked_in_boxes_and_absent_from_scatters(figures):
    labels = texts(figures / "boxplot_busi.svg")
    oracle = "sam-oracle_box † (oracle – upper bound)"
    assert labels.index("transunet") < labels.index("grabcut-mask")
    assert labels.index("sam-both †") < labels.index(oracle)
    scatter = texts(figures / "scatter_busi.svg")
    assert "sam-both †" in scatter
    assert not [text for text in scatter if "oracle" in text]


def test_scatter_has_a_point_for_each_case_and_counts_them(study, figures):
    scores = read_scores(study["scores"], "transunet")
    rows = main_rows(scores, "busi")
    busi = rows.pivot(index="case", columns="method", values="dice")
    better = int((busi["sam-both"] > busi["transunet"]).sum())
    assert 0 < better < 10
    assert f"better: {better}" in texts(figures / "scatter_busi.svg")
    # Two panels with ten cases, and a legend entry for each of the two labels.
    blue = dots(figures / "scatter_busi.svg", "#0072b2")
    orange = dots(figures / "scatter_busi.svg", "#d55e00")
    assert blue + orange == 2 * 10 + 2


def test_a_class_may_have_any_name(study, tmp_path):
    def rename(table):
        return table[table["evaluation"].eq("folds")].replace({"label": {"benign": r"$\frac$ _1^"}})

    draw(study, tmp_path / "figures", tables=scores_of(study, tmp_path, rename), histories=[])
    assert r"$\frac$ _1^" in texts(tmp_path / "figures" / "scatter_busi.svg")


def test_curves_name_model_and_folds_and_star_the_best_epoch(figures):
    labels = texts(figures / "curves_busi.svg")
    assert "transunet (coarse): validation Dice (star: epoch kept)" in labels
    assert {"fold 0", "fold 1"} <= set(labels)


def test_same_input_gives_the_same_bytes_whatever_the_row_order(study, figures, tmp_path):
    tables = {}
    for name in ("scores", "summary", "calibration", "overlaps"):
        table = pd.read_csv(study[name], dtype=str, keep_default_na=False)
        table.sample(frac=1.0, random_state=3).to_csv(tmp_path / f"{name}.csv", index=False)
        tables[name] = tmp_path / f"{name}.csv"
    draw(study, tmp_path / "again", tables=tables, histories=study["histories"][::-1])
    for path in figures.iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes(), path.name


def test_without_refined_methods_and_histories_only_boxes_are_drawn(study, tmp_path):
    stale = tmp_path / "figures" / "scatter_busi.svg"
    stale.parent.mkdir()
    stale.write_text("of an earlier run")
    tables = scores_of(
        study,
        tmp_path,
        lambda t: t[t["method"].eq("transunet") & t["evaluation"].eq("folds")],
    )
    draw(study, tmp_path / "figures", tables=tables | {"calibration": None}, histories=[])
    names = {path.name for path in (tmp_path / "figures").iterdir()}
    assert names == {"boxplot_busi.svg", "boxplot_busbra.svg"}


def test_many_points_become_pixels(study, tmp_path):
    def copy(table):
        table = table[table["evaluation"].eq("folds") & ~table["method"].str.contains("@")]
        return pd.concat([table.assign(case=table["case"] + f"_{i}") for i in range(60)])

    draw(study, tmp_path / "figures", tables=scores_of(study, tmp_path, copy), histories=[])
    box = tmp_path / "figures" / "boxplot_busi.svg"
    assert "data:image/png;base64" in box.read_text()
    assert box.stat().st_size < 600_000


def test_the_lead_never_goes_to_an_oracle(study):
    scores = read_scores(study["scores"], "transunet")
    rows = main_rows(scores, "stu")
    means = rows.groupby("method")["dice"].mean()
    oracles = [name for name in means.index if name.startswith("sam-oracle_box")]
    assert means.idxmax() in oracles
    assert leading_method(rows, "transunet") == means.drop(oracles).idxmax()
    coarse = rows[rows["method"].str.startswith("transunet@")]
    assert leading_method(coarse, "transunet") == "transunet@all"


def test_weights_that_saw_the_dataset_lead_only_where_all_did(study):
    rows = main_rows(read_scores(study["scores"], "transunet"), "busi")
    rows = rows[rows["method"].map(lambda name: "@" not in name)]
    means = rows[rows["kind"].eq("refined")].groupby("method")["dice"].mean()
    assert means.idxmax() == "sam-both" and set(means.index) == {"sam-both", "grabcut-mask"}
    assert leading_method(rows, "transunet") == "grabcut-mask"
    assert leading_method(rows[rows["method"].ne("grabcut-mask")], "transunet") == "sam-both"


def test_ensemble_mean_or_the_first_model_stands_for_a_method(study):
    scores = read_scores(study["scores"], "transunet")
    assert set(main_rows(scores, "stu")["member"]) == {"mean"}
    single = main_rows(scores[scores["member"].eq("single")], "stu")
    assert set(single["fold"]) == {0}
    assert not single.duplicated(["method", "case"]).any()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda table: table.drop(columns="dice"), "lacks the column.*dice"),
        (lambda table: table.iloc[:0], "no rows"),
        (lambda table: table.assign(oracle="maybe"), "oracle is 'maybe'"),
        (lambda table: table.assign(dice="high"), "dice is 'high', not a number"),
        (lambda table: pd.concat([table, table.iloc[:1]]), "scored twice"),
        (
            lambda table: table[~table["method"].str.match("transunet(@|$)")],
            "reference method 'transunet'",
        ),
        (lambda table: table.assign(fold=""), "a single model has no fold"),
    ],
)
def test_refuses_a_wrong_table_by_name(study, tmp_path, change, words):
    with pytest.raises(UltraRefinerError, match=words) as error:
        draw(study, tmp_path / "figures", tables=scores_of(study, tmp_path, change))
    assert "scores.csv" in str(error.value)
    assert not (tmp_path / "figures").exists()


def test_refuses_a_missing_history(study, tmp_path):
    absent = [{**study["histories"][0], "path": tmp_path / "history.csv"}]
    with pytest.raises(UltraRefinerError, match=r"history\.csv is missing; run .*train_coarse"):
        draw(study, tmp_path / "figures", histories=absent)


def test_numbers_are_written_for_readers():
    assert fixed(0.98765) == "0.988"
    assert fixed(-0.0004) == "0.000"
    assert fixed(float("nan")) == "–"
    assert signed(0.0341) == "+0.034"
    assert signed(-0.0341) == "−0.034"
    assert signed(0.0) == "0.000"
    assert [p_value(p) for p in (0.0004, 0.012, float("nan"))] == ["< 0.001", "0.012", "–"]
