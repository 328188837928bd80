"""Start a training in as many processes as it has GPUs, on one machine or on several.

The processes are those of ``torch.distributed.run``. They say what they log, and why they end, in
lines of JSON; the process that started them writes it to its own log, passes signals on, and ends
as they do.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2

from ultrarefiner.errors import ConfigError, UltraRefinerError
from ultrarefiner.io import atomic_path
from ultrarefiner.training.signals import STOPPING, stop_status
from ultrarefiner.training.team import ALONE, join_team

log = logging.getLogger(__name__)

_MARK = "\x1e"
"""Begins a line that one of our processes says; others are PyTorch's own."""
# Seconds that torch.distributed.run, told to stop, leaves its processes to save their state.
_GRACE = "300"
_LAST_WORDS = 30


Training = Callable[..., None]


def on_gpus(training: Training) -> Training:
    """Let a training run in as many processes as its ``config`` says by ``gpu`` and ``nodes``.

    Args:
        training: Takes ``config``, ``model`` (the file it writes), ``device`` and ``team``.
    """

    @functools.wraps(training)
    def started(config: Any, **arguments: Any) -> None:
        if "team" in arguments:
            training(config, **arguments)
        else:
            launch(started, config.gpu, config.nodes, config=config, **arguments)

    return started


def launch(function: Training, processes: int = 1, nodes: int = 1, **arguments: Any) -> None:
    """Call a function, in several processes if it is asked for.

    Args:
        function: It can be imported by name. Every process calls it with ``team`` beside the
            arguments, and with a ``device`` of its own.
        processes: Processes on each node, one for each GPU.
        nodes: Machines of the Slurm job to use.
        arguments: What can be pickled; ``model`` is the path of the file to write.

    Raises:
        ConfigError: Several nodes are asked for outside of a Slurm job.
        UltraRefinerError: A process failed; the message is that of the first one.
        SystemExit: A signal to stop came: status 143 or 130.
    """
    if processes * nodes == 1:
        function(**arguments, team=ALONE)
        return
    if nodes > 1 and "SLURM_JOB_ID" not in os.environ:
        raise ConfigError(
            f"nodes: {nodes} machines are asked for, which only Slurm can give; run with "
            "`--profile slurm`, or set `nodes: 1`"
        )
    order = Path(arguments["model"]).parent / "resume" / f"launch-{os.getpid()}.pickle"
    with atomic_path(order) as temporary:
        temporary.write_bytes(pickle.dumps((function, arguments)))
    try:
        _Processes(_command(order, processes, nodes), _environment(processes, nodes)).run()
    finally:
        order.unlink(missing_ok=True)


def _threads() -> int:
    return int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1)


def _command(order: Path, processes: int, nodes: int) -> list[str]:
    """Return the command that starts the processes of all nodes."""
    run = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={processes}"]
    across: list[str] = []
    if nodes == 1:
        # Not by the machine's name, which not every machine can look up.
        run += ["--standalone", "--local-addr=127.0.0.1"]
    else:
        job = os.environ["SLURM_JOB_ID"]
        across = ["srun", f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1"]
        across += [f"--cpus-per-task={_threads()}", "--overlap", "--kill-on-bad-exit=1"]
        # This process runs on the first machine of the job, where the others will look for it.
        run += [f"--nnodes={nodes}", f"--rdzv-id={job}", "--rdzv-backend=c10d"]
        run += [f"--rdzv-endpoint={socket.gethostname()}:{_free_port()}"]
    # The early warning would end torch.distributed.run, which has no use for it.
    deaf = ["sh", "-c", 'trap "" USR1; exec "$0" "$@"']
    return [*across, *deaf, *run, "-m", __name__, str(order)]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


def _environment(processes: int, nodes: int) -> dict[str, str]:
    """Return the environment of the processes: their part of the threads, and how they talk."""
    own = {
        "OMP_NUM_THREADS": str(max(1, _threads() // processes)),
        "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": _GRACE,
        "PYTHONUNBUFFERED": "1",
    }
    loopback = {name for _, name in socket.if_nameindex()} & {"lo", "lo0"}
    if nodes == 1 and loopback:
        own["GLOO_SOCKET_IFNAME"] = loopback.pop()
    return {**os.environ, **own}


class _Processes:
    """The processes of a training, as the one that started them sees them."""

    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        self._command, self._environment = command, environment
        self._asked: list[int] = []
        self._workers: list[int] = []
        self._child: subprocess.Popen[str] | None = None
        self._stopped: list[int] = []
        self._failed: list[str] = []
        self._others: deque[str] = deque(maxlen=_LAST_WORDS)

    def run(self) -> None:
        """Start them, log what they say, and end as they end."""
        with self._passing_signals_on():
            self._child = subprocess.Popen(
                self._command,
                env=self._environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
            )
            for line in self._child.stdout:
                self._hear(line.rstrip("\n"))
            status = self._child.wait()
        if self._stopped:
            raise SystemExit(self._stopped[0])
        if self._failed:
            raise UltraRefinerError(self._failed[0])
        if status and self._asked:
            raise SystemExit(stop_status(self._asked[0]))
        if status:
            for line in self._others:
                log.error("%s", line)
            raise UltraRefinerError(
                "a process of the training was ended from outside, perhaps for want of memory: "
                f"each process holds the training's data once. It ended with status {status}; the "
                "log has its last words. Run again to go on."
            )

    @contextmanager
    def _passing_signals_on(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        previous = {number: signal.signal(number, self._pass_on) for number in STOPPING}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler or signal.SIG_DFL)

    def _pass_on(self, number: int, _frame: Any) -> None:
        self._asked.append(number)
        if self._workers:
            self._signal_workers(number)
        elif self._child is not None:
            self._child.terminate()

    def _signal_workers(self, number: int) -> None:
        # Not by way of torch.distributed.run, which would take it for its own end.
        for process in self._workers:
            try:
                os.kill(process, number)
            except ProcessLookupError:
                continue

    def _hear(self, line: str) -> None:
        try:
            said = json.loads(line.removeprefix(_MARK)) if line.startswith(_MARK) else None
        except ValueError:  # two lines at once
            said = None
        if said is None:
            self._others.append(line)
            return
        if "log" in said:
            log.log(said["level"], "%s", said["log"])
        if said.get("process") and said["host"] == socket.gethostname():
            self._workers.append(said["process"])
            if self._asked:
                self._signal_workers(self._asked[0])
        if "stopped" in said:
            self._stopped.append(said["stopped"])
        if "failed" in said:
            self._failed.append(said["failed"])
            # The others would wait for it.
            self._signal_workers(signal.SIGKILL)


def _say(**what: Any) -> None:
    # In one piece: other processes write to the same pipe.
    os.write(2, f"{_MARK}{json.dumps(what)}\n".encode())


class _Report(logging.Handler):
    """Says what is logged, for the process that started this one to log."""

    def __init__(self, rank: int) -> None:
        super().__init__(logging.WARNING if rank else logging.INFO)
        self._who = f"process {rank}: " if rank else ""

    def emit(self, record: logging.LogRecord) -> None:
        """Say a record, its traceback included."""
        _say(level=record.levelno, log=self._who + self.format(record))


def main(order: str) -> None:
    """Be one of the processes: read what to call, and call it.

    Args:
        order: The file with the function and its arguments.

    Raises:
        SystemExit: A signal to stop came, or the function failed (status 1).
    """
    # Until the training takes them itself; some are ignored by what started this process.
    for number in STOPPING:
        signal.signal(number, signal.SIG_DFL)
    _say(process=os.getpid(), host=socket.gethostname())
    _start_log(int(os.environ["RANK"]))
    try:
        cv2.setNumThreads(int(os.environ["OMP_NUM_THREADS"]))
        function, arguments = pickle.loads(Path(order).read_bytes())
        with join_team(arguments.pop("device", "auto")) as (team, device):
            function(**arguments, device=device, team=team)
    except SystemExit as stop:
        _say(stopped=stop.code)
        raise
    except UltraRefinerError as error:
        _say(failed=str(error))
        sys.exit(1)
    except Exception as error:  # whatever it is goes to the log, whole, and fails the job
        log.exception("the training failed")
        # Without the others' answer most likely another one has ended: it is the one to ask why.
        if not any(word in str(error).lower() for word in ("gloo", "nccl", "connection")):
            _say(failed=f"a process of the training failed: {type(error).__name__}: {error}")
        sys.exit(1)


def _start_log(rank: int) -> None:
    root = logging.getLogger()
    root.setLevel(logging.INFO)
    root.handlers = [_Report(rank)]
    logging.captureWarnings(True)


if __name__ == "__main__":
    main(sys.argv[1])
