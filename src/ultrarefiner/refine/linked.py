"""Lesions of a mask volume that is read slice by slice: components linked where they overlap."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

import cv2
import numpy as np

from ultrarefiner.prompts.geometry import SPECK, lesion_pixels

Node = tuple[int, int]
"""A component of a slice: index of the slice, and its label there from 1."""


@dataclass
class LinkedLesions:
    """Which components of the slices are one lesion.

    Attributes:
        above: Of each component the one it was linked with first, or itself.
        pixels: Pixels of each component.
        mean: Mean probability of its pixels.
    """

    above: dict[Node, Node] = field(default_factory=dict)
    pixels: dict[Node, int] = field(default_factory=dict)
    mean: dict[Node, float] = field(default_factory=dict)

    def root(self, node: Node) -> Node:
        """Return the first component of a component's lesion."""
        path = []
        while self.above[node] != node:
            path.append(node)
            node = self.above[node]
        for one in path:
            self.above[one] = node
        return node

    def link(self, one: Node, other: Node) -> None:
        """Say that two components are one lesion."""
        first, second = sorted((self.root(one), self.root(other)))
        self.above[second] = first

    def members(self) -> dict[Node, list[Node]]:
        """Return the components of each lesion, by its first."""
        found = defaultdict(list)
        for node in self.above:
            found[self.root(node)].append(node)
        return dict(found)

    def lesions(self, most: int) -> list[list[Node]]:
        """Return the components of each lesion, the largest lesion first; of equals the first.

        Lesions of fewer voxels than ``SPECK`` of the largest are left out, and those after ``most``.
        """
        members = self.members()
        sizes = {root: sum(self.pixels[one] for one in nodes) for root, nodes in members.items()}
        least = SPECK * max(sizes.values(), default=0)
        kept = [root for root, size in sizes.items() if size >= least]
        return [
            members[root] for root in sorted(kept, key=lambda root: (-sizes[root], root))[:most]
        ]

    def areas(self, lesion: list[Node]) -> dict[int, int]:
        """Return how many pixels a lesion has on each of its slices."""
        found: dict[int, int] = defaultdict(int)
        for node in lesion:
            found[node[0]] += self.pixels[node]
        return dict(found)

    def means(self, lesion: list[Node]) -> dict[int, float]:
        """Return the mean probability of a lesion's pixels on each of its slices."""
        areas, found = self.areas(lesion), defaultdict(float)
        for node in lesion:
            found[node[0]] += self.mean[node] * self.pixels[node] / areas[node[0]]
        return dict(found)


def label_slice(mask: np.ndarray) -> tuple[int, np.ndarray]:
    """Return how many 8-connected components a bool (H, W) mask has, and their labels from 1."""
    count, labels = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
    return count - 1, labels


def link_lesions(read: Callable[[int], np.ndarray], count: int) -> LinkedLesions:
    """Find the lesions of a volume; two slices are in memory at a time.

    Components of neighbouring slices are one lesion where they have a pixel in common.

    Args:
        read: Reads a slice, (H, W) bool or probability in [0, 1].
        count: Number of slices.
    """
    linked = LinkedLesions()
    before = None
    for index in range(count):
        values = read(index)
        found, labels = label_slice(lesion_pixels(values))
        sums = np.bincount(labels.ravel(), values.ravel().astype(np.float64), found + 1)
        sizes = np.bincount(labels.ravel(), minlength=found + 1)
        for label in range(1, found + 1):
            node = (index, label)
            linked.above[node] = node
            linked.pixels[node] = int(sizes[label])
            linked.mean[node] = float(sums[label] / sizes[label])
        if before is not None:
            both = (labels > 0) & (before > 0)
            for label, other in np.unique(np.stack([labels[both], before[both]], 1), axis=0):
                linked.link((index, int(label)), (index - 1, int(other)))
        before = labels
    return linked
