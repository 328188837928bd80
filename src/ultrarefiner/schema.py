"""The config schema and the config table, generated from the config models."""

from __future__ import annotations

import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from ultrarefiner.config import StudyConfig
from ultrarefiner.io import write_text
from ultrarefiner.refine import REFINERS

SCHEMA = Path("workflow/schemas/config.schema.yaml")
TABLE = Path("config/README.md")
BEGIN, END = "<!-- generated: begin -->", "<!-- generated: end -->"


def schema_text() -> str:
    """Return the JSON schema of a study, as YAML."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    schema |= StudyConfig.model_json_schema()
    return "# Generated from src/ultrarefiner/config by `make generate`; do not edit.\n" + (
        yaml.safe_dump(schema, sort_keys=False, allow_unicode=True, width=100)
    )


def _type_text(annotation: Any) -> str:
    origin = get_origin(annotation)
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in get_args(annotation))
    if origin in (Union, types.UnionType):
        return " or ".join(_type_text(part) for part in get_args(annotation))
    if origin is tuple:
        return "list of " + " and ".join(_type_text(part) for part in get_args(annotation))
    if origin in (list, dict):
        return f"{origin.__name__} of {_type_text(get_args(annotation)[-1])}"
    names = {
        str: "text",
        int: "whole number",
        float: "number",
        bool: "true, false",
        type(None): "none",
    }
    return names.get(annotation, "section")


def _section_of(annotation: Any) -> tuple[type[BaseModel], str] | None:
    """Return the section that a field holds, and what stands between its key and its keys."""
    if get_origin(annotation) is dict:
        inner = get_args(annotation)[-1]
        return (inner, ".*") if isinstance(inner, type) and issubclass(inner, BaseModel) else None
    for part in (annotation, *get_args(annotation)):
        if isinstance(part, type) and issubclass(part, BaseModel):
            return part, ""
    return None


def _default_text(field: FieldInfo) -> str:
    if field.is_required():
        return "**required**"
    default = field.get_default(call_default_factory=True)
    if isinstance(default, BaseModel) or default in ({}, []):
        return ""
    if isinstance(default, dict):
        default = list(default)
    return f"`{yaml.safe_dump(default, default_flow_style=True).splitlines()[0]}`"


def _rows(model: type[BaseModel], prefix: str) -> Iterator[str]:
    for name, field in model.model_fields.items():
        section = _section_of(field.annotation)
        kind = "section" if section else _type_text(field.annotation)
        yield f"| `{prefix}{name}` | {kind} | {_default_text(field)} | {field.description} |"
        if section:
            yield from _rows(section[0], f"{prefix}{name}{section[1]}.")


def table_text() -> str:
    """Return the Markdown table of every key, and one for each refiner family's own keys."""
    head = "| key | value | default | meaning |\n|---|---|---|---|\n"
    parts = [head + "\n".join(_rows(StudyConfig, ""))]
    for family, row in REFINERS.items():
        rows = "\n".join(_rows(row.options, "refiners.*."))
        parts.append(f"### Keys of refiner family `{family}`\n\n{head}{rows}")
    return "\n\n".join(parts) + "\n"


def _expected(root: Path) -> dict[Path, str]:
    page = (root / TABLE).read_text(encoding="utf-8")
    before, rest = page.split(BEGIN)
    after = rest.split(END)[1]
    return {SCHEMA: schema_text(), TABLE: f"{before}{BEGIN}\n{table_text()}{END}{after}"}


def stale_files(root: Path) -> list[Path]:
    """Return the generated files of a checkout that differ from the config models."""
    return [
        path
        for path, text in _expected(root).items()
        if not (root / path).is_file() or (root / path).read_text(encoding="utf-8") != text
    ]


def write_files(root: Path) -> None:
    """Write the generated files of a checkout."""
    for path, text in _expected(root).items():
        write_text(root / path, text)
