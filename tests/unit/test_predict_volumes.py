"""Guards `ultrarefiner predict` on volumes: masks on their own grids, whatever the file and axes."""

import csv
import shutil

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image
from predicted_volumes import STEPS, grays, save, written
from typer.testing import CliRunner

from tests.deploy_fixture import CASES, image_of, make_run
from ultrarefiner.cli import app
from ultrarefiner.config import load_config
from ultrarefiner.datasets.layouts import list_cases
from ultrarefiner.datasets.phantom import write_phantom
from ultrarefiner.datasets.reading import load_case
from ultrarefiner.datasets.volumes import parse_slice
from ultrarefiner.deploy import pipeline
from ultrarefiner.deploy.bundle import bundle_of_run
from ultrarefiner.deploy.contents import VolumeReading
from ultrarefiner.deploy.volume_inputs import choose_reading, open_volume, readings_of
from ultrarefiner.deploy.volume_outputs import SLICE_COLUMNS, VOLUME_COLUMNS, count_components
from ultrarefiner.errors import ConfigError, PromptError
from ultrarefiner.evaluation.metrics import iou
from ultrarefiner.images import read_rgb
from ultrarefiner.io import read_json, read_rows


@pytest.fixture(scope="module")
def run(one_thread, tmp_path_factory):
    """Return the folder of a finished study, which has seen no volumes."""
    return make_run(tmp_path_factory.getbasetemp())


def call(run, out, *given, method="tiny", ok=True, more=(), **options):
    """Call the command; return its result."""
    extra = [part for key, value in options.items() for part in (f"--{key}", value)]
    arguments = [
        "predict", *given, "--results", run / "results", "--run", "tiny", "--method", method,
        "-o", out, "--device", "cpu", *extra, *more,
    ]  # fmt: skip
    result = CliRunner().invoke(app, [str(one) for one in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit)
    assert (result.exit_code == 0) == ok, result.output
    return result


def predict(run, out, *given, **options):
    """Call the command; return its result and the rows of its table by name."""
    result = call(run, out, *given, **options)
    table = out / "predictions.csv"
    rows = {row["name"]: row for row in read_rows(table)} if table.exists() else {}
    if rows:
        with open(table, newline="", encoding="utf-8") as handle:
            assert next(csv.reader(handle)) == VOLUME_COLUMNS
    return result, rows


def by_hand(run, volume, method="tiny", name="scan"):
    """Return what the method says of each slice of uint8 (H, W, D)."""
    predictor = pipeline.open_method(bundle_of_run(run / "results", "tiny", method), "cpu")
    slices = [np.repeat(volume[:, :, k, None], 3, axis=2) for k in range(volume.shape[2])]
    return [predictor.predict(one, f"{name}_slice_{k:03d}") for k, one in enumerate(slices)]


@pytest.mark.parametrize("method", ["tiny", "small-box"])
def test_a_mask_lies_on_its_volume_slice_by_slice(run, tmp_path, method):
    volume = grays(run)
    # In other units, of which smallest and largest are what 0 and 255 were.
    path = save(tmp_path / "scan.nii.gz", (volume * 8.0 - 1000).astype(np.float32))
    result, rows = predict(run, tmp_path / "out", path, method=method, **{"batch-size": 2})
    assert "1 of 1 volumes predicted" in result.stdout
    said = by_hand(run, volume, method)
    mask = np.stack([one.mask for one in said], axis=2)
    assert mask.any() and not mask.all()
    made = nibabel.load(tmp_path / "out/masks/scan.nii.gz")
    assert np.array_equal(np.asarray(made.dataobj), mask)
    source = nibabel.load(path)
    assert np.array_equal(made.affine, source.affine)
    for part in ("qform_code", "sform_code", "xyzt_units", "pixdim"):
        assert np.array_equal(made.header[part], source.header[part])
    row = rows["scan"]
    shape = tuple(int(row[key]) for key in ("height", "width", "slices"))
    assert shape == volume.shape and row["file"] == str(path)
    spacing = [float(row[f"spacing_{side}_mm"]) for side in "zyx"]
    assert spacing == pytest.approx([1.25, 0.4, 0.4])
    assert int(row["lesion_voxels"]) == mask.sum()
    assert int(row["lesion_slices"]) == mask.any(axis=(0, 1)).sum()
    assert float(row["lesion_ml"]) == pytest.approx(mask.sum() * 0.2 / 1000, rel=1e-5)
    assert int(row["components"]) == count_components(mask)
    assert row["note"] == "volume's -1000 to 1040 as 0 to 255" and row["error"] == ""
    if method == "tiny":
        assert row["coarse_iou"] == row["score"] == ""
    else:
        coarse = np.stack([one.coarse for one in said], axis=2)
        assert float(row["coarse_iou"]) == pytest.approx(iou(coarse, mask), abs=1e-6)
        scores = [one.score for one in said if (one.mask | one.coarse).any()]
        assert float(row["score"]) == pytest.approx(np.mean(scores), abs=1e-6)
    slices = read_rows(tmp_path / "out/slices/scan.csv")
    assert list(slices[0]) == SLICE_COLUMNS
    assert [int(one["slice"]) for one in slices] == list(range(5))
    areas = [int(one["lesion_px"]) for one in slices]
    assert areas == mask.sum(axis=(0, 1)).tolist()
    assert all("empty" not in one["warnings"] for one in slices)
    overlay = read_rgb(tmp_path / "out/overlays/scan.png")
    assert overlay.shape[:2] == volume.shape[:2]
    changed = (overlay != volume[:, :, int(np.argmax(areas)), None]).any(axis=2)
    assert 0 < changed.mean() < 0.7
    about = read_json(tmp_path / "out/predict.json")
    assert about["finished"] and about["options"]["volumes"]["options"]["axis"] == "HWD"


def test_each_kind_of_file_and_order_of_axes_gives_the_same_mask(run, tmp_path):
    volume, out = grays(run), tmp_path / "out"
    (tmp_path / "in").mkdir()
    save(tmp_path / "in/a.nii.gz", volume)
    save(tmp_path / "in/b.nii", volume)
    np.save(tmp_path / "in/c.npy", volume / np.float32(255))
    image = sitk.GetImageFromArray(np.ascontiguousarray(volume.T))
    image.SetSpacing(STEPS)
    image.SetOrigin((1.0, 2.0, 3.0))
    sitk.WriteImage(image, tmp_path / "in/d.nrrd")
    (tmp_path / "in/notes.txt").write_text("no volume")
    result, rows = predict(run, out, tmp_path / "in")
    assert "4 of 4 volumes predicted" in result.stdout
    assert "not volumes, left out: notes.txt" in result.stderr
    first = written(out, "a")
    assert first.any() and all(np.array_equal(written(out, name), first) for name in "bcd")
    assert rows["c"]["lesion_ml"] == "" and rows["c"]["spacing_z_mm"] == ""
    assert rows["d"]["lesion_ml"] == rows["a"]["lesion_ml"] != ""
    affine = nibabel.load(out / "masks/d.nii.gz").affine
    assert np.allclose(affine, [[-0.4, 0, 0, -1], [0, -0.4, 0, -2], [0, 0, 1.25, 3], [0, 0, 0, 1]])
    np.save(tmp_path / "turned.npy", np.moveaxis(volume, 2, 0))
    predict(run, tmp_path / "turned", tmp_path / "turned.npy", axis="DHW")
    assert np.array_equal(written(tmp_path / "turned", "turned"), np.moveaxis(first, 2, 0))


def test_a_wrong_order_of_axes_is_refused_with_the_sizes(run, tmp_path):
    volume = grays(run)
    path, sizes = save(tmp_path / "scan.nii.gz", volume), " x ".join(map(str, volume.shape))
    result, rows = predict(run, tmp_path / "out", path, ok=False, axis="DHW")
    assert sizes in result.stderr and "--axis" in result.stderr and "HWD" in result.stderr
    assert sizes in rows["scan"]["error"] and not (tmp_path / "out/masks/scan.nii.gz").exists()
    assert "1 volumes have no mask" in result.stderr
    predict(run, tmp_path / "forced", path, axis="DHW", more=["--no-axis-check"])
    assert written(tmp_path / "forced").shape == volume.shape
    result, _ = predict(run, tmp_path / "wrong", path, ok=False, axis="WHD")
    assert "axis WHD is not one of HWD, DHW" in result.stderr


def test_what_is_finished_stays_and_another_reading_is_refused(run, tmp_path, monkeypatch):
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for name in "abc":
        save(folder / f"{name}.nii.gz", grays(run, 3))
    plain, seen = pipeline.Predictor.predict_batch, []

    def counted(self, images, names):
        seen.append(names)
        return plain(self, images, names)

    monkeypatch.setattr(pipeline.Predictor, "predict_batch", counted)
    predict(run, out, folder, **{"batch-size": 2})
    assert seen[:2] == [["a_slice_000", "a_slice_001"], ["a_slice_002"]]
    before, table = written(out, "a"), (out / "predictions.csv").read_bytes()
    (out / "masks/b.nii.gz").unlink()
    save(folder / "c.nii.gz", grays(run, 4))
    seen.clear()
    result, rows = predict(run, out, folder, **{"batch-size": 4})
    assert "2 of 3 volumes predicted, 1 kept from before" in result.stdout
    assert [len(names) for names in seen] == [3, 4] and rows["c"]["slices"] == "4"
    assert np.array_equal(written(out, "b"), before)
    result, _ = predict(run, out, folder, ok=False, axis="HWD", more=["--no-axis-check"])
    assert "read in another way" in result.stderr and "--output" in result.stderr
    assert table.splitlines()[:2] == (out / "predictions.csv").read_bytes().splitlines()[:2]


def test_a_damaged_volume_and_one_that_cannot_be_prompted_cost_the_others_nothing(
    run, tmp_path, monkeypatch
):
    for name in "abc":
        save(tmp_path / f"{name}.nii.gz", grays(run, 2))
    cut = tmp_path / "b.nii.gz"
    cut.write_bytes(cut.read_bytes()[:500])
    plain = pipeline.Predictor.predict_batch

    def refused(self, images, names):
        if names[0].startswith("c"):
            raise PromptError(f"{names[0]}: cannot be prompted")
        return plain(self, images, names)

    monkeypatch.setattr(pipeline.Predictor, "predict_batch", refused)
    result, rows = predict(run, tmp_path / "out", tmp_path, ok=False)
    assert result.exit_code == 1 and "1 of 3 volumes predicted, 2 failed" in result.stdout
    assert "cannot be read as a volume" in rows["b"]["error"]
    assert "cannot be prompted" in rows["c"]["error"] and rows["c"]["lesion_voxels"] == ""
    assert rows["a"]["error"] == "" and rows["a"]["lesion_voxels"] != ""
    assert [path.name for path in (tmp_path / "out/masks").iterdir()] == ["a.nii.gz"]


def test_a_volume_without_a_lesion_is_told(run, tmp_path):
    flat = np.zeros((48, 40, 3), np.uint8)
    _, rows = predict(run, tmp_path / "out", save(tmp_path / "flat.nii.gz", flat))
    said = by_hand(run, flat)
    assert not any(one.mask.any() for one in said)
    assert rows["flat"]["warnings"] == "empty" and rows["flat"]["lesion_ml"] == "0.0"
    assert read_rgb(tmp_path / "out/overlays/flat.png").shape[:2] == (48, 40)


def test_images_and_volumes_do_not_mix(run, tmp_path):
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    volume = save(folder / "scan.nii.gz", grays(run, 2))
    Image.fromarray(image_of(run, CASES[0])).save(tmp_path / "a.png")
    result, _ = predict(run, out, volume, tmp_path / "a.png", ok=False)
    assert "scan.nii.gz are volumes" in result.stderr and "two commands" in result.stderr
    result, _ = predict(run, out, tmp_path / "a.png", ok=False, axis="HWD")
    assert "--axis" in result.stderr and "these are images" in result.stderr
    # Beside images a folder's volumes are left out, as before; given by name they are meant.
    shutil.copy(tmp_path / "a.png", folder / "a.png")
    result = call(run, out, folder)
    assert "1 of 1 images predicted" in result.stdout
    assert "not images, left out: scan.nii.gz" in result.stderr
    result, _ = predict(run, tmp_path / "two", volume, folder)
    assert "1 of 1 volumes" in result.stdout and "left out: a.png" in result.stderr


def test_an_exported_folder_predicts_volumes_too(run, tmp_path):
    path = save(tmp_path / "scan.nii.gz", grays(run, 2))
    invoke = CliRunner().invoke
    of_run = ["--results", str(run / "results"), "--run", "tiny", "--method", "tiny"]
    made = invoke(app, ["export", *of_run, "-o", str(tmp_path / "model")])
    assert made.exit_code == 0, made.output
    predict(run, tmp_path / "one", path)
    given = ["--model", str(tmp_path / "model"), "-o", str(tmp_path / "two"), "--device", "cpu"]
    assert invoke(app, ["predict", str(path), *given]).exit_code == 0
    files = [tmp_path / out / "masks/scan.nii.gz" for out in ("one", "two")]
    assert files[0].read_bytes() == files[1].read_bytes()


READ = {
    "volumes": {"percentiles": [1, 99]},
    "abus": {"slices": "all", "percentiles": [1, 99]},
    "nifti": {"slices": "all", "window": [0, 200]},
}


@pytest.mark.parametrize("layout", READ)
def test_slices_are_those_that_training_sees_and_masks_go_where_they_came_from(layout, tmp_path):
    write_phantom(layout, tmp_path / "data", 2, 64, seed=3, odd_cases=True)
    config = load_config(
        {
            "datasets": {"d": {"layout": layout, "root": "data", "options": READ[layout]}},
            "coarse": {"unet": {"model": "unet", "init": "random"}},
            "compare": {"coarse": ["unet"]},
        }
    )
    (reading,) = readings_of(config, ["d"])
    cases = list_cases(layout, tmp_path / "data", "d", READ[layout]).cases
    volumes = {case.image: [one for one in cases if one.image == case.image] for case in cases}
    lesions = 0
    for path, mine in volumes.items():
        slices = open_volume(path, reading)
        mask = np.zeros(slices.shape, bool)
        assert len(mine) == len(mask)
        for case in mine:
            seen, index = load_case(case), parse_slice(case.part)[1]
            assert np.array_equal(slices.image(index), seen.image)
            mask[index] = seen.label
        lesions += mask.any()
        slices.write_mask(mask, tmp_path / "mask.nii.gz")
        labels = sitk.GetArrayFromImage(sitk.ReadImage(mine[0].masks[0]))
        back = sitk.GetArrayFromImage(sitk.ReadImage(tmp_path / "mask.nii.gz"))
        assert np.array_equal(back > 0, labels > 0)
    assert lesions


def test_how_volumes_are_read_is_what_training_says(run):
    bundle = bundle_of_run(run / "results", "tiny", "tiny")
    assert bundle.volumes == []
    assert choose_reading(bundle, None).options["axis"] == "HWD"
    ours = VolumeReading(layout="volumes", options={"axis": "DHW", "percentiles": (1.0, 99.0)})
    abus = VolumeReading(layout="abus", options={"axis": 2, "percentiles": (0.0, 100.0)})

    def of(*readings):
        return bundle.model_copy(update={"volumes": list(readings)})

    kept = choose_reading(of(ours), None).options
    assert kept["axis"] == "DHW" and kept["percentiles"] == [1.0, 99.0] and kept["axis_check"]
    told = choose_reading(of(ours), "HWD", check=False).options
    assert (told["axis"], told["axis_check"], told["percentiles"]) == ("HWD", False, [1.0, 99.0])
    assert choose_reading(of(abus), None) == abus
    assert choose_reading(of(abus), "HWD").layout == "volumes"
    with pytest.raises(ConfigError, match=r"read in 2 ways \(volumes .*abus"):
        choose_reading(of(ours, abus), None)
    assert choose_reading(of(ours, abus), "DHW").options["percentiles"] == [1.0, 99.0]
    with pytest.raises(ConfigError, match="--no-axis-check: has no effect"):
        choose_reading(of(abus), None, check=False)
