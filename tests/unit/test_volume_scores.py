"""Guards scores in 3D: MedPy's numbers with anisotropic voxels, whole volumes, honest misses."""

import nibabel
import numpy as np
import pytest
from medpy.metric.binary import assd as medpy_assd
from medpy.metric.binary import hd95 as medpy_hd95
from volume_studies import SHAPE, SPACING, VolumeData, ball

from ultrarefiner.errors import UltraRefinerError
from ultrarefiner.evaluation.metrics import assd, hd95, nsd
from ultrarefiner.evaluation.volume_masks import write_volumes
from ultrarefiner.evaluation.volumes import MEASURES, read_volume_scores, score_volume
from ultrarefiner.io import read_rows, write_rows

SHAPES = [(5, 9, 7), (3, 14, 4), (8, 8, 8), (1, 6, 9)]


def random_pairs():
    """Yield smooth, noisy and thin pairs of masks with a spacing that differs along each axis."""
    rng = np.random.default_rng(11)
    for number in range(24):
        shape = SHAPES[number % len(SHAPES)]
        share = (0.5, 0.1, 0.9)[number % 3]
        masks = [rng.random(shape) < share for _ in range(2)]
        if number % 2:
            masks = [
                ball(rng.uniform(0, shape), rng.uniform(1, 6, 3), shape)
                | (rng.random(shape) < 0.01)
                for _ in range(2)
            ]
        masks[0][0, 0, 0] = masks[1][-1, -1, -1] = True
        yield *masks, tuple(rng.uniform(0.2, 4.0, 3))


def test_distances_are_those_of_medpy_with_anisotropic_voxels():
    pairs = list(random_pairs())
    for prediction, truth, spacing in pairs:
        scores = score_volume(prediction, truth, spacing)
        for name, ours, medpy in (("hd95", hd95, medpy_hd95), ("assd", assd, medpy_assd)):
            wanted = medpy(prediction, truth, voxelspacing=spacing)
            assert scores[f"{name}_mm"] == pytest.approx(wanted, abs=1e-6)
            assert ours(prediction, truth, spacing) == scores[f"{name}_mm"]
            wanted = medpy(prediction, truth)
            assert scores[f"{name}_voxels"] == pytest.approx(wanted, abs=1e-6)
        assert scores["nsd_mm"] == nsd(prediction, truth, spacing, 2.0)
    # The axes are not taken for each other.
    prediction, truth, spacing = pairs[1]
    assert score_volume(prediction, truth, spacing[::-1])["hd95_mm"] != pytest.approx(
        medpy_hd95(prediction, truth, voxelspacing=spacing)
    )


def test_scores_by_hand():
    truth, prediction = np.zeros((2, 4, 10, 10), bool)
    truth[1:3, 2:8, 2:8] = True
    prediction[1:3, 2:8, 4:10] = True
    prediction[3, 0, 0] = True
    scores = score_volume(prediction, truth, (3.0, 1.0, 2.0))
    assert scores["dice"] == pytest.approx(2 * 48 / (72 + 73))
    assert scores["iou"] == pytest.approx(48 / 97)
    assert scores["precision"] == pytest.approx(48 / 73)
    assert scores["recall"] == pytest.approx(48 / 72)
    # The slice without a lesion has no part in the mean over slices.
    assert scores["slice_dice"] == pytest.approx(2 * 24 / 72)
    assert scores["volume_ml"] == pytest.approx(73 * 6 / 1000)
    assert scores["true_volume_ml"] == pytest.approx(72 * 6 / 1000)


def test_one_voxel_apart_along_an_axis_is_its_spacing():
    truth, spacing = np.zeros((5, 5, 5), bool), (4.0, 1.0, 0.25)
    truth[2, 2, 2] = True
    for axis, step in enumerate(spacing):
        scores = score_volume(np.roll(truth, 1, axis), truth, spacing)
        assert scores["hd95_mm"] == scores["assd_mm"] == step
        assert scores["hd95_voxels"] == 1
        assert scores["nsd_mm"] == (step <= 2.0)


@pytest.mark.parametrize("missed", [True, False])
def test_one_empty_mask_is_the_worst_there_is(missed):
    some, none = ball((2, 20, 16), (2, 6, 6)), np.zeros(SHAPE, bool)
    scores = score_volume(none, some, SPACING) if missed else score_volume(some, none, SPACING)
    bad = np.zeros((2, *SHAPE), bool)
    bad[0, 0, 0, 0] = bad[1, -1, -1, -1] = True
    worst = score_volume(*bad, SPACING)
    diagonal = np.linalg.norm(np.multiply(SHAPE, SPACING))
    assert scores["hd95_mm"] == scores["assd_mm"] == pytest.approx(diagonal)
    assert scores["hd95_mm"] > worst["hd95_mm"]
    assert scores["hd95_voxels"] == pytest.approx(np.linalg.norm(SHAPE))
    assert scores["hd95_voxels"] > worst["hd95_voxels"]
    assert not any(scores[name] for name in ("dice", "iou", "precision", "recall", "nsd_mm"))
    assert scores["slice_dice"] == (0.0 if missed else None)
    assert (scores["empty_prediction"], scores["empty_truth"]) == (missed, not missed)
    both = score_volume(none, none, SPACING)
    assert both["dice"] == both["nsd_mm"] == 1 and both["hd95_mm"] == both["assd_voxels"] == 0


def test_a_table_has_each_volume_of_the_part_whole(tmp_path):
    data = VolumeData(tmp_path, empty=(4,))
    table, _ = data.shelve("plain-box", "fold0")
    rows = read_rows(table)
    assert [row["volume"] for row in rows] == data.of_fold(0)
    for row in rows:
        wanted = score_volume(
            data.mask(row["volume"], "plain-box"), data.truth[row["volume"]], SPACING
        )
        for name in MEASURES:
            assert row[name] == ("" if wanted[name] is None else repr(wanted[name]))
        assert row["slices"] == "6" and row["spacing"] == "known"
    assert [row["group"] for row in rows] == ["p0", "p0", "p2", "p2"]
    typed = read_volume_scores(table)
    assert [row["case"] for row in typed] == data.of_fold(0)
    assert typed[0]["fold"] == 0 and typed[0]["oracle"] is False
    assert [row["empty_truth"] for row in typed] == [False, False, True, False]


def test_without_a_spacing_distances_are_in_voxels_and_say_so(tmp_path):
    data = VolumeData(tmp_path, count=3, spacing=None)
    row, _ = read_rows(data.shelve("plain-box", "fold0")[0])
    assert row["spacing"] == "unknown"
    mm = ("hd95_mm", "assd_mm", "nsd_mm", "volume_ml", "true_volume_ml")
    assert not any(row[name] for name in mm)
    truth = data.truth[data.names[0]]
    wanted = medpy_hd95(data.mask(data.names[0], "plain-box"), truth)
    assert float(row["hd95_voxels"]) == pytest.approx(wanted)
    assert np.isnan(read_volume_scores(data.shelve("plain-box", "fold0")[0])[0]["hd95_mm"])


def test_a_part_with_some_slices_of_a_volume_is_refused_by_name(tmp_path):
    data = VolumeData(tmp_path)
    data.shelve("plain-box", "fold0")
    splits = data.tables["splits"]
    rows = read_rows(splits)
    torn = data.cases[data.names[1]][3]
    write_rows(splits, list(rows[0]), [row for row in rows if row["case"] != torn])
    with pytest.raises(
        UltraRefinerError, match=rf"some slices of 1 volumes: {data.names[1]} \(5 of 6"
    ):
        data.shelve("plain-box", "fold0")


def test_a_slice_of_no_volume_and_a_slice_without_a_mask_are_refused(tmp_path):
    data = VolumeData(tmp_path)
    masks = data.root / "masks/plain-box/fold0"
    data.shelve("plain-box", "fold0")
    (masks / f"{data.cases[data.names[4]][1]}.png").unlink()
    with pytest.raises(UltraRefinerError, match=rf"{data.names[4]} \(1 slices\)"):
        data.score("plain-box", "fold0", masks, tmp_path / "scores.csv")
    assert not (tmp_path / "scores.csv").exists()
    splits = data.tables["splits"]
    rows = read_rows(splits)
    write_rows(splits, list(rows[0]), [*rows, rows[0] | {"case": "breast__other"}])
    with pytest.raises(UltraRefinerError, match=r"slices of no volume.*breast__other"):
        data.score("plain-box", "fold0", masks, tmp_path / "scores.csv")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dice": "inf"}, "dice of breast__v0 is 'inf'"),
        ({"dice": ""}, "is no score"),
        ({"fold": ""}, "is no score"),
        ({"oracle": "maybe"}, "is no score"),
        ({"member": "all"}, "member of breast__v0"),
    ],
)
def test_a_damaged_table_is_refused(tmp_path, change, message):
    table, _ = VolumeData(tmp_path, count=2).shelve("unet", "fold0")
    rows = [row | change for row in read_rows(table)]
    write_rows(table, list(rows[0]), rows)
    with pytest.raises(UltraRefinerError, match=message):
        read_volume_scores(table)


def test_masks_become_volumes_on_the_grid_of_their_images(tmp_path):
    data = VolumeData(tmp_path, count=4)
    affine = np.array([[0, 0.5, 0.1, 3], [0.8, 0, 0, -7], [0, 0.1, 2, 5], [0, 0, 0, 1.0]])
    rows = read_rows(data.tables["volumes"])
    for row in rows:
        row["image"] = str(tmp_path / "raw" / f"{row['volume']}.nii.gz")
        row["affine"] = " ".join(map(repr, affine.ravel().tolist()))
        (tmp_path / "raw").mkdir(exist_ok=True)
        raw = np.zeros((*SHAPE[1:], SHAPE[0]), np.int16)
        nibabel.Nifti1Image(raw, affine).to_filename(row["image"])
    write_rows(data.tables["volumes"], list(rows[0]), rows)
    data.shelve("plain-box", "fold1")
    masks = data.root / "masks/plain-box/fold1"
    write_volumes("plain-box", "fold1", masks, **data.tables, output=tmp_path / "out")
    made = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert made == [f"{name}.nii.gz" for name in data.of_fold(1)]
    for name in data.of_fold(1):
        volume = nibabel.load(tmp_path / "out" / f"{name}.nii.gz")
        wanted = np.moveaxis(data.mask(name, "plain-box"), 0, 2)
        assert np.array_equal(np.asarray(volume.dataobj), wanted)
        assert np.allclose(volume.affine, affine)
