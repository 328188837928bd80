"""Guards the summary of volumes: means over lesions, modes beside each other, oracles apart, speed."""

import numpy as np
import pytest
from scipy.stats import wilcoxon
from score_tables import group_bootstrap
from volume_studies import PAIRS, SHAPE, VolumeData, summarise

from ultrarefiner.errors import UltraRefinerError
from ultrarefiner.evaluation.volume_summary import read_seconds, summarise_volumes
from ultrarefiner.io import read_rows


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Return (scores, summary, comparisons) of a dataset in which volume 4 has no lesion."""
    folder = tmp_path_factory.mktemp("volumes")
    data = VolumeData(folder, count=16, empty=(4,))
    return [read_rows(path) for path in summarise([data], folder / "report")]


def line(rows, **cells):
    (found,) = [row for row in rows if all(row[key] == cell for key, cell in cells.items())]
    return found


def test_a_row_tells_the_strategy_and_the_means_over_lesions(made):
    scores, summary, _ = made
    assert [row["method"] for row in summary] == sorted(row["method"] for row in summary)
    told = {
        row["method"]: (row["prompt_kind"], row["prompt_source"], row["mode"]) for row in summary
    }
    assert told["unet"] == ("", "none", "slices")
    assert told["memory-box"] == ("box", "coarse", "memory")
    assert told["plain-truth"] == ("box", "ground_truth", "slices")
    assert {row["method"] for row in summary if row["oracle"] == "true"} == {
        "plain-truth",
        "memory-truth",
    }
    for row in summary:
        mine = [s for s in scores if s["method"] == row["method"] and s["empty_truth"] == "false"]
        assert (row["n"], row["volumes"], row["fold"]) == ("15", "16", "all")
        for name in ("dice", "hd95_mm", "nsd_mm", "slice_dice"):
            values = [float(s[name]) for s in mine]
            assert float(row[f"{name}_mean"]) == pytest.approx(np.mean(values))
        groups = [s["group"] for s in mine]
        low, high = group_bootstrap([float(s["dice"]) for s in mine], groups, seed=1)
        assert float(row["dice_low"]) == pytest.approx(low, abs=0.03)
        assert float(row["dice_high"]) == pytest.approx(high, abs=0.03)


def test_speed_is_all_slices_over_all_seconds(made):
    _, summary, _ = made
    assert {row["slices"] for row in summary} == {str(16 * SHAPE[0])}
    assert {float(row["seconds"]) for row in summary} == {6.0}  # two folds
    assert {float(row["slices_per_second"]) for row in summary} == {16.0}


def test_a_time_that_is_not_known_leaves_the_cell_empty(tmp_path):
    data = VolumeData(tmp_path, count=4)
    paths = summarise([data], tmp_path / "report", seconds=None, methods=["unet"])
    (row,) = read_rows(paths[1])
    assert row["seconds"] == row["slices_per_second"] == ""
    (tmp_path / "wrong.tsv").write_text("seconds\n3\n")
    with pytest.raises(UltraRefinerError, match=r"wrong\.tsv is no benchmark file"):
        read_seconds(tmp_path / "wrong.tsv")


def test_several_jobs_of_one_part_are_added_up(tmp_path):
    data = VolumeData(tmp_path, count=4)
    tables, entries = zip(*[data.shelve("plain-box", f"fold{k}", 4.0) for k in (0, 1)], strict=True)
    share = tmp_path / "embed.tsv"
    share.write_text("s\th:m:s\n2.0\t0:00:02\n")
    entries = [entry | {"benchmarks": [*entry["benchmarks"], str(share)]} for entry in entries]
    paths = [tmp_path / f"{name}.csv" for name in "abc"]
    summarise_volumes(tables, entries, [], *paths, bootstrap=200)
    (row,) = read_rows(paths[1])
    assert float(row["seconds"]) == 12.0
    assert float(row["slices_per_second"]) == pytest.approx(4 * SHAPE[0] / 12)


def test_propagation_is_compared_with_slices_of_the_same_prompt(made):
    scores, _, comparisons = made
    assert {(row["method"], row["reference"]) for row in comparisons} == {
        (pair["method"], pair["reference"]) for pair in PAIRS
    }
    assert {row["metric"] for row in comparisons} == {"dice", "hd95_mm"}
    values = {
        method: np.array(
            [
                float(row["dice"])
                for row in sorted(scores, key=lambda row: (row["fold"], row["volume"]))
                if row["method"] == method and row["empty_truth"] == "false"
            ]
        )
        for method in ("plain-box", "memory-box")
    }
    difference = values["memory-box"] - values["plain-box"]
    row = line(comparisons, method="memory-box", metric="dice")
    assert float(row["mean_difference"]) == pytest.approx(difference.mean())
    assert float(row["wilcoxon_p"]) == pytest.approx(wilcoxon(difference).pvalue)
    assert float(row["ci_low"]) <= difference.mean() <= float(row["ci_high"])
    assert (row["n"], row["groups"], row["better"], row["mode"]) == ("15", "8", "15", "memory")
    # Nearer is better, although the difference is below zero.
    row = line(comparisons, method="memory-box", metric="hd95_mm")
    assert float(row["mean_difference"]) < 0 and int(row["better"]) > int(row["worse"])


def test_oracles_are_a_family_of_their_own(made):
    for row in made[2]:
        assert row["oracle"] == ("true" if "truth" in row["method"] else "false")
        # One comparison in each family and metric: nothing to correct.
        assert row["holm_p"] == row["wilcoxon_p"]


def test_a_miss_is_counted_and_lowers_the_mean(tmp_path):
    data = VolumeData(tmp_path, count=4)
    before = read_rows(summarise([data], tmp_path / "a", methods=["unet"])[1])[0]
    usual, lost = data.mask, data.names[1]
    data.mask = lambda name, method: usual(name, method) & (name != lost)
    after = read_rows(summarise([data], tmp_path / "b", methods=["unet"])[1])[0]
    assert (before["misses"], after["misses"], after["n"]) == ("0", "1", "4")
    for name in ("dice", "iou", "nsd_mm", "slice_dice", "recall"):
        assert float(after[f"{name}_mean"]) < float(before[f"{name}_mean"])
    for name in ("hd95_mm", "assd_mm", "hd95_voxels"):
        assert float(after[f"{name}_mean"]) > float(before[f"{name}_mean"])


def test_without_a_spacing_distances_are_compared_in_voxels(tmp_path):
    data = VolumeData(tmp_path, count=14, spacing=None)
    paths = summarise([data], tmp_path / "report", methods=["plain-box", "memory-box"])
    assert {row["hd95_mm_mean"] for row in read_rows(paths[1])} == {""}
    assert {row["metric"] for row in read_rows(paths[2])} == {"dice", "hd95_voxels"}


def test_order_and_tables_change_no_byte(tmp_path):
    data = VolumeData(tmp_path, count=4)
    made = [data.shelve(m, f"fold{k}", 2.0) for m in ("unet", "plain-box") for k in (0, 1)]
    texts = []
    for order in (made, made[::-1]):
        tables, entries = zip(*order, strict=True)
        paths = [tmp_path / f"{name}.csv" for name in "abc"]
        summarise_volumes(tables, entries, [], *paths, bootstrap=200)
        texts.append([path.read_bytes() for path in paths])
    assert texts[0] == texts[1]


def test_what_is_scored_and_not_asked_for_is_refused(tmp_path):
    data = VolumeData(tmp_path, count=4)
    tables, entries = zip(*[data.shelve("unet", f"fold{k}") for k in (0, 1)], strict=True)
    others = [entry | {"method": "other"} for entry in entries]
    with pytest.raises(UltraRefinerError, match="unet is scored on volumes of breast"):
        summarise_volumes(tables, others, [], *(tmp_path / name for name in "abc"))
    with pytest.raises(UltraRefinerError, match="no volume was scored"):
        summarise_volumes([], [], [], *(tmp_path / name for name in "abc"))
