"""Datasets: raw folders on one side, cases of image and label on the other."""

from ultrarefiner.datasets.base import Case
from ultrarefiner.datasets.layouts import DATASETS, find_cases
from ultrarefiner.datasets.reading import read_case

__all__ = ["DATASETS", "Case", "find_cases", "read_case"]
