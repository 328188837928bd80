"""A torch module to an ONNX file, which is kept only if onnxruntime computes the same from it."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from ultrarefiner.errors import ConfigError, UltraRefinerError
from ultrarefiner.io import atomic_path

if TYPE_CHECKING:
    import onnx

log = logging.getLogger(__name__)

TOLERANCE = 1e-4
"""Largest difference between onnxruntime and torch, as a share of the largest output."""
OPSET = 18
_ONE_FILE = 2_000_000_000  # bytes of weights; an ONNX file ends at 2 GiB, graph included

Case = tuple[Sequence[torch.Tensor], Sequence[torch.Tensor]]
"""Inputs of a model, and what torch makes of them."""


def require_packages() -> None:
    """Check that the packages of the extra ``onnx`` are installed.

    Raises:
        ConfigError: One is not; the message has the command that installs them.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"writing ONNX files needs a package that is not installed ({error.name}). Run: "
            "pip install 'ultrarefiner[onnx]'"
        ) from None


def write_onnx(
    net: nn.Module,
    inputs: Sequence[str],
    outputs: Sequence[str],
    shapes: Any,
    cases: Sequence[Case],
    output: Path,
) -> None:
    """Export a module, check the file, and give it its name.

    Args:
        net: On the CPU, in eval mode.
        inputs: Names of its arguments.
        outputs: Names of what it returns.
        shapes: Dynamic axes of the arguments, as ``torch.export`` takes them.
        cases: What the file is checked with; the first is the example of the export.
        output: File to write. Weights of more than 2 GB lie beside it, in ``{output}.data``.

    Raises:
        ConfigError: The packages of the extra ``onnx`` are not installed.
        UltraRefinerError: The module cannot be translated, or onnxruntime computes something else
            from the file; it is not kept.
        OutputError: The file cannot be written.
    """
    require_packages()
    import onnx

    graph, size = _graph(net, inputs, outputs, shapes, cases[0][0])
    with ExitStack() as stack:
        temporary = stack.enter_context(atomic_path(output))
        if size <= _ONE_FILE:
            onnx.save_model(graph, temporary)
            _check(temporary, inputs, cases, output)
        else:
            data = output.with_name(f"{output.name}.data")
            # Renamed before the graph that names it.
            beside = stack.enter_context(atomic_path(data))
            onnx.save_model(graph, temporary, save_as_external_data=True, location=beside.name)
            beside.chmod(temporary.stat().st_mode)  # onnx lets nobody but the owner read it
            _check(temporary, inputs, cases, output)
            _name_data(temporary, data.name)
    log.info("%s: %.0f MB, equal to torch within %g", output, size / 1e6, TOLERANCE)


def _graph(
    net: nn.Module,
    inputs: Sequence[str],
    outputs: Sequence[str],
    shapes: Any,
    example: Sequence[torch.Tensor],
) -> tuple[onnx.ModelProto, int]:
    """Return a module's ONNX graph and the bytes of its weights.

    Raises:
        UltraRefinerError: torch and onnxscript cannot translate the module.
    """
    import onnxscript

    try:
        with _quiet():
            program = torch.onnx.export(
                net,
                tuple(example),
                dynamo=True,
                input_names=list(inputs),
                output_names=list(outputs),
                dynamic_shapes=shapes,
                opset_version=OPSET,
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        raise UltraRefinerError(
            f"torch {torch.__version__} with onnxscript {onnxscript.__version__} cannot write "
            f"{type(net).__name__} as ONNX. Update onnxscript: pip install -U 'ultrarefiner[onnx]'"
        ) from error
    size = sum(value.const_value.nbytes for value in program.model.graph.initializers.values())
    model = program.model_proto
    graph = model.graph
    # They hold the paths of the source files on this machine, and a third of a small file.
    for part in (model, graph, *graph.node, *graph.value_info, *graph.input, *graph.output):
        part.ClearField("metadata_props")
    return model, size


@contextmanager
def _quiet() -> Iterator[None]:
    """Hold back what exporter and optimiser say of axes, caches and every node; files are checked."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _check(path: Path, inputs: Sequence[str], cases: Iterable[Case], output: Path) -> None:
    """Refuse a file from which onnxruntime computes something else than torch.

    Raises:
        UltraRefinerError: It does.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for arguments, expected in cases:
        feed = {name: value.numpy() for name, value in zip(inputs, arguments, strict=True)}
        for found, wanted in zip(session.run(None, feed), expected, strict=True):
            difference = _difference(found, wanted.numpy())
            if not difference <= TOLERANCE:  # so that NaN is refused too
                raise UltraRefinerError(
                    f"{output} was not written: from the exported file onnxruntime "
                    f"{onnxruntime.__version__} computes something else than torch "
                    f"{torch.__version__} (largest difference {difference:.2g} of the largest "
                    f"output, {TOLERANCE:g} is allowed). Update onnx, onnxruntime and onnxscript, "
                    "or use the model through torch."
                )


def _difference(found: np.ndarray, wanted: np.ndarray) -> float:
    """Return the largest difference over the largest value that is wanted; inf for other shapes."""
    if found.shape != wanted.shape:
        return float("inf")
    return float(np.abs(found - wanted).max() / max(np.abs(wanted).max(), 1e-30))


def _name_data(path: Path, name: str) -> None:
    """Say in an ONNX file that the file with its weights is called ``name``."""
    import onnx

    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = name
    onnx.save_model(model, path)
