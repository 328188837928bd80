"""Find images that are the same picture, so that no fold tests on what it trained on.

Two views of "the same": equal decoded pixels, and equal appearance. The second one is the DCT
perceptual hash (C. Zauner, "Implementation and benchmarking of perceptual image hash functions",
2010): 64 signs of low frequencies, which brightness, contrast, scaling and compression hardly
change.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from itertools import combinations

import cv2
import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

NO_STRUCTURE = 0
"""Hash of an image without low-frequency structure: it resembles nothing, by definition."""

MAX_DISTANCE = 4
"""Largest Hamming distance between the hashes of images that look alike."""

_SIDE = 32
_BITS = 64
# Root mean square of the 64 coefficients, in gray levels, below which their signs are noise.
_MIN_STRUCTURE = 0.5
_BLOCK = 1024


def pixel_sha256(image: np.ndarray) -> str:
    """Return the SHA-256 of decoded pixels and their shape, in hex.

    Args:
        image: uint8 (H, W, 3).
    """
    digest = hashlib.sha256(f"{image.shape} {image.dtype}\n".encode())
    digest.update(np.ascontiguousarray(image).tobytes())
    return digest.hexdigest()


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
    """Return the bits of 64-bit hashes as float32 (N, 64) of -1 and 1."""
    words = np.array([int(value) for value in hashes], dtype=np.uint64).astype(">u8")
    bits = np.unpackbits(words.view(np.uint8).reshape(-1, 8), axis=1)
    return bits.astype(np.float32) * 2.0 - 1.0


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
    equal = np.array([[first_with.setdefault(value, i), i] for i, value in enumerate(pixel_hashes)])
    rows, columns = np.concatenate([equal, _alike(perceptual_hashes, max_distance)]).T
    graph = coo_matrix((np.ones(len(rows), np.int8), (rows, columns)), shape=(count, count))
    component = connected_components(graph, directed=False)[1]
    smallest: dict[int, str] = {}
    for case, label in sorted(zip(ids, component.tolist(), strict=True)):
        smallest.setdefault(label, case)
    return {case: smallest[label] for case, label in zip(ids, component.tolist(), strict=True)}


def similar_pairs(
    pixel_hashes: Sequence[str],
    perceptual_hashes: Sequence[int],
    max_distance: int = MAX_DISTANCE,
) -> list[tuple[int, int, bool]]:
    """Return the pairs of images that are the same picture, not through others.

    Args:
        pixel_hashes: `pixel_sha256` of each image.
        perceptual_hashes: `perceptual_hash` of each.
        max_distance: Largest Hamming distance.

    Returns:
        Sorted (i, j, equal) with i < j: `equal` where the pixels are, else they only look alike.
    """
    same: dict[str, list[int]] = defaultdict(list)
    for index, value in enumerate(pixel_hashes):
        same[value].append(index)
    found = {tuple(pair): False for pair in _alike(perceptual_hashes, max_distance).tolist()}
    for indices in same.values():
        found |= dict.fromkeys(combinations(indices, 2), True)
    return sorted((i, j, equal) for (i, j), equal in found.items())


def count_look_alikes(pixel_hashes: Sequence[str], perceptual_hashes: Sequence[int]) -> list[int]:
    """Return for each image how many others have equal pixels or look like it."""
    counts = [0] * len(pixel_hashes)
    for i, j, _ in similar_pairs(pixel_hashes, perceptual_hashes):
        counts[i] += 1
        counts[j] += 1
    return counts


def _alike(hashes: Sequence[int], max_distance: int) -> np.ndarray:
    """Return the pairs i < j of hashes that differ in few bits, int (N, 2)."""
    known = np.flatnonzero([value != NO_STRUCTURE for value in hashes])
    signs = _signs([hashes[i] for i in known])
    pairs = [np.zeros((0, 2), np.int64)]
    for start in range(0, len(known), _BLOCK):
        # The product of two rows of signs is 64 - 2 * their Hamming distance.
        product = signs[start : start + _BLOCK] @ signs[start:].T
        near = np.argwhere(product >= _BITS - 2 * max_distance)
        pairs.append(known[near[near[:, 0] < near[:, 1]] + start])
    return np.concatenate(pairs)
