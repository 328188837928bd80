"""Guards: subgroups share out the cases, and images without a lesion are specificity alone."""

import numpy as np
import pytest
from score_tables import column, edit, make_tables, pick, summarise

from ultrarefiner.evaluation.metrics import METRICS
from ultrarefiner.evaluation.subgroups import size_of
from ultrarefiner.io import write_rows

OVERLAPS = ["case", "dataset", "other_case", "other_dataset", "kind"]


def counts(summary, metric="dice", method="transunet", **cells):
    lines = [row for row in summary if (row["method"], row["metric"]) == (method, metric)]
    lines = [row for row in lines if all(row[key] == cell for key, cell in cells.items())]
    return {row["subgroup"]: int(row["n"]) for row in lines if row["fold"] == "all"}


def test_subgroups_share_out_the_cases(tmp_path):
    scores, summary = summarise(tmp_path, make_tables(tmp_path))
    found = counts(summary)
    assert found["label=benign"] == 8
    assert found["label=malignant"] == 4
    sizes = [size_of(float(row["area_share"])) for row in scores if row["method"] == "transunet"]
    assert {f"size={size}": sizes.count(size) for size in set(sizes)} == {
        name: count for name, count in found.items() if name.startswith("size")
    }
    assert len(set(sizes)) == 3
    assert [found[f"overlay={word}"] for word in ("yes", "no")] == [6, 6]
    assert [found[f"border={word}"] for word in ("yes", "no")] == [3, 9]
    assert [found[f"look_alike={word}"] for word in ("yes", "no")] == [2, 10]
    # All are alike in these: no spacing is known, nothing is known of other datasets.
    assert not {name for name in found if name.split("=")[0] in ("spacing", "elsewhere")}
    line = pick(summary, method="grabcut-mask", subgroup="border=yes", metric="iou")
    values = column([row for row in scores if row["border"] == "yes"], "iou", method="grabcut-mask")
    assert float(line["mean"]) == pytest.approx(values.mean())


@pytest.mark.parametrize(
    ("share", "size"),
    [(0.0, "small"), (0.0499, "small"), (0.05, "medium"), (0.1499, "medium"), (0.15, "large")],
)
def test_size_cut_offs(share, size):
    assert size_of(share) == size


def test_tertiles_are_of_the_lesions_of_each_dataset(tmp_path):
    tables = make_tables(tmp_path, "first", cases=9) + make_tables(tmp_path, "second", cases=12)
    for table in tables:
        # The lesions of the second dataset are all larger than those of the first.
        if table.parents[1].name == "second":
            edit(table, lambda row: {"area_share": repr(0.5 + float(row["area_share"]))})
    scores, summary = summarise(tmp_path, tables)
    tertiles = [f"tertile={number}" for number in (1, 2, 3)]
    for dataset, each in (("first", 3), ("second", 4), ("pooled", 7)):
        found = counts(summary, dataset=dataset)
        assert [found[name] for name in tertiles] == [each] * 3
    smallest = pick(
        summary, dataset="first", method="transunet", subgroup="tertile=1", metric="dice"
    )
    rows = [row for row in scores if row["case"] in [f"first__0{i}" for i in range(3)]]
    expected = column(rows, "dice", method="transunet").mean()
    assert float(smallest["mean"]) == pytest.approx(expected)


def test_equal_lesions_are_of_one_tertile(tmp_path):
    tables = make_tables(tmp_path, cases=9)
    for table in tables:
        edit(table, lambda row: {"area_share": "0.1" if row["case"] < "toy__07" else "0.2"})
    found = counts(summarise(tmp_path, tables)[1])
    assert (found["tertile=1"], found["tertile=3"]) == (7, 2)
    assert "tertile=2" not in found


def test_images_without_a_lesion_are_specificity_alone(tmp_path):
    scores, summary = summarise(tmp_path, make_tables(tmp_path, empty=(4, 7, 8)))
    lesions = [row for row in scores if row["empty_truth"] == "false"]
    for method, alarms in (("transunet", 3), ("grabcut-mask", 0)):
        where = {"method": method, "subgroup": "all", "fold": "all"}
        line = pick(summary, **where, metric="specificity")
        assert (line["n"], float(line["mean"])) == ("3", 1 - alarms / 3)
        for metric in set(METRICS) - {"hd95_mm"}:
            line = pick(summary, **where, metric=metric)
            assert (line["n"], line["false_positives"]) == ("9", str(alarms))
            expected = column(lesions, metric, method=method).mean()
            assert float(line["mean"]) == pytest.approx(expected)
    assert counts(summary, "specificity")["label=benign"] == 3 - sum(i % 3 == 0 for i in (4, 7, 8))
    for dimension in ("size", "tertile"):
        parts = {name: n for name, n in counts(summary).items() if name.startswith(dimension)}
        assert sum(parts.values()) == 9
        assert not [name for name in counts(summary, "specificity") if dimension in name]


def test_specificity_has_no_line_where_every_image_has_a_lesion(tmp_path):
    _, summary = summarise(tmp_path, make_tables(tmp_path))
    assert "specificity" not in {row["metric"] for row in summary}
    tables = make_tables(tmp_path, "first", empty=(4, 5)) + make_tables(tmp_path, "second")
    _, summary = summarise(tmp_path, tables)
    lines = [row for row in summary if row["metric"] == "specificity"]
    assert {row["dataset"] for row in lines} == {"first"}


def test_a_dataset_of_images_without_lesions_has_nothing_but_specificity(tmp_path):
    _, summary = summarise(tmp_path, make_tables(tmp_path, empty=range(12)))
    assert {row["metric"] for row in summary} == {"specificity"}
    line = pick(summary, method="transunet", subgroup="all", fold="all")
    assert (line["n"], line["mean"], line["false_positives"]) == ("12", "0.0", "12")


def test_images_that_other_datasets_have_too_are_a_subgroup(tmp_path):
    pairs = [
        ("toy__01", "toy", "other__9", "other", "equal"),
        ("other__3", "other", "toy__02", "toy", "alike"),
        ("toy__05", "toy", "toy__06", "toy", "alike"),
        ("toy__01", "other", "x", "third", "alike"),
    ]
    path = tmp_path / "overlaps.csv"
    write_rows(path, OVERLAPS, [dict(zip(OVERLAPS, pair, strict=True)) for pair in pairs])
    scores, summary = summarise(tmp_path, make_tables(tmp_path), overlaps=path)
    found = counts(summary)
    assert (found["elsewhere=yes"], found["elsewhere=no"]) == (2, 10)
    rows = [row for row in scores if row["case"] in ("toy__01", "toy__02")]
    line = pick(summary, method="transunet", subgroup="elsewhere=yes", metric="dice")
    assert float(line["mean"]) == pytest.approx(column(rows, "dice", method="transunet").mean())


def test_known_spacing_is_a_subgroup_and_the_only_one_in_mm(tmp_path):
    scores, summary = summarise(tmp_path, make_tables(tmp_path, spacing=(0.1, 0.2)))
    assert counts(summary)["spacing=known"] == 10
    assert counts(summary)["spacing=unknown"] == 2
    assert counts(summary, "hd95_mm")["all"] == 10
    assert "spacing=unknown" not in counts(summary, "hd95_mm")
    line = pick(summary, method="transunet", subgroup="all", fold="all", metric="hd95_mm")
    known = [row for row in scores if row["spacing"] == "known"]
    assert float(line["mean"]) == pytest.approx(column(known, "hd95_mm", method="transunet").mean())


def test_share_of_the_diagonal_is_that_of_the_pixels(tmp_path):
    _, summary = summarise(tmp_path, make_tables(tmp_path))
    means = [
        column(summary, "mean", metric=metric, fold="all", subgroup="all")
        for metric in ("hd95_share", "hd95_px")
    ]
    np.testing.assert_allclose(means[0], means[1] / np.hypot(40, 40))
