"""How an artefact came about: the chain of jobs from the raw images to it, told by their cards."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from ultrarefiner.artefacts import (
    FOLDER,
    Card,
    digest_of,
    find_card,
    find_changes,
    listed,
)
from ultrarefiner.damage import DAMAGED
from ultrarefiner.errors import UltraRefinerError, first_names
from ultrarefiner.io import read_json, read_rows
from ultrarefiner.models.weights_record import record_path
from ultrarefiner.study.files import folder_listing

HOLDS = "holds"
CARDLESS = "made without a card"
CHANGED = "changed since"
AGAIN = "made again since, with another content"
ABSENT = "absent"


@dataclass(frozen=True)
class Link:
    """A file or folder in the chain.

    Attributes:
        path: As the jobs named it.
        sha256: When it was read, or written in the case of what is explained; None: not known.
        files: How many files a folder holds; None: it is a file.
        state: One of this module's words; all but ``HOLDS`` and ``CARDLESS`` mean a change.
        detail: What is changed; where weights come from.
        step: Key of the job that made it; None: no job of the run.
    """

    path: str
    sha256: str | None
    files: int | None
    state: str
    detail: str = ""
    step: str | None = None

    @property
    def sound(self) -> bool:
        """Whether it is what it was."""
        return self.state in (HOLDS, CARDLESS)


@dataclass(frozen=True)
class Step:
    """A job in the chain.

    Attributes:
        record: What the job recorded of itself.
        inputs: What it read.
        raw: The raw images that it read, if it did.
    """

    record: dict[str, Any]
    inputs: tuple[Link, ...]
    raw: Link | None = None

    @property
    def links(self) -> tuple[Link, ...]:
        """All that it read."""
        return self.inputs if self.raw is None else (*self.inputs, self.raw)


@dataclass
class Chain:
    """What led to an artefact.

    Attributes:
        target: The artefact.
        steps: The jobs by key, those that read a step's results before it.
    """

    target: Link
    steps: dict[str, Step] = field(default_factory=dict)

    @property
    def links(self) -> list[Link]:
        """Every file and folder of the chain, each state of one once."""
        found = [self.target, *(link for step in self.steps.values() for link in step.links)]
        return list({(link.path, link.state): link for link in found}.values())

    @property
    def changes(self) -> list[Link]:
        """What is not what it was."""
        return [link for link in self.links if not link.sound]

    def as_data(self) -> dict[str, Any]:
        """Return the chain as JSON values."""
        return {
            "artefact": _link_data(self.target),
            "holds": not self.changes,
            "steps": {
                key: {
                    **{name: value for name, value in step.record.items() if name != "input"},
                    "inputs": [_link_data(link) for link in step.inputs],
                    "raw": None if step.raw is None else _link_data(step.raw),
                }
                for key, step in self.steps.items()
            },
        }


def _link_data(link: Link) -> dict[str, Any]:
    values = {
        "path": link.path,
        "sha256": link.sha256,
        "files": link.files,
        "state": link.state,
        "detail": link.detail,
        "step": link.step,
    }
    return {name: value for name, value in values.items() if value not in (None, "")}


def explain(path: str | Path) -> Chain:
    """Return how an artefact came about.

    Every file and folder of the chain is read and compared with its checksums.

    Args:
        path: An output of a run, a file in a folder that is one, or a weights file.

    Raises:
        UltraRefinerError: It is none of these, or has no card.
    """
    there = Path(os.path.abspath(path))  # noqa: PTH100 - a link leads out of the run
    runs = [folder for folder in there.parents if (folder / FOLDER).is_dir()]
    for run in runs:
        if (card := find_card(run, there)) is not None:
            return _Reader(run, _workplace(run, card)).chain(there, card)
    if not there.exists():
        raise UltraRefinerError(f"{path} is not there. Name a file or folder of a run.")
    if record_path(there).is_file():
        return Chain(_outside(str(path), there, None))
    if not runs:
        raise UltraRefinerError(
            f"{path} is not an artefact of a run: no folder above it holds {FOLDER}/. Name an output "
            "below results/RUN/, such as results/main/report/summary.csv."
        )
    raise UltraRefinerError(
        f"{path} has no card in {runs[0]}/{FOLDER}: it is no output of a rule (a log, a saved state "
        "of a training), or it was made before there were cards. In that case the next job that "
        "makes it writes one: snakemake --forcerun RULE."
    )


def _workplace(run: Path, card: Card) -> Path:
    """Return the folder that the paths in a card start from, wherever the run is now."""
    below = len(card.path.relative_to(run / FOLDER).parts)
    above = Path(card.artefact).parts[:-below]
    return run.parents[len(above) - 1] if above else run


class _Reader:
    """Reads the cards of a run and what they speak of, each once."""

    def __init__(self, run: Path, workplace: Path) -> None:
        self._run, self._workplace = run, workplace
        self._cards: dict[Path, Card | None] = {}
        self._changes: dict[str, dict[str, str]] = {}
        self._found: dict[str, Link] = {}

    def chain(self, there: Path, card: Card) -> Chain:
        """Return what led to a file or folder that has a card."""
        artefact = self._workplace / card.artefact
        if there == artefact:
            chain = Chain(self._made(card))
        else:
            chain = Chain(self._part(card, there.relative_to(artefact).as_posix()))
        waiting = [card.job]
        while waiting:
            record = waiting.pop(0)
            if record["log"] not in chain.steps:
                step = self._step(record)
                chain.steps[record["log"]] = step
                cards = (self._card(self._workplace / link.path) for link in step.inputs)
                waiting += [one.job for one in cards if one is not None]
        return chain

    def _card(self, path: Path) -> Card | None:
        if path not in self._cards:
            self._cards[path] = find_card(self._run, path)
        return self._cards[path]

    def _step(self, record: dict[str, Any]) -> Step:
        links = [self._input(path, facts) for path, facts in record["inputs"].items()]
        return Step(record, tuple(links), self._raw(record))

    def _input(self, path: str, recorded: dict[str, Any]) -> Link:
        card = self._card(self._workplace / path)
        if card is None:
            return _outside(path, self._workplace / path, recorded, self._run)
        link = self._made(card)
        if card.artefact != path:
            return self._part(card, Path(path).relative_to(card.artefact).as_posix())
        if link.state == HOLDS and recorded["sha256"] != card.digest.sha256:
            return Link(path, recorded["sha256"], link.files, AGAIN, step=link.step)
        return link

    def _made(self, card: Card) -> Link:
        """Return an artefact as it is now."""
        if card.artefact not in self._found:
            state, detail = self._state(card)
            self._found[card.artefact] = Link(
                card.artefact, card.digest.sha256, card.digest.files, state, detail, card.job["log"]
            )
        return self._found[card.artefact]

    def _state(self, card: Card) -> tuple[str, str]:
        artefact = self._workplace / card.artefact
        if not artefact.exists():
            aside = artefact.with_name(artefact.name + DAMAGED)
            return ABSENT, f"{card.artefact}{DAMAGED} is there" if aside.exists() else ""
        changes = find_changes(card, artefact)
        named = first_names(f"{name} ({how})" for name, how in changes.items() if name)
        return (CHANGED, named) if changes else (HOLDS, "")

    def _part(self, card: Card, name: str) -> Link:
        """Return one file of a folder as it is now."""
        known = listed(card) if card.digest.files is not None else {}
        path = f"{card.artefact}/{name}"
        if name not in known:
            raise UltraRefinerError(
                f"{path} is not what {card.job['rule']} wrote: {card.artefact} had no such file. "
                f"Name one of its files, or {card.artefact} itself."
            )
        changes = find_changes(card, self._workplace / card.artefact, name)
        state = {"changed": CHANGED, "missing": ABSENT}.get(changes.get(name, ""), HOLDS)
        return Link(path, known[name], None, state, step=card.job["log"])

    def _raw(self, record: dict[str, Any]) -> Link | None:
        """Return the raw images that a job read: they are no files of the workflow."""
        params = record["params"] if isinstance(record["params"], dict) else {}
        root, listing = params.get("root"), params.get("listing")
        if not isinstance(root, str) or listing in (None, "absent"):
            return None
        if root not in self._listings:
            self._listings[root] = folder_listing(str(self._workplace / root))
        now = self._listings[root]
        state = HOLDS if now == listing else ABSENT if now == "absent" else CHANGED
        prepared = self._run / record["wildcards"]["dataset"] / "prepared"
        counts = [
            f"{len(read_rows(prepared / name))} {what}"
            for name, what in (("cases.csv", "images used"), ("excluded.csv", "left out"))
            if (prepared / name).is_file()
        ]
        return Link(root, None, None, state, ", ".join(["raw images", *counts]))

    @cached_property
    def _listings(self) -> dict[str, str]:
        return {}


def _outside(
    path: str, there: Path, recorded: dict[str, Any] | None, run: Path | None = None
) -> Link:
    """Return a file that no job of the run made, or one of the run that has no card."""
    sha256 = None if recorded is None else recorded["sha256"]
    files = None if recorded is None else recorded.get("files")
    if not there.exists():
        return Link(path, sha256, files, ABSENT)
    record, detail = record_path(there), ""
    if record.is_file():
        values = read_json(record)
        source = values.get("url") or "put there by hand"
        detail = f"weights {values.get('weights', '')}, {source}"
        sha256 = sha256 or values.get("sha256")
    now = digest_of(there)
    if sha256 not in (None, now.sha256):
        return Link(path, sha256, files, CHANGED, detail)
    of_run = run is not None and run in there.parents
    return Link(path, now.sha256, now.files, CARDLESS if of_run else HOLDS, detail)
