"""Guards `ultrarefiner predict`: any image in, masks at its own size out, and no failure unsaid."""

import csv
import shutil

import cv2
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from tests.deploy_fixture import CASES, CONFIG, image_of, make_run, write_study
from tests.sam_refiners import scene
from ultrarefiner.cli import app
from ultrarefiner.datasets.phantoms.manifest import write_dicom
from ultrarefiner.deploy import pipeline
from ultrarefiner.deploy.bundle import bundle_of_run
from ultrarefiner.deploy.outputs import COLUMNS
from ultrarefiner.errors import PromptError
from ultrarefiner.images import read_gray, read_mask, read_rgb
from ultrarefiner.io import file_sha256, read_json


@pytest.fixture(scope="module")
def run(one_thread, tmp_path_factory):
    """Return the folder of a finished study."""
    return make_run(tmp_path_factory.getbasetemp())


def call(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def predict(run, out, *images, method="tiny", ok=True, **options):
    """Call the command on a method of the run; return its result and the table."""
    extra = [part for key, value in options.items() for part in (f"--{key}", value)]
    result = call(
        "predict", *images, "--results", run / "results", "--run", "tiny", "--method", method,
        "-o", out, "--device", "cpu", *extra,
    )  # fmt: skip
    assert result.exception is None or isinstance(result.exception, SystemExit)
    assert (result.exit_code == 0) == ok, result.output
    return result, table(out) if (out / "predictions.csv").exists() else {}


def table(out):
    with open(out / "predictions.csv", newline="", encoding="utf-8") as handle:
        reader = csv.DictReader(handle)
        assert reader.fieldnames == COLUMNS
        return {row["name"]: row for row in reader}


def contents(out, *folders):
    return {
        path.relative_to(out).as_posix(): path.read_bytes()
        for folder in folders or ("masks", "probabilities", "overlays")
        for path in sorted((out / folder).glob("*"))
    }


def opened(run, method, **options):
    return pipeline.open_method(bundle_of_run(run / "results", "tiny", method), "cpu", **options)


def save_cases(run, folder, count=3):
    folder.mkdir(parents=True)
    for case in CASES[:count]:
        Image.fromarray(image_of(run, case)).save(folder / f"{case}.png")
    return folder


@pytest.mark.parametrize("method", ["tiny", "small-crop", "tuned-box"])
def test_an_image_of_another_size_than_in_training(run, tmp_path, method):
    image, _ = scene(301, 222)
    Image.fromarray(image).save(tmp_path / "a.png")
    _, rows = predict(run, tmp_path / "out", tmp_path / "a.png", method=method)
    mask, soft = (
        read_gray(tmp_path / "out/masks/a.png"),
        read_gray(tmp_path / "out/probabilities/a.png"),
    )
    overlay = read_rgb(tmp_path / "out/overlays/a.png")
    assert mask.shape == soft.shape == overlay.shape[:2] == (301, 222)
    said = opened(run, method).predict(image, "a")
    assert said.mask.any() and not said.mask.all()
    assert np.array_equal(mask, np.where(said.mask, 255, 0))
    assert np.array_equal(soft, np.rint(said.probability * 255))
    row = rows["a"]
    assert (row["height"], row["width"], row["frame"]) == ("301", "222", "")
    assert row["file"] == str(tmp_path / "a.png")
    assert int(row["lesion_px"]) == said.mask.sum() and row["lesion_mm2"] == ""
    components = cv2.connectedComponents(said.mask.astype(np.uint8))[0] - 1
    assert int(row["components"]) == components
    mean = said.probability[said.mask].astype(float).mean()
    assert float(row["probability_mean"]) == pytest.approx(mean, abs=1e-6)
    for key in ("score", "agreement", "coarse_iou"):
        value = getattr(said, key)
        assert row[key] == ("" if value is None else str(round(value, 6)))
    assert row["warnings"] == "; ".join(said.warnings)
    assert (row["note"], row["error"]) == ("", "")


def test_a_16_bit_tiff_is_segmented_as_its_8_bits_are(run, tmp_path):
    gray = image_of(run, CASES[0])[..., 0]
    Image.fromarray(gray).save(tmp_path / "a.png")
    Image.fromarray(gray.astype(np.uint16) * 257).save(tmp_path / "b.tif")
    _, rows = predict(run, tmp_path / "out", tmp_path / "a.png", tmp_path / "b.tif")
    for folder in ("masks", "probabilities", "overlays"):
        first, second = (tmp_path / "out" / folder / f"{name}.png" for name in "ab")
        assert first.read_bytes() == second.read_bytes()
    assert rows["a"]["note"] == "" and rows["b"]["note"] == "16-bit image reduced to 8 bits"
    assert int(rows["b"]["lesion_px"]) > 0


def test_dicom_tells_the_area_in_square_millimetres(run, tmp_path):
    gray = image_of(run, CASES[0])[..., 0]
    write_dicom(tmp_path / "region.dcm", gray, 0.08)
    write_dicom(tmp_path / "attribute.dcm", gray, None, PixelSpacing=[0.2, 0.05])
    write_dicom(tmp_path / "unknown", np.stack([gray, gray[::-1]]), None)
    _, rows = predict(run, tmp_path / "out", tmp_path)
    assert sorted(rows) == ["attribute", "region", "unknown_frame0", "unknown_frame1"]
    pixels = int(rows["region"]["lesion_px"])
    assert pixels == opened(run, "tiny").predict(image_of(run, CASES[0])).mask.sum() > 0
    assert float(rows["region"]["lesion_mm2"]) == pytest.approx(pixels * 0.08**2)
    assert float(rows["attribute"]["lesion_mm2"]) == pytest.approx(pixels * 0.2 * 0.05)
    assert rows["unknown_frame0"]["lesion_mm2"] == ""
    assert [rows[f"unknown_frame{n}"]["frame"] for n in (0, 1)] == ["0", "1"]
    assert read_mask(tmp_path / "out/masks/unknown_frame1.png").shape == gray.shape


def test_a_folder_of_fifty_with_corrupt_files_among_them(run, tmp_path):
    folder = tmp_path / "images"
    (folder / "more").mkdir(parents=True)
    for number in range(50):
        image, _ = scene(60 + number, 90, seed=number)
        parent = folder / "more" if number % 5 == 0 else folder
        Image.fromarray(image).save(parent / f"case{number:02d}.png")
    (folder / "notes.txt").write_text("not an image")
    cut = folder / "case07.png"
    cut.write_bytes(cut.read_bytes()[:300])
    (folder / "more" / "case40.png").write_bytes(b"")
    result, rows = predict(run, tmp_path / "out", folder, method="grabcut-mask", ok=False)
    assert result.exit_code == 1
    assert "48 of 50 images predicted, 2 failed" in result.stdout
    assert "not images, left out: notes.txt" in result.stderr
    assert result.stderr.count("error: ") == 2
    for path in (cut, folder / "more" / "case40.png"):
        assert f"error: {path}: cannot be decoded" in result.stderr
    assert "predict:" not in result.output, "no progress bar where there is no terminal"
    assert len(rows) == 50
    failed = {name for name, row in rows.items() if row["error"]}
    assert failed == {"case07", "more_case40"}
    for name, row in rows.items():
        there = [(tmp_path / "out" / one / f"{name}.png").exists() for one in ("masks", "overlays")]
        assert there == [name not in failed] * 2
        if name not in failed:
            assert read_mask(tmp_path / "out/masks" / f"{name}.png").sum() == int(row["lesion_px"])
    assert [row["file"] for row in rows.values()] == sorted(row["file"] for row in rows.values())
    counts = read_json(tmp_path / "out/predict.json")["counts"]
    assert (counts["images"], counts["predicted"], counts["failed"]) == (50, 48, 2)
    # Mended, the two are predicted and nothing else is.
    for path in (cut, folder / "more" / "case40.png"):
        Image.fromarray(scene(70, 80)[0]).save(path)
    before = contents(tmp_path / "out")
    result, rows = predict(run, tmp_path / "out", folder, method="grabcut-mask")
    assert "2 of 50 images predicted, 48 kept from before" in result.stdout
    assert not any(row["error"] for row in rows.values())
    after = contents(tmp_path / "out")
    assert before.items() <= after.items() and len(after) == len(before) + 6


def test_images_of_one_name_do_not_overwrite_each_other_in_any_order(run, tmp_path):
    folder = tmp_path / "images"
    (folder / "sub").mkdir(parents=True)
    for number, name in enumerate(["a.png", "a.bmp", "sub/a.png"]):
        Image.fromarray(image_of(run, CASES[number])).save(folder / name)
    _, rows = predict(run, tmp_path / "one", folder)
    assert sorted(rows) == ["a_bmp", "a_png", "sub_a"]
    given = [folder / "sub" / "a.png", folder / "a.png", folder / "a.bmp"]
    predict(run, tmp_path / "two", *given, folder)
    predict(run, tmp_path / "three", folder, *given[::-1])
    assert contents(tmp_path / "one") == contents(tmp_path / "two") == contents(tmp_path / "three")
    said = [(tmp_path / one / "predictions.csv").read_bytes() for one in ("one", "two", "three")]
    assert said[0] == said[1] == said[2]
    assert read_mask(tmp_path / "one/masks/a_bmp.png").shape == image_of(run, CASES[1]).shape[:2]


def test_an_interrupted_run_goes_on_where_it_was(run, tmp_path, monkeypatch):
    folder = save_cases(run, tmp_path / "images", 6)
    predict(run, tmp_path / "whole", folder, method="small-box")
    plain = pipeline.Predictor.predict_batch
    seen = []

    def interrupted(self, images, names):
        if len(seen) == 4:
            raise KeyboardInterrupt
        seen.extend(names)
        return plain(self, images, names)

    out, options = tmp_path / "out", {"method": "small-box", "batch-size": 2}
    with monkeypatch.context() as patch:
        patch.setattr(pipeline.Predictor, "predict_batch", interrupted)
        predict(run, out, folder, ok=False, **options)
    assert not (out / "predictions.csv").exists()
    assert read_json(out / "predict.json")["finished"] is False
    # A picture without its record is not finished, nor is a record without its picture.
    (out / ".finished" / f"{CASES[1]}.json").unlink()
    (out / "masks" / f"{CASES[2]}.png").unlink()
    again = []

    def counted(self, images, names):
        again.extend(names)
        return plain(self, images, names)

    monkeypatch.setattr(pipeline.Predictor, "predict_batch", counted)
    result, rows = predict(run, out, folder, **options)
    assert "4 of 6 images predicted, 2 kept from before" in result.stdout
    assert again == [CASES[1], CASES[2], CASES[4], CASES[5]]
    assert contents(out) == contents(tmp_path / "whole")
    assert rows == table(tmp_path / "whole")
    assert read_json(out / "predict.json")["finished"] is True
    assert not list(out.rglob(".partial-*"))


def test_a_folder_with_something_else_in_it_is_left_as_it_is(run, tmp_path):
    folder = save_cases(run, tmp_path / "images", 2)
    out = tmp_path / "out"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("x")
    (tmp_path / "file").write_text("x")
    for wrong, says in (("other", "holds no predictions"), ("file", "is a file")):
        result, _ = predict(run, tmp_path / wrong, folder, ok=False)
        assert says in result.stderr and "--output" in result.stderr
    predict(run, out, folder)
    before = contents(out)
    for options in ({"method": "tiny-tuned"}, {"threshold": 0.4}, {"fold": 0}):
        result, _ = predict(run, out, folder, ok=False, **options)
        assert "another model or with another threshold" in result.stderr
        assert "--output" in result.stderr
    result, _ = predict(run, out, folder / f"{CASES[0]}.png", ok=False)
    assert f"not among these: {CASES[1]}" in result.stderr
    other = save_cases(run, tmp_path / "elsewhere", 2)
    Image.fromarray(scene(50, 60)[0]).save(other / f"{CASES[0]}.png")
    result, _ = predict(run, out, other, ok=False)
    assert f"under the name '{CASES[0]}'" in result.stderr
    assert contents(out) == before
    # The same images from another place are the same images.
    shutil.copytree(folder, tmp_path / "copy")
    result, rows = predict(run, out, tmp_path / "copy")
    assert "0 of 2 images predicted, 2 kept" in result.stdout
    assert rows[CASES[0]]["file"] == str(tmp_path / "copy" / f"{CASES[0]}.png")


def test_an_image_that_has_changed_is_predicted_anew(run, tmp_path):
    folder = save_cases(run, tmp_path / "images", 2)
    predict(run, tmp_path / "out", folder)
    Image.fromarray(scene(50, 60)[0]).save(folder / f"{CASES[0]}.png")
    result, _ = predict(run, tmp_path / "out", folder)
    assert "1 of 2 images predicted, 1 kept" in result.stdout
    assert read_mask(tmp_path / "out/masks" / f"{CASES[0]}.png").shape == (50, 60)
    (folder / f"{CASES[0]}.png").write_bytes(b"cut off")
    _, rows = predict(run, tmp_path / "out", folder, ok=False)
    assert rows[CASES[0]]["error"]
    assert not (tmp_path / "out/masks" / f"{CASES[0]}.png").exists()


def test_an_image_that_cannot_be_prompted_costs_the_others_nothing(run, tmp_path, monkeypatch):
    folder = save_cases(run, tmp_path / "images", 4)
    predict(run, tmp_path / "whole", folder)
    plain = pipeline.Predictor.predict_batch

    def refused(self, images, names):
        if CASES[1] in names:
            raise PromptError("there is no such point")
        return plain(self, images, names)

    monkeypatch.setattr(pipeline.Predictor, "predict_batch", refused)
    result, rows = predict(run, tmp_path / "out", folder, ok=False)
    assert "there is no such point" in result.stderr
    assert rows[CASES[1]]["error"] == "there is no such point"
    wanted = contents(tmp_path / "whole")
    for one in ("masks", "probabilities", "overlays"):
        wanted.pop(f"{one}/{CASES[1]}.png")
    assert contents(tmp_path / "out") == wanted


def test_batches_and_overlays_change_no_mask(run, tmp_path):
    folder = save_cases(run, tmp_path / "images", 5)
    predict(run, tmp_path / "out", folder, method="tuned-box")
    predict(run, tmp_path / "one", folder, method="tuned-box", **{"batch-size": 1})
    assert contents(tmp_path / "one") == contents(tmp_path / "out")
    extra = ["--results", run / "results", "--run", "tiny", "--device", "cpu", "--no-overlays"]
    result = call("predict", folder, *extra, "--method", "tuned-box", "-o", tmp_path / "plain")
    assert result.exit_code == 0, result.output
    assert not (tmp_path / "plain" / "overlays").exists()
    kept = ("masks", "probabilities")
    assert contents(tmp_path / "plain", *kept) == contents(tmp_path / "out", *kept)


def test_the_models_of_one_fold_alone(run, tmp_path):
    folder = save_cases(run, tmp_path / "images", 1)
    _, rows = predict(run, tmp_path / "out", folder, fold=1)
    said = opened(run, "tiny", fold=1).predict(image_of(run, CASES[0]))
    assert np.array_equal(read_mask(tmp_path / "out/masks" / f"{CASES[0]}.png"), said.mask)
    assert rows[CASES[0]]["agreement"] == ""
    assert read_json(tmp_path / "out/predict.json")["folds"] == [1]


def test_it_is_written_down_what_made_the_predictions(run, tmp_path):
    folder = save_cases(run, tmp_path / "images", 1)
    predict(run, tmp_path / "out", folder, method="small-box", threshold=0.4)
    about = read_json(tmp_path / "out/predict.json")
    assert (about["method"], about["run"], about["trainset"]) == ("small-box", "tiny", "toy")
    assert about["folds"] == [0, 1] and about["finished"] is True
    assert len(about["models"]) == 7
    for one in about["models"]:
        assert file_sha256(one["file"]) == one["sha256"]
    wanted = {"threshold": 0.4, "device": "cpu", "batch_size": 8, "overlays": True}
    assert about["options"] == wanted
    assert about["versions"]["torch"] and about["git_revision"]
    counts = about["counts"]
    assert (counts["images"], counts["predicted"], counts["kept"], counts["failed"]) == (1, 1, 0, 0)
    (row,) = table(tmp_path / "out").values()
    assert counts["warnings"] == dict.fromkeys(row["warnings"].split("; "), 1)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--run", "tiny"], "--method is missing; run 'tiny' has tiny, tiny-tuned, grabcut-mask"),
        (["--method", "tiny"], "--run is missing"),
        ([], "--run RUN --method METHOD, or --model FOLDER"),
        (["--run", "tyni", "--method", "tiny"], "Did you mean 'tiny'?"),
        (["--run", "tiny", "--method", "tiny-tunde"], "Did you mean 'tiny-tuned'?"),
        (["--run", "tiny", "--method", "small-oracle_box"], "needs no truth|is an oracle"),
        (["--run", "tiny", "--method", "tiny@toy"], "--method tiny --trainset toy"),
        (["--run", "tiny", "--method", "tiny", "--trainset", "tyo"], "Did you mean 'toy'?"),
        (["--run", "tiny", "--method", "tiny", "--fold", "7"], "no fold 7; it has 0, 1"),
        (["--run", "tiny", "--method", "tiny", "--threshold", "1.5"], "not between 0 and 1"),
        (["--run", "tiny", "--method", "tiny", "--device", "tpu"], "tpu is not on this machine"),
        (["--run", "tiny", "--model", "x"], "--model and --run exclude each other"),
        (["--model", "nowhere"], "nowhere is no folder"),
    ],
)
def test_what_cannot_be_done_is_said_with_the_cure(run, tmp_path, arguments, says):
    folder = save_cases(run, tmp_path / "images", 1)
    extra = [] if "--model" in arguments else ["--results", str(run / "results")]
    result = call("predict", folder, "-o", tmp_path / "out", *extra, *arguments)
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")
    assert any(part in result.stderr for part in says.split("|")), result.stderr
    assert not (tmp_path / "out" / "masks").exists()


def test_several_training_sets_have_to_be_told_apart(run, tmp_path):
    config = CONFIG | {"run": "both", "trainsets": {"all": ["toy", "second"]}}
    config["datasets"] = CONFIG["datasets"] | {"second": CONFIG["datasets"]["toy"]}
    write_study(tmp_path, config)
    folder = save_cases(run, tmp_path / "images", 1)
    common = ["predict", folder, "-o", tmp_path / "out", "--results", tmp_path / "results"]
    result = call(*common, "--run", "both", "--method", "tiny")
    assert result.exit_code == 1
    assert "--trainset: toy, second, all" in result.stderr
    models = tmp_path / "results" / "both" / "all" / "models"
    shutil.copytree(run / "results" / "tiny" / "toy" / "models", models)
    result = call(*common, "--run", "both", "--method", "tiny", "--trainset", "all")
    assert result.exit_code == 0, result.output
    result = call(*common, "--run", "both", "--method", "tiny", "--trainset", "second")
    assert result.exit_code == 1
    assert "second: 2 of 2 models are not there" in result.stderr
