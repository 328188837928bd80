"""Guards that the same picture is found again, under any name, and different ones stay apart."""

import itertools

import cv2
import numpy as np
import pytest

from ultrarefiner.datasets.duplicates import (
    NO_STRUCTURE,
    cluster_duplicates,
    count_look_alikes,
    perceptual_hash,
    pixel_sha256,
    similar_pairs,
)
from ultrarefiner.datasets.phantom import draw_phantom


def _rgb(gray):
    return np.repeat(gray[..., None], 3, axis=2)


@pytest.fixture(scope="module")
def images():
    return [_rgb(draw_phantom(seed, 128, seed % 3 == 2)[0]) for seed in range(40)]


def _distance(one, other):
    return (one ^ other).bit_count()


def test_pixel_hash_tells_shape_and_pixels_apart():
    image = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    other = image.copy()
    other[1, 2, 0] += 1
    assert pixel_sha256(image) == pixel_sha256(image.copy())
    assert pixel_sha256(image) == pixel_sha256(np.asfortranarray(image))
    assert pixel_sha256(image) != pixel_sha256(image.reshape(4, 2, 3))
    assert pixel_sha256(image) != pixel_sha256(other)


@pytest.mark.parametrize(
    "change",
    [
        lambda x: np.clip(x * 1.1 + 8.0, 0, 255).astype(np.uint8),
        lambda x: cv2.imdecode(cv2.imencode(".jpg", x, [cv2.IMWRITE_JPEG_QUALITY, 80])[1], 1),
        lambda x: cv2.resize(x, None, fx=1.7, fy=1.7),
        lambda x: cv2.GaussianBlur(x, (0, 0), 1.0),
    ],
    ids=["brighter", "jpeg", "larger", "blurred"],
)
def test_near_duplicates_hash_alike(images, change):
    distances = [_distance(perceptual_hash(i), perceptual_hash(change(i))) for i in images]
    assert max(distances) <= 4


def test_different_images_hash_far_apart(images):
    hashes = [perceptual_hash(image) for image in images]
    assert all(0 < value < 2**64 and value.bit_count() == 32 for value in hashes)
    assert min(_distance(a, b) for a, b in itertools.combinations(hashes, 2)) > 8


def test_gray_and_rgb_hash_the_same(images):
    assert perceptual_hash(images[0]) == perceptual_hash(images[0][..., 0])


def test_images_without_structure_are_not_duplicates():
    blank = np.full((90, 120, 3), 7, np.uint8)
    other = np.full((60, 80, 3), 200, np.uint8)
    gradient = np.repeat(np.arange(200, dtype=np.uint8)[:, None, None], 150, axis=1).repeat(3, 2)
    noise = np.random.default_rng(0).integers(100, 104, (200, 200, 3)).astype(np.uint8)
    plain = [blank, other, gradient, noise]
    hashes = [perceptual_hash(image) for image in plain]
    assert hashes == [NO_STRUCTURE] * 4
    names = ["a", "b", "c", "d"]
    clusters = cluster_duplicates(names, [pixel_sha256(image) for image in plain], hashes)
    assert clusters == {name: name for name in names}
    # Exact copies of a blank image are the same picture all the same.
    assert cluster_duplicates(["y", "x"], ["h", "h"], [0, 0]) == {"x": "x", "y": "x"}


def test_clusters_chain_and_take_the_smallest_name():
    base = int("0123456789abcdef", 16)
    near, far, farther = base ^ 0b1111, base ^ 0b11111111, base ^ 0b11111
    ids = ["m", "z", "b", "q", "k"]
    hashes = [base, near, far, 1 << 63, farther ^ (0xFF << 40)]
    clusters = cluster_duplicates(ids, ["1", "2", "3", "4", "5"], hashes)
    assert clusters == {"m": "b", "z": "b", "b": "b", "q": "q", "k": "k"}
    # "m" and "b" differ in 8 bits: without the one between them they are apart.
    assert cluster_duplicates(["m", "b"], ["1", "3"], [base, far]) == {"m": "m", "b": "b"}
    assert cluster_duplicates(["m", "z"], ["1", "2"], [base, near], max_distance=3) == {
        "m": "m",
        "z": "z",
    }


def test_clusters_equal_those_of_a_plain_search_in_any_order():
    rng = np.random.default_rng(3)
    centers = [int(value) for value in rng.integers(1, 2**63, 12)]
    hashes = []
    for _ in range(150):
        value = centers[rng.integers(len(centers))]
        for bit in rng.integers(0, 64, rng.integers(0, 7)):
            value ^= 1 << int(bit)
        hashes.append(value)
    pixels = [str(rng.integers(0, 120)) for _ in hashes]
    ids = [f"case_{i:03d}" for i in rng.permutation(len(hashes))]

    parent = {i: i for i in ids}
    for _ in ids:
        for i, j in itertools.combinations(range(len(ids)), 2):
            if pixels[i] == pixels[j] or _distance(hashes[i], hashes[j]) <= 4:
                low = min(parent[ids[i]], parent[ids[j]])
                parent[ids[i]] = parent[ids[j]] = low
        if all(
            parent[ids[i]] == parent[ids[j]]
            for i, j in itertools.combinations(range(len(ids)), 2)
            if pixels[i] == pixels[j] or _distance(hashes[i], hashes[j]) <= 4
        ):
            break
    assert 1 < len(set(parent.values())) < len(ids)

    assert cluster_duplicates(ids, pixels, hashes) == parent
    order = rng.permutation(len(ids))
    shuffled = [[column[i] for i in order] for column in (ids, pixels, hashes)]
    assert cluster_duplicates(*shuffled) == parent


def test_clusters_across_blocks_of_a_large_set():
    rng = np.random.default_rng(0)
    hashes = [int(value) for value in rng.integers(1, 2**63, 2600)]
    hashes[2500] = hashes[3] ^ 0b101
    ids = [f"case_{i:04d}" for i in range(len(hashes))]
    clusters = cluster_duplicates(ids, ids, hashes)
    assert clusters["case_2500"] == "case_0003"
    assert len(set(clusters.values())) == len(ids) - 1


def test_pairs_are_direct_and_tell_equal_from_alike():
    base = int("0123456789abcdef", 16)
    hashes = [base, base ^ 0b1111, base ^ 0b11111111, base, 0, 0, 0]
    pixels = ["a", "b", "c", "a", "blank", "blank", "flat"]
    assert list(similar_pairs(pixels, hashes)) == [
        (0, 1, False),
        (0, 3, True),
        (1, 2, False),
        (1, 3, False),
        (4, 5, True),
    ]
    # 0 and 2 are alike through 1 alone, and do not count for each other.
    assert count_look_alikes(pixels, hashes) == [2, 3, 1, 2, 1, 1, 0]
    assert list(similar_pairs([], [])) == [] and count_look_alikes(["a"], [base]) == [0]


def test_pairs_equal_those_of_a_plain_search_across_blocks():
    rng = np.random.default_rng(1)
    centers = [int(value) for value in rng.integers(1, 2**63, 900)]
    hashes = [
        centers[rng.integers(len(centers))] ^ (1 << int(rng.integers(0, 64))) for _ in range(2100)
    ]
    pixels = [str(rng.integers(0, 5000)) for _ in hashes]
    # A pair beyond the second block, and one within a block.
    chosen = [*range(40), *range(1000, 1060), *range(2060, 2100)]
    plain = {
        (i, j, pixels[i] == pixels[j])
        for i, j in itertools.combinations(chosen, 2)
        if pixels[i] == pixels[j] or _distance(hashes[i], hashes[j]) <= 4
    }
    found = list(similar_pairs(pixels, hashes))
    among = set(chosen)
    assert {pair for pair in found if pair[0] in among and pair[1] in among} == plain
    assert found == sorted(set(found)) and len(plain) > 3


def test_bad_arguments_are_refused_and_nothing_is_nothing():
    assert cluster_duplicates([], [], []) == {}
    with pytest.raises(ValueError, match="distinct"):
        cluster_duplicates(["a", "a"], ["1", "2"], [1, 2])
    with pytest.raises(ValueError, match="distinct"):
        cluster_duplicates(["a", "b"], ["1", "2"], [1])
