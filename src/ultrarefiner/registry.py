"""Registries: a name in the config leads to a row, a row leads to the code.

Rows may name their code as ``"package.module:attribute"``; it is imported on first use, so that
planning a study never imports torch.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from ultrarefiner.errors import ConfigError

Row = TypeVar("Row")


def unknown_name(what: str, name: str, known: Mapping[str, Any] | list[str]) -> str:
    """Return the message for a name that is not known, with the nearest known one in any case."""
    names = sorted(known)
    message = f"unknown {what} '{name}'; known: {', '.join(names) or 'none'}."
    plain = {known_name.casefold(): known_name for known_name in names}
    near = difflib.get_close_matches(name.casefold(), plain, n=1, cutoff=0.5)
    return f"{message} Did you mean '{plain[near[0]]}'?" if near else message


class Registry(Mapping[str, Row]):
    """An explicit table of names and rows.

    Args:
        what: What a row is, in the words of an error message ("dataset layout").
        rows: The table.
    """

    def __init__(self, what: str, rows: Mapping[str, Row]) -> None:
        self.what = what
        self._rows = dict(rows)

    def __getitem__(self, name: str) -> Row:
        """Return the row called ``name``.

        Raises:
            ConfigError: No such row; the message lists the known ones and the nearest.
        """
        if name not in self._rows:
            raise ConfigError(unknown_name(self.what, name, self._rows))
        return self._rows[name]

    def __contains__(self, name: object) -> bool:
        return name in self._rows

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)


def resolve(target: str) -> Any:
    """Import and return the object that ``"package.module:attribute"`` names."""
    module, _, attribute = target.partition(":")
    return getattr(importlib.import_module(module), attribute)
