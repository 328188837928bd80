"""Guards: calibration counts every pixel once, in the bins of the definition, and joins no table twice."""

import numpy as np
import pytest

from ultrarefiner.errors import UltraRefinerError
from ultrarefiner.evaluation.calibration import (
    BINS,
    CALIBRATION_COLUMNS,
    collect_calibration,
    measure_calibration,
)
from ultrarefiner.images import write_mask, write_png, write_probability
from ultrarefiner.io import read_rows, write_rows

SIZE = (24, 30)


def write_cases(folder, part, cases, probabilities, truths):
    """Write the pixels of a part; return its entry for the job."""
    for case, probability, truth in zip(cases, probabilities, truths, strict=True):
        write_png(folder / part / f"{case}.png", probability)
        write_mask(folder / "truth" / f"{case}.png", truth)
    return {
        "part": part,
        "table": folder / "splits.csv",
        "probabilities": str(folder / part),
    }


def write_splits(folder, roles):
    rows = [{"case": case, "group": case, "fold": fold, "role": role} for case, fold, role in roles]
    write_rows(folder / "splits.csv", ["case", "group", "fold", "role"], rows)


@pytest.fixture
def study(tmp_path):
    """Return the arguments of the job for two folds and a hold-out, files written."""
    rng = np.random.default_rng(0)
    roles = [("a", 0, "test"), ("b", 1, "test"), ("a", 1, "train"), ("b", 0, "train")]
    write_splits(tmp_path, [*roles, *((case, f, "holdout") for case in "cd" for f in (0, 1))])
    truths = {case: rng.random(SIZE) < 0.3 for case in "abcd"}
    truths["d"][:] = False
    made = {
        (part, case): rng.integers(0, 256, SIZE).astype(np.uint8)
        for part, cases in (("fold0", "a"), ("fold1", "b"), ("holdout-mean", "cd"))
        for case in cases
    }
    parts = [
        write_cases(
            tmp_path, part, cases, [made[part, case] for case in cases], [truths[c] for c in cases]
        )
        for part, cases in (("fold0", "a"), ("fold1", "b"), ("holdout-mean", "cd"))
    ]
    arguments = {
        "method": "transunet@all",
        "dataset": "toy",
        "trained_on": "all",
        "parts": parts,
        "truth": tmp_path / "truth",
        "output": tmp_path / "calibration.csv",
    }
    return arguments, made, truths


def expected_bins(probability, truth):
    """Return for each bin by the definition: pixels, mean probability, share of lesion."""
    found = []
    for number in range(BINS):
        low, high = number / BINS, (number + 1) / BINS
        # The steps of 1/255 on a boundary are rounded to it, else 17/255 were below 1/15.
        steps = np.round(probability * 255)
        inside = (steps >= np.round(low * 255)) & (steps < np.round(high * 255))
        inside |= (number == BINS - 1) & (steps == 255)
        if inside.any():
            found.append((inside.sum(), probability[inside].mean(), truth[inside].mean()))
        else:
            found.append((0, np.nan, np.nan))
    return found


def test_bins_and_errors_by_the_definition(study):
    arguments, made, truths = study
    measure_calibration(**arguments)
    rows = read_rows(arguments["output"])
    assert list(rows[0]) == CALIBRATION_COLUMNS
    assert len(rows) == 2 * BINS
    for evaluation, member, keys in (
        ("folds", "single", [("fold0", "a"), ("fold1", "b")]),
        ("holdout", "mean", [("holdout-mean", "c"), ("holdout-mean", "d")]),
    ):
        mine = [row for row in rows if (row["evaluation"], row["member"]) == (evaluation, member)]
        probability = np.concatenate([made[key].ravel() for key in keys]) / 255
        truth = np.concatenate([truths[case].ravel() for _, case in keys])
        expected = expected_bins(probability, truth)
        assert [int(row["pixels"]) for row in mine] == [count for count, _, _ in expected]
        for name, place in (("mean_probability", 1), ("lesion_share", 2)):
            np.testing.assert_allclose(
                [float(row[name]) for row in mine], [found[place] for found in expected]
            )
        ece = sum(count * abs(mean - share) for count, mean, share in expected) / truth.size
        assert {row["ece"] for row in mine} == {mine[0]["ece"]}
        assert float(mine[0]["ece"]) == pytest.approx(ece)
        assert float(mine[0]["brier"]) == pytest.approx(((probability - truth) ** 2).mean())
        assert (mine[0]["trained_on"], mine[0]["method"]) == ("all", "transunet@all")
    assert [(row["bin"], float(row["low"])) for row in rows[:2]] == [("0", 0.0), ("1", 1 / 15)]
    assert float(rows[BINS - 1]["high"]) == 1.0


def test_error_near_the_lesion_is_that_of_its_box(tmp_path):
    write_splits(tmp_path, [("a", 0, "test"), ("b", 0, "test")])
    truth = np.zeros(SIZE, dtype=bool)
    truth[2:8, 10:20] = True
    probability = np.where(truth, 0.9, 0.0)
    # Wrong far from the lesion, and in an image that has none: neither is near.
    probability[20:, :] = 1.0
    blank = np.zeros(SIZE, dtype=bool)
    maps = [np.rint(values * 255).astype(np.uint8) for values in (probability, blank + 0.4)]
    entry = write_cases(tmp_path, "fold0", "ab", maps, [truth, blank])
    output = tmp_path / "calibration.csv"
    measure_calibration("unet", "toy", "toy", [entry], tmp_path / "truth", output)
    row = read_rows(output)[0]
    # The box of 6 x 10 pixels grows by 3 and 5 to each side: rows 0 to 11 and columns 5 to 25.
    step = 230 / 255
    assert float(row["ece_near"]) == pytest.approx((1 - step) * 60 / (11 * 20))
    wrong = 60 * (1 - step) + 4 * 30 + 24 * 30 * 0.4
    assert float(row["ece"]) == pytest.approx(wrong / (2 * 24 * 30))


def test_images_without_lesions_have_no_error_near_one(tmp_path):
    write_splits(tmp_path, [("a", 0, "test")])
    blank = np.zeros(SIZE, dtype=np.uint8)
    entry = write_cases(tmp_path, "fold0", "a", [blank], [blank > 0])
    output = tmp_path / "calibration.csv"
    measure_calibration("unet", "toy", "toy", [entry], tmp_path / "truth", output)
    rows = read_rows(output)
    assert (rows[0]["pixels"], rows[0]["ece"], rows[0]["ece_near"]) == ("720", "0.0", "")
    assert {row["mean_probability"] for row in rows[1:]} == {""}


def test_perfect_probabilities_are_calibrated_and_sure_ones_are_not(tmp_path):
    rng = np.random.default_rng(1)
    shape = (300, 400)
    probability = rng.random(shape)
    truth = rng.random(shape) < probability
    write_splits(tmp_path, [("a", 0, "test")])
    (tmp_path / "maps").mkdir()
    found = {}
    for name, values in (("honest", probability), ("sure", probability > 0.5)):
        write_probability(tmp_path / name / "a.png", values)
        write_mask(tmp_path / "truth" / "a.png", truth)
        entry = {"part": "fold0", "table": tmp_path / "splits.csv"}
        entry |= {"probabilities": tmp_path / name}
        output = tmp_path / f"{name}.csv"
        measure_calibration("unet", "toy", "toy", [entry], tmp_path / "truth", output)
        found[name] = float(read_rows(output)[0]["ece"])
    assert found["honest"] < 0.01
    assert found["sure"] == pytest.approx(0.25, abs=0.01)


def test_models_of_several_folds_on_the_same_cases_are_pooled(study):
    arguments, made, _ = study
    folder = arguments["truth"].parent
    for fold in (0, 1):
        for case in "cd":
            write_png(folder / f"holdout-fold{fold}" / f"{case}.png", made["holdout-mean", case])
    entry = arguments["parts"][2]
    parts = [
        entry | {"part": f"holdout-fold{fold}", "probabilities": folder / f"holdout-fold{fold}"}
        for fold in (0, 1)
    ]
    measure_calibration(**arguments | {"parts": [entry, *parts]})
    rows = read_rows(arguments["output"])
    single, mean = rows[:BINS], rows[BINS:]
    assert {row["member"] for row in single} == {"single"}
    for one, other in zip(single, mean, strict=True):
        assert int(one["pixels"]) == 2 * int(other["pixels"])
        assert float(one["ece"]) == pytest.approx(float(other["ece"]))


def test_missing_and_misshapen_probabilities_are_errors_that_name_them(study):
    arguments, _, _ = study
    folder = arguments["truth"].parent
    with pytest.raises(UltraRefinerError, match="fold0 is given twice"):
        measure_calibration(**arguments | {"parts": [*arguments["parts"], arguments["parts"][0]]})
    write_png(folder / "holdout-mean" / "c.png", np.zeros((30, 24), dtype=np.uint8))
    with pytest.raises(UltraRefinerError, match=r"c \(probabilities \(30, 24\).*Cure"):
        measure_calibration(**arguments)
    for case in "cd":
        (folder / "holdout-mean" / f"{case}.png").unlink()
    with pytest.raises(UltraRefinerError, match=r"2 test cases have no prob.*holdout-mean.*c, d"):
        measure_calibration(**arguments)
    assert not arguments["output"].exists()


def test_tables_are_joined_in_one_order(study, tmp_path):
    arguments, _, _ = study
    paths = [tmp_path / f"{name}.csv" for name in ("one", "two")]
    for path, method in zip(paths, ("unet", "transunet"), strict=True):
        measure_calibration(**arguments | {"method": method, "output": path})
    collect_calibration(paths, tmp_path / "all.csv")
    expected = (tmp_path / "all.csv").read_bytes()
    rows = read_rows(tmp_path / "all.csv")
    assert [row["method"] for row in rows[:: 2 * BINS]] == ["transunet", "unet"]
    assert [int(row["bin"]) for row in rows] == list(range(BINS)) * 4
    assert rows[2 * BINS :] == read_rows(paths[0])
    collect_calibration(paths[::-1], tmp_path / "all.csv")
    assert (tmp_path / "all.csv").read_bytes() == expected


def test_tables_that_are_none_are_refused(study, tmp_path):
    arguments, _, _ = study
    measure_calibration(**arguments)
    table, output = arguments["output"], tmp_path / "all.csv"
    with pytest.raises(UltraRefinerError, match="in another table too"):
        collect_calibration([table, table], output)
    with pytest.raises(UltraRefinerError, match=r"absent\.csv"):
        collect_calibration([tmp_path / "absent.csv"], output)
    rows = read_rows(table)
    write_rows(table, CALIBRATION_COLUMNS, [rows[0] | {"evaluation": "test"}])
    with pytest.raises(UltraRefinerError, match=r"calibration\.csv has a cell"):
        collect_calibration([table], output)
    write_rows(table, ["bin"], [{"bin": 0}])
    with pytest.raises(UltraRefinerError, match="lacks the columns dataset"):
        collect_calibration([table], output)
    collect_calibration([], output)
    assert output.read_text().strip() == ",".join(CALIBRATION_COLUMNS)
