"""Plans of many studies, each by Snakemake's own command line in a copy of one process.

A new process takes three times as long as a plan of a small study: it imports Snakemake first. The
planner has imported it once, and each plan is made by a fork of it, so no plan sees another.
"""

from __future__ import annotations

import gc
import importlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.workflow.study import ROOT, snakemake_command, write_study


@dataclass(frozen=True)
class Output:
    """An output of a job of a study.

    Attributes:
        rule: The rule that makes it.
        path: Its path, relative to where the study runs.
        there: Whether it has been made.
        pending: Whether Snakemake would make it now.
    """

    rule: str
    path: str
    there: bool
    pending: bool


@dataclass(frozen=True)
class Plan:
    """What Snakemake would do.

    Attributes:
        outputs: Every output of the study.
    """

    outputs: tuple[Output, ...]

    @property
    def rules(self) -> set[str]:
        """Every rule that has a job in the study, whether it runs or not."""
        return {one.rule for one in self.outputs}

    @property
    def again(self) -> list[Output]:
        """What would be made again."""
        return [one for one in self.outputs if one.pending and one.there]

    @property
    def reruns(self) -> set[str]:
        """The rules of which a job runs that has run before."""
        return {one.rule for one in self.again}

    @property
    def makes(self) -> set[str]:
        """The rules of which a job runs that has never run."""
        return {one.rule for one in self.outputs if one.pending and not one.there}


class Planner:
    """A process that plans; use it in a `with` statement."""

    def __enter__(self) -> Planner:
        """Start the process."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.workflow.planner"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(self, *_: object) -> None:
        """Stop it."""
        self._process.stdin.close()
        self._process.wait(timeout=60)
        self._process.stdout.close()

    def run(self, folder: Path, *arguments: str) -> str:
        """Return what `snakemake` prints on the study of a folder.

        Raises:
            AssertionError: It failed; the message is what it printed.
        """
        command = snakemake_command(folder, *arguments)
        request = command[command.index("snakemake") + 1 :]
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        assert answer["code"] == 0, answer["output"][-6000:]
        return answer["output"]

    def plan(self, folder: Path, study: dict[str, Any]) -> Plan:
        """Return what Snakemake would do with a study in a folder."""
        write_study(folder, study)
        table = self.run(folder, "--summary").partition("output_file\t")[2].splitlines()[1:]
        rows = [line.split("\t") for line in table if line]
        return Plan(
            tuple(
                Output(rule, path, (folder / path).exists(), todo == "update pending")
                for path, _, rule, *_, todo in rows
            )
        )


def pretend_to_run(planner: Planner, folder: Path, study: dict[str, Any]) -> None:
    """Let Snakemake believe that it has run a study: its outputs are there, and are empty."""
    for one in planner.plan(folder, study).outputs:
        path = folder / one.path
        (path.parent if path.suffix else path).mkdir(parents=True, exist_ok=True)
        if path.suffix:
            path.touch()
    # No hooks: they look into the weights, and those are empty too.
    planner.run(folder, "--touch", "--forceall", "--no-hooks", "--quiet", "all")


def _answer(arguments: list[str]) -> dict[str, Any]:
    """Run Snakemake in a fork; return its exit code, what it printed and which modules it loaded."""
    from snakemake.cli import main

    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as loaded:
        child = os.fork()
        if not child:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
            code: Any = 1
            try:
                main(arguments)
            except SystemExit as end:
                code = end.code
            finally:
                sys.stdout.flush()
                os.write(loaded.fileno(), json.dumps(sorted(sys.modules)).encode())
                os._exit(code if isinstance(code, int) else int(code is not None))
        _, status = os.waitpid(child, 0)
        output.seek(0)
        loaded.seek(0)
        return {
            "code": os.waitstatus_to_exitcode(status),
            "output": output.read().decode(),
            "loaded": json.loads(loaded.read() or b"[]"),
        }


def _serve() -> None:
    from snakemake.cli import get_argument_parser

    get_argument_parser()  # looks for plugins in every installed package
    for line in sys.stdin:
        answer = _answer(json.loads(line))
        # What the first plan had to import is there for the next ones.
        for name in answer.pop("loaded"):
            if name not in sys.modules and importlib.util.find_spec(name.partition(".")[0]):
                importlib.import_module(name)
        gc.collect()
        gc.freeze()
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    _serve()
