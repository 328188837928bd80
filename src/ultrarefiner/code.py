"""Fingerprints of code: which code a result was made by, and whether it is the present one.

A stage is declared once, by what its script in ``workflow/scripts`` imports. Its fingerprint covers
the script and every module of this package that the script reaches by import, by the target of a
registry (``"package.module:attribute"``) or by the name of a data file beside a module. Comments,
docstrings, blank lines and formatting do not count, nor does the version of the package.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import re
import sys
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ultrarefiner.errors import UltraRefinerError
from ultrarefiner.io import file_sha256, json_sha256, read_json, write_text

PACKAGE = Path(__file__).parent
FOLDER = Path(".snakemake/code")
"""Where the fingerprints of the present code stand, one file for each rule."""
ALL = "all"
"""The file there that changes with any of them."""
_CACHE = "cache.json"
_TARGET = re.compile(r"\w+(\.\w+)+(:\w+)?")
_SUFFIX = re.compile(r"\.\w+\Z")


@dataclass(frozen=True)
class _Source:
    """What counts of one file.

    Attributes:
        digest: SHA-256 of its code; of its bytes for a data file.
        names: Dotted names in it that begin like those of the package's modules.
        suffixes: How the names of files in it end.
    """

    digest: str
    names: list[str]
    suffixes: list[str]


def _counts(node: Any) -> bool:
    """Return whether a piece of code can change what the code does."""
    match node:
        case ast.Expr(value=ast.Constant(value=str())):  # a docstring, or one of an attribute
            return False
        case ast.Assign(targets=[ast.Name(id="__version__")]):
            return False
        case ast.If(test=ast.Name(id="TYPE_CHECKING"), orelse=[]):
            return False
    return True


def _spell(node: Any, parts: list[str]) -> None:
    """Write out a syntax tree; `ast.dump` would do it differently in each version of Python."""
    if isinstance(node, ast.Constant):
        parts.append(repr(node.value))
    elif isinstance(node, ast.AST):
        parts.append(f"{type(node).__name__}(")
        for name in node._fields:
            value = getattr(node, name, None)
            if value is not None and value != []:
                parts.append(f"{name}=")
                _spell(value, parts)
        parts.append(")")
    elif isinstance(node, list):
        parts.append("[")
        for item in node:
            _spell(item, parts)
            parts.append(",")
        parts.append("]")
    else:
        parts.append(repr(node))


class _Pruned(ast.NodeTransformer):
    """Takes away what does not count."""

    def visit(self, node: ast.AST) -> ast.AST | None:
        return self.generic_visit(node) if _counts(node) else None


def _read_module(path: Path, package: str) -> _Source:
    try:
        tree = _Pruned().visit(ast.parse(path.read_bytes()))
    except SyntaxError as error:
        raise UltraRefinerError(
            f"{path}, line {error.lineno}: {error.msg}. Mend it; without it nobody knows by which "
            "code results are made."
        ) from None
    names, suffixes = set(), set()
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=aliases):
                names |= {alias.name for alias in aliases}
            case ast.ImportFrom(module=str(module), names=aliases):
                names |= {f"{module}.{alias.name}" for alias in aliases}
            case ast.Constant(value=str(text)):
                if _TARGET.fullmatch(text):
                    names.add(text.partition(":")[0])
                suffixes |= set(_SUFFIX.findall(text))
    parts: list[str] = []
    _spell(tree, parts)
    digest = hashlib.sha256("".join(parts).encode()).hexdigest()
    own = sorted(name for name in names if name.split(".")[0] == package)
    return _Source(digest, own, sorted(suffixes))


def _version(path: Path) -> list[int]:
    """Return what changes with a file; its inode's time does so even if its own is set back."""
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]


class Code:
    """The code of a package, each file read once.

    Args:
        package: Folder of the package.
        cache: File that keeps what was read, so that the next process reads changed files only;
            None: nothing is kept.
    """

    def __init__(self, package: Path = PACKAGE, cache: Path | None = None) -> None:
        self.package = package
        self._cache = cache
        self._known = self._load()
        self._read: dict[str, list[Any]] = {}
        self._sources: dict[Path, _Source] = {}
        self._uses: dict[Path, list[Path]] = {}
        self._lines: dict[Path, str] = {}

    @cached_property
    def _by(self) -> str:
        # Another way to read code, or another parser, makes what was read before worthless.
        return f"{sys.version_info[:2]} {file_sha256(__file__)}"

    def _load(self) -> dict[str, list[Any]]:
        if self._cache is None or not self._cache.is_file():
            return {}
        kept = read_json(self._cache)
        return kept["files"] if kept["by"] == self._by else {}

    def save(self) -> None:
        """Keep what was read for the next process, if any of it is new."""
        if self._cache is not None and self._read != self._known:
            write_text(self._cache, json.dumps({"by": self._by, "files": self._read}))

    @cached_property
    def _files(self) -> tuple[dict[str, Path], list[Path]]:
        """Return the modules by dotted name, and the data files."""
        modules, data = {}, []
        for folder, folders, names in os.walk(self.package):
            folders[:] = [name for name in folders if name != "__pycache__"]
            for name in names:
                path = Path(folder, name)
                if path.suffix == ".py":
                    parts = path.relative_to(self.package.parent).with_suffix("").parts
                    modules[".".join(parts).removesuffix(".__init__")] = path
                else:
                    data.append(path)
        return modules, data

    def _source(self, path: Path) -> _Source:
        if path not in self._sources:
            version = _version(path)
            seen, *kept = self._known.get(str(path), [None])
            if seen != version:
                found = self._read_file(path)
                kept = [found.digest, found.names, found.suffixes]
            self._read[str(path)] = [version, *kept]
            self._sources[path] = _Source(*kept)
        return self._sources[path]

    def _read_file(self, path: Path) -> _Source:
        if path.suffix == ".py":
            return _read_module(path, self.package.name)
        return _Source(file_sha256(path), [], [])

    def _used_by(self, path: Path) -> list[Path]:
        if path not in self._uses:
            source = self._source(path)
            modules, data = self._files
            used = {}
            for name in source.names:
                # On the way to a module every package above it is imported.
                parts = name.split(".")
                above = (".".join(parts[: end + 1]) for end in range(len(parts)))
                used |= {modules[module]: None for module in above if module in modules}
            if source.suffixes and self.package in path.parents:
                for file in data:
                    if file.suffix in source.suffixes and path.parent in file.parents:
                        used[file] = None
            self._uses[path] = list(used)
        return self._uses[path]

    def _line(self, path: Path) -> str:
        if path not in self._lines:
            name = path.relative_to(self.package).as_posix()
            self._lines[path] = f"{name} {self._source(path).digest}"
        return self._lines[path]

    def closure(self, script: Path) -> list[Path]:
        """Return the files of the package that a script uses, directly or through others."""
        found: dict[Path, None] = {}
        waiting = deque(self._used_by(script))
        while waiting:
            path = waiting.popleft()
            if path not in found:
                found[path] = None
                waiting += self._used_by(path)
        return sorted(found)

    def fingerprint(self, script: Path) -> str:
        """Return the SHA-256 of the code that a script runs: its own and the package's.

        Raises:
            UltraRefinerError: A file is no Python; the message names it and the line.
        """
        lines = [self._source(script).digest, *map(self._line, self.closure(script))]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def fingerprint(script: Path, package: Path = PACKAGE) -> str:
    """Return the SHA-256 of the code that a script runs: its own and the package's.

    Args:
        script: A script that imports the package.
        package: Folder of the package.

    Raises:
        UltraRefinerError: A file is no Python; the message names it and the line.
    """
    return Code(package).fingerprint(script)


def write_fingerprints(scripts: Path, folder: Path = FOLDER, package: Path = PACKAGE) -> None:
    """Write the fingerprint of each stage; a file whose content is right is not touched.

    Args:
        scripts: Folder of the scripts, one for each rule and called like it.
        folder: Where a file for each rule is written.
        package: Folder of the package.

    Raises:
        UltraRefinerError: A file is no Python; the message names it and the line.
    """
    code = Code(package, folder / _CACHE)
    found = {script.stem: code.fingerprint(script) for script in sorted(scripts.glob("*.py"))}
    found[ALL] = json_sha256(found)
    for name, digest in found.items():
        path, text = folder / name, f"{digest}\n"
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            write_text(path, text)
    code.save()


@dataclass(frozen=True)
class OtherCode:
    """Results that the present code did not make, or not for certain: how many of each rule."""

    changed: dict[str, int]
    unknown: dict[str, int]


def _paths(value: Any) -> Iterator[str]:
    """Yield the paths in the inputs or outputs of a job's record."""
    if isinstance(value, str):
        yield value
    else:
        for item in value.values() if isinstance(value, dict) else value:
            yield from _paths(item)


def _present(rule: str, folder: Path) -> str | None:
    path = folder / rule
    return path.read_text(encoding="utf-8").strip() if path.is_file() else None


def _behind(records: list[dict[str, Any]], rule: str) -> list[dict[str, Any]]:
    """Return the records behind those of a rule and these; all, if the rule has none.

    A study that was changed leaves results that nobody asks for any longer.
    """
    makers = {path: record for record in records for path in _paths(record["output"])}
    waiting = [record for record in records if record["rule"] == rule]
    if not waiting:
        return records
    found: dict[int, dict[str, Any]] = {}
    while waiting:
        record = waiting.pop()
        if id(record) not in found:
            found[id(record)] = record
            waiting += [makers[path] for path in _paths(record["input"]) if path in makers]
    return list(found.values())


def made_by_other_code(run: Path, folder: Path = FOLDER) -> OtherCode:
    """Count the finished results behind a run's report that other code than the present made.

    Args:
        run: Folder of the run; the records of its jobs are in ``logs/``.
        folder: Where the fingerprints of the present code are.

    Raises:
        UltraRefinerError: A record is damaged.
    """
    logs = run / "logs"
    # By the folder: in a workflow that imports this one the rules have other names.
    records = [
        read_json(path) | {"rule": path.relative_to(logs).parts[0]}
        for path in sorted(logs.glob("*/**/*.json"))
    ]
    present = {rule: _present(rule, folder) for rule in {record["rule"] for record in records}}
    changed: Counter[str] = Counter()
    unknown: Counter[str] = Counter()
    for record in _behind(records, "write_report"):
        # What lies outside the run, such as published weights, is known by its checksum.
        own = any(run in Path(path).parents for path in _paths(record["output"]))
        if record["finished"] and own:
            rule, code = record["rule"], record.get("code")
            if code is None:
                unknown[rule] += 1
            elif code != present[rule]:
                changed[rule] += 1
    return OtherCode(dict(sorted(changed.items())), dict(sorted(unknown.items())))
