"""A study: the configuration checked against the registries, and all that it asks for.

This is what the Snakefile works from. It imports no model code, so that planning stays fast.
"""

from ultrarefiner.study import entries, propagation, volumes
from ultrarefiner.study.files import folder_listing, own_weights
from ultrarefiner.study.methods import Method, Shelved
from ultrarefiner.study.readiness import require_files
from ultrarefiner.study.study import Study, View, load_study

__all__ = [
    "Method",
    "Shelved",
    "Study",
    "View",
    "entries",
    "folder_listing",
    "load_study",
    "own_weights",
    "propagation",
    "require_files",
    "volumes",
]
