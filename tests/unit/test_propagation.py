"""Lesions are followed through volumes: where they are looked up, how far, and what is kept."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from tests.sam_fixture import write_tiny_medsam2
from tests.workflow.study import changed
from ultrarefiner.errors import ConfigError, PromptError, UltraRefinerError
from ultrarefiner.images import read_mask, write_mask
from ultrarefiner.io import write_rows
from ultrarefiner.models.medsam2 import load_medsam2
from ultrarefiner.prompts import Prompt, prompt_from_mask
from ultrarefiner.refine import load_refiner, parse_options
from ultrarefiner.refine.linked import link_lesions
from ultrarefiner.refine.propagation import Slices, key_slices, propagate
from ultrarefiner.refine.volume_jobs import keep_largest, read_volume_cases
from ultrarefiner.study import load_study

DEPTH, HEIGHT, WIDTH = 8, 40, 48


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return write_tiny_medsam2(tmp_path_factory.mktemp("weights") / "medsam2.pt")


@pytest.fixture(scope="module")
def volume():
    """A volume with two lesions: one through slices 1 to 4, a smaller one on 5 and 6."""
    z, y, x = np.mgrid[:DEPTH, :HEIGHT, :WIDTH]
    large = (y - 14) ** 2 + (x - 16) ** 2 <= (10 - 2 * abs(z - 2)) ** 2
    large &= (z >= 1) & (z <= 4)
    small = ((y - 30) ** 2 + (x - 36) ** 2 <= 16) & (z >= 5) & (z <= 6)
    rng = np.random.default_rng(0)
    gray = rng.integers(60, 200, (DEPTH, HEIGHT, WIDTH)) - 50 * (large | small)
    return gray.astype(np.uint8), large | small


def slices_of(refiner, volume, kind="box", soft=None):
    gray, lesion = volume
    masks = lesion.astype(float) if soft is None else soft

    def prompts(index):
        if not (masks[index] >= 0.5).any():
            return []
        made = prompt_from_mask(masks[index], kind)
        return [made] if isinstance(made, Prompt) else made

    return Slices(
        "a volume",
        len(gray),
        lambda index: refiner.embed(np.repeat(gray[index][..., None], 3, 2)),
        lambda index: masks[index],
        prompts,
        kind,
    )


def refiner_of(weights, **options):
    return load_refiner("medsam2", weights, image_size=128, **options)


def test_lesions_are_those_of_a_labelled_volume():
    rng = np.random.default_rng(3)
    for _ in range(5):
        volume = ndimage.gaussian_filter(rng.standard_normal((9, 24, 24)), 1.2) > 0.3
        # Within slices corners count as contact, between slices they do not.
        within = np.zeros((3, 3, 3), dtype=int)
        within[1], within[0, 1, 1], within[2, 1, 1] = 1, 1, 1
        labels, count = ndimage.label(volume, within)
        linked = link_lesions(volume.__getitem__, len(volume))
        found = sorted(
            sum(linked.pixels[node] for node in nodes) for nodes in linked.members().values()
        )
        assert found == sorted(np.bincount(labels.ravel())[1:].tolist())
        assert len(found) == count


def test_each_lesion_has_its_key_slice(weights, volume):
    refiner = refiner_of(weights, propagate="memory")
    slices = slices_of(refiner, volume)
    assert key_slices(slices, "largest", 5) == [2, 5]
    assert key_slices(slices, "largest", 1) == [2]
    assert key_slices(slices, "middle", 5) == [3, 6]
    soft = volume[1] * np.linspace(0.6, 1.0, DEPTH)[:, None, None]
    # On slice 4 the model is surer, but the lesion has less than half of its pixels there.
    assert key_slices(slices_of(refiner, volume, soft=soft), "confident", 5) == [3, 6]
    nothing = np.zeros_like(soft)
    assert key_slices(slices_of(refiner, volume, soft=nothing), "largest", 5) == []


def test_memory_goes_from_the_key_slices_to_both_ends(weights, volume):
    refiner = refiner_of(weights, propagate="memory")
    slices, embedded = slices_of(refiner, volume), []
    embed = slices.embedding
    slices = replace(slices, embedding=lambda index: embedded.append(index) or embed(index))
    found = list(propagate(refiner, slices))
    # Each slice once for each of the two lesions, the key slices too.
    assert sorted(embedded) == sorted([*range(DEPTH), *range(DEPTH)])
    assert [one.index for one in found] == [2, 3, 4, 5, 6, 7, 1, 0, 5, 6, 7, 4, 3, 2, 1, 0]
    assert [one.index for one in found if one.prompts] == [2, 5]
    masks = np.zeros_like(volume[1])
    for one in found:
        masks[one.index] |= one.refinement.mask
    # What the library makes of a volume is the same.
    prompts = {key: prompt_from_mask(volume[1][key]) for key in (2, 5)}
    wanted = load_medsam2(weights, image_size=128).segment_volume(volume[0], prompts)
    assert np.count_nonzero(masks != wanted) <= 2e-3 * masks.size
    assert 0 < masks.mean() < 1


@pytest.mark.parametrize("kind", ["mask", "point", "box", "mask+point", "box+point"])
@pytest.mark.parametrize("way", ["memory", "masks"])
def test_every_kind_of_prompt_goes_both_ways(weights, volume, kind, way):
    refiner = refiner_of(weights, propagate=way, objects=1)
    found = list(propagate(refiner, slices_of(refiner, volume, kind)))
    assert found[0].index == 2
    assert found[0].prompts == 1
    before = found[0].refinement.mask
    if way == "masks" and before.any():
        assert all(one.prompts for one in found)
    # Random weights do not segment: a mask prompt that came back would be taken over as it was.
    both = np.count_nonzero(before & volume[1][2])
    assert 2 * both / (before.sum() + volume[1][2].sum()) < 0.95


def test_a_volume_without_memory_is_prompted_slices_alone(weights, volume):
    segmenter = load_medsam2(weights, image_size=128)
    prompts = {2: prompt_from_mask(volume[1][2])}
    alone = segmenter.segment_volume(volume[0], prompts, propagate=False)
    assert alone[2].any()
    assert not np.delete(alone, 2, axis=0).any()
    assert np.array_equal(alone[2], segmenter.segment_volume(volume[0], prompts)[2])
    shares = volume[0] / 255.0
    assert np.array_equal(alone, segmenter.segment_volume(shares, prompts, propagate=False))
    for wrong in (shares + 1, shares * np.nan, volume[0].astype(np.int16), volume[0][0]):
        with pytest.raises(PromptError, match=r"uint8 or of floats in \[0, 1\]"):
            segmenter.segment_volume(wrong, prompts)
    with pytest.raises(PromptError, match=r"slices \[9\] are prompted, and the volume has 8"):
        segmenter.segment_volume(volume[0], {9: prompts[2]})
    with pytest.raises(PromptError, match=r"mask is \(5, 5\) and the image \(40, 48\)"):
        segmenter.segment_volume(volume[0], {2: Prompt(mask=np.ones((5, 5), dtype=bool))})
    with pytest.raises(PromptError, match=r"point \(99, 2\) is outside"):
        segmenter.segment_volume(volume[0], {2: Prompt(points=[[99, 2]], labels=[1])})
    with pytest.raises(PromptError, match=r"logits of shape \(32, 32\)"):
        segmenter.segment_volume(volume[0], {2: Prompt(mask_logits=np.ones((8, 8)))})
    with pytest.raises(PromptError, match="without prompts"):
        segmenter.segment_volume(volume[0], {2: []})


def test_a_slice_where_masks_part_is_prompted_anew(weights, volume):
    plain = refiner_of(weights, propagate="memory")
    strict = refiner_of(weights, propagate="memory", reprompt=0.99)
    before, after = (
        {one.index: one for one in propagate(one, slices_of(one, volume))}
        for one in (plain, strict)
    )
    assert {index for index, one in before.items() if one.prompts} <= {2, 5}
    # No slice without a lesion is, as no prompt can be made there.
    prompted = {index for index, one in after.items() if one.prompts}
    assert prompted == set(np.flatnonzero(volume[1].any(axis=(1, 2))).tolist())


def test_the_largest_lesion_is_kept(volume, tmp_path):
    paths = [tmp_path / f"{index}.png" for index in range(DEPTH)]
    for path, mask in zip(paths, volume[1], strict=True):
        write_mask(path, mask)
    keep_largest(paths)
    kept = np.stack([read_mask(path) for path in paths])
    assert not kept[5:].any()
    assert np.array_equal(kept[:5], volume[1][:5])


def test_a_part_that_tears_a_volume_is_refused(tmp_path):
    rows = [{"case": f"d__v_{i}", "volume": "d__v", "index": i} for i in (2, 0, 10, 1)]
    write_rows(tmp_path / "slices.csv", ["case", "volume", "index"], rows)
    found = read_volume_cases(tmp_path / "slices.csv", [row["case"] for row in rows])
    assert found == {"d__v": ["d__v_0", "d__v_1", "d__v_2", "d__v_10"]}
    with pytest.raises(UltraRefinerError, match="d__v_10 are slices of volumes of which this part"):
        read_volume_cases(tmp_path / "slices.csv", ["d__v_0", "d__v_1", "d__v_2"])
    with pytest.raises(UltraRefinerError, match="does not say of which volume d__w_0"):
        read_volume_cases(tmp_path / "slices.csv", ["d__w_0"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"key": "middle"}, "key has no effect with propagate: none"),
        ({"propagate": "masks", "reprompt": 0.5}, "reprompt has no effect with propagate: masks"),
        ({"propagate": "memory", "passes": 2}, "passes has no effect with propagate: memory"),
    ],
)
def test_keys_without_effect_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        parse_options("medsam2", options)


def test_slices_and_volumes_come_to_the_frame_as_their_authors_have_it():
    assert parse_options("medsam2", {}).resize == "bilinear"
    assert parse_options("medsam2", {"propagate": "masks"}).resize == "bicubic"
    assert (
        parse_options("medsam2", {"propagate": "memory", "resize": "bilinear"}).resize == "bilinear"
    )


STUDY = {
    "datasets": {"sweep": {"layout": "volumes", "phantom": {}}},
    "coarse": {"net": {"model": "transunet_tiny", "init": "random"}},
    "prompts": {
        "box": {"kind": "box"},
        "loose": {"kind": "box", "expand": 0.2},
        "crop": {"kind": "box", "crop": {}},
    },
    "refiners": {"chain": {"family": "medsam2", "weights": "tiny.pth", "propagate": "masks"}},
    "compare": {"coarse": ["net"], "refine": {"chain": ["box"]}},
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"datasets__busi": {"phantom": {}}}, "dataset 'busi' holds single images"),
        ({"compare__refine": {"chain": ["crop"]}}, "'crop' crops around each mask"),
        ({"compare__refine": {"chain": ["loose"]}}, "'loose' has `expand`, which says nothing"),
        (
            {"compare__guarded": ["chain-box"]},
            "chain-box follows volumes, and a guard judges single",
        ),
    ],
)
def test_studies_that_cannot_follow_are_refused(change, message):
    assert load_study(STUDY).methods
    with pytest.raises(ConfigError, match=message):
        load_study(changed(STUDY, **change))
