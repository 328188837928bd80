"""Find images that are the same picture, so that no fold tests on what it trained on.

Two views of "the same": equal decoded pixels, and equal appearance. The second one is the DCT
perceptual hash (C. Zauner, "Implementation and benchmarking of perceptual image hash functions",
2010): 64 signs of low frequencies, which brightness, contrast, scaling and compression hardly
change.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence

import cv2
import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from ultrarefiner.datasets.base import Case

NO_STRUCTURE = 0
"""Hash of an image without low-frequency structure: it resembles nothing, by definition."""

MAX_DISTANCE = 4
"""Largest Hamming distance between the hashes of images that look alike."""

_SIDE = 32
_BITS = 64
# Root mean square of the 64 coefficients, in gray levels, below which their signs are noise.
_MIN_STRUCTURE = 0.5
# Hashes compared at a time: a table of so many rows and columns is in memory, 2 MB.
_BLOCK, _COLUMNS = 512, 1024


def pixel_sha256(image: np.ndarray) -> str:
    """Return the SHA-256 of decoded pixels and their shape, in hex.

    Args:
        image: uint8 (H, W, 3).
    """
    digest = hashlib.sha256(f"{image.shape} {image.dtype}\n".encode())
    digest.update(np.ascontiguousarray(image).tobytes())
    return digest.hexdigest()


def case_sha256(image: np.ndarray, case: Case) -> str:
    """Return `pixel_sha256` of a case's image, or one that no other case has.

    The latter where the image is one slice of a whole volume and has one value all over: black
    slices at the ends of two volumes are no sign that the two are the same.
    """
    if case.whole and image.min() == image.max():
        return hashlib.sha256(f"flat slice {case.id}".encode()).hexdigest()
    return pixel_sha256(image)


def perceptual_hash(image: np.ndarray) -> int:
    """Return the 64-bit perceptual hash of an image.

    The first row and column of the spectrum are left out: the mean brightness and the fall of
    brightness with depth are common to all ultrasound images and tell nothing.

    Args:
        image: uint8 (H, W, 3) RGB or (H, W) gray.

    Returns:
        32 of 64 bits set; `NO_STRUCTURE` for a flat image or a plain gradient, whose hash would
        be noise that makes all blank images alike or unlike by chance.
    """
    gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) if image.ndim == 3 else image
    small = cv2.resize(gray.astype(np.float32), (_SIDE, _SIDE), interpolation=cv2.INTER_AREA)
    block = cv2.dct(small)[1:9, 1:9].ravel().astype(np.float64)
    if np.sqrt(np.mean(block**2)) < _MIN_STRUCTURE:
        return NO_STRUCTURE
    # Rounded, or the last bits of a symmetric image would depend on the library's arithmetic.
    block = np.round(block, 2)
    bits = block > np.median(block)
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def _signs(hashes: Sequence[int]) -> np.ndarray:
    """Return the bits of 64-bit hashes as int8 (N, 64) of -1 and 1."""
    words = np.array([int(value) for value in hashes], dtype=np.uint64).astype(">u8")
    bits = np.unpackbits(words.view(np.uint8).reshape(-1, 8), axis=1)
    bits = bits.view(np.int8)
    bits *= 2
    bits -= 1
    return bits


def cluster_duplicates(
    ids: Sequence[str],
    pixel_hashes: Sequence[str],
    perceptual_hashes: Sequence[int],
    max_distance: int = MAX_DISTANCE,
) -> dict[str, str]:
    """Group images that are duplicates of each other, directly or through others.

    Args:
        ids: Case ids, each once, in any order.
        pixel_hashes: `pixel_sha256` of each; equal ones are duplicates.
        perceptual_hashes: `perceptual_hash` of each; those that differ in at most
            `max_distance` of 64 bits are duplicates, `NO_STRUCTURE` never is.
        max_distance: Largest Hamming distance.

    Returns:
        The cluster of each id, named after the smallest id in it; an image like no other is a
        cluster of its own. It does not depend on the order of the arguments.
    """
    if not len(ids) == len(pixel_hashes) == len(perceptual_hashes) == len(set(ids)):
        raise ValueError("ids must be distinct, with one pixel and one perceptual hash for each")
    count = len(ids)
    if count == 0:
        return {}
    first_with: dict[str, int] = {}
    first = np.array([first_with.setdefault(value, i) for i, value in enumerate(pixel_hashes)])
    component = _merge(np.arange(count), np.stack([first, np.arange(count)], axis=1))
    for _, pairs in _alike(perceptual_hashes, max_distance):
        component = _merge(component, pairs)
    smallest: dict[int, str] = {}
    for case, label in sorted(zip(ids, component.tolist(), strict=True)):
        smallest.setdefault(label, case)
    return {case: smallest[label] for case, label in zip(ids, component.tolist(), strict=True)}


def _merge(component: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Return the component of each image after the components of some pairs became one."""
    if not len(pairs):
        return component
    count = len(component)
    rows, columns = component[pairs].T
    # Wide enough a number: many pairs may fall on the same two components, and are summed.
    graph = coo_matrix((np.ones(len(rows), np.int64), (rows, columns)), shape=(count, count))
    return connected_components(graph, directed=False)[1][component]


def similar_pairs(
    pixel_hashes: Sequence[str],
    perceptual_hashes: Sequence[int],
    max_distance: int = MAX_DISTANCE,
) -> Iterator[tuple[int, int, bool]]:
    """Yield the pairs of images that are the same picture, not through others.

    Those of some hundred images are in memory at a time: loops and volumes hold far more pairs
    than images.

    Args:
        pixel_hashes: `pixel_sha256` of each image.
        perceptual_hashes: `perceptual_hash` of each.
        max_distance: Largest Hamming distance.

    Yields:
        Sorted (i, j, equal) with i < j: `equal` where the pixels are, else they only look alike.
    """
    same: dict[str, list[int]] = defaultdict(list)
    for index, value in enumerate(pixel_hashes):
        same[value].append(index)
    for start, alike in _alike(perceptual_hashes, max_distance):
        found = {tuple(pair): False for pair in alike.tolist()}
        for index in range(start, min(start + _BLOCK, len(pixel_hashes))):
            others = same[pixel_hashes[index]]
            found |= {(index, other): True for other in others if other > index}
        for (i, j), equal in sorted(found.items()):
            yield i, j, equal


def count_look_alikes(pixel_hashes: Sequence[str], perceptual_hashes: Sequence[int]) -> list[int]:
    """Return for each image how many others have equal pixels or look like it."""
    counts = [0] * len(pixel_hashes)
    for i, j, _ in similar_pairs(pixel_hashes, perceptual_hashes):
        counts[i] += 1
        counts[j] += 1
    return counts


def _alike(hashes: Sequence[int], max_distance: int) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the pairs of hashes that differ in few bits, in blocks of their first one.

    Yields:
        Where the block starts, and its pairs i < j with `start <= i < start + _BLOCK`, int (N, 2).
    """
    signs = _signs(hashes)
    # Without structure there is no sign: the product with any row is 0, far from alike.
    signs[np.array([value == NO_STRUCTURE for value in hashes], bool)] = 0
    for start in range(0, len(hashes), _BLOCK):
        block = signs[start : start + _BLOCK].astype(np.float32)
        pairs = []
        for column in range(start, len(hashes), _COLUMNS):
            # The product of two rows of signs is 64 - 2 * their Hamming distance.
            product = block @ signs[column : column + _COLUMNS].T.astype(np.float32)
            near = np.argwhere(product >= _BITS - 2 * max_distance)
            near += np.array([start, column])
            pairs.append(near[near[:, 0] < near[:, 1]])
        yield start, np.concatenate(pairs)
