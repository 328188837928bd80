"""Guards predictions of volumes through which lesions are followed: what the study would say."""

import numpy as np
import pytest
from predicted_volumes import grays, save, written

from tests.deploy_fixture import make_run
from tests.sam_fixture import write_tiny_medsam2
from ultrarefiner.deploy import pipeline
from ultrarefiner.deploy.bundle import bundle_of_run
from ultrarefiner.deploy.contents import File
from ultrarefiner.deploy.inputs import find_inputs
from ultrarefiner.deploy.predict import predict_images
from ultrarefiner.deploy.volumes import predict_volumes
from ultrarefiner.errors import ConfigError
from ultrarefiner.images import read_mask, write_png, write_probability
from ultrarefiner.io import file_sha256, read_rows, write_json, write_rows
from ultrarefiner.prompts.entries import prompt_record
from ultrarefiner.refine.jobs import embed_images, refine_masks

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(one_thread, tmp_path_factory):
    """Return the folder of a finished study, which has seen no volumes."""
    return make_run(tmp_path_factory.getbasetemp())


def following(run, weights, fold=0, **options):
    """Return a method of the run whose refiner follows lesions through volumes."""
    bundle = bundle_of_run(run / "results", "tiny", "small-box", fold=fold)
    file = File(path=str(weights), sha256=file_sha256(weights))
    part = bundle.refiner.model_copy(
        update={"family": "medsam2", "options": {"image_size": 128, **options}, "weights": file}
    )
    return bundle.model_copy(update={"refiner": part})


@pytest.mark.parametrize(
    "options",
    [{"propagate": "memory", "largest_component": True}, {"propagate": "masks", "key": "middle"}],
    ids=["memory", "masks"],
)
def test_a_method_that_follows_lesions_gives_the_masks_of_the_study(run, tmp_path, options):
    weights = write_tiny_medsam2(tmp_path / "medsam2.pt")
    volume, bundle = grays(run), following(run, weights, **options)
    path = save(tmp_path / "scan.nii.gz", volume)
    counts = predict_volumes(
        bundle, find_inputs([path]), tmp_path / "out", "cpu", batch_size=2, overlays=False
    )
    assert (counts.predicted, counts.failed) == (1, 0)
    # The same by the study's job: images, coarse masks and prompts as files.
    coarse = pipeline.open_method(bundle_of_run(run / "results", "tiny", "tiny", fold=0), "cpu")
    records, rows = {}, []
    for index in range(volume.shape[2]):
        case = f"scan_slice_{index:03d}"
        image = np.repeat(volume[:, :, index, None], 3, axis=2)
        said = coarse.predict(image, case)
        write_png(tmp_path / "images" / f"{case}.png", image)
        write_probability(tmp_path / "soft" / f"{case}.png", said.probability)
        records[case] = prompt_record(bundle.refiner.prompt, case, said.mask)
        rows.append({"case": case, "volume": "scan", "index": index})
    file = pipeline.prompt_file(bundle.refiner, records)
    write_json(tmp_path / "prompts.json", file.model_dump(mode="json"))
    write_rows(tmp_path / "slices.csv", ["case", "volume", "index"], rows)
    splits = [{"case": case, "group": case, "fold": 0, "role": "test"} for case in records]
    write_rows(tmp_path / "splits.csv", ["case", "group", "fold", "role"], splits)
    given = bundle.refiner.options
    embedding = {"image_size": given["image_size"], "resize": "bicubic"}
    embed_images(
        "medsam2", str(weights), embedding, tmp_path / "images", tmp_path / "splits.csv", "fold0",
        None, None, tmp_path / "shelf", 1.0, tmp_path / "index.csv", "cpu",
    )  # fmt: skip
    refine_masks(
        "medsam2", str(weights), given, tmp_path / "prompts.json", tmp_path / "images",
        tmp_path / "soft", tmp_path / "index.csv", tmp_path / "shelf", 1.0, tmp_path / "masks",
        tmp_path / "masks.csv", "cpu", slices=tmp_path / "slices.csv",
    )  # fmt: skip
    mask = np.stack([read_mask(tmp_path / "masks" / f"{case}.png") for case in records], axis=2)
    assert mask.any() and np.array_equal(written(tmp_path / "out"), mask)
    with pytest.raises(ConfigError, match="follows lesions through volumes"):
        predict_images(bundle, [tmp_path / "images"], tmp_path / "other", "cpu")


def test_folds_that_follow_lesions_each_vote(run, tmp_path):
    weights = write_tiny_medsam2(tmp_path / "medsam2.pt")
    bundle = following(run, weights, None, propagate="masks")
    file = bundle.refiner.weights
    members = [one.model_copy(update={"refiner": file}) for one in bundle.members]
    part = bundle.refiner.model_copy(update={"weights": None})
    bundle = bundle.model_copy(update={"members": tuple(members), "refiner": part})
    assert bundle.refines_each and len(bundle.members) == 2
    path = save(tmp_path / "scan.nii.gz", grays(run, 3))
    masks = []
    for fold in (0, 1, None):
        out = tmp_path / str(fold)
        predict_volumes(bundle.of_fold(fold), find_inputs([path]), out, "cpu", overlays=False)
        masks.append(written(out) > 0)
    assert not np.array_equal(masks[0], masks[1])
    assert np.array_equal(masks[2], masks[0] | masks[1])  # at least half of the two
    (row,) = read_rows(tmp_path / "None/predictions.csv")
    assert 0 < float(row["agreement"]) < 1
