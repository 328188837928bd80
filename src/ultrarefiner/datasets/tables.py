"""CSV tables that users write or archives bring, rows with their line number; and our own, streamed."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

from ultrarefiner.errors import DatasetError


def read_table(path: Path, columns: Sequence[str]) -> list[tuple[int, dict[str, str]]]:
    """Read a CSV whose first line names the columns.

    Column names are compared in lower case without blanks around them, values lose the blanks
    around them, empty lines and empty columns at the end are left out. A table separated by
    semicolons is read too.

    Args:
        path: The file, UTF-8 with or without a byte order mark.
        columns: Columns that must be there.

    Returns:
        (line number, row) of each row; a row has a text for every column of the table.

    Raises:
        DatasetError: The file cannot be read, or columns are missing or there twice.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as handle:
            first = handle.readline()
            separator = ";" if first.count(";") > first.count(",") else ","
            heads = _cells(next(csv.reader([first.lower()], delimiter=separator), []))
            reader = csv.reader(handle, delimiter=separator)
            lines = [(reader.line_num + 1, _cells(row)) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(
            f"{path}: cannot be read as a CSV table in UTF-8 ({error}); save it again"
        ) from error
    missing = [column for column in columns if column not in heads]
    if missing or len(set(heads)) != len(heads):
        raise DatasetError(
            f"{path}: the first line must name each column once, {', '.join(columns)} among them; "
            f"found {', '.join(heads) or 'nothing'}"
        )
    wrong = [line for line, row in lines if any(row) and len(row) > len(heads)]
    if wrong:
        raise DatasetError(
            f"{path}: line {wrong[0]} has more values than the {len(heads)} columns; put a value "
            "that holds a comma in quotes"
        )
    return [
        (line, dict(zip(heads, row + [""] * (len(heads) - len(row)), strict=True)))
        for line, row in lines
        if any(row)
    ]


def each_row(path: str | Path, columns: Sequence[str] | None = None) -> Iterator[dict[str, str]]:
    """Yield the rows of a CSV that this project wrote, one at a time.

    Args:
        path: The table.
        columns: Those to keep; one that the table lacks is left out. None: all.

    Yields:
        A dict of strings.

    Raises:
        OSError: The file cannot be read.
    """
    with open(path, newline="", encoding="utf-8") as handle:
        for row in csv.DictReader(handle):
            yield row if columns is None else {name: row[name] for name in columns if name in row}


def _cells(row: list[str]) -> list[str]:
    """Return the values of a row without those that are empty at its end: a sheet leaves some."""
    cells = [cell.strip() for cell in row]
    while cells and not cells[-1]:
        cells.pop()
    return cells
