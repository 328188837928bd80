"""The chain that led to an artefact, as an indented tree that stays short."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from rich.text import Text
from rich.tree import Tree

from ultrarefiner.io import json_sha256
from ultrarefiner.study.explain import CARDLESS, HOLDS, Chain, Link, Step

_WIDTH = 110
_SHOWN = 8
_BRIEF = 12  # digits of a SHA-256


def explain_tree(chain: Chain, everything: bool = False) -> Tree:
    """Return a chain as a tree: what is explained, below it the job that made it, and so on down.

    A job stands in full where it is first met, and as one line after that. Of jobs of one rule side
    by side whose own chains have the same form the first stands for all, unless one of them has
    something to tell: a file that is not what it was.

    Args:
        chain: The chain.
        everything: Every job in full at its first place.
    """
    return _Drawing(chain, everything).tree()


class _Drawing:
    def __init__(self, chain: Chain, everything: bool) -> None:
        self._chain, self._everything = chain, everything
        self._drawn: set[str] = set()
        self._forms: dict[str, str] = {}
        self._troubled: dict[str, bool] = {}
        step = chain.target.step
        self._final = chain.steps[step].record if step else {}

    def tree(self) -> Tree:
        target = self._chain.target
        head = Text.assemble((target.path, "bold"), _mark(target))
        head.append(f"\nsha256 {target.sha256}")
        if target.detail:
            head.append(f"\n{target.detail}")
        if self._final:
            head.append(f"\nmade {self._final['finished']} by {_made_with(self._final)}")
        tree = Tree(head)
        if target.step is not None:
            self._add(tree, target.step, [])
        return tree

    def _add(self, tree: Tree, key: str, links: list[Link]) -> None:
        step = self._chain.steps[key]
        self._drawn.add(key)
        node = tree.add(self._label(step, links))
        if step.raw is not None:
            node.add(_leaf(step.raw))
        for link in step.inputs:
            if link.step is None:
                node.add(_leaf(link))
        for keys in self._groups(step):
            self._add_group(node, keys, step)

    def _groups(self, step: Step) -> Iterator[list[str]]:
        """Yield the jobs that a job's inputs come from; together those that are shown as one."""
        groups: dict[Any, list[str]] = {}
        for key in dict.fromkeys(link.step for link in step.inputs if link.step is not None):
            alone = self._everything or self._has_trouble(key) or _unsound(step, key)
            sort = key if alone else (self._form(key), key in self._drawn)
            groups.setdefault(sort, []).append(key)
        yield from groups.values()

    def _add_group(self, node: Tree, keys: list[str], step: Step) -> None:
        first, rest = keys[0], keys[1:]
        links = [link for link in step.inputs if link.step == first]
        if first in self._drawn:
            label = Text.assemble(_named([self._record(key) for key in keys]), ", as above")
            node.add(label if rest else label.append_text(_given(links, "  → ", "; ")))
            return
        self._add(node, first, links)
        if rest:
            named = _named([self._record(key) for key in rest])
            node.add(Text.assemble(f"and {len(rest)} alike: ", named))

    def _record(self, key: str) -> dict[str, Any]:
        return self._chain.steps[key].record

    def _form(self, key: str) -> str:
        """Return which rules led to a job, whatever they were told."""
        if key not in self._forms:
            step = self._chain.steps[key]
            below = sorted({self._form(link.step) for link in step.inputs if link.step})
            leaves = sorted({link.path for link in step.links if link.step is None})
            self._forms[key] = json_sha256([step.record["rule"], below, leaves])
        return self._forms[key]

    def _has_trouble(self, key: str) -> bool:
        """Whether something that led to a job is not what it was."""
        if key not in self._troubled:
            links = self._chain.steps[key].links
            self._troubled[key] = any(
                not link.sound or (link.step is not None and self._has_trouble(link.step))
                for link in links
            )
        return self._troubled[key]

    def _label(self, step: Step, links: list[Link]) -> Text:
        record = step.record
        facts = [f"{record['duration_s']:.3g} s"] if "duration_s" in record else []
        if "peak_memory_mb" in record:
            facts.append(f"{record['peak_memory_mb']:.0f} MB")
        label = Text.assemble(_named([record]), (f"  {', '.join(facts)}", "dim"))
        if record is not self._final and (other := _otherwise(record, self._final)):
            label.append(f"  {other}", "yellow")
        label.append_text(_given(links))
        if params := _brief(record["params"]):
            label.append(f"\n{params}", "dim")
        return label


def _unsound(step: Step, key: str) -> bool:
    return any(link.step == key and not link.sound for link in step.inputs)


def _given(links: Iterable[Link], before: str = "\n→ ", between: str = "\n→ ") -> Text:
    """Return what a job gave to the one above it."""
    text = Text()
    for number, link in enumerate(links):
        count = f", {link.files} files" if link.files is not None else ""
        text.append(f"{between if number else before}{link.path}  ")
        text.append(f"{(link.sha256 or '')[:_BRIEF]}{count}")
        text.append_text(_mark(link))
    return text


def _leaf(link: Link) -> Text:
    text = Text(link.path)
    if link.sha256:
        text.append(f"  {link.sha256[:_BRIEF]}")
    if link.detail:
        text.append(f"  {link.detail}")
    return text.append_text(_mark(link))


def _mark(link: Link) -> Text:
    if link.state == HOLDS:
        return Text()
    detail = f": {link.detail}" if link.step is not None and link.detail else ""
    return Text(f"  [{link.state}{detail}]", "yellow" if link.state == CARDLESS else "bold red")


def _named(records: list[dict[str, Any]]) -> Text:
    """Return the rule of some jobs, and their wildcards."""
    values: dict[str, set[str]] = {}
    for record in records:
        wildcards = record["wildcards"] if isinstance(record["wildcards"], dict) else {}
        for name, value in wildcards.items():
            if name != "run" and value != "":
                values.setdefault(name, set()).add(str(value))
    told = []
    for name, several in values.items():
        more = f"|… {len(several)} in all" if len(several) > _SHOWN else ""
        told.append(f"{name}={'|'.join(sorted(several)[:_SHOWN])}{more}")
    return Text.assemble((records[0]["rule"], "bold cyan"), f" {' '.join(told)}" if told else "")


def _made_with(record: dict[str, Any]) -> str:
    versions = record["versions"]
    named = [f"{name} {versions[name]}" for name in ("ultrarefiner", "python", "numpy", "torch")]
    return f"{', '.join(named)}; git {_revision(record)}; {_machine(record['host'])}"


def _machine(host: dict[str, Any]) -> str:
    return ", ".join(str(host[key]) for key in ("system", "cpu", "gpu") if host.get(key))


def _revision(record: dict[str, Any]) -> str:
    revision, plus, changes = str(record["git_revision"]).partition("+")
    return f"{revision[:12] if plus or len(revision) == 40 else revision}{plus}{changes}"


def _otherwise(record: dict[str, Any], final: dict[str, Any]) -> str:
    """Return the versions, revision and machine of a job that are not those of the last one."""
    before = final.get("versions", {})
    told = [
        f"{name} {version}"
        for name, version in record["versions"].items()
        if version != before.get(name)
    ]
    if record["git_revision"] != final.get("git_revision"):
        told.append(f"git {_revision(record)}")
    if (machine := _machine(record["host"])) != _machine(final.get("host", {})):
        told.append(machine)
    return ", ".join(told)


def _brief(params: Any) -> str:
    text = ", ".join(f"{name}={value}" for name, value in _flat(params))
    return text if len(text) <= _WIDTH else f"{text[:_WIDTH]}…"


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for key, part in value.items():
            yield from _flat(part, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list) and len(value) > _SHOWN:
        yield name, f"{len(value)} entries"
    elif value is not None:
        yield name, str(value)
